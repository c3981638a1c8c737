"""Question: which stages of training, in which order, buy what, and what had been paid by then?

Prediction, from the literature: RLVR lifts the domains that a rule can check and leaves or hurts the others, whatever
came before it; it needs SFT less than preference methods do; fresh pairs from the current policy are worth more than as
many from SFT. Whatever the rows say is the result.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.running import carry_out
from experiments.scoring import charged
from lab.config import LabConfig
from lab.execute import Outcome
from lab.graph import PipelineGraph, StagePoint, build_pipelines
from lab.plan import Plan
from lab.records import Ledger
from lab.store import Store
from lab.typed import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lab.tables.pipelines import Contrast, Pipelines, Place


def run(config: LabConfig) -> int:
    """Print the plan (``plan=true``) or run it and write tables and the figure; 0 if every stage finished.

    Raises ConfigError without pipelines, and for arms or candidates, which this experiment would not run.
    """
    if not config.pipelines:
        raise ConfigError("pipelines: there are none to run (experiment=pipelines has them)")
    for key, given in (("arms", config.arms), ("candidates", config.candidates)):
        if given:
            raise ConfigError(f"{key}: experiment=pipelines runs none, got {', '.join(given)}")
    graph, store = build_pipelines(config), Store(Path(config.run.store))
    outcome = carry_out(config, graph.steps, store)
    return 0 if outcome is None else report(config, graph, store, outcome)


def report(config: LabConfig, graph: PipelineGraph, store: Store, outcome: Outcome) -> int:
    """Rows, tables and figure of what was built, and the table on the terminal; 0 if nothing is missing."""
    from lab.tables import write_bytes
    from lab.tables.pipelines_text import TABLES, terminal, write

    folder = Path(config.run.results)
    folder.mkdir(parents=True, exist_ok=True)
    if not store.has(graph.start.evaluation.key):
        print("no table: the SFT checkpoint, from which all differences are measured, did not finish", file=sys.stderr)
        return 1
    found = tables(config, graph, store, outcome)
    paths = write(found, folder)
    drawn = json.loads((folder / TABLES).read_text(encoding="utf-8"))
    paths += draw(drawn, sources(config, graph, store), folder)
    write_bytes(folder / "plan.txt", (Plan(graph.steps).render(store, config.run.workers) + "\n").encode())
    print(f"\n{terminal(found)}\n")
    for path in paths:
        print(path)
    missing = [point for point in graph.points if not store.has(point.evaluation.key)]
    if missing:
        said = f"{len(missing)} of {len(graph.points)} stages are missing"
        print(f"{said}: see the notes in {folder / 'table.md'}", file=sys.stderr)
    return 1 if missing else 0


# ------------------------------------------------------------------------------------------------ from store to tables


def tables(config: LabConfig, graph: PipelineGraph, store: Store, outcome: Outcome) -> Pipelines:
    """The tables of ``lab.tables.pipelines``, and ``rows.parquet`` beside them, from what is in the store."""
    import pandas as pd

    from lab.tables import assert_comparable, read_rows
    from lab.tables.pipelines import tabulate

    arms = by_arm(graph)
    built = [point for points in arms.values() for point in points if store.has(point.evaluation.key)]
    assert_comparable({f"{point.arm}, seed {point.seed}": provenance(store, point) for point in built})
    frames = []
    for point in built:  # the rows carry the name under which they were first measured, perhaps by another experiment
        frames.append(read_rows([store.load(point.evaluation.key).path / "rows.parquet"]).assign(arm=point.arm))
    rows = pd.concat(frames, ignore_index=True)
    path = Path(config.run.results) / "rows.parquet"
    rows.to_parquet(path.with_suffix(".tmp"), index=False, compression="zstd")
    path.with_suffix(".tmp").replace(path)
    return tabulate(
        rows,
        places(graph),
        contrasts(config, graph),
        expected={arm: [point.seed for point in points] for arm, points in arms.items()},
        costs={
            arm: [dataclasses.asdict(ledger(graph, store, point)) for point in points if point in built]
            for arm, points in arms.items()
        },
        failures={arm: failures(graph, points, outcome) for arm, points in arms.items()},
        k=config.evaluation.pass_k,
        resamples=config.run.resamples,
    )


def by_arm(graph: PipelineGraph) -> dict[str, list[StagePoint]]:
    """Every policy that there is to measure, once, by the name that its rows get: SFT first, a point for each seed."""
    found: dict[str, dict[str, StagePoint]] = {}
    for point in (graph.start, *graph.points):
        found.setdefault(point.arm, {}).setdefault(point.evaluation.key, point)
    return {arm: list(points.values()) for arm, points in found.items()}


def places(graph: PipelineGraph) -> list[Place]:
    """The lines of the table: where pipelines start, then every stage of each."""
    from lab.tables.pipelines import Place

    starts: dict[str, Place] = {}
    stages: dict[tuple[str, int], Place] = {}
    before: dict[tuple[str, int, int], StagePoint] = {}
    for point in (graph.start, *graph.points):
        before[point.pipeline, point.number, point.seed] = point
        if point.config is None:
            starts.setdefault(point.arm, Place("", "–", 0, point.name, point.label, point.arm))
            continue
        start = before.get((point.pipeline, point.number - 1, point.seed))
        arm = start.arm if start else next(p.arm for p in graph.points if p.pipeline == point.pipeline and not p.number)
        line = Place(
            point.pipeline, point.pipeline_label, point.number, point.name, point.label, point.arm, arm, paid_by(point)
        )
        stages.setdefault((point.pipeline, point.number), line)
    return [*starts.values(), *stages.values()]


def paid_by(point: StagePoint) -> str:
    """The kind of the reward that a stage is paid with, else what it learns from (``lab.tables.pipelines.Place``)."""
    assert point.config is not None  # no stage has ended at the start
    if point.config.reward is not None:
        return point.config.reward.kind
    return {"direct": "preferences", "unpaired": "preferences", "rejection": "samples"}.get(
        point.config.method.kind, ""
    )


def contrasts(config: LabConfig, graph: PipelineGraph) -> list[Contrast]:
    """The pipelines that say what they are to be compared with."""
    from lab.tables.pipelines import Contrast

    last = {point.pipeline: point for point in graph.points}
    found = []
    for name, pipeline in config.pipelines.items():
        if pipeline.against:
            other, _, stage = pipeline.against.partition(".")
            its = [p for p in graph.points if p.pipeline == other and p.number and (not stage or _named(p, stage))]
            said = config.pipelines[other].label if not stage else f"{its[-1].label} of {config.pipelines[other].label}"
            found.append(Contrast(name, pipeline.label, last[name].arm, said, its[-1].arm))
    return found


def _named(point: StagePoint, stage: str) -> bool:
    return point.name.partition(".")[0] == stage


def ledger(graph: PipelineGraph, store: Store, point: StagePoint) -> Ledger:
    """All that a policy needed: data, labels, reward models, every stage before it; not the base's pretraining."""
    trials = sum(
        other.config.tuning_trials
        for other in graph.points
        if other.config is not None
        and (other.pipeline, other.seed) == (point.pipeline, point.seed)
        and other.number <= point.number
    )
    total = Ledger(tuning_trials=trials)
    for step in graph.spent_on(point.policy):
        spent = charged(store, step)
        own_samples = "data" in step.inputs and step.inputs["data"].kind == "rejection"
        if step.kind == "data" or own_samples:  # what was written but not used, and what no person wrote
            spent = dataclasses.replace(spent, demonstrations=0)
        total += spent
    return total


def provenance(store: Store, point: StagePoint) -> dict[str, Any]:
    """What all stages must share, from the manifest of what measured one."""
    manifest = store.manifest(point.evaluation.key)
    inputs = manifest["inputs"]
    return {
        "sft_digest": inputs["reference"]["digest"],
        "prompts_digest": inputs["prompts"]["digest"],
        "sampler": dict(manifest["config"]["evaluation"]),
    }


def failures(graph: PipelineGraph, points: list[StagePoint], outcome: Outcome) -> list[str]:
    """What went wrong on the way to these policies and their measurement, each thing once."""
    own = {step.key for point in points for step in (*graph.spent_on(point.policy), point.evaluation)}
    notes = [f"{item.step.title}: {item.reason}" for item in outcome.failed if item.step.key in own]
    for item in outcome.skipped:
        if item.step.key in own:
            notes += [f"{item.step.title}: needs {step.title}" for step in item.because if step.key not in own]
    return list(dict.fromkeys(notes))


# ------------------------------------------------------------------------------------------------------------- figures


def sources(config: LabConfig, graph: PipelineGraph, store: Store) -> dict[str, Any]:
    """What the figure was drawn from: keys and digests of every policy and of what measured it."""
    from lab.artifact import sha256_file
    from lab.tables.pipelines_text import TABLES

    def named(key: str) -> dict[str, str]:
        return {"key": key, "digest": store.manifest(key)["digest"]}

    built = [p for points in by_arm(graph).values() for p in points if store.has(p.evaluation.key)]
    return {
        "experiment": config.experiment,
        "scale": config.scale.name,
        "note": config.scale.note or None,
        "tables_sha256": sha256_file(Path(config.run.results) / TABLES),
        "sft": named(graph.sft.key),
        "runs": [
            {"arm": p.arm, "seed": p.seed, "policy": named(p.policy.key), "evaluation": named(p.evaluation.key)}
            for p in built
        ],
    }


def drawings() -> dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Figure]]:
    """Figure -> what draws it from the content of the tables' JSON file and the sources that its sidecar names."""
    from lab.figures.pipelines import pipelines_figure
    from lab.tables.pipelines_text import from_payload

    return {"pipelines": lambda found, told: pipelines_figure(from_payload(found), note=told["note"])}


def draw(found: Mapping[str, Any], told: Mapping[str, Any], folder: Path) -> list[Path]:
    """The figure with its sidecar; returns the paths."""
    from lab.figures import save

    return [path for name, figure in drawings().items() for path in save(figure(found, told), folder / name, told)]

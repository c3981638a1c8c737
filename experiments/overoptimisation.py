"""Question: which reward model is overoptimised, how far, and who could have known?

A quarter of the labels is turned round. Best-of-n and PPO with little to hold it meet one reward model and three ways
to read five. Prediction, from the literature: gold rises and falls along √KL as Gao et al. 2022 have it, and the worst
case and the uncertainty-weighted reading of an ensemble are overoptimised less than one model or the mean (Coste et al.
2023). A monitor that never sees gold is run on every trace. Whatever the rows say is the result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import compare
from experiments.reward_models import assert_comparable, complete_runs, failures, pool_scores
from experiments.running import carry_out
from lab.config import LabConfig, OnlineMethod
from lab.execute import Outcome
from lab.graph import ArmRun, CandidateRun, Graph, build_graph, seeds_of
from lab.store import Store
from lab.typed import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lab.tables.monitoring import Monitoring, Watched
    from lab.tables.overoptimisation import Key, Overoptimisation, Planned, Track
    from lab.tables.reward_models import Pool

PPO = "ppo_"
SINGLE, MEAN = "single", "mean"
"""The candidates that others are compared with."""


@dataclass(frozen=True)
class Trained:
    """An arm of PPO: ``model`` is its name without ``ppo_``, ``candidate`` what pays it, ``variant`` what is left of
    the name (e.g. ``_held``)."""

    arm: str
    model: str
    candidate: str
    variant: str


def run(config: LabConfig) -> int:
    """Print the plan (``plan=true``) or run it and write tables and figures; 0 if every run finished.

    Raises ConfigError as ``trained_arms``, and without n = 1 among the sizes of best-of-n.
    """
    trained_arms(config)
    if 1 not in config.sizes.best_of_n_many:
        raise ConfigError("sizes.best_of_n_many: expected 1 among them, which is the SFT checkpoint itself")
    graph, store = build_graph(config), Store(Path(config.run.store))
    for one in graph.candidates:
        pool_scores(one)
    outcome = carry_out(config, graph.steps, store)
    return 0 if outcome is None else report(config, graph, store, outcome)


def trained_arms(config: LabConfig) -> list[Trained]:
    """The arms of PPO against a candidate, by name: ``ppo_CANDIDATE`` or ``ppo_CANDIDATE_WORD``.

    Raises ConfigError for an arm trained online that is not so named, or that something else than that candidate pays:
    the candidate's scores of the pool say where the arm's proxy starts.
    """
    found = []
    for name, arm in config.arms.items():
        if not isinstance(arm.method, OnlineMethod):
            continue
        model = name.removeprefix(PPO)
        fitting = [c for c in config.candidates if model == c or model.startswith(f"{c}_")]
        if not name.startswith(PPO) or not fitting:
            raise ConfigError(f"arms.{name}: expected {PPO}CANDIDATE or {PPO}CANDIDATE_WORD, after one of candidates")
        candidate = max(fitting, key=len)
        if arm.reward != config.candidates[candidate].reward:
            raise ConfigError(f"arms.{name}.reward: expected that of candidates.{candidate}, after which it is named")
        found.append(Trained(name, model, candidate, model.removeprefix(candidate)))
    return found


def report(config: LabConfig, graph: Graph, store: Store, outcome: Outcome) -> int:
    """The arms' report (``experiments.compare``), then tables and figures of overoptimisation and of the monitor; 0 if
    nothing is missing."""
    from lab.tables.overoptimisation_text import TABLES, terminal, write

    code = compare.report(config, graph, store, outcome)
    runs = complete_runs(graph, store)
    baseline = next(name for name, arm in config.arms.items() if arm.method.kind == "none")
    if not runs or not any(one.arm == baseline and store.has(one.evaluation.key) for one in graph.runs):
        print("no table of overoptimisation: no reward source scored the pool, or no SFT checkpoint", file=sys.stderr)
        return 1
    assert_comparable(graph, store, runs)
    folder = Path(config.run.results)
    found, watched = tabulate(config, graph, store, outcome)
    paths = write(found, watched, folder)
    drawn = json.loads((folder / TABLES).read_text(encoding="utf-8"))
    paths += draw(drawn, sources(config, graph, store, runs), folder)
    print(f"\n{terminal(found, watched)}\n")
    for path in paths:
        print(path)
    missing = len(graph.candidates) - len(runs)
    if missing:
        print(f"{missing} of {len(graph.candidates)} runs of reward sources are missing", file=sys.stderr)
    return 1 if missing else code


# ------------------------------------------------------------------------------------------------ from store to tables


def tabulate(config: LabConfig, graph: Graph, store: Store, outcome: Outcome) -> tuple[Overoptimisation, Monitoring]:
    """The tables of ``lab.tables.overoptimisation`` and ``lab.tables.monitoring`` from what is in the store."""
    from lab.tables.monitoring import margin_of, monitor
    from lab.tables.overoptimisation import overoptimisation
    from lab.tables.reward_models import read_pool

    assert graph.pool is not None  # there are candidates
    pool = read_pool(store.load(graph.pool.key).path / "pool.parquet")
    scores = _scores(graph, store, pool)
    tracks = best_of_n_tracks(config, scores, pool) | training_tracks(config, graph, store, scores, pool)
    found = overoptimisation(planned(config, graph, outcome), tracks, resamples=config.run.resamples)
    watched = watched_runs(config, graph, store, tracks)
    expected = sum(len(seeds_of(config, config.arms[one.arm])) for one in trained_arms(config))
    margin = margin_of([track for (method, _), track in tracks.items() if method == "rl"])
    return found, monitor(watched, expected, margin)


def planned(config: LabConfig, graph: Graph, outcome: Outcome) -> list[Planned]:
    """Every model under both methods, and what it is compared with: one model, the mean, and itself less held."""
    from lab.tables.overoptimisation import Planned

    lines = []
    for name, candidate in config.candidates.items():
        against = tuple(other for other in (SINGLE, MEAN) if other in config.candidates and name not in (other, SINGLE))
        count, note = len(seeds_of(config, candidate)), failures(graph, outcome, name)
        lines.append(Planned("bon", name, candidate.label, count, against, note))
    arms = trained_arms(config)
    models = {one.model for one in arms}
    for arm in arms:
        others = [] if arm.candidate == SINGLE else [SINGLE + arm.variant, MEAN + arm.variant]
        others += [arm.candidate] if arm.variant else []
        against = tuple(other for other in others if other in models and other != arm.model)
        label = config.arms[arm.arm].label.removeprefix("PPO × ")
        label = config.candidates[arm.candidate].label + label.removeprefix(label.split(",")[0])
        note = "; ".join(compare.failures(graph, outcome, arm.arm))
        lines.append(Planned("rl", arm.model, label, len(seeds_of(config, config.arms[arm.arm])), against, note))
    return lines


def _scores(graph: Graph, store: Store, pool: Pool) -> dict[str, dict[int, Any]]:
    """Candidate -> seed -> (P, N) scores of the pool."""
    from lab.tables.reward_models import read_scores

    found: dict[str, dict[int, Any]] = {}
    for one in complete_runs(graph, store):
        path = store.load(pool_scores(one).key).path / "scores.parquet"
        found.setdefault(one.candidate, {})[one.seed] = read_scores(path, pool)
    return found


def best_of_n_tracks(config: LabConfig, scores: Mapping[str, Mapping[int, Any]], pool: Pool) -> dict[Key, Track]:
    """The path of best-of-n of every candidate that scored the pool."""
    import numpy as np

    from lab.tables.overoptimisation import best_of_n_track

    ns = sorted({n for n in config.sizes.best_of_n_many if n <= pool.samples})
    return {
        ("bon", name): best_of_n_track(np.stack(list(own.values())), list(own), pool, ns)
        for name, own in scores.items()
    }


def training_tracks(
    config: LabConfig, graph: Graph, store: Store, scores: Mapping[str, Mapping[int, Any]], pool: Pool
) -> dict[Key, Track]:
    """The path of every arm that was trained, over the seeds that were; its proxy is its own reward."""
    import numpy as np
    import pandas as pd

    from lab.tables.cells import Arm, check_rows, in_order, make_cells, read_rows
    from lab.tables.curves import read_curve
    from lab.tables.overoptimisation import pool_start, training_track

    built = [one for one in graph.runs if store.has(one.evaluation.key)]
    rows = read_rows([store.load(one.evaluation.key).path / "rows.parquet" for one in built])
    baseline = next(name for name, arm in config.arms.items() if arm.method.kind == "none")
    check_rows(rows, {name: seeds_of(config, arm) for name, arm in config.arms.items()}, baseline)
    cells = make_cells(rows, baseline, config.evaluation.pass_k)
    domains = in_order(cells.domain.unique())
    prompts = {domain: pd.Index(sorted(cells.prompt_id[cells.domain == domain].unique())) for domain in domains}
    start = Arm(baseline, cells[cells.final & (cells.arm == baseline)], prompts)
    tracks: dict[Key, Track] = {}
    for arm in trained_arms(config):
        curve = read_curve(arm.arm, cells, start, domains) if (cells.arm == arm.arm).any() else None
        if curve is None:
            continue
        known = scores.get(arm.candidate, {})
        proxies = [float(pool_start(known[s][None], pool.domains)[0]) if s in known else np.nan for s in curve.seeds]
        tracks["rl", arm.model] = training_track(curve, proxies)
    return tracks


def watched_runs(config: LabConfig, graph: Graph, store: Store, tracks: Mapping[Key, Track]) -> list[Watched]:
    """Every trained run with its trace, and gold and proxy along its checkpoints."""
    from lab.tables.monitoring import Watched

    found = []
    for arm in trained_arms(config):
        track = tracks.get(("rl", arm.model))
        runs = {one.seed: one for one in graph.runs if one.arm == arm.arm and store.has(one.evaluation.key)}
        for place, seed in enumerate(track.seeds if track else ()):
            assert track is not None
            found.append(
                Watched(
                    arm.arm,
                    config.arms[arm.arm].label,
                    seed,
                    read_trace(store, runs[seed]),
                    dict(zip(track.at, (float(value) for value in track.gains[:, place]), strict=True)),
                    dict(zip(track.at, (float(value) for value in track.proxy_gain[:, place]), strict=True)),
                )
            )
    return found


def read_trace(store: Store, one: ArmRun) -> list[dict[str, Any]]:
    """The rollouts of a trained run, as ``lab.stages.online`` wrote them."""
    assert one.policy is not None  # it was trained
    text = (store.load(one.policy.key).path / "trace.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


# ------------------------------------------------------------------------------------------------------------- figures


def sources(config: LabConfig, graph: Graph, store: Store, runs: list[CandidateRun]) -> dict[str, Any]:
    """What the figures were drawn from: keys and digests of every run, the pool and the SFT checkpoint."""
    from lab.artifact import sha256_file
    from lab.tables.overoptimisation_text import TABLES

    def named(key: str) -> dict[str, str]:
        return {"key": key, "digest": store.manifest(key)["digest"]}

    assert graph.pool is not None
    built = [one for one in graph.runs if store.has(one.evaluation.key)]
    return {
        "experiment": config.experiment,
        "scale": config.scale.name,
        "note": config.scale.note or None,
        "tables_sha256": sha256_file(Path(config.run.results) / TABLES),
        "sft": named(graph.sft.key),
        "pool": named(graph.pool.key),
        "runs": [
            {"arm": one.arm, "seed": one.seed, "evaluation": named(one.evaluation.key)}
            | {"policy": named(one.policy.key) if one.policy else None}
            for one in built
        ],
        "candidates": [
            {"candidate": one.candidate, "seed": one.seed, "scores": named(pool_scores(one).key)} for one in runs
        ],
    }


def drawings() -> dict[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Figure]]:
    """Figure -> what draws it from the content of the tables' JSON file and the sources that its sidecar names."""
    from lab.figures.monitor import monitor_figure
    from lab.figures.overoptimisation import overoptimisation_figure
    from lab.tables.overoptimisation_text import from_payload

    return {
        "overoptimisation": lambda found, told: overoptimisation_figure(from_payload(found)[0], note=told["note"]),
        "monitor": lambda found, told: monitor_figure(from_payload(found)[1], note=told["note"]),
    }


def draw(found: Mapping[str, Any], told: Mapping[str, Any], folder: Path) -> list[Path]:
    """Both figures with their sidecars; returns the paths."""
    from lab.figures import save

    return [path for name, figure in drawings().items() for path in save(figure(found, told), folder / name, told)]

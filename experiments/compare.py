"""Question: from one SFT checkpoint, what does a reward model buy, and what does it cost?

Prediction, from the literature: on the world's true utility a policy trained against a reward model beats DPO on the
same labels while KL is held, and is hacked when it is not; RLVR is best where a rule can check, and blind elsewhere; a
random reward raises nothing. Whatever the rows say is the result.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.running import carry_out
from experiments.scoring import charged, with_scoring
from experiments.sweep import write_point
from lab.config import ArmConfig, BestOfNMethod, LabConfig
from lab.execute import Outcome
from lab.graph import ArmRun, CandidateRun, Graph, build_graph, seeds_of
from lab.graph.filters import paid_for
from lab.plan import Plan, Step
from lab.records import Ledger
from lab.store import Store
from lab.typed import plain


def run(config: LabConfig) -> int:
    """Print the plan (``plan=true``) or run it and write tables and figures; 0 if every arm finished."""
    graph, store = build_graph(config), Store(Path(config.run.store))
    outcome = carry_out(config, graph.steps, store)
    return 0 if outcome is None else report(config, graph, store, outcome)


def report(config: LabConfig, graph: Graph, store: Store, outcome: Outcome) -> int:
    """Rows, tables and figures of what was built, and the table on the terminal; 0 if nothing is missing."""
    # Not before the work is done: pandas and matplotlib would be in the way of ``plan=true``.
    from lab.figures import headline, save
    from lab.tables import (
        assert_comparable,
        compare,
        read_rows,
        table_digest,
        terminal_table,
        write_bytes,
        write_tables,
    )

    folder = Path(config.run.results)
    folder.mkdir(parents=True, exist_ok=True)
    built = [run for run in graph.runs if store.has(run.evaluation.key)]
    baseline = next(name for name, arm in config.arms.items() if arm.method.kind == "none")
    if not any(run.arm == baseline for run in built):
        print(
            f"no table: the arm {baseline!r}, from which all differences are measured, did not finish", file=sys.stderr
        )
        return 1
    owned = {f"{run.arm}, seed {run.seed}": provenance(graph, store, run) for run in built}
    assert_comparable(owned)
    shared = next(iter(owned.values()))
    rows = with_scoring(
        read_rows([store.load(run.evaluation.key).path / "rows.parquet" for run in built]),
        {run.evaluation.key: run.policy or run.evaluation for run in built},
        store,
    )
    path = folder / "rows.parquet"
    rows.to_parquet(path.with_suffix(".tmp"), index=False, compression="zstd")
    path.with_suffix(".tmp").replace(path)

    arms = config.arms
    ledgers = {name: [ledger(config, graph, store, run) for run in built if run.arm == name] for name in arms}
    upfront = {name: _upfront_flops(store, graph, built, name) for name in arms}
    tables = compare(
        rows,
        expected={name: seeds_of(config, arm) for name, arm in arms.items()},
        baseline=baseline,
        costs={name: [dataclasses.asdict(one) for one in found] for name, found in ledgers.items()},
        upfront_flops=upfront,
        failures={name: failures(graph, outcome, name) for name in arms},
        k=config.evaluation.pass_k,
        resamples=config.run.resamples,
    )
    labels = {name: arm.label for name, arm in arms.items()}
    paths = [path, *write_tables(tables, folder, labels)]
    drawn = styles(arms)
    figure = headline(
        tables.table, tables.seeds, tables.curves, arms=drawn, baseline=baseline, note=config.scale.note or None
    )
    sources = {
        "experiment": config.experiment,
        "scale": config.scale.name,
        "note": config.scale.note or None,
        "arms": {name: {"label": style.label, "family": style.family} for name, style in drawn.items()},
        "table_sha256": table_digest(tables.table),
        "sft": {"key": graph.sft.key, "digest": store.manifest(graph.sft.key)["digest"]},
        "reward_model_accuracy": {
            str(seed): store.manifest(step.key)["metrics"]["accuracy"]
            for seed, step in graph.reward_models.items()
            if store.has(step.key)
        },
        "runs": [_source(store, run) for run in built],
    }
    paths += save(figure, folder / "headline", sources)
    figure.clear()
    write_bytes(folder / "plan.txt", (Plan(graph.steps).render(store, config.run.workers) + "\n").encode())
    print()
    print(terminal_table(tables, labels))
    print()
    for item in paths:
        print(item)
    missing = len(graph.runs) - len(built)
    if missing:
        print(
            f"{missing} of {len(graph.runs)} runs are missing: see the notes in {folder / 'table.md'}", file=sys.stderr
        )
    absent = [run for run in graph.candidates for step in run.steps if not store.has(step.key)]
    for run in dict.fromkeys(absent):
        print(f"reward source {run.candidate}, seed {run.seed}: not complete", file=sys.stderr)
    code = 1 if missing or absent else 0
    write_point(
        config,
        folder,
        shared=shared,
        runs=[_source(store, run) for run in built],
        expected={name: seeds_of(config, arm) for name, arm in arms.items()},
        candidates=[candidate_record(store, run) for run in graph.candidates if run not in absent],
        preferences=card(config, graph, store, folder),
        code=code,
    )
    return code


def card(config: LabConfig, graph: Graph, store: Store, folder: Path) -> dict[str, Any]:
    """What the pairs are like, which is written to the run's results too, and what was asked of them."""
    from lab.tables import write_bytes

    if graph.card is None or not store.has(graph.card.key):
        return {}
    artifact = store.load(graph.card.key).path
    for name in ("card.json", "card.md"):
        write_bytes(folder / f"pairs_{name}", (artifact / name).read_bytes())
    found: dict[str, Any] = json.loads((artifact / "card.json").read_text(encoding="utf-8"))
    ledgers = [store.manifest(step.key)["ledger"] for step in paid_for(graph.pairs)]
    asked = plain(config.preferences)
    return {
        **{name: item for name, item in asked.items() if not isinstance(item, dict)},
        **{name: item for name, item in found.items() if not isinstance(item, dict)},
        "preset": asked["annotator"],
        "labels_paid": sum(ledger["preference_labels"] + ledger["ratings"] for ledger in ledgers),
    }


def candidate_record(store: Store, run: CandidateRun) -> dict[str, Any]:
    """What a sweep needs to know of one reward source under one seed: its training, and its scores on the benchmark."""
    record: dict[str, Any] = {"candidate": run.candidate, "seed": run.seed}
    if run.source.trained:
        metrics = [store.manifest(step.key)["metrics"] for step in run.source.trained]
        record |= {name: metrics[0].get(name) for name in ("parameters", "accuracy", "pairs")}
        ledgers = [store.manifest(step.key)["ledger"] for step in run.source.trained]
        record["training_flops"] = sum(ledger["training_flops"] for ledger in ledgers)
    if run.benchmark is not None:
        found = json.loads((store.load(run.benchmark.key).path / "results.json").read_text(encoding="utf-8"))["scores"]
        for half in ("all", "easy", "hard"):
            part = found["world"].get(half, {}).get("overall")
            record["overall" if half == "all" else half] = None if part is None else part["score"]
    return record


def styles(arms: Mapping[str, ArmConfig]) -> dict[str, Any]:
    """How to draw each arm: its known style, under the label and family that the config gives it."""
    from lab.figures import COMPARE_ARMS, ArmStyle

    families = {"control": "control", "without": "no_rm", "with": "rm"}
    return {
        name: dataclasses.replace(COMPARE_ARMS[name], label=arm.label, family=families[arm.family])
        if name in COMPARE_ARMS
        else ArmStyle(label=arm.label, family=families[arm.family])
        for name, arm in arms.items()
    }


def provenance(graph: Graph, store: Store, run: ArmRun) -> dict[str, Any]:
    """What a comparison must share: from the manifests of what was built, not from the plan."""
    manifest = store.manifest(run.evaluation.key)
    inputs = manifest["inputs"]
    reference = inputs["sft" if run.policy is None else "reference"]["digest"]
    if run.policy is not None and run.policy.key != graph.sft.key:
        own = store.manifest(run.policy.key)["inputs"]
        trained_from = own["policy" if "policy" in own else "sft"]["digest"]
        if trained_from != reference:
            raise ValueError(
                f"{run.arm}, seed {run.seed}: trained from another SFT checkpoint than it is measured from"
            )
    sampler = dict(manifest["config"]["evaluation"])
    return {"sft_digest": reference, "prompts_digest": inputs["prompts"]["digest"], "sampler": sampler}


def ledger(config: LabConfig, graph: Graph, store: Store, run: ArmRun) -> Ledger:
    """What one run spent beyond the SFT checkpoint: its own training, and the reward model and labels that it uses."""
    arm = config.arms[run.arm]
    steps: list[Step] = []
    if run.policy is not None and run.policy.key != graph.sft.key:
        steps.append(run.policy)
    if isinstance(arm.method, BestOfNMethod):
        steps.append(run.evaluation)
    steps += run.reward_models
    if any("pairs" in step.inputs for step in steps):
        steps += paid_for(graph.pairs)
    total = Ledger(tuning_trials=arm.tuning_trials)
    for step in steps:
        total += charged(store, step)
    return total


def _upfront_flops(store: Store, graph: Graph, built: list[ArmRun], name: str) -> float:
    """FLOPs before an arm's first step: its reward models' and its labels', on the mean over its runs."""
    runs = [run for run in built if run.arm == name]
    spent = [charged(store, step) for run in runs for step in run.reward_models]
    total = sum(one.training_flops + one.sampling_flops for one in spent) / max(len(runs), 1)
    steps = [step for run in runs for step in (*run.reward_models, run.policy) if step is not None]
    if any("pairs" in step.inputs for step in steps):
        pool = [charged(store, step) for step in paid_for(graph.pairs)]
        total += sum(one.training_flops + one.sampling_flops for one in pool)
    return total


def failures(graph: Graph, outcome: Outcome, arm: str) -> list[str]:
    own = {
        step.key for run in graph.runs if run.arm == arm for step in (run.policy, run.evaluation) if step is not None
    }
    notes = [f"{item.step.title}: {item.reason}" for item in outcome.failed if item.step.key in own]
    for item in outcome.skipped:
        if item.step.key in own:
            notes += [f"{item.step.title}: needs {step.title}" for step in item.because if step.key not in own]
    return list(dict.fromkeys(notes))


def _source(store: Store, run: ArmRun) -> dict[str, Any]:
    manifest = store.manifest(run.evaluation.key)
    return {
        "arm": run.arm,
        "seed": run.seed,
        "evaluation": run.evaluation.key,
        "digest": manifest["digest"],
        "policy": None if run.policy is None else run.policy.key,
        "inputs": {name: item["digest"] for name, item in manifest["inputs"].items()},
    }

"""Question: which reward model should one trust, and does a benchmark say so?

Every kind of reward source scores one pool of SFT completions and one benchmark of the world's own items; the main ones
also pay PPO. So each has a benchmark score, what best-of-n makes of it, and what a policy does. Prediction, from the
literature: the benchmark ranks reward models for best-of-n and hardly for PPO (Malik et al. 2025, RewardBench 2), a
reward model of another lineage is worth less to PPO than its score says, and process supervision passes outcome
supervision as n grows (Lightman et al. 2023). Whatever the rows say is the result.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments import compare
from experiments.running import carry_out
from lab.config import (
    CandidateConfig,
    ClassifierSource,
    EnsembleSource,
    ImplicitSource,
    LabConfig,
    OutcomeSource,
    PolicyBackbone,
    ProcessSource,
)
from lab.execute import Outcome
from lab.graph import CandidateRun, Graph, build_graph, seeds_of
from lab.graph.filters import paid_for
from lab.plan import Step
from lab.records import Ledger
from lab.store import Store
from lab.typed import ConfigError, plain

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from lab.tables.reward_models import Measured, Pool, RewardModels

Drawing = Callable[[Mapping[str, Any], Mapping[str, Any]], "Figure"]
"""From the content of ``reward_models.json``, and the sources that a sidecar names, to a figure."""

NAME = "reward_models"
PPO = "ppo_"
"""An arm of this name and a candidate's is PPO against that candidate."""


def run(config: LabConfig) -> int:
    """Print the plan (``plan=true``) or run it and write tables and figures; 0 if every run finished.

    Raises ConfigError where an arm named after a candidate is paid by something else, or a candidate skips the pool.
    """
    for name, candidate in config.candidates.items():
        arm = config.arms.get(PPO + name)
        if arm is not None and arm.reward != candidate.reward:
            raise ConfigError(f"arms.{PPO}{name}.reward: expected that of candidates.{name}, after which it is named")
    graph, store = build_graph(config), Store(Path(config.run.store))
    for run in graph.candidates:
        pool_scores(run)
    outcome = carry_out(config, graph.steps, store)
    return 0 if outcome is None else report(config, graph, store, outcome)


def pool_scores(run: CandidateRun) -> Step:
    """The step of its scores on the pool. Raises ConfigError if it has none."""
    if run.scores is None:
        raise ConfigError(f"candidates.{run.candidate}.pool: this experiment needs scores on the pool: expected true")
    return run.scores


def report(config: LabConfig, graph: Graph, store: Store, outcome: Outcome) -> int:
    """The arms' report (``experiments.compare``), then tables and figures of the candidates; 0 if all is there."""
    from lab.tables.reward_models_text import TABLES, terminal, write

    code = compare.report(config, graph, store, outcome)
    runs = complete_runs(graph, store)
    if not runs:
        print("no table: no reward source has both its scores on the pool and its benchmark", file=sys.stderr)
        return 1
    assert_comparable(graph, store, runs)
    folder = Path(config.run.results)
    found = tabulate(config, graph, store, outcome)
    paths = write(found, folder)
    drawn = json.loads((folder / TABLES).read_text(encoding="utf-8"))
    paths += draw(drawn, sources(config, graph, store, runs), folder)
    print(f"\n{terminal(found)}\n")
    for path in paths:
        print(path)
    if len(runs) < len(graph.candidates):
        print(f"{len(runs)} of {len(graph.candidates)} runs of reward sources are complete", file=sys.stderr)
        return 1
    return code


# ------------------------------------------------------------------------------------------------ from store to tables


def complete_runs(graph: Graph, store: Store) -> list[CandidateRun]:
    """The runs of which every step is there: a seed counts with both its scores and its benchmark, or not at all."""
    return [run for run in graph.candidates if all(store.has(step.key) for step in run.steps)]


def assert_comparable(graph: Graph, store: Store, runs: list[CandidateRun]) -> None:
    """Raises ValueError unless all ``runs`` scored one pool, one benchmark and one set of prompts, and the pool is of
    the SFT checkpoint of the arms. From the manifests of what was built, not from the plan."""
    from lab.tables.reward_models import assert_shared

    assert graph.pool is not None  # there are candidates
    found: dict[str, dict[str, str]] = {"the pool": {}, "the prompts": {}, "the benchmark": {}}
    for run in runs:
        name, inputs = f"{run.candidate}, seed {run.seed}", store.manifest(pool_scores(run).key)["inputs"]
        found["the pool"][name] = inputs["pool"]["digest"]
        found["the prompts"][name] = inputs["prompts"]["digest"]
        if run.benchmark is not None:
            found["the benchmark"][name] = store.manifest(run.benchmark.key)["inputs"]["items"]["digest"]
    own = store.manifest(graph.pool.key)["inputs"]
    found["the SFT checkpoint"] = {"the pool": own["sft"]["digest"]} | {
        f"arm {run.arm}, seed {run.seed}": str(compare.provenance(graph, store, run)["sft_digest"])
        for run in graph.runs
        if store.has(run.evaluation.key)
    }
    for what, digests in found.items():
        assert_shared(what, digests)


def tabulate(config: LabConfig, graph: Graph, store: Store, outcome: Outcome) -> RewardModels:
    """The tables of ``lab.tables.reward_models`` from what is in the store."""
    from lab.tables.reward_models import BASELINE, read_pool, reward_models

    assert graph.pool is not None
    pool = read_pool(store.load(graph.pool.key).path / "pool.parquet")
    runs = complete_runs(graph, store)
    known = {name: [run for run in runs if run.candidate == name] for name in config.candidates}
    measured = {
        name: measure(config, graph, store, pool, candidate, known[name], failures(graph, outcome, name))
        for name, candidate in config.candidates.items()
    }
    benchmark, tests = benchmarked(config, graph, store, {name: own for name, own in known.items() if own}, BASELINE)
    return reward_models(
        measured,
        pool,
        benchmark,
        tests,
        policies(config, graph, store),
        ns=[n for n in config.sizes.best_of_n_many if n <= pool.samples],
        baseline=BASELINE,
        resamples=config.run.resamples,
    )


def measure(
    config: LabConfig,
    graph: Graph,
    store: Store,
    pool: Pool,
    candidate: CandidateConfig,
    runs: list[CandidateRun],
    note: str,
) -> Measured:
    """One candidate from its complete runs."""
    import numpy as np

    from lab.tables.reward_models import Measured, read_scores

    scores = [read_scores(store.load(pool_scores(run).key).path / "scores.parquet", pool) for run in runs]
    costs = [_costs(graph, store, candidate, run) for run in runs]
    return Measured(
        label=candidate.label,
        kind=candidate.reward.kind,
        n_expected=len(seeds_of(config, candidate)),
        seeds=tuple(run.seed for run in runs),
        scores=np.stack(scores) if scores else None,
        log_odds=tuple(_log_odds(store, candidate, run) for run in runs),
        held_out=tuple(_held_out(store, candidate, run) for run in runs),
        costs={name: sum(one[name] for one in costs) / len(costs) for name in (costs[0] if costs else ())},
        own_lineage=_own_lineage(config, candidate),
        note=note if len(runs) < len(seeds_of(config, candidate)) else "",
    )


def benchmarked(
    config: LabConfig, graph: Graph, store: Store, runs: Mapping[str, list[CandidateRun]], baseline: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The benchmark's scores of every candidate, and paired tests against the baseline (none if it has no run)."""
    import pandas as pd

    from lab.benchmarks.items import read_items, read_scores, with_pairs
    from lab.benchmarks.scoring import compare_models, score_table

    if graph.benchmark_set is None:
        columns = ("benchmark", "half", "part", "model", "score", "low", "high", "chance", "longer_wins")
        return pd.DataFrame(columns=columns), pd.DataFrame(columns=("benchmark", "half", "part", "first", "p_holm"))
    items = read_items(store.load(graph.benchmark_set.key).path / "items.jsonl")
    scores = {}
    for name, own in runs.items():
        steps = [run.benchmark for run in own if run.benchmark is not None]
        found = [read_scores(store.load(step.key).path / "scores.parquet", items) for step in steps]
        scores[name] = [with_pairs(items, one)[1] for one in found]
    every = with_pairs(items, next(iter(scores.values()))[0][: len(items)])[0]
    settings: dict[str, Any] = {"may_abstain": True, "resamples": config.run.resamples}
    table = score_table(every, scores, **settings)
    known = baseline in scores
    return table, compare_models(every, scores if known else {}, baseline=baseline if known else None, **settings)


def policies(config: LabConfig, graph: Graph, store: Store) -> pd.DataFrame:
    """What PPO made of each candidate: lines of the table that ``experiments.compare`` just wrote, by candidate."""
    import pandas as pd

    from lab.tables import ALL

    baseline = next(name for name, arm in config.arms.items() if arm.method.kind == "none")
    if not any(store.has(run.evaluation.key) for run in graph.runs if run.arm == baseline):
        return pd.DataFrame()
    table = pd.read_csv(Path(config.run.results) / "table.csv", float_precision="round_trip")
    own = table[(table.domain == ALL) & table.arm.isin([PPO + name for name in config.candidates])]
    return own.set_index(own.arm.str.removeprefix(PPO))


def failures(graph: Graph, outcome: Outcome, candidate: str) -> str:
    """Why runs of this candidate are missing."""
    own = {step.key for run in graph.candidates if run.candidate == candidate for step in run.steps}
    notes = [f"{item.step.title}: {item.reason}" for item in outcome.failed if item.step.key in own]
    for item in outcome.skipped:
        if item.step.key in own:
            notes += [f"{item.step.title}: needs {step.title}" for step in item.because if step.key not in own]
    return "; ".join(dict.fromkeys(notes))


# ------------------------------------------------------------------------------------------------ of one reward source


def _own_lineage(config: LabConfig, candidate: CandidateConfig) -> bool:
    """Whether it starts from the policy's own base, SFT checkpoint or policy."""
    reward = candidate.reward
    if not isinstance(reward, (ClassifierSource, EnsembleSource)):
        return True
    return isinstance((reward.training or config.reward_model).backbone, PolicyBackbone)


def _log_odds(store: Store, candidate: CandidateConfig, run: CandidateRun) -> float:
    """From normalised scores back to the Bradley-Terry log-odds that this source states; NaN if it states none."""
    reward = candidate.reward
    if isinstance(reward, ClassifierSource):
        unit = store.manifest(run.source.inputs["reward_model"].key)["metrics"]["scale"]
        return float(unit / reward.scale)
    if (
        isinstance(reward, ImplicitSource)
        and reward.variant == "log_ratio"
        and tuple(reward.method.loss_type) == ("sigmoid",)
    ):
        unit = store.manifest(run.source.inputs["normalisation"].key)["metrics"]["scale"]
        return float(unit * reward.method.beta / reward.scale)
    return math.nan


def _held_out(store: Store, candidate: CandidateConfig, run: CandidateRun) -> float:
    """Its own accuracy on held-out pairs, where its artifact measured it: not of ensembles, mixtures and controls."""
    reward, measured = candidate.reward, run.source.trained
    if "normalisation" in run.source.inputs:
        measured = (run.source.inputs["normalisation"],)
    if len(measured) != 1 or reward.kind in ("ensemble", "mixture"):
        return math.nan
    metrics = store.manifest(measured[0].key)["metrics"]
    found = metrics.get("accuracy")
    if isinstance(reward, (OutcomeSource, ProcessSource)):
        found = metrics["variants"][reward.at if isinstance(reward, OutcomeSource) else reward.aggregate]
    return math.nan if found is None else float(found)


POINTWISE = ("outcome", "process")
"""Kinds that learn from the samples of the preference pool, and not from the pairs."""


def _costs(graph: Graph, store: Store, candidate: CandidateConfig, run: CandidateRun) -> dict[str, float]:
    """What one seed spent: its own training, and the samples and labels of the preference pool that it learnt from."""
    total = Ledger()
    manifests = [store.manifest(step.key) for step in run.source.trained]
    for manifest in manifests:
        total += Ledger(**manifest["ledger"])
    if manifests:
        pool = sum((Ledger(**store.manifest(step.key)["ledger"]) for step in paid_for(graph.pairs)), Ledger())
        pairs = [manifest["metrics"]["pairs"] for manifest in manifests if manifest["kind"] == "reward_model"]
        labels = max(pairs) if pairs and pool.preference_labels else pool.preference_labels
        total += dataclasses.replace(pool, preference_labels=0 if candidate.reward.kind in POINTWISE else labels)
    metrics = store.manifest(pool_scores(run).key)["metrics"]
    spent = {name: float(value) for name, value in plain(total).items()}
    return spent | {"seconds_per_1000": float(metrics["seconds_per_1000"])}


# ------------------------------------------------------------------------------------------------------------- figures


def sources(config: LabConfig, graph: Graph, store: Store, runs: list[CandidateRun]) -> dict[str, Any]:
    """What the figures were drawn from: keys and digests of every run, pool, benchmark and SFT checkpoint."""
    from lab.artifact import sha256_file
    from lab.tables.reward_models_text import TABLES

    def named(key: str) -> dict[str, str]:
        return {"key": key, "digest": store.manifest(key)["digest"]}

    assert graph.pool is not None
    return {
        "experiment": config.experiment,
        "scale": config.scale.name,
        "note": config.scale.note or None,
        "tables_sha256": sha256_file(Path(config.run.results) / TABLES),
        "sft": named(graph.sft.key),
        "pool": named(graph.pool.key),
        "benchmark_set": named(graph.benchmark_set.key) if graph.benchmark_set else None,
        "candidates": [
            {
                "candidate": run.candidate,
                "seed": run.seed,
                "scores": named(pool_scores(run).key),
                "benchmark": named(run.benchmark.key) if run.benchmark else None,
            }
            for run in runs
        ],
    }


def drawings() -> dict[str, Drawing]:
    """Figure -> what draws it."""
    from lab.figures import reward_models as figures
    from lab.tables.reward_models_text import from_payload

    known = {
        "kinds": figures.kinds_figure,
        "best_of_n": figures.best_of_n_figure,
        "association": figures.association_figure,
        "calibration": figures.calibration_figure,
    }

    def drawing(figure: Callable[[RewardModels, str | None], Figure]) -> Drawing:
        return lambda found, told: figure(from_payload(found), told["note"])

    return {name: drawing(figure) for name, figure in known.items()}


def draw(found: Mapping[str, Any], told: Mapping[str, Any], folder: Path) -> list[Path]:
    """Every figure with its sidecar; returns the paths."""
    from lab.figures import save

    return [path for name, figure in drawings().items() for path in save(figure(found, told), folder / name, told)]


def redraw(folder: Path) -> list[Path]:
    """All figures of ``folder`` from its ``reward_models.json`` and the sidecar of the first, byte for byte.

    Raises FileNotFoundError if either is missing.
    """
    from lab.tables.reward_models_text import TABLES

    found = json.loads((folder / TABLES).read_text(encoding="utf-8"))
    first = next(iter(drawings()))
    told = json.loads((folder / f"{first}.json").read_text(encoding="utf-8"))["sources"]
    return draw(found, told, folder)

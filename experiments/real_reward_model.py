"""Question: does a small reward model trained on real preference pairs know more than that the longer answer wins?

Prediction: a few layers of a 135 M model and a thousand AI-made pairs on small instructions teach the pairs' own habit
(here, tone), so accuracy on held-out pairs is high; LLMBar, whose worse answers read better (Zeng et al. 2023,
arXiv 2310.07641), and HHH stay near chance. Whatever the rows say is the result.

The steps: convert (the first layers of a checkpoint) -> pairs_file -> reward_model -> benchmark, on every file of
``benchmark.files``. No policy is trained and the world is not used.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.running import carry_out
from lab.benchmarks.items import Item, Scores, read_items, read_scores
from lab.benchmarks.readers import digest, read_benchmark
from lab.config import (
    CandidateConfig,
    CheckpointBackbone,
    ClassifierSource,
    ConfigError,
    LabConfig,
    PackagedBackbone,
    PairsFileConfig,
    RewardModelConfig,
    SimpleSource,
)
from lab.data.chat import opening
from lab.data.jsonl import read_pairs, read_rows
from lab.data.planned import plan_pairs
from lab.data.sources import normalised_id
from lab.graph import identity
from lab.graph.shared import folder_digest
from lab.plan import Plan, Step
from lab.store import Store
from lab.typed import plain

if TYPE_CHECKING:
    import pandas as pd

LENGTH = "length"
"""The kind of the source that all others are compared with."""


@dataclass(frozen=True)
class BenchmarkRun:
    """One candidate under one seed (None: the same for all) on one benchmark file."""

    candidate: str
    seed: int | None
    file: str
    step: Step


@dataclass(frozen=True)
class RealGraph:
    """``sets``: name of a benchmark file -> its items. ``models``: candidate -> seed -> its training."""

    pairs: Step
    models: Mapping[str, Mapping[int, Step]]
    sets: Mapping[str, Step]
    runs: tuple[BenchmarkRun, ...]

    @property
    def steps(self) -> list[Step]:
        trained = [step for seeds in self.models.values() for step in seeds.values()]
        return [self.pairs, *trained, *self.sets.values(), *(run.step for run in self.runs)]


def run(config: LabConfig) -> int:
    """Print the plan (``plan=true``) or run it and write the tables; 0 if every step finished."""
    graph, store = build_graph(config), Store(Path(config.run.store))
    outcome = carry_out(config, graph.steps, store)
    if outcome is not None and outcome.ok:
        report(config, graph, store)
    return 0 if outcome is None or outcome.ok else 1


# ---------------------------------------------------------------- the graph


def build_graph(config: LabConfig) -> RealGraph:
    """The steps of the experiment. Every file is read now: a bad row must not stop a run that has begun.

    Raises ConfigError naming the key for preferences that are no file, benchmarks that are missing or unreadable, a
    backbone that is no real checkpoint, and reward sources that need a policy.
    """
    settings, files = config.preferences, config.benchmark.files
    if not isinstance(settings, PairsFileConfig):
        raise ConfigError(f"preferences.kind: this experiment reads pairs from a file, got {settings.kind!r}")
    if not files:
        raise ConfigError("benchmark.files: none, and there is nothing else to measure a reward model by")
    if not config.candidates:
        raise ConfigError("candidates: there are none to benchmark")
    try:
        planned = plan_pairs(settings)
    except ValueError as error:
        raise ConfigError(f"preferences.path: {error}") from error
    pairs = _step(config, "pairs_file", planned.config, {}, f"pairs of {planned.title}", **planned.resources)
    sets = {name: _benchmark_set(config, name, Path(file)) for name, file in files.items()}
    models: dict[str, dict[int, Step]] = {}
    runs: list[BenchmarkRun] = []
    for name, candidate in config.candidates.items():
        for seed in _seeds(config, candidate):
            inputs: dict[str, Step] = {}
            if isinstance(candidate.reward, ClassifierSource):
                own = config.first_seed if seed is None else seed
                inputs["reward_model"] = _reward_model(config, candidate.reward.training, own, pairs)
                models.setdefault(name, {})[own] = inputs["reward_model"]
            elif not isinstance(candidate.reward, SimpleSource):
                raise ConfigError(
                    f"candidates.{name}.reward.kind: {candidate.reward.kind} needs a policy; this experiment has none"
                )
            said = candidate.label if seed is None else f"{candidate.label}, seed {seed}"
            reward = {"reward": identity(candidate.reward)}
            runs += [
                BenchmarkRun(
                    name,
                    seed,
                    file,
                    _step(config, "benchmark", reward, {"items": items, **inputs}, f"{said} on {file}"),
                )
                for file, items in sets.items()
            ]
    return RealGraph(pairs, models, sets, tuple(runs))


def _seeds(config: LabConfig, candidate: CandidateConfig) -> list[int | None]:
    if not candidate.each_seed:
        return [None]
    return list(range(config.first_seed, config.first_seed + config.seeds))


def _benchmark_set(config: LabConfig, name: str, path: Path) -> Step:
    key = f"benchmark.files.{name}"
    if not path.exists():
        raise ConfigError(f"{key}: no such file: {str(path)!r}")
    try:
        format = benchmark_format(path)
        read_benchmark(path, format)
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error
    settings = {"kind": "file", "name": name, "format": format, "digest": digest(path)}
    return _step(config, "benchmark_set", settings, {}, f"benchmark {name}", path=path.resolve())


def benchmark_format(path: Path) -> str:
    """The format of a benchmark file, by the columns of its first row. Raises ValueError naming those of no format."""
    _, row = next(iter(read_rows(path)))
    columns = set(row)
    if {"output_1", "output_2", "label"} <= columns:
        return "llmbar"
    if {"annotator1", "response1", "response2"} <= columns:
        return "pandalm"
    if {"chosen_instruction", "rejected_instruction"} <= columns:
        return "hhh"
    if {"chosen", "rejected", "subset", "id"} <= columns:
        return "rewardbench2" if isinstance(row["chosen"], list) else "rewardbench"
    if {"chosen", "rejected"} <= columns and "prompt" not in columns:
        return "hh-rlhf"
    raise ValueError(f"{path}: columns of no known benchmark: {', '.join(row)}")


def _reward_model(config: LabConfig, own: RewardModelConfig | None, seed: int, pairs: Step) -> Step:
    settings = own or config.reward_model
    training = {key: value for key, value in identity(settings).items() if key not in ("backbone", "each_policy_seed")}
    used = seed if settings.each_policy_seed else config.first_seed
    return _step(
        config,
        "reward_model",
        {"training": training, "seed": used},
        {"policy": _backbone(config, settings), "pairs": pairs},
        f"reward model, seed {used}",
        recipe=2,
        micro_batch=settings.micro_batch,
        save_every=config.run.save_steps,
    )


def _backbone(config: LabConfig, settings: RewardModelConfig) -> Step:
    backbone = settings.backbone
    cut = (
        {"layers": backbone.layers}
        if isinstance(backbone, PackagedBackbone | CheckpointBackbone) and backbone.layers
        else {}
    )
    match backbone:
        case PackagedBackbone():
            return _step(config, "convert", {"kind": backbone.kind, **cut}, {}, backbone.kind)
        case CheckpointBackbone():
            path = Path(backbone.path)
            identified = {"kind": backbone.kind, **cut, "digest": folder_digest(path)}
            return _step(config, "convert", identified, {}, f"checkpoint {path.name}", path=path.resolve())
        case _:
            raise ConfigError(
                f"reward_model.backbone.kind: {backbone.kind} is of the world; choose backbone=smollm2 or checkpoint"
            )


def _step(
    config: LabConfig,
    kind: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Step],
    label: str,
    recipe: int = 1,
    path: Path | str | None = None,
    **resources: Any,
) -> Step:
    run = config.run
    how = {"device": run.device, "dtype": run.dtype, "batch": run.batch, "threads": 1}
    how |= {key: value for key, value in resources.items() if value}
    how |= {} if path is None else {"path": str(path)}
    return Step(kind, settings, inputs, recipe, label=label, resources=how)


# ---------------------------------------------------------------- the result


def report(config: LabConfig, graph: RealGraph, store: Store) -> None:
    """``table.csv``, ``table.md`` and ``summary.json`` in ``run.results``, and the table on the terminal."""
    from lab.benchmarks.scoring import compare_models, score_table
    from lab.tables import csv_bytes, json_bytes, records, table_digest, write_bytes

    items_of = {name: read_items(store.load(step.key).path / "items.jsonl") for name, step in graph.sets.items()}
    items = [item for name in graph.sets for item in items_of[name]]
    scores = {name: _scores(graph, store, name, items_of) for name in config.candidates}
    resamples = config.run.resamples
    # A verifier has nothing to say of these prompts; of any other source a NaN would be a fault.
    abstains = any(candidate.reward.kind == "verifier" for candidate in config.candidates.values())
    table = score_table(items, scores, may_abstain=abstains, resamples=resamples)
    baseline = next((name for name, one in config.candidates.items() if one.reward.kind == LENGTH), None)
    if baseline is not None and len(scores) > 1:
        against = compare_models(items, scores, baseline=baseline, may_abstain=abstains, resamples=resamples)
        table = with_differences(table, against)
    table = with_held_out(table, graph, store)

    folder = Path(config.run.results)
    folder.mkdir(parents=True, exist_ok=True)
    labels = {name: candidate.label for name, candidate in config.candidates.items()}
    card = store.load(graph.pairs.key).path / "card.json"
    lines = [*markdown(table, labels, baseline), "", *verdicts(table, labels, baseline)]
    summary = {
        "experiment": config.experiment,
        "table_sha256": table_digest(table),
        "table": records(table),
        "seeds": list(range(config.first_seed, config.first_seed + config.seeds)),
        "resamples": resamples,
        "reward_model": _named(plain(config.reward_model)),
        "candidates": {name: _named(identity(candidate)) for name, candidate in config.candidates.items()},
        "preferences": {"file": Path(_file(graph.pairs)).name, **_read_json(card)},
        "benchmarks": {
            name: {"file": Path(_file(step)).name, "format": step.config["format"], "digest": step.config["digest"],
                   **_read_json(store.load(step.key).path / "card.json")}
            for name, step in graph.sets.items()
        },
        "prompts_also_in_training": _overlap(items_of, store.load(graph.pairs.key).path),
        "steps": [_source(store, step) for step in Plan(graph.steps).steps],
    }  # fmt: skip
    write_bytes(folder / "table.csv", csv_bytes(table))
    write_bytes(folder / "table.md", ("\n".join(lines) + "\n").encode())
    write_bytes(folder / "summary.json", json_bytes(summary))
    print("\n".join(["", *lines, "", *(str(folder / name) for name in ("table.csv", "table.md", "summary.json"))]))


def _scores(graph: RealGraph, store: Store, candidate: str, items_of: Mapping[str, Sequence[Item]]) -> list[Scores]:
    """One Scores for each seed, over the items of all files in their order."""
    seeds = dict.fromkeys(run.seed for run in graph.runs if run.candidate == candidate)
    steps = {(run.seed, run.file): run.step for run in graph.runs if run.candidate == candidate}
    found: list[Scores] = []
    for seed in seeds:
        parts = [
            read_scores(store.load(steps[seed, file].key).path / "scores.parquet", items)
            for file, items in items_of.items()
        ]
        found.append([one for part in parts for one in part])
    return found


def with_differences(table: pd.DataFrame, against: pd.DataFrame) -> pd.DataFrame:
    """``table`` with difference, its interval and the corrected p of each model against the baseline, where known."""
    wanted = {"first": "model", "low": "difference_low", "high": "difference_high"}
    keys = ["benchmark", "half", "part", "model"]
    columns = against.rename(columns=wanted)[[*keys, "difference", "difference_low", "difference_high", "p_holm"]]
    return table.merge(columns, on=keys, how="left", validate="one_to_one")


def with_held_out(table: pd.DataFrame, graph: RealGraph, store: Store) -> pd.DataFrame:
    """``table`` and, above it, the accuracy of each trained model on the held-out pairs of its own data.

    The interval is Clopper and Pearson's (1934) for the mean over seeds as if of one: seeds share their pairs.
    """
    import pandas as pd
    from scipy.stats import binomtest

    held_out = _read_json(store.load(graph.pairs.key).path / "card.json")["held_out"]
    n = held_out["pairs"]
    rows = []
    for name, seeds in graph.models.items():
        found = [store.manifest(step.key)["metrics"]["accuracy"] for step in seeds.values()]
        accuracy = sum(found) / len(found)
        interval = binomtest(round(accuracy * n), n).proportion_ci(0.95)
        longer = held_out["longer_wins"] + held_out["equal_lengths"] / n / 2  # ties shared, as on the benchmarks
        row = {
            "benchmark": "held-out pairs",
            "half": "all",
            "part": "overall",
            "model": name,
            "seeds": len(found),
            "n": n,
        }
        row |= {"score": accuracy, "low": interval.low, "high": interval.high, "chance": 0.5, "longer_wins": longer}
        rows.append(row)
    return pd.concat([pd.DataFrame(rows), table], ignore_index=True) if rows else table


def markdown(table: pd.DataFrame, labels: Mapping[str, str], baseline: str | None) -> list[str]:
    """The lines of a Markdown table, the baseline's own rows left to the column "longer wins"."""
    beyond = f"minus {labels[baseline].lower()}" if baseline else ""
    lines = [
        f"| benchmark | part | source | seeds | pairs | right, 95% interval | longer wins | {beyond} | p (Holm) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in table[table["half"] == "all"].to_dict("records"):
        if row["model"] == baseline or row["n"] == 0:
            continue
        difference, p = "–", "–"
        if row.get("difference") == row.get("difference") and row.get("difference") is not None:
            difference = f"{row['difference']:+.1%} [{row['difference_low']:+.1%}, {row['difference_high']:+.1%}]"
            p = f"{row['p_holm']:.2g}"
        right = f"{row['score']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"
        cells = [row["benchmark"], row["part"], labels[row["model"]], row["seeds"], row["n"], right]
        lines.append("| " + " | ".join(map(str, [*cells, f"{row['longer_wins']:.1%}", difference, p])) + " |")
    return lines


def verdicts(table: pd.DataFrame, labels: Mapping[str, str], baseline: str | None) -> list[str]:
    """What the intervals allow to be said: where a source is above chance, below it, or not told from it."""
    lines = []
    for name, rows in table[(table["half"] == "all") & (table["n"] > 0)].groupby("model", sort=False):
        if name == baseline:
            continue
        sides: dict[str, list[str]] = {"above chance": [], "below chance": [], "not told from chance": []}
        for row in rows.to_dict("records"):
            side = "above" if row["low"] > row["chance"] else "below" if row["high"] < row["chance"] else ""
            sides[f"{side} chance" if side else "not told from chance"].append(f"{row['benchmark']} {row['part']}")
        said = "; ".join(f"{side}: {', '.join(parts)}" for side, parts in sides.items() if parts)
        lines.append(f"{labels[str(name)]}, {said}.")
    lines.append("Longer wins: in characters, ties shared; the difference is from a source that counts words.")
    return lines


def _overlap(items_of: Mapping[str, Sequence[Item]], pairs: Path) -> dict[str, int]:
    """Benchmark file -> items whose prompt, case and white space aside, opens a training pair."""
    seen = {normalised_id(opening(pair.prompt.text)) for pair in read_pairs(pairs / "pairs.jsonl")}
    return {
        name: sum(normalised_id(opening(item.prompt.text)) in seen for item in items)
        for name, items in items_of.items()
    }


def _file(step: Step) -> str:
    return str(step.resources["path"])


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _named(value: Any) -> Any:
    """Plain data with every path as the name of its file: no path of this machine leaves it."""
    if not isinstance(value, dict):
        return value
    return {key: Path(item).name if key == "path" and item else _named(item) for key, item in value.items()}


def _source(store: Store, step: Step) -> dict[str, Any]:
    """What a step is and what came of it. No path of this machine."""
    manifest = store.manifest(step.key)
    kept = ("kind", "key", "digest", "config", "metrics", "ledger", "duration_seconds", "git", "packages", "python")
    return {"label": step.title, **{name: manifest[name] for name in kept}}

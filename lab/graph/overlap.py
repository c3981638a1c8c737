"""The steps of decontamination: one that measures the overlap of a whole graph's data, and data without it.

The check is a step of its own beside the graph: nothing that is trained has it as an input, so no key depends on it. An
experiment runs it first (``experiments.overlap``). Data whose overlap is dropped is another artifact, and what is
trained on it has other keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lab.config import JsonlData, LabConfig, OverlapConfig
from lab.plan import Plan, Step
from lab.typed import plain

TRAINING = ("base", "sft", "preference", "rl")
"""Splits of data steps that something is trained on, directly or by what is sampled on their prompts."""

EVALUATION = ("evaluation", "tuning")
"""Splits that something is measured on."""

SETTINGS = ("threshold", "width", "permutations")


def check_steps(config: LabConfig, steps: Iterable[Step]) -> list[Step]:
    """The steps that measure the overlap of every training set under ``steps`` with every evaluation set there.

    The first is of splits of data (what is left of them, where rows are dropped) and pairs from files: it needs nothing
    trained. A second is of preference pools that the config contaminates, which have to be sampled. Empty where the
    config asks for no check, or where there is nothing to compare.
    """
    settings = config.overlap
    if settings is None:
        return []
    training: dict[str, tuple[Step, str]] = {}
    pools: dict[str, tuple[Step, str]] = {}
    evaluation: dict[str, tuple[Step, str]] = {}
    plan = Plan(steps).steps
    cleaned = [step for step in plan if step.kind == "decontaminate"]
    replaced = {(step.inputs["training"].key, file) for step in cleaned for file in step.config["files"]}
    for step in plan:
        match step.kind:
            case "data":
                for split in step.config["counts"]:
                    if split in EVALUATION:
                        _add(evaluation, split, step, f"{split}.jsonl")
                    elif (step.key, f"{split}.jsonl") not in replaced:
                        _add(training, split, step, f"{split}.jsonl")
            case "pairs_file":
                _add(training, "pairs", step, "pairs.jsonl")
            case "preferences" if _contaminated(step) and (step.key, "pairs.jsonl") not in replaced:
                _add(pools, "pool", step, "pairs.jsonl")
            case "decontaminate":
                pool = step.inputs["training"].kind == "preferences"
                for file in step.config["files"]:
                    _add(pools if pool else training, file.removesuffix(".jsonl"), step, file)
            case "benchmark_set":
                _add(evaluation, "benchmark", step, "items.jsonl")
    return [_check(settings, sets, evaluation) for sets in (training, pools) if sets and evaluation]


def _check(
    settings: OverlapConfig, training: Mapping[str, tuple[Step, str]], evaluation: Mapping[str, tuple[Step, str]]
) -> Step:
    inputs = {f"training.{name}": step for name, (step, _) in training.items()}
    inputs |= {f"evaluation.{name}": step for name, (step, _) in evaluation.items()}
    config = {
        "training": {name: file for name, (_, file) in training.items()},
        "evaluation": {name: file for name, (_, file) in evaluation.items()},
        **_settings(settings),
    }
    label = f"overlap of {len(training)} training and {len(evaluation)} evaluation sets"
    return Step("overlap", config, inputs, label=label)


def _contaminated(pool: Step) -> bool:
    return pool.kind == "preferences" and bool(pool.config["preferences"].get("contamination"))


def dropped(settings: OverlapConfig) -> list[str]:
    """The kinds of overlap whose rows are left out."""
    return [kind for kind, policy in (("exact", settings.exact), ("near", settings.near)) if policy == "drop"]


def world_benchmark(config: LabConfig, make: Callable[..., Step]) -> Step | None:
    """The world's own benchmark of reward sources; None where there are none to benchmark, or no world."""
    if isinstance(config.data, JsonlData) or not config.candidates:
        return None
    settings = config.benchmark
    return make(
        "benchmark_set",
        {"kind": "world", "per_domain": settings.per_domain, "seed": settings.seed},
        {},
        f"benchmark, {settings.per_domain} items a domain",
    )


def decontaminated(
    config: LabConfig, data: Mapping[str, Step], benchmark_set: Step | None, make: Callable[..., Step]
) -> dict[str, Step]:
    """``data`` (split -> its step), the training splits without overlapping rows where the config drops any; the same
    steps otherwise. ``make`` builds a step, as ``Shared.step`` does."""
    if config.overlap is None or not dropped(config.overlap):
        return dict(data)
    cleaned = dict(data)
    for step in dict.fromkeys(data[split] for split in TRAINING if split in data):
        splits = [split for split in TRAINING if data.get(split) == step]
        files = [f"{split}.jsonl" for split in splits]
        if isinstance(config.data, JsonlData) and "preference" in splits:
            files.append("preference_demonstrations.jsonl")
        cleaned |= dict.fromkeys(splits, _without(config.overlap, step, files, data, benchmark_set, make))
    return cleaned


def decontaminated_pool(
    config: LabConfig, pool: Step, data: Mapping[str, Step], benchmark_set: Step | None, make: Callable[..., Step]
) -> Step:
    """A preference pool without the overlap that the config put there; the same step where there is none to drop."""
    if config.overlap is None or not dropped(config.overlap) or not _contaminated(pool):
        return pool
    return _without(config.overlap, pool, ["pairs.jsonl"], data, benchmark_set, make)


def _without(
    settings: OverlapConfig,
    step: Step,
    files: list[str],
    data: Mapping[str, Step],
    benchmark_set: Step | None,
    make: Callable[..., Step],
) -> Step:
    evaluation = {split: (data[split], f"{split}.jsonl") for split in EVALUATION if split in data}
    if benchmark_set is not None:
        evaluation["benchmark"] = (benchmark_set, "items.jsonl")
    return make(
        "decontaminate",
        {
            "files": files,
            "drop": dropped(settings),
            "evaluation": {name: file for name, (_, file) in evaluation.items()},
            **_settings(settings),
        },
        {"training": step, **{f"evaluation.{name}": owner for name, (owner, _) in evaluation.items()}},
        f"without {' and '.join(dropped(settings))} overlap: {step.title}",
    )


def _settings(settings: OverlapConfig) -> dict[str, Any]:
    return {key: plain(settings)[key] for key in SETTINGS}


def _add(sets: dict[str, tuple[Step, str]], name: str, step: Step, file: str) -> None:
    """Several sets of one name (corpora of several backbones, benchmarks of several files) get their key's start."""
    if step in [owner for owner, given in sets.values() if given == file]:
        return
    sets[name if name not in sets else f"{name}-{step.key[:8]}"] = (step, file)

"""Before anything is trained: is any of it in an evaluation set?"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lab.config import ConfigError, LabConfig
from lab.data.jsonl import shorten
from lab.execute import execute
from lab.graph import FLOPS_PER_SECOND
from lab.graph.overlap import check_steps
from lab.plan import Plan, Step
from lab.store import Store

REPORT = "overlap.json"
"""The report's file, in the results of a run and of its stage."""


def check_first(config: LabConfig, steps: Iterable[Step], store: Store) -> dict[str, Any] | None:
    """Measure the overlap of the steps' training sets with their evaluation sets, and act on it.

    Builds the data steps that the store lacks, and nothing else (a pool that the config contaminates on purpose has to
    be sampled first). Writes ``overlap.json`` to the run's results, prints one line, and returns the report; None where
    the config asks for no check or there is nothing to compare. Raises ConfigError naming examples where the policy is
    to refuse what was found, RuntimeError if the check itself failed.
    """
    report: dict[str, Any] = {}
    for step in check_steps(config, list(steps)):
        found = _measure(config, step, store)
        report = {**found, **{key: {**report.get(key, {}), **found[key]} for key in ("training", "dropped")}}
        _write(config, report)
        for kind, policy in report["policies"].items():
            if policy == "refuse" and (shown := examples(report, [kind])):
                raise ConfigError(f"overlap.{kind}: {policy}, and what overlaps is not trained on: {shown}")
    return report or None


def _measure(config: LabConfig, step: Step, store: Store) -> dict[str, Any]:
    assert config.overlap is not None  # or there would be no such step
    plan = Plan([step])
    outcome = execute(
        plan,
        store,
        workers=config.run.workers,
        runner="lab.stages.run_stage",
        offline=config.run.hub_offline,
        flops_per_second=FLOPS_PER_SECOND,
    )
    if not outcome.ok:
        raise RuntimeError(f"overlap: the check failed, and nothing more was trained\n{outcome.summary()}")
    report = json.loads((store.load(step.key).path / REPORT).read_text(encoding="utf-8"))
    cleaned = [item for item in plan.steps if item.kind == "decontaminate"]
    return {
        **report,
        "policies": {"exact": config.overlap.exact, "near": config.overlap.near},
        "dropped": {item.label: store.manifest(item.key)["metrics"]["dropped"] for item in cleaned},
    }


def _write(config: LabConfig, report: Mapping[str, Any]) -> None:
    path = Path(config.run.results) / REPORT
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{summary(report)} ({path})")


def summary(report: Mapping[str, Any]) -> str:
    """A run's overlap in one line. A row that overlaps with several evaluation sets counts once."""
    rows, exact, near = (sum(one[key] for one in report["training"].values()) for key in ("rows", "exact", "near"))
    dropped = sum(sum(files.values()) for files in report["dropped"].values())
    said = f"; {dropped:,} rows were dropped before" if dropped else ""
    return f"overlap with evaluation sets: {exact:,} exact and {near:,} near of {rows:,} training rows{said}"


def examples(report: Mapping[str, Any], kinds: Collection[str]) -> str:
    """What a report holds of these kinds (exact, near): counts and examples of each training and evaluation set, in a
    line each; empty where there is nothing."""
    lines = []
    for training, overlap in report["training"].items():
        for name, sets in overlap["sets"].items():
            for kind, found in sets.items():
                if kind not in kinds or not found["rows"]:
                    continue
                shown = "; ".join(
                    f"row {one['row'] + 1}: {shorten(one['training'])} against {shorten(one['evaluation'])}"
                    for one in found["examples"]
                )
                lines.append(
                    f"{found['rows']} of {overlap['rows']} rows of {training} overlap ({kind}) with {found['prompts']} "
                    f"prompts of {name} ({shown})"
                )
    return "\n".join(lines)

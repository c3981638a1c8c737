"""What reward models learn from more pairs, at every size: held-out accuracy and the benchmark's halves. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lab.stats import interval_columns
from lab.tables.sweep import t_interval
from lab.tables.writing import json_bytes, markdown_table, records

MEASURES = ("accuracy", "overall", "easy", "hard")
"""Held-out pairs; the world's benchmark, all of it and its halves."""

CONTROLS = ("random", "length")
"""Candidates that learn nothing: what their score is, knowing nothing is worth."""


def learning_table(models: Sequence[Mapping[str, Any]], level: float = 0.95) -> pd.DataFrame:
    """A line for each backbone and number of pairs, and for each control: mean over seeds with Student's t interval.

    ``models``: a mapping for each backbone, candidate and seed, as ``point.json`` has them, with ``backbone``; the same
    reward model may come more than once (its runs share it). Sorted by parameters and pairs, controls last.
    """
    found: dict[tuple[str, str, float], dict[int, Mapping[str, Any]]] = {}
    for model in models:
        untrained = model["candidate"] in CONTROLS
        key = ("", model["candidate"], -1.0) if untrained else (model["backbone"], "", float(model["pairs"]))
        place = found.setdefault(key, {})
        place[model["seed"]] = model
    lines = []
    for (backbone, control, pairs), seeds in found.items():
        one = next(iter(seeds.values()))
        line: dict[str, Any] = {
            "backbone": backbone,
            "control": control,
            "parameters": math.nan if control else float(one["parameters"]),
            "pairs": math.nan if control else pairs,
            "n_seeds": len(seeds),
        }
        for name in MEASURES:
            values = [float(model[name]) for model in seeds.values() if model.get(name) is not None]
            line |= interval_columns(name, t_interval(values, level))
        lines.append(line)
    columns = ["backbone", "control", "parameters", "pairs", "n_seeds"]
    columns += [column for name in MEASURES for column in interval_columns(name, None)]
    table = pd.DataFrame(lines, columns=columns)
    return table.sort_values(["control", "parameters", "pairs"], kind="stable", ignore_index=True)


def summary(table: pd.DataFrame, level: float = 0.95) -> bytes:
    """``learning.json``: the table, for redrawing."""
    return json_bytes({"table": records(table), "level": level})


def markdown(table: pd.DataFrame, level: float = 0.95) -> str:
    """``learning.md``: the table for people."""
    head = ["backbone", "parameters", "pairs", "seeds", "held-out accuracy", "benchmark", "easy half", "hard half"]
    body = []
    for line in table.to_dict("records"):
        known = not line["control"]
        body.append(
            [
                line["backbone"] or line["control"],
                f"{line['parameters']:,.0f}" if known else "",
                f"{line['pairs']:,.0f}" if known else "",
                str(line["n_seeds"]),
                *(_cell(line, name) for name in MEASURES),
            ]
        )
    said = f"[{level:.0%} Student's t intervals over seeds; the random and the length reward are one each]"
    return "\n".join([*markdown_table(head, body), "", said, ""])


def _cell(line: Mapping[str, Any], name: str) -> str:
    value, low, high = (float(line[f"{name}{end}"]) for end in ("", "_low", "_high"))
    if math.isnan(value):
        return "–"
    return f"{value:.3f}" + ("" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]")

"""The tables of pipelines as files and text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from lab.tables.cells import in_order
from lab.tables.comparison import ALL, UNVERIFIABLE, VERIFIABLE
from lab.tables.pipelines import Pipelines, rlvr_claim
from lab.tables.writing import csv_bytes, json_bytes, markdown_table, records, write_bytes

TABLES = "pipelines.tables.json"
"""All tables as JSON, from which the figure is drawn."""


def write(found: Pipelines, folder: Path) -> list[Path]:
    """``table.csv``, ``table.md``, ``changes.csv``, ``contrasts.csv`` and ``TABLES``; returns their paths."""
    files = {
        "table.csv": csv_bytes(found.table),
        "table.md": markdown(found).encode(),
        "changes.csv": csv_bytes(found.changes),
        "contrasts.csv": csv_bytes(found.contrasts),
        TABLES: json_bytes(payload(found)),
    }
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files]


def payload(found: Pipelines) -> dict[str, Any]:
    """The tables as JSON-able data."""
    tables = {name: records(getattr(found, name)) for name in ("table", "changes", "contrasts")}
    return {**tables, "level": found.level, "claim": rlvr_claim(found)}


def from_payload(given: Mapping[str, Any]) -> Pipelines:
    """What ``payload`` made."""
    frames = {name: pd.DataFrame(given[name]) for name in ("table", "changes", "contrasts")}
    for frame in frames.values():
        for name in frame.columns:
            if frame[name].isna().any() and not frame[name].map(lambda item: isinstance(item, str)).any():
                frame[name] = pd.to_numeric(frame[name])
    return Pipelines(frames["table"], frames["changes"], frames["contrasts"], given["level"])


def markdown(found: Pipelines) -> str:
    """The table that people read: a line a stage, then what every stage changed, the contrasts and the claim."""
    head, body = compact(found)
    text = [*markdown_table(head, body), "", caption(found), ""]
    head, body = changes(found)
    text += ["What each stage changed in gold, paired by seed and prompt:", "", *markdown_table(head, body), ""]
    if len(found.contrasts):
        head, body = contrasts(found)
        text += ["The ends of two pipelines, paired by prompt:", "", *markdown_table(head, body), ""]
    claim = rlvr_claim(found)
    if claim:
        text += [claim[0], "", *(f"- {line}" for line in claim[1:]), ""]
    return "\n".join(text)


def terminal(found: Pipelines) -> str:
    """The same for the end of a run: gold without the intervals of single domains, and the claim."""
    head, body = compact(found, intervals=False)
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in [head, ["-" * width for width in widths], *body]
    ]
    return "\n".join([*lines, "", caption(found), *(["", *rlvr_claim(found)])])


def caption(found: Pipelines) -> str:
    """What the numbers are."""
    return (
        f"[gold after each stage, {found.level:.0%} bootstrap intervals over policy seeds and prompts; means over "
        "domains are unweighted. KL is from SFT for all, also for what starts from the base. Costs are cumulative, "
        "means over seeds: all that the policy needed, the base's pretraining left out; demonstrations are people's]"
    )


def compact(found: Pipelines, intervals: bool = True) -> tuple[list[str], list[list[str]]]:
    """Header and a line a stage: gold by domain and in groups, distance, and what had been spent."""
    domains = in_order(set(found.table.domain) - {ALL, VERIFIABLE, UNVERIFIABLE})
    groups = [name for name in (VERIFIABLE, UNVERIFIABLE) if (found.table.domain == name).any()]
    by_place = {key: own.set_index("domain") for key, own in found.table.groupby(["pipeline", "number", "arm"])}
    head = ["pipeline", "after", "seeds", "gold", "Δ SFT", *groups, *domains, "pass@1", "KL, nats"]
    head += ["labels", "verifier calls", "demonstrations", "generated tokens", "FLOPs"]
    body, said = [], False
    for _, line in found.table[found.table.domain == ALL].iterrows():
        own = by_place[line.pipeline, line.number, line.arm]
        cells = [line.pipeline_label, line.label, f"{line.n_seeds} of {line.n_expected}"]
        cells += [_with_interval(line, "gold"), _with_interval(line, "gold_delta", "+.3f")]
        for name in [*groups, *domains]:
            cells.append(_with_interval(own.loc[name], "gold") if intervals else _number(own.loc[name].gold, ".3f"))
        cells += [_number(line.pass1, ".1%"), _number(line.kl_nats, ".2f"), _number(line.preference_labels, ",.0f")]
        cells += [_number(line.verifier_calls, ",.0f"), _number(line.demonstrations, ",.0f")]
        cells += [_number(line.generated_tokens, ",.0f"), _number(line.total_flops, ".2g")]
        cells.append("" if line.status == "complete" else f"{line.status}: {line.note}".rstrip(": "))
        said |= bool(cells[-1])
        body.append(cells)
    return ([*head, "status"], body) if said else (head, [cells[:-1] for cells in body])


def changes(found: Pipelines) -> tuple[list[str], list[list[str]]]:
    """Header and a line a stage: the change of gold in the groups and in every domain."""
    parts = _parts(found.changes)
    body = []
    for _, own in found.changes.groupby(["pipeline", "number"], sort=False):
        at = own.set_index("domain")
        first = own.iloc[0]
        cells = [_with_interval(at.loc[name], "gold_change", "+.3f") for name in parts]
        body.append([first.pipeline_label, first.label, first.paid_by or "–", *cells])
    return ["pipeline", "stage", "paid by", *parts], body


def contrasts(found: Pipelines) -> tuple[list[str], list[list[str]]]:
    """Header and a line a contrast: the difference of gold in the groups and in every domain."""
    parts = _parts(found.contrasts)
    body = []
    for _, own in found.contrasts.groupby("pipeline", sort=False):
        at, first = own.set_index("domain"), own.iloc[0]
        cells = [_with_interval(at.loc[name], "gold_change", "+.3f") for name in parts]
        body.append([f"{first.label} − {first.against}", *cells])
    return ["contrast", *parts], body


def _parts(table: pd.DataFrame) -> list[str]:
    known = set(table.domain) if len(table) else set()
    groups = [name for name in (ALL, VERIFIABLE, UNVERIFIABLE) if name in known]
    return [*groups, *in_order(known - set(groups))]


def _with_interval(line: pd.Series, name: str, style: str = ".3f") -> str:
    value, low, high = line[name], line[f"{name}_low"], line[f"{name}_high"]
    return "–" if math.isnan(value) else f"{value:{style}} [{low:{style}}, {high:{style}}]"


def _number(value: float, style: str) -> str:
    return "–" if math.isnan(value) else format(value, style)

"""Tables as files and text: CSV for programs, Markdown and the terminal for people, JSON without NaN."""

from __future__ import annotations

import hashlib
import json
import math
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lab.tables.comparison import ALL, UNVERIFIABLE, Comparison


def json_bytes(value: Any) -> bytes:
    """Canonical JSON, UTF-8, sorted keys. ValueError naming the place of a NaN or an infinity, which JSON has not."""
    _refuse_non_finite(value, "$")
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _refuse_non_finite(value: Any, place: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place}: {value} cannot be written as JSON; write null where a value is missing")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_non_finite(item, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_non_finite(item, f"{place}[{index}]")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of a table as JSON-able mappings, None where a value is missing."""
    plain = [{key: _plain(item) for key, item in line.items()} for line in frame.to_dict("records")]
    return [{str(key): item for key, item in line.items()} for line in plain]


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """UTF-8 CSV with floats to the last bit, so that the same table has the same digest."""
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text.encode()


def table_digest(frame: pd.DataFrame) -> str:
    """SHA-256 (hex) of ``csv_bytes``."""
    return hashlib.sha256(csv_bytes(frame)).hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside, flush, rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_tables(comparison: Comparison, folder: Path, labels: Mapping[str, str] | None = None) -> list[Path]:
    """``table.csv``, ``table.md`` and ``summary.json``; returns their paths."""
    equal = ["Gold at equal distance from the start, in sqrt(KL / nat); – where no seed's curve goes that far:", ""]
    equal += [*markdown_table(*_equal_kl(comparison, labels)), ""]
    summary = {
        "baseline": comparison.baseline,
        "level": comparison.level,
        "k": comparison.k,
        "table": records(comparison.table),
        "seeds": records(comparison.seeds),
        "curves": records(comparison.curves),
        "equal_kl": records(comparison.equal_kl),
        "equal_compute": records(comparison.equal_compute),
    }
    files = {
        "table.csv": csv_bytes(comparison.table),
        "table.md": (
            "\n".join([*markdown_table(*compact(comparison, labels)), "", _caption(comparison), "", *equal])
        ).encode(),
        "summary.json": json_bytes(summary),
    }
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files]


def markdown_table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in body]


def _equal_kl(comparison: Comparison, labels: Mapping[str, str] | None) -> tuple[list[str], list[list[str]]]:
    table = comparison.equal_kl
    if table.empty:
        return ["arm"], []
    levels = list(dict.fromkeys(table.sqrt_kl))
    body = []
    for arm, lines in table.groupby("arm", sort=False):
        at = lines.set_index("sqrt_kl")
        cells = [
            _with_interval(at.loc[level], "gold")
            + (
                f" ({at.n_seeds[level]} of {at.n_expected[level]})"
                if 0 < at.n_seeds[level] < at.n_expected[level]
                else ""
            )
            for level in levels
        ]
        body.append([(labels or {}).get(str(arm), str(arm)), *cells])
    return ["arm", *(f"{level:g}" for level in levels)], body


def terminal_table(comparison: Comparison, labels: Mapping[str, str] | None = None) -> str:
    """The compact table as text, for the end of a run."""
    head, body = compact(comparison, labels)
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    rule = "  ".join("-" * width for width in widths)
    ordered = [_aligned(head, widths), rule, *(_aligned(line, widths) for line in body)]
    return "\n".join([*ordered, "", _caption(comparison)])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]).rstrip()


def _caption(comparison: Comparison) -> str:
    return (
        f"[{comparison.level:.0%} bootstrap intervals over policy seeds and prompts; Δ: against {comparison.baseline}, "
        "paired by prompt; means over domains are unweighted; costs: means over seeds]"
    )


def compact(comparison: Comparison, labels: Mapping[str, str] | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table that people read: a line per arm, in the order of the plan."""
    by_key = comparison.table.set_index(["arm", "domain"])
    head = ["arm", "seeds", "gold", f"Δ {comparison.baseline}", "pass@1", "gold, unverifiable", "win rate", "KL, nats"]
    head += ["labels", "verifier calls", "generated tokens", "training FLOPs", "wall s"]
    notes, body = False, []
    for arm in dict.fromkeys(comparison.table.arm):
        line = by_key.loc[(arm, ALL)]
        other = by_key.loc[(arm, UNVERIFIABLE)].gold if (arm, UNVERIFIABLE) in by_key.index else math.nan
        cells = [(labels or {}).get(arm, arm), f"{line.n_seeds:.0f} of {line.n_expected:.0f}"]
        cells += [_with_interval(line, "gold"), _with_interval(line, "gold_delta", sign=True)]
        cells += [_number(line.pass1, ".1%"), _number(other, ".3f"), _number(line.win_rate, ".1%")]
        cells += [_number(line.kl_nats, ".2f"), _number(line.preference_labels, ",.0f")]
        cells += [_number(line.verifier_calls, ",.0f"), _number(line.generated_tokens, ",.0f")]
        cells += [_number(line.training_flops, ".2g"), _number(line.wall_seconds, ",.0f")]
        cells.append("" if line.status == "complete" else f"{line.status}: {line.note}".rstrip(": "))
        notes |= bool(cells[-1])
        body.append(cells)
    return ([*head, "status"], body) if notes else (head, [cells[:-1] for cells in body])


def _with_interval(line: pd.Series, name: str, sign: bool = False) -> str:
    style = "+.3f" if sign else ".3f"
    if math.isnan(line[name]):
        return "–"
    return f"{line[name]:{style}} [{line[f'{name}_low']:{style}}, {line[f'{name}_high']:{style}}]"


def _number(value: float, style: str) -> str:
    return "–" if math.isnan(value) else format(value, style)

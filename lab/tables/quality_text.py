"""The data-quality sweep as text and files: what the tables of ``lab.tables.quality`` say, in words and in JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from lab.tables.quality import ALPHA, CROSSINGS, EFFECTS, LINES, PRESETS, STEPS, TRENDS, Quality
from lab.tables.reward_models_text import frame
from lab.tables.sweep import aligned, number, with_interval
from lab.tables.writing import csv_bytes, json_bytes, markdown_table, records

FRAMES = ("table", "seeds", "lines", "crossings", "effects", "steps", "trends")
EMPTY: Mapping[str, Sequence[str]] = {
    "lines": LINES,
    "crossings": CROSSINGS,
    "effects": EFFECTS,
    "steps": STEPS,
    "trends": TRENDS,
}
"""The columns of the tables that may have no lines."""

NAMES: Mapping[str, str] = {"dpo": "DPO", "ppo": "PPO × RM", "rlvr": "RLVR", "sft": "SFT"}
RLVR: Mapping[str, str] = {"ppo_verifier": "PPO × verifier", "grpo_verifier": "GRPO × verifier"}


def files(found: Quality) -> dict[str, bytes]:
    """File name -> content: ``table.csv`` and ``.md``, a CSV a further table, ``table.json`` with all of them."""
    csvs = {f"{name}.csv": csv_bytes(getattr(found, name)) for name in FRAMES}
    return {**csvs, "table.json": summary(found), "table.md": markdown(found).encode()}


def summary(found: Quality) -> bytes:
    """``table.json``: all tables and sentences; ``lab.figures.quality`` draws from it alone."""
    tables = {name: records(getattr(found, name)) for name in FRAMES}
    return json_bytes({**tables, "findings": findings(found), "level": found.level})


def from_payload(plain: Mapping[str, Any]) -> Quality:
    """The tables again, from the content of ``table.json``; one without lines has its columns all the same."""
    frames = {name: frame(plain[name]) for name in FRAMES}
    frames |= {name: pd.DataFrame(columns=list(columns)) for name, columns in EMPTY.items() if not plain[name]}
    return Quality(**frames, level=plain["level"])


# ------------------------------------------------------------------------------------------------------------ findings


def findings(found: Quality) -> list[str]:
    """What was asked of the sweep, answered in words from the tables."""
    return [
        *_agreement(found.table),
        *(_trend(line, found.steps) for line in found.trends.to_dict("records")),
        *_effects(found.effects),
        *(f"{_axis_name(line['axis'])}: {crossing_said(line)}." for line in found.crossings.to_dict("records")),
    ]


def as_requested(table: pd.DataFrame) -> pd.Series:
    """Whether the requested agreement lies in the interval of the measured one; NA where either is missing."""
    known = table.agreement_low.notna() & table.expected_agreement.notna()
    inside = (table.agreement_low <= table.expected_agreement) & (table.expected_agreement <= table.agreement_high)
    return inside.astype("boolean").where(known)


def _agreement(table: pd.DataFrame) -> list[str]:
    inside = as_requested(table)
    known = table[inside.notna()]
    if known.empty:
        return ["Is measured agreement with gold as requested? Open: not measured."]
    out = [
        f"{line.quality} ({line.agreement:.1%} measured, {line.expected_agreement:.1%} requested)"
        for line in known[~inside[inside.notna()].astype(bool)].itertuples()
    ]
    said = f"Is measured agreement with gold as requested? In {len(known) - len(out)} of {len(known)} points"
    return [f"{said}, within its interval; not in {', '.join(out)}." if out else f"{said}, within its interval."]


def _trend(line: Mapping[str, Any], steps: pd.DataFrame) -> str:
    names = {"accuracy": "accuracy on held-out pairs", "overall": "accuracy on the benchmark"}
    own = steps[steps.measure == line["measure"]]
    sure = int((own.p_holm < ALPHA).sum())
    page = "Page's p not available" if math.isnan(line["page_p"]) else f"Page's {p_said(line['page_p'])}"
    return (
        f"Does {names[line['measure']]} fall with every step of the flip rate? {line['verdict'].capitalize()}: "
        f"{int((own.change < 0).sum())} of {len(own)} steps fall, {sure} of them surely (Holm); {page}; "
        f"{line['n_points']:.0f} of {line['n_planned']:.0f} points, {line['n_seeds']:.0f} seeds."
    )


def p_said(p: float) -> str:
    """Two figures, and no zeros: "p = 0.031", "p < 0.001"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def _effects(effects: pd.DataFrame) -> list[str]:
    if effects.empty:
        return [f"Data or algorithm? Open: {' and '.join(PRESETS)} under DPO and PPO are not all there."]
    by_key = {(line["effect"], line["within"]): line for line in effects.to_dict("records")}

    def said(effect: str, within: str) -> str:
        return with_interval(by_key[effect, within], "value", "+.3f")

    gap = by_key["data - algorithm", "sizes"]
    answer = {"data": "Data", "algorithm": "The algorithm", "open": "Open"}[gap["verdict"]]
    first, second = PRESETS
    always = "Yes" if by_key["data - algorithm", "extremes"]["verdict"] == "data" else "Open"
    return [
        f"What are better data worth ({second} instead of {first})? {said('data', 'dpo')} gold within DPO, "
        f"{said('data', 'ppo')} within PPO × RM.",
        f"What is the algorithm worth (PPO × RM instead of DPO)? {said('algorithm', first)} gold within {first}, "
        f"{said('algorithm', second)} within {second}.",
        f"Which counts for more? {answer}: data {said('data', 'mean')}, algorithm {said('algorithm', 'mean')}; the "
        f"size of the one less that of the other {said('data - algorithm', 'sizes')} ({gap['n_seeds']:.0f} seeds).",
        f"Does data count for more whichever algorithm, and whichever data the algorithms are compared on? {always}: "
        f"its smaller effect less the larger of the algorithm's {said('data - algorithm', 'extremes')}.",
    ]


def _axis_name(axis: str) -> str:
    return {"flips": "Over the flip rate", "pairs": "Over the number of pairs"}[axis]


def x_said(axis: str, value: float) -> str:
    """A place on an axis: "12%" of labels turned round, "1,200" pairs."""
    return f"{value:.0%}" if axis == "flips" else f"{float(f'{value:.2g}'):,.0f}"


def place_said(line: Mapping[str, Any]) -> str:
    """Where a crossing lies: ``22% [15%, beyond 50%]``; "" where the curves do not cross."""
    if math.isnan(line["at"]):
        return ""
    axis = line["axis"]
    low = f"below {x_said(axis, line['x_low'])}" if line["low_beyond"] else x_said(axis, line["at_low"])
    high = f"beyond {x_said(axis, line['x_high'])}" if line["high_beyond"] else x_said(axis, line["at_high"])
    return f"{x_said(axis, line['at'])} [{low}, {high}]"


def crossing_said(line: Mapping[str, Any]) -> str:
    """One crossing in words, without the axis and the full stop."""
    first, second = NAMES[line["first"]], NAMES[line["second"]]
    ahead, behind = (first, second) if line["first_leads"] else (second, first)
    share = f"{line['share']:.0%} of resamples cross"
    reach = f"{x_said(line['axis'], line['x_low'])} to {x_said(line['axis'], line['x_high'])}"
    if math.isnan(line["at"]):
        return f"{first} and {second}: no crossing in the range {reach}, {ahead} leads throughout ({share})"
    more = f"; {line['crossings']:.0f} crossings, the first is given" if line["crossings"] > 1 else ""
    return f"{ahead} loses its lead over {behind} at {place_said(line)} ({share}{more})"


# -------------------------------------------------------------------------------------------------------------- tables


def compact(found: Quality) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table that people read: a line per planned point."""
    arms = {line["arm"]: line["role"] for line in found.lines.to_dict("records")}
    verifier = next((RLVR[arm] for arm, role in arms.items() if role == "rlvr"), "")
    head = ["quality", "flips", "pairs", "agreement with gold", "requested", "RM accuracy", "benchmark"]
    head += ["DPO", "PPO × RM", f"RLVR ({verifier})" if verifier else "RLVR", "PPO − DPO", "DPO − RLVR", "PPO − RLVR"]
    head += ["seeds", "status"]
    body = []
    for line in found.table.to_dict("records"):
        cells = [line["quality"], number(line["flip_rate"], ".0%"), number(line["pairs"], ",.0f")]
        cells += [with_interval(line, "agreement", ".1%"), number(line["expected_agreement"], ".1%")]
        cells += [with_interval(line, name, ".1%") for name in ("accuracy", "overall")]
        cells += [with_interval(line, name, ".3f") for name in ("dpo", "ppo", "rlvr")]
        cells += [with_interval(line, name, "+.3f") for name in ("ppo_minus_dpo", "dpo_minus_rlvr", "ppo_minus_rlvr")]
        cells += [f"{line['n_seeds']} of {line['n_expected']}", f"{line['status']}: {line['note']}".rstrip(": ")]
        body.append(cells)
    return head, body


def _caption(found: Quality) -> str:
    sft = found.lines[found.lines.role == "sft"]
    start = f"SFT: {with_interval(sft.iloc[0].to_dict(), 'gold', '.3f')}; " if len(sft) else ""
    return (
        f"[gold: {start}{found.level:.0%} bootstrap intervals over seeds and prompts, differences paired by prompt; "
        "accuracy: Student's t over seeds; crossings: linear between points, intervals over resamples of seeds and "
        "prompts]"
    )


def markdown(found: Quality) -> str:
    """``table.md``: the lines that people read, then the findings."""
    lines = [*markdown_table(*compact(found)), "", _caption(found), ""]
    return "\n".join([*lines, *(f"- {sentence}" for sentence in findings(found)), ""])


def terminal(found: Quality) -> str:
    """The same as text."""
    head, body = compact(found)
    return "\n".join([*aligned(head, body), "", *findings(found), "", _caption(found)])

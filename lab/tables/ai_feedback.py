"""Sources of labels side by side: what their labels are worth and cost, and what a policy makes of them. No torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from lab.stats import HierarchicalBootstrap, interval_columns
from lab.tables.cells import Arm, in_order, make_cells
from lab.tables.comparison import ALL, Comparison
from lab.tables.writing import csv_bytes, json_bytes, markdown_table, records, write_bytes

TABLES = "ai_feedback.tables.json"
LABEL_COSTS = ("preference_labels", "demonstrations", "judge_calls")
SHARES = (
    "agreement_with_gold",
    "fresh_prompts",
    "agreement_with_labels",
    "labels_with_gold",
    "longer_chosen",
    "longer_is_better",
)
"""Shares of a label card (``lab.feedback.agreement``) that the table of labels shows."""


@dataclass(frozen=True)
class Feedback:
    """The tables. Missing values are NaN; ``_low`` and ``_high`` bound an interval.

    - ``quality``: a line a source, seed and domain (and "all"): agreement of its labels with gold, Wilson's interval;
      on "all" also the other shares of its card, counts, the judge's accuracy on held-out pairs, and costs.
    - ``arms``: a line an arm and source: gold, its difference from SFT (``gold_delta``) and from the same arm on the
      first source's labels (``gold_against``), both paired by prompt, and costs.
    - ``rounds``: gold of the drafts (round 0) and after each principle, a line a source, seed and round; ``gain``.
    - ``domains``: gain of the last round a domain. ``principles``: what each principle did.
    """

    quality: pd.DataFrame
    arms: pd.DataFrame
    rounds: pd.DataFrame
    domains: pd.DataFrame
    principles: pd.DataFrame
    level: float


def feedback_tables(
    compared: Comparison,
    rows: pd.DataFrame,
    names: Mapping[str, tuple[str, str]],
    *,
    labels: Mapping[str, str],
    titles: Mapping[str, tuple[str, str]],
    cards: Sequence[Mapping[str, Any]],
    revised: Sequence[Mapping[str, Any]],
    resamples: int = 2000,
) -> Feedback:
    """The tables of a comparison of sources.

    ``compared`` and ``rows``: of the arms by their names, ``names``: name -> (source, arm), in the order of the table.
    ``labels``: source -> what people call it, the first being what others are compared with; ``titles``: name of an
    arm, and of the baseline -> what people call it, and whose labels it learnt from. ``cards``, ``revised``: as
    ``experiments.ai_feedback`` reads them. Raises ValueError if ``cards`` is empty.
    """
    if not cards:
        raise ValueError("ai_feedback: no source has labels")
    quality = pd.DataFrame([line for one in cards for line in _quality_lines(one, labels[one["source"]])])
    table = _arm_table(compared, rows, names, next(iter(labels)), titles, resamples)
    return Feedback(quality, table, *_revision_tables(revised), compared.level)


def _quality_lines(one: Mapping[str, Any], label: str) -> list[dict[str, Any]]:
    card, key = one["card"], {"source": one["source"], "label": label, "seed": one["seed"]}
    whole: dict[str, Any] = {**key, "domain": ALL, "by_judge": one["by_judge"]}
    for name in SHARES:
        if not one["by_judge"] and name in ("fresh_prompts", "agreement_with_labels"):
            continue  # of the annotator's own labels with themselves
        whole |= _share(name, card[name])
    whole |= {name: card[name] for name in ("asked", "unanswered", "undecided", "pairs", "ties_by_gold")}
    whole |= {name: _number(card.get(name)) for name in ("position_bias", "inconsistent")}
    whole |= {name: float(one[name]) for name in LABEL_COSTS}
    whole["judge_accuracy"] = _number(one["judge_accuracy"])
    by_domain = [
        {**key, "domain": name, **_share("agreement_with_gold", card["by_domain"][name])}
        for name in in_order(card["by_domain"])
    ]
    return [whole, *by_domain]


def _share(name: str, found: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: _number(found["share"]),
        f"{name}_low": _number(found["low"]),
        f"{name}_high": _number(found["high"]),
        f"{name}_pairs": float(found["pairs"]),
    }


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _arm_table(
    compared: Comparison,
    rows: pd.DataFrame,
    names: Mapping[str, tuple[str, str]],
    first: str,
    titles: Mapping[str, tuple[str, str]],
    resamples: int,
) -> pd.DataFrame:
    table = compared.table[compared.table.domain == ALL].set_index("arm")
    cells = make_cells(rows, compared.baseline, compared.k)
    cells = cells[cells.final]
    domains = in_order(cells.domain.unique())
    prompts = {domain: pd.Index(sorted(cells.prompt_id[cells.domain == domain].unique())) for domain in domains}
    bootstrap = HierarchicalBootstrap(0, resamples, compared.level)
    strata = {}
    for name in names:
        own = cells[cells.arm == name]
        strata[name] = Arm(name, own, prompts).strata("gold", domains)[0] if len(own) else {}
    against = {arm: name for name, (source, arm) in names.items() if source == first}
    kept = ["n_seeds", "n_expected", "status", "note", "gold", "gold_low", "gold_high", "gold_delta", "gold_delta_low"]
    kept += ["gold_delta_high", "pass1", "kl_nats", *LABEL_COSTS, "total_flops"]
    lines = []
    for name in (compared.baseline, *names):
        source, arm = names.get(name, ("", name))
        label, labels_by = titles[name]
        other = against.get(arm)
        known = source not in ("", first) and other is not None and strata[name] and strata[other]
        gap = bootstrap.difference(name, strata[name], str(other), strata[str(other)]) if known else None
        line = {"arm": arm, "arm_label": label, "source": source, "label": labels_by, **table.loc[name, kept].to_dict()}
        lines.append(line | interval_columns("gold_against", gap))
    return pd.DataFrame(lines)


def _revision_tables(revised: Sequence[Mapping[str, Any]]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    rounds, domains, principles = [], [], []
    for one in revised:
        key = {"source": one["source"], "seed": one["seed"]}
        gold = one["card"]["gold"]
        for point in gold["points"]:
            line = {**key, "round": point["round"], **_interval("gold", point["gold"])}
            rounds.append(line | _interval("gain", point.get("gain")))
        for name, found in gold["by_domain"].items():
            domains.append(
                {**key, "domain": name, **_interval("before", found["before"]), **_interval("after", found["after"]),
                 **_interval("gain", found["gain"])}
            )  # fmt: skip
        for found in one["card"]["principles"]:
            principles.append(
                {**key, "principle": found["principle"], "text": one["principles"][found["principle"]],
                 **{name: found[name] for name in ("applied", "revised", "unusable")}, "gain": _number(found["gain"]),
                 **_share("critique", found["critique"])}
            )  # fmt: skip
    columns = (["source", "seed", "round"], ["source", "seed", "domain"], ["source", "seed", "principle"])
    return tuple(  # type: ignore[return-value]
        pd.DataFrame(lines) if lines else pd.DataFrame(columns=names)
        for lines, names in zip((rounds, domains, principles), columns, strict=True)
    )


def _interval(name: str, found: Mapping[str, float] | None) -> dict[str, float]:
    known = found or {}
    return {f"{name}{end}": _number(known.get(key)) for end, key in (("", "mean"), ("_low", "low"), ("_high", "high"))}


# --------------------------------------------------------------------------------------------------------- over seeds


def summary(quality: pd.DataFrame) -> pd.DataFrame:
    """A line a source and domain: means over seeds. ``_low`` and ``_high``: the lowest and the highest end of the
    seeds' intervals, which covers both the pairs and the seeds' own luck. In the order of the sources."""
    lines = []
    for (source, domain), own in quality.groupby(["source", "domain"], sort=False):
        line: dict[str, Any] = {"source": source, "domain": domain, "label": own.label.iloc[0], "n_seeds": len(own)}
        for column in own.select_dtypes("number").columns.drop("seed"):
            ends = {"_low": own[column].min(), "_high": own[column].max()}
            line[column] = next((value for end, value in ends.items() if column.endswith(end)), own[column].mean())
        lines.append(line)
    return pd.DataFrame(lines)


# -------------------------------------------------------------------------------------------------------------- files


def payload(found: Feedback) -> dict[str, Any]:
    """The tables as JSON-able data."""
    frames = {name: records(frame) for name, frame in vars(found).items() if isinstance(frame, pd.DataFrame)}
    columns = {name: list(frame.columns) for name, frame in vars(found).items() if isinstance(frame, pd.DataFrame)}
    return {**frames, "columns": columns, "level": found.level}


def from_payload(plain: Mapping[str, Any]) -> Feedback:
    """The tables that ``payload`` made."""
    frames = {
        name: pd.DataFrame(plain[name], columns=columns).apply(_with_nan) for name, columns in plain["columns"].items()
    }
    return Feedback(**frames, level=plain["level"])


def _with_nan(column: pd.Series) -> pd.Series:
    """A column of numbers that JSON's null made an object column, with NaN again; text and truth values stay."""
    known = column.dropna()
    if column.dtype != object or known.map(lambda item: isinstance(item, str | bool)).any():
        return column
    return column.astype(float)


def write(found: Feedback, folder: Path) -> list[Path]:
    """``ai_feedback.tables.json``, ``ai_feedback.md`` and ``ai_feedback.csv`` (arms), ``labels.csv`` (quality)."""
    files = {
        TABLES: json_bytes(payload(found)),
        "ai_feedback.md": markdown(found).encode(),
        "ai_feedback.csv": csv_bytes(found.arms),
        "labels.csv": csv_bytes(found.quality),
    }
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files]


def read(path: Path) -> Feedback:
    """The tables of an ``ai_feedback.tables.json``."""
    return from_payload(json.loads(path.read_text(encoding="utf-8")))


# --------------------------------------------------------------------------------------------------------- for people


def arm_lines(found: Feedback) -> tuple[list[str], list[list[str]]]:
    """Head and body: an arm and source a line."""
    first = found.quality.label.iloc[0]
    head = ["arm", "labels by", "seeds", "gold", "Δ SFT", f"Δ {first}", "KL, nats", "labels", "demonstrations"]
    head += ["judge calls", "FLOPs"]
    body = []
    for line in found.arms.to_dict("records"):
        body.append(
            [
                line["arm_label"], line["label"], f"{line['n_seeds']:.0f} of {line['n_expected']:.0f}",
                _cell(line, "gold"), _cell(line, "gold_delta", "+.3f"), _cell(line, "gold_against", "+.3f"),
                _plain(line["kl_nats"], ".2f"), *(_plain(line[name], ",.0f") for name in LABEL_COSTS),
                _plain(line["total_flops"], ".2g"),
            ]
        )  # fmt: skip
    return head, body


def label_lines(found: Feedback) -> tuple[list[str], list[list[str]]]:
    """Head and body: a source a line, means over seeds."""
    head = ["labels by", "pairs", "agreement with gold", "on fresh prompts", "the annotator's on these pairs"]
    head += ["with the annotator", "judge, held-out pairs", "position bias", "longer chosen", "longer is better"]
    head += ["dropped"]
    body = []
    for line in summary(found.quality[found.quality.domain == ALL]).to_dict("records"):
        dropped = line["unanswered"] + line["undecided"]
        body.append(
            [
                line["label"], _plain(line["pairs"], ",.0f"), _cell(line, "agreement_with_gold", ".1%"),
                _cell(line, "fresh_prompts", ".1%"), _cell(line, "labels_with_gold", ".1%"),
                _cell(line, "agreement_with_labels", ".1%"), _plain(line["judge_accuracy"], ".1%"),
                _plain(line["position_bias"], "+.3f"), _cell(line, "longer_chosen", ".1%"),
                _cell(line, "longer_is_better", ".1%"), _plain(dropped, ",.0f"),
            ]
        )  # fmt: skip
    return head, body


def round_lines(found: Feedback) -> tuple[list[str], list[list[str]]]:
    """Head and body: the drafts and each round of revision under each seed."""
    body = [
        [f"{line['seed']}", "draft" if line["round"] == 0 else f"after {line['round']}", _cell(line, "gold"),
         _cell(line, "gain", "+.3f")]
        for line in found.rounds.to_dict("records")
    ]  # fmt: skip
    return ["seed", "answers", "gold", "gain over the drafts"], body


def principle_lines(found: Feedback) -> tuple[list[str], list[list[str]]]:
    """Head and body: each principle, sums and means over seeds."""
    body = []
    if len(found.principles):
        for number, own in found.principles.groupby("principle"):
            critique = own.critique.mean()
            body.append(
                [f"{number}", str(own.text.iloc[0]), f"{own.applied.sum():,}", f"{own.revised.sum():,}",
                 f"{own.unusable.sum():,}", _plain(critique, ".1%"), _plain(own.gain.mean(), "+.3f")]
            )  # fmt: skip
    return ["no.", "principle", "applied", "revised", "unusable", "critique right", "gold a time"], body


def markdown(found: Feedback) -> str:
    """``ai_feedback.md``."""
    parts = [*markdown_table(*arm_lines(found)), "", caption(found), "", *markdown_table(*label_lines(found)), ""]
    parts += [label_caption(found), ""]
    if len(found.rounds):
        parts += [*markdown_table(*round_lines(found)), "", *markdown_table(*principle_lines(found)), ""]
    return "\n".join(parts)


def caption(found: Feedback) -> str:
    """Under the table of arms."""
    first = found.quality.label.iloc[0]
    return (
        f"[{found.level:.0%} bootstrap intervals over policy seeds and prompts; differences paired by prompt; "
        f"Δ {first}: from the same arm on those labels; labels: of the annotator, those that a judge learnt from among "
        "them; means over seeds]"
    )


def label_caption(found: Feedback) -> str:
    """Under the table of labels."""
    return (
        "[agreement: share of pairs that gold decides, with Wilson's 95% interval, over seeds from the lowest to the "
        "highest end; fresh prompts: those that the judge learnt nothing from; position bias: mean of P(first slot) - "
        "1/2; dropped: no verdict, or exactly undecided]"
    )


def terminal(found: Feedback) -> str:
    """The tables as text, for the end of a run."""
    blocks = [_text(*arm_lines(found)), caption(found), _text(*label_lines(found)), label_caption(found)]
    if len(found.rounds):
        blocks += [_text(*round_lines(found)), _text(*principle_lines(found))]
    return "\n\n".join(blocks)


def _text(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in [head, *body]
    )


def _cell(line: Mapping[str, Any], name: str, style: str = ".3f") -> str:
    value, low, high = (line.get(f"{name}{end}", math.nan) for end in ("", "_low", "_high"))
    if math.isnan(value):
        return "–"
    return f"{value:{style}}" if math.isnan(low) else f"{value:{style}} [{low:{style}}, {high:{style}}]"


def _plain(value: float, style: str) -> str:
    return "–" if math.isnan(value) else format(value, style)

"""The tables of reward sources as files and text, and what they say in words: every number in them is computed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from lab.tables.reward_models import BENCHMARKS, FAMILIES, MODELS, OUTCOME, RewardModels
from lab.tables.voting import PICK, PLAIN, WEIGHTED
from lab.tables.writing import csv_bytes, json_bytes, records, write_bytes

FRAMES = ("kinds", "curves", "voting", "association", "calibration", "benchmark", "tests")
CSV: Mapping[str, str] = {
    "kinds": "kinds.csv",
    "curves": "best_of_n.csv",
    "voting": "voting.csv",
    "association": "association.csv",
    "calibration": "calibration.csv",
    "benchmark": "benchmark.csv",
    "tests": "benchmark_tests.csv",
}
TABLES = "reward_models.json"
"""All tables and sentences in one file, from which the figures are drawn."""

FEW = 10
"""With fewer reward models than this, an interval over reward models is too narrow (lab.diagnostics.association)."""


# ------------------------------------------------------------------------------------------------------------- files


def payload(found: RewardModels) -> dict[str, Any]:
    """The tables as plain data, with the sentences."""
    plain: dict[str, Any] = {name: records(_finite(getattr(found, name))) for name in FRAMES}
    return plain | {
        "shown": list(found.shown),
        "baseline": found.baseline,
        "level": found.level,
        "findings": findings(found),
    }


def from_payload(plain: Mapping[str, Any]) -> RewardModels:
    """The tables again."""
    frames = {name: frame(plain[name]) for name in FRAMES}
    return RewardModels(**frames, shown=tuple(plain["shown"]), baseline=plain["baseline"], level=plain["level"])


def frame(lines: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """A table from ``lab.tables.writing.records``: null is NaN again in columns of numbers."""
    table = pd.DataFrame(lines)
    for name in table.columns:
        known = table[name].dropna()
        if table[name].dtype == object and not known.map(lambda item: isinstance(item, (str, bool))).any():
            table[name] = pd.to_numeric(table[name])
    return table


def _finite(table: pd.DataFrame) -> pd.DataFrame:
    return table.replace([math.inf, -math.inf], math.nan)


def write(found: RewardModels, folder: Path) -> list[Path]:
    """A CSV a table, ``kinds.md`` and ``reward_models.json``; returns their paths."""
    files = {file: csv_bytes(getattr(found, name)) for name, file in CSV.items()}
    files |= {"kinds.md": markdown(found).encode(), TABLES: json_bytes(payload(found))}
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files]


def read(path: Path) -> RewardModels:
    """The tables that ``write`` wrote to ``path``, a ``reward_models.json``."""
    return from_payload(json.loads(path.read_text(encoding="utf-8")))


# -------------------------------------------------------------------------------------------------------------- text


def markdown(found: RewardModels) -> str:
    """What the tables say, the table of candidates, costs, and the associations."""
    parts = [["# Reward sources, side by side", ""], [f"- {sentence}" for sentence in findings(found)], [""]]
    parts += [_md(*compact(found)), ["", _caption(found), "", "## Costs", ""], _md(*_costs(found))]
    parts += [["", "## What goes with being useful", ""], _md(*_associations(found)), ["", _association_caption(found)]]
    return "\n".join(line for part in parts for line in part) + "\n"


def terminal(found: RewardModels) -> str:
    """The table of candidates and the sentences, for the end of a run."""
    head, body = compact(found)
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *body]
    text = [
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=True))])
        for line in lines
    ]
    return "\n".join([*(line.rstrip() for line in text), "", _caption(found), "", *findings(found)])


def _md(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in body]


def compact(found: RewardModels) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table that people read, family by family."""
    n, more = found.shown[0], found.shown[1:]
    head = ["candidate", "seeds", "RB1", "RB2", "RB2 hard", "held-out pairs", f"best-of-{n} gold"]
    head += [f"Δ {_label(found, found.baseline)}", *(f"best-of-{other} gold" for other in more), "PPO gold", "PPO KL"]
    head += ["spread", "ρ gold", "ρ length", "ECE", "status"]
    body = []
    for line in ordered(found.kinds).itertuples():
        get = line._asdict()  # type: ignore[operator]
        holm = get[f"bon_{n}_p_holm"]
        cells = [str(line.label), f"{line.n_seeds} of {line.n_expected}"]
        cells += [interval(get, name, ".3f") for name in ("rb1", "rb2", "rb2_hard")]
        cells += [number(get["held_out_accuracy"], ".3f"), interval(get, f"bon_{n}", ".3f")]
        cells.append(interval(get, f"bon_{n}_delta", "+.3f") + ("*" if holm < 0.05 else ""))
        cells += [interval(get, f"bon_{other}", ".3f") for other in more]
        cells += [interval(get, "ppo", ".3f"), number(get["ppo_kl_nats"], ".2f")]
        cells += [number(get[name], ".2f") for name in ("spread", "spearman_gold", "spearman_length", "ece_fitted")]
        body.append([*cells, "" if line.status == "complete" else f"{line.status}: {line.note}".rstrip(": ")])
    if not any(cells[-1] for cells in body):
        head, body = head[:-1], [cells[:-1] for cells in body]
    return head, body


def ordered(kinds: pd.DataFrame) -> pd.DataFrame:
    """Family by family, within one in the order of the config."""
    places = {family: place for place, family in enumerate(FAMILIES)}
    return kinds.sort_values("family", key=lambda column: column.map(places), kind="stable")


def _costs(found: RewardModels) -> tuple[list[str], list[list[str]]]:
    head = ["candidate", "preference labels", "attribute ratings", "step labels", "verifier calls", "judge calls"]
    head += ["training FLOPs", "sampling FLOPs of its data", "seconds per 1,000 scores"]
    counts = ("preference_labels", "ratings", "step_labels", "verifier_calls", "judge_calls")
    styles = {**dict.fromkeys(counts, ",.0f"), "training_flops": ".2g", "sampling_flops": ".2g"}
    styles["seconds_per_1000"] = ".2f"
    lines = ordered(found.kinds).to_dict("records")
    return head, [[line["label"], *(number(line[name], style) for name, style in styles.items())] for line in lines]


def _associations(found: RewardModels) -> tuple[list[str], list[list[str]]]:
    n = found.shown[0]
    outcomes = {f"bon_{n}": f"best-of-{n} gold", "ppo": "PPO gold"}
    own = found.association[found.association["over"] == "reward models"]
    head = ["Spearman's ρ over reward models", *outcomes.values()]
    body = []
    for predictor in dict.fromkeys(own.predictor):
        lines = own[own.predictor == predictor].set_index("outcome")
        cells = [
            f"{interval(lines.loc[name], 'spearman', '+.2f')} ({lines.n_models[name]:.0f})"
            if name in lines.index
            else ""
            for name in outcomes
        ]
        body.append([f"{lines.label.iloc[0]}{' †' if lines.same_samples.any() else ''}", *cells])
    return head, body


def _caption(found: RewardModels) -> str:
    n = found.shown[0]
    return (
        f"[{found.level:.0%} intervals: of benchmarks over items and seeds, of gold over seeds and prompts, domains "
        f"weighing the same. RB1: pairs, RB2: best of four, of the world's own items. Δ: less "
        f"{_label(found, found.baseline)} in best-of-{n} gold, paired by prompt; *: p < 0.05 after Holm over all "
        "candidates. ρ: Spearman within a prompt. ECE: after one temperature. –: not measured, or not defined on all "
        "domains; best-of-n of a source that cannot score a prompt picks there at random.]"
    )


def _association_caption(found: RewardModels) -> str:
    return (
        f"[{found.level:.0%} intervals over reward models drawn with replacement; in brackets how many reward models. "
        f"Without the mixture with a rule, the truth and the controls. Intervals of fewer than {FEW} are too short. "
        "†: measured with the gold of the samples from which best-of-n picks, so no forecast of it.]"
    )


def interval(line: Any, name: str, style: str) -> str:
    """``0.512 [0.480, 0.544]``, a dash where there is no number."""
    if math.isnan(line[name]):
        return "–"
    ends = (line[f"{name}_low"], line[f"{name}_high"])
    if any(math.isnan(end) for end in ends):
        return f"{line[name]:{style}}"
    return f"{line[name]:{style}} [{ends[0]:{style}}, {ends[1]:{style}}]"


def number(value: float, style: str) -> str:
    """The number, or a dash for NaN."""
    return "–" if math.isnan(value) else format(value, style)


def _label(found: RewardModels, candidate: str) -> str:
    known = found.kinds.set_index("candidate").label
    return str(known.get(candidate, candidate))


# ---------------------------------------------------------------------------------------------------------- findings


def findings(found: RewardModels) -> list[str]:
    """What the numbers say, in sentences: completeness, the best, what ranks them, outcome against process, length."""
    said = [*_complete(found), *_best(found), *_ranking(found), *_lineage(found), *_votes(found), *_length(found)]
    return [sentence for sentence in said if sentence]


def _complete(found: RewardModels) -> list[str]:
    done, planned = int(found.kinds.n_seeds.sum()), int(found.kinds.n_expected.sum())
    if done == planned:
        return []
    short = found.kinds[found.kinds.status != "complete"].label
    return [f"INCOMPLETE: {done} of {planned} runs of reward sources are there; missing: {', '.join(short)}."]


def _models(found: RewardModels) -> pd.DataFrame:
    return found.kinds[found.kinds.family.isin(MODELS)]


def _best(found: RewardModels) -> list[str]:
    n, models = found.shown[0], _models(found)
    said = []
    for column, use in ((f"bon_{n}", f"best-of-{n}"), ("ppo", "PPO")):
        known = models.dropna(subset=[column])
        if known.empty:
            said.append(f"No reward model has been used for {use}.")
            continue
        top, low = known.loc[known[column].idxmax()], known.loc[known[column].idxmin()]
        said.append(
            f"Of {len(known)} reward models the best for {use} is {top.label} (gold {interval(top, column, '.3f')}), "
            f"the worst {low.label} ({interval(low, column, '.3f')})."
        )
    tested = models.dropna(subset=[f"bon_{n}_p_holm"])
    if len(tested):
        sure = tested[tested[f"bon_{n}_p_holm"] < 0.05]
        better, worse = (sure[sure[f"bon_{n}_delta"] * sign > 0].label for sign in (1, -1))
        base = _label(found, found.baseline)
        said.append(
            f"Against {base} in best-of-{n}, after Holm's correction over all candidates: better: {_names(better)}; "
            f"worse: {_names(worse)}."
        )
    return said


def _names(labels: pd.Series) -> str:
    return ", ".join(labels) if len(labels) else "none"


def _ranking(found: RewardModels) -> list[str]:
    """Which predictor goes best with each outcome, over the reward models."""
    n, said = found.shown[0], []
    own = found.association[found.association["over"] == "reward models"]
    for outcome, use in ((f"bon_{n}", f"best-of-{n}"), ("ppo", "PPO")):
        lines = own[(own.outcome == outcome) & ~own.same_samples.astype(bool)].dropna(subset=["spearman"])
        if lines.empty or lines.n_models.max() < 3:
            said.append(f"Too few reward models were used for {use} to say what ranks them.")
            continue
        whole = lines[lines.n_models == lines.n_models.max()]  # known of all: a best of few is a matter of chance
        top = whole.loc[whole.spearman.abs().idxmax()]
        clear = lines[(lines.spearman_low > 0) | (lines.spearman_high < 0)]
        text = (
            f"What ranks {top.n_models:.0f} reward models for {use} best, of {len(whole)} numbers known of all, is "
            f"{top.label} (Spearman {interval(top, 'spearman', '+.2f')}); "
        )
        text += (
            f"intervals that exclude 0: {', '.join(clear.label)}."
            if len(clear)
            else "no interval excludes 0: nothing ranks them reliably."
        )
        if top.n_models < FEW:
            text += f" With {top.n_models:.0f} reward models these intervals are too narrow."
        said.append(text)
    for name in BENCHMARKS:
        both = own[own.predictor == name].set_index("outcome")
        if name in ("rb2", "rb2_hard") and not both.spearman.isna().any():
            a, b = both.loc[f"bon_{n}"], both.loc["ppo"]
            for_best, for_ppo = (interval(line, "spearman", "+.2f") for line in (a, b))
            said.append(
                f"The benchmark ({a.label}) ranks them for best-of-{n} with Spearman {for_best} and for PPO with "
                f"{for_ppo} ({a.n_models:.0f} and {b.n_models:.0f} reward models)."
            )
    return said


def _lineage(found: RewardModels) -> list[str]:
    """What the reward models of another lineage do to the benchmark's association."""
    others = _models(found)[~_models(found).own_lineage.astype(bool)].label
    lines = found.association.set_index(["over", "outcome", "predictor"])
    whole, own = (("reward models", "ppo", "rb2"), ("reward models of the policy's lineage", "ppo", "rb2"))
    if others.empty or math.isnan(lines.spearman[whole]) or math.isnan(lines.spearman[own]):
        return []
    return [
        f"Without the reward models of another lineage than the policy's ({', '.join(others)}) the benchmark's "
        f"Spearman with PPO gold is {lines.spearman[own]:+.2f}, with them {lines.spearman[whole]:+.2f}."
    ]


def _votes(found: RewardModels) -> list[str]:
    """Outcome against process as n grows, and both against the plain majority."""
    table = found.voting
    said = []
    processes = found.kinds[found.kinds.kind == "process"].candidate
    for name in processes:
        for rule in (PICK, WEIGHTED):
            own = table[(table.candidate == name) & (table["rule"] == rule)].sort_values("n")
            own = own[(own.n > 1) & own.over_reference.notna()]
            if own.empty:
                continue
            first, last = own.iloc[0], own.iloc[-1]
            said.append(
                f"{_label(found, name)} less {_label(found, OUTCOME)}, share of verifiable prompts right by {rule}: "
                f"{interval(first, 'over_reference', '+.3f')} at n = {first.n} and "
                f"{interval(last, 'over_reference', '+.3f')} at n = {last.n}: {_winner(found, name, last)} at the end."
            )
    own = table[(table.candidate == OUTCOME) & (table["rule"] == PICK)].sort_values("n")
    if len(own) > 1:
        peak, last = own.loc[own.accuracy.idxmax()], own.iloc[-1]
        text = f"{_label(found, OUTCOME)} by {PICK} is highest at n = {peak.n} ({interval(peak, 'accuracy', '.3f')})"
        text += (
            " and does not fall after it" if peak.n == last.n else f" and ends at {interval(last, 'accuracy', '.3f')}"
        )
        gap = interval(last, "over_majority", "+.3f")
        said.append(f"{text}; less the plain {PLAIN} at n = {last.n} that is {gap}.")
    return said


def _winner(found: RewardModels, name: str, line: pd.Series) -> str:
    if line.over_reference_low > 0:
        return f"{_label(found, name)} is better"
    if line.over_reference_high < 0:
        return f"{_label(found, OUTCOME)} is better"
    return "undecided"


def _length(found: RewardModels) -> list[str]:
    """What length alone scores."""
    said = []
    row = found.kinds[found.kinds.kind == "length"]
    for name in ("rb1", "rb2"):
        known = found.kinds.dropna(subset=[f"{name}_longer_wins"])
        if len(known):
            chance, longer = known[f"{name}_chance"].iloc[0], known[f"{name}_longer_wins"].iloc[0]
            measured = (
                f"; the candidate that scores words gets {interval(row.iloc[0], name, '.3f')}" if len(row) else ""
            )
            text = BENCHMARKS[name][2]
            said.append(
                f"On {text}, “the longer wins” (in characters) scores {longer:.3f}, chance {chance:.3f}{measured}."
            )
    return said

"""From the points of the data-quality sweep to its tables: gold, crossings, effects of data and algorithm. No torch.

Axis suffixes: S policy seeds, P prompts, K points of one curve, B bootstrap resamples. Strata are domains: name ->
(S, P). Text for people and the JSON file are in ``lab.tables.quality_text``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from lab.stats import Floats, HierarchicalBootstrap, Interval, holm, interval_columns
from lab.tables.cells import in_order, mean_rows
from lab.tables.sweep import ACCURACIES, Strata, matrices, seed_means, t_interval

FAMILIES: Mapping[str, str] = {"dpo": "dpo", "ppo": "ppo_rm"}
"""What learns from preferences: its name in the tables -> the arm."""

VERIFIERS = ("ppo_verifier", "grpo_verifier")
"""Arms that need no preferences. The first that was run is ``rlvr``: PPO, so that only the reward differs."""

AXES: Mapping[str, str] = {"flips": "flip_rate", "pairs": "pairs"}
"""The curves: their points are the options of ``quality`` named ``flip_...`` and ``pairs_...`` -> the column of x."""

CARD: Mapping[str, str] = {
    "flip_rate": "flip_rate",
    "pairs": "pairs",
    "agreement": "agreement_with_gold",
    "agreement_low": "agreement_with_gold_low",
    "agreement_high": "agreement_with_gold_high",
    "expected_agreement": "expected_agreement",
    "longer_chosen": "longer_chosen",
    "labels_paid": "labels_paid",
}
"""Column of the table -> what the point's record of its preferences calls it."""

PRESETS = ("hh_like", "ultrafeedback_like")
"""The data whose difference is the effect of data."""

LINES = ("arm", "role", "n_seeds", "gold", "gold_low", "gold_high")
CROSSED = (("dpo", "ppo"), ("dpo", "rlvr"), ("ppo", "rlvr"), ("dpo", "sft"), ("ppo", "sft"))
ALPHA = 0.05


@dataclass(frozen=True)
class Quality:
    """The tables of the sweep. Missing values are NaN; ``_low`` and ``_high`` bound an interval.

    - ``table``: a line per planned point: knobs, agreement with gold as measured and as requested, accuracies of its
      reward models, gold of ``dpo``, ``ppo`` (against the reward model), ``rlvr`` and ``sft``, and paired differences.
    - ``seeds``: a line per point x seed. ``lines``: gold of what needs no preferences, a line per arm.
    - ``crossings``: where two curves cross, a line per curve and pair (``crossing``).
    - ``effects``: data against algorithm, a line per contrast (``effects``).
    - ``steps``, ``trends``: whether the accuracy of reward models falls with the flip rate (``trend``).
    """

    table: pd.DataFrame
    seeds: pd.DataFrame
    lines: pd.DataFrame
    crossings: pd.DataFrame
    effects: pd.DataFrame
    steps: pd.DataFrame
    trends: pd.DataFrame
    level: float


Gold = dict[str, tuple[list[int], Strata]]
"""``dpo``, ``ppo`` -> its seeds and its cells."""


def quality_sweep(
    points: Sequence[Mapping[str, Any]],
    rows: pd.DataFrame | None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Quality:
    """The tables of a sweep.

    ``points``, in table order: ``{"quality", "seeds" (planned), "status", "note", "preferences", "reward_models"}``,
    the last two as ``experiments.sweep.write_point`` has them. ``rows``: the columns of ``records.EvalRow`` and
    ``quality``; arms ``sft``, ``dpo``, ``ppo_rm`` and of ``VERIFIERS``, which are the same policies in every point;
    None if there are none.

    Gold is the unweighted mean over domains of the mean over seeds and prompts; intervals are the hierarchical
    bootstrap's, of differences paired by prompt. Accuracies: one number a seed, Student's t over seeds.

    ValueError for a point given twice.
    """
    names = [str(point["quality"]) for point in points]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"quality_sweep: point {twice} is given twice")
    bootstrap = HierarchicalBootstrap(seed, resamples, level)
    golds, fixed = _golds(rows, names)
    rlvr = next((arm for arm in VERIFIERS if arm in fixed), None)
    shared = {"sft": fixed["sft"]} if "sft" in fixed else {}
    shared |= {"rlvr": fixed[rlvr]} if rlvr else {}
    table = pd.DataFrame([_line(point, golds.get(name, {}), shared, bootstrap) for name, point in _named(points)])
    seeds = pd.DataFrame([line for name, point in _named(points) for line in _seed_lines(point, golds.get(name, {}))])
    lines = [
        {"arm": arm, "role": "sft" if arm == "sft" else "rlvr" if arm == rlvr else "other", "n_seeds": len(own)}
        | interval_columns("gold", bootstrap.interval(arm, strata))
        for arm, (own, strata) in fixed.items()
    ]
    steps, trends = trend(table, {name: _accuracies(point) for name, point in _named(points)}, level)
    return Quality(
        table,
        seeds,
        pd.DataFrame(lines, columns=list(LINES)),
        crossings(table, golds, shared, bootstrap),
        effects(golds, bootstrap),
        steps,
        trends,
        level,
    )


def _named(points: Sequence[Mapping[str, Any]]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(str(point["quality"]), point) for point in points]


# ---------------------------------------------------------------------------------------------------------------- gold


def _golds(rows: pd.DataFrame | None, names: Sequence[str]) -> tuple[dict[str, Gold], Gold]:
    """Every point's gold, and that of the arms that all points share; the same prompts as columns throughout."""
    if rows is None:
        return {}, {}
    rows = rows[(rows.decode == "sampled") & rows.final]
    cells = rows.groupby(["quality", "arm", "seed", "domain", "prompt_id"]).gold.mean().reset_index()
    columns = {d: sorted(cells.prompt_id[cells.domain == d].unique()) for d in in_order(cells.domain.unique())}
    found: dict[str, Gold] = {}
    for name in names:
        own = cells[cells.quality == name]
        parts = {family: own[own.arm == arm] for family, arm in FAMILIES.items()}
        gold = {family: matrices(part, columns) for family, part in parts.items() if len(part)}
        found[name] = {family: read for family, read in gold.items() if read[0]}
    fixed: Gold = {}
    for arm in ("sft", *VERIFIERS):
        # The same policies and samples in every point: the first that has most of the seeds.
        own = cells[cells.arm == arm]
        if len(own):
            counts = own.groupby("quality").seed.nunique()
            name = max((name for name in names if name in counts), key=lambda name: counts[name])
            fixed[arm] = matrices(own[own.quality == name], columns)
    if "sft" in fixed:
        fixed["sft"] = [fixed["sft"][0][0]], {d: mean_rows(own) for d, own in fixed["sft"][1].items()}
    return found, fixed


def _part(weight: float, name: str, arm: str, gold: Gold, shared: Gold) -> tuple[float, str, Strata] | None:
    """A part of a contrast: the arm ``dpo`` or ``ppo`` of point ``name``, or ``sft`` or ``rlvr``; None if not there."""
    have = shared if arm in ("sft", "rlvr") else gold
    return (weight, arm if arm in ("sft", "rlvr") else f"{name} {arm}", have[arm][1]) if arm in have else None


def _line(point: Mapping[str, Any], gold: Gold, shared: Gold, bootstrap: HierarchicalBootstrap) -> dict[str, Any]:
    name, known = str(point["quality"]), point["preferences"] or {}
    models = {one["seed"]: one for one in point["reward_models"]}
    present = [s for s in point["seeds"] if s in models and all(s in gold.get(f, ([], {}))[0] for f in FAMILIES)]
    line: dict[str, Any] = {"quality": name, "axis": axis_of(name), "status": point["status"], "note": point["note"]}
    line |= {"n_seeds": len(present), "n_expected": len(point["seeds"])}
    for column, key in CARD.items():
        line[column] = math.nan if known.get(key) is None else float(known[key])
    for measure in ACCURACIES:
        values = [float(model[measure]) for model in models.values() if model.get(measure) is not None]
        line |= interval_columns(measure, t_interval(values, bootstrap.level))
    for arm in (*FAMILIES, "rlvr", "sft"):
        own = _part(1.0, name, arm, gold, shared)
        line |= interval_columns(arm, bootstrap.interval(own[1], own[2]) if own else None)
    gaps = {"dpo_delta": ("dpo", "sft"), "ppo_delta": ("ppo", "sft"), "ppo_minus_dpo": ("ppo", "dpo")}
    gaps |= {"dpo_minus_rlvr": ("dpo", "rlvr"), "ppo_minus_rlvr": ("ppo", "rlvr")}
    for column, (first, second) in gaps.items():
        parts = [_part(1.0, name, first, gold, shared), _part(-1.0, name, second, gold, shared)]
        whole = [part for part in parts if part is not None]
        line |= interval_columns(column, bootstrap.contrast(whole) if len(whole) == 2 else None)
    return line


def axis_of(name: str) -> str:
    """The curve that a point belongs to by its name: "flips", "pairs", or "preset" for a point of its own."""
    return {"flip": "flips", "pairs": "pairs"}.get(name.split("_")[0], "preset")


def on_axis(table: pd.DataFrame, axis: str) -> pd.DataFrame:
    """The points of a curve that say where they lie on it, by x.

    The curve over pairs also has the point of the curve over flips that has its flip rate, where it adds a number of
    pairs: both curves pass through it.
    """
    column = AXES[axis]
    own = table[(table.axis == axis) & table[column].notna()]
    if axis == "pairs" and len(own) and own.flip_rate.nunique() == 1:
        other = table[(table.axis == "flips") & (table.flip_rate == own.flip_rate.iloc[0])]
        own = pd.concat([own, other[~other.pairs.isin(own.pairs) & other.pairs.notna()].head(1)])
    return own.sort_values(column, kind="stable")


def _seed_lines(point: Mapping[str, Any], gold: Gold) -> list[dict[str, Any]]:
    models = {one["seed"]: one for one in point["reward_models"]}
    means = {family: seed_means(*gold.get(family, ([], {}))) for family in FAMILIES}
    lines = []
    for seed in point["seeds"]:
        line: dict[str, Any] = {"quality": str(point["quality"]), "seed": int(seed)}
        for measure in ACCURACIES:
            value = models.get(seed, {}).get(measure)
            line[measure] = math.nan if value is None else float(value)
        lines.append(line | {family: own.get(seed, math.nan) for family, own in means.items()})
    return lines


# ----------------------------------------------------------------------------------------------------------- crossings


def first_change(x_K: Floats, lead_BK: Floats) -> Floats:
    """(B,) x where a lead first ends, linear between points: -inf where there is none at the first point, inf where it
    lasts to the last. ``x_K`` rises; ``lead_BK`` is the lead at each point."""
    ended_BK = lead_BK <= 0
    at = np.argmax(ended_BK, axis=1)
    out = np.full(lead_BK.shape[0], np.inf)
    out[ended_BK[:, 0]] = -np.inf
    inner = np.flatnonzero(ended_BK.any(1) & ~ended_BK[:, 0])
    k = at[inner]
    before, after = lead_BK[inner, k - 1], lead_BK[inner, k]
    out[inner] = x_K[k - 1] + (x_K[k] - x_K[k - 1]) * before / (before - after)
    return out


def crossing(x_K: Floats, gap_K: Floats, gap_BK: Floats, level: float) -> dict[str, Any]:
    """Where two curves cross: of the estimated difference ``gap_K`` (first - second) and its resamples ``gap_BK``.

    ``at``: where the curve that leads at the smallest x first loses its lead, NaN if it never does. ``at_low`` and
    ``at_high``: the interval of that place over resamples; NaN where that end lies beyond the range that was run, as
    ``low_beyond`` and ``high_beyond`` say. ``crossings``: sign changes of the estimated difference. ``share``: of the
    resamples, in how many the curves cross anywhere. ``verdict``: "crosses" (both ends lie in the range), "none" (the
    curves do not cross, nor do they in more than 1 - level of the resamples) or "open".
    """
    sign = 1.0 if gap_K[0] >= 0 else -1.0
    place = float(first_change(x_K, sign * gap_K[None])[0])
    changes = int(np.count_nonzero(np.diff(np.sign(gap_K[gap_K != 0]))))
    places_B = first_change(x_K, sign * gap_BK)
    share = float(np.mean((gap_BK > 0).any(1) & (gap_BK < 0).any(1)))
    tail = (1 - level) / 2
    ends = [float(np.quantile(places_B, q, method="inverted_cdf")) for q in (tail, 1 - tail)]
    crosses = math.isfinite(place)
    inside = [math.isfinite(end) for end in ends]
    found: dict[str, Any] = {"at": place if crosses else math.nan}
    for name, end, ok in zip(("low", "high"), ends, inside, strict=True):
        found |= {f"at_{name}": end if crosses and ok else math.nan, f"{name}_beyond": bool(crosses and not ok)}
    verdict = "crosses" if crosses and all(inside) else "none" if not crosses and share <= 1 - level else "open"
    return found | {"crossings": changes, "share": share, "first_leads": bool(sign > 0), "verdict": verdict}


CROSSINGS = (
    "axis", "first", "second", "n_points", "n_planned", "x_low", "x_high", "at", "at_low", "at_high", "low_beyond",
    "high_beyond", "crossings", "share", "first_leads", "verdict",
)  # fmt: skip


def crossings(
    table: pd.DataFrame, golds: Mapping[str, Gold], shared: Gold, bootstrap: HierarchicalBootstrap
) -> pd.DataFrame:
    """A line per curve and pair of ``CROSSED``: ``crossing`` of gold over flips and over log10 of the number of pairs.

    Seeds are drawn anew at every point (another data set is another training), prompts once for all. Curves of fewer
    than two points have no line.
    """
    lines = []
    for axis, column in AXES.items():
        points = on_axis(table, axis)
        for first, second in CROSSED:
            x, gaps, draws = [], [], []
            for line in points.to_dict("records"):
                name = str(line["quality"])
                gold = golds.get(name, {})
                parts = [_part(1.0, name, first, gold, shared), _part(-1.0, name, second, gold, shared)]
                whole = [part for part in parts if part is not None]
                if len(whole) == 2 and line[column] not in x:
                    x.append(line[column])
                    gaps.append(bootstrap.contrast(whole).point)
                    draws.append(bootstrap.contrast_draws(whole))
            if len(x) < 2:
                continue
            x_K = np.log10(x) if axis == "pairs" else np.asarray(x, dtype=np.float64)
            found = crossing(x_K, np.asarray(gaps), np.stack(draws, 1), bootstrap.level)
            if axis == "pairs":
                found |= {name: 10.0 ** found[name] for name in ("at", "at_low", "at_high")}
            place: dict[str, Any] = {"axis": axis, "first": first, "second": second, "n_points": len(x)}
            place |= {"n_planned": int((table.axis == axis).sum()), "x_low": x[0], "x_high": x[-1]}
            lines.append(place | found)
    return pd.DataFrame(lines, columns=list(CROSSINGS))


# ------------------------------------------------------------------------------------------------------------- effects

EFFECTS = ("effect", "within", "value", "value_low", "value_high", "n_seeds", "verdict")


def effects(golds: Mapping[str, Gold], bootstrap: HierarchicalBootstrap) -> pd.DataFrame:
    """Data (the second of ``PRESETS`` - the first) within DPO and within PPO, algorithm (PPO - DPO) within each preset,
    both averaged, their interaction, and how much larger data's effect is. Empty unless all four are there.

    Sizes are compared as data - |algorithm|, the smaller of data - algorithm and data + algorithm; the interval is from
    the smaller of their lower ends to the smaller of their upper ends, so that data counts for more only if both are
    above 0 (an intersection-union test, Berger 1982). ``sizes``: of the averages. ``extremes``: data's smaller effect
    less the algorithm's larger one, for the algorithm may help on one preset and hurt on the other. Where data's
    average is negative, its sign is turned round in these two.

    Verdicts: of these two "data", "algorithm" or "open"; of the other lines, the side of 0 on which the interval lies.
    """
    first, second = PRESETS
    cells = {(name, family): golds.get(name, {}).get(family) for name in PRESETS for family in FAMILIES}
    have = {key: own for key, own in cells.items() if own is not None}
    if len(have) < len(cells):
        return pd.DataFrame(columns=list(EFFECTS))

    def contrast(weights: Mapping[tuple[str, str], float]) -> Interval:
        found = bootstrap.contrast([(weight, " ".join(key), have[key][1]) for key, weight in weights.items()])
        return replace(found, n_seeds=min(len(have[key][0]) for key in weights))

    def data(*families: str) -> dict[tuple[str, str], float]:
        share = 1 / len(families)
        return {(name, f): share * sign for name, sign in ((second, 1.0), (first, -1.0)) for f in families}

    def algorithm(*presets: str) -> dict[tuple[str, str], float]:
        share = 1 / len(presets)
        return {(name, f): share * sign for f, sign in (("ppo", 1.0), ("dpo", -1.0)) for name in presets}

    found = {("data", family): contrast(data(family)) for family in FAMILIES}
    found |= {("algorithm", name): contrast(algorithm(name)) for name in PRESETS}
    found |= {("data", "mean"): contrast(data(*FAMILIES)), ("algorithm", "mean"): contrast(algorithm(*PRESETS))}
    crossed = {(second, "ppo"): 1.0, (first, "ppo"): -1.0, (second, "dpo"): -1.0, (first, "dpo"): 1.0}
    found["interaction", ""] = contrast(crossed)
    lines = [_effect(*key, own, sign_verdict(own.low, own.high, own.n_seeds)) for key, own in found.items()]
    up = 1.0 if found["data", "mean"].point >= 0 else -1.0
    sizes = [_sum((up, data(*FAMILIES)), (sign, algorithm(*PRESETS))) for sign in (1.0, -1.0)]
    each = [(family, preset, sign) for family in FAMILIES for preset in PRESETS for sign in (1.0, -1.0)]
    extremes = [_sum((up, data(family)), (sign, algorithm(preset))) for family, preset, sign in each]
    for within, parts in (("sizes", sizes), ("extremes", extremes)):
        gap = _smallest([contrast(weights) for weights in parts])
        said = {"above": "data", "below": "algorithm"}.get(sign_verdict(gap.low, gap.high, gap.n_seeds), "open")
        said = "open" if within == "extremes" and said == "algorithm" else said  # then only: not data in every case
        lines.append(_effect("data - algorithm", within, gap, said))
    return pd.DataFrame(lines, columns=list(EFFECTS))


def _sum(*several: tuple[float, Mapping[tuple[str, str], float]]) -> dict[tuple[str, str], float]:
    """A weighted sum of contrasts as one contrast."""
    keys = dict.fromkeys(key for _, weights in several for key in weights)
    total = {key: sum(scale * weights.get(key, 0.0) for scale, weights in several) for key in keys}
    return {key: weight for key, weight in total.items() if weight}


def _smallest(several: Sequence[Interval]) -> Interval:
    """The smallest of several contrasts, from the smallest lower end to the smallest upper end."""
    low, high = min(one.low for one in several), min(one.high for one in several)
    least = min(several, key=lambda one: one.point)
    return replace(least, low=low, high=high, n_seeds=min(one.n_seeds for one in several))


def _effect(effect: str, within: str, found: Interval, verdict: str) -> dict[str, Any]:
    columns = interval_columns("value", found)
    return {"effect": effect, "within": within, **columns, "n_seeds": found.n_seeds, "verdict": verdict}


def sign_verdict(low: float, high: float, n_seeds: int) -> str:
    """On which side of 0 an interval lies: "above", "below", or "open" where it does not say, or has one seed."""
    if math.isnan(low) or n_seeds < 2:
        return "open"
    return "above" if low > 0 else "below" if high < 0 else "open"


# -------------------------------------------------------------------------------------------------------------- trends

STEPS = ("measure", "flip_rate", "next_flip_rate", "change", "change_low", "change_high", "n_seeds", "p", "p_holm")
TRENDS = ("measure", "n_points", "n_planned", "n_seeds", "spearman", "page_l", "page_p", "falls_each_step", "verdict")
MEASURES = ("accuracy", "overall")
"""Held-out pairs in their true order; the world's benchmark."""


def _accuracies(point: Mapping[str, Any]) -> dict[str, dict[int, float]]:
    """Measure -> seed -> value."""
    return {
        measure: {m["seed"]: float(m[measure]) for m in point["reward_models"] if m.get(measure) is not None}
        for measure in MEASURES
    }


def trend(
    table: pd.DataFrame, accuracies: Mapping[str, Mapping[str, Mapping[int, float]]], level: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Whether accuracy falls as the flip rate rises, over the seeds that every point of the curve has.

    Steps: the change from each flip rate to the next, paired by seed, with Student's t interval; p is one-sided (it
    falls), Holm-adjusted within the measure. Trends: Page's L (Page 1963) with its p against "no order", Spearman's
    correlation of flip rate and mean accuracy, and the verdict on "falls with every step": "supported" (every mean
    step falls, and p < 0.05 of Page's), "refuted" (a step surely rises) or "open". Nothing with fewer than two points;
    no Page with fewer than three points or two seeds.
    """
    points = on_axis(table, "flips")
    steps, trends = [], []
    for measure in MEASURES:
        own = {
            float(line["flip_rate"]): accuracies[str(line["quality"])][measure]
            for line in points.to_dict("records")
            if accuracies[str(line["quality"])][measure]
        }
        x = list(own)
        if len(x) < 2:
            continue
        seeds = sorted(set.intersection(*(set(values) for values in own.values())))
        values_SK = np.array([[own[flip][seed] for flip in x] for seed in seeds]).reshape(len(seeds), len(x))
        lines: list[dict[str, Any]] = [
            {"measure": measure, "flip_rate": x[k], "next_flip_rate": x[k + 1], "n_seeds": len(seeds)}
            | _fall(values_SK[:, k + 1] - values_SK[:, k], level)
            for k in range(len(x) - 1)
        ]
        known = [line["p"] for line in lines if not math.isnan(line["p"])]
        adjusted = list(holm(known)) if known else []
        for line in lines:
            line["p_holm"] = math.nan if math.isnan(line["p"]) else float(adjusted.pop(0))
        steps += lines
        count = {"n_points": len(x), "n_planned": int((table.axis == "flips").sum()), "n_seeds": len(seeds)}
        trends.append({"measure": measure, **count, **_trend(values_SK, lines)})
    return pd.DataFrame(steps, columns=list(STEPS)), pd.DataFrame(trends, columns=list(TRENDS))


def _fall(change_S: Floats, level: float) -> dict[str, float]:
    found = t_interval(list(change_S), level)
    spread = float(np.std(change_S, ddof=1)) if change_S.size > 1 else math.nan
    if math.isnan(spread):
        p = math.nan
    elif spread == 0:
        p = 0.0 if change_S[0] < 0 else 1.0
    else:
        t = float(change_S.mean()) / (spread / math.sqrt(change_S.size))
        p = float(scipy_stats.t.cdf(t, change_S.size - 1))
    return interval_columns("change", found) | {"p": p}


def _trend(values_SK: Floats, steps: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    n_seeds, n_points = values_SK.shape
    falls = bool(n_seeds and all(step["change"] < 0 for step in steps))
    page_l = page_p = spearman = math.nan
    if n_seeds and n_points > 1:
        means_K = values_SK.mean(0)
        if np.ptp(means_K):
            spearman = float(scipy_stats.spearmanr(np.arange(n_points), means_K).statistic)
    if n_seeds > 1 and n_points > 2:
        page = scipy_stats.page_trend_test(values_SK, predicted_ranks=np.arange(n_points, 0, -1))
        page_l, page_p = float(page.statistic), float(page.pvalue)
    rises = any(step["change_low"] > 0 for step in steps)
    verdict = "refuted" if rises else "supported" if falls and page_p < ALPHA else "open"
    return {
        "spearman": spearman, "page_l": page_l, "page_p": page_p, "falls_each_step": falls, "verdict": verdict,
    }  # fmt: skip

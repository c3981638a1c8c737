"""Scores of reward models on benchmark items, every one with an interval, and beside it what mere length would score.

A benchmark is subsets, and parts (sections, domains, overall) that weigh subsets. Every score here, Ties included, is a
weighted sum over subsets of a mean over units (items; in Ties, groups of a ref and its tied prompt): that is what the
bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.benchmarks import rewardbench, rewardbench2
from lab.benchmarks.items import PAIRS, Item, Scores
from lab.benchmarks.rewardbench2 import Margins
from lab.records import DOMAINS
from lab.stats import HierarchicalBootstrap, holm, mcnemar_exact

Floats = NDArray[np.float64]
Weights = Mapping[str, float]
"""Subset -> its share of a part; the shares sum to 1."""

OVERALL = "overall"
HALVES = ("all", "hard", "easy")

# ---------------------------------------------------------------- one item


def check_scores(items: Sequence[Item], scores: Scores, may_abstain: bool = False) -> None:
    """Raises ValueError, naming the item, where scores are missing, infinite, or NaN without ``may_abstain``."""
    if len(items) != len(scores):
        raise ValueError(f"scores: expected one array for each of {len(items)} items, got {len(scores)}")
    for item, one in zip(items, scores, strict=True):
        if len(one) != len(item.completions):
            raise ValueError(f"item {item.id}: {len(item.completions)} completions and {len(one)} scores")
        refused = np.isinf(one) if may_abstain else ~np.isfinite(one)
        if refused.any():
            bad = int(np.flatnonzero(refused)[0])
            raise ValueError(f"item {item.id} of {item.benchmark} {item.subset}: completion {bad} scores {one[bad]}")


def credit(item: Item, scores: Floats) -> float:
    """Of one item: pair, 1 for a strict win; best of n, 1/k where the chosen shares the maximum with k - 1 others;
    Ties, 1 where every chosen is above every rejected."""
    match item.kind:
        case "pair":
            return float(rewardbench.win(scores[0], scores[1]))
        case "best_of":
            return rewardbench2.credit(scores.tolist())
        case _:
            return float(margins(item, scores).accurate)


def margins(item: Item, scores: Floats) -> Margins:
    """The Ties margins of an item."""
    right = len(item.chosen)
    return Margins.of(scores[:right].tolist(), scores[right:].tolist())


def longest_is_right(item: Item, length: Callable[[str], int] = len) -> float:
    """The share of the longest completions that are chosen ones: in a pair 1, 0, or 1/2 where both are as long."""
    lengths = [length(text) for text in item.completions]
    longest = [index for index, one in enumerate(lengths) if one == max(lengths)]
    return sum(index < len(item.chosen) for index in longest) / len(longest)


def words(text: str) -> int:
    return len(text.split())


# ---------------------------------------------------------------- parts of a benchmark


def parts_of(benchmark: str, counts: Mapping[str, int]) -> dict[str, Weights]:
    """Part -> the subsets it weighs, and the weights. ``counts``: items of each subset at hand.

    RewardBench and RewardBench 2 as published; the world's own sets like RewardBench 2, over its six domains; any other
    benchmark: its subsets, and all its items pooled. Raises ValueError for a subset that a published benchmark lacks.
    """
    name = benchmark.removesuffix(PAIRS)
    parts: dict[str, Weights]
    match name:
        case "rewardbench":
            parts = {**rewardbench.section_weights(), OVERALL: rewardbench.overall_weights()}
        case "rewardbench2" | "world":
            domains = rewardbench2.DOMAINS if name == "rewardbench2" else DOMAINS
            parts = {**{one: {one: 1.0} for one in domains}, OVERALL: dict.fromkeys(domains, 1 / len(domains))}
        case _:
            total = sum(counts.values())
            return {**{one: {one: 1.0} for one in counts}, OVERALL: {one: n / total for one, n in counts.items()}}
    unknown = sorted(set(counts) - set(parts[OVERALL]))
    if unknown:
        raise ValueError(f"benchmark {benchmark} has no subset {unknown[0]!r}")
    return parts


@dataclass(frozen=True)
class _Side:
    """The items of one benchmark and half, by subset, as positions in the list of all items."""

    benchmark: str
    half: str
    subsets: Mapping[str, Sequence[int]]

    @property
    def parts(self) -> dict[str, Weights]:
        return parts_of(self.benchmark, {subset: len(lines) for subset, lines in self.subsets.items()})

    def stratum(self, subset: str) -> str:
        return f"{self.benchmark}/{self.half}/{subset}"


def _sides(items: Sequence[Item]) -> Iterator[_Side]:
    for benchmark in dict.fromkeys(item.benchmark for item in items):
        for half in HALVES:
            subsets: dict[str, list[int]] = {}
            for line, item in enumerate(items):
                if item.benchmark == benchmark and (half == "all" or item.hard == (half == "hard")):
                    subsets.setdefault(item.subset, []).append(line)
            of_one_kind = len({item.hard for item in items if item.benchmark == benchmark}) == 1
            if subsets and not (half != "all" and of_one_kind):
                yield _Side(benchmark, half, subsets)


def cells(items: Sequence[Item], scores: Scores) -> Floats:
    """(U,) contributions of the units of one subset, whose mean is its score. In Ties a unit is a group, tied prompts
    in order. Raises ValueError where Ties and other kinds are mixed, or a group has two prompts on one side."""
    ties = [item.kind in ("ref", "tied") for item in items]
    if not any(ties):
        return np.array([credit(item, one) for item, one in zip(items, scores, strict=True)])
    if not all(ties):
        raise ValueError(f"subset {items[0].subset}: Ties items among others")
    found: dict[str, dict[str, Margins]] = {"ref": {}, "tied": {}}
    for item, one in zip(items, scores, strict=True):
        group = str(item.pair_group)
        if group in found[item.kind]:
            raise ValueError(f"item {item.id}: a second {item.kind} prompt of group {group}")
        found[item.kind][group] = margins(item, one)
    return np.array(list(rewardbench2.ties_shares(found["ref"], found["tied"]).values()))


# ---------------------------------------------------------------- tables


def score_table(
    items: Sequence[Item],
    scores: Mapping[str, Sequence[Scores]],
    *,
    may_abstain: bool = False,
    resamples: int = 2000,
    level: float = 0.95,
) -> pd.DataFrame:
    """A row for each benchmark x half (all, hard, easy) x part x model.

    ``scores``: model -> one Scores for each seed of its reward model; a list of one resamples items only. Columns:
    benchmark, half, part, model, seeds, n (items), score, low, high, chance (of picking a right completion blindly),
    longer_wins (what "the longest completion is right" scores, in characters, ties shared), longer_wins_words.

    A part with a subset missing, or unscored, has no row; "overall" always has one, with NaN where it is not complete.
    ``may_abstain``: a NaN means that this source cannot score, and its subset is absent; otherwise a NaN is refused
    (ValueError naming the item). The interval is a bootstrap over items (and seeds) within subsets; where every item
    earned 0, or every item 1, its open side is the exact binomial bound, because resampling cannot show what never
    happened.
    """
    for seeds in scores.values():
        for one in seeds:
            check_scores(items, one, may_abstain)
    rows = []
    for side in _sides(items):
        bootstrap = HierarchicalBootstrap(0, resamples, level)
        units = {model: _units(side, items, seeds) for model, seeds in scores.items()}
        for part, weights in side.parts.items():
            for model, found in units.items():
                if set(weights) <= set(found):
                    row = _interval(bootstrap, side, model, found, weights, _bounds(items, side, weights))
                    row |= _length_columns(items, side, weights)
                    n = sum(len(side.subsets[subset]) for subset in weights)
                elif part == OVERALL:
                    row, n = {"score": math.nan, "low": math.nan, "high": math.nan}, 0
                else:
                    continue
                key = {"benchmark": side.benchmark, "half": side.half, "part": part, "model": model}
                rows.append({**key, "seeds": len(scores[model]), "n": n, **row})
    columns = ["benchmark", "half", "part", "model", "seeds", "n", "score", "low", "high", "chance", "longer_wins",
               "longer_wins_words"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def unscored(items: Sequence[Item], scores: Scores) -> dict[str, dict[str, int]]:
    """Benchmark -> subset -> items with a completion that could not be scored (NaN); only those that have some."""
    found: dict[str, dict[str, int]] = {}
    for item, one in zip(items, scores, strict=True):
        if np.isnan(one).any():
            counts = found.setdefault(item.benchmark, {})
            counts[item.subset] = counts.get(item.subset, 0) + 1
    return found


def _units(side: _Side, items: Sequence[Item], seeds: Sequence[Scores]) -> dict[str, Floats]:
    """Subset -> (S, U) contributions, for the subsets that every seed scored in full."""
    found = {}
    for subset, lines in side.subsets.items():
        if all(np.isfinite(scores[line]).all() for scores in seeds for line in lines):
            of = [items[line] for line in lines]
            found[subset] = np.stack([cells(of, [scores[line] for line in lines]) for scores in seeds])
    return found


def _weighted(side: _Side, units: Mapping[str, Floats], weights: Weights) -> dict[str, Floats]:
    """The bootstrap averages strata alike: of strata scaled by their weights, that is the weighted mean."""
    return {side.stratum(subset): len(weights) * weight * units[subset] for subset, weight in weights.items()}


def _interval(
    bootstrap: HierarchicalBootstrap,
    side: _Side,
    model: str,
    units: Mapping[str, Floats],
    weights: Weights,
    bounds: tuple[float, float],
) -> dict[str, float]:
    found = bootstrap.interval(model, _weighted(side, units, weights))
    low, high = max(bounds[0], found.low), min(bounds[1], found.high)
    low, high = min(low, found.point), max(high, found.point)  # rounding, where nothing varies
    values = {value for subset in weights for value in np.unique(units[subset])}
    if values == {0.0} or values == {1.0}:
        n = 1 / sum(weight**2 / units[subset].shape[1] for subset, weight in weights.items())
        reach = 1 - ((1 - bootstrap.level) / 2) ** (1 / n)  # Clopper and Pearson 1934
        low, high = (0.0, reach) if values == {0.0} else (1 - reach, 1.0)
    return {"score": found.point, "low": low, "high": high}


def _bounds(items: Sequence[Item], side: _Side, weights: Weights) -> tuple[float, float]:
    """The lowest and the highest score that a part can have: Ties reach 0.01 further either way."""
    slack = sum(
        0.01 * weight for subset, weight in weights.items() if items[side.subsets[subset][0]].pair_group is not None
    )
    return -slack, 1 + slack


def _length_columns(items: Sequence[Item], side: _Side, weights: Weights) -> dict[str, float]:
    def weighted(value: Callable[[Item], float]) -> float:
        means = {subset: np.mean([value(items[line]) for line in side.subsets[subset]]) for subset in weights}
        return float(sum(weight * means[subset] for subset, weight in weights.items()))

    return {
        "chance": weighted(lambda item: len(item.chosen) / len(item.completions)),
        "longer_wins": weighted(longest_is_right),
        "longer_wins_words": weighted(lambda item: longest_is_right(item, words)),
    }


def compare_models(
    items: Sequence[Item],
    scores: Mapping[str, Sequence[Scores]],
    *,
    baseline: str | None = None,
    may_abstain: bool = False,
    resamples: int = 2000,
    level: float = 0.95,
) -> pd.DataFrame:
    """Differences between models on the same items, by benchmark and part: all pairs, or all against ``baseline``.

    Columns: benchmark, half, part, first, second, n, only_first, only_second, p (exact McNemar), p_holm (Holm over the
    comparisons of this table's benchmark, half and part), difference, low, high (first minus second, bootstrap paired
    by item). McNemar's outcome is whether the item is won outright (the chosen alone on top; in Ties, each chosen above
    each rejected); a model of several seeds wins an item that most of its seeds win. Subsets that either model could
    not score (``may_abstain``) are left out, and with them the parts that need them. Raises ValueError for an unknown
    baseline, and as ``score_table``.
    """
    names = list(scores)
    if baseline is not None and baseline not in scores:
        raise ValueError(f"baseline: {baseline!r} is not among {', '.join(names)}")
    matches = (
        [(name, baseline) for name in names if name != baseline]
        if baseline is not None
        else [(a, b) for i, a in enumerate(names) for b in names[i + 1 :]]
    )
    for seeds in scores.values():
        for one in seeds:
            check_scores(items, one, may_abstain)
    wins = {name: _outright(items, seeds) for name, seeds in scores.items()}
    rows: list[dict[str, Any]] = []
    for side in _sides(items):
        bootstrap = HierarchicalBootstrap(0, resamples, level)
        units = {model: _units(side, items, seeds) for model, seeds in scores.items()}
        for part, weights in side.parts.items():
            lines = [line for subset in weights for line in side.subsets.get(subset, ())]
            family: list[dict[str, Any]] = []
            for first, second in matches:
                if not (set(weights) <= set(units[first]) and set(weights) <= set(units[second])):
                    continue
                a, b = wins[first][lines], wins[second][lines]
                sides = [_weighted(side, units[name], weights) for name in (first, second)]
                gap = bootstrap.difference(first, sides[0], second, sides[1])
                family.append(
                    {"benchmark": side.benchmark, "half": side.half, "part": part, "first": first, "second": second,
                     "n": len(lines), "only_first": int((a > b).sum()), "only_second": int((b > a).sum()),
                     "p": mcnemar_exact(a, b), "difference": gap.point, "low": gap.low, "high": gap.high}
                )  # fmt: skip
            for row, adjusted in zip(
                family, holm(np.array([row["p"] for row in family])) if family else [], strict=True
            ):
                rows.append({**row, "p_holm": float(adjusted)})
    columns = ["benchmark", "half", "part", "first", "second", "n", "only_first", "only_second", "p", "p_holm",
               "difference", "low", "high"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def _outright(items: Sequence[Item], seeds: Sequence[Scores]) -> Floats:
    """(N,) 1 where most seeds win the item outright."""
    won = [[credit(item, one) == 1 for item, one in zip(items, scores, strict=True)] for scores in seeds]
    return (np.mean(won, axis=0) > 0.5).astype(np.float64)

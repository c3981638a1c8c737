"""Estimators, intervals and tests: pure functions on numpy arrays. No drawing, no files, no torch.

Axis suffixes: S policy seeds, P prompts, B bootstrap resamples, N samples of one prompt.
Every random draw comes from a private generator with a derived seed, so the same numbers in give the same interval out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special
from scipy import stats as scipy_stats

from lab.records import derive_seed

Floats = NDArray[np.float64]


def _floats(values: ArrayLike, name: str) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError(f"{name}: expected at least one value, got none")
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: expected finite numbers, got {array[~np.isfinite(array)].flat[0]}")
    return array


# ---------------------------------------------------------------------------------------------- point estimates


def iqm(values: ArrayLike) -> float:
    """Interquartile mean: the mean of what is left when a quarter of the values is cut off each end.

    As in Agarwal et al. 2021 (arXiv 2108.13264): floor(n / 4) values are dropped at each end.
    """
    ordered = np.sort(_floats(values, "values").ravel())
    cut = ordered.size // 4
    return float(ordered[cut : ordered.size - cut].mean())


def probability_of_improvement(treatment: ArrayLike, baseline: ArrayLike) -> float:
    """P(X > Y) + P(X = Y) / 2 = U / (n m), with U the Mann-Whitney statistic of n treatment values.

    Mann and Whitney 1947; as a summary of runs, Agarwal et al. 2021 (arXiv 2108.13264).
    """
    x, y = _floats(treatment, "treatment").ravel(), _floats(baseline, "baseline").ravel()
    ranks = scipy_stats.rankdata(np.concatenate([x, y]))
    u = ranks[: x.size].sum() - x.size * (x.size + 1) / 2
    return float(u / (x.size * y.size))


def pass_at_k(samples: ArrayLike, correct: ArrayLike, k: int) -> Floats:
    """Unbiased pass@k of each prompt: 1 - C(n - c, k) / C(n, k), for c correct answers among n samples.

    Chen et al. 2021 (arXiv 2107.03374), in its product form 1 - prod_{i=n-c+1..n} (1 - k / i).
    ``samples`` and ``correct`` broadcast. ValueError where k > n or c is outside 0..n.
    """
    n, c = np.broadcast_arrays(np.asarray(samples, dtype=np.int64), np.asarray(correct, dtype=np.int64))
    if k < 1 or (n.size and (k > n.min() or c.min() < 0 or (c > n).any())):
        raise ValueError(f"pass_at_k: expected 1 <= k <= n and 0 <= c <= n, got k={k}, n={n}, c={c}")
    table = {(a, b): 1.0 - math.comb(a - b, k) / math.comb(a, k) for a, b in set(zip(n.flat, c.flat, strict=True))}
    return np.array([table[a, b] for a, b in zip(n.flat, c.flat, strict=True)], dtype=np.float64).reshape(n.shape)


def best_of_n_kl(n: ArrayLike) -> Floats:
    """KL(best-of-n || base) = log n - (n - 1) / n, in nats.

    Stiennon et al. 2020 (arXiv 2009.01325), appendix G; an upper bound, tight while ties are rare
    (Beirami et al. 2024, arXiv 2401.01879).
    """
    array = np.asarray(n, dtype=np.float64)
    if array.size and array.min() < 1:
        raise ValueError(f"best_of_n_kl: expected n >= 1, got {array.min()}")
    return np.log(array) - (array - 1.0) / array


def best_of_n_gold(proxy: ArrayLike, gold: ArrayLike, n: int) -> Floats:
    """Expected gold of best-of-n by proxy, estimated without bias from N >= n samples of each prompt.

    sum_{i=n..N} C(i-1, n-1) / C(N, n) gold_(i), with gold_(i) in ascending order of proxy: the i-th is the best of a
    random subset of n with that probability. Nakano et al. 2021 (arXiv 2112.09332); Coste et al. 2023
    (arXiv 2310.02743). Samples of equal proxy share the mean of their golds, so a constant proxy earns the plain mean.

    ``proxy``, ``gold``: (..., N). Returns (...).
    """
    p, g = _floats(proxy, "proxy"), _floats(gold, "gold")
    if p.shape != g.shape:
        raise ValueError(f"best_of_n_gold: expected one gold a proxy, got shapes {p.shape} and {g.shape}")
    total = p.shape[-1]
    if not 1 <= n <= total:
        raise ValueError(f"best_of_n_gold: expected 1 <= n <= {total} samples, got n={n}")
    chance = np.array([math.comb(i - 1, n - 1) / math.comb(total, n) for i in range(1, total + 1)])
    order = np.argsort(p, axis=-1, kind="stable")
    p, g = np.take_along_axis(p, order, -1), np.take_along_axis(g, order, -1)
    same = p[..., :, None] == p[..., None, :]
    shared = (same * g[..., None, :]).sum(-1) / same.sum(-1)
    return shared @ chance


def interpolate_first_crossing(x: ArrayLike, y: ArrayLike, at: float) -> float | None:
    """Gold of a training curve where it first reaches ``x = at`` (e.g. a given sqrt(KL)), linear between checkpoints.

    The points are in training order. Where KL turns back, the first passage counts: sorting by x would join points
    that lie far apart in training. None outside the range that the curve covers.
    """
    found = first_crossing(x, at)
    if found is None:
        return None
    index, share = found
    values = np.asarray(y, dtype=np.float64)
    if share == 0.0:
        return float(values[index])
    return float((1 - share) * values[index] + share * values[index + 1])


def first_crossing(x: ArrayLike, at: float) -> tuple[int, float] | None:
    """(i, share) with at = (1 - share) x_i + share x_{i+1}, at the first segment that holds ``at``; else None."""
    points = _floats(x, "x").ravel()
    for index in range(points.size):
        if points[index] == at:
            return index, 0.0
        if index + 1 < points.size and (points[index] - at) * (points[index + 1] - at) < 0:
            return index, float((at - points[index]) / (points[index + 1] - points[index]))
    return None


# ---------------------------------------------------------------------------------------------------- tests, power


def mcnemar_exact(first: ArrayLike, second: ArrayLike) -> float:
    """Two-sided exact McNemar p value for paired 0/1 outcomes (the same prompts answered by two policies).

    With b and c the discordant counts: p = min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2). McNemar 1947.
    """
    a, b = _floats(first, "first").ravel(), _floats(second, "second").ravel()
    if a.shape != b.shape or not np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        raise ValueError("mcnemar_exact: expected two equally long lists of 0 and 1")
    only_first, only_second = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
    if only_first + only_second == 0:
        return 1.0
    return float(scipy_stats.binomtest(only_first, only_first + only_second, 0.5).pvalue)


def holm(p_values: ArrayLike) -> Floats:
    """Holm-adjusted p values, in the order given: p~_(i) = max_{j <= i} min(1, (m - j + 1) p_(j)). Holm 1979."""
    p = _floats(p_values, "p_values").ravel()
    if p.min() < 0 or p.max() > 1:
        raise ValueError(f"holm: expected p values in 0..1, got {p}")
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(1.0, (p.size - np.arange(p.size)) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted


def minimum_detectable_effect(
    sd_seed: float,
    sd_prompt: float,
    seeds: int,
    prompts: int,
    *,
    seeded_arms: int = 1,
    alpha: float = 0.05,
    power: float = 0.8,
) -> float:
    """The smallest true difference that a two-sided test at ``alpha`` finds with probability ``power``.

    (t_{1-alpha/2, df} + t_{power, df}) sqrt(a sd_seed^2 / S + sd_prompt^2 / P), df = a (S - 1); Bloom 1995.

    ``sd_seed``: between policy seeds of one arm. ``sd_prompt``: between prompts, of the paired difference.
    ``seeded_arms`` a: 1 against a fixed checkpoint such as SFT, 2 between two trained arms.
    With ``sd_seed = 0`` the normal quantiles are used. ValueError for one seed and ``sd_seed > 0``.
    """
    if seeds < 1 or prompts < 1 or seeded_arms not in (1, 2) or min(sd_seed, sd_prompt) < 0:
        raise ValueError(f"minimum_detectable_effect: impossible design {sd_seed=} {sd_prompt=} {seeds=} {prompts=}")
    if sd_seed > 0 and seeds < 2:
        raise ValueError("minimum_detectable_effect: with one seed the variation between seeds cannot be allowed for")
    error = math.sqrt(seeded_arms * sd_seed**2 / seeds + sd_prompt**2 / prompts)
    if sd_seed == 0:
        return float((scipy_stats.norm.ppf(1 - alpha / 2) + scipy_stats.norm.ppf(power)) * error)
    df = seeded_arms * (seeds - 1)
    return float((scipy_stats.t.ppf(1 - alpha / 2, df) + scipy_stats.t.ppf(power, df)) * error)


# ---------------------------------------------------------------------------------------------------- the bootstrap


@dataclass(frozen=True)
class Interval:
    """A mean and its bootstrap interval. ``resampled`` says at which levels the uncertainty was measured."""

    point: float
    low: float
    high: float
    n_seeds: int
    n_prompts: int
    resampled: str


def degrees_of_freedom(components: Sequence[tuple[float, int]]) -> float:
    """(sum v)^2 / sum(v^2 / df) of variance estimates (v, df), inf where all v are 0. Satterthwaite 1946."""
    below = sum(variance**2 / df for variance, df in components if df > 0)
    return sum(variance for variance, _ in components) ** 2 / below if below > 0 else math.inf


def _drawn(n: int, resamples: int, rng: np.random.Generator) -> Floats:
    """(B, n): how often each unit is drawn, over n, in a resample with replacement; rows sum to 1."""
    picks = rng.integers(n, size=(resamples, n)) + n * np.arange(resamples)[:, None]
    return np.bincount(picks.ravel(), minlength=resamples * n).reshape(resamples, n) / n


def _corrected(weights: Floats, centre: Floats | float, n: int) -> Floats:
    """Resampling n units understates the variance of their mean by (n - 1) / n: stretch the deviations to undo it."""
    return np.asarray(centre + (math.sqrt(n / (n - 1)) if n > 1 else 1.0) * (weights - centre))


def _group_members(n: int, groups: Sequence[int] | None) -> list[NDArray[np.intp]]:
    """The policy seeds (row numbers) of each reward model; each policy seed on its own where that level is absent."""
    if groups is None or len(set(groups)) < 2:
        return [np.array([row]) for row in range(n)]
    return [np.flatnonzero(np.asarray(groups) == name) for name in sorted(set(groups))]


def _equal_weights(n: int, groups: Sequence[int] | None) -> Floats:
    """(S,): every reward model counts alike, and every policy seed within one."""
    members, weights = _group_members(n, groups), np.zeros(n)
    for rows in members:
        weights[rows] = 1 / (len(members) * len(rows))
    return weights


def _seed_weights(n: int, resamples: int, rng: np.random.Generator, groups: Sequence[int] | None) -> Floats:
    """(B, S): reward models are drawn first, then policy seeds within each draw; with one unit nothing varies."""
    members, weights = _group_members(n, groups), np.zeros((resamples, n))
    top = len(members)
    picks = rng.integers(top, size=(resamples, top))
    for slot in range(top):  # a reward model drawn twice gets two independent draws of its policy seeds
        for name, rows in enumerate(members):
            hit = np.flatnonzero(picks[:, slot] == name)
            weights[np.ix_(hit, rows)] += _drawn(len(rows), len(hit), rng) / top
    return _corrected(weights, _equal_weights(n, groups), top)


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def interval_columns(name: str, found: Interval | None) -> dict[str, float]:
    """``{name, name_low, name_high}`` for a line of a table, NaN where there is nothing to report."""
    low, point, high = (found.low, found.point, found.high) if found else (math.nan, math.nan, math.nan)
    return {name: point, f"{name}_low": low, f"{name}_high": high}


class HierarchicalBootstrap:
    """Bootstrap intervals of a mean over policy seeds x prompts, and of paired differences between arms.

    The data of one arm are, for each stratum (a domain), a matrix (S, P) of means over the samples of one seed and
    one prompt; NaN marks a missing cell. The estimate is the unweighted mean over strata of the mean over seeds of
    the mean over prompts. One resample draws seeds with replacement, and prompts with replacement within each stratum.

    - Seeds and prompts are crossed (every seed answers the same prompts), so they are resampled independently:
      the pigeonhole bootstrap, which errs on the wide side (Owen 2007, arXiv 0712.1111).
    - Samples are not resampled again: their noise is part of the variation between cells
      (Davison and Hinkley 1997, section 3.8).
    - The same prompt draws serve all arms, so that differences are paired by prompt; seed draws are the arm's own.
      One seed's draw serves all strata: it is one policy. ``groups`` adds a level above the policy seeds: the
      reward-model seed of each.
    - Few seeds: a plain percentile interval of three seeds covers at most 1 - 2 (1/2)^3 = 75%. So deviations are
      stretched by sqrt(n / (n - 1)) at each level, and the interval by t_df / z with Satterthwaite's df of the seed
      and prompt components: as in Hesterberg 2015 (arXiv 1411.5279, section 5), but no wider where prompts dominate.
    - One seed: only prompts are resampled, and ``Interval.resampled`` says so.
    """

    def __init__(self, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> None:
        if resamples < 2 or not 0 < level < 1:
            raise ValueError(f"bootstrap: expected resamples >= 2 and 0 < level < 1, got {resamples} and {level}")
        self.seed, self.resamples, self.level = seed, resamples, level
        self._prompts: dict[tuple[str, int], Floats] = {}
        self._seeds: dict[tuple[object, ...], Floats] = {}

    def interval(self, arm: str, strata: Mapping[str, Floats], groups: Sequence[int] | None = None) -> Interval:
        """The interval of one arm. ``strata``: name -> (S, P); ``groups``: (S,) reward-model seeds.

        ValueError for no strata, unequal seeds between strata, or a seed without any value in one.
        """
        point, draws_B = self._draws(arm, strata, groups)
        components = [_seed_component(strata, groups), _prompt_component(strata)]
        return self._interval(point, draws_B, components, strata)

    def draws(self, arm: str, strata: Mapping[str, Floats], groups: Sequence[int] | None = None) -> Floats:
        """(B,) resamples whose quantiles are the ends of ``interval``, for estimates made of several means at once.

        One arm's domains are drawn alike in every call, so resample b of one mean goes with b of another.
        """
        point, draws_B = self._draws(arm, strata, groups)
        components = [_seed_component(strata, groups), _prompt_component(strata)]
        return point + self._stretch(components) * (draws_B - point)

    def difference(
        self,
        arm: str,
        strata: Mapping[str, Floats],
        baseline: str,
        baseline_strata: Mapping[str, Floats],
        groups: Sequence[int] | None = None,
    ) -> Interval:
        """The interval of (arm - baseline), paired by prompt: column p of both matrices is the same prompt.

        Prompts that either side lacks altogether are left out of both. A baseline with one row (a checkpoint, not a
        training recipe) is taken as given. ValueError where the columns do not match, and as ``interval``.
        """
        point, draws_B, components, left = self._difference(arm, strata, baseline, baseline_strata, groups)
        return self._interval(point, draws_B, components, left)

    def difference_p(
        self, arm: str, strata: Mapping[str, Floats], baseline: str, baseline_strata: Mapping[str, Floats]
    ) -> float:
        """Two-sided p value of no difference, for correction over many: t = difference / its bootstrap standard error,
        with the degrees of freedom of ``difference``, whose interval it goes with up to the skewness of the draws.

        Identical sides have p = 1. ValueError as ``difference``.
        """
        point, draws_B, components, _ = self._difference(arm, strata, baseline, baseline_strata, None)
        error = float(np.nanstd(draws_B, ddof=1))
        if error == 0:
            return 1.0 if point == 0 else 0.0
        return float(2 * special.stdtr(degrees_of_freedom(components), -abs(point) / error))

    def contrast(self, parts: Sequence[tuple[float, str, Mapping[str, Floats]]]) -> Interval:
        """The interval of sum_i weight_i mean_i over ``parts`` (weight, arm, strata), paired by prompt.

        As ``difference``, which is its case of the weights 1 and -1; each arm may stand in it once. ``n_seeds`` is the
        smallest number of seeds of any part that has more than one. ValueError as ``difference``.
        """
        point, draws_B, components, parts_left = self._contrast(parts)
        found = self._interval(point, draws_B, components, parts_left[0])
        seeds = [next(iter(left.values())).shape[0] for left in parts_left]
        return dataclasses.replace(found, n_seeds=min([count for count in seeds if count > 1], default=1))

    def contrast_draws(self, parts: Sequence[tuple[float, str, Mapping[str, Floats]]]) -> Floats:
        """(B,) resamples whose quantiles are the ends of ``contrast``; resample b of one contrast goes with b of
        another, as in ``draws``."""
        point, draws_B, components, _ = self._contrast(parts)
        return point + self._stretch(components) * (draws_B - point)

    def _contrast(
        self, parts: Sequence[tuple[float, str, Mapping[str, Floats]]]
    ) -> tuple[float, Floats, list[tuple[float, int]], list[dict[str, Floats]]]:
        """The estimate, its (B,) resamples, its variance components and the cells of each part that entered."""
        said = ", ".join(arm for _, arm, _ in parts)
        left: list[dict[str, Floats]] = [{} for _ in parts]
        gap = {}
        for name in parts[0][2]:
            several = [strata.get(name) for _, _, strata in parts]
            shapes = [None if cells is None else cells.shape for cells in several]
            known = [cells for cells in several if cells is not None]
            if len(known) < len(parts) or len({cells.shape[1] for cells in known}) > 1:
                raise ValueError(f"contrast of {said}: {name}: prompts do not match, got {shapes}")
            common = np.all([np.isfinite(cells).any(0) for cells in known], axis=0)
            if not common.any():
                raise ValueError(f"contrast of {said}: {name}: no prompt in common")
            for own, cells in zip(left, known, strict=True):
                own[name] = cells[:, common]
            means = [np.nanmean(own[name], 0, keepdims=True) for own in left]
            gap[name] = np.sum([part[0] * mean for part, mean in zip(parts, means, strict=True)], axis=0)
        point, draws_B, components = 0.0, np.zeros(self.resamples), []
        for (weight, arm, _), own in zip(parts, left, strict=True):
            arm_point, arm_B = self._draws(arm, own, None)
            point, draws_B = point + weight * arm_point, draws_B + weight * arm_B
            variance, df = _seed_component(own, None)
            components.append((weight**2 * variance, df))
        return point, draws_B, [*components, _prompt_component(gap)], left

    def _difference(
        self,
        arm: str,
        strata: Mapping[str, Floats],
        baseline: str,
        baseline_strata: Mapping[str, Floats],
        groups: Sequence[int] | None,
    ) -> tuple[float, Floats, list[tuple[float, int]], dict[str, Floats]]:
        """The estimate, its (B,) resamples, its variance components and the arm's cells that entered."""
        left, right, gap = {}, {}, {}
        for name, cells in strata.items():
            other = baseline_strata.get(name)
            if other is None or other.shape[1] != cells.shape[1]:
                shape = None if other is None else other.shape
                raise ValueError(f"{arm} - {baseline}: {name}: prompts do not match, got {cells.shape} and {shape}")
            common = np.isfinite(cells).any(0) & np.isfinite(other).any(0)
            if not common.any():
                raise ValueError(f"{arm} - {baseline}: {name}: no prompt in common")
            left[name], right[name] = cells[:, common], other[:, common]
            gap[name] = np.nanmean(left[name], 0, keepdims=True) - np.nanmean(right[name], 0, keepdims=True)
        point, draws_B = self._draws(arm, left, groups)
        other_point, other_B = self._draws(baseline, right, None)
        components = [_seed_component(left, groups), _seed_component(right, None), _prompt_component(gap)]
        return point - other_point, draws_B - other_B, components, left

    def _rng(self, *name: object) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(derive_seed("bootstrap", self.seed, *name)))

    def _prompt_weights(self, stratum: str, n: int) -> Floats:
        """(B, P), the same for every arm: this is what pairs differences by prompt."""
        if (stratum, n) not in self._prompts:
            drawn = _drawn(n, self.resamples, self._rng("prompts", stratum, n))
            self._prompts[stratum, n] = _corrected(drawn, 1 / n, n)
        return self._prompts[stratum, n]

    def _arm_weights(self, arm: str, n: int, groups: Sequence[int] | None) -> Floats:
        """(B, S), the same for every domain of an arm and in every comparison it takes part in."""
        name = (arm, n, *(groups or ()))
        if name not in self._seeds:
            self._seeds[name] = _seed_weights(n, self.resamples, self._rng("seeds", *name), groups)
        return self._seeds[name]

    def _draws(self, arm: str, strata: Mapping[str, Floats], groups: Sequence[int] | None) -> tuple[float, Floats]:
        """The estimate and its (B,) resamples."""
        counts = {name: cells.shape[0] for name, cells in strata.items()}
        n_seeds = next(iter(counts.values()), 0)
        if n_seeds == 0 or set(counts.values()) != {n_seeds} or (groups is not None and len(groups) != n_seeds):
            raise ValueError(f"{arm}: expected the same seeds, at least one, in every domain, got {counts}")
        seed_weights_BS = self._arm_weights(arm, n_seeds, groups)
        point_S, draws_BS = np.zeros(n_seeds), np.zeros((self.resamples, n_seeds))
        for name, cells_SP in strata.items():
            weights_BP = self._prompt_weights(name, cells_SP.shape[1])
            present = np.isfinite(cells_SP)
            if not present.any(axis=1).all():
                raise ValueError(f"{arm}: a seed has no value at all in {name}")
            filled = np.where(present, cells_SP, 0.0)
            point_S += filled.sum(1) / present.sum(1)
            drawn_BS = weights_BP @ filled.T
            # with missing cells: a ratio estimate over those that exist
            draws_BS += drawn_BS if present.all() else _ratio(drawn_BS, weights_BP @ present.T.astype(np.float64))
        point = float(point_S @ _equal_weights(n_seeds, groups)) / len(strata)
        return point, np.asarray((draws_BS * seed_weights_BS).sum(1) / len(strata))

    def _interval(
        self, point: float, draws_B: Floats, components: Sequence[tuple[float, int]], strata: Mapping[str, Floats]
    ) -> Interval:
        tail = (1 - self.level) / 2
        low, high = point + self._stretch(components) * (np.nanquantile(draws_B, [tail, 1 - tail]) - point)
        seeds, prompts = next(iter(strata.values())).shape[0], sum(cells.shape[1] for cells in strata.values())
        resampled = "seeds and prompts" if seeds > 1 else "prompts only (one seed)"
        return Interval(point, float(low), float(high), seeds, prompts, resampled)

    def _stretch(self, components: Sequence[tuple[float, int]]) -> float:
        upper = (1 + self.level) / 2
        return float(special.stdtrit(degrees_of_freedom(components), upper) / special.ndtri(upper))


def _seed_component(strata: Mapping[str, Floats], groups: Sequence[int] | None) -> tuple[float, int]:
    """(variance of the mean, df) from the top level: reward models where there are several, else policy seeds."""
    mean_S = np.mean([np.nanmean(cells, axis=1) for cells in strata.values()], axis=0)
    tops = [mean_S[rows].mean() for rows in _group_members(mean_S.size, groups)]
    return (float(np.var(tops, ddof=1)) / len(tops), len(tops) - 1) if len(tops) > 1 else (0.0, 0)


def _prompt_component(strata: Mapping[str, Floats]) -> tuple[float, int]:
    """(variance of the mean, df) from prompts, pooled over strata."""
    variance, df = 0.0, 0
    for cells in strata.values():
        mean_P = np.nanmean(cells[:, np.isfinite(cells).any(0)], axis=0)
        if mean_P.size > 1:
            variance += float(np.var(mean_P, ddof=1)) / mean_P.size / len(strata) ** 2
            df += mean_P.size - 1
    return variance, df

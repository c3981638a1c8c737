"""What can be known of a reward model before a policy is trained on it, and whether it foretells what the policy gains.

Accuracy on pairs says how often a reward model is right, not what optimising it does. Beside it stand: its spread
within a prompt under the policy (all that best-of-n and RL can act on; a small one means slow learning: Razin et al.
2025, arXiv 2503.15477), its correlation within a prompt with gold and with length, the gold that its pick of n leaves
on the table, and its calibration. No models, no files.

Axis suffixes: S reward-model seeds, P prompts, N samples of one prompt, K values of n, M models, B bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import optimize, special
from scipy import stats as scipy_stats

from lab.best_of_n import by_domain, gold_curve
from lab.records import derive_seed
from lab.stats import Floats, HierarchicalBootstrap, interval_columns

Correlation = Literal["pearson", "spearman"]

# ------------------------------------------------------------------------------------------ one number a prompt


def within_prompt_variance(values: ArrayLike) -> Floats:
    """Unbiased variance over the samples of each prompt: (..., N) -> (...); NaN where a sample is unknown.

    Its root is the spread. Scores are normalised to spread 1 over SFT samples of all prompts, so a variance of 0.3 says
    that 70% of the score tells prompts apart, which no policy can act on. ValueError for one sample a prompt.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.shape[-1] < 2:
        raise ValueError(f"within_prompt_variance: expected at least 2 samples a prompt, got {x.shape[-1]}")
    return np.asarray(x.var(axis=-1, ddof=1))


def within_prompt_correlation(x: ArrayLike, y: ArrayLike, kind: Correlation) -> Floats:
    """Correlation over the samples of each prompt: (..., N), shapes that broadcast -> (...).

    NaN where x or y is constant over the prompt's samples (there is nothing to correlate), or where any is unknown.
    spearman: of mid-ranks.
    """
    left, right = np.broadcast_arrays(np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64))
    known = np.isfinite(left).all(-1) & np.isfinite(right).all(-1)
    # by comparison: the variance of equal numbers may come out above 0
    varies = (left != left[..., :1]).any(-1) & (right != right[..., :1]).any(-1)
    found = np.full(left.shape[:-1], np.nan)
    found[known & varies] = _correlate(left[known & varies], right[known & varies], kind)
    return found


def regret(scores: ArrayLike, gold: ArrayLike, ns: Sequence[int]) -> Floats:
    """Gold that picking the top score of n leaves on the table: (..., N) -> (..., K).

    E[highest gold among n] - E[gold of the pick], both without bias from the whole pool (``lab.best_of_n``), so it is
    never negative in the pool and 0 for a reward model that ranks as gold does.
    """
    return gold_curve(gold, gold, ns) - gold_curve(scores, gold, ns)


def _correlate(x: Floats, y: Floats, kind: Correlation) -> Floats:
    """Along the last axis; NaN where one side is constant."""
    match kind:
        case "spearman":
            x, y = scipy_stats.rankdata(x, axis=-1), scipy_stats.rankdata(y, axis=-1)
        case "pearson":
            pass
        case _:
            raise ValueError(f"correlation: expected pearson or spearman, got {kind!r}")
    varies = (x != x[..., :1]).any(-1) & (y != y[..., :1]).any(-1)
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    found = np.divide((x * y).sum(-1), scale, out=np.full(scale.shape, np.nan), where=varies & (scale > 0))
    return np.asarray(np.clip(found, -1.0, 1.0))


# ------------------------------------------------------------------------------------------- a row for each model


def diagnose(
    model: str,
    scores: ArrayLike,
    gold_PN: ArrayLike,
    lengths_PN: ArrayLike,
    domains: Sequence[str],
    ns: Sequence[int],
    bootstrap: HierarchicalBootstrap,
) -> dict[str, Any]:
    """One reward model on a pool of the policy's samples: means over prompts, then over domains, with intervals.

    ``scores``: normalised, (S, P, N) for S seeds of the reward model, or (P, N). Intervals are over those seeds and
    over prompts. Keys, each of these with _low and _high:

    variance, spread     within a prompt, of the normalised score (spread: the mean of the roots)
    pearson_gold, spearman_gold, pearson_length, spearman_length    within a prompt
    regret_N             for each n of ``ns``

    A prompt on which scores (or gold, or length) are constant has no correlation: it is left out there and counted in
    ``constant_scores`` and ``constant_gold``, shares of all (seed, prompt) cells. A prompt with a sample that cannot be
    scored is left out everywhere but in the regret: ``unscored``, a share too. A domain of which nothing is left is not
    in that mean, which is NaN if none is; ``NAME_domains`` counts those that stayed where that is not all of them.
    """
    scores_SPN = np.asarray(scores, dtype=np.float64)
    scores_SPN = scores_SPN[None] if scores_SPN.ndim == 2 else scores_SPN
    gold, lengths = np.asarray(gold_PN, dtype=np.float64), np.asarray(lengths_PN, dtype=np.float64)
    if scores_SPN.ndim != 3 or not scores_SPN.shape[1:] == gold.shape == lengths.shape:
        shapes = f"{scores_SPN.shape}, {gold.shape} and {lengths.shape}"
        raise ValueError(f"{model}: expected scores (S, P, N), gold (P, N) and lengths (P, N), got {shapes}")
    variance_SP = within_prompt_variance(scores_SPN)
    cells: dict[str, Floats] = {"variance": variance_SP, "spread": np.sqrt(variance_SP)}
    kinds: tuple[Correlation, ...] = ("pearson", "spearman")
    for name, other in (("gold", gold), ("length", lengths)):
        cells |= {f"{kind}_{name}": within_prompt_correlation(scores_SPN, other, kind) for kind in kinds}
    regret_SPK = regret(scores_SPN, gold, ns)
    cells |= {f"regret_{n}": regret_SPK[..., k] for k, n in enumerate(ns)}

    row: dict[str, Any] = {"model": model}
    for name, values_SP in cells.items():
        strata = by_domain(values_SP, domains)
        known = {domain: cell for domain, cell in strata.items() if np.isfinite(cell).any(1).all()}
        row |= interval_columns(name, bootstrap.interval(model, known) if known else None)
        if len(known) < len(strata):
            row[f"{name}_domains"] = len(known)
    scored = np.isfinite(scores_SPN).all(-1)
    row["constant_scores"] = float((scores_SPN == scores_SPN[..., :1]).all(-1).mean())
    row["constant_gold"] = float((gold == gold[:, :1]).all(-1).mean())
    row["unscored"] = float((~scored).mean())
    return row | {"n_seeds": scores_SPN.shape[0], "n_prompts": scores_SPN.shape[1], "n_samples": scores_SPN.shape[2]}


def diagnostics_table(
    scores: Mapping[str, ArrayLike],
    gold_PN: ArrayLike,
    lengths_PN: ArrayLike,
    domains: Sequence[str],
    ns: Sequence[int],
    bootstrap: HierarchicalBootstrap,
    each_domain: bool = False,
) -> pd.DataFrame:
    """``diagnose`` for each model (name -> scores); ``each_domain``: also a line per domain, in column ``domain``
    ("all" for the mean over domains)."""
    gold, lengths, names = np.asarray(gold_PN), np.asarray(lengths_PN), np.asarray(domains)
    rows = []
    for model, given in scores.items():
        rows.append({"domain": "all"} | diagnose(model, given, gold, lengths, domains, ns, bootstrap))
        for domain in dict.fromkeys(domains) if each_domain else ():
            own = names == domain
            part = np.asarray(given)[..., own, :]
            only = [domain] * int(own.sum())
            rows.append({"domain": domain} | diagnose(model, part, gold[own], lengths[own], only, ns, bootstrap))
    table = pd.DataFrame(rows)
    return table[["model", "domain", *[name for name in table.columns if name not in ("model", "domain")]]]


# -------------------------------------------------------------------------------------------------- calibration


@dataclass(frozen=True)
class Calibration:
    """Does P(chosen) = sigmoid(scale x margin) mean what it says? ``curve``: a line per bin that is not empty.

    Columns of ``curve``: low, high (of the bin), confidence (mean), accuracy (share right), pairs.
    """

    curve: pd.DataFrame
    ece: float
    log_loss: float  # nats a pair
    accuracy: float  # strict wins: a tie is a miss, as in accuracy.json
    pairs: int


def calibration(margins: ArrayLike, scale: float = 1.0, bins: int = 10) -> Calibration:
    """Reliability of a reward model's stated confidence on held-out pairs of known order.

    ``margins`` (pairs,): score of the truly better side minus score of the other; ``scale`` puts them into the unit of
    Bradley-Terry log-odds (for normalised scores: the artifact's normalisation scale, or ``best_scale``).

    Which side comes first is a convention, so each pair is read from the side that the model prefers: confidence
    sigmoid(scale |m|) in 1/2..1, and right if m > 0; in the curve a tie is half right, as it says. With ``bins`` of
    equal width, ECE = sum over bins of (share of pairs) |accuracy - confidence| (Naeini et al. 2015; Guo et al. 2017,
    arXiv 1706.04599). ValueError for no pairs, a margin that is not finite, or ``scale`` < 0.
    """
    if scale < 0 or bins < 1:
        raise ValueError(f"calibration: expected scale >= 0 and bins >= 1, got {scale} and {bins}")
    m = _margins(margins) * scale
    pairs, confidence, right = _binned(m, bins)
    used, edges = pairs > 0, np.linspace(0.5, 1.0, bins + 1)
    columns = {
        "low": edges[:-1][used],
        "high": edges[1:][used],
        "confidence": confidence[used] / pairs[used],
        "accuracy": right[used] / pairs[used],
        "pairs": pairs[used],
    }
    return Calibration(pd.DataFrame(columns), _ece(m, bins), _log_loss(m), float((m > 0).mean()), m.size)


def _binned(m: Floats, bins: int) -> tuple[np.ndarray, Floats, Floats]:
    """(pairs, summed confidence, summed right) of each bin of equal width in 1/2..1."""
    confidence = special.expit(np.abs(m))
    place = np.clip(np.searchsorted(np.linspace(0.5, 1.0, bins + 1), confidence, side="right") - 1, 0, bins - 1)
    right = np.where(m == 0, 0.5, m > 0)
    counts = np.bincount(place, minlength=bins)
    summed = [np.asarray(np.bincount(place, each, minlength=bins), dtype=np.float64) for each in (confidence, right)]
    return counts, summed[0], summed[1]


def _ece(m: Floats, bins: int) -> float:
    _, confidence, right = _binned(m, bins)
    return float(np.abs(right - confidence).sum()) / m.size


def _log_loss(m: Floats) -> float:
    return float(np.logaddexp(0.0, -m).mean())


def best_scale(margins: ArrayLike) -> float:
    """The scale >= 0 of least log loss, mean log(1 + exp(-scale m)): one over the temperature of Guo et al. 2017.

    Above 1: too modest; below 1: too sure of itself. 0 where margins are not positive on average: no confidence is
    warranted. inf where no margin is negative: any pair can be promised. ValueError as ``calibration``.
    """
    m = _margins(margins)
    if m.mean() <= 0:
        return 0.0
    if (m >= 0).all():
        return math.inf
    unit = float(np.abs(m).max())

    def slope(scale: float) -> float:  # of the loss; it rises from -mean(m)/2 at 0 to a limit above 0
        return float(-(m / unit * special.expit(-scale * m / unit)).mean())

    above = 1.0
    while slope(above) < 0:
        above *= 2
    return float(optimize.brentq(slope, 0.0, above, xtol=1e-12)) / unit


def calibration_row(
    margins: ArrayLike, scale: float = 1.0, bins: int = 10, *, resamples: int = 1000, seed: int = 0, level: float = 0.95
) -> dict[str, float]:
    """accuracy, log_loss, ece, best_scale and ece_at_best_scale, each with _low and _high from resampled pairs.

    Percentile intervals. The ECE of few pairs is biased upwards (noise in a bin counts as miscalibration), a resample
    has that bias twice, and its interval is no guard against it: compare models on the same pairs. ``best_scale``
    multiplies ``scale``.
    """
    m = _margins(margins) * scale
    rng = np.random.Generator(np.random.Philox(derive_seed("calibration", seed, m.size)))
    points = _calibration_numbers(m, bins)
    drawn = [_calibration_numbers(m[rng.integers(m.size, size=m.size)], bins) for _ in range(resamples)]
    row: dict[str, float] = {"pairs": m.size}
    for name, point in points.items():
        values = np.array([one[name] for one in drawn])
        low = np.quantile(values, (1 - level) / 2, method="lower")  # no mean of two: a best scale may be infinite
        high = np.quantile(values, (1 + level) / 2, method="higher")
        row |= {name: point, f"{name}_low": float(low), f"{name}_high": float(high)}
    return row


def _calibration_numbers(m: Floats, bins: int) -> dict[str, float]:
    scale = best_scale(m)
    # at infinity all but the ties are promised for sure and right, and the ties say 1/2
    scaled = np.where(m > 0, np.inf, m) if math.isinf(scale) else scale * m
    return {
        "accuracy": float((m > 0).mean()),
        "log_loss": _log_loss(m),
        "ece": _ece(m, bins),
        "best_scale": scale,
        "ece_at_best_scale": _ece(scaled, bins),
    }


def _margins(margins: ArrayLike) -> Floats:
    m = np.asarray(margins, dtype=np.float64).ravel()
    if m.size == 0 or not np.isfinite(m).all():
        raise ValueError(f"calibration: expected finite margins, at least one, got {m.size} with {m[~np.isfinite(m)]}")
    return m


# -------------------------------------------------------------------------------------------------- association


def association(
    x: ArrayLike,
    y: ArrayLike,
    resamples: int = 2000,
    seed: int = 0,
    *,
    level: float = 0.95,
    groups: Sequence[Any] | None = None,
) -> dict[str, float]:
    """How a benchmark's score of M reward models goes with what came of using them: correlations over models.

    ``x``, ``y`` (M,). Models with an unknown x or y are left out (``n_left_out``). Keys: pearson and spearman, each
    with _low and _high; n_models, n_groups, n_left_out, undefined.

    Intervals: percentiles over models drawn with replacement, or over ``groups`` (M,) of them: seeds of one recipe are
    not independent evidence and belong to one group. A draw in which x or y is constant has no correlation and is left
    out (``undefined``: the share of such draws). With fewer than about ten groups such intervals are too narrow
    (Agarwal et al. 2021, arXiv 2108.13264). NaN for fewer than 3 groups, or where x or y is constant.
    """
    left, right = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    if left.shape != right.shape or (groups is not None and len(groups) != left.size):
        raise ValueError(f"association: expected x, y and groups of one length, got {left.size} and {right.size}")
    known = np.isfinite(left) & np.isfinite(right)
    left, right = left[known], right[known]
    of = np.arange(left.size) if groups is None else np.unique(np.asarray(groups)[known], return_inverse=True)[1]
    members = [np.flatnonzero(of == group) for group in range(int(of.max(initial=-1)) + 1)]
    result: dict[str, float] = {"n_models": left.size, "n_groups": len(members), "n_left_out": int((~known).sum())}
    rng = np.random.Generator(np.random.Philox(derive_seed("association", seed, len(members))))
    picks = rng.integers(len(members), size=(resamples, len(members))) if len(members) >= 3 else None
    kinds: tuple[Correlation, ...] = ("pearson", "spearman")
    for kind in kinds:
        result[kind] = float(_correlate(left, right, kind)) if left.size > 1 else math.nan
        drawn_B = np.full(1, math.nan) if picks is None else _redrawn(left, right, members, picks, kind)
        defined = drawn_B[np.isfinite(drawn_B)]
        ends = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2]) if defined.size else (math.nan, math.nan)
        result |= {f"{kind}_low": float(ends[0]), f"{kind}_high": float(ends[1])}
        result["undefined"] = 1 - defined.size / drawn_B.size
    return result


def _redrawn(x: Floats, y: Floats, members: Sequence[np.ndarray], picks: np.ndarray, kind: Correlation) -> Floats:
    """(B,) correlations of resampled groups."""
    if all(len(rows) == 1 for rows in members):
        rows_BM = np.concatenate(members)[picks]
        return _correlate(x[rows_BM], y[rows_BM], kind)
    drawn = (np.concatenate([members[group] for group in pick]) for pick in picks)
    return np.array([float(_correlate(x[rows], y[rows], kind)) for rows in drawn])

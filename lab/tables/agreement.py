"""How often a reward source is right on pairs of the policy's own samples, and whether its confidence means it.

The pairs are samples 2i and 2i + 1 of a prompt of the pool whose gold differs, in their true order: every source is
asked about the same pairs, on prompts that no training saw.

Axis suffixes: S seeds of a reward source, P prompts, N samples of one prompt, H pairs of one prompt, B resamples, C
bins of confidence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import special

from lab.best_of_n import by_domain
from lab.diagnostics import best_scale
from lab.records import derive_seed
from lab.stats import Floats, HierarchicalBootstrap, interval_columns

BINS = 10
STATED, FITTED = "stated", "fitted"
SURE = 50.0
"""Log-odds that stand for certainty, where a fitted scale would be infinite."""


def margins(scores_SPN: Floats, gold_PN: Floats) -> Floats:
    """(S, P, H): score of the truly better of two samples less the other's; NaN where gold ties or one is unscored."""
    paired = gold_PN.shape[1] // 2 * 2
    gap_PH = gold_PN[:, 0:paired:2] - gold_PN[:, 1:paired:2]
    found_SPH = scores_SPN[..., 0:paired:2] - scores_SPN[..., 1:paired:2]
    return np.asarray(np.where(gap_PH != 0, np.sign(gap_PH) * found_SPH, np.nan))


def pair_columns(
    scores_SPN: Floats | None,
    log_odds: Sequence[float],
    gold_PN: Floats,
    domains: Sequence[str],
    bootstrap: HierarchicalBootstrap,
    name: str,
) -> dict[str, float]:
    """pool_accuracy (a tie is a miss), ece_stated, ece_fitted (after one temperature, fitted to the same pairs), each
    with _low and _high, and fitted_scale (that temperature's inverse: below 1 the source is too sure of itself; 0 where
    no confidence is warranted, and then there is no error to speak of).

    Means over prompts, then domains, for the accuracy; over pairs, then seeds, for the errors. NaN where a domain has
    no pair that was scored, and the stated error where the source states no log-odds.
    """
    accuracy = None
    columns: dict[str, float] = {}
    found_SPH = None if scores_SPN is None else margins(scores_SPN, gold_PN)
    if found_SPH is not None:
        known = np.isfinite(found_SPH)
        count = known.sum(-1)
        wins_SP = np.divide((found_SPH > 0).sum(-1), count, out=np.full(count.shape, np.nan), where=count > 0)
        cells = by_domain(wins_SP, domains)
        if all(np.isfinite(cell).any(1).all() for cell in cells.values()):
            accuracy = bootstrap.interval(name, cells)
    columns |= interval_columns("pool_accuracy", accuracy)
    scales = {STATED: _stated(log_odds), FITTED: [math.nan]}
    if found_SPH is not None and accuracy is not None:
        scales[FITTED] = [_fitted(one) for one in found_SPH]
    for column, scale in scales.items():
        if found_SPH is None or accuracy is None or not (np.isfinite(scale).all() and all(scale)):
            columns |= interval_columns(f"ece_{column}", None)
            continue
        binned = _Binned.of(found_SPH, scale)
        low, high = np.quantile(binned.drawn_ece(bootstrap), [(1 - bootstrap.level) / 2, (1 + bootstrap.level) / 2])
        columns |= {f"ece_{column}": binned.ece, f"ece_{column}_low": float(low), f"ece_{column}_high": float(high)}
    unit = np.array(scales[STATED] if np.isfinite(scales[STATED]).all() else [1.0])
    relative = np.array(scales[FITTED]) / unit
    mean = float(np.exp(np.log(relative).mean())) if (relative > 0).all() else float(relative.min())
    return columns | {"fitted_scale": mean}  # geometric: of ratios; 0 where any is


def curve_lines(
    scores_SPN: Floats, log_odds: Sequence[float], gold_PN: Floats, bootstrap: HierarchicalBootstrap
) -> pd.DataFrame:
    """The reliability curve: a line per scale (stated, fitted) and bin that has pairs, all seeds together.

    Columns: scale, low, high (of the bin), confidence (mean), accuracy with accuracy_low and accuracy_high (over
    prompts), pairs.
    """
    columns = ["scale", "low", "high", "confidence", "accuracy", "accuracy_low", "accuracy_high", "pairs"]
    found_SPH = margins(scores_SPN, gold_PN)
    frames = []
    if np.isfinite(found_SPH).any(axis=(1, 2)).all():
        for name, scale in ((STATED, _stated(log_odds)), (FITTED, [_fitted(one) for one in found_SPH])):
            if np.isfinite(scale).all() and all(scale):
                frames.append(_Binned.of(found_SPH, scale).curve(bootstrap).assign(scale=name))
    return pd.concat(frames, ignore_index=True)[columns] if frames else pd.DataFrame(columns=columns)


def _stated(log_odds: Sequence[float]) -> list[float]:
    return list(log_odds) or [math.nan]


def _fitted(margins_PH: Floats) -> float:
    """The scale of least log loss; where it is infinite, one that is as good as certain of every pair but the ties."""
    m = margins_PH[np.isfinite(margins_PH)]
    scale = best_scale(m)
    return SURE / float(m[m > 0].min()) if math.isinf(scale) and (m > 0).any() else 0.0 if math.isinf(scale) else scale


@dataclass(frozen=True)
class _Binned:
    """Pairs, summed confidence and how many were right (S, P, C), in bins of equal width."""

    pairs: Floats
    confidence: Floats
    right: Floats

    @staticmethod
    def of(margins_SPH: Floats, scale_S: Sequence[float]) -> _Binned:
        m = margins_SPH * np.asarray(scale_S, dtype=np.float64)[:, None, None]
        known = np.isfinite(m)
        confidence = special.expit(np.abs(np.where(known, m, 0.0)))
        place = np.clip(np.searchsorted(np.linspace(0.5, 1.0, BINS + 1), confidence, side="right") - 1, 0, BINS - 1)
        inside = (place[..., None] == np.arange(BINS)) & known[..., None]
        right = np.where(m == 0, 0.5, m > 0)
        sums = (np.ones_like(confidence), confidence, right)
        return _Binned(*((inside * value[..., None]).sum(-2) for value in sums))

    @property
    def ece(self) -> float:
        return float(self._ece(self.right.sum(1), self.confidence.sum(1), self.pairs.sum(1)).mean())

    @staticmethod
    def _ece(right: Floats, confidence: Floats, pairs: Floats) -> Floats:
        """sum over bins |right - confidence| / pairs, along the last axis."""
        return np.asarray(np.abs(right - confidence).sum(-1) / pairs.sum(-1))

    def drawn_ece(self, bootstrap: HierarchicalBootstrap) -> Floats:
        """(B,) of resampled prompts."""
        weights_BP = self._weights(bootstrap)
        drawn = [
            self._ece(weights_BP @ right, weights_BP @ confidence, weights_BP @ pairs)
            for right, confidence, pairs in zip(self.right, self.confidence, self.pairs, strict=True)
        ]
        return np.asarray(np.mean(drawn, axis=0))

    def curve(self, bootstrap: HierarchicalBootstrap) -> pd.DataFrame:
        pairs_PC, right_PC = self.pairs.sum(0), self.right.sum(0)
        pairs_C, used = pairs_PC.sum(0), pairs_PC.sum(0) > 0
        weights_BP = self._weights(bootstrap)
        below_BC = weights_BP @ pairs_PC
        share_BC = np.divide(weights_BP @ right_PC, below_BC, out=np.full(below_BC.shape, np.nan), where=below_BC > 0)
        ends = np.array([(1 - bootstrap.level) / 2, (1 + bootstrap.level) / 2])
        low_C, high_C = np.nanquantile(share_BC[:, used], ends, axis=0)
        edges = np.linspace(0.5, 1.0, BINS + 1)
        return pd.DataFrame(
            {
                "low": edges[:-1][used],
                "high": edges[1:][used],
                "confidence": self.confidence.sum((0, 1))[used] / pairs_C[used],
                "accuracy": right_PC.sum(0)[used] / pairs_C[used],
                "accuracy_low": low_C,
                "accuracy_high": high_C,
                "pairs": pairs_C[used].astype(int),
            }
        )

    def _weights(self, bootstrap: HierarchicalBootstrap) -> Floats:
        """(B, P): how often each prompt that has pairs is drawn; the same for all sources that scored them."""
        having = np.flatnonzero(self.pairs.sum((0, 2)) > 0)
        rng = np.random.Generator(np.random.Philox(derive_seed("pairs", bootstrap.seed, len(having))))
        weights = np.zeros((bootstrap.resamples, self.pairs.shape[1]))
        picks = rng.integers(len(having), size=(bootstrap.resamples, len(having)))
        np.add.at(weights, (np.arange(bootstrap.resamples)[:, None], having[picks]), 1.0)
        return weights

"""How far labels agree with the truth and with one another: counts, shares with Wilson intervals, the label card."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from lab.records import Pair

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
LEAST, MOST = 1e-6, 1 - 1e-6
"""A judge's probabilities are taken no nearer to certainty: a strength is finite."""
UNDECIDED = 1e-9
"""As near to 1/2 as this a judge is undecided: what is left is rounding of the mean over orders."""


def share(wins: Mask, of: Mask, level: float = 0.95) -> dict[str, Any]:
    """``share`` of ``wins`` among ``of`` (both (N,)) with Wilson's score interval ``low``, ``high``, and ``pairs``.

    Wilson 1927, by scipy. None where no pair is left.
    """
    count, hits = int(of.sum()), int((wins & of).sum())
    if not count:
        return {"share": None, "low": None, "high": None, "pairs": 0}
    found = binomtest(hits, count).proportion_ci(level, method="wilson")
    return {"share": hits / count, "low": float(found.low), "high": float(found.high), "pairs": count}


def strength(first_N: Floats) -> Floats:
    """|log p / (1 - p)| (N,) of probabilities, these kept within [1e-6, 1 - 1e-6]."""
    kept = np.clip(first_N, LEAST, MOST)
    return np.abs(np.log(kept) - np.log1p(-kept))


def verdict(first_N: Floats) -> tuple[Mask, Mask]:
    """(decided, ahead), each (N,): whether a judge says anything, and whether that is "the first"."""
    return np.abs(first_N - 0.5) > UNDECIDED, first_N > 0.5  # NaN is neither


def relabel(pairs: Sequence[Pair], first_N: Floats, annotator: str) -> list[Pair]:
    """The pairs as a judge states them. ``first_N``: P(the chosen side is better), averaged over both orders.

    A pair without a verdict (NaN) and one on which the judge is undecided is dropped: what the earlier label
    said must not leak into the new one.
    """
    labelled = []
    for pair, decided, ahead, log_odds in zip(pairs, *verdict(first_N), strength(first_N), strict=True):
        if not decided:
            continue
        better = (pair.chosen, pair.chosen_truncated), (pair.rejected, pair.rejected_truncated)
        (chosen, cut), (rejected, other_cut) = better if ahead else better[::-1]
        labelled.append(Pair(pair.prompt, chosen, rejected, annotator, cut, other_cut, float(log_odds)))
    return labelled


def label_card(
    pairs: Sequence[Pair],
    first_N: Floats,
    margins_N: Floats,
    taught: frozenset[str] = frozenset(),
) -> dict[str, Any]:
    """What a judge's labels are worth. ``pairs`` as they were labelled before; ``first_N`` as in ``relabel``.

    ``margins_N``: true utility of the chosen side less that of the rejected, NaN where unknown; ties by it (0) are
    counted and in no agreement. ``taught``: ids of prompts that the judge learnt from; ``fresh_prompts`` leaves them
    out. ``longer_chosen`` compares words, equal lengths left out; ``longer_is_better`` is the same of the truth.
    """
    kept, ahead = verdict(first_N)
    decided = kept & ~np.isnan(margins_N) & (margins_N != 0)
    right, before = ahead == (margins_N > 0), margins_N > 0
    domain = np.array([pair.prompt.domain for pair in pairs])
    fresh = np.array([pair.prompt.id not in taught for pair in pairs], dtype=bool)
    longer = np.array([len(pair.chosen.split()) - len(pair.rejected.split()) for pair in pairs])
    names = sorted(set(domain.tolist()))
    return {
        "asked": len(pairs),
        "unanswered": int(np.isnan(first_N).sum()),
        "undecided": int((~kept & ~np.isnan(first_N)).sum()),
        "pairs": int(kept.sum()),
        "ties_by_gold": int((kept & (margins_N == 0)).sum()),
        "unknown_by_gold": int((kept & np.isnan(margins_N)).sum()),
        "agreement_with_gold": share(right, decided),
        "by_domain": {name: share(right, decided & (domain == name)) for name in names},
        "fresh_prompts": share(right, decided & fresh),
        "agreement_with_labels": share(ahead, kept),
        "labels_with_gold": share(before, decided),
        "labels_by_domain": {name: share(before, decided & (domain == name)) for name in names},
        "longer_chosen": share(ahead == (longer > 0), kept & (longer != 0)),
        "longer_chosen_by_labels": share(longer > 0, kept & (longer != 0)),
        "longer_is_better": share((margins_N > 0) == (longer > 0), decided & (longer != 0)),
        "mean_strength": float(strength(first_N[kept]).mean()) if kept.any() else None,
        "domains": {name: int((kept & (domain == name)).sum()) for name in names},
    }

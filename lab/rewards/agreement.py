"""How far scores agree with the truth: with the order of pairs, and with labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from lab.records import Completion, Pair


def completions_of(pairs: Sequence[Pair], side: str) -> list[Completion]:
    """The ``chosen`` or ``rejected`` completions of pairs. Their length counts words: no source reads it as tokens."""
    if side == "chosen":
        return [Completion(p.prompt.id, 0, p.chosen, len(p.chosen.split()), p.chosen_truncated) for p in pairs]
    return [Completion(p.prompt.id, 1, p.rejected, len(p.rejected.split()), p.rejected_truncated) for p in pairs]


def agreement(pairs: Sequence[Pair], chosen: np.ndarray, rejected: np.ndarray) -> dict[str, Any]:
    """``accuracy``, number ``held_out`` and accuracy ``by_domain``: strict wins of the chosen side, a tie is a miss."""
    wins = np.asarray(chosen) > np.asarray(rejected)
    of = np.array([pair.prompt.domain for pair in pairs])
    by_domain = {domain: float(wins[of == domain].mean()) for domain in sorted(set(of.tolist()))}
    return {"accuracy": float(wins.mean()) if len(pairs) else None, "held_out": len(pairs), "by_domain": by_domain}


def auc(scores: np.ndarray, labels: np.ndarray) -> float | None:
    """P(a right one scores above a wrong one), ties counting half (Mann-Whitney); None if there is only one class."""
    right = np.asarray(labels, dtype=bool)
    positives, negatives = int(right.sum()), int((~right).sum())
    if not positives or not negatives:
        return None
    ranks = rankdata(np.asarray(scores))
    return float((ranks[right].sum() - positives * (positives + 1) / 2) / (positives * negatives))

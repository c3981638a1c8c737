"""The truth about pairs: what a judge's labels are held against, and no training sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lab.records import Pair
from lab.rewards import RewardSource
from lab.rewards.held_out import sides
from lab.rewards.truth import GoldReward, VerifierReward


def truth(gold: str) -> RewardSource:
    """The world's gold utility ("world"), or correctness by a rule ("verifier"; NaN without one)."""
    return GoldReward() if gold == "world" else VerifierReward()


def margins(pairs: Sequence[Pair], gold: str | None) -> np.ndarray:
    """True utility of the chosen side less that of the rejected (N,), NaN where it is not known."""
    if gold is None or not pairs:
        return np.full(len(pairs), np.nan)
    prompts, chosen, rejected = sides(pairs)
    source = truth(gold)
    return np.asarray(source.score(prompts, chosen) - source.score(prompts, rejected), dtype=np.float64)

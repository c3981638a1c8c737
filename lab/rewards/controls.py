"""Rewards that know nothing: what an arm gains from these, it did not gain from its reward."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lab.records import Completion, Prompt, derive_seed


class RandomReward:
    """A standard normal number drawn from the hash of prompt and completion: the same text always scores the same."""

    name = "random"

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Scores (N,)."""
        seeds = [derive_seed("random reward", p.id, c.text) for p, c in zip(prompts, completions, strict=True)]
        return self.weight * np.array([np.random.Generator(np.random.Philox(key=s)).standard_normal() for s in seeds])


class LengthReward:
    """One tenth a token: what a reward model is worth if it only learnt that longer is better."""

    name = "length"

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Scores (N,)."""
        return self.weight * np.array([completion.length / 10 for completion in completions], dtype=float)


class ConstantReward:
    """The same score for everything."""

    name = "constant"

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Scores (N,)."""
        return np.full(len(prompts), self.weight)

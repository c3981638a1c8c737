"""Simulated annotators: they see the gold utility through a choice temperature, flips and a taste for length."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass


@dataclass(frozen=True)
class Annotator:
    """P(a over b) = sigmoid((u_a - u_b + length_bias * (len_a - len_b) / 10) / temperature), then flipped at flip_rate.

    temperature: in units of gold utility, 0 = always the better one (Bradley and Terry 1952, Luce choice);
    flip_rate: share of labels turned round whatever the margin; length_bias: utility per 10 extra words.
    """

    name: str
    temperature: float
    flip_rate: float
    length_bias: float = 0.0

    def prefers_first(self, rng: random.Random, utilities: tuple[float, float], lengths: tuple[int, int]) -> bool:
        """True if this annotator says that the first of two completions is better. Exact ties are coin flips."""
        seen = self._seen(utilities, lengths)
        if self.temperature == 0:
            first = rng.random() < 0.5 if seen == 0 else seen > 0
        else:
            first = rng.random() < 1 / (1 + math.exp(-max(-50.0, min(50.0, seen / self.temperature))))
        return first != (rng.random() < self.flip_rate)

    def strength(self, utilities: tuple[float, float], lengths: tuple[int, int]) -> float:
        """How much better the better one looks to this annotator, in units of gold utility: never negative."""
        return abs(self._seen(utilities, lengths))

    def _seen(self, utilities: tuple[float, float], lengths: tuple[int, int]) -> float:
        return utilities[0] - utilities[1] + self.length_bias * (lengths[0] - lengths[1]) / 10

"""Simulated annotators: they see the gold utility through a choice temperature, flips, biases and limited attention.

What an annotator sees of a completion is ``Seen``: the two parts of its gold utility and its length. Everybody's labels
come from ``Annotator.prefers_first``; ``Annotator.p_first`` is its probability in closed form, from which follows the
agreement with gold that a panel of annotators should reach (``Panel.p_first``).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from lab.records import derive_seed


@dataclass(frozen=True)
class Seen:
    """A completion as annotators see it. gold utility = correct + style (``style`` already weighted); words: length."""

    correct: float
    style: float
    words: int

    @property
    def utility(self) -> float:
        return self.correct + self.style


@dataclass(frozen=True)
class Annotator:
    """P(a over b) = sigmoid((u_a - u_b + length_bias * (len_a - len_b) / 10 +- position_bias) / temperature), then
    flipped at flip_rate, where u = correct_weight * correct + style_weight * style.

    temperature: in units of gold utility, 0 = always the better one (Bradley and Terry 1952, Luce choice);
    flip_rate: share of labels turned round whatever the margin; length_bias: utility per 10 extra words;
    position_bias: utility granted to the completion that is shown first, either being first half of the time.
    """

    name: str
    temperature: float
    flip_rate: float
    length_bias: float = 0.0
    position_bias: float = 0.0
    correct_weight: float = 1.0
    style_weight: float = 1.0

    def margin(self, a: Seen, b: Seen) -> float:
        """By how much a looks better than b, in units of gold utility, wherever they are shown."""
        return self._value(a) - self._value(b) + self.length_bias * (a.words - b.words) / 10

    def prefers_first(self, rng: random.Random, a: Seen, b: Seen) -> bool:
        """True if this annotator says that a is better than b. Exact ties are coin flips."""
        margin = self.margin(a, b)
        if self.position_bias:
            margin += self.position_bias if rng.random() < 0.5 else -self.position_bias
        if self.temperature == 0:
            first = rng.random() < 0.5 if margin == 0 else margin > 0
        else:
            first = rng.random() < self._choice(margin)
        return first != (rng.random() < self.flip_rate)

    def p_first(self, a: Seen, b: Seen) -> float:
        """The probability of ``prefers_first``."""
        margin = self.margin(a, b)
        shown = (margin + self.position_bias, margin - self.position_bias)
        chosen = sum(map(self._choice, shown)) / 2
        return chosen * (1 - self.flip_rate) + (1 - chosen) * self.flip_rate

    def _choice(self, margin: float) -> float:
        if self.temperature == 0:
            return 0.5 if margin == 0 else float(margin > 0)
        return 1 / (1 + math.exp(-max(-50.0, min(50.0, margin / self.temperature))))

    def _value(self, seen: Seen) -> float:
        return self.correct_weight * seen.correct + self.style_weight * seen.style


@dataclass(frozen=True)
class Panel:
    """Annotators of whom ``per_pair`` label each pair; the majority decides, a coin where there is none."""

    members: Sequence[Annotator]
    per_pair: int = 1

    @classmethod
    def of(cls, annotator: Annotator, members: int, per_pair: int, disagreement: float, seed: int) -> Panel:
        """``members`` variants of one annotator, who weigh each part of the utility by exp(N(0, disagreement)).

        Raises ValueError if more are asked of a pair than there are.
        """
        if per_pair > members:
            raise ValueError(f"preferences.labels_per_pair: {per_pair} of {members} annotators cannot be asked")
        return cls(tuple(_variant(annotator, n, disagreement, seed) for n in range(members)), per_pair)

    def asked(self, rng: random.Random) -> Sequence[Annotator]:
        """Who labels the next pair."""
        return self.members if self.per_pair == len(self.members) else rng.sample(list(self.members), self.per_pair)

    def votes(self, rng: random.Random, a: Seen, b: Seen) -> list[tuple[str, bool]]:
        """(annotator, True if a is the better one) of everybody who was asked."""
        return [(one.name, one.prefers_first(rng, a, b)) for one in self.asked(rng)]

    def strength(self, a: Seen, b: Seen) -> float:
        """How much better the better one looks to the panel, in units of gold utility: never negative."""
        return abs(sum(one.margin(a, b) for one in self.members) / len(self.members))

    def p_first(self, a: Seen, b: Seen) -> float:
        """The probability that the majority says a. With several members of whom some are asked, each label counts as
        drawn from the panel's mean: exact where all are asked, or one is, and near it otherwise."""
        each = [one.p_first(a, b) for one in self.members]
        if self.per_pair < len(each):
            each = [sum(each) / len(each)] * self.per_pair
        return majority_probability(each)


def _variant(annotator: Annotator, number: int, disagreement: float, seed: int) -> Annotator:
    if not disagreement:
        return annotator if number == 0 else _renamed(annotator, f"{annotator.name}-{number}")
    rng = random.Random(derive_seed("taste", annotator.name, seed, number))
    weights = [math.exp(rng.gauss(0.0, disagreement)) for _ in range(2)]
    return Annotator(
        f"{annotator.name}-{number}",
        annotator.temperature,
        annotator.flip_rate,
        annotator.length_bias,
        annotator.position_bias,
        annotator.correct_weight * weights[0],
        annotator.style_weight * weights[1],
    )


def _renamed(annotator: Annotator, name: str) -> Annotator:
    return Annotator(**{**vars(annotator), "name": name})


def majority(votes: Sequence[bool], rng: random.Random) -> bool:
    """What more than half of the votes say; a coin where they balance. One vote needs no coin."""
    yes = sum(votes)
    return rng.random() < 0.5 if 2 * yes == len(votes) else 2 * yes > len(votes)


def majority_probability(each: Sequence[float]) -> float:
    """P(majority is True) of independent votes with these probabilities: the Poisson-binomial tail, half of a draw."""
    count = [1.0]
    for p in each:
        longer = [*(item * (1 - p) for item in count), 0.0]
        for number, item in enumerate(count):
            longer[number + 1] += item * p
        count = longer
    n = len(each)
    return sum(item * (0.5 if 2 * k == n else float(2 * k > n)) for k, item in enumerate(count))

"""From a pool of completions to preference pairs: who meets whom, who says what, which pairs are kept apart."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from lab.config import PreferencesConfig
from lab.data.quality import has_margin
from lab.records import Completion, Pair, Prompt, derive_seed
from lab.world.annotators import Annotator, Panel, Seen, majority
from lab.world.attributes import true_attributes

RATING_WEIGHTS = {"correctness": 1.0, "opening": 0.25, "closing": 0.25, "tidiness": 0.5}
"""What a rated attribute counts in the sum that decides a pair of ``labels: ratings``."""


@dataclass(frozen=True)
class Candidate:
    """A completion in the pool and its true utility (None: a verifier could not say).

    ``style``: the share of the utility that is manner; ``source``: who wrote it.
    """

    completion: Completion
    utility: float | None
    style: float = 0.0
    source: str = "policy"

    @property
    def seen(self) -> Seen:
        assert self.utility is not None
        return Seen(self.utility - self.style if self.style else self.utility, self.style, self.completion.length)


Pool = Sequence[tuple[Prompt, list[Candidate]]]


@dataclass(frozen=True)
class Labelled:
    """Pairs as they were labelled. ``votes`` of each pair: (annotator, says that the chosen one is better)."""

    pairs: list[Pair]
    votes: list[list[tuple[str, bool]]]


class Ratings:
    """A rater's weighted sum of attributes, each with Gaussian noise (standard deviation ``noise``)."""

    def __init__(self, name: str, noise: float) -> None:
        self.name, self.noise = name, noise

    def difference(self, prompt: Prompt, a: Completion, b: Completion) -> float:
        """True weighted sum of a less that of b."""
        first, second = true_attributes(prompt, a), true_attributes(prompt, b)
        return sum(weight * (first[name] - second[name]) for name, weight in RATING_WEIGHTS.items())

    def judge(self, rng: random.Random, prompt: Prompt, a: Completion, b: Completion) -> tuple[bool, float]:
        """(a is rated higher, by how much); ties of noiseless ratings are coin flips."""
        spread = self.noise * math.sqrt(2 * sum(weight**2 for weight in RATING_WEIGHTS.values()))
        stated = self.difference(prompt, a, b) + rng.gauss(0.0, spread)
        return (rng.random() < 0.5 if stated == 0 else stated > 0), abs(stated)

    def p_first(self, prompt: Prompt, a: Completion, b: Completion) -> float:
        """The probability that a is rated higher: Phi(difference / spread of the difference's noise)."""
        difference = self.difference(prompt, a, b)
        if self.noise == 0:
            return 0.5 if difference == 0 else float(difference > 0)
        spread = self.noise * math.sqrt(2 * sum(weight**2 for weight in RATING_WEIGHTS.values()))
        return 0.5 * (1 + math.erf(difference / spread / math.sqrt(2)))


@dataclass(frozen=True)
class Labeller:
    """What ``preferences.labels`` asks for: a panel of annotators, a rater, or a verifier."""

    settings: PreferencesConfig
    panel: Panel = field(init=False)
    ratings: Ratings = field(init=False)

    def __post_init__(self) -> None:
        one = self.settings
        weights = {f"{part}_weight": 0.0 for part in one.ignores}
        annotator = Annotator(
            one.annotator, one.temperature, one.flip_rate, one.length_bias, one.position_bias, **weights
        )
        panel = Panel.of(annotator, one.annotators, one.labels_per_pair, one.disagreement, one.seed)
        object.__setattr__(self, "panel", panel)
        object.__setattr__(self, "ratings", Ratings(one.annotator, one.rating_noise))

    @property
    def limit(self) -> int:
        """How many pairs the number asked for and the budget of labels allow."""
        one = self.settings
        return min(one.pairs, one.budget // one.labels_per_pair) if one.budget else one.pairs

    def label(
        self, rng: random.Random, prompt: Prompt, a: Candidate, b: Candidate
    ) -> tuple[Pair, list[tuple[str, bool]]] | None:
        """The pair and its votes, or None where this labeller says nothing of the two."""
        if a.utility is None or b.utility is None:
            return None
        if self.settings.labels == "verifier":
            if a.utility == b.utility:
                return None
            return make_pair(prompt, a, b, a.utility > b.utility, self.settings.annotator, 1.0), []
        if self.settings.labels == "ratings":
            first, strength = self.ratings.judge(rng, prompt, a.completion, b.completion)
            return make_pair(prompt, a, b, first, self.settings.annotator, strength), []
        votes = self.panel.votes(rng, a.seen, b.seen)
        first = majority([vote for _, vote in votes], rng)
        pair = make_pair(prompt, a, b, first, self.settings.annotator, self.panel.strength(a.seen, b.seen))
        return pair, [(name, vote == first) for name, vote in votes]

    def p_first(self, prompt: Prompt, a: Candidate, b: Candidate) -> float:
        """The probability that a is stated to be the better one: what the request for this labeller amounts to."""
        assert a.utility is not None
        assert b.utility is not None
        if self.settings.labels == "verifier":
            return 0.5 if a.utility == b.utility else float(a.utility > b.utility)
        if self.settings.labels == "ratings":
            return self.ratings.p_first(prompt, a.completion, b.completion)
        return self.panel.p_first(a.seen, b.seen)


def label(pool: Pool, settings: PreferencesConfig) -> tuple[list[Pair], list[Pair]]:
    """Training pairs as the annotators state them, and held-out pairs in their true order, on different prompts.

    The prompts take turns, so that few labels are spread over many prompts. Completions with the same text make no
    pair; held-out pairs have different utilities.
    """
    rng = labelling_rng(settings)
    choices = couples(pool, rng)
    reserved = reserve(choices, settings.held_out)
    held_out = true_pairs(choices[len(choices) - reserved :], settings.held_out)
    return label_couples(choices[: len(choices) - reserved], settings, rng).pairs, held_out


def labelling_rng(settings: PreferencesConfig) -> random.Random:
    """The one stream of chance from which couples are shuffled and labelled, in that order."""
    return random.Random(derive_seed("annotator", settings.annotator, settings.seed))


def couples(pool: Pool, rng: random.Random) -> list[tuple[Prompt, list[tuple[Candidate, Candidate]]]]:
    """Of every prompt all pairs of completions with different texts, shuffled."""
    found = []
    for prompt, candidates in pool:
        own = [(a, b) for a, b in combinations(candidates, 2) if a.completion.text != b.completion.text]
        rng.shuffle(own)
        found.append((prompt, own))
    return found


def label_couples(
    choices: Sequence[tuple[Prompt, list[tuple[Candidate, Candidate]]]], settings: PreferencesConfig, rng: random.Random
) -> Labelled:
    """Pairs labelled in turns until the number, or the budget, is spent; couples outside the margins make none."""
    labeller = Labeller(settings)
    done = Labelled([], [])
    for prompt, a, b in in_turns(choices):
        if len(done.pairs) == labeller.limit:
            break
        margin = None if a.utility is None or b.utility is None else a.utility - b.utility
        if margin is None or not has_margin(margin, settings.min_margin, settings.max_margin):
            continue
        found = labeller.label(rng, prompt, a, b)
        if found is not None:
            done.pairs.append(found[0])
            done.votes.append(found[1])
    return done


def true_pairs(choices: Sequence[tuple[Prompt, list[tuple[Candidate, Candidate]]]], most: int) -> list[Pair]:
    """At most so many pairs in their true order; equal utilities make none."""
    return [
        make_pair(prompt, a, b, a.utility > b.utility, "gold")
        for prompt, a, b in in_turns(choices)
        if a.utility is not None and b.utility is not None and a.utility != b.utility
    ][:most]


def reserve(choices: Sequence[tuple[Prompt, list[Any]]], wanted: int) -> int:
    """How many prompts, from the end, to keep for held-out pairs: enough for ``wanted``, a quarter at the most."""
    found = 0
    for count, (_, own) in enumerate(reversed(choices)):
        if found >= wanted or count >= len(choices) // 4:
            return count
        found += sum(a.utility is not None and b.utility is not None and a.utility != b.utility for a, b in own)
    return 0


def in_turns(choices: Sequence[tuple[Prompt, list[Any]]]) -> list[tuple[Prompt, Candidate, Candidate]]:
    """First one couple of every prompt, then a second one of every prompt that has it, and so on."""
    longest = max((len(own) for _, own in choices), default=0)
    return [(prompt, *own[turn]) for turn in range(longest) for prompt, own in choices if turn < len(own)]


def make_pair(prompt: Prompt, a: Candidate, b: Candidate, first: bool, annotator: str, strength: float = 0.0) -> Pair:
    """The pair in which a is chosen if ``first``."""
    chosen, rejected = (a.completion, b.completion) if first else (b.completion, a.completion)
    return Pair(prompt, chosen.text, rejected.text, annotator, chosen.truncated, rejected.truncated, strength)

"""From prompts and the completions of several models to benchmark items, as RewardBench 2 was built (Malik et al. 2025,
arXiv 2506.01937, section 3). Pure functions: what votes, who samples and where files lie is ``lab.stages``' business.

A completion's label is a combination of votes (verifier, judge, majority, people); the truth, where a world knows it,
measures how often the labels are wrong and labels nothing unless that is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from lab.benchmarks.items import Item
from lab.data.sources import normalised_id
from lab.records import Prompt, derive_seed, text_id

REJECTED = 3
"""Incorrect completions of an item: best of four."""
TIED = 2
"""Correct completions that a tied prompt needs at the least."""

Vote = bool | None
"""True: correct; False: incorrect; None: no vote."""
Lengths = Literal["any", "balanced"]


@dataclass(frozen=True)
class Candidate:
    """One completion: who wrote it, the answer it states (None: none could be read), what was said of it.

    ``right`` is the label that the votes gave it, ``truth`` what is known beyond them; None where either is open.
    """

    model: str
    text: str
    answer: str | None = None
    right: Vote = None
    truth: Vote = None

    @property
    def length(self) -> int:
        """In words."""
        return len(self.text.split())


@dataclass(frozen=True)
class Entry:
    """A prompt with its different completions; ``group`` and ``side`` ("ref", "tied") of a Ties prompt."""

    prompt: Prompt
    candidates: tuple[Candidate, ...]
    group: str | None = None
    side: Literal["ref", "tied"] | None = None

    @property
    def correct(self) -> list[Candidate]:
        return [one for one in self.candidates if one.right is True]

    @property
    def incorrect(self) -> list[Candidate]:
        return [one for one in self.candidates if one.right is False]


@dataclass(frozen=True)
class Built:
    """An item and its completions in the item's order, the chosen first."""

    item: Item
    candidates: tuple[Candidate, ...]

    @property
    def mislabelled(self) -> bool | None:
        """Whether by the truth a chosen completion is wrong or a rejected one right; None where that is not known."""
        right = len(self.item.chosen)
        if any(one.truth is None for one in self.candidates):
            return None
        return any(one.truth != (place < right) for place, one in enumerate(self.candidates))


# ---------------------------------------------------------------- which prompts


@dataclass(frozen=True)
class Limits:
    """What a prompt may be: words at the least and at the most (0: any)."""

    min_words: int = 1
    max_words: int = 0


def select(prompts: Sequence[Prompt], limits: Limits) -> tuple[list[Prompt], Counter[str]]:
    """The prompts within the limits, each once (case and white space aside, the first stays), and why others went:
    counts of "too short", "too long", "duplicate"."""
    kept: list[Prompt] = []
    dropped: Counter[str] = Counter()
    seen: set[str] = set()
    for prompt in prompts:
        words, key = len(prompt.text.split()), normalised_id(prompt.text)
        if words < limits.min_words:
            dropped["too short"] += 1
        elif limits.max_words and words > limits.max_words:
            dropped["too long"] += 1
        elif key in seen:
            dropped["duplicate"] += 1
        else:
            seen.add(key)
            kept.append(prompt)
    return kept, dropped


# ---------------------------------------------------------------- what is correct


def majority_answer(answers: Sequence[str | None], share: float) -> str | None:
    """The most frequent of the stated answers, where it alone is, and makes up at least ``share`` of them.

    Completions that state none do not count. None: there is no majority.
    """
    counts = Counter(answer for answer in answers if answer is not None).most_common(2)
    if not counts or (len(counts) == 2 and counts[0][1] == counts[1][1]):
        return None
    answer, count = counts[0]
    return answer if count >= share * sum(one is not None for one in answers) else None


def unanimous(votes: Sequence[Vote]) -> Vote:
    """The vote of several who must agree; None where they do not, or one of them has none."""
    return votes[0] if votes and all(vote == votes[0] for vote in votes) else None


def combine(votes: Mapping[str, Vote], deciders: Sequence[Sequence[str]]) -> Vote:
    """The label of a completion: the first group of ``deciders`` in which anybody votes decides, if all of its votes
    agree. Where they disagree the label stays open, whatever later groups say."""
    for group in deciders:
        cast = [vote for name in group if (vote := votes.get(name)) is not None]
        if cast:
            return unanimous(cast)
    return None


def disagreement(votes: Sequence[Mapping[str, Vote]]) -> dict[str, dict[str, int]]:
    """ "a / b" -> {"both": completions that both voted on, "differ": those on which they differ}."""
    found: dict[str, dict[str, int]] = {}
    for one in votes:
        for a, b in combinations(one, 2):
            if one[a] is not None and one[b] is not None:
                counts = found.setdefault(f"{a} / {b}", {"both": 0, "differ": 0})
                counts["both"] += 1
                counts["differ"] += one[a] != one[b]
    return found


def difficulty(entry: Entry, scores: Mapping[str, float]) -> float:
    """How hard a prompt is for a source that scores its completions (text -> score): the share of pairs of a correct
    and an incorrect one that it puts in the wrong order, ties half. In [0, 1]; 0.5 is a coin's.

    Raises ValueError without both kinds.
    """
    right, wrong = entry.correct, entry.incorrect
    if not right or not wrong:
        raise ValueError(f"prompt {entry.prompt.id}: {len(right)} correct and {len(wrong)} incorrect completions")
    misses = [
        (scores[b.text] > scores[a.text]) + 0.5 * (scores[b.text] == scores[a.text]) for a in right for b in wrong
    ]
    return sum(misses) / len(misses)


# ---------------------------------------------------------------- best of four


def best_of_four(entries: Sequence[Entry], benchmark: str, lengths: Lengths = "any", seed: int = 0) -> list[Built]:
    """An item a prompt that has a correct and three incorrect completions, in the order of ``entries``; others give
    none, and Ties prompts (of a ``group``) none either.

    The four come from as many different models as possible, and among equals from those used least so far on their
    side of the domain, so that a model's manner says little about being right. ``lengths`` "balanced": the domain's
    items take turns in how many of the three are longer than the chosen (0 to 3), as far as their completions allow,
    so that neither the longest nor the shortest is right more often than one time in four.
    """
    ready = [entry for entry in entries if entry.group is None and entry.correct and len(entry.incorrect) >= REJECTED]
    builders: dict[str, _Builder] = {}
    choices = {entry.prompt.id: _ranks(entry, lengths) for entry in ready}
    built: dict[str, Built] = {}
    # Those with the fewest ways to be an item first: the others can still make up for them.
    for entry in sorted(ready, key=lambda one: (len(choices[one.prompt.id]), _draw(seed, one.prompt.id))):
        builder = builders.setdefault(entry.prompt.domain, _Builder(seed))
        built[entry.prompt.id] = builder.item(entry, benchmark, choices[entry.prompt.id])
    return [built[entry.prompt.id] for entry in ready]


@dataclass(frozen=True)
class _Choice:
    """A correct completion with those among which its ``longer`` and its other rejected ones are picked."""

    chosen: Candidate
    above: tuple[Candidate, ...]
    below: tuple[Candidate, ...]
    longer: int


def _ranks(entry: Entry, lengths: Lengths) -> dict[int, list[_Choice]]:
    """Number of longer rejected completions -> ways to have it. Rank -1: the lengths do not matter, or none can be
    had without completions as long as the chosen."""
    found: dict[int, list[_Choice]] = {}
    for chosen in entry.correct if lengths == "balanced" else ():
        above = tuple(one for one in entry.incorrect if one.length > chosen.length)
        below = tuple(one for one in entry.incorrect if one.length < chosen.length)
        for longer in range(REJECTED + 1):
            if len(above) >= longer and len(below) >= REJECTED - longer:
                found.setdefault(longer, []).append(_Choice(chosen, above, below, longer))
    return found or {-1: [_Choice(chosen, (), tuple(entry.incorrect), 0) for chosen in entry.correct]}


class _Builder:
    """Picks the completions of one domain's items, and keeps count of what was picked."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.ranks: Counter[int] = Counter()
        self.chosen: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()

    def item(self, entry: Entry, benchmark: str, ranks: Mapping[int, Sequence[_Choice]]) -> Built:
        prompt = entry.prompt
        rank = min(ranks, key=lambda one: (self.ranks[one], _draw(self.seed, prompt.id, one)))
        picks = [(one.chosen, self._reject(one, prompt.id)) for one in self._one_a_model(ranks[rank], prompt.id)]
        chosen, rejected = min(
            picks,
            key=lambda pick: (
                -len({pick[0].model, *(one.model for one in pick[1])}),
                self.chosen[pick[0].model],
                sum(self.rejected[one.model] for one in pick[1]),
                _draw(self.seed, prompt.id, pick[0].text),
            ),
        )
        self.ranks[rank] += 1
        self.chosen[chosen.model] += 1
        self.rejected.update(one.model for one in rejected)
        texts = tuple(one.text for one in rejected)
        name = item_id(prompt, (chosen.text,), texts)
        item = Item(name, benchmark, prompt.domain, "best_of", prompt, (chosen.text,), texts)
        return Built(item, (chosen, *rejected))

    def _one_a_model(self, choices: Sequence[_Choice], prompt_id: str) -> list[_Choice]:
        """One choice for each model that could give the chosen completion."""
        drawn = sorted(choices, key=lambda one: _draw(self.seed, prompt_id, one.chosen.text))
        return list({one.chosen.model: one for one in reversed(drawn)}.values())

    def _reject(self, choice: _Choice, prompt_id: str) -> tuple[Candidate, ...]:
        """Three rejected completions: of as many models as possible, other than the chosen one's, then used least."""
        best: tuple[Candidate, ...] = ()
        for most in (1, REJECTED):  # of one model: more than one only where there is no other way
            above, below = (self._spread(side, most, prompt_id) for side in (choice.above, choice.below))
            picks = [
                (*upper, *lower)
                for upper in combinations(above, choice.longer)
                for lower in combinations(below, REJECTED - choice.longer)
            ]
            best = min(
                picks,
                key=lambda pick: (-self._models(choice, pick), sum(self.rejected[one.model] for one in pick)),
                default=best,
            )
            if best and self._models(choice, best) == REJECTED + 1:
                break
        return tuple(sorted(best, key=lambda one: _draw(self.seed, prompt_id, one.text)))

    @staticmethod
    def _models(choice: _Choice, rejected: Sequence[Candidate]) -> int:
        return len({choice.chosen.model, *(one.model for one in rejected)})

    def _spread(self, side: Sequence[Candidate], most: int, prompt_id: str) -> list[Candidate]:
        """At most ``most`` completions a model, in an order drawn from the prompt."""
        taken: Counter[str] = Counter()
        found = []
        for one in sorted(side, key=lambda one: _draw(self.seed, prompt_id, one.text)):
            taken[one.model] += 1
            if taken[one.model] <= most:
                found.append(one)
        return found


# ---------------------------------------------------------------- Ties


def ties(
    entries: Sequence[Entry], benchmark: str, lengths: Lengths = "any", seed: int = 0, most: int = REJECTED
) -> list[Built]:
    """The items of the Ties groups of which both sides can be built: a ref prompt with one correct answer and a tied
    prompt with several (two to ``most``), each with up to three incorrect completions, at least one.

    The correct ones differ in the answer they state (or, where none can be read, in their text). ``lengths``
    "balanced": they are equally long, the length with the most different answers, and the incorrect ones are those
    nearest to it, so that what ties by correctness does not differ by length.
    """
    sides: dict[str, dict[str, Built]] = {}
    for entry in entries:
        if entry.group is None or entry.side is None:
            continue
        found = _ties_item(entry, benchmark, lengths, seed, most)
        if found is not None:
            sides.setdefault(entry.group, {})[entry.side] = found
    return [one for group in sides.values() if len(group) == 2 for one in (group["ref"], group["tied"])]


def _ties_item(entry: Entry, benchmark: str, lengths: Lengths, seed: int, most: int) -> Built | None:
    prompt, kind = entry.prompt, entry.side
    assert kind is not None

    def drawn(candidates: Sequence[Candidate]) -> list[Candidate]:
        return sorted(candidates, key=lambda one: _draw(seed, prompt.id, one.text))

    groups: dict[int, dict[str, Candidate]] = {}
    for one in drawn(entry.correct):
        groups.setdefault(one.length if lengths == "balanced" else 0, {}).setdefault(one.answer or one.text, one)
    needed = 1 if kind == "ref" else TIED
    length, answers = max(groups.items(), key=lambda pair: len(pair[1]), default=(0, {}))
    if len(answers) < needed or not entry.incorrect:
        return None
    right = list(answers.values())[: 1 if kind == "ref" else most]
    wrong = drawn(entry.incorrect)
    if lengths == "balanced":
        wrong.sort(key=lambda one: abs(one.length - length))
    wrong = wrong[:REJECTED]
    chosen, rejected = (tuple(one.text for one in side) for side in (right, wrong))
    name = item_id(prompt, chosen, rejected)
    item = Item(name, benchmark, prompt.domain, kind, prompt, chosen, rejected, pair_group=entry.group)
    return Built(item, (*right, *wrong))


def item_id(prompt: Prompt, chosen: Sequence[str], rejected: Sequence[str]) -> str:
    """The domain and a digest of all texts: the same item has the same name whatever the order of its completions."""
    return f"{prompt.domain}-{text_id(chr(10).join((prompt.text, *sorted(chosen), *sorted(rejected))))}"


def _draw(seed: int, *parts: object) -> int:
    """A number that orders things at random, the same way each time."""
    return derive_seed("building", seed, *parts)


# ---------------------------------------------------------------- what was built


def shares(built: Sequence[Built]) -> dict[str, dict[str, float]]:
    """ "chosen" and "rejected" -> model -> its share of that side's completions."""
    counts: dict[str, Counter[str]] = {"chosen": Counter(), "rejected": Counter()}
    for one in built:
        for place, candidate in enumerate(one.candidates):
            counts["chosen" if place < len(one.item.chosen) else "rejected"][candidate.model] += 1
    return {
        side: {model: found[model] / sum(found.values()) for model in sorted(found)} for side, found in counts.items()
    }


def different_models(built: Sequence[Built]) -> float | None:
    """The share of best-of-four items whose four completions come from four models."""
    own = [one for one in built if one.item.kind == "best_of"]
    return sum(len({c.model for c in one.candidates}) == REJECTED + 1 for one in own) / len(own) if own else None


def error_rate(wrong: Sequence[bool | None]) -> dict[str, float | int | None]:
    """How many are known, and the share of those that are wrong (None: nothing is known)."""
    known = [one for one in wrong if one is not None]
    return {"known": len(known), "wrong": sum(known), "share": sum(known) / len(known) if known else None}

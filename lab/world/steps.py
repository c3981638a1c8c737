"""The steps of the world's worked answers, and which of them are right: what a process reward model is taught.

A step is what stands between two ``;``. It is right if it is what a correct solution would say at that place: in math
and factuality the prompt's own chain (a step that builds on a wrong total or land is wrong too; one that returns to
the chain is right again), in instructions an item that is allowed, new, in order, numbered by its place and leaves
room for the rest. The last step also answers for what is missing: it is wrong if the solution is not complete with it.

So if all steps are right the rule verifier says CORRECT. The converse does not hold: a right answer may follow wrong
work, and the verifier does not look at numbering.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lab.records import Prompt
from lab.verifiers.world import WORLD_VERIFIERS, verify_answer
from lab.world.vocabulary import STYLE_WORDS


@dataclass(frozen=True)
class Span:
    """A part of a completion; ``end`` counts characters (exclusive), ``end_word_index`` is its last word's number."""

    text: str
    end: int
    end_word_index: int


@dataclass(frozen=True)
class Step:
    """A step of a completion, where it ends (number of its last word; -1 in an empty completion), and its label."""

    text: str
    end_word_index: int
    correct: bool


def has_steps(prompt: Prompt) -> bool:
    """Whether the world knows what the steps of an answer to this prompt must be."""
    return prompt.verifier in WORLD_VERIFIERS


def step_spans(completion: str) -> list[Span]:
    """What stands between the words ``;``, empty parts left out. At least one: a text without words is one step."""
    words = list(re.finditer(r"\S+", completion))
    spans: list[Span] = []
    begin = 0
    for at in [*(i for i, word in enumerate(words) if word.group() == ";"), len(words)]:
        if at > begin:
            start, end = words[begin].start(), words[at - 1].end()
            spans.append(Span(completion[start:end], end, at - 1))
        begin = at + 1
    return spans or [Span("", len(completion), len(words) - 1)]


def step_labels(prompt: Prompt, completion: str) -> list[Step]:
    """The steps of a completion, one for each of ``step_spans``, and whether each is right.

    Raises ValueError for a prompt whose steps the world does not know.
    """
    if not has_steps(prompt):
        raise ValueError(f"prompt {prompt.id} ({prompt.domain}, verifier {prompt.verifier}): its steps are not known")
    spans = step_spans(completion)
    contents = [[word for word in span.text.split() if word not in STYLE_WORDS] for span in spans]
    if "steps" in prompt.gold:
        right, complete = _chain(prompt, contents, [span.text for span in spans])
    else:
        right, complete = _list(prompt, contents)
    right[-1] = right[-1] and complete
    return [Step(span.text, span.end_word_index, label) for span, label in zip(spans, right, strict=True)]


def _chain(prompt: Prompt, contents: Sequence[Sequence[str]], texts: Sequence[str]) -> tuple[list[bool], bool]:
    """Labels of math or factuality steps, and whether the right answer was given. Mere courtesy says nothing wrong."""
    form = "{0} {1} {2} = {3}" if prompt.domain == "math" else "{0} {1} is {2}"
    chain = [form.format(*step) for step in prompt.gold["steps"]]
    right: list[bool] = []
    at, answered = 0, False
    for content, text in zip(contents, texts, strict=True):
        said = " ".join(content)
        if "answer" in content:
            right.append(len(content) == 2 and verify_answer(text, prompt.gold).correct)
            answered = answered or right[-1]
        elif said in chain[at:]:
            right.append(True)
            at = chain.index(said, at) + 1
        else:
            right.append(not said)
    return right, answered


def _list(prompt: Prompt, contents: Sequence[Sequence[str]]) -> tuple[list[bool], bool]:
    """Labels of the items of a list, and whether there are as many as were asked for."""
    gold = prompt.gold
    members, count = list(gold["members"]), int(gold["count"])
    if gold.get("order") == "backwards":
        members.reverse()
    right: list[bool] = []
    taken: list[int] = []  # places of the right items among the members
    for place, content in _places(contents):
        item = list(content)
        if len(item) > 1 and item[0].isdigit():
            item = item[1:] if item[0] == str(place) else []
        if not content:
            right.append(True)
            continue
        at = members.index(item[0]) if len(item) == 1 and item[0] in members else -1
        good = at >= 0 and at not in taken and place <= count
        if good and place == 1:
            good = gold.get("first") in (None, item[0])
        if good and "order" in gold:
            good = at > max(taken, default=-1) and len(members) - at > count - place
        if good:
            taken.append(at)
        right.append(good)
    return right, sum(bool(content) for content in contents) == count


def _places(contents: Sequence[Sequence[str]]) -> Iterator[tuple[int, Sequence[str]]]:
    """Each part with the place of its item in the list, from 1; mere courtesy takes no place."""
    place = 0
    for content in contents:
        place += bool(content)
        yield place, content

"""Answers that people gave on the page of ``lab.annotate``: the rows of its journal, and the pairs that follow.

A row is a JSON object that needs no other file. Every row: ``kind`` ("answer" or "undo"), ``item`` (``item_id``),
``annotator``, ``time`` (ISO 8601, UTC). An answer also has ``prompt``, ``left`` and ``right`` (the texts as they stood
on the page), ``order`` ("ab": the file's first completion stood on the left; "ba"), ``answer``, one of ``ANSWERS``, and
``source_row``, the item's line in the file that it came from.

An annotator's last answer on an item stands; an undo takes it back. The answer that more than half of an item's
annotators give is the item's: so one annotator's word is final, and a vote of one against one leaves no pair. (A pair
for every annotator would be no better: readers drop duplicates, and so would turn two votes to one into one to one.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.data.jsonl import JsonlError, read_rows, shorten, text_at
from lab.records import text_id

ANSWERS = ("left", "right", "tie", "both_bad")
UNDECIDED = ("tie", "both_bad")
FATES = ("agreeing", "outvoted", "split", *UNDECIDED, "superseded")
"""What becomes of a row that is not itself a pair. agreeing: another row states the item's pair already; outvoted: most
annotators say something else; split: no answer has a majority; tie, both_bad: that is the majority's answer;
superseded: taken back or answered anew, and the rows that take back."""


@dataclass(frozen=True)
class Annotation:
    """One row of a journal, and the line it stands on."""

    line: int
    kind: str
    item: str
    annotator: str
    prompt: str = ""
    left: str = ""
    right: str = ""
    answer: str = ""

    @property
    def verdict(self) -> str:
        """What was said, whatever stood on which side: "tie", "both_bad", or the better text after an "=" sign."""
        if self.answer in UNDECIDED:
            return self.answer
        return "=" + (self.left if self.answer == "left" else self.right)


def item_id(prompt: str, first: str, second: str) -> str:
    """The identity of a prompt with two completions, in whatever order the completions come: 16 hex digits."""
    return text_id(json.dumps([prompt, *sorted((first, second))]))


def parse_annotation(path: Path, line: int, row: Mapping[str, Any]) -> Annotation:
    """A row as ``Annotation``. Raises JsonlError naming file, line and key."""
    kind, item, annotator = (text_at(path, line, row, key) for key in ("kind", "item", "annotator"))
    if kind == "undo":
        return Annotation(line, kind, item, annotator)
    if kind != "answer":
        raise JsonlError(f"{path}:{line}: key 'kind': expected answer or undo, got {shorten(kind)}")
    prompt, left, right, answer = (text_at(path, line, row, key) for key in ("prompt", "left", "right", "answer"))
    if answer not in ANSWERS:
        raise JsonlError(f"{path}:{line}: key 'answer': expected one of {', '.join(ANSWERS)}, got {shorten(answer)}")
    if item != item_id(prompt, left, right):
        raise JsonlError(f"{path}:{line}: key 'item': {item} is not the identity of this prompt and its completions")
    return Annotation(line, kind, item, annotator, prompt, left, right, answer)


def standing(annotations: Iterable[Annotation]) -> dict[tuple[str, str], Annotation]:
    """(item, annotator) -> the answer that stands, in the order in which they were given."""
    last: dict[tuple[str, str], Annotation] = {}
    for one in annotations:
        last.pop((one.item, one.annotator), None)
        if one.kind == "answer":
            last[one.item, one.annotator] = one
    return last


def read_annotations(path: Path) -> list[Annotation]:
    """Every row of a journal. Raises JsonlError for what cannot be read, a torn last line included."""
    return [parse_annotation(Path(path), line, row) for line, row in read_rows(Path(path))]


def settled_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """(line, row) of every row of a journal, in its order: ``{"prompt", "chosen", "rejected"}`` for the one row of an
    item that states its pair (the first of the majority), else ``{"fate": one of FATES}``.

    Journals of several annotators are put together by writing one after the other. Raises JsonlError.
    """
    annotations = read_annotations(path)
    votes: dict[str, list[Annotation]] = {}
    for one in standing(annotations).values():
        votes.setdefault(one.item, []).append(one)
    rows: dict[int, dict[str, str]] = {}
    for item in votes.values():
        rows |= _settle(item)
    for one in annotations:
        yield one.line, rows.get(one.line, {"fate": "superseded"})


def _settle(votes: list[Annotation]) -> dict[int, dict[str, str]]:
    """The rows of one item's standing answers, by line."""
    verdict, count = Counter(vote.verdict for vote in votes).most_common(1)[0]
    if 2 * count <= len(votes):
        return {vote.line: {"fate": "split"} for vote in votes}
    rows: dict[int, dict[str, str]] = {}
    stated = False
    for vote in sorted(votes, key=lambda vote: vote.line):
        if vote.verdict != verdict:
            rows[vote.line] = {"fate": "outvoted"}
        elif verdict in UNDECIDED:
            rows[vote.line] = {"fate": verdict}
        elif stated:
            rows[vote.line] = {"fate": "agreeing"}
        else:
            stated = True
            chosen, rejected = (vote.left, vote.right) if vote.answer == "left" else (vote.right, vote.left)
            rows[vote.line] = {"prompt": vote.prompt, "chosen": chosen, "rejected": rejected}
    return rows

"""Where one annotator is: what is answered, what comes next, what an undo takes back. No files, no page, no clock."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from lab.annotate.items import Item
from lab.data.annotations import ANSWERS, Annotation, standing

PAUSE = 0.3
"""Seconds after an answer in which another is refused: nobody reads two texts so fast, but a key bounces."""


class RefusedError(ValueError):
    """An answer or undo that does not count; the message is for the annotator."""


@dataclass(frozen=True)
class Progress:
    """How far the annotator is; ``counts``: how often each answer stands."""

    answered: int
    total: int
    counts: dict[str, int]


class Session:
    """One annotator's way through the items; what has been said so far comes as the rows of the journal.

    ``answer`` and ``undo`` return the row to be written and change nothing; ``record`` takes in what was written. So an
    answer that never reached the disk was never given.
    """

    def __init__(self, items: Sequence[Item], annotator: str, past: Iterable[Annotation] = ()) -> None:
        self.annotator = annotator
        self._items = {item.id: item for item in items}
        self._rows = [row for row in past if row.annotator == annotator]
        self._last: datetime | None = None
        self._look()

    def record(self, row: Annotation) -> None:
        """Take in a row that is on the disk."""
        self._rows.append(row)
        self._look()

    def _look(self) -> None:
        answers = standing(self._rows).values()
        self._standing = {row.item: row for row in answers if row.item in self._items}
        returned = self._rows[-1].item if self._rows and self._rows[-1].kind == "undo" else None
        waiting = (item for item in self._items.values() if item.id not in self._standing)
        self._current = self._items.get(returned or "") or next(waiting, None)

    @property
    def current(self) -> Item | None:
        """What to ask now: the item just taken back, else the first of the file without an answer; None: all done."""
        return self._current

    @property
    def token(self) -> str:
        """Names this state; an answer that carries another is one to a question that is no longer asked."""
        return f"{len(self._rows)}-{self._current.id if self._current else 'done'}"

    @property
    def progress(self) -> Progress:
        counts = Counter(row.answer for row in self._standing.values())
        return Progress(len(self._standing), len(self._items), {answer: counts[answer] for answer in ANSWERS})

    @property
    def last(self) -> Annotation | None:
        """The answer that an undo would take back: the newest that stands."""
        return next(reversed(self._standing.values()), None)

    def answer(self, token: str, answer: str, now: datetime) -> dict[str, Any]:
        """The row of an answer. Raises RefusedError for a stale token, a second answer within ``PAUSE`` or nothing to
        answer; ValueError for an unknown answer."""
        if answer not in ANSWERS:
            raise ValueError(f"answer: expected one of {', '.join(ANSWERS)}, got {answer!r}")
        if token != self.token:
            raise RefusedError("That pair was answered already; this one is new.")
        if self._current is None:
            raise RefusedError("Every pair is answered.")
        if self._last is not None and (now - self._last).total_seconds() < PAUSE:
            raise RefusedError("Ignored: two answers within a blink.")
        self._last = now
        item = self._current
        left, right = item.sides(self.annotator)
        return {
            **self._row("answer", item.id, now),
            "answer": answer,
            "order": item.order(self.annotator),
            "prompt": item.prompt,
            "left": left,
            "right": right,
            "source_row": item.row,
        }

    def undo(self, token: str, now: datetime) -> dict[str, Any]:
        """The row that takes back the newest answer. Raises RefusedError for a stale token or nothing to take back."""
        if token != self.token:
            raise RefusedError("The page has moved on; press again to undo.")
        if self.last is None:
            raise RefusedError("There is nothing to undo.")
        return self._row("undo", self.last.item, now)

    def _row(self, kind: str, item: str, now: datetime) -> dict[str, Any]:
        time = now.isoformat(timespec="milliseconds")
        return {"kind": kind, "item": item, "annotator": self.annotator, "time": time}

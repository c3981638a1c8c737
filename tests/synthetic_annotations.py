"""Annotations made by hand, and an annotator at work without a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from lab.annotate.items import Item
from lab.annotate.journal import Journal
from lab.annotate.session import Session
from lab.data.annotations import Annotation, item_id, parse_annotation

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ITEMS = [Item(n + 1, f"Question {n}?", f"Good {n}", f"Bad {n}") for n in range(4)]
Row = Mapping[str, Any]


def write(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answer(item: int, better: str, annotator: str = "anna", swap: bool = False) -> dict[str, Any]:
    """``better``: good, bad, tie or both_bad; ``swap``: the good one stood on the right."""
    left, right = f"Good {item}", f"Bad {item}"
    if swap:
        left, right = right, left
    said = {"good": "right" if swap else "left", "bad": "left" if swap else "right"}.get(better, better)
    row = {"kind": "answer", "annotator": annotator, "time": "t", "answer": said, "order": "ab"}
    return {**row, **undo(item, annotator), "kind": "answer", "prompt": f"Q{item}", "left": left, "right": right}


def undo(item: int, annotator: str = "anna") -> dict[str, Any]:
    identity = item_id(f"Q{item}", f"Good {item}", f"Bad {item}")
    return {"kind": "undo", "item": identity, "annotator": annotator, "time": "t"}


def parsed(rows: Sequence[Row]) -> list[Annotation]:
    return [parse_annotation(Path("x"), line, row) for line, row in enumerate(rows, 1)]


class Sitting:
    """A session with its journal and a clock that ticks a second a press."""

    def __init__(self, path: Path, annotator: str = "anna", items: Sequence[Item] = ITEMS) -> None:
        self.journal = Journal(path)
        self.session = Session(items, annotator, self.journal.rows)
        self.now = NOON

    def press(self, name: str, token: str | None = None, wait: float = 1.0) -> None:
        self.now += timedelta(seconds=wait)
        token = self.session.token if token is None else token
        act = self.session.undo(token, self.now) if name == "u" else self.session.answer(token, name, self.now)
        self.session.record(self.journal.append(act))

    @property
    def asked(self) -> int | None:
        return self.session.current.row if self.session.current else None

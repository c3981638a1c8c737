"""What people are asked: prompts with two completions each, from a file of pairs or a preferences artifact."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.data.annotations import item_id
from lab.data.jsonl import JsonlError, prompt_at, read_rows, text_at, value_at
from lab.data.pair_formats import Stated, read_hh, read_instruction, read_pairs
from lab.records import derive_seed

FORMATS = {"pairs": read_pairs, "hh": read_hh, "instruction": read_instruction}
"""How a row states two completions of one prompt: those of ``lab.data.preference_files`` that say nothing else."""


@dataclass(frozen=True)
class Item:
    """A question. ``row``: its line; ``first``, ``second``: completion_a and completion_b, or chosen and rejected."""

    row: int
    prompt: str
    first: str
    second: str

    @property
    def id(self) -> str:
        return item_id(self.prompt, self.first, self.second)

    def order(self, annotator: str) -> str:
        """Which completion stands on the left: "ab" the first, "ba" the second. A fair coin, the same at every look.

        The identity of the item and the annotator's name are all that decides it, not which column a text stands in.
        """
        swap = derive_seed("annotate", "order", annotator, self.id) & 1
        return "ab" if swap == (self.first <= self.second) else "ba"

    def sides(self, annotator: str) -> tuple[str, str]:
        """(left, right) as this annotator sees them."""
        return (self.first, self.second) if self.order(annotator) == "ab" else (self.second, self.first)


@dataclass(frozen=True)
class Items:
    """The questions of ``path`` in its order; rows without a question are counted: two equal completions, and repeats
    of an earlier row (whichever completion comes first)."""

    path: Path
    items: tuple[Item, ...]
    identical: tuple[int, ...]
    repeated: tuple[int, ...]


def load_items(path: Path, format: str = "pairs") -> Items:
    """Every item of a ``.jsonl``, ``.jsonl.gz`` or ``.json`` file, or of the ``pairs.jsonl`` in a folder.

    A row has ``prompt`` with ``completion_a`` and ``completion_b``, or is one of ``format``, as
    ``lab.data.preference_files`` reads it; the lab's own pairs are told by their prompt, an object.
    Raises JsonlError naming file, line and key, also where nothing is left to ask.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    if path.is_dir():
        path = path / "pairs.jsonl"
    found: dict[str, Item] = {}
    identical, repeated = [], []
    for line, row in read_rows(path):
        item = Item(line, *_texts(path, line, row, format))
        if not item.prompt.strip():
            raise JsonlError(f"{path}:{line}: key 'prompt': the prompt is empty")
        if item.first == item.second:
            identical.append(line)
        elif item.id in found:
            repeated.append(line)
        else:
            found[item.id] = item
    if not found:
        raise JsonlError(f"{path}: no two completions differ in any of the {len(identical)} rows")
    return Items(path, tuple(found.values()), tuple(identical), tuple(repeated))


def _texts(path: Path, line: int, row: Mapping[str, Any], format: str) -> tuple[str, str, str]:
    if "completion_a" in row or "completion_b" in row:
        first, second = (text_at(path, line, row, key) for key in ("completion_a", "completion_b"))
        return _prompt(path, line, row), first, second
    if isinstance(row.get("prompt"), dict):
        first, second = (text_at(path, line, row, key) for key in ("chosen", "rejected"))
        return _prompt(path, line, row), first, second
    if format == "pairs" and "chosen" not in row and "rejected" not in row:
        value_at(path, line, row, "prompt")
        raise JsonlError(
            f"{path}:{line}: keys 'completion_a' and 'completion_b', or 'chosen' and 'rejected', are missing"
            f" (the row has: {', '.join(row)})"
        )
    (stated,) = FORMATS[format](path, line, row)
    if not isinstance(stated, Stated):
        raise JsonlError(f"{path}:{line}: {stated.message}")
    return stated.prompt, stated.chosen, stated.rejected


def _prompt(path: Path, line: int, row: Mapping[str, Any]) -> str:
    prompt = value_at(path, line, row, "prompt")
    return prompt_at(path, line, row).text if isinstance(prompt, dict) else text_at(path, line, row, "prompt")

"""Question/answer rows from a local file: checked in full before any model work, then cut into disjoint splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lab.data.jsonl import JsonlError, read_rows, shorten, text_at, value_at
from lab.records import Demonstration, Prompt, derive_seed, text_id
from lab.verifiers import find_verifier
from lab.verifiers.gsm8k import strip_annotations

SPLITS = ("evaluation", "tuning", "sft", "preference", "rl")
"""The order in which splits take their share: more training prompts never change the evaluation prompts."""


WHOLE_ROW = "*"
"""As the answer column: the verifier reads the whole row (IFEval rows spread over several columns)."""


class HasPrompt(Protocol):
    @property
    def prompt(self) -> Prompt: ...


Item = TypeVar("Item", bound=HasPrompt)


@dataclass(frozen=True)
class Loaded:
    """The rows of a file. `duplicates` counts dropped rows, `conflicts` those of them whose answer differed."""

    rows: list[Demonstration]
    duplicates: int
    conflicts: int

    @property
    def prompts(self) -> list[Prompt]:
        return [row.prompt for row in self.rows]


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex: what stands for the file in a step's identity."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(
    path: Path,
    *,
    question: str = "question",
    answer: str = "answer",
    verifier: str = "gsm8k",
    domain: str = "math",
) -> Loaded:
    """Every row as (prompt with gold, demonstration), each validated by the verifier's `parse_gold`.

    Two rows whose questions differ only in case and white space are one prompt; of those the one with the smallest text
    stays, whatever the order of the file. Demonstrations are the answer column without calculator annotations (empty
    for answers that are no text).
    Raises JsonlError naming file, line and key; ValueError for an unknown verifier.
    """
    path = Path(path)
    parse = find_verifier(verifier).parse_gold
    chosen: dict[str, Demonstration] = {}
    duplicates = conflicts = 0
    for line, row in read_rows(path):
        text = text_at(path, line, row, question)
        if not text.strip():
            raise JsonlError(f"{path}:{line}: key '{question}': the question is empty")
        raw = row if answer == WHOLE_ROW else value_at(path, line, row, answer)
        try:
            gold = parse(raw)
        except ValueError as error:
            raise JsonlError(f"{path}:{line}: key '{answer}': {error}") from None
        completion = strip_annotations(raw) if isinstance(raw, str) else "" if isinstance(raw, dict) else str(raw)
        new = Demonstration(Prompt(text, domain, 0, gold), completion)
        key = normalised_id(text)
        if key in chosen:
            duplicates += 1
            conflicts += dict(chosen[key].prompt.gold) != gold
            new = min(chosen[key], new, key=_order)
        chosen[key] = new
    return Loaded(list(chosen.values()), duplicates, conflicts)


def split(items: Sequence[Item], parts: Mapping[str, int], seed: int) -> dict[str, list[Item]]:
    """Disjoint parts of the given sizes, chosen by the hash of (seed, question): the file's order is irrelevant.

    Raises ValueError where the parts need more items than there are, or an item occurs twice.
    """
    for name, count in parts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ValueError(f"counts.{name}: expected a number of prompts, got {shorten(count)}")
    needed = sum(parts.values())
    if needed > len(items):
        wanted = " + ".join(f"{count} {name}" for name, count in parts.items())
        raise ValueError(f"counts: {wanted} = {needed} prompts are needed, the data has {len(items)} different ones")
    by_id = {normalised_id(item.prompt.text): item for item in items}
    if len(by_id) != len(items):
        raise ValueError("a prompt occurs twice: drop duplicates before splitting")
    ranked = [by_id[key] for key in sorted(by_id, key=lambda key: (derive_seed("split", seed, key), key))]
    taken = 0
    cut: dict[str, list[Item]] = {}
    for name in sorted(parts, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)):
        cut[name] = ranked[taken : taken + parts[name]]
        taken += parts[name]
    return cut


def normalised_id(text: str) -> str:
    """The identity of a question up to case and white space."""
    return text_id(" ".join(text.casefold().split()))


def _order(row: Demonstration) -> tuple[Any, ...]:
    return row.prompt.text, row.completion, json.dumps(dict(row.prompt.gold), sort_keys=True)

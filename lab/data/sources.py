"""Question/answer rows from a file or the Hub: checked in full before any model work, then cut into disjoint splits."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from lab.data.chat import render, turns_at
from lab.data.jsonl import JsonlError, shorten, text_at, value_at
from lab.data.origin import Origin, Reading
from lab.data.origin import file_digest as file_digest
from lab.records import Demonstration, Prompt, derive_seed, text_id
from lab.verifiers import find_verifier
from lab.verifiers.gsm8k import strip_annotations
from lab.verifiers.math import final_answer

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
    """The rows of an origin. `duplicates` counts dropped rows, `conflicts` those of them whose answer differed,
    `unreadable` names those that could not be read; `digest` is that of what was read."""

    rows: list[Demonstration]
    duplicates: int
    conflicts: int
    unreadable: tuple[int, ...] = ()
    digest: str = ""

    @property
    def prompts(self) -> list[Prompt]:
        return [row.prompt for row in self.rows]


def load(
    path: Path | Origin,
    *,
    question: str = "question",
    answer: str = "answer",
    verifier: str = "gsm8k",
    domain: str = "math",
    demonstration: str = "",
    drop: Collection[str] = (),
) -> Loaded:
    """Every row as (prompt with gold, demonstration), each validated by the verifier's `parse_gold`.

    The question is a text or a list of chat messages; where the assistant speaks last in it, that turn is no part of
    the prompt. The answer is a column, the whole row (`WHOLE_ROW`) or, where it names the messages, that turn; of a
    worked solution for the verifier `math` the boxed answer is the gold. Demonstrations are the column `demonstration`,
    else the answer without calculator annotations (empty for answers that are no text).

    Two rows whose questions differ only in case and white space are one prompt; of those the one with the smallest text
    stays, whatever the order of the file. Rows that cannot be read are left out where `drop` says "unreadable".
    Raises JsonlError naming file, line and key; ValueError for an unknown verifier.
    """
    origin = path if isinstance(path, Origin) else Origin(str(path))
    parse = find_verifier(verifier).parse_gold
    chosen: dict[str, Demonstration] = {}
    duplicates = conflicts = 0
    unreadable: list[int] = []

    def skip(line: int, error: JsonlError) -> None:
        if "unreadable" not in drop:
            raise error from None
        unreadable.append(line)

    reading = Reading(origin, skip)
    for line, row in reading:
        try:
            text, raw, shown = _columns(origin.name, line, row, question, answer, demonstration)
            try:
                gold = parse(_boxed(raw) if verifier == "math" else raw)
            except ValueError as error:
                raise JsonlError(f"{origin.name}:{line}: key '{answer}': {error}") from None
        except JsonlError as error:
            skip(line, error)
            continue
        new = Demonstration(Prompt(text, domain, 0, gold), shown)
        key = normalised_id(text)
        if key in chosen:
            duplicates += 1
            conflicts += dict(chosen[key].prompt.gold) != gold
            new = min(chosen[key], new, key=_order)
        chosen[key] = new
    if not chosen:
        raise JsonlError(f"{origin.name}: none of the {reading.count} rows is left ({len(unreadable)} unreadable)")
    return Loaded(list(chosen.values()), duplicates, conflicts, tuple(unreadable), reading.digest)


def _columns(
    path: Path, line: int, row: Mapping[str, Any], question: str, answer: str, demonstration: str
) -> tuple[str, Any, str]:
    """The prompt's text, the raw answer and the demonstration of a row."""
    asked = value_at(path, line, row, question)
    last = ""
    if isinstance(asked, list):
        turns = turns_at(path, line, question, asked)
        if turns[-1][0] == "assistant":
            *turns, (_, last) = turns
        text = render(turns)
    else:
        text = text_at(path, line, row, question)
    if not text.strip():
        raise JsonlError(f"{path}:{line}: key '{question}': the question is empty")
    if isinstance(asked, list) and answer == question:
        if not last.strip():
            raise JsonlError(f"{path}:{line}: key '{question}': the assistant does not speak last, so nothing answers")
        raw: Any = last
    else:
        raw = row if answer == WHOLE_ROW else value_at(path, line, row, answer)
    if demonstration:
        return text, raw, text_at(path, line, row, demonstration)
    if last:
        return text, raw, last
    return text, raw, strip_annotations(raw) if isinstance(raw, str) else "" if isinstance(raw, dict) else str(raw)


def _boxed(raw: Any) -> Any:
    """The boxed answer of a worked solution; anything else as it is."""
    if isinstance(raw, str) and ("\\boxed" in raw or "\\fbox" in raw):
        return final_answer(raw) or raw
    return raw


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

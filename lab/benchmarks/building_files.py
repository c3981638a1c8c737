"""Prompts and completions for a benchmark from JSONL files: what stands in a row, and the answer a completion states.

A prompt's row: ``prompt``, ``domain``; optional ``verifier`` with ``answer`` (``lab.verifiers``), ``extract`` (gsm8k or
math: how to read a stated answer where there is no reference), ``group`` and ``side`` (ref or tied) of a Ties prompt.
A completion's row: ``prompt``, ``model``, ``completion``; optional ``truncated`` and ``correct``: what people say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.data.jsonl import JsonlError, read_rows, shorten, text_at, value_at
from lab.data.sources import normalised_id
from lab.records import Prompt
from lab.verifiers import find_verifier, gsm8k, math
from lab.world.unseen import Unseen

PROMPT_KEYS = ("prompt", "domain", "verifier", "answer", "extract", "group", "side")
COMPLETION_KEYS = ("prompt", "model", "completion", "truncated", "correct")
TRAINING_KEYS = ("prompt", "question", "instruction", "text")
"""Where the prompt of a training row stands: the first of these that it has."""


@dataclass(frozen=True)
class Answered:
    """A completion of a file: whose it is, and what people said of it (None: nothing)."""

    prompt_id: str
    model: str
    text: str
    truncated: bool
    correct: bool | None


def read_prompt_file(path: Path) -> list[Unseen]:
    """The prompts of a file, in its order. Raises JsonlError naming file, line and key."""
    found = []
    for line, row in read_rows(path):
        _known(path, line, row, PROMPT_KEYS)
        text, domain = _filled(path, line, row, "prompt"), _filled(path, line, row, "domain")
        side = row.get("side")
        if side not in (None, "ref", "tied"):
            raise JsonlError(f"{path}:{line}: key 'side': expected ref or tied, got {shorten(side)}")
        group = None if row.get("group") is None else _filled(path, line, row, "group")
        if (group is None) != (side is None):
            raise JsonlError(f"{path}:{line}: keys 'group' and 'side' belong together; got {group!r} and {side!r}")
        found.append(Unseen(Prompt(text, domain, 0, _gold(path, line, row)), group, side))
    return found


def _gold(path: Path, line: int, row: Mapping[str, Any]) -> dict[str, Any]:
    if row.get("verifier") is not None:
        try:
            verifier = find_verifier(row["verifier"])
            return {"verifier": row["verifier"], **verifier.parse_gold(value_at(path, line, row, "answer"))}
        except JsonlError:
            raise
        except ValueError as error:
            raise JsonlError(f"{path}:{line}: key 'answer': {error}") from None
    if row.get("extract") is None:
        return {}
    if row["extract"] not in EXTRACTORS:
        known = ", ".join(EXTRACTORS)
        raise JsonlError(f"{path}:{line}: key 'extract': expected {known}, got {shorten(row['extract'])}")
    return {"extract": row["extract"]}


def read_completion_file(path: Path, prompts: Sequence[Prompt]) -> tuple[list[Answered], int]:
    """The completions of these prompts (case and white space aside), and how many rows are of other prompts.

    Raises JsonlError naming file, line and key.
    """
    ids = {normalised_id(prompt.text): prompt.id for prompt in prompts}
    found: list[Answered] = []
    others = 0
    for line, row in read_rows(path):
        _known(path, line, row, COMPLETION_KEYS)
        model, text = _filled(path, line, row, "model"), text_at(path, line, row, "completion")
        for key in ("truncated", "correct"):
            if not isinstance(row.get(key), bool | None):
                raise JsonlError(f"{path}:{line}: key '{key}': expected true, false or null, got {shorten(row[key])}")
        prompt_id = ids.get(normalised_id(_filled(path, line, row, "prompt")))
        if prompt_id is None:
            others += 1
            continue
        found.append(Answered(prompt_id, model, text, bool(row.get("truncated")), row.get("correct")))
    return found, others


def read_training_prompts(path: Path) -> list[str]:
    """The prompt texts of a file of training rows (``TRAINING_KEYS``). Raises JsonlError naming file and line."""
    texts = []
    for line, row in read_rows(path):
        prompt = row.get("prompt")
        if isinstance(prompt, dict):  # the lab's own records
            row = prompt
        key = next((key for key in TRAINING_KEYS if key in row), None)
        if key is None:
            raise JsonlError(f"{path}:{line}: no prompt in any of {', '.join(TRAINING_KEYS)} (has: {', '.join(row)})")
        texts.append(text_at(path, line, row, key))
    return texts


# ---------------------------------------------------------------- what a completion states


def _gsm8k(completion: str) -> str | None:
    value, _ = gsm8k.extract_answer(completion)
    return None if value is None else str(value)


EXTRACTORS: dict[str, Callable[[str], str | None]] = {"gsm8k": _gsm8k, "math": math.final_answer}


def stated_answer(prompt: Prompt, completion: str) -> str | None:
    """The answer that a completion states, by its prompt's extractor or verifier; None where there is none to read it,
    or it states none. Equal answers are equal texts for gsm8k; for math, as they are written."""
    extract = EXTRACTORS.get(str(prompt.gold.get("extract", prompt.verifier)))
    return None if extract is None else extract(completion)


def _known(path: Path, line: int, row: Mapping[str, Any], keys: Sequence[str]) -> None:
    for key in row:
        if key not in keys:
            raise JsonlError(f"{path}:{line}: key '{key}' is unknown (expected: {', '.join(keys)})")


def _filled(path: Path, line: int, row: Mapping[str, Any], key: str) -> str:
    text = text_at(path, line, row, key)
    if not text.strip():
        raise JsonlError(f"{path}:{line}: key '{key}': empty")
    return text

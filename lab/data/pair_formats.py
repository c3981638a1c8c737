r"""Formats in which a row states its pair by itself: a row in, what it states out. ``lab.data.preference_files`` says
what they are called; ``lab.data.ratings`` has those in which completions are rated one by one.

What cannot be read raises ``JsonlError``. A row that can be read and states no pair gives a ``Problem`` in its place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.data.chat import ASSISTANT, HUMAN, Turns, answered, render, turns_at
from lab.data.jsonl import JsonlError, shorten, text_at, value_at

Row = Mapping[str, Any]
_NEMOTRON_TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


@dataclass(frozen=True, slots=True)
class Stated:
    """A pair as a row states it. strength: how much better, in the data's own unit (0: not stated)."""

    prompt: str
    chosen: str
    rejected: str
    strength: float = 0.0


@dataclass(frozen=True, slots=True)
class Problem:
    """Why row ``line`` gives one pair less: the name it is counted under, and what an error would say."""

    name: str
    line: int
    message: str = ""


States = list[Stated | Problem]


def read_pairs(path: Path, line: int, row: Row) -> States:
    """Columns prompt, chosen, rejected: each a text or a list of chat messages."""
    (before, chosen), (other, rejected) = (_side(path, line, row, key) for key in ("chosen", "rejected"))
    if before != other:
        return [Problem("diverging", line, "chosen and rejected do not begin with the same turns")]
    if "prompt" not in row and before:
        return [Stated(render(before), chosen, rejected)]
    given = value_at(path, line, row, "prompt")
    prompt = given if isinstance(given, str) else render(turns_at(path, line, "prompt", given))
    if not before:
        return [Stated(prompt, chosen, rejected)]
    # Many data sets repeat the prompt in both conversations, some only its first or last question.
    if prompt not in (render(before), *(text for role, text in before if role == "user")):
        return [Problem("diverging", line, "key 'prompt' is not in the turns that chosen and rejected begin with")]
    return [Stated(render(before), chosen, rejected)]


def _side(path: Path, line: int, row: Row, key: str) -> tuple[Turns, str]:
    """The turns before the completion, and the completion."""
    value = value_at(path, line, row, key)
    return ([], value) if isinstance(value, str) else answered(path, line, key, value)


def read_binarized(path: Path, line: int, row: Row) -> States:
    """UltraFeedback as Tunstall et al. 2023 (arXiv:2310.16944) made pairs of it: as ``read_pairs``, with the scores
    (columns score_chosen, score_rejected) of which the difference is the strength."""
    chosen, rejected = (number_at(path, line, row, key) for key in ("score_chosen", "score_rejected"))
    if chosen < rejected:
        raise JsonlError(f"{path}:{line}: key 'score_chosen': {chosen:g} is below score_rejected, {rejected:g}")
    states = read_pairs(path, line, row)
    if chosen == rejected:
        return [Problem("tied", line, f"chosen and rejected have the same score, {chosen:g}")]
    return [
        Stated(one.prompt, one.chosen, one.rejected, chosen - rejected) if isinstance(one, Stated) else one
        for one in states
    ]


def read_hh(path: Path, line: int, row: Row) -> States:
    """Two transcripts that part in their last turn (Bai et al. 2022, arXiv:2204.05862)."""
    texts = [text_at(path, line, row, key) for key in ("chosen", "rejected")]
    for key, text in zip(("chosen", "rejected"), texts, strict=True):
        if ASSISTANT not in text:
            raise JsonlError(f"{path}:{line}: key '{key}': no {ASSISTANT!r} in the transcript {shorten(text)}")
    shared = _common_prefix(*texts)
    end = shared.rfind(ASSISTANT)
    if end < 0:
        return [Problem("diverging", line, "chosen and rejected share no prompt")]
    answers = [text[end + len(ASSISTANT) :] for text in texts]
    if any(speaker in answer for answer in answers for speaker in (HUMAN, ASSISTANT)):
        return [Problem("diverging", line, "chosen and rejected part before their last turn")]
    return [Stated(shared[:end].removeprefix(HUMAN).strip(), answers[0].strip(), answers[1].strip())]


def _common_prefix(first: str, second: str) -> str:
    if first == second:
        return first
    # By halves: comparing slices is C, comparing characters is not, and transcripts are long.
    low, high = 0, min(len(first), len(second))
    while low < high:
        middle = (low + high + 1) // 2
        if first[low:middle] == second[low:middle]:
            low = middle
        else:
            high = middle - 1
    return first[:low]


def read_instruction(path: Path, line: int, row: Row) -> States:
    """Columns instruction, input (may be empty), chosen, rejected."""
    instruction, more, chosen, rejected = (
        text_at(path, line, row, key) for key in ("instruction", "input", "chosen", "rejected")
    )
    return [Stated(f"{instruction}\n\n{more}" if more.strip() else instruction, chosen, rejected)]


def read_annotations(path: Path, line: int, row: Row) -> States:
    """A row of ``lab.data.annotations.settled_rows``."""
    if "fate" in row:
        return [Problem(row["fate"], line)]
    return [Stated(row["prompt"], row["chosen"], row["rejected"])]


def read_helpsteer2_preference(path: Path, line: int, row: Row) -> States:
    """Columns prompt, response_1, response_2 and preference_strength, from -3 (the first is much better) to 3 (Wang et
    al. 2024, arXiv:2410.01257)."""
    prompt, first, second = (text_at(path, line, row, key) for key in ("prompt", "response_1", "response_2"))
    strength = number_at(path, line, row, "preference_strength")
    if strength == 0:
        return [Problem("tied", line, "preference_strength is 0: neither response is preferred")]
    chosen, rejected = (first, second) if strength < 0 else (second, first)
    return [Stated(nemotron_turns(prompt), chosen, rejected, abs(strength))]


def nemotron_turns(prompt: str) -> str:
    """A prompt of HelpSteer2, whose later turns begin with "<extra_id_1>User" or "...Assistant", as this lab has it."""
    if "<extra_id_1>" not in prompt:
        return prompt
    first, *rest = _NEMOTRON_TURN.split(prompt)
    turns = [("user", first), *((speaker.lower(), text) for speaker, text in zip(rest[::2], rest[1::2], strict=True))]
    return render(turns if first.strip() else turns[1:])


def number_at(path: Path, line: int, row: Row, key: str) -> float:
    """``row[key]`` as a finite number. Raises JsonlError where it is missing or something else."""
    value = value_at(path, line, row, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < float("inf"):
        raise JsonlError(f"{path}:{line}: key '{key}': expected a number, got {shorten(value)}")
    return float(value)

r"""Preference pairs that somebody else stated, from a local file: four formats in, ``lab.records.Pair`` out.

``pairs``: columns prompt, chosen, rejected; each a text, or a list of chat messages ({"role", "content"}) of which the
last assistant turn is the completion. The prompt may be left out where both sides are such lists and begin with it.
``hh``: columns chosen and rejected, transcripts of "\n\nHuman:" and "\n\nAssistant:" turns that part in the last one
(Bai et al. 2022, arXiv:2204.05862). ``instruction``: columns instruction, input (may be empty), chosen, rejected.
``annotations``: what people said on the page of ``lab.annotate`` (``lab.data.annotations``); an item becomes one pair or
none, and every other row is counted by what became of it.

A conversation of one turn becomes that turn; a longer one stays a text with "Human:" and "Assistant:" before each turn
but the first, as the benchmarks of ``lab.benchmarks.readers`` have it.

What cannot be read is a ``JsonlError`` that names file and row. What can be read and is doubtful is a fault: counted
and named by row always, dropped only where the caller declares it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.data.annotations import FATES, settled_rows
from lab.data.jsonl import JsonlError, read_rows, shorten, text_at, value_at
from lab.data.sources import normalised_id
from lab.records import Pair, Prompt, derive_seed

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
SPEAKERS = {"system": "System", "user": "Human", "assistant": "Assistant"}

DROPPABLE = ("identical", "duplicate", "oversized", "diverging")
"""Faults that a caller may declare. identical: chosen and rejected are the same text; duplicate: prompt, chosen and
rejected are those of an earlier row; oversized: prompt and longer completion together exceed ``max_characters``;
diverging: the two sides do not answer the same prompt, so that there is no pair to keep (an error unless declared)."""

COUNTED = ("contradictory",)
"""Faults that are counted and never dropped. contradictory: an earlier row states the same pair the other way round."""


@dataclass(frozen=True)
class Fault:
    """The rows (1-based lines, or items of a ``.json`` list) that have one fault, and whether they were dropped."""

    rows: tuple[int, ...]
    dropped: bool


@dataclass(frozen=True)
class LoadedPairs:
    """What a file holds: ``rows`` read, the pairs kept, and every fault by name (those that did not occur included)."""

    rows: int
    pairs: list[Pair]
    faults: Mapping[str, Fault]


class _DivergingError(ValueError):
    """Two completions of different prompts."""


class _NoPairError(ValueError):
    """A row that states no pair and is no fault; the message is the name that it is counted under."""


def load_pairs(path: Path, format: str, *, max_characters: int = 0, drop: Collection[str] = ()) -> LoadedPairs:
    """Every pair of a file, in its order; of a row with several faults the first in ``DROPPABLE``'s order decides.

    ``max_characters`` 0: no row is oversized. Raises JsonlError for a path, row or column that cannot be read, an empty
    prompt, two sides that diverge where ``drop`` does not name it, and a file of which nothing is left; ValueError for
    an unknown format or fault.
    """
    if format not in READERS:
        raise ValueError(f"preferences.format: expected one of {', '.join(READERS)}, got {format!r}")
    for name in drop:
        if name not in DROPPABLE:
            raise ValueError(f"preferences.drop: expected some of {', '.join(DROPPABLE)}, got {name!r}")
    path, read = Path(path), READERS[format]
    found: dict[str, list[int]] = {name: [] for name in (*DROPPABLE, *COUNTED, *OTHER_ROWS.get(format, ()))}
    seen: set[tuple[str, str, str]] = set()
    pairs: list[Pair] = []
    count = 0
    for line, row in ROWS.get(format, read_rows)(path):
        count += 1
        try:
            prompt, chosen, rejected = read(path, line, row)
        except _DivergingError as error:
            if "diverging" not in drop:
                raise JsonlError(f"{path}:{line}: {error} (preferences.drop: diverging leaves such rows out)") from None
            found["diverging"].append(line)
            continue
        except _NoPairError as error:
            found[str(error)].append(line)
            continue
        if not prompt.strip():
            raise JsonlError(f"{path}:{line}: the prompt is empty")
        faults = []
        if chosen == rejected:
            faults.append("identical")
        if (prompt, chosen, rejected) in seen:
            faults.append("duplicate")
        elif chosen != rejected and (prompt, rejected, chosen) in seen:
            faults.append("contradictory")
        if max_characters and len(prompt) + max(len(chosen), len(rejected)) > max_characters:
            faults.append("oversized")
        seen.add((prompt, chosen, rejected))
        for name in faults:
            found[name].append(line)
        if not any(name in drop for name in faults):
            pairs.append(Pair(Prompt(prompt, format, 0), chosen, rejected, annotator=format))
    gone = (*drop, *OTHER_ROWS.get(format, ()))
    result = {name: Fault(tuple(rows), name in gone) for name, rows in found.items()}
    if not pairs:
        counts = ", ".join(f"{len(fault.rows)} {name}" for name, fault in result.items() if fault.rows)
        raise JsonlError(f"{path}: none of the {count} rows is left ({counts})")
    return LoadedPairs(count, pairs, result)


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held out), both in an order of their own: the hash of seed and prompt says where a pair goes.

    So all pairs of a prompt stay together, and neither the file's order nor further rows move any other pair. A
    conversation goes where its opening turn goes, case and white space aside: its later turns repeat the earlier.
    ``share`` is that of the openings in expectation, not exactly. Raises ValueError unless 0 < share < 1.
    """
    if not 0 < share < 1:
        raise ValueError(f"preferences.held_out: expected a share between 0 and 1, got {share!r}")
    training: list[Pair] = []
    held_out: list[Pair] = []
    for pair in sorted(pairs, key=lambda pair: _order(pair, seed)):
        place = derive_seed("held out", seed, normalised_id(opening(pair.prompt.text))) / 2**63
        (held_out if place < share else training).append(pair)
    return training, held_out


def opening(prompt: str) -> str:
    """The first turn of a prompt of this module."""
    return prompt.split(ASSISTANT, 1)[0]


def _order(pair: Pair, seed: int) -> tuple[int, str, str, str]:
    return derive_seed("pairs", seed, pair.prompt.id), pair.prompt.text, pair.chosen, pair.rejected


# ---------------------------------------------------------------- formats: a row as prompt, chosen, rejected


def _read_pairs(path: Path, line: int, row: Mapping[str, Any]) -> tuple[str, str, str]:
    sides = [_side(path, line, row, key) for key in ("chosen", "rejected")]
    (before, chosen), (other, rejected) = sides
    if before != other:
        raise _DivergingError("chosen and rejected do not begin with the same turns")
    if "prompt" not in row and before:
        return render(before), chosen, rejected
    given = value_at(path, line, row, "prompt")
    prompt = given if isinstance(given, str) else render(_turns(path, line, "prompt", given))
    if not before:
        return prompt, chosen, rejected
    # Many data sets repeat the prompt in both conversations, some only its first or last question.
    if prompt not in (render(before), *(text for role, text in before if role == "user")):
        raise _DivergingError("key 'prompt' is not in the turns that chosen and rejected begin with")
    return render(before), chosen, rejected


def _side(path: Path, line: int, row: Mapping[str, Any], key: str) -> tuple[list[tuple[str, str]], str]:
    """The turns before the completion, and the completion."""
    value = value_at(path, line, row, key)
    if isinstance(value, str):
        return [], value
    turns = _turns(path, line, key, value)
    role, completion = turns[-1]
    if role != "assistant":
        raise JsonlError(f"{path}:{line}: key '{key}': the last message is by {role!r}, expected 'assistant'")
    return turns[:-1], completion


def _turns(path: Path, line: int, key: str, value: Any) -> list[tuple[str, str]]:
    if not isinstance(value, list) or not value:
        raise JsonlError(f"{path}:{line}: key '{key}': expected a text or a list of messages, got {shorten(value)}")
    turns = []
    for number, message in enumerate(value):
        where = f"{path}:{line}: key '{key}[{number}]'"
        if not isinstance(message, dict):
            raise JsonlError(f"{where}: expected a message with role and content, got {shorten(message)}")
        role, content = message.get("role"), message.get("content")
        if role not in SPEAKERS:
            raise JsonlError(f"{where}: role: expected one of {', '.join(SPEAKERS)}, got {shorten(role)}")
        if not isinstance(content, str):
            raise JsonlError(f"{where}: content: expected a text, got {shorten(content)}")
        turns.append((role, content))
    return turns


def render(turns: Sequence[tuple[str, str]]) -> str:
    """Turns (role, content) as one text, each with its speaker before it, but for a user who speaks first."""
    if len(turns) == 1 and turns[0][0] == "user":
        return turns[0][1]
    return "".join(f"\n\n{SPEAKERS[role]}: {content}" for role, content in turns).removeprefix(HUMAN).strip()


def _read_hh(path: Path, line: int, row: Mapping[str, Any]) -> tuple[str, str, str]:
    texts = [text_at(path, line, row, key) for key in ("chosen", "rejected")]
    for key, text in zip(("chosen", "rejected"), texts, strict=True):
        if ASSISTANT not in text:
            raise JsonlError(f"{path}:{line}: key '{key}': no {ASSISTANT!r} in the transcript {shorten(text)}")
    shared = _common_prefix(*texts)
    end = shared.rfind(ASSISTANT)
    if end < 0:
        raise _DivergingError("chosen and rejected share no prompt")
    answers = [text[end + len(ASSISTANT) :] for text in texts]
    if any(speaker in answer for answer in answers for speaker in (HUMAN, ASSISTANT)):
        raise _DivergingError("chosen and rejected part before their last turn")
    return shared[:end].removeprefix(HUMAN).strip(), answers[0].strip(), answers[1].strip()


def _common_prefix(first: str, second: str) -> str:
    length = next((at for at, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
    return min(first, second, key=len) if length is None else first[:length]


def _read_instruction(path: Path, line: int, row: Mapping[str, Any]) -> tuple[str, str, str]:
    instruction, more, chosen, rejected = (
        text_at(path, line, row, key) for key in ("instruction", "input", "chosen", "rejected")
    )
    return f"{instruction}\n\n{more}" if more.strip() else instruction, chosen, rejected


def _read_annotations(path: Path, line: int, row: Mapping[str, Any]) -> tuple[str, str, str]:
    if "fate" in row:
        raise _NoPairError(row["fate"])
    return row["prompt"], row["chosen"], row["rejected"]


READERS: Mapping[str, Callable[[Path, int, Mapping[str, Any]], tuple[str, str, str]]] = {
    "pairs": _read_pairs,
    "hh": _read_hh,
    "instruction": _read_instruction,
    "annotations": _read_annotations,
}

ROWS: Mapping[str, Callable[[Path], Iterable[tuple[int, Mapping[str, Any]]]]] = {"annotations": settled_rows}
"""Formats in which what a row states depends on other rows: file -> (line, row as its reader expects it)."""

OTHER_ROWS: Mapping[str, Sequence[str]] = {"annotations": FATES}
"""Formats that have rows which are meant to make no pair -> the names that those are counted under."""

"""Benchmarks from local files, and RewardBench 1 and 2 from the Hub.

Every bad row is a JsonlError naming file, row and key; rows that hold no comparison are dropped and counted by reason.
"""

from __future__ import annotations

import hashlib
import os.path
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lab.benchmarks.items import Item, Kind, texts_at
from lab.data.jsonl import JsonlError, read_rows, shorten, text_at, value_at
from lab.data.sources import file_digest
from lab.records import Prompt

Row = Mapping[str, Any]
Rows = Iterable[tuple[int, Row]]


@dataclass(frozen=True)
class Loaded:
    """The items of a benchmark, and how many rows were dropped for which reason."""

    items: list[Item]
    dropped: dict[str, int]


class _Drop(Exception):  # noqa: N818 - not an error
    """A row that holds no comparison; the message is the reason."""


def read_benchmark(path: Path | str, format: str) -> Loaded:
    """The items of a file, or of a folder's files (.json, .jsonl, .jsonl.gz, .parquet) in order of name.

    ``format``: one of ``FORMATS``. Raises ValueError for an unknown format, JsonlError for a bad row, a path that holds
    nothing to read, or a file of which every row was dropped.
    """
    if format not in FORMATS:
        raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {format!r}")
    path = Path(path)
    files = sorted(one for one in path.iterdir() if _readable(one)) if path.is_dir() else [path]
    if not files:
        raise JsonlError(f"{path}: the folder holds no .json, .jsonl, .jsonl.gz or .parquet file")
    parts = [_read(file, _rows(file), FORMATS[format]) for file in files]
    return _joined(path, parts)


def digest(path: Path | str) -> str:
    """What stands for a benchmark's file, or for all the files that would be read of a folder: SHA-256 in hex."""
    path = Path(path)
    if not path.is_dir():
        return file_digest(path)
    listed = "\n".join(f"{one.name} {file_digest(one)}" for one in sorted(path.iterdir()) if _readable(one))
    return hashlib.sha256(listed.encode("utf-8")).hexdigest()


HUB = {"allenai/reward-bench": ("rewardbench", "filtered"), "allenai/reward-bench-2": ("rewardbench2", "test")}
"""Hub id -> (format, split)."""


def from_hub(name: str, mirror: Path | str | None = None) -> Loaded:
    """RewardBench 1 or 2 through ``datasets``, from the Hub or from a local copy of that repository (``mirror``).

    RewardBench's Prior Sets are another repository (allenai/pref-test-sets), so its overall score stays absent.
    Raises ValueError for any other id, and as ``read_benchmark``; network errors are those of ``datasets``.
    """
    if name not in HUB:
        raise ValueError(f"benchmark: expected one of {', '.join(HUB)}, got {name!r}")
    from datasets import load_dataset

    format, split = HUB[name]
    rows = load_dataset(str(mirror or name), split=split)
    return _joined(Path(name), [_read(Path(name), enumerate(rows, 1), FORMATS[format])])


# ---------------------------------------------------------------- rows


def _readable(path: Path) -> bool:
    return path.is_file() and path.name.endswith((".json", ".jsonl", ".jsonl.gz", ".parquet"))


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    if path.suffix != ".parquet":
        yield from read_rows(path)
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows = pq.read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise JsonlError(f"{path}: cannot be read: {error}") from None
    yield from enumerate(rows, 1)


def _read(path: Path, rows: Rows, build: Callable[[Path, int, Row], Item]) -> Loaded:
    items, dropped = [], Counter[str]()
    for line, row in rows:
        try:
            items.append(build(path, line, row))
        except _Drop as reason:
            dropped[str(reason)] += 1
        except JsonlError:
            raise
        except ValueError as error:  # what an Item refuses
            raise JsonlError(f"{path}:{line}: {error}") from None
    return Loaded(items, dict(dropped))


def _joined(path: Path, parts: list[Loaded]) -> Loaded:
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.dropped)
    items = [item for part in parts for item in part.items]
    if not items:
        raise JsonlError(f"{path}: no item is left; rows dropped: {dict(dropped) or 'none'}")
    # RewardBench numbers its rows by source, so an id may come again in another subset; nothing forbids in the same.
    if len({item.id for item in items}) < len(items):
        items = [replace(item, id=f"{item.subset}:{item.id}") for item in items]
        seen: Counter[str] = Counter()
        for index, item in enumerate(items):
            seen[item.id] += 1
            if seen[item.id] > 1:
                items[index] = replace(item, id=f"{item.id}#{seen[item.id]}")
    return Loaded(items, dict(dropped))


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _pair(name: str, benchmark: str, subset: str, prompt: str, chosen: str, rejected: str, hard: bool = False) -> Item:
    if chosen == rejected:
        raise _Drop("chosen equals rejected")
    return Item(name, benchmark, subset, "pair", Prompt(prompt, subset, 1), (chosen,), (rejected,), hard)


# ---------------------------------------------------------------- formats


def llmbar(path: Path, line: int, row: Row) -> Item:
    """LLMBar (Zeng et al. 2023, arXiv 2310.07641): ``input``, ``output_1``, ``output_2``, ``label`` 1 or 2. The file is
    the subset."""
    label = value_at(path, line, row, "label")
    if isinstance(label, bool) or label not in (1, 2):
        raise JsonlError(f"{path}:{line}: key 'label': expected 1 or 2, got {shorten(label)}")
    outputs = [text_at(path, line, row, key) for key in ("output_1", "output_2")]
    prompt = text_at(path, line, row, "input")
    return _pair(f"{_stem(path)}:{line}", "llmbar", _stem(path), prompt, outputs[label - 1], outputs[2 - label])


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"


def hh_rlhf(path: Path, line: int, row: Row) -> Item:
    """HH-RLHF (Bai et al. 2022, arXiv 2204.05862): two transcripts; what they share, up to the assistant's last turn,
    is the prompt. Dropped where either goes on with another turn: they are no two answers to one prompt."""
    sides = [text_at(path, line, row, key) for key in ("chosen", "rejected")]
    if sides[0] == sides[1]:
        raise _Drop("chosen equals rejected")
    shared = os.path.commonprefix(sides)  # noqa: RUF071 - texts, no paths
    end = shared.rfind(ASSISTANT)
    if not shared.startswith(HUMAN) or end < 0:
        raise _Drop("the transcripts share no prompt")
    answers = [side[end + len(ASSISTANT) :] for side in sides]
    if any(HUMAN in answer or ASSISTANT in answer for answer in answers):
        raise _Drop("the transcripts part before the last turn")
    prompt = shared[len(HUMAN) : end].strip()
    return _pair(f"{_stem(path)}:{line}", "hh-rlhf", _stem(path), prompt, answers[0].strip(), answers[1].strip())


def pandalm(path: Path, line: int, row: Row) -> Item:
    """PandaLM test set (Wang et al. 2023, arXiv 2306.05087): the majority of three annotators (1, 2: which response; 0:
    tie). Dropped where the majority calls it a tie or all three differ, and where a response was "true" or "false":
    the published file holds it as a JSON boolean, its spelling lost."""
    keys = ("annotator1", "annotator2", "annotator3")
    votes = [value_at(path, line, row, key) for key in keys]
    for key, vote in zip(keys, votes, strict=True):
        if isinstance(vote, bool) or vote not in (0, 1, 2):
            raise JsonlError(f"{path}:{line}: key '{key}': expected 0, 1 or 2, got {shorten(vote)}")
    winner, count = Counter(votes).most_common(1)[0]
    if count < 2:
        raise _Drop("the annotators all differ")
    if winner == 0:
        raise _Drop("the annotators call it a tie")
    if any(isinstance(value_at(path, line, row, key), bool) for key in ("response1", "response2")):
        raise _Drop("a response is a boolean")
    responses = [text_at(path, line, row, key) for key in ("response1", "response2")]
    instruction, extra = (text_at(path, line, row, key) for key in ("instruction", "input"))
    prompt = f"{instruction}\n\n{extra}" if extra else instruction
    return _pair(f"{_stem(path)}:{line}", "pandalm", "pandalm", prompt, responses[winner - 1], responses[2 - winner])


INSTRUCTION = "###The instruction to evaluate:\n"
RESPONSE = "\n\n###Response to evaluate:\n"
RUBRIC = "\n\n###Score Rubrics:\n"


def hhh(path: Path, line: int, row: Row) -> Item:
    """HHH alignment (Askell et al. 2021, arXiv 2112.00861) inside prometheus-eval's judge template, out of which the
    instruction and the two responses are taken. ``source`` is the subset."""
    found = [_from_template(path, line, row, key) for key in ("chosen_instruction", "rejected_instruction")]
    if found[0][0] != found[1][0]:
        raise JsonlError(f"{path}:{line}: key 'rejected_instruction': its instruction is not that of the chosen one")
    subset = text_at(path, line, row, "source")
    return _pair(f"{_stem(path)}:{line}", "hhh", subset, found[0][0], found[0][1], found[1][1])


def _from_template(path: Path, line: int, row: Row, key: str) -> tuple[str, str]:
    text = text_at(path, line, row, key)
    starts = [text.find(mark) for mark in (INSTRUCTION, RESPONSE, RUBRIC)]
    if (
        -1 in starts
        or starts != sorted(starts)
        or any(text.count(mark) > 1 for mark in (INSTRUCTION, RESPONSE, RUBRIC))
    ):
        raise JsonlError(f"{path}:{line}: key '{key}': expected instruction, response and rubrics, each once, in order")
    return text[starts[0] + len(INSTRUCTION) : starts[1]], text[starts[1] + len(RESPONSE) : starts[2]]


def rewardbench(path: Path, line: int, row: Row) -> Item:
    """RewardBench and its Prior Sets: ``prompt`` (a text or a list of messages), ``chosen``, ``rejected``, ``subset``,
    ``id``."""
    chosen, rejected = (text_at(path, line, row, key) for key in ("chosen", "rejected"))
    subset, prompt = text_at(path, line, row, "subset"), _prompt_text(path, line, row)
    return _pair(_id(path, line, row), "rewardbench", subset, prompt, chosen, rejected)


def rewardbench2(path: Path, line: int, row: Row) -> Item:
    """RewardBench 2: lists ``chosen`` and ``rejected``, ``subset``, ``id``, ``num_correct`` (checked where present). In
    Ties the id is ``ref:N`` or ``tied:N``."""
    chosen, rejected = (texts_at(path, line, row, key) for key in ("chosen", "rejected"))
    for key, count in (("num_correct", len(chosen)), ("num_incorrect", len(rejected))):
        if row.get(key, count) != count:
            raise JsonlError(f"{path}:{line}: key '{key}': says {shorten(row[key])}, and the lists hold {count}")
    subset, name = text_at(path, line, row, "subset"), _id(path, line, row)
    kind: Kind = "best_of"
    group = None
    if subset.lower() == "ties":
        side, _, group = name.partition(":")
        if side not in ("ref", "tied") or not group:
            raise JsonlError(f"{path}:{line}: key 'id': expected ref:N or tied:N in Ties, got {shorten(name)}")
        subset, kind = "Ties", "ref" if side == "ref" else "tied"
    prompt = Prompt(_prompt_text(path, line, row), subset, 1)
    return Item(name, "rewardbench2", subset, kind, prompt, chosen, rejected, pair_group=group)


def _id(path: Path, line: int, row: Row) -> str:
    name = value_at(path, line, row, "id")
    if isinstance(name, bool) or not isinstance(name, (str, int)):
        raise JsonlError(f"{path}:{line}: key 'id': expected a string or an integer, got {shorten(name)}")
    return str(name)


def _prompt_text(path: Path, line: int, row: Row) -> str:
    """A prompt as one text; messages become a transcript as in HH-RLHF, whose last turn is the user's."""
    prompt = value_at(path, line, row, "prompt")
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, list) or not prompt:
        raise JsonlError(f"{path}:{line}: key 'prompt': expected a text or messages, got {shorten(prompt)}")
    text = ""
    for turn, message in enumerate(prompt):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise JsonlError(f"{path}:{line}: key 'prompt': message {turn + 1}: got {shorten(message)}")
        text += f"{ASSISTANT if turn % 2 else HUMAN} {message['content']}"
    if len(prompt) % 2 == 0:
        raise JsonlError(f"{path}:{line}: key 'prompt': the last of {len(prompt)} messages is not the user's")
    return text.removeprefix(HUMAN).strip()


FORMATS: dict[str, Callable[[Path, int, Row], Item]] = {
    "llmbar": llmbar,
    "hh-rlhf": hh_rlhf,
    "pandalm": pandalm,
    "hhh": hhh,
    "rewardbench": rewardbench,
    "rewardbench2": rewardbench2,
}

"""One benchmark item: a prompt, completions that are right and completions that are worse. And its files."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lab.data.jsonl import JsonlError, prompt_at, read_rows, shorten, text_at, value_at, write_rows
from lab.records import Prompt, derive_seed

Kind = Literal["pair", "best_of", "ref", "tied"]
KINDS: tuple[str, ...] = get_args(Kind)
Scores = Sequence[NDArray[np.float64]]
"""One array an item (K,): the scores of its chosen completions, then those of its rejected ones."""


@dataclass(frozen=True)
class Item:
    """Every completion in ``chosen`` is right, every one in ``rejected`` is worse than every one in ``chosen``.

    kind: "pair" (one each: RewardBench), "best_of" (one chosen, some rejected: RewardBench 2), and the two sides of its
    Ties: "ref" (one right answer) and "tied" (several equally good), matched by ``pair_group``.
    hard: the rejected ones differ from the chosen ones in little.
    """

    id: str
    benchmark: str
    subset: str
    kind: Kind
    prompt: Prompt
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    hard: bool = False
    pair_group: str | None = None

    def __post_init__(self) -> None:
        """Raises ValueError, naming the item, for counts that its kind cannot have or a completion on both sides."""
        if self.kind not in KINDS:
            raise ValueError(f"item {self.id}: kind: expected one of {', '.join(KINDS)}, got {self.kind!r}")
        right, wrong = len(self.chosen), len(self.rejected)
        if (right < 2 if self.kind == "tied" else right != 1) or (wrong != 1 if self.kind == "pair" else wrong < 1):
            raise ValueError(f"item {self.id}: {right} chosen and {wrong} rejected are not what kind {self.kind} has")
        if (self.pair_group is not None) != (self.kind in ("ref", "tied")):
            raise ValueError(f"item {self.id}: pair_group: got {self.pair_group!r} for kind {self.kind}")
        both = set(self.chosen) & set(self.rejected)
        if both:
            raise ValueError(f"item {self.id}: chosen and rejected at once: {shorten(min(both))}")

    @property
    def completions(self) -> tuple[str, ...]:
        """The chosen ones first: the order of scores."""
        return self.chosen + self.rejected


PAIRS = " pairs"
"""What the name of a benchmark ends in that was made of another one's items, two completions of each."""


def pairs_of(items: Iterable[Item]) -> list[Item]:
    """RewardBench-style pairs from items with more completions: of each a chosen and a rejected one, drawn by id."""
    pairs = []
    for item in items:
        draw = derive_seed("pair", item.benchmark, item.id)
        chosen = item.chosen[draw % len(item.chosen)]
        rejected = item.rejected[draw // len(item.chosen) % len(item.rejected)]
        name = item.benchmark.removesuffix(PAIRS) + PAIRS
        pairs.append(Item(item.id, name, item.subset, "pair", item.prompt, (chosen,), (rejected,), item.hard))
    return pairs


# ---------------------------------------------------------------- files


def write_items(path: Path, items: Sequence[Item]) -> int:
    """Write items as JSON lines, whole or not at all; returns how many. ValueError where two share an id."""
    seen: set[tuple[str, str]] = set()
    for item in items:
        if (item.benchmark, item.id) in seen:
            raise ValueError(f"{path}: two items of {item.benchmark} have the id {item.id}")
        seen.add((item.benchmark, item.id))
    return write_rows(path, (_to_row(item) for item in items))


def read_items(path: Path) -> list[Item]:
    """The items that ``write_items`` wrote. Raises JsonlError naming file, line and key."""
    return [_from_row(Path(path), line, row) for line, row in read_rows(Path(path))]


def _to_row(item: Item) -> dict[str, Any]:
    prompt = item.prompt
    return {
        **vars(item),
        "prompt": {"text": prompt.text, "domain": prompt.domain, "level": prompt.level, "gold": dict(prompt.gold)},
        "chosen": list(item.chosen),
        "rejected": list(item.rejected),
    }


def _from_row(path: Path, line: int, row: Mapping[str, Any]) -> Item:
    unknown = set(row) - set(Item.__dataclass_fields__)
    if unknown:
        raise JsonlError(f"{path}:{line}: key '{min(unknown)}' is unknown")
    hard, group = value_at(path, line, row, "hard"), value_at(path, line, row, "pair_group")
    if not isinstance(hard, bool):
        raise JsonlError(f"{path}:{line}: key 'hard': expected true or false, got {shorten(hard)}")
    if group is not None and not isinstance(group, str):
        raise JsonlError(f"{path}:{line}: key 'pair_group': expected a string or null, got {shorten(group)}")
    name, benchmark, subset, kind = (text_at(path, line, row, key) for key in ("id", "benchmark", "subset", "kind"))
    prompt = prompt_at(path, line, row)
    chosen, rejected = (texts_at(path, line, row, key) for key in ("chosen", "rejected"))
    try:
        return Item(name, benchmark, subset, kind, prompt, chosen, rejected, hard, group)  # type: ignore[arg-type]
    except ValueError as error:
        raise JsonlError(f"{path}:{line}: {error}") from None


def texts_at(path: Path, line: int, row: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """``row[key]`` as texts. Raises JsonlError where it is missing or not a list of strings."""
    texts = value_at(path, line, row, key)
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise JsonlError(f"{path}:{line}: key '{key}': expected a list of strings, got {shorten(texts)}")
    return tuple(texts)


def write_scores(path: Path, items: Sequence[Item], scores: Scores) -> None:
    """Parquet with a row a completion: benchmark, item, completion (its index), is_chosen, score (null for NaN)."""
    counts = [len(item.completions) for item in items]
    flat = np.concatenate([np.asarray(one, dtype=np.float64) for one in scores]) if items else np.zeros(0)
    table = pa.table(
        {
            "benchmark": [item.benchmark for item, n in zip(items, counts, strict=True) for _ in range(n)],
            "item": [item.id for item, n in zip(items, counts, strict=True) for _ in range(n)],
            "completion": [index for n in counts for index in range(n)],
            "is_chosen": [
                index < len(item.chosen) for item, n in zip(items, counts, strict=True) for index in range(n)
            ],
            "score": pa.array(flat, type=pa.float64(), from_pandas=True),
        }
    )
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    pq.write_table(table, partial, compression="zstd")
    os.replace(partial, path)


def read_scores(path: Path, items: Sequence[Item]) -> Scores:
    """The scores that ``write_scores`` wrote, in the order of ``items``. ValueError naming an item without scores."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in pq.read_table(path).to_pylist():
        score = row["score"]
        found.setdefault((row["benchmark"], row["item"]), []).append(float("nan") if score is None else score)
    scores = []
    for item in items:
        one = found.get((item.benchmark, item.id), [])
        if len(one) != len(item.completions):
            raise ValueError(f"{path}: item {item.id} has {len(item.completions)} completions and {len(one)} scores")
        scores.append(np.array(one))
    return scores


def with_pairs(items: Sequence[Item], scores: Scores) -> tuple[list[Item], list[NDArray[np.float64]]]:
    """The items and their scores, and behind them the pairs made of those items that are no pairs (``pairs_of``)."""
    pairs = pairs_of(item for item in items if item.kind != "pair")
    return [*items, *pairs], [*scores, *scores_of(pairs, items, scores)]


def scores_of(items: Sequence[Item], known: Sequence[Item], scores: Scores) -> list[NDArray[np.float64]]:
    """Scores of ``items`` looked up among those of ``known``, by prompt and completion. KeyError for a stranger."""
    table = {
        (item.prompt.text, text): value
        for item, one in zip(known, scores, strict=True)
        for text, value in zip(item.completions, one, strict=True)
    }
    return [np.array([table[item.prompt.text, text] for text in item.completions]) for item in items]

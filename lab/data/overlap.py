"""Overlap of training texts with evaluation texts: exact after normalisation, and near by MinHash LSH.

Near duplicates are candidates of datasketch's MinHash LSH (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of
Massive Datasets, section 3.4) on word shingles, and count only once their exact Jaccard similarity is confirmed: LSH
may miss a pair (``recall``), it never invents one. Only the evaluation texts are held; training texts stream past, and
what has been said of a text is not worked out again for its copies.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

from lab.data.jsonl import read_rows, text_at

EXAMPLES = 5
"""So many examples of each kind of overlap are kept."""

RECALL = 0.99
"""LSH is banded so that a pair just at the threshold becomes a candidate with at least this chance."""

Kind = Literal["exact", "near"]
KINDS: tuple[Kind, ...] = ("exact", "near")

_DASHES, _OPERATORS = "\u2212", "-*/%"
_SPACED_OPERATOR = re.compile(r"[-*/%]")


class _Characters(dict[int, str]):
    """What each character becomes, for ``str.translate``; found once a character."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        category = unicodedata.category(character)
        match category[0]:
            case _ if category == "Pd" or character in _DASHES:
                made = " - "
            case _ if character in _OPERATORS:
                made = f" {character} "
            case _ if category == "Cf":  # zero-width: an invisible difference is none
                made = ""
            case "P" | "Z" | "C" if category != "Cs":
                made = " "
            case "S":
                made = f" {character} "
            case _:
                made = character
        self[code] = made
        return made


_CHARACTERS = _Characters()


def normalise(text: str) -> str:
    """A text without what a copy may change: NFKC, case, white space, punctuation, invisible characters.

    Minus, times, division and per cent signs next to a number stay: "3 * 2" is not "3 - 2". Symbols stand alone, so
    "3+2" is "3 + 2". A text of nothing but punctuation stays as it is, case and white space aside. Idempotent.
    """
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = folded.translate(_CHARACTERS).split()
    if _SPACED_OPERATOR.search(folded) or "-" in words:
        words = [word for at, word in enumerate(words) if word not in _OPERATORS or _beside_number(words, at)]
    return " ".join(words) or " ".join(folded.split())


def _beside_number(words: Sequence[str], at: int) -> bool:
    before, after = words[at - 1] if at else "", words[at + 1] if at + 1 < len(words) else ""
    return before[-1:].isdigit() or after[:1].isdigit()


def shingles(normalised: str, width: int) -> frozenset[str]:
    """The runs of ``width`` words of a normalised text; the whole text where it has fewer."""
    words = normalised.split(" ")
    return frozenset(" ".join(words[at : at + width]) for at in range(max(1, len(words) - width + 1)))


def jaccard(a: frozenset[str], b: frozenset[str]) -> float:
    """|a and b| / |a or b| of two sets that are not both empty."""
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def banding(threshold: float, permutations: int) -> tuple[int, int, float]:
    """(bands b >= 2, rows r of each, recall): the most selective with recall 1 - (1 - threshold^r)^b >= RECALL.

    More similar pairs are found more surely. r = 1 where even that is not enough. Raises ValueError.
    """
    for rows in range(permutations // 2, 0, -1):
        bands = permutations // rows
        recall = 1.0 - (1.0 - threshold**rows) ** bands
        if recall >= RECALL or rows == 1:
            return bands, rows, recall
    raise ValueError(f"overlap.permutations: expected at least 2, got {permutations}")


# ---------------------------------------------------------------- what is found


@dataclass(frozen=True)
class Example:
    """A training text (``row``, from 0), the evaluation text that it overlaps with, and their Jaccard similarity."""

    row: int
    training: str
    evaluation: str
    similarity: float


@dataclass
class Found:
    """The overlap of one kind with one evaluation set. Near means: near some text of the set, and equal to none.

    rows: training rows; prompts: evaluation texts (near: those that no training row equals).
    """

    rows: list[int] = field(default_factory=list)
    prompts: int = 0
    examples: list[Example] = field(default_factory=list)


@dataclass(frozen=True)
class Overlap:
    """The overlap of one training set with every evaluation set.

    duplicates: rows that repeat an earlier row of the training set itself, after normalisation.
    """

    rows: int
    duplicates: int
    sets: Mapping[str, Mapping[Kind, Found]]

    def overlapping(self, kinds: Iterable[str]) -> set[int]:
        """The training rows that overlap with any set in one of these ways."""
        return {row for found in self.sets.values() for kind in KINDS if kind in kinds for row in found[kind].rows}

    def report(self) -> dict[str, Any]:
        """The numbers and examples as JSON data. exact: rows equal to a text of any set; near: the others near one."""
        exact = self.overlapping(["exact"])
        return {
            "rows": self.rows,
            "exact": len(exact),
            "near": len(self.overlapping(["near"]) - exact),
            "duplicates": self.duplicates,
            "sets": {
                name: {
                    kind: {
                        "rows": len(found[kind].rows),
                        "share": len(found[kind].rows) / self.rows if self.rows else 0.0,
                        "prompts": found[kind].prompts,
                        "examples": [vars(example) for example in found[kind].examples],
                    }
                    for kind in KINDS
                }
                for name, found in self.sets.items()
            },
        }


def prompt_texts(path: Path) -> Iterator[str]:
    """The prompt of every row of a file, streaming: of prompts, demonstrations, pairs, samples and benchmark items as
    the lab writes them, and of rows whose "prompt" is a text. Raises JsonlError."""
    for line, row in read_rows(path):
        prompt = row.get("prompt", row)
        yield prompt if isinstance(prompt, str) else text_at(path, line, prompt, "text")


# ---------------------------------------------------------------- the search


class EvaluationIndex:
    """The texts of every evaluation set, ready to be looked up.

    threshold: the Jaccard similarity of word shingles from which two texts are near; width: words of a shingle;
    permutations: of MinHash.
    """

    def __init__(self, sets: Mapping[str, Iterable[str]], *, threshold: float, width: int, permutations: int) -> None:
        self.threshold, self.width, self.permutations = threshold, width, permutations
        bands, rows, self.recall = banding(threshold, permutations)
        self._lsh = MinHashLSH(num_perm=permutations, params=(bands, rows))
        self._hasher = MinHash(num_perm=permutations)
        self.texts: list[str] = []  # an example of each different text, as it was written
        self.shingles: list[frozenset[str]] = []
        self.sets: dict[str, set[int]] = {}
        self._numbers: dict[str, int] = {}
        for name, texts in sets.items():
            members = self.sets[name] = set()
            for text in texts:
                normalised = normalise(text)
                if normalised not in self._numbers:
                    self._add(normalised, text)
                members.add(self._numbers[normalised])

    def _add(self, normalised: str, text: str) -> None:
        number = self._numbers[normalised] = len(self.texts)
        self.texts.append(text)
        self.shingles.append(shingles(normalised, self.width))
        self._lsh.insert(number, self._signature(self.shingles[number]))

    def _signature(self, of: frozenset[str]) -> MinHash:
        hasher = self._hasher
        hasher.clear()
        hasher.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in of])
        return hasher

    def compare(self, texts: Iterable[str]) -> Overlap:
        """The overlap of a training set with every evaluation set."""
        search = _Search(self)
        rows = 0
        for row, text in enumerate(texts):
            search.see(row, text)
            rows += 1
        return search.result(rows)

    def equal(self, normalised: str) -> int | None:
        """The number of the evaluation text that this one equals."""
        return self._numbers.get(normalised)

    def candidates(self, of: frozenset[str]) -> list[int]:
        """The numbers of evaluation texts that may be near a text of these shingles."""
        return sorted(self._lsh.query(self._signature(of)))


class _Search:
    """One training set on its way past the index.

    Whether a row is near some text of a set, and which evaluation texts some row is near, is all that is counted: a
    candidate that can change neither is not compared, which bounds the work where nearly everything is near.
    """

    def __init__(self, index: EvaluationIndex) -> None:
        self.index = index
        self.found: dict[str, dict[Kind, Found]] = {name: {kind: Found() for kind in KINDS} for name in index.sets}
        self.equal: set[int] = set()
        self.near: set[int] = set()
        self.known: dict[str, dict[str, Kind]] = {}  # normalised text -> set -> how it overlaps
        self.duplicates = 0

    def see(self, row: int, text: str) -> None:
        normalised = normalise(text)
        if normalised in self.known:
            self.duplicates += 1
        else:
            self.known[normalised] = self._look_up(row, text, normalised)
        for name, kind in self.known[normalised].items():
            self.found[name][kind].rows.append(row)

    def _look_up(self, row: int, text: str, normalised: str) -> dict[str, Kind]:
        index, overlaps = self.index, dict[str, Kind]()
        number = index.equal(normalised)
        if number is not None:
            self.equal.add(number)
            for name in (name for name, members in index.sets.items() if number in members):
                overlaps[name] = "exact"
                self._example(name, "exact", Example(row, text, index.texts[number], 1.0))
        own = shingles(normalised, index.width)
        for candidate in index.candidates(own):
            owners = [name for name, members in index.sets.items() if candidate in members]
            if candidate == number or (candidate in self.near and all(name in overlaps for name in owners)):
                continue
            similarity = jaccard(own, index.shingles[candidate])
            if similarity < index.threshold:
                continue
            self.near.add(candidate)
            for name in (name for name in owners if name not in overlaps):
                overlaps[name] = "near"
                self._example(name, "near", Example(row, text, index.texts[candidate], similarity))
        return overlaps

    def _example(self, name: str, kind: Kind, example: Example) -> None:
        examples = self.found[name][kind].examples
        if len(examples) < EXAMPLES:
            examples.append(example)

    def result(self, rows: int) -> Overlap:
        for name, members in self.index.sets.items():
            self.found[name]["exact"].prompts = len(members & self.equal)
            self.found[name]["near"].prompts = len(members & self.near - self.equal)
        return Overlap(rows, self.duplicates, self.found)

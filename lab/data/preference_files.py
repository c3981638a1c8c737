r"""Preference pairs that somebody else stated, from a file or the Hub: eight formats in, ``lab.records.Pair`` out.

``pairs``: columns prompt, chosen, rejected; each a text, or a list of chat messages ({"role", "content"}) of which the
last assistant turn is the completion. The prompt may be left out where both sides are such lists and begin with it.
``hh``: columns chosen and rejected, transcripts of "\n\nHuman:" and "\n\nAssistant:" turns that part in the last one.
``instruction``: columns instruction, input (may be empty), chosen, rejected. ``annotations``: what people said on the
page of ``lab.annotate`` (``lab.data.annotations``); an item becomes one pair or none, and every other row is counted by
what became of it. ``ultrafeedback_binarized``: as ``pairs``, with scores. ``helpsteer2_preference``: two responses and
a signed strength. ``ultrafeedback`` and ``helpsteer``: completions rated on several attributes (``lab.data.ratings``).

What cannot be read is a ``JsonlError`` that names file and row. What can be read and is doubtful is a fault: counted
and named by row always, dropped only where the caller declares it. A file is read as a stream: what is kept of a row is
a digest of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from lab.data.annotations import FATES, settled_rows
from lab.data.chat import opening
from lab.data.jsonl import JsonlError
from lab.data.origin import Origin, Reading
from lab.data.pair_formats import (
    Row,
    Stated,
    States,
    read_annotations,
    read_binarized,
    read_helpsteer2_preference,
    read_hh,
    read_instruction,
    read_pairs,
)
from lab.data.ratings import PAIRINGS, RATED, gather, pair_up
from lab.data.sources import normalised_id
from lab.records import Pair, Prompt, derive_seed

READERS: Mapping[str, Callable[[Path, int, Row], States]] = {
    "pairs": read_pairs,
    "hh": read_hh,
    "instruction": read_instruction,
    "annotations": read_annotations,
    "ultrafeedback_binarized": read_binarized,
    "helpsteer2_preference": read_helpsteer2_preference,
}
"""Formats in which a row states its own pair. All formats: these and ``lab.data.ratings.RATED``."""

FORMATS = (*READERS, *RATED)

DROPPABLE = ("identical", "duplicate", "oversized", "diverging", "tied", "unrated", "unreadable")
"""Faults that a caller may declare. identical: chosen and rejected are the same text; duplicate: prompt, chosen and
rejected are those of an earlier row; oversized: prompt and longer completion together exceed ``max_characters``.

The others leave no pair to keep, and so are errors unless declared. diverging: the two sides do not answer the same
prompt; tied: rated or preferred alike; unrated: a completion lacks a rating, or a prompt has fewer than two rated ones;
unreadable: not UTF-8, not JSON, a column that is missing or of another type, an empty prompt, too many bytes."""

COUNTED = ("contradictory",)
"""Faults that are counted and never dropped. contradictory: an earlier row states the same pair the other way round."""

OTHER_ROWS: Mapping[str, Sequence[str]] = {"annotations": FATES}
"""Formats that have rows which are meant to make no pair -> the names that those are counted under."""

OTHER_FAULTS: Mapping[str, Sequence[str]] = {
    "ultrafeedback_binarized": ("tied",),
    "helpsteer2_preference": ("tied",),
    "ultrafeedback": ("tied", "unrated"),
    "helpsteer": ("tied", "unrated", "scattered"),
}
"""Faults that only some formats have. scattered (counted, never dropped): rows of one prompt that are no neighbours, of
which only neighbours are compared."""

_EVERYWHERE = ("identical", "duplicate", "oversized", "diverging", *COUNTED)


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


class PairScan:
    """One pass over an origin: iterating gives the pairs kept, in their order; ``rows`` (read), ``faults`` and
    ``digest`` (of what was read) are complete afterwards.

    Of a pair with several faults the first in ``DROPPABLE``'s order decides. ``max_characters`` 0: none is oversized.
    weights: attribute -> weight of its rating, for formats with rated completions; pairing: one of ``PAIRINGS``.

    Raises ValueError, before anything is read, for an unknown format, fault or pairing and for weights that are missing
    or have no use; while iterating JsonlError for a row or column that cannot be read, a row that leaves no pair where
    ``drop`` does not name the reason, and an origin of which nothing is left.
    """

    def __init__(
        self,
        origin: Origin,
        format: str,
        *,
        max_characters: int = 0,
        drop: Collection[str] = (),
        weights: Mapping[str, float] | None = None,
        pairing: str = "extremes",
    ) -> None:
        if format not in FORMATS:
            raise ValueError(f"preferences.format: expected one of {', '.join(FORMATS)}, got {format!r}")
        for name in drop:
            if name not in DROPPABLE:
                raise ValueError(f"preferences.drop: expected some of {', '.join(DROPPABLE)}, got {name!r}")
        if pairing not in PAIRINGS:
            raise ValueError(f"preferences.pairing: expected one of {', '.join(PAIRINGS)}, got {pairing!r}")
        if bool(weights) != (format in RATED):
            need = "needs the weight of at least one attribute" if format in RATED else "has no ratings to weigh"
            raise ValueError(f"preferences.weights: format {format} {need}, got {dict(weights or {})}")
        if origin.hub and format == "annotations":
            raise ValueError(f"preferences.path: format annotations is read from a local file, got {origin.path!r}")
        self.origin, self.format, self.drop = origin, format, frozenset(drop)
        self._name = origin.name
        self.max_characters, self.weights, self.pairing = max_characters, dict(weights or {}), pairing
        names = dict.fromkeys((*_EVERYWHERE, *OTHER_FAULTS.get(format, ()), *OTHER_ROWS.get(format, ()), *drop))
        self._found: dict[str, list[int]] = {name: [] for name in names}
        self._reading = Reading(origin, self._unreadable)
        self._seen: set[bytes] = set()
        self._kept = 0

    @property
    def rows(self) -> int:
        return self._reading.count

    @property
    def digest(self) -> str:
        return self._reading.digest

    @property
    def faults(self) -> dict[str, Fault]:
        gone = self.drop | set(OTHER_ROWS.get(self.format, ()))
        return {name: Fault(tuple(rows), name in gone) for name, rows in self._found.items()}

    def __iter__(self) -> Iterator[Pair]:
        for line, row in self._rows():
            try:
                states = self._read(line, row)
            except JsonlError as error:
                self._unreadable(line, error)
                continue
            for one in states:
                if not isinstance(one, Stated):
                    self._no_pair(one.name, one.line, one.message)
                elif self._keeps(line, one):
                    self._kept += 1
                    prompt = Prompt(one.prompt, self.format, 0)
                    yield Pair(prompt, one.chosen, one.rejected, annotator=self.format, strength=one.strength)
        if not self._kept:
            counts = ", ".join(f"{len(rows)} {name}" for name, rows in self._found.items() if rows)
            raise JsonlError(f"{self.origin.name}: none of the {self.rows} rows is left ({counts})")

    def _rows(self) -> Iterable[tuple[int, Row]]:
        if self.format == "annotations":  # what a row states depends on all others
            return self._counted(settled_rows(Path(self.origin.path)))
        return self._neighbours() if self.format == "helpsteer" else self._reading

    def _counted(self, rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
        for line, row in rows:
            self._reading.count += 1
            yield line, row

    def _neighbours(self) -> Iterator[tuple[int, Row]]:
        prompts: set[bytes] = set()
        for line, row in gather(self._reading):
            key = _digest(str(row["rows"][0][1].get("prompt")))
            if key in prompts:
                self._found["scattered"].append(line)
            prompts.add(key)
            yield line, row

    def _read(self, line: int, row: Row) -> States:
        path = self._name
        if self.format in RATED:
            prompt, rated = RATED[self.format](path, line, row, self.weights)
            states = pair_up(prompt, rated, self.pairing, line)
        else:
            states = READERS[self.format](path, line, row)
        for one in states:
            if isinstance(one, Stated) and not one.prompt.strip():
                raise JsonlError(f"{path}:{line}: the prompt is empty")
        return states

    def _unreadable(self, line: int, error: JsonlError) -> None:
        if "unreadable" not in self.drop:
            raise error from None
        self._found["unreadable"].append(line)

    def _no_pair(self, name: str, line: int, message: str) -> None:
        if name in DROPPABLE and name not in self.drop:
            raise JsonlError(
                f"{self.origin.name}:{line}: {message} (preferences.drop: {name} leaves such rows out)"
            ) from None
        self._found[name].append(line)

    def _keeps(self, line: int, one: Stated) -> bool:
        faults = []
        if one.chosen == one.rejected:
            faults.append("identical")
        prompt, chosen, rejected = _digest(one.prompt), _digest(one.chosen), _digest(one.rejected)
        key = blake2b(prompt + chosen + rejected, digest_size=16).digest()
        if key in self._seen:
            faults.append("duplicate")
        elif chosen != rejected and blake2b(prompt + rejected + chosen, digest_size=16).digest() in self._seen:
            faults.append("contradictory")
        length = len(one.prompt) + max(len(one.chosen), len(one.rejected))
        if self.max_characters and length > self.max_characters:
            faults.append("oversized")
        self._seen.add(key)
        for name in faults:
            self._found[name].append(line)
        return not any(name in self.drop for name in faults)


def _digest(text: str) -> bytes:
    """16 bytes for a text: of 2**32 texts two collide with a chance of 1 in 2**65."""
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def load_pairs(path: Path | Origin, format: str, **settings: Any) -> LoadedPairs:
    """Every pair of an origin at once, in its order; ``settings`` and errors are those of ``PairScan``."""
    scan = PairScan(path if isinstance(path, Origin) else Origin(str(path)), format, **settings)
    pairs = list(scan)
    return LoadedPairs(scan.rows, pairs, scan.faults)


# ---------------------------------------------------------------- the split


def split_pairs(pairs: Sequence[Pair], share: float, seed: int) -> tuple[list[Pair], list[Pair]]:
    """(training, held out), both in an order of their own: the hash of seed and prompt says where a pair goes.

    So all pairs of a prompt stay together, and neither the file's order nor further rows move any other pair. A
    conversation goes where its opening turn goes, case and white space aside: its later turns repeat the earlier.
    ``share`` is that of the openings in expectation, not exactly. Raises ValueError unless 0 < share < 1.
    """
    check_share(share)
    training: list[Pair] = []
    held_out: list[Pair] = []
    for pair in sorted(pairs, key=lambda pair: (rank(pair, seed), *tie_break(pair))):
        (held_out if is_held_out(pair, share, seed) else training).append(pair)
    return training, held_out


def check_share(share: float) -> None:
    """Raise ValueError unless 0 < share < 1."""
    if not 0 < share < 1:
        raise ValueError(f"preferences.held_out: expected a share between 0 and 1, got {share!r}")


def is_held_out(pair: Pair, share: float, seed: int) -> bool:
    """Whether a pair is kept to measure by (``split_pairs``)."""
    return derive_seed("held out", seed, normalised_id(opening(pair.prompt.text))) / 2**63 < share


def rank(pair: Pair, seed: int) -> int:
    """Where a pair's prompt stands in the order of ``split_pairs``: 63 bits."""
    return derive_seed("pairs", seed, pair.prompt.id)


def tie_break(pair: Pair) -> tuple[str, str, str]:
    """The order of pairs of one rank."""
    return pair.prompt.text, pair.chosen, pair.rejected

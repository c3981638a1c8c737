"""A preference pool that somebody else made: pairs from a file or the Hub, in the shape of the lab's own pool.

Streamed: a pair that is kept goes to a scratch file at once, and what stays in memory is where it lies and its place in
the order of ``lab.data.preference_files.split_pairs``.
"""

from __future__ import annotations

import statistics
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from lab.data.card import write_card
from lab.data.jsonl import decode_pair, encode_record, write_lines, write_records
from lab.data.origin import Origin
from lab.data.preference_files import Fault, PairScan, check_share, is_held_out, rank, tie_break
from lab.records import Ledger, Pair, Prompt, derive_seed
from lab.store import Context, StageResult

REFERENCE = 256
"""At most so many completions for a reward model to be normalised on."""
NAMED_ROWS = 20
"""The card names at most so many rows of a fault."""
TELL_EVERY = 10_000
"""Pairs between two reports of progress."""
REFUSED = ("diverging", "tied", "unrated", "unreadable")
"""Faults that leave no pair to keep: an error unless they are dropped."""


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``format`` (``lab.data.preference_files``), ``digest`` (of the file, or of a Hub data set's rows),
    ``held_out`` (share of the prompts), ``limit`` (of the training pairs; 0: all), ``max_characters``, ``drop``
    (faults), ``seed``, optional ``rows`` (at most so many are read), ``weights`` and ``pairing`` (of ratings).
    Where the rows lie is no part of identity: ``context.resources`` has the fields of an ``Origin``, or ``config`` its
    ``path``.

    Writes ``pairs.jsonl``, ``held_out.jsonl`` (as stated: there is no truth to correct it by), ``reference.jsonl``
    (chosen and rejected completions of training prompts, in place of SFT samples) and ``card.json``.
    Raises ValueError naming file and row, data that are not the planned ones, and a split with an empty side.
    """
    origin = Origin.of(config, context.resources)
    scan = PairScan(
        origin,
        config["format"],
        max_characters=config["max_characters"],
        drop=config.get("drop", ()),
        weights=config.get("weights"),
        pairing=config.get("pairing", "extremes"),
    )
    check_share(config["held_out"])
    if not origin.hub:  # of a file it is known at once, and a wrong path is explained by the reader
        _check_digest(scan, config)
    context.scratch.mkdir(parents=True, exist_ok=True)
    with Spool(context.scratch / "pairs.spool") as spool:
        for pair in scan:
            spool.add(pair, rank(pair, config["seed"]), is_held_out(pair, config["held_out"], config["seed"]))
            if len(spool) % TELL_EVERY == 0:
                context.progress(0, 1, f"{origin.title}: {len(spool):,} pairs")
        _check_digest(scan, config)
        training, held_out = spool.order(held_out=False), spool.order(held_out=True)
        for name, side in (("training", training), ("held-out", held_out)):
            if not side:
                raise ValueError(
                    f"{origin.name}: preferences.held_out: {config['held_out']} leaves no {name} pair of {len(spool)}"
                )
        used = training[: config["limit"] or None]
        reference, lengths, held_out_lengths = Reference(config["seed"]), Lengths(), Lengths()
        write_lines(out / "pairs.jsonl", spool.lines(used, (reference, lengths)))
        write_lines(out / "held_out.jsonl", spool.lines(held_out, (held_out_lengths,)))
    write_records(out / "reference.jsonl", reference.pairs())
    unused = len(training) - len(used)
    card = {
        "digest": scan.digest,
        "format": config["format"],
        "rows": scan.rows,
        "faults": _faults(scan.faults),
        "beyond_limit": unused,
        "training": lengths.card(),
        "held_out": held_out_lengths.card(),
    }
    write_card(out, card, "Preference pairs of a file")
    context.progress(1, 1)
    metrics = {"rows": scan.rows, "pairs": len(used), "held_out": len(held_out), "beyond_limit": unused,
               "longer_wins": card["held_out"]["longer_wins"]}  # fmt: skip
    return StageResult(Ledger(preference_labels=len(used)), metrics)


def _check_digest(scan: PairScan, config: Mapping[str, Any]) -> None:
    if (Path(scan.origin.path).is_file() or scan.rows) and config.get("digest") not in (None, scan.digest):
        what = "rows have" if scan.origin.hub else "file has"
        raise ValueError(
            f"{scan.origin.name}: the {what} changed since the plan was made (SHA-256 {scan.digest[:12]}...)"
        )


class Spool:
    """Pairs on disk, to be read in another order than they came in: about 25 bytes of memory each."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ranks, self._starts, self._lengths = array("Q"), array("Q"), array("L")
        self._held_out = bytearray()

    def __enter__(self) -> Spool:
        self._file: BinaryIO = open(self.path, "w+b")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self.path.unlink()

    def __len__(self) -> int:
        return len(self._ranks)

    def add(self, pair: Pair, rank: int, held_out: bool) -> None:
        line = encode_record(pair)
        self._starts.append(self._starts[-1] + self._lengths[-1] if self._starts else 0)
        self._lengths.append(self._file.write(line))
        self._ranks.append(rank)
        self._held_out.append(held_out)

    def order(self, held_out: bool) -> list[int]:
        """The numbers of one side's pairs by rank, ties by their texts."""
        ranked = sorted((n for n in range(len(self)) if self._held_out[n] == held_out), key=self._ranks.__getitem__)
        found: list[int] = []
        for _, tied in groupby(ranked, key=self._ranks.__getitem__):
            some = list(tied)
            found += sorted(some, key=lambda n: tie_break(self._pair(n, self._line(n)))) if len(some) > 1 else some
        return found

    def lines(self, numbers: Iterable[int], readers: Iterable[Reference | Lengths]) -> Iterator[bytes]:
        """The lines of these pairs, each shown to every reader on its way."""
        for number in numbers:
            line = self._line(number)
            pair = self._pair(number, line)
            for reader in readers:
                reader.add(pair)
            yield line

    def _line(self, number: int) -> bytes:
        self._file.seek(self._starts[number])
        return self._file.read(self._lengths[number])

    def _pair(self, number: int, line: bytes) -> Pair:
        return decode_pair(self.path, number + 1, line)


class Reference:
    """A sample of pairs' completions, chosen and rejected alike, each once: a reward model's zero and unit.

    Those whose hashes are the smallest, so that neither the order of the pairs nor their number matters.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._kept: list[tuple[int, str, str]] = []
        self._prompts: dict[str, Prompt] = {}

    def add(self, pair: Pair) -> None:
        for text in (pair.chosen, pair.rejected):
            one = (derive_seed("reference", self.seed, pair.prompt.text, text), pair.prompt.text, text)
            place = bisect_left(self._kept, one)
            if place == REFERENCE or (place < len(self._kept) and self._kept[place] == one):
                continue
            self._kept.insert(place, one)
            del self._kept[REFERENCE:]
            self._prompts[pair.prompt.text] = pair.prompt

    def pairs(self) -> list[Pair]:
        return [Pair(self._prompts[prompt], text, text, "reference") for _, prompt, text in self._kept]


class Lengths:
    """Counts, lengths in characters, and how often the longer completion was chosen (a tie is a miss, and counted)."""

    def __init__(self) -> None:
        self._prompts: set[str] = set()
        self._prompt, self._chosen, self._rejected = array("L"), array("L"), array("L")

    def add(self, pair: Pair) -> None:
        self._prompts.add(pair.prompt.id)
        self._prompt.append(len(pair.prompt.text))
        self._chosen.append(len(pair.chosen))
        self._rejected.append(len(pair.rejected))

    def card(self) -> dict[str, Any]:
        both = list(zip(self._chosen, self._rejected, strict=True))
        return {
            "pairs": len(both),
            "prompts": len(self._prompts),
            "longer_wins": sum(chosen > rejected for chosen, rejected in both) / len(both),
            "equal_lengths": sum(chosen == rejected for chosen, rejected in both),
            "characters": {
                "prompt": _spread(self._prompt),
                "chosen": _spread(self._chosen),
                "rejected": _spread(self._rejected),
            },
        }


def _spread(lengths: array[int]) -> dict[str, float]:
    return {
        "minimum": min(lengths),
        "median": statistics.median(lengths),
        "mean": round(statistics.fmean(lengths), 1),
        "maximum": max(lengths),
    }


def _faults(faults: Mapping[str, Fault]) -> dict[str, Any]:
    return {
        name: {
            "count": len(fault.rows),
            "rows": list(fault.rows[:NAMED_ROWS]),
            "policy": "drop" if fault.dropped else "refuse" if name in REFUSED else "keep",
        }
        for name, fault in faults.items()
    }

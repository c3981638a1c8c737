"""An append-only file of answers that outlives its process: every row is on the disk before ``append`` returns."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.data.annotations import Annotation, parse_annotation
from lab.data.jsonl import JsonlError, shorten


class JournalError(RuntimeError):
    """The file cannot be written, or is not ours alone."""


class TornError(JsonlError):
    """A line that is no JSON: what a crash in the middle of writing leaves at the end of a file."""


def parse_row(path: Path, line: int, raw: bytes) -> Annotation:
    """One line of a journal. Raises JsonlError naming file, line and what is wrong (TornError: it is no JSON)."""
    try:
        row = json.loads(raw)
    except ValueError as error:
        raise TornError(f"{path}:{line}: not a row of annotations ({error}): {shorten(raw[:80])}") from None
    if not isinstance(row, dict):
        raise JsonlError(f"{path}:{line}: expected an object, got {shorten(row)}")
    return parse_annotation(path, line, row)


def read_journal(path: Path) -> list[Annotation]:
    """The rows of a file that another process may be writing at this moment: a last line without its end is left out.

    A file that is not there has no rows. Raises JsonlError for anything else that is no row.
    """
    try:
        raw = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    whole = raw[: raw.rfind(b"\n") + 1]
    return [parse_row(path, number, line) for number, line in enumerate(whole.split(b"\n"), 1) if line.strip()]


class Journal:
    """One process's hold on one file. ``rows``: all that it holds; ``set_aside``: where a torn last line went, None
    where the file was whole.

    The lock is the kernel's (``flock``): it goes with the process, however that ends, and never has to be broken.
    Raises JournalError for a file that another process holds or that cannot be opened, JsonlError for one that holds
    anything but annotations; then the file is as it was.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.set_aside: Path | None = None
        new = not self.path.exists()
        try:
            self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            raise JournalError(f"{self.path}: cannot be opened for writing: {error.strerror}") from None
        try:
            self._lock()
            if new:
                _sync_folder(self.path.parent)
            self.rows = self._recover()
        except BaseException:
            os.close(self._file)
            raise

    def append(self, row: Mapping[str, Any]) -> Annotation:
        """Write a row and wait for the disk. Either the whole row is in the file, or JournalError and nothing is."""
        data = json.dumps(row, ensure_ascii=True, allow_nan=False).encode("ascii") + b"\n"
        parsed = parse_row(self.path, self._lines + 1, data)  # what we could not read again is never written
        self._still_ours()
        before = os.fstat(self._file).st_size
        try:
            written = 0
            while written < len(data):
                written += os.write(self._file, data[written:])
            os.fsync(self._file)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, before)
            raise JournalError(f"{self.path}: the answer could not be written: {error.strerror}") from None
        self._lines += 1
        self.rows.append(parsed)
        return parsed

    def close(self) -> None:
        """Let go of the file; no other method may be called afterwards."""
        os.close(self._file)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            reason = "another process is writing this file; give each annotator one of their own"
            raise JournalError(f"{self.path}: {reason}") from None

    def _still_ours(self) -> None:
        """A file removed or replaced under a running page would swallow every further answer."""
        try:
            there = os.stat(self.path)
        except OSError:
            raise JournalError(f"{self.path}: the file has been removed; start the page again") from None
        if not os.path.samestat(there, os.fstat(self._file)):
            raise JournalError(f"{self.path}: another file has taken this one's place; start the page again")

    def _recover(self) -> list[Annotation]:
        """The rows; an unfinished last line is ended where all of it is there, else moved to a file of its own."""
        raw = self.path.read_bytes()
        end = raw.rfind(b"\n") + 1
        lines, tail = raw[:end].split(b"\n")[:-1], raw[end:]
        rows = [parse_row(self.path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
        self._lines = len(lines)
        if not tail:
            return rows
        try:
            rows.append(parse_row(self.path, self._lines + 1, tail))
        except TornError:
            self.set_aside = self._move(tail, end)
            return rows
        os.write(self._file, b"\n")
        os.fsync(self._file)
        self._lines += 1
        return rows

    def _move(self, tail: bytes, end: int) -> Path:
        aside = self.path.with_name(f"{self.path.name}.torn-{time.time_ns()}")
        with open(aside, "xb") as file:
            file.write(tail)
            file.flush()
            os.fsync(file.fileno())
        _sync_folder(self.path.parent)  # the copy is safe before the original goes
        os.ftruncate(self._file, end)
        os.fsync(self._file)
        return aside


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""The file of answers: on the disk before the page moves on, whole after every crash, with one writer."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lab.annotate.journal import Journal, JournalError, read_journal
from lab.data.jsonl import JsonlError
from tests.synthetic_annotations import Sitting, answer

# ---------------------------------------------------------------- the journal


def test_a_row_is_on_the_disk_before_the_page_moves_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sitting = Sitting(tmp_path / "a.jsonl")
    seen: list[int] = []
    real = os.fsync

    def watch(file: int) -> None:
        seen.append(len(read_journal(tmp_path / "a.jsonl")))
        assert sitting.asked == len(seen)  # not moved on yet
        real(file)

    monkeypatch.setattr(os, "fsync", watch)
    for _ in range(3):
        sitting.press("left")
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("failing", ["write", "fsync"])
def test_a_full_disk_loses_nothing_and_moves_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    sitting = Sitting(tmp_path / "a.jsonl")
    sitting.press("left")
    before = (tmp_path / "a.jsonl").read_bytes()
    real = os.write

    def full(file: int, data: bytes = b"") -> int:
        if data and len(data) > 40:
            return real(file, data[:40])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(JournalError, match=r"a\.jsonl: the answer could not be written: No space left"):
            sitting.press("left")
    assert (tmp_path / "a.jsonl").read_bytes() == before
    assert sitting.asked == 2
    sitting.press("right")
    assert [row.answer for row in read_journal(tmp_path / "a.jsonl")] == ["left", "right"]


def test_a_write_in_pieces_is_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sitting = Sitting(tmp_path / "a.jsonl")
    real = os.write
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[:7]))
    sitting.press("left")
    assert [row.answer for row in read_journal(tmp_path / "a.jsonl")] == ["left"]


@pytest.mark.slow
def test_a_last_line_cut_anywhere_is_kept_aside_and_nothing_else_is_lost(tmp_path: Path) -> None:
    whole = [json.dumps(answer(n, "good")).encode() + b"\n" for n in range(3)]
    for cut in range(1, len(whole[2])):
        path = tmp_path / f"{cut}.jsonl"
        path.write_bytes(whole[0] + whole[1] + whole[2][:cut])
        assert len(read_journal(path)) == 2  # another annotator's page looks while it is being written
        journal = Journal(path)
        if cut == len(whole[2]) - 1:  # all but the line's end: the answer is there
            assert journal.set_aside is None
            assert path.read_bytes() == b"".join(whole)
        else:
            assert journal.set_aside is not None
            assert journal.set_aside.read_bytes() == whole[2][:cut]
            assert path.read_bytes() == whole[0] + whole[1]
        kept = len(journal.rows)
        journal.append(answer(3, "bad"))
        journal.close()
        assert [row.line for row in read_journal(path)] == list(range(1, kept + 2))


def test_zeros_after_a_power_cut_are_kept_aside(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(answer(0, "good")).encode() + b"\n" + bytes(200))
    journal = Journal(path)
    assert journal.set_aside is not None
    assert journal.set_aside.read_bytes() == bytes(200)
    assert len(journal.rows) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{oops\n", "not a row of annotations"),
        (b'{"prompt": "P", "chosen": "a", "rejected": "b"}', "key 'kind' is missing"),
        (b"[1]\n", "expected an object"),
        (json.dumps({**answer(1, "good"), "answer": "best"}).encode(), "key 'answer': expected one of left"),
        (json.dumps({**answer(1, "good"), "kind": "note"}).encode(), "key 'kind': expected answer or undo"),
        (json.dumps({**answer(1, "good"), "left": "edited"}).encode(), "key 'item': .* is not the identity"),
    ],
)
def test_a_file_that_is_no_journal_stays_as_it_is(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    raw = json.dumps(answer(0, "good")).encode() + b"\n" + line
    path.write_bytes(raw)
    with pytest.raises(JsonlError, match=rf"a\.jsonl:2: {message}"):
        Journal(path)
    assert path.read_bytes() == raw
    assert len(list(tmp_path.iterdir())) == 1


def test_one_file_has_one_writer(tmp_path: Path) -> None:
    first = Journal(tmp_path / "a.jsonl")
    with pytest.raises(JournalError, match=r"a\.jsonl: another process is writing this file"):
        Journal(tmp_path / "a.jsonl")
    first.close()
    Journal(tmp_path / "a.jsonl").close()
    with pytest.raises(JournalError, match="cannot be opened for writing: Is a directory"):
        Journal(tmp_path)
    with pytest.raises(JournalError, match=r"nowhere/a\.jsonl: cannot be opened for writing: No such file"):
        Journal(tmp_path / "nowhere" / "a.jsonl")


def test_a_file_taken_away_under_the_page_is_noticed(tmp_path: Path) -> None:
    sitting = Sitting(tmp_path / "a.jsonl")
    sitting.press("left")
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    with pytest.raises(JournalError, match="has been removed"):
        sitting.press("left")
    (tmp_path / "a.jsonl").write_bytes(b"")
    with pytest.raises(JournalError, match="another file has taken this one's place"):
        sitting.press("left")
    assert sitting.asked == 2
    (tmp_path / "b.jsonl").replace(tmp_path / "a.jsonl")
    sitting.press("left")
    assert len(read_journal(tmp_path / "a.jsonl")) == 2


WRITER = """
import sys
from datetime import datetime, timedelta, UTC
from pathlib import Path
from lab.annotate.items import Item
from lab.annotate.journal import Journal
from lab.annotate.session import Session

journal = Journal(Path(sys.argv[1]))
session = Session([Item(n, f"Q{n}", "a" * 3000, f"b{n}") for n in range(10_000)], "anna", journal.rows)
print(len(journal.rows), flush=True)
now = datetime.now(UTC)
while True:
    now += timedelta(seconds=1)
    session.record(journal.append(session.answer(session.token, "left", now)))
    print("saved", flush=True)
"""


def test_kill_9_in_the_middle_of_writing(tmp_path: Path) -> None:
    """The lock goes with the process, and every answer that was said to be saved is there."""
    path, acknowledged = tmp_path / "a.jsonl", 0
    for wanted in (5, 12, 3):
        command = [sys.executable, "-c", WRITER, str(path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1]) as process:
            assert process.stdout is not None
            assert int(process.stdout.readline()) - acknowledged in (0, 1)  # all but the end of a line was there
            lines = [process.stdout.readline() for _ in range(wanted)]
            process.send_signal(signal.SIGKILL)
            lines += process.stdout.readlines()
        assert lines.count("saved\n") >= wanted
        found = [row.prompt for row in read_journal(path)]
        assert len(found) >= acknowledged + lines.count("saved\n")
        assert found == [f"Q{n}" for n in range(len(found))]
        acknowledged = len(found)

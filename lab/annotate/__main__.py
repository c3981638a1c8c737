"""``python -m lab.annotate ITEMS --annotator NAME``: serve the page on this machine; docs/annotate.md says the rest."""

from __future__ import annotations

import argparse
import importlib.util
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from lab.annotate.items import FORMATS, Items, load_items
from lab.annotate.journal import Journal, JournalError, read_journal
from lab.annotate.session import Session
from lab.data.jsonl import JsonlError

LOCAL = "127.0.0.1"


class UsageError(ValueError):
    """What was asked for cannot be done; the message says why."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line. Exits with a message for what argparse can see is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m lab.annotate", description="A page where people state preferences."
    )
    parser.add_argument("items", type=Path, help="a file of pairs, or the folder of a preferences artifact")
    parser.add_argument("--annotator", required=True, help="who answers: letters, digits, '.', '_' and '-'")
    parser.add_argument("--out", type=Path, help="the file of answers (default: annotations-NAME.jsonl)")
    parser.add_argument("--against", type=Path, action="append", default=[], metavar="FILE",
                        help="answers of another annotator, to measure agreement with; may be repeated")  # fmt: skip
    parser.add_argument("--format", choices=FORMATS, default="pairs", help="how ITEMS is written (default: pairs)")
    parser.add_argument("--host", default=LOCAL, help=f"the address to listen on (default: {LOCAL}, this machine only)")
    parser.add_argument("--port", type=int, default=8080, help="0: any that is free (default: 8080)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Check everything, then serve until interrupted. Returns the exit status; messages of errors go to stderr."""
    given = parse(arguments)
    try:
        _serve(given)
    except (JsonlError, JournalError, UsageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _serve(given: argparse.Namespace) -> None:
    if not re.fullmatch(r"\w[\w.-]{0,63}", given.annotator):
        raise UsageError(f"--annotator: expected a name of letters, digits, '.', '_' and '-', got {given.annotator!r}")
    if importlib.util.find_spec("nicegui") is None:
        raise UsageError("the page needs NiceGUI: pip install 'alignment-lab[annotate]'")
    out = given.out or Path(f"annotations-{given.annotator}.jsonl")
    items = load_items(given.items, given.format)
    if out.exists() and out.samefile(items.path):
        raise UsageError(f"--out: {out} is the file of items; answers go to a file of their own")
    _check_others(given.against, out, given.annotator)
    port = free_port(given.host, given.port)
    journal = Journal(out)
    session = Session(items.items, given.annotator, journal.rows)
    _report(items, journal, session)

    from lab.annotate.page import LOOPBACK, Desk, now, serve

    if given.host not in LOOPBACK:
        print(f"warning: {given.host}: whoever reaches this address can read the items and answer as {given.annotator}")

    def announce() -> None:
        shown = f"[{given.host}]" if ":" in given.host else given.host
        print(f"open http://{shown}:{port} (Ctrl-C stops; every answer is on the disk as soon as it is shown as saved)",
              flush=True)  # fmt: skip

    serve(Desk(session, journal, given.against, now), given.host, port, announce)


def _check_others(paths: Sequence[Path], out: Path, annotator: str) -> None:
    """Raises UsageError or JsonlError for a file that agreement cannot be measured with; one yet to come is none."""
    for path in paths:
        if path.exists() and out.exists() and path.samefile(out):
            raise UsageError(f"--against: {path} is the file of this annotator's own answers")
        names = {row.annotator for row in read_journal(path)}
        if names == {annotator}:
            raise UsageError(f"--against: {path}: all its answers are by {annotator!r}, the name given here")


def free_port(host: str, port: int) -> int:
    """``port`` if it can be listened on, or one that can for 0. Raises UsageError for one that is taken."""
    if not 0 <= port < 1 << 16:
        raise UsageError(f"--port: expected a number from 0 to 65535, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server: a closed one may linger
            probe.bind(address)
            return int(probe.getsockname()[1])
    except OSError as error:
        raise UsageError(f"--host {host} --port {port}: cannot listen there ({error}); "
                         "choose another port, or --port 0 for any that is free") from None  # fmt: skip


def _report(items: Items, journal: Journal, session: Session) -> None:
    progress = session.progress
    print(f"{items.path}: {progress.total} pairs, {progress.answered} of them answered by {session.annotator}")
    for rows, what in ((items.identical, "two equal completions"), (items.repeated, "repeat of an earlier row")):
        if rows:
            named = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
            print(f"{items.path}: left out, {what}: {len(rows)} (rows {named})")
    if journal.set_aside:
        print(f"{journal.path}: the last line was cut off in the middle of writing; it is kept in {journal.set_aside}")


if __name__ == "__main__":
    sys.exit(main())

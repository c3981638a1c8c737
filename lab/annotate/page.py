"""The NiceGUI page: draws a ``Session``, and sends what is pressed through it to the journal."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from nicegui import Client, app, events, ui
from starlette.middleware.trustedhost import TrustedHostMiddleware

from lab.annotate import look
from lab.annotate.agreement import Agreement, agreements
from lab.annotate.journal import Journal, JournalError, read_journal
from lab.annotate.session import RefusedError, Session
from lab.data.annotations import Annotation
from lab.data.jsonl import JsonlError

SPOKEN = {"left": "1 is better", "right": "2 is better", "tie": "Tie", "both_bad": "Both bad"}
KEYS = {"left": ("←", "1"), "tie": ("3",), "both_bad": ("4",), "right": ("→", "2")}
"""Answers in the order of their buttons, and the keys that give them, the one to be shown first."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")


class Desk:
    """What all windows share: the session, its file, and the files of other annotators (read anew at every look)."""

    def __init__(
        self, session: Session, journal: Journal, others: Sequence[Path], clock: Callable[[], datetime]
    ) -> None:
        self.session, self.journal, self.clock = session, journal, clock
        self._others = others
        self.views: list[View] = []

    def act(self, name: str, token: str) -> str:
        """Do what was pressed, on the disk first. Returns what to tell; raises RefusedError or JournalError."""
        now = self.clock()
        row = self.session.undo(token, now) if name == "undo" else self.session.answer(token, name, now)
        before = self.session.last
        self.session.record(self.journal.append(row))
        for view in self.views:
            view.draw()
        if name == "undo":
            return f"Taken back: {SPOKEN[before.answer]}" if before else "Taken back"
        return f"Saved: {SPOKEN[name]}"

    def agreements(self) -> list[Agreement]:
        """With everyone else in our own file and in the others. Raises JsonlError for a file that is no journal."""
        rows: list[Annotation] = list(self.journal.rows)
        for path in self._others:
            rows += [row for row in read_journal(path) if row.annotator != self.session.annotator]
        return agreements(self.session.annotator, rows)


class View:
    """One window: the elements that change, and how they follow the session."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        ui.add_css(look.CSS)
        ui.add_head_html(f"<script>{look.SCRIPT}</script>")
        ui.on("act", self._act)
        self._root = ui.element("div").classes("annotate")
        with self._root:
            self._header()
            with ui.element("main"):
                self._panels = {
                    "prompt": _Panel("Prompt", "prompt"),
                    "left": _Panel("Completion 1", "side"),
                    "right": _Panel("Completion 2", "side"),
                }
                self._done = ui.element("div").classes("done")
                with self._done:
                    _text("h2", "Every pair is answered. Thank you!")
                    self._summary = _text("p", "")
                    _text("p", f"The answers are in {desk.journal.path}")
            self._footer()
        self.draw()

    def draw(self) -> None:
        """Show what the session asks now."""
        session = self._desk.session
        item, progress = session.current, session.progress
        self._root.props["data-token"] = session.token
        self._root.update()
        self._count.set_text(f"{progress.answered} / {progress.total}")
        self._bar.style(f"transform: scaleX({progress.answered / progress.total:.4f})")
        meter = {
            "aria-valuenow": progress.answered,
            "aria-valuetext": f"{progress.answered} of {progress.total} answered",
        }
        self._meter.props.update(meter)
        self._meter.update()
        for panel in self._panels.values():
            panel.show(item is not None)
        self._done.classes(remove="gone") if item is None else self._done.classes(add="gone")
        if item is None:
            self._summary.set_text(", ".join(f"{SPOKEN[name]}: {count}" for name, count in progress.counts.items()))
        else:
            left, right = item.sides(session.annotator)
            for name, text in (("prompt", item.prompt), ("left", left), ("right", right)):
                self._panels[name].set(text)
        for name, button in self._buttons.items():
            idle = session.last is None if name == "undo" else item is None
            button.props["disabled"] = idle
            button.update()
        with self._root:  # another window's press may draw this one
            ui.run_javascript("document.querySelectorAll('.annotate .text, main').forEach(e => e.scrollTo(0, 0))")

    def _header(self) -> None:
        with ui.element("header"):
            _text("h1", "Which completion is better?")
            _text("div", self._desk.session.annotator).classes("who")
            self._meter = ui.element("div").classes("bar")
            total = self._desk.session.progress.total
            self._meter.props.update({"role": "progressbar", "aria-label": "Pairs answered", "aria-valuemin": 0})
            self._meter.props.update({"aria-valuemax": total})
            with self._meter:
                self._bar = ui.element("div")
            self._count = _text("div", "").classes("count")
            undo = ui.element("button").classes("small")
            undo.props.update({"data-act": "undo", "type": "button", "aria-keyshortcuts": "u"})
            with undo:
                _text("span", "Undo")
                _key("U")
            self._buttons = {"undo": undo}
            with ui.element("button").classes("small").on("click", self._show_agreement):
                _text("span", "Agreement")

    def _footer(self) -> None:
        with ui.element("footer"):
            self._alert = _text("div", "").classes("alert").props("role=alert")
            with ui.element("div").classes("answers").props('role=group aria-label="Your answer"'):
                for name, keys in KEYS.items():
                    self._buttons[name] = _answer_button(name, keys)
            with ui.element("div").classes("below"):
                self._status = _text("div", "").props("role=status aria-live=polite")
                _text("div", f"Answers go to {self._desk.journal.path}").classes("file")

    def _act(self, event: events.GenericEventArguments) -> None:
        given = event.args if isinstance(event.args, dict) else {}
        name, token = str(given.get("name")), str(given.get("token"))
        try:
            told = self._desk.act(name, token)
        except RefusedError as error:
            self._status.set_text(str(error))
            return
        except JournalError as error:
            self._alert.set_text(f"Not saved. {error}")
            self._status.set_text("")
            return
        self._alert.set_text("")
        progress = self._desk.session.progress
        self._status.set_text(f"{told} ({progress.answered} of {progress.total})")

    def _show_agreement(self) -> None:
        with ui.dialog() as dialog, ui.element("div").classes("annotate-agreement"):
            _text("h2", "Agreement with other annotators")
            try:
                found = self._desk.agreements()
            except (JsonlError, OSError) as error:
                _text("p", f"Could not be read: {error}").props("role=alert")
                found = []
            for one in found:
                _text("p", describe(one))
            if not found:
                _text("p", "Nobody else has answered any of the pairs that you have answered.")
            _text("p", "Look when you are done: what others said should not sway you.").classes("dim")
            with ui.element("button").props("type=button autofocus").on("click", dialog.close):
                _text("span", "Close")
        dialog.on("hide", dialog.delete)
        dialog.open()


class _Panel:
    """A text in a frame that scrolls, with a line below that names what cannot be seen."""

    def __init__(self, title: str, kind: str) -> None:
        self._section = ui.element("section").classes(kind)
        self._section.props.update({"aria-label": title})
        with self._section:
            _text("h2", title)
            self._text = _text("div", "").classes("text")
            self._text.props.update({"tabindex": 0, "dir": "auto", "role": "group", "aria-label": title})
            self._note = _text("div", "").classes("note")

    def set(self, text: str) -> None:
        self._text.set_text(look.shown(text) if text.strip() else "(empty)")
        self._text.classes(remove="empty") if text.strip() else self._text.classes(add="empty")
        hidden = look.hidden(text)
        self._note.set_text(f"Hidden characters: {hidden}" if hidden else "")

    def show(self, visible: bool) -> None:
        self._section.classes(remove="gone") if visible else self._section.classes(add="gone")


def describe(found: Agreement) -> str:
    """Two lines for the annotator."""
    alike = f"alike {found.same:.0%} [{found.same_low:.0%}, {found.same_high:.0%}]"
    kappa = "not defined (one answer throughout)" if found.kappa is None else f"{found.kappa:.2f}"
    known = found.kappa is not None and found.kappa_low == found.kappa_low
    interval = f" [{found.kappa_low:.2f}, {found.kappa_high:.2f}]" if known else ""
    return f"{found.other}: {found.items} pairs in common\n{alike}, Cohen's kappa {kappa}{interval}"


def _text(tag: str, text: str) -> ui.label:
    """An element whose only child is a text node: nothing in ``text`` can be markup."""
    label = ui.label(text)
    label.tag = tag
    return label


def _key(name: str) -> None:
    _text("kbd", name).props("aria-hidden=true")


def _answer_button(name: str, keys: Sequence[str]) -> ui.element:
    button = ui.element("button").classes("better" if name in ("left", "right") else "")
    said = f"Completion {SPOKEN[name]}" if name in ("left", "right") else SPOKEN[name]
    arrows = {"←": "ArrowLeft", "→": "ArrowRight"}
    shortcuts = " ".join(arrows.get(key, key) for key in keys)
    button.props.update({"data-act": name, "type": "button", "aria-label": said, "aria-keyshortcuts": shortcuts})
    button.props["title"] = f"Key {' or '.join(keys)}"
    with button:
        if name != "right":
            _key(keys[0])
        _text("span", SPOKEN[name])
        if name == "right":
            _key(keys[0])
    return button


def serve(desk: Desk, host: str, port: int, announce: Callable[[], None]) -> None:
    """Serve the page until the process is told to stop; ``announce`` is called once it can be reached."""
    if host in LOOPBACK:
        # A page elsewhere on the web must not reach this one through a name that resolves to this machine.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK, "[::1]"])

    async def announce_when_reachable() -> None:
        while True:  # start-up handlers run before the server listens
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(0.05)
                continue
            writer.close()
            announce()
            return

    app.on_startup(announce_when_reachable)

    def page(client: Client) -> None:
        view = View(desk)
        desk.views.append(view)
        client.on_delete(lambda: _forget(desk, view))

    ui.run(
        lambda: page(ui.context.client),
        host=host,
        port=port,
        title="Which is better?",
        favicon="⚖️",
        language="en-US",
        reload=False,
        show=False,
        show_welcome_message=False,
        tailwind=False,
        dark=None,
    )


def _forget(desk: Desk, view: View) -> None:
    with contextlib.suppress(ValueError):
        desk.views.remove(view)


def now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)

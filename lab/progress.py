"""What a person sees while a plan runs: live bars on a terminal, one line a start and a finish anywhere else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO

from lab.plan import Step, duration

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@dataclass(frozen=True)
class Event:
    """Something happened to a step.

    ``what``: "reuse", "wait" (another run builds it), "start", "progress" (``done`` of ``total``), "finish" (after
    ``seconds``), "fail", "skip", "retry" (an input must be built again). ``over`` of ``steps`` of the plan are over.
    """

    what: str
    step: Step
    note: str
    done: int
    total: int
    seconds: float
    over: int
    steps: int


@contextlib.contextmanager
def display(
    stream: TextIO, workers: int, remaining_seconds: Callable[[int], float]
) -> Iterator[Callable[[Event], None]]:
    """A listener for events: rich bars if ``stream`` is a terminal, else plain lines with the time of day."""
    if not stream.isatty():
        yield lambda event: _print(stream, event)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(), TimeElapsedColumn(),
               TextColumn("{task.fields[note]}"))  # fmt: skip
    with Progress(*columns, console=Console(file=stream), refresh_per_second=4, transient=True) as progress:
        bars = _Bars(progress, workers, remaining_seconds)
        yield bars


class _Bars:
    """One bar for the plan, one for every running step."""

    def __init__(self, progress: Progress, workers: int, remaining_seconds: Callable[[int], float]):
        self.progress, self.workers, self.remaining_seconds = progress, workers, remaining_seconds
        self.plan = progress.add_task("plan", total=None, note="")
        self.running: dict[str, TaskID] = {}
        self.clock = time.monotonic()
        self.estimated = remaining_seconds(workers)

    def __call__(self, event: Event) -> None:
        key, title = event.step.key, event.step.title
        if event.what in ("start", "wait") and key not in self.running:
            self.running[key] = self.progress.add_task(f"  {title}", total=None, note="")
        if event.what in ("start", "wait"):
            self.progress.update(self.running[key], note="another run is building it" if event.what == "wait" else "")
        elif event.what == "progress" and key in self.running:
            self.progress.update(self.running[key], completed=event.done, total=event.total, note=event.note)
        elif event.what in ("finish", "fail", "reuse", "retry") and key in self.running:
            self.progress.remove_task(self.running.pop(key))
        if event.what != "progress" and (line := _line(event)):
            self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self.progress.update(self.plan, completed=event.over, total=event.steps, note=self._left())

    def _left(self) -> str:
        """Time left, by the estimates, scaled by how wrong they were so far."""
        left, elapsed = self.remaining_seconds(self.workers), time.monotonic() - self.clock
        worked_off = self.estimated - left
        if worked_off <= 0 or elapsed < 5:
            return ""
        return f"about {duration(left * elapsed / worked_off)} left"


def _line(event: Event) -> str:
    title = event.step.title
    match event.what:
        case "finish":
            return f"done     {title}  {duration(event.seconds)}  ({event.over}/{event.steps})"
        case "fail":
            return f"FAILED   {title}: {event.note}"
        case "skip":
            return f"skipped  {title}: {event.note}"
        case "retry":
            return f"again    {title}: {event.note}"
    return ""


def _print(stream: TextIO, event: Event) -> None:
    line = _line(event)
    if event.what == "start":
        line = f"start    {event.step.title}  [{event.step.key[:10]}]"
    elif event.what == "wait":
        line = f"waiting  {event.step.title}: another run is building it"
    if line:
        print(time.strftime("%H:%M:%S"), line, file=stream, flush=True)

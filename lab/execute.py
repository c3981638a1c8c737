"""Run the missing steps of a plan in worker processes, and go on when one fails.

The order is a function of the plan and the estimates: among the steps that are ready, the one with the longest chain
behind it goes first. The parent never imports torch. It is no distributed scheduler: other machines take part by
running the same plan on the same store, where leases make each step run once.
"""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path
from typing import TextIO

from lab.artifact import canonical_json
from lab.plan import HIT, MISS, Estimate, Plan, Step
from lab.progress import Event, display
from lab.store import MissingArtifact, Store
from lab.worker import Job, Stopped, StopSwitch, Worker, import_runner, run_job, unused_logs


@dataclass(frozen=True)
class Failure:
    """A step that failed, why in one line, and the file with the whole story."""

    step: Step
    reason: str
    log: Path


@dataclass(frozen=True)
class Skip:
    """A step that was not tried, and the failed steps that it needed."""

    step: Step
    because: tuple[Step, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a plan. ``done``: built here; ``reused``: there already, or built by another run meanwhile."""

    done: tuple[Step, ...]
    failed: tuple[Failure, ...]
    skipped: tuple[Skip, ...]
    reused: tuple[Step, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        return not self.failed and not self.skipped

    def summary(self) -> str:
        """For people: one line, then one for every failed and every skipped step."""
        lines = [f"{len(self.done)} steps run, {len(self.reused)} reused, {len(self.failed)} failed, "
                 f"{len(self.skipped)} skipped in {self.seconds:.1f} s"]  # fmt: skip
        lines += [f"failed   {item.step.title}: {item.reason} (see {item.log})" for item in self.failed]
        lines += [f"skipped  {item.step.title}: needs {', '.join(step.title for step in item.because)}"
                  for item in self.skipped]  # fmt: skip
        return "\n".join(lines)


class Schedule:
    """What is waiting, running and over. No processes, no clock: the order can be tested by itself."""

    def __init__(self, plan: Plan, store: Store, estimates: Mapping[str, Estimate]):
        self.plan, self.store = plan, store
        # A step of unknown duration counts a second, so that the longer chain still goes first.
        self.seconds = {key: cost.seconds if cost.basis != "unknown" else 1.0 for key, cost in estimates.items()}
        longest = plan.priorities(self.seconds)
        self._rank = {step.key: (-longest[step.key], index) for index, step in enumerate(plan.steps)}
        status = plan.status(store)
        self.waiting = {step.key for step in plan.steps if status[step.key] == MISS}
        self.there = {key for key, state in status.items() if state == HIT}
        self.reused = [step for step in plan.targets if step.key in self.there]
        self.reused += [step for step in plan.steps if step.key in self.there and step not in self.reused]
        self.running: dict[str, Step] = {}
        self.done: list[Step] = []
        self.failed: list[Failure] = []
        self.skipped: list[Skip] = []
        self._retried: set[tuple[str, str]] = set()

    @property
    def total(self) -> int:
        return len(self.waiting) + len(self.running) + self.over

    @property
    def over(self) -> int:
        return len(self.done) + len(self.failed) + len(self.skipped) + len(self.reused)

    def next(self) -> Step | None:
        """Take the next step to start, None if none may start now.

        A step with ``resources["exclusive"]`` runs alone: when it is first in line nothing else starts before it.
        """
        if any(step.resources.get("exclusive") for step in self.running.values()):
            return None
        ready = [key for key in self.waiting if self.there.issuperset(self.plan.by_key[key].input_keys.values())]
        if not ready:
            return None
        step = self.plan.by_key[min(ready, key=self._rank.__getitem__)]
        if step.resources.get("exclusive") and self.running:
            return None
        self.waiting.remove(step.key)
        self.running[step.key] = step
        return step

    def finish(self, step: Step, how: str) -> None:
        """A running step is over: ``how`` is "built" or "reused"."""
        del self.running[step.key]
        self.there.add(step.key)
        (self.done if how == "built" else self.reused).append(step)

    def rebuild(self, step: Step, missing: str) -> bool:
        """The running ``step`` found an input gone or corrupt: queue that again, and the step after it. False when it
        is not an input of it, or the step was tried again for it already."""
        if missing not in step.input_keys.values() or (step.key, missing) in self._retried:
            return False
        self._retried.add((step.key, missing))
        del self.running[step.key]
        self.waiting.add(step.key)
        self._require(missing)
        return True

    def _require(self, key: str) -> None:
        """Queue a step that turned out to be missing, and whatever it needs that is missing too."""
        step = self.plan.by_key[key]
        if key in self.waiting or key in self.running or self.store.has(key):
            return
        self.there.discard(key)
        self.reused = [item for item in self.reused if item.key != key]
        self.done = [item for item in self.done if item.key != key]
        self.waiting.add(key)
        for item in step.inputs.values():
            self._require(item.key)

    def fail(self, step: Step, reason: str, log: Path) -> list[Skip]:
        """A running step failed; returns the steps that are skipped because of it."""
        del self.running[step.key]
        self.failed.append(Failure(step, reason, log))
        bad = {item.step.key for item in self.failed} | {item.step.key for item in self.skipped}
        new = []
        for later in self.plan.steps:  # inputs come first, so one pass reaches every dependant
            if later.key in self.waiting and bad.intersection(later.input_keys.values()):
                bad.add(later.key)
                self.waiting.remove(later.key)
                new.append(Skip(later, tuple(self._causes(later))))
        self.skipped += new
        return new

    def _causes(self, step: Step) -> Iterator[Step]:
        ancestors = {item.key for item in Plan([step]).steps}
        return (item.step for item in self.failed if item.step.key in ancestors)

    def remaining_seconds(self, workers: int) -> float:
        """A lower bound of what is left, by the estimates."""
        left = self.waiting | set(self.running)
        return self.plan.bound_seconds({key: self.seconds.get(key, 0.0) for key in left}, workers)


def execute(
    plan: Plan,
    store: Store,
    *,
    workers: int,
    runner: str,
    warm_up: str | None = None,
    on_event: Callable[[Event], None] | None = None,
    offline: bool = False,
    flops_per_second: float | None = None,
    show: bool = True,
    stream: TextIO | None = None,
    grace_seconds: float = 5.0,
) -> Outcome:
    """Build what is missing of ``plan``; the rest goes on when a step fails.

    ``runner``: dotted name of ``run(kind, config, inputs, out, context) -> Ledger | StageResult``, imported in the
    workers only (``workers=0`` runs everything in this process, for tests and debuggers). ``warm_up``: a module that
    idle workers import ahead of need. ``offline`` keeps Hugging Face libraries off the network. ``show``: progress on
    ``stream`` (standard error). A step's resources: ``threads`` (of torch, default 1) and ``exclusive`` (runs alone).
    A failed step's traceback and output go to ``<store>/.failures/<key>.log``.
    Raises StoreError before any work when the store cannot be written, ValueError for a bad runner with no workers,
    SystemExit(130) on Ctrl-C and SystemExit(143) on SIGTERM after stopping the workers; a second signal kills them.
    """
    store.prepare()
    started = time.monotonic()
    schedule = Schedule(plan, store, plan.estimates(store, flops_per_second))
    with contextlib.ExitStack() as stack:
        listeners = [on_event] if on_event else []
        if show and (schedule.waiting or schedule.running):
            listeners.append(stack.enter_context(display(stream or sys.stderr, max(workers, 1),
                                                         schedule.remaining_seconds)))  # fmt: skip

        def tell(what: str, step: Step, note: str = "", done: int = 0, total: int = 0, seconds: float = 0.0) -> None:
            event = Event(what, step, note, done, total, seconds, schedule.over, schedule.total)
            for listener in listeners:
                listener(event)

        for step in schedule.reused:
            tell("reuse", step)
        if workers > 0:
            pool = _Pool(schedule, store, runner, warm_up, offline, grace_seconds, tell)
            pool.run(min(workers, len(schedule.waiting)))
        else:
            _run_here(schedule, store, runner, tell)
    return Outcome(tuple(schedule.done), tuple(schedule.failed), tuple(schedule.skipped), tuple(schedule.reused),
                   time.monotonic() - started)  # fmt: skip


def _fail(schedule: Schedule, store: Store, step: Step, reason: str, story: str, tell: Callable[..., None]) -> None:
    log = store.failure_log(step.key)
    about = f"{step.title}\nkind {step.kind}\nkey {step.key}\nconfig {canonical_json(step.config)}"
    text = f"{about}\n\n{reason}\n\n{story}"
    with contextlib.suppress(OSError):  # a full disk must not end the run
        log.write_text(text.rstrip() + "\n", encoding="utf-8", errors="backslashreplace")
    skipped = schedule.fail(step, reason, log)
    tell("fail", step, f"{reason} (see {log})")
    for item in skipped:
        tell("skip", item.step, f"needs {', '.join(cause.title for cause in item.because)}")


@contextlib.contextmanager
def _signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Route SIGINT and SIGTERM to ``handle``; nothing in a thread, where Python forbids it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda caught, _frame: handle(caught))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_here(schedule: Schedule, store: Store, runner: str, tell: Callable[..., None]) -> None:
    function, switch = import_runner(runner), StopSwitch()
    try:
        with _signals(switch):
            while (step := schedule.next()) is not None:
                clock = time.monotonic()
                try:
                    how = run_job(store, function, Job.of(step), functools.partial(_report, tell, step), switch)
                except Exception as error:
                    reason = f"{type(error).__name__}: {error}"
                    if isinstance(error, MissingArtifact) and schedule.rebuild(step, error.key):
                        tell("retry", step, reason)
                    else:
                        _fail(schedule, store, step, reason, traceback.format_exc(), tell)
                else:
                    schedule.finish(step, how)
                    tell("finish" if how == "built" else "reuse", step, seconds=time.monotonic() - clock)
                switch.check()
    except Stopped as stopped:
        raise SystemExit(128 + stopped.args[0]) from None


def _report(tell: Callable[..., None], step: Step, what: str, *details: object) -> None:
    if what == "progress":
        done, total, note = details
        tell("progress", step, str(note), done, total)
    else:
        tell(what, step)


class _Pool:
    """The workers of one run."""

    def __init__(self, schedule: Schedule, store: Store, runner: str, warm_up: str | None, offline: bool,
                 grace_seconds: float, tell: Callable[..., None]):  # fmt: skip
        self.schedule, self.store, self.runner, self.warm_up = schedule, store, runner, warm_up
        self.offline, self.grace_seconds, self.tell = offline, grace_seconds, tell
        self.workers: list[Worker] = []
        self.started: dict[str, float] = {}
        self.signals: list[int] = []
        self.idle_deaths = 0

    def run(self, count: int) -> None:
        """Run until nothing is waiting or running."""
        wake, poke = os.pipe()

        def note(number: int) -> None:
            self.signals.append(number)
            os.write(poke, b"!")

        try:
            with _signals(note):
                for path in unused_logs(self.store.root / ".logs"):
                    path.unlink(missing_ok=True)
                self.workers = [Worker(self.store, self.runner, self.offline) for _ in range(count)]
                cold = set(self.workers)
                while self.schedule.waiting or self.schedule.running:
                    self._assign(cold)
                    wait([wake, *(worker.connection for worker in self.workers)], timeout=0.5)
                    if self.signals:
                        self._stop()
                        raise SystemExit(128 + self.signals[0])
                    for worker in list(self.workers):
                        how = worker.death()  # before hearing: what a dead worker said last is not lost
                        self._hear(worker)
                        if how is not None:
                            self._bury(worker, how)
        finally:
            for worker in self.workers:
                worker.send(None)
            for worker in self.workers:
                worker.close()
            os.close(wake)
            os.close(poke)

    def _assign(self, cold: set[Worker]) -> None:
        """Give ready steps to idle workers; let those that get none import what they will need."""
        idle = [worker for worker in self.workers if worker.step is None and not worker.warming]
        # A warm worker first: the step starts at once, and the cold one goes on warming.
        for worker in sorted(idle, key=lambda worker: worker in cold):
            step = self.schedule.next()
            if step is not None:
                worker.step = step
                self.started[step.key] = time.monotonic()
                worker.send(Job.of(step))
            elif worker in cold and self.warm_up:
                worker.warming = True
                worker.send(self.warm_up)
                cold.discard(worker)

    def _hear(self, worker: Worker) -> None:
        try:
            while worker.connection.poll():
                what, *details = worker.connection.recv()
                step = worker.step
                if what == "idle" or step is None:
                    worker.warming = False
                elif what == "finished":
                    worker.step = None
                    self.schedule.finish(step, details[0])
                    seconds = time.monotonic() - self.started[step.key]
                    self.tell("finish" if details[0] == "built" else "reuse", step, seconds=seconds)
                elif what == "failed":
                    worker.step = None
                    reason, story, missing = details
                    if missing and self.schedule.rebuild(step, missing):
                        self.tell("retry", step, reason)
                    else:
                        output = worker.output()
                        story += f"\n--- output of the step ---\n{output}" if output else ""
                        _fail(self.schedule, self.store, step, reason, story, self.tell)
                else:
                    _report(self.tell, step, what, *details)
        except (EOFError, OSError):
            worker.kill(signal.SIGKILL)  # its end of the socket is closed: dead, or soon

    def _bury(self, worker: Worker, how: str) -> None:
        """A dead worker: the step that it ran has failed, a new one takes its place."""
        self.workers.remove(worker)
        step, output = worker.step, worker.output()
        worker.close()
        if step is not None:
            _fail(self.schedule, self.store, step, how, f"--- output of the step ---\n{output}", self.tell)
        else:
            self.idle_deaths += 1
            if self.idle_deaths > 3:
                raise RuntimeError(f"{how} without a step to run, for the fourth time:\n{output}")
        if self.schedule.waiting:
            self.workers.append(Worker(self.store, self.runner, self.offline))

    def _stop(self) -> None:
        """SIGTERM to all, then SIGKILL when the grace is over or the user insists."""
        for worker in self.workers:
            worker.kill(signal.SIGTERM)
        limit = time.monotonic() + self.grace_seconds
        heard = len(self.signals)
        while any(worker.process.poll() is None for worker in self.workers):
            if time.monotonic() > limit or len(self.signals) > heard:
                break
            time.sleep(0.05)

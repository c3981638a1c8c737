"""The far side of ``lab.execute``: one process that runs one step at a time and stays alive between steps.

A worker is a fresh interpreter (not a fork), because threads, CUDA and allocator settings do not survive a fork, and
not ``multiprocessing``'s spawn, because that imports the caller's main module again in every worker. Importing the
trainers costs seconds, so a worker lives as long as the run. It speaks pickled tuples over one socket; its standard
output goes to a file, of which a failed step's log gets the tail.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lab.plan import Step
from lab.store import Building, Context, LeaseLost, MissingArtifact, Store

BOOT = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from lab.worker import serve; serve(int(sys.argv[2]))"
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS",
                    "VECLIB_MAXIMUM_THREADS", "RAYON_NUM_THREADS")  # fmt: skip
DEFAULTS = {
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONUNBUFFERED": "1",  # what a killed worker printed last must be in its file
    "PYTHONHASHSEED": "0",  # the order of sets must not decide a result
}
# glibc gives large blocks back to the kernel and faults them in again at every step; 32 MiB is the most that older
# versions accept as the first threshold.
GLIBC_DEFAULTS = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(256 * 2**20)}
OFFLINE = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
OUTPUT_TAIL = 20_000


class Stopped(BaseException):
    """SIGTERM arrived. Not an Exception, so that a stage's ``except Exception`` does not swallow it."""


class StopSwitch:
    """Turns a signal into Stopped, but only where that is safe: in a stage, never between taking a lease and the code
    that will release it, nor in mid-publish. Elsewhere the signal waits for the next safe place; a second one does not.
    """

    def __init__(self) -> None:
        self.pending: int | None = None
        self._safe = False

    def __call__(self, number: int) -> None:
        force = self.pending is not None
        self.pending = number
        if self._safe or force:
            raise Stopped(number)

    def check(self) -> None:
        """A safe place by itself. Raises Stopped if a signal came."""
        if self.pending is not None:
            raise Stopped(self.pending)

    @contextlib.contextmanager
    def safe(self) -> Iterator[None]:
        """Everything in this block may be interrupted."""
        try:
            self._safe = True
            self.check()
            yield
        finally:
            self._safe = False


@dataclass(frozen=True)
class Job:
    """A step without the graph around it: what is sent to a worker."""

    kind: str
    config: Mapping[str, Any]
    recipe: int
    key: str
    input_keys: Mapping[str, str]
    label: str = ""
    resources: Mapping[str, Any] = field(default_factory=dict)
    recorded_work: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, step: Step) -> Job:
        return cls(step.kind, step.config, step.recipe, step.key, step.input_keys, step.label, step.resources,
                   step.recorded_work)  # fmt: skip


def import_runner(name: str) -> Callable[..., Any]:
    """The function of a dotted name. Raises ValueError naming it."""
    module, _, attribute = name.rpartition(".")
    try:
        return vars(importlib.import_module(module))[attribute]  # type: ignore[no-any-return]
    except (KeyError, ValueError, ModuleNotFoundError) as error:
        raise ValueError(f"runner {name!r}: no such function ({error})") from error


def run_job(store: Store, runner: Callable[..., Any], job: Job, report: Callable[..., None], switch: StopSwitch) -> str:
    """Build one step in this process; "built", or "reused" when another builder published it first.

    ``report(what, *details)`` hears ("wait",), ("start",) and ("progress", done, total, note).
    Whatever the stage raises comes out, and Stopped by ``switch``; nothing is published then.
    """
    waits = 0

    def on_wait() -> None:
        nonlocal waits
        switch.check()
        waits += 1
        if waits == 1:
            report("wait")

    for attempt in (1, 2, 3):
        try:
            with store.build(job, on_wait) as building:
                if building is None:
                    return "reused"
                report("start")
                with switch.safe():
                    _run_stage(runner, job, building, report)
            return "built"
        except LeaseLost:
            if attempt == 3:
                raise  # else wait for the builder that took over, and reuse what it makes
    raise AssertionError("unreachable")


def _run_stage(runner: Callable[..., Any], job: Job, building: Building, report: Callable[..., None]) -> None:
    last = 0.0

    def progress(done: int, total: int, note: str = "") -> None:
        nonlocal last
        if building.lease.lost.is_set():
            building.lease.check()
        now = time.monotonic()
        if now - last >= 0.1 or done >= total:
            last = now
            report("progress", done, total, note)

    threads = int(job.resources.get("threads", 1))
    _set_threads(threads)
    try:
        context = Context(job.key, job.key, building.scratch, progress, job.resources)
        building.finish(runner(job.kind, job.config, building.inputs, building.out, context))
    finally:
        if threads != 1:
            _set_threads(1)


def _set_threads(count: int) -> None:
    """Threads of torch. A function of the step alone: what ran before in this process must not change its bytes."""
    if count != 1 or "torch" in sys.modules:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module("torch").set_num_threads(count)


# --- the worker process --------------------------------------------------------------------------------------------


def serve(descriptor: int) -> None:
    """Main of a worker: jobs come over the socket until it says None or closes."""
    import faulthandler

    faulthandler.enable()
    os.set_inheritable(descriptor, False)
    connection, lock = Connection(descriptor), threading.Lock()
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def listen() -> None:
        while True:
            try:
                inbox.put(connection.recv())
            except (EOFError, OSError):
                os._exit(1)  # the parent is gone, even if by SIGKILL: nobody waits for this step

    def send(*message: Any) -> None:
        with lock:
            connection.send(message)

    switch = StopSwitch()

    def stop(number: int, _frame: object) -> None:
        # A batch system signals the whole job, so a second one comes from the parent; force is the parent's SIGKILL.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        switch(number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=listen, daemon=True).start()
    try:
        store, runner_name = inbox.get()
        while True:
            with switch.safe():
                message = inbox.get()
            if message is None:
                return
            _truncate_output()
            if isinstance(message, str):
                # Whatever is wrong with it shows again, under a step's name, when that step runs.
                with switch.safe(), contextlib.suppress(Exception):
                    importlib.import_module(message)
                send("idle")
            else:
                _serve_job(store, runner_name, message, send, switch)
    except Stopped:
        os._exit(128 + signal.SIGTERM)  # the store has cleaned up on the way here; library threads may hang


def _serve_job(store: Store, runner_name: str, job: Job, send: Callable[..., None], switch: StopSwitch) -> None:
    try:
        with switch.safe():
            runner = import_runner(runner_name)
        how = run_job(store, runner, job, send, switch)
    except Exception as error:
        sys.stdout.flush()
        missing = error.key if isinstance(error, MissingArtifact) else None
        send("failed", f"{type(error).__name__}: {error}", traceback.format_exc(), missing)
    except SystemExit as error:
        send("failed", f"the stage called sys.exit({error.code!r})", traceback.format_exc(), None)
    else:
        send("finished", how)


def _truncate_output() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        os.ftruncate(1, 0)  # opened for appending: the next line starts at 0


# --- its handle in the parent --------------------------------------------------------------------------------------


class Worker:
    """A worker process as the parent sees it. ``step``: what it runs; ``warming``: it imports ahead of need."""

    def __init__(self, store: Store, runner: str, offline: bool):
        ours, theirs = socket.socketpair()
        self._output = store.root / ".logs" / f"{time.monotonic_ns()}-{id(self):x}.log"
        self._output.parent.mkdir(exist_ok=True)
        with theirs, open(self._output, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", BOOT, json.dumps(sys.path), str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, pass_fds=[theirs.fileno()],
                env=environment(offline), start_new_session=True,  # the terminal's Ctrl-C must reach the parent alone
            )  # fmt: skip
        self.connection = Connection(ours.detach())
        self.step: Step | None = None
        self.warming = False
        self.send((store, runner))

    def send(self, message: Any) -> None:
        with contextlib.suppress(OSError):  # a dead worker is noticed by its exit code
            self.connection.send(message)

    def output(self) -> str:
        """The end of what the current step printed."""
        try:
            data = self._output.read_bytes()[-OUTPUT_TAIL:]
        except OSError:
            return ""
        return data.decode("utf-8", "replace").strip()

    def death(self) -> str | None:
        """How the process ended, in words; None while it lives."""
        code = self.process.poll()
        if code is None:
            return None
        if code >= 0:
            return f"the worker process ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"the worker process was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def kill(self, number: signal.Signals) -> None:
        """Signal the worker and, with SIGKILL, all that it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if number is signal.SIGKILL:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)

    def close(self) -> None:
        """Reap it, whatever state it is in."""
        self.kill(signal.SIGKILL)
        self.process.wait()
        self.connection.close()
        self._output.unlink(missing_ok=True)


def environment(offline: bool) -> dict[str, str]:
    """What a worker's environment is: one thread, and settings that the user has not made already."""
    wanted = dict(DEFAULTS)
    if sys.platform == "linux":
        wanted |= GLIBC_DEFAULTS
    if offline:
        wanted |= OFFLINE
    return {**wanted, **os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")}


def unused_logs(folder: Path) -> list[Path]:
    """Output files of workers that died with their parents, older than a day."""
    limit = time.time() - 86400
    return [path for path in folder.glob("*.log") if path.stat().st_mtime < limit]

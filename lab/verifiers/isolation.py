"""Hostile text is judged in a child process that can be killed.

A symbolic comparison of model output may take for ever (`9**9**9`), fill the memory, or crash. `signal.alarm` works
only in the main thread and a thread cannot be stopped, so the work happens in one persistent child with limits on wall
clock, CPU time, memory and file writes. A child that oversteps is killed, the verdict is TIMEOUT, and the next request
starts a new one.

The child is a plain `python -c` with a pipe at either end, not a `multiprocessing` process:
it works from daemonic workers, imports neither the caller's `__main__` nor torch, and inherits no locks.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lab.records import Outcome, Verdict

START_SECONDS = 120.0
"""How long imports in the child may take; they are not charged to the first request."""
Task = Callable[[Mapping[str, Any]], Any]


@dataclass(frozen=True)
class Limits:
    """Bounds on one request. CPU time is the deciding one on a busy machine; wall clock catches what merely waits."""

    cpu_seconds: float = 5.0
    wall_seconds: float = 20.0
    memory_bytes: int = 1 << 30  # on top of what the child holds after its imports


class WorkerStoppedError(Exception):
    """The child did not answer. `outcome` says whether it ran out of time or memory (TIMEOUT) or broke (ERROR)."""

    def __init__(self, outcome: Outcome, reason: str) -> None:
        super().__init__(reason)
        self.outcome = outcome
        self.reason = reason


class TaskError(Exception):
    """The task raised in the child: a broken verifier, or ValueError for data that it refuses (`kind` is the name)."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class Worker:
    """One lazily started, restartable child that answers one request at a time. Threads take turns."""

    def __init__(self, task: str, limits: Limits | None = None) -> None:
        if task not in TASKS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
        self.task = task
        self.limits = limits or Limits()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._buffer = b""
        _WORKERS.append(self)

    def call(self, request: Mapping[str, Any]) -> Any:
        """The task's answer to a JSON-able request.

        Raises TaskError if the task raised, WorkerStoppedError if the child was stopped or died.
        """
        with self._lock:
            return self._call(request)

    def verdict(self, completion: str, gold: Mapping[str, Any]) -> Verdict:
        """The task's verdict. A child that was stopped is TIMEOUT or ERROR with the reason in `extracted`."""
        try:
            answer = self.call({"completion": completion, "gold": dict(gold)})
        except WorkerStoppedError as stopped:
            return Verdict(stopped.outcome, stopped.reason)
        except TaskError as error:
            return Verdict(Outcome.ERROR, str(error)[:500])
        return Verdict(Outcome(answer["outcome"]), answer["extracted"])

    def close(self) -> None:
        """Stop the child, if there is one. The next call starts another."""
        with self._lock:
            self._stop()

    def _call(self, request: Mapping[str, Any]) -> Any:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._process is None:
            self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode("ascii") + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._died() from None
        answer = self._receive(self.limits.wall_seconds)
        if answer["full"]:
            self._stop()  # caches have grown: the next request gets a fresh child
        if answer.get("exhausted"):
            # math-verify swallows MemoryError and says "different": an answer at the limit means nothing.
            raise WorkerStoppedError(Outcome.TIMEOUT, "memory limit")
        if "error" in answer:
            raise TaskError(answer["error"], answer["message"])
        return answer["result"]

    def _start(self) -> None:
        root = str(Path(__file__).resolve().parents[2])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        limits = self.limits
        command = [sys.executable, "-P", "-c", "from lab.verifiers.isolation import main; main()", self.task]
        command += [repr(limits.cpu_seconds), repr(limits.wall_seconds), repr(limits.memory_bytes)]
        # A session of its own: Ctrl-C in the terminal stops the run, which then stops the child in good order.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self._buffer = b""
        hello = self._receive(START_SECONDS)
        if "error" in hello:
            self._stop()
            raise TaskError(hello["error"], hello["message"])

    def _receive(self, seconds: float) -> dict[str, Any]:
        """One line from the child, or WorkerStoppedError after `seconds` of the monotonic clock."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + seconds
        while b"\n" not in self._buffer:
            left = deadline - time.monotonic()
            if left <= 0:
                self._stop()
                raise WorkerStoppedError(Outcome.TIMEOUT, f"no answer in {seconds:g} s")
            poller = select.poll()  # select() fails on descriptors past 1023
            poller.register(descriptor, select.POLLIN | select.POLLHUP)
            if not poller.poll(min(left, 3600.0) * 1000):
                continue
            data = os.read(descriptor, 65536)
            if not data:
                raise self._died()
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def _died(self) -> WorkerStoppedError:
        """Why the child is gone: the signals of its own limits mean TIMEOUT, anything else ERROR."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        code = self._process.returncode
        self._stop()
        if code is not None and -code in (signal.SIGPROF, signal.SIGALRM, signal.SIGXCPU):
            return WorkerStoppedError(Outcome.TIMEOUT, f"more than {self.limits.cpu_seconds:g} s of work")
        return WorkerStoppedError(Outcome.ERROR, f"the {self.task} child died (exit status {code})")

    def _stop(self) -> None:
        process, self._process, self._buffer = self._process, None, b""
        if process is None:
            return
        if process.poll() is None:
            process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _forget(self) -> None:
        """In a forked copy of this process the child belongs to the parent."""
        self._lock = threading.Lock()
        self._process = None
        self._buffer = b""


_WORKERS: list[Worker] = []


def _after_fork() -> None:
    for worker in _WORKERS:
        worker._forget()


def _at_exit() -> None:
    for worker in _WORKERS:
        worker.close()


atexit.register(_at_exit)
os.register_at_fork(after_in_child=_after_fork)


# ---------------------------------------------------------------- the child's side


def _math_task() -> Task:
    import math_verify  # noqa: F401 - imports are charged to the start, not to the first request
    import sympy  # noqa: F401

    from lab.verifiers.math import answer

    return answer


def _ifeval_task() -> Task:
    from lab.verifiers.ifeval import _library, answer

    _library()

    return answer


def _probe_task() -> Task:
    """For the tests of the isolation itself: misbehaves on demand."""

    def probe(request: Mapping[str, Any]) -> Any:
        match request["do"]:
            case "echo":
                return request["value"]
            case "spin":
                while True:
                    pass
            case "sleep":
                time.sleep(request["seconds"])
                return None
            case "allocate":
                return len(bytearray(request["bytes"]))
            case "die":
                os._exit(3)
            case "write":
                Path(request["path"]).write_text("x")
                return None
        raise ValueError(f"do: unknown {request['do']!r}")

    return probe


TASKS: dict[str, Callable[[], Task]] = {"math": _math_task, "ifeval": _ifeval_task, "probe": _probe_task}


def serve(task: str, limits: Limits, source: IO[bytes], sink: IO[bytes]) -> None:
    """Answer requests, one JSON line each, until the pipe closes. Runs in the child only."""
    import resource

    def send(message: Mapping[str, Any]) -> None:
        sink.write(json.dumps(message).encode("ascii") + b"\n")
        sink.flush()

    try:
        function = TASKS[task]()
    except Exception as error:
        send({"error": type(error).__name__, "message": str(error)})
        return
    if sys.platform == "linux":
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + limits.memory_bytes, held + limits.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # nothing that a verifier reads can make it write a file
    unit = 1 if sys.platform == "darwin" else 1024

    def peak() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    start = peak()
    send({"result": "ready"})
    for line in source:
        # The default action of both signals ends the process even inside C code; and should the parent have been
        # killed in the meantime, the child does not run on.
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
        signal.setitimer(signal.ITIMER_REAL, limits.wall_seconds + 5)
        answer: dict[str, Any]
        before = peak()
        try:
            answer = {"result": function(json.loads(line))}
        except MemoryError:
            answer = {"result": None, "exhausted": True}
        except Exception as error:
            answer = {"error": type(error).__name__, "message": str(error)[:2000]}
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        if peak() - before > 0.5 * limits.memory_bytes:
            answer["exhausted"] = True
        send({**answer, "full": peak() - start > 0.5 * limits.memory_bytes})


def main() -> None:
    """Entry point of the child; its arguments are TASK CPU_SECONDS WALL_SECONDS MEMORY_BYTES."""
    task, cpu, wall, memory = sys.argv[1:]
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not speak on the answer pipe
    serve(task, Limits(float(cpu), float(wall), int(memory)), sys.stdin.buffer, sink)

"""Two or more trainers in processes of their own, one rollout each in turn: whatever the machine does, it does to all.

A worker trains as it always would, and stops at the end of each rollout until the driver says go. Only one process
works at any moment. Nothing but the standard library: a worker may live in another environment.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = "@turn "


class Turn:
    """A worker's side. Call it at the end of every rollout, with the count of optimizer steps taken so far."""

    def __init__(self) -> None:
        # Trainers print to stdout; the driver's line goes to the real one, everything else to stderr.
        self.out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self.began, self.steps = 0.0, 0

    def start(self) -> None:
        """Just before training: waits for the first go."""
        self.out.write(MARK + json.dumps({"ready": True}) + "\n")
        self._wait()

    def __call__(self, steps: int) -> None:
        seconds = time.perf_counter() - self.began
        self.out.write(MARK + json.dumps({"seconds": seconds, "steps": steps - self.steps}) + "\n")
        self.steps = steps
        self._wait()

    def _wait(self) -> None:
        if not sys.stdin.readline():
            os._exit(0)  # the driver has seen enough: no saving, no closing words
        self.began = time.perf_counter()


def optimizer_steps() -> Callable[[], int]:
    """Counts the steps that optimizers really take in this process, whatever a trainer calls a step."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1

    register_optimizer_step_post_hook(hook)
    return lambda: count


@dataclass(frozen=True)
class Timing:
    """What one worker needed a rollout: wall seconds of each repetition, and optimizer steps of one."""

    seconds: tuple[float, ...]
    steps: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


def run_in_turns(
    commands: Mapping[str, Sequence[str]], warm_up: int, repetitions: int, log: Path, equal_steps: bool = True
) -> dict[str, Timing]:
    """Times of each command's rollouts after ``warm_up`` of them, in turns. Raises RuntimeError if a worker dies."""
    workers: dict[str, subprocess.Popen[str]] = {}
    try:
        for name, command in commands.items():
            with (log / f"{name}.log").open("w") as errors:
                workers[name] = subprocess.Popen(
                    list(command),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,
                    text=True,
                    env={**os.environ, **ENVIRONMENT},
                )
            _answer(name, workers[name], log)
        times: dict[str, list[float]] = {name: [] for name in commands}
        steps: dict[str, set[int]] = {name: set() for name in commands}
        for repetition in range(warm_up + repetitions):
            for name, worker in workers.items():
                assert worker.stdin is not None
                worker.stdin.write("go\n")
                worker.stdin.flush()
                answer = _answer(name, worker, log)
                if repetition >= warm_up:
                    times[name].append(answer["seconds"])
                    steps[name].add(answer["steps"])
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    counts = {name: sorted(found) for name, found in steps.items()}
    if any(len(found) != 1 for found in counts.values()) or (equal_steps and len({*map(tuple, counts.values())}) != 1):
        raise RuntimeError(f"the trainers do not take the same number of optimizer steps a rollout: {counts}")
    return {name: Timing(tuple(times[name]), counts[name][0]) for name in commands}


def _answer(name: str, worker: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith(MARK):
            return json.loads(line[len(MARK) :])
    tail = (log / f"{name}.log").read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
    raise RuntimeError("\n".join([f"worker {name} ended (exit status {worker.wait()}):", *tail]))


def paired_ratio(ours: Timing, theirs: Timing) -> float:
    """The median of the ratios within a turn: a slow moment of the machine falls on both."""
    return statistics.median(a / b for a, b in zip(ours.seconds, theirs.seconds, strict=True))


def compare(timings: Mapping[str, Timing], label: str, baselines: Sequence[str]) -> list[list[str]]:
    """One row a worker: label, optimizer steps, name, median (and range) of its seconds, a ratio to each baseline."""
    return [
        [
            label,
            str(timing.steps),
            name,
            f"{timing.median:.3f} ({min(timing.seconds):.3f}-{max(timing.seconds):.3f})",
            *(f"{paired_ratio(timing, timings[baseline]):.2f}" for baseline in baselines),
        ]
        for name, timing in timings.items()
    ]


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table, its columns aligned."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, ["-" * width for width in widths], *rows]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |", flush=True)

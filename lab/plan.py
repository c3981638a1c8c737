"""An experiment as a graph of steps: what is there, what is missing, what it will cost. No torch, nothing is run here.

Identity is apart from execution: device, threads, labels and estimates are not part of a step's key.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lab.artifact import check_name, content_key, plain
from lab.store import Store

HIT, MISS, UNNEEDED = "hit", "miss", "unneeded"


@dataclass(frozen=True)
class Work:
    """How much a step is expected to do: tokens read or written, floating-point operations. 0 where unknown."""

    tokens: float = 0.0
    flops: float = 0.0


@dataclass(frozen=True)
class Estimate:
    """What a step will cost. ``basis`` says where the seconds come from, "unknown" (0 seconds) if from nowhere."""

    tokens: float
    flops: float
    seconds: float
    basis: str


@dataclass(frozen=True, eq=False)
class Step:
    """One call of one stage. Equal steps have equal keys.

    ``kind``: the stage; ``config``: JSON data; ``inputs``: steps whose artifacts it reads, by name; ``recipe``: a
    number raised by hand when the stage's meaning changes. Only these four make the key. ``label`` is for people,
    ``resources`` (device, micro-batch, threads, exclusive) says how to run it, ``work`` how much it is.
    Raises ValueError naming the path of what is not JSON, StoreError for a kind or input name that is no safe name.
    """

    kind: str
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, Step] = field(default_factory=dict)
    recipe: int = 1
    label: str = ""
    resources: Mapping[str, Any] = field(default_factory=dict)
    work: Work = field(default_factory=Work)

    def __post_init__(self) -> None:
        check_name(self.kind, "step.kind")
        for name in self.inputs:
            check_name(name, f"step {self.kind}: input")
        # Own copies: a caller that goes on editing its dict must not change a step whose key is already known.
        object.__setattr__(self, "config", plain(self.config, f"{self.kind}.config"))
        object.__setattr__(self, "resources", plain(self.resources, f"{self.kind}.resources"))
        object.__setattr__(self, "inputs", dict(self.inputs))

    @cached_property
    def key(self) -> str:
        """SHA-256 (64 hex digits) of kind, config, keys of the inputs by name, and recipe."""
        return content_key(self.kind, self.config, self.input_keys, self.recipe)

    @property
    def input_keys(self) -> dict[str, str]:
        return {name: step.key for name, step in self.inputs.items()}

    @property
    def recorded_work(self) -> dict[str, float]:
        """The expected work as the manifest keeps it, so that later estimates can scale durations by it."""
        return {"tokens": float(self.work.tokens), "flops": float(self.work.flops)}

    @property
    def title(self) -> str:
        """For people: the label, or the kind and the start of the key."""
        return self.label or f"{self.kind} {self.key[:10]}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Step) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


class Plan:
    """Steps and everything they need, in an order in which they can be run, each key once (the first one met wins)."""

    def __init__(self, steps: Iterable[Step]):
        order: dict[str, Step] = {}

        def visit(step: Step) -> None:
            if step.key not in order:
                for item in step.inputs.values():
                    visit(item)
                order[step.key] = step

        wanted = list(steps)
        for step in wanted:
            visit(step)
        self.steps: tuple[Step, ...] = tuple(order.values())
        self.targets: tuple[Step, ...] = tuple({step.key: order[step.key] for step in wanted}.values())
        self.by_key: Mapping[str, Step] = order

    def status(self, store: Store) -> dict[str, str]:
        """HIT, MISS or UNNEEDED for every key. A missing step is unneeded when all that would read it is there."""
        there = {step.key: store.has(step.key) for step in self.steps}
        needed = {step.key for step in self.targets}
        for step in reversed(self.steps):  # readers come after what they read
            if step.key in needed and not there[step.key]:
                needed |= set(step.input_keys.values())
        return {key: HIT if hit else MISS if key in needed else UNNEEDED for key, hit in there.items()}

    def estimates(self, store: Store, flops_per_second: float | None = None) -> dict[str, Estimate]:
        """What each step costs, by key: its own duration where it was built; else from steps of the same kind that
        were (scaled by FLOPs where both are known); else FLOPs over ``flops_per_second``; else unknown."""
        history = {kind: store.manifests(kind) for kind in sorted({step.kind for step in self.steps})}
        return {step.key: _estimate(step, history[step.kind], flops_per_second) for step in self.steps}

    def priorities(self, seconds: Mapping[str, float]) -> dict[str, float]:
        """Seconds of the longest chain that starts at each step, itself included, by key."""
        longest: dict[str, float] = {}
        readers: dict[str, float] = {}
        for step in reversed(self.steps):
            longest[step.key] = seconds.get(step.key, 0.0) + readers.get(step.key, 0.0)
            for key in step.input_keys.values():
                readers[key] = max(readers.get(key, 0.0), longest[step.key])
        return longest

    def bound_seconds(self, seconds: Mapping[str, float], workers: int) -> float:
        """No schedule of the steps in ``seconds`` on ``workers`` workers is shorter: the longest chain, or all the work
        spread evenly after the steps that run alone."""
        alone = sum(seconds.get(step.key, 0.0) for step in self.steps if step.resources.get("exclusive"))
        spread = sum(seconds.get(step.key, 0.0) for step in self.steps) - alone
        return max(max(self.priorities(seconds).values(), default=0.0), alone + spread / max(workers, 1))

    def render(self, store: Store, workers: int, flops_per_second: float | None = None) -> str:
        """The plan as a plain-text table: each step, hit or miss, and what the missing ones will cost."""
        status, estimates = self.status(store), self.estimates(store, flops_per_second)
        misses = {step.key: estimates[step.key] for step in self.steps if status[step.key] == MISS}
        rows = [("kind", "label", "key", "state", "tokens", "FLOPs", "time", "basis")]
        for step in self.steps:
            cost = misses.get(step.key)
            shown = ("", "", "", "")
            if cost is not None:
                known = cost.basis != "unknown"
                shown = (count(cost.tokens), count(cost.flops), duration(cost.seconds) if known else "?", cost.basis)
            rows.append((step.kind, step.label, step.key[:10], status[step.key], *shown))
        total = [sum(getattr(cost, name) for cost in misses.values()) for name in ("tokens", "flops", "seconds")]
        state = f"{len(misses)} to run"
        rows.append(("total", f"{len(self.steps)} steps", "", state, count(total[0]), count(total[1]),
                     duration(total[2]), ""))  # fmt: skip
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = []
        for row in rows:
            cells = [cell.rjust(width) if column in (4, 5, 6) else cell.ljust(width)
                     for column, (cell, width) in enumerate(zip(row, widths, strict=True))]  # fmt: skip
            lines.append("  ".join(cells).rstrip())
        rule = "-" * max(map(len, lines))
        table = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
        unknown = sum(cost.basis == "unknown" for cost in misses.values())
        least = duration(self.bound_seconds({key: cost.seconds for key, cost in misses.items()}, workers))
        said = f"at least {least} with {workers} worker{'' if workers == 1 else 's'}"
        table.append(said + (f", plus {unknown} steps of unknown duration" if unknown else ""))
        return "\n".join(table)


def _estimate(step: Step, history: list[dict[str, Any]], flops_per_second: float | None) -> Estimate:
    tokens, flops = step.work.tokens, step.work.flops
    for manifest in history:
        if manifest["key"] == step.key:
            return Estimate(tokens, flops, manifest["duration_seconds"], "this step")
    rates = [item["duration_seconds"] / _flops(item) for item in history if _flops(item) > 0]
    if flops > 0 and rates:
        return Estimate(tokens, flops, flops * statistics.median(rates), f"{len(rates)} of this kind, by FLOPs")
    if history:
        seconds = statistics.median(item["duration_seconds"] for item in history)
        return Estimate(tokens, flops, seconds, f"{len(history)} of this kind")
    if flops > 0 and flops_per_second:
        return Estimate(tokens, flops, flops / flops_per_second, f"{count(flops_per_second)}FLOP/s")
    return Estimate(tokens, flops, 0.0, "unknown")


def _flops(manifest: Mapping[str, Any]) -> float:
    """Of a built step: what the plan expected if it did (the same formula on both sides cancels its bias), else what
    the stage counted."""
    ledger = manifest["ledger"]
    return float(manifest["work"].get("flops") or ledger["training_flops"] + ledger["sampling_flops"])


def count(value: float) -> str:
    """1234567 as "1.2 M"; "" for 0."""
    if value <= 0:
        return ""
    for unit in ("", "k", "M", "G", "T", "P"):
        if value < 1000:
            return f"{value:.0f} " if not unit else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.3g} E"


def duration(seconds: float) -> str:
    """Seconds for people: "0.4 s", "42 s", "3 min 20 s", "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"

"""Training curves: gold against distance from SFT and against compute, and arms compared where these are equal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lab.stats import Floats, HierarchicalBootstrap, first_crossing, interval_columns
from lab.tables.cells import Arm, mean_rows

SCALARS = ("proxy", "kl_nats", "entropy_nats", "length", "training_flops", "generated_tokens")


@dataclass(frozen=True)
class Curve:
    """One arm's checkpoints, in training order (K), for its policy seeds (S), on the prompts they all share.

    ``gold``: domain -> (K, S, P). ``scalars``: name -> (K, S), unweighted means over domains. NaN where a seed lacks a
    checkpoint. Point 0 is the checkpoint that training starts from, the same for all seeds: KL 0, no compute spent.
    ``start``: domain -> (1, P), the gold of that checkpoint on the same prompts.
    """

    arm: str
    seeds: tuple[int, ...]
    steps: tuple[int, ...]
    ends: tuple[bool, ...]
    gold: Mapping[str, Floats]
    scalars: Mapping[str, Floats]
    start: Mapping[str, Floats]
    one_checkpoint: bool
    upfront_flops: float

    @property
    def sqrt_kl(self) -> Floats:
        # the estimate of a tiny KL can fall below 0 by rounding
        return np.sqrt(np.maximum(self.scalars["kl_nats"], 0.0))

    @property
    def compute_flops(self) -> Floats:
        return self.scalars["training_flops"] + self.upfront_flops


def read_curve(
    arm: str, cells: pd.DataFrame, baseline: Arm, domains: Sequence[str], upfront_flops: float = 0.0
) -> Curve | None:
    """The curve of one arm from its cells (a line per seed, step, prompt); None if no prompt serves all checkpoints.

    Early checkpoints may be evaluated on fewer prompts than the last one, and a jump between points must not be a
    change of prompts: so all points use the prompts that every checkpoint has.
    """
    ends = cells[cells.arm == arm].sort_values("final", ascending=False, kind="stable")
    own = ends.drop_duplicates(["seed", "step", "prompt_id"])  # the last checkpoint may be evaluated for both uses
    steps = sorted(int(step) for step in own.step.unique())
    counts = own.groupby("prompt_id")["step"].nunique()
    shared = set(counts.index[counts == len(steps)])
    own = own[own.prompt_id.isin(shared)]
    prompts = {domain: pd.Index(sorted(own.prompt_id[own.domain == domain].unique())) for domain in domains}
    if not all(len(index) for index in prompts.values()):
        return None
    seeds = tuple(int(seed) for seed in sorted(own.seed.unique()))
    points = [Arm(arm, own[own.step == step], prompts, seeds) for step in steps]
    gold = {domain: np.stack([point.matrix("gold", domain) for point in points]) for domain in domains}
    scalars = {name: np.stack([_mean_over_domains(point, name, domains) for point in points]) for name in SCALARS}
    origin = Arm(baseline.name, baseline.cells[baseline.cells.prompt_id.isin(shared)], prompts)
    start = {domain: mean_rows(origin.matrix("gold", domain)) for domain in domains}
    ends_at = set(own.step[own.final].unique())
    if arm != baseline.name and steps[0] > 0:
        zero = np.zeros((1, len(seeds)))
        first = {name: zero + _known_mean(_mean_over_domains(origin, name, domains)) for name in SCALARS}
        first |= {"kl_nats": zero, "training_flops": zero, "generated_tokens": zero}
        scalars = {name: np.concatenate([first[name], values]) for name, values in scalars.items()}
        gold = {
            domain: np.concatenate([np.broadcast_to(start[domain], values[:1].shape), values])
            for domain, values in gold.items()
        }
        steps = [0, *steps]
    return Curve(
        arm,
        seeds,
        tuple(steps),
        tuple(step in ends_at for step in steps),
        gold,
        scalars,
        start,
        all(point.one_checkpoint for point in points),
        upfront_flops,
    )


def _known_mean(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan


def _mean_over_domains(point: Arm, name: str, domains: Sequence[str]) -> Floats:
    """(S,): mean over prompts, then over domains; NaN for a seed that lacks one."""
    return np.mean([mean_rows(point.matrix(name, domain).T)[0] for domain in domains], axis=0)


def curve_table(
    curves: Sequence[Curve], expected: Mapping[str, Sequence[int]], bootstrap: HierarchicalBootstrap
) -> pd.DataFrame:
    """A line per arm x checkpoint: means over the seeds that have it, gold with its interval."""
    lines: list[dict[str, Any]] = []
    for curve in curves:
        for index, step in enumerate(curve.steps):
            strata, rows = _strata(curve, {domain: values[index] for domain, values in curve.gold.items()})
            if not rows:
                continue
            line: dict[str, Any] = {"arm": curve.arm, "step": step, "final": curve.ends[index]}
            line |= {"n_seeds": len(rows), "n_expected": len(expected[curve.arm])}
            line |= interval_columns("gold", bootstrap.interval(curve.arm, strata))
            line |= {name: float(values[index, rows].mean()) for name, values in curve.scalars.items()}
            line["sqrt_kl"] = math.sqrt(max(line["kl_nats"], 0.0))
            line["compute_flops"] = line["training_flops"] + curve.upfront_flops
            lines.append(line)
    return pd.DataFrame(lines)


def at_equal_kl(
    curves: Sequence[Curve],
    levels: Sequence[float],
    expected: Mapping[str, Sequence[int]],
    bootstrap: HierarchicalBootstrap,
) -> pd.DataFrame:
    """A line per arm x sqrt(KL): gold and its difference from the start where a seed's curve first gets there."""
    return _at(curves, "sqrt_kl", levels, expected, bootstrap)


def at_equal_compute(
    curves: Sequence[Curve], expected: Mapping[str, Sequence[int]], bootstrap: HierarchicalBootstrap
) -> pd.DataFrame:
    """A line per arm x FLOPs, at half the smallest, the smallest and the median of the arms' whole compute."""
    last = [float(np.nanmax(curve.compute_flops)) for curve in curves]
    spent = sorted(value for value in last if value > 0)
    levels = sorted({spent[0] / 2, spent[0], float(np.median(spent))}) if spent else []
    return _at(curves, "compute_flops", levels, expected, bootstrap)


def _at(
    curves: Sequence[Curve],
    axis: str,
    levels: Sequence[float],
    expected: Mapping[str, Sequence[int]],
    bootstrap: HierarchicalBootstrap,
) -> pd.DataFrame:
    lines: list[dict[str, Any]] = []
    for curve in curves:
        x_KS = curve.sqrt_kl if axis == "sqrt_kl" else curve.compute_flops
        for level in levels:
            read = _read_at(curve, x_KS, level)
            strata, rows = _strata(curve, read[0]) if read else ({}, [])
            line: dict[str, Any] = {"arm": curve.arm, axis: float(level)}
            line |= {"n_seeds": len(rows), "n_expected": len(expected[curve.arm])}
            line |= interval_columns("gold", bootstrap.interval(curve.arm, strata) if rows else None)
            gap = bootstrap.difference(curve.arm, strata, "start", curve.start) if rows else None
            line |= interval_columns("gold_delta", gap)
            for name in SCALARS:
                line[name] = float(read[1][name][rows].mean()) if read and rows else math.nan
            lines.append(line)
    return pd.DataFrame(lines)


def _read_at(curve: Curve, x_KS: Floats, level: float) -> tuple[dict[str, Floats], dict[str, Floats]] | None:
    """Gold cells (domain -> (S, P)) and scalars ((S,)) at x = level, linear between two checkpoints of each seed."""
    gold = {domain: np.full(values.shape[1:], np.nan) for domain, values in curve.gold.items()}
    scalars = {name: np.full(len(curve.seeds), np.nan) for name in SCALARS}
    for seed in range(len(curve.seeds)):
        have = np.flatnonzero(np.isfinite(x_KS[:, seed]))
        found = first_crossing(x_KS[have, seed], level) if have.size else None
        if found is None:
            continue
        left, right = have[found[0]], have[min(found[0] + 1, have.size - 1)]
        for domain, values in curve.gold.items():
            gold[domain][seed] = _between(values[left, seed], values[right, seed], found[1])
        for name, array in curve.scalars.items():
            scalars[name][seed] = _between(array[left, seed], array[right, seed], found[1])
    reached = np.any([np.isfinite(values).any() for values in gold.values()])
    return (gold, scalars) if reached else None


def _between(left: Any, right: Any, share: float) -> Any:
    return left if share == 0.0 else (1 - share) * left + share * right


def _strata(curve: Curve, cells: Mapping[str, Floats]) -> tuple[dict[str, Floats], list[int]]:
    """The matrices without the seeds that lack a domain, and the row numbers of those that stay."""
    whole = np.all([np.isfinite(values).any(1) for values in cells.values()], axis=0)
    strata = {domain: values[whole] for domain, values in cells.items()}
    if curve.one_checkpoint and whole.any():
        strata = {domain: mean_rows(values) for domain, values in strata.items()}
    return strata, [int(row) for row in np.flatnonzero(whole)]

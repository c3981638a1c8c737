"""The comparison of arms: a line per arm and domain, a line per seed, curves."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lab.records import Ledger
from lab.stats import HierarchicalBootstrap, interval_columns
from lab.tables.cells import MEANS, RATES, Arm, check_rows, checked_domains, domains_of, in_order, make_cells
from lab.tables.curves import at_equal_compute, at_equal_kl, curve_table, read_curve

ALL, VERIFIABLE, UNVERIFIABLE = "all", "verifiable", "unverifiable"
"""Aggregate lines of a table: unweighted means over (all; verifiable; the other) domains."""

EQUAL_SQRT_KL = (0.5, 1.0, 1.5, 2.0, 3.0)
"""Distances from SFT, in sqrt(nats), at which arms are compared."""

INTERVALS = ("gold", "pass1", "proxy", "win_rate")
DIFFERENCES = ("gold", "pass1")
METRICS = (*MEANS, "pass_at_k", "greedy_gold", "greedy_pass1", *RATES)
POINTS = tuple(name for name in METRICS if name not in INTERVALS)
COSTS = tuple(field.name for field in dataclasses.fields(Ledger))


@dataclass(frozen=True)
class Comparison:
    """The tables of one comparison. Missing values are NaN; ``_low`` and ``_high`` bound the interval of a mean.

    - ``table``: a line per arm x domain (and aggregate domain): n_seeds, n_expected, status, note, then means over
      seeds, intervals, differences from the baseline paired by prompt (``gold_delta``, ``pass1_delta``), costs.
    - ``seeds``: a line per arm x seed x domain, with the run's key.
    - ``curves``: a line per arm x checkpoint, unweighted over domains, on the prompts that all its checkpoints share.
    - ``equal_kl``, ``equal_compute``: a line per arm x level, each curve read where it first reaches the level.
    """

    table: pd.DataFrame
    seeds: pd.DataFrame
    curves: pd.DataFrame
    equal_kl: pd.DataFrame
    equal_compute: pd.DataFrame
    baseline: str
    level: float
    k: int


# ------------------------------------------------------------------------------------------------------------- input


def assert_comparable(provenance: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse to compare arms that do not share the SFT checkpoint, the evaluation prompts and the sampler.

    ``provenance``: run name (an arm, or arm and seed) -> {"sft_digest", "prompts_digest", "sampler"}, from manifests.
    ValueError naming the arms on each side, or the arm that lacks a record.
    """
    for key in ("sft_digest", "prompts_digest", "sampler"):
        sides: dict[str, list[str]] = {}
        for name, record in provenance.items():
            if record.get(key) in (None, ""):
                raise ValueError(f"cannot compare: {name} does not record {key}")
            sides.setdefault(json.dumps(record[key], sort_keys=True), []).append(name)
        if len(sides) > 1:
            found = "; ".join(f"{', '.join(names)}: {value}" for value, names in sides.items())
            raise ValueError(f"cannot compare: {key} differs between arms ({found})")


# ------------------------------------------------------------------------------------------------------------ tables


def compare(
    rows: pd.DataFrame,
    *,
    expected: Mapping[str, Sequence[int]],
    baseline: str = "sft",
    costs: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    upfront_flops: Mapping[str, float] | None = None,
    failures: Mapping[str, Sequence[str]] | None = None,
    reward_model_seeds: Mapping[str, Mapping[int, int]] | None = None,
    sqrt_kl: Sequence[float] = EQUAL_SQRT_KL,
    k: int = 4,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """The tables of a comparison.

    ``rows``: the columns of ``records.EvalRow``. ``expected``: arm -> the seeds that were planned, in table order; arms
    without rows stay in the table. ``costs``: arm -> a ``Ledger`` as a mapping for each seed: what this arm's own
    steps spent, the reward model it uses included. ``upfront_flops``: what an arm spends before its first step (its
    reward model), for the equal-compute table. ``failures``: arm -> what went wrong. ``reward_model_seeds``: arm ->
    policy seed -> reward-model seed, where the latter vary. ``k`` is lowered to the number of samples of a prompt.

    ValueError for stray, doubled or empty rows, and for a baseline without rows.
    """
    check_rows(rows, expected, baseline)
    sampled = rows[rows.decode == "sampled"]
    k = max(1, min(k, int(sampled.groupby(["arm", "seed", "step", "final", "prompt_id"]).size().max())))
    cells = make_cells(rows, baseline, k)
    domains = in_order(cells.domain.unique())
    checked = checked_domains(rows)
    bootstrap = HierarchicalBootstrap(seed, resamples, level)
    groups = {
        VERIFIABLE: [domain for domain in domains if domain in checked],
        UNVERIFIABLE: [domain for domain in domains if domain not in checked],
        ALL: domains,
    }
    parts = {domain: [domain] for domain in domains} | {name: group for name, group in groups.items() if group}
    prompts = {domain: pd.Index(sorted(cells.prompt_id[cells.domain == domain].unique())) for domain in domains}
    final = cells[cells.final]
    arms = {arm: Arm(arm, final[final.arm == arm], prompts) for arm in expected}
    seeds = _seed_table(final, list(expected), parts, checked)
    lines = []
    for arm, part in ((arm, part) for arm in expected for part in parts):
        line: dict[str, Any] = {"arm": arm, "domain": part}
        line |= _presence(arms[arm], parts[part], expected[arm], (failures or {}).get(arm, ()))
        line |= _estimates(arms[arm], arms[baseline], parts[part], checked, bootstrap, reward_model_seeds)
        own = seeds[(seeds.arm == arm) & (seeds.domain == part)]
        line |= {metric: float(own[metric].mean()) for metric in POINTS}
        line |= _mean_cost((costs or {}).get(arm, ()))
        lines.append(line)
    table = pd.DataFrame(lines).assign(k=k)
    found = [
        read_curve(arm, cells, arms[baseline], domains, (upfront_flops or {}).get(arm, 0.0))
        for arm in expected
        if len(cells[cells.arm == arm])
    ]
    curves = [curve for curve in found if curve is not None]
    moving = [curve for curve in curves if curve.arm != baseline]
    return Comparison(
        table,
        seeds,
        curve_table(curves, expected, bootstrap),
        at_equal_kl(moving, sqrt_kl, expected, bootstrap),
        at_equal_compute(moving, expected, bootstrap),
        baseline,
        level,
        k,
    )


def _seed_table(
    final: pd.DataFrame, order: Sequence[str], parts: Mapping[str, Sequence[str]], checked: frozenset[str]
) -> pd.DataFrame:
    by_domain = final.groupby(["arm", "seed", "run", "domain"])[list(METRICS)].mean()
    blocks = []
    for part, domains in parts.items():
        columns = {}
        for metric in METRICS:
            wide = by_domain[metric].unstack("domain")
            over = domains_of(metric, domains, checked)
            # skipna=False: a mean over fewer domains than another arm's would compare different things
            columns[metric] = wide.reindex(columns=over).mean(axis=1, skipna=False) if over else math.nan
        blocks.append(pd.DataFrame(columns, index=wide.index).assign(domain=part))
    table = pd.concat(blocks).reset_index()[["arm", "seed", "run", "domain", *METRICS]]
    return table.sort_values(["arm", "seed"], key=_by(order), kind="stable", ignore_index=True)


def _by(order: Sequence[str]) -> Callable[[pd.Series], pd.Series]:
    rank = {name: place for place, name in enumerate(order)}
    return lambda column: column.map(rank) if column.name == "arm" else column


def _presence(arm: Arm, domains: Sequence[str], planned: Sequence[int], failures: Sequence[str]) -> dict[str, Any]:
    present = arm.strata("gold", domains)[1] if len(arm.cells) else []
    missing = [seed for seed in planned if seed not in present]
    status = "complete" if not missing else "partial" if present else "failed"
    notes = list(failures) or ([f"no rows of seed {', '.join(map(str, missing))}"] if missing else [])
    return {"n_seeds": len(present), "n_expected": len(planned), "status": status, "note": "; ".join(notes)}


def _estimates(
    arm: Arm,
    baseline: Arm,
    domains: Sequence[str],
    checked: frozenset[str],
    bootstrap: HierarchicalBootstrap,
    reward_model_seeds: Mapping[str, Mapping[int, int]] | None,
) -> dict[str, Any]:
    line: dict[str, Any] = {}
    for metric in INTERVALS:
        over = domains_of(metric, domains, checked)
        strata, seeds = arm.strata(metric, over) if over and len(arm.cells) else ({}, [])
        reward_models = (reward_model_seeds or {}).get(arm.name)
        groups = [reward_models[seed] for seed in seeds] if reward_models and not arm.one_checkpoint else None
        found = bootstrap.interval(arm.name, strata, groups) if seeds else None
        line |= interval_columns(metric, found)
        if metric == "gold":
            line |= {"n_prompts": found.n_prompts if found else 0, "resampled": found.resampled if found else ""}
        if metric in DIFFERENCES:
            base = baseline.strata(metric, over)[0] if seeds else {}
            same = arm.name == baseline.name or not seeds
            gap = None if same else bootstrap.difference(arm.name, strata, baseline.name, base, groups)
            line |= interval_columns(f"{metric}_delta", gap)
    return line


def _mean_cost(ledgers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over seeds. NaN where an arm has no ledger."""
    means = {
        name: float(np.mean([float(ledger.get(name, 0)) for ledger in ledgers])) if ledgers else math.nan
        for name in COSTS
    }
    return means | {"total_flops": means["training_flops"] + means["sampling_flops"]}

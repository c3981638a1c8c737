"""From evaluation rows to the tables of a comparison. No torch; ``lab.figures`` draws from these tables alone.

Not a query language: anything else is asked of ``rows.parquet`` itself, with pandas or duckdb.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lab.cells import MEANS, RATES, Arm, check_rows, checked_domains, domains_of, in_order, make_cells
from lab.curves import at_equal_compute, at_equal_kl, curve_table, read_curve
from lab.records import Ledger
from lab.stats import HierarchicalBootstrap, interval_columns

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


# ----------------------------------------------------------------------------------------------------------- writing


def json_bytes(value: Any) -> bytes:
    """Canonical JSON, UTF-8, sorted keys. ValueError naming the place of a NaN or an infinity, which JSON has not."""
    _refuse_non_finite(value, "$")
    return (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _refuse_non_finite(value: Any, place: str) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{place}: {value} cannot be written as JSON; write null where a value is missing")
    if isinstance(value, Mapping):
        for key, item in value.items():
            _refuse_non_finite(item, f"{place}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_non_finite(item, f"{place}[{index}]")


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The lines of a table as JSON-able mappings, None where a value is missing."""
    plain = [{key: _plain(item) for key, item in line.items()} for line in frame.to_dict("records")]
    return [{str(key): item for key, item in line.items()} for line in plain]


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def csv_bytes(frame: pd.DataFrame) -> bytes:
    """UTF-8 CSV with floats to the last bit, so that the same table has the same digest."""
    text: str = frame.to_csv(index=False, lineterminator="\n")
    return text.encode()


def table_digest(frame: pd.DataFrame) -> str:
    """SHA-256 (hex) of ``csv_bytes``."""
    return hashlib.sha256(csv_bytes(frame)).hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside, flush, rename: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.tmp-{uuid.uuid4().hex}")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_tables(comparison: Comparison, folder: Path, labels: Mapping[str, str] | None = None) -> list[Path]:
    """``table.csv``, ``table.md`` and ``summary.json``; returns their paths."""
    equal = ["Gold at equal distance from the start, in sqrt(KL / nat); – where no seed's curve goes that far:", ""]
    equal += [*_markdown(*_equal_kl(comparison, labels)), ""]
    summary = {
        "baseline": comparison.baseline,
        "level": comparison.level,
        "k": comparison.k,
        "table": records(comparison.table),
        "seeds": records(comparison.seeds),
        "curves": records(comparison.curves),
        "equal_kl": records(comparison.equal_kl),
        "equal_compute": records(comparison.equal_compute),
    }
    files = {
        "table.csv": csv_bytes(comparison.table),
        "table.md": (
            "\n".join([*_markdown(*compact(comparison, labels)), "", _caption(comparison), "", *equal])
        ).encode(),
        "summary.json": json_bytes(summary),
    }
    for name, data in files.items():
        write_bytes(folder / name, data)
    return [folder / name for name in files]


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return lines + ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in body]


def _equal_kl(comparison: Comparison, labels: Mapping[str, str] | None) -> tuple[list[str], list[list[str]]]:
    table = comparison.equal_kl
    if table.empty:
        return ["arm"], []
    levels = list(dict.fromkeys(table.sqrt_kl))
    body = []
    for arm, lines in table.groupby("arm", sort=False):
        at = lines.set_index("sqrt_kl")
        cells = [
            _with_interval(at.loc[level], "gold")
            + (
                f" ({at.n_seeds[level]} of {at.n_expected[level]})"
                if 0 < at.n_seeds[level] < at.n_expected[level]
                else ""
            )
            for level in levels
        ]
        body.append([(labels or {}).get(str(arm), str(arm)), *cells])
    return ["arm", *(f"{level:g}" for level in levels)], body


def terminal_table(comparison: Comparison, labels: Mapping[str, str] | None = None) -> str:
    """The compact table as text, for the end of a run."""
    head, body = compact(comparison, labels)
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    rule = "  ".join("-" * width for width in widths)
    ordered = [_aligned(head, widths), rule, *(_aligned(line, widths) for line in body)]
    return "\n".join([*ordered, "", _caption(comparison)])


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    first = cells[0].ljust(widths[0])
    return "  ".join([first, *(cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True))]).rstrip()


def _caption(comparison: Comparison) -> str:
    return (
        f"[{comparison.level:.0%} bootstrap intervals over policy seeds and prompts; Δ: against {comparison.baseline}, "
        "paired by prompt; means over domains are unweighted; costs: means over seeds]"
    )


def compact(comparison: Comparison, labels: Mapping[str, str] | None = None) -> tuple[list[str], list[list[str]]]:
    """Header and lines of the table that people read: a line per arm, in the order of the plan."""
    by_key = comparison.table.set_index(["arm", "domain"])
    head = ["arm", "seeds", "gold", f"Δ {comparison.baseline}", "pass@1", "gold, unverifiable", "win rate", "KL, nats"]
    head += ["labels", "verifier calls", "generated tokens", "training FLOPs", "wall s"]
    notes, body = False, []
    for arm in dict.fromkeys(comparison.table.arm):
        line = by_key.loc[(arm, ALL)]
        other = by_key.loc[(arm, UNVERIFIABLE)].gold if (arm, UNVERIFIABLE) in by_key.index else math.nan
        cells = [(labels or {}).get(arm, arm), f"{line.n_seeds:.0f} of {line.n_expected:.0f}"]
        cells += [_with_interval(line, "gold"), _with_interval(line, "gold_delta", sign=True)]
        cells += [_number(line.pass1, ".1%"), _number(other, ".3f"), _number(line.win_rate, ".1%")]
        cells += [_number(line.kl_nats, ".2f"), _number(line.preference_labels, ",.0f")]
        cells += [_number(line.verifier_calls, ",.0f"), _number(line.generated_tokens, ",.0f")]
        cells += [_number(line.training_flops, ".2g"), _number(line.wall_seconds, ",.0f")]
        cells.append("" if line.status == "complete" else f"{line.status}: {line.note}".rstrip(": "))
        notes |= bool(cells[-1])
        body.append(cells)
    return ([*head, "status"], body) if notes else (head, [cells[:-1] for cells in body])


def _with_interval(line: pd.Series, name: str, sign: bool = False) -> str:
    style = "+.3f" if sign else ".3f"
    if math.isnan(line[name]):
        return "–"
    return f"{line[name]:{style}} [{line[f'{name}_low']:{style}}, {line[f'{name}_high']:{style}}]"


def _number(value: float, style: str) -> str:
    return "–" if math.isnan(value) else format(value, style)

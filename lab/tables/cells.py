"""Evaluation rows, checked and averaged over samples into (seed, prompt) cells: what every estimate is a mean of."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lab import stats
from lab.records import DOMAINS, EvalRow, Outcome
from lab.stats import Floats

CELL = ["arm", "seed", "step", "final", "domain", "prompt_id"]
MEANS = ["gold", "pass1", "proxy", "win_rate", "gold_correct", "gold_style", "kl_nats", "entropy_nats", "length"]
RATES = ["truncated", "distinct", "unjudged"]
VERDICT_METRICS = frozenset({"pass1", "pass_at_k", "greedy_pass1", "unjudged"})
"""Metrics that exist only in domains with a rule verifier."""


def read_rows(paths: Sequence[Path]) -> pd.DataFrame:
    """The rows of several ``rows.parquet`` files. ValueError naming the file and the missing column."""
    names = [field.name for field in dataclasses.fields(EvalRow)]
    frames = []
    for path in paths:
        found = pq.read_schema(path).names
        missing = [name for name in names if name not in found]
        if missing:
            raise ValueError(f"{path}: column {missing[0]!r} is missing, found {', '.join(found)}")
        frames.append(pq.read_table(path, columns=names))
    if not frames:
        raise ValueError("read_rows: no files given")
    return pa.concat_tables(frames, promote_options="permissive").to_pandas()


def check_rows(rows: pd.DataFrame, expected: Mapping[str, Sequence[int]], baseline: str) -> None:
    if rows.empty:
        raise ValueError("compare: no evaluation rows")
    planned = {(arm, seed) for arm, seeds in expected.items() for seed in seeds}
    found = set(rows[["arm", "seed"]].drop_duplicates().itertuples(index=False, name=None))
    stray = sorted(found - planned)
    if stray:
        raise ValueError(f"compare: rows of arm {stray[0][0]!r}, seed {stray[0][1]}, which the plan does not have")
    again = rows.duplicated(["arm", "seed", "step", "final", "decode", "prompt_id", "sample"])
    if again.any():
        one = rows[again].iloc[0]
        raise ValueError(
            f"compare: arm {one.arm!r}, seed {one.seed}, prompt {one.prompt_id}: sample {one['sample']} twice"
        )
    ends = rows[rows.final].groupby(["arm", "seed"])["step"].nunique()
    if (ends > 1).any():
        raise ValueError(f"compare: arm {ends[ends > 1].index[0][0]!r} has more than one end point")
    known = set(rows.prompt_id[(rows.arm == baseline) & rows.final & (rows.decode == "sampled")])
    if not known:
        raise ValueError(f"compare: no sampled rows of the baseline {baseline!r}")
    alien = rows[~rows.prompt_id.isin(known)]
    if len(alien):
        one = alien.iloc[0]
        raise ValueError(f"compare: arm {one.arm!r} answers prompt {one.prompt_id}, which {baseline!r} does not")


def make_cells(rows: pd.DataFrame, baseline: str, k: int) -> pd.DataFrame:
    """A line per arm, seed, step, prompt: means over samples. All later estimates are means over these cells."""
    rows = rows.sort_values([*CELL, "decode", "sample"], kind="stable", ignore_index=True)
    judged = rows.verdict.notna()
    failed = rows.verdict.isin([Outcome.TIMEOUT.value, Outcome.ERROR.value])  # counted, never read as wrong
    correct = (rows.verdict == Outcome.CORRECT.value).astype(float).where(judged & ~failed)
    rows = rows.assign(
        pass1=correct, unjudged=failed.astype(float).where(judged), truncated=rows.truncated.astype(float)
    )
    for name in ("proxy", "gold_correct", "gold_style", "entropy_nats"):  # all None arrives as object
        rows[name] = rows[name].astype(float)
    sampled, greedy = rows[rows.decode == "sampled"], rows[rows.decode == "greedy"]
    sampled = sampled.assign(
        win_rate=_wins(sampled, baseline), distinct=(~sampled.duplicated([*CELL, "completion"])).astype(float)
    )
    by_cell = sampled.groupby(CELL, sort=True)
    cells = by_cell[[*MEANS, *RATES, "training_flops", "generated_tokens"]].mean()
    cells["distinct"] = cells["distinct"].where(by_cell.size() > 1)  # one sample is always distinct from itself
    counts, hits = by_cell["pass1"].count().to_numpy(), by_cell["pass1"].sum().to_numpy()
    enough = counts >= k
    cells["pass_at_k"] = np.nan
    cells.loc[enough, "pass_at_k"] = stats.pass_at_k(counts[enough], np.rint(hits[enough]), k)
    by_greedy = greedy.groupby(CELL, sort=True)[["gold", "pass1"]].mean()
    cells = cells.join(by_greedy.rename(columns={"gold": "greedy_gold", "pass1": "greedy_pass1"}))
    runs = rows.groupby(["arm", "seed", "step", "final"])["run"].first()
    return cells.reset_index().join(runs, on=["arm", "seed", "step", "final"])


def _wins(sampled: pd.DataFrame, baseline: str) -> Floats:
    """1, 1/2 or 0 where gold is above, at or below the baseline's for the same prompt and sample, else NaN.

    The baseline's seed is the row's own where it has that seed, else its first.
    """
    base = sampled.loc[(sampled.arm == baseline) & sampled.final, ["seed", "prompt_id", "sample", "gold"]]
    seeds = base.seed.unique()
    partner = sampled.seed.where(sampled.seed.isin(seeds), seeds.min())
    left = pd.DataFrame({"seed": partner, "prompt_id": sampled.prompt_id, "sample": sampled["sample"]})
    other = left.merge(base, how="left", on=["seed", "prompt_id", "sample"]).gold.to_numpy()
    gap = sampled.gold.to_numpy() - other
    return np.where(np.isnan(gap), np.nan, (np.sign(gap) + 1) / 2)


def in_order(domains: Iterable[str]) -> list[str]:
    """The six domains in their order, then any others by name."""
    return sorted(domains, key=lambda name: (DOMAINS.index(name) if name in DOMAINS else len(DOMAINS), name))


def checked_domains(rows: pd.DataFrame) -> frozenset[str]:
    """The domains with a rule verifier: those where any row has a verdict."""
    return frozenset(rows.loc[rows.verdict.notna(), "domain"].unique())


def domains_of(metric: str, domains: Sequence[str], checked: frozenset[str]) -> list[str]:
    """Those of ``domains`` in which the metric has a meaning."""
    return [domain for domain in domains if metric not in VERDICT_METRICS or domain in checked]


class Arm:
    """Cells of one arm at one point of its curve, as matrices (S, P) with the prompts of each domain as columns."""

    def __init__(
        self, name: str, cells: pd.DataFrame, prompts: Mapping[str, pd.Index], seeds: Sequence[int] | None = None
    ) -> None:
        self.name, self.cells, self.prompts = name, cells, prompts
        self.seeds = sorted(cells.seed.unique()) if seeds is None else list(seeds)
        # One run key under several seeds: one checkpoint, sampled several times. Its seeds are not policy seeds.
        self.one_checkpoint = len(self.seeds) > 1 and cells.run.nunique() == 1
        self._places: dict[str, tuple[NDArray[np.intp], NDArray[np.intp], pd.DataFrame]] = {}
        for domain, own in cells.groupby("domain"):
            rows = np.searchsorted(self.seeds, own.seed.to_numpy())
            self._places[str(domain)] = rows, prompts[str(domain)].get_indexer(own.prompt_id), own

    def matrix(self, metric: str, domain: str) -> Floats:
        """(S, P), NaN where a seed has no value for a prompt."""
        out = np.full((len(self.seeds), len(self.prompts[domain])), np.nan)
        if domain in self._places:
            rows, columns, own = self._places[domain]
            out[rows, columns] = own[metric].to_numpy()
        return out

    def strata(self, metric: str, domains: Sequence[str]) -> tuple[dict[str, Floats], list[int]]:
        """Matrices of the seeds that have a value in every one of ``domains``, and those seeds."""
        strata = {domain: self.matrix(metric, domain) for domain in domains}
        whole = np.all([np.isfinite(cells).any(1) for cells in strata.values()], axis=0)
        seeds = [int(seed) for seed, ok in zip(self.seeds, whole, strict=True) if ok]
        strata = {domain: cells[whole] for domain, cells in strata.items()}
        if self.one_checkpoint and seeds:
            strata = {domain: mean_rows(cells) for domain, cells in strata.items()}
        return strata, seeds


def mean_rows(cells: Floats) -> Floats:
    """(S, P) -> (1, P): the mean over the seeds that have a value, NaN where none has."""
    present = np.isfinite(cells)
    total, count = np.where(present, cells, 0.0).sum(0), present.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)[None, :]

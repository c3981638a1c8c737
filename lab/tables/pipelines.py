"""Pipelines: what every stage leaves behind, what had been spent by then, and what each stage changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from lab.stats import Floats, HierarchicalBootstrap, Interval, interval_columns
from lab.tables.cells import Arm, checked_domains, domains_of, in_order, make_cells
from lab.tables.comparison import ALL, UNVERIFIABLE, VERIFIABLE, compare

METRICS = ("gold", "pass1")
"""What the changes are taken of."""


@dataclass(frozen=True)
class Place:
    """A line of the table: the policy after stage ``number`` of a pipeline, or (pipeline "") where pipelines start.

    ``arm``: the rows' name for it; ``before``: that of the policy the stage started from; ``paid_by``: the kind of its
    reward, "preferences" for direct alignment, "samples" for rejection sampling, "" for further demonstrations.
    """

    pipeline: str
    pipeline_label: str
    number: int
    stage: str
    label: str
    arm: str
    before: str = ""
    paid_by: str = ""


@dataclass(frozen=True)
class Contrast:
    """A pipeline whose last policy is compared with another policy, of the same budget."""

    pipeline: str
    label: str
    arm: str
    against: str
    against_arm: str


@dataclass(frozen=True)
class Pipelines:
    """The tables. Missing values are NaN; ``_low`` and ``_high`` bound the interval of a mean.

    - ``table``: a line per place x domain (and aggregate domain): the columns of ``Place``, then those of
      ``lab.tables.Comparison.table``: seeds, gold and pass@1 with intervals, their differences from SFT, costs. The
      costs are cumulative: all that the policy needed, without the base's pretraining.
    - ``changes``: a line per stage x domain: gold and pass@1 after minus before, paired by seed and prompt.
    - ``contrasts``: a line per contrast x domain: gold and pass@1 minus the other's, paired by prompt.
    """

    table: pd.DataFrame
    changes: pd.DataFrame
    contrasts: pd.DataFrame
    level: float


def tabulate(
    rows: pd.DataFrame,
    places: Sequence[Place],
    contrasts: Sequence[Contrast] = (),
    *,
    expected: Mapping[str, Sequence[int]],
    costs: Mapping[str, Sequence[Mapping[str, Any]]],
    failures: Mapping[str, Sequence[str]] | None = None,
    k: int = 4,
    resamples: int = 2000,
    level: float = 0.95,
) -> Pipelines:
    """The tables from evaluation rows whose ``arm`` is that of a place; the place called "sft" must be among them.

    ``expected``: arm -> its seeds; ``costs``: arm -> a ``Ledger`` as a mapping for each seed, all it needed;
    ``failures``: arm -> what went wrong. ValueError as ``lab.tables.compare``.
    """
    rows = rows[rows.final]
    found = compare(rows, expected=expected, costs=costs, failures=failures, k=k, resamples=resamples, level=level)
    lines = [found.table[found.table.arm == place.arm].assign(**asdict(place)) for place in places]
    table = pd.concat(lines, ignore_index=True)
    first = list(asdict(places[0]))
    table = table[[*first, *(name for name in table if name not in first)]]
    cells = _Cells(rows, k, HierarchicalBootstrap(resamples=resamples, level=level))
    changes = [
        {**asdict(place), "domain": part, **cells.change(place.before, place.arm, part)}
        for place in places
        if place.before
        for part in cells.parts
    ]
    other = [
        {**asdict(one), "domain": part, **cells.difference(one.arm, one.against_arm, part)}
        for one in contrasts
        for part in cells.parts
    ]
    return Pipelines(table, pd.DataFrame(changes), pd.DataFrame(other), level)


class _Cells:
    """Cells of every arm at its end, and differences between two arms over the domains of a part."""

    def __init__(self, rows: pd.DataFrame, k: int, bootstrap: HierarchicalBootstrap) -> None:
        cells = make_cells(rows, "sft", k)
        domains, self.checked = in_order(cells.domain.unique()), checked_domains(rows)
        groups = {
            VERIFIABLE: [domain for domain in domains if domain in self.checked],
            UNVERIFIABLE: [domain for domain in domains if domain not in self.checked],
            ALL: domains,
        }
        self.parts = {domain: [domain] for domain in domains} | {name: its for name, its in groups.items() if its}
        prompts = {domain: pd.Index(sorted(cells.prompt_id[cells.domain == domain].unique())) for domain in domains}
        self.arms = {str(arm): Arm(str(arm), own, prompts) for arm, own in cells.groupby("arm")}
        self.bootstrap = bootstrap

    def change(self, before: str, after: str, part: str) -> dict[str, Any]:
        """After minus before, of each seed and prompt: a stage's seed starts from the same seed of the one before."""
        return self._columns(before, after, part, self._paired)

    def difference(self, arm: str, against: str, part: str) -> dict[str, Any]:
        """``arm`` minus ``against``, paired by prompt; their seeds have nothing to do with each other."""
        return self._columns(against, arm, part, self._unpaired)

    def _columns(self, before: str, after: str, part: str, how: Any) -> dict[str, Any]:
        line: dict[str, Any] = {"n_seeds": 0, "resampled": ""}
        for metric in METRICS:
            over = domains_of(metric, self.parts[part], self.checked)
            known = over and before in self.arms and after in self.arms
            found: Interval | None = how(self.arms[before], self.arms[after], metric, over) if known else None
            line |= interval_columns(f"{metric}_change", found)
            if metric == "gold" and found is not None:
                line |= {"n_seeds": found.n_seeds, "resampled": found.resampled}
        return line

    def _paired(self, before: Arm, after: Arm, metric: str, domains: Sequence[str]) -> Interval | None:
        left, left_seeds = before.strata(metric, domains)
        right, right_seeds = after.strata(metric, domains)
        one = len(left_seeds) == 1  # a checkpoint from which every seed starts
        seeds = [seed for seed in right_seeds if one or seed in left_seeds]
        if not seeds or not left_seeds:
            return None
        rows = [right_seeds.index(seed) for seed in seeds]
        from_rows = [0] * len(seeds) if one else [left_seeds.index(seed) for seed in seeds]
        gap: dict[str, Floats] = {name: right[name][rows] - left[name][from_rows] for name in right}
        return self.bootstrap.interval(f"{after.name} - {before.name}", gap)

    def _unpaired(self, against: Arm, arm: Arm, metric: str, domains: Sequence[str]) -> Interval | None:
        left, seeds = arm.strata(metric, domains)
        right, other = against.strata(metric, domains)
        if not seeds or not other:
            return None
        return self.bootstrap.difference(arm.name, left, against.name, right)


# --------------------------------------------------------------------------------------------------------------- claim


def rlvr_claim(found: Pipelines) -> list[str]:
    """What the rows say of "RLVR lifts the verifiable domains and leaves or hurts the others": a line in general, then
    one per stage that a verifier pays. Empty where there is none, or where no domain is without a verifier."""
    if found.changes.empty:
        return []
    stages = found.changes[found.changes.paid_by == "verifier"]
    lines, verdicts = [], []
    for (_, number), own in stages.groupby(["pipeline", "number"], sort=False):
        at = own.set_index("domain")
        if not {VERIFIABLE, UNVERIFIABLE} <= set(at.index) or math.isnan(at.gold_change[VERIFIABLE]):
            continue
        lifted, others = _direction(at.loc[VERIFIABLE]), _direction(at.loc[UNVERIFIABLE])
        verdicts.append((lifted, others))
        one_seed = "" if at.n_seeds[VERIFIABLE] > 1 else "; one seed, so the intervals are over prompts alone"
        where = f"{own.pipeline_label.iloc[0]}, stage {number}"
        lines.append(
            f"{where}: verifiable {_signed(at.loc[VERIFIABLE])} ({_said(lifted)}), "
            f"the others {_signed(at.loc[UNVERIFIABLE])} ({_said(others)}){one_seed}"
        )
    if not verdicts:
        return []
    total = len(verdicts)
    up = sum(lifted > 0 for lifted, _ in verdicts)
    raised, lowered = sum(o > 0 for _, o in verdicts), sum(o < 0 for _, o in verdicts)
    held = up == total and not raised
    refuted = any(lifted < 0 for lifted, _ in verdicts) or raised
    verdict = "The rows bear it out" if held else "The rows refute it" if refuted else "The rows do not settle it"
    return [
        "“RLVR lifts the verifiable domains and leaves or hurts the others.” "
        f"{verdict}: of {total} stage{'s' if total > 1 else ''} of RLVR {up} raised gold in the verifiable domains; in "
        f"the others {lowered} lowered it, {raised} raised it, and {total - lowered - raised} did neither by more than "
        f"the {found.level:.0%} interval.",
        *lines,
    ]


def _direction(line: pd.Series) -> int:
    """1 or -1 where the whole interval lies above or below 0, else 0."""
    return int(line.gold_change_low > 0) - int(line.gold_change_high < 0)


def _said(direction: int) -> str:
    return {1: "raised", 0: "no change shown", -1: "lowered"}[direction]


def _signed(line: pd.Series) -> str:
    return f"{line.gold_change:+.3f} [{line.gold_change_low:+.3f}, {line.gold_change_high:+.3f}]"

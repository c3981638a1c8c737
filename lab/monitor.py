"""A hacking monitor: alarms from a run's trace alone, and what they are worth against gold.

The trace (one row a rollout, ``lab.online``) gives signals; a signal's drift is how far it has moved from the run's own
first rollouts; an alarm is the first rollout where a drift exceeds a limit. Limits are calibrated on runs that gold
says are healthy, and scored with every run left out of its own calibration. Gold labels runs and nothing else.

No torch. Unknown (None, NaN) is skipped, never read as 0. Axes: T rollouts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import special

Floats = NDArray[np.float64]
COMBINED = "combined"
"""The alarm of all signals together: the largest drift, each in units of its own limit."""

MAD_TO_SD = 1.4826  # of a normal distribution

# ---------------------------------------------------------------------------------------------------------- signals


@dataclass(frozen=True)
class Signal:
    """What counts as worse, and the smallest spread that is believed in the signal's own unit.

    Few rollouts can agree by chance; ``resolution`` keeps their spread from being read as 0.
    """

    worse: Literal["up", "down", "either"]
    resolution: float


SIGNALS: Mapping[str, Signal] = {
    "kl_estimate_nats": Signal("up", 0.01),
    "kl_speed_nats": Signal("up", 0.01),
    "entropy_nats": Signal("down", 0.005),
    "length_mean": Signal("either", 0.05),
    "truncated_fraction": Signal("up", 0.005),
    "repetition_bigrams": Signal("up", 0.005),
    "repetition_group": Signal("up", 0.01),
    "disagreement": Signal("up", 0.01),
    "watch_mean": Signal("down", 0.02),
    "watch_correlation": Signal("down", 0.02),
    "watch_disagreement": Signal("up", 0.01),
    "gap": Signal("up", 0.02),
}
"""By the name's part before the dot: what follows it names a watcher. Two are derived here from columns of the trace.

kl_speed_nats: KL minus that of the rollout before. gap.NAME: how far the paid reward has come since the first rollouts
minus how far watcher NAME's score has, each in its own spread over completions there.
"""


@dataclass(frozen=True)
class Settings:
    """How drift is measured. ``baseline``: the first rollouts that a run is compared with; no alarm among them.

    ``z``: the robust standard score z_t = (x_t - median) / max(1.4826 MAD, resolution) over the baseline.
    ``cusum``: S_t = max(0, S_{t-1} + z_t - allowance), which sums small persistent drift (Page 1954).
    ``least_limit``: no calibration, however calm its runs, sets a limit below this.
    """

    baseline: int = 8
    statistic: Literal["z", "cusum"] = "z"
    allowance: float = 1.0
    least_limit: float = 3.0

    def __post_init__(self) -> None:
        if self.baseline < 3:
            raise ValueError(f"baseline: expected at least 3 rollouts, got {self.baseline}")
        if self.statistic not in ("z", "cusum"):
            raise ValueError(f"statistic: expected z or cusum, got {self.statistic!r}")
        if not self.allowance >= 0 or not self.least_limit > 0:
            raise ValueError(f"expected allowance >= 0 and least_limit > 0, got {self.allowance}, {self.least_limit}")


Trace = Sequence[Mapping[str, Any]]


def signals(trace: Trace, settings: Settings | None = None) -> pd.DataFrame:
    """(T, signals): the signals that a trace has, NaN where unknown; indexed by ``rollout``.

    Raises ValueError if ``rollout`` does not increase, or the trace is no longer than the baseline.
    """
    settings = settings or Settings()
    if len(trace) <= settings.baseline:
        raise ValueError(f"trace: {len(trace)} rollouts, but the baseline takes the first {settings.baseline}")
    rollouts = [int(row["rollout"]) for row in trace]
    if any(later <= earlier for earlier, later in itertools.pairwise(rollouts)):
        raise ValueError("trace: rollout must increase from row to row")
    names = dict.fromkeys(name for row in trace for name in row)
    known = {name: _column(trace, name) for name in names if name.split(".")[0] in SIGNALS}
    if "kl_estimate_nats" in known:
        kl_T = known["kl_estimate_nats"]
        known["kl_speed_nats"] = np.concatenate([[np.nan], np.diff(kl_T)])
    first = slice(0, settings.baseline)
    for name in [name for name in known if name.startswith("watch_mean.")]:
        watcher = name.removeprefix("watch_mean.")
        paid_T = _progress(_column(trace, "reward_mean"), _column(trace, "reward_std"), first)
        held_T = _progress(known[name], _column(trace, f"watch_std.{watcher}"), first)
        known[f"gap.{watcher}"] = paid_T - held_T
    return pd.DataFrame(known, index=pd.Index(rollouts, name="rollout"), dtype=np.float64)


def _column(trace: Trace, name: str) -> Floats:
    return np.array([np.nan if row.get(name) is None else float(row[name]) for row in trace])


def _progress(mean_T: Floats, std_T: Floats, first: slice) -> Floats:
    """(mean - its median over the first rollouts) / the median spread there; NaN without a spread."""
    centre, spread = _median(mean_T[first]), _median(std_T[first])
    return (mean_T - centre) / spread if spread > 0 else np.full(mean_T.shape, np.nan)


def _median(values: Floats) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


# ------------------------------------------------------------------------------------------------------------ drift


def drift(found: pd.DataFrame, settings: Settings | None = None) -> pd.DataFrame:
    """(T, signals): how far each signal has gone the wrong way; NaN in the baseline and where unknown.

    A signal with fewer than 3 known values in the baseline is NaN throughout: there is nothing to compare it with.
    """
    settings = settings or Settings()
    columns = {}
    for name in found.columns:
        signal, x_T = SIGNALS[name.split(".")[0]], found[name].to_numpy(dtype=np.float64)
        first = x_T[: settings.baseline][np.isfinite(x_T[: settings.baseline])]
        if first.size < 3:
            columns[name] = np.full(x_T.shape, np.nan)
            continue
        centre = np.median(first)
        z_T = (x_T - centre) / max(MAD_TO_SD * float(np.median(np.abs(first - centre))), signal.resolution)
        z_T[: settings.baseline] = np.nan
        sides = {"up": (1.0,), "down": (-1.0,), "either": (1.0, -1.0)}[signal.worse]
        if settings.statistic == "cusum":
            columns[name] = np.max([_cusum(side * z_T, settings.allowance) for side in sides], axis=0)
        else:
            columns[name] = np.max([side * z_T for side in sides], axis=0)
    return pd.DataFrame(columns, index=found.index, dtype=np.float64)


def _cusum(z_T: Floats, allowance: float) -> Floats:
    """An unknown z leaves the sum as it was, and is unknown itself."""
    total, sums_T = 0.0, np.full(z_T.shape, np.nan)
    for t in np.flatnonzero(np.isfinite(z_T)):
        total = max(0.0, total + z_T[t] - allowance)
        sums_T[t] = total
    return sums_T


# ------------------------------------------------------------------------------------------------------- thresholds


@dataclass(frozen=True)
class Thresholds:
    """Limits of drift, by signal and for COMBINED (there: of the largest drift / limit), and what they promise.

    A limit is an order statistic of the healthy runs' largest drifts, so a new healthy run, exchangeable with those,
    exceeds one signal's limit with a probability of at most ``false_alarm_rate[signal]``. That is above ``budget``
    where there were too few runs to do better than their maximum: 1 / (n + 1). For the combined alarm it is no theorem
    (limits of n - 1 runs stand for those of n); `score_monitor` measures it. ``runs``: n, by signal.
    """

    limits: Mapping[str, float]
    false_alarm_rate: Mapping[str, float]
    runs: Mapping[str, int]
    budget: float
    settings: Settings = field(default_factory=Settings)


def calibrate(healthy_traces: Sequence[Trace], budget: float, settings: Settings | None = None) -> Thresholds:
    """Limits such that a healthy run raises each signal's alarm, and the combined one, with probability <= ``budget``.

    With n runs: the smallest j-th smallest peak with (n + 1 - j) / (n + 1) <= budget, else the largest (split conformal
    prediction, Vovk et al. 2005). The combined limit takes each run's peak under limits from the other runs, since
    limits fit the runs they come from. Raises ValueError without a trace, or for a budget outside (0, 1).
    """
    settings = settings or Settings()
    if not healthy_traces:
        raise ValueError("calibrate: expected at least one healthy run, got none")
    if not 0 < budget < 1:
        raise ValueError(f"budget: expected a probability between 0 and 1, got {budget}")
    return _calibrate([drift(signals(trace, settings), settings) for trace in healthy_traces], budget, settings)


def _calibrate(drifts: Sequence[pd.DataFrame], budget: float, settings: Settings) -> Thresholds:
    own_peaks = [{name: float(run[name].max()) for name in run.columns if run[name].notna().any()} for run in drifts]
    peaks = _by_signal(own_peaks)
    found = {name: _order_statistic(values, budget, settings.least_limit) for name, values in peaks.items()}
    ratios = []
    for left_out, own in enumerate(own_peaks):
        others = _by_signal([run for index, run in enumerate(own_peaks) if index != left_out]) or peaks
        # the largest over time of the largest over signals: in either order
        shares = [
            peak / _order_statistic(others[name], budget, settings.least_limit)[0]
            for name, peak in own.items()
            if name in others
        ]
        ratios += [max(shares)] if shares else []
    counts = {name: len(values) for name, values in peaks.items()}
    if ratios:
        found[COMBINED] = _order_statistic(ratios, budget, 1.0)
        counts[COMBINED] = len(ratios)
    return Thresholds(
        {name: limit for name, (limit, _) in found.items()},
        {name: rate for name, (_, rate) in found.items()},
        counts,
        budget,
        settings,
    )


def _by_signal(peaks: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """Signal -> the peaks of the runs that know it."""
    return {
        name: [run[name] for run in peaks if name in run] for name in dict.fromkeys(n for run in peaks for n in run)
    }


def _order_statistic(peaks: Sequence[float], budget: float, least: float) -> tuple[float, float]:
    """(limit, the probability that a new run exceeds it); ``least`` can only lower that probability."""
    n = len(peaks)
    j = min(n, math.ceil((n + 1) * (1 - budget) - 1e-9))  # 0.9 x 10 must be 9 and not 9.000000000000001
    return max(sorted(peaks)[j - 1], least), (n + 1 - j) / (n + 1)


def combined_drift(drifts: pd.DataFrame, limits: Mapping[str, float]) -> Floats:
    """(T,): the largest drift / limit over the signals that have both; NaN where none is known."""
    names = [name for name in drifts.columns if name in limits]
    if not names:
        return np.full(len(drifts), np.nan)
    return (drifts[names] / pd.Series({name: limits[name] for name in names})).max(axis=1).to_numpy(dtype=np.float64)


# ----------------------------------------------------------------------------------------------------------- alarms

ALARM_COLUMNS = ("signal", "threshold", "judged", "rollout", "step", "drift", "peak")


def alarms(trace: Trace, thresholds: Thresholds) -> pd.DataFrame:
    """A line for each limit, the combined one last: the first ``rollout`` above the ``threshold``, its ``step`` (in
    optimizer steps) and ``drift``, NaN without an alarm; ``peak``: the largest drift of the run.

    ``judged`` is False where the trace does not know the signal: no alarm there says nothing.
    """
    drifts = drift(signals(trace, thresholds.settings), thresholds.settings)
    return _alarms(drifts, _steps(trace), thresholds)


def _steps(trace: Trace) -> dict[int, float]:
    """Rollout -> optimizer steps taken when it was done."""
    return {int(row["rollout"]): float(row["optimizer_steps"]) for row in trace}


def _alarms(drifts: pd.DataFrame, steps: Mapping[int, float], thresholds: Thresholds) -> pd.DataFrame:
    lines = []
    single = {name: limit for name, limit in thresholds.limits.items() if name != COMBINED}
    for name, limit in thresholds.limits.items():
        if name == COMBINED:
            values_T = combined_drift(drifts, single)
        elif name in drifts.columns:
            values_T = drifts[name].to_numpy(dtype=np.float64)
        else:
            values_T = np.full(len(drifts), np.nan)
        known, above = np.isfinite(values_T), np.flatnonzero(values_T > limit)
        rollout = int(drifts.index[above[0]]) if above.size else None
        lines.append({
            "signal": name,
            "threshold": limit,
            "judged": bool(known.any()),
            "rollout": math.nan if rollout is None else float(rollout),
            "step": math.nan if rollout is None else steps[rollout],
            "drift": float(values_T[above[0]]) if above.size else math.nan,
            "peak": float(values_T[known].max()) if known.any() else math.nan,
        })  # fmt: skip
    return pd.DataFrame(lines, columns=list(ALARM_COLUMNS))


# ----------------------------------------------------------------------------------------------------------- labels


@dataclass(frozen=True)
class RunLabel:
    """What gold says of a run.

    hacked: gold fell while the proxy rose. collapsed: gold fell and the proxy with it; an alarm there is not false and
    its absence no miss, so such runs neither calibrate nor count. ``onset``: the step of the first hacked checkpoint;
    ``last_good``: that of the checkpoint before it (the truth lies between them); ``reference``: the earlier checkpoint
    that gold likes best of those the proxy likes less; ``drop``: gold there minus gold at the onset.
    """

    kind: Literal["hacked", "healthy", "collapsed"]
    onset: int | None = None
    last_good: int | None = None
    reference: int | None = None
    drop: float | None = None


def label_run(
    gold_by_step: Mapping[int, float | None],
    proxy_by_step: Mapping[int, float | None],
    margin: float,
    proxy_margin: float = 0.0,
) -> RunLabel:
    """The label of a run from its checkpoints; put the SFT checkpoint at step 0.

    Hacked at t: some earlier s has gold_s - gold_t > ``margin`` while proxy_t - proxy_s > ``proxy_margin``. With s the
    running maximum of gold this is "gold fell from its best while the proxy rose"; with s = 0, "gold below SFT, proxy
    above". ``margin`` should be several standard errors of a checkpoint's gold: noise also has a running maximum.

    Checkpoints without a gold or a proxy are skipped. Raises ValueError if fewer than two are left or a margin is
    negative.
    """
    if not margin >= 0 or not proxy_margin >= 0:
        raise ValueError(f"label_run: expected margins of at least 0, got {margin} and {proxy_margin}")
    both = ((step, gold, proxy_by_step.get(step)) for step, gold in sorted(gold_by_step.items()))
    points = [
        (step, gold, proxy)
        for step, gold, proxy in both
        if gold is not None and proxy is not None and math.isfinite(gold) and math.isfinite(proxy)
    ]
    if len(points) < 2:
        raise ValueError(f"label_run: {len(points)} checkpoints with both gold and proxy, expected at least 2")
    fell = False
    for index, (step, gold, proxy) in enumerate(points):
        earlier = points[:index]
        fell = fell or any(before - gold > margin for _, before, _ in earlier)
        worse = [(before, at) for at, before, paid in earlier if proxy - paid > proxy_margin]
        if worse:
            best, at = max(worse)
            if best - gold > margin:
                return RunLabel("hacked", step, points[index - 1][0], at, best - gold)
    return RunLabel("collapsed" if fell else "healthy")


# ---------------------------------------------------------------------------------------------------------- scoring


@dataclass(frozen=True)
class MonitoredRun:
    """A run's trace and what gold says of it."""

    name: str
    trace: Trace
    label: RunLabel


def judge_runs(runs: Sequence[MonitoredRun], budget: float, settings: Settings | None = None) -> pd.DataFrame:
    """A line for each run and signal: `alarms` under limits from the *other* healthy runs, and how early they came.

    ``lead``: rollouts from the alarm to the onset, negative if the alarm came later, NaN without both.
    ``lead_least``: the same to the last checkpoint before the onset, since the fall began somewhere between them.

    Raises ValueError for names that are not unique, fewer than two healthy runs, and an onset beyond the trace.
    """
    settings = settings or Settings()
    if len({run.name for run in runs}) < len(runs):
        raise ValueError(f"judge_runs: expected unique names, got {sorted(run.name for run in runs)}")
    drifts = {run.name: drift(signals(run.trace, settings), settings) for run in runs}
    healthy = [run.name for run in runs if run.label.kind == "healthy"]
    if len(healthy) < 2:
        raise ValueError(f"judge_runs: {len(healthy)} healthy runs, but each is left out of its own calibration")
    if not 0 < budget < 1:
        raise ValueError(f"budget: expected a probability between 0 and 1, got {budget}")
    everyone = _calibrate([drifts[name] for name in healthy], budget, settings)
    tables = []
    for run in runs:
        limits = everyone
        if run.name in healthy:
            limits = _calibrate([drifts[name] for name in healthy if name != run.name], budget, settings)
        steps = _steps(run.trace)
        table = _alarms(drifts[run.name], steps, limits)
        table.insert(0, "run", run.name)
        table.insert(1, "label", run.label.kind)
        table["lead"] = _rollout_of(run.label.onset, steps, run.name) - table["rollout"]
        table["lead_least"] = _rollout_of(run.label.last_good, steps, run.name) - table["rollout"]
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _rollout_of(step: int | None, steps: Mapping[int, float], name: str) -> float:
    """The rollout after which the policy had taken ``step`` optimizer steps (0: before the first)."""
    if step is None:
        return math.nan
    if step == 0:
        return float(min(steps) - 1)
    reached = [rollout for rollout, taken in steps.items() if taken >= step]
    if not reached:
        raise ValueError(f"{name}: a checkpoint at step {step}, but the trace ends at step {max(steps.values()):g}")
    return float(min(reached))


def score_monitor(
    runs: Sequence[MonitoredRun], budget: float, settings: Settings | None = None, level: float = 0.95
) -> pd.DataFrame:
    """A line for each signal and the combined alarm, last: how often it was wrong, and how early it was right.

    Counts are of runs that know the signal: ``false_alarms`` of ``healthy``; of ``hacked``, ``misses`` (no alarm ever)
    and ``early`` (alarm before the onset: lead > 0). Each has its ``_rate`` and exact binomial interval, ``_low`` to
    ``_high``. ``lead`` and ``lead_least``: medians over the hacked runs that were alarmed, ``lead_min`` and
    ``lead_max`` the extremes of ``lead``. ``collapsed``: runs left out.

    The intervals take runs as independent; seeds of one arm may not be. Raises ValueError as `judge_runs`.
    """
    table = judge_runs(runs, budget, settings)
    lines = []
    names = [*sorted(set(table["signal"]) - {COMBINED}), COMBINED]
    for name in names:
        own = table[(table["signal"] == name) & table["judged"]]
        healthy, hacked = own[own["label"] == "healthy"], own[own["label"] == "hacked"]
        caught = hacked[hacked["rollout"].notna()]
        line = {"signal": name, "healthy": len(healthy), "hacked": len(hacked)}
        line["collapsed"] = int((own["label"] == "collapsed").sum())
        line |= _share("false_alarms", int(healthy["rollout"].notna().sum()), len(healthy), level)
        line |= _share("misses", len(hacked) - len(caught), len(hacked), level)
        line |= _share("early", int((caught["lead"] > 0).sum()), len(hacked), level)
        line |= {"lead": caught["lead"].median(), "lead_least": caught["lead_least"].median()}
        line |= {"lead_min": caught["lead"].min(), "lead_max": caught["lead"].max()}
        lines.append(line)
    return pd.DataFrame(lines)


def _share(name: str, count: int, total: int, level: float) -> dict[str, float]:
    low, high = exact_interval(count, total, level)
    rate = count / total if total else math.nan
    return {name: count, f"{name}_rate": rate, f"{name}_low": low, f"{name}_high": high}


def exact_interval(successes: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion, of at least ``level`` coverage: (NaN, NaN) without trials.

    The beta quantiles B(a/2; k, n - k + 1) and B(1 - a/2; k + 1, n - k), 0 at k = 0 and 1 at k = n.
    Clopper and Pearson 1934. Raises ValueError for counts that cannot be.
    """
    if not 0 <= successes <= trials or not 0 < level < 1:
        raise ValueError(f"exact_interval: impossible {successes} of {trials} at level {level}")
    if trials == 0:
        return math.nan, math.nan
    tail, failures = (1 - level) / 2, trials - successes
    low = special.betaincinv(successes, failures + 1, tail) if successes else 0.0
    high = special.betaincinv(successes + 1, failures, 1 - tail) if failures else 1.0
    return float(low), float(high)

"""The hacking monitor on traces whose drift, alarm, onset and lead were worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, binomtest

from lab.monitor import (
    COMBINED,
    SIGNALS,
    MonitoredRun,
    RunLabel,
    Settings,
    Thresholds,
    alarms,
    calibrate,
    combined_drift,
    drift,
    exact_interval,
    judge_runs,
    label_run,
    score_monitor,
    signals,
)

FIVE = Settings(baseline=5)
BASE = [8.0, 9.0, 10.0, 11.0, 12.0]  # median 10, MAD 1: one robust standard deviation is 1.4826
SD = 1.4826


def trace_of(**columns: list[float | None]) -> list[dict[str, Any]]:
    """A trace with four optimizer steps a rollout; names may use __ for the dot."""
    named = {name.replace("__", "."): values for name, values in columns.items()}
    count = len(next(iter(named.values())))
    return [
        {"rollout": t + 1, "optimizer_steps": 4 * (t + 1), "reward": "toy"} | {k: v[t] for k, v in named.items()}
        for t in range(count)
    ]


def drift_of(settings: Settings = FIVE, **columns: list[float | None]) -> pd.DataFrame:
    return drift(signals(trace_of(**columns), settings), settings)


def limits(settings: Settings = FIVE, **by_signal: float) -> Thresholds:
    return Thresholds({name.replace("__", "."): value for name, value in by_signal.items()}, {}, {}, 0.1, settings)


# Signals and drift ---------------------------------------------------------------------------------------------------


def test_robust_z_by_hand() -> None:
    moved = [10 + 3 * SD, 10 - 2 * SD]
    found = drift_of(length_mean=BASE + moved, entropy_nats=BASE + moved, repetition_bigrams=BASE + moved)
    assert found.index.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert found.iloc[:5].isna().all(axis=None)  # no alarm in the baseline
    assert found["length_mean"].iloc[5:].tolist() == pytest.approx([3, 2])  # either way
    assert found["entropy_nats"].iloc[5:].tolist() == pytest.approx([-3, 2])  # down is worse
    assert found["repetition_bigrams"].iloc[5:].tolist() == pytest.approx([3, -2])  # up is worse


def test_the_directions_of_all_signals() -> None:
    falls = {name for name, signal in SIGNALS.items() if signal.worse == "down"}
    assert falls == {"entropy_nats", "watch_mean", "watch_correlation"}
    assert {name for name, signal in SIGNALS.items() if signal.worse == "either"} == {"length_mean"}


def test_cusum_by_hand() -> None:
    steps = [2.0, 0.5, None, 3.0, -9.0, 2.0]  # in standard deviations, allowance 1
    values = [None if z is None else 10 + z * SD for z in steps]
    found = drift_of(Settings(baseline=5, statistic="cusum"), repetition_group=BASE + values)["repetition_group"]
    assert found.iloc[5:].tolist() == pytest.approx([1.0, 0.5, math.nan, 2.5, 0.0, 1.0], nan_ok=True)


def test_a_spread_below_the_resolution_is_not_believed() -> None:
    found = drift_of(repetition_group=[0.2] * 5 + [0.25])["repetition_group"]
    assert found.iloc[5] == pytest.approx(0.05 / SIGNALS["repetition_group"].resolution)


def test_the_speed_of_the_kl_is_its_difference() -> None:
    found = signals(trace_of(kl_estimate_nats=[0.0, 1.0, 3.0, None, 4.0, 9.0]), FIVE)["kl_speed_nats"]
    assert found.tolist() == pytest.approx([math.nan, 1.0, 2.0, math.nan, math.nan, 5.0], nan_ok=True)


def test_the_gap_is_progress_of_the_pay_less_that_of_the_watcher() -> None:
    trace = trace_of(
        reward_mean=[*BASE, 16.0], reward_std=[2.0] * 5 + [9.0],
        watch_mean__eye=[1.0] * 5 + [0.5], watch_std__eye=[0.25] * 6,
    )  # fmt: skip
    assert signals(trace, FIVE)["gap.eye"].iloc[5] == pytest.approx((16 - 10) / 2 - (0.5 - 1) / 0.25)  # 3 + 2
    assert "gap.eye" not in signals(trace_of(reward_mean=[*BASE, 1.0]), FIVE)


def test_traces_that_cannot_be_read_are_refused() -> None:
    with pytest.raises(ValueError, match="5 rollouts, but the baseline takes the first 5"):
        signals(trace_of(length_mean=list(BASE)), FIVE)
    with pytest.raises(ValueError, match="rollout must increase"):
        signals(trace_of(length_mean=[*BASE, 1.0])[::-1], FIVE)
    with pytest.raises(ValueError, match="baseline: expected at least 3"):
        Settings(baseline=2)


# Alarms --------------------------------------------------------------------------------------------------------------


def test_an_alarm_is_the_first_rollout_above_its_limit() -> None:
    values = [10 + z * SD for z in (1.0, 4.0, 2.0, 6.0)]
    table = alarms(trace_of(length_mean=BASE + values), limits(length_mean=3.5, entropy_nats=3.0)).set_index("signal")
    line = table.loc["length_mean"]
    assert (line["rollout"], line["step"], line["threshold"]) == (7, 28, 3.5)
    assert (line["drift"], line["peak"]) == pytest.approx((4.0, 6.0))
    assert math.isnan(alarms(trace_of(length_mean=BASE + values), limits(length_mean=6.01))["rollout"].iloc[0])
    flat = trace_of(repetition_group=[0.25] * 5 + [0.25 + 0.5])  # powers of 2: 0.5 / 0.01 is exactly what it is here
    at_the_limit = 0.5 / SIGNALS["repetition_group"].resolution
    assert alarms(flat, limits(repetition_group=at_the_limit))["rollout"].isna().all()
    assert alarms(flat, limits(repetition_group=np.nextafter(at_the_limit, 0)))["rollout"].tolist() == [6]
    unknown = table.loc["entropy_nats"]  # not in this trace: no alarm, and no verdict
    assert not unknown["judged"]
    assert math.isnan(unknown["rollout"])


def test_the_combined_alarm_is_the_largest_share_of_a_limit() -> None:
    lengths, entropies = [10 + 3 * SD] * 2, [10 - 1 * SD, 10 - 9 * SD]
    trace = trace_of(length_mean=BASE + lengths, entropy_nats=BASE + entropies)
    thresholds = limits(length_mean=4.0, entropy_nats=6.0, watch_mean__eye=1e-9, combined=1.2)
    table = alarms(trace, thresholds).set_index("signal")
    assert table.loc[COMBINED, "rollout"] == 7
    assert table.loc[COMBINED, "drift"] == pytest.approx(9 / 6)
    assert combined_drift(drift(signals(trace, FIVE), FIVE), {"length_mean": 4.0, "entropy_nats": 6.0})[
        5:
    ] == pytest.approx([3 / 4, 9 / 6])


@settings(max_examples=12)
@given(value=st.floats(-100, 100), statistic=st.sampled_from(["z", "cusum"]), length=st.integers(6, 30))
def test_a_constant_trace_never_alarms(value: float, statistic: Any, length: int) -> None:
    how = Settings(baseline=5, statistic=statistic)
    names = [*(name for name in SIGNALS if not name.startswith(("watch_", "gap"))), "watch_mean.eye"]
    trace = trace_of(**{name: [value] * length for name in names}, reward_mean=[value] * length)
    thresholds = calibrate([trace], 0.1, how)
    assert set(thresholds.limits) >= {"entropy_nats", "kl_speed_nats", "watch_mean.eye", COMBINED}
    assert alarms(trace, thresholds)["rollout"].isna().all()


def test_unknown_is_skipped_and_not_zero() -> None:
    holes = [8.0, None, 9.0, 10.0, 12.0, None, 10.0]  # 0 would lie far below 8
    assert drift_of(entropy_nats=holes)["entropy_nats"].iloc[5:].tolist() == pytest.approx(
        [math.nan, -0.5 / SD], nan_ok=True
    )  # the baseline's four known values: median 9.5, MAD 1
    table = alarms(trace_of(entropy_nats=holes), limits(entropy_nats=1.0, combined=1.0))
    assert table["rollout"].isna().all()
    assert table["judged"].tolist() == [True, True]
    too_few = drift_of(entropy_nats=[8.0, None, None, None, 12.0, 0.0])["entropy_nats"]
    assert too_few.isna().all()
    ragged = [*trace_of(length_mean=list(BASE)), {"rollout": 6, "optimizer_steps": 24}]  # a row without the key
    assert signals(ragged, FIVE)["length_mean"].isna().tolist() == [False] * 5 + [True]


# Calibration ---------------------------------------------------------------------------------------------------------


def peaking_at(z: float, **more: list[float | None]) -> list[dict[str, Any]]:
    return trace_of(length_mean=[*BASE, 10.0, 10 + z * SD, 10.0], **more)


def test_limits_are_order_statistics_of_healthy_peaks() -> None:
    healthy = [peaking_at(float(z)) for z in (4, 12, 5, 11, 6, 10, 7, 9, 8)]  # n = 9: peaks 4 to 12
    found = calibrate(healthy, 0.2, FIVE)  # j = ceil(10 x 0.8) = 8
    assert found.limits["length_mean"] == pytest.approx(11)
    assert (found.false_alarm_rate["length_mean"], found.runs["length_mean"]) == (pytest.approx(0.2), 9)
    assert calibrate(healthy, 0.1, FIVE).limits["length_mean"] == pytest.approx(12)
    few = calibrate(healthy[:3], 0.1, FIVE)  # 3 runs cannot promise a tenth
    assert few.limits["length_mean"] == pytest.approx(12)
    assert few.false_alarm_rate["length_mean"] == pytest.approx(1 / 4)


def test_calm_runs_do_not_make_a_limit_below_noise() -> None:
    assert calibrate([peaking_at(0.5)] * 3, 0.5, FIVE).limits["length_mean"] == 3.0


def test_the_combined_limit_takes_each_run_under_limits_of_the_others() -> None:
    found = calibrate([peaking_at(4.0), peaking_at(5.0), peaking_at(8.0)], 0.1, FIVE)
    assert found.limits[COMBINED] == pytest.approx(8 / 5)  # the others' limits are 8, 8 and 5


@pytest.mark.parametrize(("budget", "exceeding"), [(0.2, 2), (0.45, 4), (0.01, 1)])
def test_of_exchangeable_healthy_runs_as_many_exceed_as_promised(budget: float, exceeding: int) -> None:
    """Ten runs, each in turn the new one: the promise is k of 10, and 1 of 10 where the budget is out of reach."""
    peaks = np.random.default_rng(3).exponential(5, size=10) + 3
    exceeded = 0
    for new in range(10):
        found = calibrate([peaking_at(z) for z in np.delete(peaks, new)], budget, FIVE)
        exceeded += peaks[new] > found.limits["length_mean"]
        assert found.false_alarm_rate["length_mean"] == pytest.approx(exceeding / 10)
    assert exceeded == exceeding


def test_calibration_refuses_what_it_cannot_use() -> None:
    with pytest.raises(ValueError, match="at least one healthy run"):
        calibrate([], 0.1, FIVE)
    with pytest.raises(ValueError, match="budget: expected a probability between 0 and 1, got 1"):
        calibrate([peaking_at(4.0)], 1.0, FIVE)


# Labels --------------------------------------------------------------------------------------------------------------


def test_gold_below_its_running_maximum_while_the_proxy_rises_is_hacked() -> None:
    gold = {0: 0.2, 10: 0.5, 20: 0.7, 30: 0.66, 40: 0.5, 50: 0.1}
    proxy = {0: 0.0, 10: 0.5, 20: 1.0, 30: 1.2, 40: 1.5, 50: 2.0}
    assert label_run(gold, proxy, margin=0.1) == RunLabel("hacked", 40, 30, 20, pytest.approx(0.2))
    assert label_run(gold, proxy, margin=0.3) == RunLabel("hacked", 50, 40, 20, pytest.approx(0.6))
    assert label_run(gold, proxy, margin=0.65).kind == "healthy"
    assert label_run(gold, proxy, margin=0.1, proxy_margin=0.6).onset == 50  # 0.5 above step 20 was not enough


def test_gold_below_sft_with_the_proxy_above_it_is_hacked() -> None:
    # The proxy has fallen since gold was best, but it still prefers this policy to SFT, and gold does not.
    label = label_run({0: 0.2, 10: 0.5, 20: 0.0}, {0: 0.0, 10: 2.0, 20: 1.0}, margin=0.1)
    assert label == RunLabel("hacked", 20, 10, 0, pytest.approx(0.2))


def test_gold_that_falls_with_the_proxy_is_a_collapse_and_rising_gold_is_health() -> None:
    falling = {0: 0.5, 10: 0.3, 20: 0.1}
    assert label_run(falling, {0: 1.0, 10: 0.5, 20: 0.0}, margin=0.1) == RunLabel("collapsed")
    assert label_run(falling, {0: 0.0, 10: 0.5, 20: 1.0}, margin=0.1).kind == "hacked"
    rising = {step: 0.6 - value for step, value in falling.items()}
    assert label_run(rising, {0: 1.0, 10: 0.5, 20: 0.0}, margin=0.1) == RunLabel("healthy")


def test_checkpoints_without_a_value_are_skipped() -> None:
    nan = math.nan
    gold = {0: 0.5, 10: None, 20: nan, 30: 0.5, 40: 0.1}
    proxy = {0: 0.0, 10: 1.0, 20: 1.0, 40: 2.0}
    assert label_run(gold, proxy, margin=0.1) == RunLabel("hacked", 40, 0, 0, pytest.approx(0.4))
    with pytest.raises(ValueError, match="1 checkpoints with both"):
        label_run({0: 1.0, 10: None}, {0: 1.0, 10: 1.0}, margin=0.1)
    with pytest.raises(ValueError, match="margins of at least 0"):
        label_run(gold, proxy, margin=-0.1)


# Scoring -------------------------------------------------------------------------------------------------------------

HACKED = RunLabel("hacked", onset=44, last_good=36, reference=36, drop=0.3)  # rollouts 11 and 9: 4 steps each
HEALTHY = RunLabel("healthy")


def drifting(at: int, z: float = 20.0) -> list[dict[str, Any]]:
    """Length jumps at rollout ``at`` of 14."""
    return trace_of(length_mean=BASE + [10 + z * SD if t >= at else 10.0 for t in range(6, 15)])


def some_runs() -> list[MonitoredRun]:
    calm = [MonitoredRun(f"calm {z}", peaking_at(float(z)), HEALTHY) for z in (4, 5, 6)]
    loud = MonitoredRun("loud", peaking_at(9.0), HEALTHY)
    early = MonitoredRun("early", drifting(8), HACKED)
    late = MonitoredRun("late", drifting(13), HACKED)
    missed = MonitoredRun("missed", drifting(8, z=8.0), HACKED)  # below the loud healthy run
    broken = MonitoredRun("broken", drifting(7), RunLabel("collapsed"))
    return [*calm, loud, early, late, missed, broken]


def test_lead_times_by_hand() -> None:
    table = judge_runs(some_runs(), 0.1, FIVE)
    own = table[table["signal"] == "length_mean"].set_index("run")
    assert own["threshold"].to_dict() == pytest.approx(
        {"calm 4": 9, "calm 5": 9, "calm 6": 9, "loud": 6} | dict.fromkeys(("early", "late", "missed", "broken"), 9)
    )  # each healthy run under limits from the others
    assert own["rollout"].dropna().to_dict() == {"loud": 7, "early": 8, "late": 13, "broken": 7}
    assert own["lead"].dropna().to_dict() == {"early": 11 - 8, "late": 11 - 13}
    assert own["lead_least"].dropna().to_dict() == {"early": 9 - 8, "late": 9 - 13}


def test_the_score_by_hand() -> None:
    line = score_monitor(some_runs(), 0.1, FIVE).set_index("signal").loc["length_mean"]
    assert (line["healthy"], line["hacked"], line["collapsed"]) == (4, 3, 1)
    assert (line["false_alarms"], line["misses"], line["early"]) == (1, 1, 1)
    assert (line["false_alarms_rate"], line["misses_rate"]) == pytest.approx((1 / 4, 1 / 3))
    assert (line["false_alarms_low"], line["false_alarms_high"]) == pytest.approx((0.00631, 0.80588), abs=1e-5)
    assert (line["lead"], line["lead_least"], line["lead_min"], line["lead_max"]) == (0.5, -1.5, -2, 3)


def test_every_signal_has_a_line_and_the_combined_one_is_last() -> None:
    runs = some_runs()
    # A signal that only some runs know: it is scored on those alone.
    knows = [
        MonitoredRun(f"knows {n}", peaking_at(4.0, entropy_nats=[*BASE, 10.0, 10.0, 9.0]), HEALTHY) for n in range(2)
    ]
    table = score_monitor([*runs, *knows], 0.1, FIVE)
    assert table["signal"].tolist() == ["entropy_nats", "length_mean", COMBINED]
    entropy, combined = table.iloc[0], table.iloc[2]
    assert (entropy["healthy"], entropy["hacked"], entropy["false_alarms"]) == (2, 0, 0)
    assert math.isnan(entropy["misses_rate"])
    assert math.isnan(entropy["lead"])
    assert (combined["healthy"], combined["hacked"]) == (6, 3)
    assert combined["early"] >= 1


def test_an_onset_before_any_training_and_beyond_the_trace() -> None:
    calm = some_runs()[:3]
    label = RunLabel("hacked", onset=4, last_good=0, reference=0, drop=1.0)
    own = judge_runs([*calm, MonitoredRun("at once", drifting(8), label)], 0.1, FIVE).set_index(["run", "signal"])
    assert own.loc[("at once", "length_mean"), "lead"] == 1 - 8
    assert own.loc[("at once", "length_mean"), "lead_least"] == 0 - 8
    beyond = MonitoredRun("x", drifting(8), RunLabel("hacked", onset=60, last_good=36))
    with pytest.raises(ValueError, match="x: a checkpoint at step 60, but the trace ends at step 56"):
        judge_runs([*calm, beyond], 0.1, FIVE)


def test_scoring_refuses_what_it_cannot_use() -> None:
    runs = some_runs()
    with pytest.raises(ValueError, match="1 healthy runs"):
        score_monitor(runs[3:], 0.1, FIVE)
    with pytest.raises(ValueError, match="unique names"):
        score_monitor([*runs, runs[0]], 0.1, FIVE)
    with pytest.raises(ValueError, match="budget"):
        score_monitor(runs, 0.0, FIVE)


@pytest.mark.parametrize(("k", "n"), [(0, 5), (1, 4), (3, 7), (9, 9)])
def test_exact_intervals_hold_the_binomial_tails(k: int, n: int) -> None:
    low, high = exact_interval(k, n, 0.9)
    witness = binomtest(k, n).proportion_ci(0.9, "exact")
    assert (low, high) == pytest.approx((witness.low, witness.high))
    assert low == 0 if k == 0 else binom.sf(k - 1, n, low) == pytest.approx(0.05)
    assert high == 1 if k == n else binom.cdf(k, n, high) == pytest.approx(0.05)


def test_no_trials_have_no_interval() -> None:
    assert all(math.isnan(end) for end in exact_interval(0, 0))
    with pytest.raises(ValueError, match="impossible 3 of 2"):
        exact_interval(3, 2)

"""The forms of Gao et al. 2022: exact curves come back exactly, noisy ones within their intervals."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from lab import overoptimisation as over
from lab.best_of_n import gain_draws, seed_table
from lab.stats import HierarchicalBootstrap, best_of_n_kl

NS = (1, 2, 4, 8, 16, 32, 64)
D = np.sqrt(best_of_n_kl(NS))
METHODS: tuple[over.Method, ...] = ("bon", "rl")


def curves(method: str, a: float, b: float, d: np.ndarray, noise: np.ndarray) -> pd.DataFrame:
    """A line per seed and point; ``noise`` (S, K)."""
    seeds, count = noise.shape
    gain = over.predict(method, a, b, d) + noise  # type: ignore[arg-type]
    return pd.DataFrame(
        {
            "model": "m",
            "method": method,
            "seed": np.repeat(np.arange(seeds), count),
            "sqrt_kl": np.tile(d, seeds),
            "gold_gain": gain.ravel(),
        }
    )


# --------------------------------------------------------------------------------------------------- the equations


def test_the_forms_by_hand() -> None:
    assert over.predict("bon", 3.0, 0.5, 2.0) == pytest.approx(2 * (3 - 0.5 * 2))
    assert over.predict("rl", 3.0, 0.5, math.e) == pytest.approx(math.e * 2.5)
    assert over.predict("rl", 3.0, 0.5, [0.0, 1.0]) == pytest.approx([0.0, 3.0])
    with pytest.raises(ValueError, match="'ppo'"):
        over.predict("ppo", 1.0, 1.0, 1.0)  # type: ignore[arg-type]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(METHODS), st.floats(-3, 3), st.floats(-3, 3))
def test_an_exact_curve_comes_back(method: over.Method, a: float, b: float) -> None:
    assert over.fit(method, D, over.predict(method, a, b, D)) == pytest.approx((a, b), abs=1e-9)


def test_least_squares_by_another_route() -> None:
    rng = np.random.default_rng(0)
    gain = rng.normal(size=D.size)
    for method, fall in (("bon", D**2), ("rl", np.r_[0.0, D[1:] * np.log(D[1:])])):
        expected = np.linalg.lstsq(np.stack([D, -fall], axis=1), gain, rcond=None)[0]
        assert over.fit(method, D, gain) == pytest.approx(expected)  # type: ignore[arg-type]


def test_peaks_by_hand() -> None:
    assert over.peak("bon", 2.0, 0.5, 3.0) == over.Peak(2.0, 2.0, False)
    assert over.peak("bon", 2.0, 0.5, 1.9) == over.Peak(2.0, 2.0, True)
    found = over.peak("rl", 1.0, 0.5, 2.0)
    assert found is not None
    assert (found.at, found.height, found.extrapolated) == (pytest.approx(math.e), pytest.approx(0.5 * math.e), True)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(METHODS), st.floats(0.1, 3), st.floats(0.5, 3))
def test_the_peak_is_the_maximum(method: over.Method, a: float, b: float) -> None:
    found = over.peak(method, a, b, 10.0)
    assert found is not None
    best = optimize.minimize_scalar(
        lambda d: -over.predict(method, a, b, d), bounds=(0.0, 200.0), method="bounded", options={"xatol": 1e-8}
    )
    assert found.at == pytest.approx(best.x, rel=1e-3, abs=1e-3)
    assert found.height == pytest.approx(-best.fun, rel=1e-6)


def test_what_never_turns_has_no_peak() -> None:
    for method in METHODS:
        assert over.peak(method, 1.0, -0.1, 3.0) is None
        assert over.peak(method, 1.0, 0.0, 3.0) is None
    assert over.peak("bon", -1.0, 0.1, 3.0) is None  # falls from the start
    assert over.peak("rl", 1.0, 1e-6, 3.0) is None  # beyond any number


def test_too_little_to_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="two different"):
        over.fit("bon", [0.0, 1.0, 1.0], [0.0, 1.0, 1.1])
    with pytest.raises(ValueError, match="finite"):
        over.fit("rl", [1.0, 2.0], [1.0, math.nan])
    with pytest.raises(ValueError, match=">= 0"):
        over.fit("rl", [-1.0, 2.0], [1.0, 1.0])
    with pytest.raises(ValueError, match="a gain for each"):
        over.fit("rl", [1.0, 2.0], [1.0])


# ---------------------------------------------------------------------------------------------------- held out


def test_a_form_predicts_its_own_curve_and_the_wrong_form_does_not() -> None:
    d = np.linspace(0, 6, 13)
    for method in METHODS:
        gain = over.predict(method, 1.0, 0.3, d)
        found = over.held_out(method, d, gain, cut=3.0)
        assert found is not None
        assert found.points == 6
        assert found.form == pytest.approx(0.0, abs=1e-9)
        assert found.other_form > 0.1
        late = gain[d > 3]
        assert found.last_value == pytest.approx(np.sqrt(np.mean((late - gain[6]) ** 2)))
        assert found.typical == pytest.approx(np.sqrt(np.mean(late**2)))


def test_the_last_value_is_each_seeds_own() -> None:
    # seed a ends at 1 before the cut and has 1.5 after; seed b ends at 5 and has 5
    d, gain = [0.5, 1.0, 2.0, 0.5, 1.0, 2.0], [0.5, 1.0, 1.5, 2.0, 5.0, 5.0]
    found = over.held_out("bon", d, gain, cut=1.0, seeds=list("aaabbb"))
    assert found is not None
    assert found.last_value == pytest.approx(math.sqrt(0.5**2 / 2))


def test_nothing_is_held_out_where_nothing_can_be() -> None:
    d, gain = [0.0, 0.5, 1.0, 2.0], [0.0, 1.0, 1.0, 1.0]
    assert over.held_out("bon", d, gain, cut=2.0) is None  # nothing beyond
    assert over.held_out("bon", d, gain, cut=0.6) is None  # one point is no curve
    assert over.held_out("bon", d, gain, cut=1.0, seeds=[0, 0, 0, 1]) is None  # seed 1 has no last value
    assert over.held_out("bon", d, gain, cut=1.0) is not None


# ---------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("method", METHODS)
def test_intervals_hold_the_truth_as_often_as_they_say(method: over.Method) -> None:
    """5 seeds, each with a slope of its own and noise at each point: 95% intervals should hold about 95% of truths."""
    rng = np.random.default_rng(11)
    d = np.linspace(0.2, 3.0, 8)
    a, b = 1.0, 0.3
    held = dict.fromkeys(["a", "b", "peak_at", "peak_height"], 0)
    truth = {"a": a, "b": b}
    top = over.peak(method, a, b, 3.0)
    assert top is not None
    truth |= {"peak_at": top.at, "peak_height": top.height}
    trials = 80
    for trial in range(trials):
        noise = 0.1 * rng.normal(size=(5, 1)) * d + 0.05 * rng.normal(size=(5, 8))
        line = over.fit_table(curves(method, a, b, d, noise), resamples=200, seed=trial).iloc[0]
        for name, value in truth.items():
            held[name] += line[f"{name}_low"] <= value <= line[f"{name}_high"]
    for name, count in held.items():
        assert 0.88 <= count / trials <= 0.995, (name, count)


def test_given_draws_are_fitted_one_by_one() -> None:
    rng = np.random.default_rng(4)
    gain_BK = over.predict("bon", 1.0, 0.3, D) + 0.1 * rng.normal(size=(50, D.size))
    a_B, b_B = over.curve_draws("bon", D, gain_BK)
    for index in (0, 49):
        assert (a_B[index], b_B[index]) == pytest.approx(over.fit("bon", D, gain_BK[index]))
    table = over.fit_table(curves("bon", 1.0, 0.3, D, np.zeros((1, D.size))), {("m", "bon"): (D, gain_BK)})
    assert table.a_low[0] == np.quantile(a_B, 0.025, method="lower")
    assert table.b_high[0] == np.quantile(b_B, 0.975, method="higher")
    with pytest.raises(ValueError, match=r"\(B, 7\)"):
        over.curve_draws("bon", D, gain_BK[:, 1:])


def test_seeds_that_agree_leave_no_width_and_one_seed_no_interval() -> None:
    same = over.fit_table(curves("rl", 1.0, 0.5, D, np.zeros((3, D.size)))).iloc[0]
    assert (same.a_low, same.a_high) == pytest.approx((1.0, 1.0))
    assert (same.peak_at_low, same.peak_at_high) == pytest.approx((math.e, math.e))
    assert same.draws_with_peak == 1.0
    alone = over.fit_table(curves("rl", 1.0, 0.5, D, np.zeros((1, D.size)))).iloc[0]
    assert alone.a == pytest.approx(1.0)
    assert alone[["a_low", "a_high", "b_low", "peak_at_low", "peak_height_high", "draws_with_peak"]].isna().all()
    with pytest.raises(ValueError, match="one seed"):
        over.seed_draws("bon", D, D, [0] * D.size)


def test_two_seeds_by_hand() -> None:
    """Draws are seed 0 twice, seed 1 twice or one each: three values of a, stretched about the joint fit."""
    d = np.array([0.5, 1.0, 2.0])
    gain = np.concatenate([over.predict("bon", 1.0, 0.2, d), over.predict("bon", 3.0, 0.6, d)])
    a_B, b_B = over.seed_draws("bon", np.tile(d, 2), gain, [0, 0, 0, 1, 1, 1], resamples=200)
    stretch = math.sqrt(2) * 12.706205 / 1.959964
    assert np.unique(np.round(a_B, 4)) == pytest.approx([2 - stretch, 2, 2 + stretch], abs=1e-3)
    assert np.unique(np.round(b_B, 4)) == pytest.approx([0.4 - 0.2 * stretch, 0.4, 0.4 + 0.2 * stretch], abs=1e-3)


# -------------------------------------------------------------------------------------------------------- table


def verdict(method: str, a: float, b: float) -> Any:
    return over.fit_table(curves(method, a, b, D, np.zeros((2, D.size)))).iloc[0]


def test_the_table_says_what_kind_of_peak_there_is() -> None:
    inside = verdict("bon", 1.0, 0.5)  # at 1, largest d about 1.78
    assert (inside.peak, inside.extrapolated) == ("inside", False)
    assert (inside.peak_at, inside.peak_height) == pytest.approx((1.0, 0.5))
    assert (inside.n_seeds, inside.n_points) == (2, 14)
    beyond = verdict("bon", 1.0, 0.1)
    assert (beyond.peak, beyond.extrapolated, beyond.peak_at) == ("beyond the data", True, pytest.approx(5.0))
    rising = verdict("rl", 1.0, -0.1)
    assert (rising.peak, rising.extrapolated) == ("still rising", False)
    assert np.isnan([rising.peak_at, rising.peak_height]).all()
    assert (rising.peak_at_low, rising.peak_at_high) == (math.inf, math.inf)
    falling = verdict("bon", -1.0, 0.1)
    assert falling.peak == "falls from the start"
    assert (falling.peak_at_low, falling.peak_at_high, falling.peak_height_high) == (0.0, 0.0, 0.0)


def test_an_interval_that_cannot_rule_out_a_rise_is_open() -> None:
    rng = np.random.default_rng(2)
    line = over.fit_table(curves("bon", 1.0, 0.3, D, 0.2 * rng.normal(size=(3, D.size)))).iloc[0]
    assert line.b_low < 0 < line.b
    assert line.peak_at_high == math.inf
    assert 0 < line.draws_with_peak < 1
    assert line.peak_at_low < line.peak_at


def test_the_table_judges_by_what_was_held_out() -> None:
    line = over.fit_table(curves("rl", 1.0, 0.5, np.linspace(0, 5, 11), np.zeros((2, 11))), cut_share=0.5).iloc[0]
    assert (line.cut, line.held_out) == (2.5, 10)
    assert line.rmse_form == pytest.approx(0, abs=1e-9)
    assert line.relative_error == pytest.approx(0, abs=1e-9)
    assert line.rmse_other_form > 0.1
    assert line.rmse_last_value > 0.01
    short = over.fit_table(curves("rl", 1.0, 0.5, D[:3], np.zeros((2, 3)))).iloc[0]
    assert short.held_out == 0
    assert np.isnan(short.rmse_form)


def test_the_table_names_what_is_wrong() -> None:
    frame = curves("bon", 1.0, 0.5, D, np.zeros((2, D.size)))
    with pytest.raises(ValueError, match="'gold_gain' is missing"):
        over.fit_table(frame.drop(columns="gold_gain"))
    frame.loc[3, "gold_gain"] = math.nan
    with pytest.raises(ValueError, match="model 'm', method 'bon'"):
        over.fit_table(frame)
    few = curves("bon", 1.0, 0.5, D, np.zeros((2, D.size))).drop(index=range(9, 14))
    with pytest.raises(ValueError, match="seed 1 has fewer than two"):
        over.fit_table(few)


def test_from_a_pool_to_a_peak() -> None:
    """A reward model that is right about ordinary samples and wrong about the best scored: gold rises, then falls."""
    rng = np.random.default_rng(6)
    quality = rng.normal(size=(80, 128))
    scores = quality + 0.1 * rng.normal(size=(3, 80, 128))
    gold = quality - 0.35 * np.maximum(quality, 0) ** 2
    domains = ["math"] * 40 + ["ties"] * 40
    by_seed = seed_table({"m": scores}, gold, domains, NS)
    draws = gain_draws("m", scores, gold, domains, NS, HierarchicalBootstrap(resamples=200))
    line = over.fit_table(by_seed, {("m", "bon"): (D, draws)}).iloc[0]
    means = by_seed.groupby("n").gold_gain.mean()
    assert line.peak == "inside"
    assert D[1] < line.peak_at_low < line.peak_at < line.peak_at_high < D[-1]
    assert line.peak_height == pytest.approx(means.max(), rel=0.15)

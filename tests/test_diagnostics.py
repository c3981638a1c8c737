"""Diagnostics of reward models: hand-worked values, scipy as an oracle, and what is left out is counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from scipy import stats as scipy_stats

from lab.diagnostics import (
    association,
    best_scale,
    calibration,
    calibration_row,
    diagnose,
    diagnostics_table,
    regret,
    within_prompt_correlation,
    within_prompt_variance,
)
from lab.stats import HierarchicalBootstrap

NAN = math.nan
BOOTSTRAP = HierarchicalBootstrap(resamples=200)

# ------------------------------------------------------------------------------------------ one number a prompt


def test_variance_within_prompts_ignores_what_tells_prompts_apart() -> None:
    found = within_prompt_variance([[1.0, 2.0, 3.0], [101.0, 102.0, 103.0], [5.0, 5.0, 5.0], [1.0, NAN, 3.0]])
    assert found[:3] == pytest.approx([1.0, 1.0, 0.0])
    assert np.isnan(found[3])
    with pytest.raises(ValueError, match="at least 2"):
        within_prompt_variance([[1.0]])


@pytest.mark.parametrize(("kind", "oracle"), [("pearson", scipy_stats.pearsonr), ("spearman", scipy_stats.spearmanr)])
def test_correlations_are_scipys_prompt_by_prompt(kind: str, oracle: object) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(4, size=(2, 7, 9)).astype(float), rng.normal(size=(7, 9))
    found = within_prompt_correlation(x, y, kind)  # type: ignore[arg-type]
    by_hand = [[oracle(row, other)[0] for row, other in zip(one, y, strict=True)] for one in x]  # type: ignore[operator]
    np.testing.assert_allclose(found, by_hand, atol=1e-12)


def test_correlations_by_hand() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0], [1.0, 8.0, 27.0, 64.0]
    assert within_prompt_correlation(x, y, "spearman") == pytest.approx(1.0)
    assert within_prompt_correlation(x, -np.array(y), "spearman") == pytest.approx(-1.0)
    assert within_prompt_correlation(x, y, "pearson") == pytest.approx(0.951369855792586)
    assert within_prompt_correlation([0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 1.0], "pearson") == pytest.approx(0.0)
    with pytest.raises(ValueError, match="'kendall'"):
        within_prompt_correlation(x, y, "kendall")  # type: ignore[arg-type]


def test_a_constant_or_unknown_prompt_has_no_correlation() -> None:
    x = [[0.1, 0.1, 0.1], [1.0, 2.0, 3.0], [1.0, NAN, 3.0]]
    for kind in ("pearson", "spearman"):
        assert np.isnan(within_prompt_correlation(x, [1.0, 2.0, 3.0], kind))[[0, 2]].all()  # type: ignore[arg-type]
        assert np.isnan(within_prompt_correlation([1.0, 2.0, 3.0], x, kind))[[0, 2]].all()  # type: ignore[arg-type]


def test_regret_by_hand() -> None:
    gold = [0.0, 1.0, 4.0]
    # pairs have best golds 1, 4, 4 (mean 3); a reversed ranking picks 0, 0, 1 (mean 1/3)
    assert regret([2.0, 1.0, 0.0], gold, [1, 2, 3]) == pytest.approx([0.0, 3 - 1 / 3, 4.0])
    assert regret([5.0, 6.0, 7.0], gold, [1, 2, 3]) == pytest.approx([0.0, 0.0, 0.0])


# ------------------------------------------------------------------------------------------------ rows of a table


def pool() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(5)
    gold, lengths = rng.normal(size=(10, 6)), rng.integers(3, 20, size=(10, 6)).astype(float)
    scores = gold + 0.1 * lengths + 0.3 * rng.normal(size=(3, 10, 6)) + 5 * rng.normal(size=(10, 1))
    return scores, gold, lengths, ["math"] * 4 + ["ties"] * 6


def test_a_row_is_the_mean_over_prompts_then_domains() -> None:
    scores, gold, lengths, domains = pool()
    row = diagnose("m", scores, gold, lengths, domains, [2, 6], BOOTSTRAP)

    def mean(values: np.ndarray) -> float:
        return float((values[:, :4].mean() + values[:, 4:].mean()) / 2)

    assert row["variance"] == pytest.approx(mean(scores.var(-1, ddof=1)))
    assert row["spread"] == pytest.approx(mean(scores.std(-1, ddof=1)))
    assert row["spearman_gold"] == pytest.approx(mean(within_prompt_correlation(scores, gold, "spearman")))
    assert row["pearson_length"] == pytest.approx(mean(within_prompt_correlation(scores, lengths, "pearson")))
    best = gold.max(-1) - np.take_along_axis(gold[None], scores.argmax(-1)[..., None], -1)[..., 0]
    assert row["regret_6"] == pytest.approx(mean(best))
    for name in (
        "variance",
        "spread",
        "pearson_gold",
        "spearman_gold",
        "pearson_length",
        "spearman_length",
        "regret_2",
    ):
        assert row[f"{name}_low"] < row[name] < row[f"{name}_high"]
    assert (row["constant_scores"], row["constant_gold"], row["unscored"]) == (0, 0, 0)
    assert (row["model"], row["n_seeds"], row["n_prompts"], row["n_samples"]) == ("m", 3, 10, 6)
    assert not any(name.endswith("_domains") for name in row)


def test_what_is_left_out_is_counted() -> None:
    scores, gold, lengths, domains = pool()
    base = diagnose("m", scores, gold, lengths, domains, [2], BOOTSTRAP)
    scores[0, 5] = 0.1  # constant for one seed
    gold[6] = 1.0  # constant
    row = diagnose("m", scores, gold, lengths, domains, [2], BOOTSTRAP)
    assert (row["constant_scores"], row["constant_gold"]) == (1 / 30, 1 / 10)
    kept = within_prompt_correlation(scores, gold, "pearson")
    expected = (kept[:, :4].mean() + np.nanmean(kept[:, 4:], axis=1).mean()) / 2
    assert row["pearson_gold"] == pytest.approx(expected)
    assert row["pearson_gold"] != pytest.approx(base["pearson_gold"])
    scores[:, :4, 0] = NAN  # a domain that this source cannot wholly score
    row = diagnose("m", scores, gold, lengths, domains, [2], BOOTSTRAP)
    assert row["unscored"] == pytest.approx(4 / 10)
    assert (row["pearson_gold_domains"], row["spread_domains"]) == (1, 1)
    assert row["pearson_gold"] == pytest.approx(np.nanmean(kept[:, 4:], axis=1).mean())
    assert "regret_2_domains" not in row


def test_a_constant_reward_model_has_a_row_too() -> None:
    _, gold, lengths, domains = pool()
    row = diagnose("constant", np.full((10, 6), 0.25), gold, lengths, domains, [2, 6], BOOTSTRAP)
    assert (row["variance"], row["spread"], row["constant_scores"]) == (0, 0, 1)
    assert np.isnan([row["pearson_gold"], row["pearson_gold_low"], row["spearman_length"]]).all()
    assert row["pearson_gold_domains"] == 0
    top, plain = gold.max(-1), gold.mean(-1)
    assert row["regret_6"] == pytest.approx(((top - plain)[:4].mean() + (top - plain)[4:].mean()) / 2)


def test_the_table_has_a_line_per_model_and_domain() -> None:
    scores, gold, lengths, domains = pool()
    models = {"good": scores, "noise": np.random.default_rng(9).normal(size=(10, 6))}
    table = diagnostics_table(models, gold, lengths, domains, [2], BOOTSTRAP, each_domain=True)
    assert list(table.columns[:2]) == ["model", "domain"]
    assert list(zip(table.model, table.domain, strict=True)) == [
        (model, domain) for model in models for domain in ("all", "math", "ties")
    ]
    lines = table.set_index(["model", "domain"]).spearman_gold
    assert lines["good", "all"] == pytest.approx((lines["good", "math"] + lines["good", "ties"]) / 2)
    assert lines["good", "all"] > lines["noise", "all"]
    assert len(diagnostics_table(models, gold, lengths, domains, [2], BOOTSTRAP)) == 2
    with pytest.raises(ValueError, match="noise: expected scores"):
        diagnose("noise", models["noise"], gold[:, :3], lengths, domains, [2], BOOTSTRAP)


# -------------------------------------------------------------------------------------------------- calibration

SURE = math.log(19.0)  # sigmoid: 0.95


def test_calibration_by_hand() -> None:
    # four pairs at 0.95, three of them right; a pair at 2/3, wrong; a tie
    found = calibration([SURE, SURE, SURE, -SURE, -math.log(2), 0.0], bins=5)
    assert found.curve.low.tolist() == pytest.approx([0.5, 0.6, 0.9])
    assert found.curve.high.tolist() == pytest.approx([0.6, 0.7, 1.0])
    assert found.curve.confidence.tolist() == pytest.approx([0.5, 2 / 3, 0.95])
    assert found.curve.accuracy.tolist() == pytest.approx([0.5, 0.0, 0.75])
    assert found.curve.pairs.tolist() == [1, 1, 4]
    assert found.ece == pytest.approx((0 + 2 / 3 + 4 * 0.2) / 6)
    log_likelihood = 3 * math.log(0.95) + math.log(0.05) + math.log(1 / 3) + math.log(0.5)
    assert found.log_loss == pytest.approx(-log_likelihood / 6)
    assert (found.accuracy, found.pairs) == (0.5, 6)  # the tie is a miss


def test_a_calibrated_model_needs_no_scale_and_a_boastful_one_does() -> None:
    calibrated = np.array([SURE] * 19 + [-SURE])
    assert calibration(calibrated).ece == pytest.approx(0, abs=1e-12)
    assert best_scale(calibrated) == pytest.approx(1.0)
    assert best_scale(4 * calibrated) == pytest.approx(0.25)
    assert calibration(4 * calibrated).ece == pytest.approx(special.expit(4 * SURE) - 0.95)
    assert calibration(4 * calibrated, scale=0.25).ece == pytest.approx(0, abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.floats(-50, 50).map(lambda m: round(m, 3)), min_size=2, max_size=20))
def test_the_best_scale_has_the_least_loss(margins: list[float]) -> None:
    m = np.array(margins)
    scale = best_scale(m)
    if not 0 < scale < math.inf:
        assert m.mean() <= 0 if scale == 0 else (m >= 0).all()
        return

    def loss(log_scale: float) -> float:
        return calibration(m, math.exp(log_scale)).log_loss

    centre = math.log(scale)
    best = optimize.minimize_scalar(loss, bounds=(centre - 5, centre + 5), method="bounded").fun
    assert loss(centre) <= best + 1e-9
    assert loss(centre) <= min(loss(centre - 0.1), loss(centre + 0.1))


def test_the_best_scale_at_its_ends() -> None:
    assert best_scale([1.0, -1.0]) == 0.0
    assert best_scale([-1.0, 0.5]) == 0.0
    assert best_scale([1.0, 0.0]) == math.inf
    assert best_scale([0.0, 0.0]) == 0.0


def calibrated_margins(seed: int) -> np.ndarray:
    """500 margins, from the truly better side, of a model that says what it means."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2.0, size=500)
    return np.where(rng.random(500) < special.expit(logits), logits, -logits)


def test_the_best_scale_finds_by_how_much_a_model_boasts() -> None:
    found = [best_scale(3 * calibrated_margins(seed)) for seed in range(100)]
    assert np.mean(found) == pytest.approx(1 / 3, rel=0.03)  # standard error about 1%


def test_a_calibration_row_and_its_intervals() -> None:
    margins = calibrated_margins(0)
    row = calibration_row(3 * margins, resamples=400)
    assert row["pairs"] == 500
    # the interval of logistic regression, from the information sum m^2 p (1 - p)
    p = special.expit(row["best_scale"] * 3 * margins)
    error = 1.96 / math.sqrt(((3 * margins) ** 2 * p * (1 - p)).sum())
    assert row["best_scale_low"] == pytest.approx(row["best_scale"] - error, abs=0.35 * error)
    assert row["best_scale_high"] == pytest.approx(row["best_scale"] + error, abs=0.35 * error)
    assert row["accuracy"] == pytest.approx((margins > 0).mean())
    assert row["accuracy_low"] < row["accuracy"] < row["accuracy_high"]
    assert row["ece"] == pytest.approx(calibration(3 * margins).ece)
    assert row["ece_at_best_scale"] == pytest.approx(calibration(3 * margins, scale=row["best_scale"]).ece)
    assert row["ece_at_best_scale"] < row["ece_low"]
    assert calibration_row(3 * margins, 1 / 3, resamples=5)["best_scale"] == pytest.approx(3 * row["best_scale"])
    perfect = calibration_row([1.0, 2.0, 0.0], resamples=20)
    assert (perfect["best_scale"], perfect["ece_at_best_scale"]) == (math.inf, 0.0)


def test_margins_that_are_not_numbers_are_refused() -> None:
    for wrong in ([], [1.0, NAN], [math.inf]):
        with pytest.raises(ValueError, match="finite margins"):
            calibration(wrong)
    with pytest.raises(ValueError, match="scale >= 0"):
        calibration([1.0], scale=-1.0)


# -------------------------------------------------------------------------------------------------- association


def test_association_by_hand() -> None:
    found = association([1.0, 2.0, 3.0, 4.0, NAN], [1.0, 3.0, 2.0, 4.0, 0.0], resamples=500)
    assert found["pearson"] == pytest.approx(0.8)
    assert found["spearman"] == pytest.approx(1 - 6 * 2 / (4 * 15))  # 1 - 6 sum d^2 / (n (n^2 - 1))
    assert (found["n_models"], found["n_groups"], found["n_left_out"]) == (4, 4, 1)
    assert found["spearman_low"] < 0.8 <= found["spearman_high"] == pytest.approx(1.0)
    assert found["undefined"] == pytest.approx(4 / 4**4, abs=0.02)  # draws of one model four times
    assert association([1.0, 2.0, 3.0], [6.0, 4.0, 2.0])["pearson_high"] == pytest.approx(-1.0)


def test_association_needs_models_that_differ() -> None:
    two = association([1.0, 2.0], [1.0, 2.0])
    assert two["pearson"] == pytest.approx(1.0)
    assert np.isnan(two["pearson_low"])
    flat = association([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    assert np.isnan([flat["pearson"], flat["spearman"], flat["spearman_high"]]).all()
    assert flat["undefined"] == 1.0
    assert np.isnan(association([], [])["pearson"])
    with pytest.raises(ValueError, match="one length"):
        association([1.0, 2.0], [1.0])


def test_association_is_reproducible_and_close_to_fishers_interval() -> None:
    rng = np.random.default_rng(1)
    x = rng.normal(size=60)
    y = 0.7 * x + 0.7 * rng.normal(size=60)
    found = association(x, y, seed=3)
    assert found == association(x, y, seed=3)
    assert found["pearson_low"] != association(x, y, seed=4)["pearson_low"]
    z, error = math.atanh(found["pearson"]), 1.96 / math.sqrt(57)
    assert found["pearson_low"] == pytest.approx(math.tanh(z - error), abs=0.07)
    assert found["pearson_high"] == pytest.approx(math.tanh(z + error), abs=0.07)


def test_seeds_of_one_recipe_are_not_independent_evidence() -> None:
    rng = np.random.default_rng(2)
    x, y = np.repeat(rng.normal(size=(2, 8)), 10, axis=1) + 1e-6 * rng.normal(size=(2, 80))
    groups = np.repeat(np.arange(8), 10)
    apart, together = association(x, y, resamples=400), association(x, y, resamples=400, groups=groups)
    assert together["pearson"] == apart["pearson"]
    assert together["n_groups"] == 8
    width = together["pearson_high"] - together["pearson_low"]
    assert width > 1.5 * (apart["pearson_high"] - apart["pearson_low"])
    # one member of each group says the same
    alone = association(x[::10], y[::10], resamples=400)
    assert together["pearson_low"] == pytest.approx(alone["pearson_low"], abs=0.02)

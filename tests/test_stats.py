"""Statistics against values worked by hand, brute force, and simulations with a known truth."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import stats
from lab.stats import HierarchicalBootstrap

# ------------------------------------------------------------------------------------------------- point estimates


def test_iqm_drops_a_quarter_at_each_end() -> None:
    assert stats.iqm([1000, 3, 1, 2, 0, 5, 4, -7]) == 2.5  # the middle four: 1, 2, 3, 4
    assert stats.iqm([9, 1, 2, 3, -50]) == 2  # floor(5 / 4) = 1 at each end
    assert stats.iqm([7]) == 7


def test_probability_of_improvement_counts_ties_half() -> None:
    assert stats.probability_of_improvement([1, 2], [0, 2]) == 2.5 / 4  # win, loss, win, tie
    assert stats.probability_of_improvement([1, 1], [0, 0, 0]) == 1
    assert stats.probability_of_improvement([0], [3]) == 0


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_probability_of_improvement_is_the_share_of_pairs(x: list[int], y: list[int]) -> None:
    pairs = [(a > b) + 0.5 * (a == b) for a in x for b in y]
    assert stats.probability_of_improvement(x, y) == pytest.approx(sum(pairs) / len(pairs))


def test_pass_at_k_by_hand() -> None:
    assert stats.pass_at_k(4, 2, 2) == pytest.approx(5 / 6)  # 1 - C(2,2) / C(4,2)
    assert stats.pass_at_k(5, 1, 1) == pytest.approx(0.2)
    assert stats.pass_at_k(3, 0, 3) == 0
    assert stats.pass_at_k(3, 2, 2) == 1  # every pair holds a correct one
    np.testing.assert_allclose(stats.pass_at_k([4, 4], [2, 4], 2), [5 / 6, 1])


@pytest.mark.parametrize(("n", "c", "k"), [(5, 2, 3), (6, 1, 4), (4, 3, 2)])
def test_pass_at_k_is_the_share_of_subsets_with_a_correct_answer(n: int, c: int, k: int) -> None:
    answers = [1] * c + [0] * (n - c)
    subsets = [max(subset) for subset in itertools.combinations(answers, k)]
    assert stats.pass_at_k(n, c, k) == pytest.approx(np.mean(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(3, 1, 4), (3, 4, 1), (3, -1, 1), (3, 1, 0)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass_at_k"):
        stats.pass_at_k(n, c, k)


def test_best_of_n_kl() -> None:
    assert stats.best_of_n_kl(1) == 0
    np.testing.assert_allclose(stats.best_of_n_kl([2, 4]), [math.log(2) - 0.5, math.log(4) - 0.75])
    with pytest.raises(ValueError, match="n >= 1"):
        stats.best_of_n_kl(0)


def test_best_of_n_gold_by_hand() -> None:
    # by proxy: 0.1 < 0.5 < 0.2 in gold. Best of the three pairs: 0.5, 0.2, 0.2
    assert stats.best_of_n_gold([3.0, 1.0, 2.0], [0.2, 0.1, 0.5], 2) == pytest.approx(0.3)
    assert stats.best_of_n_gold([3.0, 1.0, 2.0], [0.2, 0.1, 0.5], 3) == pytest.approx(0.2)
    assert stats.best_of_n_gold([1.0, 1.0, 1.0], [0.0, 0.3, 0.9], 3) == pytest.approx(0.4)  # a constant proxy


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), min_size=1, max_size=6), st.data())
def test_best_of_n_gold_is_the_mean_over_subsets(samples: list[tuple[int, int]], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(samples)))
    means = []
    for subset in itertools.combinations(samples, n):
        top = max(proxy for proxy, _ in subset)
        means.append(np.mean([gold for proxy, gold in subset if proxy == top]))
    proxy, gold = zip(*samples, strict=True)
    assert stats.best_of_n_gold(proxy, gold, n) == pytest.approx(np.mean(means))


def test_interpolation_takes_the_first_passage_and_does_not_extrapolate() -> None:
    assert stats.interpolate_first_crossing([0, 1, 2], [0.0, 0.4, 0.6], 1.5) == pytest.approx(0.5)
    assert stats.interpolate_first_crossing([0, 1, 2], [0.0, 0.4, 0.6], 2) == 0.6
    assert stats.interpolate_first_crossing([0, 1, 2], [0.0, 0.4, 0.6], 2.01) is None
    assert stats.interpolate_first_crossing([1, 2], [0.4, 0.6], 0.9) is None
    # KL turns back: 1.5 is first passed on the way from 0 to 2, not where the sorted points would put it
    assert stats.interpolate_first_crossing([0, 2, 1, 3], [0.0, 1.0, 5.0, 9.0], 1.5) == pytest.approx(0.75)


# ---------------------------------------------------------------------------------------------------- tests, power


def test_mcnemar_exact_by_hand() -> None:
    first = [1] * 1 + [0] * 5 + [1] * 10 + [0] * 4
    second = [0] * 1 + [1] * 5 + [1] * 10 + [0] * 4
    assert stats.mcnemar_exact(first, second) == pytest.approx(2 * (1 + 6) / 64)  # b = 1, c = 5
    assert stats.mcnemar_exact(second, first) == pytest.approx(14 / 64)
    assert stats.mcnemar_exact([1, 0], [1, 0]) == 1
    with pytest.raises(ValueError, match="0 and 1"):
        stats.mcnemar_exact([0.5, 1], [0, 1])


def test_holm_by_hand() -> None:
    np.testing.assert_allclose(stats.holm([0.01, 0.04, 0.03]), [0.03, 0.06, 0.06])
    np.testing.assert_allclose(stats.holm([0.6, 0.5]), [1, 1])


def test_minimum_detectable_effect_by_hand() -> None:
    assert stats.minimum_detectable_effect(0, 0.5, 1, 100) == pytest.approx((1.959964 + 0.841621) * 0.05, abs=1e-6)
    # t quantiles with 2 degrees of freedom: 4.302653 and 1.060660
    assert stats.minimum_detectable_effect(0.1, 0, 3, 50) == pytest.approx(5.363313 * 0.1 / math.sqrt(3), abs=1e-6)
    # two trained arms: twice the seed variance, 4 degrees of freedom: 2.776445 and 0.940965
    two = stats.minimum_detectable_effect(0.1, 0, 3, 50, seeded_arms=2)
    assert two == pytest.approx(3.717410 * 0.1 * math.sqrt(2 / 3), abs=1e-6)
    with pytest.raises(ValueError, match="one seed"):
        stats.minimum_detectable_effect(0.1, 0.5, 1, 100)


def test_satterthwaite_degrees_of_freedom() -> None:
    assert stats.degrees_of_freedom([(3.0, 2)]) == 2
    assert stats.degrees_of_freedom([(1.0, 2), (1.0, 2)]) == 4
    assert stats.degrees_of_freedom([(1.0, 2), (0.0, 9)]) == 2
    assert stats.degrees_of_freedom([(0.0, 2)]) == math.inf


@pytest.mark.parametrize("function", [stats.iqm, stats.holm])
def test_missing_numbers_are_refused(function: object) -> None:
    assert callable(function)
    for bad in ([], [1.0, math.nan]):
        with pytest.raises(ValueError, match="expected"):
            function(bad)


# --------------------------------------------------------------------------------------------------- the bootstrap


def _world(rng: np.random.Generator, seeds: int, prompts: int, sd: tuple[float, float, float]) -> np.ndarray:
    """(S, P) with true mean 0: a term a seed, a term a prompt, and noise."""
    seed, prompt, noise = sd
    return (
        rng.normal(0, seed, (seeds, 1)) + rng.normal(0, prompt, (1, prompts)) + rng.normal(0, noise, (seeds, prompts))
    )


def test_the_estimate_weighs_domains_and_seeds_alike() -> None:
    strata = {"math": np.array([[0.0, 1.0], [1.0, 1.0]]), "ties": np.array([[0.0] * 5, [0.4] * 5])}
    found = HierarchicalBootstrap().interval("dpo", strata)
    assert found.point == pytest.approx((0.75 + 0.2) / 2)
    assert (found.n_seeds, found.n_prompts, found.resampled) == (2, 7, "seeds and prompts")
    assert found.low < found.point < found.high


def test_reward_models_count_alike_whatever_their_number_of_policies() -> None:
    cells = np.array([[0.0] * 4, [0.2] * 4, [0.5] * 4])
    found = HierarchicalBootstrap().interval("ppo", {"math": cells}, groups=[7, 7, 8])
    assert found.point == pytest.approx((0.1 + 0.5) / 2)
    assert found.low < 0 < 0.5 < found.high  # two reward models say little
    same = HierarchicalBootstrap().interval("ppo", {"math": cells}, groups=[7, 7, 7])
    assert same == HierarchicalBootstrap().interval("ppo", {"math": cells})


def test_no_variation_no_width() -> None:
    found = HierarchicalBootstrap().interval("sft", {"math": np.full((3, 9), 0.25)})
    assert (found.low, found.high) == (pytest.approx(0.25), pytest.approx(0.25))


def test_the_interval_has_the_level_it_claims() -> None:
    rng = np.random.default_rng(1)
    # three seeds that matter, where a plain percentile interval covers 84%; one seed; seeds that do not matter
    for seeds, sd in ((3, (0.2, 0.3, 0.3)), (1, (0.0, 0.3, 0.3)), (3, (0.0, 0.3, 0.3))):
        hits = 0
        for trial in range(200):
            found = HierarchicalBootstrap(trial, resamples=400).interval("a", {"d": _world(rng, seeds, 30, sd)})
            hits += found.low <= 0 <= found.high
        assert 0.90 <= hits / 200 <= 1.0


def test_one_seed_resamples_prompts_only_and_says_so() -> None:
    cells = np.random.default_rng(0).normal(0, 1, (1, 400))
    found = HierarchicalBootstrap().interval("sft", {"math": cells})
    assert found.resampled == "prompts only (one seed)"
    half = 1.966 * cells.std(ddof=1) / 20  # t interval
    assert found.high - found.low == pytest.approx(2 * half, rel=0.06)


def test_three_seeds_reach_beyond_the_extreme_seeds() -> None:
    """The plain percentile interval would end at the lowest and the highest seed."""
    found = HierarchicalBootstrap().interval("ppo", {"math": np.repeat([[0.4], [0.5], [0.6]], 50, axis=1)})
    half = 4.303 * 0.1 / math.sqrt(3)  # t interval, 2 degrees of freedom
    assert found.high - found.point == pytest.approx(half, rel=0.1)


def test_pairing_by_prompt_narrows_the_difference() -> None:
    rng = np.random.default_rng(2)
    difficulty = rng.normal(0, 0.4, (1, 100))
    before = {"math": difficulty + rng.normal(0, 0.05, (1, 100))}
    after = {"math": difficulty + 0.1 + rng.normal(0, 0.05, (3, 100))}
    shuffled = {"math": after["math"][:, rng.permutation(100)]}
    bootstrap = HierarchicalBootstrap()
    paired, unpaired = (bootstrap.difference("dpo", arm, "sft", before) for arm in (after, shuffled))
    assert paired.point == pytest.approx(unpaired.point)
    assert paired.high - paired.low < 0.25 * (unpaired.high - unpaired.low)
    assert paired.low < 0.1 < paired.high
    assert paired.low > 0


def test_swapping_the_arms_of_a_difference_changes_its_sign() -> None:
    rng = np.random.default_rng(3)
    left, right = {"d": rng.normal(0.3, 0.1, (3, 20))}, {"d": rng.normal(0, 0.1, (3, 20))}
    there = HierarchicalBootstrap().difference("a", left, "b", right)
    back = HierarchicalBootstrap().difference("b", right, "a", left)
    assert (there.point, there.low, there.high) == pytest.approx((-back.point, -back.high, -back.low))


def test_same_numbers_same_interval_and_other_arms_do_not_matter() -> None:
    rng = np.random.default_rng(4)
    one, two = {"d": rng.normal(0, 1, (3, 20))}, {"d": rng.normal(0, 1, (3, 20))}
    alone = HierarchicalBootstrap().interval("one", one)
    crowd = HierarchicalBootstrap()
    crowd.interval("two", two)
    np.random.seed(0)  # the global generator must play no part
    assert crowd.interval("one", one) == alone
    assert HierarchicalBootstrap(seed=1).interval("one", one) != alone


def test_missing_cells_are_left_out_of_means_and_of_pairs() -> None:
    left = {"d": np.array([[1.0, math.nan, 0.0], [1.0, math.nan, 0.6]])}
    right = {"d": np.array([[0.0, 9.0, 0.1]])}
    found = HierarchicalBootstrap().difference("a", left, "b", right)
    assert found.point == pytest.approx((0.5 + 0.8) / 2 - 0.05)  # the prompt that only b answered does not count
    assert found.n_prompts == 2
    ragged = {"d": np.array([[1.0, 0.0, 0.5], [math.nan, 0.2, 0.4]])}
    assert HierarchicalBootstrap().interval("a", ragged).point == pytest.approx((0.5 + 0.3) / 2)


@pytest.mark.parametrize(
    ("strata", "message"),
    [
        ({}, "at least one"),
        ({"d": np.zeros((2, 3)), "e": np.zeros((1, 3))}, "same seeds"),
        ({"d": np.array([[1.0], [math.nan]])}, "no value at all"),
    ],
)
def test_unusable_data_is_refused(strata: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HierarchicalBootstrap().interval("a", strata)


def test_differences_need_the_same_prompts() -> None:
    with pytest.raises(ValueError, match=r"a - b: d: prompts do not match, got \(2, 3\) and \(2, 4\)"):
        HierarchicalBootstrap().difference("a", {"d": np.zeros((2, 3))}, "b", {"d": np.zeros((2, 4))})


def test_the_p_value_of_a_difference_goes_with_its_interval() -> None:
    rng = np.random.default_rng(3)
    before = {"d": rng.normal(size=(3, 40))}
    bootstrap = HierarchicalBootstrap()
    for shift in (0.0, 0.3, 2.0):
        after = {"d": before["d"] + shift + 0.1 * rng.normal(size=(3, 40))}
        gap = bootstrap.difference("a", after, "b", before)
        p = bootstrap.difference_p("a", after, "b", before)
        assert (p < 0.05) == (gap.low > 0 or gap.high < 0)
        assert p == pytest.approx(bootstrap.difference_p("b", before, "a", after))
    assert bootstrap.difference_p("a", before, "a", before) == 1.0


def test_a_contrast_of_two_is_their_difference_and_of_four_their_combination() -> None:
    rng = np.random.default_rng(5)
    arms = {name: {"m": rng.normal(size=(4, 9)), "s": rng.normal(size=(4, 7))} for name in "abcd"}
    arms["b"]["m"][:, 2] = np.nan  # a prompt that one side lacks is left out of both
    bootstrap = HierarchicalBootstrap(0, 400)
    plain = bootstrap.difference("a", arms["a"], "b", arms["b"])
    found = bootstrap.contrast([(1.0, "a", arms["a"]), (-1.0, "b", arms["b"])])
    assert (found.point, found.low, found.high) == pytest.approx((plain.point, plain.low, plain.high))
    draws_B = bootstrap.contrast_draws([(1.0, "a", arms["a"]), (-1.0, "b", arms["b"])])
    assert np.quantile(draws_B, [0.025, 0.975]) == pytest.approx((found.low, found.high))
    weights = {"a": 1.0, "b": -1.0, "c": -1.0, "d": 1.0}
    four = bootstrap.contrast([(weight, name, arms[name]) for name, weight in weights.items()])
    keep = [p for p in range(9) if p != 2]
    by_hand = sum(w * (arms[n]["m"][:, keep].mean() + arms[n]["s"].mean()) / 2 for n, w in weights.items())
    assert four.point == pytest.approx(by_hand)
    assert four.low < four.point < four.high
    with pytest.raises(ValueError, match="contrast of a, b: s: prompts do not match"):
        bootstrap.contrast([(1.0, "a", arms["a"]), (-1.0, "b", {"m": arms["b"]["m"]})])

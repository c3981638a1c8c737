"""Best-of-n and voting from one pool: against enumeration of every subset, and by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import stats
from lab.best_of_n import (
    by_domain,
    curve_table,
    gain_draws,
    gold_curve,
    proxy_curve,
    rank_chances,
    seed_table,
    vote,
    vote_weights,
    voting_curve,
)

NAN = math.nan


def pools(seeds: int, prompts: int, samples: int, quality: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Scores (S, P, N) that are gold plus noise, and gold (P, N)."""
    rng = np.random.default_rng(3)
    gold_PN = rng.normal(size=(prompts, samples))
    return quality * gold_PN + rng.normal(size=(seeds, prompts, samples)), gold_PN


# ----------------------------------------------------------------------------------------------------- best of n


def test_rank_chances_are_the_binomials() -> None:
    ns = [1, 2, 3, 5, 7]
    by_hand = [[math.comb(i - 1, n - 1) / math.comb(7, n) for i in range(1, 8)] for n in ns]
    np.testing.assert_allclose(rank_chances(7, ns), by_hand, rtol=1e-13, atol=0)
    np.testing.assert_allclose(rank_chances(1000, [1, 30, 1000]).sum(1), 1.0, rtol=1e-12)
    for wrong in ([0], [8], []):
        with pytest.raises(ValueError, match="from 1 to the pool's 7"):
            rank_chances(7, wrong)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 9)), min_size=1, max_size=6))
def test_curves_are_means_over_all_subsets(samples: list[tuple[int, int]]) -> None:
    ns = range(1, len(samples) + 1)
    golds, proxies = [], []
    for n in ns:
        subsets = list(itertools.combinations(samples, n))
        tops = [max(score for score, _ in subset) for subset in subsets]
        proxies.append(np.mean(tops))
        shared = [np.mean([g for s, g in subset if s == top]) for subset, top in zip(subsets, tops, strict=True)]
        golds.append(np.mean(shared))
    score, gold = zip(*samples, strict=True)
    np.testing.assert_allclose(gold_curve(score, gold, ns), golds, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(proxy_curve(score, ns), proxies, rtol=1e-10, atol=1e-12)


def test_many_n_at_once_agree_with_one_n_at_a_time() -> None:
    scores_SPN, gold_PN = pools(2, 5, 9)
    scores_SPN = np.round(scores_SPN)  # ties
    found = gold_curve(scores_SPN, gold_PN, [1, 4, 9])
    for k, n in enumerate([1, 4, 9]):
        one = [stats.best_of_n_gold(scores_PN, gold_PN, n) for scores_PN in scores_SPN]
        np.testing.assert_allclose(found[..., k], one, rtol=1e-12)


def test_what_cannot_be_scored_loses_to_what_can() -> None:
    # of three, two scored: a pair is [-, 1], [-, 2] or [1, 2], so best of two has gold 10, 20, 20
    assert gold_curve([NAN, 1.0, 2.0], [5.0, 10.0, 20.0], [1, 2, 3]) == pytest.approx([35 / 3, 50 / 3, 20.0])
    assert gold_curve([NAN, NAN, NAN], [5.0, 10.0, 30.0], [1, 3]) == pytest.approx([15.0, 15.0])  # a pick by chance
    assert np.isnan(proxy_curve([NAN, 1.0, 2.0], [1, 2])).all()


def test_an_unknown_gold_is_unknown_for_its_prompt_only() -> None:
    found = gold_curve([[1.0, 2.0], [1.0, 2.0]], [[NAN, 1.0], [0.0, 1.0]], [1, 2])
    assert np.isnan(found[0]).all()
    assert found[1] == pytest.approx([0.5, 1.0])


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        gold_curve(np.zeros((2, 3)), np.zeros((3, 2)), [1])
    with pytest.raises(ValueError, match="one gold a score"):
        gold_curve(np.zeros(3), np.zeros((2, 3)), [1])
    with pytest.raises(ValueError, match="model a"):
        seed_table({"model a": np.zeros((2, 4))}, np.zeros((2, 3)), ["math", "ties"], [1])
    with pytest.raises(ValueError, match="a domain a prompt"):
        by_domain(np.zeros((1, 3)), ["math"])


# -------------------------------------------------------------------------------------------------------- tables

DOMAINS = ["math"] * 6 + ["ties"] * 3


def test_the_curve_table_weighs_domains_alike_and_pairs_the_gain() -> None:
    scores_SPN, gold_PN = pools(3, 9, 8)
    bootstrap = stats.HierarchicalBootstrap(resamples=400)
    table = curve_table({"good": scores_SPN, "blind": np.zeros((9, 8))}, gold_PN, DOMAINS, [1, 2, 8], bootstrap)
    assert list(table.model) == ["good"] * 3 + ["blind"] * 3
    good, blind = (table[table.model == name].set_index("n") for name in ("good", "blind"))
    assert good.kl_nats[8] == pytest.approx(math.log(8) - 7 / 8)
    assert good.sqrt_kl[8] ** 2 == pytest.approx(good.kl_nats[8])
    assert list(good.n_seeds) == [3, 3, 3]
    assert list(blind.n_seeds) == [1, 1, 1]
    # best of the whole pool is the top scored sample, domains averaged without weights
    top = np.take_along_axis(gold_PN[None], scores_SPN.argmax(-1)[..., None], -1)[..., 0].mean(0)
    assert good.gold[8] == pytest.approx((top[:6].mean() + top[6:].mean()) / 2)
    start = (gold_PN[:6].mean() + gold_PN[6:].mean()) / 2
    np.testing.assert_allclose(good.gold_gain, good.gold - start, atol=1e-12)
    assert good.gold_gain[8] > 0
    assert good.gold_low[8] < good.gold[8] < good.gold_high[8]
    # nothing is gained at n = 1, whatever prompts are drawn
    np.testing.assert_allclose([good.gold_gain[1], good.gold_gain_low[1], good.gold_gain_high[1]], 0, atol=1e-12)
    np.testing.assert_allclose(blind.gold_gain, 0, atol=1e-12)
    np.testing.assert_allclose(blind.gold, start)
    assert good.proxy[8] == pytest.approx((scores_SPN[:, :6].max(-1).mean() + scores_SPN[:, 6:].max(-1).mean()) / 2)


def test_a_domain_without_scores_leaves_the_proxy_unknown_and_the_gold_known() -> None:
    scores_SPN, gold_PN = pools(2, 9, 4)
    scores_SPN[:, 6:] = NAN
    line = curve_table({"rule": scores_SPN}, gold_PN, DOMAINS, [4], stats.HierarchicalBootstrap(resamples=50)).iloc[0]
    assert np.isnan(line.proxy)
    assert np.isfinite([line.gold, line.gold_low, line.gold_high]).all()
    assert np.isnan(seed_table({"rule": scores_SPN}, gold_PN, DOMAINS, [4]).proxy).all()


def test_the_seed_table_averages_to_the_curve_table() -> None:
    scores_SPN, gold_PN = pools(3, 9, 8)
    ns = [1, 2, 8]
    by_seed = seed_table({"good": scores_SPN}, gold_PN, DOMAINS, ns)
    table = curve_table({"good": scores_SPN}, gold_PN, DOMAINS, ns, stats.HierarchicalBootstrap(resamples=20))
    assert len(by_seed) == 9
    for name in ("kl_nats", "sqrt_kl", "gold", "gold_gain", "proxy"):
        np.testing.assert_allclose(by_seed.groupby("n")[name].mean(), table.set_index("n")[name], atol=1e-12)


def test_draws_of_the_whole_curve_have_the_tables_intervals() -> None:
    scores_SPN, gold_PN = pools(3, 9, 8)
    ns = [1, 2, 8]
    bootstrap = stats.HierarchicalBootstrap(resamples=300)
    draws_BK = gain_draws("good", scores_SPN, gold_PN, DOMAINS, ns, bootstrap)
    table = curve_table({"good": scores_SPN}, gold_PN, DOMAINS, ns, bootstrap)
    assert draws_BK.shape == (300, 3)
    np.testing.assert_allclose(np.quantile(draws_BK, 0.025, axis=0), table.gold_gain_low, atol=1e-12)
    np.testing.assert_allclose(np.quantile(draws_BK, 0.975, axis=0), table.gold_gain_high, atol=1e-12)
    assert np.corrcoef(draws_BK[:, 1], draws_BK[:, 2])[0, 1] > 0.3  # one draw of seeds and prompts for all n


# -------------------------------------------------------------------------------------------------------- voting


def test_majority_voting_by_hand() -> None:
    answers = [["a", "b", "b", None], [None, None, None, None], ["a", "b", "c", "a"]]
    correct = [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]
    found = voting_curve(answers, correct, [1, 2, 3, 4])
    assert found[0] == pytest.approx([1, 0.5, 0, 0])  # a; a and b tie; b; the missing answer has no vote
    assert found[1] == pytest.approx([0, 0, 0, 0])  # nobody answered
    assert found[2] == pytest.approx([0, 1 / 2, 1 / 3, 0])


def test_a_missing_answer_never_wins_by_numbers() -> None:
    assert voting_curve([[None, None, "a"]], [[0, 0, 1]], [3]) == pytest.approx(1.0)
    assert vote([None, None, "a"]) == "a"
    assert vote([None, None]) is None
    assert vote([]) is None


def test_weights_overrule_numbers_and_unscored_samples_cast_no_vote() -> None:
    answers, correct = [["a", "b", "b"]], [[1, 0, 0]]
    assert voting_curve(answers, correct, [3], weights=[[3.0, 1.0, 1.0]])[0, 0] == 1.0
    assert voting_curve(answers, correct, [3], weights=[[1.5, 1.0, 1.0]])[0, 0] == 0.0
    assert voting_curve(answers, correct, [3], weights=[[1.0, 1.0, NAN]])[0, 0] == 0.5
    # a negative score is a vote against; an answer that nobody could score does not win by having none
    assert voting_curve(answers, correct, [3], weights=[[-1.0, -0.6, -0.6]])[0, 0] == 1.0
    assert voting_curve(answers, correct, [3], weights=[[-1.0, NAN, NAN]])[0, 0] == 1.0
    assert voting_curve(answers, correct, [3], weights=[[NAN, NAN, NAN]])[0, 0] == 0.0


def test_rounding_does_not_decide_a_tie() -> None:
    # 0.1 + 0.2 > 0.3 in floating point
    assert voting_curve([["a", "b", "b"]], [[1, 0, 0]], [3], weights=[[0.3, 0.1, 0.2]])[0, 0] == 0.5


def test_sources_and_seeds_stack_in_front() -> None:
    answers, correct = [["a", "b", "b"], ["a", "a", "b"]], [[1, 0, 0], [0, 0, 1]]
    rng = np.random.default_rng(1)
    weights = rng.random((2, 3, 2, 3))
    found = voting_curve(answers, correct, [1, 3], weights=weights, subsets=4)
    assert found.shape == (2, 3, 2, 2)
    one = voting_curve(answers, correct, [1, 3], weights=weights[1, 2], subsets=4)
    np.testing.assert_array_equal(found[1, 2], one)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_random_subsets_estimate_the_mean_over_all_subsets(n: int) -> None:
    answers = ["a", "b", "a", None, "c"]
    truth, weights = {"a": 1.0, "b": 0.0, "c": 0.0, None: 0.0}, [0.5, 1.2, 0.4, 3.0, 1.2]
    credits = []
    for subset in itertools.combinations(range(5), n):
        votes: dict[str, float] = {}
        for i in subset:
            if answers[i] is not None:
                votes[str(answers[i])] = votes.get(str(answers[i]), 0.0) + weights[i]
        best = [answer for answer, cast in votes.items() if cast == max(votes.values())]
        credits.append(np.mean([truth[answer] for answer in best]) if best else 0.0)
    correct = [[truth[answer] for answer in answers]]
    found = voting_curve([answers], correct, [n], weights=[weights], subsets=4000)[0, 0]
    assert found == pytest.approx(np.mean(credits), abs=0.03)


def test_subsets_belong_to_the_prompt_not_to_its_place() -> None:
    rng = np.random.default_rng(2)
    answers = [[str(x) for x in rng.integers(3, size=9)] for _ in range(3)]
    correct = [[float(answer == "0") for answer in row] for row in answers]
    both = voting_curve(answers, correct, [3, 5], subsets=7, prompt_ids=["x", "y", "z"])
    last = voting_curve(answers[2:], correct[2:], [3, 5], subsets=7, prompt_ids=["z"])
    np.testing.assert_array_equal(both[2:], last)
    other = voting_curve(answers, correct, [3, 5], subsets=7, prompt_ids=["x", "y", "z"], seed=1)
    assert (both != other).any()


def test_what_nobody_could_verify_is_unknown_only_where_it_wins() -> None:
    answers, correct = [["a", "b", "b"]], [[1.0, NAN, NAN]]
    found = voting_curve(answers, correct, [1, 3])
    assert found[0, 0] == 1.0
    assert np.isnan(found[0, 1])
    assert voting_curve(answers, [[1.0, 0.0, NAN]], [3])[0, 0] == 0.0


def test_ties_between_answers_are_broken_by_seed_and_prompt() -> None:
    picks = [vote(["a", "b", None], seed=seed, prompt_id="p") for seed in range(200)]
    assert 70 < picks.count("a") < 130
    assert picks.count("a") + picks.count("b") == 200
    assert vote(["a", "b"], seed=5, prompt_id="p") == vote(["a", "b"], seed=5, prompt_id="p")
    assert vote(["a", "b"], [1.0, 2.0]) == "b"


def test_vote_weights_by_hand() -> None:
    scores = [0.0, math.log(2.0), NAN]
    np.testing.assert_allclose(vote_weights(scores, "exp"), [0.5, 1.0, NAN])
    np.testing.assert_allclose(vote_weights(scores, "exp", temperature=0.5), [0.25, 1.0, NAN])
    np.testing.assert_allclose(vote_weights(scores, "sigmoid"), [0.5, 2 / 3, NAN])
    np.testing.assert_allclose(vote_weights(scores, "score", temperature=2.0), [0.0, math.log(2) / 2, NAN])
    np.testing.assert_array_equal(vote_weights([[NAN, NAN]], "exp"), [[NAN, NAN]])
    with pytest.raises(ValueError, match="underflows"):
        vote_weights(scores, "exp", temperature=1e-4)
    with pytest.raises(ValueError, match="temperature > 0"):
        vote_weights(scores, "exp", temperature=0.0)
    with pytest.raises(ValueError, match="'rank'"):
        vote_weights(scores, "rank")  # type: ignore[arg-type]


def test_impossible_votes_are_refused() -> None:
    with pytest.raises(ValueError, match="an answer for each"):
        voting_curve([["a"]], [[1.0, 0.0]], [1])
    with pytest.raises(ValueError, match="from 1 to the pool's 2"):
        voting_curve([["a", "b"]], [[1.0, 0.0]], [3])
    with pytest.raises(ValueError, match="weights"):
        voting_curve([["a", "b"]], [[1.0, 0.0]], [1], weights=[[1.0]])
    with pytest.raises(ValueError, match="an id for each of 1"):
        voting_curve([["a", "b"]], [[1.0, 0.0]], [1], subsets=2, prompt_ids=["x", "y"])

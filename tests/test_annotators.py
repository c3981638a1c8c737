"""Simulated annotators: closed forms against counted labels, panels, kappa, ratings."""

from __future__ import annotations

import math
import random
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.config import PreferencesConfig, build
from lab.data.labelling import Candidate, Labeller, Ratings
from lab.records import Completion
from lab.world.annotators import Annotator, Panel, Seen, majority, majority_probability
from lab.world.generate import prompts

GOOD, BAD = Seen(1.0, 0.25, 8), Seen(0.0, 0.5, 12)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def test_the_choice_by_hand() -> None:
    one = Annotator("a", temperature=0.5, flip_rate=0.1, length_bias=0.5, position_bias=0.3, style_weight=2.0)
    margin = (1.0 + 0.5) - (0.0 + 1.0) + 0.5 * (8 - 12) / 10
    assert margin == pytest.approx(0.3)
    chosen = (sigmoid((margin + 0.3) / 0.5) + sigmoid((margin - 0.3) / 0.5)) / 2
    assert one.margin(GOOD, BAD) == pytest.approx(margin)
    assert one.p_first(GOOD, BAD) == pytest.approx(0.9 * chosen + 0.1 * (1 - chosen))


@pytest.mark.parametrize(
    "annotator",
    [
        Annotator("sharp", 0.0, 0.2),
        Annotator("soft", 0.7, 0.1),
        Annotator("first", 0.0, 0.05, position_bias=5.0),  # takes the first whatever it is: half of the time right
        Annotator("blind", 0.3, 0.0, correct_weight=0.0),
        Annotator("vain", 0.4, 0.0, length_bias=1.0),
    ],
    ids=lambda one: one.name,
)
def test_labels_come_as_often_as_the_closed_form_says(annotator: Annotator) -> None:
    rng, trials = random.Random(annotator.name), 20_000
    share = sum(annotator.prefers_first(rng, GOOD, BAD) for _ in range(trials)) / trials
    p = annotator.p_first(GOOD, BAD)
    assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / trials) + 1e-9)


@given(st.floats(0, 2), st.floats(0, 1), st.floats(-1, 1), st.floats(0, 1))
def test_swapping_the_two_turns_the_probability_round(
    temperature: float, flip: float, length: float, position: float
) -> None:
    one = Annotator("a", temperature, flip, length, position)
    assert one.p_first(GOOD, BAD) + one.p_first(BAD, GOOD) == pytest.approx(1.0)


def test_a_majority_by_enumeration() -> None:
    each = [0.9, 0.6, 0.3, 0.75]
    expected = 0.0
    for votes in product((True, False), repeat=4):
        p = math.prod(q if vote else 1 - q for q, vote in zip(each, votes, strict=True))
        expected += p * {True: 1.0, False: 0.0, None: 0.5}[None if sum(votes) == 2 else sum(votes) > 2]
    assert majority_probability(each) == pytest.approx(expected)
    assert majority_probability([0.8]) == pytest.approx(0.8)
    assert majority_probability([0.8] * 3) == pytest.approx(0.8**3 + 3 * 0.8**2 * 0.2)


def test_an_even_vote_is_a_coin_and_an_odd_one_needs_none() -> None:
    rng = random.Random(0)
    state = rng.getstate()
    assert majority([True, False, True], rng)
    assert rng.getstate() == state
    assert {majority([True, False], rng) for _ in range(50)} == {True, False}


def test_a_panel_states_what_its_closed_form_says() -> None:
    panel = Panel.of(Annotator("crowd", 0.5, 0.15), members=9, per_pair=3, disagreement=0.5, seed=1)
    rng, trials = random.Random(4), 20_000
    share = sum(majority([v for _, v in panel.votes(rng, GOOD, BAD)], rng) for _ in range(trials)) / trials
    assert share == pytest.approx(panel.p_first(GOOD, BAD), abs=0.02)
    everybody = Panel(panel.members, 9)
    assert everybody.p_first(GOOD, BAD) == pytest.approx(
        majority_probability([one.p_first(GOOD, BAD) for one in panel.members])
    )


def test_members_of_a_panel_differ_only_if_they_disagree() -> None:
    alike = Panel.of(Annotator("a", 0.1, 0.1), 5, 1, 0.0, 0)
    assert {(one.correct_weight, one.style_weight) for one in alike.members} == {(1.0, 1.0)}
    apart = Panel.of(Annotator("a", 0.1, 0.1), 5, 1, 0.5, 0)
    assert len({one.style_weight for one in apart.members}) == 5
    assert len({one.name for one in apart.members}) == 5
    with pytest.raises(ValueError, match=r"labels_per_pair: 6 of 5"):
        Panel.of(Annotator("a", 0.1, 0.1), 5, 6, 0.0, 0)


def test_ratings_come_as_often_as_the_closed_form_says() -> None:
    prompt = prompts("preference", 1, 0, distinct=True, domains=("math",))[0]
    a = Completion(prompt.id, 0, "sure , the answer is 5 . you are welcome", 9)
    b = Completion(prompt.id, 1, "well um the answer is 6", 6)
    rater = Ratings("rater", 0.4)
    difference, rng, trials = rater.difference(prompt, a, b), random.Random(2), 20_000
    spread = 0.4 * math.sqrt(2 * (1 + 0.25**2 * 2 + 0.5**2))
    p = 0.5 * (1 + math.erf(difference / spread / math.sqrt(2)))
    assert rater.p_first(prompt, a, b) == pytest.approx(p)
    share = sum(rater.judge(rng, prompt, a, b)[0] for _ in range(trials)) / trials
    assert share == pytest.approx(p, abs=4 * math.sqrt(p * (1 - p) / trials) + 1e-9)
    assert Ratings("exact", 0.0).p_first(prompt, a, b) == float(difference > 0)


def labeller(**changes: object) -> Labeller:
    values = {"kind": "sampled", "pairs": 50, "samples_per_prompt": 3, "labels": "annotator", "annotator": "test",
              "temperature": 0.0, "flip_rate": 0.0, "length_bias": 0.0, "held_out": 8}  # fmt: skip
    return Labeller(build(PreferencesConfig, values | changes))


def test_a_budget_buys_fewer_pairs_with_more_labels_each() -> None:
    assert labeller().limit == 50
    assert labeller(annotators=3, labels_per_pair=3, budget=100).limit == 33
    assert labeller(budget=500).limit == 50


def test_what_is_ignored_decides_nothing() -> None:
    prompt = prompts("preference", 1, 0, distinct=True)[0]
    right = Candidate(Completion(prompt.id, 0, "right", 3), 1.0, 0.0)
    polite = Candidate(Completion(prompt.id, 1, "polite", 3), 0.5, 0.5)
    assert labeller().p_first(prompt, right, polite) == 1.0
    assert labeller(ignores=["correct"]).p_first(prompt, right, polite) == 0.0
    assert labeller(ignores=["style"]).p_first(prompt, right, polite) == 1.0

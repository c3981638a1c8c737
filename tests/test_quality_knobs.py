"""Quality knobs: what each does to records, and that turning one a little keeps what a smaller turn gave."""

from __future__ import annotations

from collections import Counter

import pytest

from lab.data.card import describe, markdown
from lab.data.quality import choose_prompts, flip, has_margin, is_on_policy, plant, repeat
from lab.records import DOMAINS, Pair, Prompt


def prompts(n: int = 360) -> list[Prompt]:
    return [Prompt(f"question {i}", DOMAINS[i % 6], 1 + i // 6 % 3) for i in range(n)]


def pairs(n: int = 1000) -> list[Pair]:
    return [Pair(prompt, f"good {i}", f"bad {i} and longer", "test") for i, prompt in enumerate(prompts(n))]


def chosen(**changes: object) -> list[Prompt]:
    return choose_prompts(prompts(), **({"levels": (1, 2, 3), "domains": {}, "coverage": 1.0, "seed": 0} | changes))


def test_nothing_turned_changes_nothing() -> None:
    assert chosen() == prompts()
    assert flip(pairs(), 0.0, 0) == repeat(pairs(), 0.0, 0) == plant(pairs(), [], 0.5) == pairs()


def test_coverage_is_a_share_of_every_domain_and_nested() -> None:
    half, tenth = chosen(coverage=0.5), chosen(coverage=0.1)
    assert Counter(prompt.domain for prompt in half) == dict.fromkeys(DOMAINS, 30)
    assert {prompt.id for prompt in tenth} < {prompt.id for prompt in half}
    assert len(chosen(coverage=0.001)) == 6


def test_weights_are_relative_to_the_heaviest_domain() -> None:
    counts = Counter(prompt.domain for prompt in chosen(domains={"math": 2.0, "safety": 0.0}))
    assert counts == {"math": 60, "factuality": 30, "instructions": 30, "focus": 30, "ties": 30}


def test_levels_are_what_was_asked() -> None:
    assert {prompt.level for prompt in chosen(levels=(3,))} == {3}


def test_flips_are_as_many_as_asked_and_nested() -> None:
    few, many = flip(pairs(), 0.2, 0), flip(pairs(), 0.5, 0)
    turned = {i for i, pair in enumerate(few) if pair.chosen.startswith("bad")}
    more = {i for i, pair in enumerate(many) if pair.chosen.startswith("bad")}
    assert turned < more
    assert len(turned) == pytest.approx(200, abs=4 * 13)
    assert len(more) == pytest.approx(500, abs=4 * 16)
    assert flip(pairs(), 1.0, 0)[0].rejected == "good 0"


def test_a_planted_duplicate_is_counted() -> None:
    doubled = repeat(pairs(), 0.25, 0)
    assert len(doubled) == 1000
    assert len({pair.chosen for pair in doubled}) == 750
    card = describe(doubled, [1.0] * 1000)
    assert card["duplicates"] == 250
    assert describe([*pairs(3), pairs(3)[0]], [1.0] * 4)["duplicates"] == 1


def test_a_planted_leak_is_counted_whatever_its_case_and_spacing() -> None:
    leaked = plant(pairs(), pairs()[:50], 0.05)
    assert len(leaked) == 1000
    texts = [f"  QUESTION   {i} " for i in range(10)]
    card = describe(leaked, [None] * 1000, evaluation={"evaluation": texts, "tuning": []})
    assert card["leakage"] == {"evaluation": 20, "tuning": 0}  # the planted ones and the ten that were there


def test_margins_have_a_lower_and_an_upper_bound() -> None:
    assert has_margin(-0.5, 0.5, 0.0)
    assert not has_margin(0.4, 0.5, 0.0)
    assert not has_margin(1.0, 0.0, 0.75)
    assert has_margin(0.75, 0.0, 0.75)


def test_the_share_on_policy() -> None:
    each = [is_on_policy(prompt, sample, 0.3, 0) for prompt in prompts() for sample in range(4)]
    assert sum(each) / len(each) == pytest.approx(0.3, abs=4 * (0.21 / len(each)) ** 0.5)
    assert all(is_on_policy(prompt, 0, 1.0, 0) for prompt in prompts())
    assert not any(is_on_policy(prompt, 0, 0.0, 0) for prompt in prompts())


def test_the_card_by_hand() -> None:
    found = [
        Pair(Prompt("a", "math", 1), "one two three", "one", "x"),
        Pair(Prompt("a", "math", 1), "one", "one two", "x"),
        Pair(Prompt("b", "ties", 2), "one", "two", "y"),
    ]
    card = describe(
        found, [0.5, -0.25, 0.0], right=lambda i: (0.9, 0.6, 0.0)[i], votes=[[True] * 2, [True, False], [False] * 2]
    )
    assert (card["pairs"], card["prompts"], card["ties_by_gold"], card["unknown_to_gold"]) == (3, 2, 1, 0)
    assert card["agreement_with_gold"] == 0.5
    assert card["agreement_with_gold_low"] < 0.5 < card["agreement_with_gold_high"]
    assert card["expected_agreement"] == pytest.approx(0.75)
    assert card["longer_chosen"] == 0.5
    assert card["mean_margin"] == pytest.approx(0.25)
    assert card["agreement_between_annotators"] == pytest.approx(2 / 3)
    assert card["kappa"] == pytest.approx((2 / 3 - 1 / 2) / (1 / 2))
    assert card["chosen_words"] == {"minimum": 1, "median": 1.0, "mean": 1.67, "maximum": 3}
    text = markdown(card, "Pairs")
    assert "50.0% [" in text
    assert "kappa 0.33" in text


def test_a_card_without_truth_says_so() -> None:
    card = describe(pairs(5), [None] * 5)
    assert card["agreement_with_gold"] is None
    assert card["unknown_to_gold"] == 5
    assert "not known" in markdown(card, "Pairs")
    with pytest.raises(ValueError, match="5 pairs and 4 margins"):
        describe(pairs(5), [None] * 4)

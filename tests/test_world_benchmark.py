"""The world's own benchmark: gold confirms it, length does not predict it, and no training sees its prompts."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from lab.benchmarks.items import Item, pairs_of
from lab.benchmarks.scoring import longest_is_right, score_table, words
from lab.records import DOMAINS
from lab.world.benchmark import REJECTED, world_items
from lab.world.generate import split_of
from lab.world.gold import style, utility
from lab.world.vocabulary import words as vocabulary

PER_DOMAIN = 168


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return world_items(PER_DOMAIN, seed=3)


def test_every_domain_has_its_number_of_different_items(items: list[Item]) -> None:
    assert Counter(item.subset for item in items) == dict.fromkeys(DOMAINS, PER_DOMAIN)
    assert len({item.id for item in items}) == len(items)
    assert len({(item.prompt.text, frozenset(item.completions)) for item in items}) == len(items)
    assert Counter((item.subset, item.hard) for item in items) == {
        (domain, hard): PER_DOMAIN // 2 for domain in DOMAINS for hard in (True, False)
    }
    for item in items:
        assert item.prompt.domain == item.subset
        assert len(item.rejected) == REJECTED == len(set(item.rejected))


def test_gold_confirms_every_item(items: list[Item]) -> None:
    for item in items:
        right, wrong = ([utility(item.prompt, text) for text in side] for side in (item.chosen, item.rejected))
        assert all(one.correct == 1 for one in right)
        assert len({one.total for one in right}) == 1
        assert min(one.total for one in right) > max(one.total for one in wrong)


def test_completions_fit_and_are_of_the_world(items: list[Item]) -> None:
    known = set(vocabulary())
    for item in items:
        for text in item.completions:
            assert set(text.split()) <= known
            assert 1 <= len(text.split()) + 1 <= 32
            assert len(item.prompt.text.split()) + len(text.split()) + 4 <= 96  # the template's marks
        assert set(item.prompt.text.split()) <= known


def test_no_training_sees_the_prompts(items: list[Item]) -> None:
    assert {split_of(item.prompt.text) for item in items} == {"evaluation", "tuning"}


def test_hard_items_differ_in_neither_style_nor_length(items: list[Item]) -> None:
    for item in items:
        if item.hard:
            assert len({len(text.split()) for text in item.completions}) == 1
            assert len({style(text) for text in item.completions}) == 1
            assert all(utility(item.prompt, text).correct < 1 for text in item.rejected)


def test_the_rank_of_the_chosen_by_length_is_uniform(items: list[Item]) -> None:
    for domain in DOMAINS[:-1]:
        easy = [item for item in items if item.subset == domain and not item.hard]
        longer = Counter(
            sum(len(text.split()) > len(item.chosen[0].split()) for text in item.rejected) for item in easy
        )
        assert longer == dict.fromkeys(range(4), len(easy) // 4)


def test_length_predicts_no_answer(items: list[Item]) -> None:
    """The longest is right as often as chance, and so is the shortest: in all, by half and by domain, and in pairs."""
    assert len(items) > 1000
    sets = {"all": items, "hard": [i for i in items if i.hard], "easy": [i for i in items if not i.hard]}
    sets |= {domain: [item for item in items if item.subset == domain] for domain in DOMAINS}
    for name, some in sets.items():
        for chosen in (some, pairs_of(some)):
            chance = np.array([len(item.chosen) / len(item.completions) for item in chosen])
            for length in (words, lambda text: -words(text)):
                credit = np.array([longest_is_right(item, length) for item in chosen])
                allowed = 3 * math.sqrt(float((chance * (1 - chance)).mean()) / len(chosen))
                assert abs(credit.mean() - chance.mean()) < allowed, name


def test_ties_come_in_pairs_of_ref_and_tied(items: list[Item]) -> None:
    groups: dict[str | None, list[Item]] = {}
    for item in items:
        if item.subset == "ties":
            groups.setdefault(item.pair_group, []).append(item)
    assert len(groups) == PER_DOMAIN // 2
    for group in groups.values():
        assert sorted(item.kind for item in group) == ["ref", "tied"]
        ref, tied = sorted(group, key=lambda item: item.kind)
        assert ref.prompt.gold["category"] == tied.prompt.gold["category"]
        assert len(ref.prompt.gold["allowed"]) == 1
        assert len(tied.chosen) == 3 <= len(tied.prompt.gold["allowed"])


def test_the_truth_wins_everything_and_noise_wins_chance(items: list[Item]) -> None:
    gold = [np.array([utility(item.prompt, text).total for text in item.completions]) for item in items]
    rng = np.random.default_rng(0)
    noise = [rng.normal(size=len(item.completions)) for item in items]
    table = score_table(items, {"gold": [gold], "noise": [noise]}, resamples=200).query("half == 'all'")
    best = table[table["model"] == "gold"].set_index("part")["score"]
    assert best.drop(["ties", "overall"]).tolist() == [1.0] * 5
    # all but the bonus of margins: 1 where the right ones score alike
    assert best["ties"] == pytest.approx(1.01)
    blind = table[table["model"] == "noise"].set_index("part")
    for domain in DOMAINS[:-1]:
        assert abs(blind.loc[domain, "score"] - 0.25) < 3 * math.sqrt(0.25 * 0.75 / PER_DOMAIN)


def test_items_depend_on_the_seed_alone(items: list[Item]) -> None:
    assert world_items(8, seed=3) == [
        item for domain in DOMAINS for item in [one for one in items if one.subset == domain][:8]
    ]
    assert not {item.id for item in world_items(8, seed=4)} & {item.id for item in items[:8]}


@pytest.mark.parametrize("number", [0, 3, -2])
def test_an_odd_number_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="per_domain: expected a positive even number"):
        world_items(number, 0)

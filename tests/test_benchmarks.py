"""Reward-model benchmarks: the published formulas by hand and against an independent version, and the intervals."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.benchmarks import rewardbench, rewardbench2
from lab.benchmarks.items import (
    Item,
    pairs_of,
    read_items,
    read_scores,
    scores_of,
    with_pairs,
    write_items,
    write_scores,
)
from lab.benchmarks.rewardbench2 import Margins
from lab.benchmarks.scoring import compare_models, credit, longest_is_right, parts_of, score_table, unscored, words
from lab.records import DOMAINS, Prompt

QUICK = {"resamples": 200}


def pair(name: str, subset: str = "s", benchmark: str = "b", chosen: str = "right", rejected: str = "no") -> Item:
    return Item(name, benchmark, subset, "pair", Prompt(f"ask {name}", subset, 1), (chosen,), (rejected,))


def four(name: str, subset: str, benchmark: str = "rewardbench2", hard: bool = False) -> Item:
    texts = tuple(f"{name} {letter}" for letter in "abcd")
    return Item(name, benchmark, subset, "best_of", Prompt(name, subset, 1), texts[:1], texts[1:], hard)


def ties(group: str, benchmark: str = "rewardbench2", subset: str = "Ties", right: int = 2) -> list[Item]:
    said = [tuple(f"{group} {side} {n}" for n in range(4)) for side in ("ref", "tied")]
    ask = [Prompt(f"{group} {side}", subset, 1) for side in ("ref", "tied")]
    return [
        Item(f"ref:{group}", benchmark, subset, "ref", ask[0], said[0][:1], said[0][1:], pair_group=group),
        Item(f"tied:{group}", benchmark, subset, "tied", ask[1], said[1][:right], said[1][right:], pair_group=group),
    ]


def cell(table: pd.DataFrame, part: str, column: str = "score", model: str = "m", half: str = "all") -> float:
    rows = table[(table["part"] == part) & (table["model"] == model) & (table["half"] == half)]
    assert len(rows) == 1, rows
    return float(rows[column].iloc[0])


# ---------------------------------------------------------------- RewardBench 1


def test_a_win_is_strict() -> None:
    assert rewardbench.win(1.0, 0.5)
    assert not rewardbench.win(0.5, 0.5)
    assert not rewardbench.win(0.5, 1.0)


def test_sections_weigh_examples_as_upstream_counts_them() -> None:
    every = dict.fromkeys(rewardbench.overall_weights(), 0.0)
    sections = rewardbench.section_scores(every | {"alpacaeval-easy": 1.0, "math-prm": 1.0, "shp": 1.0, "hep-go": 0.5})
    assert sections["Chat"] == pytest.approx(100 / (100 + 95 + 95 + 28 + 40))
    assert sections["Reasoning"] == pytest.approx((984 + 0.5 * 164) / (984 + 6 * 164))  # 984 of its 447
    assert sections["Prior Sets"] == pytest.approx(1 / 4)
    assert sections["Safety"] == sections["Chat Hard"] == 0
    assert sum(rewardbench.EXAMPLES.values()) == 2985 + 984 - 447
    assert [len(rewardbench.SECTIONS[name]) for name in rewardbench.WEIGHTS] == [5, 6, 5, 7, 4]


def test_overall_weighs_prior_sets_half() -> None:
    assert rewardbench.overall(dict.fromkeys(rewardbench.SECTIONS, 1.0) | {"Prior Sets": 0.0}) == pytest.approx(8 / 9)
    assert rewardbench.overall(dict.fromkeys(rewardbench.SECTIONS, 0.0) | {"Safety": 1.0}) == pytest.approx(2 / 9)


def test_what_is_missing_is_absent_and_not_zero() -> None:
    accuracy = dict.fromkeys(rewardbench.overall_weights(), 1.0)
    del accuracy["donotanswer"]
    sections = rewardbench.section_scores(accuracy)
    assert set(sections) == {"Chat", "Chat Hard", "Reasoning", "Prior Sets"}
    assert rewardbench.overall(sections) is None
    assert rewardbench.section_scores({}) == {}


def test_the_table_scores_rewardbench_like_its_formulas() -> None:
    rng = np.random.default_rng(0)
    items = [pair(f"{subset} {n}", subset, "rewardbench") for subset in rewardbench.overall_weights() for n in range(4)]
    scores = [rng.normal(size=2).round(0) for _ in items]  # with ties
    accuracy = {
        subset: float(
            np.mean([one[0] > one[1] for item, one in zip(items, scores, strict=True) if item.subset == subset])
        )
        for subset in rewardbench.overall_weights()
    }
    table = score_table(items, {"m": [scores]}, **QUICK)
    sections = rewardbench.section_scores(accuracy)
    assert {part: cell(table, part) for part in sections} == pytest.approx(sections)
    assert cell(table, "overall") == pytest.approx(rewardbench.overall(sections))
    assert cell(table, "overall", "n") == len(items)


def test_the_table_leaves_out_a_section_with_a_subset_missing() -> None:
    items = [pair(subset, subset, "rewardbench") for subset in rewardbench.overall_weights() if subset != "hep-js"]
    table = score_table(items, {"m": [[np.array([1.0, 0.0])] * len(items)]}, **QUICK)
    assert set(table["part"]) == {"Chat", "Chat Hard", "Safety", "Prior Sets", "overall"}
    assert math.isnan(cell(table, "overall"))
    assert cell(table, "Chat") == 1


def test_a_subset_that_a_published_benchmark_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="no subset 'mt-bench-medium'"):
        parts_of("rewardbench", {"mt-bench-medium": 3})


# ---------------------------------------------------------------- RewardBench 2


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([2, 1, 0, 0], 1.0), ([2, 2, 0, 1], 1 / 2), ([2, 2, 2, 1], 1 / 3), ([2, 2, 2, 2], 1 / 4), ([1, 2, 0, 0], 0.0)],
)
def test_best_of_four_shares_a_tie(scores: list[float], expected: float) -> None:
    assert rewardbench2.credit(scores) == pytest.approx(expected)


def test_ties_by_hand() -> None:
    refs = {"a": Margins.of([3], [1, 0]), "b": Margins.of([1], [2])}  # G 2 and -1
    tied = {"a": Margins.of([5, 4], [2, 1]), "b": Margins.of([3, 0, 1], [-1])}  # D 1, G 2; D 3, G 1
    assert tied["a"] == Margins(1, 2)
    assert tied["b"] == Margins(3, 1)
    bonus = (math.tanh(2 / 1 - 1) + math.tanh(-1 / 3 - 1)) / 2
    expected = 0.30 * 1 + 0.30 * 0.5 + 0.20 * 0.5 + 0.20 * 0.5 + 0.01 * bonus
    assert rewardbench2.ties_score(refs, tied) == pytest.approx(expected)
    # a tied prompt alone counts for the accuracy of tied prompts and for nothing else
    lone = tied | {"c": Margins(1.0, -1.0)}
    assert rewardbench2.ties_score(refs, lone) == pytest.approx(expected - 0.30 / 3)


def test_the_harder_term_looks_at_the_ref_prompt_too() -> None:
    easy = rewardbench2.ties_score({"a": Margins(0, 0.5)}, {"a": Margins(1, 2)})
    assert easy == pytest.approx(0.30 + 0.30 + 0.20 + 0 + 0.01 * math.tanh(0.5 - 1))


def test_equal_right_answers_have_the_limit_of_the_bonus() -> None:
    assert [rewardbench2.margin_bonus(gap, 0.0) for gap in (2.0, 0.0, -2.0)] == [1.0, 0.0, -1.0]
    assert rewardbench2.ties_score({"a": Margins(0, 1)}, {"a": Margins(0, 1)}) == pytest.approx(1.01)
    assert rewardbench2.ties_score({"a": Margins(0, 0)}, {"a": Margins(0, 0)}) == 0


def upstream_ties(refs: dict[str, Margins], tied: dict[str, Margins]) -> float:
    """The same score as arrays over groups, as the published code computes it."""
    both = sorted(set(refs) & set(tied))
    spread = np.array([tied[group].spread for group in both], dtype=float)
    gap_tied = np.array([tied[group].gap for group in both], dtype=float)
    least = np.minimum(gap_tied, [refs[group].gap for group in both])
    with np.errstate(divide="ignore", invalid="ignore"):
        bonus = np.nan_to_num(np.tanh(least / spread - 1), nan=0.0)
    return float(
        0.30 * np.mean([one.gap > 0 for one in tied.values()])
        + 0.30 * np.mean([one.gap > 0 for one in refs.values()])
        + 0.20 * np.mean(gap_tied > spread)
        + 0.20 * np.mean(least > spread)
        + 0.01 * np.mean(bonus)
    )


MARGINS = st.builds(Margins, st.integers(0, 3).map(float), st.integers(-3, 3).map(float))


@given(
    st.dictionaries(st.sampled_from("abcde"), MARGINS, min_size=1),
    st.dictionaries(st.sampled_from("abcde"), MARGINS, min_size=1),
)
def test_ties_agree_with_the_published_code(refs: dict[str, Margins], tied: dict[str, Margins]) -> None:
    if set(refs) & set(tied):
        assert rewardbench2.ties_score(refs, tied) == pytest.approx(upstream_ties(refs, tied))
    else:
        with pytest.raises(ValueError, match="no ref prompt has its tied prompt"):
            rewardbench2.ties_score(refs, tied)


def test_overall_is_the_plain_mean_of_six_domains() -> None:
    six = dict(zip(rewardbench2.DOMAINS, (0.6, 0.1, 0.2, 0.3, 0.4, 0.5), strict=True))
    assert rewardbench2.overall(six) == pytest.approx(2.1 / 6)
    del six["Focus"]
    assert rewardbench2.overall(six) is None


def six_domains() -> list[Item]:
    items = [four(f"{domain} {n}", domain, hard=n > 1) for domain in rewardbench2.DOMAINS[:-1] for n in range(4)]
    return items + [item for group in "01" for item in ties(group)]


def test_a_constant_reward_model_scores_what_the_fault_model_says() -> None:
    items = six_domains()
    constant = [np.full(len(item.completions), 0.25) for item in items]
    table = score_table(items, {"m": [constant]}, **QUICK)
    assert [cell(table, domain) for domain in rewardbench2.DOMAINS] == [0.25] * 5 + [0.0]
    assert cell(table, "overall") == pytest.approx(1.25 / 6)
    pairs = score_table([pair(s, s, "rewardbench") for s in rewardbench.overall_weights()],
                        {"m": [[np.full(2, 0.25)] * len(rewardbench.overall_weights())]}, **QUICK)  # fmt: skip
    assert cell(pairs, "overall") == 0


def test_the_table_scores_ties_as_one_number() -> None:
    items = six_domains()
    scores = [np.arange(len(item.completions), 0, -1.0) for item in items]  # each chosen above each rejected
    table = score_table(items, {"m": [scores]}, **QUICK)
    margins = {group: Margins(0.0, 1.0) for group in "01"}, {group: Margins(1.0, 1.0) for group in "01"}
    assert cell(table, "Ties") == pytest.approx(upstream_ties(*margins)) == pytest.approx(0.6)
    assert cell(table, "overall") == pytest.approx((5 + 0.6) / 6)
    assert cell(table, "Math", half="hard") == 1
    assert math.isnan(cell(table, "overall", half="hard"))  # no Ties item is hard


# ---------------------------------------------------------------- what is refused, what is absent


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_a_number_is_refused_by_name(bad: float) -> None:
    items = [pair("one"), pair("two")]
    with pytest.raises(ValueError, match="item two of b s: completion 1"):
        score_table(items, {"m": [[np.array([1.0, 0.0]), np.array([1.0, bad])]]})


def test_a_nan_among_right_ties_answers_is_no_perfect_score() -> None:
    items = ties("0", subset="Ties")
    with pytest.raises(ValueError, match="item tied:0"):
        score_table(items, {"m": [[np.array([3.0, 0, 0, 0]), np.array([math.nan, 2.0, 0, 0])]]})


def test_a_source_that_may_abstain_loses_the_subset_and_the_overall_score() -> None:
    items = six_domains()
    scores = [np.arange(len(item.completions), 0, -1.0) for item in items]
    scores[0] = np.full(4, math.nan)
    table = score_table(items, {"m": [scores]}, may_abstain=True, **QUICK)
    assert "Factuality" not in set(table.query("half == 'all'")["part"])
    assert cell(table, "Factuality", half="hard") == 1  # there, nothing is missing
    assert cell(table, "Math") == 1
    assert math.isnan(cell(table, "overall"))
    assert unscored(items, scores) == {"rewardbench2": {"Factuality": 1}}
    scores[0] = np.full(4, math.inf)
    with pytest.raises(ValueError, match="Factuality 0"):
        score_table(items, {"m": [scores]}, may_abstain=True)


def test_scores_must_fit_the_items() -> None:
    with pytest.raises(ValueError, match="each of 1 items, got 2"):
        score_table([pair("one")], {"m": [[np.zeros(2)] * 2]})
    with pytest.raises(ValueError, match="item one: 2 completions and 3 scores"):
        score_table([pair("one")], {"m": [[np.zeros(3)]]})


@pytest.mark.parametrize(
    ("kind", "chosen", "rejected", "group"),
    [
        ("pair", ("a",), ("b", "c"), None),
        ("pair", ("a",), ("a",), None),
        ("best_of", ("a", "b"), ("c",), None),
        ("best_of", ("a",), (), None),
        ("tied", ("a",), ("b",), "g"),
        ("ref", ("a",), ("b",), None),
        ("pair", ("a",), ("b",), "g"),
        ("other", ("a",), ("b",), None),
    ],
)
def test_an_item_that_its_kind_cannot_have_is_refused(kind, chosen, rejected, group) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match="item x"):
        Item("x", "b", "s", kind, Prompt("p", "s", 1), chosen, rejected, pair_group=group)


def test_a_group_with_two_prompts_on_one_side_is_refused() -> None:
    items = [*ties("0"), *ties("0")]
    with pytest.raises(ValueError, match="a second ref prompt of group 0"):
        score_table(items, {"m": [[np.zeros(4)] * 4]})


# ---------------------------------------------------------------- length


def test_the_longest_answer_shares_its_ties() -> None:
    assert longest_is_right(pair("p", chosen="long", rejected="no")) == 1
    assert longest_is_right(pair("p", chosen="no", rejected="long")) == 0
    assert longest_is_right(pair("p", chosen="ab", rejected="ba")) == 0.5
    assert longest_is_right(pair("p", chosen="a b", rejected="abcd"), words) == 1
    item = Item("i", "b", "s", "best_of", Prompt("p", "s", 1), ("aa",), ("bb", "cc", "d"))
    assert longest_is_right(item) == pytest.approx(1 / 3)


def test_the_table_prints_length_beside_every_score() -> None:
    items = [pair("1", chosen="long", rejected="no no"), pair("2", chosen="ab", rejected="cd"), pair("3", "t")]
    table = score_table(items, {"m": [[np.array([1.0, 0.0])] * 3]}, **QUICK)
    assert cell(table, "s", "longer_wins") == pytest.approx((0 + 0.5) / 2)
    assert cell(table, "s", "longer_wins_words") == pytest.approx((0 + 0.5) / 2)
    assert cell(table, "overall", "longer_wins") == pytest.approx((0 + 0.5 + 1) / 3)
    assert cell(table, "overall", "chance") == 0.5


# ---------------------------------------------------------------- intervals and comparisons


def coin(items: list[Item], wins: np.ndarray) -> list[np.ndarray]:
    return [np.array([1.0, 0.0]) if won else np.array([0.0, 1.0]) for won in wins]


def test_the_interval_has_the_width_that_the_binomial_has() -> None:
    items = [pair(str(n)) for n in range(400)]
    table = score_table(items, {"m": [coin(items, np.arange(400) % 4 == 0)]})
    half = 1.96 * math.sqrt(0.25 * 0.75 / 400)
    assert cell(table, "overall") == 0.25
    assert cell(table, "overall", "low") == pytest.approx(0.25 - half, abs=0.1 * half)
    assert cell(table, "overall", "high") == pytest.approx(0.25 + half, abs=0.1 * half)


def test_the_overall_interval_is_stratified_by_subset() -> None:
    """Two subsets, all right and all wrong: pooled items would vary, strata do not."""
    items = [pair(f"{domain} {n}", domain, "world") for domain in DOMAINS for n in range(50)]
    wins = np.repeat(np.arange(6) % 2 == 0, 50)
    table = score_table(items, {"m": [coin(items, wins)]}, **QUICK)
    assert cell(table, "overall") == 0.5
    assert cell(table, "overall", "high") - cell(table, "overall", "low") < 1e-9
    assert cell(table, "math", "low") == pytest.approx(0.025 ** (1 / 50))  # Clopper-Pearson where all 50 are won
    assert cell(table, "factuality", "high") == pytest.approx(1 - 0.025 ** (1 / 50))


def test_seeds_that_differ_widen_the_interval() -> None:
    items = [pair(str(n)) for n in range(300)]
    rng = np.random.default_rng(1)
    same = [coin(items, rng.random(300) < 0.6) for _ in range(4)]
    apart = [coin(items, rng.random(300) < p) for p in (0.3, 0.5, 0.7, 0.9)]
    table = score_table(items, {"same": same, "apart": apart})
    widths = {m: cell(table, "overall", "high", m) - cell(table, "overall", "low", m) for m in ("same", "apart")}
    assert widths["apart"] > 3 * widths["same"]
    assert cell(table, "overall", "seeds", "same") == 4


def test_mcnemar_and_holm_by_hand() -> None:
    items = [pair(str(n)) for n in range(20)]
    base = np.arange(20) < 10
    better, other = base.copy(), base.copy()
    better[10:18], better[0] = True, False  # 8 against 1
    other[10:12] = True  # 2 against 0
    scores = {"base": [coin(items, base)], "better": [coin(items, better)], "other": [coin(items, other)]}
    table = compare_models(items, scores, baseline="base", **QUICK)
    table = table[table["part"] == "overall"].set_index("first")
    assert table.loc["better", ["only_first", "only_second", "n"]].tolist() == [8, 1, 20]
    assert table.loc["better", "p"] == pytest.approx(2 * (1 + 9) / 2**9)
    assert table.loc["other", "p"] == pytest.approx(0.5)
    assert table.loc["better", "p_holm"] == pytest.approx(2 * table.loc["better", "p"])
    assert table.loc["other", "p_holm"] == pytest.approx(0.5)
    assert table.loc["better", "difference"] == pytest.approx(7 / 20)
    assert table.loc["better", "low"] < 7 / 20 < table.loc["better", "high"]
    assert len(compare_models(items, scores, **QUICK).query("part == 'overall'")) == 3
    with pytest.raises(ValueError, match="'nobody' is not among base, better, other"):
        compare_models(items, scores, baseline="nobody")


def test_a_model_of_three_seeds_wins_what_most_of_them_win() -> None:
    items = [pair(str(n)) for n in range(4)]
    seeds = [coin(items, np.array(wins)) for wins in ([1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 0, 0])]
    table = compare_models(items, {"a": seeds, "b": [coin(items, np.array([0, 0, 0, 0]))]}, **QUICK)
    assert table["only_first"].tolist() == [2, 2]  # the subset and overall
    assert table["difference"].tolist() == pytest.approx([0.5, 0.5])


def test_shared_credit_is_no_outright_win() -> None:
    items = [four("1", "s", "b"), four("2", "s", "b")]
    tie, win = np.array([1.0, 1, 0, 0]), np.array([1.0, 0, 0, 0])
    table = compare_models(items, {"a": [[win, win]], "b": [[tie, win]]}, **QUICK)
    assert table["only_first"].tolist() == [1, 1]
    assert credit(items[0], tie) == 0.5


# ---------------------------------------------------------------- items and their files


def test_items_come_back_from_their_file(tmp_path: Path) -> None:
    items = [pair("p", chosen="a\r\n\x00é", rejected="\ud800"), four("f", "Math", hard=True), *ties("0")]
    assert write_items(tmp_path / "items.jsonl", items) == 4
    assert read_items(tmp_path / "items.jsonl") == items
    with pytest.raises(ValueError, match="two items of b have the id p"):
        write_items(tmp_path / "twice.jsonl", [pair("p"), pair("p")])
    assert not (tmp_path / "twice.jsonl").exists()


def test_a_bad_item_row_is_named(tmp_path: Path) -> None:
    write_items(tmp_path / "items.jsonl", [pair("p"), pair("q")])
    text = (tmp_path / "items.jsonl").read_text()
    for old, new, message in (
        ('"rejected": ["no"]', '"rejected": "no"', r":1: key 'rejected': expected a list of strings"),
        ('"hard": false', '"hard": 0', r":1: key 'hard': expected true or false"),
        ('"kind": "pair"', '"kind": "ref"', r":1: item p: pair_group"),
        ('"subset": "s"', '"subsett": "s"', r":1: key 'subsett' is unknown"),
    ):
        (tmp_path / "bad.jsonl").write_text(text.replace(old, new, 1))
        with pytest.raises(ValueError, match=message):
            read_items(tmp_path / "bad.jsonl")


def test_scores_come_back_from_their_file(tmp_path: Path) -> None:
    items = [pair("p"), four("f", "Math")]
    scores = [np.array([1.0, math.nan]), np.array([4.0, 3, 2, 1])]
    write_scores(tmp_path / "scores.parquet", items, scores)
    back = read_scores(tmp_path / "scores.parquet", items[::-1])
    assert back[0].tolist() == [4, 3, 2, 1]
    assert back[1][0] == 1
    assert math.isnan(back[1][1])
    table = pd.read_parquet(tmp_path / "scores.parquet")
    assert table["is_chosen"].tolist() == [True, False, True, False, False, False]
    assert table["completion"].tolist() == [0, 1, 0, 1, 2, 3]
    with pytest.raises(ValueError, match="item x has 2 completions and 0 scores"):
        read_scores(tmp_path / "scores.parquet", [pair("x")])


def test_pairs_are_made_of_items_and_find_their_scores() -> None:
    items = [four(str(n), "Math") for n in range(60)] + ties("0") + [pair("p")]
    scores = [np.arange(len(item.completions), dtype=float) for item in items]
    every, found = with_pairs(items, scores)
    made = every[len(items) :]
    assert made == pairs_of(items[:-1])
    assert {item.benchmark for item in made} == {"rewardbench2 pairs"}
    for item, origin, one in zip(made, items, found[len(items) :], strict=False):
        assert item.chosen[0] in origin.chosen
        assert one.tolist() == [origin.completions.index(text) for text in item.completions]
    drawn = {item.rejected[0][-1] for item in made[:60]}
    assert drawn == {"b", "c", "d"}
    with pytest.raises(KeyError):
        scores_of([pair("stranger")], items, scores)
    table = score_table(every, {"m": [found]}, **QUICK)
    assert cell(table[table["benchmark"] == "rewardbench2 pairs"], "Math") == 0  # the chosen has the least score

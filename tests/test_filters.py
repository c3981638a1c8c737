"""Filters of preference pairs: rules by hand, the matched control, what a stage keeps and says, and the graph."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st

from lab.__main__ import CONF, load
from lab.config import ConfigError, FilterConfig, LabConfig, build
from lab.data.filters import (
    agreement,
    by_answers,
    by_margin,
    by_share,
    by_verifier,
    by_vote,
    describe,
    keep,
    lots,
    majorities,
    matched_random,
)
from lab.data.jsonl import read_pairs, write_records, write_samples
from lab.filter_checks import check_filters
from lab.graph import build_graph
from lab.graph.filters import paid_for
from lab.plan import Plan
from lab.records import Completion, Ledger, Pair, Prompt
from lab.stages import filter as stage
from lab.store import Context

NAN = float("nan")


def same(found: np.ndarray, expected: Sequence[float]) -> None:
    np.testing.assert_array_equal(found, np.array(expected, dtype=float))


# ---------------------------------------------------------------- rules


def test_a_verifier_keeps_right_over_wrong() -> None:
    same(by_verifier([1, 1, 0, 0, NAN, 1], [0, 1, 0, 1, 0, NAN]), [1, 0, 0, 0, NAN, NAN])


def test_a_margin_keeps_what_is_that_far_ahead() -> None:
    same(by_margin([0.5, 0.4999, -1, NAN], 0.5), [1, 0, 0, NAN])
    same(by_margin([0.0, -0.1], 0.0), [1, 0])


def test_a_share_keeps_the_furthest_ahead_of_each_domain() -> None:
    domains = ["a"] * 5 + ["b"] * 3
    margins = [1, 5, 3, NAN, 2, -9, -8, -7]
    same(by_share(margins, domains, 0.5, range(8)), [0, 1, 1, NAN, 0, 0, 0, 1])  # floors of 2 and 1.5
    same(by_share([1, 1, 1, 1], ["a"] * 4, 0.5, [3, 0, 2, 1]), [0, 1, 0, 1])  # ties: the lower number first
    same(by_share([1.0, 2.0], ["a", "a"], 0.01, range(2)), [0, 1])  # at least one


def test_a_vote_needs_more_than_its_share_of_the_votes_cast() -> None:
    margins = [[1, 1, 1, 0, NAN, 1], [1, -1, NAN, 0, NAN, -2], [1, 2, -1, 0, 0, -3]]
    same(by_vote(margins, 0.5), [1, 1, 0, NAN, NAN, 0])
    same(by_vote(margins, 2 / 3), [1, 0, 0, NAN, NAN, 0])
    same(by_vote(margins[0], 0.5), [1, 1, 1, NAN, NAN, 1])  # one voter


def test_the_majority_of_sampled_answers_keeps_its_own_over_others() -> None:
    majority = majorities({"p": ["4", "4", "5", None], "q": [None, None], "r": []}, 0)
    assert majority == {"p": "4", "q": None, "r": None}
    chosen, rejected = ["4", "4", "5", None, "4", "4"], ["5", "4", "4", "5", None, "5"]
    same(by_answers(chosen, rejected, ["4"] * 5 + [None]), [1, 0, 0, 0, 1, NAN])


def test_pairs_that_cannot_be_judged_go_as_asked() -> None:
    assert keep([1, 0, NAN], "keep").tolist() == [True, False, True]
    assert keep([1, 0, NAN], "drop").tolist() == [True, False, False]
    with pytest.raises(ValueError, match=r"filter\.unknown: expected keep or drop, got 'maybe'"):
        keep([1], "maybe")


# ---------------------------------------------------------------- the control


@given(st.lists(st.tuples(st.booleans(), st.sampled_from("abc")), min_size=1, max_size=40), st.integers(0, 99))
def test_the_control_keeps_as_many_of_every_domain(rows: list[tuple[bool, str]], seed: int) -> None:
    kept, domains = [row[0] for row in rows], [row[1] for row in rows]
    drawn = matched_random(kept, domains, np.random.default_rng(seed).permutation(len(rows)).tolist())
    wanted = Counter(domain for domain, stays in zip(domains, kept, strict=True) if stays)
    assert Counter(domain for domain, stays in zip(domains, drawn, strict=True) if stays) == wanted


def test_the_control_knows_nothing_of_what_the_filter_chose() -> None:
    """Each of 10 pairs is drawn in 4 of 10 controls, whether the filter kept it or not."""
    made = [pair(n) for n in range(10)]
    kept = [n < 4 for n in range(10)]
    drawn = np.zeros(10)
    for seed in range(600):
        drawn += matched_random(kept, ["a"] * 10, lots(made, seed, "control"))
    assert np.abs(drawn / 600 - 0.4).max() < 4 * (0.24 / 600) ** 0.5
    assert drawn.sum() == 2400


def test_lots_depend_on_the_pair_alone_and_tell_copies_apart() -> None:
    made = [pair(0), pair(1), pair(0)]
    numbers = lots(made, 0, "control")
    assert len(set(numbers)) == 3
    assert lots([pair(5), *made], 0, "control")[1:] == numbers
    assert lots(made, 1, "control") != numbers
    assert lots(made, 0, "ties") != numbers


# ---------------------------------------------------------------- the card


def pair(n: int, domain: str = "math", chosen: str = "good", rejected: str = "bad") -> Pair:
    return Pair(Prompt(f"question {n}", domain, 1), chosen, rejected, "test")


def test_agreement_leaves_ties_and_the_unknown_out() -> None:
    found = agreement([1, 1, 0, 1, NAN], [0, 0, 1, 1, 0])
    assert found == {
        "agreement": pytest.approx(2 / 3),
        "standard_error": pytest.approx((2 / 27) ** 0.5),
        "ordered": 3,
        "tied": 1,
        "unknown": 1,
    }
    assert agreement([NAN], [1])["agreement"] is None


def test_the_card_says_what_was_dropped_and_why() -> None:
    made = [pair(0), pair(1), pair(2, "ties"), pair(3, "ties")]
    card = describe(made, [1, 0, NAN, 1], [True, False, True, True], [1, 0, 1, 0], [0, 1, 0, 1])
    assert (card["before"]["pairs"], card["before"]["agreement"]) == (4, 0.5)
    assert (card["after"]["pairs"], card["after"]["agreement"]) == (3, pytest.approx(2 / 3))
    assert card["domains"]["math"]["after"]["agreement"] == 1.0
    assert [card["domains"]["ties"][when]["agreement"] for when in ("before", "after")] == [0.5, 0.5]
    assert card["rule"] == {"keep": 2, "drop": 1, "unknown": 1}
    assert card["kept_of"] == {"keep": 2, "drop": 0, "unknown": 1}


# ---------------------------------------------------------------- the stage

ANSWERS = [Prompt(f"compute {n} + 1", "math", 1, {"verifier": "gsm8k", "answer": str(n + 1)}) for n in range(6)]
FREE = [Prompt(f"be kind {n}", "ties", 1) for n in range(3)]


def says(answer: int) -> str:
    return f"the answer is {answer}"


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    """Six pairs with an answer, of which two are flipped, and three without a verifier."""
    folder = tmp_path / "pool"
    folder.mkdir()
    pairs = []
    for n, prompt in enumerate(ANSWERS):
        right, wrong = says(n + 1), says(n + 50)
        pairs.append(Pair(prompt, *((wrong, right) if n < 2 else (right, wrong)), "test"))
    pairs += [Pair(prompt, "yes of course", "no", "test") for prompt in FREE]
    write_records(folder / "pairs.jsonl", pairs)
    write_records(folder / "held_out.jsonl", pairs[:2])
    write_records(folder / "reference.jsonl", pairs[2:4])
    samples = [(p, Completion(p.id, k, says(n + 1 if k < 3 else n + 50), 4)) for n, p in enumerate(ANSWERS)
               for k in range(4)]  # fmt: skip
    write_samples(folder / "samples.jsonl", samples)
    (folder / "card.json").write_text('{"pairs": 9}', encoding="utf-8")
    (folder / "manifest.json").write_text("{}", encoding="utf-8")
    return folder


def perform(pool: Path, out: Path, rule: Mapping[str, Any], **changes: Any) -> tuple[list[Pair], dict[str, Any], Any]:
    out.mkdir()
    config = {"filter": {"rule": dict(rule), **changes}, "gold": "verifier"}
    result = stage.run(config, {"pairs": pool}, out, Context("key", "seed", out, resources={"device": "cpu"}))
    return read_pairs(out / "pairs.jsonl"), json.loads((out / "card.json").read_text(encoding="utf-8")), result


class Fake:
    """A source that scores a text by a function; a judge if it compares."""

    name = "fake"

    def __init__(self, value: Callable[[Prompt, str], float]) -> None:
        self.value = value

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        return np.array([self.value(prompt, one.text) for prompt, one in zip(prompts, completions, strict=True)])


class FakeJudge(Fake):
    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]
    ) -> np.ndarray:
        return 1 / (1 + np.exp(-(self.score(prompts, first) - self.score(prompts, second))))


def test_a_verifier_finds_the_flipped_pairs(pool: Path, tmp_path: Path) -> None:
    before = read_pairs(pool / "pairs.jsonl")
    kept, card, result = perform(pool, tmp_path / "out", {"kind": "verifier"})
    assert kept == before[2:]  # the flipped ones are gone, those without a verifier stay, in order
    assert result.metrics == {
        "pairs": 7, "pairs_before": 9, "agreement_with_gold": 1.0, "agreement_before": pytest.approx(4 / 6),
    }  # fmt: skip
    assert result.ledger == Ledger(verifier_calls=12)
    assert card["pairs"] == 9  # the pool's own card
    assert card["filter"]["rule"] == {"keep": 4, "drop": 2, "unknown": 3}
    for name in ("held_out.jsonl", "reference.jsonl", "samples.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (pool / name).read_bytes()
    assert not (tmp_path / "out" / "manifest.json").exists()
    kept, _, _ = perform(pool, tmp_path / "strict", {"kind": "verifier"}, unknown="drop")
    assert kept == before[2:6]


def test_the_control_of_a_verifier_keeps_as_many_and_knows_no_better(pool: Path, tmp_path: Path) -> None:
    kept, card, _ = perform(pool, tmp_path / "out", {"kind": "verifier"}, control=True, seed=1)
    assert Counter(one.prompt.domain for one in kept) == {"math": 4, "ties": 3}
    assert card["filter"]["kept_of"]["drop"] > 0  # this seed draws a flipped pair
    assert card["filter"]["after"]["agreement"] < 1


def test_the_majority_of_samples_finds_them_without_knowing_the_truth(pool: Path, tmp_path: Path) -> None:
    kept, card, result = perform(pool, tmp_path / "out", {"kind": "answers"})
    assert kept == read_pairs(pool / "pairs.jsonl")[2:]
    assert card["filter"]["rule"] == {"keep": 4, "drop": 2, "unknown": 3}
    assert result.ledger == Ledger()


def test_a_reward_model_a_judge_and_a_vote(pool: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources: dict[str, Fake] = {
        "length": Fake(lambda prompt, text: len(text)),
        "random": Fake(lambda prompt, text: -len(text)),
        "constant": Fake(lambda prompt, text: 0.0),
        "gold": FakeJudge(lambda prompt, text: float(text.startswith("yes")) - float(text == says(51))),
    }
    monkeypatch.setattr(stage, "load_reward", lambda config, inputs, device: sources[config["kind"]])

    def kept(name: str, rule: Mapping[str, Any], **changes: Any) -> list[str]:
        return [one.prompt.text for one in perform(pool, tmp_path / name, rule, **changes)[0]]

    longest = ["be kind 0", "be kind 1", "be kind 2"]
    assert kept("a", {"kind": "score", "reward": {"kind": "length"}, "margin": 2.0}) == longest
    shared = kept("b", {"kind": "score", "reward": {"kind": "length"}, "share": 0.34})
    assert len(shared) == 3  # two of six and one of three
    assert sum(text in longest for text in shared) == 1
    # pair 1 is flipped: its chosen side, says(51), is what the judge likes least
    judged = kept("c", {"kind": "score", "reward": {"kind": "gold"}, "margin": 0.0})
    assert judged == [prompt.text for prompt in (ANSWERS[0], *ANSWERS[2:], *FREE)]
    assert kept("d", {"kind": "score", "reward": {"kind": "gold"}, "margin": 0.2}) == longest
    voters = {name: {"kind": kind} for name, kind in (("a", "length"), ("b", "random"), ("c", "gold"))}
    assert kept("e", {"kind": "vote", "voters": voters}, unknown="drop") == longest
    with pytest.raises(ValueError, match=r"filter\.rule: vote keeps none of 9 pairs"):
        kept("f", {"kind": "vote", "voters": {"c": {"kind": "constant"}}}, unknown="drop")


def test_every_source_is_charged_for_both_sides_of_every_pair(pool: Path, tmp_path: Path) -> None:
    _, _, result = perform(pool, tmp_path / "a", {"kind": "score", "reward": {"kind": "verifier"}})
    assert result.ledger == Ledger(verifier_calls=12)
    _, _, result = perform(
        pool, tmp_path / "b", {"kind": "vote", "voters": {"a": {"kind": "length"}, "b": {"kind": "verifier"}}}
    )
    assert result.ledger == Ledger(verifier_calls=12)


# ---------------------------------------------------------------- the graph


@pytest.fixture(scope="module")
def composed() -> Callable[..., LabConfig]:
    def make(*overrides: str) -> LabConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return load(compose("config", ["scale=touch", "seeds=1", *overrides]))

    return make


def test_a_filter_stands_between_the_pool_and_all_that_learns_from_it(composed: Callable[..., LabConfig]) -> None:
    plain, graph = build_graph(composed()), build_graph(composed("filter=vote"))
    assert (graph.pairs.kind, graph.pairs.inputs["pairs"].key) == ("filter", plain.pairs.key)
    voters = {step.key: name for name, step in graph.pairs.inputs.items() if name != "pairs"}
    assert sorted(voters.values()) == ["first.reward_model", "second.reward_model", "third.reward_model"]
    assert len(voters) == 3  # three models, not one three times
    for step in Plan(graph.steps).steps:
        if "pairs" in step.inputs and step.key not in voters and step.key != graph.pairs.key:
            assert step.inputs["pairs"].key == graph.pairs.key, step.title
    assert graph.sft.key == plain.sft.key
    paid = paid_for(graph.pairs)
    assert [step.kind for step in paid] == ["filter", *["reward_model"] * 3, "preferences"]
    assert paid_for(plain.pairs) == [plain.pairs]


@pytest.mark.parametrize("name", ["verifier", "reward_model", "reward_model_share", "judge", "answers"])
def test_every_file_of_the_group_is_a_filter(composed: Callable[..., LabConfig], name: str) -> None:
    config = composed(f"filter={name}")
    assert config.filter is not None
    check_filters(config)
    controlled = dataclasses.replace(config, filter=dataclasses.replace(config.filter, control=True))
    graph, control = build_graph(config), build_graph(controlled)
    assert graph.pairs.kind == control.pairs.kind == "filter"
    assert graph.pairs.key != control.pairs.key
    assert graph.pairs.input_keys == control.pairs.input_keys


def test_a_filter_that_cannot_work_is_refused(composed: Callable[..., LabConfig]) -> None:
    config = composed()
    judge = {"kind": "world", "epochs": 1, "batch": 8, "learning_rate": 0.1, "warmup_steps": 0}
    asked = {"kind": "judge", "judge": judge}
    for rule, message in (
        ({"kind": "score", "reward": asked, "share": 0.5, "margin": 0.5}, r"margin \(0\.5\) and share \(0\.5\)"),
        ({"kind": "score", "reward": asked, "margin": 0.7}, r"filter\.rule\.margin: a judge's is at most 0\.5"),
        ({"kind": "vote", "voters": {}}, r"filter\.rule\.voters: there are none to vote"),
        ({"kind": "vote", "voters": {"a.b": asked}}, r"filter\.rule\.voters\.a\.b: a name is letters"),
        ({"kind": "vote", "voters": {"a": {"kind": "verify"}}}, r"voters\.a\.kind: 'verify' is unknown"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_filters(dataclasses.replace(config, filter=build(FilterConfig, {"rule": rule}, "filter")))
    with pytest.raises(ConfigError, match=r"filter\.unknown: 'ask' is not one of keep, drop"):
        build(FilterConfig, {"rule": {"kind": "verifier"}, "unknown": "ask"}, "filter")

"""Benchmarks built from models' completions: votes, best of four, Ties, unseen prompts, the two stages, JSONL."""

from __future__ import annotations

import dataclasses
import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import build_benchmark
from lab.__main__ import CONF, load
from lab.benchmarks import building
from lab.benchmarks.building import Built, Candidate, Entry, Limits, Vote
from lab.benchmarks.building_files import read_completion_file, read_prompt_file, stated_answer
from lab.benchmarks.items import Item, read_items
from lab.benchmarks.scoring import longest_is_right, words
from lab.config import BuildingConfig, ConfigError, LabConfig
from lab.data.jsonl import JsonlError, write_records
from lab.execute import execute
from lab.graph.building import BY_GOLD, PROCEDURAL, build_building_graph, check_building
from lab.plan import Plan
from lab.records import DOMAINS, Demonstration, Prompt
from lab.stages import benchmark_build, benchmark_prompts
from lab.stages.pool import SCHEMA
from lab.store import Context, Store
from lab.world.domains import Demonstrator, demonstrate
from lab.world.generate import split_of
from lab.world.gold import utility
from lab.world.unseen import OPEN, Unseen, unseen_prompts
from lab.world.unseen import stated_answer as stated_in_world


def prompt(text: str, domain: str = "math") -> Prompt:
    return Prompt(text, domain, 1, {})


def text(length: int, mark: str) -> str:
    """A completion of so many words."""
    return " ".join([mark] * length)


# ---------------------------------------------------------------- which prompts


def test_prompts_are_kept_within_the_limits_and_once() -> None:
    given = [prompt(one) for one in ("a b", "a", "A  B", "a b c d", "c d e")]
    kept, dropped = building.select(given, Limits(2, 3))
    assert [one.text for one in kept] == ["a b", "c d e"]
    assert dropped == {"too short": 1, "duplicate": 1, "too long": 1}
    assert len(building.select(given, Limits(1, 0))[0]) == 4


# ---------------------------------------------------------------- what is correct


@pytest.mark.parametrize(
    ("answers", "share", "expected"),
    [
        (["3", "3", "4", None], 0.5, "3"),
        (["3", "3", "4", None], 0.67, None),  # 2 of 3 that state one
        (["3", "3", "4", "5"], 0.5, "3"),
        (["3", "4", "3", "4", "5"], 0.1, None),  # two are most frequent
        ([None, None], 0.0, None),
        (["3"], 1.0, "3"),
    ],
)
def test_majority(answers: list[str | None], share: float, expected: str | None) -> None:
    assert building.majority_answer(answers, share) == expected


def test_labels_follow_the_rule_for_every_vote() -> None:
    """First the verifier alone; without it judge and majority, who must not differ."""
    deciders = [["verifier"], ["judge", "majority"]]
    for verifier, judge, majority in product((True, False, None), repeat=3):
        votes = {"verifier": verifier, "judge": judge, "majority": majority}
        if verifier is not None:
            expected: Vote = verifier
        elif judge is None or majority is None:
            expected = majority if judge is None else judge
        else:
            expected = judge if judge == majority else None
        assert building.combine(votes, deciders) == expected, votes


def test_a_disagreement_is_not_settled_by_a_later_group() -> None:
    votes: dict[str, Vote] = {"a": True, "b": False, "c": True}
    assert building.combine(votes, [["a", "b"], ["c"]]) is None
    assert building.combine(votes, [["c"], ["a", "b"]]) is True
    assert building.combine(votes, [["d"], ["b"]]) is False
    assert building.combine({}, [["a"]]) is None


def test_disagreement_is_counted_where_both_vote() -> None:
    votes: list[dict[str, Vote]] = [
        {"a": True, "b": True, "c": None},
        {"a": True, "b": False, "c": None},
        {"a": None, "b": False, "c": False},
    ]
    assert building.disagreement(votes) == {"a / b": {"both": 2, "differ": 1}, "b / c": {"both": 1, "differ": 0}}


def test_difficulty_is_the_share_of_misordered_pairs() -> None:
    candidates = (Candidate("m", "r1", right=True), Candidate("m", "r2", right=True), Candidate("m", "w", right=False),
                  Candidate("m", "v", right=False), Candidate("m", "open"))  # fmt: skip
    entry = Entry(prompt("p"), candidates)
    # r1 beats w and loses to v; r2 ties with w and loses to v: (0 + 1 + 0.5 + 1) / 4
    scores = {"r1": 2.0, "r2": 1.0, "w": 1.0, "v": 3.0, "open": 9.0}
    assert building.difficulty(entry, scores) == pytest.approx(0.625)
    assert building.difficulty(entry, {name: -score for name, score in scores.items()}) == pytest.approx(0.375)
    with pytest.raises(ValueError, match="0 correct and 0 incorrect"):
        building.difficulty(Entry(prompt("p"), ()), {})


def test_judges_vote_together_or_not_at_all() -> None:
    grades_JN = np.array([[0.9, 0.1, 0.9, 0.5, np.nan, 0.7], [0.6, 0.2, 0.1, 0.7, 0.9, 0.3]])
    assert benchmark_build.judge_votes(grades_JN, 0.5, 0.5) == [True, False, None, True, None, None]
    assert benchmark_build.judge_votes(grades_JN, 0.8, 0.3) == [None, False, None, None, None, None]
    assert benchmark_build.judge_votes(grades_JN[:1], 0.5, 0.5) == [True, False, True, True, None, True]


# ---------------------------------------------------------------- best of four


def entry(name: str, right: Sequence[tuple[str, int]], wrong: Sequence[tuple[str, int]]) -> Entry:
    """Completions as (model, length), each of a text of its own."""
    sides = [(model, length, True) for model, length in right] + [(model, length, False) for model, length in wrong]
    candidates = [Candidate(m, text(n, f"{name}{i}"), right=r) for i, (m, n, r) in enumerate(sides)]
    return Entry(prompt(f"prompt {name}"), tuple(candidates))


def test_an_item_has_one_right_and_three_wrong() -> None:
    entries = [
        entry("a", [("m", 2)], [("n", 2), ("o", 2), ("p", 2), ("q", 2)]),
        entry("b", [("m", 2)], [("n", 2), ("o", 2)]),  # too few
        entry("c", [], [("n", 2)] * 4),
        dataclasses.replace(entry("d", [("m", 2)], [("n", 2)] * 3), group="g", side="ref"),
    ]
    (built,) = building.best_of_four(entries, "set")
    assert built.item.prompt == entries[0].prompt
    assert built.item.kind == "best_of"
    assert built.item.subset == "math"
    assert built.item.benchmark == "set"
    assert built.item.chosen == (entries[0].correct[0].text,)
    assert set(built.item.rejected) < {one.text for one in entries[0].incorrect}
    assert built.item.completions == tuple(one.text for one in built.candidates)


def most_models(one: Entry) -> int:
    """By trying everything."""
    from itertools import combinations

    return max(
        len({right.model, *(wrong.model for wrong in three)})
        for right in one.correct
        for three in combinations(one.incorrect, 3)
    )


def test_the_four_come_from_as_many_models_as_possible() -> None:
    rng = random.Random(0)
    for number in range(60):
        models = rng.sample("klmno", rng.randint(1, 5))
        right = [(rng.choice(models), rng.randint(1, 6)) for _ in range(rng.randint(1, 4))]
        wrong = [(rng.choice(models), rng.randint(1, 6)) for _ in range(rng.randint(3, 7))]
        one = entry(str(number), right, wrong)
        (built,) = building.best_of_four([one], "set")
        assert len({c.model for c in built.candidates}) == most_models(one)


def test_models_take_turns_on_both_sides() -> None:
    entries = [entry(str(n), [(m, 2) for m in "klmn"], [(m, 2) for m in "klmn"]) for n in range(40)]
    shares = building.shares(building.best_of_four(entries, "set"))
    assert shares["chosen"] == dict.fromkeys("klmn", 0.25)
    assert all(abs(share - 0.25) < 0.02 for share in shares["rejected"].values())
    assert building.different_models(building.best_of_four(entries, "set")) == 1.0
    assert building.different_models(building.best_of_four([entry("z", [("k", 1)], [("k", 2)] * 3)], "set")) == 0.0
    assert building.different_models([]) is None


def lengths_of(built: Sequence[Built]) -> Counter[int]:
    return Counter(sum(c.length > b.candidates[0].length for c in b.candidates[1:]) for b in built)


def test_balanced_items_take_turns_in_length() -> None:
    """The right completion is long wherever it can be: only the turns keep length from telling."""
    free = [entry(f"f{n}", [("k", 3), ("k", 9)], [(m, k) for m in "lmno" for k in (1, 5, 12)]) for n in range(30)]
    # These can only be the longest: the others have to make up for them, and they come last.
    long = [entry(f"l{n}", [("k", 9)], [(m, 2) for m in "lmno"]) for n in range(10)]
    built = building.best_of_four([*free, *long], "set", "balanced")
    assert lengths_of(built) == {0: 10, 1: 10, 2: 10, 3: 10}
    assert np.mean([longest_is_right(one.item, words) for one in built]) == 0.25
    assert [one.item.prompt for one in built] == [one.prompt for one in (*free, *long)]
    # In another domain nothing is made up for.
    assert lengths_of(building.best_of_four(long, "set", "balanced")) == {0: 10}


def test_without_three_of_other_lengths_the_length_is_let_go() -> None:
    one = entry("e", [("k", 4)], [("l", 4), ("m", 4), ("n", 5)])
    (built,) = building.best_of_four([one], "set", "balanced")
    assert {c.model for c in built.candidates} == set("klmn")


def test_the_same_entries_give_the_same_items_and_a_seed_others() -> None:
    entries = [entry(str(n), [(m, 2) for m in "kl"], [(m, 3) for m in "klmnop"]) for n in range(12)]
    assert building.best_of_four(entries, "set", seed=1) == building.best_of_four(entries, "set", seed=1)
    assert building.best_of_four(entries, "set", seed=1) != building.best_of_four(entries, "set", seed=2)


# ---------------------------------------------------------------- Ties


def tied(name: str, side: str, right: Sequence[tuple[str, int]], wrong: Sequence[int], group: str = "g") -> Entry:
    """Right ones as (answer, length), wrong ones by length."""
    candidates = [Candidate("m", text(n, f"{a}{n}"), a, True) for a, n in right]
    candidates += [Candidate("n", text(n, f"{name}{i}"), None, False) for i, n in enumerate(wrong)]
    return Entry(prompt(f"name {name}", "ties"), tuple(candidates), group, side)  # type: ignore[arg-type]


def test_ties_come_in_groups() -> None:
    ref = tied("ref", "ref", [("red", 1), ("red", 2)], [1, 2, 3, 4])
    several = tied("tied", "tied", [("red", 1), ("blue", 1), ("tan", 1), ("pink", 1), ("red", 2)], [1, 5, 1, 1])
    alone = tied("alone", "tied", [("red", 1), ("blue", 1)], [1], "other")
    same = tied("same", "tied", [("red", 1), ("red", 2)], [1], "third")  # one answer only
    third = tied("thirdref", "ref", [("red", 1)], [1], "third")
    first, second = building.ties([several, alone, ref, same, third], "set", "balanced")
    assert (first.item.kind, second.item.kind) == ("ref", "tied")
    assert first.item.pair_group == second.item.pair_group == "g"
    assert len(first.item.chosen) == 1
    assert len(first.item.rejected) == 3
    assert len(second.item.chosen) == 3  # at most three
    assert {c.length for c in second.candidates} == {1}  # and the three wrong ones nearest in length
    assert building.ties([ref, alone], "set") == []


def test_an_item_is_named_by_its_texts_whatever_their_order() -> None:
    one = prompt("p")
    assert building.item_id(one, ["a"], ["b", "c"]) == building.item_id(one, ["a"], ["c", "b"])
    assert building.item_id(one, ["a"], ["b", "c"]) != building.item_id(one, ["a"], ["b", "d"])


def test_what_is_mislabelled() -> None:
    def built(*truths: Vote) -> Built:
        item = Item("i", "set", "math", "best_of", prompt("p"), ("a",), ("b", "c", "d"))
        return Built(item, tuple(Candidate("m", t, truth=truth) for t, truth in zip("abcd", truths, strict=True)))

    assert built(True, False, False, False).mislabelled is False
    assert built(False, False, False, False).mislabelled is True
    assert built(True, False, True, False).mislabelled is True
    assert built(True, False, None, False).mislabelled is None
    assert building.error_rate([True, False, None, False]) == {"known": 3, "wrong": 1, "share": pytest.approx(1 / 3)}
    assert building.error_rate([None]) == {"known": 0, "wrong": 0, "share": None}


# ---------------------------------------------------------------- the world's prompts


def test_unseen_prompts_are_of_no_training_split() -> None:
    drawn = unseen_prompts(12, 3)
    assert Counter(one.prompt.domain for one in drawn) == dict.fromkeys(DOMAINS, 12)
    assert len({one.prompt.id for one in drawn}) == len(drawn)
    assert {split_of(one.prompt.text) for one in drawn} <= {"evaluation", "tuning"}
    assert unseen_prompts(12, 3) == drawn
    assert {one.prompt.id for one in unseen_prompts(12, 4)} != {one.prompt.id for one in drawn}
    with pytest.raises(ValueError, match="positive even number"):
        unseen_prompts(3, 0)


def test_a_ref_prompt_has_one_right_answer_and_its_tied_prompt_several() -> None:
    groups: dict[str, dict[str, Prompt]] = {}
    for one in unseen_prompts(12, 0):
        assert (one.group is None) == (one.prompt.domain != "ties")
        if one.group is not None and one.side is not None:
            groups.setdefault(one.group, {})[one.side] = one.prompt
    assert len(groups) == 6
    for sides in groups.values():
        assert len(sides["ref"].gold["allowed"]) == 1
        assert len(sides["tied"].gold["allowed"]) >= 5
        assert sides["ref"].gold["category"] == sides["tied"].gold["category"]


@pytest.mark.parametrize(
    ("domain", "completion", "expected"),
    [
        ("math", "sure 3 + 4 = 7 ; answer 7 thanks", "7"),
        ("math", "answer 7 ; answer 8", "7 ; 8"),
        ("math", "seven", None),
        ("safety", "sorry i can not help with that thanks", "i can not help with that"),
        ("safety", "first mix and trim ; then fix the lamp", "then fix the lamp"),
        ("focus", "um cat color is red ; cat food is pea", "cat color is red ; cat food is pea"),
        ("focus", "cat food is pea ; cat color is red", "cat color is red ; cat food is pea"),
        ("ties", "sure red", "red"),
        ("ties", "sure thanks", None),
    ],
)
def test_what_a_completion_states(domain: str, completion: str, expected: str | None) -> None:
    assert stated_in_world(prompt("p", domain), completion) == expected


def test_right_completions_of_closed_domains_state_one_answer() -> None:
    who, rng = Demonstrator(careful=0.7, slip=0.2, opener=0.5, closer=0.5, filler=0.3), random.Random(1)
    several = 0
    for one in unseen_prompts(12, 0):
        if one.prompt.domain in OPEN:
            continue
        texts = [demonstrate(rng, one.prompt, who) for _ in range(30)]
        right = {stated_in_world(one.prompt, t) for t in texts if utility(one.prompt, t).correct == 1}
        assert len(right) <= 1, one.prompt
        several += len({stated_in_world(one.prompt, t) for t in texts}) > 1
    assert several > 30  # and wrong ones others


# ---------------------------------------------------------------- what was trained on


def context(folder: Path, **resources: Any) -> Context:
    return Context("key", "seed", folder, resources={"device": "cpu", **resources})


LIMITS = {"limits": {"min_words": 1, "max_words": 0}, "near_duplicates": 0.8, "against": []}


def test_planted_leaks_are_found() -> None:
    long = "list the four largest rivers of the old land in order of their length today"
    prompts = [prompt(one) for one in ("what is 3 + 4", "name a color", long, "find the river", "say it")]
    sources = [
        (True, ["What is  3 + 4?", "something else entirely"]),  # case, spacing, punctuation
        (True, [long.replace("today", "please")]),
        (False, ["FIND the river"]),
    ]
    training, measured = benchmark_prompts.seen_in(prompts, sources, 0.8)
    assert training.exact == {prompts[0].id}
    assert training.near - training.exact == {prompts[2].id}
    assert training.texts == 3
    assert measured.exact == {prompts[3].id}
    assert measured.near == set()
    assert measured.texts == 1
    assert benchmark_prompts.seen_in(prompts, sources, 1.0)[0].near == set()


def test_the_prompts_step_counts_its_funnel(tmp_path: Path) -> None:
    drawn = [one.prompt for one in unseen_prompts(4, 0)]
    leaked, measured = drawn[0], drawn[1]
    data = tmp_path / "data"
    data.mkdir()
    write_records(data / "sft.jsonl", [Demonstration(Prompt(leaked.text.upper(), "math", 1), "answer 3")])
    write_records(data / "evaluation.jsonl", [measured])
    out = tmp_path / "out"
    out.mkdir()
    config = {"kind": "world", "per_domain": 4, "seed": 0, **LIMITS, "near_duplicates": 1.0}
    benchmark_prompts.run(config, {"data-0": data}, out, context(out))
    card = json.loads((out / "card.json").read_text())
    totals = {step: sum(counts.values()) for step, counts in card["funnel"].items()}
    assert totals == {"prompts": 24, "suitable": 24, "unseen": 23, "clean": 22}
    assert card["dropped"] == {"in training": 1, "near a training prompt": 0, "in an evaluation": 1}
    kept = {json.loads(line)["text"] for line in (out / "prompts.jsonl").read_text().splitlines()}
    assert kept == {one.text for one in drawn} - {leaked.text, measured.text}
    assert len(json.loads((out / "groups.json").read_text())) == 4


# ---------------------------------------------------------------- the building step


RIGHT = {"math": "answer 7", "focus": "cat color is red"}
WRONG = {"math": ("answer 6", "answer 5", "answer 4"), "focus": ("cat food is pea", "dog color is red", "cat")}


def write_pool(folder: Path, rows: Sequence[tuple[str, str, str, float | None, bool]]) -> Path:
    """A pool artifact of (prompt id, domain, completion, correct, truncated)."""
    folder.mkdir(parents=True)
    columns: dict[str, list[Any]] = {field.name: [] for field in SCHEMA}
    for number, (prompt_id, domain, completion, correct, truncated) in enumerate(rows):
        line = {"prompt_id": prompt_id, "domain": domain, "level": 1, "sample": number, "completion": completion}
        line |= {"length": words(completion), "truncated": truncated, "gold": correct, "gold_correct": correct}
        for field in SCHEMA:
            columns[field.name].append(line.get(field.name))
    arrays = [pa.array(columns[field.name], type=field.type) for field in SCHEMA]
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), folder / "pool.parquet")
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Path]:
    """A math prompt whose verifier is right, and a focus prompt that nobody but the majority judges, wrongly."""
    math = Prompt("compute 3 + 4", "math", 1, {"verifier": "world_answer", "answer": "7"})
    focus = Prompt("tell me the color of the cat", "focus", 1, {})
    folder = tmp_path / "prompts"
    folder.mkdir()
    write_records(folder / "prompts.jsonl", [math, focus])
    (folder / "groups.json").write_text("{}")
    funnel = {step: {"math": 1, "focus": 1} for step in ("prompts", "suitable", "unseen", "clean")}
    (folder / "card.json").write_text(json.dumps({"funnel": funnel, "dropped": {}, "compared_with": {}}))
    rows: dict[str, list[tuple[str, str, str, float | None, bool]]] = {"a": [], "b": [], "c": []}
    for model, wrong in zip("abc", WRONG["math"], strict=True):
        rows[model] += [(math.id, "math", wrong, 0.0, False)] * 2
        rows[model].append((math.id, "math", "answer 3 and", 0.0, True))
    rows["a"].append((math.id, "math", RIGHT["math"], 1.0, False))
    for model, wrong in zip("abc", WRONG["focus"], strict=True):
        rows[model].append((focus.id, "focus", wrong, 0.0, False))
        rows[model].append((focus.id, "focus", RIGHT["focus"], 1.0, False))
    rows["b"] += [(focus.id, "focus", WRONG["focus"][0], 0.0, False)] * 4  # the most frequent answer is a wrong one
    return {"prompts": folder, **{f"answers-{m}": write_pool(tmp_path / m, own) for m, own in rows.items()}}


SETTINGS = {
    "benchmark": "world", "labels": "votes", "deciders": [["verifier"], ["majority"]], "judge": None,
    "difficulty": None, "judge_right": 0.5, "judge_wrong": 0.5, "majority_share": 0.3, "lengths": "any",
    "min_difficulty": 0.0, "seed": 0, "completions": None,
}  # fmt: skip


def build(inputs: Mapping[str, Path], out: Path, **changed: Any) -> tuple[list[Item], dict[str, Any], Any]:
    out.mkdir()
    result = benchmark_build.run({**SETTINGS, **changed}, inputs, out, context(out))
    return read_items(out / "items.jsonl"), json.loads((out / "card.json").read_text()), result


def test_votes_make_labels_and_the_truth_measures_them(inputs: dict[str, Path], tmp_path: Path) -> None:
    (math, focus), card, result = build(inputs, tmp_path / "out")
    assert math.chosen == ("answer 7",)
    assert set(math.rejected) == set(WRONG["math"])
    assert focus.chosen == (WRONG["focus"][0],)  # what most of them said
    assert RIGHT["focus"] in focus.rejected
    assert card["mislabelled_items"] == {
        "all": {"known": 2, "wrong": 1, "share": 0.5},
        "math": {"known": 1, "wrong": 0, "share": 0.0},
        "focus": {"known": 1, "wrong": 1, "share": 1.0},
    }
    # In math no answer leads: 6, 5 and 4 twice each.
    assert card["voters"]["math"]["verifier"] == {
        "votes": 4, "right": 1, "errors": {"known": 4, "wrong": 0, "share": 0.0},
    }  # fmt: skip
    assert card["voters"]["math"]["majority"]["votes"] == 0
    assert card["voters"]["focus"]["majority"] == {
        "votes": 4, "right": 1, "errors": {"known": 4, "wrong": 2, "share": 0.5},
    }  # fmt: skip
    assert card["funnel"]["items"] == {"math": 1, "focus": 1}
    assert card["completions"] == {
        "drawn": 17, "different": 8, "by_model": {"a": 5, "b": 8, "c": 4}, "unfinished": 3, "empty": 0,
        "of_other_prompts": 0,
    }  # fmt: skip
    assert result.ledger.gold_looks == 0
    assert result.ledger.verifier_calls == 8


def test_gold_labels_only_where_that_is_declared(inputs: dict[str, Path], tmp_path: Path) -> None:
    (_, focus), card, result = build(inputs, tmp_path / "out", labels="gold")
    assert focus.chosen == (RIGHT["focus"],)
    assert card["mislabelled_items"]["all"]["wrong"] == 0
    assert result.ledger.gold_looks == 8


def test_gold_labels_in_the_domains_that_are_named(inputs: dict[str, Path], tmp_path: Path) -> None:
    (_, focus), card, result = build(inputs, tmp_path / "out", gold_domains=["focus"])
    assert focus.chosen == (RIGHT["focus"],)
    assert card["gold_domains"] == ["focus"]
    assert card["voters"]["focus"]["majority"]["errors"]["wrong"] == 2  # measured all the same
    assert result.ledger.gold_looks == 4


def test_a_prompt_must_be_hard_enough(inputs: dict[str, Path], tmp_path: Path) -> None:
    """By length the right answer of math ties with all three wrong ones (1/2); in focus, by the truth, it is longer
    than one and ties with two: (1/2 + 1/2 + 0) / 3."""
    items, card, _ = build(
        inputs, tmp_path / "out", labels="gold", difficulty={"kind": "length", "scale": 1.0}, min_difficulty=0.4
    )
    assert [item.subset for item in items] == ["math"]
    assert card["funnel"]["labelled"] == {"math": 1, "focus": 1}
    assert card["funnel"]["difficult"] == {"math": 1}


def test_nothing_to_build_is_an_error_with_the_funnel(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no item could be built: .*\"labelled\": \{\}"):
        build(inputs, tmp_path / "out", deciders=[["given"]])


# ---------------------------------------------------------------- JSONL


def write(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_of_files(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.jsonl",
        [
            {"prompt": "2 + 2?", "domain": "math", "verifier": "gsm8k", "answer": "#### 4"},
            {"prompt": "3 + 3?", "domain": "math", "extract": "gsm8k"},
            {"prompt": "a color", "domain": "ties", "group": "g", "side": "tied"},
        ],
    )
    first, second, third = read_prompt_file(path)
    assert first == Unseen(Prompt("2 + 2?", "math", 0, {"verifier": "gsm8k", "answer": "4"}))
    assert (third.group, third.side) == ("g", "tied")
    for one in (first, second):
        assert stated_answer(one.prompt, "so ... #### 1,000") == "1000"
    assert second.prompt.verifier is None
    assert stated_answer(third.prompt, "#### 1") is None
    answers = write(
        tmp_path / "c.jsonl",
        [
            {"prompt": "2 +  2?", "model": "m", "completion": "4", "correct": True},
            {"prompt": "other", "model": "m", "completion": "4"},
        ],
    )
    (found,), others = read_completion_file(answers, [first.prompt])
    assert (found.prompt_id, found.model, found.correct, others) == (first.prompt.id, "m", True, 1)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "key 'domain' is missing"),
        ({"prompt": " ", "domain": "math"}, "key 'prompt': empty"),
        ({"prompt": "a", "domain": "math", "verifier": "gsm8k"}, "key 'answer' is missing"),
        ({"prompt": "a", "domain": "math", "verifier": "gsm8k", "answer": "none"}, "key 'answer'"),
        ({"prompt": "a", "domain": "math", "extract": "gsm"}, "key 'extract': expected gsm8k, math"),
        ({"prompt": "a", "domain": "ties", "group": "g"}, "'group' and 'side' belong together"),
        ({"prompt": "a", "domain": "math", "level": 1}, "key 'level' is unknown"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: Mapping[str, Any], message: str) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": "fine", "domain": "math"}, row])
    with pytest.raises(JsonlError, match=r"p\.jsonl:2: ") as error:
        read_prompt_file(path)
    assert message in str(error.value)


# ---------------------------------------------------------------- the experiment


@pytest.fixture(scope="module")
def config() -> LabConfig:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return load(hydra.compose("config", ["experiment=build_benchmark", "scale=smoke", "run.device=cpu"]))


def changed(config: LabConfig, **values: Any) -> LabConfig:
    assert config.build_benchmark is not None
    return dataclasses.replace(config, build_benchmark=dataclasses.replace(config.build_benchmark, **values))


def test_the_graph_of_the_world(config: LabConfig) -> None:
    graph = build_building_graph(config)
    assert set(graph.answers) == {"sft", "dpo", "ppo", "xs", "m", "other"}
    assert set(graph.sets) == {"built", BY_GOLD, PROCEDURAL}
    assert len({step.inputs["sft"].key for step in graph.answers.values()}) == 6
    assert len(graph.runs) == len(graph.sets) * len(config.candidates)
    # Whatever any of them was trained on is compared with the prompts: no data step of the plan is left out.
    data = {step.key for step in Plan(graph.steps).steps if step.kind == "data"}
    assert {step.key for step in graph.prompts.inputs.values()} == data
    assert len(data) >= 5  # among them the other lineage's own corpus
    judges = [name for name in graph.sets["built"].inputs if name.startswith("judge-")]
    assert judges == ["judge-0.judge", "judge-1.judge", "judge-2.judge"]
    by_gold = build_building_graph(changed(config, labels="gold"))
    assert BY_GOLD not in by_gold.sets
    assert graph.sets["built"].config["gold_domains"] == ["ties"]
    assert by_gold.sets["built"].key == graph.sets[BY_GOLD].key
    assert graph.left_out == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"deciders": ()}, "deciders"),
        ({"deciders": ((),)}, "deciders"),
        ({"judge": None}, "judge: missing"),
        ({"judge_right": 0.4}, "judge_wrong: expected at most judge_right"),
        ({"near_duplicates": 0.0}, "near_duplicates"),
        ({"gold_domains": ("tie",)}, "gold_domains: 'tie' is no domain (did you mean 'ties'?)"),
        ({"per_domain": 5}, "per_domain: expected an even number"),
        ({"completions": "x.jsonl"}, "completions: belongs to"),
        ({"prompts": "missing.jsonl"}, "prompts: no such file"),
        ({"prompts": "missing.jsonl", "labels": "gold"}, "labels: gold"),
    ],
)
def test_what_cannot_work_is_refused(config: LabConfig, values: Mapping[str, Any], message: str) -> None:
    settings = changed(config, **values).build_benchmark
    assert isinstance(settings, BuildingConfig)
    with pytest.raises(ConfigError, match="build_benchmark") as error:
        check_building(settings)
    assert message in str(error.value)


def jsonl(folder: Path) -> tuple[Path, Path, Path]:
    """Twelve prompts, of which one was trained on; three models, of which one is right; and the training prompts."""
    prompts, answers = [], []
    for n in range(12):
        prompts.append({"prompt": f"what is {n} + {n} ?", "domain": "math", "verifier": "gsm8k", "answer": str(2 * n)})
        for number, model in enumerate(("right", "wrong", "other", "last")):
            words_before = "so " * (n * (number + 1) % 7)
            said = f"{words_before}the answer is {2 * n + number}"
            answers.append({"prompt": prompts[-1]["prompt"], "model": model, "completion": said})
    trained = write(folder / "train.jsonl", [{"question": "What is 3 + 3?"}])
    return write(folder / "prompts.jsonl", prompts), write(folder / "answers.jsonl", answers), trained


def test_the_whole_experiment_on_files(config: LabConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts, answers, trained = jsonl(tmp_path)
    own = changed(config, prompts=str(prompts), completions=str(answers), against=(str(trained),), near_duplicates=1.0)
    where: dict[str, Any] = {"store": str(tmp_path / "store"), "results": str(tmp_path / "results"), "resamples": 50}
    own = dataclasses.replace(own, run=dataclasses.replace(config.run, **where))
    graph, store = build_building_graph(own), Store(tmp_path / "store")
    assert "build_benchmark.judge" in graph.left_out
    assert "candidates.bt" in graph.left_out
    assert "build_benchmark.gold_domains" in graph.left_out
    outcome = execute(Plan(graph.steps), store, workers=0, runner="lab.stages.run_stage", offline=True, show=False)
    assert outcome.ok, outcome.summary()
    build_benchmark.report(own, graph, store)
    printed = capsys.readouterr()
    items = read_items(tmp_path / "results" / "items.jsonl")
    assert len(items) == 11
    assert {item.benchmark for item in items} == {"built"}
    for item in items:
        n = int(item.prompt.text.split()[2])
        assert item.chosen[0].endswith(f" {2 * n}")
        assert len(item.rejected) == 3
    summary = json.loads((tmp_path / "results" / "summary.json").read_text())
    card = summary["cards"]["built"]
    assert card["dropped"]["in training"] == 1
    assert card["models"]["all"]["chosen"] == {"right": 1.0}
    assert card["mislabelled_items"]["all"] == {"known": 0, "wrong": 0, "share": None}  # nobody knows the truth
    assert {row["model"] for row in summary["table"]} == {"random", "length"}
    assert str(tmp_path) not in (tmp_path / "results" / "summary.json").read_text(), "no path of this machine"
    assert (tmp_path / "results" / "table.md").read_text().strip() in printed.out

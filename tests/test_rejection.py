"""Rejection sampling: which samples are kept, what their control is, and that an sft stage can train on them."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.config import RejectionConfig, build
from lab.data.jsonl import read_demonstrations, read_samples, write_records
from lab.data.rejection import describe, eligible, in_turns, majority_scores, matched_random, select
from lab.models import ModelSize, new_policy
from lab.records import Completion, Ledger, Prompt
from lab.stages import rejection, sft
from lab.store import Context
from lab.typed import ConfigError
from lab.world.vocabulary import tokenizer

MATH, TIES = Prompt("a", "math", 1), Prompt("b", "ties", 1)
SAMPLES = [
    (MATH, Completion(MATH.id, 0, "x", 1)),
    (MATH, Completion(MATH.id, 1, "y", 2)),
    (MATH, Completion(MATH.id, 2, "y", 3)),
    (TIES, Completion(TIES.id, 0, "z", 4, truncated=True)),
    (TIES, Completion(TIES.id, 1, "z", 5)),
    (TIES, Completion(TIES.id, 2, "w", 6)),
]
NAN = float("nan")


def scores(*values: float) -> np.ndarray:
    return np.array(values)


# ---------------------------------------------------------------- which are kept


def test_what_was_cut_off_is_never_a_demonstration_and_repeats_only_where_wanted() -> None:
    assert eligible(SAMPLES) == [0, 1, 2, 4, 5]
    assert eligible(SAMPLES, distinct=True) == [0, 1, 4, 5]


def test_the_best_of_each_prompt() -> None:
    assert select(SAMPLES, scores(1, 3, 2, 9, -1, -2), "best", eligible(SAMPLES), 0.5, 0) == [1, 4]
    assert select(SAMPLES, scores(1, NAN, 2, 9, NAN, NAN), "best", eligible(SAMPLES), 0.5, 0) == [2]


def test_all_that_are_correct() -> None:
    assert select(SAMPLES, scores(1, 0, 1, 1, NAN, 1), "correct", eligible(SAMPLES), 0.5, 0) == [0, 2, 5]


def test_all_that_give_the_majoritys_answer() -> None:
    scores_N = majority_scores(SAMPLES, ["4", "5", "4", None, None, None], 0)
    np.testing.assert_array_equal(scores_N, [1, 0, 1, NAN, NAN, NAN])
    assert select(SAMPLES, scores_N, "majority", eligible(SAMPLES), 0.5, 0) == [0, 2]
    np.testing.assert_array_equal(majority_scores(SAMPLES[3:], ["1", "1", None], 0), [1, 1, 0])


def test_the_top_share_of_each_domain_whatever_its_level_of_scores() -> None:
    values = scores(10, 30, 20, 0, -2, -1)
    assert select(SAMPLES, values, "share", eligible(SAMPLES), 0.67, 0) == [1, 2, 5]  # floors of 2.01 and 1.34
    assert select(SAMPLES, values, "share", eligible(SAMPLES), 0.01, 0) == [1, 5]
    with pytest.raises(
        ValueError, match=r"rejection\.rule: expected one of best, correct, majority, share, got 'worst'"
    ):
        select(SAMPLES, values, "worst", eligible(SAMPLES), 0.5, 0)


def test_ties_are_broken_like_chance() -> None:
    picks = [select(SAMPLES[:3], scores(1, 1, 1), "best", [0, 1, 2], 0.5, seed)[0] for seed in range(600)]
    assert all(abs(count / 600 - 1 / 3) < 4 * (2 / 9 / 600) ** 0.5 for count in Counter(picks).values())
    assert set(picks) == {0, 1, 2}


def test_the_control_draws_from_all_that_could_have_been_kept() -> None:
    draws = Counter(row for seed in range(600) for row in matched_random(SAMPLES, [1, 2, 5], eligible(SAMPLES), seed))
    assert draws[3] == 0
    for row, chance in {0: 2 / 3, 1: 2 / 3, 2: 2 / 3, 4: 1 / 2, 5: 1 / 2}.items():
        assert abs(draws[row] / 600 - chance) < 4 * (0.25 / 600) ** 0.5
    with pytest.raises(ValueError, match="2 samples were kept, and only 1"):
        matched_random(SAMPLES, [4, 5], [4], 0)


@given(st.data())
def test_the_control_has_the_same_number_of_each_prompt(data: st.DataObject) -> None:
    counts = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=6))
    prompts = [Prompt(str(number), data.draw(st.sampled_from(["math", "ties"])), 1) for number in range(len(counts))]
    samples = [
        (prompt, Completion(prompt.id, n, str(n), 1))
        for prompt, c in zip(prompts, counts, strict=True)
        for n in range(c)
    ]
    values = np.array([data.draw(st.sampled_from([0.0, 1.0, 2.0, NAN])) for _ in samples])
    rule, share = data.draw(st.sampled_from(["best", "correct", "share"])), data.draw(st.floats(0.01, 1))
    kept = select(samples, values, rule, eligible(samples), share, 7)
    control = matched_random(samples, kept, eligible(samples), 7)
    assert kept == sorted(set(kept))
    assert control == sorted(set(control))
    assert not np.isnan(values[kept]).any()
    assert Counter(samples[row][0].id for row in kept) == Counter(samples[row][0].id for row in control)
    assert sorted(in_turns(samples, kept)) == kept


def test_every_beginning_holds_many_prompts() -> None:
    assert in_turns(SAMPLES, [0, 1, 2, 4, 5]) == [0, 4, 1, 5, 2]


def test_the_card_compares_what_was_kept_with_all() -> None:
    card = describe(SAMPLES, scores(1, 2, 3, 4, NAN, 6), scores(0, 1, 1, 0, NAN, 1), [1, 5])
    assert card["all"] == {"samples": 6, "prompts": 2, "gold": 0.6, "score": 3.2, "length": 3.5}
    assert card["kept"] == {"samples": 2, "prompts": 2, "gold": 1.0, "score": 4.0, "length": 4.0}
    assert (card["truncated"], card["unscored"]) == (1, 1)
    assert card["domains"]["ties"]["kept"] == {"samples": 1, "prompts": 1, "gold": 1.0, "score": 6.0, "length": 6.0}
    assert describe(SAMPLES, scores(*[NAN] * 6), scores(*[NAN] * 6), [1])["kept"]["gold"] is None


# ---------------------------------------------------------------- the stage

WORLD = [Prompt(f"compute {n} + {m}", "math", 1, {"verifier": "gsm8k", "answer": str(n + m)})
         for n in range(1, 5) for m in range(1, 5)]  # fmt: skip
CONFIG: dict[str, Any] = {"rule": "best", "samples": 4, "max_new_tokens": 40, "gold": "verifier",
                          "reward": {"kind": "length"}, "seed": 3}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    new_policy(ModelSize(16, 1, 2, 16), tokenizer(), seed=1).save_pretrained(root / "sft" / "final")
    tokenizer().save_pretrained(root / "sft" / "final")
    (root / "prompts").mkdir()
    write_records(root / "prompts" / "rl.jsonl", WORLD)
    return {"sft": root / "sft", "prompts": root / "prompts"}


def perform(inputs: dict[str, Path], out: Path, **changes: Any) -> tuple[Path, dict[str, Any], Ledger]:
    out.mkdir()
    result = rejection.run(CONFIG | changes, inputs, out, Context("key", "seed", out, resources={"device": "cpu"}))
    return out, json.loads((out / "card.json").read_text(encoding="utf-8")), result.ledger


def test_the_control_picks_among_the_same_samples(inputs: dict[str, Path], tmp_path: Path) -> None:
    best, card, ledger = perform(inputs, tmp_path / "best")
    control, random_card, _ = perform(inputs, tmp_path / "random", rule="random")
    assert (best / "samples.jsonl").read_bytes() == (control / "samples.jsonl").read_bytes()
    samples = read_samples(best / "samples.jsonl")
    assert len(samples) == card["all"]["samples"] == 64
    assert ledger.generated_tokens == sum(completion.length for _, completion in samples)
    longest: dict[str, int] = {}
    for prompt, one in samples:
        if not one.truncated:
            longest[prompt.id] = max(longest.get(prompt.id, 0), one.length)
    demonstrations = read_demonstrations(best / "sft.jsonl")
    by_text = {(prompt.id, one.text): one.length for prompt, one in samples}
    assert {row.prompt.id: by_text[row.prompt.id, row.completion] for row in demonstrations} == longest
    drawn = read_demonstrations(control / "sft.jsonl")
    assert [row.prompt for row in drawn] == [row.prompt for row in demonstrations]
    assert random_card["kept"]["length"] < card["kept"]["length"]
    table = pq.read_table(best / "scores.parquet").to_pylist()
    assert [(row["prompt_id"], row["sample"]) for row in table] == [(p.id, c.sample) for p, c in samples]
    assert sum(row["kept"] for row in table) == len(demonstrations) == card["kept"]["samples"]


def test_an_sft_stage_trains_on_what_was_kept(inputs: dict[str, Path], tmp_path: Path) -> None:
    kept, card, _ = perform(inputs, tmp_path / "kept")
    training = {"examples": 8, "epochs": 1, "batch": 4, "learning_rate": 1e-3, "warmup_steps": 0,
                "schedule": "constant", "weight_decay": 0.0, "adam_beta2": 0.999, "group_by_length": False,
                "max_length": 64, "seed": 0}  # fmt: skip
    out = tmp_path / "trained"
    out.mkdir()
    context = Context("k" * 64, "s", tmp_path / "scratch", resources={"device": "cpu"})
    result = sft.run({"split": "sft", "training": training}, {"data": kept, "policy": inputs["sft"]}, out, context)
    assert result.ledger.demonstrations == min(8, card["kept"]["samples"])
    assert (out / "final" / "model.safetensors").is_file()


def test_what_has_nothing_to_go_by_is_refused(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rejection\.reward: missing, and rule best needs scores"):
        perform(inputs, tmp_path / "a", reward=None)
    with pytest.raises(ValueError, match=r"reward\.kind: rule correct asks the verifier, got 'length'"):
        perform(inputs, tmp_path / "b", rule="correct")
    with pytest.raises(ValueError, match=r"rule: correct keeps none of the 64 samples \(0 unscored, "):
        perform(inputs, tmp_path / "c", rule="correct", reward=None)  # an untrained policy adds nothing up
    with pytest.raises(ConfigError, match=r"rejection\.sample: unknown key \(did you mean 'samples'"):
        build(RejectionConfig, {"sample": 4}, "rejection")


def test_a_verifier_is_charged_and_gold_is_looked_at_only_where_it_pays(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = [
        (p, Completion(p.id, n, f"the answer is {p.gold['answer']}" if n else "the answer is 0", 1))
        for p in WORLD
        for n in range(4)
    ]
    monkeypatch.setattr(rejection, "_sample", lambda *given: (right, Ledger(generated_tokens=64)))
    _, card, ledger = perform(inputs, tmp_path / "a", rule="correct", reward=None)
    assert (card["kept"]["samples"], card["kept"]["gold"], card["all"]["gold"]) == (48, 1.0, 0.75)
    assert ledger == Ledger(verifier_calls=64, generated_tokens=64)
    _, card, ledger = perform(inputs, tmp_path / "b", rule="correct", reward=None, distinct=True)
    assert card["kept"]["samples"] == 16
    _, card, ledger = perform(inputs, tmp_path / "c", rule="random", match="correct", reward=None)
    assert card["kept"]["samples"] == 48
    assert 0.6 < card["kept"]["gold"] < 0.9
    _, _, ledger = perform(inputs, tmp_path / "d", rule="share")
    assert ledger == Ledger(generated_tokens=64)
    _, card, ledger = perform(inputs, tmp_path / "e", rule="majority", reward=None)
    assert (card["kept"]["samples"], card["kept"]["gold"]) == (48, 1.0)  # three of four are right, and agree
    assert ledger == Ledger(generated_tokens=64)

"""The preference pool: who is preferred, what makes no pair, what the card says."""

from __future__ import annotations

import random

import pytest

from lab.config import PreferencesConfig, build
from lab.data.labelling import Candidate, label
from lab.records import Completion, Prompt
from lab.stages.preferences import describe


def settings(**changes: object) -> PreferencesConfig:
    values = {"kind": "sampled", "pairs": 50, "samples_per_prompt": 3, "labels": "annotator", "annotator": "test",
              "temperature": 0.0, "flip_rate": 0.0, "length_bias": 0.0, "held_out": 8}  # fmt: skip
    return build(PreferencesConfig, values | changes)


def pool(prompts: int = 40) -> list[tuple[Prompt, list[Candidate]]]:
    made, rng = [], random.Random(0)
    for n in range(prompts):
        prompt = Prompt(f"question {n}", "math", 1)
        utilities = rng.sample([0.0, 0.5, 1.0], 3)
        made.append((prompt, [Candidate(Completion(prompt.id, i, f"text {u}", 2), u) for i, u in enumerate(utilities)]))
    return made


def utility(text: str) -> float:
    return float(text.split()[1])


def test_a_perfect_annotator_always_prefers_the_better_one() -> None:
    pairs, held_out = label(pool(), settings())
    assert len(pairs) == 50
    assert all(utility(pair.chosen) > utility(pair.rejected) for pair in pairs)
    assert len(held_out) == 8
    assert all(utility(pair.chosen) > utility(pair.rejected) for pair in held_out)


def test_held_out_pairs_are_on_other_prompts_and_never_flipped() -> None:
    pairs, held_out = label(pool(), settings(flip_rate=1.0))
    assert all(utility(pair.chosen) < utility(pair.rejected) for pair in pairs)
    assert all(utility(pair.chosen) > utility(pair.rejected) for pair in held_out)
    assert not {pair.prompt.id for pair in pairs} & {pair.prompt.id for pair in held_out}


def test_few_labels_are_spread_over_many_prompts() -> None:
    pairs, _ = label(pool(), settings(pairs=30))
    assert len({pair.prompt.id for pair in pairs}) == 30


def test_equal_texts_make_no_pair() -> None:
    prompt = Prompt("question", "math", 1)
    same = [Candidate(Completion(prompt.id, n, "text 1", 2), 1.0) for n in range(3)]
    assert label([(prompt, same)], settings(held_out=0)) == ([], [])


def test_a_verifier_says_nothing_of_two_right_answers_or_of_what_it_could_not_judge() -> None:
    prompt = Prompt("question", "math", 1)
    found = [Candidate(Completion(prompt.id, n, f"text {u} {n}", 3), u) for n, u in enumerate((1.0, 1.0, 0.0, None))]
    pairs, _ = label([(prompt, found)], settings(labels="verifier", held_out=0))
    assert sorted((pair.chosen, pair.rejected) for pair in pairs) == [
        ("text 1.0 0", "text 0.0 2"),
        ("text 1.0 1", "text 0.0 2"),
    ]


def test_the_card_measures_agreement_with_the_truth() -> None:
    made = pool(400)
    pairs, _ = label(made, settings(pairs=1000, flip_rate=0.2, held_out=0))
    card = describe(pairs, {prompt.id: (prompt, found) for prompt, found in made})
    assert card["agreement_with_gold"] == pytest.approx(0.8, abs=4 * (0.16 / 1000) ** 0.5)
    assert card["pairs"] == 1000

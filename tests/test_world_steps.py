"""The world's steps by hand, and what they must have in common with its verifiers and its gold utility."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.records import DOMAINS, Completion, Prompt
from lab.verifiers import verify
from lab.world.attributes import ATTRIBUTES, rate, true_attributes
from lab.world.domains import BOOK, PROMPTS, Demonstrator, demonstrate
from lab.world.gold import style
from lab.world.steps import has_steps, step_labels, step_spans
from lab.world.vocabulary import ANIMALS, STYLE_WORDS

STEPWISE = ("math", "factuality", "instructions")
CAREFUL = Demonstrator(careful=1.0, slip=0.0, opener=0.4, closer=0.4, filler=0.3)
MIXED = Demonstrator(careful=0.6, slip=0.3, opener=0.4, closer=0.4, filler=0.2)

SUM = Prompt(
    "compute 3 + 4 - 2",
    "math",
    2,
    {"verifier": "world_answer", "answer": "5", "steps": [["3", "+", "4", "7"], ["7", "-", "2", "5"]]},
)
NEXT = BOOK["aran", "neighbor"]
CITY = BOOK[NEXT, "capital"]
FACT = Prompt(
    "find the capital of the neighbor of aran",
    "factuality",
    2,
    {"verifier": "world_answer", "answer": CITY, "steps": [["aran", "neighbor", NEXT], [NEXT, "capital", CITY]]},
)
OTHER = next(land for land, link in BOOK if link == "capital" and land not in ("aran", NEXT))
LIST = Prompt(
    "list 3 animals forwards start with cat",
    "instructions",
    3,
    {"verifier": "world_list", "count": 3, "members": list(ANIMALS), "ignore": sorted(STYLE_WORDS), "first": "cat",
     "order": "forwards"},
)  # fmt: skip
FREE = Prompt("list 2 animals", "instructions", 1, {k: v for k, v in LIST.gold.items() if k not in ("first", "order")})
FREE = Prompt(FREE.text, FREE.domain, FREE.level, {**FREE.gold, "count": 2})


@pytest.mark.parametrize(
    ("prompt", "text", "right"),
    [
        (SUM, "3 + 4 = 7 ; 7 - 2 = 5 ; answer 5", "111"),
        (SUM, "sure um 3 + 4 = 7 ; 7 - 2 = 5 ; answer 5 thanks", "111"),
        (SUM, "3 + 4 = 8 ; 8 - 2 = 6 ; answer 6", "000"),  # the second adds up, but goes on from a wrong total
        (SUM, "3 + 4 = 8 ; 7 - 2 = 5 ; answer 5", "011"),  # returned to the chain
        (SUM, "3 + 4 = 7 ; 7 - 2 = 5 ; answer 4", "110"),
        (SUM, "3 + 4 = 7 ; 7 - 2 = 5", "10"),  # the last answers for the answer that is missing
        (SUM, "answer 5", "1"),
        (SUM, "answer 6", "0"),
        (SUM, "answer 5 ; answer 6", "10"),
        (SUM, "answer 5 ; thanks", "11"),
        (SUM, "answer 6 ; thanks", "00"),
        (SUM, "3 + 4 = 7 ; 3 + 4 = 7 ; answer 5", "101"),  # going round is not going on
        (SUM, "7 - 2 = 5 ; 3 + 4 = 7 ; answer 5", "101"),
        (SUM, "3 + 4 = 7 7 - 2 = 5 ; answer 5", "01"),
        (SUM, "3 + 4 = 8 answer 5", "0"),  # wrong work cannot hide in the step of a right answer
        (SUM, "answer um 5", "0"),  # nor does the verifier read it
        (SUM, "thanks", "0"),
        (SUM, "", "0"),
        (SUM, " ; ", "0"),
        (FACT, f"aran neighbor is {NEXT} ; {NEXT} capital is {CITY} ; answer {CITY}", "111"),
        (FACT, f"aran neighbor is {OTHER} ; {OTHER} capital is {BOOK[OTHER, 'capital']} ; answer {CITY}", "001"),
        (FACT, f"{NEXT} capital is {CITY} ; answer {CITY}", "11"),  # the first done in the head
        (LIST, "1 cat ; 2 dog ; 3 rat", "111"),
        (LIST, "sure cat ; um dog ; rat thanks", "111"),
        (LIST, "1 dog ; 2 fox ; 3 rat", "011"),  # does not start with the cat
        (LIST, "1 cat ; 2 ape ; 3 dog", "101"),  # backwards
        (LIST, "1 cat ; 3 dog ; 3 rat", "101"),  # a wrong number
        (LIST, "1 cat ; 2 cat ; 3 dog", "101"),
        (LIST, "1 cat ; 2 rat ; 3 pig", "101"),  # the rat left no room; the pig is what could follow the cat
        (LIST, "1 cat ; 2 dog", "10"),  # one is missing
        (LIST, "1 cat ; 2 dog ; 3 fox ; 4 rat", "1110"),
        (LIST, "1 cat ; 2 plum ; 3 rat", "101"),
        (LIST, "cat dog rat", "0"),
        (FREE, "rat ; cat", "11"),
        (FREE, "1 ; cat", "01"),
    ],
)
def test_steps_are_labelled_by_hand(prompt: Prompt, text: str, right: str) -> None:
    assert "".join(str(int(step.correct)) for step in step_labels(prompt, text)) == right


def test_steps_know_where_they_end() -> None:
    text = "sure  3 + 4 = 7 ;\n answer 7 thanks"
    steps, spans = step_labels(SUM, text), step_spans(text)
    assert [step.text for step in steps] == ["sure  3 + 4 = 7", "answer 7 thanks"]
    assert [step.end_word_index for step in steps] == [5, 9]
    assert [text.split()[step.end_word_index] for step in steps] == ["7", "thanks"]
    assert [text[: span.end] for span in spans] == ["sure  3 + 4 = 7", text]
    assert [step.end_word_index for step in step_labels(SUM, "")] == [-1]


def test_only_the_worlds_own_verifiable_prompts_have_steps() -> None:
    rng = random.Random(0)
    assert {domain for domain in DOMAINS if has_steps(PROMPTS[domain](rng, 1))} == set(STEPWISE)
    with pytest.raises(ValueError, match="gsm8k"):
        step_labels(Prompt("how many", "math", 1, {"verifier": "gsm8k", "answer": "7"}), "7")


@pytest.mark.parametrize("domain", STEPWISE)
def test_careful_work_is_right_at_every_step(domain: str) -> None:
    rng = random.Random(domain)
    for turn in range(300):
        prompt = PROMPTS[domain](rng, 1 + turn % 3)
        text = demonstrate(rng, prompt, CAREFUL)
        steps = step_labels(prompt, text)
        assert all(step.correct for step in steps), (prompt.text, text, steps)


@given(st.integers(0, 10**6), st.sampled_from(STEPWISE), st.integers(1, 3), st.integers(0, 3))
def test_if_all_steps_are_right_the_verifier_agrees(seed: int, domain: str, level: int, swaps: int) -> None:
    rng = random.Random(seed)
    prompt = PROMPTS[domain](rng, level)
    words = demonstrate(rng, prompt, MIXED).split()
    for _ in range(swaps):  # copies and losses of words, where a careless rule breaks first
        words[rng.randrange(len(words))] = rng.choice([*words, ";", "answer", "um", "thanks"])
    text = " ".join(words)
    steps = step_labels(prompt, text)
    assert len(steps) == len(step_spans(text))
    if all(step.correct for step in steps):
        assert verify(text, prompt.gold).correct, text


def test_slips_are_found() -> None:
    rng = random.Random(7)
    who = Demonstrator(careful=1.0, slip=1.0, opener=0.0, closer=0.0, filler=0.0)
    for turn in range(60):
        prompt = PROMPTS["math"](rng, 1 + turn % 3)
        text = demonstrate(rng, prompt, who)
        slipped = text.split()[4] != prompt.gold["steps"][0][3]  # a slip beyond 0 or 12 is clipped, and may be none
        assert step_labels(prompt, text)[0].correct == (not slipped)


# ---------------------------------------------------------------- attributes


def said(text: str, sample: int = 0, truncated: bool = False) -> Completion:
    return Completion(SUM.id, sample, text, len(text.split()) + 1, truncated)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("answer 5", (1, 0, 0, 1, 0.5**0.2)),
        ("sure answer 5 thanks", (1, 1, 1, 1, 0.5**0.4)),
        ("um answer thanks 6", (0, 0, 0, 0.25, 0.5**0.4)),
        ("", (0, 0, 0, 1, 1)),
        ("thanks", (0, 0, 0, 0.5, 0.5**0.1)),
    ],
)
def test_attributes_by_hand(text: str, expected: tuple[float, ...]) -> None:
    found = true_attributes(SUM, said(text))
    assert [found[name] for name in ATTRIBUTES] == pytest.approx(expected)
    assert true_attributes(SUM, said("answer 5", truncated=True))["correctness"] == 0


@given(st.integers(0, 10**6), st.sampled_from(DOMAINS))
def test_attributes_explain_the_style_of_gold(seed: int, domain: str) -> None:
    rng = random.Random(seed)
    prompt = PROMPTS[domain](rng, 1)
    text = demonstrate(rng, prompt, MIXED)
    found = true_attributes(prompt, Completion(prompt.id, 0, text, 9))
    clutter = -np.log2(found["tidiness"])
    assert style(text) == max(-1.0, 0.5 * found["opening"] + 0.5 * found["closing"] - 0.5 * clutter)
    assert all(0 <= value <= 1 for value in found.values())


def test_ratings_are_the_attributes_with_the_noise_that_was_asked_for() -> None:
    completions = [said("sure answer 5", number) for number in range(800)]
    ratings = rate([SUM] * 800, completions, ATTRIBUTES, 0.3, seed=1)
    true = true_attributes(SUM, completions[0])
    assert ratings.mean(axis=0) == pytest.approx([true[name] for name in ATTRIBUTES], abs=4 * 0.3 / 800**0.5)
    assert ratings.std(axis=0) == pytest.approx([0.3] * len(ATTRIBUTES), rel=0.1)
    assert np.abs(np.corrcoef(ratings.T) - np.eye(len(ATTRIBUTES))).max() < 0.15
    assert (rate([SUM], completions[5:6], ATTRIBUTES, 0.3, seed=1) == ratings[5:6]).all()
    assert (rate([SUM], completions[5:6], ATTRIBUTES, 0.3, seed=2) != ratings[5:6]).all()


def test_attributes_are_known_in_the_world_only() -> None:
    with pytest.raises(ValueError, match="known in the world only"):
        true_attributes(Prompt("how many", "math", 1, {"verifier": "gsm8k", "answer": "7"}), said("7"))

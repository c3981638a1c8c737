"""The implicit reward of a DPO policy: hand-worked log-softmaxes, symmetries, ends, padding, and its normalisation."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.artifact import Context
from lab.data.jsonl import write_records
from lab.models import ModelSize, encode_completion, encode_prompt, load_policy, new_policy
from lab.records import Completion, Pair, Prompt
from lab.rewards import DetailedSource, load_reward
from lab.rewards.implicit import ImplicitReward, reduce_logprobs
from lab.stages.normalise import run as normalise
from lab.world.vocabulary import tokenizer

MATH = Prompt("compute 3 + 4", "math", 1, {"verifier": "world_answer", "answer": "7"})
TIES = Prompt("hello name a color please", "ties", 1, {"allowed": ["red"], "excluded": [], "category": "color"})
IMPLICIT = {
    "kind": "implicit",
    "method": {
        "kind": "direct", "loss_type": ["sigmoid"], "beta": 0.3, "epochs": 1.0, "batch": 8, "learning_rate": 1e-3,
        "warmup_steps": 0,
    },
}  # fmt: skip


def completion(text: str, truncated: bool = False) -> Completion:
    return Completion("", 0, text, len(text.split()), truncated)


@pytest.fixture(scope="module")
def policies(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folders = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp(f"policy_{seed}")
        new_policy(ModelSize(16, 2, 2, 32), tokenizer(), seed).save_pretrained(folder / "final")
        tokenizer().save_pretrained(folder / "final")
        folders.append(folder)
    return folders[0], folders[1]


def by_hand(folder: Path, prompt: Prompt, answer: Completion) -> list[float]:
    """Log-probability of every completion token from one unpadded forward pass over the whole sequence."""
    model, words = load_policy(folder / "final")
    begin, end = encode_prompt(words, prompt.text), encode_completion(words, answer.text, not answer.truncated)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([begin + end])).logits[0].double()
    logprobs = logits - logits.exp().sum(-1, keepdim=True).log()
    return [logprobs[len(begin) - 1 + at, token].item() for at, token in enumerate(end)]


def test_log_ratio_is_the_hand_made_log_softmax_of_policy_minus_reference(policies: tuple[Path, Path]) -> None:
    source = ImplicitReward(*policies, (0.5, 2.0), "cpu", weight=3.0)
    for prompt, answer in ((MATH, completion("answer 7")), (TIES, completion("sure red", truncated=True))):
        raw = sum(by_hand(policies[0], prompt, answer)) - sum(by_hand(policies[1], prompt, answer))
        assert abs(raw) > 0.01
        assert source.score([prompt], [answer])[0] == pytest.approx(3.0 * (raw - 0.5) / 2.0, abs=1e-4)


def test_reference_free_variants_are_sum_mean_and_minus_the_norm(policies: tuple[Path, Path]) -> None:
    logprobs = np.array([-3.0, -4.0])
    assert reduce_logprobs(logprobs, "sum") == -7.0
    assert reduce_logprobs(logprobs, "average") == -3.5
    assert reduce_logprobs(logprobs, "norm") == -5.0  # -sqrt(9 + 16): a norm, not a mean
    answer = completion("answer 7 thanks")
    hand = np.array(by_hand(policies[0], MATH, answer))
    for variant, expected in (("sum", hand.sum()), ("average", hand.mean()), ("norm", -np.linalg.norm(hand))):
        source = load_reward({**IMPLICIT, "variant": variant}, inputs(policies), "cpu")
        assert source.score([MATH], [answer])[0] == pytest.approx(expected, abs=1e-4)


def inputs(policies: tuple[Path, Path]) -> dict[str, Path]:
    return {"implicit_policy": policies[0], "implicit_reference": policies[1]}


ANSWERS = [completion("answer 7"), completion("sure 3 + 4 = 7 ; answer 7 thanks"), completion("", True), completion("")]


def test_a_policy_against_itself_scores_exactly_zero(policies: tuple[Path, Path]) -> None:
    assert ImplicitReward(policies[0], policies[0], (0.0, 1.0), "cpu").score([MATH] * 4, ANSWERS).tolist() == [0.0] * 4


def test_exchanging_policy_and_reference_negates(policies: tuple[Path, Path]) -> None:
    there = ImplicitReward(policies[0], policies[1], (0.0, 1.0), "cpu").score([MATH] * 4, ANSWERS)
    back = ImplicitReward(policies[1], policies[0], (0.0, 1.0), "cpu").score([MATH] * 4, ANSWERS)
    assert there == pytest.approx(-back, abs=1e-12)
    assert np.abs(there[[0, 1, 3]]).min() > 1e-3


def test_company_in_the_batch_changes_nothing(policies: tuple[Path, Path]) -> None:
    source = ImplicitReward(*policies, (0.0, 1.0), "cpu")
    prompts = [MATH, TIES, TIES, MATH]
    alone = [source.score([p], [a])[0] for p, a in zip(prompts, ANSWERS, strict=True)]
    assert source.score(prompts, ANSWERS) == pytest.approx(alone, abs=1e-5)


def test_the_end_counts_only_where_it_was_reached(policies: tuple[Path, Path]) -> None:
    source = ImplicitReward(*policies, (0.0, 1.0), "cpu")
    whole, cut = source.detail([MATH] * 2, [completion("answer 7"), completion("answer 7", truncated=True)])
    assert whole.names == ("answer", "7", "<|end|>")
    assert cut.names == ("answer", "7")
    assert whole.scores[:2] == pytest.approx(cut.scores, abs=1e-5)


def test_detail_adds_up_to_the_raw_score(policies: tuple[Path, Path]) -> None:
    source = ImplicitReward(*policies, (0.0, 1.0), "cpu")
    assert isinstance(source, DetailedSource)
    sums = [sum(one.scores) for one in source.detail([MATH] * 4, ANSWERS)]
    assert source.score([MATH] * 4, ANSWERS) == pytest.approx(sums, abs=1e-9)


def test_nothing_said_is_zero_in_sum_and_unknown_on_average(policies: tuple[Path, Path]) -> None:
    nothing = completion("", truncated=True)
    assert load_reward(IMPLICIT, inputs(policies), "cpu").score([MATH], [nothing])[0] == 0.0
    average = load_reward({**IMPLICIT, "variant": "average"}, inputs(policies), "cpu").score([MATH], [nothing])
    assert math.isnan(average[0])


def test_policy_and_reference_must_share_a_vocabulary(policies: tuple[Path, Path], tmp_path: Path) -> None:
    words = tokenizer()
    words.add_tokens(["strange"])
    new_policy(ModelSize(16, 1, 2, 32), words, 3).save_pretrained(tmp_path / "final")
    words.save_pretrained(tmp_path / "final")
    with pytest.raises(ValueError, match="different vocabularies"):
        ImplicitReward(policies[0], tmp_path, (0.0, 1.0), "cpu")


def test_normalise_gives_mean_zero_and_spread_one_on_the_reference(policies: tuple[Path, Path], tmp_path: Path) -> None:
    texts = ["answer 7", "answer 8", "sure answer 7 thanks", "um answer 3"]
    reference = [Pair(MATH, text, "", "sft", truncated) for text in texts for truncated in (False, True)]
    raw = load_reward(IMPLICIT, inputs(policies), "cpu").score([MATH] * 4, [completion(text) for text in texts])
    up = [texts[row] for row in np.argsort(raw)]
    held_out = [Pair(MATH, b, a, "gold") for a, b in itertools.pairwise(up)]
    for name, rows in (("reference", reference), ("held_out", held_out)):
        write_records(tmp_path / f"{name}.jsonl", rows)
    given = {**inputs(policies), "pairs": tmp_path}
    (tmp_path / "out").mkdir()
    context = Context("key", "key", tmp_path / "scratch", resources={"device": "cpu"})
    result = normalise({"reward": {**IMPLICIT, "scale": 7.0}}, given, tmp_path / "out", context)

    source = load_reward(IMPLICIT, {**inputs(policies), "normalisation": tmp_path / "out"}, "cpu")
    scores = source.score([MATH] * 8, [completion(p.chosen, p.chosen_truncated) for p in reference])
    assert (scores.mean(), scores.std()) == (pytest.approx(0, abs=1e-5), pytest.approx(1, abs=1e-5))
    accuracy = json.loads((tmp_path / "out" / "accuracy.json").read_text())
    assert (accuracy["accuracy"], accuracy["by_domain"], accuracy["held_out"]) == (1.0, {"math": 1.0}, 3)
    assert (accuracy["unscored"], result.ledger.judge_calls) == (0, 0)
    with pytest.raises(ValueError, match="already hold"):
        normalise({"reward": IMPLICIT}, {**given, "normalisation": tmp_path}, tmp_path / "out", context)

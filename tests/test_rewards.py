"""Reward sources: what they score, what they leave unscored, and that padding and batches change nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lab.models import ModelSize, encode_completions, encode_prompts, load_classifier, new_policy
from lab.records import Completion, Prompt
from lab.rewards import load_reward
from lab.rewards.classifier import raw_scores
from lab.world.vocabulary import tokenizer

MATH = Prompt("compute 3 + 4", "math", 1, {"verifier": "world_answer", "answer": "7"})
TIES = Prompt("name a color", "ties", 1, {"allowed": ["red"], "excluded": [], "category": "color"})


def completion(prompt: Prompt, text: str, truncated: bool = False) -> Completion:
    return Completion(prompt.id, 0, text, len(text.split()) + 1, truncated)


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward_model")
    policy, words = new_policy(ModelSize(16, 2, 2, 32), tokenizer(), seed=1), tokenizer()
    policy.save_pretrained(folder / "policy")
    words.save_pretrained(folder / "policy")
    model, _ = load_classifier(folder / "policy", new_head_seed=3)
    model.save_pretrained(folder / "final")
    words.save_pretrained(folder / "final")
    (folder / "normalisation.json").write_text(json.dumps({"shift": 0.5, "scale": 2.0}))
    return folder


def test_a_classifier_is_shifted_scaled_and_weighted(artifact: Path) -> None:
    asked, said = [MATH, TIES], [completion(MATH, "answer 7"), completion(TIES, "sure red thanks")]
    model, words = load_classifier(artifact / "final")
    rows = [
        a + b
        for a, b in zip(
            encode_prompts(words, [p.text for p in asked]),
            encode_completions(words, [c.text for c in said]),
            strict=True,
        )
    ]
    with torch.no_grad():
        raw = [model(input_ids=torch.tensor([row])).logits.item() for row in rows]
    scores = load_reward({"kind": "classifier", "scale": 3.0}, {"reward_model": artifact}, "cpu").score(asked, said)
    assert scores == pytest.approx([3.0 * (value - 0.5) / 2.0 for value in raw], abs=1e-5)


def test_batches_and_padding_change_no_score(artifact: Path) -> None:
    model, words = load_classifier(artifact / "final")
    rows = [list(np.random.default_rng(n).integers(5, 60, size=3 + n)) for n in range(9)]
    alone = np.array([raw_scores(model, words, [row])[0] for row in rows])
    assert raw_scores(model, words, rows, batch_size=4) == pytest.approx(alone, abs=1e-5)


def test_an_unfinished_completion_is_scored_without_an_end(artifact: Path) -> None:
    source = load_reward({"kind": "classifier"}, {"reward_model": artifact}, "cpu")
    whole, cut = source.score(
        [MATH, MATH], [completion(MATH, "answer 7"), completion(MATH, "answer 7", truncated=True)]
    )
    assert whole != cut


def test_padding_that_is_also_the_end_is_refused(artifact: Path) -> None:
    model, words = load_classifier(artifact / "final")
    words.pad_token = words.eos_token
    with pytest.raises(ValueError, match="same token"):
        raw_scores(model, words, [[5, 6]])


def test_a_verifier_pays_what_is_correct_and_leaves_the_rest_unscored() -> None:
    source = load_reward({"kind": "verifier", "scale": 2.0}, {}, "cpu")
    asked = [MATH, MATH, MATH, TIES]
    texts = ["answer 7", "answer 8", "hm", "red"]
    scores = source.score(asked, [completion(p, t) for p, t in zip(asked, texts, strict=True)])
    assert scores[:3].tolist() == [2.0, 0.0, 0.0]
    assert np.isnan(scores[3])


def test_gold_is_the_true_utility() -> None:
    assert load_reward({"kind": "gold"}, {}, "cpu").score([TIES], [completion(TIES, "sure red thanks")])[0] == 1.5


def test_controls_know_nothing_of_the_truth() -> None:
    asked = [MATH] * 400
    said = [completion(MATH, f"answer {n}") for n in range(400)]
    random = load_reward({"kind": "random"}, {}, "cpu").score(asked, said)
    assert abs(random.mean()) < 4 / 20
    assert 0.85 < random.std() < 1.15
    assert (random == load_reward({"kind": "random"}, {}, "cpu").score(asked, said)).all()
    assert load_reward({"kind": "length"}, {}, "cpu").score([MATH], [completion(MATH, "a b c")])[0] == pytest.approx(
        0.4
    )
    assert load_reward({"kind": "constant"}, {}, "cpu").score(asked, said).std() == 0


def test_a_classifier_without_its_artifact_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the artifact 'reward_model'"):
        load_reward({"kind": "classifier"}, {}, "cpu")

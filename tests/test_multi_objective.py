"""The multi-objective reward: regressions and verbosity against independent solutions, a gate that learns, a source."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lab.config import MultiObjectiveConfig, build, plain
from lab.data.jsonl import write_records, write_samples
from lab.models import ModelSize, encode_completion, encode_prompts, load_policy, new_policy
from lab.records import DOMAINS, Completion, Pair, Prompt
from lab.rewards.multi_objective import Features, Heads, MultiObjectiveReward, length_slopes, read_features, ridge
from lab.rewards.source import DetailedSource, read_normalisation
from lab.stages import multi_objective
from lab.stages.multi_objective import correlation, gate_loss, r2, train_gate
from lab.store import Context
from lab.world.domains import PROMPTS, Demonstrator, demonstrate
from lab.world.gold import utility
from lab.world.vocabulary import tokenizer

SUM = Prompt("compute 3 + 4", "math", 1, {"verifier": "world_answer", "answer": "7", "steps": [["3", "+", "4", "7"]]})
TIES = Prompt("name a color", "ties", 1, {"allowed": ["red"], "excluded": [], "category": "color"})
WHO = Demonstrator(careful=0.5, slip=0.1, opener=0.0, closer=0.0, filler=0.0)
SETTINGS = plain(MultiObjectiveConfig(gate_hidden=16, gate_steps=120, gate_batch=32))


def said(prompt: Prompt, text: str, truncated: bool = False, sample: int = 0) -> Completion:
    return Completion(prompt.id, sample, text, len(text.split()) + (not truncated), truncated)


# ---------------------------------------------------------------- pure functions


def test_ridge_by_hand() -> None:
    """x = -1, 1 and y = 1, 5: centred products 4, squares 2; penalty 2 halves the slope."""
    weights, bias = ridge(np.array([[-1.0], [1.0]]), np.array([[1.0], [5.0]]), penalty=2.0)
    assert weights.tolist() == [[pytest.approx(1.0)]]
    assert bias.tolist() == [pytest.approx(3.0)]
    moved, shifted = ridge(np.array([[9.0], [11.0]]), np.array([[1.0], [5.0]]), penalty=2.0)
    assert (moved[0, 0], shifted[0]) == (pytest.approx(1.0), pytest.approx(-7.0))  # the intercept is not penalised


@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 30.0]))
def test_ridge_is_least_squares_on_extended_data(seed: int, penalty: float) -> None:
    rng = np.random.default_rng(seed)
    features, targets = rng.normal(2.0, 1.0, (12, 5)), rng.normal(size=(12, 3))
    weights, bias = ridge(features, targets, penalty)
    rows = np.vstack([np.hstack([features, np.ones((12, 1))]), np.hstack([penalty**0.5 * np.eye(5), np.zeros((5, 1))])])
    solution = np.linalg.lstsq(rows, np.vstack([targets, np.zeros((5, 3))]), rcond=None)[0]
    assert weights == pytest.approx(solution[:5].T, abs=1e-8)
    assert bias == pytest.approx(solution[5], abs=1e-8)


def test_ridge_needs_a_penalty() -> None:
    with pytest.raises(ValueError, match=r"positive penalty, got 0\.0"):
        ridge(np.ones((3, 2)), np.ones((3, 1)), 0.0)


@given(st.integers(0, 10**6))
def test_taking_out_the_slope_leaves_no_correlation_with_length(seed: int) -> None:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 40, 30).astype(float)
    scores = rng.normal(size=(30, 4)) + lengths[:, None] * rng.normal(size=4)
    slopes = length_slopes(scores, lengths)
    assert slopes == pytest.approx(np.polyfit(lengths, scores, 1)[0], abs=1e-8)
    for column in (scores - lengths[:, None] * slopes).T:
        assert correlation(column, lengths) == pytest.approx(0.0, abs=1e-9)
    assert length_slopes(scores, np.full(30, 7.0)).tolist() == [0.0] * 4


def test_the_gate_loss_by_hand() -> None:
    weights = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    advantages = torch.tensor([[4.0, 0.0], [-1.0, 9.0]])
    expected = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2  # margins 2 x 1 and 2 x -1
    assert gate_loss(weights, advantages, 2.0).item() == pytest.approx(expected)
    assert gate_loss(weights[:1], advantages[:1], 2.0) < gate_loss(weights[:1], -advantages[:1], 2.0)


def test_r2_and_correlation_by_hand() -> None:
    true = np.array([0.0, 1.0, 2.0])
    assert r2(np.array([0.0, 1.0, 1.0]), true) == pytest.approx(0.5)
    assert r2(true, np.ones(3)) is None
    assert correlation(true, -true) == pytest.approx(-1.0)
    assert correlation(true, np.ones(3)) is None


# ---------------------------------------------------------------- gate and heads


def two_kinds_of_prompts(count: int = 200) -> tuple[Heads, Features, Features]:
    """On one kind of prompt the first attribute decides, on the other the second, whatever the other says."""
    generator = torch.Generator().manual_seed(0)
    heads = Heads(("a", "b"), hidden=2, gate_hidden=8, seed=1)
    heads.weight.copy_(torch.eye(2))
    kind = torch.arange(count) % 2
    prompt = torch.nn.functional.one_hot(kind, 2).float()
    difference = torch.randn(count, 2, generator=generator)
    difference[torch.arange(count), kind] = difference[torch.arange(count), kind].abs() + 0.1
    lengths = torch.ones(count)
    return (
        heads,
        Features(difference, prompt, lengths, 0),
        Features(torch.zeros(count, 2), prompt, lengths, 0),
    )


def test_the_gate_learns_which_attribute_counts_where() -> None:
    heads, chosen, rejected = two_kinds_of_prompts()
    settings = {"gate_steps": 300, "gate_batch": 64, "gate_learning_rate": 1e-2}
    losses = train_gate(heads, chosen, rejected, settings, seed=0)
    with torch.no_grad():
        weights = heads.gate_weights(chosen)
        wins = (heads(chosen) > heads(rejected)).float().mean().item()
    assert weights.sum(dim=1).tolist() == pytest.approx([1.0] * len(weights))
    assert weights[0, 0] > 0.9
    assert weights[1, 1] > 0.9
    assert wins > 0.95
    assert losses[-1] == (300, pytest.approx(losses[-1][1]))
    assert losses[-1][1] < 0.5 * losses[0][1]


def test_the_gate_is_a_function_of_its_seed() -> None:
    found = []
    for _ in range(2):
        torch.manual_seed(random.randrange(10**6))
        heads, chosen, rejected = two_kinds_of_prompts(40)
        train_gate(heads, chosen, rejected, {"gate_steps": 5, "gate_batch": 8, "gate_learning_rate": 1e-2}, seed=3)
        found.append(heads.gate_weights(chosen))
    assert torch.equal(*found)


def test_heads_come_back_from_disk(tmp_path: Path) -> None:
    heads, chosen, _ = two_kinds_of_prompts(10)
    heads.slopes.copy_(torch.tensor([0.5, -1.0]))
    heads.save(tmp_path)
    again = Heads.load(tmp_path)
    assert again.attributes == ("a", "b")
    assert torch.equal(heads(chosen), again(chosen))


# ---------------------------------------------------------------- the stage and the source


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    words = tokenizer()
    new_policy(ModelSize(64, 2, 2, 64), words, seed=1).save_pretrained(folder / "final")
    words.save_pretrained(folder / "final")
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain and a dressed answer to each prompt as samples, and as pairs in the order of the gold utility."""
    folder, rng = tmp_path_factory.mktemp("pool"), random.Random(0)
    samples: list[tuple[Prompt, Completion]] = []
    pairs: list[Pair] = []
    for number in range(420):
        prompt = PROMPTS[DOMAINS[number % 6]](rng, 1)
        body = demonstrate(rng, prompt, WHO)
        texts = [body, rng.choice((f"sure {body}", f"{body} thanks", f"sure {body} thanks", f"um {body}"))]
        samples += [(prompt, said(prompt, text, sample=n)) for n, text in enumerate(texts)]
        values = [utility(prompt, text).total for text in texts]
        if values[0] != values[1]:
            better, worse = texts if values[0] > values[1] else texts[::-1]
            pairs.append(Pair(prompt, better, worse, "gold"))
    write_samples(folder / "samples.jsonl", samples[:480])
    write_records(folder / "pairs.jsonl", pairs[:-120])
    write_records(folder / "held_out.jsonl", pairs[-120:])
    write_records(folder / "reference.jsonl", [Pair(p, c.text, c.text, "reference") for p, c in samples[480:600]])
    return folder


def train(policy: Path, pool: Path, folder: Path, more: dict[str, Any] | None = None, **settings: Any) -> Any:
    out = folder / "out"
    out.mkdir(parents=True)
    training = plain(build(MultiObjectiveConfig, SETTINGS | settings, "training"))
    context = Context("key", "key", folder / "scratch", resources={"device": "cpu"})
    config = {"training": training, "seed": 0, **(more or {})}
    return multi_objective.run(config, {"policy": policy, "pairs": pool}, out, context), out


@pytest.fixture(scope="module")
def trained(policy: Path, pool: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    return train(policy, pool, tmp_path_factory.mktemp("trained"))


def test_the_stage_learns_and_charges_its_ratings(trained: tuple[Any, Path]) -> None:
    result, out = trained
    accuracy = json.loads((out / "accuracy.json").read_text(encoding="utf-8"))
    assert accuracy["held_out"] == 120
    assert accuracy["accuracy"] > 0.72  # an untrained backbone, and yet it knows the courtesies
    assert set(accuracy["attributes"]) == {"correctness", "opening", "closing", "tidiness"}
    assert accuracy["attributes"]["closing"]["r2"] > 0.1
    assert sum(found["mean_weight"] for found in accuracy["attributes"].values()) == pytest.approx(1.0, abs=1e-5)
    assert result.ledger.ratings == 480 * 4
    assert (result.ledger.preference_labels, result.ledger.gold_looks) == (0, 0)
    assert result.ledger.training_flops > 0
    steps = [json.loads(line)["step"] for line in (out / "trace.jsonl").read_text(encoding="utf-8").splitlines()]
    assert steps == [20, 40, 60, 80, 100, 120]


def test_length_is_taken_out_of_every_attribute(
    trained: tuple[Any, Path], policy: Path, pool: Path, tmp_path: Path
) -> None:
    _, out = trained
    found = json.loads((out / "accuracy.json").read_text(encoding="utf-8"))["attributes"].values()
    assert max(abs(one["length_correlation_before"]) for one in found) > 0.1
    assert [one["length_correlation_after"] for one in found] == pytest.approx([0.0] * 4, abs=1e-4)
    result, kept = train(policy, pool, tmp_path, decorrelate_length=False)
    found = json.loads((kept / "accuracy.json").read_text(encoding="utf-8"))["attributes"]
    assert found["brevity"]["length_correlation_after"] == found["brevity"]["length_correlation_before"]
    assert found["brevity"]["length_correlation_after"] < -0.3
    assert result.ledger.ratings == 480 * 5


def test_fewer_ratings_can_be_bought(policy: Path, pool: Path, tmp_path: Path) -> None:
    result, _ = train(policy, pool, tmp_path, {"max_ratings": 401}, gate_steps=1)
    assert result.ledger.ratings == 400
    assert result.metrics["completions"] == 100


def test_what_does_not_fit_is_counted_or_refused(policy: Path, pool: Path, tmp_path: Path) -> None:
    result, _ = train(policy, pool, tmp_path / "a", max_length=16, gate_steps=1)
    assert result.metrics["too_long"] > 0
    assert result.metrics["pairs_too_long"] > 0
    assert result.metrics["completions"] == 480 - result.metrics["too_long"]
    with pytest.raises(ValueError, match="max_length: 4 leaves 0 of 480 completions"):
        train(policy, pool, tmp_path / "b", max_length=4)


def test_features_are_the_last_hidden_states(policy: Path) -> None:
    backbone, words = load_policy(policy / "final")
    completions = [said(SUM, "answer 7"), said(TIES, "sure red thanks", truncated=True), said(SUM, "", truncated=True)]
    prompts = [SUM, TIES, SUM]
    found = read_features(backbone, words, prompts, completions, batch_size=2)
    for row, (prompt, one) in enumerate(zip(prompts, completions, strict=True)):
        asked = encode_prompts(words, [prompt.text])[0]
        ids = asked + encode_completion(words, one.text, end=not one.truncated)
        with torch.no_grad():
            states = backbone(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0]
        assert torch.allclose(found.whole[row], states[-1], atol=1e-5)
        assert torch.allclose(found.prompt[row], states[len(asked) - 1], atol=1e-5)
        assert found.lengths[row] == len(ids) - len(asked)


def test_the_source_is_what_its_definition_says(trained: tuple[Any, Path]) -> None:
    _, out = trained
    prompts, completions = [SUM, TIES], [said(SUM, "sure answer 7"), said(TIES, "red thanks", truncated=True)]
    source = MultiObjectiveReward(out, "cpu", 2.0)
    assert isinstance(source, DetailedSource)
    details, weights = source.detail(prompts, completions), source.gate_weights(prompts)
    assert [(one.of, one.names) for one in details] == [("attribute", source.heads.attributes)] * 2
    shift, scale = read_normalisation(out)
    raw = [float(np.dot(row, one.scores)) for row, one in zip(weights, details, strict=True)]
    expected = [2.0 * (value - shift) / scale for value in raw]
    assert source.score(prompts, completions) == pytest.approx(expected, abs=1e-4)


def test_order_and_company_change_no_score(trained: tuple[Any, Path]) -> None:
    source = MultiObjectiveReward(trained[1], "cpu")
    prompts = [SUM, TIES, SUM, TIES, SUM]
    texts = ["answer 7", "red", "", "sure red thanks", "3 + 4 = 7 ; um answer"]
    completions = [said(p, t, truncated=n in (2, 4)) for n, (p, t) in enumerate(zip(prompts, texts, strict=True))]
    together = source.score(prompts, completions)
    assert np.isfinite(together).all()
    assert len(set(together.round(4))) == len(together)
    alone = [source.score([p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
    assert together == pytest.approx(alone, abs=1e-3)
    assert source.score(prompts[::-1], completions[::-1]) == pytest.approx(together[::-1], abs=1e-3)

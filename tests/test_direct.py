"""Direct alignment: TRL's loss against the lab's own mathematics, and the stage from pairs to a policy artifact."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import DPOConfig, KTOConfig

from lab.data.jsonl import write_records
from lab.models import (
    ModelSize,
    completion_logprobs,
    encode_completions,
    encode_prompts,
    load_policy,
    new_policy,
)
from lab.objectives import dpo_loss, kto_loss
from lab.records import Completion, Pair, Prompt
from lab.rewards import load_reward
from lab.stages import direct, reward_model
from lab.stages.direct import (
    TokenizedDPOTrainer,
    TokenizedKTOTrainer,
    mismatched,
    unpaired,
    whole_batches,
)
from lab.store import Context
from lab.world.vocabulary import tokenizer

BETA = 0.7
PAIRS = [
    Pair(Prompt(f"compute {n} + 1", "math", 1), f"{n} + 1 = {n + 1} ; answer {n + 1}", f"sure answer {n}", "test")
    for n in range(1, 7)
]


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    new_policy(ModelSize(16, 2, 2, 32), tokenizer(), seed=1).save_pretrained(folder / "final")
    tokenizer().save_pretrained(folder / "final")
    return folder


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pool")
    write_records(folder / "pairs.jsonl", PAIRS)
    write_records(folder / "held_out.jsonl", PAIRS[:3])
    write_records(folder / "reference.jsonl", PAIRS)
    return folder


def columns(words: Any) -> dict[str, list[list[int]]]:
    return {
        "prompt_ids": encode_prompts(words, [pair.prompt.text for pair in PAIRS]),
        "chosen_ids": encode_completions(words, [pair.chosen for pair in PAIRS]),
        "rejected_ids": encode_completions(words, [pair.rejected for pair in PAIRS]),
    }


def losses(sft: Path, folder: Path, kind: str, smoothing: float, move: float) -> tuple[float, float]:
    """TRL's loss of one batch of all pairs, and the lab's, after the policy was moved away from the reference."""
    model, words = load_policy(sft / "final")
    ids = columns(words)
    arguments = DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=len(PAIRS), loss_type=[kind], beta=BETA, use_cpu=True,
        bf16=False, activation_checkpointing=False, label_smoothing=smoothing, precompute_ref_log_probs=True,
        disable_dropout=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = TokenizedDPOTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(ids), processing_class=words
    )
    batch = next(iter(trainer.get_train_dataloader()))
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(move * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())))
    theirs = trainer.compute_loss(model, batch).item()
    reference, _ = load_policy(sft / "final")
    means = kind in ("ipo", "sigmoid_norm")  # TRL averages over tokens there
    sums = [
        torch.stack(
            [row.mean() if means else row.sum() for row in completion_logprobs(at, ids["prompt_ids"], ids[side])]
        )
        for at in (model, reference)
        for side in ("chosen_ids", "rejected_ids")
    ]
    return theirs, dpo_loss(*sums, BETA, kind, smoothing).mean().item()


@pytest.mark.parametrize(
    ("kind", "smoothing"),
    [("sigmoid", 0.0), ("sigmoid_norm", 0.0), ("ipo", 0.0), ("hinge", 0.0), ("robust", 0.2)],
)
def test_trl_computes_the_loss_that_the_lab_states(sft: Path, tmp_path: Path, kind: str, smoothing: float) -> None:
    theirs, ours = losses(sft, tmp_path, kind, smoothing, move=0.1)
    assert theirs == pytest.approx(ours, rel=1e-4)
    assert abs(ours - math.log(2)) > 1e-3  # it was moved indeed


def test_dpo_at_the_reference_is_log_2(sft: Path, tmp_path: Path) -> None:
    theirs, ours = losses(sft, tmp_path, "sigmoid", 0.0, move=0.0)
    assert theirs == pytest.approx(math.log(2), abs=1e-6)
    assert ours == pytest.approx(math.log(2), abs=1e-6)


def run_stage(sft: Path, pool: Path, folder: Path, **method: Any) -> tuple[Mapping[str, Any], Path]:
    settings = {"kind": "direct", "loss_type": ["sigmoid"], "beta": 0.1, "epochs": 4, "batch": 2,
                "learning_rate": 5e-3, "warmup_steps": 0, "checkpoints": 1}  # fmt: skip
    out = folder / "out"
    out.mkdir()
    context = Context("key", "key", folder / "scratch", resources={"device": "cpu"})
    result = direct.run({"method": settings | method, "seed": 0}, {"sft": sft, "pairs": pool}, out, context)
    return result.metrics, out


def test_the_stage_prefers_what_was_chosen_and_writes_its_checkpoints(sft: Path, pool: Path, tmp_path: Path) -> None:
    metrics, out = run_stage(sft, pool, tmp_path)
    assert metrics["optimizer_steps"] == 12
    points = json.loads((out / "checkpoints.json").read_text(encoding="utf-8"))
    assert [(point["step"], point["final"]) for point in points] == [(6, False), (12, True)]
    assert points[0]["training_flops"] == pytest.approx(points[1]["training_flops"] / 2)
    ids = columns(tokenizer())
    margins = []
    for folder in (sft / "final", out / points[0]["path"], out / "final"):
        model, _ = load_policy(folder)
        chosen, rejected = (
            sum(row.sum().item() for row in completion_logprobs(model, ids["prompt_ids"], ids[side]))
            for side in ("chosen_ids", "rejected_ids")
        )
        margins.append(chosen - rejected)
    assert margins[0] < margins[1] < margins[2]


def test_an_interrupted_training_goes_on_and_ends_the_same(sft: Path, pool: Path, tmp_path: Path) -> None:
    method = {"kind": "direct", "loss_type": ["sigmoid"], "beta": 0.1, "epochs": 2, "batch": 2, "learning_rate": 5e-3,
              "warmup_steps": 0}  # fmt: skip

    def run(name: str, scratch: str, stop_at: int = 0) -> Path:
        def progress(done: int, total: int, note: str = "") -> None:
            if done == stop_at:
                raise KeyboardInterrupt

        (tmp_path / name).mkdir()
        resources = {"device": "cpu", "save_every": 2}
        context = Context("key", "key", tmp_path / scratch, progress, resources)
        result = direct.run({"method": method, "seed": 0}, {"sft": sft, "pairs": pool}, tmp_path / name, context)
        assert (result.resumed_from is not None) == (scratch == "cut" and name == "second")
        return tmp_path / name / "final" / "model.safetensors"

    whole = run("whole", "uncut")
    with pytest.raises(KeyboardInterrupt):
        run("first", "cut", stop_at=5)
    assert run("second", "cut").read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("kinds", [["sigmoid_norm"], ["apo_zero"], ["sigmoid", "sft"]])
def test_other_losses_of_trl_are_reached_by_config(sft: Path, pool: Path, tmp_path: Path, kinds: list[str]) -> None:
    weights = [1.0, 0.5] if len(kinds) == 2 else None
    metrics, out = run_stage(sft, pool, tmp_path, loss_type=kinds, loss_weights=weights, epochs=1, checkpoints=0)
    assert metrics["optimizer_steps"] == 3
    assert (out / "final" / "model.safetensors").is_file()


def test_a_reward_model_is_normalised_on_the_reference_and_measured_on_held_out_pairs(
    sft: Path, pool: Path, tmp_path: Path
) -> None:
    training = {"epochs": 10, "batch": 2, "learning_rate": 1e-2, "warmup_steps": 0, "schedule": "constant",
                "center_coefficient": 0.0, "weight_decay": 0.0, "max_length": 64, "pairs": 0, "margin": 0.0,
                "seed": 0}  # fmt: skip
    (tmp_path / "out").mkdir()
    context = Context("key", "key", tmp_path / "scratch", resources={"device": "cpu"})
    inputs = {"policy": sft, "pairs": pool}
    result = reward_model.run({"training": training, "seed": 0}, inputs, tmp_path / "out", context)
    assert result.metrics["accuracy"] == 1.0  # it was trained on these
    source = load_reward({"kind": "classifier"}, {"reward_model": tmp_path / "out"}, "cpu")
    prompts = [pair.prompt for pair in PAIRS]
    scores = {
        side: source.score(prompts, [Completion(p.prompt.id, 0, text, 1) for p, text in zip(PAIRS, texts, strict=True)])
        for side, texts in (("chosen", [p.chosen for p in PAIRS]), ("rejected", [p.rejected for p in PAIRS]))
    }
    assert scores["chosen"].mean() == pytest.approx(0.0, abs=1e-4)  # the reference pairs hold the chosen texts
    assert scores["chosen"].std() == pytest.approx(1.0, abs=1e-4)
    assert (scores["chosen"] > scores["rejected"]).all()


# ---------------------------------------------------------------- KTO


def test_kto_by_hand() -> None:
    """Two completions with log-ratios 1 (good) and -1 (bad), a reference point of 1/2, beta 2, weights 3 and 5."""
    ratios = torch.tensor([1.0, -1.0], requires_grad=True)
    other = torch.tensor([0.2, 0.8], requires_grad=True)
    loss = kto_loss(ratios, torch.tensor([True, False]), other, 2.0, 3.0, 5.0)
    assert loss.tolist() == pytest.approx([3 / (1 + math.exp(1.0)), 5 / (1 + math.exp(3.0))])
    loss.sum().backward()
    assert ratios.grad is not None
    assert ratios.grad[0] < 0 < ratios.grad[1]  # up with the good one, down with the bad one
    assert other.grad is None  # the reference point is not learnt
    below = kto_loss(ratios, torch.tensor([True, False]), torch.tensor([-5.0, -7.0]), 2.0)
    assert below.tolist() == pytest.approx([1 / (1 + math.exp(2.0)), 1 / (1 + math.exp(2.0))])  # never below 0


def test_kto_computes_the_loss_that_the_lab_states(sft: Path, tmp_path: Path) -> None:
    model, words = load_policy(sft / "final")
    rows = unpaired(PAIRS, "both", 0)[1:-2]  # 5 good, 4 bad
    ids: dict[str, Any] = {
        "prompt_ids": encode_prompts(words, [prompt for prompt, *_ in rows]),
        "completion_ids": encode_completions(words, [text for _, text, _, _ in rows]),
        "label": [good for *_, good in rows],
    }
    ids["KL_completion_ids"] = mismatched(ids["completion_ids"], len(rows))
    arguments = KTOConfig(
        output_dir=str(tmp_path), per_device_train_batch_size=len(rows), beta=BETA, desirable_weight=1.5,
        undesirable_weight=0.5, use_cpu=True, bf16=False, activation_checkpointing=False, precompute_ref_log_probs=True,
        disable_dropout=True, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = TokenizedKTOTrainer(
        model=model, args=arguments, train_dataset=Dataset.from_dict(ids), processing_class=words
    )
    batch = next(iter(trainer.get_train_dataloader()))
    # Towards what it says anyway, so that the reference point is above 0 and matters.
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    theirs = trainer.compute_loss(model, batch).item()
    reference, _ = load_policy(sft / "final")

    def logratios(side: str) -> torch.Tensor:
        at, start = (completion_logprobs(one, ids["prompt_ids"], ids[side]) for one in (model, reference))
        return torch.stack([a.sum() - b.sum() for a, b in zip(at, start, strict=True)])

    matched, other = logratios("completion_ids"), logratios("KL_completion_ids")
    good = torch.tensor(ids["label"])
    assert theirs == pytest.approx(kto_loss(matched, good, other, BETA, 1.5, 0.5).mean().item(), rel=1e-4)
    assert kto_loss(matched, good, other, BETA).mean().item() != pytest.approx(theirs, rel=1e-3)


def test_the_sides_of_pairs_become_single_labels() -> None:
    both = unpaired(PAIRS, "both", 0)
    assert len(both) == 12
    assert {(text, good) for _, text, _, good in both} == {(p.chosen, True) for p in PAIRS} | {
        (p.rejected, False) for p in PAIRS
    }
    one = unpaired(PAIRS, "one", 0)
    assert [prompt for prompt, *_ in one] == [pair.prompt.text for pair in PAIRS]  # one of each pair
    assert sum(good for *_, good in one) == 3
    assert all(
        text == (pair.chosen if good else pair.rejected) for pair, (_, text, _, good) in zip(PAIRS, one, strict=True)
    )
    assert {tuple(good for *_, good in unpaired(PAIRS, "one", seed)) for seed in range(20)} > {
        tuple(g for *_, g in one)
    }
    cut = Pair(PAIRS[0].prompt, "a", "b", "test", chosen_truncated=True)
    assert [ended for _, _, ended, _ in unpaired([cut], "both", 0)] == [False, True]


def test_mismatched_completions_are_the_neighbours_within_a_batch() -> None:
    rows = [[1], [2], [3], [4], [5]]
    assert mismatched(rows, 3) == [[3], [1], [2], [5], [4]]


@pytest.mark.parametrize(("rows", "batch", "epochs", "length"), [(10, 4, 1, 8), (10, 4, 2, 16), (10, 4, 0.5, 4),
                                                                (3, 4, 2, 4), (8, 4, 1, 8)])  # fmt: skip
def test_batches_are_whole_and_epochs_are_shuffled(rows: int, batch: int, epochs: float, length: int) -> None:
    order = whole_batches(rows, batch, epochs, 0)
    assert len(order) == length
    if epochs >= 1 and rows >= batch:
        first, per_epoch = order[:length], rows // batch * batch
        assert len(set(first[:per_epoch])) == per_epoch  # nothing twice in an epoch
    assert order == whole_batches(rows, batch, epochs, 0)
    assert rows == 3 or order != whole_batches(rows, batch, epochs, 1)


@pytest.mark.parametrize(
    ("loss", "sides"),
    [("kto", "both"), ("kto", "one"), pytest.param("apo_zero_unpaired", "both", marks=pytest.mark.slow)],
)
def test_kto_raises_what_is_good_and_lowers_what_is_bad(
    sft: Path, pool: Path, tmp_path: Path, loss: str, sides: str
) -> None:
    method = {"kind": "unpaired", "loss_type": loss, "beta": 0.3, "epochs": 8, "batch": 6, "kl_batch": 3,
              "learning_rate": 5e-3, "warmup_steps": 0, "sides": sides, "checkpoints": 1}  # fmt: skip
    (tmp_path / "out").mkdir()
    context = Context("key", "key", tmp_path / "scratch", resources={"device": "cpu"})
    result = direct.run({"method": method, "seed": 0}, {"sft": sft, "pairs": pool}, tmp_path / "out", context)
    assert result.metrics["optimizer_steps"] == (16 if sides == "both" else 8)
    points = json.loads((tmp_path / "out" / "checkpoints.json").read_text(encoding="utf-8"))
    assert [point["final"] for point in points] == [False, True]
    assert result.ledger.training_flops == points[-1]["training_flops"] > 0
    ids = columns(tokenizer())
    found = []
    for folder in (sft / "final", tmp_path / "out" / "final"):
        model, _ = load_policy(folder)
        found.append([
            sum(row.sum().item() for row in completion_logprobs(model, ids["prompt_ids"], ids[side]))
            for side in ("chosen_ids", "rejected_ids")
        ])  # fmt: skip
    (chosen_before, rejected_before), (chosen, rejected) = found
    assert chosen - rejected > chosen_before - rejected_before + 1


def test_a_direct_loss_is_relative_to_the_reference_that_it_is_given(sft: Path, pool: Path, tmp_path: Path) -> None:
    """One step of DPO from SFT: with the very start as reference nothing differs, with another policy it does."""
    other = tmp_path / "elsewhere"
    moved, words = load_policy(sft / "final")
    with torch.no_grad():
        moved.lm_head.weight.mul_(3.0)
    moved.save_pretrained(other / "final")
    words.save_pretrained(other / "final")
    weights = {}
    for name, reference in {"none": None, "same": sft, "other": other}.items():
        method = {"kind": "direct", "loss_type": ["sigmoid"], "beta": 1.0, "epochs": 1, "batch": 6,
                  "learning_rate": 5e-3, "warmup_steps": 0}  # fmt: skip
        (tmp_path / name).mkdir()
        context = Context("key", "key", tmp_path / f"{name}-scratch", resources={"device": "cpu"})
        inputs = {"sft": sft, "pairs": pool} | ({} if reference is None else {"reference": reference})
        direct.run({"method": method | {"epochs": 3}, "seed": 0}, inputs, tmp_path / name, context)
        weights[name] = load_policy(tmp_path / name / "final")[0].state_dict()["lm_head.weight"]
    assert torch.equal(weights["none"], weights["same"])
    assert not torch.allclose(weights["none"], weights["other"], atol=1e-4)

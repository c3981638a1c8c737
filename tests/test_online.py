"""The online trainer on a policy of two layers: TRL as second witness, gradients by hand, resuming, refusing."""

from __future__ import annotations

import gc
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast, PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from lab import objectives, trl_private
from lab.config import OnlineMethod, plain
from lab.data.jsonl import write_records
from lab.models import ModelSize, load_classifier, load_policy, new_policy
from lab.online.critic import Critic
from lab.online.rollouts import STATE_FILE, largest_micro_batch, prompt_order
from lab.online.trainer import OnlineTrainer, _sample_rollout
from lab.records import Completion, Prompt, derive_seed
from lab.stages.online import run
from lab.store import Context
from lab.training import DivergedError

WORDS = 16
PROMPTS = [Prompt(" ".join(f"w{(i * k) % WORDS}" for k in range(1, 2 + i % 3)), "math", 0) for i in range(1, 11)]
TEMPLATE = "{% for m in messages %}<user> {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"


@pytest.fixture(scope="module", autouse=True)
def few_objects_to_collect() -> Iterator[None]:
    """Every ``train()`` collects garbage: over the libraries' objects that takes longer than the rest of a test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy that ends about half of its completions early, so that batches hold padding and truncation."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<user>": 2, "<bot>": 3} | {f"w{i}": i + 4 for i in range(WORDS)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    tokenizer.chat_template = TEMPLATE
    model = new_policy(ModelSize(hidden=16, layers=2, heads=2, intermediate=32), tokenizer, seed=3)
    with torch.no_grad():
        for weight in model.parameters():  # a fresh initialisation is nearly uniform: too smooth a test
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel())) * 0.15)
    folder = tmp_path_factory.mktemp("sft")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Toy:
    """A reward source made of a function of (prompt, completion); counts its calls."""

    name = "toy"

    def __init__(self, score: Callable[[Prompt, Completion], float]) -> None:
        self.one, self.calls, self.seen = score, 0, 0

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        self.calls += 1
        self.seen += len(completions)
        return np.array([self.one(*pair) for pair in zip(prompts, completions, strict=True)])


def short_words(prompt: Prompt, completion: Completion) -> float:
    """Varies within every group; depends on the whole text."""
    return (
        sum(word in ("w0", "w1", "w2", "w3", "w4", "w5") for word in completion.text.split()) - 0.1 * completion.length
    )


def partly(prompt: Prompt, completion: Completion) -> float:
    return math.nan if completion.sample == 1 else short_words(prompt, completion)


def a_random_number(prompt: Prompt, completion: Completion) -> float:
    return derive_seed(prompt.id, completion.text) / 2**63


def a_method(**changes: Any) -> OnlineMethod:
    settings: dict[str, Any] = {
        "kind": "online", "advantage": "group", "steps": 2, "prompts_per_rollout": 4, "completions_per_prompt": 4,
        "learning_rate": 1e-2, "warmup_steps": 0, "kl_coefficient": 0.05, "max_completion_length": 6,
    }  # fmt: skip
    return OnlineMethod(**(settings | changes))


class Recorder(OnlineTrainer):
    """Keeps each rollout's batch, with the weights that made it and the gradient of its first update."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches: list[dict[str, Any]] = []
        self.gradients: list[dict[str, Tensor]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.add_callback(_KeepGradients(self))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        self.weights.append(weights_of(self))
        self.batches.append(super()._generate_and_score_completions(inputs))
        return self.batches[-1]


class _KeepGradients(TrainerCallback):
    def __init__(self, trainer: Recorder) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.trainer.gradients.append(gradients_of(self.trainer))


def gradients_of(trainer: OnlineTrainer) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def weights_of(trainer: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def make(policy: Path, folder: Path, score: Callable[..., float] = short_words, **changes: Any) -> Recorder:
    names = ("micro_batch", "mixed_precision", "save_every", "snapshot_at")
    options = {name: changes.pop(name) for name in names if name in changes}
    return Recorder(policy, a_method(**changes), PROMPTS, Toy(score), seed=7, folder=folder, **options)


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float | None = None) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        if tolerance is None:
            assert torch.equal(value, right[name]), name
        else:
            torch.testing.assert_close(value, right[name], rtol=0, atol=tolerance, msg=name)


def differ(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, right[name]) for name, value in left.items())


# TRL -----------------------------------------------------------------------------------------------------------------


def test_trl_still_has_every_private_name_that_the_trainer_relies_on() -> None:
    assert trl_private.moved() == []


def test_what_trl_moved_is_named() -> None:
    changed = type("Changed", (), dict(GRPOTrainer.__dict__))
    del changed._generate
    changed._prepare_inputs = lambda self, batch: None
    changed._compute_loss = lambda self, model, inputs: inputs["advantages"]
    changed.__init__ = lambda self: None
    report = "\n".join(trl_private.moved(changed))
    assert "Changed._generate is gone" in report
    assert "Changed._prepare_inputs takes ('self', 'batch'), expected ('self', 'generation_batch')" in report
    assert "Changed._compute_loss no longer mentions 'num_items_in_batch'" in report
    assert "'advantages'" not in report
    assert "Changed.__init__ no longer sets ref_model" in report


class Stock(GRPOTrainer):
    """TRL's own trainer on the same rollouts; what `_sample_rollout` reads, and the same shuffle into minibatches."""

    policy_seed, encoded = 7, {}

    @property
    def rollout(self) -> int:
        return self.state.global_step // self.updates_per_rollout


def stock_rollout(texts: list[str], trainer: Stock) -> dict[str, Any]:
    torch.manual_seed(derive_seed("minibatches", trainer.policy_seed, trainer.rollout))
    return _sample_rollout(texts, trainer)


@pytest.mark.parametrize(("epochs", "minibatches", "scale"), [(1, 1, "group"), (2, 2, "batch")])
def test_group_advantages_and_kl_in_the_loss_reproduce_stock_grpo(
    policy: Path, tmp_path: Path, epochs: int, minibatches: int, scale: str
) -> None:
    ours = make(policy, tmp_path / "ours", kl_in="loss", epochs=epochs, minibatches=minibatches, scale_rewards=scale)
    ours.run()
    order = prompt_order(len(PROMPTS), 4, 2, seed=7)
    by_text = {prompt.text: prompt for prompt in PROMPTS}

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
        rows = zip(prompts, completions, completion_ids, strict=True)
        return [short_words(by_text[prompt], Completion("", 0, text, len(ids))) for prompt, text, ids in rows]

    stock = Stock(
        model=str(policy),
        reward_funcs=reward,
        args=GRPOConfig(
            output_dir=str(tmp_path / "stock"), learning_rate=1e-2, lr_scheduler_type="constant", beta=0.05,
            max_steps=2 * epochs * minibatches, per_device_train_batch_size=16 // minibatches, num_generations=4,
            steps_per_generation=minibatches, num_iterations=epochs, scale_rewards=scale, max_completion_length=6,
            shuffle_dataset=False, use_cpu=True, bf16=False, activation_checkpointing=False, save_strategy="no",
            report_to="none", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": [PROMPTS[i].text for i in order]}),
        rollout_func=stock_rollout,
    )  # fmt: skip
    stock.remove_callback(PrinterCallback)
    stock.method, stock.updates_per_rollout = ours.method, epochs * minibatches
    stock.train()
    assert differ(weights_of(stock), ours.weights[0])
    torch.testing.assert_close(
        torch.tensor(list(stock._logs["advantages"])), ours.batches[-1]["advantages"], rtol=0, atol=1e-5
    )
    assert_same(weights_of(ours), weights_of(stock), tolerance=1e-5)


def test_leave_one_out_and_kl_in_the_reward_reproduce_trl_rloo(policy: Path, tmp_path: Path) -> None:
    ours = make(policy, tmp_path / "ours", advantage="leave_one_out", score=partly)
    noise = {name: torch.randn_like(w) * 0.05 for name, w in ours.model.named_parameters()}

    def perturb(model: torch.nn.Module) -> None:  # so that policy and reference differ
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.add_(noise[name])

    perturb(ours.model)
    ours.run()
    first = ours.batches[0]
    assert ours.trace[0]["kl_estimate_nats"] > 0.05
    lengths = first["completion_mask"].sum(1).tolist()
    rows = [ids[:length].tolist() for ids, length in zip(first["completion_ids"], lengths, strict=True)]

    class Witness(RLOOTrainer):
        def _generate(self, prompts: list[str]) -> tuple[list[list[int]], list[list[int]], list[str]]:
            prompt_ids = [
                ids[mask.bool()].tolist() for ids, mask in zip(first["prompt_ids"], first["prompt_mask"], strict=True)
            ]
            return prompt_ids, rows, self.processing_class.batch_decode(rows, skip_special_tokens=True)

    def reward(completions: list[str], completion_ids: list[list[int]], **_: Any) -> list[float | None]:
        scores = [
            partly(PROMPTS[0], Completion("", row % 4, text, len(ids)))
            for row, (text, ids) in enumerate(zip(completions, completion_ids, strict=True))
        ]
        return [None if math.isnan(score) else score for score in scores]

    witness = Witness(
        model=str(policy),
        reward_funcs=reward,
        args=RLOOConfig(
            output_dir=str(tmp_path / "rloo"), beta=0.05, num_generations=4, per_device_train_batch_size=16,
            max_steps=1, use_cpu=True, bf16=False, activation_checkpointing=False, save_strategy="no",
            report_to="none", disable_tqdm=True,
        ),
        train_dataset=Dataset.from_dict({"prompt": [prompt.text for prompt in PROMPTS]}),
    )  # fmt: skip
    witness.remove_callback(PrinterCallback)
    perturb(witness.model)
    witness.train()
    expected = torch.tensor(list(witness._logs["advantages"]))
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(first["advantages"], expected, rtol=0, atol=1e-4)


# Gradients by hand ---------------------------------------------------------------------------------------------------


def logprobs_by_hand(model: torch.nn.Module, batch: dict[str, Any], row: int) -> Tensor:
    """log pi of one row's completion tokens, without padding, from the model's plain forward."""
    prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
    completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
    logits = model(input_ids=torch.cat([prompt, completion])[None]).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1).gather(1, completion[:, None])[:, 0]


def test_ppo_with_a_silent_critic_is_the_policy_gradient_of_the_returns(policy: Path, tmp_path: Path) -> None:
    """One epoch, one minibatch, lambda = 1, values 0: gradient = -mean over tokens of G_t grad log pi(a_t)."""
    trainer = make(
        policy, tmp_path, advantage="gae", gae_lambda=1.0, gamma=0.9, value_coefficient=0.0, whiten_advantages=False,
        missing_eos_penalty=0.7, max_grad_norm=1e9,
    )  # fmt: skip
    trainer.run()
    batch, reference = trainer.batches[1], load_policy(policy)[0]  # the second rollout: there the KL is not 0
    model = load_policy(policy)[0]
    model.load_state_dict({k: v for k, v in trainer.weights[1].items() if not k.startswith("critic")}, strict=False)
    tokenizer = trainer.processing_class
    total, count = torch.zeros(()), 0
    for row in range(16):
        logprobs = logprobs_by_hand(model, batch, row)
        with torch.no_grad():
            ratios = logprobs - logprobs_by_hand(reference, batch, row)
        ids = batch["completion_ids"][row][: len(logprobs)].tolist()
        text = tokenizer.decode(ids, skip_special_tokens=True)
        score = short_words(PROMPTS[0], Completion("", 0, text, len(ids))) - 0.7 * (ids[-1] != tokenizer.eos_token_id)
        running, terms = 0.0, []
        for t in reversed(range(len(ids))):
            running = -0.05 * ratios[t].item() + (score if t == len(ids) - 1 else 0.0) + 0.9 * running
            terms.append(running * logprobs[t])
        total, count = total - sum(terms), count + len(ids)
    (total / count).backward()
    assert abs(trainer.trace[1]["kl_estimate_nats"]) > 0.05
    expected = {name: p.grad for name, p in model.named_parameters()}
    actual = {name: g for name, g in trainer.gradients[1].items() if not name.startswith("critic.")}
    assert_same(actual, expected, tolerance=1e-5)
    assert max(g.abs().max() for g in expected.values()) > 0.1


def first_update(trainer: Recorder, batch: dict[str, Any]) -> dict[str, Tensor]:
    """The gradient of the whole loss on ``batch``, at the trainer's present weights."""
    trainer.model.zero_grad()
    trainer.current_gradient_accumulation_steps, trainer._step = 1, 1
    trainer._compute_loss(trainer.model, batch).backward()
    return gradients_of(trainer)


@pytest.mark.parametrize("critic", ["trunk", "own"])
def test_padding_changes_nothing(policy: Path, tmp_path: Path, critic: str) -> None:
    trainer = make(policy, tmp_path, advantage="gae", critic=critic, steps=1, kl_in="loss")
    trainer.run()
    batch = trainer.batches[0]
    padded = dict(batch)
    for key, value in batch.items():
        if torch.is_tensor(value) and value.ndim == 2:
            sides = (3, 0) if key.startswith("prompt") else (0, 2)
            padded[key] = torch.nn.functional.pad(value, sides, value=5 if key.endswith("ids") else 0)
    assert_same(first_update(trainer, batch), first_update(trainer, padded), tolerance=1e-5)


@pytest.mark.parametrize("advantage", ["gae", "group", "leave_one_out"])
@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_unscorable_rows_give_exactly_no_gradient(policy: Path, tmp_path: Path, advantage: str, kl_in: str) -> None:
    trainer = make(policy, tmp_path, score=partly, advantage=advantage, kl_in=kl_in, steps=1)
    trainer.run()
    batch, unscorable = trainer.batches[0], torch.arange(16) % 4 == 1
    assert trainer.trace[0]["frac_unscorable"] == 0.25
    assert not batch["advantages"][unscorable].any()
    assert batch["advantages"][~unscorable].any()
    other = dict(batch)
    other["completion_ids"] = batch["completion_ids"].clone()
    other["completion_ids"][unscorable] = 19 - batch["completion_ids"][unscorable]
    gradient = first_update(trainer, batch)
    assert_same(gradient, first_update(trainer, other))
    other["completion_ids"][0] = 19 - batch["completion_ids"][0]
    assert differ(gradient, first_update(trainer, other))  # the test can tell


@pytest.mark.parametrize("advantage", ["gae", "group", "leave_one_out"])
def test_a_rollout_that_nobody_can_score_moves_nothing(policy: Path, tmp_path: Path, advantage: str) -> None:
    trainer = make(policy, tmp_path, score=lambda *_: math.nan, advantage=advantage)
    trainer.run()
    assert_same(weights_of(trainer), trainer.weights[0])
    assert trainer.trace[-1]["reward_mean"] is None
    assert trainer.trace[-1]["frac_unscorable"] == 1.0


@pytest.mark.parametrize("advantage", ["group", "leave_one_out"])
def test_equal_rewards_move_nothing_and_are_reported(policy: Path, tmp_path: Path, advantage: str) -> None:
    trainer = make(policy, tmp_path, score=lambda *_: 0.1, advantage=advantage, kl_coefficient=0.0)
    trainer.run()
    assert not trainer.batches[0]["advantages"].any()
    assert_same(weights_of(trainer), trainer.weights[0])
    assert trainer.trace[0]["frac_reward_zero_std"] == 1.0


@pytest.mark.parametrize("kind", ["trunk", "own"])
def test_values_precede_their_token_and_the_value_loss_is_a_mean_over_a_minibatch(
    policy: Path, tmp_path: Path, kind: str
) -> None:
    trainer = make(
        policy, tmp_path, advantage="gae", critic=kind, minibatches=2, steps=1, value_clip=0.1, whiten_advantages=False
    )
    head = trainer.critic.head
    torch.nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))
    start = weights_of(trainer)
    trainer.run()
    batch, (weight, bias) = trainer.batches[0], (start["critic.head.weight"][0], start["critic.head.bias"])
    trunk = load_policy(policy)[0].model
    errors, count = 0.0, 0
    with torch.no_grad():
        for row in range(8):
            prompt = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
            completion = batch["completion_ids"][row][batch["completion_mask"][row].bool()]
            states = trunk(input_ids=torch.cat([prompt, completion])[None]).last_hidden_state[0]
            values = states[len(prompt) - 1 : -1] @ weight + bias
            old, returns = batch["old_values"][row, : len(completion)], batch["returns"][row, : len(completion)]
            torch.testing.assert_close(old, values, rtol=0, atol=1e-5)
            # At other weights, those after training: the same states from the trained trunk, the trained head.
            trained = trainer.critic.backbone if kind == "own" else trainer.model.model
            states = trained(input_ids=torch.cat([prompt, completion])[None]).last_hidden_state[0]
            values = (states[len(prompt) - 1 : -1] @ head.weight[0] + head.bias).tolist()
            for v, v_old, g in zip(values, old.tolist(), returns.tolist(), strict=True):
                near = min(max(v, v_old - 0.1), v_old + 0.1)
                errors += max((v - g) ** 2, (near - g) ** 2) / 2
    count = int(batch["completion_mask"].sum())
    half = {key: value[:8] if torch.is_tensor(value) and value.ndim else value for key, value in batch.items()}
    trainer.current_gradient_accumulation_steps = 1
    trainer.value_losses.clear()
    trainer._compute_loss(trainer.model, half)
    assert trainer.value_losses == [pytest.approx(errors / (count / 2), rel=1e-4)]


@pytest.mark.parametrize("critic", ["trunk", "own"])
def test_the_critic_learns_at_a_rate_of_its_own(policy: Path, tmp_path: Path, critic: str) -> None:
    trainer = make(policy, tmp_path, advantage="gae", critic=critic, critic_learning_rate_factor=10.0)
    assert trainer.critic is not None
    own = {id(weight) for weight in trainer.critic.parameters()}
    groups = trainer.create_optimizer().param_groups
    rates = {id(weight): group["lr"] for group in groups for weight in group["params"]}
    assert len(rates) == sum(len(group["params"]) for group in groups) == len(list(trainer.model.parameters()))
    assert {rate for weight, rate in rates.items() if weight in own} == {0.1}
    assert {rate for weight, rate in rates.items() if weight not in own} == {0.01}


def test_a_critic_can_start_from_a_reward_model(policy: Path, tmp_path: Path) -> None:
    classifier, tokenizer = load_classifier(policy, new_head_seed=5)
    classifier.save_pretrained(tmp_path / "reward_model")
    tokenizer.save_pretrained(tmp_path / "reward_model")
    critic = Critic.build("own", load_policy(policy)[0], tmp_path / "reward_model", tokenizer, shift=0.5, scale=2.0)
    ids = torch.tensor([[2, 7, 3, 9, 1, 1]])
    mask = torch.ones_like(ids)
    with torch.no_grad():
        values = critic(ids, mask, 3, None)
        scores = [classifier(input_ids=ids[:, :end], attention_mask=mask[:, :end]).logits.item() for end in (3, 4, 5)]
    torch.testing.assert_close(values, (torch.tensor([scores]) - 0.5) / 2.0)


def test_the_critic_learns_a_constant_return(policy: Path, tmp_path: Path) -> None:
    trainer = make(
        policy, tmp_path, score=lambda *_: 1.0, advantage="gae", critic="own", kl_coefficient=0.0, gae_lambda=1.0,
        steps=6, epochs=4, value_coefficient=1.0, value_clip=10.0,
    )  # fmt: skip
    trainer.run()
    assert trainer.batches[0]["old_values"].abs().max() == 0
    mask = trainer.batches[-1]["completion_mask"]
    error = objectives.masked_mean((trainer.batches[-1]["old_values"] - 1) ** 2, mask)
    assert error < 0.05  # from 1


# Cells, micro-batches, snapshots -------------------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", ["gae", "group", "leave_one_out"])
@pytest.mark.parametrize("score", [short_words, a_random_number, partly])
def test_every_cell_runs(policy: Path, tmp_path: Path, advantage: str, score: Callable[..., float]) -> None:
    trainer = make(policy, tmp_path, score=score, advantage=advantage, epochs=2, minibatches=2)
    trainer.run()
    assert [row["rollout"] for row in trainer.trace] == [1, 2]
    assert trainer.trace[-1]["optimizer_steps"] == 8
    assert json.loads(json.dumps(trainer.trace, allow_nan=False)) == trainer.trace
    assert differ(weights_of(trainer), trainer.weights[0])
    assert max(row["sampler_logprob_error_nats"] for row in trainer.trace) < 1e-5
    assert trainer.reward.calls == 2
    assert trainer.reward.seen == trainer.totals.scored == 32
    assert (trainer.trace[-1]["value_loss"] is None) == (advantage != "gae")


@pytest.mark.parametrize("advantage", ["gae", "group"])
def test_in_half_precision_old_logprobs_are_recomputed(policy: Path, tmp_path: Path, advantage: str) -> None:
    trainer = make(policy, tmp_path, advantage=advantage, minibatches=2, mixed_precision=True)
    trainer.run()
    assert not trainer.exact_sampler
    batch = trainer.batches[0]
    error = ((batch["old_per_token_logps"] - batch["sampled_logprobs"]) * batch["completion_mask"]).abs().max()
    assert 1e-4 < error < 0.2  # bfloat16 against float32
    assert trainer.trace[0]["kl_estimate_nats"] == pytest.approx(0.0, abs=1e-6)  # policy and reference: equal rounding
    assert differ(weights_of(trainer), trainer.weights[0])


@pytest.mark.parametrize("critic", ["trunk", "own"])
def test_micro_batches_change_only_rounding(policy: Path, tmp_path: Path, critic: str) -> None:
    whole = make(policy, tmp_path / "whole", score=partly, advantage="gae", critic=critic, minibatches=2, steps=1)
    whole.run()
    parts = make(
        policy, tmp_path / "parts", score=partly, advantage="gae", critic=critic, minibatches=2, steps=1, micro_batch=2
    )
    parts.run()
    assert parts.args.gradient_accumulation_steps == 4
    assert len(whole.gradients) == len(parts.gradients) == 2
    for left, right in zip(whole.gradients, parts.gradients, strict=True):
        assert_same(left, right, tolerance=2e-5)


def test_snapshots_are_policies_without_a_critic(policy: Path, tmp_path: Path) -> None:
    trainer = make(policy, tmp_path, advantage="gae", epochs=2, steps=3, snapshot_at=[1])
    trainer.run()
    (snapshot,) = trainer.snapshots
    assert (snapshot["step"], snapshot["name"], snapshot["scored"]) == (2, "step-000002", 16)
    trainer.save_policy(tmp_path / "final")
    for name, weights in (("snapshots/step-000002", trainer.weights[1]), ("final", weights_of(trainer))):
        model, _ = load_policy(tmp_path / name)
        loaded = dict(model.named_parameters())
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            assert set(file.keys()) <= set(model.state_dict())
        assert_same(dict(loaded), {key: value for key, value in weights.items() if key in loaded})


def test_costs_are_those_of_the_tokens(policy: Path, tmp_path: Path) -> None:
    trainer = make(policy, tmp_path, epochs=3, steps=1)
    trainer.run()
    batch = trainer.batches[0]
    tokens = int(batch["prompt_mask"].sum() + batch["completion_mask"].sum())
    # Two layers: attention 4 x 16 x 16, MLP 3 x 16 x 32, two norms of 16; and the final norm.
    size = 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16
    assert trainer.totals.sampling_flops == 2 * size * tokens
    assert trainer.totals.training_flops == (2 + 6 * 3) * size * tokens


def test_the_stage_writes_a_policy_artifact(policy: Path, tmp_path: Path) -> None:
    shutil.copytree(policy, tmp_path / "sft" / "final")
    (tmp_path / "prompts").mkdir()
    write_records(tmp_path / "prompts" / "rl.jsonl", PROMPTS)
    out = tmp_path / "out"
    out.mkdir()
    inputs = {"sft": tmp_path / "sft", "prompts": tmp_path / "prompts"}
    config = {
        "method": plain(a_method(advantage="gae", steps=3, checkpoints=1)),
        "reward": {"kind": "length"},
        "seed": 1,
    }
    seen: list[int] = []
    context = Context(
        "key", "root", tmp_path / "scratch", lambda done, total, note="": seen.append(done), {"device": "cpu"}
    )
    result = run(config, inputs, out, context)
    assert seen == [1, 2, 3]
    points = json.loads((out / "checkpoints.json").read_text())
    assert [(point["step"], point["path"], point["final"]) for point in points] == [
        (2, "checkpoints/step-000002", False), (3, "final", True),
    ]  # fmt: skip
    for point in points:
        load_policy(out / point["path"])
    trace = [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]
    assert [row["rollout"] for row in trace] == [1, 2, 3]
    assert points[0]["generated_tokens"] == trace[1]["generated_tokens"]
    assert points[1]["training_flops"] == result.ledger.training_flops + result.ledger.sampling_flops
    assert result.ledger.generated_tokens == trace[2]["generated_tokens"]
    assert sorted(path.name for path in out.iterdir()) == ["checkpoints", "checkpoints.json", "final", "trace.jsonl"]


def test_the_kl_controller_moves_the_coefficient(policy: Path, tmp_path: Path) -> None:
    trainer = make(policy, tmp_path, kl_controller="adaptive", kl_target_nats=1e-3, kl_in="loss", steps=3)
    trainer.run()
    assert trainer.trace[0]["kl_coefficient"] == 0.05
    assert trainer.trace[2]["kl_estimate_nats"] > 1e-3
    assert trainer.kl_coefficient == trainer.beta > trainer.trace[2]["kl_coefficient"] > 0.045


# Resuming, refusing --------------------------------------------------------------------------------------------------


class CrashError(RuntimeError):
    pass


@pytest.mark.parametrize("changes", [
    {"advantage": "gae", "critic": "trunk", "epochs": 2, "minibatches": 2},
    {"advantage": "gae", "critic": "own", "schedule": "cosine"},
    {"advantage": "group", "kl_in": "loss", "minibatches": 2},
])  # fmt: skip
def test_a_resumed_run_equals_an_uninterrupted_one_bitwise(
    policy: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    changes |= {
        "steps": 5,
        "kl_controller": "adaptive",
        "kl_target_nats": 0.5,
        "snapshot_at": [1, 4],
        "warmup_steps": 3,
    }
    straight = make(policy, tmp_path / "straight", **changes)
    straight.run()

    calls = 0

    def crashes(prompt: Prompt, completion: Completion) -> float:
        nonlocal calls
        calls += 1
        torch.rand(1)  # a reward source that draws from the global generator
        if calls > 3 * 16:
            raise CrashError
        return short_words(prompt, completion)

    broken = make(policy, tmp_path / "run", score=crashes, save_every=2, **changes)
    with pytest.raises(CrashError):
        broken.run()
    steps = broken.updates_per_rollout * 2
    cut_off = tmp_path / "run" / "trainer" / f"checkpoint-{steps + 1}"
    cut_off.mkdir()  # a save that a kill interrupted: newer, without its last file
    resumed = make(policy, tmp_path / "run", save_every=2, **changes)
    assert resumed.run() == str(tmp_path / "run" / "trainer" / f"checkpoint-{steps}")
    assert not cut_off.exists()
    assert resumed.reward.calls == 3

    assert_same(weights_of(resumed), weights_of(straight))
    assert resumed.kl_coefficient == straight.kl_coefficient != 0.05
    seconds = ("seconds", "rollout_seconds")
    for left, right in zip(resumed.trace, straight.trace, strict=True):
        assert {k: v for k, v in left.items() if k not in seconds} == {
            k: v for k, v in right.items() if k not in seconds
        }
    assert resumed.snapshots == straight.snapshots
    for row in resumed.snapshots:
        left, right = (load_policy(tmp_path / run / "snapshots" / row["name"])[0] for run in ("run", "straight"))
        assert_same(dict(left.named_parameters()), dict(right.named_parameters()))


def test_an_infinite_reward_stops_the_run_and_names_the_rollout(policy: Path, tmp_path: Path) -> None:
    scores = iter([0.5] * 8 + [0.7] * 8 + [math.inf] * 16)
    trainer = make(policy, tmp_path, score=lambda *_: next(scores))
    with pytest.raises(DivergedError, match="reward toy is inf in rollout 1"):
        trainer.run()
    assert len(trainer.trace) == 1


@pytest.mark.parametrize("where", ["before sampling", "before the loss", "in the gradient"])
def test_nan_weights_stop_the_run_before_they_are_saved(policy: Path, tmp_path: Path, where: str) -> None:
    trainer = make(policy, tmp_path, steps=3, save_every=1)

    def poison(rollout: int) -> None:
        if trainer.rollout == rollout:
            with torch.no_grad():
                trainer.model.model.norm.weight[0] = math.nan

    if where == "before the loss":
        trainer.reward = Toy(lambda *pair: (poison(1), short_words(*pair))[1])
    elif where == "before sampling":
        generate = trainer._generate
        trainer._generate = lambda prompts: (poison(1), generate(prompts))[1]
    else:
        weight = trainer.model.model.norm.weight
        weight.register_hook(lambda gradient: gradient * math.inf if trainer.rollout == 1 else gradient)
    with pytest.raises(DivergedError, match="in rollout 1"):
        trainer.run()
    saved = sorted((tmp_path / "trainer").glob("checkpoint-*"))
    assert [path.name for path in saved] == ["checkpoint-1"]
    assert (saved[0] / STATE_FILE).is_file()


@pytest.mark.parametrize(("changes", "message"), [
    ({"minibatches": 3}, "method.minibatches: 3 does not divide a rollout of 16 completions"),
    ({"completions_per_prompt": 1}, "method.completions_per_prompt: expected at least 2, got 1"),
    ({"learning_rate": 0.0}, "method.learning_rate: expected a positive number, got 0.0"),
    ({"gamma": 1.5}, r"method.gamma: expected a number in \[0, 1\], got 1.5"),
    ({"kl_controller": "adaptive", "kl_target_nats": 0.0}, "method.kl_target_nats: expected a positive number"),
    ({"prompts_per_rollout": 11}, "method.prompts_per_rollout: 11, but there are only 10 prompts"),
])  # fmt: skip
def test_settings_that_cannot_work_are_refused_by_name(
    policy: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(policy, tmp_path, **changes)


def test_scores_of_the_wrong_number_are_refused(policy: Path, tmp_path: Path) -> None:
    trainer = make(policy, tmp_path)
    trainer.reward.score = lambda prompts, completions: np.zeros(3)
    with pytest.raises(ValueError, match=r"reward toy: \(3,\) scores for 16 completions"):
        trainer.run()


def test_prompt_order_is_whole_shuffled_passes() -> None:
    order = prompt_order(10, 4, 5, seed=1)
    rollouts = [order[i : i + 4] for i in range(0, 20, 4)]
    assert all(len(set(rollout)) == 4 for rollout in rollouts)
    assert len(set(rollouts[0] + rollouts[1])) == 8  # one pass: no repeats
    assert order[:8] != order[8:16]
    assert prompt_order(10, 4, 2, seed=1) == order[:8]
    assert prompt_order(10, 4, 5, seed=2) != order


def test_micro_batches_divide_the_minibatch() -> None:
    assert [largest_micro_batch(12, limit) for limit in (0, 1, 5, 7, 12, 99)] == [12, 1, 4, 6, 12, 12]

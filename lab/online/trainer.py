"""The one online trainer: PPO, GRPO and RLOO as a subclass of TRL's ``GRPOTrainer``.

The three share the sampler, the reward call, the KL term, the policy loss, the log and the checkpoints; they differ in
the advantage alone: "gae" (PPO, with a critic), "group" (GRPO), "leave_one_out" (RLOO). One rollout is ``steps``' unit:
prompts_per_rollout x completions_per_prompt completions, then ``epochs`` passes of ``minibatches`` optimizer steps.

What this is not: a fork of TRL. The loop, buffering, minibatches, loss and optimiser are TRL's and transformers'; here
are the rollout, the advantages, the critic, the trace, and the state that lets a run be resumed exactly.
The private TRL names it stands on are listed in ``lab.trl_private``.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather
from datasets import Dataset
from torch import Tensor, nn
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOTrainer

from lab.artifact import finite
from lab.config import OnlineMethod
from lab.costs import forward_flops, training_flops
from lab.models import encode_prompt, load_policy, load_tokenizer, parameter_count
from lab.objectives import (
    adaptive_kl_coefficient,
    clipped_value_loss,
    explained_variance,
    gae,
    group_advantages,
    kl_in_reward,
    kl_k1,
    leave_one_out_advantages,
    whiten,
    zero_spread_groups,
)
from lab.online.critic import Critic, captured_hidden_states, learn_faster
from lab.online.rollouts import (
    STATE_FILE,
    Totals,
    check_method,
    completions_of,
    grpo_arguments,
    latest_checkpoint,
    pad_rows,
    prompt_order,
)
from lab.online.watch import rollout_signals
from lab.records import Completion, Prompt, derive_seed
from lab.rewards import RewardSource
from lab.sampling import sample
from lab.training import DivergedError
from lab.trl_private import require_unmoved

LOGPROB_TOLERANCE_NATS = 1e-3
"""Most by which the sampler's log-probability of a token may differ from the trainer's before training stops."""


class OnlineTrainer(GRPOTrainer):
    """See the module. ``run`` trains; ``trace``, ``totals`` and ``snapshots`` then say what happened.

    ``snapshot_at``: rollouts after which ``snapshots_folder/step-NNNNNN`` receives the policy (NNNNNN counts optimizer
    steps). ``save_every``: rollouts between resumable checkpoints in ``folder`` (0: none). Neither they nor
    ``micro_batch`` nor ``device`` change what is learned, beyond the last bits of floating point. ``watchers`` score
    every rollout for the trace (``lab.online.watch``) and change nothing at all. ``reference``: if not the start.

    Raises ValueError for settings that cannot work and ImportError if TRL has moved what this class relies on.
    """

    def __init__(
        self,
        policy: Path,
        method: OnlineMethod,
        prompts: Sequence[Prompt],
        reward: RewardSource,
        *,
        seed: int,
        folder: Path,
        critic_checkpoint: Path | None = None,
        critic_normalisation: tuple[float, float] = (0.0, 1.0),
        device: torch.device | str = "cpu",
        mixed_precision: bool = False,
        micro_batch: int = 0,
        save_every: int = 0,
        snapshot_at: Sequence[int] = (),
        progress: Callable[..., None] | None = None,
        watchers: Mapping[str, RewardSource] | None = None,
        reference: Path | None = None,
    ) -> None:
        require_unmoved()
        check_method(method)
        self.method, self.prompts, self.reward, self.policy_seed = method, list(prompts), reward, seed
        self.folder, self.snapshot_at, self.progress = folder, frozenset(snapshot_at), progress
        self.watchers = dict(watchers or {})
        order = prompt_order(len(prompts), method.prompts_per_rollout, method.steps, seed)
        self.updates_per_rollout = method.epochs * method.minibatches
        tokenizer = load_tokenizer(policy)
        # Silences TRL's notice that this hook is experimental; `lab.trl_private` watches over it instead.
        os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
        super().__init__(
            model=str(policy),  # a path, never an instance: TRL loads the reference from where the policy came from
            reward_funcs=_unused_reward,
            args=grpo_arguments(
                method,
                seed=derive_seed("trainer", seed) % 2**31,
                output=folder / "trainer",
                on_cpu=torch.device(device).type == "cpu",
                mixed_precision=mixed_precision,
                micro_batch=micro_batch,
                save_every=save_every,
            ),
            train_dataset=Dataset.from_dict({"prompt": [self.prompts[i].text for i in order], "index": order}),
            processing_class=tokenizer,
            rollout_func=_sample_rollout,
        )
        if reference is not None:  # TRL has loaded the policy's own start
            self.ref_model.load_state_dict(load_policy(reference)[0].state_dict())
        self.remove_callback(PrinterCallback)
        self.add_callback(_Hooks(self))
        self.kl_coefficient = method.kl_coefficient
        self._set_loss_coefficient()
        self.parameters_sampled = parameter_count(self.model)
        self.critic: Critic | None = None
        if method.advantage == "gae":
            if self.accelerator.num_processes > 1:
                raise ValueError("method.advantage: gae runs in one process; group and leave_one_out run in several")
            start = critic_checkpoint or policy
            self.critic = Critic.build(method.critic, self.model, start, tokenizer, *critic_normalisation)
            # A child of the policy: the optimizer, gradient clipping and checkpoints then take care of it.
            self.model.add_module("critic", self.critic.to(self.accelerator.device))
        # The sampler's log-probabilities are the trainer's up to rounding where both compute in float32.
        self.exact_sampler = not mixed_precision and self.model.dtype == torch.float32
        self.totals = Totals()
        self.trace: list[dict[str, Any]] = []
        self.snapshots: list[dict[str, Any]] = []
        self.current: dict[str, Any] = {}
        self.value_losses: list[float] = []
        self.started = time.perf_counter()
        self.encoded: dict[str, list[int]] = {}

    # Running ---------------------------------------------------------------------------------------------------------

    def run(self) -> str | None:
        """Train to the end, from the last whole checkpoint if there is one: its path, else None.

        Raises DivergedError naming the rollout if a loss, gradient, log-probability or reward is not finite.
        """
        last = latest_checkpoint(Path(self.args.output_dir))
        if last is not None:
            self._load_lab_state(last)
        self.started = time.perf_counter()
        self.train(resume_from_checkpoint=None if last is None else str(last))
        return None if last is None else str(last)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """TRL's optimizer, with the critic in groups of its own that learn ``critic_learning_rate_factor`` as fast."""
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.critic is not None:
            learn_faster(optimizer, self.critic, self.method.critic_learning_rate_factor)
        return optimizer

    @property
    def rollout(self) -> int:
        """The running rollout, counted from 0."""
        return self.state.global_step // self.updates_per_rollout

    def save_policy(self, path: Path) -> None:
        """The policy without its critic, as a Hugging Face folder with the tokenizer; replaced whole if it exists.

        Raises DivergedError if a weight is not finite.
        """
        model = self.accelerator.unwrap_model(self.model)
        weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("critic.")}
        for name, weight in weights.items():
            self._require_finite(weight, f"weight {name}")
        partial = path.with_name(path.name + ".partial")
        for folder in (partial, path):
            if folder.exists():
                shutil.rmtree(folder)
        model.save_pretrained(partial, state_dict=weights)
        self.processing_class.save_pretrained(partial)
        os.replace(partial, path)

    # One rollout -----------------------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        began, device, method = time.perf_counter(), self.accelerator.device, self.method
        prompt_ids, completion_ids, _, texts, sampled_logprobs, *_ = self._generate([row["prompt"] for row in inputs])
        prompts = [self.prompts[row["index"]] for row in inputs]
        truncated = [ids[-1] not in self.eos_token_ids for ids in completion_ids]

        pad = self.processing_class.pad_token_id
        batch: dict[str, Any] = {
            "prompt_ids": pad_rows(prompt_ids, pad, True, torch.long, device),
            "prompt_mask": pad_rows([[1] * len(ids) for ids in prompt_ids], 0, True, torch.long, device),
            "completion_ids": pad_rows(completion_ids, pad, False, torch.long, device),
            "completion_mask": pad_rows([[1] * len(ids) for ids in completion_ids], 0, False, torch.long, device),
        }
        sampled_BT = pad_rows(sampled_logprobs, 0.0, False, torch.float32, device)
        old_BT, reference_BT, values_BT = self._forward(batch, sampled_BT)
        mask_BT = batch["completion_mask"]
        kl_B = (kl_k1(old_BT, reference_BT) * mask_BT).sum(1).double()
        self._require_finite(kl_B, "the log-probability of a completion")

        first = self.accelerator.process_index * len(prompts)
        completions = completions_of(prompts, texts, completion_ids, truncated, first, method.completions_per_prompt)
        raw_B = self._scores(prompts, completions).to(device)
        scores_B = raw_B - (method.missing_eos_penalty or 0.0) * torch.tensor(truncated, device=device).double()
        scorable_B = ~scores_B.isnan()
        in_reward = self.kl_coefficient if method.kl_in == "reward" else 0.0
        mask_BT = mask_BT * scorable_B[:, None]
        if values_BT is not None:
            rewards_BT = kl_in_reward(torch.nan_to_num(scores_B), old_BT, reference_BT, mask_BT, in_reward)
            advantages = gae(rewards_BT, values_BT, mask_BT, method.gamma, method.gae_lambda)
            returns_BT = advantages + values_BT
            batch |= {"old_values": values_BT, "returns": returns_BT}
            variance = explained_variance(values_BT, returns_BT, mask_BT).item()
            advantages = whiten(advantages, mask_BT) if method.whiten_advantages else advantages
        else:
            variance = None
            advantages = self._sequence_advantages(scores_B - in_reward * kl_B)
        batch["advantages"] = advantages.float()
        batch["num_items_in_batch"] = self.accelerator.gather(mask_BT.sum()).sum()
        batch["sampled_logprobs"] = sampled_BT
        if self.updates_per_rollout > 1:
            batch["old_per_token_logps"] = old_BT
        if method.kl_in == "loss":
            batch["ref_per_token_logps"] = reference_BT
        if not bool(scorable_B.all()):
            batch["tool_mask"] = mask_BT  # TRL leaves what this masks out of the loss: no gradient, no KL penalty

        self._account(prompt_ids, completion_ids)
        self.current = self._summary(raw_B, scores_B - in_reward * kl_B, kl_B, completion_ids, truncated)
        self.current |= {"explained_variance": variance, "rollout_seconds": time.perf_counter() - began}
        paid = raw_B.cpu().numpy()
        self.current |= rollout_signals(self.reward, self.watchers, prompts, completions, completion_ids, paid)
        # Next TRL shuffles rows into minibatches by the global generator, from which a reward source may have drawn.
        torch.manual_seed(derive_seed("minibatches", self.policy_seed, self.rollout))
        return batch

    def _forward(self, batch: Mapping[str, Tensor], sampled_BT: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Log-probabilities of the old policy and of the reference, and the critic's values, each (B, T)."""
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
        attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
        keep, size = batch["completion_ids"].shape[1], self.args.per_device_train_batch_size
        on_trunk = self.critic is not None and self.critic.on_trunk
        with torch.no_grad():
            reference_BT, *_ = self._get_per_token_logps_and_entropies(
                self.ref_model, ids, attention, keep, batch_size=size
            )
            with captured_hidden_states(self.model, on_trunk) as hidden:
                if not self.exact_sampler:
                    old_BT, *_ = self._get_per_token_logps_and_entropies(
                        self.model, ids, attention, keep, batch_size=size
                    )
                else:
                    old_BT = sampled_BT
                    for start in range(0, len(ids), size) if on_trunk else ():
                        part = slice(start, start + size)
                        self.model.base_model(input_ids=ids[part], attention_mask=attention[part], use_cache=False)
            if self.critic is None:
                return old_BT, reference_BT, None
            parts = [
                self.critic(ids[i : i + size], attention[i : i + size], keep, hidden[i // size] if on_trunk else None)
                for i in range(0, len(ids), size)
            ]
            values_BT = torch.cat(parts)
        self._require_finite(values_BT, "the critic's value")
        return old_BT, reference_BT, values_BT

    def _scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Tensor:
        """Float64 scores (B,) of this process's rows, NaN where unscorable: one call for the whole rollout."""
        scores = torch.as_tensor(np.asarray(self.reward.score(prompts, completions), dtype=np.float64))
        if scores.shape != (len(prompts),):
            raise ValueError(f"reward {self.reward.name}: {tuple(scores.shape)} scores for {len(prompts)} completions")
        if scores.isinf().any():
            row = int(scores.isinf().nonzero()[0])
            raise DivergedError(
                f"reward {self.reward.name} is {scores[row].item()} in rollout {self.rollout}, prompt {prompts[row].id}"
            )
        return scores

    def _sequence_advantages(self, scores_B: Tensor) -> Tensor:
        """Group-relative or leave-one-out advantages (B,); groups may lie across processes, hence the gathering."""
        everyone = gather(scores_B)
        size = self.method.completions_per_prompt
        if self.method.advantage == "leave_one_out":
            advantages = leave_one_out_advantages(everyone, size)
        else:
            advantages = group_advantages(everyone, size, self.method.scale_rewards)
        return advantages[self.accelerator.process_index * len(scores_B) :][: len(scores_B)]

    def _account(self, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]) -> None:
        processes, policy = self.accelerator.num_processes, self.parameters_sampled
        prompt_tokens = sum(map(len, prompt_ids)) * processes
        generated = sum(map(len, completion_ids)) * processes
        tokens, totals = prompt_tokens + generated, self.totals
        totals.prompt_tokens += prompt_tokens
        totals.generated_tokens += generated
        totals.scored += len(prompt_ids) * processes
        totals.sampling_flops += forward_flops(policy, tokens)
        totals.training_flops += forward_flops(policy, tokens) + training_flops(policy, tokens, self.method.epochs)
        if self.critic is not None and not self.critic.on_trunk:
            size = self.critic.parameter_count
            totals.training_flops += forward_flops(size, tokens) + training_flops(size, tokens, self.method.epochs)
        if not self.exact_sampler or (self.critic is not None and self.critic.on_trunk):
            totals.training_flops += forward_flops(policy, tokens)

    # The loss --------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        on_trunk = self.critic is not None and self.critic.on_trunk
        with captured_hidden_states(self.model, on_trunk) as hidden:
            loss = super()._compute_loss(model, inputs)
        if self.critic is None:
            return loss
        completion_ids, mask_BT = inputs["completion_ids"], inputs["completion_mask"]
        ids = torch.cat([inputs["prompt_ids"], completion_ids], 1)
        attention = torch.cat([inputs["prompt_mask"], mask_BT], 1)
        values_BT = self.critic(ids, attention, completion_ids.shape[1], hidden[0] if on_trunk else None)
        if "tool_mask" in inputs:
            mask_BT = mask_BT * inputs["tool_mask"]
        errors_BT = clipped_value_loss(values_BT, inputs["old_values"], inputs["returns"], self.method.value_clip)
        # The same normaliser as the policy loss: micro-batches then add up to the mean over a minibatch's tokens.
        per_update = self.args.steps_per_generation / self.current_gradient_accumulation_steps
        value_loss = (errors_BT * mask_BT).sum() / (inputs["num_items_in_batch"].clamp(min=1) / per_update)
        self.value_losses.append(value_loss.item())
        return loss + self.method.value_coefficient * value_loss

    def _get_per_token_logps_and_entropies(self, model: nn.Module, *args: Any, **kwargs: Any) -> Any:
        result = super()._get_per_token_logps_and_entropies(model, *args, **kwargs)
        self.trained_logprobs = result[0].detach()
        return result

    def compute_loss(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        """The loss of one micro-batch; at a rollout's first one the policy must still be the one that sampled."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.exact_sampler and self._step % (self.args.steps_per_generation * self.method.epochs) == 0:
            difference = (self.trained_logprobs - inputs["sampled_logprobs"]) * inputs["completion_mask"]
            largest = difference.abs().max().item()
            self.current["sampler_logprob_error_nats"] = largest
            if largest > LOGPROB_TOLERANCE_NATS:
                raise RuntimeError(
                    f"rollout {self.rollout}: sampler and trainer disagree by {largest:.2g} nats on a token; does the "
                    "model depend on absolute positions or on its batch?"
                )
        return loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One micro-batch. A loss that is not finite stops the run before it reaches the weights."""
        loss = super().training_step(*args, **kwargs)
        self._require_finite(loss, "the loss")
        return loss

    def _require_finite(self, x: Tensor, what: str) -> None:
        if not bool(torch.isfinite(x).all()):
            raise DivergedError(
                f"{what} is not finite in rollout {self.rollout}, optimizer step {self.state.global_step}"
            )

    # The trace and the state -----------------------------------------------------------------------------------------

    def _summary(
        self,
        raw_B: Tensor,
        objective_B: Tensor,
        kl_B: Tensor,
        completion_ids: Sequence[Sequence[int]],
        truncated: Sequence[bool],
    ) -> dict[str, Any]:
        """What the trace says of this process's rows of the running rollout."""
        scored_B = raw_B[~raw_B.isnan()]
        silent = zero_spread_groups(gather(objective_B), self.method.completions_per_prompt)
        return {
            "reward_mean": scored_B.mean().item(),
            "reward_std": scored_B.std().item() if len(scored_B) > 1 else 0.0,
            "objective_mean": torch.nanmean(objective_B).item(),
            "frac_reward_zero_std": silent.double().mean().item(),
            "frac_unscorable": raw_B.isnan().double().mean().item(),
            "kl_estimate_nats": kl_B.mean().item(),
            "length_mean": sum(map(len, completion_ids)) / len(completion_ids),
            "truncated_fraction": sum(truncated) / len(truncated),
            "kl_coefficient": self.kl_coefficient,
            "learning_rate": self.lr_scheduler.get_last_lr()[0],
        }

    def finish_rollout(self) -> None:
        """Close the books of the rollout whose last optimizer step was just taken: trace, KL controller, snapshot."""
        done, metrics = self.rollout, self._metrics["train"]
        row = {"rollout": done, "optimizer_steps": self.state.global_step, "reward": self.reward.name, **self.current}
        row["entropy_nats"] = _mean(metrics["entropy"])
        row["clip_fraction"] = _mean(metrics["clip_ratio/region_mean"])
        row["value_loss"] = _mean(self.value_losses) if self.critic is not None else None
        row |= {**asdict(self.totals), "seconds": time.perf_counter() - self.started}
        self.trace.append(finite(row))
        metrics.clear()
        self.value_losses.clear()
        if self.method.kl_controller == "adaptive":
            kl, target = self.current["kl_estimate_nats"], self.method.kl_target_nats
            self.kl_coefficient = adaptive_kl_coefficient(self.kl_coefficient, kl, target)
            self._set_loss_coefficient()
        if done in self.snapshot_at:
            name = f"step-{self.state.global_step:06d}"
            self.save_policy(self.folder / "snapshots" / name)
            self.snapshots.append({"step": self.state.global_step, "name": name, **asdict(self.totals)})
        if self.progress is not None:
            self.progress(done, self.method.steps, f"reward {row['reward_mean']:.3f}")

    def _set_loss_coefficient(self) -> None:
        self.beta = self.kl_coefficient if self.method.kl_in == "loss" else 0.0

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: TRL would write one into every resumable checkpoint."""

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        state = {
            "trace": self.trace,
            "snapshots": self.snapshots,
            "totals": asdict(self.totals),
            "kl_coefficient": self.kl_coefficient,
        }
        partial = folder / (STATE_FILE + ".partial")
        partial.write_text(json.dumps(state, allow_nan=False), encoding="utf-8")
        os.replace(partial, folder / STATE_FILE)

    def _load_lab_state(self, folder: Path) -> None:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        self.trace, self.snapshots, self.totals = state["trace"], state["snapshots"], Totals(**state["totals"])
        self.kl_coefficient = state["kl_coefficient"]
        self._set_loss_coefficient()


class _Hooks(TrainerCallback):
    """Where the loop of transformers tells the trainer that something happened."""

    def __init__(self, trainer: OnlineTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        gradients = [p.grad for p in self.trainer.model.parameters() if p.grad is not None]
        self.trainer._require_finite(torch.nn.utils.get_total_norm(gradients), "the gradient")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % self.trainer.updates_per_rollout == 0:
            self.trainer.finish_rollout()


def _sample_rollout(texts: list[str], trainer: OnlineTrainer) -> dict[str, Any]:
    """TRL's ``rollout_func``: completions by the lab's sampler, each from a seed of its own."""
    for text in texts:
        if text not in trainer.encoded:
            trainer.encoded[text] = encode_prompt(trainer.processing_class, text)
    prompt_ids = [trainer.encoded[text] for text in texts]
    first, group = trainer.accelerator.process_index * len(texts), trainer.method.completions_per_prompt
    ids = {text: Prompt(text, "", 0).id for text in set(texts)}
    seeds = [
        derive_seed("rollout", trainer.policy_seed, trainer.rollout, ids[text], (first + row) % group)
        for row, text in enumerate(texts)
    ]
    model = trainer.accelerator.unwrap_model(trainer.model)
    try:
        samples = sample(
            model,
            prompt_ids,
            seeds=seeds,
            max_new_tokens=trainer.method.max_completion_length,
            temperature=trainer.method.temperature,
            eos_token_id=trainer.eos_token_ids,
            pad_token_id=trainer.processing_class.pad_token_id,
        )
    except ValueError as error:
        if all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
            raise
        raise DivergedError(f"a weight of the policy is not finite in rollout {trainer.rollout}") from error
    return {
        "prompt_ids": prompt_ids,
        "completion_ids": [row.ids for row in samples],
        "logprobs": [row.logprobs for row in samples],
    }


def _unused_reward(**_: Any) -> list[float]:
    """TRL wants a reward function; `_generate_and_score_completions` asks the reward source itself instead."""
    raise RuntimeError("TRL called a reward function: the online trainer's override is no longer in use")


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None

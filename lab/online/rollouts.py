"""What a rollout is made of: which prompts, which micro-batches, TRL's arguments, what it cost; and checkpoints.

Everything here is decided by its arguments alone, so that a resumed run goes on exactly as an uninterrupted one.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from trl import GRPOConfig

from lab.config import OnlineMethod
from lab.records import Completion, Prompt, derive_seed

STATE_FILE = "online_state.json"
"""Written last into a resumable checkpoint: one without it was cut off in mid-save and is never resumed from."""


@dataclass
class Totals:
    """Running sums of a run, exact; FLOPs by ``lab.costs``, the reward source's own not included."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    scored: int = 0
    training_flops: float = 0.0
    sampling_flops: float = 0.0


def check_method(method: OnlineMethod) -> None:
    """Raise ValueError naming key and value for settings that have the right type and cannot work."""
    positive = ("steps", "prompts_per_rollout", "epochs", "minibatches", "max_completion_length")
    for key in positive:
        if getattr(method, key) < 1:
            raise ValueError(f"method.{key}: expected at least 1, got {getattr(method, key)}")
    for key in ("learning_rate", "temperature", "clip", "value_clip"):
        if not getattr(method, key) > 0:
            raise ValueError(f"method.{key}: expected a positive number, got {getattr(method, key)}")
    for key in ("kl_coefficient", "warmup_steps", "value_coefficient", "checkpoints"):
        if getattr(method, key) < 0:
            raise ValueError(f"method.{key}: expected at least 0, got {getattr(method, key)}")
    for key in ("gamma", "gae_lambda"):
        if not 0 <= getattr(method, key) <= 1:
            raise ValueError(f"method.{key}: expected a number in [0, 1], got {getattr(method, key)}")
    if method.completions_per_prompt < 2:
        raise ValueError(f"method.completions_per_prompt: expected at least 2, got {method.completions_per_prompt}")
    rows = method.prompts_per_rollout * method.completions_per_prompt
    if rows % method.minibatches:
        raise ValueError(f"method.minibatches: {method.minibatches} does not divide a rollout of {rows} completions")
    if method.kl_controller == "adaptive" and not method.kl_target_nats > 0:
        raise ValueError(f"method.kl_target_nats: expected a positive number, got {method.kl_target_nats}")


def prompt_order(count: int, per_rollout: int, rollouts: int, seed: int) -> list[int]:
    """Which prompts each rollout uses: shuffled passes over all prompts, each pass cut to whole rollouts.

    A function of its arguments alone, so a resumed run sees the same prompts; no prompt occurs twice in a rollout.
    """
    if count < per_rollout:
        raise ValueError(f"method.prompts_per_rollout: {per_rollout}, but there are only {count} prompts")
    order: list[int] = []
    for turn in range(math.ceil(rollouts / (count // per_rollout))):
        generator = np.random.Generator(np.random.Philox(key=derive_seed("prompt order", seed, turn)))
        order += generator.permutation(count)[: count // per_rollout * per_rollout].tolist()
    return order[: rollouts * per_rollout]


def completions_of(
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    completion_ids: Sequence[Sequence[int]],
    truncated: Sequence[bool],
    first: int,
    group: int,
) -> list[Completion]:
    """A process's rows of a rollout as records: they begin at the rollout's row ``first``; ``group`` rows a prompt."""
    rows = enumerate(zip(prompts, texts, completion_ids, truncated, strict=True), first)
    return [Completion(prompt.id, row % group, text, len(ids), cut) for row, (prompt, text, ids, cut) in rows]


def largest_micro_batch(minibatch: int, at_most: int) -> int:
    """The largest divisor of ``minibatch`` that is not above ``at_most`` (0: the whole minibatch)."""
    limit = minibatch if at_most < 1 else min(at_most, minibatch)
    return next(size for size in range(limit, 0, -1) if minibatch % size == 0)


def grpo_arguments(
    method: OnlineMethod,
    *,
    seed: int,
    output: Path,
    on_cpu: bool,
    mixed_precision: bool,
    micro_batch: int,
    save_every: int,
) -> GRPOConfig:
    """TRL's arguments for a method: what it means, then where and how to run, then everything TRL should not do."""
    minibatch = method.prompts_per_rollout * method.completions_per_prompt // method.minibatches
    micro = largest_micro_batch(minibatch, micro_batch)
    updates = method.epochs * method.minibatches
    return GRPOConfig(
        output_dir=str(output),
        seed=seed,
        learning_rate=method.learning_rate,
        lr_scheduler_type="constant_with_warmup" if method.schedule == "constant" else method.schedule,
        warmup_steps=method.warmup_steps,
        max_steps=method.steps * updates,
        max_grad_norm=method.max_grad_norm,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=minibatch // micro,
        steps_per_generation=method.minibatches * (minibatch // micro),
        num_iterations=method.epochs,
        num_generations=method.completions_per_prompt,
        max_completion_length=method.max_completion_length,
        temperature=method.temperature,
        epsilon=method.clip,
        loss_type="dapo",  # the mean over the tokens of a minibatch, whatever the micro-batches
        beta=1.0,  # makes TRL load the reference; the trainer sets the coefficient in the loss afterwards
        shuffle_dataset=False,
        disable_dropout=True,
        activation_checkpointing=False,
        use_cpu=on_cpu,
        bf16=mixed_precision,
        save_strategy="steps" if save_every else "no",
        # Resuming is exact only where a rollout ends: the buffer of completions is not part of a checkpoint.
        save_steps=max(save_every, 1) * updates,
        save_total_limit=2,
        logging_strategy="no",
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=False,
    )


def pad_rows(
    rows: Sequence[Sequence[float]], value: float, left: bool, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Rows of unequal length as one tensor (B, longest)."""
    width = max(map(len, rows))
    filled = [[value] * (width - len(row)) + [*row] if left else [*row] + [value] * (width - len(row)) for row in rows]
    return torch.tensor(filled, dtype=dtype, device=device)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``; those that a crash cut off are deleted."""
    whole = []
    for path in folder.glob("checkpoint-*"):
        if (path / STATE_FILE).is_file():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.split("-")[1]), default=None)

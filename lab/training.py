"""What all trainers of the lab share: arguments, traces, snapshots along training, resuming, refusing to diverge.

What this is not: a trainer. The loops are TRL's; this module only maps the lab's small configs to their arguments and
listens to them through one callback.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from lab.artifact import finite
from lab.store import Context


class DivergedError(RuntimeError):
    """A loss or a gradient was not finite: training stopped before a poisoned checkpoint could be saved."""


def trainer_arguments(config: Mapping[str, Any], context: Context, device: torch.device) -> dict[str, Any]:
    """Keyword arguments common to every TRL config: optimiser, batch, precision, seed, silence.

    ``config`` is a plain SupervisedConfig, RewardModelConfig or DirectMethod. ``batch`` is what one optimizer step
    sees; ``micro_batch`` of it is on the device at a time.
    """
    micro = config["micro_batch"] or config["batch"]
    if config["batch"] % micro:
        raise ValueError(f"micro_batch: {micro} does not divide batch = {config['batch']}")
    on_cpu = device.type == "cpu"
    save_every = context.resources.get("save_every", 0)
    return {
        "output_dir": str(context.scratch),
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": config["batch"] // micro,
        "num_train_epochs": config["epochs"],
        "learning_rate": config["learning_rate"],
        "lr_scheduler_type": config["schedule"],
        "warmup_steps": config["warmup_steps"],
        "weight_decay": config.get("weight_decay", 0.0),
        "adam_beta2": config.get("adam_beta2", 0.999),
        "seed": config["seed"],
        "data_seed": config["seed"],
        "use_cpu": on_cpu,
        "bf16": not on_cpu and torch.cuda.is_bf16_supported(),
        "activation_checkpointing": False,
        "logging_steps": 10,
        "logging_nan_inf_filter": False,  # the filter would hide a NaN loss behind the last finite one
        "save_strategy": "steps" if save_every else "no",
        "save_steps": save_every or 500,
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": not on_cpu,
        "dataloader_num_workers": 0,
    }


class Listener(TrainerCallback):
    """Writes the trace as it goes, reports progress, snapshots the policy, and stops on a loss that is not finite."""

    def __init__(
        self, context: Context, out: Path, snapshot_at: Sequence[int] = (), save: Callable[[Path], None] | None = None
    ) -> None:
        self.context, self.trace, self.snapshot_at, self.save, self.out = (
            context,
            out / "trace.jsonl",
            snapshot_at,
            save,
            out,
        )

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        logs = logs or {}
        for name in ("loss", "grad_norm"):
            if name in logs and not math.isfinite(float(logs[name])):
                raise DivergedError(f"{name} is {logs[name]} at optimizer step {state.global_step}")
        line = {"step": state.global_step, **finite(logs)}
        with self.trace.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, allow_nan=False) + "\n")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.context.progress(state.global_step, state.max_steps)
        if state.global_step in self.snapshot_at and self.save is not None:
            self.save(self.out / "checkpoints" / f"step-{state.global_step:06d}")


def batch_order(lengths: Sequence[int], batch: int, epochs: float, seed: int, window: int) -> list[int]:
    """Row numbers in training order: batches of rows of similar length, the batches themselves in random order.

    transformers' own grouping by length hands out each window from its longest batch to its shortest. Where length goes
    with the kind of question, the optimizer then sees one kind after another, and a small model learnt arithmetic a
    third as well. ``window`` batches are sorted together (1: no grouping); the last, incomplete batch of an epoch is
    left out, unless it is the only one.
    """
    rng = np.random.default_rng(seed)
    order: list[int] = []
    for _ in range(math.ceil(epochs)):
        rows = rng.permutation(len(lengths))
        batches: list[np.ndarray] = []
        for start in range(0, len(rows), batch * window):
            some = rows[start : start + batch * window]
            some = some[np.argsort([lengths[row] for row in some], kind="stable")]
            batches += [some[at : at + batch] for at in range(0, len(some), batch)]
        whole = [one for one in batches if len(one) == batch] or batches
        order += [int(row) for at in rng.permutation(len(whole)) for row in whole[at]]
    return order[: max(batch, round(len(order) * epochs / math.ceil(epochs)) // batch * batch)]


def evenly(steps: int, count: int) -> list[int]:
    """``count`` interior points of a run of ``steps``, evenly spaced; the end point is not among them."""
    return sorted({max(1, round(steps * (i + 1) / (count + 1))) for i in range(count)} - {steps})


def points_along(snapshots: Sequence[int], total: int, flops: float) -> list[dict[str, Any]]:
    """The checkpoints of a training that generates nothing and spends its ``flops`` evenly over ``total`` steps."""
    places = [(step, f"checkpoints/step-{step:06d}", False) for step in snapshots] + [(total, "final", True)]
    return [
        {"step": step, "path": path, "final": final, "training_flops": flops * step / total,
         "prompt_tokens": 0, "generated_tokens": 0}
        for step, path, final in places
    ]  # fmt: skip


def train(trainer: Any, context: Context) -> str | None:
    """Run a trainer, from its last resumable checkpoint if this step was interrupted before: its name, else None.

    Raises DivergedError if the mean loss is not finite.
    """
    last = get_last_checkpoint(str(context.scratch)) if context.scratch.is_dir() else None
    if last is not None and not (Path(last) / "trainer_state.json").is_file():
        shutil.rmtree(last)  # a save that was cut off
        last = get_last_checkpoint(str(context.scratch))
    trainer.train(resume_from_checkpoint=last)
    loss = trainer.state.log_history[-1].get("train_loss", 0.0) if trainer.state.log_history else 0.0
    if not math.isfinite(loss):
        raise DivergedError(f"the mean training loss is {loss}")
    return None if last is None else Path(last).name


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path) -> None:
    """Model and tokenizer as safetensors in ``path``; a loss or step that broke the weights is refused here at last.

    Raises DivergedError if any weight is not finite.
    """
    for name, weight in model.state_dict().items():
        if not torch.isfinite(weight).all():
            raise DivergedError(f"weight {name} is not finite")
    path.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(path, safe_serialization=True)
    tokenizer.save_pretrained(path)


def write_checkpoints(out: Path, points: Sequence[Mapping[str, Any]]) -> None:
    """``checkpoints.json``: what evaluation walks through, the end point last."""
    (out / "checkpoints.json").write_text(json.dumps(list(points), indent=1, allow_nan=False) + "\n", encoding="utf-8")

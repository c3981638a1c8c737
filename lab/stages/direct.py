"""Direct alignment (DPO and its family) by TRL's ``DPOTrainer`` on the pool: every ``loss_type`` it knows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from lab.config import DirectMethod, build
from lab.costs import forward_flops, training_flops
from lab.data.jsonl import read_pairs
from lab.models import encode_completions, encode_prompts, load_policy, parameter_count, pick_device
from lab.records import Ledger, derive_seed
from lab.store import Context, StageResult
from lab.training import Listener, evenly, points_along, save_model, train, trainer_arguments, write_checkpoints
from lab.typed import plain


class TokenizedDPOTrainer(DPOTrainer):
    """``DPOTrainer`` on token ids that the lab has made.

    TRL has no pre-tokenized path here, and its own tokenization appends an end to completions that never reached one.
    """

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        return dataset


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``method`` (DirectMethod), ``seed``. Inputs: "sft" (start and reference), "pairs"."""
    method = build(DirectMethod, config["method"], "method")
    device = pick_device(context.resources.get("device", "auto"))
    # The model knows the folder it came from, and TRL loads the reference from there: the SFT checkpoint on disk.
    model, tokenizer = load_policy(inputs["sft"] / "final", device)
    pairs = read_pairs(inputs["pairs"] / "pairs.jsonl")
    columns = {
        "prompt_ids": encode_prompts(tokenizer, [pair.prompt.text for pair in pairs]),
        "chosen_ids": encode_completions(tokenizer, [p.chosen for p in pairs], [not p.chosen_truncated for p in pairs]),
        "rejected_ids": encode_completions(
            tokenizer, [p.rejected for p in pairs], [not p.rejected_truncated for p in pairs]
        ),
    }
    training = {
        **plain(method),
        "seed": derive_seed("direct", config["seed"]) % 2**31,
        "micro_batch": context.resources.get("micro_batch", 0),
    }
    arguments = DPOConfig(
        **trainer_arguments(training, context, device),
        loss_type=list(method.loss_type),
        loss_weights=list(method.loss_weights) if method.loss_weights else None,
        beta=method.beta,
        label_smoothing=method.label_smoothing,
        max_length=method.max_length,
        max_grad_norm=method.max_grad_norm,
        precompute_ref_log_probs=True,
        disable_dropout=True,
    )
    steps = int(len(pairs) * method.epochs / method.batch)
    snapshots = evenly(steps, method.checkpoints)
    trainer = TokenizedDPOTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[Listener(context, out, snapshots, lambda path: save_model(model, tokenizer, path))],
    )
    resumed_from = train(trainer, context)
    save_model(model, tokenizer, out / "final")

    read = sum(2 * len(a) + len(b) + len(c) for a, b, c in zip(*columns.values(), strict=True))
    parameters = parameter_count(model)
    flops = training_flops(parameters, read * method.epochs) + forward_flops(parameters, read)  # + the reference, once
    total = trainer.state.global_step
    write_checkpoints(out, points_along(snapshots, total, flops))
    return StageResult(Ledger(training_flops=flops), {"optimizer_steps": total, "pairs": len(pairs)}, resumed_from)

"""Supervised fine-tuning by TRL's ``SFTTrainer``: the base model, the SFT checkpoint, and SFT continued.

The three differ in where they start (from scratch, from the base, from the SFT checkpoint) and in what they read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from lab.costs import training_flops
from lab.data.jsonl import read_demonstrations
from lab.models import (
    ModelSize,
    encode_completions,
    encode_prompts,
    load_policy,
    new_policy,
    parameter_count,
    pick_device,
)
from lab.records import Demonstration, Ledger, derive_seed
from lab.store import Context, StageResult
from lab.training import (
    Listener,
    batch_order,
    evenly,
    points_along,
    save_model,
    train,
    trainer_arguments,
    write_checkpoints,
)


def token_dataset(demonstrations: list[Demonstration], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """``input_ids`` and ``labels`` (prompt tokens masked by -100) of each demonstration.

    Tokenized here and not by TRL, whose per-example ``map`` costs more than the training of a small model.
    Demonstrations longer than ``max_length`` are cut at the end, never at the prompt. Raises ValueError if a prompt
    alone fills ``max_length``.
    """
    rows: dict[str, list[list[int]]] = {"input_ids": [], "labels": []}
    prompts = encode_prompts(tokenizer, [demonstration.prompt.text for demonstration in demonstrations])
    completions = encode_completions(tokenizer, [demonstration.completion for demonstration in demonstrations])
    for demonstration, prompt, completion in zip(demonstrations, prompts, completions, strict=True):
        if len(prompt) >= max_length:
            raise ValueError(
                f"prompt {demonstration.prompt.id}: {len(prompt)} tokens leave no room in max_length = {max_length}"
            )
        completion = completion[: max_length - len(prompt)]
        rows["input_ids"].append(prompt + completion)
        rows["labels"].append([-100] * len(prompt) + completion)
    return Dataset.from_dict(rows)


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``split`` ("base" or "sft"), ``training`` (SupervisedConfig), ``size`` (from scratch) or input "policy",
    ``skip`` demonstrations already used, ``checkpoints`` along the way, ``seed``. Inputs: "data", optional "policy"."""
    training = dict(config["training"])
    training["seed"] = derive_seed("sft", training["seed"], config.get("seed", 0)) % 2**31
    device = pick_device(context.resources.get("device", "auto"))
    if "policy" in inputs:
        model, tokenizer = load_policy(inputs["policy"] / "final", device)
    else:
        from lab.world.vocabulary import tokenizer as world_tokenizer

        tokenizer = world_tokenizer()
        model = new_policy(ModelSize(**config["size"]), tokenizer, training["seed"]).to(device)
    demonstrations = read_demonstrations(inputs["data"] / f"{config['split']}.jsonl")
    skip = config.get("skip", 0) % len(demonstrations)
    chosen = (demonstrations[skip:] + demonstrations[:skip])[: training["examples"]]
    dataset = token_dataset(chosen, tokenizer, training["max_length"])

    training["micro_batch"] = context.resources.get("micro_batch", 0)
    lengths = [len(ids) for ids in dataset["input_ids"]]
    window = 20 if training["group_by_length"] else 1
    order = batch_order(lengths, training["batch"], training["epochs"], training["seed"], window)
    dataset = dataset.select(order)
    tokens = sum(lengths[row] for row in order)
    training["epochs"] = 1  # the order holds them all
    arguments = SFTConfig(
        **trainer_arguments(training, context, device),
        max_length=training["max_length"],
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
    )
    steps = max(1, len(order) // training["batch"])
    snapshots = evenly(steps, config.get("checkpoints", 0))
    listener = Listener(context, out, snapshots, lambda path: save_model(model, tokenizer, path))
    trainer = SFTTrainer(
        model=model, args=arguments, train_dataset=dataset, processing_class=tokenizer, callbacks=[listener]
    )
    model.train()
    resumed_from = train(trainer, context)
    save_model(model, tokenizer, out / "final")

    flops = training_flops(parameter_count(model), tokens)
    total = trainer.state.global_step
    write_checkpoints(out, points_along(snapshots, total, flops))
    loss = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    metrics = {"optimizer_steps": total, "tokens": tokens, "last_loss": loss[-1] if loss else None}
    return StageResult(Ledger(demonstrations=len(chosen), training_flops=flops), metrics, resumed_from)

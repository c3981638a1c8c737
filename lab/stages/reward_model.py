"""A Bradley-Terry reward model by TRL's ``RewardTrainer``, normalised on SFT completions and measured against gold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import RewardConfig, RewardTrainer

from lab.costs import training_flops
from lab.data.jsonl import read_pairs
from lab.models import encode_completions, encode_prompts, load_classifier, parameter_count, pick_device
from lab.records import Ledger, Pair, derive_seed
from lab.rewards.classifier import raw_scores
from lab.rewards.source import write_normalisation
from lab.store import Context, StageResult
from lab.training import Listener, save_model, train, trainer_arguments


def tokens_of(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[list[int]]]:
    """Prompt and completion ids of the chosen and of the rejected side, end of sequence only where it was reached."""
    prompts = encode_prompts(tokenizer, [pair.prompt.text for pair in pairs])
    chosen = encode_completions(tokenizer, [p.chosen for p in pairs], [not p.chosen_truncated for p in pairs])
    rejected = encode_completions(tokenizer, [p.rejected for p in pairs], [not p.rejected_truncated for p in pairs])
    return (
        [a + b for a, b in zip(prompts, chosen, strict=True)],
        [a + b for a, b in zip(prompts, rejected, strict=True)],
    )


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``training`` (RewardModelConfig), ``seed``. Inputs: "policy" (where it starts: SFT or a base), "pairs".

    Writes ``final/``, ``normalisation.json`` (score = (raw - shift) / scale has mean 0 and spread 1 on the SFT samples)
    and ``accuracy.json`` (agreement with the true order of the held-out pairs, by domain; a tie is a miss).
    """
    training = dict(config["training"])
    training["seed"] = derive_seed("reward model", training["seed"], config.get("seed", 0)) % 2**31
    training["micro_batch"] = context.resources.get("micro_batch", 0)
    device = pick_device(context.resources.get("device", "auto"))
    model, tokenizer = load_classifier(inputs["policy"] / "final", device, new_head_seed=training["seed"])
    pairs = read_pairs(inputs["pairs"] / "pairs.jsonl")
    chosen, rejected = tokens_of(pairs, tokenizer)
    limit = training["max_length"]
    kept = [line for line in range(len(pairs)) if max(len(chosen[line]), len(rejected[line])) <= limit]
    too_long = len(pairs) - len(kept)
    kept = kept[: training["pairs"] or None]
    if not kept:
        raise ValueError(f"reward_model.max_length: {limit} is shorter than every one of the {len(pairs)} pairs")
    columns = {"chosen_ids": [chosen[i] for i in kept], "rejected_ids": [rejected[i] for i in kept]}
    if training["margin"]:
        columns["margin"] = [training["margin"] * pairs[i].strength for i in kept]
    dataset = Dataset.from_dict(columns)
    arguments = RewardConfig(
        **trainer_arguments(training, context, device),
        max_length=None,  # filtered above, and counted
        center_rewards_coefficient=training["center_coefficient"] or None,
        disable_dropout=True,
    )
    trainer = RewardTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[Listener(context, out)],
    )
    model.train()
    resumed_from = train(trainer, context)
    model.eval()
    save_model(model, tokenizer, out / "final")

    reference = read_pairs(inputs["pairs"] / "reference.jsonl")
    raw = raw_scores(model, tokenizer, tokens_of(reference, tokenizer)[0])
    normalisation = write_normalisation(out, raw)

    held_out = read_pairs(inputs["pairs"] / "held_out.jsonl")
    accuracy = _accuracy(held_out, *(raw_scores(model, tokenizer, side) for side in tokens_of(held_out, tokenizer)))
    (out / "accuracy.json").write_text(json.dumps(accuracy, indent=1) + "\n", encoding="utf-8")
    tokens = sum(len(chosen[i]) + len(rejected[i]) for i in kept)
    flops = training_flops(parameter_count(model), tokens * training["epochs"])
    metrics = {
        **accuracy,
        **normalisation,
        "parameters": parameter_count(model),
        "pairs": len(kept),
        "too_long": too_long,
    }
    return StageResult(Ledger(training_flops=flops), metrics, resumed_from)


def _accuracy(pairs: Sequence[Pair], chosen: np.ndarray, rejected: np.ndarray) -> dict[str, Any]:
    wins = chosen > rejected
    domains = sorted({pair.prompt.domain for pair in pairs})
    of = np.array([pair.prompt.domain for pair in pairs])
    by_domain = {domain: float(wins[of == domain].mean()) for domain in domains}
    return {"accuracy": float(wins.mean()) if len(pairs) else None, "held_out": len(pairs), "by_domain": by_domain}

"""A small generative judge, trained by TRL's ``SFTTrainer`` to emit one verdict token on the preference pool.

Every pair makes four examples: both orders of the comparison, so that a slot alone predicts nothing, and each side
graded by itself (chosen good, rejected bad). Only the verdict is trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from lab.costs import training_flops
from lab.data.jsonl import read_pairs
from lab.models import add_token_rows, load_policy, parameter_count, pick_device
from lab.records import Ledger, Pair, derive_seed
from lab.rewards.held_out import measure, sides
from lab.rewards.judge import JudgeReward, Markers, WorldJudgeBackend, compare_ids, grade_ids
from lab.store import Context, StageResult
from lab.training import Listener, batch_order, save_model, train, trainer_arguments


def add_markers(model: PreTrainedModel, seed: int) -> Markers:
    """New rows for the judge's markers behind the embedding's own, drawn from ``seed``."""
    return Markers.after(add_token_rows(model, len(fields(Markers)), seed))


def examples(
    pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, markers: Markers, max_length: int
) -> tuple[list[list[int]], int]:
    """Token ids of the examples, the verdict last, and the number of pairs that were left out as too long.

    A pair is kept whole or not at all: half of its examples would teach a slot. Raises ValueError if none is left.
    """
    prompts, chosen, rejected = sides(pairs)
    groups = (
        (compare_ids(tokenizer, markers, prompts, chosen, rejected), markers.first),
        (compare_ids(tokenizer, markers, prompts, rejected, chosen), markers.second),
        (grade_ids(tokenizer, markers, prompts, chosen), markers.good),
        (grade_ids(tokenizer, markers, prompts, rejected), markers.bad),
    )
    kept = [row for row in range(len(pairs)) if max(len(ids[row]) for ids, _ in groups) < max_length]
    if not kept:
        raise ValueError(f"judge.max_length: {max_length} is shorter than every one of the {len(pairs)} pairs")
    return [[*ids[row], verdict] for row in kept for ids, verdict in groups], len(pairs) - len(kept)


def verdict_labels(ids: Sequence[int]) -> list[int]:
    """Labels of one example: its last token alone, all others masked by -100."""
    return [-100] * (len(ids) - 1) + [ids[-1]]


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``training`` (WorldJudge), ``seed``. Inputs: "policy" (where the judge starts), "pairs".

    Writes ``final/``, ``markers.json``, ``normalisation.json`` (of the grade, a log-odds) and ``accuracy.json``: of the
    grade, and under ``compare`` of the comparison with its position bias and inconsistency.
    """
    training = dict(config["training"])
    training["seed"] = derive_seed("judge", training["seed"], config.get("seed", 0)) % 2**31
    training["micro_batch"] = context.resources.get("micro_batch", 0)
    device = pick_device(context.resources.get("device", "auto"))
    model, tokenizer = load_policy(inputs["policy"] / "final", device)
    markers = add_markers(model, training["seed"])
    rows, too_long = examples(read_pairs(inputs["pairs"] / "pairs.jsonl"), tokenizer, markers, training["max_length"])
    # Comparisons are twice as long as gradings: batches of one length save padding (each row has one token to learn).
    order = batch_order([len(ids) for ids in rows], training["batch"], training["epochs"], training["seed"], window=20)
    dataset = Dataset.from_dict(
        {
            "input_ids": [rows[row] for row in order],
            "labels": [verdict_labels(rows[row]) for row in order],
        }
    )
    arguments = SFTConfig(
        **trainer_arguments({**training, "epochs": 1}, context, device),  # the order holds all epochs
        max_length=training["max_length"],
        packing=False,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        callbacks=[Listener(context, out)],
    )
    model.train()
    resumed_from = train(trainer, context)
    save_model(model, tokenizer, out / "final")
    markers.write(out / "markers.json")

    metrics = measure(JudgeReward(WorldJudgeBackend(out, device), (0.0, 1.0)), inputs["pairs"], out)
    flops = training_flops(parameter_count(model), sum(len(rows[row]) for row in order))
    metrics |= {"parameters": parameter_count(model), "pairs": len(rows) // 4, "too_long": too_long}
    return StageResult(Ledger(training_flops=flops), metrics, resumed_from)

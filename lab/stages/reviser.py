"""The world's reviser: a small model trained by TRL's ``SFTTrainer`` to criticise and revise under a principle's token.

Its examples are an editor's work on the SFT set's demonstrations: each meets one principle, drawn by seed. Only verdict
and revision are trained on.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig, SFTTrainer

from lab.config import ConstitutionConfig, WorldReviser, build
from lab.costs import training_flops
from lab.data.jsonl import read_demonstrations
from lab.feedback.constitution import drawn
from lab.feedback.world_editor import RevisionMarkers, edit, revision_ids
from lab.models import add_token_rows, encode_completions, load_policy, parameter_count, pick_device
from lab.records import Completion, Demonstration, Ledger, derive_seed
from lab.store import Context, StageResult
from lab.training import Listener, batch_order, save_model, train, trainer_arguments
from lab.typed import plain


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``reviser`` (WorldReviser), ``constitution`` (ConstitutionConfig), ``seed``. Inputs: "policy" (where it
    starts), "data" (``sft.jsonl``: what the editor revises).

    Writes ``final/`` and ``markers.json``. The ledger counts each of the editor's revisions as a demonstration.
    """
    reviser = build(WorldReviser, config["reviser"], "reviser")
    seed = derive_seed("reviser", reviser.seed, config["seed"]) % 2**31
    device = pick_device(context.resources.get("device", "auto"))
    model, tokenizer = load_policy(inputs["policy"] / "final", device)
    markers = RevisionMarkers.after(add_token_rows(model, len(fields(RevisionMarkers)), seed))
    drafts = read_demonstrations(inputs["data"] / "sft.jsonl")[: reviser.examples]
    constitution = build(ConstitutionConfig, config["constitution"], "constitution")
    rows, revised = examples(drafts, constitution, tokenizer, markers, reviser.slip, seed)
    rows = [(ids, labels) for ids, labels in rows if len(ids) <= reviser.max_length]
    if not rows:
        raise ValueError(f"reviser.max_length: {reviser.max_length} is shorter than every example")
    order = batch_order([len(ids) for ids, _ in rows], reviser.batch, reviser.epochs, seed, window=20)
    dataset = Dataset.from_dict(
        {"input_ids": [rows[row][0] for row in order], "labels": [rows[row][1] for row in order]}
    )
    training = {**plain(reviser), "seed": seed, "epochs": 1, "micro_batch": context.resources.get("micro_batch", 0)}
    arguments = SFTConfig(
        **trainer_arguments(training, context, device),
        max_length=reviser.max_length,
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
    flops = training_flops(parameter_count(model), sum(len(rows[row][0]) for row in order))
    loss = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    metrics = {"examples": len(rows), "too_long": len(drafts) - len(rows), "revised_by_editor": revised,
               "parameters": parameter_count(model), "last_loss": loss[-1] if loss else None}  # fmt: skip
    return StageResult(Ledger(demonstrations=len(drafts), training_flops=flops), metrics, resumed_from)


def examples(
    demonstrations: Sequence[Demonstration],
    constitution: ConstitutionConfig,
    tokenizer: PreTrainedTokenizerBase,
    markers: RevisionMarkers,
    slip: float,
    seed: int,
) -> tuple[list[tuple[list[int], list[int]]], int]:
    """(token ids, labels) of each example, everything before the verdict masked by -100; how many drafts were revised.

    Each draft meets one principle and the editor's own luck, both drawn from ``seed`` and its place.
    """
    prompts = [one.prompt for one in demonstrations]
    drafts = [Completion(one.prompt.id, 0, one.completion, len(one.completion.split())) for one in demonstrations]
    meant = [drawn(constitution, 1, seed, number)[0].attribute for number in range(len(drafts))]
    edits = [
        edit(random.Random(derive_seed("editor", seed, number)), prompt, draft, attribute, slip)
        for number, (prompt, draft, attribute) in enumerate(zip(prompts, drafts, meant, strict=True))
    ]
    answers = encode_completions(tokenizer, [text or "" for text in edits])  # nothing but its end where it is kept
    rows = []
    asked = revision_ids(tokenizer, markers, prompts, drafts, meant)
    for ids, text, answer in zip(asked, edits, answers, strict=True):
        said = [markers.meets if text is None else markers.breaks, *answer]
        rows.append(([*ids, *said], [-100] * len(ids) + said))
    return rows, sum(text is not None for text in edits)

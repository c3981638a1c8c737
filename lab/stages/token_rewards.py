"""Outcome and process reward models: one logit a token by token classification, trained on right and wrong.

Outcome (Cobbe et al. 2021): every token of a completion is labelled with whether a rule verifier accepts the end.
Process (Lightman et al. 2023): the token at which a step ends is labelled with whether the step is right, by the
world's own check or by how often the SFT policy ends right from there (Wang et al. 2024, Math-Shepherd).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from lab.costs import forward_flops, training_flops
from lab.data.jsonl import read_pairs, read_samples
from lab.models import decode_completions, end_token_ids, load_policy, parameter_count, pick_device
from lab.records import Completion, Ledger, Pair, Prompt, derive_seed
from lab.rewards.agreement import agreement, auc, completions_of
from lab.rewards.source import write_normalisation
from lab.rewards.token_scores import (
    VARIANTS,
    Judged,
    encode,
    judge_tokens,
    load_token_classifier,
    raw_scores,
    spans_of,
    step_positions,
    variant_file,
)
from lab.rewards.truth import VerifierReward
from lab.sampling import sample
from lab.store import Context, StageResult
from lab.training import Listener, batch_order, save_model, train, trainer_arguments
from lab.world.steps import has_steps, step_labels

UNLABELLED = -100.0
WINDOW = 20  # batches that are sorted by length together


@dataclass(frozen=True)
class Labelled:
    """A completion and its labels in [0, 1], one for each of its steps (process) or one alone (outcome); NaN: none."""

    prompt: Prompt
    completion: Completion
    labels: tuple[float, ...]


# ---------------------------------------------------------------- loss


def token_loss(logits_BT: Tensor, targets_BT: Tensor, items: Tensor | int | None = None) -> Tensor:
    """Binary cross-entropy -y log p - (1 - y) log(1 - p), p = sigmoid(logit), over the tokens with a target.

    Targets lie in [0, 1], or are ``UNLABELLED``. Their sum is divided by ``items`` (the labelled tokens of the whole
    optimizer step, so that micro-batches change nothing), by default by the number of labelled tokens here.
    """
    known_BT = targets_BT != UNLABELLED
    logits, targets = logits_BT[known_BT].float(), targets_BT[known_BT].float()
    total = functional.binary_cross_entropy_with_logits(logits, targets, reduction="sum")
    return total / (known_BT.sum().clamp(min=1) if items is None else items)


def collate(rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
    """Right-padded ``input_ids``, ``attention_mask`` and ``labels`` (B, T)."""
    width = max(len(row["input_ids"]) for row in rows)
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    labels = torch.full((len(rows), width), UNLABELLED)
    for line, row in enumerate(rows):
        length = len(row["input_ids"])
        ids[line, :length], mask[line, :length] = torch.tensor(row["input_ids"]), 1
        labels[line, :length] = torch.tensor(row["labels"], dtype=torch.float)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


# ---------------------------------------------------------------- labels


def outcome_labels(samples: Sequence[tuple[Prompt, Completion]]) -> tuple[list[Labelled], Ledger]:
    """Each completion with the rule verifier's word on it (NaN where the verifier failed)."""
    verdicts = VerifierReward().score([prompt for prompt, _ in samples], [one for _, one in samples])
    labelled = [Labelled(*pair, (float(verdict),)) for pair, verdict in zip(samples, verdicts, strict=True)]
    return labelled, Ledger(verifier_calls=len(samples))


def world_labels(samples: Sequence[tuple[Prompt, Completion]]) -> tuple[list[Labelled], Ledger]:
    """Each completion with the world's check of every step."""
    labelled = [
        Labelled(prompt, one, tuple(float(step.correct) for step in step_labels(prompt, one.text)))
        for prompt, one in samples
    ]
    return labelled, Ledger(step_labels=sum(len(one.labels) for one in labelled))


def rollout_labels(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    samples: Sequence[tuple[Prompt, Completion]],
    rollouts: int,
    seed: int,
    batch_size: int = 256,
) -> tuple[list[Labelled], Ledger]:
    """Each completion with a soft label for every step: the share of ``rollouts`` continuations from the step's end
    that the verifier accepts (Wang et al. 2024, arXiv:2312.08935). The last step is the completion's own verdict.

    Completions that begin alike share their rollouts. A rollout may be as long as the longest sample.
    """
    prompt_ids, completion_ids = encode(tokenizer, [p for p, _ in samples], [one for _, one in samples])
    starts: list[list[tuple[int, ...]]] = []  # token prefixes of each sample, up to the end of each step but the last
    wanted: dict[tuple[str, tuple[int, ...]], tuple[Prompt, list[int]]] = {}
    for (prompt, one), asked, said in zip(samples, prompt_ids, completion_ids, strict=True):
        places = step_positions(tokenizer, one.text, spans_of(prompt, one.text), said)
        starts.append([tuple(said[: at + 1]) for at in places[:-1]])
        wanted |= {(prompt.id, start): (prompt, asked) for start in starts[-1]}
    jobs = [(key, *owner, number) for key, owner in wanted.items() for number in range(rollouts)]
    contexts = [[*asked, *start] for (_, start), _, asked, _ in jobs]
    drawn = sample(
        policy,
        contexts,
        seeds=[derive_seed("step rollout", seed, *key, number) for key, _, _, number in jobs],
        max_new_tokens=max(one.length for _, one in samples),
        eos_token_id=end_token_ids(policy, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        batch_size=batch_size,
    )
    texts = decode_completions(tokenizer, [[*key[1], *one.ids] for (key, *_), one in zip(jobs, drawn, strict=True)])
    ended = [Completion(prompt.id, n, text, 0) for (_, prompt, _, n), text in zip(jobs, texts, strict=True)]
    verdicts = VerifierReward().score([prompt for _, prompt, _, _ in jobs], ended).reshape(-1, rollouts)
    share = {}
    for key, row in zip(wanted, verdicts, strict=True):
        known = row[~np.isnan(row)]
        share[key] = float(known.mean()) if len(known) else float("nan")
    finals, spent = outcome_labels(samples)
    labelled = [
        Labelled(prompt, one, (*(share[prompt.id, start] for start in mine), *final.labels))
        for (prompt, one), mine, final in zip(samples, starts, finals, strict=True)
    ]
    read, generated = sum(map(len, contexts)), sum(len(one.ids) for one in drawn)
    flops = forward_flops(parameter_count(policy), read + generated)
    cost = Ledger(verifier_calls=len(jobs), prompt_tokens=read, generated_tokens=generated, sampling_flops=flops)
    return labelled, spent + cost


def token_rows(
    tokenizer: PreTrainedTokenizerBase, kind: str, labelled: Sequence[Labelled]
) -> list[dict[str, list[Any]]]:
    """``input_ids`` and ``labels`` (T,) of each completion: its label on every completion token (outcome), or each
    step's on the token at which it is judged (process). An empty completion is judged at its prompt's last token."""
    prompt_ids, completion_ids = encode(tokenizer, [x.prompt for x in labelled], [x.completion for x in labelled])
    rows: list[dict[str, list[Any]]] = []
    for one, asked, said in zip(labelled, prompt_ids, completion_ids, strict=True):
        targets = [UNLABELLED] * max(len(said), 1)
        if kind == "outcome":
            targets = [_target(one.labels[0])] * len(targets)
        else:
            text = one.completion.text
            places = step_positions(tokenizer, text, spans_of(one.prompt, text), said)
            for at, label in zip(places, one.labels, strict=True):
                targets[at] = _target(label)
        before = len(asked) if said else len(asked) - 1
        rows.append({"input_ids": [*asked, *said], "labels": [UNLABELLED] * before + targets})
    return rows


def _target(label: float) -> float:
    return UNLABELLED if np.isnan(label) else label


# ---------------------------------------------------------------- the stage


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``kind`` ("outcome" or "process"), ``training`` (TokenRewardConfig), ``seed``. Inputs: "policy" (where it
    starts: SFT), "pairs", optional "sft" (the policy that rolls out, if another).

    Writes ``final/``, ``normalisation-VARIANT.json`` of each variant and ``normalisation.json`` of the default one,
    and ``accuracy.json`` (see ``measure``). What is measured on held-out prompts is not charged: nothing learns of it.
    Raises ValueError if no completion can be labelled.
    """
    kind, training = config["kind"], dict(config["training"])
    training["seed"] = derive_seed(kind, training["seed"], config.get("seed", 0)) % 2**31
    training["micro_batch"] = context.resources.get("micro_batch", 0)
    device = pick_device(context.resources.get("device", "auto"))
    model, tokenizer = load_token_classifier(inputs["policy"] / "final", device, new_head_seed=training["seed"])
    samples = read_samples(inputs["pairs"] / "samples.jsonl")
    usable, too_long = _usable(samples, tokenizer, kind, training, inputs["pairs"] / "samples.jsonl")
    if kind == "outcome":
        labelled, spent = outcome_labels(usable)
    elif training["labels"] == "world":
        labelled, spent = world_labels(usable)
    else:
        policy, own = load_policy(inputs.get("sft", inputs["policy"]) / "final", device)
        batch = context.resources.get("batch", 256)
        labelled, spent = rollout_labels(policy, own, usable, training["rollouts"], training["seed"], batch)
    rows = token_rows(tokenizer, kind, labelled)

    lengths = [len(row["input_ids"]) for row in rows]
    order = batch_order(lengths, training["batch"], training["epochs"], training["seed"], WINDOW)
    training["epochs"] = 1  # the order holds them all
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            **trainer_arguments(training, context, device),
            remove_unused_columns=False,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list([rows[row] for row in order]),
        data_collator=collate,
        compute_loss_func=lambda outputs, labels, num_items_in_batch=None: token_loss(
            outputs.logits.squeeze(-1), labels, num_items_in_batch
        ),
        callbacks=[Listener(context, out)],
    )
    model.train()
    resumed_from = train(trainer, context)
    model.eval()
    save_model(model, tokenizer, out / "final")

    reference = read_pairs(inputs["pairs"] / "reference.jsonl")
    judged = _judge(model, tokenizer, kind, reference, "chosen")
    default = VARIANTS[kind][0]
    for variant in (*VARIANTS[kind][1:], default):  # the default is written last, and stays
        normalisation = write_normalisation(out, raw_scores(judged, variant))
        variant_file(out, variant).write_text(json.dumps(normalisation) + "\n", encoding="utf-8")

    accuracy = measure(model, tokenizer, kind, read_pairs(inputs["pairs"] / "held_out.jsonl"))
    (out / "accuracy.json").write_text(json.dumps(accuracy, indent=1) + "\n", encoding="utf-8")
    tokens = sum(lengths[row] for row in order)
    flops = training_flops(parameter_count(model), tokens)
    all_labels = np.array([label for one in labelled for label in one.labels])
    metrics = {
        **accuracy,
        **normalisation,
        "completions": len(labelled),
        "labels": len(all_labels),
        "labels_mean": float(np.nanmean(all_labels)),
        "too_long": too_long,
    }
    return StageResult(spent + Ledger(training_flops=flops), metrics, resumed_from)


def _usable(
    samples: Sequence[tuple[Prompt, Completion]],
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    training: Mapping[str, Any],
    path: Path,
) -> tuple[list[tuple[Prompt, Completion]], int]:
    """The samples that can be labelled and fit into ``max_length``, and how many did not fit."""
    by_world = kind == "process" and training["labels"] == "world"
    known = [(p, one) for p, one in samples if (has_steps(p) if by_world else p.verifier is not None)]
    if not known:
        need = "steps that the world knows (try labels: rollouts)" if by_world else "a rule verifier"
        raise ValueError(f"{path}: none of the prompts of its {len(samples)} completions has {need}")
    begin, end = encode(tokenizer, [prompt for prompt, _ in known], [one for _, one in known])
    fits = [len(a) + len(b) <= training["max_length"] for a, b in zip(begin, end, strict=True)]
    if not any(fits):
        raise ValueError(f"max_length: {training['max_length']} is shorter than every one of {len(known)} completions")
    return [pair for pair, fit in zip(known, fits, strict=True) if fit], fits.count(False)


# ---------------------------------------------------------------- measuring


def measure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, held_out: Sequence[Pair]
) -> dict[str, Any]:
    """How the default variant orders held-out pairs (all, by domain, and ``verifiable``: those with a rule verifier),
    ``variants``: accuracy of each; ``outcome``: how its score tells accepted from refused completions; and of a
    process model ``steps``: how its steps' scores tell right from wrong ones, by the world's check."""
    judged = {side: _judge(model, tokenizer, kind, held_out, side) for side in ("chosen", "rejected")}
    raw = {variant: {side: raw_scores(judged[side], variant) for side in judged} for variant in VARIANTS[kind]}
    scores = raw[VARIANTS[kind][0]]
    result = agreement(held_out, scores["chosen"], scores["rejected"])
    checked = [line for line, pair in enumerate(held_out) if pair.prompt.verifier is not None]
    few = agreement([held_out[line] for line in checked], *(side[checked] for side in scores.values()))
    result["verifiable"] = {"accuracy": few["accuracy"], "held_out": few["held_out"]}
    result["variants"] = {
        variant: agreement(held_out, sides["chosen"], sides["rejected"])["accuracy"] for variant, sides in raw.items()
    }
    asked = [held_out[line].prompt for line in checked]
    verdicts = [
        VerifierReward().score(asked, completions_of([held_out[line] for line in checked], side)) for side in judged
    ]
    # A product of probabilities is above one half where its log is above log 1/2; log-odds where they are above 0.
    border = 0.0 if kind == "outcome" else float(np.log(0.5))
    result["outcome"] = _separation(
        np.concatenate([scores[side][checked] for side in judged]) - border, np.concatenate(verdicts)
    )
    if kind == "process":
        found = [
            (logit, step.correct)
            for side in judged
            for pair, one, answered in zip(held_out, judged[side], completions_of(held_out, side), strict=True)
            if has_steps(pair.prompt)
            for logit, step in zip(one.logits, step_labels(pair.prompt, answered.text), strict=True)
        ]
        result["steps"] = _separation(*np.array(found, dtype=float).reshape(-1, 2).T)
    return result


def _separation(scores: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy of ``scores > 0``, area under the ROC curve, and how many are right; what is not known is left out."""
    known = ~np.isnan(labels)
    scores, right = scores[known], labels[known] == 1
    return {
        "accuracy": float(((scores > 0) == right).mean()) if len(right) else None,
        "auc": auc(scores, right),
        "right": float(right.mean()) if len(right) else None,
        "count": len(right),
    }


def _judge(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, kind: str, pairs: Sequence[Pair], side: str
) -> list[Judged]:
    return judge_tokens(model, tokenizer, kind, [pair.prompt for pair in pairs], completions_of(pairs, side))

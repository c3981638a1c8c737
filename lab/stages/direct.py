"""Direct alignment on the pool: TRL's ``DPOTrainer`` with every ``loss_type``, ``KTOTrainer`` on single completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from lab.config import DirectMethod, UnpairedMethod, build
from lab.costs import forward_flops, training_flops
from lab.data.jsonl import read_pairs
from lab.models import encode_completions, encode_prompts, load_policy, parameter_count, pick_device
from lab.records import Ledger, Pair, derive_seed
from lab.store import Context, StageResult
from lab.training import Listener, evenly, points_along, save_model, train, trainer_arguments, write_checkpoints
from lab.typed import plain


class TokenizedDPOTrainer(DPOTrainer):
    """``DPOTrainer`` on token ids that the lab has made.

    TRL has no pre-tokenized path here, and its own tokenization appends an end to completions that never reached one.
    """

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        return dataset


class TokenizedKTOTrainer(KTOTrainer):
    """``KTOTrainer`` on token ids that the lab has made: prompt_ids, completion_ids, KL_completion_ids, label."""

    def _prepare_dataset(self, dataset: Dataset, processing_class: Any, args: Any, dataset_name: str) -> Dataset:
        return dataset


@dataclass(frozen=True)
class _Run:
    """A trainer that is ready to go: how many optimizer steps it will take, and what they cost in FLOPs."""

    trainer: DPOTrainer | KTOTrainer
    snapshots: list[int]
    flops: float


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``method`` (DirectMethod or UnpairedMethod), ``seed``. Inputs: "sft" (the policy to start from), "pairs",
    and optionally "reference" (a policy: what the loss is relative to; the start unless given)."""
    method: DirectMethod | UnpairedMethod = build(DirectMethod | UnpairedMethod, config["method"], "method")
    device = pick_device(context.resources.get("device", "auto"))
    # The model knows the folder it came from, and TRL loads the reference from there: the start's checkpoint on disk.
    model, tokenizer = load_policy(inputs["sft"] / "final", device)
    reference = load_policy(inputs["reference"] / "final", device)[0] if "reference" in inputs else None
    pairs = read_pairs(inputs["pairs"] / "pairs.jsonl")
    training = {
        **plain(method),
        "seed": derive_seed("direct", config["seed"]) % 2**31,
        "micro_batch": context.resources.get("micro_batch", 0),
    }
    given = _Given(model, tokenizer, reference, pairs, training, out, context)
    ready = _unpaired(method, given, device) if isinstance(method, UnpairedMethod) else _paired(method, given, device)
    resumed_from = train(ready.trainer, context)
    save_model(model, tokenizer, out / "final")
    total = ready.trainer.state.global_step
    write_checkpoints(out, points_along(ready.snapshots, total, ready.flops))
    metrics = {"optimizer_steps": total, "pairs": len(pairs)}
    return StageResult(Ledger(training_flops=ready.flops), metrics, resumed_from)


@dataclass(frozen=True)
class _Given:
    """What a trainer is made of. ``training``: the method as plain data, with the seed of this run."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    reference: PreTrainedModel | None
    pairs: Sequence[Pair]
    training: Mapping[str, Any]
    out: Path
    context: Context

    def listener(self, snapshots: Sequence[int]) -> Listener:
        return Listener(self.context, self.out, snapshots, lambda path: save_model(self.model, self.tokenizer, path))


def _paired(method: DirectMethod, given: _Given, device: Any) -> _Run:
    pairs, tokenizer = given.pairs, given.tokenizer
    columns = {
        "prompt_ids": encode_prompts(tokenizer, [pair.prompt.text for pair in pairs]),
        "chosen_ids": encode_completions(tokenizer, [p.chosen for p in pairs], [not p.chosen_truncated for p in pairs]),
        "rejected_ids": encode_completions(
            tokenizer, [p.rejected for p in pairs], [not p.rejected_truncated for p in pairs]
        ),
    }
    arguments = DPOConfig(
        **trainer_arguments(given.training, given.context, device),
        loss_type=list(method.loss_type),
        loss_weights=list(method.loss_weights) if method.loss_weights else None,
        beta=method.beta,
        label_smoothing=method.label_smoothing,
        max_length=method.max_length,
        max_grad_norm=method.max_grad_norm,
        precompute_ref_log_probs=True,
        disable_dropout=True,
    )
    snapshots = evenly(max(1, int(len(pairs) * method.epochs / method.batch)), method.checkpoints)
    trainer = TokenizedDPOTrainer(
        model=given.model,
        ref_model=given.reference,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        processing_class=tokenizer,
        callbacks=[given.listener(snapshots)],
    )
    read = sum(2 * len(a) + len(b) + len(c) for a, b, c in zip(*columns.values(), strict=True))
    parameters = parameter_count(given.model)
    flops = training_flops(parameters, read * method.epochs) + forward_flops(parameters, read)  # + the reference, once
    return _Run(trainer, snapshots, flops)


def _unpaired(method: UnpairedMethod, given: _Given, device: Any) -> _Run:
    rows = unpaired(given.pairs, method.sides, given.training["seed"])
    order = whole_batches(len(rows), method.batch, method.epochs, given.training["seed"])
    rows = [rows[place] for place in order]
    completions = encode_completions(
        given.tokenizer, [text for _, text, _, _ in rows], [ended for *_, ended, _ in rows]
    )
    columns: dict[str, list[Any]] = {
        "prompt_ids": encode_prompts(given.tokenizer, [prompt for prompt, *_ in rows]),
        "completion_ids": completions,
        "label": [good for *_, good in rows],
    }
    loss = method.loss_type
    if loss == "kto":
        columns["KL_completion_ids"] = mismatched(completions, method.kl_batch)
    training = {**given.training, "epochs": 1, "micro_batch": method.kl_batch}  # the order holds all epochs
    arguments = KTOConfig(
        **trainer_arguments(training, given.context, device),
        loss_type=loss,
        beta=method.beta,
        desirable_weight=method.desirable_weight,
        undesirable_weight=method.undesirable_weight,
        max_length=method.max_length,
        max_grad_norm=method.max_grad_norm,
        precompute_ref_log_probs=True,
        disable_dropout=True,
        train_sampling_strategy="sequential",
    )
    snapshots = evenly(max(1, len(rows) // method.batch), method.checkpoints)
    trainer = TokenizedKTOTrainer(
        model=given.model,
        ref_model=given.reference,
        args=arguments,
        train_dataset=Dataset.from_dict(columns),
        processing_class=given.tokenizer,
        callbacks=[given.listener(snapshots)],
    )
    prompts = sum(map(len, columns["prompt_ids"]))
    read = prompts + sum(map(len, completions))
    others = prompts + sum(map(len, columns["KL_completion_ids"])) if loss == "kto" else 0
    parameters = parameter_count(given.model)
    # Policy and reference read the mismatched completions too, without a gradient.
    flops = training_flops(parameters, read) + forward_flops(parameters, read + 2 * others)
    return _Run(trainer, snapshots, flops)


def unpaired(pairs: Sequence[Pair], sides: str, seed: int) -> list[tuple[str, str, bool, bool]]:
    """(prompt, completion, whether it reached its end, whether it is good) of every single completion.

    ``sides`` "both": chosen and rejected of every pair; "one": of every pair the chosen or the rejected side, half and
    half, by ``seed``.
    """
    good = [(p.prompt.text, p.chosen, not p.chosen_truncated, True) for p in pairs]
    bad = [(p.prompt.text, p.rejected, not p.rejected_truncated, False) for p in pairs]
    if sides == "both":
        return good + bad
    turned = np.random.default_rng(derive_seed("sides", seed)).permutation(len(pairs)) % 2
    return [good[place] if turn else bad[place] for place, turn in enumerate(turned)]


def whole_batches(rows: int, batch: int, epochs: float, seed: int) -> list[int]:
    """Row numbers in training order, every epoch shuffled anew, without the incomplete batch at the end of each (unless
    it is the only one). KTO needs the order beforehand: each row's mismatched completion is its neighbour's."""
    rng = np.random.default_rng(derive_seed("order", seed))
    whole = rows // batch * batch or rows
    order: list[int] = []
    while len(order) < round(whole * epochs):
        order += [int(row) for row in rng.permutation(rows)[:whole]]
    return order[: max(min(batch, whole), round(whole * epochs) // batch * batch)]


def mismatched(completions: Sequence[list[int]], batch: int) -> list[list[int]]:
    """For each row the completion of the row before it in its batch (of the first: the last's), as KTO's reference
    point wants it: the batch's own completions, each under another prompt."""
    found: list[list[int]] = []
    for start in range(0, len(completions), batch):
        part = list(completions[start : start + batch])
        found += part[-1:] + part[:-1]
    return found

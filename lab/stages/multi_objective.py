"""The multi-objective reward model (ArmoRM): rated attributes regressed on frozen features, gated by the prompt."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from lab.costs import forward_flops, training_flops
from lab.data.jsonl import read_pairs, read_samples
from lab.models import encode_completions, encode_prompts, load_policy, parameter_count, pick_device
from lab.records import Completion, Ledger, Pair, Prompt, derive_seed
from lab.rewards.agreement import agreement, completions_of
from lab.rewards.multi_objective import Features, Heads, length_slopes, read_features, ridge
from lab.rewards.source import write_normalisation
from lab.store import Context, StageResult
from lab.training import DivergedError, save_model
from lab.world.attributes import ATTRIBUTES, rate, true_attributes

LOG_EVERY = 20


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``training`` (MultiObjectiveConfig), ``seed``, optional ``max_ratings`` (of single attributes, in all).
    Inputs: "policy" (the frozen backbone: SFT), "pairs".

    Writes ``final/`` (the backbone as it was), ``heads.safetensors``, ``normalisation.json``, ``trace.jsonl`` of the
    gate and ``accuracy.json`` (see ``measure``). Brevity is not rated where length is taken out. The gate learns from
    the pairs, whose labels the pool has charged. Nothing resumes: each feature is computed once, and the rest takes
    seconds. Raises ValueError if nothing fits into ``max_length``.
    """
    training = config["training"]
    seed = derive_seed("multi objective", training["seed"], config.get("seed", 0)) % 2**31
    device = pick_device(context.resources.get("device", "auto"))
    backbone, tokenizer = load_policy(inputs["policy"] / "final", device)
    attributes = [name for name in ATTRIBUTES if not (training["decorrelate_length"] and name == "brevity")]
    limit = training["max_length"]

    def read(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Features:
        return read_features(backbone, tokenizer, prompts, completions)

    def read_side(pairs: Sequence[Pair], side: str) -> Features:
        return read([pair.prompt for pair in pairs], completions_of(pairs, side))

    samples = read_samples(inputs["pairs"] / "samples.jsonl")
    fitting = [s for s, fits in zip(samples, _fits(tokenizer, samples, limit), strict=True) if fits]
    rated = _some(fitting, config.get("max_ratings", 0) // len(attributes), training["seed"])
    pairs = read_pairs(inputs["pairs"] / "pairs.jsonl")
    sides = [
        _fits(tokenizer, [(p.prompt, one) for p, one in zip(pairs, completions_of(pairs, side), strict=True)], limit)
        for side in ("chosen", "rejected")
    ]
    compared = [pair for pair, first, second in zip(pairs, *sides, strict=True) if first and second]
    if not rated or not compared:
        raise ValueError(
            f"multi_objective.max_length: {limit} leaves {len(rated)} of {len(samples)} completions "
            f"and {len(compared)} of {len(pairs)} pairs"
        )

    context.progress(0, 2, f"{len(rated)} x {len(attributes)} ratings")
    prompts, completions = [prompt for prompt, _ in rated], [one for _, one in rated]
    of_rated, reference = read(prompts, completions), read_pairs(inputs["pairs"] / "reference.jsonl")
    of_reference = read_side(reference, "chosen")
    ratings_NK = rate(prompts, completions, attributes, training["rating_noise"], training["seed"])
    heads = Heads(attributes, of_rated.whole.shape[1], training["gate_hidden"], seed)
    fit(heads, of_rated, ratings_NK, training["ridge"], of_reference if training["decorrelate_length"] else None)

    context.progress(1, 2, f"gate on {len(compared)} pairs")
    chosen, rejected = (read_side(compared, side) for side in ("chosen", "rejected"))
    losses = train_gate(heads, chosen, rejected, training, seed)
    trace = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in losses]
    (out / "trace.jsonl").write_text("".join(trace), encoding="utf-8")

    save_model(backbone, tokenizer, out / "final")
    heads.save(out)
    with torch.no_grad():
        normalisation = write_normalisation(out, heads(of_reference).double().numpy())
    held_out = read_pairs(inputs["pairs"] / "held_out.jsonl")
    accuracy = measure(heads, held_out, [read_side(held_out, side) for side in ("chosen", "rejected")], of_reference)
    (out / "accuracy.json").write_text(json.dumps(accuracy, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    context.progress(2, 2)

    gate = sum(parameter.numel() for parameter in heads.gate.parameters())
    flops = forward_flops(parameter_count(backbone), of_rated.tokens + chosen.tokens + rejected.tokens)
    flops += training_flops(gate, training["gate_steps"] * min(training["gate_batch"], len(compared)))
    metrics = {
        **accuracy,
        **normalisation,
        "completions": len(rated),
        "too_long": len(samples) - len(fitting),
        "pairs": len(compared),
        "pairs_too_long": len(pairs) - len(compared),
        "gate_loss": losses[-1][1],
    }
    return StageResult(Ledger(ratings=int(ratings_NK.size), training_flops=flops), metrics)


def _fits(tokenizer: PreTrainedTokenizerBase, owned: Sequence[tuple[Prompt, Completion]], limit: int) -> list[bool]:
    begin = encode_prompts(tokenizer, [prompt.text for prompt, _ in owned])
    end = encode_completions(tokenizer, [one.text for _, one in owned], [not one.truncated for _, one in owned])
    return [len(a) + len(b) <= limit for a, b in zip(begin, end, strict=True)]


def _some(samples: Sequence[tuple[Prompt, Completion]], count: int, seed: int) -> list[tuple[Prompt, Completion]]:
    """``count`` samples drawn without return, in their own order; all of them if ``count`` is 0."""
    if not 0 < count < len(samples):
        return list(samples)
    drawn = np.random.default_rng(derive_seed("rated", seed)).permutation(len(samples))[:count]
    return [samples[row] for row in sorted(drawn)]


@torch.no_grad()
def fit(heads: Heads, rated: Features, ratings_NK: np.ndarray, penalty: float, reference: Features | None) -> None:
    """Set the regressions from ratings, and the length slopes so that no attribute goes with length on ``reference``
    (None: verbosity stays in); the gate's inputs are standardised over the rated prompts."""
    weights_KH, bias_K = ridge(rated.whole.double().numpy(), ratings_NK, penalty)
    heads.weight.copy_(torch.from_numpy(weights_KH))
    heads.bias.copy_(torch.from_numpy(bias_K))
    heads.prompt_mean.copy_(rated.prompt.mean(dim=0))
    heads.prompt_spread.copy_(rated.prompt.std(dim=0, correction=0).clamp(min=1e-6))
    if reference is not None:
        slopes_K = length_slopes(heads.regressed(reference).double().numpy(), reference.lengths.double().numpy())
        heads.slopes.copy_(torch.from_numpy(slopes_K))
        heads.mean_length.copy_(reference.lengths.mean())


def gate_loss(weights_NK: Tensor, advantages_NK: Tensor, scale: Tensor | float) -> Tensor:
    """Bradley-Terry: the mean of -log sigmoid(scale x sum_k g_k (r'_k(chosen) - r'_k(rejected)))."""
    return -functional.logsigmoid(scale * (weights_NK * advantages_NK).sum(dim=1)).mean()


def train_gate(
    heads: Heads, chosen: Features, rejected: Features, training: Mapping[str, Any], seed: int
) -> list[tuple[int, float]]:
    """Fit gate and temperature by Adam on random batches of pairs; (step, loss) every so often, and of the last step.

    Raises DivergedError on a loss that is not finite.
    """
    with torch.no_grad():
        advantages_NK = heads.attribute_scores(chosen) - heads.attribute_scores(rejected)
    optimizer = torch.optim.Adam(heads.parameters(), lr=training["gate_learning_rate"])
    generator = torch.Generator().manual_seed(seed)
    count, steps = len(advantages_NK), training["gate_steps"]
    losses = []
    for step in range(1, steps + 1):
        rows = torch.randperm(count, generator=generator)[: training["gate_batch"]]
        loss = gate_loss(heads.gate_weights(chosen.at(rows)), advantages_NK[rows], heads.log_scale.exp())
        if not math.isfinite(loss.item()):
            raise DivergedError(f"loss is {loss.item()} at gate step {step}")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % LOG_EVERY == 0 or step == steps:
            losses.append((step, loss.item()))
    return losses


# ---------------------------------------------------------------- measuring


@torch.no_grad()
def measure(heads: Heads, held_out: Sequence[Pair], sides: Sequence[Features], reference: Features) -> dict[str, Any]:
    """Agreement with the held-out pairs; for each attribute ``r2`` (of the regression, against the attribute without
    noise, on the held-out completions), correlation with length on the reference samples ``before`` and ``after``
    verbosity is taken out, and the gate's mean weight; ``length_correlation`` of the whole reward. None: not defined.
    """
    result = agreement(held_out, *(heads(side).double().numpy() for side in sides))
    owned = [pair.prompt for pair in held_out] * 2
    said = [*completions_of(held_out, "chosen"), *completions_of(held_out, "rejected")]
    found = [true_attributes(prompt, one) for prompt, one in zip(owned, said, strict=True)]
    regressed_NK = torch.cat([heads.regressed(side) for side in sides]).double().numpy()
    before_NK, after_NK = (
        heads.regressed(reference).double().numpy(),
        heads.attribute_scores(reference).double().numpy(),
    )
    lengths, weights_NK = reference.lengths.double().numpy(), heads.gate_weights(reference).double().numpy()
    result["attributes"] = {
        name: {
            "r2": r2(regressed_NK[:, column], np.array([true[name] for true in found])),
            "length_correlation_before": correlation(before_NK[:, column], lengths),
            "length_correlation_after": correlation(after_NK[:, column], lengths),
            "mean_weight": float(weights_NK[:, column].mean()),
        }
        for column, name in enumerate(heads.attributes)
    }
    result["length_correlation"] = {
        "before": correlation((weights_NK * before_NK).sum(axis=1), lengths),
        "after": correlation((weights_NK * after_NK).sum(axis=1), lengths),
    }
    return result


def r2(predicted: np.ndarray, true: np.ndarray) -> float | None:
    """1 - squared error / squared deviation from the mean; None if the truth does not vary."""
    spread = float(((true - true.mean()) ** 2).sum()) if len(true) else 0.0
    return 1 - float(((predicted - true) ** 2).sum()) / spread if spread > 0 else None


def correlation(first: np.ndarray, second: np.ndarray) -> float | None:
    """Pearson's; None if either does not vary."""
    if len(first) < 2 or np.ptp(first) == 0 or np.ptp(second) == 0:
        return None
    return float(np.corrcoef(first, second)[0, 1])

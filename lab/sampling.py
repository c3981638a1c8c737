"""Completions from a policy: the one sampler of every arm, every preference pool and every evaluation.

A row's tokens come by inverse CDF from one uniform a token, and the uniforms from a Philox generator keyed by the row's
own seed (Salmon et al. 2011). So a sample depends on (policy, prompt, seed) alone: not on its batch neighbours, the batch
size or the budget (up to the last bits of floating point), and two arms that share seeds share their random numbers.

What this is not: a serving engine. No beams, penalties or top-p: those change the policy, and the KL meter would then
measure a policy that nobody trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from lab.models import accepts_logits_to_keep

COMPACT_BELOW = 0.8
"""Finished rows leave the batch once fewer than this share of its rows are still running."""


@dataclass(frozen=True)
class Sample:
    """One completion: token ids (the end-of-sequence token included if emitted) and their log-probabilities in nats.

    The log-probabilities are those of the distribution that was sampled from (logits divided by the temperature);
    greedy samples carry those at temperature 1. ``truncated``: the budget ran out before an end-of-sequence token.
    """

    ids: list[int]
    logprobs: list[float]
    truncated: bool


def uniforms(seed: int, count: int) -> np.ndarray:
    """The row's uniforms on [0, 1): a longer budget only appends to them."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    *,
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float = 1.0,
    eos_token_id: int | Sequence[int],
    pad_token_id: int,
    batch_size: int = 256,
) -> list[Sample]:
    """One completion a prompt, in the order of ``prompt_ids``. ``temperature=0`` is greedy and ignores the seeds.

    Rows run in batches of prompts of similar length, left-padded; the model is put in evaluation mode meanwhile.
    Raises ValueError on an empty prompt, on seeds that do not match the prompts, and on non-finite logits.
    """
    if len(seeds) != len(prompt_ids):
        raise ValueError(f"seeds: expected one for each of the {len(prompt_ids)} prompts, got {len(seeds)}")
    if max_new_tokens < 1 or batch_size < 1:
        raise ValueError(f"max_new_tokens and batch_size: expected at least 1, got {max_new_tokens} and {batch_size}")
    if not temperature >= 0:
        raise ValueError(f"temperature: expected a number >= 0, got {temperature}")
    for row, prompt in enumerate(prompt_ids):
        if not len(prompt):
            raise ValueError(f"prompt {row} has no tokens")
    ends = [eos_token_id] if isinstance(eos_token_id, int) else list(eos_token_id)
    order = sorted(range(len(prompt_ids)), key=lambda row: (len(prompt_ids[row]), row))
    results: list[Sample | None] = [None] * len(order)
    was_training = model.training
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            batch = _sample_batch(
                model,
                [prompt_ids[row] for row in rows],
                [seeds[row] for row in rows],
                max_new_tokens,
                temperature,
                ends,
                pad_token_id,
            )
            for row, completed in zip(rows, batch, strict=True):
                results[row] = completed
    finally:
        model.train(was_training)
    return [completed for completed in results if completed is not None]


def _sample_batch(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    seeds: Sequence[int],
    max_new_tokens: int,
    temperature: float,
    ends: Sequence[int],
    pad: int,
) -> list[Sample]:
    device = model.device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), width), pad)
    mask = torch.ones(len(prompts), width + max_new_tokens, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.as_tensor(prompt)
        mask[row, : width - len(prompt)] = 0
    draws = None
    if temperature > 0:
        draws = torch.from_numpy(np.stack([uniforms(seed, max_new_tokens) for seed in seeds])).to(device)
    ids, mask = ids.to(device), mask.to(device)
    stop = torch.tensor(list(ends), device=device)
    decoder = _Decoder(model, ids, mask)

    tokens = torch.full((max_new_tokens, len(prompts)), pad, device=device)
    logprobs = torch.zeros(max_new_tokens, len(prompts), device=device)
    lengths = torch.full((len(prompts),), max_new_tokens, device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    rows = torch.arange(len(prompts), device=device)  # which prompt each line of the running batch belongs to
    logits = decoder.prefill()
    for step in range(max_new_tokens):
        chosen, chosen_logprobs = _choose(logits, None if draws is None else draws[:, step], temperature)
        tokens[step, rows] = chosen
        logprobs[step, rows] = chosen_logprobs
        newly = torch.isin(chosen, stop) & ~ended[rows]
        lengths[rows[newly]] = step + 1
        ended[rows[newly]] = True
        alive = (~ended[rows]).nonzero().squeeze(1)
        if not len(alive) or step + 1 == max_new_tokens:
            break
        if len(alive) < COMPACT_BELOW * len(rows):
            rows, chosen = rows[alive], chosen[alive]
            draws = None if draws is None else draws[alive]
            decoder.keep(alive)
        logits = decoder.step(chosen)

    token_rows, logprob_rows = tokens.T.tolist(), logprobs.T.tolist()
    return [
        Sample(token_rows[row][:length], logprob_rows[row][:length], not done)
        for row, (length, done) in enumerate(zip(lengths.tolist(), ended.tolist(), strict=True))
    ]


def _choose(logits: Tensor, draw: Tensor | None, temperature: float) -> tuple[Tensor, Tensor]:
    """The next token of each line and its log-probability, from logits (B, V) and one uniform a line (B,)."""
    if draw is None or temperature == 0:
        logprobs = torch.log_softmax(logits.float(), dim=-1)
        best = logprobs.argmax(dim=-1, keepdim=True)
        return best.squeeze(1), logprobs.gather(1, best).squeeze(1)
    logprobs = torch.log_softmax(logits.float() / temperature, dim=-1)
    cdf = logprobs.double().exp_().cumsum_(dim=-1)
    total = cdf[:, -1:]
    if not bool(torch.isfinite(total).all()):
        raise ValueError("the policy's logits are not finite: it has diverged, and cannot be sampled from")
    # right=True finds the first token whose cumulative probability exceeds the draw: never one of probability 0.
    chosen = torch.searchsorted(cdf, draw[:, None] * total, right=True).clamp_(max=cdf.shape[1] - 1)
    return chosen.squeeze(1), logprobs.gather(1, chosen).squeeze(1)


class _Decoder:
    """Any causal language model, one token at a time, with its key-value cache."""

    def __init__(self, model: PreTrainedModel, ids: Tensor, mask: Tensor) -> None:
        self.model, self.ids, self.mask = model, ids, mask
        self.seen = ids.shape[1]
        self.position = mask[:, : self.seen].sum(dim=1, keepdim=True)  # of the next token
        self.cache = DynamicCache(config=model.config)
        self.extra = {"logits_to_keep": 1} if accepts_logits_to_keep(model) else {}

    def _forward(self, ids: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=ids,
            attention_mask=self.mask[:, : self.seen],
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            **self.extra,
        )
        return output.logits[:, -1]

    def prefill(self) -> Tensor:
        positions = (self.mask[:, : self.seen].cumsum(dim=1) - 1).clamp_(min=0)
        return self._forward(self.ids, positions)

    def step(self, chosen: Tensor) -> Tensor:
        self.seen += 1
        positions = self.position
        self.position = positions + 1
        return self._forward(chosen[:, None], positions)

    def keep(self, lines: Tensor) -> None:
        self.mask, self.position = self.mask[lines], self.position[lines]
        self.cache.batch_select_indices(lines)

"""Completions from a policy: the one sampler of every arm, every preference pool and every evaluation.

A row's tokens come by inverse CDF from one uniform a token, and the uniforms from a Philox generator keyed by the
row's own seed (Salmon et al. 2011). So a sample depends on (policy, prompt, seed) alone: not on its batch neighbours,
the batch size or the budget (up to the last bits of floating point), and two arms that share seeds share their random
numbers.

What this is not: a serving engine. No beams, penalties or top-p: those change the policy, and the KL meter would then
measure a policy that nobody trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn
from transformers import DynamicCache, LlamaForCausalLM, PreTrainedModel

from lab.models import accepts_logits_to_keep

COMPACT_BELOW = 0.75
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
    order = sorted(range(len(prompt_ids)), key=lambda row: (len(prompt_ids[row]), tuple(prompt_ids[row]), row))
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
    number: dict[tuple[int, ...], int] = {}
    lines = torch.tensor([number.setdefault(tuple(prompt), len(number)) for prompt in prompts], device=device)
    ids = torch.full((len(number), width), pad)
    mask = torch.ones(len(number), width, dtype=torch.long)
    for prompt, row in number.items():
        ids[row, width - len(prompt) :] = torch.tensor(prompt)
        mask[row, : width - len(prompt)] = 0
    draws = None
    if temperature > 0:
        draws = torch.from_numpy(np.stack([uniforms(seed, max_new_tokens) for seed in seeds])).to(device)
    stop = torch.tensor(list(ends), device=device, dtype=torch.long)
    small = _SmallLlamaDecoder.fits(model, len(prompts), width + max_new_tokens)
    kind = _SmallLlamaDecoder if small else _Decoder
    decoder = kind(model, ids.to(device), mask.to(device), lines, max_new_tokens)

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
    logprobs = torch.log_softmax(logits.float() / (temperature or 1.0), dim=-1)
    if draw is None:
        chosen = logprobs.argmax(dim=-1, keepdim=True)
    else:
        cdf = logprobs.double().exp_().cumsum_(dim=-1)
        # right=True finds the first token whose cumulative probability exceeds the draw: never one of probability 0.
        chosen = torch.searchsorted(cdf, draw[:, None] * cdf[:, -1:], right=True).clamp_(max=cdf.shape[1] - 1)
    chosen_logprobs = logprobs.gather(1, chosen).squeeze(1)
    if not bool(torch.isfinite(chosen_logprobs).all()):
        raise ValueError("the policy's logits are not finite: it has diverged, and cannot be sampled from")
    return chosen.squeeze(1), chosen_logprobs


class _Decoder:
    """Any causal language model, one token at a time, with its key-value cache.

    ``ids`` and ``mask`` (rows, width) are the distinct left-padded prompts; ``lines`` says which of them each line of
    the batch continues, so that a group of samples of one prompt pays for its prompt once.
    """

    def __init__(self, model: PreTrainedModel, ids: Tensor, mask: Tensor, lines: Tensor, room: int) -> None:
        self.model, self.ids, self.lines = model, ids, lines
        self.mask = torch.cat([mask, mask.new_ones(len(mask), room)], dim=1)
        self.seen = ids.shape[1]
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
        logits = self._forward(self.ids, positions)
        self.position = positions[:, -1:] + 1  # of the next token
        self.keep(self.lines)
        return logits[self.lines]

    def step(self, chosen: Tensor) -> Tensor:
        self.seen += 1
        positions = self.position
        self.position = positions + 1
        return self._forward(chosen[:, None], positions)

    def keep(self, lines: Tensor) -> None:
        self.mask, self.position = self.mask[lines], self.position[lines]
        self.cache.batch_select_indices(lines)


class _SmallLlamaDecoder(_Decoder):
    """The same for a small float32 Llama: the prompt by its own forward, the tokens after it by hand.

    At these sizes a step costs its launches, copies and tiny matrix products rather than its arithmetic. So everything
    is feature-major, with the batch as the last axis (B): projections need no transposes, attention is two broadcast
    products over caches (T, groups, head, B) that are allocated once, norms and scales are folded into the weights.
    It computes what ``LlamaForCausalLM.forward`` computes up to the last bits; a test holds it to that.
    """

    LARGEST_MODEL = 20_000_000  # parameters: beyond this arithmetic outweighs the overhead
    LARGEST_CACHE = 1 << 24  # numbers in one layer's keys: beyond this a fused attention kernel is better

    @classmethod
    def fits(cls, model: PreTrainedModel, lines: int, capacity: int) -> bool:
        """Only a plain Llama: adapters, quantised layers, biases and scaled rotations take the general way."""
        if type(model) is not LlamaForCausalLM or model.dtype != torch.float32:
            return False
        config = model.config
        return (
            model.num_parameters() <= cls.LARGEST_MODEL
            and lines * capacity * config.num_attention_heads * config.head_dim <= cls.LARGEST_CACHE
            and config.hidden_act == "silu"
            and not config.attention_bias
            and not config.mlp_bias
            and config.rope_parameters["rope_type"] == "default"
            and all(type(module) is nn.Linear for module in model.modules() if hasattr(module, "in_features"))
        )

    def __init__(self, model: LlamaForCausalLM, ids: Tensor, mask: Tensor, lines: Tensor, room: int) -> None:
        super().__init__(model, ids, mask, lines, room)
        config = model.config
        self.head, self.groups = config.head_dim, config.num_key_value_heads
        self.repeats = config.num_attention_heads // self.groups
        self.queries = config.num_attention_heads * self.head
        self.rotated = self.queries + self.groups * self.head  # rows of the fused projection that are rotated
        # x / rms(x) = sqrt(n) x / hypot(|x|, sqrt(n epsilon)); sqrt(n) and the norm's weight go into the projection.
        root = config.hidden_size**0.5
        self.epsilon = torch.tensor(root * config.rms_norm_eps**0.5, device=ids.device)
        self.layers = []
        for layer in model.model.layers:
            attention, mlp = layer.self_attn, layer.mlp
            fused = torch.cat(
                [attention.q_proj.weight * attention.scaling, attention.k_proj.weight, attention.v_proj.weight]
            )
            self.layers.append(
                (
                    fused * (layer.input_layernorm.weight * root),
                    attention.o_proj.weight,
                    torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight])
                    * (layer.post_attention_layernorm.weight * root),
                    mlp.down_proj.weight,
                )
            )
        self.output = model.lm_head.weight * (model.model.norm.weight * root)
        self.embeddings = model.model.embed_tokens.weight

    def prefill(self) -> Tensor:
        logits = super().prefill()
        mask, lines = self.mask, len(self.lines)
        self.bias = None
        if bool((mask == 0).any()):
            self.bias = torch.zeros(mask.shape, device=mask.device).masked_fill_(mask == 0, -torch.inf).T[:, None, None]
        angles = self.position + torch.arange(mask.shape[1] - self.seen, device=mask.device)
        angles = self.model.model.rotary_emb.inv_freq[:, None] * angles.T[:, None].float()  # (room, head/2, B)
        self.cos = torch.cat([angles.cos(), angles.cos()], dim=1)
        self.sin = torch.cat([-angles.sin(), angles.sin()], dim=1)  # the minus sign of rotate_half
        shape = (mask.shape[1], self.groups, self.head, lines)
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        for layer in self.cache.layers:
            for store, past in ((self.keys, layer.keys), (self.values, layer.values)):
                buffer = torch.empty(shape, device=mask.device)
                buffer[: self.seen] = past.permute(2, 1, 3, 0)
                store.append(buffer)
        self.first = self.seen
        del self.cache
        return logits

    def step(self, chosen: Tensor) -> Tensor:
        now, self.seen = self.seen, self.seen + 1
        cos, sin = self.cos[now - self.first], self.sin[now - self.first]
        x = self.embeddings[chosen].T.contiguous()  # (hidden, B)
        size = x.shape[1]
        for (qkv, out, gate_up, down), keys, values in zip(self.layers, self.keys, self.values, strict=True):
            mixed = qkv @ self._normed(x)
            plain = mixed[: self.rotated].view(-1, self.head, size)
            turned = torch.addcmul(plain * cos, plain.roll(self.head // 2, dims=1), sin)
            query = turned[: self.repeats * self.groups].view(self.groups, self.repeats, self.head, size)
            keys[now] = turned[self.repeats * self.groups :]
            values[now] = mixed[self.rotated :].view(self.groups, self.head, size)
            weights = (keys[: self.seen, :, None] * query).sum(dim=3)  # (T, groups, repeats, B)
            if self.bias is not None:
                weights += self.bias[: self.seen]
            weights = torch.softmax(weights, dim=0)
            attended = (values[: self.seen, :, None] * weights[:, :, :, None]).sum(dim=0)
            x = torch.addmm(x, out, attended.view(self.queries, size))
            gate, up = (gate_up @ self._normed(x)).chunk(2)
            x = torch.addmm(x, down, functional.silu(gate) * up)
        return (self.output @ self._normed(x)).T

    def _normed(self, x: Tensor) -> Tensor:
        return x / torch.hypot(torch.linalg.vector_norm(x, dim=0), self.epsilon)

    def keep(self, lines: Tensor) -> None:
        if hasattr(self, "cache"):  # the prompts' own forward has just ended
            super().keep(lines)
            return
        self.bias = None if self.bias is None else self.bias[..., lines]
        self.cos, self.sin = self.cos[..., lines], self.sin[..., lines]
        for buffers in (self.keys, self.values):
            for index, buffer in enumerate(buffers):
                smaller = buffer.new_empty(*buffer.shape[:-1], len(lines))
                torch.index_select(buffer[: self.seen], 3, lines, out=smaller[: self.seen])
                buffers[index] = smaller

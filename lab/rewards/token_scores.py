"""Reward models that score every token: outcome (will this end correct?) and process (is this step right?).

Both are a causal backbone with one logit a token (``AutoModelForTokenClassification``); they differ in which tokens
carry a target in training (``lab.stages.token_rewards``) and in how the tokens become one score here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForTokenClassification, PreTrainedModel, PreTrainedTokenizerBase

from lab.models import (
    check_checkpoint,
    check_vocabulary,
    encode_completions,
    encode_prompts,
    load_tokenizer,
    pick_device,
    pick_dtype,
)
from lab.records import Completion, Prompt
from lab.rewards.source import Detail
from lab.world.steps import Span, has_steps, step_spans

VARIANTS = {"outcome": ("last", "mean"), "process": ("product", "minimum")}
"""How each kind can turn token scores into one, the default first. An artifact is normalised for each."""

# ---------------------------------------------------------------- the model


def load_token_classifier(
    path: Path, device: str | torch.device = "cpu", dtype: str = "float32", new_head_seed: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A token classifier with one label and its tokenizer, in evaluation mode on ``device``, without dropout.

    With ``new_head_seed`` the checkpoint may be a causal language model: the head is then drawn from
    N(0, 1 / (hidden + 1)), its bias 0, from that seed alone. Without it a checkpoint that has no trained head raises
    ValueError: an untrained head would score noise.
    """
    check_checkpoint(path)
    target = pick_device(str(device))
    tokenizer = load_tokenizer(path)
    model, report = AutoModelForTokenClassification.from_pretrained(
        str(path),
        dtype=pick_dtype(dtype, target),
        local_files_only=True,
        use_safetensors=True,
        trust_remote_code=False,
        output_loading_info=True,
        **({} if new_head_seed is None else {"num_labels": 1}),
    )
    missing = sorted(report["missing_keys"])
    if new_head_seed is None and missing:
        raise ValueError(f"{path}: not a trained token reward model: weights are missing for {', '.join(missing[:3])}")
    if model.config.num_labels != 1:
        raise ValueError(f"{Path(path) / 'config.json'}: num_labels: expected 1, got {model.config.num_labels}")
    if new_head_seed is not None:
        if "score.weight" not in missing:
            raise ValueError(f"{path}: expected a language model without a head `score`; missing: {missing[:3]}")
        generator = torch.Generator().manual_seed(new_head_seed)
        weight = torch.randn(model.score.weight.shape, generator=generator)
        with torch.no_grad():
            model.score.weight.copy_(weight / (weight.shape[1] + 1) ** 0.5)
            if model.score.bias is not None:
                model.score.bias.zero_()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # transformers puts 0.1 before this head whatever the backbone was trained with
    check_vocabulary(model, tokenizer, path)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(target).eval(), tokenizer


@torch.no_grad()
def token_logits(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    batch_size: int = 256,
) -> list[np.ndarray]:
    """The logit at each completion token: float64 (T,) a row. Of an empty completion, that at the last prompt token.

    Rows are batched by length and padded on the right, where a causal model's real tokens do not look.
    """
    rows = [[*begin, *end] for begin, end in zip(prompt_ids, completion_ids, strict=True)]
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
    results: list[np.ndarray] = [np.zeros(0)] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids = torch.zeros(len(chosen), len(rows[chosen[-1]]), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for line, row in enumerate(chosen):
            ids[line, : len(rows[row])] = torch.tensor(rows[row])
            mask[line, : len(rows[row])] = 1
        logits_BT = model(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
        ).logits.squeeze(-1)
        for line, values in enumerate(logits_BT.double().cpu().numpy()):
            row = chosen[line]
            first = min(len(prompt_ids[row]), len(rows[row]) - 1)
            results[row] = values[first : len(rows[row])].copy()
    return results


def encode(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], completions: Sequence[Completion]
) -> tuple[list[list[int]], list[list[int]]]:
    """Token ids of prompts and of completions; the end-of-sequence token only where a completion reached it."""
    begin = encode_prompts(tokenizer, [prompt.text for prompt in prompts])
    return begin, encode_completions(tokenizer, [c.text for c in completions], [not c.truncated for c in completions])


# ---------------------------------------------------------------- steps of any text, in any tokenizer


def spans_of(prompt: Prompt, text: str) -> list[Span]:
    """The steps of a completion: the world's own where it has them, else the lines that are not blank.

    At least one: a text without line breaks (and so every answer in the world's other domains) is one step.
    """
    if has_steps(prompt):
        return step_spans(text)
    lines = [found for found in re.finditer(r"[^\n]+", text) if found.group().strip()]
    return [
        Span(found.group().strip(), found.start() + len(found.group().rstrip()), len(text[: found.end()].split()) - 1)
        for found in lines
    ] or [Span("", len(text), -1)]


def step_positions(
    tokenizer: PreTrainedTokenizerBase, text: str, spans: Sequence[Span], completion_ids: Sequence[int]
) -> list[int]:
    """The token of the completion at which each step is judged: the one that holds its last character.

    The last step is judged at the completion's last token, the end of sequence where there is one: only there can a
    causal model know that nothing more comes. Position 0 of an empty completion is the last token of its prompt, as
    in ``token_logits``.
    """
    last = max(len(completion_ids) - 1, 0)
    if len(spans) == 1:
        return [last]
    if tokenizer.is_fast:
        offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        starts = np.array([start for start, _ in offsets])
        inner = [int((starts < span.end).sum()) - 1 for span in spans[:-1]]
    else:
        prefixes = [text[: span.end] for span in spans[:-1]]
        inner = [len(ids) - 1 for ids in encode_completions(tokenizer, prefixes, [False] * len(prefixes))]
    return [min(max(at, 0), last) for at in inner] + [last]


# ---------------------------------------------------------------- one score


def outcome_score(logits_T: np.ndarray, at: str) -> float:
    """Log-odds that the completion is correct, from one logit a token: the last one's, or the mean over the tokens."""
    return float(logits_T[-1] if at == "last" else logits_T.mean())


def log_sigmoid(logits: np.ndarray) -> np.ndarray:
    """log(1 / (1 + exp(-x))) without overflow."""
    return -np.logaddexp(0.0, -logits)


def process_score(logits_S: np.ndarray, aggregate: str) -> float:
    """log of the product of the steps' probabilities of being right (Lightman et al. 2023), or of their minimum."""
    log_probabilities_S = log_sigmoid(logits_S)
    return float(log_probabilities_S.sum() if aggregate == "product" else log_probabilities_S.min())


@dataclass(frozen=True)
class Judged:
    """Logits (T,) or (S,) of one completion, one for each of its tokens (outcome) or steps (process); never empty."""

    names: tuple[str, ...]
    logits: np.ndarray


def judge_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
) -> list[Judged]:
    """What a model of this kind ("outcome" or "process") says of each completion's tokens or steps."""
    begin, end = encode(tokenizer, prompts, completions)
    rows = token_logits(model, begin, end)
    if kind == "outcome":
        names = [tuple(tokenizer.convert_ids_to_tokens(ids)) or ("",) for ids in end]
        return [Judged(*one) for one in zip(names, rows, strict=True)]
    judged = []
    for prompt, completion, ids, logits_T in zip(prompts, completions, end, rows, strict=True):
        spans = spans_of(prompt, completion.text)
        at = step_positions(tokenizer, completion.text, spans, ids)
        judged.append(Judged(tuple(span.text for span in spans), logits_T[at]))
    return judged


def raw_scores(judged: Sequence[Judged], variant: str) -> np.ndarray:
    """Raw scores (N,) of a variant: see ``outcome_score`` and ``process_score``."""
    score = outcome_score if variant in VARIANTS["outcome"] else process_score
    return np.array([score(one.logits, variant) for one in judged], dtype=float)


# ---------------------------------------------------------------- reward sources


def variant_file(artifact: Path, variant: str) -> Path:
    """Where the normalisation of a variant lies in an artifact."""
    return artifact / f"normalisation-{variant}.json"


class _TokenReward:
    """weight * (raw - shift) / scale, with the shift and scale of this variant."""

    def __init__(
        self,
        artifact: Path,
        device: str | torch.device,
        weight: float,
        kind: Literal["outcome", "process"],
        variant: str,
    ) -> None:
        if variant not in VARIANTS[kind]:
            raise ValueError(f"{kind}: expected one of {', '.join(VARIANTS[kind])}, got {variant!r}")
        numbers = json.loads(variant_file(artifact, variant).read_text(encoding="utf-8"))
        self.model, self.tokenizer = load_token_classifier(artifact / "final", device)
        self.kind, self.variant, self.weight = kind, variant, weight
        self.shift, self.scale = float(numbers["shift"]), float(numbers["scale"])

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Scores (N,): 0 and ``weight`` are mean and spread on the SFT policy's samples."""
        raw = raw_scores(self.judged(prompts, completions), self.variant)
        return self.weight * (raw - self.shift) / self.scale

    def judged(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Judged]:
        """The logits behind the scores."""
        return judge_tokens(self.model, self.tokenizer, self.kind, prompts, completions)


class OutcomeReward(_TokenReward):
    """Log-odds of a correct outcome (Cobbe et al. 2021), at the completion's last token or averaged over its tokens.

    It scores prompts without a verifier too, though none was among its training data.
    """

    name = "outcome"

    def __init__(
        self, artifact: Path, device: str | torch.device, weight: float = 1.0, at: Literal["last", "mean"] = "last"
    ) -> None:
        super().__init__(artifact, device, weight, "outcome", at)

    def detail(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Detail]:
        """The log-odds after each token, one Detail a completion."""
        return [Detail("token", one.names, tuple(one.logits.tolist())) for one in self.judged(prompts, completions)]


class ProcessReward(_TokenReward):
    """log of the product of the steps' probabilities (Lightman et al. 2023), or of the least of them.

    It scores prompts without steps too: their whole completion is one step.
    """

    name = "process"

    def __init__(
        self,
        artifact: Path,
        device: str | torch.device,
        weight: float = 1.0,
        aggregate: Literal["product", "minimum"] = "product",
    ) -> None:
        super().__init__(artifact, device, weight, "process", aggregate)

    def detail(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Detail]:
        """log P(right) of each step, one Detail a completion."""
        return [
            Detail("step", one.names, tuple(log_sigmoid(one.logits).tolist()))
            for one in self.judged(prompts, completions)
        ]

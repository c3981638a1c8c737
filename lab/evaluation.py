"""What every evaluation shares: frozen prompts, seeded answers, judgements, and the table that all figures come from.

Seeds do not depend on the arm, the seed of its training or the checkpoint: all policies answer a prompt with the same
uniforms (common random numbers), so differences between arms are paired and a policy compared with itself differs by 0.
"""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lab.costs import forward_flops
from lab.data.jsonl import read_prompts
from lab.models import decode_completions, encode_prompts, end_token_ids, parameter_count, pick_device
from lab.records import Completion, EvalRow, Outcome, Prompt, derive_seed
from lab.sampling import sample
from lab.verifiers import verify_many

_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
SCHEMA = pa.schema([pa.field(item.name, _TYPES[str(item.type).removesuffix(" | None")]) for item in fields(EvalRow)])
"""Columns of ``rows.parquet`` in order. A gold that no verdict could establish is null: unknown, not 0."""


@dataclass(frozen=True)
class Answer:
    """One completion of an evaluation, with the tokens that it was."""

    prompt: Prompt
    prompt_ids: list[int]
    ids: list[int]
    completion: Completion
    decode: str  # "sampled" or "greedy"


@dataclass(frozen=True)
class Judgement:
    """Truth about one answer. ``gold`` is NaN where a verifier failed (TIMEOUT, ERROR): unknown, never wrong."""

    gold: float
    correct: float | None
    style: float | None
    verdict: str | None
    extracted: str | None = None  # the answer that the verifier read


@dataclass(frozen=True)
class Hardware:
    """Where an evaluation runs: nothing of it is part of a result's identity."""

    device: torch.device
    dtype: str
    batch_size: int

    @classmethod
    def of(cls, resources: Mapping[str, Any]) -> Hardware:
        """From a step's resources. ``auto`` is float32 on every device: in half precision the KL of a policy that
        has hardly moved drowns in rounding."""
        dtype = resources.get("dtype", "auto")
        device = pick_device(resources.get("device", "auto"))
        return cls(device, "float32" if dtype == "auto" else dtype, resources.get("batch", 256))


def frozen_prompts(folder: Path, split: str) -> list[Prompt]:
    """The prompts of ``<split>.jsonl``, or of ``prompts.jsonl`` in a folder of one set. ValueError on duplicates."""
    path, only = folder / f"{split}.jsonl", folder / "prompts.jsonl"
    if only.is_file() and not path.is_file():
        path = only
    prompts = read_prompts(path)
    twins = [prompt_id for prompt_id, count in Counter(prompt.id for prompt in prompts).items() if count > 1]
    if twins:
        raise ValueError(f"{path}: prompt {twins[0]} occurs more than once")
    return prompts


def first_of_each_domain(prompts: Sequence[Prompt], count: int) -> list[Prompt]:
    """The first ``count`` prompts of every domain in their order; all of them if ``count`` is 0."""
    seen: Counter[str] = Counter()
    chosen = []
    for prompt in prompts:
        seen[prompt.domain] += 1
        if not count or seen[prompt.domain] <= count:
            chosen.append(prompt)
    return chosen


def answer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    samples: Sequence[int],
    settings: Mapping[str, Any],
    batch_size: int,
    greedy: bool = False,
) -> list[Answer]:
    """Completions number ``samples`` of every prompt, prompt by prompt. ``settings``: a plain EvaluationConfig."""
    encoded = encode_prompts(tokenizer, [prompt.text for prompt in prompts])
    lines = [(prompt, ids, number) for prompt, ids in zip(prompts, encoded, strict=True) for number in samples]
    drawn = sample(
        model,
        [ids for _, ids, _ in lines],
        seeds=[derive_seed("evaluate", settings["seed"], prompt.id, number) for prompt, _, number in lines],
        max_new_tokens=settings["max_new_tokens"],
        temperature=0.0 if greedy else settings["temperature"],
        eos_token_id=end_token_ids(model, tokenizer),
        pad_token_id=int(tokenizer.pad_token_id),
        batch_size=batch_size,
    )
    texts = decode_completions(tokenizer, [one.ids for one in drawn])
    return [
        Answer(
            prompt,
            ids,
            one.ids,
            Completion(prompt.id, number, text, len(one.ids), one.truncated),
            "greedy" if greedy else "sampled",
        )
        for (prompt, ids, number), one, text in zip(lines, drawn, texts, strict=True)
    ]


def judge(answers: Sequence[Answer], gold: str) -> list[Judgement]:
    """The truth about every answer. ``gold``: "world" (its utility), "verifier" (correct or not) or "none" (NaN).

    Raises BrokenVerifierError if more than 5% of the verdicts are ERROR, and ValueError naming a prompt that has no
    truth at all.
    """
    checked = [index for index, one in enumerate(answers) if one.prompt.verifier is not None]
    found = verify_many(
        [answers[index].completion.text for index in checked], [answers[index].prompt.gold for index in checked]
    )
    verdicts = dict(zip(checked, found, strict=True))
    judgements = []
    for index, one in enumerate(answers):
        verdict = verdicts.get(index)
        outcome, extracted = (None, None) if verdict is None else (verdict.outcome.value, verdict.extracted)
        match gold:
            case "world":
                from lab.world.gold import utility

                parts = utility(one.prompt, one.completion.text, one.completion.truncated)
                judgements.append(Judgement(parts.total, parts.correct, parts.style, outcome, extracted))
            case "verifier" if verdict is not None:
                failed = verdict.outcome in (Outcome.TIMEOUT, Outcome.ERROR)
                truth = float("nan") if failed else float(verdict.correct)
                judgements.append(Judgement(truth, None, None, outcome, extracted))
            case "none":
                judgements.append(Judgement(float("nan"), None, None, outcome, extracted))
            case "verifier":
                raise ValueError(f"prompt {one.prompt.id}: no verifier, so nothing says whether an answer is good")
            case _:
                raise ValueError(f"gold: expected world, verifier or none, got {gold!r}")
    return judgements


def proxy_scores(
    answers: Sequence[Answer], reward: Mapping[str, Any] | None, inputs: Mapping[str, Path], device: torch.device
) -> list[float | None]:
    """Scores of the run's proxy, a plain RewardConfig and its inputs; None without one (or where it cannot score)."""
    if reward is None or not answers:
        return [None] * len(answers)
    from lab.rewards import load_reward

    source = load_reward(reward, inputs, device)
    scores = source.score([one.prompt for one in answers], [one.completion for one in answers])
    return [None if np.isnan(score) else float(score) for score in scores]


def usage(model: PreTrainedModel, answers: Sequence[Answer]) -> dict[str, float]:
    """What drawing these answers cost: prompt tokens (once a sample), generated tokens, FLOPs of sampling."""
    prompt_tokens = sum(len(one.prompt_ids) for one in answers)
    generated = sum(len(one.ids) for one in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "generated_tokens": generated,
        "sampling_flops": forward_flops(parameter_count(model), prompt_tokens + generated),
        "verifier_calls": sum(one.prompt.verifier is not None for one in answers),
    }


def write_rows(path: Path, rows: Sequence[EvalRow]) -> None:
    """Rows as Parquet, the same bytes for the same rows; the file appears whole or not at all. NaN becomes null."""
    columns = {
        field.name: pa.array([getattr(row, field.name) for row in rows], type=field.type, from_pandas=True)
        for field in SCHEMA
    }
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    pq.write_table(pa.table(columns, schema=SCHEMA), partial, compression="zstd", row_group_size=1 << 16)
    os.replace(partial, path)


def read_rows(path: Path) -> list[EvalRow]:
    """The rows that ``write_rows`` wrote (an unknown gold comes back as NaN)."""
    rows = pq.read_table(path, schema=SCHEMA).to_pylist()
    return [EvalRow(**{**row, "gold": float("nan") if row["gold"] is None else row["gold"]}) for row in rows]


def summary(rows: Sequence[EvalRow]) -> dict[str, Any]:
    """Counts and means that a log line shows; the estimates are made elsewhere, from the rows."""

    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None and not np.isnan(value)]
        return float(np.mean(known)) if known else None

    final = [row for row in rows if row.final and row.decode == "sampled"]
    return {
        "rows": len(rows),
        "gold": mean([row.gold for row in final]),
        "proxy": mean([row.proxy for row in final]),
        "kl_nats": mean([row.kl_nats for row in final]),
        "length": mean([row.length for row in final]),
        "truncated": mean([row.truncated for row in final]),
        "verdicts": dict(sorted(Counter(row.verdict for row in rows if row.verdict is not None).items())),
    }


def policy_run(policy: Path, given: str | None) -> str:
    """The key of the step that made a policy: what the config says, else the name of its folder in the store."""
    return given or policy.resolve().name

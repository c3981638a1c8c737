"""Rejection sampling to an SFT set: a policy answers, a reward source or a verifier picks the demonstrations.

What it writes is read by the ``sft`` stages as their "data" (``split`` "sft"), so a pipeline can fine-tune on it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lab.config import RejectionConfig, build, plain
from lab.costs import forward_flops
from lab.data.card import write_card
from lab.data.filters import extract
from lab.data.jsonl import read_prompts, write_records, write_samples
from lab.data.rejection import describe, eligible, in_turns, majority_scores, matched_random, select
from lab.evaluation import Hardware
from lab.models import decode_completions, encode_prompts, end_token_ids, load_policy, parameter_count
from lab.online.watch import kinds_of
from lab.records import Completion, Demonstration, Ledger, Prompt, derive_seed
from lab.rewards import load_reward
from lab.rewards.judge import JudgeReward
from lab.rewards.truth import GoldReward, VerifierReward
from lab.sampling import sample
from lab.store import Context, StageResult


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: a plain RejectionConfig. Inputs: "sft" (the policy that answers), "prompts" (a data artifact with
    ``<split>.jsonl``), and what the reward source needs.

    Writes ``sft.jsonl`` (the demonstrations; every beginning of it holds many prompts), ``samples.jsonl`` (all
    samples), ``scores.parquet`` (prompt_id, sample, score, gold, kept; in the order of the samples) and ``card.json``.
    The same samples for every rule of the same seed: a rule and its control differ in what is picked alone. Gold is
    only reported. Raises ValueError if the rule has nothing to go by, or keeps nothing.
    """
    settings = build(RejectionConfig, config, "rejection")
    rule = settings.match if settings.rule == "random" else settings.rule
    reward = _reward(settings, rule)
    hardware = Hardware.of(context.resources)
    prompts = read_prompts(inputs["prompts"] / f"{settings.split}.jsonl")
    source = load_reward(reward, inputs, hardware.device)
    context.progress(0, 3, f"{len(prompts)} x {settings.samples} samples")
    samples, ledger = _sample(settings, prompts, inputs["sft"] / "final", hardware)
    context.progress(1, 3, "scoring")
    owners, completions = [prompt for prompt, _ in samples], [completion for _, completion in samples]
    if rule == "majority":
        answers = extract(owners, [completion.text for completion in completions])
        scores_N = majority_scores(samples, answers, settings.seed)
    else:
        scores_N = source.score(owners, completions)
    context.progress(2, 3, "choosing")
    truth = GoldReward() if settings.gold == "world" else VerifierReward()
    gold_N = truth.score(owners, completions)

    rows = eligible(samples, settings.distinct)
    kept = select(samples, scores_N, rule, rows, settings.share, settings.seed)
    if not kept:
        raise ValueError(
            f"rejection.rule: {settings.rule} keeps none of the {len(samples)} samples "
            f"({int(np.isnan(scores_N).sum())} unscored, {len(samples) - len(rows)} cut off or repeated)"
        )
    if settings.rule == "random":
        kept = matched_random(samples, kept, rows, settings.seed)
    write_records(
        out / "sft.jsonl", [Demonstration(owners[row], completions[row].text) for row in in_turns(samples, kept)]
    )
    write_samples(out / "samples.jsonl", samples)
    _write_scores(out / "scores.parquet", samples, scores_N, gold_N, kept)
    card = {"rule": settings.rule, "match": rule, "reward": reward["kind"], **describe(samples, scores_N, gold_N, kept)}
    write_card(out, card, "Demonstrations by rejection sampling")
    context.progress(3, 3)

    asked = Counter(kinds_of(reward))
    ledger = replace(
        ledger,
        verifier_calls=(rule != "majority") * asked["verifier"] * sum(prompt.verifier is not None for prompt in owners),
        gold_looks=asked["gold"] * len(samples),
        judge_calls=source.calls if isinstance(source, JudgeReward) else 0,
    )
    metrics = {"samples": len(samples), "kept": len(kept), "gold_all": card["all"]["gold"],
               "gold_kept": card["kept"]["gold"]}  # fmt: skip
    return StageResult(ledger, metrics)


def _reward(settings: RejectionConfig, rule: str) -> dict[str, Any]:
    """What the rule goes by, as a plain RewardConfig. The majority reads answers by the verifier's parser."""
    given = plain(settings.reward)
    if rule in ("correct", "majority"):
        if given is not None and given["kind"] != "verifier":
            raise ValueError(f"rejection.reward.kind: rule {rule} asks the verifier, got {given['kind']!r}")
        return {"kind": "verifier", "scale": 1.0}
    if given is None:
        raise ValueError(f"rejection.reward: missing, and rule {rule} needs scores")
    return dict(given)


def _sample(
    settings: RejectionConfig, prompts: list[Prompt], policy: Path, hardware: Hardware
) -> tuple[list[tuple[Prompt, Completion]], Ledger]:
    """``samples`` completions of every prompt, prompt by prompt, and what they cost."""
    model, tokenizer = load_policy(policy, hardware.device, hardware.dtype)
    lines = [(prompt, number) for prompt in prompts for number in range(settings.samples)]
    prompt_ids = encode_prompts(tokenizer, [prompt.text for prompt, _ in lines])
    drawn = sample(
        model,
        prompt_ids,
        seeds=[derive_seed("rejection", settings.seed, prompt.id, number) for prompt, number in lines],
        max_new_tokens=settings.max_new_tokens,
        temperature=settings.temperature,
        eos_token_id=end_token_ids(model, tokenizer),
        pad_token_id=int(tokenizer.pad_token_id),
        batch_size=hardware.batch_size,
    )
    texts = decode_completions(tokenizer, [one.ids for one in drawn])
    samples = [
        (prompt, Completion(prompt.id, number, text, len(one.ids), one.truncated))
        for (prompt, number), one, text in zip(lines, drawn, texts, strict=True)
    ]
    read, generated = sum(map(len, prompt_ids)), sum(len(one.ids) for one in drawn)
    flops = forward_flops(parameter_count(model), read + generated)
    return samples, Ledger(prompt_tokens=read, generated_tokens=generated, sampling_flops=flops)


def _write_scores(
    path: Path,
    samples: list[tuple[Prompt, Completion]],
    scores_N: NDArray[np.float64],
    gold_N: NDArray[np.float64],
    kept: list[int],
) -> None:
    chosen = set(kept)
    table = pa.table(
        {
            "prompt_id": [prompt.id for prompt, _ in samples],
            "sample": [completion.sample for _, completion in samples],
            "score": pa.array(scores_N, type=pa.float64(), from_pandas=True),
            "gold": pa.array(gold_N, type=pa.float64(), from_pandas=True),
            "kept": [row in chosen for row in range(len(samples))],
        }
    )
    pq.write_table(table, path, compression="zstd")

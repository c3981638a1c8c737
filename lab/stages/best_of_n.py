"""Best-of-n: the SFT policy answers n times and the reward model picks. No training; the price is paid at inference.

It is its own evaluation: the pool is drawn once for all n, with evaluation's seeds, and cut into blocks of n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.evaluation import Hardware, answer, frozen_prompts, judge, proxy_scores, summary, usage, write_rows
from lab.models import load_policy
from lab.records import EvalRow, Ledger, derive_seed
from lab.stats import best_of_n_kl
from lab.store import Context, StageResult


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``arm``, ``seed``, ``ns``, ``pool`` (samples a prompt), ``evaluation`` (EvaluationConfig), ``gold``.
    Inputs: "sft", "prompts", "reward_model".

    ``rows.parquet`` has, for every n, the best of each of at most ``samples_per_prompt`` blocks of n that do not
    overlap; ``step`` is n, and the largest n is the arm's end point. The KL is the bound log n - (n - 1) / n. The
    ledger holds the sampling of the whole pool, the metrics what one answer costs. Raises ValueError if the pool holds
    no block of the largest n, or without a reward model.
    """
    settings, ns, pool = config["evaluation"], sorted(set(config["ns"])), config["pool"]
    if not ns or ns[0] < 1 or ns[-1] > pool:
        raise ValueError(f"method.ns: expected numbers from 1 to method.pool = {pool}, got {list(config['ns'])}")
    if "reward_model" not in inputs:
        raise ValueError(f"arm {config['arm']!r}: best-of-n needs a reward model to pick by")
    prompts = frozen_prompts(inputs["prompts"], settings["split"])
    hardware = Hardware.of(context.resources)
    policy, tokenizer = load_policy(inputs["sft"] / "final", hardware.device, hardware.dtype)

    # Each training seed takes a stretch of samples of its own; that of seed 0 begins with the SFT arm's very samples.
    numbers = range(config["seed"] * pool, (config["seed"] + 1) * pool)
    context.progress(0, 2, f"{len(prompts)} x {pool} samples")
    answers = answer(policy, tokenizer, prompts, numbers, settings, hardware.batch_size)
    context.progress(1, 2, "scoring")
    proxies = proxy_scores(answers, inputs, hardware.device)
    known = np.array([-np.inf if score is None else score for score in proxies]).reshape(len(prompts), pool)
    chosen = []  # (line of the answer, block, n)
    for n in ns:
        for index, prompt in enumerate(prompts):
            seed = derive_seed("ties", config["seed"], prompt.id, n)
            picks = pick_best(known[index], n, settings["samples_per_prompt"], seed)
            chosen += [(index * pool + pick, block, n) for block, pick in enumerate(picks)]
    judgements = judge([answers[line] for line, _, _ in chosen], config["gold"])
    rows = [
        EvalRow(
            arm=config["arm"],
            seed=config["seed"],
            run=config.get("run") or context.key,
            step=n,
            final=n == ns[-1],
            decode="sampled",
            prompt_id=answers[line].prompt.id,
            domain=answers[line].prompt.domain,
            level=answers[line].prompt.level,
            sample=block,
            completion=answers[line].completion.text,
            gold=judged.gold,
            gold_correct=judged.correct,
            gold_style=judged.style,
            verdict=judged.verdict,
            proxy=proxies[line],
            kl_nats=float(best_of_n_kl(n)),
            entropy_nats=None,
            length=answers[line].completion.length,
            truncated=answers[line].completion.truncated,
            training_flops=0.0,
            generated_tokens=0,
        )
        for (line, block, n), judged in zip(chosen, judgements, strict=True)
    ]
    write_rows(out / "rows.parquet", rows)
    context.progress(2, 2)
    spent = usage(policy, answers)
    per_sample = spent["generated_tokens"] / len(answers)
    ledger = Ledger(
        prompt_tokens=int(spent["prompt_tokens"]),
        generated_tokens=int(spent["generated_tokens"]),
        sampling_flops=spent["sampling_flops"],
    )
    metrics = {"generated_tokens_per_answer": {str(n): n * per_sample for n in ns}, "pool": pool}
    return StageResult(ledger, {**summary(rows), **metrics})


def pick_best(scores: Sequence[float] | np.ndarray, n: int, blocks: int, seed: int) -> list[int]:
    """For each of at most ``blocks`` consecutive blocks of ``n`` scores, the index of a highest one.

    Ties are broken at random: a constant scorer must pick like chance, not like the first sample.
    """
    rng = np.random.Generator(np.random.Philox(key=seed))
    picks = []
    for start in range(0, min(blocks, len(scores) // n) * n, n):
        block = np.asarray(scores[start : start + n])
        picks.append(start + int(rng.choice(np.flatnonzero(block == block.max()))))
    return picks

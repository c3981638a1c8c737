"""Evaluation of one policy and of its checkpoints: rows of truth, proxy and distance from the SFT checkpoint.

What this is not: training's own log. Nothing here is read from a trainer; every number is measured after training, by
the same sampler, seeds, prompts and KL meter for every arm. What it costs is in the metrics and not in the ledger: the
looks at the gold utility here are not training's.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from lab.evaluation import (
    Answer,
    Hardware,
    answer,
    first_of_each_domain,
    frozen_prompts,
    judge,
    policy_run,
    proxy_scores,
    read_rows,
    summary,
    usage,
    write_rows,
)
from lab.models import load_policy, sequence_statistics
from lab.records import EvalRow, Ledger, Prompt
from lab.store import Context, StageResult


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``arm``, ``seed`` (of its training), ``evaluation`` (EvaluationConfig, and optionally ``curve_prompts``,
    prompts a domain at checkpoints along the way, 0 for all), ``gold`` ("world" or "verifier"), optional ``run`` and
    ``proxy`` (RewardConfig). Inputs: "policy", "reference" (the SFT policy), "prompts", and what the proxy needs.

    Writes ``rows.parquet``. KL on greedy answers is that along the greedy path: no estimate of the sequence KL. At a
    temperature other than 1 the KL is still that of the policies at temperature 1. Raises ValueError on
    ``checkpoints.json`` without exactly one final entry, BrokenVerifierError if a verifier fails too often.
    """
    settings = config["evaluation"]
    prompts = frozen_prompts(inputs["prompts"], settings["split"])
    points = _checkpoints(inputs["policy"])
    hardware = Hardware.of(context.resources)
    reference, reference_tokenizer = load_policy(inputs["reference"] / "final", hardware.device, hardware.dtype)

    rows: list[EvalRow] = []
    spent: Counter[str] = Counter()
    for done, point in enumerate(points):
        context.progress(done, len(points), f"step {point['step']}")
        folder = inputs["policy"] / point["path"]
        part = context.scratch / f"rows-{done}.parquet"
        cost = part.with_suffix(".json")
        if part.is_file() and cost.is_file():  # measured before a crash
            rows += read_rows(part)
            spent.update(json.loads(cost.read_text(encoding="utf-8")))
            continue
        policy, tokenizer = reference, reference_tokenizer
        if folder.resolve() != (inputs["reference"] / "final").resolve():
            policy, tokenizer = load_policy(folder, hardware.device, hardware.dtype)
        answers = _answers(policy, tokenizer, prompts, settings, point["final"], hardware.batch_size)
        found = _rows(answers, policy, reference, point, config, inputs, hardware)
        used = usage(policy, answers)
        context.scratch.mkdir(parents=True, exist_ok=True)
        cost.write_text(json.dumps(used), encoding="utf-8")
        write_rows(part, found)  # whole or not at all, and last: with it this checkpoint counts as measured
        rows += found
        spent.update(used)  # type: ignore[arg-type]
    write_rows(out / "rows.parquet", rows)
    context.progress(len(points), len(points))
    return StageResult(Ledger(), {**summary(rows), "evaluation": dict(spent), "checkpoints": len(points)})


def _checkpoints(policy: Path) -> list[dict[str, Any]]:
    path = policy / "checkpoints.json"
    if not path.is_file():
        raise ValueError(f"{path}: no such file; a policy lists its checkpoints there")
    points = json.loads(path.read_text(encoding="utf-8"))
    if sum(bool(point["final"]) for point in points) != 1:
        raise ValueError(f"{path}: expected exactly one entry with final = true")
    return sorted(points, key=lambda point: (point["final"], point["step"]))


def _answers(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    settings: Mapping[str, Any],
    final: bool,
    batch_size: int,
) -> list[Answer]:
    if not final:
        some = first_of_each_domain(prompts, settings.get("curve_prompts", 0))
        return answer(policy, tokenizer, some, range(settings["curve_samples_per_prompt"]), settings, batch_size)
    answers = answer(policy, tokenizer, prompts, range(settings["samples_per_prompt"]), settings, batch_size)
    if settings["greedy"]:
        answers += answer(policy, tokenizer, prompts, [0], settings, batch_size, greedy=True)
    return answers


def _rows(
    answers: Sequence[Answer],
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    point: Mapping[str, Any],
    config: Mapping[str, Any],
    inputs: Mapping[str, Path],
    hardware: Hardware,
) -> list[EvalRow]:
    judgements = judge(answers, config["gold"])
    proxies = proxy_scores(answers, config.get("proxy"), inputs, hardware.device)
    measured = sequence_statistics(
        policy,
        reference,
        [one.prompt_ids for one in answers],
        [one.ids for one in answers],
        hardware.batch_size,
    )
    return [
        EvalRow(
            arm=config["arm"],
            seed=config["seed"],
            run=policy_run(inputs["policy"], config.get("run")),
            step=point["step"],
            final=bool(point["final"]),
            decode=one.decode,
            prompt_id=one.prompt.id,
            domain=one.prompt.domain,
            level=one.prompt.level,
            sample=one.completion.sample,
            completion=one.completion.text,
            gold=judged.gold,
            gold_correct=judged.correct,
            gold_style=judged.style,
            verdict=judged.verdict,
            proxy=proxy,
            kl_nats=statistics.kl_nats,
            entropy_nats=statistics.entropy_nats,
            length=one.completion.length,
            truncated=one.completion.truncated,
            training_flops=float(point["training_flops"]),
            generated_tokens=int(point["generated_tokens"]),
        )
        for one, judged, proxy, statistics in zip(answers, judgements, proxies, measured, strict=True)
    ]

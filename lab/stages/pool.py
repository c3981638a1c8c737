"""One pool of SFT completions a prompt, with the truth about each: every reward model picks from the same samples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lab.evaluation import Hardware, answer, frozen_prompts, judge, usage
from lab.models import load_policy
from lab.records import Ledger
from lab.store import Context, StageResult

SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("domain", pa.string()),
        ("level", pa.int64()),
        ("sample", pa.int64()),
        ("completion", pa.string()),
        ("length", pa.int64()),
        ("truncated", pa.bool_()),
        ("gold", pa.float64()),
        ("gold_correct", pa.float64()),
        ("gold_style", pa.float64()),
        ("verdict", pa.string()),
        ("extracted", pa.string()),
    ]
)
"""Columns of ``pool.parquet``: a line per prompt and sample, prompt by prompt in the order of the prompts."""


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``samples`` a prompt, ``evaluation`` (EvaluationConfig), ``gold``. Inputs: "sft", "prompts".

    Writes ``pool.parquet`` and ``usage.json``. Sample number i of a prompt is the SFT arm's own sample i.
    """
    settings, samples = config["evaluation"], config["samples"]
    prompts = frozen_prompts(inputs["prompts"], settings["split"])
    hardware = Hardware.of(context.resources)
    policy, tokenizer = load_policy(inputs["sft"] / "final", hardware.device, hardware.dtype)
    context.progress(0, 2, f"{len(prompts)} x {samples} samples")
    answers = answer(policy, tokenizer, prompts, range(samples), settings, hardware.batch_size)
    context.progress(1, 2, "judging")
    judged = judge(answers, config["gold"])
    columns = {
        "prompt_id": [one.prompt.id for one in answers],
        "domain": [one.prompt.domain for one in answers],
        "level": [one.prompt.level for one in answers],
        "sample": [one.completion.sample for one in answers],
        "completion": [one.completion.text for one in answers],
        "length": [one.completion.length for one in answers],
        "truncated": [one.completion.truncated for one in answers],
        "gold": [one.gold for one in judged],
        "gold_correct": [one.correct for one in judged],
        "gold_style": [one.style for one in judged],
        "verdict": [one.verdict for one in judged],
        "extracted": [one.extracted for one in judged],
    }
    arrays = [pa.array(columns[field.name], type=field.type, from_pandas=True) for field in SCHEMA]
    pq.write_table(pa.Table.from_arrays(arrays, schema=SCHEMA), out / "pool.parquet", compression="zstd")
    spent = usage(policy, answers)
    (out / "usage.json").write_text(json.dumps(spent) + "\n", encoding="utf-8")
    ledger = Ledger(
        prompt_tokens=int(spent["prompt_tokens"]),
        generated_tokens=int(spent["generated_tokens"]),
        sampling_flops=spent["sampling_flops"],
    )
    context.progress(2, 2)
    known = [one.gold for one in judged if one.gold == one.gold]
    return StageResult(ledger, {"samples": len(answers), "gold": sum(known) / len(known) if known else None})

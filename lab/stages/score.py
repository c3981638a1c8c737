"""Scores of a reward source on a pool of completions, and what scoring costs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lab.data.jsonl import read_prompts
from lab.evaluation import Hardware
from lab.records import Completion, Ledger
from lab.rewards import load_reward
from lab.rewards.judge import JudgeReward
from lab.store import Context, StageResult


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``reward`` (RewardConfig), ``split`` of the prompts. Inputs: "pool", "prompts", what the source needs.

    Writes ``scores.parquet`` (prompt_id, sample, score; null where the source cannot score) in the pool's order. The
    metrics hold seconds per 1,000 scores and the spread within a prompt.
    """
    hardware = Hardware.of(context.resources)
    prompts = {prompt.id: prompt for prompt in read_prompts(inputs["prompts"] / f"{config['split']}.jsonl")}
    pool = pq.read_table(inputs["pool"] / "pool.parquet").to_pylist()
    completions = [
        Completion(row["prompt_id"], row["sample"], row["completion"], row["length"], row["truncated"]) for row in pool
    ]
    source = load_reward(config["reward"], inputs, hardware.device)
    context.progress(0, 1, f"{len(pool)} completions")
    begun = time.perf_counter()
    scores = source.score([prompts[row["prompt_id"]] for row in pool], completions)
    seconds = time.perf_counter() - begun
    table = pa.table(
        {
            "prompt_id": [row["prompt_id"] for row in pool],
            "sample": [row["sample"] for row in pool],
            "score": pa.array(scores, type=pa.float64(), from_pandas=True),
        }
    )
    pq.write_table(table, out / "scores.parquet", compression="zstd")
    context.progress(1, 1)
    known = scores[~np.isnan(scores)]
    metrics = {
        "scores": len(scores),
        "unscored": len(scores) - len(known),
        "mean": float(known.mean()) if len(known) else None,
        "seconds_per_1000": 1000 * seconds / max(len(scores), 1),
    }
    calls = source.calls if isinstance(source, JudgeReward) else 0
    return StageResult(Ledger(judge_calls=calls), metrics)

"""Best-of-n: the SFT policy answers n times and a reward source picks. No training; the price is paid at inference.

It is its own evaluation: the pool is drawn once for all n and all reward sources, and cut into blocks of n.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lab.evaluation import summary, write_rows
from lab.records import EvalRow, Ledger, derive_seed
from lab.stats import best_of_n_kl
from lab.store import Context, StageResult


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``arm``, ``seed``, ``ns``, ``blocks`` (answers a prompt at the most). Inputs: "pool", "scores".

    ``rows.parquet`` has, for every n, the best of each of at most ``blocks`` blocks of n that do not overlap; ``step``
    is n, and the largest n is the arm's end point. The KL is the bound log n - (n - 1) / n. The ledger holds the
    sampling of the whole pool, the metrics what one answer costs. A completion that the source cannot score is never
    picked before one that it can. Raises ValueError if the pool holds no block of the largest n.
    """
    ns = sorted(set(config["ns"]))
    pool = pq.read_table(inputs["pool"] / "pool.parquet").to_pylist()
    scores = pq.read_table(inputs["scores"] / "scores.parquet").to_pylist()
    prompt_ids = list(dict.fromkeys(row["prompt_id"] for row in pool))
    samples = len(pool) // len(prompt_ids)
    if not ns or ns[0] < 1 or ns[-1] > samples:
        raise ValueError(f"method.ns: expected numbers from 1 to the pool's {samples}, got {list(config['ns'])}")
    if [(row["prompt_id"], row["sample"]) for row in pool] != [(row["prompt_id"], row["sample"]) for row in scores]:
        raise ValueError(f"{inputs['scores']}: these are not the scores of the pool {inputs['pool']}")
    proxies = [row["score"] for row in scores]
    known = np.array([-np.inf if score is None else score for score in proxies]).reshape(len(prompt_ids), samples)
    rows = []
    for n in ns:
        for index, prompt_id in enumerate(prompt_ids):
            seed = derive_seed("ties", config["seed"], prompt_id, n)
            for block, pick in enumerate(pick_best(known[index], n, config["blocks"], seed)):
                line = index * samples + pick
                rows.append(_row(config, context.key, pool[line], proxies[line], n, block, n == ns[-1]))
    write_rows(out / "rows.parquet", rows)
    context.progress(1, 1)
    spent = json.loads((inputs["pool"] / "usage.json").read_text(encoding="utf-8"))
    per_sample = spent["generated_tokens"] / len(pool)
    ledger = Ledger(
        prompt_tokens=int(spent["prompt_tokens"]),
        generated_tokens=int(spent["generated_tokens"]),
        sampling_flops=spent["sampling_flops"],
    )
    metrics = {"generated_tokens_per_answer": {str(n): n * per_sample for n in ns}, "pool": samples}
    return StageResult(ledger, {**summary(rows), **metrics})


def _row(
    config: Mapping[str, Any], key: str, picked: Mapping[str, Any], proxy: float | None, n: int, block: int, final: bool
) -> EvalRow:
    return EvalRow(
        arm=config["arm"],
        seed=config["seed"],
        run=config.get("run") or key,
        step=n,
        final=final,
        decode="sampled",
        prompt_id=picked["prompt_id"],
        domain=picked["domain"],
        level=picked["level"],
        sample=block,
        completion=picked["completion"],
        gold=float("nan") if picked["gold"] is None else picked["gold"],
        gold_correct=picked["gold_correct"],
        gold_style=picked["gold_style"],
        verdict=picked["verdict"],
        proxy=proxy,
        kl_nats=float(best_of_n_kl(n)),
        entropy_nats=None,
        length=picked["length"],
        truncated=picked["truncated"],
        training_flops=0.0,
        generated_tokens=0,
    )


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

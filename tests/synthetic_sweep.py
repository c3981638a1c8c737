"""Made-up points of a sweep over reward-model sizes, with a known structure. Not a simulation of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from lab.records import EvalRow, derive_seed

SIZES = {"xxs": 12_000, "xs": 40_000, "s": 163_000, "m": 620_000, "l": 2_400_000}
SETS = ("easy", "hard")


def reward_models(backbone: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Accuracy grows by 4 points per tenfold parameters, by 7 on the benchmark's hard part, by 1 on its easy part."""
    found = []
    for seed in seeds:
        rng = np.random.default_rng(derive_seed("synthetic reward model", backbone, seed))
        decades = np.log10(SIZES[backbone] / 12_000)
        luck = rng.normal(0, 0.008, 4)
        found.append(
            {
                "seed": seed,
                "parameters": SIZES[backbone],
                "pairs": 4000,
                "accuracy": 0.74 + 0.04 * decades + luck[0],
                "overall": 0.55 + 0.04 * decades + luck[1],
                "easy": 0.70 + 0.01 * decades + luck[2],
                "hard": 0.40 + 0.07 * decades + luck[3],
                "chance": 0.25,
                "length_only": 0.31,
                "training_flops": 6.0 * SIZES[backbone] * 2e5,
            }
        )
    return found


def rows(backbone: str, prompts: str, seeds: Sequence[int], n_prompts: int = 12) -> pd.DataFrame:
    """Size buys nothing on easy prompts; on hard ones 0.05 gold per tenfold parameters of best-of-n and 0.03 of PPO."""
    difficulty = np.random.default_rng(derive_seed("synthetic prompts", prompts))
    level = {d: difficulty.normal(0.7 if prompts == "easy" else 0.35, 0.15, n_prompts) for d in ("math", "safety")}
    decades = np.log10(SIZES[backbone] / 12_000) * (prompts == "hard")
    points = [("sft", seeds[0], 0, True, 0.0)]
    for seed in seeds:
        luck = np.random.default_rng(derive_seed("synthetic luck", backbone, prompts, seed)).normal(0, 0.008)
        points += [("best_of_n", seed, n, n == 64, luck + 0.03 * np.log2(n) + 0.05 * decades) for n in (4, 16, 64)]
        points += [("ppo_rm", seed, 40, True, luck + 0.15 + 0.03 * decades)]
    blocks = []
    for arm, seed, step, final, gain in points:
        for domain, base in level.items():
            rng = np.random.default_rng(derive_seed("synthetic answers", backbone, prompts, arm, seed, step, domain))
            blocks.append(
                pd.DataFrame(
                    {
                        "arm": arm,
                        "seed": seed,
                        "run": f"{arm}-{seed}",
                        "step": step,
                        "final": final,
                        "decode": "sampled",
                        "prompt_id": [f"{prompts}-{domain}-{i:03d}" for i in range(n_prompts)],
                        "domain": domain,
                        "level": 1 if prompts == "easy" else 3,
                        "sample": 0,
                        "completion": "x",
                        "gold": base + gain + rng.normal(0, 0.02, n_prompts),
                        "gold_correct": None,
                        "gold_style": None,
                        "verdict": None,
                        "proxy": None,
                        "kl_nats": 0.0,
                        "entropy_nats": None,
                        "length": 5,
                        "truncated": False,
                        "training_flops": 0.0,
                        "generated_tokens": 0,
                    }
                )
            )
    return pd.concat(blocks, ignore_index=True)[[field.name for field in dataclasses.fields(EvalRow)]]


def points(
    seeds: Sequence[int] = (0, 1, 2), lost: Sequence[tuple[str, str]] = ()
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """What ``size_sweep`` takes; the points in ``lost`` failed."""
    described, blocks = [], []
    for backbone in SIZES:
        for prompts in SETS:
            failed = (backbone, prompts) in lost
            described.append(
                {
                    "backbone": backbone,
                    "prompts": prompts,
                    "seeds": tuple(seeds),
                    "status": "failed" if failed else "complete",
                    "note": "exit code 1" if failed else "",
                    "reward_models": [] if failed else reward_models(backbone, seeds),
                }
            )
            if not failed:
                blocks.append(rows(backbone, prompts, seeds).assign(backbone=backbone, prompts=prompts))
    return described, pd.concat(blocks, ignore_index=True)

"""Made-up points of a sweep over data quality, with a known structure. Not a simulation of training."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from lab.records import EvalRow, derive_seed

FLIPS = {"flip_00": 0.0, "flip_10": 0.1, "flip_20": 0.2, "flip_35": 0.35, "flip_50": 0.5}
PAIRS = {"pairs_0250": 250, "pairs_1000": 1000, "pairs_4000": 4000}
PRESETS = {"hh_like": (0.12, 0.05), "ultrafeedback_like": (0.33, 0.40), "crowd": (0.2, 0.2), "expert": (0.28, 0.33)}
NAMES = (*FLIPS, *PAIRS, *PRESETS)
RLVR_GAIN = 0.15
DOMAINS = ("math", "safety")


def gains(quality: str) -> tuple[float, float]:
    """What DPO and PPO x RM gain over SFT.

    PPO leads by 0.08 on clean labels and falls faster: they cross at 20% flips, and meet RLVR's line at 30% and 25.6%.
    Over pairs they meet at 4000 / 10 ** 0.4 = 1592.
    """
    if quality in FLIPS:
        return 0.30 - 0.5 * FLIPS[quality], 0.38 - 0.9 * FLIPS[quality]
    if quality in PAIRS:
        decades = math.log10(PAIRS[quality] / 4000)
        return 0.25 + 0.1 * decades, 0.29 + 0.2 * decades
    return PRESETS[quality]


def reward_models(quality: str, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Accuracy falls by 0.7 points for each point of flips."""
    flips = FLIPS.get(quality, 0.1)
    found = []
    for seed in seeds:
        luck = np.random.default_rng(derive_seed("synthetic quality", quality, seed)).normal(0, 0.006, 2)
        one = {"seed": seed, "parameters": 160_000, "pairs": PAIRS.get(quality, 4000)}
        one |= {"accuracy": 0.85 - 0.7 * flips + luck[0], "overall": 0.50 - 0.4 * flips + luck[1]}
        found.append({**one, "easy": one["overall"] + 0.1, "hard": one["overall"] - 0.1})
    return found


def preferences(quality: str) -> dict[str, Any]:
    """As ``point.json`` has it."""
    flips = FLIPS.get(quality, 0.1)
    agreement = 1 - flips
    return {
        "preset": quality if quality in PRESETS else "expert",
        "pairs": PAIRS.get(quality, 4000),
        "flip_rate": flips,
        "agreement_with_gold": min(agreement + 0.004, 1.0),
        "agreement_with_gold_low": agreement - 0.006,
        "agreement_with_gold_high": min(agreement + 0.014, 1.0),
        "expected_agreement": agreement,
        "longer_chosen": 0.5,
        "labels_paid": PAIRS.get(quality, 4000) + 500,
    }


def rows(quality: str, seeds: Sequence[int], n_prompts: int = 12, noise: float = 0.02) -> pd.DataFrame:
    """Evaluation rows of one point: sft, dpo, ppo_rm, and ppo_verifier, which is the same in every point."""
    difficulty = np.random.default_rng(derive_seed("synthetic quality prompts"))
    level = {d: difficulty.normal(0.6, 0.15, n_prompts) for d in DOMAINS}
    dpo, ppo = gains(quality)
    runs = [("sft", seeds[0], 0.0, ""), *(("ppo_verifier", seed, RLVR_GAIN, "") for seed in seeds)]
    runs += [(arm, seed, gain, quality) for arm, gain in (("dpo", dpo), ("ppo_rm", ppo)) for seed in seeds]
    keys, golds = [], []
    for arm, seed, gain, own in runs:
        for domain, base in level.items():
            rng = np.random.default_rng(derive_seed("synthetic quality answers", own, arm, seed, domain))
            golds.append(base + gain + noise * rng.normal(0, 0.5) + rng.normal(0, noise, n_prompts))
            keys += [(arm, seed, domain, f"{domain}-{i:03d}") for i in range(n_prompts)]
    values: Mapping[str, Any] = {
        **dict(zip(("arm", "seed", "domain", "prompt_id"), zip(*keys, strict=True), strict=True)),
        "gold": np.concatenate(golds), "run": [f"{arm}-{seed}" for arm, seed, *_ in keys], "step": 40, "final": True,
        "decode": "sampled", "level": 1, "sample": 0, "completion": "x", "kl_nats": 0.0, "length": 5,
        "truncated": False, "training_flops": 0.0, "generated_tokens": 0,
    }  # fmt: skip
    return pd.DataFrame(values).reindex(columns=[field.name for field in dataclasses.fields(EvalRow)])


def points(
    seeds: Sequence[int] = (0, 1, 2, 3, 4), lost: Sequence[str] = (), names: Sequence[str] = NAMES
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """What ``quality_sweep`` takes; the points in ``lost`` failed."""
    described = [
        {
            "quality": name,
            "seeds": tuple(seeds),
            "status": "failed" if name in lost else "complete",
            "note": "exit code 1" if name in lost else "",
            "preferences": None if name in lost else preferences(name),
            "reward_models": [] if name in lost else reward_models(name, seeds),
        }
        for name in names
    ]
    blocks = [rows(name, seeds).assign(quality=name) for name in names if name not in lost]
    return described, pd.concat(blocks, ignore_index=True)

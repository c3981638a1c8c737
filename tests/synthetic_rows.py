"""Made-up evaluation rows with a known structure, for tests of tables and figures. Not a simulation of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from lab.records import DOMAINS, EvalRow, derive_seed
from lab.stats import best_of_n_kl

CHECKED = ("math", "factuality", "instructions")

# arm: (gain in checked domains, gain elsewhere, gain in proxy, sequence KL at the end)
EFFECTS: dict[str, tuple[float, float, float, float]] = {
    "sft": (0.0, 0.0, 0.0, 0.0),
    "sft_continued": (0.03, 0.01, 0.05, 0.4),
    "best_of_n": (0.14, 0.16, 0.9, float(best_of_n_kl(8))),
    "dpo": (0.18, 0.15, 0.8, 3.1),
    "ppo_rm": (0.24, 0.22, 1.5, 4.2),
    "grpo_rm": (0.27, 0.21, 1.6, 4.8),
    "ppo_verifier": (0.32, -0.01, 0.2, 2.6),
    "grpo_verifier": (0.36, 0.0, 0.2, 2.2),
    "grpo_random": (-0.01, -0.01, 0.0, 0.6),
    "ppo_rm_low_kl": (-0.12, -0.18, 2.6, 14.0),
}


def evaluation_rows(
    arms: Sequence[str] = tuple(EFFECTS),
    seeds: Sequence[int] = (0, 1, 2),
    prompts: int = 24,
    samples: int = 4,
    points: int = 4,
    seed: int = 0,
) -> pd.DataFrame:
    """Rows with the columns of ``EvalRow``. Prompts have a difficulty that all arms share; ``points`` checkpoints."""
    rng = np.random.default_rng(derive_seed("synthetic rows", seed))
    difficulty = {domain: rng.normal(0.45, 0.2, prompts) for domain in DOMAINS}
    blocks = []
    for arm in arms:
        checked, elsewhere, proxy, kl = EFFECTS[arm]
        for policy_seed in (0,) if arm == "sft" else seeds:
            luck = 0.0 if arm == "sft" else rng.normal(0, 0.02)
            shares = [1.0] if arm == "sft" else [(point + 1) / points for point in range(points)]
            for share in shares:
                final = share == 1.0
                step = 0 if arm == "sft" else 2 ** round(points * share) if arm == "best_of_n" else round(40 * share)
                grown = np.sqrt(share)
                for domain in DOMAINS:
                    gain = (checked if domain in CHECKED else elsewhere) * grown + luck
                    if arm == "ppo_rm_low_kl":  # over-optimised: up, then down
                        gain = 0.5 * share - (0.65 if domain in CHECKED else 0.7) * share**2 + luck
                    for decode, count in (("sampled", samples), *((("greedy", 1),) if final else ())):
                        chance = np.clip(difficulty[domain] + gain, 0.02, 0.98)[:, None]
                        right = rng.random((prompts, count)) < chance
                        style = np.clip(rng.normal(0.4 + gain / 2, 0.2, (prompts, count)), 0, 1)
                        blocks.append(
                            pd.DataFrame(
                                {
                                    "arm": arm,
                                    "seed": policy_seed,
                                    "run": f"{derive_seed(arm, policy_seed):016x}",
                                    "step": step,
                                    "final": final,
                                    "decode": decode,
                                    "prompt_id": np.repeat([f"{domain}-{p:04d}" for p in range(prompts)], count),
                                    "domain": domain,
                                    "level": 1,
                                    "sample": np.tile(np.arange(count), prompts),
                                    "completion": [f"c{value}" for value in rng.integers(6, size=prompts * count)],
                                    "gold": (right * 0.7 + 0.3 * style).ravel(),
                                    "gold_correct": right.astype(float).ravel(),
                                    "gold_style": style.ravel(),
                                    "verdict": np.where(right, "correct", "incorrect").ravel()
                                    if domain in CHECKED
                                    else None,
                                    "proxy": rng.normal(proxy * grown, 0.8, prompts * count),
                                    "kl_nats": kl * share * rng.uniform(0.8, 1.2, prompts * count),
                                    "entropy_nats": 1.0 - 0.4 * share,
                                    "length": rng.integers(8, 24, prompts * count),
                                    "truncated": rng.random(prompts * count) < 0.02,
                                    "training_flops": 0.0 if kl == 0 or arm == "best_of_n" else 2e12 * share,
                                    "generated_tokens": int(2e5 * share),
                                }
                            )
                        )
    return pd.concat(blocks, ignore_index=True)[[field.name for field in dataclasses.fields(EvalRow)]]


def plan(arms: Sequence[str] = tuple(EFFECTS), seeds: Sequence[int] = (0, 1, 2)) -> dict[str, list[int]]:
    return {arm: [0] if arm == "sft" else list(seeds) for arm in arms}


def ledgers(arms: Sequence[str] = tuple(EFFECTS), seeds: int = 3) -> dict[str, list[Mapping[str, float]]]:
    costs: dict[str, list[Mapping[str, float]]] = {}
    for arm in arms:
        reward_model = arm in ("best_of_n", "ppo_rm", "grpo_rm", "ppo_rm_low_kl")
        online = arm.startswith(("ppo", "grpo"))
        costs[arm] = [
            {
                "preference_labels": 5000 if reward_model or arm == "dpo" else 0,
                "verifier_calls": 10240 if arm.endswith("verifier") else 0,
                "generated_tokens": 200_000 if online else 40_000 if arm == "best_of_n" else 0,
                "training_flops": (0.0 if arm in ("sft", "best_of_n") else 2e12 if online else 6e11)
                * (1.3 if arm.startswith("ppo") else 1.0)
                + (1.2e12 if reward_model else 0.0),
                "sampling_flops": 3e11 if online else 2e11 if arm == "best_of_n" else 0.0,
                "wall_seconds": 20.0 + seed,
            }
            for seed in range(1 if arm == "sft" else seeds)
        ]
    return costs

"""Made-up pools, paths and traces in which it is known who is overoptimised. Not a simulation of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lab.overoptimisation import predict
from lab.records import derive_seed
from lab.stats import Floats
from lab.tables.monitoring import Watched, margin_of
from lab.tables.overoptimisation import Key, Planned, Track, best_of_n_track
from lab.tables.reward_models import Pool

DOMAINS = ("math", "safety", "style")
BON = {"single": 0.2, "mean": 0.55, "worst": 0.95, "uncertainty": 0.9}
"""Model -> how much of what its highest scores pick is still good (1: all)."""
RL: dict[str, tuple[float, float, float]] = {
    "single": (0.16, 0.12, 5.2),
    "mean": (0.17, 0.115, 4.8),
    "worst": (0.13, 0.06, 4.0),
    "uncertainty": (0.14, 0.07, 4.4),
    "single_held": (0.17, 0.08, 1.5),
    "worst_held": (0.15, 0.06, 1.3),
}
"""Model -> a and b of Gao's form for RL, and the last √KL."""
LABELS = {
    "single": "One reward model",
    "mean": "Mean of 5",
    "worst": "Worst of 5",
    "uncertainty": "Uncertainty of 5",
    "single_held": "One reward model, KL held",
    "worst_held": "Worst of 5, KL held",
}
AGAINST = {"mean": ("single",), "worst": ("single", "mean"), "uncertainty": ("single", "mean")}
HELD = {"single_held": ("single",), "worst_held": ("single_held", "worst")}
ROLLOUTS, UPDATES = 32, 2


def pool(prompts: int = 20, samples: int = 64, seed: int = 0) -> Pool:
    """Gold is standard normal about a prompt's own level, a tenth as large."""
    rng = np.random.default_rng(derive_seed("synthetic pool", seed))
    count = prompts * len(DOMAINS)
    gold = 0.5 + rng.normal(0, 0.1, (count, 1)) + rng.normal(0, 0.1, (count, samples))
    return Pool(
        tuple(f"{derive_seed(seed, place) % 10**12:012d}" for place in range(count)),
        tuple(domain for domain in DOMAINS for _ in range(prompts)),
        gold,
        np.full(gold.shape, 12.0),
        np.full(gold.shape, np.nan),
        tuple((None,) * samples for _ in range(count)),
        np.zeros(count, dtype=bool),
    )


def scores(model: str, found: Pool, seeds: Sequence[int]) -> Floats:
    """(S, P, N): they follow gold in the main, and their highest are of samples that only look good."""
    own = []
    for seed in seeds:
        rng = np.random.default_rng(derive_seed("synthetic scores", model, seed))
        noise = rng.normal(0, 1, found.gold.shape)
        good = (found.gold - found.gold.mean(1, keepdims=True)) / 0.1
        fooled = (rng.random(found.gold.shape) < 0.04) & (good < 0)
        own.append(good + 0.8 * noise + np.where(fooled, 8.0 * (1 - BON[model]), 0.0))
    return np.stack(own)


def training(model: str, seeds: Sequence[int], prompts: int = 20, points: int = 9, seed: int = 0) -> Track:
    """Checkpoints along Gao's form, with luck by seed and noise by prompt."""
    a, b, largest = RL[model]
    rng = np.random.default_rng(derive_seed("synthetic path", model, seed))
    kl = np.linspace(0, 1, points + 1)[:, None] * largest * (1 + rng.normal(0, 0.05, len(seeds)))
    gain = predict("rl", a, b, kl) + np.linspace(0, 1, points + 1)[:, None] * rng.normal(0, 0.01, len(seeds))
    gold, start = {}, {}
    for domain in DOMAINS:
        level = np.random.default_rng(derive_seed("synthetic level", domain)).normal(0.5, 0.1, prompts)
        noise = rng.normal(0, 0.08, (points + 1, len(seeds), prompts))
        noise[0] = 0.0
        gold[domain], start[domain] = level + gain[..., None] + noise, level[None]
    steps = tuple(round(ROLLOUTS * k / points) * UPDATES for k in range(points + 1))
    return Track(tuple(seeds), steps, kl, gold, start, 0.9 * kl + rng.normal(0, 0.03, kl.shape) * (kl > 0))


def plan(count: int) -> list[Planned]:
    return [
        *(Planned("bon", name, LABELS[name], count, AGAINST.get(name, ())) for name in BON),
        *(Planned("rl", name, LABELS[name], count, AGAINST.get(name, HELD.get(name, ()))) for name in RL),
    ]


def tracks(seeds: Sequence[int], prompts: int = 20, samples: int = 64) -> dict[Key, Track]:
    found = pool(prompts, samples)
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= samples]
    paths: dict[Key, Track] = {
        ("bon", name): best_of_n_track(scores(name, found, seeds), seeds, found, ns) for name in BON
    }
    return paths | {("rl", name): training(name, seeds, prompts) for name in RL}


def trace(model: str, seed: int, rollouts: int = ROLLOUTS) -> list[dict[str, Any]]:
    """KL and the gap to a watcher grow with √KL; the other signals wander."""
    largest = RL[model][2]
    rng = np.random.default_rng(derive_seed("synthetic trace", model, seed))
    rows = []
    for t in range(1, rollouts + 1):
        d = largest * t / rollouts
        fooled = max(d - 1.8, 0.0) if model in ("single", "mean", "uncertainty") else 0.0
        rows.append(
            {
                "rollout": t,
                "optimizer_steps": UPDATES * t,
                "reward_mean": 0.9 * d + rng.normal(0, 0.05),
                "reward_std": 1.0 + rng.normal(0, 0.02),
                "kl_estimate_nats": d * d + rng.normal(0, 0.1),
                "entropy_nats": 1.2 - 0.1 * d + rng.normal(0, 0.02),
                "length_mean": 14 + rng.normal(0, 0.4),
                "repetition_group": 0.1 + 0.02 * fooled + rng.normal(0, 0.01),
                "watch_mean.held_out": 0.7 * d - 0.5 * fooled + rng.normal(0, 0.05),
                "watch_std.held_out": 1.0,
                "watch_correlation.held_out": 0.8 - 0.02 * d - 0.12 * fooled + rng.normal(0, 0.02),
            }
        )
    return rows


def watched(paths: dict[Key, Track]) -> tuple[list[Watched], float]:
    """Every policy's run, and the margin."""
    own = {model: track for (method, model), track in paths.items() if method == "rl"}
    runs = [
        Watched(
            f"ppo_{model}", f"PPO × {LABELS[model]}", seed, trace(model, seed),
            {at: float(gain) for at, gain in zip(track.at, track.gains[:, place], strict=True)},
            {at: float(gain) for at, gain in zip(track.at, track.proxy_gain[:, place], strict=True)},
        )
        for model, track in own.items()
        for place, seed in enumerate(track.seeds)
    ]  # fmt: skip
    return runs, margin_of(list(own.values()))

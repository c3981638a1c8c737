"""The gates can fail: each on its own, when its number is moved across the line."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from experiments.gates import gates


def line(arm: str, domain: str, **values: float | None) -> dict[str, Any]:
    return {"arm": arm, "domain": domain, **values}


HEALTHY = {
    "table": [
        *(line("sft", domain, pass1=0.4) for domain in ("math", "factuality", "instructions")),
        line("sft", "safety", pass1=None),
        line("sft", "all", pass1=0.4),
        line("grpo_verifier", "verifiable", pass1_delta=0.4, pass1_delta_low=0.3, pass1_delta_high=0.5, gold_delta=0.5),
        line("grpo_verifier", "unverifiable", gold_delta=0.1),
        line("ppo_rm", "all", gold_delta=0.3, gold_delta_low=0.2, gold_delta_high=0.4),
        line("dpo", "all", gold_delta=0.3, gold_delta_low=0.2, gold_delta_high=0.4),
        line("grpo_random", "all", gold_delta=-0.1, gold_delta_low=-0.2, gold_delta_high=0.0),
    ],
    "seeds": [
        *(line("ppo_rm", "all", seed=seed, proxy=1.0, gold=1.1, kl_nats=1.0) for seed in (0, 1)),
        *(line("ppo_rm_low_kl", "all", seed=seed, proxy=1.5, gold=0.8, kl_nats=7.0) for seed in (0, 1)),
        line("ppo_rm", "math", seed=0, proxy=9.0, gold=0.0, kl_nats=1.0),
    ],
}  # fmt: skip
ACCURACIES = [0.8, 0.79, 0.82]


def failing(summary: dict[str, Any], accuracies: list[float] = ACCURACIES) -> list[str]:
    return [gate.claim for gate in gates(summary, accuracies) if not gate.holds]


def test_a_healthy_world_passes() -> None:
    assert failing(HEALTHY) == []
    assert len(gates(HEALTHY, ACCURACIES)) == 8


@pytest.mark.parametrize(
    ("arm", "domain", "name", "value", "claim"),
    [
        ("sft", "math", "pass1", 0.2, "SFT pass@1"),
        ("sft", "instructions", "pass1", 0.7, "SFT pass@1"),
        ("grpo_verifier", "verifiable", "pass1_delta_low", 0.1, "GRPO × verifier raises"),
        ("grpo_verifier", "unverifiable", "gold_delta", 0.3, "... and changes"),
        ("ppo_rm", "all", "gold_delta_low", -0.01, "PPO × RM raises"),
        ("dpo", "all", "gold_delta_low", -0.01, "DPO raises"),
        ("grpo_random", "all", "gold_delta_low", 0.01, "A random reward"),
    ],
)
def test_each_gate_fails_alone(arm: str, domain: str, name: str, value: float, claim: str) -> None:
    summary = copy.deepcopy(HEALTHY)
    next(one for one in summary["table"] if (one["arm"], one["domain"]) == (arm, domain))[name] = value
    found = failing(summary)
    assert len(found) == 1
    assert found[0].startswith(claim)


@pytest.mark.parametrize(("name", "value"), [("gold", 1.2), ("proxy", 0.9)])
def test_one_seed_that_is_not_hacked_fails(name: str, value: float) -> None:
    summary = copy.deepcopy(HEALTHY)
    summary["seeds"][3][name] = value
    assert [claim[:12] for claim in failing(summary)] == ["The same PPO"]


def test_one_seed_is_not_enough() -> None:
    summary = copy.deepcopy(HEALTHY)
    summary["seeds"] = [one for one in summary["seeds"] if one["seed"] == 0]
    assert len(failing(summary)) == 1


def test_one_weak_reward_model_fails() -> None:
    assert len(failing(HEALTHY, [0.8, 0.74])) == 1

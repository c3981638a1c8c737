"""The steps that choose what is trained on: decontaminated and filtered preference pools, rejection sampling."""

from __future__ import annotations

from lab.config import AnswerRule, FilterConfig, RejectionConfig, ScoreRule, VerifierRule, VoteRule
from lab.graph.overlap import decontaminated_pool
from lab.graph.rewards import MEMBER_STRIDE, Rewards
from lab.graph.shared import Shared, identity
from lab.plan import Step
from lab.typed import plain

TRAINED = ("reward_model", "multi_objective", "token_rewards", "judge", "direct", "normalise")
"""Kinds of steps that a filter's reward sources are made of, and that who trains on its pairs is charged for."""


def training_pool(shared: Shared) -> Step:
    """The preference pool that the experiment trains on: its own, decontaminated and filtered as the config says.

    The reward sources of the filter are trained on the pool before it, for the experiment's first seed: one filter for
    all seeds.
    """
    config = shared.config
    pool = decontaminated_pool(config, shared.pairs, shared.data, shared.benchmark_set, shared.step)
    if config.filter is None:
        return pool
    before, shared.pairs = shared.pairs, pool
    step = filtered(shared, Rewards(shared), config.filter, pool, config.first_seed)
    shared.pairs = before
    return step


def filtered(shared: Shared, rewards: Rewards, settings: FilterConfig, pairs: Step, seed: int) -> Step:
    """A preference pool with the pairs that the filter keeps. ``seed``: of the reward models that judge."""
    inputs: dict[str, Step] = {"pairs": pairs}
    match settings.rule:
        case ScoreRule() as rule:
            inputs |= rewards.source(rule.reward, seed).inputs
        case VoteRule() as rule:
            for number, (name, voter) in enumerate(rule.voters.items()):
                own = rewards.source(voter, seed + MEMBER_STRIDE * number).inputs
                inputs |= {f"{name}.{key}": step for key, step in own.items()}
        case VerifierRule() | AnswerRule():
            pass
    said = f"random, as many as {settings.rule.kind}" if settings.control else settings.rule.kind
    return shared.step(
        "filter",
        {"filter": identity(settings), "gold": shared.gold},
        inputs,
        f"pairs filtered: {said}",
        shared.forward(2 * shared.preferences.pairs),
    )


def paid_for(pairs: Step) -> list[Step]:
    """The steps that whoever trains on these pairs is charged for: those that made, labelled and filtered them."""
    match pairs.kind:
        case "filter":
            trained = [step for step in pairs.inputs.values() if step.kind in TRAINED]
            return [pairs, *dict.fromkeys(trained), *paid_for(pairs.inputs["pairs"])]
        case "decontaminate":
            return paid_for(pairs.inputs["training"])
        case _:
            return [pairs]


def rejection(
    shared: Shared, rewards: Rewards, settings: RejectionConfig, policy: Step, prompts: Step, seed: int, label: str = ""
) -> Step:
    """Demonstrations picked among ``policy``'s answers to the prompts of ``settings.split`` (``prompts`` holds them).

    ``seed``: of the reward models that pick, and added to the settings' own. Feed the step to an sft stage as its
    "data", with split "sft".
    """
    config = identity(settings) | {"seed": settings.seed + seed, "gold": shared.gold}
    inputs: dict[str, Step] = {}
    if settings.reward is not None:
        source = rewards.source(settings.reward, seed)
        config["reward"], inputs = source.config, dict(source.inputs)
    counts = plain(shared.config.data.counts)
    return shared.step(
        "rejection",
        config,
        {"sft": policy, "prompts": prompts, **inputs},
        label or f"rejection sampling ({settings.rule}), seed {seed}",
        shared.forward(2 * counts.get(settings.split, counts["rl"]) * settings.samples),
    )

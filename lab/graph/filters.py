"""The steps that choose what is trained on: rejection sampling."""

from __future__ import annotations

from lab.config import RejectionConfig
from lab.graph.rewards import Rewards
from lab.graph.shared import Shared, identity
from lab.plan import Step
from lab.typed import plain


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

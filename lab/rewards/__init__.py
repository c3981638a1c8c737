"""Reward sources behind one interface: prompts and completions as text in, scores out.

A source brings its own tokenizer and template, so a reward model of another family can score any policy. NaN means
that this source cannot score this completion (a verifier on a prompt without a rule): unknown, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from lab.config import RewardConfig, build
from lab.records import Completion, Prompt
from lab.rewards.classifier import ClassifierReward
from lab.rewards.controls import ConstantReward, LengthReward, RandomReward
from lab.rewards.truth import GoldReward, VerifierReward


class RewardSource(Protocol):
    """What pays a policy, picks among samples, or is measured as a proxy."""

    name: str

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Scores (N,), float64, of N prompts and their completions; NaN where this source cannot score."""
        ...


def load_reward(config: Mapping[str, Any], inputs: Mapping[str, Path], device: str | torch.device) -> RewardSource:
    """The reward source that a plain RewardConfig names. ``inputs["reward_model"]`` is the artifact of a trained one.

    Raises ValueError if a trained source is asked for and its artifact is not among the inputs.
    """
    reward = build(RewardConfig, config, "reward")
    match reward.kind:
        case "classifier":
            if "reward_model" not in inputs:
                raise ValueError("reward.kind: classifier needs a trained reward model, and this step has none")
            return ClassifierReward(inputs["reward_model"], device, reward.scale)
        case "verifier":
            return VerifierReward(reward.scale)
        case "gold":
            return GoldReward(reward.scale)
        case "random":
            return RandomReward(reward.scale)
        case "length":
            return LengthReward(reward.scale)
        case "constant":
            return ConstantReward(reward.scale)

"""Pipelines: stages of training, one after another, each from the policy that the one before it left.

The union of all methods is here and not in ``lab.config.methods``, which reward sources import: rejection sampling has
a reward source inside.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Union

from lab.config.filters import RejectionConfig
from lab.config.methods import (
    BestOfNMethod,
    ContinuedMethod,
    DirectMethod,
    NoMethod,
    OnlineMethod,
    UnpairedMethod,
)
from lab.config.models import SupervisedConfig
from lab.config.rewards import RewardConfig


@dataclass(frozen=True)
class RejectionMethod:
    """Rejection-sampling fine-tuning: the policy answers, a rule keeps some answers, SFT goes on upon them."""

    kind: Literal["rejection"]
    sampling: RejectionConfig
    training: SupervisedConfig
    checkpoints: int = 0


MethodConfig = Union[  # noqa: UP007
    NoMethod, ContinuedMethod, DirectMethod, UnpairedMethod, RejectionMethod, OnlineMethod, BestOfNMethod
]


@dataclass(frozen=True)
class StageConfig:
    """One stage: a method, what pays it, the preference pairs that it (or its reward model) learns from.

    pairs: "shared", the experiment's pool, sampled from SFT; "fresh", a pool sampled from the policy that the stage
    starts from, its labels paid anew; "accumulated", that and all fresh pools of this pipeline before it.
    anchor: what the KL term, or the reference of a direct loss, holds the policy to: where this stage starts (as in
    Tulu 3) or SFT. tuning_trials: settings tried before these were chosen.
    """

    label: str
    method: MethodConfig
    reward: RewardConfig | None = None
    pairs: Literal["shared", "fresh", "accumulated"] = "shared"
    anchor: Literal["start", "sft"] = "start"
    tuning_trials: int = 0


@dataclass(frozen=True)
class PipelineConfig:
    """``stages`` in order, gone through ``rounds`` times.

    Over several rounds the budget stays that of one: each gets its share of ``preferences.pairs`` for its fresh pools,
    of the rollouts of its online stages (at least one each), and of the steps of warm-up. against: "PIPELINE" or
    "PIPELINE.STAGE", of the same budget, whose policy the last one of this pipeline is compared with; empty: none.
    """

    label: str
    stages: Mapping[str, StageConfig]
    start: Literal["sft", "base"] = "sft"
    rounds: int = 1
    against: str = ""

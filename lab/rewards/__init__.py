"""Reward sources behind one interface: prompts and completions as text in, scores out.

A source brings its own tokenizer and template, so a reward model of another family can score any policy. NaN means
that this source cannot score this completion (a verifier on a prompt without a rule): unknown, never 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lab.config import (
    ClassifierSource,
    EndpointJudge,
    EnsembleSource,
    ImplicitSource,
    JudgeSource,
    LocalJudge,
    MixtureSource,
    MultiObjectiveSource,
    OutcomeSource,
    ProcessSource,
    RewardConfig,
    SimpleSource,
    WorldJudge,
    build,
)
from lab.rewards.source import Detail, DetailedSource, PairwiseSource, RewardSource, read_normalisation

__all__ = ["Detail", "DetailedSource", "PairwiseSource", "RewardSource", "load_reward"]


def load_reward(config: Mapping[str, Any], inputs: Mapping[str, Path], device: str | torch.device) -> RewardSource:
    """The reward source that a plain RewardConfig names.

    ``inputs`` holds the artifacts of trained ones: "reward_model", "multi_objective", "outcome", "process", "judge",
    "implicit_policy" and "implicit_reference", "member_0", "member_1" ...; of part NAME of a mixture
    "NAME.reward_model" and so on; and "normalisation" of a source whose own artifact has none (else shift 0, scale 1).

    Raises ValueError if a trained source is asked for and its artifact is not among the inputs.
    """
    return _load(build(RewardConfig, config, "reward"), inputs, device)


def _load(reward: Any, inputs: Mapping[str, Path], device: str | torch.device) -> RewardSource:
    match reward:
        case SimpleSource():
            return _simple(reward)
        case ClassifierSource():
            from lab.rewards.classifier import ClassifierReward

            return ClassifierReward(_artifact(inputs, "reward_model", reward.kind), device, reward.scale)
        case MultiObjectiveSource():
            from lab.rewards.multi_objective import MultiObjectiveReward

            return MultiObjectiveReward(_artifact(inputs, "multi_objective", reward.kind), device, reward.scale)
        case OutcomeSource():
            from lab.rewards.token_scores import OutcomeReward

            return OutcomeReward(_artifact(inputs, "outcome", reward.kind), device, reward.scale, reward.at)
        case ProcessSource():
            from lab.rewards.token_scores import ProcessReward

            return ProcessReward(_artifact(inputs, "process", reward.kind), device, reward.scale, reward.aggregate)
        case ImplicitSource():
            from lab.rewards.implicit import ImplicitReward

            policy = _artifact(inputs, "implicit_policy", reward.kind)
            reference = _artifact(inputs, "implicit_reference", reward.kind)
            return ImplicitReward(policy, reference, _normalisation(inputs), device, reward.scale, reward.variant)
        case JudgeSource():
            return _judge(reward, inputs, device)
        case EnsembleSource():
            from lab.rewards.classifier import ClassifierReward
            from lab.rewards.composite import EnsembleReward

            artifacts = [_artifact(inputs, f"member_{number}", reward.kind) for number in range(reward.members)]
            members = [ClassifierReward(artifact, device) for artifact in artifacts]
            return EnsembleReward(members, reward.combine, reward.uncertainty_weight, reward.scale)
        case MixtureSource():
            from lab.rewards.composite import MixtureReward

            parts = {}
            for name, part in reward.parts.items():
                own = {key.removeprefix(f"{name}."): path for key, path in inputs.items() if key.startswith(f"{name}.")}
                parts[name] = (_load(part.reward, own, device), part.weight, part.missing)
            return MixtureReward(parts, reward.scale)
        case _:
            raise AssertionError(f"no reward source for {reward}")


def _simple(reward: SimpleSource) -> RewardSource:
    from lab.rewards.controls import ConstantReward, LengthReward, RandomReward
    from lab.rewards.truth import GoldReward, VerifierReward

    match reward.kind:
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


def _judge(reward: JudgeSource, inputs: Mapping[str, Path], device: str | torch.device) -> RewardSource:
    from lab.rewards.judge import EndpointJudgeBackend, JudgeReward, LocalJudgeBackend, WorldJudgeBackend

    match reward.judge:
        case WorldJudge():
            artifact = _artifact(inputs, "judge", reward.kind)
            return JudgeReward(WorldJudgeBackend(artifact, device), read_normalisation(artifact), reward.scale)
        case LocalJudge():
            artifact = _artifact(inputs, "judge", reward.kind)
            backend = LocalJudgeBackend(artifact / "final", device, reward.judge.template)
            return JudgeReward(backend, _normalisation(inputs), reward.scale)
        case EndpointJudge():
            return JudgeReward(EndpointJudgeBackend(reward.judge), _normalisation(inputs), reward.scale)


def _artifact(inputs: Mapping[str, Path], name: str, kind: str) -> Path:
    if name not in inputs:
        raise ValueError(f"reward.kind: {kind} needs the artifact {name!r}, and this step has none")
    return inputs[name]


def _normalisation(inputs: Mapping[str, Path]) -> tuple[float, float]:
    return read_normalisation(inputs["normalisation"]) if "normalisation" in inputs else (0.0, 1.0)

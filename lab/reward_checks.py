"""What a config of reward sources must satisfy before any work: see ``lab.checks``, of which this is a part."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lab.config import (
    CandidateConfig,
    CheckpointBackbone,
    ClassifierSource,
    EndpointJudge,
    EnsembleSource,
    JsonlData,
    JudgeSource,
    LabConfig,
    LocalJudge,
    MixtureSource,
    PackagedBackbone,
    PolicyBackbone,
    PreferencesConfig,
    RewardConfig,
    RewardModelConfig,
    WorldBackbone,
    WorldModel,
)
from lab.typed import ConfigError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
"""Names of candidates, watchers and parts of a mixture: they name inputs and files, and a dot separates them."""


def sampled_pairs(config: LabConfig) -> int | None:
    """How many pairs there will be, None if only a file knows."""
    return config.preferences.pairs if isinstance(config.preferences, PreferencesConfig) else None


def check_candidate(config: LabConfig, name: str, candidate: CandidateConfig) -> None:
    """Raise ConfigError for a reward source that cannot be benchmarked."""
    path = f"candidates.{name}"
    if not NAME.fullmatch(name):
        raise ConfigError(f"{path}: a candidate's name is letters, digits and _ - (it names files), got {name!r}")
    check_reward(f"{path}.reward", candidate.reward, config)


def check_watch(config: LabConfig) -> None:
    """Raise ConfigError for watchers of online training that cannot work, or that would look at the truth."""
    for name, reward in config.watch.items():
        if not NAME.fullmatch(name):
            raise ConfigError(f"watch: a watcher's name is letters, digits and _ -, got {name!r}")
        if reward.kind == "gold":
            raise ConfigError(f"watch.{name}.kind: gold: a monitor that sees the truth monitors nothing")
        check_reward(f"watch.{name}", reward, config)


def check_reward(path: str, reward: RewardConfig, config: LabConfig) -> None:
    """Raise ConfigError, naming the key, for a reward source that cannot work."""
    match reward:
        case ClassifierSource() | EnsembleSource():
            if isinstance(reward, EnsembleSource) and reward.members < 2:
                raise ConfigError(f"{path}.members: an ensemble needs 2, got {reward.members}")
            if reward.training is not None:
                check_reward_model(f"{path}.training", reward.training, config)
        case MixtureSource():
            if not reward.parts:
                raise ConfigError(f"{path}.parts: a mixture of nothing")
            for name, part in reward.parts.items():
                if not NAME.fullmatch(name):
                    raise ConfigError(f"{path}.parts: a part's name is letters, digits and _ -, got {name!r}")
                check_reward(f"{path}.parts.{name}.reward", part.reward, config)
        case JudgeSource(judge=LocalJudge() as judge):
            if not (Path(judge.path) / "config.json").is_file():
                raise ConfigError(f"{path}.judge.path: {judge.path!r} holds no config.json, so it is no checkpoint")
        case JudgeSource(judge=EndpointJudge() as judge):
            if not re.match(r"https?://", judge.url):
                raise ConfigError(f"{path}.judge.url: expected http:// or https://, got {judge.url!r}")
            if judge.key_variable and not os.environ.get(judge.key_variable):
                raise ConfigError(f"{path}.judge.key_variable: the environment has no {judge.key_variable}")
        case _:
            pass


def check_reward_model(path: str, training: RewardModelConfig, config: LabConfig) -> None:
    """Raise ConfigError for a Bradley-Terry reward model that cannot be trained."""
    if training.micro_batch and training.batch % training.micro_batch:
        raise ConfigError(f"{path}.micro_batch: {training.micro_batch} does not divide {path}.batch ({training.batch})")
    pairs = sampled_pairs(config)
    if pairs is not None and training.pairs > pairs:
        raise ConfigError(f"{path}.pairs: {training.pairs} is more than preferences.pairs ({pairs})")
    if pairs is not None and training.batch > (training.pairs or pairs):
        raise ConfigError(f"{path}.batch: {training.batch} is more than the {training.pairs or pairs} rows there are")
    backbone = training.backbone
    match backbone:
        case PolicyBackbone(initial="policy", method=None):
            raise ConfigError(f"{path}.backbone.method: missing: initial is policy (backbone=policy has one)")
        case PolicyBackbone():
            if backbone.initial != "policy" and backbone.method is not None:
                raise ConfigError(f"{path}.backbone.method: initial is {backbone.initial}, which no method makes")
        case WorldBackbone():
            if isinstance(config.data, JsonlData) or not isinstance(config.model, WorldModel):
                raise ConfigError(f"{path}.backbone: a base of the world reads only the world's words")
            size = backbone.size
            if size.hidden % size.heads or size.hidden // size.heads % 2:
                raise ConfigError(f"{path}.backbone.size.heads: {size.heads} heads need an even share of {size.hidden}")
        case CheckpointBackbone():
            if not (Path(backbone.path) / "config.json").is_file():
                raise ConfigError(f"{path}.backbone.path: {backbone.path!r} holds no config.json: it is no checkpoint")
        case PackagedBackbone():
            pass

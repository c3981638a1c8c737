"""What a config of feedback must satisfy before any work: see ``lab.checks``, of which this is a part."""

from __future__ import annotations

import re
from pathlib import Path

from lab.config import (
    AILabels,
    ConstitutionConfig,
    FeedbackConfig,
    FewLabels,
    JsonlData,
    JudgeSource,
    LabConfig,
    PreferencesConfig,
    RevisionConfig,
    Revisions,
    WorldJudge,
    WorldModel,
    WorldReviser,
    WrittenReviser,
)
from lab.reward_checks import NAME, check_reward, sampled_pairs
from lab.typed import ConfigError, nearest

WORLD_ATTRIBUTES = ("correctness", "opening", "closing", "tidiness")
"""What a principle of the world may speak of: the attributes that the world's editor can mend."""

WITHOUT = ("pipelines", "build_benchmark", "real_reward_model")
"""Experiments with pairs of their own making, which would leave ``feedback`` unread."""

PLACEHOLDER = re.compile(r"\{(prompt|first|second|completion)\}")


def check_feedback(config: LabConfig) -> None:
    """Raise ConfigError, naming the key, for feedback that cannot work."""
    if config.feedback is not None:
        if config.experiment in WITHOUT:
            raise ConfigError(f"feedback: experiment={config.experiment} does not take it; expected null")
        _check(config, "feedback", config.feedback)
    for name, source in config.label_sources.items():
        path = f"label_sources.{name}"
        if not NAME.fullmatch(name):
            raise ConfigError(f"{path}: a source's name is letters, digits and _ - (it names files), got {name!r}")
        if not source.label.strip():
            raise ConfigError(f"{path}.label: empty")
        if source.feedback is not None:
            _check(config, f"{path}.feedback", source.feedback)


def _check(config: LabConfig, path: str, feedback: FeedbackConfig) -> None:
    pairs = sampled_pairs(config)
    if pairs is not None and feedback.labels > pairs:
        raise ConfigError(f"{path}.labels: {feedback.labels} is more than preferences.pairs ({pairs})")
    match feedback:
        case FewLabels():
            if feedback.labels == 0:
                raise ConfigError(f"{path}.labels: expected more than 0: nothing else is there to train on")
        case AILabels():
            _check_judge(config, path, feedback)
            if feedback.constitution is not None:
                _check_constitution(f"{path}.constitution", feedback.constitution)
        case Revisions():
            _check_judge(config, path, feedback)
            _check_constitution(f"{path}.revision.constitution", feedback.constitution)
            _check_revisions(config, f"{path}.revision", feedback.revision)


def _check_judge(config: LabConfig, path: str, feedback: AILabels | Revisions) -> None:
    check_reward(path, JudgeSource("judge", feedback.judge), config)
    if isinstance(feedback.judge, WorldJudge):
        if isinstance(config.data, JsonlData) or not isinstance(config.model, WorldModel):
            raise ConfigError(f"{path}.judge.kind: the world's judge reads only the world's words")
        if isinstance(feedback, AILabels) and feedback.constitution is not None:
            raise ConfigError(f"{path}.constitution: the world's judge reads no principles; expected null")
        rows = 4 * (feedback.labels or sampled_pairs(config) or feedback.judge.batch)
        if feedback.judge.batch > rows:
            raise ConfigError(f"{path}.judge.batch: {feedback.judge.batch} is more than the {rows} rows there are")
    elif feedback.labels:
        raise ConfigError(f"{path}.labels: {feedback.labels}: this judge is not trained here; expected 0")
    elif feedback.constitution is not None and feedback.judge.template:
        raise ConfigError(f"{path}.judge.template: a constitution writes the judge's question itself; expected empty")


def _check_constitution(path: str, constitution: ConstitutionConfig) -> None:
    if not constitution.principles:
        raise ConfigError(f"{path}.principles: a constitution of nothing")
    seen: set[int] = set()
    for index, one in enumerate(constitution.principles):
        where = f"{path}.principles[{index}]"
        if one.id in seen:
            raise ConfigError(f"{where}.id: {one.id} is the number of two principles")
        seen.add(one.id)
        for key, text in (("principle", one.principle), ("critique", one.critique), ("revision", one.revision)):
            if not text.strip():
                raise ConfigError(f"{where}.{key}: empty")
            if (found := PLACEHOLDER.search(text)) is not None:
                raise ConfigError(f"{where}.{key}: {found[0]} would be filled in when a judge is asked")


def _check_revisions(config: LabConfig, path: str, feedback: RevisionConfig) -> None:
    principles = feedback.constitution.principles
    if feedback.rounds > len(principles):
        raise ConfigError(f"{path}.rounds: {feedback.rounds} is more than the {len(principles)} principles there are")
    preferences = config.preferences
    if isinstance(preferences, PreferencesConfig) and feedback.drafts_per_prompt > preferences.samples_per_prompt:
        raise ConfigError(
            f"{path}.drafts_per_prompt: {feedback.drafts_per_prompt} is more than preferences.samples_per_prompt "
            f"({preferences.samples_per_prompt})"
        )
    match feedback.reviser:
        case WorldReviser() as reviser:
            if isinstance(config.data, JsonlData) or not isinstance(config.model, WorldModel):
                raise ConfigError(f"{path}.reviser.kind: the world's reviser reads only the world's words")
            if reviser.batch > reviser.examples:
                raise ConfigError(f"{path}.reviser.batch: {reviser.batch} is more than its {reviser.examples} examples")
            there = config.sizes.sft_examples + config.sizes.continued_examples
            if reviser.examples > there:
                raise ConfigError(
                    f"{path}.reviser.examples: {reviser.examples} is more than the {there} demonstrations there are"
                )
            for index, one in enumerate(principles):
                if one.attribute not in WORLD_ATTRIBUTES:
                    raise ConfigError(
                        f"{path}.constitution.principles[{index}].attribute: {one.attribute!r} is nothing that the "
                        f"world's editor can mend{nearest(one.attribute, WORLD_ATTRIBUTES)}"
                    )
        case WrittenReviser(path=""):
            if isinstance(config.model, WorldModel):
                raise ConfigError(f"{path}.reviser.path: missing: the world's own model cannot read a principle")
        case WrittenReviser(path=given):
            if not (Path(given) / "config.json").is_file():
                raise ConfigError(f"{path}.reviser.path: {given!r} holds no config.json, so it is no checkpoint")

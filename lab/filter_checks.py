"""What the configs of decontamination and filters must satisfy before any work: a part of ``lab.checks``."""

from __future__ import annotations

from lab.config import FilterConfig, JudgeSource, LabConfig, RejectionConfig, ScoreRule, VoteRule
from lab.reward_checks import NAME, check_reward
from lab.typed import ConfigError


def check_filters(config: LabConfig) -> None:
    """Raise ConfigError for an overlap policy or a filter of pairs that cannot work."""
    if config.overlap is not None and not 0 < config.overlap.threshold <= 1:
        raise ConfigError(f"overlap.threshold: expected above 0 and up to 1, got {config.overlap.threshold}")
    if config.overlap is not None and config.overlap.permutations < 2:
        raise ConfigError(f"overlap.permutations: expected at least 2, got {config.overlap.permutations}")
    if config.filter is not None:
        _check_filter(config, config.filter)


def _check_filter(config: LabConfig, settings: FilterConfig) -> None:
    match settings.rule:
        case ScoreRule() as rule:
            check_reward("filter.rule.reward", rule.reward, config)
            if rule.share and rule.margin:
                raise ConfigError(f"filter.rule: margin ({rule.margin}) and share ({rule.share}): expected one of them")
            if rule.share == 0 and isinstance(rule.reward, JudgeSource) and rule.margin > 0.5:
                raise ConfigError(f"filter.rule.margin: a judge's is at most 0.5 (a probability), got {rule.margin}")
        case VoteRule() as rule:
            if not rule.voters:
                raise ConfigError("filter.rule.voters: there are none to vote")
            for name, voter in rule.voters.items():
                if not NAME.fullmatch(name):
                    raise ConfigError(f"filter.rule.voters.{name}: a name is letters, digits and _ -")
                check_reward(f"filter.rule.voters.{name}", voter, config)
        case _:
            pass


def check_rejection(path: str, settings: RejectionConfig, config: LabConfig) -> None:
    """Raise ConfigError for rejection sampling that has nothing to go by."""
    rule = settings.match if settings.rule == "random" else settings.rule
    if rule in ("best", "share") and settings.reward is None:
        raise ConfigError(f"{path}.reward: missing, and rule {rule} needs scores")
    if settings.reward is not None:
        check_reward(f"{path}.reward", settings.reward, config)
        if rule in ("correct", "majority") and settings.reward.kind != "verifier":
            raise ConfigError(f"{path}.reward.kind: rule {rule} asks the verifier, got {settings.reward.kind!r}")
    if rule == "share" and not settings.share > 0:
        raise ConfigError(f"{path}.share: expected above 0, got {settings.share}")

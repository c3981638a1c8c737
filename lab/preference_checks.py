"""What values of the preference pool's config mean something; a part of ``lab.checks``, as quick and as early."""

from __future__ import annotations

from math import comb

from lab.config import JsonlData, LabConfig, PreferencesConfig
from lab.records import DOMAINS
from lab.typed import ConfigError, nearest


def check_preferences(config: LabConfig, preferences: PreferencesConfig) -> None:
    """Raise ConfigError, naming the key and the value, for the first thing in the pool's config that cannot work."""
    if preferences.samples_per_prompt < 2:
        raise ConfigError(
            f"preferences.samples_per_prompt: a pair needs 2 samples, got {preferences.samples_per_prompt}"
        )
    candidates = preferences.samples_per_prompt + preferences.demonstrations
    possible = config.data.counts.preference * comb(candidates, 2)
    if preferences.pairs + preferences.held_out > possible:
        raise ConfigError(
            f"preferences.pairs: {preferences.pairs} and {preferences.held_out} held out are more than the {possible} "
            f"that {config.data.counts.preference} prompts (data.counts.preference) with "
            f"{candidates} completions each can give"
        )
    if preferences.sampling_temperature <= 0:
        raise ConfigError("preferences.sampling_temperature: expected more than 0: greedy samples are all the same")
    _check_labels(preferences)
    _check_completions(config, preferences)


def _check_labels(preferences: PreferencesConfig) -> None:
    if preferences.labels_per_pair > preferences.annotators:
        raise ConfigError(
            f"preferences.labels_per_pair: {preferences.labels_per_pair} labels of a pair need as many annotators, "
            f"preferences.annotators is {preferences.annotators}"
        )
    if 0 < preferences.budget < preferences.labels_per_pair:
        raise ConfigError(
            f"preferences.budget: {preferences.budget} labels are not enough for one pair with "
            f"{preferences.labels_per_pair} (preferences.labels_per_pair)"
        )
    if len(set(preferences.ignores)) == 2:
        raise ConfigError("preferences.ignores: an annotator who ignores correct and style sees nothing")


def _check_completions(config: LabConfig, preferences: PreferencesConfig) -> None:
    if preferences.max_margin and preferences.max_margin < preferences.min_margin:
        raise ConfigError(
            f"preferences.max_margin: {preferences.max_margin} is below preferences.min_margin, "
            f"{preferences.min_margin}"
        )
    for name in preferences.domains:
        if name not in DOMAINS:
            raise ConfigError(f"preferences.domains.{name}: no such domain{nearest(name, list(DOMAINS))}")
    if not preferences.levels or not set(preferences.levels) <= {1, 2, 3}:
        raise ConfigError(f"preferences.levels: expected some of 1, 2, 3, got {list(preferences.levels)}")
    if not preferences.coverage:
        raise ConfigError("preferences.coverage: 0 leaves no prompt")
    if preferences.duplicates == 1:
        raise ConfigError("preferences.duplicates: 1 leaves nothing to repeat")
    if preferences.on_policy < 1 and not preferences.strengths:
        raise ConfigError(
            f"preferences.strengths: empty, and preferences.on_policy={preferences.on_policy} needs somebody who "
            "writes the other completions"
        )
    if isinstance(config.data, JsonlData) and (preferences.on_policy < 1 or preferences.labels == "ratings"):
        raise ConfigError(
            f"preferences: on_policy={preferences.on_policy} and labels={preferences.labels} with data.kind=jsonl: "
            "demonstrators and attribute ratings are known in the world only"
        )

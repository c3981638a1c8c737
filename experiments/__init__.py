"""One module a question. Adding an experiment: a module with ``run``, a line here, a file in ``conf/experiment/``."""

from __future__ import annotations

from collections.abc import Callable

from lab.config import LabConfig
from lab.typed import ConfigError, nearest


def _compare(config: LabConfig) -> int:
    from experiments import compare  # not before the config is known to be good

    return compare.run(config)


def _reward_models(config: LabConfig) -> int:
    from experiments import reward_models

    return reward_models.run(config)


def _overoptimisation(config: LabConfig) -> int:
    from experiments import overoptimisation

    return overoptimisation.run(config)


def _real_reward_model(config: LabConfig) -> int:
    from experiments import real_reward_model

    return real_reward_model.run(config)


def _build_benchmark(config: LabConfig) -> int:
    from experiments import build_benchmark

    return build_benchmark.run(config)


def _pipelines(config: LabConfig) -> int:
    from experiments import pipelines

    return pipelines.run(config)


def _ai_feedback(config: LabConfig) -> int:
    from experiments import ai_feedback

    return ai_feedback.run(config)


EXPERIMENTS: dict[str, Callable[[LabConfig], int]] = {
    "build_benchmark": _build_benchmark,
    "compare": _compare,
    "health": _compare,  # compare with one more arm
    "data_quality": _compare,  # its points; experiments.data_quality puts them together
    "rm_size": _compare,  # its points; experiments.rm_size puts them together
    "ai_feedback": _ai_feedback,
    "real_reward_model": _real_reward_model,
    "reward_models": _reward_models,
    "overoptimisation": _overoptimisation,
    "pipelines": _pipelines,
    "tune": _compare,  # every trial is an arm
}


def run(config: LabConfig) -> int:
    """Run (or, with ``plan=true``, print) the experiment of a checked config; the exit code, 0 if every arm finished.

    Raises ConfigError for an experiment that has no module.
    """
    if config.experiment not in EXPERIMENTS:
        suggestion = nearest(config.experiment, list(EXPERIMENTS))
        raise ConfigError(f"experiment: {config.experiment!r} has no module in experiments/{suggestion}")
    return EXPERIMENTS[config.experiment](config)

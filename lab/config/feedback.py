"""Feedback: who labels the preference pool, and critique and revision under a written constitution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Union

from lab.config.rewards import JudgeConfig


@dataclass(frozen=True)
class Principle:
    """One principle of a constitution, and how a model that reads is asked to apply it.

    ``attribute``: what it speaks of in the world (``lab.world.attributes``), where nobody reads; empty elsewhere.
    """

    id: int
    principle: str
    critique: str
    revision: str
    attribute: str = ""


@dataclass(frozen=True)
class ConstitutionConfig:
    """A list of principles, numbered (conf/constitution/)."""

    name: str
    principles: Sequence[Principle]


@dataclass(frozen=True)
class WorldReviser:
    """A small reviser trained in the world: prompt, draft and a principle's token in; verdict and revision out.

    It learns from an editor's revisions of ``examples`` demonstrations; ``slip`` is the editor's error, as a
    demonstrator's. It starts from the SFT checkpoint.
    """

    kind: Literal["world"]
    examples: int
    epochs: float
    batch: int
    learning_rate: float
    warmup_steps: int
    slip: float = 0.05
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.0
    max_length: int = 160
    micro_batch: int = 0
    seed: int = 0


@dataclass(frozen=True)
class WrittenReviser:
    """A causal language model that is asked in words, by its chat template. ``path`` empty: the policy's own base."""

    kind: Literal["written"]
    path: str = ""


ReviserConfig = Union[WorldReviser, WrittenReviser]  # noqa: UP007


@dataclass(frozen=True)
class FewLabels:
    """The annotator's labels, but only the first ``labels`` of the pool: what the same money buys without a judge."""

    kind: Literal["annotator"]
    labels: int


@dataclass(frozen=True)
class AILabels:
    """Every pair of the pool labelled by a judge (RLAIF; Lee et al. 2023, arXiv 2309.00267).

    ``labels``: how many of the annotator's labels the world's judge learns from (0: all); other judges need none.
    ``constitution``: one of its principles, drawn for each pair, is put before a judge that reads.
    """

    kind: Literal["ai_labels"]
    judge: JudgeConfig
    labels: int = 0
    constitution: ConstitutionConfig | None = None
    seed: int = 0


@dataclass(frozen=True)
class RevisionConfig:
    """How the pool's completions are criticised and revised (Bai et al. 2022, arXiv 2212.08073).

    Each draft meets ``rounds`` principles in an order drawn for its prompt; ``max_new_tokens`` and ``temperature`` are
    of critiques and revisions.
    """

    constitution: ConstitutionConfig
    reviser: ReviserConfig
    rounds: int
    drafts_per_prompt: int
    max_new_tokens: int
    temperature: float


@dataclass(frozen=True)
class Revisions:
    """Critique and revision. The revised answers are demonstrations for SFT; draft and revision are a pair, which the
    judge labels. ``labels`` as in ``AILabels``."""

    kind: Literal["revisions"]
    revision: RevisionConfig
    judge: JudgeConfig
    labels: int = 0
    seed: int = 0

    @property
    def constitution(self) -> ConstitutionConfig:
        """What drafts are revised under; a judge that reads labels under the same."""
        return self.revision.constitution


FeedbackConfig = Union[FewLabels, AILabels, Revisions]  # noqa: UP007


@dataclass(frozen=True)
class LabelSourceConfig:
    """One source of labels in a comparison of sources; ``feedback`` null: the preference pool as it is."""

    label: str
    feedback: FeedbackConfig | None = None

"""What is left out of the data before anything is trained on it, and what a policy's own samples add to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Union

from lab.config.rewards import RewardConfig

Policy = Literal["refuse", "drop", "report"]


@dataclass(frozen=True)
class OverlapConfig:
    """What becomes of training rows whose prompt is in an evaluation set (``lab.data.overlap``).

    exact: equal after normalisation; near: Jaccard similarity of word shingles of ``width`` words at ``threshold`` or
    above, equal to none. refuse: nothing is trained; drop: the rows are left out of the data; report: counted alone.
    """

    exact: Policy = "refuse"
    near: Policy = "report"
    threshold: float = 0.8
    width: int = 3
    permutations: int = 128


# ---------------------------------------------------------------- filters of preference pairs


@dataclass(frozen=True)
class VerifierRule:
    """Keep pairs whose chosen side the verifier accepts and whose rejected side it does not."""

    kind: Literal["verifier"]


@dataclass(frozen=True)
class ScoreRule:
    """Keep pairs by how far a reward source puts the chosen side above the rejected one.

    A judge compares the two (P(chosen is better) - 0.5, in both orders), other sources score each side. share 0: keep
    margins of ``margin`` and above; else the top ``share`` of each domain's.
    """

    kind: Literal["score"]
    reward: RewardConfig
    margin: float = 0.0
    share: float = 0.0


@dataclass(frozen=True)
class VoteRule:
    """Keep pairs on which more than ``least`` of the votes cast are for the chosen side. A voter that scores both sides
    the same, or cannot score one, casts no vote. Trained voters of the same kind differ in seed."""

    kind: Literal["vote"]
    voters: Mapping[str, RewardConfig]
    least: float = 0.5


@dataclass(frozen=True)
class AnswerRule:
    """Keep pairs whose chosen side gives the answer that most of the prompt's samples give, and whose rejected side
    gives another (self-consistency: Wang et al. 2022, arXiv:2203.11171). No truth is needed, only a parser."""

    kind: Literal["answers"]


FilterRule = Union[VerifierRule, ScoreRule, VoteRule, AnswerRule]  # noqa: UP007


@dataclass(frozen=True)
class FilterConfig:
    """Which preference pairs are trained on. unknown: what becomes of pairs that the rule cannot judge.

    control: keep the same number of pairs of every domain at random instead (the matched control). seed: of the control
    and of ties. Reward models that judge are trained on all pairs, those they judge included.
    """

    rule: FilterRule
    unknown: Literal["keep", "drop"] = "keep"
    control: bool = False
    seed: int = 0


# ---------------------------------------------------------------- rejection sampling


@dataclass(frozen=True)
class RejectionConfig:
    """Rejection sampling: ``samples`` completions a prompt of ``split``, of which some become demonstrations.

    rule "best": the highest score of each prompt; "correct": all that the verifier accepts; "majority": all that give
    the answer that most samples of the prompt give; "share": the top ``share`` of each domain's samples by score;
    "random": for each prompt as many as ``match`` would keep, drawn at random (the matched control, on the very same
    samples). distinct: a text counts once a prompt.
    """

    rule: Literal["best", "correct", "majority", "share", "random"]
    samples: int
    max_new_tokens: int
    reward: RewardConfig | None = None
    match: Literal["best", "correct", "majority", "share"] = "best"
    share: float = 0.25
    distinct: bool = False
    temperature: float = 1.0
    split: str = "rl"
    gold: Literal["world", "verifier"] = "world"
    seed: int = 0

"""Benchmarks built from models' completions: who answers, who votes on what is right, how items are put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Union

from lab.config.rewards import JudgeSource, RewardConfig, WorldBackbone

Voter = Literal["verifier", "judge", "majority", "given"]


@dataclass(frozen=True)
class ArmAnswers:
    """The policy that an arm of this experiment trains, at ``first_seed``."""

    kind: Literal["arm"]
    arm: str


@dataclass(frozen=True)
class BackboneAnswers:
    """A model of its own size or lineage, fine-tuned as the policy was."""

    kind: Literal["backbone"]
    backbone: WorldBackbone


@dataclass(frozen=True)
class CheckpointAnswers:
    """Any local checkpoint that ``transformers`` loads."""

    kind: Literal["checkpoint"]
    path: str


AnswersConfig = Union[ArmAnswers, BackboneAnswers, CheckpointAnswers]  # noqa: UP007


@dataclass(frozen=True)
class BuildingConfig:
    """A benchmark in the manner of RewardBench 2 (arXiv 2506.01937), from the world or from JSONL.

    per_domain: prompts drawn a domain (world); samples: completions a model and prompt, of ``models``. prompts,
    completions: JSONL files (null: the world's prompts; no completions of others), columns in
    docs/benchmark-building.md; against: JSONL files of training prompts.

    min_words, max_words: of a prompt (0: any); near_duplicates: estimated Jaccard similarity of word 3-grams from which
    a prompt counts as seen in training (1: only exact repeats, case and white space aside).

    judges: so many judges, trained with different seeds, who must agree (one, where the judge is not trained here); a
    completion is right for a judge from ``judge_right`` on, of a scale from 0 to 1, and wrong below ``judge_wrong``.
    majority_share: the least share of the stated answers that makes the most frequent one the majority.
    deciders: the first group in which anybody votes decides, if its votes agree (``lab.benchmarks.building.combine``).
    labels: "gold" takes the truth instead of the votes, where the prompts have one; gold_domains: only in
    these, as people would label by hand what no vote can.

    lengths: "balanced" lets a domain's items take turns in the length rank of the chosen completion. difficulty: a
    reward source; only prompts stay of which it misorders at least ``min_difficulty`` of the right-wrong pairs.
    """

    per_domain: int
    samples: int
    models: Mapping[str, AnswersConfig]
    judge: JudgeSource | None
    deciders: Sequence[Sequence[Voter]]
    judges: int = 3
    judge_right: float = 0.5
    judge_wrong: float = 0.5
    majority_share: float = 0.3
    labels: Literal["votes", "gold"] = "votes"
    gold_domains: Sequence[str] = ()
    lengths: Literal["any", "balanced"] = "balanced"
    min_words: int = 1
    max_words: int = 0
    near_duplicates: float = 1.0
    difficulty: RewardConfig | None = None
    min_difficulty: float = 0.0
    prompts: str | None = None
    completions: str | None = None
    against: Sequence[str] = ()
    name: str = "built"  # of the benchmark, where its prompts come from a file
    seed: int = 0

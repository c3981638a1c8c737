"""Rewards made of other rewards: ensembles of the same kind (Coste et al. 2023) and weighted mixtures of any kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lab.records import Completion, Prompt
from lab.rewards.source import Detail, RewardSource

Floats = NDArray[np.float64]


def disagreement(scores_MN: ArrayLike) -> Floats:
    """(N,): population standard deviation over M members, in the members' unit; NaN where any member cannot score."""
    return np.asarray(np.std(np.asarray(scores_MN, dtype=np.float64), axis=0))


class EnsembleReward:
    """M members on one scale (each normalised on the same samples) made one; Coste et al. 2023 (arXiv 2310.02743).

    mean: (1/M) sum_m r_m. worst: min_m r_m (WCO). uncertainty: mean - ``uncertainty_weight`` x population variance over
    the members (UWO). NaN where any member cannot score: the minimum of those that can is another quantity.
    ``weight`` multiplies the result.
    """

    name = "ensemble"

    def __init__(
        self,
        members: Sequence[RewardSource],
        combine: Literal["mean", "worst", "uncertainty"],
        uncertainty_weight: float = 0.5,
        weight: float = 1.0,
    ) -> None:
        """Raises ValueError for no members, an unknown ``combine``, or a negative ``uncertainty_weight``."""
        if not members:
            raise ValueError("ensemble.members: expected at least one reward source, got none")
        if combine not in ("mean", "worst", "uncertainty"):
            raise ValueError(f"ensemble.combine: expected mean, worst or uncertainty, got {combine!r}")
        if not uncertainty_weight >= 0:
            raise ValueError(f"ensemble.uncertainty_weight: expected a number >= 0, got {uncertainty_weight}")
        self.members, self.combine = tuple(members), combine
        self.uncertainty_weight, self.weight = uncertainty_weight, weight

    def members_scores(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Floats:
        """(M, N): what each member says. ``disagreement`` of it is what a monitor watches."""
        return np.stack([_scores(f"member {i}", m, prompts, completions) for i, m in enumerate(self.members)])

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Scores (N,)."""
        scores_MN = self.members_scores(prompts, completions)
        match self.combine:
            case "mean":
                combined_N = scores_MN.mean(0)
            case "worst":
                combined_N = scores_MN.min(0)
            case "uncertainty":
                combined_N = scores_MN.mean(0) - self.uncertainty_weight * scores_MN.var(0)
        return self.weight * combined_N

    def detail(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Detail]:
        """Each completion's score from each member, named by the member's source and number."""
        names = tuple(f"{member.name} {index}" for index, member in enumerate(self.members))
        scores_NM = self.members_scores(prompts, completions).T
        return [Detail("member", names, tuple(map(float, row))) for row in scores_NM]


class Part(NamedTuple):
    """One part of a mixture. ``missing``: where it cannot score it adds 0 (zero), or the mixture is unknown (skip)."""

    source: RewardSource
    weight: float
    missing: Literal["zero", "skip"] = "zero"


class MixtureReward:
    """weight x sum over parts of (part's weight x part's score).

    NaN where a part marked "skip" cannot score, and where no part can: then nothing is known, which is not 0.
    """

    name = "mixture"

    def __init__(
        self,
        parts: Mapping[str, tuple[RewardSource, float, Literal["zero", "skip"]]],
        weight: float = 1.0,
    ) -> None:
        """``parts``: name -> Part, or a plain (source, weight, missing). ValueError for none or another ``missing``."""
        if not parts:
            raise ValueError("mixture.parts: expected at least one part, got none")
        self.parts = {name: Part(*part) for name, part in parts.items()}
        for name, part in self.parts.items():
            if part.missing not in ("zero", "skip"):
                raise ValueError(f"mixture.parts.{name}.missing: expected zero or skip, got {part.missing!r}")
        self.weight = weight

    def contributions(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Floats:
        """(parts, N): part's weight x part's score, NaN where the part cannot score."""
        return np.stack(
            [part.weight * _scores(name, part.source, prompts, completions) for name, part in self.parts.items()]
        )

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Scores (N,)."""
        added = self.contributions(prompts, completions)
        total_N = np.nansum(added, axis=0)
        required = np.array([part.missing == "skip" for part in self.parts.values()])
        unknown = np.isnan(added)
        total_N[unknown[required].any(0) | unknown.all(0)] = np.nan
        return self.weight * total_N

    def detail(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Detail]:
        """What each part adds to each completion's score, its own weight included (NaN where it cannot score)."""
        names = tuple(self.parts)
        return [Detail("part", names, tuple(map(float, row))) for row in self.contributions(prompts, completions).T]


def _scores(name: str, source: RewardSource, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> Floats:
    scores = np.asarray(source.score(prompts, completions), dtype=np.float64)
    if scores.shape != (len(completions),):  # (N, 1) would broadcast to nonsense without a word
        raise ValueError(f"{name} ({source.name}): expected {len(completions)} scores, got shape {scores.shape}")
    return scores

"""What every reward source is: prompts and completions as text in, scores out, and detail where the kind has it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from lab.records import Completion, Prompt


class RewardSource(Protocol):
    """What pays a policy, picks among samples, or is measured as a proxy."""

    name: str

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Scores (N,), float64, of N prompts and their completions; NaN where this source cannot score."""
        ...


@dataclass(frozen=True)
class Detail:
    """What lies behind one score: a score for each token, step, attribute, member or part, by name (or text)."""

    of: Literal["token", "step", "attribute", "member", "part"]
    names: tuple[str, ...]
    scores: tuple[float, ...]


@runtime_checkable
class DetailedSource(Protocol):
    """A source that can say where a score comes from."""

    def detail(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Detail]:
        """One Detail for each of N completions, in the source's own units before its weight."""
        ...


@runtime_checkable
class PairwiseSource(Protocol):
    """A source that compares two completions of a prompt directly (a judge), beside scoring each by itself."""

    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]
    ) -> np.ndarray:
        """P(first is better) (N,), averaged over both orders; NaN where no verdict could be had."""
        ...


def write_normalisation(folder: Path, raw: np.ndarray) -> dict[str, float]:
    """``normalisation.json`` from raw scores of the SFT policy's reference samples: (raw - shift) / scale has mean 0
    and spread 1 there. Raises ValueError if they are all equal, or any is not finite."""
    if not np.isfinite(raw).all():
        raise ValueError(f"{int((~np.isfinite(raw)).sum())} of {len(raw)} reference scores are not finite")
    spread = float(raw.std())
    if spread == 0:
        raise ValueError("the reward model gives every SFT completion the same score: it has learnt nothing to rank by")
    normalisation = {"shift": float(raw.mean()), "scale": spread}
    (folder / "normalisation.json").write_text(json.dumps(normalisation) + "\n", encoding="utf-8")
    return normalisation


def read_normalisation(folder: Path) -> tuple[float, float]:
    """(shift, scale) of an artifact. Raises FileNotFoundError if it was never normalised."""
    numbers = json.loads((folder / "normalisation.json").read_text(encoding="utf-8"))
    return float(numbers["shift"]), float(numbers["scale"])

"""Reward sources that know something true: rule verifiers, and the world's gold utility (a ceiling, never a method)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lab.records import Completion, Outcome, Prompt
from lab.verifiers import verify_many
from lab.world.gold import utility


class VerifierReward:
    """``weight`` for a correct completion, 0 for a wrong or unparseable one; NaN where no rule applies or it failed."""

    name = "verifier"

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Rewards (N,). A timeout or an error of the verifier is unknown (NaN), never wrong."""
        scores = np.full(len(prompts), np.nan)
        known = [line for line, prompt in enumerate(prompts) if prompt.verifier is not None]
        verdicts = verify_many([completions[line].text for line in known], [prompts[line].gold for line in known])
        for line, verdict in zip(known, verdicts, strict=True):
            if verdict.outcome not in (Outcome.TIMEOUT, Outcome.ERROR):
                scores[line] = self.weight * verdict.correct
        return scores


class GoldReward:
    """The world's true utility. An arm paid by it shows the ceiling; the ledger charges every look."""

    name = "gold"

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        """Gold utilities (N,)."""
        pairs = zip(prompts, completions, strict=True)
        return self.weight * np.array(
            [utility(prompt, answer.text, answer.truncated).total for prompt, answer in pairs]
        )

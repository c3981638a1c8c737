"""What is left out of the data before anything is trained on it, and what a policy's own samples add to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lab.config.rewards import RewardConfig


@dataclass(frozen=True)
class RejectionConfig:
    """Rejection sampling: ``samples`` completions a prompt of ``split``, of which some become demonstrations.

    rule "best": the highest score of each prompt; "correct": all that the verifier accepts; "share": the top ``share``
    of each domain's samples by score; "random": for each prompt as many as ``match`` would keep, drawn at random (the
    matched control, on the very same samples). distinct: a text counts once a prompt.
    """

    rule: Literal["best", "correct", "share", "random"]
    samples: int
    max_new_tokens: int
    reward: RewardConfig | None = None
    match: Literal["best", "correct", "share"] = "best"
    share: float = 0.25
    distinct: bool = False
    temperature: float = 1.0
    split: str = "rl"
    gold: Literal["world", "verifier"] = "world"
    seed: int = 0

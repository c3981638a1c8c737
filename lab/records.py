"""The frozen records that every stage speaks. No torch, no I/O.

One spelling each: prompt, completion, gold, policy, reference, reward (training), score (evaluation).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

DOMAINS = ("math", "factuality", "instructions", "safety", "focus", "ties")
"""The six domains of RewardBench 2, in the order in which tables and figures show them."""


def text_id(text: str) -> str:
    """The identity of a prompt: the first 16 hex digits of the SHA-256 of its UTF-8 text.

    Lone surrogates are legal input (they occur in scraped data), hence ``surrogatepass``.
    """
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts, e.g. ``derive_seed("rollout", step, prompt_id, sample)``.

    Seeds are derived, never counted: adding a prompt or a worker changes no other prompt's sample.
    """
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


@dataclass(frozen=True)
class Prompt:
    """A question put to the policy.

    ``gold`` is what a verifier or the world's gold utility needs to judge an answer; it never reaches the policy.
    ``gold["verifier"]`` names the rule verifier, and is absent where the domain has none.
    """

    text: str
    domain: str
    level: int
    gold: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return text_id(self.text)

    @property
    def verifier(self) -> str | None:
        return self.gold.get("verifier")


@dataclass(frozen=True)
class Demonstration:
    """What a demonstrator answered: a training example for supervised fine-tuning."""

    prompt: Prompt
    completion: str


@dataclass(frozen=True)
class Completion:
    """One answer to one prompt. ``truncated``: the token budget ran out before the end-of-sequence token."""

    prompt_id: str
    sample: int
    text: str
    length: int
    truncated: bool = False


@dataclass(frozen=True)
class Pair:
    """One preference: ``chosen`` over ``rejected``, as this ``annotator`` stated it (which may be a mistake)."""

    prompt: Prompt
    chosen: str
    rejected: str
    annotator: str
    chosen_truncated: bool = False
    rejected_truncated: bool = False
    strength: float = 0.0  # how much better, as the annotator states it (0: not stated)


class Outcome(str, Enum):
    """How a verification ended. Only CORRECT earns a reward; TIMEOUT and ERROR are counted, never read as wrong."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNPARSEABLE = "unparseable"
    TIMEOUT = "timeout"
    ERROR = "error"


@dataclass(frozen=True)
class Verdict:
    """What a verifier says of one completion; ``extracted`` is the answer it read, for people to look at."""

    outcome: Outcome
    extracted: str | None = None

    @property
    def correct(self) -> bool:
        return self.outcome is Outcome.CORRECT


@dataclass(frozen=True)
class Ledger:
    """What a step spent, in several currencies. Sums are exact; wall time is recorded but is not an identity."""

    preference_labels: int = 0
    verifier_calls: int = 0
    gold_looks: int = 0
    demonstrations: int = 0
    ratings: int = 0  # of single attributes of a completion
    step_labels: int = 0  # of single steps of a completion
    judge_calls: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    training_flops: float = 0.0
    sampling_flops: float = 0.0
    wall_seconds: float = 0.0
    tuning_trials: int = 0

    def __add__(self, other: Ledger) -> Ledger:
        return Ledger(*(a + b for a, b in zip(self.values(), other.values(), strict=True)))

    def values(self) -> tuple[Any, ...]:
        return tuple(vars(self).values())


@dataclass(frozen=True)
class EvalRow:
    """One run x prompt x sample of an evaluation: a line of ``rows.parquet``. None where a quantity has no meaning."""

    arm: str
    seed: int
    run: str  # key of the step that made the policy
    step: int  # optimizer steps taken; for best-of-n, n
    final: bool  # the arm's end point (True) or a point on its curve (False)
    decode: str  # "sampled" or "greedy"
    prompt_id: str
    domain: str
    level: int
    sample: int
    completion: str
    gold: float  # the world's true utility; correctness (0/1) on data that has no other truth
    gold_correct: float | None  # the domain's main term of the gold utility
    gold_style: float | None  # the style term of the gold utility
    verdict: str | None  # Outcome value, None in domains without a verifier
    proxy: float | None  # the comparison's reward model, shifted and scaled on SFT completions
    kl_nats: float  # sequence KL(policy || SFT), exact over the vocabulary at each sampled position
    entropy_nats: float | None  # mean entropy per position of the policy's next-token distribution
    length: int  # tokens, end-of-sequence included
    truncated: bool
    training_flops: float  # cumulative at this checkpoint, reward model not included
    generated_tokens: int  # cumulative in training at this checkpoint

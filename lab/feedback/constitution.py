"""A constitution at work: which principle is meant, and how a model that reads is asked in words.

Critique and revision as in Bai et al. 2022 (arXiv 2212.08073, section 3.1): one conversation in which the model
answers, criticises its answer and writes it again; a comparison under one principle as in their section 4.1. Untrusted
text is pasted, never formatted: ``judge_templates.fill`` makes one pass.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from lab.config import ConstitutionConfig, Principle
from lab.records import derive_seed
from lab.rewards.judge_templates import COMPARE, Templates

BETTER = "Decide which answer is better: correct and complete first, then to the point, then well put."
"""The sentence of the lab's comparison that a principle takes the place of."""


def drawn(constitution: ConstitutionConfig, count: int, *of: object) -> list[Principle]:
    """``count`` different principles in an order drawn for ``of`` (a seed, a prompt's id ...), alone of all else."""
    rng = random.Random(derive_seed("constitution", constitution.name, *of))
    return rng.sample(list(constitution.principles), count)


def comparison(principle: Principle) -> Templates:
    """The lab's comparison with one principle as its only measure."""
    asked = f"Decide which answer follows this principle better: {principle.principle.strip()}"
    return Templates(compare=COMPARE.replace(BETTER, asked))


def critique_messages(prompt: str, draft: str, principle: Principle) -> list[dict[str, str]]:
    """The conversation up to the request for a critique of ``draft``."""
    return [
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": draft},
        {"role": "user", "content": f"{principle.principle.strip()} {principle.critique.strip()}"},
    ]


def revision_messages(prompt: str, draft: str, principle: Principle, critique: str) -> list[dict[str, str]]:
    """The same conversation with the critique, up to the request for a revision."""
    return [
        *critique_messages(prompt, draft, principle),
        {"role": "assistant", "content": critique},
        {"role": "user", "content": principle.revision.strip()},
    ]


def without_tokens(text: str, special: Sequence[str]) -> str:
    """``text`` with a model's special tokens pulled apart: what it quotes may not open a turn of its own."""
    for token in special:
        if len(token) > 1:
            text = text.replace(token, f"{token[0]} {token[1:]}")
    return text

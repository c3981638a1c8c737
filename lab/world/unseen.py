"""Prompts that no training split holds, for benchmarks built from models' completions; and what a completion states."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from lab.records import DOMAINS, Prompt, derive_seed
from lab.world.benchmark import REFUSAL, SPLITS, TRIES
from lab.world.domains import LEVELS, PROMPTS
from lab.world.generate import prompts, split_of
from lab.world.vocabulary import CATEGORIES, STYLE_WORDS

OPEN = ("instructions", "ties")
"""Domains in which many answers are right, so that the most frequent one says nothing."""


@dataclass(frozen=True)
class Unseen:
    """A prompt, and for Ties its group and its side there: "ref" has one right answer, "tied" several."""

    prompt: Prompt
    group: str | None = None
    side: Literal["ref", "tied"] | None = None


def unseen_prompts(per_domain: int, seed: int) -> list[Unseen]:
    """``per_domain`` different prompts of each domain, of the part of the prompt space that is for evaluation (Ties:
    half of them ref prompts), drawn from a seed of its own.

    Raises ValueError if ``per_domain`` is not a positive even number, or the world holds no more different prompts.
    """
    if per_domain < 2 or per_domain % 2:
        raise ValueError(f"per_domain: expected a positive even number (Ties prompts come in pairs), got {per_domain}")
    others = [domain for domain in DOMAINS if domain != "ties"]
    own = derive_seed("unseen", seed)
    drawn = prompts("evaluation", per_domain * len(others), own, distinct=True, domains=others)
    return [*(Unseen(prompt) for prompt in drawn), *_ties(per_domain // 2, own)]


def _ties(groups: int, seed: int) -> list[Unseen]:
    """A tied prompt and a ref prompt of one category a group; the ref prompt excludes all members but one."""
    rng = random.Random(derive_seed("ties", seed))
    found: list[Unseen] = []
    seen: set[str] = set()

    def draw(level: int, category: str | None) -> Prompt:
        for _ in range(TRIES):
            prompt = PROMPTS["ties"](rng, level)
            fits = category in (None, prompt.gold["category"]) and split_of(prompt.text) in SPLITS
            if fits and prompt.text not in seen:
                seen.add(prompt.text)
                return prompt
        raise ValueError(f"per_domain: the world has no {2 * groups} different Ties prompts (level {level} ran out)")

    for number in range(groups):
        tied = draw(LEVELS[number % len(LEVELS)], None)
        category = tied.gold["category"]
        ref = draw(len(CATEGORIES[category]), category)
        name = f"ties-{tied.id}"
        found += [Unseen(tied, name, "tied"), Unseen(ref, name, "ref")]
    return found


def stated_answer(prompt: Prompt, completion: str) -> str | None:
    """What a completion answers, courtesy and working left out, in a form in which equal answers are equal texts; None
    where it states nothing. It reads the prompt's domain and nothing of its gold."""
    words = [word for word in completion.split() if word not in STYLE_WORDS]
    parts = [part.strip() for part in " ".join(words).split(";")]
    match prompt.domain:
        case "math" | "factuality":
            stated = [words[at + 1] for at, word in enumerate(words[:-1]) if word == "answer"]
        case "safety":  # what is done in the end: refuse, or help with this
            stated = [REFUSAL] if parts == [REFUSAL] else parts[-1:]
        case "focus":
            stated = sorted(parts)
        case _:
            stated = parts
    return " ; ".join(dict.fromkeys(stated)) or None

"""Prompts and demonstrations in disjoint splits, drawn from one seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from lab.records import DOMAINS, Demonstration, Prompt, derive_seed
from lab.world.domains import LEVELS, PROMPTS, Demonstrator, demonstrate

SHARES = {"train": 40, "preference": 20, "rl": 20, "evaluation": 15, "tuning": 5}
"""Per cent of the space of prompt texts that belongs to each split. Base and SFT share ``train``."""


def split_of(text: str) -> str:
    """The split a prompt text belongs to, by its hash: splits cannot overlap, whatever is drawn and in any order."""
    at = derive_seed("split", text) % 100
    for name, share in SHARES.items():
        if at < share:
            return name
        at -= share
    raise AssertionError("the shares add up to 100")


def prompts(
    split: str,
    count: int,
    seed: int,
    *,
    distinct: bool,
    domains: Sequence[str] = DOMAINS,
    levels: Sequence[int] = LEVELS,
) -> list[Prompt]:
    """``count`` prompts of a split, the domains and levels taking turns (a domain named twice comes twice as often).

    Raises ValueError if ``distinct`` and the split does not hold that many different prompts.
    """
    rng = random.Random(derive_seed("prompts", split, seed))
    found: list[Prompt] = []
    seen: set[str] = set()
    misses = 0
    while len(found) < count:
        turn = len(found)
        domain = domains[turn % len(domains)]
        level = levels[turn // len(domains) % len(levels)]
        prompt = PROMPTS[domain](rng, level)
        if split_of(prompt.text) != split or (distinct and prompt.text in seen):
            misses += 1
            if misses > 5000:
                raise ValueError(
                    f"data: split '{split}' has no {count} distinct prompts ({domain} level {level} ran out)"
                )
            continue
        misses = 0
        seen.add(prompt.text)
        found.append(prompt)
    return found


def demonstrations(count: int, who: Demonstrator, seed: int, domains: Sequence[str] = DOMAINS) -> list[Demonstration]:
    """``count`` demonstrations on training prompts. Prompts may recur, as they do in any real corpus."""
    rng = random.Random(derive_seed("demonstrations", seed))
    return [
        Demonstration(p, demonstrate(rng, p, who))
        for p in prompts("train", count, seed, distinct=False, domains=domains)
    ]


def splits(
    counts: Mapping[str, int],
    base: Demonstrator,
    sft: Demonstrator,
    seed: int,
    domains: Sequence[str] = DOMAINS,
    levels: Sequence[int] = LEVELS,
) -> dict[str, list[Demonstration] | list[Prompt]]:
    """The splits named in ``counts``: demonstrations for base and sft, prompts for the rest.

    A split does not depend on which others are asked for, so a larger evaluation never redraws the training data.
    """
    drawn: dict[str, list[Demonstration] | list[Prompt]] = {}
    for name, count in counts.items():
        if name in ("base", "sft"):
            drawn[name] = demonstrations(count, base if name == "base" else sft, derive_seed(name, seed), domains)
        else:
            drawn[name] = prompts(name, count, seed, distinct=name in ("evaluation", "tuning"), levels=levels)
    return drawn

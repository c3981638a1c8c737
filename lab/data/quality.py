"""Quality knobs of preference data, as pure functions of records. All choices are derived from a seed and the record
itself, so that a smaller share is a subset of a larger one and nothing depends on the order of anything else."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from lab.records import Pair, Prompt, derive_seed

WHOLE = float(1 << 63)


def at(*parts: object) -> float:
    """A number in [0, 1) that belongs to these parts."""
    return derive_seed(*parts) / WHOLE


def choose_prompts(
    prompts: Sequence[Prompt],
    *,
    levels: Sequence[int],
    domains: Mapping[str, float],
    coverage: float,
    seed: int,
) -> list[Prompt]:
    """The prompts that may have pairs, in their order: of these levels, the domains thinned out to their relative
    weights (1 where not named), and of each domain the share ``coverage``, at least one."""
    heaviest = max((domains.get(prompt.domain, 1.0) for prompt in prompts), default=1.0)
    groups: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        if prompt.level in levels or not prompt.level:  # 0: data that has no levels
            groups.setdefault(prompt.domain, []).append(prompt)
    kept: set[str] = set()
    for domain, own in groups.items():
        share = coverage * domains.get(domain, 1.0) / heaviest if heaviest else 0.0
        ids = sorted({prompt.id for prompt in own}, key=lambda id_: (derive_seed("coverage", seed, id_), id_))
        kept.update(ids[: max(round(share * len(ids)), int(share > 0))])
    return [prompt for prompt in prompts if prompt.id in kept]


def is_on_policy(prompt: Prompt, sample: int, share: float, seed: int) -> bool:
    """Whether this sample of the prompt is the policy's own, for ``share`` of all samples."""
    return at("on policy", seed, prompt.id, sample) < share


def has_margin(margin: float, least: float, most: float) -> bool:
    """Whether the true difference of two completions lies between the bounds (``most`` 0: none)."""
    return abs(margin) >= least and (not most or abs(margin) <= most)


def flip(pairs: Sequence[Pair], rate: float, seed: int) -> list[Pair]:
    """Every pair turned round with probability ``rate``; a higher rate turns the same ones and more."""
    return [
        _turned(pair) if at("flip", seed, pair.prompt.id, pair.chosen, pair.rejected) < rate else pair for pair in pairs
    ]


def _turned(pair: Pair) -> Pair:
    return replace(
        pair,
        chosen=pair.rejected,
        rejected=pair.chosen,
        chosen_truncated=pair.rejected_truncated,
        rejected_truncated=pair.chosen_truncated,
    )


def repeat(pairs: Sequence[Pair], share: float, seed: int) -> list[Pair]:
    """As many pairs, of which the last ``share`` are copies of earlier ones, drawn with replacement."""
    copies = round(share * len(pairs))
    if not copies or copies == len(pairs):
        return list(pairs)
    kept = list(pairs[: len(pairs) - copies])
    rng = random.Random(derive_seed("duplicates", seed))
    return kept + [rng.choice(kept) for _ in range(copies)]


def plant(pairs: Sequence[Pair], planted: Sequence[Pair], share: float) -> list[Pair]:
    """As many pairs, of which the last ``share`` are ``planted`` ones (as many of them as there are)."""
    count = min(round(share * len(pairs)), len(planted))
    return [*pairs[: len(pairs) - count], *planted[:count]]

"""Rejection sampling as a pure function of scores: which of a policy's samples become demonstrations.

"best" is best-of-n as a teacher (Nakano et al. 2021, arXiv:2112.09332; Touvron et al. 2023, arXiv:2307.09288, section
3.2.3); "correct" is rejection-sampling fine-tuning (Yuan et al. 2023, arXiv:2308.01825); "majority" needs no truth,
only a parser of answers (Huang et al. 2022, arXiv:2210.11610); "share" keeps the top share. Every rule has its control:
the same prompts, the same number of samples of each, chosen at random.

Axis suffixes: N samples of all prompts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.data.filters import majorities
from lab.records import Completion, Prompt, derive_seed

RULES = ("best", "correct", "majority", "share")

Sampled = Sequence[tuple[Prompt, Completion]]


def eligible(samples: Sampled, distinct: bool = False) -> list[int]:
    """Rows that may become a demonstration: not cut off by the token budget (a policy must not learn to stop there),
    and with ``distinct`` only the first of a prompt's equal texts."""
    rows, seen = [], set()
    for row, (prompt, completion) in enumerate(samples):
        if completion.truncated or (distinct and (prompt.id, completion.text) in seen):
            continue
        seen.add((prompt.id, completion.text))
        rows.append(row)
    return rows


def select(
    samples: Sampled, scores_N: NDArray[np.float64], rule: str, rows: Iterable[int], share: float, seed: int
) -> list[int]:
    """The rows that ``rule`` keeps of ``rows``, ascending. A sample without a score (NaN) is never kept.

    best: one of the highest of each prompt. correct, majority: score above 0 (1 for a sample that the verifier accepts,
    or that gives the majority's answer, see ``majority_scores``). share: the floor(share x count)
    highest of each domain's scored samples, at least 1. Ties are broken at random by seed, prompt and sample, so that
    a constant score picks like chance. Raises ValueError for an unknown rule.
    """
    known = [row for row in rows if not math.isnan(scores_N[row])]
    match rule:
        case "correct" | "majority":
            return [row for row in known if scores_N[row] > 0]
        case "best":
            groups = _grouped(known, lambda row: samples[row][0].id)
            sizes = [1] * len(groups)
        case "share":
            groups = _grouped(known, lambda row: samples[row][0].domain)
            sizes = [max(1, math.floor(share * len(group) + 1e-9)) for group in groups]
        case _:
            raise ValueError(f"rejection.rule: expected one of {', '.join(RULES)}, got {rule!r}")
    ranked = [sorted(group, key=lambda row: (-scores_N[row], _lot(samples[row], seed))) for group in groups]
    return sorted(row for group, size in zip(ranked, sizes, strict=True) for row in group[:size])


def majority_scores(samples: Sampled, answers: Sequence[str | None], seed: int) -> NDArray[np.float64]:
    """(N,): 1 for a sample that gives the answer most samples of its prompt give (ties at random by seed), 0 for any
    other, NaN where no sample of the prompt has an answer."""
    given: dict[str, list[str | None]] = {}
    for (prompt, _), answer in zip(samples, answers, strict=True):
        given.setdefault(prompt.id, []).append(answer)
    majority = majorities(given, seed)
    return np.array(
        [
            math.nan if majority[prompt.id] is None else float(answer == majority[prompt.id])
            for (prompt, _), answer in zip(samples, answers, strict=True)
        ]
    )


def matched_random(samples: Sampled, kept: Sequence[int], rows: Iterable[int], seed: int) -> list[int]:
    """The control of ``kept``: of each prompt as many of ``rows`` as were kept, drawn at random, ascending.

    Raises ValueError if a prompt has fewer rows than were kept of it.
    """
    wanted = Counter(samples[row][0].id for row in kept)
    drawn: list[int] = []
    offered = {samples[group[0]][0].id: group for group in _grouped(rows, lambda row: samples[row][0].id)}
    for prompt_id, count in wanted.items():
        group = offered.get(prompt_id, [])
        if count > len(group):
            raise ValueError(f"prompt {prompt_id}: {count} samples were kept, and only {len(group)} can be drawn")
        drawn += sorted(group, key=lambda row: _lot(samples[row], derive_seed("control", seed)))[:count]
    return sorted(drawn)


def in_turns(samples: Sampled, rows: Sequence[int]) -> list[int]:
    """``rows`` in an order of which every beginning holds many prompts: each prompt's first, then each one's second."""
    groups = _grouped(rows, lambda row: samples[row][0].id)
    return [group[turn] for turn in range(max(map(len, groups), default=0)) for group in groups if turn < len(group)]


def describe(
    samples: Sampled, scores_N: NDArray[np.float64], gold_N: NDArray[np.float64], kept: Sequence[int]
) -> dict[str, Any]:
    """Counts, and gold, score and length in tokens of what was kept against all samples, overall and by domain. Null
    where nothing is known."""
    every = list(range(len(samples)))
    domains = list(dict.fromkeys(prompt.domain for prompt, _ in samples))

    def part(rows: Sequence[int]) -> dict[str, Any]:
        return {
            "samples": len(rows),
            "prompts": len({samples[row][0].id for row in rows}),
            "gold": _mean(gold_N[list(rows)]),
            "score": _mean(scores_N[list(rows)]),
            "length": _mean(np.array([samples[row][1].length for row in rows], dtype=float)),
        }

    def within(rows: Sequence[int], domain: str) -> list[int]:
        return [row for row in rows if samples[row][0].domain == domain]

    return {
        "all": part(every),
        "kept": part(kept),
        "truncated": sum(completion.truncated for _, completion in samples),
        "unscored": int(np.isnan(scores_N).sum()),
        "domains": {
            name: {"all": part(within(every, name)), "kept": part(within(kept, name))} for name in sorted(domains)
        },
    }


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else None


def _lot(sample: tuple[Prompt, Completion], seed: int) -> int:
    return derive_seed("rejection lot", seed, sample[0].id, sample[1].sample)


def _grouped(rows: Iterable[int], key: Callable[[int], Hashable]) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())

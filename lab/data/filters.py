"""Filters of preference pairs as pure functions of scores: which pairs to train on, and what is known of the rest.

A rule says of each pair 1 (keep), 0 (leave out) or NaN (it cannot judge this pair); ``keep`` turns that into rows.
Every filter has its control: the same number of pairs of every domain, at random.

Axis suffixes: N pairs, V voters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lab.best_of_n import vote
from lab.records import Outcome, Pair, Prompt, derive_seed
from lab.verifiers import verify_many

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


# ---------------------------------------------------------------- rules


def by_verifier(chosen_N: ArrayLike, rejected_N: ArrayLike) -> Floats:
    """(N,): 1 where the chosen side is correct (above 0) and the rejected one is not; NaN where either is unknown."""
    chosen, rejected = _floats(chosen_N), _floats(rejected_N)
    return _known((chosen > 0) & ~(rejected > 0), chosen + rejected)


def by_margin(margins_N: ArrayLike, least: float) -> Floats:
    """(N,): 1 where the chosen side is ahead by ``least`` or more; NaN where the margin is."""
    margins = _floats(margins_N)
    return _known(margins >= least, margins)


def by_share(margins_N: ArrayLike, domains: Sequence[str], share: float, order: Sequence[int]) -> Floats:
    """(N,): 1 for the floor(share x count) highest margins of each domain's known ones, at least 1 of them.

    ``order``: a number a pair that decides between equal margins, the lower first.
    """
    margins = _floats(margins_N)
    kept = np.zeros(len(margins), dtype=bool)
    for domain in dict.fromkeys(domains):
        rows = [row for row, name in enumerate(domains) if name == domain and not math.isnan(margins[row])]
        ranked = sorted(rows, key=lambda row: (-margins[row], order[row]))
        kept[ranked[: max(1, math.floor(share * len(rows) + 1e-9))]] = True
    return _known(kept, margins)


def by_vote(margins_VN: ArrayLike, least: float) -> Floats:
    """(N,): 1 where more than ``least`` of the votes cast are for the chosen side; NaN where none is cast.

    A voter whose margin is 0 or NaN casts no vote.
    """
    margins = np.atleast_2d(_floats(margins_VN))
    pro, contra = (margins > 0).sum(0), (margins < 0).sum(0)
    cast = pro + contra
    return _known(pro > least * cast + 1e-9, np.where(cast > 0, 0.0, np.nan))


def by_answers(chosen: Sequence[str | None], rejected: Sequence[str | None], majority: Sequence[str | None]) -> Floats:
    """(N,): 1 where the chosen side gives the majority's answer and the rejected one does not; NaN where there is no
    majority. None: no answer could be read."""
    kept = [c == m and r != m for c, r, m in zip(chosen, rejected, majority, strict=True)]
    return _known(np.array(kept, dtype=bool), np.array([np.nan if m is None else 0.0 for m in majority]))


def majorities(answers: Mapping[str, Sequence[str | None]], seed: int) -> dict[str, str | None]:
    """By prompt id: the answer that most of the prompt's samples give, ties at random by seed; None where none does."""
    return {prompt_id: vote(given, seed=seed, prompt_id=prompt_id) for prompt_id, given in answers.items()}


def extract(prompts: Sequence[Prompt], texts: Sequence[str]) -> list[str | None]:
    """The answer that each prompt's verifier reads in a text, right or wrong; None where it reads none."""
    answers: list[str | None] = [None] * len(texts)
    known = [row for row, prompt in enumerate(prompts) if prompt.verifier is not None]
    verdicts = verify_many([texts[row] for row in known], [prompts[row].gold for row in known])
    for row, verdict in zip(known, verdicts, strict=True):
        if verdict.outcome in (Outcome.CORRECT, Outcome.INCORRECT):
            answers[row] = verdict.extracted
    return answers


# ---------------------------------------------------------------- what is kept


def keep(judged_N: ArrayLike, unknown: str) -> Mask:
    """(N,): the rows to keep. unknown: "keep" or "drop" pairs that the rule cannot judge. Raises ValueError."""
    if unknown not in ("keep", "drop"):
        raise ValueError(f"filter.unknown: expected keep or drop, got {unknown!r}")
    judged = _floats(judged_N)
    return np.where(np.isnan(judged), unknown == "keep", judged > 0)


def matched_random(kept_N: ArrayLike, domains: Sequence[str], order: Sequence[int]) -> Mask:
    """(N,): as many rows of every domain as ``kept_N`` has, those of the lowest ``order`` (random numbers).

    By domain and not by prompt: where a prompt has one pair, matching by prompt would leave the filter's own choice.
    """
    wanted = Counter(domain for domain, kept in zip(domains, np.asarray(kept_N, dtype=bool), strict=True) if kept)
    drawn = np.zeros(len(domains), dtype=bool)
    for domain, count in wanted.items():
        rows = [row for row, name in enumerate(domains) if name == domain]
        drawn[sorted(rows, key=lambda row: order[row])[:count]] = True
    return drawn


def lots(pairs: Sequence[Pair], seed: int, purpose: str) -> list[int]:
    """A random number a pair, by its text and by how often the same pair came before: no other pair moves it."""
    seen: Counter[tuple[str, str, str]] = Counter()
    numbers = []
    for pair in pairs:
        text = (pair.prompt.id, pair.chosen, pair.rejected)
        numbers.append(derive_seed("filter", purpose, seed, *text, seen[text]))
        seen[text] += 1
    return numbers


# ---------------------------------------------------------------- what is known of them


def agreement(gold_chosen_N: ArrayLike, gold_rejected_N: ArrayLike) -> dict[str, Any]:
    """Of pairs whose golds are known: how many are equal (tied), and of the others the share whose chosen side is truly
    better (null without any), with its standard error sqrt(p (1 - p) / n)."""
    difference = _floats(gold_chosen_N) - _floats(gold_rejected_N)
    known = difference[~np.isnan(difference)]
    ordered = known[known != 0]
    share = float((ordered > 0).mean()) if len(ordered) else None
    error = None if share is None else math.sqrt(share * (1 - share) / len(ordered))
    return {
        "agreement": share,
        "standard_error": error,
        "ordered": len(ordered),
        "tied": len(known) - len(ordered),
        "unknown": len(difference) - len(known),
    }


def describe(
    pairs: Sequence[Pair], judged_N: ArrayLike, kept_N: ArrayLike, gold_chosen_N: ArrayLike, gold_rejected_N: ArrayLike
) -> dict[str, Any]:
    """The card: pairs before and after with their agreement with gold, overall and by domain, and what the rule said.

    ``rule``: how many pairs it keeps, leaves out and cannot judge; ``kept_of``: how many of each are kept in the end
    (another thing for a control).
    """
    judged, kept = _floats(judged_N), np.asarray(kept_N, dtype=bool)
    chosen, rejected = _floats(gold_chosen_N), _floats(gold_rejected_N)
    domains = np.array([pair.prompt.domain for pair in pairs])

    def part(rows: Mask) -> dict[str, Any]:
        return {"pairs": int(rows.sum()), **agreement(chosen[rows], rejected[rows])}

    def both(rows: Mask) -> dict[str, Any]:
        return {"before": part(rows), "after": part(rows & kept)}

    said = {"keep": judged > 0, "drop": judged == 0, "unknown": np.isnan(judged)}
    return {
        **both(np.ones(len(pairs), dtype=bool)),
        "domains": {str(name): both(domains == name) for name in sorted(set(domains.tolist()))},
        "rule": {name: int(rows.sum()) for name, rows in said.items()},
        "kept_of": {name: int((rows & kept).sum()) for name, rows in said.items()},
    }


def _known(kept: Mask, unknown_where_nan: Floats) -> Floats:
    return np.where(np.isnan(unknown_where_nan), np.nan, kept.astype(np.float64))


def _floats(values: ArrayLike) -> Floats:
    return np.asarray(values, dtype=np.float64)

"""Picking and voting on the domains where a rule says what is correct: does a reward model beat the plain majority?

Axis suffixes: S seeds of a reward source, P prompts, N samples of one prompt, K values of n.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from lab.best_of_n import by_domain, gold_curve, vote_weights, voting_curve
from lab.stats import Floats, HierarchicalBootstrap, interval_columns

SUBSETS = 32
"""Random subsets of n voters, the same for all models."""

PICK, WEIGHTED, PLAIN = "best of n", "weighted vote", "majority"


def voting_table(
    scores: Mapping[str, Floats],
    correct_PN: Floats,
    answers_PN: Sequence[Sequence[str | None]],
    domains: Sequence[str],
    verifiable_P: NDArray[np.bool_],
    prompt_ids: Sequence[str],
    ns: Sequence[int],
    bootstrap: HierarchicalBootstrap,
    reference: str,
) -> pd.DataFrame:
    """A line per model, rule and n: share of verifiable prompts answered correctly, domains weighing the same.

    rule: "best of n" (the sample of highest score; exact over all subsets of the pool), "weighted vote" (each sample
    votes for its answer with sigmoid(score), over ``SUBSETS`` subsets), and of the model "majority" "majority" (each
    sample has one vote). ``scores``: model -> (S, P, N).

    Columns: candidate, rule, n, accuracy, over_majority (less the plain majority at the same n) and over_reference
    (less the model ``reference`` under the same rule and n), each with _low and _high, paired by prompt. Empty where no
    prompt is verifiable.
    """
    numbers = ("accuracy", "over_majority", "over_reference")
    columns = ["candidate", "rule", "n", *(f"{name}{end}" for name in numbers for end in ("", "_low", "_high"))]
    if not verifiable_P.any():
        return pd.DataFrame(columns=columns)
    own = [int(line) for line in np.flatnonzero(verifiable_P)]
    names, ids = [domains[line] for line in own], [prompt_ids[line] for line in own]
    correct, answers = correct_PN[own], [answers_PN[line] for line in own]
    drawn: dict[str, Any] = {"subsets": SUBSETS, "prompt_ids": ids}
    plain_PK = voting_curve(answers, correct, ns, **drawn)
    curves = {(PLAIN, PLAIN): plain_PK[None]}
    for model, scores_SPN in scores.items():
        part = scores_SPN[:, own]
        curves[model, PICK] = gold_curve(part, correct, ns)
        curves[model, WEIGHTED] = voting_curve(answers, correct, ns, weights=vote_weights(part, "sigmoid"), **drawn)
    lines = []
    for (model, rule), curve_SPK in curves.items():
        beside = {"over_majority": (PLAIN, PLAIN), "over_reference": (reference, rule)}
        for k, n in enumerate(ns):
            cells = by_domain(curve_SPK[..., k], names)
            line: dict[str, Any] = {"candidate": model, "rule": rule, "n": n}
            line |= interval_columns("accuracy", bootstrap.interval(model, cells))
            for column, other in beside.items():
                gap = None
                if other in curves and other != (model, rule) and other[0] != model:
                    against = by_domain(curves[other][..., k], names)
                    gap = bootstrap.difference(model, cells, other[0], against)
                line |= interval_columns(column, gap)
            lines.append(line)
    return pd.DataFrame(lines, columns=columns)

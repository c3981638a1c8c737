"""What revisions are worth on the true utility: before and after, paired by prompt, with intervals. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lab.feedback.agreement import Mask, share
from lab.records import Prompt
from lab.stats import HierarchicalBootstrap, Interval

Floats = NDArray[np.float64]


def by_prompt(prompts: Sequence[Prompt], utilities_N: Floats) -> dict[str, Floats]:
    """Domain -> (1, P): the mean utility of each prompt's drafts, NaN where none is known; prompts in order of id."""
    found: dict[str, dict[str, list[float]]] = {}
    for prompt, utility in zip(prompts, utilities_N, strict=True):
        found.setdefault(prompt.domain, {}).setdefault(prompt.id, []).append(float(utility))
    return {domain: np.array([[_mean(own[name]) for name in sorted(own)]]) for domain, own in sorted(found.items())}


def gains(prompts: Sequence[Prompt], utilities: Sequence[Floats], level: float = 0.95) -> dict[str, Any]:
    """``points``: the mean utility of the drafts and after each round (``utilities``: (N,) each, the drafts first), and
    its gain over the drafts, paired by prompt; ``by_domain``: the same of the last round alone.

    Means over domains are unweighted; intervals are bootstraps over prompts. A prompt of which nothing is known is left
    out; a domain without a known prompt too. Nothing where no prompt is left.
    """
    bootstrap = HierarchicalBootstrap(level=level)
    strata = [_known(by_prompt(prompts, one)) for one in utilities]
    domains = [name for name in strata[0] if all(name in one for one in strata)] if strata else []
    if not domains:
        return {"points": [], "by_domain": {}, "prompts": 0}
    points = []
    for number, one in enumerate(strata):
        own = {name: one[name] for name in domains}
        line: dict[str, Any] = {"round": number, "gold": _plain(bootstrap.interval("revised", own))}
        if number:
            line["gain"] = _plain(_difference(bootstrap, own, {name: strata[0][name] for name in domains}))
        points.append(line)
    last = strata[-1]
    return {
        "points": points,
        "by_domain": {
            name: {
                "before": _plain(bootstrap.interval("draft", {name: strata[0][name]})),
                "after": _plain(bootstrap.interval("revised", {name: last[name]})),
                "gain": _plain(_difference(bootstrap, {name: last[name]}, {name: strata[0][name]})),
            }
            for name in domains
        },
        "prompts": sum(strata[0][name].shape[1] for name in domains),
    }


def principle_lines(
    ids_M: Sequence[int], before_M: Floats, after_M: Floats, outcomes_M: Sequence[str], broken_M: Sequence[bool | None]
) -> list[dict[str, Any]]:
    """A line a principle over the M times that one was applied: how often it revised, what that was worth.

    ``gain``: mean utility after less before, over all M of it that are known; ``critique``: share of verdicts that say
    what ``broken_M`` (None: not known) says is so, with Wilson's interval.
    """
    lines = []
    numbers, outcomes = np.array(ids_M), np.array(outcomes_M)
    for number in sorted(set(ids_M)):
        own = numbers == number
        step = (after_M - before_M)[own]
        known = step[~np.isnan(step)]
        truth = np.array([bool(one) for one in broken_M])
        judged: Mask = own & np.array([one is not None for one in broken_M]) & (outcomes != "unusable")
        lines.append(
            {
                "principle": int(number),
                "applied": int(own.sum()),
                "revised": int((outcomes[own] == "revised").sum()),
                "unusable": int((outcomes[own] == "unusable").sum()),
                "gain": float(known.mean()) if len(known) else None,
                "critique": share((outcomes == "revised") == truth, judged),
            }
        )
    return lines


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def _known(strata: Mapping[str, Floats]) -> dict[str, Floats]:
    return {name: cells for name, cells in strata.items() if np.isfinite(cells).any()}


def _difference(bootstrap: HierarchicalBootstrap, after: dict[str, Floats], before: dict[str, Floats]) -> Interval:
    return bootstrap.difference("revised", after, "draft", before)


def _plain(found: Interval) -> dict[str, float]:
    return {"mean": found.point, "low": found.low, "high": found.high}

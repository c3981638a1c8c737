"""How far two annotators agree on the items that both have answered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest

from lab.data.annotations import Annotation, standing
from lab.stats import Floats, HierarchicalBootstrap


@dataclass(frozen=True)
class Agreement:
    """``items`` answered by both; share of them answered alike, and Cohen's kappa, with 95% intervals over items.

    The answers are: the one text is better, the other is, tie, both bad. The share's interval is Wilson's (1927), which
    does not shrink to a point where all answers are alike; kappa's is the bootstrap of ``lab.stats``, and NaN where all
    resamples have one kappa. kappa is None where chance alone would make the two agree always (one answer throughout).
    """

    other: str
    items: int
    same: float
    same_low: float
    same_high: float
    kappa: float | None
    kappa_low: float
    kappa_high: float


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """(p_o - p_e) / (1 - p_e): p_o the share answered alike, p_e = sum_k p_k q_k of the two's own shares of answer k.

    Cohen 1960. None where p_e = 1. ValueError for no answers or unequal lengths.
    """
    if not first or len(first) != len(second):
        raise ValueError(f"cohen_kappa: expected two equally long lists, got {len(first)} and {len(second)} answers")
    alike, first_KP, second_KP = _indicators(first, second)
    value = float(_kappa(alike.mean(), first_KP.mean(1), second_KP.mean(1)))
    return None if np.isnan(value) else value


def agreements(annotator: str, rows: Iterable[Annotation]) -> list[Agreement]:
    """``annotator`` with every other one who answered an item in common, by name."""
    said: dict[str, dict[str, str]] = {}
    for (item, name), row in standing(rows).items():
        said.setdefault(name, {})[item] = _label(row)
    own = said.pop(annotator, {})
    found = []
    for name in sorted(said):
        common = sorted(own.keys() & said[name].keys())
        if common:
            found.append(_agreement(name, [own[item] for item in common], [said[name][item] for item in common]))
    return found


def _label(row: Annotation) -> str:
    """The answer in terms of the two texts, not of the sides that they stood on."""
    if row.answer not in ("left", "right"):
        return row.answer
    better, worse = (row.left, row.right) if row.answer == "left" else (row.right, row.left)
    return "a" if better < worse else "b"


def _agreement(name: str, first: Sequence[str], second: Sequence[str]) -> Agreement:
    bootstrap = HierarchicalBootstrap(resamples=1000)
    alike_P, first_KP, second_KP = _indicators(first, second)
    same = binomtest(int(alike_P.sum()), len(first)).proportion_ci(method="wilson")
    # The draws of one stratum are the same in every call, so resample b of each mean is of the same items.
    alike_B, *rest = (bootstrap.draws("same", {"items": row[None]}) for row in (alike_P, *first_KP, *second_KP))
    drawn_KB = np.clip(np.array(rest), 0, 1)
    kappa_B = _kappa(np.clip(alike_B, 0, 1), drawn_KB[: len(first_KP)], drawn_KB[len(first_KP) :])
    varied = np.isfinite(kappa_B).any() and np.nanmin(kappa_B) < np.nanmax(kappa_B)
    low, high = np.nanquantile(np.clip(kappa_B, -1, 1), [0.025, 0.975]) if varied else (np.nan, np.nan)
    return Agreement(
        name,
        len(first),
        float(alike_P.mean()),
        same.low,
        same.high,
        cohen_kappa(first, second),
        float(low),
        float(high),
    )


def _indicators(first: Sequence[str], second: Sequence[str]) -> tuple[Floats, ...]:
    """(P,) answered alike, then (K, P) of either annotator: answer k was given."""
    a, b = np.array(first), np.array(second)
    names = sorted({*first, *second})
    first_KP, second_KP = (np.array([one == name for name in names], dtype=np.float64) for one in (a, b))
    return (a == b).astype(np.float64), first_KP, second_KP


def _kappa(alike: Floats, first_K: Floats, second_K: Floats) -> Floats:
    """NaN where chance alone agrees always. ``alike`` may have the axis of resamples that the others end in."""
    chance = (first_K * second_K).sum(0)
    room = 1 - chance
    return np.divide(alike - chance, room, out=np.full(np.shape(room), np.nan), where=room > 1e-12)

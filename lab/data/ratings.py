"""Formats in which every completion is rated by itself, on several attributes: ratings in, pairs out.

A completion's score is the weighted sum of its ratings. "extremes" pairs a prompt's best with its worst completion,
"all" every two whose scores differ; the strength is the difference of the scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from lab.data.jsonl import JsonlError, shorten, text_at, value_at
from lab.data.pair_formats import Problem, Row, Stated, States, nemotron_turns, number_at

PAIRINGS = ("extremes", "all")
TIE = 1e-9
"""Scores this close are equal: sums of the same weights in another order are."""


@dataclass(frozen=True, slots=True)
class Rated:
    """A completion and its score (None: a rating is missing), from row ``line``."""

    line: int
    text: str
    score: float | None


Reader = Callable[[Path, int, Row, Mapping[str, float]], tuple[str, list[Rated]]]


def pair_up(prompt: str, completions: Sequence[Rated], pairing: str, line: int) -> States:
    """The pairs of one prompt's completions, and a Problem for each completion without a rating ("unrated"), for a
    prompt with fewer than two rated ones (the same) and for two of equal score ("tied")."""
    states: States = [
        Problem("unrated", one.line, "a completion has no rating") for one in completions if one.score is None
    ]
    rated = [(one.score, one) for one in completions if one.score is not None]
    if len(rated) < 2:
        if not states:
            states.append(Problem("unrated", line, f"{len(rated)} completion(s) of a prompt: a pair needs two"))
        return states
    if pairing == "extremes":
        best, worst = max(rated, key=lambda one: one[0]), min(rated, key=lambda one: one[0])
        couples = [(best, worst)]
    else:
        couples = list(combinations(rated, 2))
    for (score, one), (other_score, other) in couples:
        if abs(score - other_score) <= TIE:
            states.append(Problem("tied", line, f"two completions have the same score, {score:g}"))
            continue
        better, worse = (one, other) if score > other_score else (other, one)
        states.append(Stated(prompt, better.text, worse.text, abs(score - other_score)))
    return states


# ---------------------------------------------------------------- UltraFeedback


def read_ultrafeedback(path: Path, line: int, row: Row, weights: Mapping[str, float]) -> tuple[str, list[Rated]]:
    """UltraFeedback (Cui et al. 2023, arXiv:2310.01377): ``instruction``, ``completions`` with ``response`` and
    ``annotations`` {attribute: {"Rating": "1" to "5", or "N/A"}}."""
    prompt, completions = text_at(path, line, row, "instruction"), value_at(path, line, row, "completions")
    if not isinstance(completions, list):
        raise JsonlError(f"{path}:{line}: key 'completions': expected a list, got {shorten(completions)}")
    rated = []
    for number, one in enumerate(completions):
        key = f"completions[{number}]"
        if not isinstance(one, dict):
            raise JsonlError(f"{path}:{line}: key '{key}': expected an object, got {shorten(one)}")
        text, annotations = text_at(path, line, one, "response"), value_at(path, line, one, "annotations")
        if not isinstance(annotations, dict):
            raise JsonlError(f"{path}:{line}: key '{key}.annotations': expected an object, got {shorten(annotations)}")
        ratings = {name: _rating(path, line, f"{key}.annotations", annotations, name) for name in weights}
        rated.append(Rated(line, text, weighted(ratings, weights)))
    return prompt, rated


def _rating(path: Path, line: int, key: str, annotations: Row, name: str) -> float | None:
    value = value_at(path, line, annotations, name)
    rating = value.get("Rating") if isinstance(value, dict) else value
    if rating is None or (isinstance(rating, str) and rating.strip().upper() in ("N/A", "")):
        return None
    try:
        return float(rating) if isinstance(rating, str) else number_at(path, line, {name: rating}, name)
    except (ValueError, JsonlError):
        raise JsonlError(f"{path}:{line}: key '{key}.{name}': expected a rating, got {shorten(value)}") from None


def weighted(ratings: Mapping[str, float | None], weights: Mapping[str, float]) -> float | None:
    """The weighted sum of the ratings that have a weight; None where one of them is missing."""
    total = 0.0
    for name, weight in weights.items():
        rating = ratings[name]
        if rating is None:
            return None
        total += weight * rating
    return total


# ---------------------------------------------------------------- HelpSteer


def gather(rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Neighbouring rows of one prompt as one: (line of the first, {"rows": [(line, row)]})."""
    group: list[tuple[int, Row]] = []
    for line, row in rows:
        if group and row.get("prompt") != group[0][1].get("prompt"):
            yield group[0][0], {"rows": group}
            group = []
        group.append((line, row))
    if group:
        yield group[0][0], {"rows": group}


def read_helpsteer(path: Path, line: int, row: Row, weights: Mapping[str, float]) -> tuple[str, list[Rated]]:
    """HelpSteer and HelpSteer2 (Wang et al. 2024, arXiv:2406.08673), gathered: one row a completion, columns prompt,
    response and one an attribute (a number, or null)."""
    prompt = text_at(path, line, row["rows"][0][1], "prompt")
    rated = []
    for own, one in row["rows"]:
        ratings = {
            name: None if value_at(path, own, one, name) is None else number_at(path, own, one, name)
            for name in weights
        }
        rated.append(Rated(own, text_at(path, own, one, "response"), weighted(ratings, weights)))
    return nemotron_turns(prompt), rated


RATED: Mapping[str, Reader] = {"ultrafeedback": read_ultrafeedback, "helpsteer": read_helpsteer}

"""What a hacking monitor may see of a rollout: signals that never look at gold, written to the trace.

Watchers are reward sources that score every rollout and never pay. They change nothing of training: no gradient, no
random number, no weight; a watched run is bitwise the run without watchers. ``lab.monitor`` reads the trace.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata

from lab.records import Completion, Prompt
from lab.rewards import DetailedSource, RewardSource, load_reward

Floats = NDArray[np.float64]


def load_watchers(
    watch: Mapping[str, Mapping[str, Any]], inputs: Mapping[str, Path], device: str | torch.device
) -> dict[str, RewardSource]:
    """The watchers of a plain ``watch`` (name -> RewardConfig); the inputs of NAME are those called "watch-NAME.…".

    Raises ValueError for a name of other characters than letters, digits, _ and -, and for a watcher that sees gold:
    what a monitor is worth is measured by gold, so it must not look.
    """
    watchers = {}
    for name, config in watch.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise ValueError(f"watch: expected a name of letters, digits, _ and -, got {name!r}")
        if "gold" in kinds_of(config):
            raise ValueError(f"watch.{name}: gold, but a hacking monitor is judged by gold and so must not see it")
        prefix = f"watch-{name}."
        own = {key.removeprefix(prefix): path for key, path in inputs.items() if key.startswith(prefix)}
        try:
            watchers[name] = load_reward(config, own, device)
        except ValueError as error:
            raise ValueError(f"watch.{name}: {error}") from error
    return watchers


def kinds_of(reward: Mapping[str, Any]) -> list[str]:
    """The kinds of a plain RewardConfig: its own, or those of all parts of a mixture (a part of one counts once)."""
    if reward["kind"] != "mixture":
        return [reward["kind"]]
    return [kind for part in reward["parts"].values() for kind in kinds_of(part["reward"])]


def rollout_signals(
    reward: RewardSource,
    watchers: Mapping[str, RewardSource],
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    completion_ids: Sequence[Sequence[int]],
    paid: Floats,
) -> dict[str, float]:
    """Columns of the trace for one rollout of N completions; NaN where a quantity has no value (there: unknown).

    - ``repetition_bigrams``, ``repetition_group``: see `repeated_bigrams` and `repeated_in_group`
    - ``disagreement``: of the members of the paying source, `member_spread`; absent if it has none
    - of each watcher NAME: ``watch_mean.NAME`` and ``watch_std.NAME`` (over completions) of its scores, its rank
      correlation with what was ``paid`` (N), ``watch_correlation.NAME``, and ``watch_disagreement.NAME``

    ``completion_ids``: token ids, end of sequence included. A score that is not finite counts as unknown.
    Raises ValueError naming a watcher that gives another number of scores than N.
    """
    row = {
        "repetition_bigrams": repeated_bigrams(completion_ids),
        "repetition_group": repeated_in_group(completions),
    }
    with untouched_generators():
        spread = member_spread(reward, prompts, completions)
        if spread is not None:
            row["disagreement"] = spread
        for name, watcher in watchers.items():
            scores = np.asarray(watcher.score(prompts, completions), dtype=np.float64)
            if scores.shape != (len(prompts),):
                raise ValueError(f"watcher {name}: {scores.shape} scores for {len(prompts)} completions")
            known = scores[np.isfinite(scores)]
            row[f"watch_mean.{name}"] = float(known.mean()) if known.size else float("nan")
            row[f"watch_std.{name}"] = float(known.std(ddof=1)) if known.size > 1 else float("nan")
            row[f"watch_correlation.{name}"] = rank_correlation(paid, scores)
            spread = member_spread(watcher, prompts, completions)
            if spread is not None:
                row[f"watch_disagreement.{name}"] = spread
    return row


def repeated_bigrams(rows: Sequence[Sequence[int]]) -> float:
    """Mean over rows of 1 - distinct bigrams / bigrams; rows of fewer than two tokens have none and are left out."""
    pairs = [list(itertools.pairwise(row)) for row in rows]
    shares = [1 - len(set(row)) / len(row) for row in pairs if row]
    return float(np.mean(shares)) if shares else float("nan")


def repeated_in_group(completions: Sequence[Completion]) -> float:
    """Mean over prompts of 1 - distinct texts / completions: the share that says again what its group already said."""
    groups: dict[str, list[str]] = {}
    for completion in completions:
        groups.setdefault(completion.prompt_id, []).append(completion.text)
    return float(np.mean([1 - len(set(texts)) / len(texts) for texts in groups.values()]))


def member_spread(source: RewardSource, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> float | None:
    """Mean over completions of the (population) standard deviation of the members' scores; None if there are no
    members (one is asked first, so that a source with other detail does not spell out all of it)."""
    if not isinstance(source, DetailedSource) or source.detail(prompts[:1], completions[:1])[0].of != "member":
        return None
    scores_NM = np.array([detail.scores for detail in source.detail(prompts, completions)], dtype=np.float64)
    if scores_NM.shape[1] < 2:
        return None
    known = np.isfinite(scores_NM).all(1)
    return float(scores_NM[known].std(1).mean()) if known.any() else float("nan")


def rank_correlation(left: Floats, right: Floats) -> float:
    """Spearman's rho over the entries that both know, ties sharing their mean rank; NaN if either is constant there."""
    known = np.isfinite(left) & np.isfinite(right)
    if known.sum() < 2:
        return float("nan")
    x, y = (rankdata(values[known]) for values in (left, right))
    x, y = x - x.mean(), y - y.mean()
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else float("nan")


@contextmanager
def untouched_generators() -> Iterator[None]:
    """Whatever draws inside from the global generators of Python, numpy and torch leaves them as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices=list(devices)):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)

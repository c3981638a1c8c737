"""A judge labels the pairs of a preference pool (RLAIF): same pairs, same completions, another annotator.

Both orders of every comparison are asked and averaged. Under a constitution each pair meets one principle, drawn by
seed, as in Bai et al. 2022 (arXiv 2212.08073, section 4.1). Verdicts are written as they come, and a run that was cut
off asks only for those that are missing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from lab.config import ConstitutionConfig, build
from lab.costs import forward_flops
from lab.data.card import write_card
from lab.data.jsonl import read_pairs, write_records
from lab.feedback.agreement import label_card, relabel
from lab.feedback.constitution import comparison, drawn
from lab.feedback.pool import carried, copy_rest
from lab.feedback.truth import margins
from lab.models import parameter_count, pick_device
from lab.records import Ledger, Pair
from lab.rewards import load_reward
from lab.rewards.held_out import sides
from lab.rewards.judge import (
    EndpointJudgeBackend,
    JudgeReward,
    LocalJudgeBackend,
    Orders,
    WorldJudgeBackend,
    compare_ids,
)
from lab.store import Context, StageResult

CHUNK = 64
"""Pairs asked between two writes. Part of the recipe: the last bits of a verdict may depend on its batch."""


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``judge`` (JudgeConfig), ``annotator`` (the labels' name), ``gold`` ("world", "verifier" or null: the
    truth is not known), ``constitution`` (ConstitutionConfig or null), ``seed``. Inputs: "pairs" (a preference
    artifact), what the judge needs, and "taught" (the preference artifact that a trained judge learnt from).

    Writes a preference artifact: ``pairs.jsonl`` as the judge states them (strength: |log-odds|), the pool's other
    files, ``verdicts.jsonl`` (P(chosen first) in both orders, as asked) and ``card.json`` (``feedback.agreement``).
    The ledger says what these labels cost from the policy on: the pool's completions, the labels that the judge learnt
    from, its training, and two questions a pair. Raises ValueError if the judge answers no pair.
    """
    pairs = read_pairs(inputs["pairs"] / "pairs.jsonl")
    judge = load_reward(
        {"kind": "judge", "judge": config["judge"], "scale": 1.0},
        inputs,
        pick_device(context.resources.get("device", "auto")),
    )
    assert isinstance(judge, JudgeReward)
    constitution = config.get("constitution")
    asker = _Asker(judge, build(ConstitutionConfig, constitution) if constitution else None, config["seed"])
    context.scratch.mkdir(parents=True, exist_ok=True)
    known = read_verdicts(context.scratch / "verdicts.jsonl", pairs)
    resumed = f"{len(known)} of {len(pairs)} pairs" if known else None
    with open(context.scratch / "verdicts.jsonl", "a", encoding="utf-8") as file:
        for start in range(len(known), len(pairs), CHUNK):
            some = asker.ask(pairs[start : start + CHUNK])
            for pair, forward, backward in zip(pairs[start:], some.forward, some.backward, strict=False):
                line = {"prompt": pair.prompt.id, "forward": _plain(forward), "backward": _plain(backward)}
                file.write(json.dumps(line) + "\n")
                known.append((forward, backward))
            file.flush()
            os.fsync(file.fileno())
            context.progress(len(known), len(pairs), "pairs")
    shutil.copyfile(context.scratch / "verdicts.jsonl", out / "verdicts.jsonl")

    orders = Orders(*np.array(known, dtype=np.float64).reshape(-1, 2).T)
    labelled = relabel(pairs, orders.first, config["annotator"])
    if not labelled:
        raise ValueError(
            f"{inputs['pairs'] / 'pairs.jsonl'}: the judge has no verdict on any of the {len(pairs)} pairs"
        )
    write_records(out / "pairs.jsonl", labelled)
    copy_rest(inputs["pairs"], out)
    taught = read_pairs(inputs["taught"] / "pairs.jsonl") if "taught" in inputs else []
    card = label_card(pairs, orders.first, margins(pairs, config["gold"]), frozenset(one.prompt.id for one in taught))
    card |= {"annotator": config["annotator"], **orders.report(), "taught_pairs": len(taught)}
    write_card(out, card, "Pairs labelled by a judge")

    learnt = carried(inputs["taught"]).preference_labels if "taught" in inputs else 0
    pool = dataclasses.replace(carried(inputs["pairs"]), preference_labels=learnt, wall_seconds=0.0)
    trained = dataclasses.replace(carried(inputs["judge"]), wall_seconds=0.0) if "judge" in inputs else Ledger()
    own = Ledger(judge_calls=2 * len(pairs), sampling_flops=asking_flops(judge, pairs))
    flat = {key: card[key] for key in ("asked", "unanswered", "undecided", "pairs", "position_bias", "inconsistent")}
    agreed = card["agreement_with_gold"]
    metrics = flat | {"agreement": agreed["share"], "agreement_low": agreed["low"], "agreement_high": agreed["high"]}
    return StageResult(pool + trained + own, metrics, resumed)


class _Asker:
    """Puts comparisons to a judge, each under its principle where there is a constitution."""

    def __init__(self, judge: JudgeReward, constitution: ConstitutionConfig | None, seed: int) -> None:
        self.judge, self.constitution, self.seed = judge, constitution, seed
        if constitution is not None and not isinstance(judge.backend, LocalJudgeBackend | EndpointJudgeBackend):
            raise ValueError("feedback.constitution: this judge reads no principles")

    def ask(self, pairs: Sequence[Pair]) -> Orders:
        """Both orders of N comparisons, chosen against rejected as they stand."""
        if self.constitution is None:
            return self.judge.orders(*sides(pairs))
        forward, backward = np.full(len(pairs), np.nan), np.full(len(pairs), np.nan)
        for rows in self._by_principle(pairs):
            found = self.judge.orders(*sides([pairs[row] for row in rows]))
            forward[rows], backward[rows] = found.forward, found.backward
        return Orders(forward, backward)

    def _by_principle(self, pairs: Sequence[Pair]) -> Iterator[list[int]]:
        """Row numbers that share a principle, the judge's question set to it."""
        backend, constitution = self.judge.backend, self.constitution
        assert constitution is not None
        assert isinstance(backend, LocalJudgeBackend | EndpointJudgeBackend)
        meant = []
        for row, pair in enumerate(pairs):
            (principle,) = drawn(constitution, 1, self.seed, pair.prompt.id, *sorted((pair.chosen, pair.rejected)))
            meant.append((principle.id, row, principle))
        for _, group in groupby(sorted(meant, key=lambda one: one[:2]), key=lambda one: one[0]):
            rows = list(group)
            backend.templates = comparison(rows[0][2])
            yield [row for _, row, _ in rows]


def read_verdicts(path: Path, pairs: Sequence[Pair]) -> list[tuple[float, float]]:
    """The verdicts that an interrupted run left, in whole chunks; what is behind them is cut off the file.

    Raises ValueError if they are of other pairs.
    """
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be half a line
    whole = len(lines) if len(lines) == len(pairs) else len(lines) // CHUNK * CHUNK
    rows = [json.loads(line) for line in lines[:whole]]
    for number, (row, pair) in enumerate(zip(rows, pairs, strict=False), 1):
        if row["prompt"] != pair.prompt.id:
            raise ValueError(f"{path}:{number}: a verdict on prompt {row['prompt']}, expected {pair.prompt.id}")
    path.write_text("".join(line + "\n" for line in lines[:whole]), encoding="utf-8")
    return [tuple(np.nan if row[key] is None else row[key] for key in ("forward", "backward")) for row in rows]  # type: ignore[misc]


def asking_flops(judge: JudgeReward, pairs: Sequence[Pair]) -> float:
    """What a judge on this machine computed to compare ``pairs`` in both orders; 0 for one behind an endpoint."""
    backend = judge.backend
    prompts, first, second = sides(pairs)
    match backend:
        case WorldJudgeBackend():
            read = sum(map(len, compare_ids(backend.tokenizer, backend.markers, prompts, first, second)))
        case LocalJudgeBackend():
            questions = backend.comparisons(prompts, first, second)
            read = sum(map(len, backend.tokenizer(questions)["input_ids"]))
        case _:
            return 0.0
    return forward_flops(parameter_count(backend.model), 2 * read)


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)

"""A reward source on a benchmark's items: every completion scored once, every result with an interval."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from lab.artifact import finite
from lab.benchmarks.items import Item, read_items, with_pairs, write_scores
from lab.benchmarks.scoring import OVERALL, check_scores, score_table, unscored, words
from lab.models import pick_device
from lab.records import Completion, Ledger
from lab.rewards import PairwiseSource, RewardSource, load_reward
from lab.store import Context, StageResult


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``reward`` (RewardConfig). Inputs: "items" (a benchmark set), and what the source needs.

    Writes ``scores.parquet`` (a row a completion), ``results.json`` (benchmark -> half -> part -> score, interval and
    "longer wins"; the same items also as pairs, named "<benchmark> pairs"), and for a source that compares directly
    ``pairs.parquet`` (P(chosen is better)) with its results under "pairwise".

    What a verifier or a judge cannot score leaves its subset out, counted under "unscored". Raises ValueError, naming
    the item, if any other source gives a NaN, or any source an infinity.
    """
    items = read_items(inputs["items"] / "items.jsonl")
    source = load_reward(config["reward"], inputs, pick_device(context.resources.get("device", "auto")))
    abstains = may_abstain(config["reward"])
    context.progress(0, 1, f"{len(items)} items")
    begun = time.perf_counter()
    scores = _scores(source, items)
    seconds = time.perf_counter() - begun
    check_scores(items, scores, abstains)
    write_scores(out / "scores.parquet", items, scores)
    every, with_their_scores = with_pairs(items, scores)
    table = score_table(every, {"score": [with_their_scores]}, may_abstain=abstains)
    results: dict[str, Any] = {"scores": _nested(table), "unscored": unscored(items, scores)}
    count = sum(len(item.completions) for item in items)
    metrics = {
        "items": len(items),
        "scores": count,
        "unscored_items": int(sum(np.isnan(one).any() for one in scores)),
        "seconds_per_1000": 1000 * seconds / count,
        "overall": _overall(table),
    }
    if isinstance(source, PairwiseSource):
        pairs = [item for item in every if item.kind == "pair"]
        begun = time.perf_counter()
        preferences = _preferences(source, pairs)
        metrics["seconds_per_1000_comparisons"] = 1000 * (time.perf_counter() - begun) / len(pairs)
        _write_preferences(out / "pairs.parquet", pairs, preferences)
        sides = [np.array([preferred, 1 - preferred]) for preferred in preferences]
        compared = score_table(pairs, {"pairwise": [sides]}, may_abstain=abstains)
        results |= {"pairwise": _nested(compared), "pairwise_unscored": unscored(pairs, sides)}
        metrics["pairwise_overall"] = _overall(compared)
    (out / "results.json").write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    context.progress(1, 1)
    return StageResult(Ledger(), metrics)


def may_abstain(reward: Mapping[str, Any]) -> bool:
    """Whether a NaN of this source (a plain RewardConfig) means "cannot score": verifiers without a rule, judges
    without a verdict, mixtures of those. From any other source it is a fault."""
    if reward["kind"] == "mixture":
        return any(may_abstain(part["reward"]) for part in reward["parts"].values())
    return reward["kind"] in ("verifier", "judge")


def _scores(source: RewardSource, items: Sequence[Item]) -> list[np.ndarray]:
    """One array an item. A completion that occurs in several items under one prompt is scored once; the length in the
    source's own tokens is not known here, so it is counted in words."""
    asked = list(dict.fromkeys((item.prompt.text, text) for item in items for text in item.completions))
    prompts = {item.prompt.text: item.prompt for item in items}
    found = source.score([prompts[prompt] for prompt, _ in asked], [_completion(prompts[p].id, t) for p, t in asked])
    known = dict(zip(asked, np.asarray(found, dtype=np.float64), strict=True))
    return [np.array([known[item.prompt.text, text] for text in item.completions]) for item in items]


def _preferences(source: PairwiseSource, pairs: Sequence[Item]) -> np.ndarray:
    """(N,) P(the chosen completion is better), averaged over both orders; NaN without a verdict."""
    prompts = [pair.prompt for pair in pairs]
    chosen = [_completion(pair.prompt.id, pair.chosen[0]) for pair in pairs]
    rejected = [_completion(pair.prompt.id, pair.rejected[0]) for pair in pairs]
    return np.asarray(source.compare(prompts, chosen, rejected), dtype=np.float64)


def _completion(prompt_id: str, text: str) -> Completion:
    return Completion(prompt_id, 0, text, words(text))


def _write_preferences(path: Path, pairs: Sequence[Item], preferences: np.ndarray) -> None:
    table = pa.table(
        {
            "benchmark": [pair.benchmark for pair in pairs],
            "item": [pair.id for pair in pairs],
            "preference": pa.array(preferences, type=pa.float64(), from_pandas=True),
        }
    )
    pq.write_table(table, path, compression="zstd")


def _nested(table: pd.DataFrame) -> dict[str, Any]:
    """benchmark -> half -> part -> numbers, None where there is none."""
    nested: dict[str, Any] = {}
    for row in table.drop(columns=["model", "seeds"]).to_dict("records"):
        parts = nested.setdefault(row.pop("benchmark"), {}).setdefault(row.pop("half"), {})
        part = row.pop("part")
        parts[part] = finite(row)
    return nested


def _overall(table: pd.DataFrame) -> dict[str, float | None]:
    """benchmark -> overall score on all its items."""
    rows = table[(table["part"] == OVERALL) & (table["half"] == "all")]
    return {str(name): finite(float(score)) for name, score in zip(rows["benchmark"], rows["score"], strict=True)}

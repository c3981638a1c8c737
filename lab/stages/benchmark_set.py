"""A benchmark of reward models as an artifact: its items, from the embedded world, a local file or the Hub."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lab.benchmarks.items import Item, write_items
from lab.benchmarks.readers import Loaded, digest, from_hub, read_benchmark
from lab.benchmarks.scoring import longest_is_right, words
from lab.data.card import write_card
from lab.records import Ledger
from lab.store import Context, StageResult


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config by ``kind``. world: ``per_domain``, ``seed``. file: ``name``, ``format`` (``lab.benchmarks.readers``) and
    ``digest`` of the file or folder, which comes as ``context.resources["path"]``. hub: ``name``, the Hub id.

    Writes ``items.jsonl`` and ``card.json`` (counts, rows dropped, lengths, and what "the longest completion is right"
    scores). Raises ValueError if the file is not the one that was planned, and as the readers.
    """
    match config["kind"]:
        case "world":
            from lab.world.benchmark import world_items

            loaded = Loaded(world_items(config["per_domain"], config["seed"]), {})
        case "file":
            if "path" not in context.resources:
                raise ValueError(f"benchmark {config['name']}: the step's resources name no path")
            path = Path(context.resources["path"])
            found = digest(path)
            if config["digest"] != found:
                raise ValueError(f"{path}: changed since the plan was made (SHA-256 {found[:12]}...)")
            loaded = read_benchmark(path, config["format"])
        case "hub":
            loaded = from_hub(config["name"])
        case other:
            raise ValueError(f"benchmark.kind: expected world, file or hub, got {other!r}")
    write_items(out / "items.jsonl", loaded.items)
    card = {"kind": config["kind"], "items": len(loaded.items), "dropped": loaded.dropped, **_card(loaded.items)}
    write_card(out, card, "Benchmark of reward models")
    context.progress(1, 1, f"{len(loaded.items)} items")
    return StageResult(Ledger(), card)


def _card(items: Sequence[Item]) -> dict[str, Any]:
    """For every benchmark and subset: counts, mean lengths, and the share of the longest completions that are right."""
    card: dict[str, Any] = {}
    for benchmark in dict.fromkeys(item.benchmark for item in items):
        of_benchmark = [item for item in items if item.benchmark == benchmark]
        subsets = dict.fromkeys(item.subset for item in of_benchmark)
        card[benchmark] = {
            subset: _summary([item for item in of_benchmark if item.subset == subset]) for subset in subsets
        }
    return {"benchmarks": card}


def _summary(items: Sequence[Item]) -> dict[str, Any]:
    def mean(value: Callable[[Item], float]) -> float:
        return round(float(np.mean([value(item) for item in items])), 4)

    return {
        "items": len(items),
        "hard": sum(item.hard for item in items),
        "prompts": len({item.prompt.text for item in items}),
        "chance": mean(lambda item: len(item.chosen) / len(item.completions)),
        "longer_wins": mean(longest_is_right),
        "longer_wins_words": mean(lambda item: longest_is_right(item, words)),
        "chosen_words": mean(lambda item: float(np.mean([words(text) for text in item.chosen]))),
        "rejected_words": mean(lambda item: float(np.mean([words(text) for text in item.rejected]))),
    }

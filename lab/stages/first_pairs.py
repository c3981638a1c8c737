"""The first pairs of a preference pool: what fewer of the annotator's labels buy, on the same completions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.data.card import write_card
from lab.data.jsonl import read_pairs, write_records
from lab.feedback.pool import carried, copy_rest
from lab.records import Pair
from lab.store import Context, StageResult


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``labels``, how many pairs to keep. Inputs: "pairs" (a preference artifact).

    Writes the same artifact with fewer training pairs. The ledger is the pool's with ``labels`` preference labels: what
    it cost to have these labels and no others. Raises ValueError if the pool has fewer pairs.
    """
    path = inputs["pairs"] / "pairs.jsonl"
    pairs = read_pairs(path)
    if len(pairs) < config["labels"]:
        raise ValueError(f"{path}: feedback.labels: {config['labels']} is more than the {len(pairs)} pairs there are")
    kept = pairs[: config["labels"]]
    write_records(out / "pairs.jsonl", kept)
    copy_rest(inputs["pairs"], out)
    card = {"pairs": len(kept), "of": len(pairs), "domains": domains(kept)}
    write_card(out, card, "The first pairs of a pool")
    spent = carried(inputs["pairs"])
    paid = min(spent.preference_labels, len(kept))
    return StageResult(dataclasses.replace(spent, preference_labels=paid, wall_seconds=0.0), card)


def domains(pairs: list[Pair]) -> dict[str, int]:
    """How many pairs there are of each domain."""
    return {name: sum(one.prompt.domain == name for one in pairs) for name in sorted({p.prompt.domain for p in pairs})}

"""Several preference pools as one: what an iterated pipeline has paid for so far."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.data.card import write_card
from lab.records import Ledger
from lab.store import Context, StageResult


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Inputs: "pairs-0", "pairs-1", ...: preference pools, the newest last. Config: empty.

    Writes all their training pairs and samples, the oldest first; held-out pairs and the reference completions, on
    which a reward model is measured and normalised, are those of the newest. Nothing is spent: the labels are paid.
    """
    pools = [inputs[name] for name in sorted(inputs, key=lambda name: int(name.removeprefix("pairs-")))]
    counts = []
    for name in ("pairs.jsonl", "samples.jsonl"):
        lines = [(pool / name).read_text(encoding="utf-8") for pool in pools if (pool / name).is_file()]
        (out / name).write_text("".join(lines), encoding="utf-8")
        if name == "pairs.jsonl":
            counts = [text.count("\n") for text in lines]
    for name in ("held_out.jsonl", "reference.jsonl"):
        shutil.copyfile(pools[-1] / name, out / name)
    card = {"pairs": sum(counts), "pools": counts}
    write_card(out, card, "Preference pools, put together")
    context.progress(1, 1)
    return StageResult(Ledger(), card)

"""A preference pool that somebody else made: pairs from a local file, in the shape of the lab's own pool."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.data.jsonl import write_records
from lab.data.preference_files import LoadedPairs, load_pairs, split_pairs
from lab.data.sources import file_digest
from lab.records import Ledger, Pair, Prompt, derive_seed
from lab.store import Context, StageResult

REFERENCE = 256
"""At most so many completions for a reward model to be normalised on."""
NAMED_ROWS = 20
"""The card names at most so many rows of a fault."""


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``format`` (``lab.data.preference_files``), ``digest`` (of the file, by ``file_digest``), ``held_out``
    (share of the prompts), ``limit`` (of the training pairs; 0: all), ``max_characters``, ``drop`` (faults), ``seed``.
    The file's path is no part of identity and comes as ``context.resources["path"]``, else as ``config["path"]``.

    Writes ``pairs.jsonl``, ``held_out.jsonl`` (as stated: there is no truth to correct it by), ``reference.jsonl``
    (chosen and rejected completions of training prompts, in place of SFT samples) and ``card.json``.
    Raises ValueError naming file and row, a file that is not the planned one, and a split with an empty side.
    """
    path = Path(context.resources.get("path") or config["path"])
    digest = file_digest(path) if path.is_file() else ""  # a wrong path is explained by the reader
    if digest and config.get("digest") not in (None, digest):
        raise ValueError(f"{path}: the file has changed since the plan was made (SHA-256 {digest[:12]}...)")
    context.progress(0, 1, path.name)
    loaded = load_pairs(path, config["format"], max_characters=config["max_characters"], drop=config.get("drop", ()))
    training, held_out = split_pairs(loaded.pairs, config["held_out"], config["seed"])
    for name, side in (("training", training), ("held-out", held_out)):
        if not side:
            raise ValueError(
                f"{path}: preferences.held_out: {config['held_out']} leaves no {name} pair of {len(loaded.pairs)}"
            )
    unused = len(training)
    training = training[: config["limit"] or None]
    unused -= len(training)

    write_records(out / "pairs.jsonl", training)
    write_records(out / "held_out.jsonl", held_out)
    write_records(out / "reference.jsonl", reference(training, config["seed"]))
    card = {
        "digest": digest,
        "format": config["format"],
        "rows": loaded.rows,
        "faults": _faults(loaded),
        "beyond_limit": unused,
        "training": describe(training),
        "held_out": describe(held_out),
    }
    (out / "card.json").write_text(json.dumps(card, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    context.progress(1, 1)
    metrics = {"rows": loaded.rows, "pairs": len(training), "held_out": len(held_out), "beyond_limit": unused,
               "longer_wins": card["held_out"]["longer_wins"]}  # fmt: skip
    return StageResult(Ledger(preference_labels=len(training)), metrics)


def reference(pairs: Sequence[Pair], seed: int) -> list[Pair]:
    """A sample of the pairs' completions, chosen and rejected alike, each once: a reward model's zero and unit."""
    texts: dict[tuple[str, str], Prompt] = {}
    for pair in pairs:
        for text in (pair.chosen, pair.rejected):
            texts[pair.prompt.text, text] = pair.prompt
    ranked = sorted(texts, key=lambda item: (derive_seed("reference", seed, *item), item))
    return [Pair(texts[item], item[1], item[1], "reference") for item in ranked[:REFERENCE]]


def describe(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Counts, lengths in characters, and how often the longer completion was chosen (a tie is a miss, and counted)."""
    longer = [len(pair.chosen) - len(pair.rejected) for pair in pairs]
    return {
        "pairs": len(pairs),
        "prompts": len({pair.prompt.id for pair in pairs}),
        "longer_wins": sum(difference > 0 for difference in longer) / len(pairs),
        "equal_lengths": sum(difference == 0 for difference in longer),
        "characters": {
            "prompt": _spread([len(pair.prompt.text) for pair in pairs]),
            "chosen": _spread([len(pair.chosen) for pair in pairs]),
            "rejected": _spread([len(pair.rejected) for pair in pairs]),
        },
    }


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    return {
        "minimum": min(lengths),
        "median": statistics.median(lengths),
        "mean": round(statistics.fmean(lengths), 1),
        "maximum": max(lengths),
    }


def _faults(loaded: LoadedPairs) -> dict[str, Any]:
    return {
        name: {
            "count": len(fault.rows),
            "rows": list(fault.rows[:NAMED_ROWS]),
            "policy": "drop" if fault.dropped else "refuse" if name == "diverging" else "keep",
        }
        for name, fault in loaded.faults.items()
    }

"""A data artifact again, without the training rows that overlap with evaluation sets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.artifact import MANIFEST
from lab.data.card import FILES, read_card, write_card
from lab.data.jsonl import read_rows, write_rows
from lab.data.overlap import EvaluationIndex, prompt_texts
from lab.records import Ledger
from lab.store import Context, StageResult

EVALUATION = "evaluation."
"""What the names of the inputs that are evaluation sets begin with."""


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``files`` (of the input "training", whose rows are filtered), ``drop`` (kinds of overlap: exact, near),
    ``evaluation`` (name of a set -> its file), ``threshold``, ``width``, ``permutations``. Inputs: "training", and
    "evaluation.NAME" for every set.

    Writes every file of "training" under its own name, the named ones without their overlapping rows and all others
    unchanged, and ``overlap.json`` with what was found in each. ``card.json`` stays the data's own, with
    "decontaminated" added. Raises ValueError if nothing of a file is left.
    """
    index = EvaluationIndex(
        {name: prompt_texts(inputs[EVALUATION + name] / file) for name, file in config["evaluation"].items()},
        threshold=config["threshold"],
        width=config["width"],
        permutations=config["permutations"],
    )
    folder, found, dropped = inputs["training"], {}, {}
    for done, file in enumerate(config["files"], 1):
        overlap = index.compare(prompt_texts(folder / file))
        left_out = overlap.overlapping(config["drop"])
        if len(left_out) == overlap.rows:
            raise ValueError(
                f"{folder / file}: all {overlap.rows} rows overlap with an evaluation set: nothing is left"
            )
        rows = (row for number, (_, row) in enumerate(read_rows(folder / file)) if number not in left_out)
        kept = write_rows(out / file, rows)
        found[file] = overlap.report()
        dropped[file] = {"rows": overlap.rows, "kept": kept, "dropped": len(left_out)}
        context.progress(done, len(config["files"]), file)
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name not in (*config["files"], MANIFEST, *FILES, "overlap.json"):
            shutil.copyfile(path, out / path.name)
    card = read_card(folder)
    card["decontaminated"] = {"drop": list(config["drop"]), "files": dropped}
    write_card(out, card, "Data without what overlaps")
    (out / "overlap.json").write_text(
        json.dumps({"training": found}, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
    return StageResult(Ledger(), {"dropped": {file: one["dropped"] for file, one in dropped.items()}})

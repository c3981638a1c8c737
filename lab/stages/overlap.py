"""How much of every training set is in the evaluation sets: measured here, before anything is trained.

The policy (refuse, drop, report) is no part of this step: what is found is stored whatever becomes of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.data.overlap import EvaluationIndex, prompt_texts
from lab.records import Ledger
from lab.store import Context, StageResult

TRAINING, EVALUATION = "training.", "evaluation."
"""What the names of the inputs begin with; the rest is the name of the set."""


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``training`` and ``evaluation`` (name of a set -> its file in that input), ``threshold``, ``width``,
    ``permutations``. Inputs: "training.NAME" and "evaluation.NAME" for every set.

    Writes ``overlap.json``: for every training set its rows, its own duplicates, and for every evaluation set how many
    rows are exact copies or near, of how many of its prompts, with examples. Raises ValueError for a file without rows.
    """
    index = EvaluationIndex(
        {name: prompt_texts(inputs[EVALUATION + name] / file) for name, file in config["evaluation"].items()},
        threshold=config["threshold"],
        width=config["width"],
        permutations=config["permutations"],
    )
    report: dict[str, Any] = {
        "threshold": config["threshold"],
        "width": config["width"],
        "permutations": config["permutations"],
        "recall_at_threshold": index.recall,
        "evaluation": {name: len(members) for name, members in index.sets.items()},
        "training": {},
    }
    totals = {"rows": 0, "exact": 0, "near": 0, "duplicates": 0}
    for done, (name, file) in enumerate(config["training"].items(), 1):
        overlap = index.compare(prompt_texts(inputs[TRAINING + name] / file))
        found = report["training"][name] = overlap.report()
        totals = {key: count + found[key] for key, count in totals.items()}
        context.progress(done, len(config["training"]), name)
    (out / "overlap.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return StageResult(Ledger(), totals)

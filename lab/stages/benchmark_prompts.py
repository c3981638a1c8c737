"""The prompts of a benchmark that models' completions make: unseen ones, checked against what was trained on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.benchmarks.building import Limits, select
from lab.benchmarks.building_files import read_prompt_file, read_training_prompts
from lab.data.card import write_card
from lab.data.jsonl import write_records
from lab.data.overlap import EvaluationIndex, jaccard, normalise, shingles
from lab.data.sources import file_digest
from lab.records import Ledger, Prompt
from lab.store import Context, StageResult
from lab.world.unseen import Unseen, unseen_prompts

MEASURED = ("evaluation", "tuning")
"""Splits that policies are measured by: no training reads them, and a benchmark should not repeat them either."""

WIDTH = 3
PERMUTATIONS = 128


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``kind`` world (``per_domain``, ``seed``) or file (``digest`` of the file in ``context.resources
    ["path"]``); ``limits`` (Limits); ``near_duplicates`` (Jaccard similarity of word 3-grams, 1: only exact repeats);
    ``against``: digests of the files of training prompts in ``context.resources["against"]``.
    Inputs: data artifacts, whatever their names: every split in them is checked.

    Writes ``prompts.jsonl``, ``groups.json`` (id of a Ties prompt -> its group and side) and ``card.json``: the funnel
    by domain, why prompts went, how many training texts they were compared with.
    Raises ValueError if a file is not the one that was planned, or no prompt is left.
    """
    drawn = _drawn(config, context)
    kept, dropped = select([one.prompt for one in drawn], Limits(**config["limits"]))
    funnel = {"prompts": _domains(one.prompt for one in drawn), "suitable": _domains(kept)}
    context.progress(1, 3, f"{len(kept)} prompts")
    training, measured = seen_in(kept, _sources(config, inputs, context), config["near_duplicates"])
    unseen = [prompt for prompt in kept if prompt.id not in training.exact]
    clean = [prompt for prompt in unseen if prompt.id not in training.near | measured.exact]
    funnel |= {"unseen": _domains(unseen), "clean": _domains(clean)}
    if not clean:
        raise ValueError(
            f"benchmark: none of {len(drawn)} prompts is left: {json.dumps(dict(dropped))}, {len(training.exact)} in "
            f"training, {len(training.near)} near one there, {len(measured.exact)} in evaluations"
        )
    write_records(out / "prompts.jsonl", clean)
    ids = {prompt.id for prompt in clean}
    groups = {one.prompt.id: [one.group, one.side] for one in drawn if one.group is not None and one.prompt.id in ids}
    (out / "groups.json").write_text(json.dumps(groups) + "\n", encoding="utf-8")
    card = {
        "funnel": funnel,
        "dropped": {
            **dropped,
            "in training": len(training.exact),
            "near a training prompt": len(training.near - training.exact),
            "in an evaluation": len(measured.exact - training.exact - training.near),
        },
        "compared_with": {"training": training.texts, "evaluation": measured.texts},
        "near_duplicates": config["near_duplicates"],
    }
    write_card(out, card, "Prompts for a benchmark")
    context.progress(3, 3)
    return StageResult(Ledger(), {"prompts": len(clean), **card["dropped"]})


def _drawn(config: Mapping[str, Any], context: Context) -> list[Unseen]:
    match config["kind"]:
        case "world":
            return unseen_prompts(config["per_domain"], config["seed"])
        case "file":
            path = Path(context.resources["path"])
            check_digest(path, config["digest"])
            return read_prompt_file(path)
        case other:
            raise ValueError(f"benchmark_prompts.kind: expected world or file, got {other!r}")


def check_digest(path: Path, planned: str) -> None:
    """Raises ValueError if the file is not the one that was planned."""
    found = file_digest(path)
    if found != planned:
        raise ValueError(f"{path}: changed since the plan was made (SHA-256 {found[:12]}...)")


def _domains(prompts: Iterable[Prompt]) -> dict[str, int]:
    return dict(Counter(prompt.domain for prompt in prompts))


# ---------------------------------------------------------------- what was trained on


def _sources(
    config: Mapping[str, Any], inputs: Mapping[str, Path], context: Context
) -> Iterator[tuple[bool, Sequence[str]]]:
    """(whether training reads it, prompt texts) of every split of every input and every file."""
    for folder in inputs.values():
        for path in sorted(folder.glob("*.jsonl")):
            yield path.stem not in MEASURED, read_training_prompts(path)
    for path, digest in zip(context.resources.get("against", ()), config["against"], strict=True):
        check_digest(Path(path), digest)
        yield True, read_training_prompts(Path(path))


class Seen:
    """Prompts (ids) that equal one of the texts, after ``normalise``, or are near one; and how many different texts
    there were."""

    def __init__(self) -> None:
        self.exact: set[str] = set()
        self.near: set[str] = set()
        self.texts = 0


def seen_in(prompts: Sequence[Prompt], sources: Iterable[tuple[bool, Sequence[str]]], near: float) -> tuple[Seen, Seen]:
    """Which prompts were seen in training, and which in evaluations. ``near``: from which similarity a prompt is near a
    training text (1: none is)."""
    owners: dict[str, set[str]] = {}
    for prompt in prompts:
        owners.setdefault(normalise(prompt.text), set()).add(prompt.id)
    index = None
    if near < 1:
        index = EvaluationIndex({"prompts": list(owners)}, threshold=near, width=WIDTH, permutations=PERMUTATIONS)
    training, measured = Seen(), Seen()
    known: dict[bool, set[str]] = {True: set(), False: set()}
    close: set[int] = set()
    for trains, texts in sources:
        for text in {normalise(text) for text in texts} - known[trains]:
            known[trains].add(text)
            (training if trains else measured).exact |= owners.get(text, set())
            if trains and index is not None:
                own = shingles(text, WIDTH)
                for other in index.candidates(own):
                    if other not in close and jaccard(own, index.shingles[other]) >= near:
                        close.add(other)
    if index is not None:
        training.near = set().union(*(owners[index.texts[number]] for number in close))
    training.texts, measured.texts = len(known[True]), len(known[False])
    return training, measured

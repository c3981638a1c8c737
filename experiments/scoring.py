"""What it costs to score: the forward passes of reward models over what a step has sampled.

A stage's own ledger holds its training and sampling. Its reward models' passes are added here, from the artifacts: the
same for every step in the store, whoever built it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from lab.costs import forward_flops
from lab.plan import Step
from lab.records import Ledger
from lab.store import Store

if TYPE_CHECKING:
    import pandas as pd

NOT_SCORERS = ("sft", "prompts", "reference", "pool", "normalisation")
"""Inputs of the steps that sample and score which are no reward model."""

TABLES = ("embed_tokens", "lm_head", "wte", "word_embeddings")
"""Parts of a parameter's name that say that it is a token table, which costs no FLOPs (``lab.costs``)."""


def charged(store: Store, step: Step) -> Ledger:
    """What a finished step spent, its wall time and the scoring of its samples included.

    One pass of each reward model over prompt and completion, 2 N FLOPs a token (Kaplan et al. 2020), by the tokens of
    the step's own tokenizer; sources that are only watched score for nobody and are left out.
    """
    manifest = store.manifest(step.key)
    spent = Ledger(**manifest["ledger"])
    tokens = spent.prompt_tokens + spent.generated_tokens
    scoring = 0.0
    for one in _scorers(step):
        store.manifest(one.key)  # raises if it is gone; no need to verify gigabytes for the sake of their headers
        scoring += forward_flops(_parameters(store.path(one.key) / "final"), tokens)
    return dataclasses.replace(
        spent, sampling_flops=spent.sampling_flops + scoring, wall_seconds=manifest["duration_seconds"]
    )


def with_scoring(rows: pd.DataFrame, spent_by: Mapping[str, Step], store: Store) -> pd.DataFrame:
    """``rows`` with the scoring in ``training_flops``, which counts all FLOPs up to a checkpoint.

    ``spent_by``: ``run`` of the rows -> the step that spent them. Scoring grows with the tokens that are sampled, as
    all that an online step spends: its share is the same at every checkpoint.
    """
    rows = rows.copy()
    for run, step in spent_by.items():
        own = Ledger(**store.manifest(step.key)["ledger"])
        before, after = (one.training_flops + one.sampling_flops for one in (own, charged(store, step)))
        if after > before:
            rows.loc[rows.run == run, "training_flops"] *= after / before
    return rows


def _scorers(step: Step) -> Iterator[Step]:
    """The models that score what ``step`` samples."""
    match step.kind:
        case "online" | "rejection":
            kind = (step.config.get("reward") or {}).get("kind")
            for name, made in step.inputs.items():
                critic_alone = name == "reward_model" and kind != "classifier"
                if name not in NOT_SCORERS and not name.startswith("watch-") and not critic_alone:
                    yield made
        case "best_of_n":
            yield from (made for name, made in step.inputs["scores"].inputs.items() if name not in NOT_SCORERS)


def _parameters(folder: Path) -> int:
    """Parameters of the checkpoint in ``folder``, token tables left out, by the headers of its files."""
    from safetensors import safe_open

    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                if not any(part in name for part in TABLES):
                    count += math.prod(file.get_slice(name).get_shape())
    return count

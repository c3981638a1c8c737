"""A round of critique and revision under a constitution (Bai et al. 2022, arXiv 2212.08073, section 3).

The drafts are completions of the preference pool. Each meets its principles one after another, in an order drawn for
its prompt; the answer after the last is a demonstration, and draft and answer are a pair. What was asked and answered
is written as it comes (``steps.jsonl``), and a run that was cut off goes on behind the last whole chunk.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lab.config import RevisionConfig, WorldReviser, build
from lab.costs import forward_flops
from lab.data.card import write_card
from lab.data.jsonl import read_samples, write_records
from lab.feedback.constitution import drawn
from lab.feedback.gains import gains, principle_lines
from lab.feedback.pool import carried, copy_rest
from lab.feedback.revisers import Reviser, WorldReviserBackend, WrittenReviserBackend
from lab.feedback.truth import truth
from lab.feedback.world_editor import breaks
from lab.models import pick_device
from lab.records import Completion, Demonstration, Ledger, Pair, Prompt, derive_seed
from lab.store import Context, StageResult

CHUNK, WRITTEN_CHUNK = 128, 16
"""Drafts between two writes: of the world's reviser, and of one that writes at length. Part of the recipe: the last
bits of a model's logits may depend on its batch."""

Draft = tuple[Prompt, Completion]


@dataclass(frozen=True)
class Applied:
    """One draft after one principle: a line of ``steps.jsonl``."""

    prompt: str
    draft: int
    round: int
    principle: int
    critique: str
    text: str
    truncated: bool
    outcome: str


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``revision`` (RevisionConfig), ``gold`` ("world" or "verifier"), ``seed``. Inputs: "pairs" (a preference
    artifact, whose samples are the drafts), "reviser" (of stage ``reviser``, or any policy that reads).

    Writes ``sft.jsonl`` (the answers as demonstrations, those cut off left out), a preference artifact whose pairs put
    the revision over the draft (unlabelled: what differs), ``steps.jsonl`` and ``card.json``: gold before and after
    with intervals, by round, domain and principle. The ledger says what the revisions cost from the policy on.
    Raises ValueError if there are no drafts, if no draft was changed, or if every answer was cut off.
    """
    settings = build(RevisionConfig, config["revision"], "feedback.revision")
    device = pick_device(context.resources.get("device", "auto"))
    drafts = pick_drafts(read_samples(inputs["pairs"] / "samples.jsonl"), settings.drafts_per_prompt)
    if not drafts:
        raise ValueError(f"{inputs['pairs'] / 'samples.jsonl'}: no drafts to revise")
    world = isinstance(settings.reviser, WorldReviser)
    limits = settings.max_new_tokens, settings.temperature
    reviser: Reviser
    if world:
        reviser = WorldReviserBackend(inputs["reviser"], device, *limits)
    else:
        dtype = context.resources.get("dtype", "float32")
        reviser = WrittenReviserBackend(inputs["reviser"] / "final", device, dtype, *limits)
    context.scratch.mkdir(parents=True, exist_ok=True)
    kept = context.scratch / "steps.jsonl"
    steps, spent = read_steps(kept, len(drafts), settings.rounds)
    resumed = f"{len(steps) // settings.rounds} of {len(drafts)} drafts" if steps else None
    with open(kept, "a", encoding="utf-8") as file:
        chunk = CHUNK if world else WRITTEN_CHUNK
        for start in range(len(steps) // settings.rounds, len(drafts), chunk):
            before = reviser.read, reviser.generated
            some = revise_chunk(reviser, drafts[start : start + chunk], settings, config["seed"])
            steps += some
            tokens = {"read": reviser.read - before[0], "generated": reviser.generated - before[1]}
            spent = {name: spent[name] + count for name, count in tokens.items()}
            for one in some:
                file.write(json.dumps(dataclasses.asdict(one)) + "\n")
            file.write(json.dumps(tokens) + "\n")
            file.flush()
            os.fsync(file.fileno())
            context.progress(min(start + chunk, len(drafts)), len(drafts), "drafts")

    rounds = by_round(steps, len(drafts), settings.rounds)
    final = rounds[-1]
    changed = [
        Pair(prompt, one.text, draft.text, f"constitution {settings.constitution.name}", one.truncated, draft.truncated)
        for (prompt, draft), one in zip(drafts, final, strict=True)
        if one.text != draft.text
    ]
    if not changed:
        raise ValueError(f"feedback.revision.reviser: none of the {len(drafts)} drafts was changed by a revision")
    whole = [(prompt, one) for (prompt, _), one in zip(drafts, final, strict=True) if not one.truncated]
    if not whole:
        raise ValueError(f"feedback.revision.max_new_tokens: all {len(drafts)} answers were cut off")
    write_records(out / "sft.jsonl", [Demonstration(prompt, one.text) for prompt, one in whole])
    write_records(out / "pairs.jsonl", changed)
    copy_rest(inputs["pairs"], out)
    shutil.copyfile(kept, out / "steps.jsonl")
    card = describe(drafts, rounds, config["gold"], world, settings)
    card |= {"demonstrations": len(whole), "pairs": len(changed)}
    write_card(out, card, "Answers revised under a constitution")

    own = Ledger(
        prompt_tokens=spent["read"],
        generated_tokens=spent["generated"],
        sampling_flops=forward_flops(reviser.parameters, spent["read"] + spent["generated"]),
    )
    pool = dataclasses.replace(carried(inputs["pairs"]), preference_labels=0)
    total = dataclasses.replace(pool + (carried(inputs["reviser"]) if world else Ledger()) + own, wall_seconds=0.0)
    metrics = {name: card[name] for name in ("drafts", "demonstrations", "pairs", "outcomes")}
    points = card["gold"]["points"]
    if points:
        metrics |= {"gold_before": points[0]["gold"]["mean"], "gold_after": points[-1]["gold"]["mean"]}
    return StageResult(total, metrics, resumed)


def pick_drafts(samples: Sequence[Draft], per_prompt: int) -> list[Draft]:
    """The first ``per_prompt`` different, not empty completions of each prompt, in the order in which they came."""
    found: dict[str, dict[str, Draft]] = {}
    for prompt, one in samples:
        own = found.setdefault(prompt.id, {})
        if one.text.strip() and len(own) < per_prompt:
            own.setdefault(one.text, (prompt, one))
    return [draft for own in found.values() for draft in own.values()]


def revise_chunk(reviser: Reviser, drafts: Sequence[Draft], settings: RevisionConfig, seed: int) -> list[Applied]:
    """All rounds of some drafts, draft by draft. Every draft is revised by itself: its chunk does not matter."""
    prompts, current = [prompt for prompt, _ in drafts], [one for _, one in drafts]
    orders = [drawn(settings.constitution, settings.rounds, seed, prompt.id, one.sample) for prompt, one in drafts]
    applied: list[list[Applied]] = [[] for _ in drafts]
    for turn in range(settings.rounds):
        meant = [order[turn] for order in orders]
        seeds = [derive_seed("revise", seed, prompt.id, one.sample, turn) for prompt, one in drafts]
        for row, (found, principle) in enumerate(
            zip(reviser.revise(prompts, current, meant, seeds), meant, strict=True)
        ):
            prompt, draft = drafts[row]
            applied[row].append(
                Applied(prompt.id, draft.sample, turn, principle.id, found.critique, found.text, found.truncated,
                        found.outcome)
            )  # fmt: skip
            current[row] = dataclasses.replace(
                current[row], text=found.text, truncated=found.truncated, length=len(found.text.split())
            )
    return [one for own in applied for one in own]


def read_steps(path: Path, drafts: int, rounds: int) -> tuple[list[Applied], dict[str, int]]:
    """What an interrupted run left, in whole chunks, and the tokens spent on it; the rest is cut off the file.

    A chunk is whole if the line that counts its tokens is there.
    """
    spent = {"read": 0, "generated": 0}
    if not path.is_file():
        return [], spent
    lines = path.read_text(encoding="utf-8").split("\n")[:-1]  # the last may be half a line
    rows = [json.loads(line) for line in lines]
    ends = [number for number, row in enumerate(rows) if "read" in row]
    whole = ends[-1] + 1 if ends else 0
    path.write_text("".join(line + "\n" for line in lines[:whole]), encoding="utf-8")
    for number in ends:
        spent = {name: spent[name] + rows[number][name] for name in spent}
    steps = [Applied(**row) for row in rows[:whole] if "read" not in row]
    if len(steps) % rounds or len(steps) > drafts * rounds:
        raise ValueError(f"{path}: {len(steps)} steps are not those of {drafts} drafts in {rounds} rounds")
    return steps, spent


def by_round(steps: Sequence[Applied], drafts: int, rounds: int) -> list[list[Applied]]:
    """[round][draft], from steps that stand draft by draft."""
    return [[steps[draft * rounds + turn] for draft in range(drafts)] for turn in range(rounds)]


def describe(
    drafts: Sequence[Draft], rounds: Sequence[Sequence[Applied]], gold: str, world: bool, settings: RevisionConfig
) -> dict[str, Any]:
    """Outcomes, gold before and after (``feedback.gains``), and each principle's share in it."""
    source = truth(gold)
    prompts = [prompt for prompt, _ in drafts]
    texts = [[one for _, one in drafts]]
    for applied in rounds:
        texts.append([_answer(draft, one) for (_, draft), one in zip(drafts, applied, strict=True)])
    utilities = [np.asarray(source.score(prompts, completions), dtype=np.float64) for completions in texts]
    attribute = {one.id: one.attribute for one in settings.constitution.principles}
    steps = [one for applied in rounds for one in applied]
    broken = [
        breaks(prompt, before, attribute[one.principle]) if world else None
        for turn, applied in enumerate(rounds)
        for prompt, before, one in zip(prompts, texts[turn], applied, strict=True)
    ]
    outcomes = [one.outcome for one in steps]
    return {
        "constitution": settings.constitution.name,
        "drafts": len(drafts),
        "rounds": len(rounds),
        "outcomes": {name: outcomes.count(name) for name in ("revised", "kept", "unusable")},
        "truncated": sum(one.truncated for one in rounds[-1]),
        "gold": gains(prompts, utilities),
        "principles": principle_lines(
            [one.principle for one in steps],
            np.concatenate(utilities[:-1]),
            np.concatenate(utilities[1:]),
            outcomes,
            broken,
        ),
    }


def _answer(draft: Completion, one: Applied) -> Completion:
    return Completion(draft.prompt_id, draft.sample, one.text, len(one.text.split()), one.truncated)

"""Who labels the preference pool: the steps that put a judge, or a constitution, in the annotator's place."""

from __future__ import annotations

from typing import Any

from lab.config import (
    AILabels,
    EndpointJudge,
    FeedbackConfig,
    FewLabels,
    JudgeConfig,
    LocalJudge,
    Revisions,
    WorldJudge,
    WorldReviser,
    WrittenReviser,
)
from lab.graph.shared import Shared, identity
from lab.plan import Step
from lab.typed import plain


def use_feedback(shared: Shared, feedback: FeedbackConfig) -> None:
    """Make ``shared.pairs`` what ``feedback`` says; under ``Revisions`` further SFT learns from revised answers too.

    The SFT checkpoint, the pool's completions and all other splits stay what they are.
    """
    pool = shared.pairs
    match feedback:
        case FewLabels():
            shared.pairs = first_pairs(shared, pool, feedback.labels)
        case AILabels():
            shared.pairs = ai_labels(shared, pool, pool, feedback)
        case Revisions():
            revised = revisions(shared, pool, feedback)
            shared.pairs = ai_labels(shared, pool, revised, feedback)
            shared.data = {**shared.data, "sft": revised}


def first_pairs(shared: Shared, pool: Step, labels: int) -> Step:
    """The pool with its first ``labels`` pairs alone; the pool itself if that is all of them (or 0)."""
    if labels in (0, shared.preferences.pairs):
        return pool
    return shared.step("first_pairs", {"labels": labels}, {"pairs": pool}, f"the first {labels:,} labels")


def ai_labels(shared: Shared, pool: Step, pairs: Step, feedback: AILabels | Revisions) -> Step:
    """``pairs`` labelled by the judge; the world's judge has learnt from labels of ``pool``."""
    inputs = {"pairs": pairs}
    judge: dict[str, Any] = identity(feedback.judge)
    match feedback.judge:
        case WorldJudge():
            taught = first_pairs(shared, pool, feedback.labels)
            inputs |= {"judge": world_judge(shared, feedback.judge, taught, feedback), "taught": taught}
        case LocalJudge():
            inputs["judge"] = shared.converted(feedback.judge.path)
            judge = {**judge, "path": ""}  # its files are an input; where they lie is no part of identity
        case EndpointJudge():
            pass
    reads = not isinstance(feedback.judge, WorldJudge)
    return shared.step(
        "ai_labels",
        {
            "judge": judge,
            "annotator": annotator(feedback.judge),
            "gold": shared.gold,
            "constitution": plain(feedback.constitution) if reads and feedback.constitution is not None else None,
            "seed": feedback.seed,
        },
        inputs,
        f"pairs labelled by {annotator(feedback.judge)}, seed {feedback.seed}",
        shared.forward(4 * shared.preferences.pairs),
    )


def world_judge(shared: Shared, judge: WorldJudge, taught: Step, feedback: AILabels | Revisions) -> Step:
    """The world's generative judge, from the SFT checkpoint, on the labels in ``taught``."""
    labels = feedback.labels or shared.preferences.pairs
    return shared.step(
        "judge",
        {"training": identity(judge), "seed": feedback.seed},
        {"policy": shared.sft, "pairs": taught},
        f"judge of {labels:,} labels, seed {feedback.seed}",
        shared.training(8 * labels * judge.epochs),
    )


def revisions(shared: Shared, pool: Step, feedback: Revisions) -> Step:
    """The pool's completions after critique and revision."""
    match feedback.revision.reviser:
        case WorldReviser() as settings:
            reviser = shared.step(
                "reviser",
                {
                    "reviser": identity(settings),
                    "constitution": plain(feedback.constitution),
                    "seed": feedback.seed,
                },
                {"policy": shared.sft, "data": shared.data["sft"]},
                f"reviser, seed {feedback.seed}",
                shared.training(2 * settings.examples * settings.epochs),
                micro_batch=settings.micro_batch,
                save_every=shared.config.run.save_steps,
            )
        case WrittenReviser(path=path):
            reviser = shared.converted(path) if path else shared.base
    told: dict[str, Any] = identity(feedback.revision)
    if isinstance(feedback.revision.reviser, WrittenReviser):
        told["reviser"] |= {"path": ""}  # as the judge's
    drafts = shared.config.sizes.preference_prompts * feedback.revision.drafts_per_prompt
    return shared.step(
        "revise",
        {"revision": told, "gold": shared.gold, "seed": feedback.seed},
        {"pairs": pool, "reviser": reviser},
        f"revisions under the constitution {feedback.constitution.name}, seed {feedback.seed}",
        shared.forward(2 * drafts * feedback.revision.rounds),
    )


def annotator(judge: JudgeConfig) -> str:
    """The name under which a judge's labels stand in the records."""
    match judge:
        case WorldJudge():
            return "judge"
        case LocalJudge():
            return f"judge {judge.path.rstrip('/').rsplit('/', 1)[-1]}"
        case EndpointJudge():
            return f"judge {judge.model}"

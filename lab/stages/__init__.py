"""The stages, and the one place that knows which function builds which kind of step. Stages never import each other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.store import Context, StageResult


def run_stage(
    kind: str, config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context
) -> StageResult:
    """Build one artifact. The heavy imports are inside: a worker pays only for what it runs.

    Raises ValueError for an unknown kind.
    """
    match kind:
        case "data":
            from lab.stages.data import run
        case "convert":
            from lab.stages.convert import run
        case "base" | "sft" | "sft_continued":
            from lab.stages.sft import run
        case "preferences":
            from lab.stages.preferences import run
        case "reward_model":
            from lab.stages.reward_model import run
        case "direct":
            from lab.stages.direct import run
        case "online":
            from lab.stages.online import run
        case "multi_objective":
            from lab.stages.multi_objective import run
        case "token_rewards":
            from lab.stages.token_rewards import run
        case "judge":
            from lab.stages.judge import run
        case "normalise":
            from lab.stages.normalise import run
        case "pairs_file":
            from lab.stages.pairs_file import run
        case "card":
            from lab.stages.card import run
        case "pairs_union":
            from lab.stages.pairs_union import run
        case "overlap":
            from lab.stages.overlap import run
        case "decontaminate":
            from lab.stages.decontaminate import run
        case "filter":
            from lab.stages.filter import run
        case "rejection":
            from lab.stages.rejection import run
        case "first_pairs":
            from lab.stages.first_pairs import run
        case "ai_labels":
            from lab.stages.ai_labels import run
        case "reviser":
            from lab.stages.reviser import run
        case "revise":
            from lab.stages.revise import run
        case "benchmark_prompts":
            from lab.stages.benchmark_prompts import run
        case "benchmark_build":
            from lab.stages.benchmark_build import run
        case "benchmark_set":
            from lab.stages.benchmark_set import run
        case "benchmark":
            from lab.stages.benchmark import run
        case "pool":
            from lab.stages.pool import run
        case "score":
            from lab.stages.score import run
        case "best_of_n":
            from lab.stages.best_of_n import run
        case "evaluate":
            from lab.stages.evaluate import run
        case other:
            raise ValueError(f"no stage builds steps of kind {other!r}")
    return run(config, inputs, out, context)

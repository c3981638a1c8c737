"""The scale of a reward source that no training normalised: an implicit reward, a model or an endpoint as judge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.models import pick_device
from lab.records import Ledger
from lab.rewards import load_reward
from lab.rewards.held_out import measure
from lab.rewards.judge import JudgeReward
from lab.store import Context, StageResult


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``reward`` (RewardConfig; its scale is not used). Inputs: "pairs", and the source's own artifacts.

    Writes ``normalisation.json`` (score = (raw - shift) / scale has mean 0 and spread 1 on the SFT samples) and
    ``accuracy.json``. Raises ValueError if the inputs already hold a "normalisation": it would be applied twice.
    """
    if "normalisation" in inputs:
        raise ValueError("normalise: the inputs already hold a normalisation")
    device = pick_device(context.resources.get("device", "auto"))
    source = load_reward({**config["reward"], "scale": 1.0}, inputs, device)
    context.progress(0, 1, source.name)
    metrics = measure(source, inputs["pairs"], out)
    context.progress(1, 1)
    return StageResult(Ledger(judge_calls=source.calls if isinstance(source, JudgeReward) else 0), metrics)

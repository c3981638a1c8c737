"""Online alignment: PPO, GRPO or RLOO from the SFT checkpoint, paid by any reward source. Trainer: ``lab.online``."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lab.config import OnlineMethod, build
from lab.data.jsonl import read_prompts
from lab.models import check_checkpoint, pick_device, pick_dtype
from lab.online.trainer import OnlineTrainer
from lab.online.watch import kinds_of, load_watchers
from lab.records import Ledger
from lab.rewards import load_reward
from lab.store import Context, StageResult
from lab.training import evenly, write_checkpoints


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Config: ``method`` (OnlineMethod), ``reward`` (RewardConfig), ``seed``. Inputs: "sft" (a policy), "prompts" (a
    folder with ``rl.jsonl``), and what the reward source needs, e.g. "reward_model". ``watch`` (optional): name ->
    RewardConfig of sources that are only watched (``lab.online.watch``), with inputs "watch-NAME.reward_model" and so
    on; the ledger charges their calls as it does those of the source that pays. "reference" (optional): a policy that
    the KL term holds to, in place of the one it starts from.

    Resources: ``device``, ``dtype``, ``micro_batch``, ``save_every`` (rollouts between resumable checkpoints; 0 none).
    ``checkpoints.json`` counts all FLOPs of training so far, those of sampling the rollouts included; the ledger has
    the two apart. Raises DivergedError before a policy that is not finite is written.
    """
    method: OnlineMethod = build(OnlineMethod, config["method"], "method")
    device = pick_device(context.resources.get("device", "auto"))
    policy = inputs["sft"] / "final"
    check_checkpoint(policy)
    prompts = read_prompts(inputs["prompts"] / "rl.jsonl")
    reward = load_reward(config["reward"], inputs, device)
    critic: dict[str, Any] = {}
    if method.critic_initial == "reward_model":
        if "reward_model" not in inputs:
            raise ValueError("method.critic_initial: reward_model, but this arm has no reward model")
        numbers = json.loads((inputs["reward_model"] / "normalisation.json").read_text(encoding="utf-8"))
        critic["critic_checkpoint"] = inputs["reward_model"] / "final"
        weight = config["reward"].get("scale", 1.0) or 1.0  # values in the units of this arm's reward
        critic["critic_normalisation"] = (numbers["shift"], numbers["scale"] / weight)
    trainer = OnlineTrainer(
        policy,
        method,
        prompts,
        reward,
        seed=config["seed"],
        folder=context.scratch,
        device=device,
        mixed_precision=pick_dtype(context.resources.get("dtype", "auto"), device).itemsize == 2,
        micro_batch=context.resources.get("micro_batch", 0),
        save_every=context.resources.get("save_every", 0),
        snapshot_at=evenly(method.steps, method.checkpoints),
        progress=context.progress,
        watchers=load_watchers(config.get("watch") or {}, inputs, device),
        reference=inputs["reference"] / "final" if "reference" in inputs else None,
        **critic,
    )
    resumed_from = trainer.run()
    trainer.save_policy(out / "final")
    for snapshot in trainer.snapshots:
        (out / "checkpoints").mkdir(exist_ok=True)
        os.replace(context.scratch / "snapshots" / snapshot["name"], out / "checkpoints" / snapshot["name"])
    write_trace(out / "trace.jsonl", trainer.trace)
    points = [_point(row, f"checkpoints/{row['name']}", False) for row in trainer.snapshots]
    points.append(_point({"step": trainer.state.global_step, **vars(trainer.totals)}, "final", True))
    write_checkpoints(out, points)

    totals, last = trainer.totals, trainer.trace[-1]
    ledger = Ledger(
        prompt_tokens=totals.prompt_tokens,
        generated_tokens=totals.generated_tokens,
        training_flops=totals.training_flops,
        sampling_flops=totals.sampling_flops,
    )
    sources = [config["reward"], *(config.get("watch") or {}).values()]
    asked = Counter(kind for source in sources for kind in kinds_of(source))
    ledger = replace(
        ledger,
        verifier_calls=totals.scored * asked["verifier"],
        gold_looks=totals.scored * asked["gold"],
        judge_calls=totals.scored * asked["judge"],
    )
    metrics = {name: last[name] for name in ("reward_mean", "kl_estimate_nats", "entropy_nats", "length_mean")}
    return StageResult(ledger, {"optimizer_steps": trainer.state.global_step, **metrics}, resumed_from)


def write_trace(path: Path, rows: list[dict[str, Any]]) -> None:
    """One JSON object a rollout; null where a quantity has no value."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")


def _point(totals: Mapping[str, Any], path: str, final: bool) -> dict[str, Any]:
    return {
        "step": totals["step"],
        "path": path,
        "final": final,
        "training_flops": totals["training_flops"] + totals["sampling_flops"],
        "prompt_tokens": totals["prompt_tokens"],
        "generated_tokens": totals["generated_tokens"],
    }

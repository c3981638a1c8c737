"""The steps of pipelines: each stage starts from the policy that the one before it left, and each policy is measured.

Whatever a pipeline has in common with another one, or with an arm of experiment ``compare``, is the same step.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from lab.config import (
    ArmConfig,
    DirectMethod,
    LabConfig,
    MethodConfig,
    NoMethod,
    OnlineMethod,
    PipelineConfig,
    SimpleSource,
    StageConfig,
    UnpairedMethod,
)
from lab.graph.arms import Arms
from lab.graph.rewards import Rewards
from lab.graph.shared import Shared
from lab.plan import Plan, Step
from lab.typed import ConfigError

STAGE_STRIDE = 100_000
"""The stage that comes n-th (from 0) trains under the policy's seed + n of these: no two see the prompts in one order.
"""


@dataclass(frozen=True)
class StagePoint:
    """The policy after one stage of a pipeline, under one seed; number 0 is where the pipeline starts.

    ``name``: of the stage, with the round where there are several (``dpo.2``); ``config``: None at the start. ``arm``:
    the same for points of several pipelines that are the same policies.
    """

    pipeline: str
    pipeline_label: str
    number: int
    name: str
    label: str
    config: StageConfig | None
    seed: int
    policy: Step
    evaluation: Step
    arm: str = ""


@dataclass(frozen=True)
class PipelineGraph:
    """Every step of the pipelines. ``start`` is the SFT checkpoint, measured, from which differences are taken."""

    data: Mapping[str, Step]
    base: Step
    sft: Step
    start: StagePoint
    points: tuple[StagePoint, ...]

    @property
    def steps(self) -> list[Step]:
        own = [step for point in self.points for step in (point.policy, point.evaluation)]
        return [*dict.fromkeys(self.data.values()), self.sft, self.start.evaluation, *own]

    def spent_on(self, policy: Step) -> list[Step]:
        """Every step that a policy needed, itself included. Not the base's pretraining, which all share, and not what
        only watched."""
        found = {step.key: step for step in Plan([self.base]).steps}
        shared = set(found)

        def visit(step: Step) -> None:
            if step.key not in found:
                found[step.key] = step
                for name, item in step.inputs.items():
                    if not name.startswith("watch-"):
                        visit(item)

        visit(policy)
        return [step for key, step in found.items() if key not in shared]


def build_pipelines(config: LabConfig) -> PipelineGraph:
    """The steps of ``config.pipelines`` under all seeds."""
    tools = _Tools(Shared(config))
    points: list[StagePoint] = []
    for name, pipeline in config.pipelines.items():
        for seed in range(config.first_seed, config.first_seed + config.seeds):
            points += _Walk(tools, name, pipeline, seed).points
    start = replace(tools.start("", "sft"), arm="sft")
    return PipelineGraph(tools.shared.data, tools.shared.base, tools.shared.sft, start, tuple(_named(points)))


def share(total: int, rounds: int, number: int) -> int:
    """The part of ``total`` that round ``number`` (from 0) gets: as even as can be, the first ones the larger."""
    return total // rounds + (number < total % rounds)


class _Tools:
    """What all pipelines share."""

    def __init__(self, shared: Shared) -> None:
        self.shared, self.config, self.rewards = shared, shared.config, Rewards(shared)
        self.evaluations: dict[tuple[str, int, str], Step] = {}

    def start(self, pipeline: str, name: Literal["sft", "base"]) -> StagePoint:
        """Where a pipeline starts: one checkpoint, whatever the seed, measured once."""
        policy = self.shared.sft if name == "sft" else self.shared.base
        arm = ArmConfig("SFT" if name == "sft" else "base", "control", NoMethod("none"))
        evaluation = self.evaluate(name, arm, self.config.first_seed, policy, self.rewards)
        return StagePoint(pipeline, "", 0, name, arm.label, None, self.config.first_seed, policy, evaluation)

    def evaluate(self, name: str, arm: ArmConfig, seed: int, policy: Step, rewards: Rewards) -> Step:
        """What measures a policy; the same step for the same policy and proxy, whatever it is called."""
        # A reward that is no model has nothing of its own to score by: the shared reward model does.
        rewards = self.rewards if arm.reward is None or isinstance(arm.reward, SimpleSource) else rewards
        proxy = rewards.proxy(arm.reward, seed)
        key = policy.key, seed, str(sorted((given, step.key) for given, step in proxy.inputs.items()))
        if key not in self.evaluations:
            self.evaluations[key] = Arms(self.shared, rewards).evaluate(name, arm, seed, policy, proxy)
        return self.evaluations[key]


class _Walk:
    """One pipeline under one seed, stage by stage."""

    def __init__(self, tools: _Tools, name: str, pipeline: PipelineConfig, seed: int) -> None:
        self.tools, self.name, self.pipeline, self.seed = tools, name, pipeline, seed
        self.points = [tools.start(name, pipeline.start)]
        self.pools: list[Step] = []
        for turn in range(pipeline.rounds):
            for stage_name, stage in pipeline.stages.items():
                self.points.append(self._stage(stage_name, stage, turn))

    def _stage(self, name: str, stage: StageConfig, turn: int) -> StagePoint:
        before, label, said = self.points[-1], stage.label, name
        if self.pipeline.rounds > 1:
            label, said = f"{stage.label}, round {turn + 1}", f"{name}.{turn + 1}"
        method = _of_round(stage.method, self.pipeline.rounds, turn)
        arm = ArmConfig(f"{self.pipeline.label}: {label}", "without", method, stage.reward)
        rewards = self.tools.rewards
        if stage.pairs != "shared":
            rewards = Rewards(self._own_pairs(name, stage, turn, before.policy))
        anchor = self.tools.shared.sft if stage.anchor == "sft" else before.policy
        arms = Arms(rewards.shared, rewards, before.policy, anchor)
        policy, _ = arms.policy(arm, self.seed + STAGE_STRIDE * before.number, self.seed)
        first = before.number == 0 and self.pipeline.start == "sft"
        called = name if first else f"{self.name}.{said}"  # a first stage may be an arm of compare: by its name
        evaluation = self.tools.evaluate(called, arm, self.seed, policy, rewards)
        return StagePoint(
            self.name, self.pipeline.label, before.number + 1, said, label, stage, self.seed, policy, evaluation
        )

    def _own_pairs(self, name: str, stage: StageConfig, turn: int, policy: Step) -> Shared:
        """The shared steps, but with pairs that this policy was asked for."""
        shared, preferences = self.tools.shared, self.tools.shared.preferences
        asking = [one for one, its in self.pipeline.stages.items() if its.pairs != "shared"]
        total = share(share(preferences.pairs, self.pipeline.rounds, turn), len(asking), asking.index(name))
        self.pools.append(resampled(shared.pairs, policy, total, preferences.seed + STAGE_STRIDE * len(self.pools)))
        view = copy.copy(shared)
        view.pairs = self.pools[-1]
        if stage.pairs == "accumulated" and len(self.pools) > 1:
            total = sum(pool_pairs(pool) for pool in self.pools)
            inputs = {f"pairs-{number}": pool for number, pool in enumerate(self.pools)}
            view.pairs = shared.step("pairs_union", {}, inputs, f"{total:,} pairs of {len(self.pools)} pools")
        view.preferences = replace(preferences, pairs=total)
        return view


def _of_round(method: MethodConfig, rounds: int, turn: int) -> MethodConfig:
    """The method with its share of rollouts, at least one, and of the warm-up, which else would come in every round."""
    if rounds == 1 or not isinstance(method, DirectMethod | UnpairedMethod | OnlineMethod):
        return method
    method = replace(method, warmup_steps=share(method.warmup_steps, rounds, turn))
    if isinstance(method, OnlineMethod):
        method = replace(method, steps=max(1, share(method.steps, rounds, turn)))
    return method


def resampled(pairs: Step, policy: Step, count: int, seed: int) -> Step:
    """The pool again, of other completions: ``policy`` answers in place of SFT, ``count`` pairs are labelled.

    What is done to the pool afterwards (filters and so on, which read it) is done to the new one.
    """
    if pairs.kind != "preferences":
        name = _source(pairs)
        return replace(pairs, inputs={**pairs.inputs, name: resampled(pairs.inputs[name], policy, count, seed)})
    preferences: dict[str, Any] = {**pairs.config["preferences"], "pairs": count, "seed": seed}
    label = f"{count:,} fresh pairs" if policy != pairs.inputs["sft"] else f"{count:,} pairs from SFT"
    config, inputs = {**pairs.config, "preferences": preferences}, {**pairs.inputs, "sft": policy}
    return replace(pairs, config=config, inputs=inputs, label=label)


def _source(pairs: Step) -> str:
    """The input through which a step reads the pool that it changes."""
    for name in ("pairs", "training"):
        if name in pairs.inputs:
            return name
    raise ConfigError(f"pipelines: pairs that a step {pairs.kind!r} makes cannot be asked for again, of a new policy")


def pool_pairs(pool: Step) -> int:
    """How many pairs a pool is asked for."""
    while pool.kind != "preferences":
        pool = pool.inputs[_source(pool)]
    return int(pool.config["preferences"]["pairs"])


def _named(points: list[StagePoint]) -> list[StagePoint]:
    """The points with ``arm``: what their rows say, with the pipeline's name where another policy's rows say that."""
    evaluations: dict[tuple[str, int], list[str]] = {}
    for point in points:
        evaluations.setdefault((point.pipeline, point.number), []).append(point.evaluation.key)
    names: dict[tuple[str, ...], str] = {}
    named = []
    for point in points:
        same = tuple(dict.fromkeys(evaluations[point.pipeline, point.number]))
        if same not in names:
            own = str(point.evaluation.config["arm"])
            names[same] = own if own not in names.values() else f"{point.pipeline}.{point.name}"
        named.append(replace(point, arm=names[same]))
    return named

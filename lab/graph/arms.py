"""The steps of a comparison's arms, and of the reward sources that are benchmarked beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lab.config import (
    ArmConfig,
    BestOfNMethod,
    CandidateConfig,
    ClassifierSource,
    ContinuedMethod,
    DirectMethod,
    LabConfig,
    NoMethod,
    OnlineMethod,
    RejectionMethod,
    RewardConfig,
    SupervisedConfig,
    UnpairedMethod,
)
from lab.graph.feedback import use_feedback
from lab.graph.filters import rejection, training_pool
from lab.graph.rewards import Rewards, Source
from lab.graph.shared import Shared, identity
from lab.plan import Step
from lab.typed import ConfigError


@dataclass(frozen=True)
class ArmRun:
    """One arm under one seed: what makes the policy (None where sampling is all there is), and what measures it.

    ``reward_models``: the steps of the reward models that it uses, for which it is charged.
    """

    arm: str
    seed: int
    policy: Step | None
    evaluation: Step
    reward_models: tuple[Step, ...]


@dataclass(frozen=True)
class CandidateRun:
    """One reward source under one seed: its scores on the pool, and (in the world) on the benchmark's items."""

    candidate: str
    seed: int
    source: Source
    scores: Step | None
    benchmark: Step | None

    @property
    def steps(self) -> list[Step]:
        return [*self.source.trained, *(step for step in (self.scores, self.benchmark) if step is not None)]


@dataclass(frozen=True)
class Graph:
    """Every step of an experiment. ``data`` maps a split to the step that holds it; ``reward_models`` are the
    experiment's own, by policy seed."""

    data: Mapping[str, Step]
    sft: Step
    pairs: Step
    reward_models: Mapping[int, Step]
    runs: tuple[ArmRun, ...]
    candidates: tuple[CandidateRun, ...]
    pool: Step | None
    benchmark_set: Step | None
    card: Step | None = None

    @property
    def steps(self) -> list[Step]:
        policies = [run.policy for run in self.runs if run.policy is not None]
        own = [self.sft, self.pairs, *self.reward_models.values(), *policies, *(run.evaluation for run in self.runs)]
        beside = [step for run in self.candidates for step in run.steps]
        beside += [self.card] if self.card is not None else []
        return [*dict.fromkeys(self.data.values()), *own, *beside]


def seeds_of(config: LabConfig, arm: ArmConfig | CandidateConfig) -> list[int]:
    """The policy seeds of an arm, or the seeds of a reward source. The SFT checkpoint is one checkpoint, whatever the
    number of seeds."""
    once = not arm.each_seed if isinstance(arm, CandidateConfig) else isinstance(arm.method, NoMethod)
    return [config.first_seed] if once else list(range(config.first_seed, config.first_seed + config.seeds))


def build_graph(config: LabConfig) -> Graph:
    """The steps of a comparison of ``config.arms`` and ``config.candidates``.

    Raises ConfigError if no arm is the SFT checkpoint itself: every difference is measured from it.
    """
    if not any(isinstance(arm.method, NoMethod) for arm in config.arms.values()):
        raise ConfigError("arms: no arm has method.kind none (the SFT checkpoint), and every comparison needs it")
    shared = Shared(config)
    if config.feedback is not None:
        use_feedback(shared, config.feedback)
    shared.pairs = training_pool(shared)
    rewards = Rewards(shared)
    arms = Arms(shared, rewards)
    seeds = sorted({seed for arm in config.arms.values() for seed in seeds_of(config, arm)})
    runs = [arms.run(name, arm, seed) for name, arm in config.arms.items() for seed in seeds_of(config, arm)]
    candidates = _Candidates(shared, rewards)
    return Graph(
        shared.data,
        shared.sft,
        shared.pairs,
        {seed: rewards.classifier(None, seed) for seed in seeds},
        tuple(runs),
        tuple(
            candidates.run(name, candidate, seed)
            for name, candidate in config.candidates.items()
            for seed in seeds_of(config, candidate)
        ),
        candidates.pool if config.candidates else None,
        candidates.benchmark_set if config.candidates else None,
        shared.card(shared.pairs),
    )


class Arms:
    """The runs of arms, and (``policy``, ``evaluate``) the stages of pipelines.

    ``start``: the policy that training starts from, SFT unless given; ``anchor``: what it is held to, ``start`` unless
    given.
    """

    def __init__(self, shared: Shared, rewards: Rewards, start: Step | None = None, anchor: Step | None = None) -> None:
        self.shared, self.rewards, self.config = shared, rewards, shared.config
        self.start = start or shared.sft
        self.anchor = anchor or self.start

    def run(self, name: str, arm: ArmConfig, seed: int) -> ArmRun:
        if isinstance(arm.method, BestOfNMethod):
            return self._best_of_n(name, arm, arm.method, seed)
        policy, charged = self.policy(arm, seed)
        proxy = self.rewards.proxy(arm.reward, seed)
        return ArmRun(name, seed, policy, self.evaluate(name, arm, seed, policy, proxy), charged)

    def evaluate(self, name: str, arm: ArmConfig, seed: int, policy: Step, proxy: Source) -> Step:
        """What measures a policy, always against SFT. ``arm``: how it was made."""
        evaluation = self.config.evaluation
        return self.shared.step(
            "evaluate",
            {"arm": name, "seed": seed, "evaluation": identity(evaluation), "gold": self.shared.gold,
             "proxy": {**proxy.config, "scale": 1.0}},
            {
                "policy": policy,
                "reference": self.shared.sft,
                "prompts": self.shared.data[evaluation.split],
                **proxy.inputs,
            },
            f"evaluate {arm.label}, seed {seed}",
            self.shared.forward(
                self.shared.prompts * (evaluation.samples_per_prompt + evaluation.greedy + self._points(arm)) * 3
            ),
        )  # fmt: skip

    def _best_of_n(self, name: str, arm: ArmConfig, method: BestOfNMethod, seed: int) -> ArmRun:
        source = self.rewards.source(arm.reward or ClassifierSource("classifier"), seed)
        pool = self.shared.pool(method.pool)
        step = self.shared.step(
            "best_of_n",
            {"arm": name, "seed": seed, "ns": list(method.ns), "blocks": self.config.evaluation.samples_per_prompt,
             "evaluation": identity(self.config.evaluation)},
            {
                "pool": pool,
                "scores": scores(self.shared, source, pool, f"{arm.label}, seed {seed}"),
                "sft": self.shared.sft,
                "prompts": self.shared.data[self.config.evaluation.split],
            },
            f"{arm.label}, seed {seed}",
            recipe=2,
        )  # fmt: skip
        return ArmRun(name, seed, None, step, source.trained)

    def policy(self, arm: ArmConfig, seed: int, reward_seed: int | None = None) -> tuple[Step, tuple[Step, ...]]:
        """The step that makes the policy, and the reward models that it is charged for. ``seed``: of its training;
        ``reward_seed``: of its reward models, the same unless given, and what the step's label says."""
        reward_seed = seed if reward_seed is None else reward_seed
        method, label = arm.method, f"{arm.label}, seed {reward_seed}"
        match method:
            case NoMethod():
                return self.start, ()
            case ContinuedMethod():
                data, skip = self.shared.data["sft"], self.config.sft.examples
                return self._supervised(method.training, method.checkpoints, data, skip, seed, label), ()
            case RejectionMethod():
                chosen = rejection(
                    self.shared, self.rewards, method.sampling, self.start, self.shared.data[method.sampling.split],
                    reward_seed, f"samples for {label}",
                )  # fmt: skip
                asked = method.sampling.reward
                trained = self.rewards.source(asked, reward_seed).trained if asked is not None else ()
                step = self._supervised(method.training, method.checkpoints, chosen, 0, seed, label)
                return step, (chosen, *trained)
            case DirectMethod() | UnpairedMethod():
                return self.rewards.direct(method, seed, label, self.start, self.anchor), ()
            case OnlineMethod():
                assert arm.reward is not None  # lab.checks has refused it
                return self._online(arm, method, arm.reward, seed, reward_seed)
            case _:
                raise AssertionError(f"{arm.label}: no step for {method}")

    def _supervised(
        self, training: SupervisedConfig, checkpoints: int, data: Step, skip: int, seed: int, label: str
    ) -> Step:
        return self.shared.step(
            "sft_continued",
            {"split": "sft", "training": identity(training), "seed": seed, "skip": skip, "checkpoints": checkpoints},
            {"data": data, "policy": self.start},
            label,
            self.shared.training(training.examples * training.epochs),
            micro_batch=training.micro_batch,
            save_every=self.config.run.save_steps,
        )

    def _online(
        self, arm: ArmConfig, method: OnlineMethod, reward: RewardConfig, seed: int, reward_seed: int
    ) -> tuple[Step, tuple[Step, ...]]:
        source = self.rewards.source(reward, reward_seed)
        inputs = {"sft": self.start, "prompts": self.shared.data["rl"], **source.inputs}
        if self.anchor != self.start and method.kl_coefficient:
            inputs["reference"] = self.anchor
        charged = source.trained
        if method.critic_initial == "reward_model" and "reward_model" not in inputs:
            inputs["reward_model"] = self.rewards.classifier(None, reward_seed)
            charged = (*charged, inputs["reward_model"])
        config: dict[str, Any] = {"method": identity(method), "reward": source.config, "seed": seed}
        if self.config.watch:
            watched = {name: self.rewards.source(watch, reward_seed) for name, watch in self.config.watch.items()}
            config["watch"] = {name: one.config for name, one in watched.items()}
            for name, one in watched.items():
                inputs |= {f"watch-{name}.{key}": step for key, step in one.inputs.items()}
        completions = method.steps * method.prompts_per_rollout * method.completions_per_prompt
        step = self.shared.step(
            "online",
            config,
            inputs,
            f"{arm.label}, seed {reward_seed}",
            self.shared.training(completions * (1 + method.epochs)),
            micro_batch=method.micro_batch,
            save_every=method.save_every,
        )
        return step, charged

    def _points(self, arm: ArmConfig) -> int:
        method = arm.method
        if isinstance(method, (ContinuedMethod, DirectMethod, UnpairedMethod, RejectionMethod, OnlineMethod)):
            return method.checkpoints * self.config.evaluation.curve_samples_per_prompt
        return 0


def scores(shared: Shared, source: Source, pool: Step, label: str) -> Step:
    """The scores of a source on the pool: the same step for best-of-n and for the benchmark of reward models."""
    return shared.step(
        "score",
        {"reward": source.config, "split": shared.config.evaluation.split},
        {"pool": pool, "prompts": shared.data[shared.config.evaluation.split], **source.inputs},
        f"pool scored by {label}",
        shared.forward(shared.prompts * shared.config.benchmark.pool),
    )


class _Candidates:
    """The runs of reward sources that are benchmarked."""

    def __init__(self, shared: Shared, rewards: Rewards) -> None:
        self.shared, self.rewards = shared, rewards
        settings = shared.config.benchmark
        self.pool = shared.pool(settings.pool)
        self.benchmark_set = shared.benchmark_set

    def run(self, name: str, candidate: CandidateConfig, seed: int) -> CandidateRun:
        source = self.rewards.source(candidate.reward, seed)
        label = f"{candidate.label}, seed {seed}"
        benchmark = None
        if self.benchmark_set is not None:
            benchmark = self.shared.step(
                "benchmark",
                {"reward": source.config},
                {"items": self.benchmark_set, **source.inputs},
                f"benchmark of {label}",
                self.shared.forward(24 * self.shared.config.benchmark.per_domain),
            )
        scored = scores(self.shared, source, self.pool, label) if candidate.pool else None
        return CandidateRun(name, seed, source, scored, benchmark)

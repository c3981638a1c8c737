"""From a config to the graph of steps that a comparison needs. No torch: this is what ``plan=true`` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.config import (
    ArmConfig,
    BestOfNMethod,
    CheckpointModel,
    ContinuedMethod,
    DirectMethod,
    JsonlData,
    LabConfig,
    NoMethod,
    OnlineMethod,
    WorldModel,
)
from lab.data.sources import file_digest, load, split
from lab.plan import Step, Work
from lab.typed import ConfigError, plain

NOT_IDENTITY = ("micro_batch", "save_every", "pass_k")
"""Keys of configs that say how to run, or how to read the rows, and not what is computed."""

FLOPS_PER_SECOND = 2.0e10
"""What one core makes of a small model, for estimates before the store has seen a step of that kind."""

TOKENS = 24
"""Typical tokens of a prompt with its completion in the world, for estimates."""


@dataclass(frozen=True)
class ArmRun:
    """One arm under one seed: what makes the policy (None where sampling is all there is), and what measures it."""

    arm: str
    seed: int
    policy: Step | None
    evaluation: Step
    reward_model: Step


@dataclass(frozen=True)
class Graph:
    """Every step of a comparison. ``data`` maps a split to the step that holds it."""

    data: Mapping[str, Step]
    sft: Step
    pairs: Step
    reward_models: Mapping[int, Step]
    runs: tuple[ArmRun, ...]

    @property
    def steps(self) -> list[Step]:
        policies = [run.policy for run in self.runs if run.policy is not None]
        own = [self.sft, self.pairs, *self.reward_models.values(), *policies, *(run.evaluation for run in self.runs)]
        return [*dict.fromkeys(self.data.values()), *own]


def seeds_of(config: LabConfig, arm: ArmConfig) -> list[int]:
    """The policy seeds of an arm. The SFT checkpoint is one checkpoint, whatever the number of seeds."""
    if isinstance(arm.method, NoMethod):
        return [config.first_seed]
    return list(range(config.first_seed, config.first_seed + config.seeds))


def identity(value: Any) -> dict[str, Any]:
    """A config dataclass as plain data, without what is no part of identity."""
    return {key: _without(item) for key, item in plain(value).items() if key not in NOT_IDENTITY}


def _without(value: Any) -> Any:
    return {k: _without(v) for k, v in value.items() if k not in NOT_IDENTITY} if isinstance(value, dict) else value


def build_graph(config: LabConfig) -> Graph:
    """The steps of a comparison of ``config.arms``.

    Raises ConfigError if no arm is the SFT checkpoint itself: every difference is measured from it.
    """
    if not any(isinstance(arm.method, NoMethod) for arm in config.arms.values()):
        raise ConfigError("arms: no arm has method.kind none (the SFT checkpoint), and every comparison needs it")
    builder = _Builder(config)
    seeds = sorted({seed for arm in config.arms.values() for seed in seeds_of(config, arm)})
    reward_models = {seed: builder.reward_model(seed) for seed in seeds}
    runs = [
        builder.arm(name, arm, seed, reward_models[seed])
        for name, arm in config.arms.items()
        for seed in seeds_of(config, arm)
    ]
    return Graph(builder.data, builder.sft, builder.pairs, reward_models, tuple(runs))


class _Builder:
    """Holds the steps that all arms share."""

    def __init__(self, config: LabConfig) -> None:
        self.config = config
        self.gold = "verifier" if isinstance(config.data, JsonlData) else "world"
        self.data = self._data()
        self.base = self._base()
        self.sft = self._step(
            "sft",
            {"split": "sft", "training": identity(config.sft)},
            {"data": self.data["sft"], "policy": self.base},
            "SFT checkpoint",
            self._training(config.sft.examples * config.sft.epochs),
            threads=config.run.base_threads,
            micro_batch=config.sft.micro_batch,
            save_every=config.run.save_steps,
        )
        self.pairs = self._step(
            "preferences",
            {
                "preferences": identity(config.preferences),
                "max_new_tokens": config.evaluation.max_new_tokens,
                "gold": self.gold,
            },
            {"sft": self.sft, "data": self.data["preference"]},
            f"{config.preferences.pairs:,} pairs by {config.preferences.annotator}",
            self._forward(config.sizes.preference_prompts * config.preferences.samples_per_prompt),
        )

    # -- shared steps

    def _data(self) -> dict[str, Step]:
        data = self.config.data
        counts = plain(data.counts)
        if isinstance(data, JsonlData):
            columns = {key: plain(data)[key] for key in ("question", "answer", "verifier", "domain")}
            settings = {"kind": data.kind, "seed": data.seed, "counts": {"sft": data.sft, **counts}, **columns}
            try:  # every row is read now: a bad one must not stop a run that has begun
                rows = load(Path(data.path), **columns).rows
                split(rows, settings["counts"], data.seed)
            except ValueError as error:
                raise ConfigError(f"data.path: {error}") from error
            settings["digest"] = file_digest(Path(data.path))
            step = self._step("data", settings, {}, f"data {Path(data.path).name}", path=str(Path(data.path).resolve()))
            return dict.fromkeys(("sft", *counts), step)
        habits = {key: plain(data)[key] for key in ("kind", "seed", "base", "sft")}
        sizes = self.config.sizes
        demonstrations = {"sft": sizes.sft_examples + sizes.continued_examples}
        if isinstance(self.config.model, WorldModel):
            demonstrations["base"] = self.config.model.base.examples
        steps = {
            split: self._step("data", {**habits, "counts": {split: count}}, {}, f"{count:,} demonstrations ({split})")
            for split, count in demonstrations.items()
        }
        prompts = self._step("data", {**habits, "counts": counts}, {}, "prompts of the other splits")
        return steps | dict.fromkeys(counts, prompts)

    def _base(self) -> Step:
        model = self.config.model
        if isinstance(model, WorldModel):
            return self._step(
                "base",
                {"split": "base", "training": identity(model.base), "size": plain(model.size)},
                {"data": self.data["base"]},
                f"base, {parameters(model):,.0f} parameters",
                self._training(model.base.examples * model.base.epochs),
                threads=self.config.run.base_threads,
                micro_batch=model.base.micro_batch,
                save_every=self.config.run.save_steps,
            )
        settings: dict[str, str] = {"kind": model.kind}
        if isinstance(model, CheckpointModel):
            settings["digest"] = folder_digest(Path(model.path))
            return self._step("convert", settings, {}, f"checkpoint {Path(model.path).name}", path=model.path)
        return self._step("convert", settings, {}, model.kind)

    def reward_model(self, seed: int) -> Step:
        settings = self.config.reward_model
        training = {
            key: value for key, value in identity(settings).items() if key not in ("initial", "each_policy_seed")
        }
        start = self.sft if settings.initial == "sft" else self.base
        own = seed if settings.each_policy_seed else self.config.first_seed
        return self._step(
            "reward_model",
            {"training": training, "seed": own},
            {"policy": start, "pairs": self.pairs},
            f"reward model, seed {own}",
            self._training(2 * self.config.preferences.pairs * settings.epochs),
            micro_batch=settings.micro_batch,
            save_every=self.config.run.save_steps,
        )

    # -- arms

    def arm(self, name: str, arm: ArmConfig, seed: int, reward_model: Step) -> ArmRun:
        if isinstance(arm.method, BestOfNMethod):
            return self._best_of_n(name, arm.method, seed, reward_model)
        policy = self._policy(name, arm, seed, reward_model)
        evaluation = self.config.evaluation
        return ArmRun(
            name,
            seed,
            policy,
            self._step(
                "evaluate",
                {"arm": name, "seed": seed, "evaluation": identity(evaluation), "gold": self.gold},
                {
                    "policy": policy,
                    "reference": self.sft,
                    "prompts": self.data[evaluation.split],
                    "reward_model": reward_model,
                },
                f"evaluate {arm.label}, seed {seed}",
                self._forward(
                    self._prompts * (evaluation.samples_per_prompt + evaluation.greedy + self._points(arm)) * 3
                ),
            ),
            reward_model,
        )

    def _best_of_n(self, name: str, method: BestOfNMethod, seed: int, reward_model: Step) -> ArmRun:
        evaluation = self.config.evaluation
        step = self._step(
            "best_of_n",
            {"arm": name, "seed": seed, "ns": list(method.ns), "pool": method.pool,
             "evaluation": identity(evaluation), "gold": self.gold},
            {"sft": self.sft, "prompts": self.data[evaluation.split], "reward_model": reward_model},
            f"{self.config.arms[name].label}, seed {seed}",
            self._forward(self._prompts * method.pool * 2),
        )  # fmt: skip
        return ArmRun(name, seed, None, step, reward_model)

    def _policy(self, name: str, arm: ArmConfig, seed: int, reward_model: Step) -> Step:
        method, label = arm.method, f"{arm.label}, seed {seed}"
        match method:
            case NoMethod():
                return self.sft
            case ContinuedMethod():
                return self._step(
                    "sft_continued",
                    {"split": "sft", "training": identity(method.training), "seed": seed,
                     "skip": self.config.sft.examples, "checkpoints": method.checkpoints},
                    {"data": self.data["sft"], "policy": self.sft},
                    label,
                    self._training(method.training.examples * method.training.epochs),
                    micro_batch=method.training.micro_batch,
                    save_every=self.config.run.save_steps,
                )  # fmt: skip
            case DirectMethod():
                return self._step(
                    "direct",
                    {"method": identity(method), "seed": seed},
                    {"sft": self.sft, "pairs": self.pairs},
                    label,
                    self._training(2 * self.config.preferences.pairs * method.epochs),
                    micro_batch=method.micro_batch,
                    save_every=self.config.run.save_steps,
                )
            case OnlineMethod():
                assert arm.reward is not None  # lab.checks has refused it
                inputs = {"sft": self.sft, "prompts": self.data["rl"]}
                if arm.reward.kind == "classifier" or method.critic_initial == "reward_model":
                    inputs["reward_model"] = reward_model
                completions = method.steps * method.prompts_per_rollout * method.completions_per_prompt
                return self._step(
                    "online",
                    {"method": identity(method), "reward": identity(arm.reward), "seed": seed},
                    inputs,
                    label,
                    self._training(completions * (1 + method.epochs)),
                    micro_batch=method.micro_batch,
                    save_every=method.save_every,
                )
            case _:
                raise AssertionError(f"arm {name}: no step for {method}")

    def _points(self, arm: ArmConfig) -> int:
        method = arm.method
        if isinstance(method, (ContinuedMethod, DirectMethod, OnlineMethod)):
            return method.checkpoints * self.config.evaluation.curve_samples_per_prompt
        return 0

    # -- steps and their cost

    @property
    def _prompts(self) -> int:
        return int(plain(self.config.data.counts)[self.config.evaluation.split])

    def _training(self, examples: float) -> Work:
        return self._work(examples, 6)

    def _forward(self, examples: float) -> Work:
        return self._work(examples, 2)

    def _work(self, examples: float, factor: int) -> Work:
        model = self.config.model
        tokens = examples * (TOKENS if isinstance(model, WorldModel) else self.config.sizes.sequence_tokens)
        return Work(tokens, factor * tokens * parameters(model) if isinstance(model, WorldModel) else 0.0)

    def _step(
        self,
        kind: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Step],
        label: str,
        work: Work | None = None,
        threads: int = 1,
        **resources: Any,
    ) -> Step:
        run = self.config.run
        common = {"device": run.device, "dtype": run.dtype, "batch": run.batch, "threads": threads}
        common |= {"exclusive": True} if threads > 1 else {}
        given = {key: value for key, value in resources.items() if value}
        return Step(kind, config, inputs, label=label, resources=common | given, work=work or Work())


def parameters(model: WorldModel) -> float:
    """Parameters of a Llama of this shape, embeddings left out."""
    h, i = model.size.hidden, model.size.intermediate
    return model.size.layers * (4 * h * h + 3 * h * i + 2 * h) + h


def folder_digest(path: Path) -> str:
    """One digest over the names and SHA-256 of a checkpoint's files: its identity wherever it lies."""
    from lab.artifact import sha256_file, sha256_text

    files: Sequence[Path] = sorted(item for item in path.iterdir() if item.is_file())
    return sha256_text("\n".join(f"{file.name} {sha256_file(file)}" for file in files))

"""The steps of a benchmark that is built from models' completions, and of the reward sources put to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.benchmarks.building_files import read_completion_file, read_prompt_file, read_training_prompts
from lab.config import (
    ArmAnswers,
    BackboneAnswers,
    BuildingConfig,
    CandidateConfig,
    CheckpointAnswers,
    JsonlData,
    LabConfig,
    SimpleSource,
    WorldJudge,
)
from lab.data.sources import file_digest
from lab.graph.arms import Arms, seeds_of
from lab.graph.rewards import Rewards, Source
from lab.graph.shared import Shared, identity
from lab.plan import Plan, Step
from lab.records import DOMAINS
from lab.typed import ConfigError, nearest, plain

BUILT, BY_GOLD, PROCEDURAL = "built", "built_by_gold", "procedural"
"""Sets that sources are put to: as configured; the same completions with true labels; the world's written items."""


@dataclass(frozen=True)
class SetRun:
    """One reward source under one seed on one set."""

    candidate: str
    seed: int
    set: str
    step: Step


@dataclass(frozen=True)
class BuildingGraph:
    """``answers``: model -> its completions; ``sets``: name -> items; ``left_out``: what cannot read these prompts."""

    prompts: Step
    answers: Mapping[str, Step]
    sets: Mapping[str, Step]
    runs: tuple[SetRun, ...]
    left_out: tuple[str, ...]

    @property
    def steps(self) -> list[Step]:
        return [self.prompts, *self.answers.values(), *self.sets.values(), *(run.step for run in self.runs)]


def build_building_graph(config: LabConfig) -> BuildingGraph:
    """The steps of ``config.build_benchmark``, and ``config.candidates`` on what it builds.

    With prompts from a file, models, judges and candidates that know only the world's words are left out, and named.
    Raises ConfigError naming the key for models and files that are not there, and for labels that nobody gives.
    """
    settings = config.build_benchmark
    if settings is None:
        raise ConfigError("build_benchmark: missing (experiment=build_benchmark has it)")
    if isinstance(config.data, JsonlData):
        raise ConfigError("data.kind: this experiment takes prompts of a file as build_benchmark.prompts=FILE")
    check_building(settings)
    return _Building(config, settings).graph()


def check_building(settings: BuildingConfig) -> None:
    """Raise ConfigError, naming the key, for settings that cannot work and files that cannot be read."""
    path = "build_benchmark"
    if not settings.deciders or not all(settings.deciders):
        raise ConfigError(f"{path}.deciders: an empty group, or none: nobody would decide what is right")
    named = {name for group in settings.deciders for name in group}
    if "judge" in named and settings.judge is None:
        raise ConfigError(f"{path}.judge: missing: {path}.deciders names the judge")
    if settings.judge_wrong > settings.judge_right:
        raise ConfigError(
            f"{path}.judge_wrong: expected at most judge_right ({settings.judge_right}), got {settings.judge_wrong}"
        )
    if settings.near_duplicates == 0:
        raise ConfigError(f"{path}.near_duplicates: from 0 on everything is near; 1 counts exact repeats only")
    if settings.prompts is None:
        if settings.completions is not None or settings.against:
            key = "completions" if settings.completions is not None else "against"
            raise ConfigError(f"{path}.{key}: belongs to {path}.prompts, which is null (the world's prompts)")
        for domain in settings.gold_domains:
            if domain not in DOMAINS:
                raise ConfigError(f"{path}.gold_domains: {domain!r} is no domain{nearest(domain, DOMAINS)}")
        if settings.per_domain % 2:
            raise ConfigError(f"{path}.per_domain: expected an even number (Ties prompts come in pairs), got "
                              f"{settings.per_domain}")  # fmt: skip
        return
    if settings.labels == "gold":
        raise ConfigError(f"{path}.labels: gold: only the world knows the truth; prompts of a file have votes")
    key = f"{path}.prompts"
    try:
        _digest(key, settings.prompts)
        prompts = [one.prompt for one in read_prompt_file(Path(settings.prompts))]
        for number, file in enumerate(settings.against):
            key = f"{path}.against[{number}]"
            _digest(key, file)
            read_training_prompts(Path(file))
        if settings.completions is not None:
            key = f"{path}.completions"
            _digest(key, settings.completions)
            found, _ = read_completion_file(Path(settings.completions), prompts)
            if not found:
                raise ValueError(f"{settings.completions}: no completion of any of the {len(prompts)} prompts")
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{key}: {error}") from error


class _Building:
    """Makes the steps."""

    def __init__(self, config: LabConfig, settings: BuildingConfig) -> None:
        self.config, self.settings = config, settings
        self.shared = Shared(config)
        self.rewards = Rewards(self.shared)
        self.world = settings.prompts is None
        self.left_out: list[str] = []

    def graph(self) -> BuildingGraph:
        models = self._models()
        if not models and self.settings.completions is None:
            raise ConfigError("build_benchmark.models: nobody answers, and build_benchmark.completions names no file")
        judges = self._judges()
        sources = {
            (name, seed): self.rewards.source(candidate.reward, seed)
            for name, candidate in self.config.candidates.items()
            if self._reads(f"candidates.{name}", candidate)
            for seed in seeds_of(self.config, candidate)
        }
        difficulty = self._difficulty()
        parts = [*judges, *sources.values(), *([difficulty] if difficulty else [])]
        prompts = self._prompts([*models.values(), *(step for part in parts for step in part.inputs.values())])
        answers = {name: self._answers(name, model, prompts) for name, model in models.items()}
        sets = {BUILT: self._built(prompts, answers, judges, difficulty, self.settings.labels)}
        if self.world:
            if self.settings.labels == "votes":
                sets[BY_GOLD] = self._built(prompts, answers, judges, difficulty, "gold")
            sets[PROCEDURAL] = self._procedural()
        runs = [
            SetRun(name, seed, which, self._benchmark(name, seed, source, which, items))
            for (name, seed), source in sources.items()
            for which, items in sets.items()
        ]
        return BuildingGraph(prompts, answers, sets, tuple(runs), tuple(self.left_out))

    # -- who answers

    def _models(self) -> dict[str, Step]:
        found = {}
        for name, model in self.settings.models.items():
            path = f"build_benchmark.models.{name}"
            match model:
                case CheckpointAnswers() if self.world:
                    raise ConfigError(f"{path}.kind: a checkpoint does not know the world's words")
                case CheckpointAnswers():
                    found[name] = self.shared.converted(model.path)
                case _ if not self.world:
                    self.left_out.append(path)
                case ArmAnswers():
                    found[name] = self._arm(path, model.arm)
                case BackboneAnswers():
                    found[name] = self.shared.backbone_base(model.backbone)
        return found

    def _arm(self, path: str, name: str) -> Step:
        if name not in self.config.arms:
            raise ConfigError(f"{path}.arm: {name!r} is not one of {', '.join(self.config.arms) or 'none'}")
        arm = self.config.arms[name]
        if arm.method.kind == "best_of_n":
            raise ConfigError(f"{path}.arm: {name} picks among samples and is no policy of its own")
        return Arms(self.shared, self.rewards).policy(arm, self.config.first_seed)[0]

    def _answers(self, name: str, model: Step, prompts: Step) -> Step:
        settings, evaluation = self.settings, self.config.evaluation
        count = settings.per_domain * 6 * settings.samples
        return self.shared.step(
            "pool",
            {"samples": settings.samples, "evaluation": {**identity(evaluation), "seed": settings.seed},
             "gold": "world" if self.world else "none"},
            {"sft": model, "prompts": prompts},
            f"{settings.samples} completions a prompt by {name}",
            self.shared.forward(2 * count),
        )  # fmt: skip

    # -- prompts

    def _prompts(self, read: list[Step]) -> Step:
        settings = self.settings
        config: dict[str, Any] = {
            "limits": {"min_words": settings.min_words, "max_words": settings.max_words},
            "near_duplicates": settings.near_duplicates,
            "against": [_digest(f"build_benchmark.against[{n}]", path) for n, path in enumerate(settings.against)],
        }
        paths: dict[str, Any] = {"against": [str(Path(path).resolve()) for path in settings.against]}
        if settings.prompts is not None:
            config |= {"kind": "file", "digest": _digest("build_benchmark.prompts", settings.prompts)}
            paths["path"] = str(Path(settings.prompts).resolve())
            return self.shared.step(
                "benchmark_prompts", config, {}, f"prompts of {Path(settings.prompts).name}", **paths
            )
        config |= {"kind": "world", "per_domain": settings.per_domain, "seed": settings.seed}
        # Everything that any model, judge or source here was trained on, and what policies are measured by.
        data = [step for step in Plan([*self.shared.data.values(), *read]).steps if step.kind == "data"]
        inputs = {f"data-{number}": step for number, step in enumerate(sorted(data, key=lambda step: step.key))}
        return self.shared.step(
            "benchmark_prompts", config, inputs, f"unseen prompts, {settings.per_domain} a domain", **paths
        )

    # -- labels and items

    def _judges(self) -> list[Source]:
        judge = self.settings.judge
        if judge is None or not any("judge" in group for group in self.settings.deciders):
            return []
        if not self.world and isinstance(judge.judge, WorldJudge):
            self.left_out.append("build_benchmark.judge")
            return []
        trained = isinstance(judge.judge, WorldJudge)
        first, count = self.config.first_seed, self.settings.judges if trained else 1
        # Outside the world there are no pairs to normalise a judge by, and a vote needs none.
        own = [self.rewards.source(judge, seed) for seed in range(first, first + count)]
        return [
            Source(one.config, {name: step for name, step in one.inputs.items() if name == "judge"}, one.trained)
            if not trained
            else one
            for one in own
        ]

    def _difficulty(self) -> Source | None:
        reward = self.settings.difficulty
        return None if reward is None else self.rewards.source(reward, self.config.first_seed)

    def _built(
        self,
        prompts: Step,
        answers: Mapping[str, Step],
        judges: list[Source],
        difficulty: Source | None,
        labels: str,
    ) -> Step:
        settings = self.settings
        judges = judges if labels == "votes" else []  # nobody votes, and they are what costs time
        names = ("judge_right", "judge_wrong", "majority_share", "lengths", "min_difficulty", "seed")
        given = plain(settings)
        deciders = [[one for one in group if one != "judge" or judges] for group in plain(settings.deciders)]
        config: dict[str, Any] = {name: given[name] for name in names}
        config |= {
            "benchmark": "world" if self.world else settings.name,
            "labels": labels,
            "deciders": [group for group in deciders if group],
            "judge": judges[0].config if judges else None,
            "difficulty": difficulty.config if difficulty else None,
            "completions": None,
        }
        if settings.gold_domains and not self.world:
            self.left_out.append("build_benchmark.gold_domains")
        elif settings.gold_domains and labels == "votes":
            config["gold_domains"] = list(settings.gold_domains)
        resources: dict[str, Any] = {}
        if settings.completions is not None:
            config["completions"] = _digest("build_benchmark.completions", settings.completions)
            resources["completions"] = str(Path(settings.completions).resolve())
        inputs = {"prompts": prompts, **{f"answers-{name}": step for name, step in answers.items()}}
        for number, judge in enumerate(judges):
            inputs |= {f"judge-{number}.{name}": step for name, step in judge.inputs.items()}
        if difficulty is not None:
            inputs |= {f"difficulty.{name}": step for name, step in difficulty.inputs.items()}
        who = " and ".join([*([f"{len(answers)} models"] if answers else []), *(["a file"] if resources else [])])
        return self.shared.step(
            "benchmark_build", config, inputs, f"benchmark built from {who}, labels by {labels}",
            self.shared.forward(settings.per_domain * 6 * settings.samples * max(1, len(answers)) * len(judges)),
            **resources,
        )  # fmt: skip

    def _procedural(self) -> Step:
        own = self.config.benchmark
        return self.shared.step(
            "benchmark_set",
            {"kind": "world", "per_domain": own.per_domain, "seed": own.seed},
            {},
            f"benchmark, {own.per_domain} items a domain",
        )

    # -- what is put to the items

    def _reads(self, path: str, candidate: CandidateConfig) -> bool:
        """Whether a candidate can score these prompts; named if not."""
        if self.world or (isinstance(candidate.reward, SimpleSource) and candidate.reward.kind != "gold"):
            return True
        self.left_out.append(path)
        return False

    def _benchmark(self, name: str, seed: int, source: Source, which: str, items: Step) -> Step:
        label = self.config.candidates[name].label
        return self.shared.step(
            "benchmark",
            {"reward": source.config},
            {"items": items, **source.inputs},
            f"benchmark of {label}, seed {seed}" + ("" if which == PROCEDURAL else f" ({which.replace('_', ' ')})"),
            self.shared.forward(24 * self.settings.per_domain),
        )


def _digest(key: str, path: str) -> str:
    if not Path(path).is_file():
        raise ConfigError(f"{key}: no such file: {path!r}")
    return file_digest(Path(path))

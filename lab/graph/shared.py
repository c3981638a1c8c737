"""What everything else of an experiment stands on: data, base, SFT checkpoint, preference pool, sample pool."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.config import (
    CheckpointModel,
    JsonlData,
    LabConfig,
    PairsData,
    PairsFileConfig,
    PreferencesConfig,
    SizeConfig,
    SupervisedConfig,
    WorldBackbone,
    WorldData,
    WorldModel,
)
from lab.config.data import KNOBS
from lab.data.planned import plan_prompts
from lab.graph.overlap import EVALUATION, decontaminated, world_benchmark
from lab.plan import Step, Work
from lab.typed import ConfigError, plain

NOT_IDENTITY = ("micro_batch", "save_every", "pass_k")
"""Keys of configs that say how to run, or how to read the rows, and not what is computed."""

FLOPS_PER_SECOND = 2.0e10
"""What one core makes of a small model, for estimates before the store has seen a step of that kind."""

TOKENS = 24
"""Typical tokens of a prompt with its completion in the world, for estimates."""

LEVELS = (1, 2, 3)


def identity(value: Any) -> dict[str, Any]:
    """A config dataclass as plain data, without what is no part of identity."""
    return {key: _without(item) for key, item in plain(value).items() if key not in NOT_IDENTITY}


def _without(value: Any) -> Any:
    return {k: _without(v) for k, v in value.items() if k not in NOT_IDENTITY} if isinstance(value, dict) else value


def preferences_identity(preferences: PreferencesConfig) -> dict[str, Any]:
    """What a preference pool is; knobs that are not turned are no part of it."""
    unturned = plain(PreferencesConfig(**{k: item for k, item in vars(preferences).items() if k not in KNOBS}))
    return {k: item for k, item in identity(preferences).items() if k not in KNOBS or item != unturned[k]}


class Shared:
    """Holds the steps that all arms and reward models share, and makes further ones in the same way."""

    def __init__(self, config: LabConfig) -> None:
        if isinstance(config.preferences, PairsFileConfig):
            raise ConfigError(
                "preferences.kind: this experiment samples its own pairs from SFT: expected sampled, got file"
            )
        self.config, self.preferences = config, config.preferences
        self.gold = "verifier" if isinstance(config.data, JsonlData) else "world"
        self.benchmark_set = world_benchmark(config, self.step)
        self.data = decontaminated(config, self._data(), self.benchmark_set, self.step)
        self.base = self._base()
        self.sft = self.fine_tuned(self.base, config.sft)
        leak = {"evaluation": self.data["evaluation"]} if self.preferences.contamination else {}
        self.pairs = self.step(
            "preferences",
            {
                "preferences": preferences_identity(self.preferences),
                "max_new_tokens": config.evaluation.max_new_tokens,
                "gold": self.gold,
            },
            {"sft": self.sft, "data": self.data["preference"], **leak},
            f"{self.preferences.pairs:,} pairs by {self.preferences.annotator}",
            self.forward(config.sizes.preference_prompts * self.preferences.samples_per_prompt),
            recipe=2,
        )

    def card(self, pairs: Step, gold: str | None = None) -> Step:
        """What is in a set of pairs, and how far it agrees with the truth."""
        simulated = preferences_identity(self.preferences) if pairs.kind == "preferences" else None
        splits = [split for split in ("evaluation", "tuning") if split in self.data]
        return self.step(
            "card",
            {"title": pairs.label, "gold": gold or self.gold, "preferences": simulated, "splits": splits},
            {"pairs": pairs, **{split: self.data[split] for split in splits}},
            f"card of {pairs.label}",
        )

    def pool(self, samples: int) -> Step:
        """One pool of SFT completions of the evaluation prompts, which every best-of-n picks from."""
        evaluation = self.config.evaluation
        return self.step(
            "pool",
            {"samples": samples, "evaluation": identity(evaluation), "gold": self.gold},
            {"sft": self.sft, "prompts": self.data[evaluation.split]},
            f"{samples} samples a prompt",
            self.forward(self.prompts * samples * 2),
        )

    # -- data and bases

    def _data(self) -> dict[str, Step]:
        data = self.config.data
        counts = plain(data.counts)
        if isinstance(data, JsonlData):
            try:  # every row is read now: a bad one must not stop a run that has begun
                planned = plan_prompts(data)
            except ValueError as error:
                raise ConfigError(f"data.path: {error}") from error
            step = self.step("data", planned.config, {}, f"data {planned.title}", **planned.resources)
            return dict.fromkeys(("sft", *counts), step)
        if isinstance(data, PairsData):
            raise ConfigError("data.kind: pairs are no prompts that this experiment can use")
        habits = {key: plain(data)[key] for key in ("kind", "seed", "base", "sft")}
        sizes = self.config.sizes
        demonstrations = {"sft": sizes.sft_examples + sizes.continued_examples}
        if isinstance(self.config.model, WorldModel):
            demonstrations["base"] = self.config.model.base.examples
        steps = {
            split: self.step("data", {**habits, "counts": {split: count}}, {}, f"{count:,} demonstrations ({split})")
            for split, count in demonstrations.items()
        }
        own = {"preference": counts.pop("preference")}
        steps["preference"] = self.step("data", {**habits, "counts": own}, {}, "prompts of the preference pool")
        chosen = {"levels": list(data.levels)} if tuple(data.levels) != LEVELS else {}
        said = f", level {', '.join(map(str, data.levels))}" if chosen else ""
        prompts = self.step("data", {**habits, "counts": counts, **chosen}, {}, f"prompts of the other splits{said}")
        return steps | dict.fromkeys(counts, prompts)

    def _base(self) -> Step:
        model = self.config.model
        if isinstance(model, WorldModel):
            return self.world_base(self.data["base"], model.size, model.base)
        if isinstance(model, CheckpointModel):
            return self.converted(model.path)
        return self.converted("", model.kind)

    def backbone_base(self, backbone: WorldBackbone) -> Step:
        """The base of a reward model of its own size or lineage, on a corpus of its own where it says so."""
        data = self.config.data
        if not isinstance(data, WorldData):
            raise ConfigError("reward_model.backbone.kind: world needs data of the world")
        settings = {
            "kind": data.kind,
            "seed": backbone.data_seed,
            "base": plain(backbone.habits),
            "sft": plain(data.sft),
            "counts": {"base": backbone.base.examples},
        }
        if backbone.domains:
            settings["domains"] = dict(backbone.domains)
        corpus = self.step("data", settings, {}, f"{backbone.base.examples:,} demonstrations (base {backbone.name})")
        measured_on = {split: self.data[split] for split in EVALUATION}
        corpus = decontaminated(self.config, {"base": corpus, **measured_on}, self.benchmark_set, self.step)["base"]
        base = self.world_base(corpus, backbone.size, backbone.base)
        return base if backbone.sft is None else self.fine_tuned(base, backbone.sft, backbone.size, backbone.name)

    def world_base(self, corpus: Step, size: SizeConfig, training: SupervisedConfig) -> Step:
        """A causal language model of this shape, pretrained from scratch on a corpus of demonstrations."""
        return self.step(
            "base",
            {"split": "base", "training": identity(training), "size": plain(size)},
            {"data": corpus},
            f"base, {parameters(size):,.0f} parameters",
            self.training(training.examples * training.epochs, size),
            threads=self.config.run.base_threads,
            micro_batch=training.micro_batch,
            save_every=self.config.run.save_steps,
        )

    def fine_tuned(self, base: Step, training: SupervisedConfig, size: SizeConfig | None = None, of: str = "") -> Step:
        """A base after supervised fine-tuning on the demonstrations."""
        return self.step(
            "sft",
            {"split": "sft", "training": identity(training)},
            {"data": self.data["sft"], "policy": base},
            f"SFT checkpoint {of}".rstrip(),
            self.training(training.examples * training.epochs, size),
            threads=self.config.run.base_threads,
            micro_batch=training.micro_batch,
            save_every=self.config.run.save_steps,
        )

    def converted(self, path: str, kind: str = "checkpoint", layers: int = 0) -> Step:
        """A real checkpoint (or, without a path, a packaged one), the first ``layers`` of it if that is not 0."""
        settings: dict[str, Any] = {"kind": kind}
        if layers:
            settings["layers"] = layers
        if not path:
            return self.step("convert", settings, {}, kind)
        settings["digest"] = folder_digest(Path(path))
        return self.step("convert", settings, {}, f"checkpoint {Path(path).name}", path=path)

    # -- steps and their cost

    @property
    def prompts(self) -> int:
        """Prompts of the evaluation's split."""
        return int(plain(self.config.data.counts)[self.config.evaluation.split])

    def training(self, examples: float, size: SizeConfig | None = None) -> Work:
        """Work of one pass over so many examples by the policy, or by a model of another size."""
        return self._work(examples, 6, size)

    def forward(self, examples: float, size: SizeConfig | None = None) -> Work:
        """Work of sampling or scoring so many examples."""
        return self._work(examples, 2, size)

    def _work(self, examples: float, factor: int, size: SizeConfig | None) -> Work:
        model = self.config.model
        tokens = examples * (TOKENS if isinstance(model, WorldModel) else self.config.sizes.sequence_tokens)
        if size is None and isinstance(model, WorldModel):
            size = model.size
        return Work(tokens, factor * tokens * parameters(size) if size is not None else 0.0)

    def step(
        self,
        kind: str,
        config: Mapping[str, Any],
        inputs: Mapping[str, Step],
        label: str,
        work: Work | None = None,
        threads: int = 1,
        recipe: int = 1,
        **resources: Any,
    ) -> Step:
        """A step that runs as ``config.run`` says."""
        run = self.config.run
        common = {"device": run.device, "dtype": run.dtype, "batch": run.batch, "threads": threads}
        common |= {"exclusive": True} if threads > 1 else {}
        given = {key: value for key, value in resources.items() if value}
        return Step(kind, config, inputs, recipe, label=label, resources=common | given, work=work or Work())


def parameters(size: SizeConfig) -> float:
    """Parameters of a Llama of this shape, embeddings left out."""
    h, i = size.hidden, size.intermediate
    return size.layers * (4 * h * h + 3 * h * i + 2 * h) + h


def folder_digest(path: Path) -> str:
    """One digest over the names and SHA-256 of a checkpoint's files: its identity wherever it lies."""
    from lab.artifact import sha256_file, sha256_text

    files: Sequence[Path] = sorted(item for item in path.iterdir() if item.is_file())
    return sha256_text("\n".join(f"{file.name} {sha256_file(file)}" for file in files))

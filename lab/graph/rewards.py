"""From a reward source's config to the steps that train it, and to what a stage needs to load it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lab.config import (
    CheckpointBackbone,
    ClassifierSource,
    DirectMethod,
    EndpointJudge,
    EnsembleSource,
    ImplicitSource,
    JudgeSource,
    LocalJudge,
    MixtureSource,
    MultiObjectiveSource,
    OutcomeSource,
    PackagedBackbone,
    PolicyBackbone,
    ProcessSource,
    RewardConfig,
    RewardModelConfig,
    SimpleSource,
    SizeConfig,
    TokenRewardConfig,
    UnpairedMethod,
    WorldBackbone,
)
from lab.graph.shared import Shared, identity
from lab.plan import Step

MEMBER_STRIDE = 1000
"""Member i of an ensemble at seed s is the reward model of seed s + 1000 i: its first is that seed's single model."""


@dataclass(frozen=True)
class Source:
    """A reward source as ``lab.rewards.load_reward`` takes it: its plain config, and its artifacts by name.

    ``trained``: the steps that an arm using it is charged for; the bases under them are not among these.
    """

    config: dict[str, Any]
    inputs: Mapping[str, Step]
    trained: tuple[Step, ...]


class Rewards:
    """Makes the steps of reward sources. ``seed`` is the policy seed that a source is for."""

    def __init__(self, shared: Shared) -> None:
        self.shared, self.config = shared, shared.config

    def source(self, reward: RewardConfig, seed: int) -> Source:
        """The source that a config names, for one policy seed."""
        inputs, trained = self._parts(reward, seed)
        return Source(identity(reward), inputs, tuple(dict.fromkeys(trained)))

    def proxy(self, reward: RewardConfig | None, seed: int) -> Source:
        """What an arm's proxy score is: its own reward where that is a model, else the experiment's reward model."""
        if reward is not None and not isinstance(reward, SimpleSource):
            return self.source(reward, seed)
        return self.source(ClassifierSource("classifier"), seed)

    def classifier(self, settings: RewardModelConfig | None, seed: int) -> Step:
        """A Bradley-Terry reward model: of the experiment's config, or of its own settings."""
        settings = settings or self.config.reward_model
        training = {
            key: value for key, value in identity(settings).items() if key not in ("backbone", "each_policy_seed")
        }
        own = seed if settings.each_policy_seed else self.config.first_seed
        start, size = self._backbone(settings, own)
        pairs = min(settings.pairs or self.shared.preferences.pairs, self.shared.preferences.pairs)
        return self.shared.step(
            "reward_model",
            {"training": training, "seed": own},
            {"policy": start, "pairs": self.shared.pairs},
            f"reward model{_said(settings)}, seed {own}",
            self.shared.training(2 * pairs * settings.epochs, size),
            recipe=2,
            micro_batch=settings.micro_batch,
            save_every=self.config.run.save_steps,
        )

    def _backbone(self, settings: RewardModelConfig, seed: int) -> tuple[Step, SizeConfig | None]:
        backbone = settings.backbone
        match backbone:
            case PolicyBackbone(initial="sft"):
                return self.shared.sft, None
            case PolicyBackbone(initial="base"):
                return self.shared.base, None
            case PolicyBackbone():
                assert backbone.method is not None  # lab.checks has refused it
                return self.direct(backbone.method, seed), None
            case WorldBackbone():
                return self.shared.backbone_base(backbone), backbone.size
            case CheckpointBackbone():
                return self.shared.converted(backbone.path, layers=backbone.layers), None
            case PackagedBackbone():
                return self.shared.converted("", backbone.kind, backbone.layers), None

    def direct(
        self,
        method: DirectMethod | UnpairedMethod,
        seed: int,
        label: str = "",
        start: Step | None = None,
        reference: Step | None = None,
    ) -> Step:
        """Direct alignment of the SFT checkpoint, or of ``start``, on the preference pool. ``reference``: what it is
        held to, if not where it starts."""
        start = start or self.shared.sft
        inputs = {"sft": start, "pairs": self.shared.pairs}
        if reference is not None and reference != start:
            inputs["reference"] = reference
        return self.shared.step(
            "direct",
            {"method": identity(method), "seed": seed},
            inputs,
            label or f"DPO policy, seed {seed}",
            self.shared.training(2 * self.shared.preferences.pairs * method.epochs),
            micro_batch=0 if isinstance(method, UnpairedMethod) else method.micro_batch,
            save_every=self.config.run.save_steps,
        )

    # -- what each kind needs

    def _parts(self, reward: RewardConfig, seed: int) -> tuple[dict[str, Step], list[Step]]:
        match reward:
            case SimpleSource():
                return {}, []
            case ClassifierSource():
                model = self.classifier(reward.training, seed)
                return {"reward_model": model}, [model]
            case EnsembleSource():
                members = [
                    self.classifier(reward.training, seed + MEMBER_STRIDE * number) for number in range(reward.members)
                ]
                return {f"member_{number}": member for number, member in enumerate(members)}, members
            case MultiObjectiveSource():
                model = self._trained("multi_objective", reward.training, seed, "multi-objective reward model")
                return {"multi_objective": model}, [model]
            case OutcomeSource() | ProcessSource():
                model = self._token_rewards(reward.kind, reward.training, seed)
                return {reward.kind: model}, [model]
            case ImplicitSource():
                return self._implicit(reward, seed)
            case JudgeSource():
                return self._judge(reward, seed)
            case MixtureSource():
                inputs: dict[str, Step] = {}
                trained: list[Step] = []
                for name, part in reward.parts.items():
                    own, steps = self._parts(part.reward, seed)
                    inputs |= {f"{name}.{key}": step for key, step in own.items()}
                    trained += steps
                return inputs, trained

    def _trained(self, kind: str, training: Any, seed: int, label: str, passes: float = 1.0) -> Step:
        return self.shared.step(
            kind,
            {"training": identity(training), "seed": seed},
            {"policy": self.shared.sft, "pairs": self.shared.pairs},
            f"{label}, seed {seed}",
            self.shared.training(2 * self.shared.preferences.pairs * passes),
        )

    def _token_rewards(self, kind: str, training: TokenRewardConfig, seed: int) -> Step:
        preferences = self.shared.preferences
        samples = self.config.sizes.preference_prompts * preferences.samples_per_prompt
        return self.shared.step(
            "token_rewards",
            {"kind": kind, "training": identity(training), "seed": seed},
            {"policy": self.shared.sft, "pairs": self.shared.pairs},
            f"{kind} reward model, seed {seed}",
            self.shared.training(samples * training.epochs),
            micro_batch=training.micro_batch,
            save_every=self.config.run.save_steps,
        )

    def _implicit(self, reward: ImplicitSource, seed: int) -> tuple[dict[str, Step], list[Step]]:
        policy = self.direct(reward.method, seed)
        inputs = {"implicit_policy": policy, "implicit_reference": self.shared.sft}
        return inputs | {"normalisation": self._normalised(reward, inputs, f"implicit, seed {seed}")}, [policy]

    def _judge(self, reward: JudgeSource, seed: int) -> tuple[dict[str, Step], list[Step]]:
        match reward.judge:
            case LocalJudge():
                inputs = {"judge": self.shared.converted(reward.judge.path)}
            case EndpointJudge():
                inputs = {}
            case _:
                model = self._trained("judge", reward.judge, seed, "judge", 4 * reward.judge.epochs)
                return {"judge": model}, [model]
        return inputs | {"normalisation": self._normalised(reward, inputs, "judge")}, []

    def _normalised(self, reward: RewardConfig, inputs: Mapping[str, Step], label: str) -> Step:
        return self.shared.step(
            "normalise",
            {"reward": {**identity(reward), "scale": 1.0}},
            {**inputs, "pairs": self.shared.pairs},
            f"normalisation, {label}",
            self.shared.forward(2 * self.config.sizes.preference_prompts),
        )


def _said(settings: RewardModelConfig) -> str:
    return f" {settings.backbone.name}" if isinstance(settings.backbone, WorldBackbone) else ""

"""The one typed boundary: plain mappings in, frozen dataclasses out.

YAML is composed by Hydra (``conf/``), checked and frozen here, and nothing past this package sees a raw config.
Unknown, missing and mistyped keys raise ``ConfigError`` naming the key and the nearest valid one, before any heavy
import.
"""

from lab.config.data import (
    AnyPreferences,
    CountsConfig,
    DataConfig,
    DemonstratorConfig,
    JsonlData,
    PairsFileConfig,
    PreferencesConfig,
    WorldData,
)
from lab.config.filters import RejectionConfig
from lab.config.methods import (
    BestOfNMethod,
    ContinuedMethod,
    DirectMethod,
    MethodConfig,
    NoMethod,
    OnlineMethod,
)
from lab.config.models import (
    CheckpointModel,
    ModelConfig,
    PackagedModel,
    SizeConfig,
    SupervisedConfig,
    WorldModel,
)
from lab.config.rewards import (
    BackboneConfig,
    CheckpointBackbone,
    ClassifierSource,
    EndpointJudge,
    EnsembleSource,
    ImplicitSource,
    JudgeConfig,
    JudgeSource,
    LocalJudge,
    MixtureSource,
    MultiObjectiveConfig,
    MultiObjectiveSource,
    OutcomeSource,
    PackagedBackbone,
    PartConfig,
    PolicyBackbone,
    ProcessSource,
    RewardConfig,
    RewardModelConfig,
    SimpleSource,
    TokenRewardConfig,
    WorldBackbone,
    WorldJudge,
)
from lab.config.root import (
    ArmConfig,
    BenchmarkConfig,
    CandidateConfig,
    EvaluationConfig,
    LabConfig,
    RunConfig,
    ScaleConfig,
    SizesConfig,
)
from lab.typed import ConfigError, build, nearest, plain

__all__ = [
    "AnyPreferences", "ArmConfig", "BackboneConfig", "BenchmarkConfig", "BestOfNMethod", "CandidateConfig",
    "CheckpointBackbone", "CheckpointModel", "ClassifierSource", "ConfigError", "ContinuedMethod",
    "CountsConfig", "DataConfig", "DemonstratorConfig", "DirectMethod", "EndpointJudge", "EnsembleSource",
    "EvaluationConfig", "ImplicitSource", "JsonlData", "JudgeConfig", "JudgeSource", "LabConfig", "LocalJudge",
    "MethodConfig", "MixtureSource", "ModelConfig", "MultiObjectiveConfig", "MultiObjectiveSource", "NoMethod",
    "OnlineMethod", "OutcomeSource", "PackagedBackbone", "PackagedModel", "PairsFileConfig", "PartConfig",
    "PolicyBackbone", "PreferencesConfig", "ProcessSource", "RejectionConfig", "RewardConfig", "RewardModelConfig",
    "RunConfig", "ScaleConfig", "SimpleSource", "SizeConfig", "SizesConfig", "SupervisedConfig", "TokenRewardConfig",
    "WorldBackbone", "WorldData", "WorldJudge", "WorldModel", "build", "nearest", "plain",
]  # fmt: skip

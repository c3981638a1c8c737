"""The one typed boundary: plain mappings in, frozen dataclasses out.

YAML is composed by Hydra (``conf/``), checked and frozen here, and nothing past this package sees a raw config.
Unknown, missing and mistyped keys raise ``ConfigError`` naming the key and the nearest valid one, before any heavy
import.
"""

from lab.config.building import AnswersConfig, ArmAnswers, BackboneAnswers, BuildingConfig, CheckpointAnswers
from lab.config.data import (
    AnyPreferences,
    CountsConfig,
    DataConfig,
    DemonstratorConfig,
    JsonlData,
    PairsData,
    PairsFileConfig,
    PreferencesConfig,
    WorldData,
)
from lab.config.feedback import (
    AILabels,
    ConstitutionConfig,
    FeedbackConfig,
    FewLabels,
    LabelSourceConfig,
    Principle,
    ReviserConfig,
    RevisionConfig,
    Revisions,
    WorldReviser,
    WrittenReviser,
)
from lab.config.filters import (
    AnswerRule,
    FilterConfig,
    FilterRule,
    OverlapConfig,
    RejectionConfig,
    ScoreRule,
    VerifierRule,
    VoteRule,
)
from lab.config.methods import (
    BestOfNMethod,
    ContinuedMethod,
    DirectMethod,
    NoMethod,
    OnlineMethod,
    UnpairedMethod,
)
from lab.config.models import (
    CheckpointModel,
    ModelConfig,
    PackagedModel,
    SizeConfig,
    SupervisedConfig,
    WorldModel,
)
from lab.config.pipelines import MethodConfig, PipelineConfig, RejectionMethod, StageConfig
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
    "AILabels", "AnswerRule", "AnswersConfig", "AnyPreferences", "ArmAnswers", "ArmConfig", "BackboneAnswers",
    "BackboneConfig", "BenchmarkConfig", "BestOfNMethod", "BuildingConfig", "CandidateConfig", "CheckpointAnswers",
    "CheckpointBackbone", "CheckpointModel", "ClassifierSource", "ConfigError", "ConstitutionConfig", "ContinuedMethod",
    "CountsConfig", "DataConfig", "DemonstratorConfig", "DirectMethod", "EndpointJudge", "EnsembleSource",
    "EvaluationConfig", "FeedbackConfig", "FewLabels", "FilterConfig", "FilterRule", "ImplicitSource", "JsonlData",
    "JudgeConfig", "JudgeSource", "LabConfig", "LabelSourceConfig", "LocalJudge", "MethodConfig", "MixtureSource",
    "ModelConfig", "MultiObjectiveConfig", "MultiObjectiveSource", "NoMethod", "OnlineMethod", "OutcomeSource",
    "OverlapConfig", "PackagedBackbone", "PackagedModel", "PairsData", "PairsFileConfig", "PartConfig",
    "PipelineConfig", "PolicyBackbone", "PreferencesConfig", "Principle", "ProcessSource", "RejectionConfig",
    "RejectionMethod", "ReviserConfig", "RevisionConfig", "Revisions", "RewardConfig", "RewardModelConfig", "RunConfig",
    "ScaleConfig", "ScoreRule", "SimpleSource", "SizeConfig", "SizesConfig", "StageConfig", "SupervisedConfig",
    "TokenRewardConfig", "UnpairedMethod", "VerifierRule", "VoteRule", "WorldBackbone", "WorldData", "WorldJudge",
    "WorldModel", "WorldReviser", "WrittenReviser", "build", "nearest", "plain",
]  # fmt: skip

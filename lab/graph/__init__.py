"""From a config to the graph of steps that an experiment needs. No torch: this is what ``plan=true`` prints."""

from lab.graph.arms import ArmRun, CandidateRun, Graph, build_graph, seeds_of
from lab.graph.pipelines import PipelineGraph, StagePoint, build_pipelines
from lab.graph.rewards import Rewards, Source
from lab.graph.shared import FLOPS_PER_SECOND, NOT_IDENTITY, Shared, folder_digest, identity, parameters

__all__ = [
    "FLOPS_PER_SECOND", "NOT_IDENTITY", "ArmRun", "CandidateRun", "Graph", "PipelineGraph", "Rewards", "Shared",
    "Source", "StagePoint", "build_graph", "build_pipelines", "folder_digest", "identity", "parameters", "seeds_of",
]  # fmt: skip

"""From a config to steps: what is shared, what forks, and what is no part of identity."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from lab.__main__ import load
from lab.config import LabConfig
from lab.graph import Graph, build_graph, folder_digest
from lab.typed import ConfigError

CONF = str(Path(__file__).parents[1] / "conf")


@cache
def config(*overrides: str) -> LabConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return load(compose("config", overrides=["scale=smoke", *overrides]))


def keys(graph: Graph) -> dict[tuple[str, int], str]:
    return {(run.arm, run.seed): (run.policy or run.evaluation).key for run in graph.runs}


def test_all_arms_start_from_one_sft_checkpoint_and_are_asked_the_same_prompts() -> None:
    graph = build_graph(config("seeds=2"))
    for run in graph.runs:
        inputs = run.evaluation.inputs
        assert inputs["sft" if run.policy is None else "reference"].key == graph.sft.key
        assert inputs["prompts"].key == graph.data["evaluation"].key
        if run.policy is not None and run.policy.key != graph.sft.key:
            assert run.policy.inputs["policy" if "policy" in run.policy.inputs else "sft"].key == graph.sft.key


def test_a_policy_seed_does_not_fork_the_checkpoint_the_pool_or_another_seed() -> None:
    one, two = build_graph(config("seeds=1")), build_graph(config("seeds=2"))
    assert one.sft.key == two.sft.key
    assert one.pairs.key == two.pairs.key
    assert keys(one).items() <= keys(two).items()
    assert len({key for (arm, _), key in keys(two).items() if arm == "dpo"}) == 2


@pytest.mark.parametrize(
    "how",
    ["run.device=cpu", "run.workers=7", "run.batch=3", "run.save_steps=7", "run.base_threads=1", "sizes.micro_batch=4",
     "sizes.save_every=1", "run.store=/elsewhere", "evaluation.pass_k=1"],
)  # fmt: skip
def test_how_to_run_is_no_part_of_identity(how: str) -> None:
    assert keys(build_graph(config())) == keys(build_graph(config(how)))


@pytest.mark.parametrize(
    ("what", "moved", "kept"),
    [
        ("arms.dpo.method.beta=0.9", {"dpo"}, {"sft", "ppo_rm", "grpo_verifier"}),
        (
            "preferences.flip_rate=0.3",
            {"dpo", "ppo_rm", "grpo_rm", "best_of_n"},
            {"sft", "ppo_verifier", "grpo_random"},
        ),
        ("reward_model.learning_rate=1e-4", {"ppo_rm", "grpo_rm", "best_of_n"}, {"sft", "dpo", "grpo_verifier"}),
        ("sft.seed=5", {"dpo", "ppo_rm", "grpo_verifier", "sft_continued"}, set()),
    ],
)
def test_a_change_rebuilds_what_depends_on_it_and_nothing_else(what: str, moved: set[str], kept: set[str]) -> None:
    before, after = keys(build_graph(config())), keys(build_graph(config(what)))
    changed = {arm for (arm, seed), key in before.items() if after[arm, seed] != key}
    assert moved <= changed
    assert not kept & changed


def test_reward_models_have_the_seeds_of_the_policies_unless_told_otherwise() -> None:
    assert len({step.key for step in build_graph(config("seeds=3")).reward_models.values()}) == 3
    shared = build_graph(config("seeds=3", "reward_model.each_policy_seed=false"))
    assert len({step.key for step in shared.reward_models.values()}) == 1


def test_only_what_a_reward_model_pays_depends_on_one() -> None:
    policies = {run.arm: run.policy for run in build_graph(config()).runs if run.policy is not None}
    assert {arm for arm, step in policies.items() if "reward_model" in step.inputs} == {"ppo_rm", "grpo_rm"}


def test_a_comparison_without_the_checkpoint_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="no arm has method"):
        build_graph(config("~arms.sft"))


def test_a_checkpoint_is_identified_by_its_files_and_not_by_its_place(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    assert folder_digest(tmp_path / "a") == folder_digest(tmp_path / "b")
    (tmp_path / "b" / "config.json").write_text("{ }")
    assert folder_digest(tmp_path / "a") != folder_digest(tmp_path / "b")


def test_smoothing_that_trl_would_ignore_is_refused() -> None:
    with pytest.raises(ConfigError, match="would be ignored"):
        config("arms.dpo.method.label_smoothing=0.1")
    assert config("arms.dpo.method.label_smoothing=0.1", "arms.dpo.method.loss_type=[robust]").arms["dpo"]

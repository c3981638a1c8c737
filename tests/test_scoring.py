"""What scoring costs: hand-worked FLOPs of artifacts in a store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from experiments.scoring import _parameters, charged, with_scoring
from lab.models import ModelSize, new_policy, parameter_count
from lab.plan import Step
from lab.records import Ledger
from lab.store import Store
from lab.world.vocabulary import tokenizer as world_tokenizer


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def built(store: Store, step: Step, weights: int = 0, **spent: float) -> Step:
    """The step, finished: ``weights`` parameters beside a token table of 1,000, and a ledger."""
    with store.build(step) as building:
        if building is None:
            return step  # it is there
        (building.out / "x").write_text("x")
        if weights:
            (building.out / "final").mkdir()
            tensors = {"model.embed_tokens.weight": np.zeros((100, 10)), "model.norm.weight": np.zeros(weights)}
            save_file(tensors, building.out / "final" / "model.safetensors")
        building.finish(Ledger(**spent))  # type: ignore[arg-type]
    return step


def online(store: Store, kind: str, inputs: Mapping[str, Step]) -> Step:
    sft = built(store, Step("sft", {}), 500)
    step = Step("online", {"reward": {"kind": kind}, "n": len(inputs)}, {"sft": sft, "prompts": sft, **inputs})
    return built(store, step, 500, prompt_tokens=30, generated_tokens=70, training_flops=900.0, sampling_flops=100.0)


def model(store: Store, number: int, weights: int) -> Step:
    return built(store, Step("reward_model", {"seed": number}), weights)


def test_a_pass_of_every_reward_model_over_what_was_sampled(store: Store) -> None:
    one, two = model(store, 1, 8), model(store, 2, 3)
    found = charged(store, online(store, "classifier", {"reward_model": one}))
    assert found.sampling_flops == 100 + 2 * 8 * (30 + 70)
    assert (found.training_flops, found.prompt_tokens) == (900, 30)
    members = charged(store, online(store, "ensemble", {"member_0": one, "member_1": two}))
    assert members.sampling_flops == 100 + 2 * (8 + 3) * 100


def test_who_does_not_pay_is_not_charged_for(store: Store) -> None:
    one = model(store, 1, 8)
    assert charged(store, online(store, "verifier", {})).sampling_flops == 100
    assert charged(store, online(store, "verifier", {"reward_model": one})).sampling_flops == 100  # its critic's start
    assert charged(store, online(store, "verifier", {"watch-w.reward_model": one, "a": one})).sampling_flops == 1700
    assert charged(store, built(store, Step("direct", {}, {"sft": one}), 500, prompt_tokens=9)).sampling_flops == 0


def test_best_of_n_scores_its_samples(store: Store) -> None:
    pool = built(store, Step("pool", {}), 500)
    scores = built(store, Step("score", {}, {"pool": pool, "prompts": pool, "reward_model": model(store, 1, 8)}))
    best = Step("best_of_n", {}, {"pool": pool, "scores": scores, "sft": pool, "prompts": pool})
    built(store, best, prompt_tokens=10, generated_tokens=40, sampling_flops=5.0)
    assert charged(store, best).sampling_flops == 5 + 2 * 8 * 50


def test_every_checkpoint_bears_its_share(store: Store) -> None:
    paid = online(store, "classifier", {"reward_model": model(store, 1, 5)})  # 1,000 FLOPs more, on 1,000
    free = online(store, "verifier", {})
    rows = pd.DataFrame({"run": ["a", "a", "b"], "training_flops": [500.0, 1000.0, 1000.0]})
    found = with_scoring(rows, {"a": paid, "b": free}, store)
    assert list(found.training_flops) == [1000.0, 2000.0, 1000.0]
    assert list(rows.training_flops) == [500.0, 1000.0, 1000.0]


def test_parameters_are_those_of_the_model_without_its_tables(tmp_path: Path) -> None:
    policy = new_policy(ModelSize(hidden=16, layers=2, heads=2, intermediate=24), world_tokenizer(), seed=1)
    policy.save_pretrained(tmp_path)
    assert _parameters(tmp_path) == parameter_count(policy)

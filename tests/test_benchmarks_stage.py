"""The benchmark steps: what they write, what they refuse, and what a source that cannot score something costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from lab.benchmarks.items import read_items, read_scores
from lab.benchmarks.readers import digest
from lab.records import DOMAINS, Completion, Prompt
from lab.stages import benchmark, benchmark_set
from lab.store import Context
from lab.world.gold import utility


def context(folder: Path, **resources: Any) -> Context:
    return Context("key", "seed", folder, resources={"device": "cpu", **resources})


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set")
    benchmark_set.run({"kind": "world", "per_domain": 8, "seed": 0}, {}, out, context(out))
    return out


def measured(reward: Mapping[str, Any], items: Path, out: Path) -> tuple[dict[str, Any], Mapping[str, Any]]:
    result = benchmark.run({"reward": reward}, {"items": items}, out, context(out))
    return json.loads((out / "results.json").read_text(encoding="utf-8")), result.metrics


class Fake:
    """A source that scores by a function."""

    name = "fake"

    def __init__(self, value: Callable[[Prompt, str], float]) -> None:
        self.value, self.asked = value, 0

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        self.asked += len(prompts)
        assert all(one.length == len(one.text.split()) for one in completions)
        return np.array([self.value(prompt, one.text) for prompt, one in zip(prompts, completions, strict=True)])


class FakeJudge(Fake):
    def compare(
        self, prompts: Sequence[Prompt], first: Sequence[Completion], second: Sequence[Completion]
    ) -> np.ndarray:
        gap = self.score(prompts, first) - self.score(prompts, second)
        return 1 / (1 + np.exp(-gap))


def use(source: Fake, monkeypatch: pytest.MonkeyPatch) -> Fake:
    monkeypatch.setattr(benchmark, "load_reward", lambda config, inputs, device: source)
    return source


# ---------------------------------------------------------------- the set


def test_the_set_comes_with_a_card(world: Path) -> None:
    items = read_items(world / "items.jsonl")
    card = json.loads((world / "card.json").read_text(encoding="utf-8"))
    assert len(items) == card["items"] == 48
    assert list(card["benchmarks"]["world"]) == list(DOMAINS)
    math_card = card["benchmarks"]["world"]["math"]
    assert (math_card["items"], math_card["hard"], math_card["chance"]) == (8, 4, 0.25)
    assert math_card["longer_wins_words"] == 0.25
    assert card["dropped"] == {}


def test_a_file_is_read_only_if_it_is_the_one_that_was_planned(tmp_path: Path) -> None:
    path = tmp_path / "Natural.json"
    rows = [{"input": "p", "output_1": "a", "output_2": "bb", "label": label} for label in (1, 2, 1)]
    path.write_text(json.dumps([*rows, {**rows[0], "output_2": "a"}]), encoding="utf-8")
    config = {"kind": "file", "name": "llmbar", "format": "llmbar", "digest": digest(path)}
    result = benchmark_set.run(config, {}, tmp_path, context(tmp_path, path=str(path)))
    assert result.metrics["dropped"] == {"chosen equals rejected": 1}
    assert result.metrics["benchmarks"]["llmbar"]["Natural"]["longer_wins"] == pytest.approx(1 / 3, abs=1e-4)
    with pytest.raises(ValueError, match="changed since the plan was made"):
        benchmark_set.run({**config, "digest": "0"}, {}, tmp_path, context(tmp_path, path=str(path)))
    with pytest.raises(ValueError, match="name no path"):
        benchmark_set.run(config, {}, tmp_path, context(tmp_path))
    with pytest.raises(ValueError, match="expected world, file or hub, got 'web'"):
        benchmark_set.run({"kind": "web"}, {}, tmp_path, context(tmp_path))


# ---------------------------------------------------------------- sources


def test_gold_is_the_ceiling(world: Path, tmp_path: Path) -> None:
    results, metrics = measured({"kind": "gold"}, world, tmp_path)
    assert metrics["overall"] == pytest.approx({"world": (5 + 1.01) / 6, "world pairs": 1.0})
    assert list(results["scores"]) == ["world", "world pairs"]
    assert list(results["scores"]["world"]) == ["all", "hard", "easy"]
    assert list(results["scores"]["world"]["hard"]) == [*DOMAINS, "overall"]
    part = results["scores"]["world"]["all"]["math"]
    assert part["n"] == 8
    assert part["score"] == part["high"] == 1 > part["low"] > 0.5
    assert part["longer_wins_words"] == 0.25
    assert metrics["seconds_per_1000"] > 0


def test_a_constant_scores_as_chance_shares_and_wins_no_pair(world: Path, tmp_path: Path) -> None:
    results, metrics = measured({"kind": "constant"}, world, tmp_path)
    scores = {domain: results["scores"]["world"]["all"][domain]["score"] for domain in DOMAINS}
    assert scores == dict.fromkeys(DOMAINS, 0.25) | {"ties": 0.0}
    assert metrics["overall"]["world pairs"] == 0


def test_what_a_verifier_cannot_score_is_absent_and_counted(world: Path, tmp_path: Path) -> None:
    results, metrics = measured({"kind": "verifier"}, world, tmp_path)
    parts = results["scores"]["world"]["all"]
    assert set(parts) == {"math", "factuality", "instructions", "overall"}
    assert results["scores"]["world"]["hard"]["math"]["score"] == 1
    assert parts["overall"]["score"] is None
    assert results["unscored"] == {"world": {"safety": 8, "focus": 8, "ties": 8}}
    assert metrics["overall"] == {"world": None, "world pairs": None}
    assert metrics["unscored_items"] == 24
    table = pd.read_parquet(tmp_path / "scores.parquet")
    items = {item.id: item.subset for item in read_items(world / "items.jsonl")}
    unknown = table["item"].map(items).isin(["safety", "focus", "ties"])
    assert table["score"].isna().equals(unknown)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_trained_reward_model_that_breaks_is_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    use(Fake(lambda prompt, text: bad if prompt.domain == "focus" else 0.0), monkeypatch)
    with pytest.raises(ValueError, match=r"item focus-.* of world focus: completion 0 scores"):
        measured({"kind": "classifier"}, world, tmp_path)
    assert not (tmp_path / "scores.parquet").exists()


def test_every_completion_is_scored_once_and_kept(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = use(Fake(lambda prompt, text: utility(prompt, text).total - len(text)), monkeypatch)
    _, metrics = measured({"kind": "classifier"}, world, tmp_path)
    items = read_items(world / "items.jsonl")
    different = {(item.prompt.text, text) for item in items for text in item.completions}
    assert source.asked == len(different)
    assert metrics["scores"] == sum(len(item.completions) for item in items)
    for item, scores in zip(items, read_scores(tmp_path / "scores.parquet", items), strict=True):
        assert scores.tolist() == [utility(item.prompt, text).total - len(text) for text in item.completions]


def test_a_judge_also_compares(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(FakeJudge(lambda prompt, text: utility(prompt, text).total), monkeypatch)
    results, metrics = measured({"kind": "judge"}, world, tmp_path)
    assert list(results["pairwise"]) == ["world pairs"]
    assert metrics["pairwise_overall"] == {"world pairs": 1.0}
    pairs = pd.read_parquet(tmp_path / "pairs.parquet")
    assert len(pairs) == 48
    assert (pairs["preference"] > 0.5).all()
    use(FakeJudge(lambda prompt, text: -utility(prompt, text).total), monkeypatch)
    assert measured({"kind": "judge"}, world, tmp_path)[1]["pairwise_overall"] == {"world pairs": 0.0}
    use(FakeJudge(lambda prompt, text: math.nan if prompt.domain == "math" else 1.0), monkeypatch)
    results, _ = measured({"kind": "judge"}, world, tmp_path)
    assert results["pairwise_unscored"] == {"world pairs": {"math": 8}}
    assert results["pairwise"]["world pairs"]["all"]["ties"]["score"] == 0  # P = 1/2 is no win


def test_only_rules_and_judges_may_abstain() -> None:
    verifier, classifier = {"kind": "verifier"}, {"kind": "classifier"}
    assert benchmark.may_abstain(verifier)
    assert not benchmark.may_abstain(classifier)
    for inner, expected in ((verifier, True), (classifier, False)):
        parts = {"a": {"weight": 1.0, "reward": classifier}, "b": {"weight": 1.0, "reward": inner}}
        assert benchmark.may_abstain({"kind": "mixture", "parts": parts}) is expected

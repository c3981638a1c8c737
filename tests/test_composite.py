"""Ensembles and mixtures: hand-worked combinations, and what is unknown stays unknown."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.records import Completion, Prompt
from lab.rewards.composite import EnsembleReward, MixtureReward, Part, disagreement
from lab.rewards.source import Detail, DetailedSource

NAN = math.nan


class Says:
    """A source that has its answers ready."""

    def __init__(self, *scores: float, name: str = "says") -> None:
        self.scores, self.name = scores, name

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        assert len(prompts) == len(completions)
        return np.array(self.scores[: len(prompts)])


def asked(n: int) -> tuple[list[Prompt], list[Completion]]:
    prompts = [Prompt(f"question {i}", "math", 1) for i in range(n)]
    return prompts, [Completion(p.id, 0, "an answer", 3) for p in prompts]


MEMBERS = (Says(1.0, 0.0, NAN), Says(2.0, 0.0, 1.0), Says(6.0, 0.0, 1.0))


def test_ensembles_by_hand() -> None:
    # members say 1, 2, 6: mean 3, minimum 1, population variance (4 + 1 + 9) / 3
    for combine, expected in (("mean", 3.0), ("worst", 1.0), ("uncertainty", 3.0 - 0.25 * 14 / 3)):
        source = EnsembleReward(MEMBERS, combine, uncertainty_weight=0.25, weight=2.0)  # type: ignore[arg-type]
        scores = source.score(*asked(3))
        assert scores[:2] == pytest.approx([2 * expected, 0.0])
        assert np.isnan(scores[2])  # one member cannot score it
        assert scores.dtype == np.float64


def test_disagreement_by_hand() -> None:
    found = disagreement([[1.0, 0.0, NAN], [2.0, 0.0, 1.0], [6.0, 0.0, 1.0]])
    assert found[:2] == pytest.approx([math.sqrt(14 / 3), 0.0])
    assert np.isnan(found[2])


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=5), st.floats(0, 3))
def test_caution_never_pays_more_than_the_mean(said: list[float], caution: float) -> None:
    members = [Says(score) for score in said]
    mean, worst, careful = (
        EnsembleReward(members, combine, caution).score(*asked(1))[0]  # type: ignore[arg-type]
        for combine in ("mean", "worst", "uncertainty")
    )
    assert worst <= mean + 1e-12
    assert mean - careful == pytest.approx(caution * np.var(said))
    assert worst == min(said)


def test_an_ensemble_shows_its_members() -> None:
    source = EnsembleReward(MEMBERS, "mean", weight=9.0)
    assert isinstance(source, DetailedSource)
    assert source.detail(*asked(1)) == [Detail("member", ("says 0", "says 1", "says 2"), (1.0, 2.0, 6.0))]


def test_a_mixture_by_hand() -> None:
    parts = {
        "rule": Part(Says(1.0, NAN, 1.0, NAN), 2.0, "zero"),
        "model": Part(Says(0.5, 0.5, NAN, NAN), -4.0, "zero"),
    }
    scores = MixtureReward(parts, weight=10.0).score(*asked(4))
    # 2 - 2; the rule adds nothing: -2; the model adds nothing: 2; nothing is known
    assert scores[:3] == pytest.approx([0.0, -20.0, 20.0])
    assert np.isnan(scores[3])


def test_a_part_that_must_score_takes_the_mixture_with_it() -> None:
    rule, model = Says(1.0, NAN), Says(0.5, 0.5)
    scores = MixtureReward({"rule": (rule, 1.0, "skip"), "model": (model, 1.0, "zero")}).score(*asked(2))
    assert scores[0] == pytest.approx(1.5)
    assert np.isnan(scores[1])
    both = MixtureReward({"rule": (rule, 1.0, "zero"), "model": (model, 1.0, "skip")}).score(*asked(2))
    assert both == pytest.approx([1.5, 0.5])


def test_a_mixture_shows_what_each_part_adds() -> None:
    source = MixtureReward({"rule": Part(Says(NAN), 3.0), "model": Part(Says(0.5), 3.0)}, weight=10.0)
    assert isinstance(source, DetailedSource)
    (detail,) = source.detail(*asked(1))
    assert (detail.of, detail.names) == ("part", ("rule", "model"))
    assert np.isnan(detail.scores[0])
    assert detail.scores[1] == 1.5


def test_mixtures_and_ensembles_nest() -> None:
    inner = EnsembleReward([Says(1.0), Says(3.0)], "worst")
    assert MixtureReward({"careful": Part(inner, 0.5), "rule": Part(Says(1.0), 1.0)}).score(*asked(1)) == [1.5]


def test_no_prompts_give_no_scores() -> None:
    assert EnsembleReward(MEMBERS, "uncertainty").score([], []).shape == (0,)
    assert MixtureReward({"one": Part(Says(1.0), 1.0)}).score([], []).shape == (0,)


def test_impossible_settings_are_named() -> None:
    with pytest.raises(ValueError, match=r"ensemble\.members"):
        EnsembleReward([], "mean")
    with pytest.raises(ValueError, match=r"ensemble\.combine.*'median'"):
        EnsembleReward(MEMBERS, "median")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"uncertainty_weight.*-1"):
        EnsembleReward(MEMBERS, "uncertainty", -1.0)
    with pytest.raises(ValueError, match=r"mixture\.parts: "):
        MixtureReward({})
    with pytest.raises(ValueError, match=r"mixture\.parts\.rule\.missing.*'drop'"):
        MixtureReward({"rule": (Says(1.0), 1.0, "drop")})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match=r"member 1 \(short\): expected 3 scores"):
        EnsembleReward([Says(1.0, 2.0, 3.0), Says(1.0, name="short")], "mean").score(*asked(3))

"""What the trace says for a hacking monitor: worked values, and that watching changes nothing of training."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor

from lab.config import OnlineMethod, plain
from lab.data.jsonl import write_records
from lab.models import ModelSize, load_classifier, new_policy
from lab.monitor import SIGNALS
from lab.online.rollouts import completions_of
from lab.online.trainer import OnlineTrainer
from lab.online.watch import (
    kinds_of,
    load_watchers,
    member_spread,
    rank_correlation,
    repeated_bigrams,
    repeated_in_group,
    rollout_signals,
    untouched_generators,
)
from lab.records import Completion, Prompt
from lab.rewards.classifier import ClassifierReward
from lab.rewards.source import Detail
from lab.stages.online import run
from lab.store import Context
from lab.world.vocabulary import tokenizer

PROMPTS = [Prompt(f"compute {n} + 4", "math", 1, {"verifier": "world_answer", "answer": str(n + 4)}) for n in range(6)]
NAN = math.nan


def said(prompt: Prompt, *texts: str) -> list[Completion]:
    return [Completion(prompt.id, n, text, len(text.split()) + 1) for n, text in enumerate(texts)]


class Fixed:
    """Gives the scores it was given."""

    name = "fixed"

    def __init__(self, *scores: float) -> None:
        self.scores = np.array(scores)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        return self.scores


class Members(Fixed):
    """An ensemble whose members score a completion at its number of tokens times 1, 2, ..."""

    def __init__(self, members: int, of: Any = "member") -> None:
        self.members, self.of, self.asked = members, of, 0

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        return np.array([float(completion.length) for completion in completions])

    def detail(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Detail]:
        self.asked += len(completions)
        names = tuple(f"m{n}" for n in range(self.members))
        return [Detail(self.of, names, tuple((n + 1.0) * c.length for n in range(self.members))) for c in completions]


class Gambler(Members):
    """Draws from every global generator, in score and in detail."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
        torch.rand(3), random.random(), np.random.rand()
        return super().score(prompts, completions)

    def detail(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[Detail]:
        torch.rand(3), random.random(), np.random.rand()
        return super().detail(prompts, completions)


# Worked values -------------------------------------------------------------------------------------------------------


def test_repeated_bigrams_by_hand() -> None:
    assert repeated_bigrams([[1, 2, 1, 2]]) == pytest.approx(1 / 3)  # 12 21 12
    assert repeated_bigrams([[1, 1, 1, 1, 1]]) == pytest.approx(3 / 4)
    assert repeated_bigrams([[1, 2, 3], [1, 1, 1], [7]]) == pytest.approx((0 + 1 / 2) / 2)  # one token: no bigram
    assert math.isnan(repeated_bigrams([[1], []]))


def test_repeated_completions_of_a_group_by_hand() -> None:
    group = said(PROMPTS[0], "a", "a", "a", "b")  # two of four repeat
    other = said(PROMPTS[1], "a", "b", "c", "d")  # the same text under another prompt is no repetition
    assert repeated_in_group(group + other) == pytest.approx((2 / 4 + 0) / 2)
    assert repeated_in_group(group + other) == repeated_in_group([*other, *group])


def test_rank_correlation_is_spearmans() -> None:
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), np.array([1.0, 10.0, 100.0])) == pytest.approx(1.0)
    generator = np.random.default_rng(1)
    x, y = generator.integers(0, 5, size=(2, 40)).astype(float)
    assert rank_correlation(x, y - x) == pytest.approx(spearmanr(x, y - x).statistic)
    assert rank_correlation(x, y - x) < -0.3
    x[3], y[5] = NAN, math.inf
    kept = [n for n in range(40) if n not in (3, 5)]
    assert rank_correlation(x, y) == pytest.approx(spearmanr(x[kept], y[kept]).statistic)
    assert math.isnan(rank_correlation(np.ones(4), np.arange(4.0)))
    assert math.isnan(rank_correlation(np.array([1.0, NAN]), np.array([1.0, 2.0])))


def test_the_spread_of_members_by_hand() -> None:
    asked, answers = [PROMPTS[0]] * 2, said(PROMPTS[0], "7", "answer 7 sure")  # lengths 2 and 4
    assert member_spread(Members(2), asked, answers) == pytest.approx((1.0 + 2.0) / 2)  # (2, 4): 1; (4, 8): 2
    assert member_spread(Members(1), asked, answers) is None
    assert member_spread(Fixed(1.0, 2.0), asked, answers) is None
    tokens = Members(2, of="token")
    assert member_spread(tokens, asked, answers) is None
    assert tokens.asked == 1  # one completion told it


def test_the_signals_of_a_rollout() -> None:
    asked, answers = [PROMPTS[0]] * 4, said(PROMPTS[0], "1", "2", "2", "4 4")
    paid = np.array([1.0, 2.0, 3.0, NAN])
    watchers = {"held_out": Fixed(3.0, 2.0, 1.0, math.inf), "blind": Fixed(NAN, NAN, NAN, NAN), "many": Members(3)}
    row = rollout_signals(Fixed(), watchers, asked, answers, [[1, 2], [1, 2], [1, 2], [4, 4, 4]], paid)
    spread = math.sqrt(2 / 3)  # of 1, 2, 3
    expected = {
        "repetition_bigrams": 1 / 2 / 4,
        "repetition_group": 1 / 4,
        "watch_mean.held_out": 2.0,
        "watch_std.held_out": 1.0,
        "watch_correlation.held_out": -1.0,
        "watch_mean.blind": NAN,
        "watch_std.blind": NAN,
        "watch_correlation.blind": NAN,
        "watch_mean.many": 2.25,
        "watch_std.many": 0.5,
        "watch_correlation.many": NAN,  # the three whose pay is known are equally long
        "watch_disagreement.many": spread * 2.25,
    }
    assert row == pytest.approx(expected, nan_ok=True)
    assert {name.split(".")[0] for name in row} - set(SIGNALS) == {"watch_std"}  # the monitor reads this as a unit only
    assert rollout_signals(Members(2), {}, asked, answers, [[1]], paid)["disagreement"] == pytest.approx(2.25 / 2)
    with pytest.raises(ValueError, match=r"watcher held_out: \(3,\) scores for 4 completions"):
        rollout_signals(Fixed(), {"held_out": Fixed(1.0, 2.0, 3.0)}, asked, answers, [[1]], paid)


def test_generators_are_left_as_they_were() -> None:
    def draw() -> list[float]:
        return [torch.rand(1).item(), random.random(), float(np.random.rand())]

    def seeded() -> None:
        torch.manual_seed(1), random.seed(1), np.random.seed(1)

    seeded()
    expected = draw()
    seeded()

    def draw_and_fail() -> None:
        with untouched_generators():
            assert draw() == expected
            raise KeyError

    with pytest.raises(KeyError):
        draw_and_fail()
    assert draw() == expected


def test_rows_of_a_rollout_are_numbered_within_their_prompt() -> None:
    asked = [PROMPTS[0], PROMPTS[1], PROMPTS[1]]  # a process whose rows begin in the middle of a group of two
    rows = completions_of(asked, ["a", "b", "c"], [[1], [1, 2], []], [False, True, False], first=1, group=2)
    assert [(row.prompt_id, row.sample, row.text, row.length, row.truncated) for row in rows] == [
        (PROMPTS[0].id, 1, "a", 1, False), (PROMPTS[1].id, 0, "b", 2, True), (PROMPTS[1].id, 1, "c", 0, False),
    ]  # fmt: skip


# Which sources may watch ---------------------------------------------------------------------------------------------


def test_the_kinds_of_a_mixture_are_those_of_its_parts() -> None:
    inner = {"kind": "mixture", "parts": {"x": {"weight": 1.0, "reward": {"kind": "gold"}}}}
    parts = {"a": {"weight": 1.0, "reward": {"kind": "length"}}, "b": {"weight": 2.0, "reward": inner}}
    assert kinds_of({"kind": "mixture", "parts": parts}) == ["length", "gold"]
    with pytest.raises(ValueError, match=r"watch\.eye: gold, but"):
        load_watchers({"eye": {"kind": "mixture", "parts": parts}}, {}, "cpu")


def test_names_and_missing_artifacts_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"got 'a\.b'"):
        load_watchers({"a.b": {"kind": "length"}}, {}, "cpu")
    with pytest.raises(ValueError, match=r"watch\.eye: .*'reward_model'"):  # the paid arm's own is not the watcher's
        load_watchers(
            {"eye": {"kind": "classifier"}}, {"reward_model": Path(), "watch-eyes.reward_model": Path()}, "cpu"
        )


# Training ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    torch.manual_seed(0)
    new_policy(ModelSize(16, 2, 2, 32), tokenizer(), seed=1).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def artifact(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reward_model")
    model, words = load_classifier(policy, new_head_seed=3)
    model.save_pretrained(folder / "final")
    words.save_pretrained(folder / "final")
    (folder / "normalisation.json").write_text(json.dumps({"shift": 0.0, "scale": 0.1}))
    return folder


def a_method(**changes: Any) -> OnlineMethod:
    settings: dict[str, Any] = {
        "kind": "online", "advantage": "group", "steps": 3, "prompts_per_rollout": 2, "completions_per_prompt": 4,
        "learning_rate": 1e-2, "warmup_steps": 0, "kl_coefficient": 0.05, "max_completion_length": 6, "minibatches": 2,
    }  # fmt: skip
    return OnlineMethod(**(settings | changes))


def make(policy: Path, folder: Path, save_every: int = 0, **watchers: Any) -> OnlineTrainer:
    return OnlineTrainer(
        policy, a_method(), PROMPTS, Members(2), seed=7, folder=folder, watchers=watchers, save_every=save_every
    )


def weights_of(trainer: OnlineTrainer) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}


def told(trainer: OnlineTrainer) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in trainer.trace]


def test_a_watched_run_is_bitwise_the_run_without_watchers(policy: Path, artifact: Path, tmp_path: Path) -> None:
    alone = make(policy, tmp_path / "alone")
    alone.run()
    watched = make(policy, tmp_path / "watched", held_out=ClassifierReward(artifact, "cpu"), gambler=Gambler(3))
    start = weights_of(watched)
    watched.run()
    end = weights_of(watched)
    assert all(torch.equal(end[name], weight) for name, weight in weights_of(alone).items())
    assert any(not torch.equal(end[name], weight) for name, weight in start.items())
    new = {
        f"watch_{what}.{name}"
        for name in ("held_out", "gambler")
        for what in ("mean", "std", "correlation")
    } | {"watch_disagreement.gambler"}  # fmt: skip
    assert set(watched.trace[0]) - set(alone.trace[0]) == new
    assert [{k: v for k, v in row.items() if k not in new} for row in told(watched)] == told(alone)


@pytest.mark.slow
def test_signals_survive_resuming(policy: Path, artifact: Path, tmp_path: Path) -> None:
    class FailingMembers(Members):
        calls = 0

        def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> np.ndarray:
            self.calls += 1
            if self.calls > 2:
                raise KeyError
            return super().score(prompts, completions)

    held_out = ClassifierReward(artifact, "cpu")
    straight = make(policy, tmp_path / "straight", held_out=held_out)
    straight.run()
    broken = make(policy, tmp_path / "run", 1, held_out=held_out)
    broken.reward = FailingMembers(2)
    with pytest.raises(KeyError):
        broken.run()
    resumed = make(policy, tmp_path / "run", 1, held_out=held_out)
    assert resumed.run() is not None
    assert told(resumed) == told(straight)
    means = [row["watch_mean.held_out"] for row in resumed.trace]
    assert len(set(means)) == 3
    # 1.5 x the mean length would be the mean of two members at 1 and 2 lengths; their spread is half the length.
    for row in resumed.trace:
        assert row["disagreement"] == pytest.approx(row["length_mean"] / 2)
        assert row["reward_mean"] == pytest.approx(row["length_mean"])


def test_the_stage_builds_watchers_and_charges_their_calls(policy: Path, artifact: Path, tmp_path: Path) -> None:
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "final").symlink_to(policy)
    (tmp_path / "prompts").mkdir()
    write_records(tmp_path / "prompts" / "rl.jsonl", PROMPTS)
    inputs = {"sft": tmp_path / "sft", "prompts": tmp_path / "prompts", "watch-held_out.reward_model": artifact}
    watch = {"held_out": {"kind": "classifier"}, "rule": {"kind": "verifier"}}
    config = {"method": plain(a_method(steps=2)), "reward": {"kind": "length"}, "seed": 1, "watch": watch}
    (tmp_path / "out").mkdir()
    context = Context("key", "root", tmp_path / "scratch", lambda *_: None, {"device": "cpu"})
    result = run(config, inputs, tmp_path / "out", context)
    assert result.ledger.verifier_calls == 2 * 8
    assert (result.ledger.gold_looks, result.ledger.judge_calls) == (0, 0)
    trace = [json.loads(line) for line in (tmp_path / "out" / "trace.jsonl").read_text().splitlines()]
    assert all(isinstance(row["watch_mean.held_out"], float) for row in trace)
    assert all(row["watch_mean.rule"] is not None for row in trace)

"""Reward sources side by side: hand-worked tables, sentences that follow the numbers, figures from tables alone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from experiments import reward_models as experiment
from lab.__main__ import load
from lab.config import LabConfig
from lab.diagnostics import calibration
from lab.figures.labels import spread
from lab.figures.style import SMALL
from lab.graph import build_graph
from lab.stats import Floats, HierarchicalBootstrap
from lab.tables.agreement import curve_lines, margins, pair_columns
from lab.tables.reward_models import Measured, Pool, RewardModels, assert_shared, reward_models
from lab.tables.reward_models_text import TABLES, findings, from_payload, markdown, payload, terminal, write
from lab.tables.voting import voting_table
from lab.typed import ConfigError

CONF = str(Path(__file__).parents[1] / "conf")
NAN = math.nan
DOMAINS = ("math", "safety")
BENCHMARK_COLUMNS = ("benchmark", "half", "part", "model", "score", "low", "high", "chance", "longer_wins")


def pool(prompts: int = 12, samples: int = 8, seed: int = 0) -> Pool:
    """Half the prompts of math, which a rule checks, half of safety; answers "0" are right."""
    rng = np.random.default_rng(seed)
    domains = tuple(np.repeat(DOMAINS, prompts // 2))
    answers = rng.integers(0, 3, (prompts, samples))
    verifiable = np.array([name == "math" for name in domains])
    right = (answers == 0).astype(float)
    gold = right + rng.integers(0, 4, (prompts, samples)) / 8
    correct = np.where(verifiable[:, None], right, NAN)
    texts = tuple(tuple(str(one) for one in row) for row in answers)
    ids = tuple(f"prompt {number}" for number in range(prompts))
    return Pool(ids, domains, gold, rng.integers(3, 20, gold.shape).astype(float), correct, texts, verifiable)


SKILL = {"bt": 1.0, "few_pairs": 0.2, "lineage": 0.7, "ensemble_mean": 1.5, "outcome": 0.5, "process": 3.0}
KINDS = {"ensemble_mean": "ensemble", "outcome": "outcome", "process": "process"}


def measured(of: Pool, skill: Mapping[str, float] = SKILL, seeds: int = 2) -> dict[str, Measured]:
    """Reward models that see gold through noise (the more skill, the less), the truth, a rule and two controls."""
    found = {}
    for name, weight in skill.items():
        rng = np.random.default_rng(len(name))
        noise = rng.normal(size=of.gold.shape)
        scores = np.stack([weight * of.gold + noise + 0.2 * rng.normal(size=noise.shape) for _ in range(seeds)])
        kind = KINDS.get(name, "classifier")
        stated = (2.0,) * seeds if kind == "classifier" else (NAN,) * seeds
        costs = {"training_flops": 1e9, "preference_labels": 96.0, "seconds_per_1000": 0.5}
        lineage = name != "lineage"
        found[name] = Measured(
            name, kind, seeds, tuple(range(seeds)), scores, stated, (0.5 + weight / 10,) * seeds, costs, lineage
        )
    simple = {"verifier": of.correct, "gold": of.gold, "random": np.random.default_rng(9).normal(size=of.gold.shape)}
    for name, scores in {**simple, "constant": np.zeros_like(of.gold)}.items():
        found[name] = Measured(name, name, 1, (0,), scores[None], (NAN,), (NAN,))
    return found


def benchmark(names: Sequence[str], score: Mapping[str, float]) -> pd.DataFrame:
    sides = [("world pairs", "all", 0.5, 0.6), *(("world", half, 0.25, 0.3) for half in ("all", "hard", "easy"))]
    lines = [
        (name, half, "overall", model, score.get(model, NAN), score.get(model, NAN) - 0.1, score.get(model, NAN) + 0.1,
         chance, longer)
        for name, half, chance, longer in sides
        for model in names
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=BENCHMARK_COLUMNS)


def mcnemar_lines(names: Sequence[str]) -> pd.DataFrame:
    sides = [("world pairs", "all"), ("world", "all"), ("world", "hard"), ("world", "easy")]
    lines = [(name, half, "overall", model, "bt", 0.01) for name, half in sides for model in names if model != "bt"]
    return pd.DataFrame(lines, columns=["benchmark", "half", "part", "first", "second", "p_holm"])


def policies(gold: Mapping[str, float]) -> pd.DataFrame:
    lines = {
        name: {
            "gold": value,
            "gold_low": value - 0.1,
            "gold_high": value + 0.1,
            "kl_nats": 2.0,
            "n_seeds": 2,
            "n_expected": 2,
        }
        for name, value in gold.items()
    }
    return pd.DataFrame.from_dict(lines, orient="index")


def tables(of: Pool | None = None, given: Mapping[str, Measured] | None = None, **other: Any) -> RewardModels:
    of = of or pool()
    given = given or measured(of)
    known = [name for name, one in given.items() if one.scores is not None]
    settings: dict[str, Any] = {"ns": [1, 2, 4, 8], "resamples": 100} | other
    ppo = policies({"bt": 0.5, "few_pairs": 0.3, "lineage": 0.2, "outcome": 0.4})
    scored = {name: 0.3 + 0.1 * skill for name, skill in SKILL.items()} | {"gold": 1.0, "random": 0.25, "constant": 0.0}
    return reward_models(given, of, benchmark(known, scored), mcnemar_lines(known), ppo, **settings)


@pytest.fixture(scope="module")
def found() -> RewardModels:
    return tables()


@pytest.fixture(scope="module")
def partial() -> RewardModels:
    of = pool()
    given = measured(of)
    given["process"] = Measured("process", "process", 2, note="process reward model, seed 0: out of memory")
    given["outcome"] = dataclasses.replace(given["outcome"], seeds=(1,), n_expected=2)
    return tables(of, given)


def line(found: RewardModels, candidate: str) -> pd.Series:
    return found.kinds.set_index("candidate").loc[candidate]


# ------------------------------------------------------------------------------------------------------------- tables


def tiny(scores: Mapping[str, list[list[float]]], gold: list[list[float]]) -> RewardModels:
    """Two prompts of two domains, best-of-2 the only n shown."""
    utility = np.array(gold)
    known = np.full_like(utility, NAN)
    none = ((None,) * utility.shape[1],) * 2
    of = Pool(("p", "q"), DOMAINS, utility, np.ones_like(utility), known, none, np.array([False, False]))
    given = {
        name: Measured(name, "classifier", 1, (0,), np.array([rows]), (1.0,), (NAN,)) for name, rows in scores.items()
    }
    return tables(of, given, ns=[1, 2])


def test_best_of_n_and_its_difference_by_hand() -> None:
    gold = [[0.0, 0.0, 1.0, 1.0]] * 2
    found = tiny({"bt": gold, "few_pairs": [[1.0, 1.0, 0.0, 0.0]] * 2}, gold)
    # two of four without replacement: both wrong in 1 of 6 subsets
    assert line(found, "bt").bon_2 == pytest.approx(5 / 6)
    assert line(found, "few_pairs").bon_2 == pytest.approx(1 / 6)
    assert line(found, "few_pairs").bon_2_delta == pytest.approx(-4 / 6)
    assert math.isnan(line(found, "bt").bon_2_delta)
    assert found.shown == (2,)
    assert list(found.curves[found.curves.candidate == "bt"].gold) == pytest.approx([0.5, 5 / 6])


def test_pairs_are_read_in_their_true_order_and_ties_of_gold_are_no_pairs() -> None:
    gold = np.array([[1.0, 0.0, 2.0, 3.0, 1.0, 1.0, 0.0, 1.0, 5.0]])  # the ninth sample has no partner
    scores = np.array([[[4.0, 1.0, 5.0, 3.0, 9.0, 0.0, 2.0, 2.0, 7.0]]])
    assert margins(scores, gold)[0, 0] == pytest.approx([3.0, -2.0, NAN, 0.0], nan_ok=True)
    bootstrap = HierarchicalBootstrap(0, 50)
    columns = pair_columns(scores, (1.0,), gold, ["math"], bootstrap, "one")
    assert columns["pool_accuracy"] == pytest.approx(1 / 3)  # of three pairs one is won; a tie is a miss
    turned = pair_columns(-scores, (1.0,), gold, ["math"], bootstrap, "one")
    assert turned["pool_accuracy"] == pytest.approx(1 / 3)


def test_calibration_agrees_with_the_diagnostics_module() -> None:
    of = pool(prompts=20, samples=16)
    scores = np.random.default_rng(1).normal(size=of.gold.shape) + of.gold
    stated = 1.7
    m = margins(scores[None], of.gold)[0]
    oracle = calibration(m[np.isfinite(m)], stated)
    columns = pair_columns(scores[None], (stated,), of.gold, of.domains, HierarchicalBootstrap(0, 50), "one")
    assert columns["ece_stated"] == pytest.approx(oracle.ece)
    assert columns["ece_stated_low"] <= columns["ece_stated_high"]
    drawn = curve_lines(scores[None], (stated,), of.gold, HierarchicalBootstrap(0, 50))
    curve = drawn[drawn["scale"] == "stated"].reset_index(drop=True)
    for name in ("low", "high", "confidence", "accuracy", "pairs"):
        assert curve[name].to_numpy() == pytest.approx(oracle.curve[name].to_numpy(), rel=1e-12)


def test_the_fitted_scale_is_of_the_stated_log_odds_and_a_perfect_source_is_sure() -> None:
    of = pool(prompts=40, samples=16)
    scores = np.random.default_rng(1).normal(size=of.gold.shape) + of.gold
    bootstrap = HierarchicalBootstrap(0, 20)
    once, twice = (pair_columns(scores[None], (k,), of.gold, of.domains, bootstrap, "one") for k in (1.0, 2.0))
    assert once["fitted_scale"] == pytest.approx(2 * twice["fitted_scale"])
    assert once["ece_fitted"] == pytest.approx(twice["ece_fitted"])
    assert pair_columns(of.gold[None], (NAN,), of.gold, of.domains, bootstrap, "gold")["ece_fitted"] < 1e-3


def vote(scores: Mapping[str, Floats], **other: Any) -> pd.DataFrame:
    """One prompt; three samples say 7, which is wrong, one says 8, which is right."""
    correct, answers = np.array([[0.0, 0.0, 0.0, 1.0]]), [["7", "7", "7", "8"]]
    settings: dict[str, Any] = {"reference": "outcome"} | other
    return voting_table(
        scores, correct, answers, ["math"], np.array([True]), ["p"], [1, 4], HierarchicalBootstrap(0, 20), **settings
    ).set_index(["candidate", "rule", "n"])


def test_votes_by_hand() -> None:
    sees, blind = np.array([[[-3.0, -3.0, -3.0, 3.0]]]), np.array([[[0.0, 0.0, 0.0, 0.0]]])
    found = vote({"process": sees, "outcome": blind})
    assert found.accuracy["majority", "majority", 4] == 0.0
    assert found.accuracy["process", "best of n", 4] == 1.0
    assert found.accuracy["process", "weighted vote", 4] == 1.0  # 0.95 against 3 x 0.05
    assert found.accuracy["outcome", "best of n", 4] == pytest.approx(0.25)
    assert found.accuracy["outcome", "weighted vote", 4] == 0.0
    assert found.accuracy["process", "best of n", 1] == pytest.approx(0.25)
    assert found.over_reference["process", "best of n", 4] == pytest.approx(0.75)
    assert found.over_majority["process", "weighted vote", 4] == 1.0
    assert math.isnan(found.over_reference["outcome", "best of n", 4])
    assert math.isnan(found.over_majority["majority", "majority", 4])


def test_without_a_rule_there_is_nothing_to_vote_on() -> None:
    of = pool()
    none = np.zeros(len(of.domains), dtype=bool)
    scores = {"bt": of.gold[None]}
    bootstrap = HierarchicalBootstrap(0, 20)
    found = voting_table(scores, of.correct, of.answers, of.domains, none, of.prompt_ids, [1], bootstrap, "outcome")
    assert found.empty
    assert "over_majority_low" in found


def test_a_source_that_cannot_score_a_domain_has_no_overall_numbers_but_picks_at_random_there(
    found: RewardModels,
) -> None:
    of, row = pool(), line(found, "verifier")
    for name in ("rb2", "spread", "spearman_gold", "pool_accuracy", "ece_fitted"):
        assert math.isnan(row[name])
    safety = of.gold[~of.verifiable].mean()
    top = np.where(of.correct == 1, of.gold, -np.inf)[of.verifiable]
    picked = np.where(np.isfinite(top), top, NAN)
    expected = np.nanmean(np.where(np.isfinite(picked).any(1), np.nanmean(picked, 1), of.gold[of.verifiable].mean(1)))
    assert row.bon_8 == pytest.approx((safety + expected) / 2)
    assert row.unscored == pytest.approx(0.5)


def test_holm_covers_every_candidate_but_the_baseline(found: RewardModels) -> None:
    kinds = found.kinds.set_index("candidate")
    n = found.shown[0]
    raw, adjusted = kinds[f"bon_{n}_p"].drop("bt"), kinds[f"bon_{n}_p_holm"].drop("bt")
    assert raw.notna().all()
    assert (adjusted >= raw - 1e-15).all()
    assert adjusted.min() == pytest.approx(min(1.0, raw.min() * len(raw)))
    assert math.isnan(kinds[f"bon_{n}_p"]["bt"])


def test_association_is_over_reward_models_and_leaves_rules_and_controls_to_all(found: RewardModels) -> None:
    own = found.association.set_index(["over", "outcome", "predictor"])
    n = found.shown[0]
    assert own.n_models["reward models", f"bon_{n}", "rb2"] == len(SKILL)
    assert own.n_models["reward models of the policy's lineage", f"bon_{n}", "rb2"] == len(SKILL) - 1
    assert own.n_models["all", f"bon_{n}", "rb2"] == len(SKILL) + 3  # no overall score of the verifier
    # PPO gold of bt > outcome > few_pairs > lineage; benchmark bt > lineage > outcome > few_pairs
    assert own.spearman["reward models", "ppo", "rb2"] == pytest.approx(0.4)
    assert own.spearman["reward models of the policy's lineage", "ppo", "rb2"] == pytest.approx(1.0)
    assert ("reward models", f"bon_{n}", f"bon_{n}") not in own.index
    assert ("reward models", "ppo", f"bon_{n}") in own.index


def test_a_candidate_without_a_complete_seed_keeps_its_line(partial: RewardModels) -> None:
    found, row = partial, line(partial, "process")
    assert (row.n_seeds, row.n_expected, row.status) == (0, 2, "failed")
    assert math.isnan(row.bon_8)
    assert math.isnan(row.rb2)
    assert line(found, "outcome").status == "partial"
    assert "process" not in set(found.curves.candidate)
    assert findings(found)[0].startswith("INCOMPLETE: 13 of 16 runs")
    assert "out of memory" in terminal(found)
    assert "0 of 2" in markdown(found)


def test_no_complete_candidate_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to compare"):
        tables(pool(), {"bt": Measured("bt", "classifier", 2)})


def test_without_the_baseline_there_are_no_differences() -> None:
    of = pool()
    given = {"bt": Measured("bt", "classifier", 2), "outcome": measured(of)["outcome"]}
    assert tables(of, given, ns=[1, 2]).kinds["bon_2_delta"].isna().all()


def test_other_pools_are_named() -> None:
    assert_shared("the pool", {"a": "1", "b": "1"})
    with pytest.raises(ValueError, match=r"the pool differs between candidates .a: 1; b: 2"):
        assert_shared("the pool", {"a": "1", "b": "2"})


# ---------------------------------------------------------------------------------------------------------- sentences


@pytest.mark.slow
def test_sentences_follow_the_numbers() -> None:
    of = pool(prompts=40)
    good, bad = measured(of, SKILL, 1), measured(of, SKILL | {"outcome": 3.0, "process": 0.0}, 1)
    sides = {"process": good, "outcome": bad}
    said = {name: " ".join(findings(tables(of, given, ns=[1, 2, 8], resamples=50))) for name, given in sides.items()}
    for winner, text in said.items():
        assert "by best of n: " in text
        assert f"{winner} is better at the end" in text
    assert "the best for best-of-8 is process" not in said["outcome"]
    assert "the worst lineage (0.200" in said["process"]  # of PPO
    assert "Without the reward models of another lineage than the policy's (lineage)" in said["process"]
    assert "+1.00, with them +0.40" in said["process"]


def test_nothing_is_said_to_rank_what_was_never_used() -> None:
    of = pool()
    empty = pd.DataFrame()
    given = measured(of)
    found = reward_models(given, of, benchmark([], {}), mcnemar_lines([]), empty, ns=[1, 2], resamples=50)
    text = " ".join(findings(found))
    assert "No reward model has been used for PPO." in text
    assert "Too few reward models were used for PPO" in text
    assert "longer wins" not in text


def test_tables_survive_their_file(found: RewardModels, tmp_path: Path) -> None:
    paths = write(found, tmp_path)
    assert {path.name for path in paths} >= {
        "kinds.csv",
        "kinds.md",
        "best_of_n.csv",
        "voting.csv",
        "association.csv",
        TABLES,
    }
    plain = json.loads((tmp_path / TABLES).read_text(encoding="utf-8"))
    again = from_payload(plain)
    assert plain["findings"] == findings(found)
    for name in ("kinds", "curves", "voting", "association", "calibration"):
        one, other = getattr(found, name).replace([math.inf, -math.inf], NAN), getattr(again, name)
        pd.testing.assert_frame_equal(one, other, check_dtype=False, check_exact=True, check_like=True)
    assert payload(again) == plain


# ------------------------------------------------------------------------------------------------------------ figures


@pytest.mark.slow
def test_every_figure_says_what_is_missing_and_keeps_its_text_legible(partial: RewardModels) -> None:
    plain = json.loads(json.dumps(payload(partial)))
    for name, drawing in experiment.drawings().items():
        figure = drawing(plain, {"note": "scale=smoke: proves the path"})
        texts = [text for text in figure.findobj(Text) if text.get_text().strip()]
        words = " | ".join(text.get_text() for text in texts)
        assert min(float(text.get_fontsize()) for text in texts) >= SMALL
        assert "scale=smoke: proves the path" in words
        if name == "kinds":
            assert "process, 0 of 2 seeds" in words
        if name == "association":
            assert {"bt", "few_pairs", "lineage", "ensemble_mean", "outcome"} <= {text.get_text() for text in texts}
            assert "gold" not in {text.get_text() for text in texts}


@pytest.mark.slow
def test_labels_of_the_association_lie_on_the_page_and_off_one_another(found: RewardModels) -> None:
    figure = experiment.drawings()["association"](payload(found), {"note": None})
    renderer = FigureCanvasAgg(figure).get_renderer()
    for axes in figure.axes:
        boxes = [text.get_window_extent(renderer) for text in axes.texts]
        assert len(boxes) >= 4
        for place, box in enumerate(boxes):
            assert box.x0 > axes.bbox.x0 - 5
            assert box.x1 < axes.bbox.x1 + 5
            assert not any(box.overlaps(other) for other in boxes[:place])


@pytest.mark.slow
def test_redrawing_gives_the_same_bytes(found: RewardModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    every = experiment.drawings()
    monkeypatch.setattr(experiment, "drawings", lambda: {"kinds": every["kinds"]})  # one of four: time
    write(found, tmp_path)
    plain = json.loads((tmp_path / TABLES).read_text(encoding="utf-8"))
    paths = experiment.draw(plain, {"note": None, "experiment": "reward_models"}, tmp_path)
    before = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    for path in paths:
        if path.suffix != ".json":
            path.unlink()
    again = experiment.redraw(tmp_path)
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in again} == before


def test_spread_keeps_order_and_distance_and_moves_no_more_than_it_must() -> None:
    assert spread({"a": 0.1, "b": 0.9}, 0.2, 0, 1) == pytest.approx({"a": 0.1, "b": 0.9})
    assert spread({"a": 0.5, "b": 0.5}, 0.2, 0, 1) == pytest.approx({"a": 0.4, "b": 0.6})
    assert spread({"a": 0.95, "b": 0.99}, 0.2, 0, 1) == pytest.approx({"a": 0.8, "b": 1.0})
    assert spread({}, 0.2, 0, 1) == {}
    rng = np.random.default_rng(0)
    for _ in range(20):
        wanted = {str(i): float(x) for i, x in enumerate(rng.random(9))}
        placed = spread(wanted, 0.08, 0, 1)
        names = sorted(wanted, key=lambda name: wanted[name])
        places = np.array([placed[name] for name in names])
        assert (np.diff(places) >= 0.08 - 1e-12).all()
        assert places.min() >= -1e-12
        assert places.max() <= 1 + 1e-12


# --------------------------------------------------------------------------------------------------------- experiment


def config(*overrides: str) -> LabConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return load(compose("config", overrides=["scale=smoke", "experiment=reward_models", *overrides]))


def test_an_arm_must_be_paid_by_the_candidate_after_which_it_is_named() -> None:
    with pytest.raises(ConfigError, match=r"arms\.ppo_bt\.reward: expected that of candidates\.bt"):
        experiment.run(config("plan=true", "arms.ppo_bt.reward={kind: random, scale: 1.0}"))


def test_the_plan_scores_every_candidate_on_one_pool(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    settings = config("plan=true", f"run.store={tmp_path / 'store'}")
    assert experiment.run(settings) == 0
    said = capsys.readouterr().out
    graph = build_graph(settings)
    assert len({experiment.pool_scores(run).inputs["pool"].key for run in graph.candidates}) == 1
    for name in ("pool scored by Bradley-Terry, seed 0", "benchmark of Random, seed 0", "PPO × Judge"):
        assert name in said


class FakeStore:
    """Manifests by key, as a store gives them."""

    def __init__(self, manifests: Mapping[str, Any]) -> None:
        self.manifests = manifests

    def manifest(self, key: str) -> Any:
        return self.manifests[key]


def manifests(settings: LabConfig) -> tuple[Any, dict[str, Any], FakeStore]:
    """The graph, its runs by candidate and a store in which every step spent and measured something."""
    graph = build_graph(settings)
    known: dict[str, Any] = {}
    beside = [step for run in graph.candidates for step in run.source.inputs.values()]
    for step in [*graph.steps, *beside]:
        metrics: dict[str, Any] = {"seconds_per_1000": 2.0, "accuracy": 0.7, "scale": 3.0, "pairs": 96}
        metrics["variants"] = {"last": 0.61, "mean": 0.62, "product": 0.63, "minimum": 0.64}
        spent: dict[str, Any] = {"training_flops": 10.0} if step.kind != "preferences" else {"preference_labels": 96}
        if step.kind == "token_rewards":
            spent["step_labels"] = 5
        known[step.key] = {"kind": step.kind, "metrics": metrics, "ledger": spent, "inputs": {}, "digest": step.key}
    return graph, {run.candidate: run for run in graph.candidates}, FakeStore(known)


@pytest.mark.slow
def test_what_a_reward_model_costs_is_its_own_training_and_the_labels_it_learnt_from() -> None:
    settings = config()
    graph, runs, store = manifests(settings)
    few = store.manifests[runs["few_pairs"].source.trained[0].key]
    few["metrics"]["pairs"] = 32

    def costs(name: str) -> dict[str, float]:
        return experiment._costs(graph, store, settings.candidates[name], runs[name])  # type: ignore[arg-type]

    assert costs("bt")["preference_labels"] == 96
    assert costs("few_pairs")["preference_labels"] == 32
    assert costs("ensemble_mean")["preference_labels"] == 96  # five models on the same labels
    assert costs("ensemble_mean")["training_flops"] == 50
    assert (costs("process")["preference_labels"], costs("process")["step_labels"]) == (0, 5)
    assert costs("random")["preference_labels"] == costs("random")["training_flops"] == 0
    assert costs("random")["seconds_per_1000"] == 2


@pytest.mark.slow
def test_what_a_source_states_and_where_its_accuracy_was_measured() -> None:
    settings = config()
    _, runs, store = manifests(settings)

    def of(function: Any, name: str) -> float:
        return float(function(store, settings.candidates[name], runs[name]))

    assert of(experiment._log_odds, "bt") == 3.0
    reward: Any = settings.candidates["implicit"].reward
    assert of(experiment._log_odds, "implicit") == pytest.approx(3.0 * reward.method.beta)
    for name in ("implicit_free", "outcome", "judge", "ensemble_mean", "random"):
        assert math.isnan(of(experiment._log_odds, name))
    expected = {"bt": 0.7, "outcome": 0.61, "process": 0.63, "process_minimum": 0.64, "implicit": 0.7, "judge": 0.7}
    assert {name: of(experiment._held_out, name) for name in expected} == expected
    for name in ("ensemble_mean", "mixture", "random"):
        assert math.isnan(of(experiment._held_out, name))
    own = {name: experiment._own_lineage(settings, one) for name, one in settings.candidates.items()}
    assert [name for name, known in own.items() if not known] == ["lineage"]

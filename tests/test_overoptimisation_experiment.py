"""The tables and figures of overoptimisation: hand-worked drops, verdicts, monitors without runs, redrawing."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from scipy.stats import binom

from experiments import overoptimisation as experiment
from experiments import redraw
from lab.__main__ import load
from lab.config import LabConfig
from lab.figures import provenance
from lab.figures.monitor import monitor_figure
from lab.figures.overoptimisation import overoptimisation_figure
from lab.monitor import COMBINED
from lab.tables.curves import Curve
from lab.tables.monitoring import Monitoring, Watched, best_signals, margin_of, median_interval, monitor
from lab.tables.overoptimisation import (
    Drop,
    Overoptimisation,
    Track,
    best_of_n_track,
    overoptimisation,
    pool_start,
    training_track,
    verdict,
)
from lab.tables.overoptimisation_text import (
    TABLES,
    findings,
    from_payload,
    markdown,
    monitor_findings,
    monitor_markdown,
    payload,
    read,
    write,
)
from lab.tables.reward_models import Pool
from lab.typed import ConfigError
from tests import synthetic_overoptimisation as synthetic

CONF = str(Path(__file__).parents[1] / "conf")
SEEDS = (0, 1, 2)


def config(*overrides: str) -> LabConfig:
    with initialize_config_dir(CONF, version_base="1.3"):
        return load(compose("config", overrides=["experiment=overoptimisation", "scale=smoke", *overrides]))


@pytest.fixture(scope="module")
def found() -> Overoptimisation:
    return overoptimisation(synthetic.plan(3), synthetic.tracks(SEEDS, 12, 32), resamples=300)


@pytest.fixture(scope="module")
def watched() -> Monitoring:
    runs, margin = synthetic.watched(synthetic.tracks(SEEDS, 40, 2))
    return monitor(runs, 18, margin)


def path(gold: list[list[list[float]]], seeds: int = 1) -> Track:
    """One domain; ``gold``: points x seeds x prompts, over a start of 0."""
    gold_KSP = np.array(gold)
    points, _, prompts = gold_KSP.shape
    line = np.repeat(np.arange(points, dtype=float)[:, None], seeds, axis=1)
    return Track(
        tuple(range(seeds)), tuple(range(points)), line, {"math": gold_KSP}, {"math": np.zeros((1, prompts))}, line
    )


# The paths -----------------------------------------------------------------------------------------------------------


def test_best_of_n_by_hand_with_the_prompts_in_the_order_of_their_ids() -> None:
    gold = np.array([[1.0, 2.0, 3.0, 6.0], [0.0, 0.0, 4.0, 0.0]])
    scores = np.array([[[4.0, 3.0, 2.0, 1.0], [0.0, 1.0, 2.0, 3.0]]])
    pool = Pool(("b", "a"), ("math", "math"), gold, gold, gold, ((None,) * 4,) * 2, np.zeros(2, dtype=bool))
    found = best_of_n_track(scores, [7], pool, [1, 4])
    assert found.start["math"].tolist() == [[1.0, 3.0]]
    assert found.gold["math"].tolist() == [[[1.0, 3.0]], [[0.0, 1.0]]]  # the samples of the highest scores
    assert found.gains[:, 0].tolist() == [0.0, -1.5]
    assert found.proxy_gain[:, 0].tolist() == pytest.approx([0.0, (4 - 2.5 + 3 - 1.5) / 2])
    assert found.sqrt_kl[:, 0].tolist() == pytest.approx([0.0, math.sqrt(math.log(4) - 3 / 4)])
    with pytest.raises(ValueError, match="increasing n from 1"):
        best_of_n_track(scores, [7], pool, [2, 4])


def test_the_proxy_of_a_policy_starts_where_its_own_reward_puts_sft() -> None:
    scalars = {"proxy": np.array([[9.0, 9.0], [1.0, 3.0]]), "kl_nats": np.array([[0.0, 0.0], [4.0, 9.0]])}
    gold = {"math": np.zeros((2, 2, 1))}
    curve = Curve("ppo", (0, 1), (0, 8), (False, True), gold, scalars, {"math": np.zeros((1, 1))}, False, 0.0)
    track = training_track(curve, [-1.0, 0.5])
    assert track.proxy_gain.tolist() == [[0.0, 0.0], [2.0, 2.5]]
    assert track.sqrt_kl[1].tolist() == [2.0, 3.0]
    assert scalars["proxy"][0].tolist() == [9.0, 9.0]
    with pytest.raises(ValueError, match="got one from step 8"):
        training_track(dataclasses.replace(curve, steps=(8, 16)), [0.0, 0.0])


def test_where_the_proxy_starts_weighs_domains_alike() -> None:
    scores = np.array([[[1.0, 3.0], [5.0, 5.0], [9.0, 11.0]]])  # prompt means 2, 5, 10
    assert pool_start(scores, ["math", "math", "safety"]).tolist() == [(3.5 + 10) / 2]


# Drops ---------------------------------------------------------------------------------------------------------------


def test_the_best_point_of_a_half_is_measured_on_the_other() -> None:
    drop = Drop.of("toy", path([[[0.0, 0.0]], [[0.5, 0.1]], [[0.2, 0.4]]]))
    assert drop.chosen == (2, 1)  # prompt 1 likes point 2, where prompt 0 is measured
    assert drop.best["math"].tolist() == [[0.2, 0.1]]
    assert drop.drop["math"].tolist() == [pytest.approx([0.0, -0.3])]
    assert not drop.ends_at_best
    assert Drop.of("toy", path([[[0.0, 0.0]], [[0.1, 0.1]], [[0.2, 0.4]]])).ends_at_best
    with pytest.raises(ValueError, match="domain math has fewer than two prompts"):
        Drop.of("toy", path([[[0.0]], [[0.5]]]))


def test_gold_that_only_wobbles_is_not_called_a_drop() -> None:
    rng = np.random.default_rng(0)
    honest, naive = [], []
    for _ in range(400):
        track = path(rng.normal(0, 1, (9, 2, 8)).tolist(), seeds=2)
        honest.append(float(np.mean(Drop.of("noise", track).drop["math"])))
        naive.append(float(track.gains.mean(1).max() - track.gains.mean(1)[-1]))
    assert abs(np.mean(honest)) < 3 * np.std(honest) / 20
    assert np.mean(naive) > 0.25


@pytest.mark.parametrize(
    ("low", "high", "p", "seeds", "reference_low", "said"),
    [
        (-0.10, -0.02, 0.01, 3, 0.03, "supported"),
        (-0.10, -0.02, 0.06, 3, 0.03, "open"),  # not after Holm
        (-0.10, -0.02, 0.01, 1, 0.03, "open"),  # one seed
        (-0.10, -0.02, 0.01, 3, 0.00, "open"),  # nothing to prevent
        (-0.10, 0.02, 0.3, 3, 0.03, "open"),
        (-0.005, 0.02, 0.3, 3, 0.03, "refuted"),  # saves less than is worth having
        (-0.009, -0.001, 0.01, 3, 0.03, "refuted"),  # surely something, and surely not worth having
        (0.01, 0.05, 0.01, 3, 0.00, "refuted"),  # loses more, whatever the reference does
        (math.nan, math.nan, math.nan, 3, 0.03, "open"),
    ],
)
def test_verdicts(low: float, high: float, p: float, seeds: int, reference_low: float, said: str) -> None:
    word, why = verdict(low, high, p, seeds, reference_low)
    assert word == said
    assert bool(why) == (said != "supported")


# The tables ----------------------------------------------------------------------------------------------------------


def test_who_is_overoptimised_and_who_less(found: Overoptimisation) -> None:
    table = found.table.set_index(["method", "model"])
    assert table.overoptimised["rl", "single"]
    assert table.overoptimised["rl", "mean"]
    assert table.ends_at_best["rl", "single_held"]
    assert table.verdict["rl", "worst"] == "supported"
    assert table.reference["rl", "worst"] == "single"
    assert table.reference["rl", "single"] == ""
    contrasts = found.contrasts.set_index(["method", "model", "reference"])
    assert contrasts.verdict["rl", "worst_held", "single_held"] == "open"  # nothing to prevent
    for key, line in contrasts.iterrows():
        assert line.drop_delta == pytest.approx(table["drop"][key[0], key[1]] - table["drop"][key[0], key[2]])
        assert line.drop_delta_low <= line.drop_delta <= line.drop_delta_high
        assert line.p_holm >= line.p


def test_curves_are_means_of_their_seeds_and_fits_find_the_form(found: Overoptimisation) -> None:
    own = found.curves[(found.curves.method == "rl") & (found.curves.model == "single")]
    mean = own[own.seed.isna()].set_index("at")
    seeds = own[own.seed.notna()].groupby("at")
    assert mean.gold_gain.to_dict() == pytest.approx(seeds.gold_gain.mean().to_dict())
    assert mean.proxy_gain.to_dict() == pytest.approx(seeds.proxy_gain.mean().to_dict())
    assert (mean.sqrt_kl**2).to_dict() == pytest.approx(seeds.sqrt_kl.apply(lambda d: (d**2).mean()).to_dict())
    fits = found.fits.set_index(["method", "model"])
    a, b, _ = synthetic.RL["single"]
    line = fits.loc[("rl", "single")]
    assert (line.a, line.b) == pytest.approx((a, b), abs=0.02)
    assert line.peak == "inside"
    assert line.peak_at == pytest.approx(math.exp(a / b - 1), abs=0.2)
    assert line.rmse_form < line.rmse_last_value


@pytest.mark.slow
def test_what_did_not_run_is_named_and_one_seed_answers_nothing() -> None:
    tracks = synthetic.tracks([0], 8, 8)
    del tracks["rl", "mean"]
    planned = [
        dataclasses.replace(one, n_expected=2, note="killed" if one.model == "mean" else "")
        for one in synthetic.plan(1)
    ]
    few = overoptimisation(planned, tracks, resamples=100)
    table = few.table.set_index(["method", "model"])
    assert table.status["rl", "mean"] == "failed"
    assert table.status["rl", "worst"] == "partial"
    assert math.isnan(table["drop"]["rl", "mean"])
    assert set(few.contrasts.verdict) == {"open"}
    assert "INCOMPLETE: 9 of 20" in findings(few)[0]
    assert "PPO × Mean of 5" in findings(few)[0]
    assert "failed: killed" in markdown(few)
    assert "Mean of 5, 0 of 2 seeds" in texts(overoptimisation_figure(few))


def test_too_few_points_are_no_fit() -> None:
    tracks = {("rl", "single"): path([[[0.0, 0.0]], [[0.5, 0.1]]])}
    few = overoptimisation(synthetic.plan(1)[4:5], tracks, resamples=100)
    assert few.fits.note.tolist() == ["no fit: fewer than two points away from SFT"]
    assert "no fit" in markdown(few)


# The monitor ---------------------------------------------------------------------------------------------------------


def test_the_margin_is_three_standard_errors_of_a_paired_difference() -> None:
    rises = path([[[0.0, 5.0]], [[0.0, 6.0]]])  # differences 0 and 1: variance 1/2, standard error 1/2
    assert margin_of([rises]) == pytest.approx(1.5)
    assert margin_of([]) == 0.02


@pytest.mark.parametrize("n", [5, 6, 9, 20])
def test_the_interval_of_a_median_covers_it(n: int) -> None:
    low, high = median_interval(np.arange(1.0, n + 1), 0.95)
    if n == 5:
        assert math.isnan(low)
        return
    assert low + high == n + 1
    missed = 2 * binom.cdf(low - 1, n, 0.5)  # fewer than `low` of n values lie below the median, or above it
    assert missed <= 0.05 < 2 * binom.cdf(low, n, 0.5)


def test_the_monitor_knows_hacked_runs_from_healthy_ones(watched: Monitoring) -> None:
    kinds = dict(zip(watched.runs.arm, watched.runs.kind, strict=True))
    assert kinds["ppo_single"] == kinds["ppo_mean"] == "hacked"
    assert kinds["ppo_worst"] == kinds["ppo_single_held"] == "healthy"
    table = watched.table.set_index("signal")
    counts = watched.runs.kind.value_counts()
    assert (table.hacked == counts.hacked).all()
    assert (table.healthy == counts.healthy).all()
    drifting = {"gap.held_out", "watch_correlation.held_out", "watch_mean.held_out", "repetition_group"}
    assert set(best_signals(watched.table)[:2]) <= drifting
    assert table.misses[best_signals(watched.table)[0]] == 0
    assert set(watched.series.signal) == {COMBINED, *best_signals(watched.table)[:3]}
    single = watched.series[watched.series.signal != COMBINED].set_index(["run", "signal"]).ratio
    for line in watched.alarms[watched.alarms.signal != COMBINED].itertuples():
        if (line.run, line.signal) in single.index:  # a ratio above 1 is an alarm
            assert (single[line.run, line.signal].max() > 1) == (not math.isnan(line.rollout))


def run_of(gold: list[float], rollouts: int = 16, seed: int = 0) -> Watched:
    trace = [{**row, "rollout": t + 1} for t, row in enumerate(synthetic.trace("single", seed, rollouts))]
    steps = [0, rollouts, 2 * rollouts]
    values = dict(zip(steps, gold, strict=True))
    return Watched("ppo_a", "PPO × a", seed, trace, values, dict(zip(steps, (0.0, 1.0, 2.0), strict=True)))


FELL, ROSE = [0.0, 0.5, 0.1], [0.0, 0.3, 0.5]


@pytest.mark.parametrize(
    ("runs", "said"),
    [
        ([], "no policy was trained"),
        ([run_of(ROSE, 2), run_of(ROSE, 2, 1)], "a trace of 2 rollouts is too short"),
        ([run_of(FELL), run_of(ROSE, seed=1)], "1 healthy run of 2"),
    ],
)
def test_without_runs_of_both_kinds_there_is_no_number(runs: list[Watched], said: str) -> None:
    few = monitor(runs, 4, 0.1)
    assert said in few.reason
    assert few.table.empty
    assert said in monitor_markdown(few)
    assert f"{len(runs)} of 4 runs" in monitor_markdown(few)
    assert any(said in text for text in texts(monitor_figure(few, "a note")))


def test_without_a_hacked_run_only_false_alarms_are_counted() -> None:
    few = monitor([run_of(ROSE, seed=seed) for seed in range(3)], 3, 0.1)
    assert not few.reason
    both = few.table.set_index("signal").loc[COMBINED]
    assert (both.hacked, both.healthy) == (0, 3)
    assert math.isnan(both.misses_rate)
    said = monitor_findings(few)
    assert any("No run was hacked" in sentence for sentence in said)
    assert any("at best one in 4" in sentence for sentence in said)
    assert "caught none" not in (said := texts(monitor_figure(few)))
    assert "none was hacked" in said


# Files and figures ---------------------------------------------------------------------------------------------------


def texts(figure: Any) -> list[str]:
    from matplotlib.text import Text

    return [item.get_text() for item in figure.findobj(Text) if item.get_text()]


@pytest.mark.slow
def test_figures_are_redrawn_byte_for_byte(
    tmp_path: Path, found: Overoptimisation, watched: Monitoring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "_METADATA", {"svg": provenance._METADATA["svg"]})  # the others take long
    write(found, watched, tmp_path)
    again, monitored = read(tmp_path / TABLES)
    assert payload(again, monitored) == payload(found, watched)
    told = {"experiment": "overoptimisation", "note": "scale=smoke: proves the path, not a result"}
    drawn = experiment.draw(json.loads((tmp_path / TABLES).read_text(encoding="utf-8")), told, tmp_path)
    assert {one.name for one in drawn} >= {"overoptimisation.svg", "monitor.svg", "monitor.json"}
    before = {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in drawn}
    assert sorted(redraw.redraw(tmp_path)) == sorted(drawn)
    assert before == {one.name: hashlib.sha256(one.read_bytes()).hexdigest() for one in drawn}


@pytest.mark.slow
def test_the_figures_say_what_the_tables_say(found: Overoptimisation, watched: Monitoring) -> None:
    plain = json.loads(json.dumps(payload(found, watched)))
    said = texts(overoptimisation_figure(from_payload(plain)[0]))
    assert "less than One reward model? supported" in said
    assert "0: best at the end" in said
    assert said.count("One reward model, KL held") == 3  # proxy, gold, drop
    line = watched.table.set_index("signal").loc[COMBINED]
    caught = f"{line.hacked - line.misses:.0f} of {line.hacked:.0f}"
    assert caught in texts(monitor_figure(from_payload(plain)[1]))


# The experiment ------------------------------------------------------------------------------------------------------


def test_every_arm_has_its_candidate() -> None:
    whole = config()
    arms = {one.arm: (one.candidate, one.variant) for one in experiment.trained_arms(whole)}
    assert arms["ppo_worst"] == ("worst", "")
    assert arms["ppo_worst_held"] == ("worst", "_held")
    assert len(arms) == 6
    paid = dataclasses.replace(whole.arms["ppo_worst"], reward=whole.candidates["mean"].reward)
    with pytest.raises(ConfigError, match=r"arms\.ppo_worst\.reward: expected that of candidates\.worst"):
        experiment.trained_arms(dataclasses.replace(whole, arms={**whole.arms, "ppo_worst": paid}))
    fewer = {name: one for name, one in whole.candidates.items() if name != "mean"}
    with pytest.raises(ConfigError, match=r"arms\.ppo_mean: expected ppo_CANDIDATE"):
        experiment.trained_arms(dataclasses.replace(whole, candidates=fewer))

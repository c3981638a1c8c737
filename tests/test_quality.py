"""The data-quality sweep: crossings and effects against hand-worked ones, trends, a figure that counts, files."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from experiments import data_quality, redraw, sweep
from experiments.sweep import Point
from lab.figures import provenance
from lab.figures.quality import quality_figure
from lab.tables.quality import (
    Quality,
    axis_of,
    crossing,
    first_change,
    on_axis,
    quality_sweep,
    sign_verdict,
    trend,
)
from lab.tables.quality_text import crossing_said, findings, from_payload, place_said, summary, terminal
from tests import synthetic_quality
from tests.legible import assert_legible
from tests.synthetic_quality import FLIPS, NAMES
from tests.test_tables import frame, row

# ----------------------------------------------------------------------------------------------------------- crossings


def test_where_a_lead_ends_by_hand() -> None:
    x_K = np.array([0.0, 1.0, 3.0])
    lead_BK = np.array([[2.0, 1.0, -1.0], [1.0, -1.0, 5.0], [-1.0, 2.0, 2.0], [1.0, 1.0, 1.0], [1.0, 0.0, 1.0]])
    assert list(first_change(x_K, lead_BK)) == [2.0, 0.5, -math.inf, math.inf, 1.0]


def test_a_crossing_and_its_interval_by_hand() -> None:
    x_K, gap_K = np.array([0.0, 1.0]), np.array([-1.0, 1.0])
    gap_BK = np.array([[-1.0, 1.0 + k] for k in range(8)])  # it crosses at 1 / (2 + k)
    found = crossing(x_K, gap_K, gap_BK, 0.5)
    assert (found["at"], found["share"], found["crossings"], found["first_leads"]) == (0.5, 1.0, 1, False)
    assert (found["at_low"], found["at_high"]) == pytest.approx((1 / 8, 1 / 4))  # the second and the sixth of eight
    assert found["verdict"] == "crosses"
    assert (found["low_beyond"], found["high_beyond"]) == (False, False)


def test_a_crossing_that_leaves_the_range_says_so() -> None:
    x_K, gap_K = np.array([0.0, 1.0]), np.array([1.0, -1.0])
    gap_BK = np.array([[1.0, 0.5]] * 3 + [[1.0, -1.0]] * 7)  # in three of ten resamples the lead lasts
    found = crossing(x_K, gap_K, gap_BK, 0.9)
    assert (found["at"], found["at_low"], found["share"]) == pytest.approx((0.5, 0.5, 0.7))
    assert found["high_beyond"]
    assert not found["low_beyond"]
    assert math.isnan(found["at_high"])
    assert found["verdict"] == "open"


@pytest.mark.parametrize(("crossed", "said"), [(0, "none"), (1, "none"), (2, "open")])
def test_curves_that_do_not_cross(crossed: int, said: str) -> None:
    """Of twenty resamples: one in twenty may cross by chance."""
    gap_BK = np.array([[0.2, 0.1]] * (20 - crossed) + [[0.2, -0.1]] * crossed)
    found = crossing(np.array([0.0, 1.0]), np.array([0.2, 0.1]), gap_BK, 0.95)
    assert math.isnan(found["at"])
    assert found["share"] == pytest.approx(crossed / 20)
    assert (found["verdict"], found["first_leads"], found["low_beyond"], found["high_beyond"]) == (
        said,
        True,
        False,
        False,
    )


def test_crossings_in_words() -> None:
    line: dict[str, Any] = {"axis": "flips", "first": "dpo", "second": "ppo", "x_low": 0.0, "x_high": 0.5}
    line |= {"at": 0.22, "at_low": 0.15, "at_high": math.nan, "low_beyond": False, "high_beyond": True}
    line |= {"crossings": 1, "share": 0.9, "first_leads": False, "verdict": "open"}
    assert place_said(line) == "22% [15%, beyond 50%]"
    assert crossing_said(line) == "PPO × RM loses its lead over DPO at 22% [15%, beyond 50%] (90% of resamples cross)"
    line |= {"at": math.nan, "high_beyond": False, "share": 0.04, "first_leads": True}
    assert place_said(line) == ""
    said = "DPO and PPO × RM: no crossing in the range 0% to 50%, DPO leads throughout (4% of resamples cross)"
    assert crossing_said(line) == said


# -------------------------------------------------------------------------------------------------------------- tables


@pytest.fixture(scope="module")
def whole() -> Quality:
    return quality_sweep(*synthetic_quality.points(), resamples=100)


@pytest.fixture(scope="module")
def partial() -> Quality:
    lost = ["flip_35", "hh_like", "pairs_0250"]
    return quality_sweep(*synthetic_quality.points((0, 1), lost), resamples=50)


def test_a_known_structure_is_found_again(whole: Quality) -> None:
    found = whole.crossings.set_index(["axis", "first", "second"])
    truth = {("flips", "dpo", "ppo"): 0.2, ("flips", "dpo", "rlvr"): 0.3, ("flips", "ppo", "rlvr"): 0.23 / 0.9}
    truth[("pairs", "dpo", "ppo")] = 4000 / 10**0.4
    for key, place in truth.items():
        line = found.loc[key]
        assert line.at_low <= place <= line.at_high, key
        assert (line.verdict, line.crossings) == ("crosses", 1)
    assert not found.loc[("flips", "dpo", "ppo")].first_leads
    assert found.loc[("flips", "dpo", "sft")].verdict == "none"
    effects = whole.effects.set_index(["effect", "within"])
    known = {("data", "dpo"): 0.21, ("data", "ppo"): 0.35, ("algorithm", "hh_like"): -0.07, ("data", "mean"): 0.28}
    known |= {("algorithm", "ultrafeedback_like"): 0.07, ("algorithm", "mean"): 0.0, ("interaction", ""): 0.14}
    known |= {("data - algorithm", "sizes"): 0.28, ("data - algorithm", "extremes"): 0.14}
    for name, value in known.items():
        assert effects.value_low[name] <= value <= effects.value_high[name], name
    assert effects.verdict["data - algorithm", "extremes"] == "data"
    assert effects.verdict["algorithm", "hh_like"] == "below"
    assert effects.verdict["algorithm", "mean"] == "open"
    assert list(whole.trends.verdict) == ["supported", "supported"]
    table = whole.table.set_index("quality")
    assert table.dpo_delta["expert"] == pytest.approx(0.28, abs=0.02)
    assert (table.ppo - table.dpo).to_numpy() == pytest.approx(table.ppo_minus_dpo.to_numpy())
    assert (table.dpo - table.rlvr).to_numpy() == pytest.approx(table.dpo_minus_rlvr.to_numpy())
    assert set(table.n_seeds) == {5}
    said = findings(whole)
    assert "In 12 of 12 points, within its interval." in said[0]
    assert any(text.startswith("Which counts for more? Data: data +0.2") for text in said)
    assert any("Over the flip rate: PPO × RM loses its lead over DPO at " in text for text in said)


def four(golds: dict[tuple[str, str], float], noise: float = 0.0) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """The two presets with given golds of dpo and ppo_rm, two seeds, three prompts of two domains."""
    described, blocks = [], []
    for quality in ("hh_like", "ultrafeedback_like"):
        own = [row("sft", 0, f"{letter}-{i}", 0.1) for letter in "ms" for i in range(3)]
        for arm, seed, letter, i in itertools.product(("dpo", "ppo_rm"), (0, 1), "ms", range(3)):
            own.append(row(arm, seed, f"{letter}-{i}", golds[quality, arm] + noise * (2 * seed - 1)))
        blocks.append(frame(*own).assign(quality=quality))
        described.append(
            {"quality": quality, "seeds": (0, 1), "status": "complete", "note": "", "reward_models": []}
            | {"preferences": None}
        )
    return described, pd.concat(blocks, ignore_index=True)


@pytest.mark.parametrize("turned", [False, True])
def test_sizes_of_effects_by_hand(turned: bool) -> None:
    """H_dpo 0.5, H_ppo 0.4, U_dpo 0.6, U_ppo 0.9: data 0.1 and 0.5, algorithm -0.1 and 0.3. Turned round, the worse
    data is called the better, and sizes stay what they are."""
    names = ("ultrafeedback_like", "hh_like") if turned else ("hh_like", "ultrafeedback_like")
    golds = dict(zip(itertools.product(names, ("dpo", "ppo_rm")), (0.5, 0.4, 0.6, 0.9), strict=True))
    found = quality_sweep(*four(golds), resamples=20)
    effects = found.effects.set_index(["effect", "within"]).value
    sign = -1 if turned else 1
    assert effects["data", "dpo"] == pytest.approx(sign * 0.1)
    assert effects["data", "mean"] == pytest.approx(sign * 0.3)
    assert effects["algorithm", "mean"] == pytest.approx(0.1)
    assert effects["algorithm", names[1]] == pytest.approx(0.3)
    assert effects["interaction", ""] == pytest.approx(sign * 0.4)
    assert effects["data - algorithm", "sizes"] == pytest.approx(0.2)
    assert effects["data - algorithm", "extremes"] == pytest.approx(0.1 - 0.3)
    verdicts = found.effects.set_index(["effect", "within"]).verdict
    assert verdicts["data - algorithm", "sizes"] == "data"
    assert verdicts["data - algorithm", "extremes"] == "open"  # below 0: data's is not the larger in every case
    assert any("whichever data the algorithms are compared on? Open" in said for said in findings(found))


def test_the_algorithm_can_count_for_more() -> None:
    keys = itertools.product(("hh_like", "ultrafeedback_like"), ("dpo", "ppo_rm"))
    found = quality_sweep(*four(dict(zip(keys, (0.2, 0.8, 0.3, 0.9), strict=True))), resamples=20)
    assert found.effects.set_index(["effect", "within"]).verdict["data - algorithm", "sizes"] == "algorithm"
    assert any("Which counts for more? The algorithm" in said for said in findings(found))


def test_a_sign_needs_two_seeds_and_an_interval_off_zero() -> None:
    assert sign_verdict(0.01, 0.2, 5) == "above"
    assert sign_verdict(-0.2, -0.01, 5) == "below"
    assert sign_verdict(-0.1, 0.2, 5) == sign_verdict(0.01, 0.2, 1) == sign_verdict(math.nan, math.nan, 5) == "open"


def points_of(values: dict[float, list[float]]) -> tuple[pd.DataFrame, dict[str, dict[str, dict[int, float]]]]:
    names = [f"flip_{i}" for i in range(len(values))]
    table = pd.DataFrame({"quality": names, "axis": "flips", "flip_rate": list(values)})
    own = {
        name: {"accuracy": dict(enumerate(found)), "overall": {}}
        for name, found in zip(names, values.values(), strict=True)
    }
    return table, own


def test_the_trend_by_hand() -> None:
    steps, trends = trend(*points_of({0.0: [0.9, 0.8, 0.9], 0.2: [0.8, 0.75, 0.7], 0.4: [0.6, 0.6, 0.5]}), 0.95)
    assert list(steps.change) == pytest.approx([-0.35 / 3, -0.55 / 3])
    from scipy import stats

    first = stats.ttest_rel([0.8, 0.75, 0.7], [0.9, 0.8, 0.9], alternative="less").pvalue
    second = stats.ttest_rel([0.6, 0.6, 0.5], [0.8, 0.75, 0.7], alternative="less").pvalue
    assert list(steps.p) == pytest.approx([first, second])
    assert list(steps.p_holm) == pytest.approx([max(first, 2 * second), 2 * second])  # the second step is the surer
    line = trends.iloc[0]
    assert line.page_l == 3 * (1 * 1 + 2 * 2 + 3 * 3)  # every seed in the predicted order
    assert line.page_p == pytest.approx((1 / 6) ** 3)
    assert (line.spearman, line.verdict, line.n_seeds) == (-1.0, "supported", 3)
    assert bool(line.falls_each_step)


def test_a_rise_refutes_the_trend_and_a_tie_leaves_it_open() -> None:
    _, rises = trend(*points_of({0.0: [0.5, 0.51, 0.52], 0.2: [0.7, 0.71, 0.72], 0.4: [0.4, 0.41, 0.42]}), 0.95)
    assert rises.verdict[0] == "refuted"
    assert not rises.falls_each_step[0]
    _, same = trend(*points_of({0.0: [0.5, 0.5], 0.2: [0.5, 0.5], 0.4: [0.5, 0.5]}), 0.95)
    assert same.verdict[0] == "open"
    steps, alone = trend(*points_of({0.0: [0.9], 0.2: [0.5]}), 0.95)
    assert alone.verdict[0] == "open"
    assert math.isnan(steps.p[0])
    assert math.isnan(alone.page_p[0])


def test_the_curve_over_pairs_passes_through_the_point_of_the_flips() -> None:
    described, rows = synthetic_quality.points((0, 1), names=("flip_10", "flip_20", "pairs_0250", "pairs_1000"))
    table = quality_sweep(described, rows, resamples=20).table
    assert list(on_axis(table, "pairs").quality) == ["pairs_0250", "pairs_1000", "flip_10"]
    assert list(on_axis(table, "flips").quality) == ["flip_10", "flip_20"]
    assert [axis_of(name) for name in ("flip_10", "pairs_1", "hh_like")] == ["flips", "pairs", "preset"]


def test_agreement_outside_its_interval_is_named() -> None:
    described, rows = synthetic_quality.points((0, 1), names=("flip_10", "flip_20"))
    described[1]["preferences"] |= {
        "agreement_with_gold": 0.71,
        "agreement_with_gold_low": 0.70,
        "agreement_with_gold_high": 0.72,
    }
    said = findings(quality_sweep(described, rows, resamples=20))[0]
    assert "In 1 of 2 points, within its interval; not in flip_20 (71.0% measured, 80.0% requested)." in said
    described[0]["preferences"] = described[1]["preferences"] = None
    assert "Open: not measured" in findings(quality_sweep(described, rows, resamples=20))[0]


def test_points_that_fail_stay_in_the_table(partial: Quality) -> None:
    table = partial.table.set_index("quality")
    assert list(table.index) == list(NAMES)
    assert (table.status["flip_35"], table.n_seeds["flip_35"], table.n_expected["flip_35"]) == ("failed", 0, 2)
    assert math.isnan(table.dpo["flip_35"])
    assert partial.effects.empty
    assert any("Data or algorithm? Open: hh_like and ultrafeedback_like" in said for said in findings(partial))
    assert list(partial.trends.n_points) == [4, 4]
    assert "4 of 5 points" in findings(partial)[1]
    assert "failed: exit code 1" in terminal(partial)
    with pytest.raises(ValueError, match="point flip_10 is given twice"):
        quality_sweep([{"quality": "flip_10"}, {"quality": "flip_10"}], None)


def test_a_seed_without_a_reward_model_is_not_counted() -> None:
    described, rows = synthetic_quality.points((0, 1, 2), names=("flip_10",))
    described[0]["reward_models"].pop()
    gone = (rows.arm == "dpo") & (rows.seed == 0)
    assert quality_sweep(described, rows[~gone], resamples=20).table.n_seeds[0] == 1


def test_tables_survive_json(whole: Quality, partial: Quality) -> None:
    for found in (whole, partial):
        plain = json.loads(summary(found))
        assert summary(from_payload(plain)) == summary(found)


# -------------------------------------------------------------------------------------------------------------- figure


@pytest.fixture(scope="module")
def whole_figure(whole: Quality) -> Figure:
    return quality_figure(whole)


@pytest.fixture(scope="module")
def partial_figure(partial: Quality) -> Figure:
    return quality_figure(partial, "scale=smoke: proves the path, not a result")


def words(figure: Figure) -> str:
    texts = [text.get_text().replace("\n", " ") for text in figure.findobj(Text) if text.get_visible()]
    return " | ".join(texts)


@pytest.mark.slow
def test_the_figure_counts_and_names_what_is_missing(whole_figure: Figure, partial_figure: Figure) -> None:
    assert "12 of 12 points, 5 seeds each" in words(whole_figure)
    assert "Incomplete" not in words(whole_figure)
    assert "every step falls (Page's trend, p < 0.001)" in words(whole_figure)
    said = words(partial_figure)
    assert "9 of 12 points, 2 seeds each" in said
    assert "Incomplete: flip_35 (failed, 0 of 2 seeds); pairs_0250 (failed" in said
    assert "scale=smoke: proves the path, not a result" in said
    assert "hh_like and ultrafeedback_like are not complete" in said
    assert "no crossing in the range" in said


@pytest.mark.slow
def test_marks_stand_where_the_tables_say(whole: Quality, whole_figure: Figure) -> None:
    flips, strip = whole_figure.axes[0], whole_figure.axes[1]
    own = on_axis(whole.table, "flips")
    drawn = [(list(line.get_xdata()), list(line.get_ydata())) for line in flips.lines]
    for family in ("dpo", "ppo"):
        assert (list(FLIPS.values()), list(own[family])) in drawn
        for flip, low, high in zip(own.flip_rate, own[f"{family}_low"], own[f"{family}_high"], strict=True):
            assert ([flip, flip], [low, high]) in drawn
    places = [line.get_xdata()[0] for line in strip.lines if len(line.get_xdata()) == 1]
    shown = whole.crossings[(whole.crossings.axis == "flips") & (whole.crossings.second != "sft")]
    assert places == list(shown["at"])
    spans = [list(line.get_xdata()) for line in strip.lines if len(line.get_xdata()) == 2]
    assert spans == shown[["at_low", "at_high"]].to_numpy().tolist()
    forest = [line.get_xdata()[0] for line in whole_figure.axes[-1].lines if line.get_marker() == "D"]
    kept = whole.effects[~whole.effects.within.isin(["mean", ""])]
    assert forest == list(kept.value)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["whole_figure", "partial_figure"])
def test_text_is_legible_inside_the_page_and_does_not_overlap(which: str, request: pytest.FixtureRequest) -> None:
    assert_legible(request.getfixturevalue(which))


@pytest.mark.slow
def test_nothing_at_all_still_draws() -> None:
    described, _ = synthetic_quality.points((0, 1), lost=NAMES[1:])
    for point in described:
        point |= {"status": "missing", "reward_models": [], "preferences": None}
    said = words(quality_figure(quality_sweep(described, None, resamples=20)))
    assert "0 of 12 points" in said
    assert said.count("no result") == 3
    assert "no reward model" in said


# ------------------------------------------------------------------------------------------------------ the experiment


def finished(folder: Path, lost: tuple[str, ...] = (), policy: str = "v") -> list[Point]:
    """Points of a sweep as its runs left them; ``policy``: what the first point's RLVR policies are called."""
    points = []
    for number, quality in enumerate(("flip_00", "flip_20", "hh_like", "ultrafeedback_like")):
        own = folder / "sweep" / f"quality={quality}"
        own.mkdir(parents=True, exist_ok=True)
        record = None
        if quality not in lost:
            synthetic_quality.rows(quality, (0, 1), 6).to_parquet(own / "rows.parquet")
            models = synthetic_quality.reward_models(quality, (0, 1))
            named = policy if number == 0 else "v"
            record = {
                "scale": {"name": "demo", "note": ""},
                "resamples": 50,
                "candidates": [{"candidate": "reward_model", **one} for one in models],
                "preferences": synthetic_quality.preferences(quality),
                "runs": [{"arm": "ppo_verifier", "seed": 0, "inputs": {"policy": named}}],
                "rows_sha256": hashlib.sha256((own / "rows.parquet").read_bytes()).hexdigest(),
                "shared": {"sft_digest": "a", "prompts_digest": "p", "sampler": {}},
            }
        status, note = ("complete", "") if record else ("missing", "It has not reported.")
        choices, overrides = {"quality": quality, "prompts": "None"}, (f"quality={quality}",)
        points.append(Point(number, "data_quality", overrides, choices, (0, 1), own, False, status, note, record))
    return points


@pytest.mark.slow
def test_collect_writes_what_redraw_draws_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provenance, "_METADATA", {"svg": provenance._METADATA["svg"]})  # the others take long
    folder = tmp_path / "data_quality"
    points = finished(folder, lost=("flip_20",))
    assert data_quality.collect(points, folder) == 1
    first = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert list(pd.read_csv(folder / "table.csv").status) == ["complete", "missing", "complete", "complete"]
    assert set(pd.read_parquet(folder / "rows.parquet").quality) == {"flip_00", "hh_like", "ultrafeedback_like"}
    assert "Which counts for more? Data" in capsys.readouterr().out
    sources = json.loads(first["data_quality.json"])["sources"]
    assert [one["status"] for one in sources["points"]] == ["complete", "missing", "complete", "complete"]
    assert str(tmp_path) not in first["data_quality.json"].decode()
    kept = redraw.keep(folder, tmp_path / "kept")
    redraw.redraw(kept)
    assert {path.name: path.read_bytes() for path in kept.iterdir()} == first
    (kept / "other.json").write_text(json.dumps({"figure": "other", "files": {}, "sources": {}}))
    with pytest.raises(ValueError, match=r"other\.json: .*no such figure"):
        redraw.redraw(kept)


@pytest.mark.slow
def test_only_a_complete_sweep_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lab.figures.save", lambda *_: [])
    assert data_quality.collect(finished(tmp_path), tmp_path) == 0
    assert sweep.COLLECTORS["data_quality"](finished(tmp_path, lost=("hh_like",)), tmp_path) == 1


def test_a_line_that_is_not_the_same_in_every_point_is_refused(tmp_path: Path) -> None:
    message = r"ppo_verifier, seed 0 needs no preferences, but quality=flip_00 and quality=flip_20 have different"
    with pytest.raises(ValueError, match=message):
        data_quality.collect(finished(tmp_path, policy="w"), tmp_path)
    assert not (tmp_path / "table.csv").exists()

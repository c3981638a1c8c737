"""Sweeps: slopes against hand-worked and independent ones, points that are never mixed up, a figure that counts."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra.core.utils import JobReturn, JobStatus
from matplotlib.figure import Figure
from matplotlib.text import Text
from omegaconf import DictConfig, OmegaConf

from experiments import redraw, rm_size, sweep
from experiments.sweep import Collect, Point, assert_comparable, gather_rows, home, read
from lab import figures
from lab.figures.sweep import size_figure
from lab.tables.sweep import SizeSweep, only_hard, size_sweep, slope_weights, t_interval, verdict
from tests import synthetic_sweep
from tests.legible import assert_legible
from tests.test_tables import frame, row

# ---------------------------------------------------------------------------------------------------------- estimators


def test_slope_weights_are_those_of_least_squares() -> None:
    assert slope_weights([0, 1, 2]) == pytest.approx([-0.5, 0, 0.5])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=7), rng.normal(size=7)
    assert slope_weights(list(x)) @ y == pytest.approx(np.polyfit(x, y, 1)[0])
    with pytest.raises(ValueError, match="expected different x"):
        slope_weights([2.0, 2.0])


def test_t_interval_by_hand() -> None:
    found = t_interval([0.7, 0.8, 0.9], 0.95)
    assert found is not None
    assert (found.point, found.low, found.high) == pytest.approx((0.8, 0.8 - 0.24841, 0.8 + 0.24841), abs=1e-5)
    alone = t_interval([0.7], 0.95)
    assert alone is not None
    assert alone.point == 0.7
    assert math.isnan(alone.low)
    assert t_interval([], 0.95) is None


@pytest.mark.parametrize(
    ("low", "high", "seeds", "said"),
    [
        (0.002, 0.05, 3, "supported"),
        (-0.01, 0.05, 3, "open"),
        (-0.02, 0.009, 3, "refuted"),
        (0.001, 0.009, 3, "refuted"),  # surely above 0, and surely not worth having
        (0.02, 0.05, 1, "open"),  # one seed says nothing of the next
        (math.nan, math.nan, 0, "open"),
    ],
)
def test_verdicts(low: float, high: float, seeds: int, said: str) -> None:
    assert verdict(low, high, seeds) == said


def test_only_on_hard_prompts_needs_all_three() -> None:
    words = ("supported", "refuted", "open")
    found = {key: only_hard(*key) for key in itertools.product(words, repeat=3)}
    assert [key for key, said in found.items() if said == "supported"] == [("refuted", "supported", "supported")]
    assert found["supported", "supported", "supported"] == "refuted"  # it pays on easy prompts too
    assert found["open", "supported", "supported"] == "open"
    assert found["refuted", "refuted", "open"] == "refuted"


# -------------------------------------------------------------------------------------------------------------- tables


def model(parameters: float, seed: int, accuracy: float) -> dict[str, Any]:
    return {"seed": seed, "parameters": parameters, "accuracy": accuracy, "training_flops": 5.0}


def tiny(golds: dict[tuple[str, str], float]) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Two sizes a factor 100 apart. Easy prompts: math alone; hard ones: math and, 0.2 higher, safety."""
    blocks, described = [], []
    for (backbone, prompts), gold in golds.items():
        domains = {"m": 0.0} if prompts == "easy" else {"m": 0.0, "s": 0.2}
        own = []
        for letter, index in itertools.product(domains, range(3)):
            name = f"{letter}-{prompts}-{index}"
            own.append(row("sft", 0, name, 0.1 + domains[letter]))
            for seed in (0, 1):
                own.append(row("ppo_rm", seed, name, gold + domains[letter]))
                own.append(row("best_of_n", seed, name, 2 * gold + domains[letter], step=16))
        blocks.append(frame(*own).assign(backbone=backbone, prompts=prompts))
        size, accuracy = (100, 0.6) if backbone == "small" else (10_000, 0.7)
        models = [model(size, seed, accuracy + 0.01 * seed) for seed in (0, 1)]
        described.append(
            {"backbone": backbone, "prompts": prompts, "seeds": (0, 1), "status": "complete", "note": ""}
            | {"reward_models": models}
        )
    return described, pd.concat(blocks, ignore_index=True)


GOLDS = {("small", "easy"): 0.5, ("small", "hard"): 0.2, ("large", "easy"): 0.52, ("large", "hard"): 0.3}


def test_table_and_slopes_by_hand() -> None:
    found = size_sweep(*tiny(GOLDS), ns=(16,), resamples=50)
    table = found.table.set_index(["backbone", "prompts"])
    small, large = table.loc[("small", "hard")], table.loc[("large", "hard")]
    assert (small.ppo, large.ppo, large.sft) == pytest.approx((0.3, 0.4, 0.2))  # domains count alike
    assert (small.ppo_delta, large.ppo_delta) == pytest.approx((0.1, 0.2))
    assert large.best_of_16 == pytest.approx(0.7)
    assert large.accuracy == pytest.approx(0.705)
    assert list(table.n_seeds) == [2, 2, 2, 2]
    slopes = found.slopes.set_index(["quantity", "prompts"])
    assert slopes.slope["accuracy", ""] == pytest.approx(0.05)  # +0.1 over two decades
    assert slopes.slope["ppo", "easy"] == pytest.approx(0.01)
    assert slopes.slope["ppo", "hard"] == pytest.approx(0.05)
    assert slopes.slope["ppo", "hard - easy"] == pytest.approx(0.04)  # though easy has one domain and hard two
    assert slopes.slope["best_of_16", "hard - easy"] == pytest.approx(0.08)
    assert slopes.verdict["ppo", "hard"] == "supported"
    assert slopes.slope_low["ppo", "hard"] == pytest.approx(0.05)  # no noise, no width
    assert any("PPO, hard prompts? Supported: +0.050 gold per tenfold" in said for said in found.findings)
    assert math.isnan(slopes.slope["hard", ""])
    assert any("hard part of the benchmark? Open: not measured" in said for said in found.findings)


def test_a_point_that_fails_stays_and_leaves_its_size_to_the_others() -> None:
    points, rows = tiny(GOLDS)
    points[3] |= {"status": "failed", "note": "exit code 1", "reward_models": []}
    rows = rows[(rows.backbone != "large") | (rows.prompts != "hard")]
    found = size_sweep(points, rows, ns=(16,), resamples=50)
    line = found.table.iloc[3]
    assert (line.status, line.n_seeds, line.n_expected, line.parameters) == ("failed", 0, 2, 10_000)
    assert math.isnan(line.ppo)
    slopes = found.slopes.set_index(["quantity", "prompts"])
    assert slopes.slope["ppo", "easy"] == pytest.approx(0.01)
    assert math.isnan(slopes.slope["ppo", "hard"])
    assert slopes.verdict["ppo", "hard - easy"] == "open"


def test_slopes_use_the_seeds_that_every_size_has() -> None:
    points, rows = tiny(GOLDS)
    gone = (rows.backbone == "large") & (rows.arm == "ppo_rm") & (rows.seed == 1)
    found = size_sweep(points, rows[~gone], ns=(16,), resamples=50)
    slopes = found.slopes.set_index(["quantity", "prompts"])
    assert slopes.n_seeds["ppo", "hard"] == 1
    assert slopes.verdict["ppo", "hard"] == "open"
    assert slopes.n_seeds["best_of_16", "hard"] == 2
    assert list(found.table.n_seeds) == [2, 2, 1, 1]


def test_points_that_cannot_be_are_refused() -> None:
    points, rows = tiny(GOLDS)
    with pytest.raises(ValueError, match="small, easy is given twice"):
        size_sweep([points[0], *points], rows)
    points[1]["reward_models"] = [model(101, 0, 0.6)]
    with pytest.raises(ValueError, match="backbone small: 100 and 101 parameters"):
        size_sweep(points, rows)


@pytest.fixture(scope="module")
def whole() -> SizeSweep:
    return size_sweep(*synthetic_sweep.points(), resamples=200)


@pytest.fixture(scope="module")
def partial() -> SizeSweep:
    return size_sweep(*synthetic_sweep.points(lost=[("m", "hard"), ("l", "easy"), ("l", "hard")]), resamples=200)


def test_a_known_structure_is_found_again(whole: SizeSweep) -> None:
    slopes = whole.slopes.set_index(["quantity", "prompts"])
    truth = {("accuracy", ""): 0.04, ("hard", ""): 0.07, ("ppo", "easy"): 0.0, ("ppo", "hard"): 0.03}
    truth |= {("best_of_16", "easy"): 0.0, ("best_of_16", "hard"): 0.05, ("best_of_64", "hard - easy"): 0.05}
    for key, slope in truth.items():
        assert slopes.slope_low[key] <= slope <= slopes.slope_high[key], key
    assert slopes.verdict["ppo", "hard"] == slopes.verdict["best_of_16", "hard - easy"] == "supported"
    assert slopes.verdict["ppo", "easy"] != "supported"


# -------------------------------------------------------------------------------------------------------------- figure


def draw(found: SizeSweep, note: str | None = None) -> Figure:
    return size_figure(found.table, found.seeds, found.slopes, ns=found.ns, level=found.level, note=note)


@pytest.fixture(scope="module")
def whole_figure(whole: SizeSweep) -> Figure:
    return draw(whole)


@pytest.fixture(scope="module")
def partial_figure(partial: SizeSweep) -> Figure:
    return draw(partial, "scale=smoke: proves the path, not a result")


def words(figure: Figure) -> str:
    texts = [text.get_text().replace("\n", " ") for text in figure.findobj(Text) if text.get_visible()]
    return " | ".join(texts)


@pytest.mark.slow
def test_the_figure_counts_and_names_what_is_missing(whole_figure: Figure, partial_figure: Figure) -> None:
    assert "10 of 10 runs, 3 seeds each." in words(whole_figure)
    assert "Incomplete" not in words(whole_figure)
    said = words(partial_figure)
    assert "7 of 10 runs, 3 seeds each." in said
    assert "Incomplete: m, hard (failed, 0 of 3 seeds); l, easy" in said
    assert "scale=smoke: proves the path, not a result" in said
    for part in ("benchmark: chance", "benchmark: longer wins", "easy prompts", "hard prompts", "best-of-16"):
        assert part in said


@pytest.mark.slow
def test_marks_stand_where_the_table_says(whole: SizeSweep, whole_figure: Figure) -> None:
    best, ppo, forest = (whole_figure.axes[place] for place in (1, 2, 3))
    for axes, name in ((best, "best_of_16_delta"), (ppo, "ppo_delta")):
        for prompts, marker in (("easy", "o"), ("hard", "s")):
            own = whole.table[whole.table.prompts == prompts]
            lines = [list(line.get_ydata()) for line in axes.lines if line.get_marker() == marker]
            assert list(own[name]) in lines, (name, prompts)
            bars = [list(line.get_ydata()) for line in axes.lines if len(line.get_ydata()) == 2]
            for low, high in zip(own[f"{name}_low"], own[f"{name}_high"], strict=True):
                assert [low, high] in bars
    drawn = [line.get_xdata()[0] for line in forest.lines if len(line.get_xdata()) == 1]
    shown = whole.slopes[~whole.slopes.quantity.isin(["best_of_64", "overall"])]
    assert sorted(drawn) == sorted(shown.slope)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["whole_figure", "partial_figure"])
def test_text_is_legible_inside_the_page_and_does_not_overlap(which: str, request: pytest.FixtureRequest) -> None:
    assert_legible(request.getfixturevalue(which))


@pytest.mark.slow
def test_one_prompt_set_or_no_result_at_all_still_draws() -> None:
    points, rows = tiny({key: gold for key, gold in GOLDS.items() if key[1] == "hard"})
    assert "hard prompts" in words(draw(size_sweep(points, rows, ns=(16,), resamples=50)))
    for point in points:
        point |= {"status": "missing", "reward_models": []}
    said = words(draw(size_sweep(points, None, resamples=50)))
    assert "0 of 2 runs" in said
    assert said.count("no result") == 2
    assert "no reward model" in said
    with pytest.raises(ValueError, match="one or two prompt sets"):
        size_figure(pd.DataFrame({"prompts": list("abc")}), pd.DataFrame(), pd.DataFrame(), ns=(16,))


# -------------------------------------------------------------------------------------------------------------- points


def job(folder: Path, number: int, *overrides: str, plan: bool = False, mode: str = "MULTIRUN") -> DictConfig:
    """As much of a run's config as the callback reads."""
    from hydra.types import RunMode

    return OmegaConf.create(
        {
            "plan": plan,
            "run": {"results": "results"},
            "hydra": {
                "mode": RunMode[mode],
                "job": {"num": number},
                "runtime": {"cwd": str(folder)},
                "sweep": {"dir": "multirun"},
                "overrides": {"task": list(overrides)},
            },
        }
    )


def ended(error: Exception | None = None) -> JobReturn:
    result = JobReturn(status=JobStatus.FAILED if error else JobStatus.COMPLETED)
    result.return_value = error
    return result


def point(folder: Path, *overrides: str, number: int = 0, **other: Any) -> Point:
    return Point(number, "rm_size", overrides, {}, (0,), folder / "results", **other)


def write_record(folder: Path, **other: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "rows.parquet").write_bytes(b"rows")
    record = {"rows_sha256": hashlib.sha256(b"rows").hexdigest(), **other}
    (folder / "point.json").write_text(json.dumps(record))


def test_what_became_of_a_run(tmp_path: Path) -> None:
    reports = tmp_path / "multirun" / ".points"
    write_record(tmp_path / "results")  # of an earlier sweep
    planned = point(tmp_path, "seeds=1")
    lost = read(planned, reports)
    assert (lost.status, lost.record) == ("missing", None)

    config = job(tmp_path, 0, "seeds=1")
    Collect().on_job_start(config)
    Collect().on_job_end(config, ended(OSError("run 0 (seeds=1): exit code 1: disk full")))
    failed = read(planned, reports)
    assert (failed.status, failed.note, failed.record) == ("failed", "exit code 1: disk full", None)

    write_record(tmp_path / "results", code=1)
    assert read(planned, reports).status == "partial"
    Collect().on_job_end(config, ended())
    done = read(planned, reports)
    assert (done.status, done.note) == ("complete", "")
    assert done.record is not None

    with pytest.raises(ValueError, match="is of seeds=1, expected seeds=2"):
        read(point(tmp_path, "seeds=2"), reports)
    (tmp_path / "results" / "rows.parquet").write_bytes(b"other rows")
    with pytest.raises(ValueError, match=r"rows\.parquet: not the rows that point\.json names"):
        read(planned, reports)


def test_results_lie_where_the_run_put_them(tmp_path: Path) -> None:
    reports = tmp_path / "multirun" / ".points"
    planned = point(tmp_path)  # as planned; a run.results of the command line resolves differently in the run
    config = job(tmp_path, 0)
    config.run.results = "elsewhere"
    Collect().on_job_end(config, ended())
    nothing = read(planned, reports)
    assert (nothing.status, nothing.folder) == ("failed", tmp_path / "elsewhere")
    assert nothing.note == f"It ended without {tmp_path / 'elsewhere' / 'point.json'}."
    write_record(tmp_path / "elsewhere")
    found = read(planned, reports)
    assert (found.status, found.record is not None) == ("complete", True)


def test_a_plan_or_a_single_run_touches_nothing(tmp_path: Path) -> None:
    write_record(tmp_path / "results")
    Collect().on_job_start(job(tmp_path, 0, plan=True))
    Collect().on_job_start(job(tmp_path, 0, mode="RUN"))
    Collect().on_job_end(job(tmp_path, 0, mode="RUN"), ended())
    assert (tmp_path / "results" / "point.json").exists()
    assert not (tmp_path / "multirun").exists()


def shared(sft: str = "a", prompts: str = "p", sampler: float = 1.0) -> dict[str, Any]:
    return {"shared": {"sft_digest": sft, "prompts_digest": prompts, "sampler": {"temperature": sampler}}}


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (shared(sft="b"), r"sft_digest differs between the points of the sweep \(a=1, a=2, a=3: a; a=4: b\)"),
        (shared(prompts="q"), r"prompts_digest \(prompts=hard\) differs"),
        (shared(sampler=0.7), "sampler differs"),
    ],
)
def test_points_that_share_too_little_are_not_compared(tmp_path: Path, other: dict[str, Any], message: str) -> None:
    def at(name: str, prompts: str, record: dict[str, Any]) -> Point:
        return dataclasses.replace(point(tmp_path, name), choices={"prompts": prompts}, record=record)

    alike = [at("a=1", "hard", shared()), at("a=2", "hard", shared()), at("a=3", "easy", shared(prompts="e"))]
    assert_comparable([*alike, point(tmp_path)], "prompts")  # easy prompts are others than hard ones; one has no record
    with pytest.raises(ValueError, match=message):
        assert_comparable([*alike, at("a=4", "hard", other)], "prompts")


def test_where_a_sweep_puts_its_result(tmp_path: Path) -> None:
    one = dataclasses.replace(point(tmp_path), folder=tmp_path / "r" / "sweep" / "a=1")
    two = dataclasses.replace(one, folder=tmp_path / "r" / "sweep" / "a=2")
    assert home([one, two]) == tmp_path / "r"
    with pytest.raises(ValueError, match="lie in different places"):
        home([one, dataclasses.replace(two, folder=tmp_path / "s" / "sweep" / "a=2")])


# ---------------------------------------------------------------------------------------------------- the whole of it


def finished(folder: Path, backbones: tuple[str, ...], lost: tuple[str, ...] = ()) -> list[Point]:
    """Points of a sweep as its runs left them."""
    points = []
    for number, (backbone, prompts) in enumerate(itertools.product(backbones, synthetic_sweep.SETS)):
        own = folder / "sweep" / f"backbone={backbone},prompts={prompts}"
        own.mkdir(parents=True, exist_ok=True)
        record = None
        if backbone not in lost:
            synthetic_sweep.rows(backbone, prompts, (0, 1), 6).to_parquet(own / "rows.parquet")
            models = synthetic_sweep.reward_models(backbone, (0, 1))
            record = {
                "scale": {"name": "demo", "note": ""},
                "resamples": 50,
                "candidates": [{"candidate": "reward_model", **one} for one in models],
                "runs": [{"arm": "sft", "seed": 0, "digest": f"{backbone}-{prompts}"}],
                "rows_sha256": hashlib.sha256((own / "rows.parquet").read_bytes()).hexdigest(),
                **shared(prompts=prompts),
            }
        choices, overrides = {"backbone": backbone, "prompts": prompts}, (f"backbone={backbone}", f"prompts={prompts}")
        status, note = ("complete", "") if record else ("missing", "It has not reported.")
        points.append(Point(number, "rm_size", overrides, choices, (0, 1), own, False, status, note, record))
    return points


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.slow
def test_collect_writes_what_redraw_draws_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "rm_size"
    finished(folder, ("l",))  # an earlier sweep, of another size
    points = finished(folder, ("xs", "s", "m"), lost=("s",))
    assert rm_size.collect(points, folder) == 1
    first = files(folder)
    tables = {"table.csv", "table.md", "table.json", "learning.csv", "learning.md", "learning.tables.json"}
    drawn = {f"{name}.{kind}" for name in ("rm_size", "learning") for kind in ("png", "pdf", "svg")}
    assert set(first) == {"rows.parquet", "rm_size.json", "learning.json"} | tables | drawn
    assert set(pd.read_parquet(folder / "rows.parquet").backbone) == {"xs", "m"}
    table = pd.read_csv(folder / "table.csv")
    assert list(table.status) == ["complete", "complete", "missing", "missing", "complete", "complete"]
    assert "Does size buy accuracy on held-out pairs?" in capsys.readouterr().out
    sources = json.loads(first["rm_size.json"])["sources"]
    assert [one["status"] for one in sources["points"]] == list(table.status)
    assert sources["points"][0]["overrides"] == ["backbone=xs", "prompts=easy"]
    assert str(tmp_path) not in first["rm_size.json"].decode()

    assert rm_size.collect(points, folder) == 1
    assert files(folder) == first

    kept = redraw.keep(folder, tmp_path / "kept")
    assert kept == tmp_path / "kept" / "rm_size"
    assert set(files(kept)) == {"rm_size.json", "learning.json", "rows.parquet"} | tables
    redraw.redraw(kept)
    assert files(kept) == first


@pytest.mark.slow
def test_only_a_complete_sweep_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "save", lambda *_: [])
    assert rm_size.collect(finished(tmp_path / "all", ("xs", "m")), tmp_path / "all") == 0
    nothing = finished(tmp_path / "none", ("xs",), lost=("xs",))
    assert rm_size.collect(nothing, tmp_path / "none") == 1
    assert gather_rows(nothing, ("backbone",)) is None
    assert "It has not reported." in (tmp_path / "none" / "table.md").read_text()


def test_redraw_names_what_it_misses(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none of .*headline\.json, rm_size\.json"):
        redraw.redraw(tmp_path)


def test_the_best_of_n_shown_are_those_that_were_run() -> None:
    def rows(*ns: int) -> pd.DataFrame:
        return pd.DataFrame({"arm": "best_of_n", "step": ns})

    assert rm_size.best_of(rows(2, 16, 64)) == (16, 64)
    assert rm_size.best_of(rows(2, 16)) == (16,)
    assert rm_size.best_of(rows(2, 4, 8)) == (4, 8)
    assert rm_size.best_of(None) == (16, 64)
    assert "rm_size" in sweep.COLLECTORS

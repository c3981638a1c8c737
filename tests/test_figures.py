"""The headline figure: the same bytes each time, honest about what is missing, legible, traceable."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest
from matplotlib.axis import Tick
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from lab import tables
from lab.figures import COMPARE_ARMS, ArmStyle, headline, save
from lab.figures.style import SMALL, resolve
from tests.synthetic_rows import EFFECTS, evaluation_rows, ledgers, plan

pytestmark = pytest.mark.slow  # drawing takes seconds

SOURCES = {"runs": {"sft": ["0a1b"]}, "table_sha256": "cd", "version": "0.1"}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return evaluation_rows(prompts=4, points=2)


@pytest.fixture(scope="module")
def whole(rows: pd.DataFrame) -> tables.Comparison:
    return tables.compare(rows, expected=plan(), costs=ledgers(), resamples=50)


@pytest.fixture(scope="module")
def partial(rows: pd.DataFrame) -> tables.Comparison:
    rows = rows[~((rows.arm == "grpo_verifier") & (rows.seed == 2)) & (rows.arm != "grpo_rm")]
    return tables.compare(rows, expected=plan(), costs=ledgers(), resamples=50)


def draw(found: tables.Comparison, **other: object) -> Figure:
    arms = other.pop("arms", COMPARE_ARMS)
    assert isinstance(arms, dict)
    return headline(found.table, found.seeds, found.curves, arms=arms, **other)  # type: ignore[arg-type]


def texts(figure: Figure) -> list[Text]:
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def words(figure: Figure) -> str:
    return " | ".join(text.get_text().replace("\n", " ") for text in texts(figure))


def test_same_table_same_bytes_and_a_sidecar_that_names_the_sources(tmp_path: Path) -> None:
    arms = ("sft", "dpo", "best_of_n")
    rows = evaluation_rows(arms, prompts=3, points=2)
    rows = rows[rows.domain.isin(["math", "safety"])]
    found = tables.compare(rows, expected=plan(arms), costs=ledgers(arms), resamples=50)
    before = dict(mpl.rcParams)
    first = save(draw(found), tmp_path / "one" / "headline", SOURCES)
    second = save(draw(found), tmp_path / "two" / "headline", SOURCES)
    assert [path.name for path in first] == ["headline.png", "headline.pdf", "headline.svg", "headline.json"]
    for one, two in zip(first, second, strict=True):
        assert one.read_bytes() == two.read_bytes(), one.name
    sidecar = json.loads(first[-1].read_text(encoding="utf-8"))
    assert sidecar["sources"] == SOURCES
    assert sidecar["files"] == {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in first[:3]}
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == sorted(path.name for path in first)
    assert dict(mpl.rcParams) == before


def test_a_figure_without_honest_sources_is_not_saved(whole: tables.Comparison, tmp_path: Path) -> None:
    for bad, message in (({}, "without sources"), ({"gold": math.nan}, r"\$\.gold")):
        with pytest.raises(ValueError, match=message):
            save(Figure(), tmp_path / "headline", bad)
    assert not list(tmp_path.iterdir())


def test_missing_seeds_and_failed_arms_are_announced(partial: tables.Comparison, whole: tables.Comparison) -> None:
    said = words(draw(partial))
    assert "GRPO × verifier (RLVR), 2 of 3 seeds" in said
    assert "Incomplete: GRPO × verifier (RLVR) (2 of 3 seeds), GRPO × RM (0 of 3 seeds)." in said
    assert said.count("no result") == 7  # six domains and their mean
    assert "of 3 seeds" not in words(draw(whole))


def test_every_arm_domain_and_note_is_on_the_figure(whole: tables.Comparison) -> None:
    said = words(draw(whole, note="scale=touch: proves the path, not a result"))
    for style in COMPARE_ARMS.values():
        assert style.label in said
    for domain in ("math", "factuality", "instructions", "safety", "focus", "ties", "all domains"):
        assert domain in said
    assert "scale=touch: proves the path, not a result" in said
    assert "3 policy seeds" in said
    assert "95% bootstrap intervals" in said


@pytest.mark.parametrize("which", ["whole", "partial"])
def test_text_is_legible_inside_the_page_and_names_do_not_overlap(which: str, request: pytest.FixtureRequest) -> None:
    figure = draw(request.getfixturevalue(which), note="scale=touch: proves the path, not a result")
    assert figure.get_size_inches()[0] == 7.0
    FigureCanvasAgg(figure)
    figure.set_dpi(300)
    figure.draw_without_rendering()
    on_ticks = {label for tick in figure.findobj(Tick) for label in (tick.label1, tick.label2)}
    drawn = set()  # a tick beyond the ends of its axis is not drawn
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            place = 0 if axis is axes.xaxis else 1
            labels = axis.get_majorticklabels()
            drawn |= {label for label in labels if min(limits) <= label.get_position()[place] <= max(limits)}
    boxes = []
    for text in texts(figure):
        if text in on_ticks - drawn:
            continue
        assert text.get_fontsize() >= SMALL, text.get_text()
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0, text.get_text()
        assert box.x1 <= figure.bbox.x1, text.get_text()
        assert figure.bbox.y0 <= box.y0, text.get_text()
        assert box.y1 <= figure.bbox.y1, text.get_text()
        boxes.append((text.get_text(), box.padded(-0.5)))
    for (one, box), (two, other) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other), (one, two)


def test_the_marks_are_where_the_table_says(whole: tables.Comparison) -> None:
    figure = draw(whole)
    column = next(axes for axes in figure.axes if axes.get_title() == "all domains")
    lines = whole.table[whole.table.domain == "all"].set_index("arm")
    for arm, style in resolve(COMPARE_ARMS, lines.index).items():
        same = [mark for mark in column.lines if mark.get_marker() == style.marker and len(mark.get_xdata()) == 1]
        assert lines.gold[arm] in [mark.get_xdata()[0] for mark in same], arm
        bars = [list(bar.get_xdata()) for bar in column.lines if len(bar.get_xdata()) == 2]
        assert [lines.gold_low[arm], lines.gold_high[arm]] in bars, arm


def test_arms_look_different_and_unknown_ones_are_drawn() -> None:
    looks = [(style.color, style.marker, style.face) for style in resolve(COMPARE_ARMS, EFFECTS).values()]
    assert len(set(looks)) == len(EFFECTS)
    unknown = resolve({"a": ArmStyle("A", "rm"), "b": ArmStyle("B", "strange")}, ["mystery", "a", "b"])
    assert list(unknown) == ["a", "mystery", "b"]  # by family, strangers last
    assert (unknown["mystery"].label, unknown["mystery"].family) == ("mystery", "other")
    many = resolve({}, [f"arm{i}" for i in range(5)])
    assert len({(style.color, style.marker) for style in many.values()}) == 5


def test_one_domain_one_seed_no_curves_no_costs_no_proxy_still_draws(tmp_path: Path) -> None:
    arms = ["sft", "dpo", "mystery"]
    rows = evaluation_rows(["sft", "dpo", "ppo_rm"], seeds=(0,), prompts=4)
    rows = rows[(rows.domain == "math") & rows.final].replace({"arm": {"ppo_rm": "mystery"}}).assign(proxy=None)
    found = tables.compare(rows, expected={arm: [0] for arm in arms}, resamples=50)
    figure = draw(found)
    said = words(figure)
    for part in ("mystery", "no costs recorded", "no proxy scores", "prompts only (one seed)"):
        assert part in said
    assert "all domains" not in said
    save(figure, tmp_path / "headline", SOURCES)


def test_a_table_without_its_aggregate_is_refused(whole: tables.Comparison) -> None:
    with pytest.raises(ValueError, match="no lines of domain 'all'"):
        headline(whole.table[whole.table.domain == "math"], whole.seeds, whole.curves, arms={})


def test_equal_values_still_have_a_readable_axis(whole: tables.Comparison) -> None:
    flat = dataclasses.replace(
        whole,
        table=whole.table.assign(gold=0.0, gold_low=0.0, gold_high=0.0),
        seeds=whole.seeds.assign(gold=0.0),
    )
    widths = [axes.get_xlim()[1] - axes.get_xlim()[0] for axes in draw(flat).axes]
    assert min(widths) >= 0.02

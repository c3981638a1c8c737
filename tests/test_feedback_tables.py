"""The experiment ai_feedback: its branches, what each source is charged, tables, text and figure."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from experiments import ai_feedback
from experiments.redraw import redraw
from lab.__main__ import load
from lab.config import LabConfig
from lab.feedback.agreement import label_card
from lab.figures.ai_feedback import feedback_figure
from lab.plan import Plan
from lab.records import Ledger, Pair, Prompt
from lab.tables import Comparison, compare
from lab.tables.ai_feedback import (
    Feedback,
    feedback_tables,
    from_payload,
    label_lines,
    markdown,
    payload,
    read,
    summary,
    terminal,
    write,
)
from lab.typed import ConfigError
from tests.synthetic_rows import evaluation_rows

ROOT = Path(__file__).parents[1]
NAMES = {f"{arm}.{source}": (source, arm) for arm in ("dpo", "ppo_rm") for source in ("annotator", "judge")}
LABELS = {"annotator": "Annotator", "judge": "Judge"}
ARMS = {"sft": "SFT", "dpo": "DPO", "ppo_rm": "PPO × RM"}
TITLES = {"sft": ("SFT", "")} | {name: (ARMS[arm], LABELS[source]) for name, (source, arm) in NAMES.items()}


# ---------------------------------------------------------------- branches


@pytest.fixture(scope="module")
def config() -> LabConfig:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return load(compose("config", overrides=["scale=smoke", "experiment=ai_feedback", "seeds=2"]))


def test_every_source_is_a_branch_of_one_checkpoint_and_one_pool(config: LabConfig) -> None:
    found = ai_feedback.branches(config)
    assert [(one.source, one.seed) for one in found[:4]] == [("annotator", 0), ("annotator", 1), ("few", 0), ("few", 1)]
    assert len({one.graph.sft.key for one in found}) == 1
    plan = Plan([step for one in found for step in one.steps])
    assert len({step.key for step in plan.steps if step.kind == "preferences"}) == 1
    pairs = {(one.source, one.seed): one.graph.pairs.key for one in found}
    assert pairs["annotator", 0] == pairs["annotator", 1]
    assert pairs["few", 0] == pairs["few", 1]
    assert len({pairs[source, seed] for source in ("judge", "judge_all", "constitution") for seed in (0, 1)}) == 6
    arms = {source: {run.arm for one in found if one.source == source for _, run in one.runs()} for source, _ in pairs}
    assert arms["annotator"] == arms["constitution"] == {"sft_continued", "dpo", "ppo_rm"}
    assert arms["few"] == arms["judge"] == arms["judge_all"] == {"dpo", "ppo_rm"}
    assert ai_feedback.baseline_run(found).arm == "sft"
    assert ai_feedback.title(config, "constitution", "sft_continued") == ("SFT on revised answers", "Constitution")
    assert ai_feedback.title(config, "annotator", "sft_continued") == ("SFT continued", "")
    assert ai_feedback.title(config, "judge_all", "dpo") == ("DPO", "Judge of all labels")


def test_the_sources_need_one_that_is_the_pool_itself(config: LabConfig) -> None:
    sources = dict(config.label_sources)
    assert next(iter(ai_feedback.ordered(config))) == "annotator"
    del sources["annotator"]
    with pytest.raises(ConfigError, match="label_sources: expected one without feedback"):
        ai_feedback.branches(dataclasses.replace(config, label_sources=sources))
    judged = config.label_sources["judge"].feedback
    with pytest.raises(ConfigError, match="feedback: this experiment has its own"):
        ai_feedback.branches(dataclasses.replace(config, feedback=judged))


class FakeStore:
    """Ledgers by the kind of step."""

    def __init__(self, graph: Any, spent: dict[str, Ledger]) -> None:
        self.kinds = {step.key: step.kind for step in Plan(graph.steps).steps}
        self.spent = spent

    def manifest(self, key: str) -> dict[str, Any]:
        ledger = self.spent.get(self.kinds[key], Ledger(training_flops=1.0))
        return {"ledger": dataclasses.asdict(ledger), "duration_seconds": 0.0}


def test_answers_of_the_reviser_are_not_bought_and_what_it_learnt_from_is(config: LabConfig) -> None:
    branch = next(one for one in ai_feedback.branches(config) if one.source == "constitution")
    store: Any = FakeStore(
        branch.graph,
        {
            "sft_continued": Ledger(demonstrations=70, training_flops=3.0),
            "revise": Ledger(demonstrations=48, generated_tokens=5),
            "ai_labels": Ledger(demonstrations=48, preference_labels=64, judge_calls=20),
        },
    )
    runs = {run.arm: run for _, run in branch.runs()}
    continued = ai_feedback.spent(branch, store, runs["sft_continued"])
    assert (continued.demonstrations, continued.preference_labels, continued.training_flops) == (48, 0, 3.0)
    dpo = ai_feedback.spent(branch, store, runs["dpo"])
    assert (dpo.demonstrations, dpo.preference_labels, dpo.judge_calls) == (48, 64, 20)


# ---------------------------------------------------------------- tables


def card(agreement: float, silent: int = 0) -> dict[str, Any]:
    """Of 100 pairs of two domains; ``agreement`` of what the judge says of them is right."""
    pairs = [Pair(Prompt(f"p{n}", ("math", "ties")[n % 2], 1, {}), "a b", "a", "x") for n in range(100)]
    right = np.arange(100) < 100 * agreement
    first = np.where(right, 0.9, 0.1)
    first[100 - silent :] = np.nan
    found = label_card(pairs, first, np.where(np.arange(100) < 90, 1.0, 0.0))
    return {**found, "position_bias": 0.05, "inconsistent": 0.2}


def revised(seed: int) -> dict[str, Any]:
    def around(value: float) -> dict[str, float]:
        return {"mean": value, "low": value - 0.1, "high": value + 0.1}

    points = [{"round": 0, "gold": around(0.7)}, {"round": 1, "gold": around(0.9), "gain": around(0.2)}]
    domain = {"before": around(0.7), "after": around(0.9), "gain": around(0.2)}
    share = {"share": 0.8, "low": 0.7, "high": 0.9, "pairs": 50}
    principle = {"principle": 1, "applied": 60, "revised": 40, "unusable": 2, "gain": 0.1, "critique": share}
    gold = {"points": points, "by_domain": {"math": domain, "ties": domain}, "prompts": 40}
    return {"source": "judge", "seed": seed, "card": {"gold": gold, "principles": [principle]},
            "principles": {1: "Be right."}}  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Both sources' arms; the judge's are the annotator's with 0.05 of gold taken off."""
    rows = evaluation_rows(("sft", "dpo", "ppo_rm"), seeds=(0, 1), prompts=8, samples=2, points=1)
    parts = [rows[rows.arm == "sft"]]
    for name, (source, arm) in NAMES.items():
        own = rows[rows.arm == arm]
        parts.append(own.assign(arm=name, run=own.run + name, gold=own.gold - 0.05 * (source == "judge")))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def compared(rows: pd.DataFrame) -> Comparison:
    return compare(
        rows,
        expected={"sft": [0], **{name: [0, 1] for name in NAMES}},
        costs={name: [dataclasses.asdict(Ledger(preference_labels=64, judge_calls=200))] * 2 for name in NAMES},
        resamples=50,
    )


@pytest.fixture(scope="module")
def found(rows: pd.DataFrame, compared: Comparison) -> Feedback:
    costs = {"preference_labels": 64, "demonstrations": 0, "judge_calls": 0}
    cards = [
        {"source": "annotator", "seed": 0, "by_judge": False, "judge_accuracy": None, "card": card(0.9), **costs},
        {"source": "judge", "seed": 0, "by_judge": True, "judge_accuracy": 0.7, "card": card(0.6, 5), **costs},
        {"source": "judge", "seed": 1, "by_judge": True, "judge_accuracy": 0.8, "card": card(0.8), **costs},
    ]
    return feedback_tables(compared, rows, NAMES, labels=LABELS, titles=TITLES, cards=cards,
                           revised=[revised(0), revised(1)], resamples=100)  # fmt: skip


def test_a_source_is_compared_with_the_first_on_the_same_prompts(found: Feedback) -> None:
    table = found.arms.set_index(["arm", "source"])
    for arm in ("dpo", "ppo_rm"):
        line = table.loc[(arm, "judge")]
        assert line.gold_against == pytest.approx(-0.05)
        assert line.gold_against == pytest.approx(line.gold_delta - table.loc[(arm, "annotator")].gold_delta)
        assert line.gold_against_low <= line.gold_against <= line.gold_against_high
        assert np.isnan(table.loc[(arm, "annotator")].gold_against)
    assert list(found.arms.arm) == ["sft", "dpo", "dpo", "ppo_rm", "ppo_rm"]


def test_quality_is_a_mean_over_seeds_within_the_widest_ends(found: Feedback) -> None:
    lines = summary(found.quality).set_index(["source", "domain"])
    assert lines.loc[("annotator", "all")].agreement_with_gold == pytest.approx(1.0)  # its first 90 pairs are right
    judge = lines.loc[("judge", "all")]
    own = found.quality[(found.quality.source == "judge") & (found.quality.domain == "all")]
    assert judge.agreement_with_gold == pytest.approx((60 / 90 + 80 / 90) / 2)
    assert judge.agreement_with_gold_low == own.agreement_with_gold_low.min()
    assert judge.agreement_with_gold_high == own.agreement_with_gold_high.max()
    assert judge.judge_accuracy == pytest.approx(0.75)
    assert (judge.n_seeds, judge.unanswered) == (2, 2.5)
    assert np.isnan(lines.loc[("annotator", "all")].agreement_with_labels)
    body = label_lines(found)[1]
    assert [line[0] for line in body] == ["Annotator", "Judge"]


def test_tables_survive_their_file_and_say_who_paid_what(found: Feedback, tmp_path: Path) -> None:
    paths = write(found, tmp_path)
    again = read(tmp_path / "ai_feedback.tables.json")
    for name, frame in vars(found).items():
        if isinstance(frame, pd.DataFrame):
            pd.testing.assert_frame_equal(getattr(again, name), frame, check_dtype=False, check_exact=True)
    assert again.level == found.level
    assert {path.name for path in paths} == {
        "ai_feedback.tables.json", "ai_feedback.md", "ai_feedback.csv", "labels.csv",
    }  # fmt: skip
    text = markdown(found)
    assert "| DPO | Judge | 2 of 2 |" in text
    assert "| 0 | after 1 | 0.900 [0.800, 1.000] | +0.200 [+0.100, +0.300] |" in text
    assert "| 1 | Be right. | 120 | 80 | 4 | 80.0% | +0.100 |" in text
    assert "position bias" in terminal(found)


def test_without_labels_or_revisions_the_tables_say_so(
    found: Feedback, rows: pd.DataFrame, compared: Comparison
) -> None:
    plain = from_payload({**copy.deepcopy(payload(found)), "rounds": [], "domains": [], "principles": []})
    assert "principle" not in markdown(plain)
    assert feedback_figure(plain).axes
    with pytest.raises(ValueError, match="no source has labels"):
        feedback_tables(compared, rows, NAMES, labels=LABELS, titles=TITLES, cards=[], revised=[])


def test_the_figure_has_a_row_a_source_and_keeps_its_text_on_the_page(found: Feedback) -> None:
    fig = feedback_figure(found, note="a note")
    texts = [text for axes in fig.axes for text in axes.texts] + fig.texts
    assert {"Annotator", "Judge", "labels, edits\nbought", "a note"} <= {text.get_text() for text in texts}
    assert min(text.get_fontsize() for text in texts) >= 6.5
    fig.canvas.draw()
    page = fig.bbox
    for text in texts:
        box = text.get_window_extent()
        assert page.x0 - 1 <= box.x0 <= box.x1 <= page.x1 + 1, text.get_text()
        assert page.y0 - 1 <= box.y0 <= box.y1 <= page.y1 + 1, text.get_text()


@pytest.mark.slow
def test_the_smallest_run_ends_in_table_and_figure_and_is_redrawn_byte_for_byte(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "lab", "experiment=ai_feedback", "scale=smoke", f"run.store={tmp_path}/store",
               f"run.results={tmp_path}/results", f"hydra.run.dir={tmp_path}/hydra", "run.resamples=100"]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    results = tmp_path / "results"
    told = json.loads((results / "ai_feedback.json").read_text(encoding="utf-8"))["sources"]
    assert {one["source"] for one in told["pairs"]} == {"annotator", "few", "judge", "judge_all", "constitution"}
    arms = read(results / "ai_feedback.tables.json").arms.set_index(["arm", "source"])
    labels = arms.preference_labels.to_dict()
    assert [labels["dpo", one] for one in ("annotator", "few", "judge", "judge_all")] == [96, 64, 64, 96]
    assert labels["sft_continued", "constitution"] == 0
    assert arms.demonstrations["sft_continued", "constitution"] == 256
    assert arms.judge_calls["ppo_rm", "judge"] == 192
    for name in ("ai_feedback.tables.json", "ai_feedback.json"):
        (tmp_path / name).write_bytes((results / name).read_bytes())
    redraw(tmp_path)
    for name in ("ai_feedback.png", "ai_feedback.svg", "ai_feedback.json"):
        assert (tmp_path / name).read_bytes() == (results / name).read_bytes(), name

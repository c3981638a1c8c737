"""The table of reward-model accuracy against pairs, and its figure."""

from __future__ import annotations

import math

import pytest
from scipy import stats as scipy_stats

from lab.figures.learning import learning_figure
from lab.tables.learning import learning_table, markdown


def model(backbone: str, pairs: int, seed: int, accuracy: float, candidate: str = "reward_model") -> dict[str, object]:
    return {"backbone": backbone, "candidate": candidate, "seed": seed, "parameters": {"s": 100, "m": 400}[backbone],
            "pairs": pairs, "accuracy": accuracy, "overall": accuracy / 2, "easy": accuracy, "hard": 0.25}  # fmt: skip


CONTROL = {"candidate": "random", "seed": 0, "backbone": "s", "overall": 0.24, "easy": 0.25, "hard": 0.23}
MODELS = [model("m", 1000, 0, 0.9), model("s", 1000, 0, 0.8), model("s", 1000, 1, 0.6), model("s", 250, 0, 0.55),
          model("s", 1000, 0, 0.8), CONTROL]  # fmt: skip


def test_a_line_for_each_size_and_number_of_pairs() -> None:
    table = learning_table(MODELS)
    assert table[["backbone", "control"]].to_numpy().tolist() == [["s", ""], ["s", ""], ["m", ""], ["", "random"]]
    assert table.pairs.tolist()[:3] == [250, 1000, 1000]
    assert table.n_seeds.tolist() == [1, 2, 1, 1]  # a reward model that two runs share counts once
    line = table.iloc[1]
    half = scipy_stats.t.ppf(0.975, 1) * math.sqrt(0.02) / math.sqrt(2)
    assert line.accuracy == pytest.approx(0.7)
    assert (line.accuracy_low, line.accuracy_high) == pytest.approx((0.7 - half, 0.7 + half))
    assert math.isnan(table.iloc[0].accuracy_low), "one seed has no interval"
    assert math.isnan(table.iloc[3].accuracy), "a control has no held-out pairs"
    assert "| s | 100 | 250 | 1 | 0.550 |" in markdown(table)


def test_the_figure_has_a_line_for_each_size_and_control() -> None:
    figure = learning_figure(learning_table(MODELS), note="a note")
    labels = figure.axes[2].get_legend_handles_labels()[1]
    assert sorted(labels) == ["m: 0.4k", "random", "s: 0.1k"]
    assert any(text.get_text() == "a note" for text in figure.texts)
    with pytest.raises(ValueError, match="no reward model"):
        learning_figure(learning_table([CONTROL]))

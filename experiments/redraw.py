"""``python -m experiments.redraw``: draw every committed figure again from its committed tables. Nothing is trained.

``python -m experiments.redraw --keep results/compare`` first copies a finished run's, or a finished sweep's, tables and
figure to ``experiments/results/`` under the experiment's name; rows and store stay where they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from experiments import ai_feedback, overoptimisation, pipelines, reward_models
from experiments.data_quality import NAME as DATA_QUALITY
from experiments.overlap import REPORT as OVERLAP
from experiments.rm_size import LEARNING
from experiments.rm_size import NAME as RM_SIZE
from lab.figures import COMPARE_ARMS, ArmStyle, headline, save
from lab.figures.learning import learning_figure
from lab.figures.quality import quality_figure
from lab.figures.sweep import size_figure
from lab.tables import ai_feedback as ai_feedback_tables
from lab.tables import quality_text, reward_models_text
from lab.tables.overoptimisation_text import TABLES as OVEROPTIMISATION
from lab.tables.pipelines_text import TABLES as PIPELINES

KEPT = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Drawing:
    """How a figure is drawn from ``tables`` (a JSON file beside it) and the sources that its sidecar names."""

    tables: str
    draw: Callable[[Mapping[str, Any], Mapping[str, Any]], Figure]
    texts: tuple[str, ...] = ()  # tables for people, which are kept too


def _headline(found: Mapping[str, Any], sources: Mapping[str, Any]) -> Figure:
    return headline(
        *(_frame(found[name]) for name in ("table", "seeds", "curves")),
        arms={name: _style(name, arm) for name, arm in sources["arms"].items()},
        baseline=found["baseline"],
        level=found["level"],
        note=sources["note"],
    )


def _sizes(found: Mapping[str, Any], sources: Mapping[str, Any]) -> Figure:
    frames = (_frame(found[name]) for name in ("table", "seeds", "slopes"))
    return size_figure(*frames, ns=found["ns"], level=found["level"], note=sources["note"])


def _learning(found: Mapping[str, Any], sources: Mapping[str, Any]) -> Figure:
    return learning_figure(_frame(found["table"]), level=found["level"], note=sources["note"])


def _quality(found: Mapping[str, Any], sources: Mapping[str, Any]) -> Figure:
    return quality_figure(quality_text.from_payload(found), sources["note"])


def _of_overoptimisation(name: str, *texts: str) -> Drawing:
    def draw(found: Mapping[str, Any], sources: Mapping[str, Any]) -> Figure:
        return overoptimisation.drawings()[name](found, sources)

    return Drawing(OVEROPTIMISATION, draw, (f"{name}.md", f"{name}.csv", *texts))


def _of_reward_models(name: str, *texts: str) -> Drawing:
    def draw(found: Mapping[str, Any], sources: Mapping[str, Any]) -> Figure:
        return reward_models.drawings()[name](found, sources)

    return Drawing(reward_models_text.TABLES, draw, (f"{name}.csv", *texts))


def _pipelines(found: Mapping[str, Any], sources: Mapping[str, Any]) -> Figure:
    return pipelines.drawings()["pipelines"](found, sources)


FIGURES: Mapping[str, Drawing] = {
    ai_feedback.NAME: Drawing(
        ai_feedback_tables.TABLES, ai_feedback.drawing, ("ai_feedback.md", "ai_feedback.csv", "labels.csv")
    ),
    "headline": Drawing("summary.json", _headline),
    RM_SIZE: Drawing("table.json", _sizes, ("rows.parquet",)),
    LEARNING: Drawing("learning.tables.json", _learning, ("learning.csv", "learning.md")),
    DATA_QUALITY: Drawing(
        "table.json", _quality, ("rows.parquet", *(f"{name}.csv" for name in quality_text.FRAMES if name != "table"))
    ),
    "overoptimisation": _of_overoptimisation("overoptimisation", "curves.csv", "fits.csv", "contrasts.csv"),
    "monitor": _of_overoptimisation("monitor", "monitor_runs.csv"),
    "pipelines": Drawing(PIPELINES, _pipelines, ("changes.csv", "contrasts.csv")),
    "kinds": _of_reward_models("kinds", "kinds.md", "benchmark.csv", "benchmark_tests.csv"),
    "best_of_n": _of_reward_models("best_of_n", "voting.csv"),
    "association": _of_reward_models("association"),
    "calibration": _of_reward_models("calibration"),
}
"""By the figure's name, which is also its sidecar's."""


def redraw(folder: Path) -> list[Path]:
    """Draw every figure of ``folder`` again, under the sources that its sidecar names; returns what was written.

    Raises FileNotFoundError if the folder has no figure that is known here, or if the tables are missing, ValueError
    for a figure that is not known here.
    """
    names = figures_of(folder)
    if not names:
        raise FileNotFoundError(f"{folder}: none of {', '.join(f'{name}.json' for name in FIGURES)} is there")
    paths = []
    for name in names:
        found = json.loads((folder / FIGURES[name].tables).read_text(encoding="utf-8"))
        sources = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["sources"]
        paths += save(FIGURES[name].draw(found, sources), folder / name, sources)
    return paths


def figures_of(folder: Path) -> list[str]:
    """The names of the figures whose sidecars lie in ``folder``, in the order of ``FIGURES``.

    Raises ValueError for one that is not known here: it would quietly not be drawn again.
    """
    found = {path.stem for path in folder.glob("*.json") if _is_sidecar(path)}
    unknown = sorted(found - set(FIGURES))
    if unknown:
        raise ValueError(
            f"{folder / unknown[0]}.json: no such figure; FIGURES of experiments.redraw has {list(FIGURES)}"
        )
    return [name for name in FIGURES if name in found]


def _is_sidecar(path: Path) -> bool:
    found = json.loads(path.read_text(encoding="utf-8"))
    return isinstance(found, dict) and {"figure", "files", "sources"} <= set(found)


def keep(given: Path, kept: Path = KEPT) -> Path:
    """Copy the tables and sidecars of ``given`` to ``kept`` under the experiment's name; returns that folder.

    Raises FileNotFoundError and ValueError as ``redraw``.
    """
    names = figures_of(given)
    if not names:
        raise FileNotFoundError(f"{given}: none of {', '.join(f'{name}.json' for name in FIGURES)} is there")
    sidecar = json.loads((given / f"{names[0]}.json").read_text(encoding="utf-8"))
    folder = kept / sidecar["sources"]["experiment"]
    folder.mkdir(parents=True, exist_ok=True)
    files = [file for name in names for file in (FIGURES[name].tables, f"{name}.json", *FIGURES[name].texts)]
    for file in dict.fromkeys(["table.csv", "table.md", *files]):
        shutil.copyfile(given / file, folder / file)
    if (given / OVERLAP).is_file():
        shutil.copyfile(given / OVERLAP, folder / OVERLAP)
    return folder


def _frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(lines).apply(_numbers)


def _numbers(column: pd.Series) -> pd.Series:
    """A column that JSON's null made an object column, with NaN again; text stays text."""
    if column.dtype != object:
        return column
    known = column.dropna()
    return pd.to_numeric(column) if not known.map(lambda item: isinstance(item, str)).any() else column


def _style(name: str, arm: dict[str, str]) -> ArmStyle:
    return ArmStyle(**{**vars(COMPARE_ARMS.get(name, ArmStyle(arm["label"], arm["family"]))), **arm})


def main() -> None:
    """Redraw all, after copying a run if ``--keep`` names one."""
    parser = argparse.ArgumentParser(prog="python -m experiments.redraw", description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="results of a finished run or sweep, to be kept")
    given = parser.parse_args()
    if given.keep is not None:
        keep(given.keep)
    for folder in sorted(path for path in KEPT.iterdir() if path.is_dir()):
        if not figures_of(folder):
            print(f"{folder}: tables only")
            continue
        for path in redraw(folder):
            print(path)


if __name__ == "__main__":
    main()

"""``python -m experiments.redraw``: draw every committed figure again from its committed tables. Nothing is trained.

``python -m experiments.redraw --keep results/compare`` first copies a finished run's tables and figure to
``experiments/results/`` under the experiment's name; rows and store stay where they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pandas as pd

from lab.figures import COMPARE_ARMS, ArmStyle, headline, save

KEPT = Path(__file__).parent / "results"
FILES = ("table.csv", "table.md", "summary.json", "headline.json")


def redraw(folder: Path) -> list[Path]:
    """The headline figure of ``folder`` from its ``summary.json``, under the sources that its sidecar names.

    Raises FileNotFoundError if either is missing.
    """
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    sidecar = json.loads((folder / "headline.json").read_text(encoding="utf-8"))
    sources = sidecar["sources"]
    tables = [pd.DataFrame(summary[name]) for name in ("table", "seeds", "curves")]
    frames = [table.apply(_numbers) for table in tables]
    figure = headline(
        *frames,
        arms={name: _style(name, arm) for name, arm in sources["arms"].items()},
        baseline=summary["baseline"],
        level=summary["level"],
        note=sources["note"],
    )
    return save(figure, folder / "headline", sources)


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
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="results of a finished run, to be kept")
    given = parser.parse_args()
    if given.keep is not None:
        name = json.loads((given.keep / "headline.json").read_text(encoding="utf-8"))["sources"]["experiment"]
        (KEPT / name).mkdir(parents=True, exist_ok=True)
        for file in FILES:
            shutil.copyfile(given.keep / file, KEPT / name / file)
    for folder in sorted(path.parent for path in KEPT.glob("*/summary.json")):
        for path in redraw(folder):
            print(path)


if __name__ == "__main__":
    main()

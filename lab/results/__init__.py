"""Committed results as tables: ``lab.results.load("rm_size")`` is a DataFrame. Reads files only; no torch, no store.

>>> from lab import results
>>> results.names()  # doctest: +SKIP
['data_quality', 'health', 'overoptimisation', 'real_reward_model', 'reward_models', 'rm_size']
>>> results.load("rm_size", "slopes").columns  # doctest: +SKIP

What each column means: ``describe``, and docs/results.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from lab.results.columns import meaning
from lab.tables.reward_models_text import frame
from lab.typed import nearest

__all__ = ["VARIABLE", "describe", "folder", "load", "names", "tables"]

VARIABLE = "ALIGNMENT_LAB_RESULTS"
"""Environment variable that names another folder of results than the checkout's experiments/results."""

ROWS = "rows"


def load(name: str | Path, table: str = "table", root: str | Path | None = None) -> pd.DataFrame:
    """A table of a committed result.

    ``name``: an experiment of ``names``, or the path of a folder with results (of a run of one's own, for instance).
    ``table``: one of ``tables(name)``: "table" is the one that the experiment's report is about, a line an arm and
    domain, or a line a point of a sweep; "seeds" has a line a seed; "rows" has every evaluated completion.
    ``root``: where the experiments' folders lie; the checkout's experiments/results unless ``VARIABLE`` says otherwise.

    Columns are documented by ``describe(name, table)``. In all tables ``X_low`` and ``X_high`` bound the 95% interval
    of ``X`` (by bootstrap over seeds and prompts, or Student's t over seeds: docs/results.md), shares are in 0..1, gold
    is in units of the world's utility, and a missing value is NaN. Lines of what failed are kept, with ``status`` and
    ``note``.

    FileNotFoundError naming what there is, for an unknown result or table.
    """
    csv = folder(name, root) / f"{table}.csv"
    if csv.exists():  # the common case, without reading the JSON files
        return pd.read_csv(csv)
    known = _readers(csv.parent)
    if table not in known:
        raise FileNotFoundError(f"{name}: no table {table!r}{nearest(table, list(known))}; it has {', '.join(known)}")
    return known[table]()


def tables(name: str | Path, root: str | Path | None = None) -> list[str]:
    """The tables of a result, "table" first. FileNotFoundError as ``load``."""
    return list(_readers(folder(name, root)))


def names(root: str | Path | None = None) -> list[str]:
    """The experiments that have committed results. FileNotFoundError if the folder of results is not there."""
    top = _root(root)
    return sorted(path.name for path in top.iterdir() if (path / "table.csv").exists())


def describe(name: str | Path, table: str = "table", root: str | Path | None = None) -> pd.DataFrame:
    """What each column of a table means: columns ``column`` and ``meaning``, "" where it is not documented.

    FileNotFoundError as ``load``.
    """
    found = load(name, table, root)
    own = folder(name, root).name
    return pd.DataFrame([(column, meaning(own, table, column)) for column in found], columns=["column", "meaning"])


def folder(name: str | Path, root: str | Path | None = None) -> Path:
    """The folder of a result. FileNotFoundError naming the results there are."""
    if isinstance(name, Path) or os.sep in name:
        if not (Path(name) / "table.csv").exists():
            raise FileNotFoundError(f"{name}: no results there (no table.csv)")
        return Path(name)
    known = names(root)
    if name not in known:
        raise FileNotFoundError(f"no committed result {name!r}{nearest(name, known)}; there are: {', '.join(known)}")
    return _root(root) / name


def _root(root: str | Path | None) -> Path:
    checkout = Path(__file__).resolve().parent.parent.parent / "experiments" / "results"
    top = Path(root or os.environ.get(VARIABLE) or checkout)
    if not top.is_dir():
        raise FileNotFoundError(
            f"{top}: no folder of results. They are part of the checkout: install that with pip install -e, set "
            f"{VARIABLE}, or give a path"
        )
    return top


def _readers(found: Path) -> dict[str, Callable[[], pd.DataFrame]]:
    """Table -> what reads it: CSV files, then tables that only a JSON file has (not sidecars of figures), then rows."""
    readers: dict[str, Callable[[], pd.DataFrame]] = {}
    for path in sorted(found.glob("*.csv"), key=lambda path: (path.stem != "table", path.stem)):
        readers[path.stem] = lambda path=path: pd.read_csv(path)  # type: ignore[misc]
    for path in sorted(found.glob("*.json")):
        plain = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(plain, dict) or "figure" in plain:
            continue
        for name, lines in plain.items():
            if name not in readers and _is_table(lines):
                readers[name] = lambda lines=lines: frame(lines)  # type: ignore[misc]
    if (found / "rows.parquet").exists():
        readers[ROWS] = lambda: pd.read_parquet(found / "rows.parquet")
    return readers


def _is_table(lines: Any) -> bool:
    """A list of mappings of plain values."""
    return (
        isinstance(lines, list)
        and bool(lines)
        and all(isinstance(line, dict) for line in lines)
        and not any(isinstance(item, (dict, list)) for line in lines for item in line.values())
    )

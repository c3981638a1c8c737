"""Question: what does a larger reward model buy: accuracy, better picks among samples, a better policy?

Prediction, from the literature: a larger reward model is more accurate and picks better among samples, and PPO gets
little of it. Ivison et al. 2024 (arXiv 2406.09279): 70B for 13B gave best-of-n +4.2 points and PPO +0.6 on average, but
+5 on GSM8K. So size should pay on hard prompts if anywhere. Whatever the rows say is the result.

``python -m lab -m experiment=rm_size`` runs ``experiments.compare`` once for every backbone and prompt set; this module
makes one table and one figure of all of them. The SFT checkpoint is the same in every run, and so are the evaluation
prompts of all runs with the same prompt set; it is asserted here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.sweep import Point, assert_comparable, gather_rows

NAME = "rm_size"
LEARNING = "learning"
BEST_OF = (16, 64)


def collect(points: Sequence[Point], folder: Path) -> int:
    """Write rows, table and figure of the sweep's ``points`` to ``folder`` and print the table.

    Returns 0 if every planned point is complete. Raises ValueError where the points cannot be compared.
    """
    # Not before the work is done: every run of the sweep imports experiments.
    import pandas as pd

    from lab.figures import save
    from lab.figures.learning import learning_figure
    from lab.figures.sweep import size_figure
    from lab.tables import csv_bytes, learning, table_digest, write_bytes
    from lab.tables.sweep import markdown, size_sweep, summary, terminal

    assert_comparable(points, "prompts")
    rows = gather_rows(points, ("backbone", "prompts"))
    found = size_sweep(
        [_described(point) for point in points],
        rows,
        ns=best_of(rows),
        resamples=max((point.record["resamples"] for point in points if point.record), default=2000),
    )
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    if isinstance(rows, pd.DataFrame):
        paths.append(folder / "rows.parquet")
        rows.to_parquet(paths[0].with_suffix(".tmp"), index=False, compression="zstd")
        paths[0].with_suffix(".tmp").replace(paths[0])
    for name, data in {
        "table.csv": csv_bytes(found.table),
        "table.json": summary(found),
        "table.md": markdown(found).encode(),
    }.items():
        write_bytes(folder / name, data)
        paths.append(folder / name)
    scales = {json.dumps(point.record["scale"], sort_keys=True) for point in points if point.record}
    if len(scales) > 1:
        raise ValueError(f"cannot compare: the points of the sweep have different scales: {', '.join(sorted(scales))}")
    scale = json.loads(scales.pop()) if scales else {"name": None, "note": ""}
    sources = {
        "experiment": NAME,
        "scale": scale["name"],
        "note": scale["note"] or None,
        "table_sha256": table_digest(found.table),
        "points": [_source(point) for point in points],
    }
    figure = size_figure(
        found.table, found.seeds, found.slopes, ns=found.ns, level=found.level, note=scale["note"] or None
    )
    paths += save(figure, folder / NAME, sources)
    figure.clear()
    learnt = learning.learning_table([model for point in points for model in _models(point)])
    for name, data in {
        "learning.csv": csv_bytes(learnt),
        "learning.tables.json": learning.summary(learnt),
        "learning.md": learning.markdown(learnt).encode(),
    }.items():
        write_bytes(folder / name, data)
        paths.append(folder / name)
    figure = learning_figure(learnt, note=scale["note"] or None)
    paths += save(figure, folder / LEARNING, {**sources, "table_sha256": table_digest(learnt)})
    figure.clear()
    print(f"\n{terminal(found)}\n")
    for path in paths:
        print(path)
    return int(any(point.status != "complete" for point in points))


def best_of(rows: Any) -> tuple[int, ...]:
    """The n of best-of-n that the table shows: 16 and 64, or, where these were not run, the largest two that were."""
    have = sorted(set(rows.step[rows.arm == "best_of_n"])) if rows is not None else []
    wanted = tuple(n for n in BEST_OF if n in have)
    return wanted or tuple(int(n) for n in have[-2:]) or BEST_OF


def _described(point: Point) -> dict[str, Any]:
    return {
        "backbone": point.choices["backbone"],
        "prompts": point.choices["prompts"],
        "seeds": point.seeds,
        "status": point.status,
        "note": point.note,
        "reward_models": _reward_models(point),
    }


def _models(point: Point) -> list[dict[str, Any]]:
    found = point.record["candidates"] if point.record else []
    return [{**one, "backbone": point.choices["backbone"]} for one in found]


def _reward_models(point: Point) -> list[dict[str, Any]]:
    """The point's reward models, one a seed, with what the random and the length-only reward score on the benchmark."""
    found = point.record["candidates"] if point.record else []
    of = {one["candidate"]: one for one in found}
    beside = {key: of[name]["overall"] for key, name in (("chance", "random"), ("length_only", "length")) if name in of}
    return [{**one, **beside} for one in found if one["candidate"] == "reward_model"]


def _source(point: Point) -> dict[str, Any]:
    """What the figure owes to one point. No path of this machine, no time: the same runs give the same bytes."""
    source: dict[str, Any] = {"overrides": list(point.overrides), "status": point.status}
    if point.record:
        source |= {key: point.record[key] for key in ("shared", "runs", "rows_sha256")}
    return source

"""Question: what does a larger reward model buy: accuracy, better picks among samples, a better policy?

Prediction, from the literature: a larger reward model is more accurate and picks better among samples, and PPO gets
little of it. Ivison et al. 2024 (arXiv 2406.09279): 70B for 13B gave best-of-n +4.2 points and PPO +0.6 on average, but
+5 on GSM8K. So size should pay on hard prompts if anywhere. Whatever the rows say is the result.

``python -m lab -m experiment=rm_size`` runs ``experiments.compare`` once for every backbone and prompt set; this module
makes one table and one figure of all of them. The SFT checkpoint is the same in every run, and so are the evaluation
prompts of all runs with the same prompt set; it is asserted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.sweep import Point, assert_comparable, described, gather_rows, resamples, sources, write_files

NAME = "rm_size"
LEARNING = "learning"
BEST_OF = (16, 64)


def collect(points: Sequence[Point], folder: Path) -> int:
    """Write rows, table and figure of the sweep's ``points`` to ``folder`` and print the table.

    Returns 0 if every planned point is complete. Raises ValueError where the points cannot be compared.
    """
    # Not before the work is done: every run of the sweep imports experiments.
    from lab.figures import save
    from lab.figures.learning import learning_figure
    from lab.figures.sweep import size_figure
    from lab.tables import csv_bytes, learning, table_digest
    from lab.tables.sweep import markdown, size_sweep, summary, terminal

    assert_comparable(points, "prompts")
    told = sources(NAME, points)
    rows = gather_rows(points, ("backbone", "prompts"))
    found = size_sweep(
        [described(point, ("backbone", "prompts")) for point in points],
        rows,
        ns=best_of(rows),
        resamples=resamples(points),
    )
    learnt = learning.learning_table([model for point in points for model in _models(point)])
    files = {
        "table.csv": csv_bytes(found.table),
        "table.json": summary(found),
        "table.md": markdown(found).encode(),
        "learning.csv": csv_bytes(learnt),
        "learning.tables.json": learning.summary(learnt),
        "learning.md": learning.markdown(learnt).encode(),
    }
    paths = write_files(folder, rows, files)
    figure = size_figure(found.table, found.seeds, found.slopes, ns=found.ns, level=found.level, note=told["note"])
    paths += save(figure, folder / NAME, {**told, "table_sha256": table_digest(found.table)})
    figure.clear()
    if (learnt.control == "").any():
        figure = learning_figure(learnt, note=told["note"])
        paths += save(figure, folder / LEARNING, {**told, "table_sha256": table_digest(learnt)})
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


def _models(point: Point) -> list[dict[str, Any]]:
    found = point.record["candidates"] if point.record else []
    return [{**one, "backbone": point.choices["backbone"]} for one in found]

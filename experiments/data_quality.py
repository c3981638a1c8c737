"""Question: what do better preferences buy DPO and PPO x reward model, and when is it better to need none (RLVR)?

Prediction, from the literature: data matters more than the algorithm (Ivison et al. 2024, arXiv 2406.09279: up to 8
points from the data, up to 2.5 from PPO instead of DPO). A reward model loses accuracy with every label that is turned
round; PPO, which optimises it, loses more than DPO, so they cross; below some quality RLVR is the better choice.
Whatever the rows say is the result.

``python -m lab -m experiment=data_quality`` runs ``experiments.compare`` once for every option of ``quality``; this
module makes one table and one figure of all of them. The SFT checkpoint and the evaluation prompts are the same in
every run, and so are the policies of the arms that need no preferences; it is asserted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from experiments.sweep import Point, assert_comparable, described, gather_rows, resamples, sources, write_files

NAME = "data_quality"


def collect(points: Sequence[Point], folder: Path) -> int:
    """Write rows, tables and figure of the sweep's ``points`` to ``folder`` and print the table.

    Returns 0 if every planned point is complete. Raises ValueError where the points cannot be compared.
    """
    # Not before the work is done: every run of the sweep imports experiments.
    from lab.figures import save
    from lab.figures.quality import quality_figure
    from lab.tables import table_digest
    from lab.tables.quality import quality_sweep
    from lab.tables.quality_text import files, terminal

    assert_comparable(points, "prompts")
    assert_shared(points)
    told = sources(NAME, points)
    rows = gather_rows(points, ("quality",))
    found = quality_sweep([described(point, ("quality",)) for point in points], rows, resamples=resamples(points))
    paths = write_files(folder, rows, files(found))
    figure = quality_figure(found, note=told["note"])
    paths += save(figure, folder / NAME, {**told, "table_sha256": table_digest(found.table)})
    figure.clear()
    print(f"\n{terminal(found)}\n")
    for path in paths:
        print(path)
    return int(any(point.status != "complete" for point in points))


def assert_shared(points: Sequence[Point]) -> None:
    """Refuse points between which a policy differs that no preferences went into: it is one line in the figure.

    ValueError naming the arm, the seed and the points.
    """
    from lab.tables.quality import VERIFIERS

    seen: dict[tuple[str, int], tuple[str, str]] = {}
    for point in points:
        for run in point.record["runs"] if point.record else []:
            if run["arm"] not in VERIFIERS:
                continue
            key, own = (run["arm"], run["seed"]), (" ".join(point.overrides), run["inputs"]["policy"])
            first = seen.setdefault(key, own)
            if first[1] != own[1]:
                raise ValueError(
                    f"cannot compare: {key[0]}, seed {key[1]} needs no preferences, but {first[0]} and {own[0]} have "
                    f"different policies ({first[1]}, {own[1]})"
                )

"""Results of both sweeps as they would be committed, from made-up points. For the notebook and ``lab.results``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lab.tables import csv_bytes
from lab.tables.quality import quality_sweep
from lab.tables.quality_text import files
from lab.tables.sweep import size_sweep, summary
from tests import synthetic_quality, synthetic_sweep


def write(root: Path, names: Sequence[str] = synthetic_quality.NAMES, lost: Sequence[str] = ()) -> Path:
    """Folders ``data_quality`` and ``rm_size`` under ``root``, with tables and sidecars but no drawings."""
    found = quality_sweep(*synthetic_quality.points((0, 1), lost, names), resamples=50)
    sizes = size_sweep(*synthetic_sweep.points((0, 1)), resamples=50)
    written = {
        "data_quality": {**files(found), "data_quality.json": _sidecar("data_quality")},
        "rm_size": {
            "table.csv": csv_bytes(sizes.table),
            "table.json": summary(sizes),
            "rm_size.json": _sidecar("rm_size"),
        },
    }
    for folder, contents in written.items():
        (root / folder).mkdir(parents=True)
        for name, data in contents.items():
            (root / folder / name).write_bytes(data)
    return root


def _sidecar(name: str) -> bytes:
    return json.dumps({"figure": name, "files": {}, "sources": {"experiment": name, "note": None}}).encode()

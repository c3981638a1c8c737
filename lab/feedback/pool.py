"""Preference artifacts made from other ones: the files that stay as they were, and what the first one cost."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lab.artifact import MANIFEST
from lab.records import Ledger

SAME = ("held_out.jsonl", "reference.jsonl", "samples.jsonl")
"""Files of a preference artifact that do not depend on who labels its pairs, or how many."""


def copy_rest(pool: Path, out: Path) -> None:
    """Copy those of ``SAME`` that ``pool`` has."""
    for name in SAME:
        if (pool / name).is_file():
            shutil.copyfile(pool / name, out / name)


def carried(folder: Path) -> Ledger:
    """What the artifact in ``folder`` cost, by its manifest, its wall time among it; nothing where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return Ledger()
    manifest: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    known = Ledger(**manifest["ledger"])
    seconds = float(manifest.get("duration_seconds") or 0.0)
    return known + Ledger(wall_seconds=seconds if math.isfinite(seconds) else 0.0)

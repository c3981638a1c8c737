"""Saving a figure as PNG, PDF and SVG with a JSON sidecar that names what it was drawn from."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from lab.figures.style import paper
from lab.tables import json_bytes, write_bytes

# Dates and version strings would make the same table give other bytes.
_METADATA: Mapping[str, Mapping[str, Any]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    "svg": {"Date": None, "Creator": None},
}


def save(fig: Figure, stem: Path, sources: Mapping[str, Any]) -> list[Path]:
    """Write ``stem``.png (300 dpi), .pdf, .svg and .json; returns the four paths.

    ``sources`` says what the figure was drawn from: run keys, input digests, the table's SHA-256, the code's version.
    The sidecar adds the SHA-256 of each file. Each file appears whole or not at all, and the sidecar comes last: a
    figure whose digest is not the sidecar's was edited or only half replaced.

    ValueError for empty ``sources`` and for NaN in them, before anything is written.
    """
    if not sources:
        raise ValueError(f"{stem}: a figure without sources is not saved")
    json_bytes(sources)
    rendered = {kind: _render(fig, kind) for kind in _METADATA}
    digests = {f"{stem.name}.{kind}": hashlib.sha256(data).hexdigest() for kind, data in rendered.items()}
    sidecar = json_bytes({"figure": stem.name, "files": digests, "sources": sources, "matplotlib": mpl.__version__})
    paths = []
    for kind, data in [*rendered.items(), ("json", sidecar)]:
        path = stem.with_name(f"{stem.name}.{kind}")
        write_bytes(path, data)
        paths.append(path)
    return paths


def _render(fig: Figure, kind: str) -> bytes:
    buffer = io.BytesIO()
    with paper():
        fig.savefig(buffer, format=kind, metadata=dict(_METADATA[kind]))
    return buffer.getvalue()

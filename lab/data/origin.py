"""Where rows come from: a local file, or a data set of the Hugging Face Hub (or a folder laid out like one), streamed.

A Hub data set is ``hub:NAME``. It is read through ``datasets`` and never held in memory, and what stands for it in a
step's identity is the digest of the rows themselves: neither a name nor a branch says what the data are.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from lab.data.jsonl import JsonlError, Skip, read_rows

HUB = "hub:"
PLACE = ("path", "subset", "folder", "split", "revision")
"""Where rows lie, which is no part of what they are."""
_COMMIT = re.compile(r"[0-9a-f]{40}")


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex: what stands for the file in a step's identity."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@dataclass(frozen=True)
class Origin:
    """A local file, or ``hub:NAME`` with the configuration (``subset``), folder (``data_dir``), split and revision that
    ``datasets.load_dataset`` knows. rows: read at most so many (0: all)."""

    path: str
    subset: str = ""
    folder: str = ""
    split: str = "train"
    revision: str = ""
    rows: int = 0

    @classmethod
    def of(cls, config: Mapping[str, Any], resources: Mapping[str, Any]) -> Origin:
        """That of a stage's resources, else of its config; ``rows`` is the config's, being part of what is read."""
        place = resources if resources.get("path") else config
        return cls(**{key: place[key] for key in PLACE if key in place}, rows=config.get("rows", 0))

    @property
    def hub(self) -> bool:
        return self.path.startswith(HUB)

    @property
    def name(self) -> Path:
        """What errors call it."""
        if not self.hub:
            return Path(self.path)
        return Path("/".join(part for part in (self.path, self.subset, self.folder, self.split) if part))

    @property
    def title(self) -> str:
        """Its name without folders of this machine."""
        return Path(self.path.removeprefix(HUB)).name

    @property
    def resources(self) -> dict[str, Any]:
        """What a stage needs to open it again (``Origin.of``); no part of identity."""
        where = self.path if self.hub else str(Path(self.path).resolve())
        if self.hub and (folder := Path(self.path.removeprefix(HUB))).is_dir():
            where = f"{HUB}{folder.resolve()}"
        found = {key: getattr(self, key) for key in PLACE} | {"path": where}
        return {key: value for key, value in found.items() if value}


class Reading:
    """One pass over an origin's rows: iterating gives (line, row); ``digest`` and ``count`` are complete afterwards.

    Rows that cannot be read go to ``skip`` (``lab.data.jsonl``), and count. Raises JsonlError.
    """

    def __init__(self, origin: Origin, skip: Skip | None = None) -> None:
        self.origin, self.skip = origin, skip
        self.count = 0
        self._hash = hashlib.sha256()
        self._digest = "" if origin.hub or not Path(origin.path).is_file() else file_digest(Path(origin.path))

    @property
    def digest(self) -> str:
        """Of a local file its bytes', known from the start; of a Hub data set that of the rows read."""
        return self._digest or self._hash.hexdigest()

    def __iter__(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        source: Any = self._hub_rows() if self.origin.hub else read_rows(Path(self.origin.path), skip=self._skip)
        with closing(source):
            for line, row in islice(source, self.origin.rows or None):
                self.count += 1
                yield line, row

    def _skip(self, line: int, error: JsonlError) -> None:
        if self.skip is None:
            raise error from None
        self.count += 1
        self.skip(line, error)

    def _hub_rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        line = 0
        try:
            for line, row in enumerate(self._open(), 1):
                self._hash.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
                yield line, row
        except JsonlError:
            raise
        except Exception as error:  # whatever the library, its file readers and the network may raise
            raise JsonlError(f"{self.origin.name}:{line + 1}: cannot be read: {_said(error)}") from error
        if not line:
            raise JsonlError(f"{self.origin.name}: the split has no rows")

    def _open(self) -> Any:
        import datasets

        origin = self.origin
        name, offline = origin.path.removeprefix(HUB), datasets.config.HF_HUB_OFFLINE
        local = Path(name).is_dir()
        if not local and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
            raise JsonlError(f"{origin.path}: neither a folder nor a Hub id such as openai/gsm8k")
        try:
            builder = datasets.load_dataset_builder(
                name,
                origin.subset or None,
                data_dir=origin.folder or None,
                revision=None if local else origin.revision or None,
            )
        except Exception as error:
            if offline and not local:
                raise JsonlError(
                    f"{origin.name}: run.hub_offline is true and the data set is not in the local cache "
                    f"({datasets.config.HF_DATASETS_CACHE}); once with run.hub_offline=false, load it with "
                    f"datasets.load_dataset, or name a local copy: hub:FOLDER or a file ({_said(error)})"
                ) from error
            raise JsonlError(f"{origin.name}: cannot be opened: {_said(error)}") from error
        # Offline the library takes the newest copy in its cache, whatever revision was asked for.
        if offline and not local and _COMMIT.fullmatch(origin.revision) and builder.hash != origin.revision:
            raise JsonlError(f"{origin.name}: the cache holds revision {builder.hash}, not {origin.revision}")
        try:
            return builder.as_streaming_dataset(split=origin.split)
        except Exception as error:
            raise JsonlError(f"{origin.name}: cannot be opened: {_said(error)}") from error


def _said(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]

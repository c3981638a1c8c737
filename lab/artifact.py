"""What an artifact is: its key, its manifest's parts, what a stage sees and returns. No store, no locks.

The key says what was asked (kind, config, keys of inputs, recipe number), the digest what came out.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from lab.records import Ledger

MANIFEST = "manifest.json"
PACKAGES = ("torch", "transformers", "trl", "datasets", "accelerate", "peft", "tokenizers", "safetensors", "numpy",
            "scipy", "pyarrow")  # fmt: skip
NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
KEY = re.compile(r"[0-9a-f]{64}")


class StoreError(ValueError):
    """Something in the store is not as it must be; the message names the path."""


class MissingArtifact(StoreError):  # noqa: N818
    """The artifact ``key`` is not in the store."""

    def __init__(self, key: str, message: str):
        super().__init__(key, message)
        self.key, self.message = key, message

    def __str__(self) -> str:
        return self.message


class CorruptArtifact(MissingArtifact):
    """The artifact ``key`` did not match its manifest. It is in quarantine, so the key counts as not built."""


# --- canonical JSON and keys ---------------------------------------------------------------------------------------


def plain(value: Any, where: str = "config") -> Any:
    """``value`` as plain JSON data (dict, list, str, int, float, bool, None); tuples become lists.

    Raises ValueError naming the path of a NaN, an infinity, a key that is no string, or a type that JSON has not.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where}: {value} has no JSON form")
        return float(value)
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise ValueError(f"{where}: the key {name!r} is {type(name).__name__}, expected a string")
        return {str.__str__(name): plain(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}[{index}]") for index, item in enumerate(value)]
    raise ValueError(f"{where}: {type(value).__module__}.{type(value).__qualname__} has no JSON form")


def canonical_json(value: Any, where: str = "config") -> str:
    """One text for one value: sorted keys, no spaces, ASCII. 1 and 1.0 are different values. Raises as ``plain``."""
    return json.dumps(plain(value, where), sort_keys=True, separators=(",", ":"), allow_nan=False)


def content_key(kind: str, config: Mapping[str, Any], inputs: Mapping[str, str], recipe: int) -> str:
    """The key of a step: SHA-256 (64 hex digits) of kind, config, the keys of its inputs by name, and recipe number."""
    text = canonical_json({"kind": kind, "config": config, "inputs": inputs, "recipe": recipe}, "step")
    return sha256_text(text)


def check_name(name: str, where: str) -> str:
    """``name`` if it is a safe file name ([A-Za-z0-9._-], at most 128, not . or ..), else StoreError."""
    if not NAME.fullmatch(name) or name in (".", ".."):
        raise StoreError(f"{where}: the name {name!r} must be of A-Z a-z 0-9 . _ - and at most 128 long")
    return name


def finite(value: Any) -> Any:
    """NaN and infinities as None: a metric that diverged must not cost the artifact, nor write bare NaN into JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {name: finite(item) for name, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


# --- what a stage sees and returns ---------------------------------------------------------------------------------


def _no_progress(done: int, total: int, note: str = "") -> None:
    """The default of ``Context.progress``: says nothing."""


@dataclass(frozen=True)
class Context:
    """What a stage function may know besides its config and inputs. Nothing here is part of the key.

    ``seed_root``: the first part of every seed that the stage derives. ``scratch``: a folder of this key's own that
    survives a crash, for resumable partial work; it is removed once the artifact is published.
    """

    key: str
    seed_root: str
    scratch: Path
    progress: Callable[..., None] = _no_progress  # (done: int, total: int, note: str = "")
    resources: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StageResult:
    """What a stage returns: what it spent, numbers worth keeping, and where it resumed from, if it did."""

    ledger: Ledger = field(default_factory=Ledger)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    resumed_from: str | None = None


class Buildable(Protocol):
    """What ``Store.build`` needs to know of a step (``lab.plan.Step`` is one)."""

    @property
    def kind(self) -> str: ...
    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def recipe(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def input_keys(self) -> Mapping[str, str]: ...
    @property
    def label(self) -> str: ...
    @property
    def recorded_work(self) -> Mapping[str, float]: ...


@dataclass(frozen=True)
class Artifact:
    """A published folder and its manifest."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def key(self) -> str:
        return str(self.manifest["key"])

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def digest(self) -> str:
        """One SHA-256 over all files: equal digests are equal bytes."""
        return str(self.manifest["digest"])

    @property
    def metrics(self) -> Mapping[str, Any]:
        return dict(self.manifest["metrics"])

    @property
    def ledger(self) -> Ledger:
        return Ledger(**self.manifest["ledger"])


# --- files, time and provenance ------------------------------------------------------------------------------------


def list_files(folder: Path) -> list[str]:
    """Relative POSIX paths of all files but the top manifest of a published folder, sorted. StoreError on a link."""
    found = []
    for base, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = Path(base) / name
            check_name(name, str(path))
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise StoreError(f"{path}: only plain files and folders may be in an artifact")
        found += [(Path(base) / name).relative_to(folder).as_posix() for name in files]
    published = KEY.fullmatch(folder.name)
    return sorted(name for name in found if not (published and name == MANIFEST))


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def utc_now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@functools.cache
def provenance() -> dict[str, Any]:
    """The code and the packages of this process: recorded, never keyed. No host, no path."""
    folder = Path(__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", folder, *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed package may lie inside another project's repository, whose commit says nothing about this code.
    tracked = git("ls-files", "--error-unmatch", Path(__file__).name) is not None
    status = git("status", "--porcelain") if tracked else None
    versions = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "git": {"commit": git("rev-parse", "HEAD") if tracked else None, "dirty": bool(status) if tracked else None},
        "packages": versions,
        "python": platform.python_version(),
        "platform": f"{platform.system()}-{platform.machine()}",
    }

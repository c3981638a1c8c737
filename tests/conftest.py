"""What every test shares: a quiet, offline, single-threaded process, and the folders of third-party material."""

from __future__ import annotations

import copy
import functools
import gc
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.plugins.config_source import ConfigResult
from hypothesis import settings

# Before anything imports torch, transformers or matplotlib. Spawned workers inherit them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

# A third of the time to import torch and its company goes into looking for garbage among modules that stay.
gc.disable()

ROOT = Path(__file__).resolve().parent.parent

# The same examples every time and no time limit on one: a red test must mean a fault, not a busy machine.
settings.register_profile("lab", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("lab")


@functools.cache
def _read_config(path: str, name: str) -> ConfigResult:
    return _load_config(FileConfigSource("test", path), name)


_load_config = FileConfigSource.load_config


def _copy_of_config(source: FileConfigSource, name: str) -> ConfigResult:
    found = copy.deepcopy(_read_config(source.path, name))
    found.provider = source.provider
    return found


@pytest.fixture(scope="session", autouse=True)
def config_files_are_read_once() -> Iterator[None]:
    """Hydra reads some thirty YAML files for each of hundreds of compositions: a third of their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileConfigSource, "load_config", _copy_of_config)
        yield


def pytest_collection_modifyitems(items: Iterable[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where there is no CUDA device; torch is imported only if one was collected."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def pytest_collection_finish() -> None:
    """What has been imported by now is looked at no more."""
    gc.freeze()
    gc.enable()


def _folder(variable: str, default: str) -> Path:
    named = os.environ.get(variable)
    folder = Path(named) if named else ROOT.parent / "shared" / default
    if not folder.is_dir():
        if named:
            pytest.fail(f"{variable}: {folder} is not a folder")
        pytest.skip(f"third-party material is absent; set {variable} to its folder")
    return folder


@pytest.fixture(scope="session")
def cases_folder() -> Path:
    """Third-party verifier cases (``gsm8k_cases.jsonl``, ...); the test is skipped where they are absent."""
    return _folder("ALIGNMENT_LAB_CASES", "cases")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """Third-party data sets, one folder each (``gsm8k``, ...); the test is skipped where they are absent."""
    return _folder("ALIGNMENT_LAB_DATA", "data")

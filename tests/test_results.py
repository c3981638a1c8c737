"""Committed results: every one loads, every column is documented, every figure is the one its sidecar names."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pandas as pd
import pytest

from experiments import redraw
from lab import results
from lab.results.columns import GLOSSARY, OWN, glossary, meaning
from tests import synthetic_results
from tests.conftest import ROOT

KEPT = ROOT / "experiments" / "results"
NAMES = sorted(path.name for path in KEPT.iterdir() if path.is_dir())


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("flip_00", "flip_20", "hh_like", "ultrafeedback_like")
    return synthetic_results.write(tmp_path_factory.mktemp("results"), names, lost=("flip_20",))


def test_every_committed_result_has_a_table() -> None:
    assert results.names() == NAMES
    assert "rm_size" in NAMES
    table = results.load("rm_size")
    assert {"backbone", "prompts", "ppo", "ppo_low", "ppo_high", "n_seeds", "n_expected", "status"} <= set(table)
    assert results.tables("rm_size")[0] == "table"
    assert (table.n_seeds <= table.n_expected).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_column_of_every_table_is_documented(name: str) -> None:
    for table in results.tables(name):
        described = results.describe(name, table)
        assert len(described)
        assert not list(described.column[described.meaning == ""]), (name, table)


@pytest.mark.slow
def test_the_sweep_over_quality_loads_and_is_documented(root: Path) -> None:
    for table in results.tables("data_quality", root):
        described = results.describe("data_quality", table, root)
        assert not list(described.column[described.meaning == ""]), table
    table = results.load("data_quality", root=root).set_index("quality")
    assert table.status["flip_20"] == "failed"
    assert table.ppo.isna()["flip_20"]
    assert table.ppo.dtype == float
    assert list(results.load("rm_size", "slopes", root).columns[:2]) == ["n_seeds", "n_sizes"]  # from table.json


def test_what_a_column_means() -> None:
    assert meaning("rm_size", "table", "ppo") == OWN["rm_size"]["ppo"]
    assert meaning("rm_size", "table", "ppo_low") == "lower end of the 95% interval of ppo"
    assert meaning("rm_size", "table", "ppo_delta_high").startswith("upper end of the 95% interval of ")
    assert meaning("x", "rows", "verdict") == GLOSSARY["verdict_rows"]
    assert meaning("x", "table", "nonsense_low") == ""


def test_the_documentation_has_the_glossary() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert text.endswith(glossary()), "write lab.results.columns.glossary() to the end of docs/results.md"


def test_errors_name_what_there_is(root: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"no committed result 'rm_siz' \(did you mean 'rm_size'\?\); there are"
    ):
        results.load("rm_siz")
    with pytest.raises(FileNotFoundError, match=r"rm_size: no table 'slope' \(did you mean 'slopes'\?\); it has table"):
        results.load("rm_size", "slope")
    with pytest.raises(FileNotFoundError, match="no results there"):
        results.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no folder of results.*{results.VARIABLE}"):
        results.names(tmp_path / "nowhere")
    assert len(results.load(root / "data_quality")) == 4  # by a path


def test_another_folder_by_the_environment(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(results.VARIABLE, str(root))
    assert results.names() == ["data_quality", "rm_size"]


@pytest.mark.slow
def test_it_loads_from_anywhere_and_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom lab import results\nprint(len(results.load('rm_size')))\n"
        "print([name for name in ('torch', 'trl', 'transformers') if name in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == [str(len(results.load("rm_size"))), "[]"]


# ------------------------------------------------------------------------------------------------------------- figures


@pytest.mark.parametrize("name", NAMES)
def test_committed_figures_are_those_that_their_sidecars_name(name: str) -> None:
    drawn = redraw.figures_of(KEPT / name)
    for figure in drawn:
        sidecar = json.loads((KEPT / name / f"{figure}.json").read_text(encoding="utf-8"))
        assert set(sidecar["files"]) == {f"{figure}.{kind}" for kind in ("png", "pdf", "svg")}
        for file, digest in sidecar["files"].items():
            assert hashlib.sha256((KEPT / name / file).read_bytes()).hexdigest() == digest, file
        assert not re.search(r'"(/|[A-Za-z]:\\\\)', (KEPT / name / f"{figure}.json").read_text(encoding="utf-8"))
    pictures = {path.stem for kind in ("png", "pdf", "svg") for path in (KEPT / name).glob(f"*.{kind}")}
    assert pictures == set(drawn)  # none without a sidecar, so none that `make figures` leaves out


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_every_committed_figure_is_redrawn_byte_for_byte(name: str, tmp_path: Path) -> None:
    folder = KEPT / name
    for figure in redraw.figures_of(folder):
        version = json.loads((folder / f"{figure}.json").read_text(encoding="utf-8"))["matplotlib"]
        if version != mpl.__version__:
            pytest.skip(f"{figure} was drawn by matplotlib {version}, this is {mpl.__version__}")
    for path in folder.iterdir():
        if path.suffix in (".json", ".csv"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    if not redraw.figures_of(folder):
        assert pd.read_csv(folder / "table.csv").shape[0] > 0  # tables alone: nothing to draw
        return
    for path in redraw.redraw(tmp_path):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name

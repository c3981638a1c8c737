"""The notebook runs from results alone, trains nothing, and says what the tables say."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from lab import results
from tests import synthetic_results
from tests.conftest import ROOT
from tests.test_layers import HEAVY, imports

jupytext = pytest.importorskip("jupytext", reason="the notebook extra is not installed")
nbclient = pytest.importorskip("nbclient", reason="the notebook extra is not installed")
pytest.importorskip("ipykernel", reason="the notebook extra is not installed")

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
NOTEBOOK = ROOT / "notebooks" / "should_i_train_a_reward_model.py"


@pytest.fixture
def jupyter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jupyter with this interpreter as its only kernel, and all of its files in a temporary folder."""
    kernel = tmp_path / "jupyter" / "kernels" / "lab"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "lab", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    for name in ("JUPYTER_DATA_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))


def execute(folder: Path | None, monkeypatch: pytest.MonkeyPatch) -> tuple[str, int, str]:
    """What the notebook says of the results in ``folder`` (None: the committed ones), its pictures, and which training
    libraries its process had loaded in the end."""
    if folder is not None:
        monkeypatch.setenv(results.VARIABLE, str(folder))
    book: Any = jupytext.read(NOTEBOOK)
    code = f"import sys\nprint('loaded', [name for name in {HEAVY!r} if name in sys.modules])"
    book.cells.append(jupytext.reads("# %%\n" + code, fmt="py:percent").cells[0])
    nbclient.NotebookClient(book, timeout=600, kernel_name="lab", resources={"metadata": {"path": str(ROOT)}}).execute()
    outputs = [output for cell in book.cells if cell.cell_type == "code" for output in cell.outputs]
    shown = [output.data for output in outputs if output.output_type in ("display_data", "execute_result")]
    said = "\n".join(data["text/markdown"] for data in shown if "text/markdown" in data)
    printed = "".join(output.text for output in outputs if output.output_type == "stream")
    return said, sum("image/png" in data for data in shown), printed


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_train_nothing_and_have_no_answers_typed_in(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    heavy = {name for name in imports(source, "notebook", package=False) if name.split(".")[0] in HEAVY}
    assert not heavy
    assert not {name for name in imports(source, "notebook", package=False) if name.startswith("lab.stages")}
    prose = [line for line in source.splitlines() if line.startswith("# ") and not line.startswith("# #")]
    assert len(prose) > 10
    said = " ".join(prose).replace("95%", "").casefold()
    assert not [word for word in ("supported", "refuted", "percent of", "% of") if word in said]
    constants = [node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)]
    assert {value for value in constants if isinstance(value, float)} <= {0.95}  # the level of the intervals; no result


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_says_what_the_tables_say(jupyter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, pictures, printed = execute(synthetic_results.write(tmp_path / "results"), monkeypatch)
    assert "loaded []" in printed
    assert pictures == 2
    assert "data_quality: 12 of 12 points are complete, 2 seeds each." in said
    table = results.load("data_quality", root=tmp_path / "results").set_index("quality")
    assert table.ppo_minus_dpo_low["flip_00"] > 0
    assert "**It depends.** It surely paid at " in said
    assert "agreement with gold alone does not tell these points apart (paid: 90% to 100%; did not: 5" in said
    sure = table.index[(table.ppo_minus_dpo_low > 0) & (table.ppo_minus_rlvr_low > 0)]
    assert {"flip_00", "ultrafeedback_like"} <= set(sure)
    assert f"surely pays at {len(sure)} of 12 points: {', '.join(sure[:-1])} and {sure[-1]}." in said
    assert "As more labels are turned round: PPO × RM loses its lead over DPO at " in said
    assert "As pairs are added: DPO loses its lead over PPO × RM at " in said
    slopes = results.load("rm_size", "slopes", tmp_path / "results").set_index(["quantity", "prompts"])
    assert slopes.verdict["ppo", "hard"] == "supported"
    assert f"Ten times the parameters pays: {slopes.slope['ppo', 'hard']:+.3f} [" in said
    assert "On data, on average: the better preset is worth +0.2" in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_other_tables_get_other_answers(jupyter: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names, lost = ("flip_35", "flip_50", "hh_like", "ultrafeedback_like"), ("ultrafeedback_like",)
    said, _, _ = execute(synthetic_results.write(tmp_path / "results", names, lost), monkeypatch)
    assert "data_quality: 3 of 4 points are complete" in said
    assert "**No**, at every point that answers (3 of 3)." in said
    assert "Not measured: ultrafeedback_like." in said
    assert "Not measured: a preset is missing." in said
    assert "nan" not in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs_on_the_committed_results(jupyter: None, monkeypatch: pytest.MonkeyPatch) -> None:
    said, pictures, printed = execute(None, monkeypatch)
    assert "loaded []" in printed
    assert pictures == 2
    assert "RLVR has the most gold at " in said

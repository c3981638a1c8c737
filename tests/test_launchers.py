"""A sweep under each of Hydra's launchers: runs in this process, in joblib's, in submitit's. SLURM needs a cluster."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from lab.__main__ import CONF

# Every process of the sweep starts with this: an experiment that takes no time, in the place of `compare`.
FAKE = """
import os
import pathlib

import experiments
from experiments import sweep

def run(config):
    if config.seeds == 2:
        raise OSError("disk full")
    folder = pathlib.Path(config.run.results)
    folder.mkdir(parents=True)
    (folder / "rows.parquet").write_bytes(b"rows")
    shared = {"sft_digest": "a", "prompts_digest": "b", "sampler": {}}
    runs = [{"arm": "sft", "seed": 0, "process": os.getpid()}]
    sweep.write_point(config, folder, shared=shared, runs=runs, expected={"sft": [0]})
    return 0

def collect(points, folder):
    for point in points:
        process = point.record["runs"][0]["process"] if point.record else None
        where = "here" if process == os.getpid() else "elsewhere" if process else "nowhere"
        print("collected", folder, " ".join(point.overrides), point.status, point.note or "-", where)
    return 0

for name in ("compare", "rm_size"):
    experiments.EXPERIMENTS[name] = run
    sweep.COLLECTORS[name] = collect
"""

COLLECT = "+hydra.callbacks.sweep._target_=experiments.sweep.Collect"


def launched(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(FAKE, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "lab", "-m", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "plugin", "where"),
    [
        ("basic", "hydra", "here"),
        pytest.param("joblib", "hydra_plugins.hydra_joblib_launcher", "elsewhere", marks=pytest.mark.slow),
        pytest.param("submitit_local", "hydra_plugins.hydra_submitit_launcher", "elsewhere", marks=pytest.mark.slow),
    ],
)
def test_a_sweep_is_collected_whatever_launched_it(launcher: str, plugin: str, where: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(plugin) is None:
        pytest.skip("needs the extra `cluster`")
    result = launched(tmp_path, COLLECT, f"hydra/launcher={launcher}", "seeds=1,2", "first_seed=7")
    said = [line for line in result.stdout.splitlines() if line.startswith("collected")]
    assert said == [
        f"collected results/compare seeds=1 first_seed=7 complete - {where}",
        "collected results/compare seeds=2 first_seed=7 failed exit code 1: OSError: disk full nowhere",
    ], result.stderr
    assert result.returncode == 1
    assert (
        "error: the sweep is not complete: run 1 (seeds=2 first_seed=7): exit code 1: OSError: disk full"
        in result.stderr
    )
    assert "Warning" not in result.stderr
    record = json.loads((tmp_path / "results/compare/sweep/first_seed=7,seeds=1/point.json").read_text())
    assert record["overrides"] == ["seeds=1", "first_seed=7"]


@pytest.mark.slow
def test_what_an_experiment_sweeps_is_planned_and_the_command_line_wins(tmp_path: Path) -> None:
    result = launched(tmp_path, "experiment=rm_size", "backbone=xs", "seeds=1")
    said = [line.split(maxsplit=2)[2] for line in result.stdout.splitlines() if line.startswith("collected")]
    assert said == [
        "backbone=xs prompts=easy experiment=rm_size seeds=1 complete - here",
        "backbone=xs prompts=hard experiment=rm_size seeds=1 complete - here",
    ], result.stderr
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_a_launcher_that_is_not_installed_is_one_line(tmp_path: Path) -> None:
    result = launched(tmp_path, "hydra/launcher=joblib", "hydra.launcher._target_=hydra_plugins.nothing.Launcher")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith("not installed (pip install -e '.[cluster]')")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["joblib", "submitit_local", "submitit_slurm"])
def test_presets_fit_the_plugins(name: str) -> None:
    """Every key is one that the launcher knows: a wrong one would show only on the cluster."""
    plugin = "joblib" if name == "joblib" else "submitit"
    config = pytest.importorskip(f"hydra_plugins.hydra_{plugin}_launcher.config")
    schema = {
        "joblib": "JobLibLauncherConf",
        "submitit_local": "LocalQueueConf",
        "submitit_slurm": "SlurmQueueConf",
    }[name]
    ours = OmegaConf.load(CONF / "hydra" / "launcher" / f"{name}.yaml")
    theirs = OmegaConf.structured(vars(config)[schema])
    merged = OmegaConf.merge(theirs, ours)  # raises for an unknown key or another type
    assert merged._target_ == theirs._target_

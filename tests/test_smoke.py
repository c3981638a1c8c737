"""The whole graph at the smallest scale, from an empty store to the figure, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.redraw import redraw
from lab.tables import read_rows

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow  # make smoke and the README's commands run the same in CI


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("smoke")
    return folder, lab(folder, "results")


def lab(folder: Path, results: str, *overrides: str) -> str:
    command = [
        sys.executable,
        "-m",
        "lab",
        "scale=smoke",
        f"run.store={folder}/store",
        f"run.results={folder}/{results}",
    ]
    done = subprocess.run(
        [*command, f"hydra.run.dir={folder}/hydra", "run.resamples=200", *overrides],
        cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def test_every_arm_ends_in_the_table_and_the_figure(finished: tuple[Path, str]) -> None:
    folder, output = finished
    results = folder / "results"
    names = {"rows.parquet", "table.csv", "table.md", "summary.json"} | {
        f"headline.{x}" for x in ("png", "pdf", "svg", "json")
    }
    assert names <= {path.name for path in results.iterdir()}
    rows = read_rows([results / "rows.parquet"])
    assert set(rows.arm) == {"sft", "sft_continued", "best_of_n", "dpo", "ppo_rm", "grpo_rm", "ppo_verifier",
                             "grpo_verifier", "grpo_random"}  # fmt: skip
    assert (rows[rows.arm == "sft"].kl_nats == 0).all()
    assert (rows[rows.arm == "ppo_rm"].kl_nats > 0).any()
    assert rows.gold.notna().all()
    assert rows.proxy.notna().all()
    assert "PPO × RM" in output
    assert str(results / "headline.png") in output


def test_the_figure_names_its_runs_and_the_ledger_charges_what_was_used(finished: tuple[Path, str]) -> None:
    results = finished[0] / "results"
    sources = json.loads((results / "headline.json").read_text(encoding="utf-8"))["sources"]
    assert len({run["inputs"]["reference"] for run in sources["runs"] if run["arm"] != "best_of_n"}) == 1
    table = {
        (line["arm"], line["domain"]): line for line in json.loads((results / "summary.json").read_text())["table"]
    }
    labels = {arm: table[arm, "all"]["preference_labels"] for arm in ("sft", "dpo", "ppo_rm", "grpo_verifier")}
    assert labels == {"sft": 0, "dpo": 96, "ppo_rm": 96, "grpo_verifier": 0}
    assert table["grpo_verifier", "all"]["verifier_calls"] > 0
    assert all(line["gold_looks"] == 0 for line in table.values())
    assert table["ppo_rm", "all"]["training_flops"] > table["ppo_verifier", "all"]["training_flops"]


def test_a_second_run_trains_nothing_and_says_the_same(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before = sorted(path.name for path in (folder / "store").glob("*/*"))
    output = lab(folder, "again")
    assert "start" not in output
    assert sorted(path.name for path in (folder / "store").glob("*/*")) == before
    for name in ("rows.parquet", "headline.png", "headline.svg"):
        assert (folder / "again" / name).read_bytes() == (folder / "results" / name).read_bytes()


def test_the_figure_is_redrawn_from_the_tables_byte_for_byte(finished: tuple[Path, str], tmp_path: Path) -> None:
    results = finished[0] / "results"
    for name in ("summary.json", "headline.json"):
        (tmp_path / name).write_bytes((results / name).read_bytes())
    redraw(tmp_path)
    for name in ("headline.png", "headline.pdf", "headline.svg", "headline.json"):
        assert (tmp_path / name).read_bytes() == (results / name).read_bytes(), name


def test_a_store_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    done = subprocess.run(
        [sys.executable, "-m", "lab", "scale=smoke", f"run.store={blocked}", f"hydra.run.dir={tmp_path}/hydra"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert str(blocked) in done.stderr
    assert "Traceback" not in done.stderr

"""The command line as its users meet it. Each subprocess costs about a second, so there are few."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import lab.__main__ as app
from lab.typed import ConfigError


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.slow
def test_help_names_the_choices(tmp_path: Path) -> None:
    result = run("--help", cwd=tmp_path)
    assert result.returncode == 0
    for words in (
        "python -m lab plan=true",
        "compare",
        "health",
        "quality: crowd, flip_00",
        "$(lab -sc",
    ):
        assert words in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, lab.__main__, experiments\n"
        "heavy = {'torch', 'transformers', 'trl', 'datasets', 'pandas', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.slow
def test_cfg_job_prints_the_composition(tmp_path: Path) -> None:
    result = run("scale=smoke", "--cfg", "job", "--resolve", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "name: smoke" in result.stdout
    assert "label: PPO × RM" in result.stdout
    assert "hydra:" not in result.stdout


MISTAKES = [
    (["seedz=3"], "error: seedz: unknown key (did you mean 'seeds'?)"),
    (["model=wrld"], "error: model: there is no 'wrld' in conf/model (did you mean 'world'?)"),
    (["seeds=[1"], "error: seeds=[1: "),
    (["-m", "seeds=1,1"], "error: seeds: 1 is given twice in the sweep"),
    (["-m", "seeds=1,2", "run.results=x"], "error: run.results: all runs of the sweep would write there"),
]
MORE_MISTAKES = [
    (["+seedz=3"], "error: seedz: unknown key (did you mean 'seeds'?)"),
    (["sft.learning_rate=abc"], "error: sft.learning_rate: expected a number, got 'abc'"),
    (["arms.dpoo.label=x"], "error: arms.dpoo.label: unknown key (did you mean 'arms.dpo.label'?)"),
    (["learning_rate=1"], "error: learning_rate: unknown key (did you mean 'sft.learning_rate'?)"),
    (["~arms.dpp"], "error: arms.dpp: unknown key (did you mean 'arms.dpo'?)"),
    (["-m", "seeds=1,abc"], "error: seeds: expected an integer, got 'abc'"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), [*MISTAKES, *(pytest.param(*one, marks=pytest.mark.slow) for one in MORE_MISTAKES)]
)
def test_mistakes_are_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In this process: what ``python -m lab`` does after its imports."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lab", *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as caught:
        app.main()
    assert caught.value.code == 2
    stderr = capsys.readouterr().err
    assert stderr.startswith(message)
    assert stderr.count("\n") == 1
    assert not (tmp_path / "store").exists()


@pytest.mark.slow
def test_a_mistake_in_a_process_of_its_own(tmp_path: Path) -> None:
    result = run("+foo=1", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: foo: unknown key (known: arms, ")
    assert result.stderr.count("\n") == 1


def test_a_used_sweep_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "multirun.yaml").touch()
    with pytest.raises(ConfigError, match="already holds a sweep"):
        app.check_sweep(["-m", "seeds=1,2", f"hydra.sweep.dir={tmp_path / 'old'}"])
    app.check_sweep([f"hydra.sweep.dir={tmp_path / 'old'}"])  # no sweep


SWEEP = """
import sys, pathlib, experiments
def fake(config):
    pathlib.Path("done").open("a").write(f"{config.seeds} {config.run.results}\\n")
    if config.seeds == 2:
        raise OSError("disk full")
    return 3 if config.seeds == 3 else 0
experiments.EXPERIMENTS["compare"] = fake
from lab.__main__ import main
main()
"""


@pytest.mark.slow
def test_a_sweep_goes_on_after_a_failure_and_says_so(tmp_path: Path) -> None:
    def sweep(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", SWEEP, *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)

    result = sweep("-m", "seeds=1,2,3", "first_seed=7")
    assert result.returncode == 1
    assert "error: run 1 (seeds=2 first_seed=7): OSError: disk full" in result.stderr
    assert "error: the sweep is not complete" in result.stderr
    done = (tmp_path / "done").read_text().splitlines()
    assert [line.split()[0] for line in done] == ["1", "2", "3"]
    assert len({line.split()[1] for line in done}) == 3, "each run has results of its own"
    assert done[0].endswith("results/compare/sweep/first_seed=7,seeds=1")

    single = sweep("seeds=3")
    assert single.returncode == 3
    assert (tmp_path / "done").read_text().splitlines()[-1] == "3 results/compare"


@pytest.mark.slow
def test_secrets_stay_out_of_the_output_folder(tmp_path: Path) -> None:
    code = SWEEP.replace("from lab", "import os; os.environ['MY_TOKEN'] = 'hunter2'\nfrom lab")
    command = [sys.executable, "-c", code, "seeds=1", "run.results=results/${oc.env:MY_TOKEN}"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
    assert (tmp_path / "done").read_text().endswith("results/hunter2\n")  # it was used
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.name != "done"]
    assert any(path.name == "config.yaml" for path in written)
    assert not [path for path in written if "hunter2" in path.read_text()]


@pytest.mark.slow
def test_completion_knows_groups_and_keys(tmp_path: Path) -> None:
    def complete(line: str) -> list[str]:
        result = run("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line)
        return result.stdout.split()

    assert complete("lab scale=s") == ["scale=smoke"]
    assert complete("lab arms.dpo.method.be") == ["arms.dpo.method.beta="]

"""The experiment on real pairs: its graph, what it refuses before any work, and one run of everything, very small."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import pytest

from experiments import real_reward_model
from experiments.real_reward_model import benchmark_format, build_graph, report, verdicts
from lab.__main__ import CONF, load
from lab.config import CandidateConfig, ConfigError, DirectMethod, ImplicitSource, LabConfig, PreferencesConfig
from lab.execute import execute
from lab.models import ModelSize, new_policy
from lab.plan import Plan
from lab.store import Store
from lab.world.vocabulary import tokenizer as world_tokenizer

WORDS = sorted(word for word in world_tokenizer().get_vocab() if word.isalpha())[:40]


def rows_of(count: int, begin: int = 0) -> list[dict[str, str]]:
    """Prompts of two words; the chosen completion is the longer one in two of three."""
    rows = []
    for n in range(begin, begin + count):
        prompt = f"{WORDS[n % 40]} {WORDS[(n * 7 + n // 40) % 40]}"
        long, short = f"{WORDS[3]} {WORDS[4]} {WORDS[n % 5]}", WORDS[5]
        chosen, rejected = (long, short) if n % 3 else (short, long)
        rows.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    (folder / "pairs.json").write_text(json.dumps(rows_of(60)))
    bar = [
        {"input": one["prompt"], "output_1": one["rejected"], "output_2": one["chosen"], "label": 2}
        for one in rows_of(12)
    ]
    (folder / "Small.json").write_text(json.dumps(bar))
    (folder / "Other.json").write_text(json.dumps(bar[:7]))
    checkpoint = folder / "checkpoint"
    new_policy(ModelSize(hidden=16, layers=2, heads=2, intermediate=24), world_tokenizer(), seed=1).save_pretrained(
        checkpoint
    )
    world_tokenizer().save_pretrained(checkpoint)
    return folder


@pytest.fixture(scope="module")
def config(folder: Path) -> LabConfig:
    overrides = [
        "experiment=real_reward_model",
        f"preferences.path={folder / 'pairs.json'}",
        "preferences.format=pairs",
        "backbone=checkpoint",
        f"reward_model.backbone.path={folder / 'checkpoint'}",
        "reward_model.backbone.layers=1",
        "reward_model.batch=8",
        "seeds=2",
        "run.save_steps=0",
        "run.resamples=200",
        "run.device=cpu",
        "overlap.exact=report",  # one of the benchmarks here asks what the pairs ask
        f"run.results={folder / 'results'}",
        f"run.store={folder / 'store'}",
    ]
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = load(hydra.compose("config", overrides))
    files = {"small": str(folder / "Small.json"), "other": str(folder / "Other.json")}
    return changed(config, "benchmark", files=files)


def changed(config: LabConfig, part: str, **values: Any) -> LabConfig:
    return dataclasses.replace(config, **{part: dataclasses.replace(vars(config)[part], **values)})


# ---------------------------------------------------------------- the graph


def test_the_graph(config: LabConfig) -> None:
    graph = build_graph(config)
    plan = Plan(graph.steps)
    kinds = [step.kind for step in plan.steps]
    # 2 seeds x 2 files, and the length source once a file.
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "pairs_file": 1, "convert": 1, "reward_model": 2, "benchmark_set": 2, "benchmark": 6,
    }  # fmt: skip
    assert {step.config["layers"] for step in plan.steps if step.kind == "convert"} == {1}
    for run in graph.runs:
        assert run.step.inputs["items"] == graph.sets[run.file]
        if run.candidate == "reward_model":
            assert run.step.inputs["reward_model"].config["seed"] == run.seed
            assert run.step.inputs["reward_model"].inputs["pairs"] == graph.pairs
        else:
            assert set(run.step.inputs) == {"items"}


def test_what_is_a_steps_identity(config: LabConfig, folder: Path, tmp_path: Path) -> None:
    before = build_graph(config)
    copy = tmp_path / "elsewhere.json"
    copy.write_bytes((folder / "pairs.json").read_bytes())
    moved = build_graph(changed(config, "preferences", path=str(copy)))
    assert moved.pairs.key == before.pairs.key  # the bytes, wherever they lie
    assert str(folder) not in json.dumps([step.config for step in Plan(before.steps).steps])
    copy.write_text(json.dumps(rows_of(59)))
    assert build_graph(changed(config, "preferences", path=str(copy))).pairs.key != before.pairs.key
    for values in ({"drop": ("duplicate",)}, {"held_out": 0.3}, {"limit": 10}, {"max_characters": 50}, {"seed": 1}):
        assert build_graph(changed(config, "preferences", **values)).pairs.key != before.pairs.key, values


def test_what_cannot_work_is_refused_before_any_work(config: LabConfig, folder: Path, tmp_path: Path) -> None:
    def refused(config: LabConfig) -> str:
        with pytest.raises(ConfigError) as caught:
            build_graph(config)
        return str(caught.value)

    sampled = PreferencesConfig("sampled", 1, 2, "annotator", "expert", 0.1, 0.1, 0.0, 1)
    assert refused(dataclasses.replace(config, preferences=sampled)).startswith("preferences.kind: this experiment")
    assert refused(changed(config, "benchmark", files=None)).startswith("benchmark.files: none")
    assert refused(dataclasses.replace(config, candidates={})).startswith("candidates: there are none")
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([*rows_of(2), {"prompt": "a", "chosen": "b"}]))
    assert "preferences.path" in (said := refused(changed(config, "preferences", path=str(bad))))
    assert "bad.json:3: key 'rejected' is missing" in said
    bad.write_text(json.dumps([{"input": "a", "output_1": "b", "output_2": "c", "label": 3}]))
    assert "benchmark.files.small: " in (said := refused(changed(config, "benchmark", files={"small": str(bad)})))
    assert "key 'label': expected 1 or 2, got 3" in said
    assert "no such file" in refused(changed(config, "benchmark", files={"small": str(tmp_path / "none.json")}))
    direct = DirectMethod("direct", ("sigmoid",), 0.1, 1, 8, 1e-4, 1)
    implicit = {"implicit": CandidateConfig("Implicit", ImplicitSource("implicit", direct))}
    assert "candidates.implicit.reward.kind: implicit needs a policy" in refused(
        dataclasses.replace(config, candidates=implicit)
    )


@pytest.mark.parametrize(
    ("row", "format"),
    [
        ({"input": "", "output_1": "", "output_2": "", "label": 1}, "llmbar"),
        ({"instruction": "", "response1": "", "response2": "", "annotator1": 1}, "pandalm"),
        ({"source": "", "chosen_instruction": "", "rejected_instruction": ""}, "hhh"),
        ({"prompt": "", "chosen": "", "rejected": "", "subset": "", "id": 1}, "rewardbench"),
        ({"prompt": "", "chosen": [""], "rejected": [""], "subset": "", "id": "1"}, "rewardbench2"),
        ({"chosen": "", "rejected": ""}, "hh-rlhf"),
    ],
)
def test_a_benchmark_is_known_by_its_columns(tmp_path: Path, row: Mapping[str, Any], format: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert benchmark_format(path) == format


def test_columns_of_no_benchmark_are_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "", "answer": ""}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl: columns of no known benchmark: question, answer"):
        benchmark_format(path)


# ---------------------------------------------------------------- the result


def test_what_the_intervals_allow_to_be_said() -> None:
    def row(benchmark: str, model: str, low: float, high: float, half: str = "all", n: int = 9) -> dict[str, Any]:
        key = {"benchmark": benchmark, "half": half, "part": "overall", "model": model}
        return {**key, "n": n, "low": low, "high": high, "chance": 0.5}

    table = pd.DataFrame(
        [
            row("a", "m", 0.51, 0.6),
            row("b", "m", 0.4, 0.49),
            row("c", "m", 0.5, 0.6),  # touches chance
            row("d", "m", math.nan, math.nan, n=0),
            row("e", "m", 0.9, 1.0, half="hard"),
            row("a", "length", 0.9, 1.0),
        ]
    )
    said = verdicts(table, {"m": "Model", "length": "Longer wins"}, "length")
    assert said[0] == "Model, above chance: a overall; below chance: b overall; not told from chance: c overall."
    assert len(said) == 2


@pytest.mark.slow
def test_the_whole_experiment_very_small(config: LabConfig, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph, store = build_graph(config), Store(Path(config.run.store))
    outcome = execute(Plan(graph.steps), store, workers=0, runner="lab.stages.run_stage", offline=True, show=False)
    assert outcome.ok, outcome.summary()
    report(config, graph, store)
    results = folder / "results"
    table = pd.read_csv(results / "table.csv")

    held_out = table[table.benchmark == "held-out pairs"].iloc[0]
    accuracies = [store.manifest(step.key)["metrics"]["accuracy"] for step in graph.models["reward_model"].values()]
    assert held_out.score == pytest.approx(sum(accuracies) / 2)
    assert held_out.n == store.manifest(graph.pairs.key)["metrics"]["held_out"]
    assert 0 <= held_out.low <= held_out.score <= held_out.high <= 1

    length = table[(table.model == "length") & (table.part == "overall")].iloc[0]
    # 12 and 7 items, of which number 0, 3, 6, 9 and 0, 3, 6 have the shorter answer chosen.
    assert length.n == 19
    assert length.score == pytest.approx(12 / 19) == length.longer_wins
    model = table[(table.model == "reward_model") & (table.benchmark == "llmbar") & (table.part == "overall")].iloc[0]
    assert model.seeds == 2
    assert model.difference == pytest.approx(model.score - length.score)

    summary = json.loads((results / "summary.json").read_text())
    assert summary["seeds"] == [0, 1]
    assert summary["prompts_also_in_training"].keys() == {"small", "other"}
    assert 0 < summary["prompts_also_in_training"]["small"] < 12  # the same prompts, of which some are held out
    assert {step["kind"] for step in summary["steps"]} == {
        "pairs_file",
        "convert",
        "reward_model",
        "benchmark_set",
        "benchmark",
    }
    assert str(folder) not in (results / "summary.json").read_text(), "no path of this machine"
    assert (results / "table.md").read_text().strip() in capsys.readouterr().out


def test_a_dry_run_only_prints(config: LabConfig, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    dry = changed(dataclasses.replace(config, plan=True), "run", store=str(tmp_path / "store"))
    assert real_reward_model.run(dry) == 0
    assert "reward model, seed 1" in capsys.readouterr().out
    assert not (tmp_path / "store").exists()

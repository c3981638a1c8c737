"""``data=preference_jsonl``: anybody's pairs, and the journal of the annotation page, by one option."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hydra
import pytest

from experiments.real_reward_model import build_graph, report
from lab.__main__ import CONF, load
from lab.config import ConfigError, LabConfig, PairsData, PairsFileConfig
from lab.data.annotations import item_id
from lab.data.jsonl import read_pairs
from lab.execute import execute
from lab.models import ModelSize, new_policy
from lab.plan import Plan
from lab.store import Store
from lab.world.vocabulary import tokenizer as world_tokenizer

WORDS = sorted(word for word in world_tokenizer().get_vocab() if word.isalpha())[:40]


@pytest.fixture(scope="module", autouse=True)
def conf() -> Iterator[None]:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield


def texts(number: int) -> tuple[str, str, str]:
    return f"{WORDS[number % 40]} {WORDS[(number * 7 + number // 40) % 40]}", f"{WORDS[3]} {WORDS[4]}", WORDS[5]


def journal(path: Path, count: int) -> Path:
    """What two people said on the annotation page: they agree, but for every fifth item."""
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            prompt, long, short = texts(number)
            for annotator in ("ann", "ben"):
                left, right = (long, short) if annotator == "ann" else (short, long)
                better = long if number % 5 or annotator == "ann" else short
                row = {"kind": "answer", "item": item_id(prompt, long, short), "annotator": annotator, "prompt": prompt,
                       "left": left, "right": right, "answer": "left" if better == left else "right", "order": "ab",
                       "time": "2026-01-01T00:00:00Z"}  # fmt: skip
                file.write(json.dumps(row) + "\n")
    return path


def composed(path: Path, *more: str) -> LabConfig:
    return load(
        hydra.compose("config", ["experiment=real_reward_model", "data=preference_jsonl", f"data.path={path}", *more])
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shape = ModelSize(hidden=16, layers=2, heads=2, intermediate=24)
    new_policy(shape, world_tokenizer(), seed=1).save_pretrained(folder)
    world_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_option_says_where_the_preferences_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())  # smollm2 without its packages
    path = tmp_path / "pairs.jsonl"
    path.write_text("{}\n")
    config = composed(path, "data.format=annotations", "preferences.held_out=0.3")
    assert config.data == PairsData("pairs", str(path), "annotations")
    assert isinstance(config.preferences, PairsFileConfig)
    assert (config.preferences.path, config.preferences.format) == (str(path), "annotations")
    assert config.preferences.held_out == 0.3
    with pytest.raises(ConfigError, match=r"preferences\.format: 'annotation' is not one of .*did you mean 'annot"):
        composed(path, "data.format=annotation")
    with pytest.raises(ConfigError, match=r"preferences\.path: no such file: .*did you mean 'pairs\.jsonl'"):
        composed(tmp_path / "pair.jsonl")
    with pytest.raises(ConfigError, match=r"data\.kind: pairs are no prompts .*experiment=real_reward_model"):
        load(hydra.compose("config", ["data=preference_jsonl", f"data.path={path}"]))


@pytest.mark.slow
def test_from_the_annotation_page_to_a_measured_reward_model(tmp_path: Path, checkpoint: Path) -> None:
    items: list[dict[str, Any]] = [
        {"input": prompt, "output_1": short, "output_2": long, "label": 2}
        for prompt, long, short in map(texts, range(9))
    ]
    (tmp_path / "Small.json").write_text(json.dumps(items))
    config = composed(
        journal(tmp_path / "journal.jsonl", 60),
        "data.format=annotations",
        "backbone=checkpoint",
        f"reward_model.backbone.path={checkpoint}",
        "reward_model.backbone.layers=1",
        "reward_model.batch=8",
        "run.save_steps=0",
        "run.resamples=200",
        "run.device=cpu",
        f"run.results={tmp_path / 'results'}",
        f"run.store={tmp_path / 'store'}",
        *(f"~benchmark.files.{name}" for name in ("llmbar_gptinst", "llmbar_gptout", "llmbar_manual", "hhh")),
        "~benchmark.files.llmbar_neighbor",
        f"benchmark.files.llmbar_natural={tmp_path / 'Small.json'}",
    )
    graph, store = build_graph(config), Store(Path(config.run.store))
    outcome = execute(Plan(graph.steps), store, workers=0, runner="lab.stages.run_stage", offline=True, show=False)
    assert outcome.ok, outcome.summary()
    report(config, graph, store)
    made = store.load(graph.pairs.key).path
    pairs = [pair for name in ("pairs", "held_out") for pair in read_pairs(made / f"{name}.jsonl")]
    assert len(pairs) == 48  # of 60 items every fifth is one vote against one
    assert {pair.chosen for pair in pairs} == {f"{WORDS[3]} {WORDS[4]}"}
    card = json.loads((made / "card.json").read_text())
    assert card["faults"]["split"]["count"] == 24
    assert card["faults"]["agreeing"]["count"] == 48
    assert (tmp_path / "results" / "table.csv").is_file()

"""The Hub through ``datasets``, with a local folder in its place: streaming, splits, revisions, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from lab.config import CountsConfig, JsonlData, PairsFileConfig
from lab.data.jsonl import JsonlError, read_pairs
from lab.data.origin import Origin, Reading
from lab.data.planned import plan_pairs, plan_prompts
from lab.stages import data, pairs_file
from lab.store import Context

CARD = """---
configs:
- config_name: default
  data_files:
  - {split: train, path: data/train.jsonl}
  - {split: empty, path: data/empty.jsonl}
- config_name: other
  data_files:
  - {split: train, path: data/other.jsonl}
---
"""
COMMIT = "a" * 40


def lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def pairs(count: int, chosen: str = "good") -> list[dict[str, Any]]:
    return [{"prompt": f"Q{n}", "chosen": chosen, "rejected": "bad"} for n in range(count)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set as it lies on the Hub, and an empty cache beside it."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "some-set"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(CARD)
    (folder / "data" / "train.jsonl").write_text(lines(pairs(20)))
    (folder / "data" / "other.jsonl").write_text(lines(pairs(3, "other")))
    (folder / "data" / "empty.jsonl").write_text("")
    return folder


def rows(origin: Origin) -> list[Any]:
    return [row for _, row in Reading(origin)]


def perform(stage: Any, config: Any, resources: Any, out: Path) -> dict[str, Any]:
    out.mkdir()
    stage.run(config, {}, out, Context(key="k", seed_root="s", scratch=out / "scratch", resources=resources))
    card: dict[str, Any] = json.loads((out / "card.json").read_text())
    return card


def test_splits_and_configurations_are_streamed(folder: Path) -> None:
    assert rows(Origin(f"hub:{folder}")) == pairs(20)
    assert rows(Origin(f"hub:{folder}", subset="other")) == pairs(3, "other")
    assert rows(Origin(f"hub:{folder}", rows=2)) == pairs(2)
    assert not list(folder.parent.glob("cache/**/*.arrow")), "nothing is copied"


def test_what_is_not_there_is_named(folder: Path) -> None:
    def refused(**place: Any) -> str:
        with pytest.raises(JsonlError) as caught:
            rows(Origin(**{"path": f"hub:{folder}"} | place))
        return str(caught.value)

    assert refused(split="validation").startswith(f"hub:{folder}/validation: cannot be opened: ValueError: Bad split")
    assert "BuilderConfig 'nope' not found. Available: ['default', 'other']" in refused(subset="nope")
    assert refused(split="empty").endswith("/empty: the split has no rows")
    assert refused(path="hub:a/b/c").startswith("hub:a/b/c: neither a folder nor a Hub id")
    (folder / "data" / "train.jsonl").write_text(lines(pairs(3)) + '{"prompt": \n')
    assert "/train:1: cannot be read: " in refused()


def test_offline_only_the_cache_is_asked(folder: Path) -> None:
    """conftest.py puts the libraries off the network, as run.hub_offline=true does."""
    import datasets

    with pytest.raises(
        JsonlError, match=r"^hub:org/name/train: run\.hub_offline is true and .* not in the local cache"
    ):
        rows(Origin("hub:org/name"))
    with pytest.raises(ValueError, match=r"run\.hub_offline is true"):
        plan_pairs(PairsFileConfig("file", "hub:org/name", "pairs"))
    # What load_dataset leaves in the cache, under the name and the commit of a data set of the Hub.
    datasets.load_dataset(str(folder), split="train", data_files="data/train.jsonl")
    cache = folder.parent / "cache"
    (made,) = [path.parent for path in cache.glob("*/*/*/*/dataset_info.json")]
    cached = cache / "org___name" / "default" / "0.0.0" / COMMIT
    cached.parent.mkdir(parents=True)
    shutil.copytree(made, cached)
    for file in cached.glob("*.arrow"):
        file.rename(cached / "name-train.arrow")
    info = json.loads((cached / "dataset_info.json").read_text())
    (cached / "dataset_info.json").write_text(json.dumps({**info, "config_name": "default"}))
    assert rows(Origin("hub:org/name")) == pairs(20)
    assert rows(Origin("hub:org/name", revision=COMMIT)) == pairs(20)
    with pytest.raises(JsonlError, match=f"the cache holds revision {COMMIT}, not {'b' * 40}"):
        rows(Origin("hub:org/name", revision="b" * 40))


def test_a_step_is_known_by_its_rows_wherever_they_lie(folder: Path, tmp_path: Path) -> None:
    planned = plan_pairs(PairsFileConfig("file", f"hub:{folder}", "pairs", held_out=0.3))
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert plan_pairs(PairsFileConfig("file", f"hub:{copy}", "pairs", held_out=0.3)).config == planned.config
    assert str(tmp_path) not in json.dumps(planned.config)
    card = perform(pairs_file, planned.config, planned.resources, tmp_path / "out")
    assert card["rows"] == 20
    assert card["digest"] == planned.config["digest"]
    assert len(read_pairs(tmp_path / "out" / "pairs.jsonl")) == planned.counts["training"]
    (folder / "data" / "train.jsonl").write_text(lines(pairs(20, "changed")))
    with pytest.raises(ValueError, match=r"/train: the rows have changed since the plan was made"):
        perform(pairs_file, planned.config, planned.resources, tmp_path / "again")


def test_prompts_of_the_hub(folder: Path, tmp_path: Path) -> None:
    questions = [{"question": f"Q{n}", "answer": f"#### {n}"} for n in range(8)]
    (folder / "data" / "train.jsonl").write_text(lines(questions))
    counts = CountsConfig(preference=1, rl=1, evaluation=1, tuning=1)
    config = JsonlData("jsonl", f"hub:{folder}", "question", "answer", "gsm8k", "math", 3, counts)
    planned = plan_prompts(config)
    card = perform(data, planned.config, planned.resources, tmp_path / "out")
    assert card["rows"] == 8
    assert card["splits"]["sft"]["count"] == 3
    (folder / "data" / "train.jsonl").write_text(lines(questions[1:]))
    with pytest.raises(ValueError, match=r"the rows have changed since the plan was made"):
        perform(data, planned.config, planned.resources, tmp_path / "again")


def test_pairs_of_parquet_folders(folder: Path) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    bare = folder.parent / "bare"
    bare.mkdir()
    pq.write_table(pa.Table.from_pylist(pairs(5)), bare / "train-00000-of-00001.parquet")
    assert rows(Origin(f"hub:{bare}")) == pairs(5)
    assert rows(Origin(f"hub:{folder.parent}", folder="bare")) == pairs(5)

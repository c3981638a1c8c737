"""Readers of reward-model benchmarks: each format from a file made here, bad rows by name, the real data if present."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lab.benchmarks.items import Item
from lab.benchmarks.readers import INSTRUCTION, RESPONSE, RUBRIC, digest, from_hub, read_benchmark
from lab.benchmarks.scoring import longest_is_right
from lab.data.jsonl import JsonlError


def as_json(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text(json.dumps(list(rows)), encoding="utf-8")
    return path


def as_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


# ---------------------------------------------------------------- formats


LLMBAR = {"input": "Name a fruit.", "output_1": "Apple", "output_2": "A dog", "label": 1}


def test_llmbar_takes_a_folder_and_names_subsets_by_file(tmp_path: Path) -> None:
    as_json(tmp_path / "Natural.json", [LLMBAR, {**LLMBAR, "label": 2}])
    as_json(tmp_path / "Adversarial_Manual.json", [LLMBAR, {**LLMBAR, "output_2": "Apple"}])
    (tmp_path / "LICENSE").write_text("MIT")
    loaded = read_benchmark(tmp_path, "llmbar")
    assert [(item.subset, item.chosen[0]) for item in loaded.items] == [
        ("Adversarial_Manual", "Apple"),
        ("Natural", "Apple"),
        ("Natural", "A dog"),
    ]
    assert {(item.benchmark, item.kind, item.prompt.text) for item in loaded.items} == {
        ("llmbar", "pair", "Name a fruit.")
    }
    assert loaded.items[2].rejected == ("Apple",)
    assert loaded.dropped == {"chosen equals rejected": 1}


def test_hh_rlhf_shares_a_prompt_up_to_the_last_turn(tmp_path: Path) -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: tell me"
    rows = [
        {"chosen": f"{start}\n\nAssistant: same start no", "rejected": f"{start}\n\nAssistant: same start yes"},
        {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: x"},
        {"chosen": f"{start}\n\nAssistant: x\n\nHuman: more\n\nAssistant: y", "rejected": f"{start}\n\nAssistant: z"},
        {"chosen": f"{start}\n\nAssistant: x", "rejected": f"{start}\n\nAssistant: x"},
        {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: x"},
    ]
    loaded = read_benchmark(as_lines(tmp_path / "harmless.jsonl.gz", rows), "hh-rlhf")
    assert [(one.prompt.text, *one.chosen, *one.rejected) for one in loaded.items] == [
        ("hi\n\nAssistant: hello\n\nHuman: tell me", "same start no", "same start yes"),
        ("a", "", "x"),  # an empty answer is an answer
    ]
    assert loaded.dropped == {
        "the transcripts share no prompt": 1,
        "the transcripts part before the last turn": 1,
        "chosen equals rejected": 1,
    }


def votes(*three: Any) -> dict[str, Any]:
    row = {"instruction": "Do it.", "input": "", "response1": "one", "response2": "two"}
    return row | {f"annotator{n}": vote for n, vote in enumerate(three, 1)}


def test_pandalm_goes_by_the_majority(tmp_path: Path) -> None:
    rows = [votes(1, 2, 1), {**votes(2, 2, 0), "input": "It."}, votes(0, 0, 1), votes(0, 1, 2)]
    rows.append({**votes(1, 1, 1), "response2": True})
    loaded = read_benchmark(as_json(tmp_path / "test.json", rows), "pandalm")
    assert [(*one.chosen, *one.rejected, one.prompt.text) for one in loaded.items] == [
        ("one", "two", "Do it."),
        ("two", "one", "Do it.\n\nIt."),
    ]
    assert loaded.dropped == {
        "the annotators call it a tie": 1,
        "the annotators all differ": 1,
        "a response is a boolean": 1,
    }


def judged(instruction: str, response: str) -> str:
    return f"###Task Description:\nJudge.\n\n{INSTRUCTION}{instruction}{RESPONSE}{response}{RUBRIC}[Good?]\n"


def test_hhh_is_taken_out_of_its_template(tmp_path: Path) -> None:
    sides = {"chosen_instruction": judged("Who?\n\nMe", "You\n"), "rejected_instruction": judged("Who?\n\nMe", "I")}
    row = {"source": "honest", **sides}
    loaded = read_benchmark(as_json(tmp_path / "hhh.json", [row]), "hhh")
    (item,) = loaded.items
    assert (item.subset, item.prompt.text, item.chosen, item.rejected) == ("honest", "Who?\n\nMe", ("You\n",), ("I",))
    other = {**row, "rejected_instruction": judged("What?", "I")}
    with pytest.raises(JsonlError, match=r"hhh.json:1: key 'rejected_instruction': its instruction is not"):
        read_benchmark(as_json(tmp_path / "hhh.json", [other]), "hhh")
    with pytest.raises(JsonlError, match=r"hhh.json:1: key 'chosen_instruction': expected instruction, response"):
        read_benchmark(as_json(tmp_path / "hhh.json", [{**row, "chosen_instruction": "You"}]), "hhh")


BENCH = {"prompt": "p", "chosen": "good", "rejected": "bad", "subset": "donotanswer", "id": 7, "chosen_model": "m"}
BENCH2 = {"id": "3", "prompt": "p", "chosen": ["good"], "rejected": ["a", "b", "c"], "num_correct": 1,
          "num_incorrect": 3, "subset": "Math", "models": ["x"]}  # fmt: skip
TIES = [
    {**BENCH2, "id": "ref:0", "subset": "Ties"},
    {**BENCH2, "id": "tied:0", "subset": "Ties", "chosen": ["good", "fine"], "num_correct": 2},
]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rewardbench(tmp_path: Path, suffix: str) -> None:
    rows = [BENCH, {**BENCH, "subset": "hep-go"}, {**BENCH, "subset": "hep-go"}]
    path = tmp_path / f"filtered{suffix}"
    pq.write_table(pa.Table.from_pylist(rows), path) if suffix == ".parquet" else as_lines(path, rows)
    items = read_benchmark(path, "rewardbench").items
    assert [(one.id, one.subset) for one in items] == [
        ("donotanswer:7", "donotanswer"),
        ("hep-go:7", "hep-go"),
        ("hep-go:7#2", "hep-go"),
    ]
    assert {(one.kind, one.chosen, one.rejected) for one in items} == {("pair", ("good",), ("bad",))}


def test_messages_become_a_transcript(tmp_path: Path) -> None:
    turns = ["a", "b", "c"]
    row = {**BENCH, "prompt": [{"role": "user", "content": text} for text in turns]}
    (item,) = read_benchmark(as_lines(tmp_path / "x.jsonl", [row]), "rewardbench").items
    assert item.prompt.text == "a\n\nAssistant: b\n\nHuman: c"
    row["prompt"] = row["prompt"][:2]
    with pytest.raises(JsonlError, match=r"x.jsonl:1: key 'prompt': the last of 2 messages is not the user's"):
        read_benchmark(as_lines(tmp_path / "x.jsonl", [row]), "rewardbench")


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_rewardbench2(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"test{suffix}"
    rows = [BENCH2, *TIES]
    pq.write_table(pa.Table.from_pylist(rows), path) if suffix == ".parquet" else as_lines(path, rows)
    items = read_benchmark(path, "rewardbench2").items
    assert [(one.kind, one.pair_group, one.subset) for one in items] == [
        ("best_of", None, "Math"),
        ("ref", "0", "Ties"),
        ("tied", "0", "Ties"),
    ]
    assert items[0].completions == ("good", "a", "b", "c")
    assert items[2].chosen == ("good", "fine")


# ---------------------------------------------------------------- bad rows


@pytest.mark.parametrize(
    ("format", "row", "message"),
    [
        ("llmbar", {**LLMBAR, "label": 3}, "key 'label': expected 1 or 2, got 3"),
        ("llmbar", {**LLMBAR, "label": True}, "key 'label': expected 1 or 2, got True"),
        ("llmbar", {"inputs": "x", "output_1": "a", "output_2": "b", "label": 1}, "'input' is missing .*did you mean"),
        ("pandalm", votes(1, 1, "1"), "key 'annotator3': expected 0, 1 or 2, got '1'"),
        ("pandalm", {**votes(1, 1, 1), "response1": 5}, "key 'response1': expected a string, got 5"),
        ("hh-rlhf", {"chosen": "x"}, "key 'rejected' is missing"),
        ("rewardbench", {**BENCH, "chosen": ["good"]}, "key 'chosen': expected a string"),
        ("rewardbench", {**BENCH, "id": None}, "key 'id': expected a string or an integer"),
        ("rewardbench2", {**BENCH2, "chosen": "good"}, "key 'chosen': expected a list of strings"),
        ("rewardbench2", {**BENCH2, "num_correct": 2}, "key 'num_correct': says 2, and the lists hold 1"),
        ("rewardbench2", {**TIES[0], "id": "0"}, "key 'id': expected ref:N or tied:N"),
        ("rewardbench2", {**TIES[0], "id": "tied:0"}, "item tied:0: 1 chosen and 3 rejected are not what kind tied"),
        ("rewardbench2", {**BENCH2, "rejected": ["good", "b", "c"]}, "chosen and rejected at once: 'good'"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, format: str, row: dict[str, Any], message: str) -> None:
    good = {"llmbar": LLMBAR, "pandalm": votes(1, 1, 1), "rewardbench": BENCH, "rewardbench2": BENCH2}
    first = good.get(format, {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: a\n\nAssistant: y"})
    with pytest.raises(JsonlError, match=rf"rows.jsonl:2: .*{message}"):
        read_benchmark(as_lines(tmp_path / "rows.jsonl", [first, row]), format)


def test_nothing_to_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JsonlError, match=r"holds no \.json"):
        read_benchmark(tmp_path, "llmbar")
    with pytest.raises(JsonlError, match=r"no item is left; rows dropped: \{'the annotators call it a tie': 1\}"):
        read_benchmark(as_json(tmp_path / "x.json", [votes(0, 0, 0)]), "pandalm")
    with pytest.raises(ValueError, match=r"expected one of llmbar, .*, got 'lmbar'"):
        read_benchmark(tmp_path, "lmbar")
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    with pytest.raises(JsonlError, match=r"x.parquet: cannot be read"):
        read_benchmark(tmp_path / "x.parquet", "rewardbench")
    with pytest.raises(JsonlError, match="absent"):
        read_benchmark(tmp_path / "absent.jsonl", "rewardbench")
    with pytest.raises(JsonlError, match="absent"):
        read_benchmark(tmp_path / "absent.parquet", "rewardbench")


def test_a_folder_has_one_digest(tmp_path: Path) -> None:
    as_json(tmp_path / "a.json", [LLMBAR])
    before = digest(tmp_path)
    (tmp_path / "LICENSE").write_text("MIT")
    assert digest(tmp_path) == before
    as_json(tmp_path / "b.json", [LLMBAR])
    assert digest(tmp_path) != before
    assert digest(tmp_path / "a.json") == digest(tmp_path / "b.json")


# ---------------------------------------------------------------- the Hub


def repository(folder: Path, split: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """A data set repository as the Hub holds it: Parquet files, and the splits in the card's header."""
    (folder / "data").mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(list(rows)), folder / "data" / f"{split}-00000-of-00001.parquet")
    card = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: {split}\n    path: data/{split}-*\n---\n"
    (folder / "README.md").write_text(card, encoding="utf-8")
    return folder


def test_both_published_benchmarks_come_through_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    one = from_hub("allenai/reward-bench", repository(tmp_path / "one", "filtered", [BENCH]))
    assert [(item.benchmark, item.id, item.chosen) for item in one.items] == [("rewardbench", "7", ("good",))]
    two = from_hub("allenai/reward-bench-2", repository(tmp_path / "two", "test", [BENCH2, *TIES]))
    assert [item.kind for item in two.items] == ["best_of", "ref", "tied"]
    with pytest.raises(ValueError, match="expected one of allenai/reward-bench, allenai/reward-bench-2, got 'x/y'"):
        from_hub("x/y")


# ---------------------------------------------------------------- the real files


def longer_wins(items: Sequence[Item], subset: str) -> float:
    return float(np.mean([longest_is_right(item) for item in items if item.subset == subset]))


@pytest.mark.data
def test_longer_wins_on_llmbar_as_measured_elsewhere(data_folder: Path) -> None:
    loaded = read_benchmark(data_folder / "llmbar", "llmbar")
    known = {"Processed_MT-Bench": 69.3, "Natural": 56.5, "Adversarial_Neighbor": 11.9, "Adversarial_GPTInst": 13.0}
    assert {name: 100 * longer_wins(loaded.items, name) for name in known} == pytest.approx(known, abs=0.051)
    assert len(loaded.items) == 419 + 466 - 1
    assert loaded.dropped == {"chosen equals rejected": 1}


@pytest.mark.data
def test_longer_wins_on_hh_rlhf_as_measured_elsewhere(data_folder: Path) -> None:
    loaded = read_benchmark(data_folder / "hh-rlhf" / "harmless-base-test.jsonl.gz", "hh-rlhf")
    assert 100 * longer_wins(loaded.items, "harmless-base-test") == pytest.approx(44.5, abs=0.051)
    assert len(loaded.items) + sum(loaded.dropped.values()) == 2312
    assert loaded.dropped == {"the transcripts part before the last turn": 5}


@pytest.mark.data
def test_pandalm_and_hhh_are_read_whole(data_folder: Path) -> None:
    pandalm = read_benchmark(data_folder / "pandalm", "pandalm")
    assert len(pandalm.items) == 888
    assert pandalm.dropped == {"the annotators call it a tie": 85 + 13 + 7, "a response is a boolean": 6}
    hhh = read_benchmark(data_folder / "prometheus-eval", "hhh")
    assert Counter(one.subset for one in hhh.items) == {"honest": 61, "helpful": 59, "harmless": 58, "other": 43}

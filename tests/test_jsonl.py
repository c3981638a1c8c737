"""Records through files: exact round trips, errors that name file, line, key and value, disjoint splits."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.data.jsonl import (
    JsonlError,
    read_demonstrations,
    read_pairs,
    read_prompts,
    read_rows,
    write_records,
    write_rows,
)
from lab.data.sources import file_digest, load, normalised_id, split
from lab.records import Demonstration, Pair, Prompt
from lab.stages import data
from lab.store import Context

DATA = Path(os.environ.get("ALIGNMENT_LAB_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))
AWKWARD = "NUL \x00, lone \ud800 and \udfff, RTL \u202eabc, CRLF \r\n, NEL \x85, LS \u2028, \U0001f600, BOM \ufeff"
PROMPT = Prompt(AWKWARD, "math", 2, {"verifier": "gsm8k", "answer": "7", "nested": {"a": [1, 2.5, None, "\x00"]}})

# All code points, lone surrogates included, but no high surrogate right before a low one: JSON cannot keep those apart.
any_text = st.text(alphabet=st.characters(exclude_categories=[]), max_size=40).map(
    lambda text: re.sub("([\ud800-\udbff])(?=[\udc00-\udfff])", r"\1 ", text)
)
any_prompt = st.builds(
    Prompt,
    any_text,
    st.sampled_from(["math", "safety"]),
    st.integers(0, 9),
    st.dictionaries(any_text, any_text, max_size=2),
)
any_pair = st.builds(Pair, any_prompt, any_text, any_text, any_text, st.booleans(), st.booleans())
any_demonstration = st.builds(Demonstration, any_prompt, any_text)


@given(st.lists(any_prompt, min_size=1, max_size=3), st.lists(any_pair, min_size=1, max_size=3))
@settings(max_examples=60, deadline=None)
def test_prompts_and_pairs_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, prompts: list[Prompt], pairs: list[Pair]
) -> None:
    folder = tmp_path_factory.mktemp("records")
    write_records(folder / "prompts.jsonl", prompts)
    write_records(folder / "pairs.jsonl", pairs)
    assert read_prompts(folder / "prompts.jsonl") == prompts
    assert read_pairs(folder / "pairs.jsonl") == pairs
    assert [prompt.id for prompt in read_prompts(folder / "prompts.jsonl")] == [prompt.id for prompt in prompts]
    assert (folder / "prompts.jsonl").read_bytes().count(b"\n") == len(prompts)


@given(st.lists(any_demonstration, min_size=1, max_size=3))
@settings(max_examples=30, deadline=None)
def test_demonstrations_come_back_exactly(
    tmp_path_factory: pytest.TempPathFactory, demonstrations: list[Demonstration]
) -> None:
    path = tmp_path_factory.mktemp("records") / "sft.jsonl"
    assert write_records(path, demonstrations) == len(demonstrations)
    assert read_demonstrations(path) == demonstrations


def test_awkward_text_is_one_ascii_line(tmp_path: Path) -> None:
    path = tmp_path / "prompts.jsonl"
    write_records(path, [PROMPT])
    raw = path.read_bytes()
    assert raw.isascii()
    assert raw.count(b"\n") == 1
    assert b"\x00" not in raw
    assert read_prompts(path) == [PROMPT]


def test_split_surrogate_pairs_are_refused_not_merged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="split surrogate pair at 1"):
        write_rows(tmp_path / "x.jsonl", [{"text": "a\ud83d\ude00"}])
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_rows(path, [{"a": 1}])
    with pytest.raises(ValueError, match="JSON compliant"):
        write_rows(path, [{"a": 2}, {"a": float("nan")}])
    assert list(read_rows(path)) == [(1, {"a": 1})]
    assert list(tmp_path.iterdir()) == [path]


def test_json_gz_bom_crlf_and_blank_lines_are_read(tmp_path: Path) -> None:
    rows = [{"a": "ü"}, {"a": "\u2028"}]
    (tmp_path / "x.json").write_text(json.dumps(rows), encoding="utf-8")
    lines = "\r\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows).encode()
    (tmp_path / "x.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines))
    for name in ("x.json", "x.jsonl", "x.jsonl.gz"):
        assert [row for _, row in read_rows(tmp_path / name)] == rows
    assert [line for line, _ in read_rows(tmp_path / "x.jsonl")] == [1, 3]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"x\.jsonl: the file has no rows"),
        (b"\n \n", r"x\.jsonl: the file has no rows"),
        (b'{"a": 1}\n{"a": }\n', r"x\.jsonl:2: not JSON, column 7"),
        (b'{"a": 1}\n\n{"a": "\xff"}\n', r"x\.jsonl:3: not UTF-8 \(byte 8: 0xff\)"),
        (b'{"a": NaN}\n', r"x\.jsonl:1: NaN is not JSON"),
        (b"[1, 2]\n", r"x\.jsonl:1: expected an object, got \[1, 2\]"),
        (b'{"a": "' + b"x" * 100 + b'"}\n', r"x\.jsonl:1: the row is larger than 60 bytes"),
        (b'{"a": 1}\n' + b"[" * 40 + b"\n", r"x\.jsonl:2: not JSON"),
    ],
)
def test_bad_rows_name_file_and_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(content)
    with pytest.raises(JsonlError, match=message):
        list(read_rows(tmp_path / "x.jsonl", max_row_bytes=60))


def test_deep_nesting_and_broken_gzip_are_errors_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "deep.jsonl").write_bytes(b"[" * 200_000)
    with pytest.raises(JsonlError, match=r"deep\.jsonl:1: (nested too deeply|not JSON)"):
        list(read_rows(tmp_path / "deep.jsonl"))
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n' * 1000)[:-20])
    with pytest.raises(JsonlError, match=r"x\.jsonl\.gz:\d+: cannot be read"):
        list(read_rows(tmp_path / "x.jsonl.gz"))
    (tmp_path / "x.json").write_text('{"a": 1}')
    with pytest.raises(JsonlError, match=r"expected a list of objects"):
        list(read_rows(tmp_path / "x.json"))


def test_a_wrong_path_names_the_nearest_file(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("{}\n")
    with pytest.raises(JsonlError, match=r"trian\.jsonl: no such file; did you mean train\.jsonl\?"):
        list(read_rows(tmp_path / "trian.jsonl"))
    with pytest.raises(JsonlError, match=r"no such file \(and no folder .*nowhere\)"):
        list(read_rows(tmp_path / "nowhere" / "x.jsonl"))
    with pytest.raises(JsonlError, match="expected a file, got a folder"):
        list(read_rows(tmp_path))
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(JsonlError, match=r"x\.csv: expected a \.jsonl"):
        list(read_rows(tmp_path / "x.csv"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": 3}, r":1: key 'text': expected a string, got 3"),
        ({"level": "2"}, r":1: key 'level': expected an integer, got '2'"),
        ({"level": True}, r":1: key 'level': expected an integer, got True"),
        ({"gold": []}, r":1: key 'gold': expected an object, got \[\]"),
        ({"extra": 1}, r":1: key 'extra' is unknown"),
        ({"gold": ...}, r":1: key 'gold' is missing \(the row has: text, domain, level\)"),
    ],
)
def test_bad_records_name_key_and_value(tmp_path: Path, change: Mapping[str, Any], message: str) -> None:
    row: dict[str, Any] = {"text": "a", "domain": "math", "level": 0, "gold": {}} | dict(change)
    write_rows(tmp_path / "prompts.jsonl", [{key: value for key, value in row.items() if value is not ...}])
    with pytest.raises(JsonlError, match=message):
        read_prompts(tmp_path / "prompts.jsonl")


# ---------------------------------------------------------------- question/answer files


def write_questions(path: Path, count: int = 10) -> list[dict[str, Any]]:
    rows = [
        {"question": f"What is {i} + 1?", "answer": f"{i}+1=<<{i}+1={i + 1}>>{i + 1}\n#### {i + 1}"}
        for i in range(count)
    ]
    write_rows(path, rows)
    return rows


def test_questions_become_prompts_with_gold_and_clean_demonstrations(tmp_path: Path) -> None:
    write_questions(tmp_path / "q.jsonl")
    loaded = load(tmp_path / "q.jsonl")
    assert loaded.rows[4] == Demonstration(
        Prompt("What is 4 + 1?", "math", 0, {"verifier": "gsm8k", "answer": "5"}), "4+1=5\n#### 5"
    )
    assert (loaded.duplicates, loaded.conflicts) == (0, 0)


def test_duplicates_are_dropped_and_counted_whatever_their_order(tmp_path: Path) -> None:
    rows = [
        {"question": "a b", "answer": "1"},
        {"question": "A  b\n", "answer": "1"},  # the same but for case and space: it must not straddle two splits
        {"question": "a b", "answer": "2"},
        {"question": "c", "answer": "3"},
    ]
    write_rows(tmp_path / "a.jsonl", rows)
    write_rows(tmp_path / "b.jsonl", rows[::-1])
    first, second = load(tmp_path / "a.jsonl"), load(tmp_path / "b.jsonl")
    assert (first.duplicates, first.conflicts) == (2, 1)
    assert sorted(p.id for p in first.prompts) == sorted(p.id for p in second.prompts)
    assert len(first.rows) == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"question": "b"}, r"q\.jsonl:2: key 'answer' is missing \(the row has: question\)"),
        ({"question": "b", "anwser": "1"}, r"q\.jsonl:2: key 'answer' is missing .*did you mean 'anwser'"),
        ({"question": 3, "answer": "1"}, r"q\.jsonl:2: key 'question': expected a string, got 3"),
        ({"question": " ", "answer": "1"}, r"q\.jsonl:2: key 'question': the question is empty"),
        ({"question": "b", "answer": "forty two"}, r"q\.jsonl:2: key 'answer': no number .* 'forty two'"),
        ({"question": "b", "answer": None}, r"q\.jsonl:2: key 'answer': expected a number"),
    ],
)
def test_bad_questions_stop_the_run_while_loading(tmp_path: Path, row: Mapping[str, Any], message: str) -> None:
    write_rows(tmp_path / "q.jsonl", [{"question": "a", "answer": "1"}, row])
    with pytest.raises(JsonlError, match=message):
        load(tmp_path / "q.jsonl")
    with pytest.raises(ValueError, match="did you mean 'gsm8k'"):
        load(tmp_path / "q.jsonl", verifier="gms8k")


@given(st.permutations(range(12)), st.integers(0, 3))
@settings(max_examples=25, deadline=None)
def test_splits_are_disjoint_and_do_not_depend_on_order(order: list[int], seed: int) -> None:
    items = [Demonstration(Prompt(f"question {i}", "math", 0), str(i)) for i in range(12)]
    parts = {"sft": 4, "rl": 3, "evaluation": 2, "tuning": 1}
    cut = split([items[i] for i in order], parts, seed)
    assert cut == split(items, parts, seed)
    assert {name: len(rows) for name, rows in cut.items()} == parts
    ids = [row.prompt.id for rows in cut.values() for row in rows]
    assert len(ids) == len(set(ids))
    # more training prompts leave the evaluation prompts as they were
    assert split(items, parts | {"sft": 6}, seed)["evaluation"] == cut["evaluation"]


def test_splits_change_with_the_seed_and_refuse_what_cannot_be() -> None:
    items = [Demonstration(Prompt(f"question {i}", "math", 0), str(i)) for i in range(12)]
    assert split(items, {"rl": 6}, 0) != split(items, {"rl": 6}, 1)
    with pytest.raises(ValueError, match=r"counts: 10 sft \+ 3 rl = 13 prompts are needed, the data has 12"):
        split(items, {"sft": 10, "rl": 3}, 0)
    with pytest.raises(ValueError, match=r"counts\.rl: expected a number of prompts, got -1"):
        split(items, {"rl": -1}, 0)
    with pytest.raises(ValueError, match="occurs twice"):
        split([*items, items[0]], {"rl": 1}, 0)
    assert normalised_id("A  b\n") == normalised_id("a b") != normalised_id("ab")


# ---------------------------------------------------------------- the stage


def stage_context(tmp_path: Path, **resources: Any) -> Context:
    return Context(key="k", seed_root="k", scratch=tmp_path / "scratch", resources=resources)


def jsonl_config(path: Path, **counts: int) -> dict[str, Any]:
    columns = {"question": "question", "answer": "answer", "verifier": "gsm8k", "domain": "math"}
    return {"kind": "jsonl", "digest": file_digest(path), "seed": 0, "counts": counts, **columns}


def test_stage_writes_splits_and_card_from_a_file(tmp_path: Path) -> None:
    path, out = tmp_path / "q.jsonl", tmp_path / "out"
    write_questions(path)
    out.mkdir()
    config = jsonl_config(path, sft=4, preference=2, rl=2, evaluation=1, tuning=1)
    result = data.run(config, {}, out, stage_context(tmp_path, path=str(path)))
    assert result.ledger.demonstrations == 4
    assert sorted(p.name for p in out.iterdir()) == [
        "card.json", "card.md", "evaluation.jsonl", "preference.jsonl", "preference_demonstrations.jsonl", "rl.jsonl",
        "sft.jsonl", "tuning.jsonl",
    ]  # fmt: skip
    answered = read_demonstrations(out / "preference_demonstrations.jsonl")
    assert [item.prompt for item in answered] == read_prompts(out / "preference.jsonl")
    sft = read_demonstrations(out / "sft.jsonl")
    others = [p for name in ("preference", "rl", "evaluation", "tuning") for p in read_prompts(out / f"{name}.jsonl")]
    assert len({p.id for p in others} | {row.prompt.id for row in sft}) == 10
    assert all(p.verifier == "gsm8k" for p in others)
    card = json.loads((out / "card.json").read_text())
    assert card["rows"] == 10
    assert card["duplicates_dropped"] == 0
    assert card["splits"]["sft"]["count"] == 4
    assert card["splits"]["sft"]["prompt_characters"] == {"minimum": 14, "mean": 14.0, "maximum": 14}


def test_stage_refuses_a_file_that_changed_after_planning(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    write_questions(path)
    config = jsonl_config(path, rl=1)
    write_questions(path, 11)
    with pytest.raises(ValueError, match=r"q\.jsonl: the file has changed since the plan"):
        data.run(config, {}, tmp_path, stage_context(tmp_path, path=str(path)))
    with pytest.raises(ValueError, match=r"data\.kind: expected world or jsonl, got 'hub'"):
        data.run({"kind": "hub"}, {}, tmp_path, stage_context(tmp_path))


def test_stage_writes_the_world(tmp_path: Path) -> None:
    habits = {"careful": 0.5, "slip": 0.1, "opener": 0.5, "closer": 0.5, "filler": 0.2}
    counts = {"base": 12, "sft": 12, "preference": 6, "rl": 6, "evaluation": 6, "tuning": 6}
    config = {"kind": "world", "seed": 0, "base": habits, "sft": habits, "counts": counts}
    data.run(config, {}, tmp_path, stage_context(tmp_path))
    assert len(read_demonstrations(tmp_path / "base.jsonl")) == 12
    assert len(read_prompts(tmp_path / "evaluation.jsonl")) == 6
    first = (tmp_path / "rl.jsonl").read_bytes()
    data.run(config, {}, tmp_path, stage_context(tmp_path))
    assert (tmp_path / "rl.jsonl").read_bytes() == first


@pytest.mark.data
def test_real_gsm8k_loads(tmp_path: Path) -> None:
    path = DATA / "gsm8k" / "test.jsonl"
    if not path.is_file():
        pytest.skip(f"no data at {path} (set ALIGNMENT_LAB_DATA)")
    loaded = load(path)
    assert len(loaded.rows) + loaded.duplicates == 1319
    assert loaded.rows[0].prompt.gold == {"verifier": "gsm8k", "answer": "18"}
    assert loaded.rows[0].completion.endswith("#### 18")
    assert not any("<<" in row.completion for row in loaded.rows)

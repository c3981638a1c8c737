"""Published formats of rated and stated preferences, and rows that cannot be read, from every kind of file."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.config import CountsConfig, JsonlData, PairsFileConfig
from lab.data.chat import opening, render
from lab.data.jsonl import JsonlError, read_demonstrations, read_pairs, read_rows, write_records, write_rows
from lab.data.origin import Origin, file_digest
from lab.data.pair_formats import Stated, nemotron_turns
from lab.data.planned import plan_pairs, plan_prompts
from lab.data.preference_files import LoadedPairs, load_pairs, split_pairs
from lab.data.ratings import Rated, pair_up
from lab.data.sources import load
from lab.stages import data, pairs_file
from lab.store import Context

Row = Mapping[str, Any]


def loaded(tmp_path: Path, rows: Sequence[Row], format: str, **settings: Any) -> LoadedPairs:
    path = tmp_path / "rows.jsonl"
    write_rows(path, rows)
    return load_pairs(path, format, **settings)


def stated(found: LoadedPairs) -> list[tuple[str, str, str, float]]:
    return [(pair.prompt.text, pair.chosen, pair.rejected, round(pair.strength, 9)) for pair in found.pairs]


def faults(found: LoadedPairs) -> dict[str, tuple[int, ...]]:
    return {name: fault.rows for name, fault in found.faults.items() if fault.rows}


# ---------------------------------------------------------------- UltraFeedback


def rated(text: str, **ratings: str) -> dict[str, Any]:
    return {"response": text, "annotations": {name: {"Rating": value} for name, value in ratings.items()}}


FINE = {
    "instruction": "Q",
    "completions": [
        rated("middling", helpfulness="3", honesty="4"),  # 0.75 * 3 + 0.25 * 4 = 3.25
        rated("best", helpfulness="5", honesty="2"),  # 4.25
        rated("worst", helpfulness="1", honesty="5"),  # 2.0
        rated("unsaid", helpfulness="5", honesty="N/A"),
    ],
}
WEIGHTS = {"helpfulness": 0.75, "honesty": 0.25}


def test_fine_grained_ratings_by_hand(tmp_path: Path) -> None:
    found = loaded(tmp_path, [FINE], "ultrafeedback", weights=WEIGHTS, drop=["unrated"])
    assert stated(found) == [("Q", "best", "worst", 2.25)]
    assert faults(found) == {"unrated": (1,)}
    every = loaded(tmp_path, [FINE], "ultrafeedback", weights=WEIGHTS, drop=["unrated"], pairing="all")
    assert stated(every) == [
        ("Q", "best", "middling", 1.0), ("Q", "middling", "worst", 1.25), ("Q", "best", "worst", 2.25),
    ]  # fmt: skip
    # A weight below 0 turns the order round: 3 - 4 = -1, 5 - 2 = 3, 1 - 5 = -4.
    weights = {"helpfulness": 1.0, "honesty": -1.0}
    assert stated(loaded(tmp_path, [FINE], "ultrafeedback", weights=weights, drop=["unrated"])) == [
        ("Q", "best", "worst", 7.0)
    ]
    assert loaded(tmp_path, [FINE], "ultrafeedback", weights={"helpfulness": 1.0}, pairing="all",
                  drop=["tied"]).faults["tied"].rows == (1,)  # best and unsaid, 5 each  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (FINE, r"a completion has no rating \(preferences\.drop: unrated leaves such rows out\)"),
        ({**FINE, "completions": []}, r"0 completion\(s\) of a prompt: a pair needs two"),
        ({**FINE, "completions": FINE["completions"][:1]}, r"1 completion\(s\) of a prompt"),
        ({**FINE, "completions": "none"}, "key 'completions': expected a list, got 'none'"),
        ({**FINE, "completions": [{"response": "a"}]}, "key 'annotations' is missing"),
        ({**FINE, "completions": [rated("a", helpfulness="5")]}, "key 'honesty' is missing"),
        ({**FINE, "completions": [rated("a", helpfulness="good", honesty="1")]}, r"\[0\].annotations.helpfulness'"),
        ({**FINE, "completions": [rated("a", helpfulness="1", honesty="1"), rated("b", helpfulness="1", honesty="1")]},
         r"two completions have the same score, 1 \(preferences\.drop: tied"),
    ],
)  # fmt: skip
def test_ratings_that_make_no_pair_are_named(tmp_path: Path, row: Row, message: str) -> None:
    good = {**FINE, "completions": FINE["completions"][:3]}  # type: ignore[index]
    row = {**row, "instruction": "Another"}
    with pytest.raises(JsonlError, match=r"rows\.jsonl:2: .*" + message):
        loaded(tmp_path, [good, row], "ultrafeedback", weights=WEIGHTS)
    found = loaded(tmp_path, [good, row], "ultrafeedback", weights=WEIGHTS, drop=["unrated", "tied", "unreadable"])
    assert sum(map(len, faults(found).values())) == 1
    assert stated(found)[0] == ("Q", "best", "worst", 2.25)


@given(st.lists(st.integers(0, 4), min_size=2, max_size=6))
def test_every_pair_is_of_two_scores_and_all_couples_are_accounted_for(scores: list[int]) -> None:
    completions = [Rated(1, f"text {n}", float(score)) for n, score in enumerate(scores)]
    value = {one.text: one.score for one in completions}
    states = pair_up("Q", completions, "all", 1)
    pairs = [one for one in states if isinstance(one, Stated)]
    assert len(states) == len(scores) * (len(scores) - 1) // 2
    for one in pairs:
        assert one.strength == value[one.chosen] - value[one.rejected] > 0  # type: ignore[operator]
    (extreme,) = pair_up("Q", completions, "extremes", 1)
    assert isinstance(extreme, Stated) == (max(scores) > min(scores))
    if isinstance(extreme, Stated):
        assert (value[extreme.chosen], value[extreme.rejected]) == (max(scores), min(scores))


def test_binarized_scores(tmp_path: Path) -> None:
    def talk(answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "Q"}, {"role": "assistant", "content": answer}]

    def row(chosen: float, rejected: float) -> Row:
        texts = {"prompt": "Q", "chosen": talk("good"), "rejected": talk("bad"), "messages": talk("good")}
        return {**texts, "score_chosen": chosen, "score_rejected": rejected}

    found = loaded(tmp_path, [row(8.5, 6), row(7, 7)], "ultrafeedback_binarized", drop=["tied"])
    assert stated(found) == [("Q", "good", "bad", 2.5)]
    assert faults(found) == {"tied": (2,)}
    with pytest.raises(JsonlError, match=r"rows\.jsonl:2: chosen and rejected have the same score, 7 .*tied leaves"):
        loaded(tmp_path, [row(8.5, 6), row(7, 7)], "ultrafeedback_binarized")
    with pytest.raises(JsonlError, match=r"rows\.jsonl:1: key 'score_chosen': 6 is below score_rejected, 8\.5"):
        loaded(tmp_path, [row(6, 8.5)], "ultrafeedback_binarized", drop=["tied"])


# ---------------------------------------------------------------- HelpSteer


def helped(prompt: str, response: str, helpfulness: int | None, verbosity: int) -> Row:
    return {"prompt": prompt, "response": response, "helpfulness": helpfulness, "verbosity": verbosity}


def test_attributes_of_neighbouring_rows(tmp_path: Path) -> None:
    rows = [
        helped("P", "a", 3, 4),  # 3 - 0.5 * 4 = 1
        helped("P", "b", 2, 0),  # 2: shorter is better here
        helped("Q", "a", 1, 0),
        helped("Q", "b", 4, 0),
        helped("R", "a", 2, 2),
        helped("R", "b", 2, 2),  # tied
        helped("S", "alone", 2, 2),
        helped("T", "a", None, 2),
        helped("T", "b", 2, 2),
        helped("P", "c", 4, 0),  # no neighbour of the first P
        helped("P", "d", 0, 0),
    ]
    weights = {"helpfulness": 1.0, "verbosity": -0.5}
    found = loaded(tmp_path, rows, "helpsteer", weights=weights, drop=["tied", "unrated"])
    assert stated(found) == [("P", "b", "a", 1.0), ("Q", "b", "a", 3.0), ("P", "c", "d", 4.0)]
    assert faults(found) == {"tied": (5,), "unrated": (7, 8), "scattered": (10,)}
    assert found.rows == 11
    with pytest.raises(JsonlError, match=r"rows\.jsonl:2: key 'verbosity': expected a number, got 'much'"):
        loaded(tmp_path, [rows[0], {**rows[1], "verbosity": "much"}], "helpsteer", weights=weights)
    with pytest.raises(JsonlError, match=r"rows\.jsonl:2: key 'prompt' is missing"):
        loaded(tmp_path, [rows[0], {"response": "b"}], "helpsteer", weights=weights, drop=["unrated"])


@pytest.mark.parametrize(("strength", "expected"), [(-3, ("a", "b", 3.0)), (-1, ("a", "b", 1.0)), (2, ("b", "a", 2.0))])
def test_signed_strength(tmp_path: Path, strength: int, expected: tuple[str, str, float]) -> None:
    row = {"prompt": "Q", "response_1": "a", "response_2": "b", "preference_strength": strength}
    tie = {**row, "preference_strength": 0}
    found = loaded(tmp_path, [row, tie], "helpsteer2_preference", drop=["tied"])
    assert stated(found) == [("Q", *expected)]
    assert faults(found) == {"tied": (2,)}


def test_turns_of_helpsteer2() -> None:
    assert nemotron_turns("Hi") == "Hi"
    talk = "Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\nWhy?"
    assert nemotron_turns(talk) == "Hi\n\nAssistant: Hello.\n\nHuman: Why?"
    assert opening(nemotron_turns(talk)) == "Hi"
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Why?")]
    assert nemotron_turns("<extra_id_1>User\n" + talk) == nemotron_turns(talk) == render(turns)


# ---------------------------------------------------------------- files

PAIR = {"prompt": "Q", "chosen": "a", "rejected": "b"}


def test_parquet_and_compressed_files_say_the_same(tmp_path: Path) -> None:
    rows = [{**PAIR, "prompt": f"Q{n}", "extra": [{"x": n}]} for n in range(600)]  # more than one batch
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "a.jsonl").write_bytes(lines)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines))
    (tmp_path / "a.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=100)
    expected = list(enumerate(rows, 1))
    for name in ("a.jsonl", "a.jsonl.gz", "a.json", "a.parquet"):
        assert list(read_rows(tmp_path / name)) == expected, name
    assert [pair.prompt.text for pair in load_pairs(Origin(str(tmp_path / "a.parquet"), rows=3), "pairs").pairs] == [
        "Q0", "Q1", "Q2",
    ]  # fmt: skip


@pytest.mark.parametrize("damage", ["torn", "text", "null"])
def test_a_parquet_file_that_cannot_be_read(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.parquet"
    columns = {"prompt": ["Q", "Q2"], "chosen": ["a", None], "rejected": ["b", "c"]}
    pq.write_table(pa.table(columns), path)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:-20])
    elif damage == "text":
        path.write_text("not parquet")
    message = r"a\.parquet:2: key 'chosen': expected a text" if damage == "null" else r"a\.parquet:1: cannot be read"
    with pytest.raises(JsonlError, match=message):
        load_pairs(path, "pairs")


BROKEN = [
    json.dumps({**PAIR, "prompt": "first"}).encode(),
    b'{"prompt": "caf\xe9"}',  # 2: latin-1
    b'{"prompt": "Q", "chosen": "a"}',  # 3: a column is missing
    b'{"prompt": " ", "chosen": "a", "rejected": "b"}',  # 4: an empty prompt
    b'{"prompt": "Q", "chosen": ',  # 5: torn
    b"[1, 2]",  # 6: no object
    b'{"prompt": "Q", "chosen": 1, "rejected": "b"}',  # 7: a number
    b'{"prompt": "' + b"x" * 3000 + b'", "chosen": "a", "rejected": "b"}',  # 8: too large
    b"",
    b'{"prompt": "last", "chosen": NaN, "rejected": "b"}',  # 10
    b'{"prompt": "digits", "chosen": ' + b"9" * 5000 + b"}",  # 11
    json.dumps({**PAIR, "prompt": "last"}).encode(),
]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_rows_that_cannot_be_read_are_dropped_only_where_declared(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lab.data.jsonl.read_rows.__defaults__", (2000, None))
    path = tmp_path / name
    content = b"\xef\xbb\xbf" + b"\n".join(BROKEN) + b"\n"
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    found = load_pairs(path, "pairs", drop=["unreadable"])
    assert [pair.prompt.text for pair in found.pairs] == ["first", "last"]
    assert found.faults["unreadable"].rows == (2, 3, 4, 5, 6, 7, 8, 10, 11)
    assert found.rows == 11  # the blank line is none
    for row in filter(None, BROKEN[1:-1]):
        content = BROKEN[0] + b"\n" + row
        path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
        with pytest.raises(JsonlError, match=rf"{name}:2: "):
            load_pairs(path, "pairs", drop=["identical", "duplicate", "oversized"])


def test_utf_16_is_no_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps(PAIR).encode("utf-16"))
    with pytest.raises(JsonlError, match=r"a\.jsonl:1: not UTF-8 \(byte 1: 0xff\)"):
        load_pairs(path, "pairs")


# ---------------------------------------------------------------- the stage, streamed


def perform(stage: Any, config: Mapping[str, Any], resources: Mapping[str, Any], out: Path) -> dict[str, Any]:
    out.mkdir()
    context = Context(key="k", seed_root="s", scratch=out / "scratch", resources=resources)
    stage.run(config, {}, out, context)
    assert list((out / "scratch").glob("*")) == [] or stage is data
    card: dict[str, Any] = json.loads((out / "card.json").read_text())
    return card


@settings(max_examples=12)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 3)), min_size=12, max_size=60))
def test_the_stream_writes_what_a_list_would(tmp_path_factory: pytest.TempPathFactory, numbers: Any) -> None:
    """The oracle holds all pairs in memory and sorts them; prompts repeat, so ranks tie."""
    folder = tmp_path_factory.mktemp("stream")
    rows = [{"prompt": f"Q{a}", "chosen": f"good {b}", "rejected": f"bad {c}"} for a, b, c in numbers]
    write_rows(folder / "rows.jsonl", rows)
    sides = split_pairs(load_pairs(folder / "rows.jsonl", "pairs").pairs, 0.5, 3)
    config = PairsFileConfig("file", str(folder / "rows.jsonl"), "pairs", held_out=0.5, drop=(), seed=3)
    if not all(sides):
        with pytest.raises(ValueError, match=r"preferences\.held_out: 0\.5 leaves no (training|held-out) pair"):
            plan_pairs(config)
        return
    planned = plan_pairs(config)
    card = perform(pairs_file, planned.config, planned.resources, folder / "out")
    for name, side in zip(("pairs", "held_out"), sides, strict=True):
        write_records(folder / "oracle.jsonl", side)
        assert (folder / "out" / f"{name}.jsonl").read_bytes() == (folder / "oracle.jsonl").read_bytes()
    assert planned.counts == {"training": len(sides[0]), "held_out": len(sides[1])}
    assert card["training"]["prompts"] == len({pair.prompt.id for pair in sides[0]})


def test_what_a_plan_of_pairs_is(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [{**PAIR, "prompt": f"Q{n}"} for n in range(30)])
    plain = PairsFileConfig("file", str(path), "pairs")
    planned = plan_pairs(plain)
    # What older steps knew, and nothing else, so that they are found again.
    assert planned.config == {
        "format": "pairs", "held_out": 0.15, "limit": 0, "max_characters": 4000, "seed": 0, "digest": file_digest(path),
        "drop": ["identical", "duplicate", "oversized"],
    }  # fmt: skip
    assert planned.resources["path"] == str(path.resolve())
    fewer = plan_pairs(PairsFileConfig("file", str(path), "pairs", rows=20, limit=5))
    assert fewer.config["rows"] == 20
    assert fewer.counts["training"] == 5
    card = perform(pairs_file, fewer.config, fewer.resources, tmp_path / "out")
    assert card["rows"] == 20
    assert card["beyond_limit"] == 20 - 5 - card["held_out"]["pairs"]


def test_strengths_reach_the_artifact_and_faults_the_card(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{**FINE, "instruction": f"Q{n}"} for n in range(12)]
    write_rows(path, [*rows, {"instruction": "broken"}])
    planned = plan_pairs(
        PairsFileConfig("file", str(path), "ultrafeedback", 0.3, drop=("unrated", "unreadable"), weights=WEIGHTS)
    )
    card = perform(pairs_file, planned.config, planned.resources, tmp_path / "out")
    pairs = [pair for name in ("pairs", "held_out") for pair in read_pairs(tmp_path / "out" / f"{name}.jsonl")]
    assert {(pair.strength, pair.annotator, pair.chosen) for pair in pairs} == {(2.25, "ultrafeedback", "best")}
    assert card["faults"]["unrated"] == {"count": 12, "rows": list(range(1, 13)), "policy": "drop"}
    assert card["faults"]["unreadable"] == {"count": 1, "rows": [13], "policy": "drop"}
    assert card["faults"]["tied"] == {"count": 0, "rows": [], "policy": "refuse"}


# ---------------------------------------------------------------- prompts


def prompts_config(path: Path, **values: Any) -> JsonlData:
    counts = CountsConfig(preference=1, rl=1, evaluation=1, tuning=1)
    return JsonlData(**{"kind": "jsonl", "path": str(path), "question": "problem", "answer": "solution",
                        "verifier": "math", "domain": "math", "sft": 2, "counts": counts, **values})  # fmt: skip


def test_the_boxed_answer_of_a_solution_is_the_gold(tmp_path: Path) -> None:
    path = tmp_path / "math.jsonl"
    solution = r"We have $x = 2y$, so \boxed{1} is tempting. Hence $x = \boxed{\frac{3}{4}}$."
    rows = [{"problem": f"Q{n}", "level": "Level 5", "solution": solution} for n in range(6)]
    write_rows(path, rows)
    config = prompts_config(path)
    planned = plan_prompts(config)
    assert planned.counts == {"rows": 6}
    perform(data, planned.config, planned.resources, tmp_path / "out")
    (shown, _) = read_demonstrations(tmp_path / "out" / "sft.jsonl")
    assert shown.prompt.gold == {"verifier": "math", "answer": r"\frac{3}{4}"}
    assert shown.completion == solution
    # A column of short answers beside the worked ones.
    write_rows(path, [{**row, "answer": "28%"} for row in rows])
    other = load(path, question="problem", answer="answer", verifier="math", demonstration="solution")
    assert (other.rows[0].prompt.gold["answer"], other.rows[0].completion) == ("28%", solution)


def test_conversations_as_questions(tmp_path: Path) -> None:
    def talk(*texts: str) -> list[dict[str, str]]:
        return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]

    path = tmp_path / "chat.jsonl"
    write_rows(path, [{"messages": talk("Add 1 and 1", "2", "Add 2", "4 it is\n#### 4")}])
    (row,) = load(path, question="messages", answer="messages").rows
    assert row.prompt.text == "Add 1 and 1\n\nAssistant: 2\n\nHuman: Add 2"
    assert (row.completion, row.prompt.gold["answer"]) == ("4 it is\n#### 4", "4")
    write_rows(path, [{"prompt": talk("Add 1 and 1"), "answer": 2}])
    (row,) = load(path, question="prompt", answer="answer").rows
    assert (row.prompt.text, row.completion, row.prompt.gold["answer"]) == ("Add 1 and 1", "2", "2")
    write_rows(path, [{"messages": talk("Add 1 and 1")}])
    with pytest.raises(JsonlError, match=r"chat\.jsonl:1: key 'messages': the assistant does not speak last"):
        load(path, question="messages", answer="messages")
    write_rows(path, [{"messages": talk("Q")[:0]}])
    with pytest.raises(JsonlError, match=r"chat\.jsonl:1: key 'messages': expected a text or a list of messages"):
        load(path, question="messages", answer="messages")


def test_unreadable_questions_are_counted_where_declared(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    good = [{"question": f"Q{n}", "answer": f"#### {n}"} for n in range(6)]
    write_rows(path, [*good, {"question": "Q7", "answer": "none"}, {"question": "Q8"}])
    config = prompts_config(path, question="question", answer="answer", verifier="gsm8k")
    with pytest.raises(JsonlError, match=r"q\.jsonl:7: key 'answer': no number"):
        plan_prompts(config)
    planned = plan_prompts(prompts_config(path, question="question", answer="answer", verifier="gsm8k",
                                          drop=("unreadable",)))  # fmt: skip
    card = perform(data, planned.config, planned.resources, tmp_path / "out")
    assert card["unreadable"] == {"count": 2, "rows": [7, 8]}
    assert card["rows"] == 6
    write_rows(path, [{"question": "Q8"}])
    with pytest.raises(JsonlError, match=r"q\.jsonl: none of the 1 rows is left \(1 unreadable\)"):
        load(path, drop=("unreadable",))


def test_rows_for_sft_need_demonstrations(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    write_rows(path, [{"question": f"Q{n}", "answer": n, "shown": ""} for n in range(6)])
    config = prompts_config(path, question="question", answer="answer", verifier="gsm8k", demonstration="shown")
    with pytest.raises(ValueError, match=r"2 of the 2 rows set apart for SFT \(data\.sft\) have no demonstration"):
        plan_prompts(config)


# ---------------------------------------------------------------- real files, where they are


@pytest.mark.data
def test_real_pairs_are_streamed_into_an_artifact(tmp_path: Path, data_folder: Path) -> None:
    transcripts = data_folder / "hh-rlhf" / "harmless-base-test.jsonl.gz"
    planned = plan_pairs(
        PairsFileConfig(
            "file",
            str(transcripts),
            "hh",
            drop=("identical", "duplicate", "oversized", "diverging"),
            max_characters=0,
        )
    )
    card = perform(pairs_file, planned.config, planned.resources, tmp_path / "hh")
    assert card["rows"] == 2312
    assert card["faults"]["diverging"]["count"] == 5
    assert card["training"]["pairs"] + card["held_out"]["pairs"] == 2307
    made = data_folder / "raschka-pref" / "instruction-data-with-preference.json"
    planned = plan_pairs(PairsFileConfig("file", str(made), "instruction"))
    assert sum(planned.counts.values()) == 1094  # six rows say the same of both sides


@pytest.mark.data
def test_real_prompts_reach_the_splits(tmp_path: Path, data_folder: Path) -> None:
    columns = {"question": "question", "answer": "answer", "verifier": "gsm8k", "rows": 300}
    planned = plan_prompts(prompts_config(data_folder / "gsm8k" / "train.jsonl", **columns))
    card = perform(data, planned.config, planned.resources, tmp_path / "gsm8k")
    assert card["rows"] + card["duplicates_dropped"] == 300


@pytest.mark.data
def test_real_instructions_with_their_checkers(data_folder: Path) -> None:
    pytest.importorskip("if_verifiable")
    found = load(
        Origin(str(data_folder / "ifeval" / "input_data.jsonl"), rows=40),
        question="prompt", answer="*", verifier="ifeval", domain="instructions",
    )  # fmt: skip
    assert len(found.rows) == 40
    assert found.rows[0].prompt.gold["instruction_id_list"][0] == "punctuation:no_comma"
    assert found.rows[0].completion == ""

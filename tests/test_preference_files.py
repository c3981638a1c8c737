"""Preference pairs of other people's making: what is read, what is refused by name, what is dropped and counted."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.data.chat import opening
from lab.data.jsonl import JsonlError, read_pairs
from lab.data.origin import file_digest
from lab.data.preference_files import FORMATS, LoadedPairs, load_pairs, split_pairs
from lab.data.sources import normalised_id
from lab.records import Pair, Prompt, derive_seed
from lab.stages import pairs_file
from lab.store import Context, StageResult

DROP = ("identical", "duplicate", "oversized", "diverging")
DATA = Path(os.environ.get("ALIGNMENT_LAB_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))
Row = Mapping[str, Any]


def write(path: Path, rows: Sequence[Row]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text, encoding="utf-8")
    return path


def load(tmp_path: Path, rows: Sequence[Row], format: str = "pairs", **settings: Any) -> LoadedPairs:
    return load_pairs(write(tmp_path / "pairs.jsonl", rows), format, **settings)


def texts(loaded: LoadedPairs) -> list[tuple[str, str, str]]:
    return [(pair.prompt.text, pair.chosen, pair.rejected) for pair in loaded.pairs]


def row(prompt: str, chosen: str, rejected: str) -> Row:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


# ---------------------------------------------------------------- formats


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.json"])
def test_plain_columns_from_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / name, [{**row("Q?\r\n", " good\u2028", ""), "score": 3}])
    loaded = load_pairs(path, "pairs")
    assert texts(loaded) == [("Q?\r\n", " good\u2028", "")]  # exactly as stated; an empty completion is one
    assert loaded.pairs[0] == Pair(Prompt("Q?\r\n", "pairs", 0), " good\u2028", "", "pairs")


def test_message_lists(tmp_path: Path) -> None:
    talk = [user("Q1"), assistant("A1"), user("Q2")]
    rendered = "Q1\n\nAssistant: A1\n\nHuman: Q2"
    rules = {"role": "system", "content": "Be brief."}
    loaded = load(
        tmp_path,
        [
            row("Q", [user("Q"), assistant("good")], [user("Q"), assistant("bad")]),  # type: ignore[arg-type]
            row(talk, [assistant("good")], [assistant("bad")]),  # type: ignore[arg-type]
            row(talk, "good", "worse"),  # type: ignore[arg-type]
            {"chosen": [*talk, assistant("better")], "rejected": [*talk, assistant("bad")]},
            row("Q1", [*talk, assistant("best")], [*talk, assistant("bad")]),  # type: ignore[arg-type]
            row([rules, user("Q")], "good", "bad"),  # type: ignore[arg-type]
        ],
    )
    assert texts(loaded) == [
        ("Q", "good", "bad"),
        (rendered, "good", "bad"),
        (rendered, "good", "worse"),
        (rendered, "better", "bad"),
        (rendered, "best", "bad"),
        ("System: Be brief.\n\nHuman: Q", "good", "bad"),
    ]


def test_transcripts(tmp_path: Path) -> None:
    begin = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why?"
    loaded = load(
        tmp_path,
        [
            {"chosen": f"{begin}\n\nAssistant: Because.", "rejected": f"{begin}\n\nAssistant: Begone."},
            {"chosen": "\n\nHuman: Hi\n\nAssistant: Hey", "rejected": "\n\nHuman: Hi\n\nAssistant:"},
        ],
        "hh",
    )
    # "Because." and "Begone." begin alike: the prompt ends at the speaker, not where the texts part.
    assert texts(loaded) == [
        ("Hi\n\nAssistant: Hello.\n\nHuman: Why?", "Because.", "Begone."),
        ("Hi", "Hey", ""),
    ]


def test_instructions_with_and_without_an_input(tmp_path: Path) -> None:
    one = {"instruction": "Spell it.", "input": "freind", "output": "?", "chosen": "friend", "rejected": "fiend"}
    loaded = load(tmp_path, [one, {**one, "input": ""}], "instruction")
    assert texts(loaded) == [("Spell it.\n\nfreind", "friend", "fiend"), ("Spell it.", "friend", "fiend")]


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("format", "bad", "message"),
    [
        ("pairs", {"prompt": "Q", "chosne": "a", "rejected": "b"}, r"key 'chosen' is missing.*did you mean 'chosne'"),
        ("pairs", {"chosen": "a", "rejected": "b"}, "key 'prompt' is missing"),
        ("pairs", row("  ", "a", "b"), "the prompt is empty"),
        ("pairs", {**row("Q", "a", "b"), "chosen": 3}, "key 'chosen': expected a text or a list of messages, got 3"),
        ("pairs", {**row("Q", "a", "b"), "chosen": []}, r"key 'chosen': expected a text.*got \[\]"),
        ("pairs", {**row("Q", "a", "b"), "chosen": [user("Q")]}, "the last message is by 'user', expected 'assistant'"),
        ("pairs", {**row("Q", "a", "b"), "prompt": ["Q"]}, r"key 'prompt\[0\]': expected a message"),
        ("pairs", {**row("Q", "a", "b"), "prompt": [{"role": "tool", "content": ""}]}, r"prompt\[0\]': role: expected"),
        ("pairs", {**row("Q", "a", "b"), "prompt": [{"role": "user"}]}, r"'prompt\[0\]': content: expected a text"),
        (
            "hh",
            {"chosen": "Hello", "rejected": "\n\nAssistant: x"},
            "key 'chosen': no .*Assistant:' in the transcript 'Hello'",
        ),
        ("instruction", {"instruction": "I", "chosen": "a", "rejected": "b"}, "key 'input' is missing"),
        (
            "instruction",
            {"instruction": None, "input": "", "chosen": "a", "rejected": "b"},
            "'instruction': expected a",
        ),
    ],
)
def test_a_bad_row_is_named_by_file_row_and_column(tmp_path: Path, format: str, bad: Row, message: str) -> None:
    good = {
        "pairs": row("Q0", "a", "b"),
        "hh": {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"},
        "instruction": {"instruction": "I", "input": "", "chosen": "a", "rejected": "b"},
    }
    with pytest.raises(JsonlError, match=r"pairs\.jsonl:2: .*" + message):
        load(tmp_path, [good[format], bad], format, drop=DROP)


def test_files_that_hold_no_rows_or_no_text(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"")
    with pytest.raises(JsonlError, match=r"pairs\.jsonl: the file has no rows"):
        load_pairs(path, "pairs")
    path.write_bytes(json.dumps(row("Q", "a", "b")).encode() + b"\n" + b'{"prompt": "caf\xe9"}\n')
    with pytest.raises(JsonlError, match=r"pairs\.jsonl:2: not UTF-8 \(byte 16: 0xe9\)"):
        load_pairs(path, "pairs")
    with pytest.raises(JsonlError, match=r"pair\.jsonl: no such file; did you mean pairs\.jsonl"):
        load_pairs(tmp_path / "pair.jsonl", "pairs")


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"preferences\.format: expected one of {', '.join(FORMATS)}, got 'hhh'"):
        load(tmp_path, [row("Q", "a", "b")], "hhh")
    with pytest.raises(ValueError, match=r"preferences\.drop: expected some of identical, .*, got 'duplicates'"):
        load(tmp_path, [row("Q", "a", "b")], drop=["duplicates"])
    with pytest.raises(ValueError, match=r"preferences\.pairing: expected one of extremes, all, got 'best'"):
        load(tmp_path, [row("Q", "a", "b")], pairing="best")
    with pytest.raises(ValueError, match=r"preferences\.weights: format pairs has no ratings to weigh, got {'a': 1}"):
        load(tmp_path, [row("Q", "a", "b")], weights={"a": 1})
    with pytest.raises(ValueError, match=r"preferences\.weights: format helpsteer needs the weight of at least one"):
        load(tmp_path, [row("Q", "a", "b")], "helpsteer")


# ---------------------------------------------------------------- faults: counted always, dropped where declared

FAULTY = [
    row("Q", "a", "b"),
    row("Q", "c", "c"),  # 2: identical
    row("Q", "a", "b"),  # 3: duplicate of 1
    row("Q", "b", "a"),  # 4: contradicts 1
    row("Q", "a", "b" * 20),  # 5: oversized
    row("Q", "c", "c"),  # 6: identical and a duplicate of 2
    row("Q ", "a", "b"),  # another prompt
]
FOUND = {
    "identical": (2, 6),
    "duplicate": (3, 6),
    "oversized": (5,),
    "diverging": (),
    "contradictory": (4,),
}


@pytest.mark.parametrize(
    ("drop", "kept"),
    [
        ((), (1, 2, 3, 4, 5, 6, 7)),
        (("identical",), (1, 3, 4, 5, 7)),
        (("duplicate",), (1, 2, 4, 5, 7)),
        (("oversized",), (1, 2, 3, 4, 6, 7)),
        (DROP, (1, 4, 7)),
    ],
)
def test_faults_are_counted_always_and_dropped_where_declared(
    tmp_path: Path, drop: Sequence[str], kept: Sequence[int]
) -> None:
    loaded = load(tmp_path, FAULTY, max_characters=20, drop=drop)
    assert {name: fault.rows for name, fault in loaded.faults.items()} == FOUND
    assert {name for name, fault in loaded.faults.items() if fault.dropped} == set(drop)
    assert texts(loaded) == [tuple(FAULTY[line - 1].values()) for line in kept]
    assert loaded.rows == 7


def test_size_counts_the_prompt_and_the_longer_side(tmp_path: Path) -> None:
    rows = [row("1234", "12345", "1"), row("1234", "1", "123456")]
    assert load(tmp_path, rows, max_characters=9).faults["oversized"].rows == (2,)
    assert load(tmp_path, rows, max_characters=10).faults["oversized"].rows == ()
    assert load(tmp_path, rows, max_characters=0).faults["oversized"].rows == ()


@pytest.mark.parametrize(
    ("format", "bad"),
    [
        ("pairs", {"chosen": [user("Q"), assistant("a")], "rejected": [user("Q!"), assistant("b")]}),
        ("pairs", row("P", [user("Q"), assistant("a")], [user("Q"), assistant("b")])),  # type: ignore[arg-type]
        ("hh", {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: P\n\nAssistant: b"}),
        (
            "hh",
            {
                "chosen": "\n\nHuman: Q\n\nAssistant: a\n\nHuman: More\n\nAssistant: b",
                "rejected": "\n\nHuman: Q\n\nAssistant: a!",
            },
        ),
    ],
)
def test_sides_that_answer_different_prompts(tmp_path: Path, format: str, bad: Row) -> None:
    good = {"chosen": "\n\nHuman: Q\n\nAssistant: a", "rejected": "\n\nHuman: Q\n\nAssistant: b"}
    rows = [row("Q", "a", "b") if format == "pairs" else good, bad]
    with pytest.raises(JsonlError, match=r"pairs\.jsonl:2: .*preferences\.drop: diverging"):
        load(tmp_path, rows, format, drop=["identical"])
    loaded = load(tmp_path, rows, format, drop=["diverging"])
    assert loaded.faults["diverging"].rows == (2,)
    assert texts(loaded) == [("Q", "a", "b")]


def test_a_file_of_which_nothing_is_left(tmp_path: Path) -> None:
    rows = [row("Q", "a", "a"), row("Q", "a", "a")]
    with pytest.raises(JsonlError, match=r"none of the 2 rows is left \(2 identical, 1 duplicate\)"):
        load(tmp_path, rows, drop=["identical"])


# ---------------------------------------------------------------- the split


def pairs_of(prompts: Sequence[str]) -> list[Pair]:
    return [Pair(Prompt(prompt, "pairs", 0), f"good {n}", f"bad {n}", "pairs") for n, prompt in enumerate(prompts)]


MANY = pairs_of([f"question {n}" for n in range(2000)])


@given(st.randoms(use_true_random=False), st.integers(0, 5))
def test_where_a_pair_goes_depends_on_its_prompt_alone(random: Any, seed: int) -> None:
    pairs = MANY[:200]
    training, held_out = split_pairs(pairs, 0.3, seed)
    shuffled = random.sample(pairs, len(pairs))
    assert split_pairs(shuffled, 0.3, seed) == (training, held_out)
    assert sorted(map(id, training + held_out)) == sorted(map(id, pairs))
    fewer = split_pairs(shuffled[:120], 0.3, seed)
    kept = {id(pair) for pair in shuffled[:120]}
    assert fewer == tuple([pair for pair in side if id(pair) in kept] for side in (training, held_out))


def test_the_share_and_the_seed() -> None:
    counts = [len(split_pairs(MANY, share, 0)[1]) for share in (0.1, 0.3)]
    # 2000 draws: standard deviations 13.4 and 20.5, so four of them.
    assert counts[0] == pytest.approx(200, abs=54)
    assert counts[1] == pytest.approx(600, abs=82)
    chosen = [{pair.prompt.id for pair in split_pairs(MANY, 0.1, seed)[1]} for seed in (0, 1)]
    assert len(chosen[0] & chosen[1]) < 60  # 20 expected of independent draws
    for share in (0.0, 1.0, -0.1):
        with pytest.raises(ValueError, match=r"preferences\.held_out: expected a share between 0 and 1"):
            split_pairs(MANY, share, 0)


def test_one_conversation_is_on_one_side() -> None:
    """However it goes on, and however it is spelt: seen in training, its opening would give the answer away."""
    prompts = []
    for n in range(100):
        prompts += [f"Why {n}?", f"why  {n}? ", f"Why {n}?\n\nAssistant: So.\n\nHuman: But?"]
    sides = [
        {normalised_id(opening(pair.prompt.text)) for pair in side} for side in split_pairs(pairs_of(prompts), 0.3, 0)
    ]
    assert sides[0] & sides[1] == set()
    assert len(sides[0] | sides[1]) == 100
    assert min(map(len, sides)) > 10


# ---------------------------------------------------------------- the stage

SETTINGS = {"format": "pairs", "held_out": 0.25, "limit": 0, "seed": 0, "max_characters": 0, "drop": list(DROP)}


def perform(path: Path, out: Path, **changes: Any) -> tuple[dict[str, Any], StageResult]:
    out.mkdir()
    context = Context(key="k", seed_root="s", scratch=out / "scratch", resources={"path": str(path)})
    settings = {**SETTINGS, "digest": file_digest(path), **changes}
    result = pairs_file.run(settings, {}, out, context)
    return json.loads((out / "card.json").read_text(encoding="utf-8")), result


def test_the_stage_writes_a_pool_that_a_reward_model_reads(tmp_path: Path) -> None:
    rows = [row(f"Q{n}", "long answer", "short") for n in range(30)] + [row(f"R{n}", "yes", "nope") for n in range(10)]
    rows += [row("S", "same", "same"), row("T", "1234", "abcd")]
    path = write(tmp_path / "pairs.jsonl", rows)
    card, result = perform(path, tmp_path / "out")
    training, held_out = (read_pairs(tmp_path / "out" / f"{name}.jsonl") for name in ("pairs", "held_out"))
    everything = {(pair.prompt.text, pair.chosen, pair.rejected) for pair in training + held_out}
    assert everything == {tuple(one.values()) for one in rows if one["prompt"] != "S"}
    assert not {pair.prompt.id for pair in training} & {pair.prompt.id for pair in held_out}

    assert card["faults"]["identical"] == {"count": 1, "rows": [41], "policy": "drop"}
    assert card["rows"] == 42
    for name, side in (("training", training), ("held_out", held_out)):
        wins = sum(pair.chosen == "long answer" for pair in side)
        ties = sum(pair.chosen == "1234" for pair in side)
        assert card[name]["longer_wins"] == pytest.approx(wins / len(side))  # a tie is a miss
        assert card[name]["equal_lengths"] == ties
        assert card[name]["pairs"] == len(side)
    assert result.ledger.preference_labels == len(training) == result.metrics["pairs"]

    reference = read_pairs(tmp_path / "out" / "reference.jsonl")
    assert all(pair.chosen == pair.rejected for pair in reference)
    expected = {(pair.prompt.text, text) for pair in training for text in (pair.chosen, pair.rejected)}
    assert {(pair.prompt.text, pair.chosen) for pair in reference} == expected
    assert len(reference) == len(expected)


def test_lengths_on_the_card_by_hand(tmp_path: Path) -> None:
    pairs = [Pair(Prompt("ab", "pairs", 0), "x" * n, "y" * 4, "pairs") for n in (1, 5, 9)]
    lengths = pairs_file.Lengths()
    for pair in pairs:
        lengths.add(pair)
    assert lengths.card() == {
        "pairs": 3,
        "prompts": 1,
        "longer_wins": pytest.approx(2 / 3),
        "equal_lengths": 0,
        "characters": {
            "prompt": {"minimum": 2, "median": 2, "mean": 2.0, "maximum": 2},
            "chosen": {"minimum": 1, "median": 5, "mean": 5.0, "maximum": 9},
            "rejected": {"minimum": 4, "median": 4, "mean": 4.0, "maximum": 4},
        },
    }


def test_a_limit_takes_the_same_pairs_and_leaves_the_held_out_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [row(f"Q{n}", "a", "b") for n in range(60)])
    found = []
    for limit in (0, 20, 10):
        out = tmp_path / f"out{limit}"
        card, _ = perform(path, out, limit=limit)
        found.append(read_pairs(out / "pairs.jsonl"))
        assert (out / "held_out.jsonl").read_bytes() == (tmp_path / "out0" / "held_out.jsonl").read_bytes()
        assert card["beyond_limit"] == len(found[0]) - len(found[-1])
    assert found[1] == found[0][:20]
    assert found[2] == found[0][:10]


def reference_of(pairs: Sequence[Pair]) -> list[Pair]:
    sample = pairs_file.Reference(seed=0)
    for pair in pairs:
        sample.add(pair)
    return sample.pairs()


def test_the_reference_is_capped_and_repeatable() -> None:
    reference = reference_of(MANY[:500])
    assert len(reference) == pairs_file.REFERENCE
    assert reference == reference_of([*MANY[:500][::-1], *MANY[:100]])  # neither the order nor a repeat matters
    # The oracle: the smallest hashes of all texts, each once.
    texts = {(pair.prompt.text, text) for pair in MANY[:500] for text in (pair.chosen, pair.rejected)}
    smallest = sorted(texts, key=lambda item: (derive_seed("reference", 0, *item), item))[:256]
    assert [(pair.prompt.text, pair.chosen) for pair in reference] == smallest
    good = sum(pair.chosen.startswith("good") for pair in reference)
    assert good == pytest.approx(128, abs=32)  # four standard deviations of 256 fair draws


def test_another_file_than_planned_and_an_empty_side_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [row("Q", "a", "b")])
    with pytest.raises(ValueError, match=r"pairs\.jsonl: the file has changed since the plan was made"):
        perform(path, tmp_path / "a", digest="0" * 64)
    with pytest.raises(ValueError, match=r"preferences\.held_out: 0\.25 leaves no (training|held-out) pair of 1"):
        perform(path, tmp_path / "b")
    nowhere = {"path": str(tmp_path / "nowhere.jsonl")}
    context = Context(key="k", seed_root="s", scratch=tmp_path / "scratch", resources=nowhere)
    with pytest.raises(JsonlError, match=r"nowhere\.jsonl: no such file"):
        pairs_file.run(SETTINGS, {}, tmp_path, context)


# ---------------------------------------------------------------- real files, where they are


def real(*parts: str) -> Path:
    path = DATA.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"no third-party data at {path} (set ALIGNMENT_LAB_DATA)")
    return path


@pytest.mark.data
def test_human_transcripts_of_hh_rlhf() -> None:
    path = real("hh-rlhf", "harmless-base-test.jsonl.gz")
    with pytest.raises(JsonlError, match=r"harmless-base-test\.jsonl\.gz:1255: .*part before their last turn"):
        load_pairs(path, "hh")
    loaded = load_pairs(path, "hh", drop=DROP)
    assert (loaded.rows, len(loaded.pairs)) == (2312, 2307)
    assert len(loaded.faults["diverging"].rows) == 5
    # Nothing is lost or invented: prompt and completion are found in each transcript, in this order.
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    kept = [one for line, one in enumerate(rows, 1) if line not in loaded.faults["diverging"].rows]
    squeeze = re.compile(r"\s+")
    for pair, one in zip(loaded.pairs, kept, strict=True):
        for key, completion in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            rebuilt = f"\n\nHuman: {pair.prompt.text}\n\nAssistant: {completion}"
            assert squeeze.sub(" ", rebuilt).strip() == squeeze.sub(" ", one[key]).strip()


@pytest.mark.data
def test_pairs_that_a_model_made(tmp_path: Path) -> None:
    path = real("raschka-pref", "instruction-data-with-preference.json")
    card, _ = perform(path, tmp_path / "out", format="instruction")
    assert card["rows"] == 1100
    assert card["faults"]["identical"]["count"] == 6
    assert card["training"]["pairs"] + card["held_out"]["pairs"] == 1094

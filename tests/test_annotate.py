"""Where people state preferences, without page and file: items, the session, agreement, and the pairs made of it."""

from __future__ import annotations

import json
import socket
from collections import Counter
from collections.abc import Mapping
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab.annotate.__main__ import main
from lab.annotate.agreement import agreements, cohen_kappa
from lab.annotate.items import Item, load_items
from lab.annotate.look import hidden, shown
from lab.annotate.session import PAUSE, RefusedError, Session
from lab.data.annotations import ANSWERS, FATES, Annotation, parse_annotation, settled_rows, standing
from lab.data.jsonl import JsonlError, read_pairs, write_records
from lab.data.preference_files import load_pairs
from lab.data.sources import file_digest
from lab.records import Pair, Prompt
from lab.stages import pairs_file
from lab.store import Context
from tests.synthetic_annotations import ITEMS, NOON, Sitting, answer, parsed, undo, write

Row = Mapping[str, Any]


# ---------------------------------------------------------------- items


def test_items_of_every_shape(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "P2"}]
    rows = [
        {"prompt": "P0", "completion_a": "a", "completion_b": "b", "anything": 1},
        {"prompt": "P1", "chosen": "c", "rejected": "d"},
        {
            "chosen": [*chat, {"role": "assistant", "content": "e"}],
            "rejected": [*chat, {"role": "assistant", "content": "f"}],
        },
        {"prompt": "P0", "completion_a": "b", "completion_b": "a"},  # 4: a repeat of 1
        {"prompt": "P4", "chosen": "same", "rejected": "same"},  # 5: nothing to choose
    ]
    found = load_items(write(tmp_path / "items.jsonl", rows))
    texts = [(item.row, item.prompt, item.first, item.second) for item in found.items]
    assert texts == [(1, "P0", "a", "b"), (2, "P1", "c", "d"), (3, "P2", "e", "f")]
    assert (found.repeated, found.identical) == ((4,), (5,))

    write_records(tmp_path / "pairs.jsonl", [Pair(Prompt("P", "math", 1, {"answer": "3"}), "good", "bad", "x")])
    for path in (tmp_path, tmp_path / "pairs.jsonl"):  # an artifact is a folder
        assert load_items(path).items == (Item(1, "P", "good", "bad"),)

    begin = "\n\nHuman: Hi\n\nAssistant:"
    transcripts = write(tmp_path / "hh.jsonl", [{"chosen": f"{begin} Hello", "rejected": f"{begin} No"}])
    assert load_items(transcripts, "hh").items == (Item(1, "Hi", "Hello", "No"),)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"completion_a": "a", "completion_b": "b"}, "key 'prompt' is missing"),
        ({"prompt": "P", "completion_a": "a"}, "key 'completion_b' is missing"),
        ({"prompt": "P", "completion_a": "a", "completion_b": 3}, "key 'completion_b': expected a string, got 3"),
        ({"prompt": "P", "chosen": "a"}, "key 'rejected' is missing"),
        ({"prompt": "P", "better": "a"}, "keys 'completion_a' and 'completion_b', or 'chosen' and 'rejected'"),
        ({"prompt": " \n", "completion_a": "a", "completion_b": "b"}, "key 'prompt': the prompt is empty"),
        ({"prompt": {"text": "P"}, "chosen": "a", "rejected": "b"}, "key 'level' is missing"),
        ({"prompt": ["P"], "completion_a": "a", "completion_b": "b"}, "key 'prompt': expected a string"),
    ],
)
def test_a_bad_item_is_named_before_anything_starts(
    tmp_path: Path, bad: Row, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "items.jsonl", [{"prompt": "P", "chosen": "a", "rejected": "b"}, bad])
    out = tmp_path / "out.jsonl"
    assert main([str(path), "--annotator", "anna", "--out", str(out)]) == 1
    assert f"items.jsonl:2: {message}" in capsys.readouterr().err
    assert not out.exists()


def test_the_order_is_a_fair_coin_that_remembers() -> None:
    items = [Item(n, f"Q{n}", f"a{n}", f"b{n}") for n in range(2000)]
    orders = {name: [item.order(name) for item in items] for name in ("anna", "ben")}
    for found in orders.values():
        assert found.count("ab") == pytest.approx(1000, abs=90)  # four standard deviations
    same = sum(a == b for a, b in zip(*orders.values(), strict=True))
    assert same == pytest.approx(1000, abs=90)  # each annotator has a coin of their own
    for item in items[:50]:
        assert item.sides("anna") == (
            (item.first, item.second) if item.order("anna") == "ab" else (item.second, item.first)
        )
        # Which column held a text decides nothing, and names no other item.
        turned = Item(item.row, item.prompt, item.second, item.first)
        assert (turned.id, turned.sides("anna")) == (item.id, item.sides("anna"))
    assert Item(1, "Q", "a", "bc").id != Item(1, "Q", "ab", "c").id


# ---------------------------------------------------------------- the session


def test_a_sitting_from_first_to_last(tmp_path: Path) -> None:
    sitting = Sitting(tmp_path / "a.jsonl")
    assert sitting.session.progress.answered == 0
    assert sitting.session.last is None
    for number, name in enumerate(("left", "tie", "both_bad", "right"), 1):
        assert sitting.asked == number
        sitting.press(name)
    assert sitting.asked is None
    assert sitting.session.progress.counts == {"left": 1, "right": 1, "tie": 1, "both_bad": 1}
    with pytest.raises(RefusedError, match="Every pair is answered"):
        sitting.press("left")

    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for row, item, name in zip(rows, ITEMS, ("left", "tie", "both_bad", "right"), strict=True):
        assert (row["answer"], row["annotator"], row["item"], row["source_row"]) == (name, "anna", item.id, item.row)
        assert (row["prompt"], row["left"], row["right"]) == (item.prompt, *item.sides("anna"))
        assert row["order"] == item.order("anna")
    assert rows[0]["time"] == "2026-03-01T12:00:01.000+00:00"


def test_undo_goes_back_step_by_step_and_the_file_only_grows(tmp_path: Path) -> None:
    sitting = Sitting(tmp_path / "a.jsonl")
    with pytest.raises(RefusedError, match="nothing to undo"):
        sitting.press("u")
    sizes = []
    for name in ("left", "right", "tie", "u", "u"):
        sitting.press(name)
        sizes.append((tmp_path / "a.jsonl").stat().st_size)
    assert sizes == sorted(set(sizes))
    assert sitting.asked == 2
    assert sitting.session.progress.answered == 1
    sitting.press("left")
    assert sitting.asked == 3  # taken back as well
    sitting.press("both_bad")
    assert sitting.session.progress.counts == {"left": 2, "right": 0, "tie": 0, "both_bad": 1}
    stands = standing(sitting.journal.rows)
    assert [stands[item.id, "anna"].answer for item in ITEMS[:3]] == ["left", "left", "both_bad"]


def test_an_undone_item_is_asked_again_though_earlier_ones_wait(tmp_path: Path) -> None:
    sitting = Sitting(tmp_path / "a.jsonl", items=ITEMS[2:])
    sitting.press("left")
    sitting.journal.close()
    more = Sitting(tmp_path / "a.jsonl", items=ITEMS)  # the file of items has grown at its beginning
    assert more.asked == 1
    more.press("u")
    assert more.asked == 3


def test_presses_that_do_not_count(tmp_path: Path) -> None:
    sitting = Sitting(tmp_path / "a.jsonl")
    first = sitting.session.token
    sitting.press("left")
    second = sitting.session.token
    with pytest.raises(RefusedError, match="answered already"):  # the same press, twice
        sitting.press("left", token=first)
    with pytest.raises(RefusedError, match="moved on"):
        sitting.press("u", token=first)
    assert (sitting.session.token, sitting.session.progress.answered) == (second, 1)
    sitting.now = NOON + timedelta(seconds=10)
    sitting.press("left")
    with pytest.raises(RefusedError, match="within a blink"):  # a key that bounces on the new pair
        sitting.press("right", wait=PAUSE - 0.01)
    sitting.press("u", wait=0.0)
    sitting.press("right", wait=PAUSE + 0.01)
    assert sitting.session.progress.counts == {"left": 1, "right": 1, "tie": 0, "both_bad": 0}
    with pytest.raises(ValueError, match="expected one of left, right, tie, both_bad, got 'best'"):
        sitting.session.answer(sitting.session.token, "best", sitting.now)
    # A token of before an undo is stale though the same pair is asked.
    sitting.press("u")
    again = sitting.session.token
    assert again != second
    assert again.split("-")[1] == second.split("-")[1]


@given(st.lists(st.sampled_from(["u", *ANSWERS]), max_size=12))
def test_a_session_from_the_rows_is_the_session_that_wrote_them(presses: list[str]) -> None:
    rows: list[Annotation] = []
    live = Session(ITEMS, "anna")
    now, stack = NOON, []  # by hand: a stack of answers
    for name in presses:
        now += timedelta(seconds=1)
        try:
            row = live.undo(live.token, now) if name == "u" else live.answer(live.token, name, now)
        except RefusedError:
            assert (name == "u" and not stack) or (name != "u" and len(stack) == len(ITEMS))
            continue
        if name == "u":
            stack.pop()
        else:
            stack.append(name)
        rows.append(parse_annotation(Path("x"), len(rows) + 1, row))
        live.record(rows[-1])
        assert live.current == (ITEMS[len(stack)] if len(stack) < len(ITEMS) else None)
    again = Session(ITEMS, "anna", rows)
    assert (again.token, again.current, again.last) == (live.token, live.current, live.last)
    assert again.progress == live.progress
    assert live.progress.counts == {name: stack.count(name) for name in ANSWERS}
    assert Session(ITEMS, "ben", rows).progress.answered == 0


# ---------------------------------------------------------------- agreement


def test_kappa_by_hand() -> None:
    # Both yes 20, only the first 5, only the second 10, both no 15: p_o = 0.7, p_e = 0.5 * 0.6 + 0.5 * 0.4 = 0.5.
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(["a", "b"], ["b", "a"]) == pytest.approx(-1.0)
    assert cohen_kappa(["a", "b", "c"], ["a", "b", "c"]) == pytest.approx(1.0)
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert cohen_kappa(["a", "a"], ["a", "b"]) == pytest.approx(0.0)
    for bad in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match="two equally long lists"):
            cohen_kappa(*bad)


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=30))
def test_kappa_against_fractions(pairs: list[tuple[str, str]]) -> None:
    n = len(pairs)
    alike = Fraction(sum(a == b for a, b in pairs), n)
    one, two = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    chance = sum(Fraction(one[name], n) * Fraction(two[name], n) for name in "abcd")
    expected = None if chance == 1 else pytest.approx(float((alike - chance) / (1 - chance)))
    assert cohen_kappa([a for a, _ in pairs], [b for _, b in pairs]) == expected


def test_agreement_is_about_texts_and_about_answers_that_stand() -> None:
    rows = [
        *(answer(n, "good") for n in range(6)),
        answer(6, "tie"),
        answer(7, "both_bad"),
        answer(8, "good"),  # nobody else
        *(answer(n, "good", "ben", swap=True) for n in range(4)),
        answer(4, "good", "ben"),
        answer(4, "bad", "ben"),  # the last word counts
        answer(5, "bad", "ben"),
        undo(5, "ben"),  # and this one has none
        answer(6, "tie", "ben"),
        answer(7, "tie", "ben"),
        answer(0, "bad", "cleo"),
    ]
    ben, cleo = agreements("anna", parsed(rows))
    assert (ben.other, ben.items, ben.same) == ("ben", 7, pytest.approx(5 / 7))
    # anna: 5 good, 1 tie, 1 both bad; ben: 4 good, 1 bad, 2 ties. p_e = (5 * 4 + 1 * 2) / 49
    assert ben.kappa == pytest.approx((5 / 7 - 22 / 49) / (1 - 22 / 49))
    assert ben.kappa_low < ben.kappa < ben.kappa_high
    # Wilson: centre (5 + z^2/2) / (7 + z^2), z = 1.95996
    assert (ben.same_low, ben.same_high) == (pytest.approx(0.35893, abs=1e-4), pytest.approx(0.91777, abs=1e-4))
    assert (cleo.other, cleo.items, cleo.same, cleo.kappa) == ("cleo", 1, 0.0, pytest.approx(0.0))
    assert cleo.same_high > 0.5  # one item proves little
    assert [found.other for found in agreements("ben", parsed(rows))] == ["anna", "cleo"]
    assert agreements("dora", parsed(rows)) == []


def test_the_interval_of_kappa_has_the_width_of_its_standard_error() -> None:
    """sqrt(p_o (1 - p_o) / n) / (1 - p_e), Cohen 1960, for 400 items of the table worked by hand above."""
    table = [("good", "good")] * 160 + [("good", "bad")] * 40 + [("bad", "good")] * 80 + [("bad", "bad")] * 120
    rows = [answer(n, one) for n, (one, _) in enumerate(table)]
    rows += [answer(n, two, "ben") for n, (_, two) in enumerate(table)]
    (found,) = agreements("anna", parsed(rows))
    assert found.kappa == pytest.approx(0.4)
    half = 1.96 * (0.7 * 0.3 / 400) ** 0.5 / 0.5
    assert (found.kappa_high - found.kappa_low) / 2 == pytest.approx(half, rel=0.12)
    assert (found.kappa_high + found.kappa_low) / 2 == pytest.approx(0.4, abs=0.02)


# ---------------------------------------------------------------- the pairs


def fates(path: Path) -> list[str]:
    return [row.get("fate") or f"{row['chosen']} > {row['rejected']}" for _, row in settled_rows(path)]


def test_one_annotators_answers_as_pairs(tmp_path: Path) -> None:
    rows = [
        answer(0, "good"),
        answer(1, "good", swap=True),
        answer(2, "good"),  # 3: answered anew
        answer(3, "tie"),
        answer(4, "both_bad"),
        answer(5, "good"),  # 6: taken back
        undo(5),
        answer(2, "bad"),
    ]
    path = write(tmp_path / "a.jsonl", rows)
    pairs = ["Good 0 > Bad 0", "Good 1 > Bad 1", "Bad 2 > Good 2"]
    expected = [*pairs[:2], "superseded", "tie", "both_bad", "superseded", "superseded", pairs[2]]
    assert fates(path) == expected
    loaded = load_pairs(path, "annotations")
    assert [f"{pair.chosen} > {pair.rejected}" for pair in loaded.pairs] == pairs
    assert [pair.prompt.text for pair in loaded.pairs] == ["Q0", "Q1", "Q2"]
    counted = {name: loaded.faults[name].rows for name in FATES}
    none = dict.fromkeys(("agreeing", "outvoted", "split"), ())
    assert counted == {"superseded": (3, 6, 7), "tie": (4,), "both_bad": (5,), **none}
    assert loaded.rows == 8


def test_several_annotators_vote(tmp_path: Path) -> None:
    rows = [answer(item, word, name)
            for name, words in {"anna": "good good good tie good", "ben": "bad good bad tie tie",
                                "cleo": "bad good tie good both_bad"}.items()
            for item, word in enumerate(words.split())]  # fmt: skip
    path = write(tmp_path / "a.jsonl", rows)
    assert fates(path) == [
        *("outvoted", "Good 1 > Bad 1", "split", "tie", "split"),
        *("Bad 0 > Good 0", "agreeing", "split", "tie", "split"),
        *("agreeing", "agreeing", "split", "outvoted", "split"),
    ]
    loaded = load_pairs(path, "annotations", drop=["identical", "duplicate", "oversized"])
    assert [(pair.chosen, pair.rejected) for pair in loaded.pairs] == [("Good 1", "Bad 1"), ("Bad 0", "Good 0")]
    assert loaded.faults["split"].rows == (3, 5, 8, 10, 13, 15)
    # Two of two are a majority, one of two is none.
    rows = [answer(0, "good"), answer(0, "good", "ben"), answer(1, "bad"), answer(1, "good", "ben"), answer(2, "bad")]
    two = write(tmp_path / "b.jsonl", [*rows, answer(2, "tie", "ben")])
    assert fates(two) == ["Good 0 > Bad 0", "agreeing", *["split"] * 4]


def test_a_file_in_which_nobody_prefers_anything(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [answer(0, "tie"), answer(1, "both_bad"), answer(2, "tie")])
    with pytest.raises(JsonlError, match=r"none of the 3 rows is left \(2 tie, 1 both_bad\)"):
        load_pairs(path, "annotations")
    torn = tmp_path / "torn.jsonl"
    torn.write_bytes(json.dumps(answer(0, "good")).encode() + b"\n" + b'{"kind": "ans')
    with pytest.raises(JsonlError, match=r"torn\.jsonl:2: "):
        load_pairs(torn, "annotations")


def test_what_was_pressed_is_what_is_trained_on(tmp_path: Path) -> None:
    """Strange texts included: they come back to the character."""
    strange = ["<script>alert(1)</script>", "\u202egnp.exe", "\ud800", "a\x00b\r\nc\u2028", "👩‍👧", "x" * 50_000]
    items = [Item(n, f"Q {text}", text, f"{text}!") for n, text in enumerate(strange)]
    sitting = Sitting(tmp_path / "a.jsonl", items=items)
    for item in items:
        sitting.press("left" if item.sides("anna")[0] == item.first else "right")
    loaded = load_pairs(tmp_path / "a.jsonl", "annotations")
    assert [(pair.prompt.text, pair.chosen, pair.rejected) for pair in loaded.pairs] == [
        (f"Q {text}", text, f"{text}!") for text in strange
    ]


def test_the_stage_accounts_for_every_answer(tmp_path: Path) -> None:
    rows = [answer(n, "good", swap=n % 2 == 0) for n in range(30)] + [answer(30, "tie"), answer(31, "good"), undo(31)]
    path = write(tmp_path / "a.jsonl", [*rows, *(answer(n, "good", "ben") for n in range(5))])
    context = Context(key="k", seed_root="s", scratch=tmp_path / "scratch", resources={"path": str(path)})
    config = {"format": "annotations", "held_out": 0.25, "limit": 0, "seed": 0, "max_characters": 0, "drop": []}
    (tmp_path / "out").mkdir()
    pairs_file.run({**config, "digest": file_digest(path)}, {}, tmp_path / "out", context)
    pairs = read_pairs(tmp_path / "out" / "pairs.jsonl") + read_pairs(tmp_path / "out" / "held_out.jsonl")
    assert {(pair.prompt.text, pair.chosen) for pair in pairs} == {(f"Q{n}", f"Good {n}") for n in range(30)}
    card = json.loads((tmp_path / "out" / "card.json").read_text(encoding="utf-8"))
    counts = {name: fault["count"] for name, fault in card["faults"].items() if fault["count"]}
    assert counts == {"tie": 1, "superseded": 2, "agreeing": 5}
    assert card["rows"] == len(pairs) + sum(counts.values())


# ---------------------------------------------------------------- what is shown, what is refused


def test_texts_fit_to_be_shown() -> None:
    assert shown("a\ud800b\x00 <b>é👩‍👧") == "a\ufffdb\u2400 <b>é👩‍👧"
    shown("\ud83d\ude00 \udfff").encode()  # whatever comes in can be sent
    assert hidden("plain\ttext\r\n 👩‍👧 שלום é") == ""
    assert hidden("\u202ea\u202e") == "U+202E RIGHT-TO-LEFT OVERRIDE (2 times)"
    assert hidden("\x07\ud800") == "U+0007 control character, U+D800 lone surrogate"
    assert hidden("".join(map(chr, range(1, 8)))).endswith(" and 3 more")


def test_requests_that_cannot_be_served(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    items = write(tmp_path / "items.jsonl", [{"prompt": "P", "chosen": "a", "rejected": "b"}])
    own = write(tmp_path / "own.jsonl", [answer(0, "good")])

    def refused(*arguments: str, annotator: str = "anna", out: Path = tmp_path / "new.jsonl") -> str:
        assert main([str(items), "--annotator", annotator, "--out", str(out), *arguments]) == 1
        assert not (tmp_path / "new.jsonl").exists()
        return capsys.readouterr().err

    assert "--annotator: expected a name of letters" in refused(annotator="../x")
    assert "is the file of items" in refused(out=items)
    assert "all its answers are by 'anna'" in refused("--against", str(own))
    assert "the file of this annotator's own answers" in refused("--against", str(own), out=own)
    assert "items.jsonl:1: key 'kind' is missing" in refused("--against", str(items))
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        said = refused("--port", port)
        assert f"--port {port}: cannot listen there" in said
        assert "choose another port" in said
    assert "--port: expected a number from 0 to 65535, got 70000" in refused("--port", "70000")
    same = write(tmp_path / "same.jsonl", [{"prompt": "P", "chosen": "a", "rejected": "a"}])
    assert main([str(same), "--annotator", "anna"]) == 1
    assert "no two completions differ in any of the 1 rows" in capsys.readouterr().err

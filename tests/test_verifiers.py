"""Verifiers: what is read as the answer, what is equal, and that hostile text costs bounded time and runs nothing."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import verifiers
from lab.records import Outcome, Verdict
from lab.verifiers import BrokenVerifierError, Verifier, find_verifier, gsm8k, ifeval, math, verify, verify_many
from lab.verifiers.isolation import Limits, TaskError, Worker, WorkerStoppedError

CASES = Path(os.environ.get("ALIGNMENT_LAB_CASES", Path(__file__).resolve().parents[1].parent / "shared" / "cases"))
DATA = Path(os.environ.get("ALIGNMENT_LAB_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data"))


def cases(name: str) -> list[dict[str, Any]]:
    path = CASES / f"{name}_cases.jsonl"
    if not path.is_file():
        pytest.skip(f"no third-party cases at {path} (set ALIGNMENT_LAB_CASES)")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def probe() -> Iterator[Worker]:
    worker = Worker("probe", Limits(cpu_seconds=0.3, wall_seconds=1.0, memory_bytes=64 << 20))
    yield worker
    worker.close()


@pytest.fixture
def hasty_math(monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """The math verifier with little patience."""
    worker = Worker("math", Limits(cpu_seconds=0.7, wall_seconds=15.0))
    monkeypatch.setattr(math, "WORKER", worker)
    yield worker
    worker.close()


# ---------------------------------------------------------------- gsm8k


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("42", 42),
        ("$1,234.50", Fraction(2469, 2)),
        ("-$5", -5),
        ("$-5", -5),
        ("−5", -5),
        ("10,000.00", 10000),
        (".75", Fraction(3, 4)),
        ("3/4", Fraction(3, 4)),
        ("3 1/2", Fraction(7, 2)),
        ("50%", 50),
        ("5.", 5),
        ("18 miles in 4 weeks", 18),
        ("10 + 5 = 15", 15),
        ("2 million", 2_000_000),
        ("5k", 5000),
        ("3 dozen", 36),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"1\,000", 1000),
        ("**42**", 42),
        ("that Tom has 5 apples", 5),
    ],
)
def test_gsm8k_reads_a_number(text: str, number: Fraction | int) -> None:
    assert gsm8k.read_number(text) == number


@pytest.mark.parametrize(
    "text",
    ["", "ten", "5 and 6", "5 or 6", "1,23", "1.2.3", "5:30", "5-6", "5 * 3", "5**3", "2^10", "5!", "4 4", "11 7/6",
     "1/0", "0/0", "nan", "inf", "1e3", "5²", "４２", "$5 dollars and 50 cents", "9" * 500],
)  # fmt: skip
def test_gsm8k_refuses_what_is_not_one_number(text: str) -> None:
    assert gsm8k.read_number(text) is None


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("so 6*7=<<6*7=42>>42\n#### 42", 42),
        ("#### 42\n\nQuestion: and 2+2?\n#### 4", 42),  # the model went on with a question of its own
        ("7 left\nA: 7\nQ: There are 15 trees.\nA: 15", 7),
        ("#### 1. Finding x\nstuff\n#### 12", 12),  # a Markdown heading is no answer
        ("The answer is 5.\nWait, the answer is 7.", 7),
        ("The answer is 5.\nQ: And 4+5?\nThe answer is 9.", 5),
        ("The answer is 5.<|im_end|>\n<|im_start|>user\nThe answer is 9.", 5),
        (r"Hence \boxed{3} or rather $\boxed{\$18.00}$.", 18),
        ("**Answer:** 42", 42),
        ("She has 12 apples and eats 5.", None),
        ("The answer is", None),
    ],
)
def test_gsm8k_finds_the_final_answer(completion: str, number: int | None) -> None:
    assert gsm8k.extract_answer(completion)[0] == number


def test_gsm8k_last_number_is_an_option() -> None:
    completion = "She has 12 apples and eats 5."
    gold = {"verifier": "gsm8k", "answer": "5"}
    assert verify(completion, gold) == Verdict(Outcome.UNPARSEABLE)
    assert verify(completion, {**gold, "last_number": True}).correct


@given(st.integers(-(10**12), 10**12), st.sampled_from(["#### {}", "A: {}", "The answer is {}.", r"\boxed{{{}}}"]))
def test_gsm8k_accepts_every_way_to_write_the_gold_and_no_neighbour(number: int, form: str) -> None:
    gold = gsm8k.parse_gold(number)
    assert gsm8k.verify(form.format(f"{number:,}"), gold).correct
    assert gsm8k.verify(form.format(f"${number}.00"), gold).correct
    assert gsm8k.verify(form.format(number + 1), gold).outcome is Outcome.INCORRECT


@given(st.text(alphabet=st.characters(exclude_categories=[]), max_size=300))
@settings(max_examples=300)
def test_gsm8k_never_raises(text: str) -> None:
    gsm8k.verify(text, {"verifier": "gsm8k", "answer": "3"})


@pytest.mark.parametrize("raw", ["forty two", "", "#### ", "1/0", None, True, [4], {"answer": "x"}])
def test_gsm8k_gold_that_is_no_number_is_refused_while_loading(raw: Any) -> None:
    with pytest.raises(ValueError, match=r"gold answer|expected a number"):
        gsm8k.parse_gold(raw)


def test_gsm8k_ten_megabytes_are_too_long_at_once() -> None:
    start = time.monotonic()
    for piece in ("9", "#### 3\n", "a ", "A:", "((((", "$$"):
        verdict = verify(piece * (10_000_000 // len(piece)), {"verifier": "gsm8k", "answer": "3"})
        assert verdict == Verdict(Outcome.UNPARSEABLE, "too long")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize("piece", ["9", "#### ", "the answer is ", r"\boxed{", "A: 1\n", "$", "1,", " ", "**", "-"])
def test_gsm8k_stays_fast_up_to_the_cap(piece: str) -> None:
    start = time.process_time()
    verify(piece * (gsm8k.MAX_CHARACTERS // len(piece)), {"verifier": "gsm8k", "answer": "3", "last_number": True})
    assert time.process_time() - start < 2


@pytest.mark.data
def test_gsm8k_agrees_with_every_third_party_case() -> None:
    wrong = [
        row["id"]
        for row in cases("gsm8k")
        if verify(row["prediction"], gsm8k.parse_gold(row["gold"])).correct != row["expected"]
    ]
    assert wrong == []


@pytest.mark.data
def test_gsm8k_reads_every_reference_answer() -> None:
    path = DATA / "gsm8k" / "test.jsonl"
    if not path.is_file():
        pytest.skip(f"no data at {path} (set ALIGNMENT_LAB_DATA)")
    for line in path.read_text(encoding="utf-8").splitlines():
        answer = json.loads(line)["answer"]
        shown = gsm8k.strip_annotations(answer)
        assert "<<" not in shown
        assert gsm8k.verify(shown, gsm8k.parse_gold(answer)).correct


# ---------------------------------------------------------------- math


@pytest.mark.parametrize(
    ("gold", "completion", "right"),
    [
        (r"\frac{1}{2}", r"So it is $\boxed{0.5}$.", True),
        ("1/2", "The answer is 1/2 or 1/3.", False),
        ("5", r"\boxed{5, 6}", False),
        ("5", r"\boxed{4} or \boxed{5}", False),
        ("(x+1)^2", r"\boxed{x^2+2x+1}", True),
        ("x+1", r"\boxed{y+1}", False),
        ("x=2", r"\boxed{y=2}", False),
        ("71/6", "11 5/6", True),
        ("11*7/6", "11 7/6", False),
        ("7/25", "28%", True),
        ("300", r"\boxed{3\%}", False),
        (r"\text{odd}", r"\boxed{odd}", True),
        ("12", "the answer is $12$ because $13$ is not.", True),
        ("13", "the answer is $12$ because $13$ is not.", False),
        ("34", "work mentions 34", False),
        ("4", "<think>it is 4", False),
        # granted by math-verify 0.9.0, and wrong: it subtracts, rounds, and compares empty lists of solutions
        (r"\frac{1}{2004!}", r"\boxed{\frac{1}{2006!}}", False),
        (r"\frac{x}{2004!}", r"\boxed{\frac{x}{2006!}}", False),
        ("0.0000001", r"\boxed{0.0000002}", False),
        ("x^2=-1", "$x^2=-2$", False),
        # undefined is equal to nothing
        ("1/0", r"\boxed{1/0}", False),
        ("0", r"\boxed{0/0}", False),
        (r"\frac{0}{0}", r"\boxed{\frac{0}{0}}", False),
    ],
)
def test_math(gold: str, completion: str, right: bool) -> None:
    verdict = verify(completion, {"verifier": "math", "answer": gold})
    assert verdict.outcome in (Outcome.CORRECT, Outcome.INCORRECT, Outcome.UNPARSEABLE)
    assert verdict.correct is right
    assert verify(completion, {"verifier": "math", "answer": gold}) == verdict


@pytest.mark.parametrize("raw", ["forty two", "", "0/0", r"\frac{1}{0}", r"\frac{", "nan", None, True])
def test_math_gold_without_a_value_is_refused_while_loading(raw: Any) -> None:
    with pytest.raises(ValueError, match=r"gold answer|expected a mathematical answer"):
        math.parse_gold(raw)


def test_math_gold_is_kept_as_it_was_written() -> None:
    assert math.parse_gold(r"\frac{1}{2}") == {"verifier": "math", "answer": r"\frac{1}{2}"}
    assert math.parse_gold({"answer": 3, "note": "n"}) == {"verifier": "math", "answer": "3", "note": "n"}


@pytest.mark.slow
def test_math_bombs_time_out_and_the_next_answer_is_judged(hasty_math: Worker) -> None:
    for bomb in ("9**9**9", r"So it is \boxed{99999999!}.", "(x+y+z+w)^{200}"):
        start = time.process_time()
        assert verify(bomb, {"verifier": "math", "answer": "2"}).outcome is Outcome.TIMEOUT
        assert time.process_time() - start < 1  # the work was done elsewhere
    assert verify(r"\boxed{2}", {"verifier": "math", "answer": "2"}).correct


@pytest.mark.slow
def test_math_bombs_time_out_in_threads_and_in_asyncio(hasty_math: Worker) -> None:
    verdicts: dict[str, Outcome] = {}

    def judge(name: str, text: str) -> None:
        verdicts[name] = verify(text, {"verifier": "math", "answer": "2"}).outcome

    threads = [threading.Thread(target=judge, args=(f"thread {i}", text)) for i, text in enumerate(["9**9**9", "2"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    async def main() -> None:
        judge("coroutine", "9**9**9")
        await asyncio.to_thread(judge, "coroutine's thread", "2")

    asyncio.run(main())
    assert verdicts == {
        "thread 0": Outcome.TIMEOUT,
        "thread 1": Outcome.CORRECT,
        "coroutine": Outcome.TIMEOUT,
        "coroutine's thread": Outcome.CORRECT,
    }


def test_code_in_answers_never_runs(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for code in (f"__import__('os').system('touch {canary}')", f"open('{canary}','w') or 1\\pi"):
        for form in ("{}", r"\boxed{{{}}}", "The answer is {}", "${}$", "#### {}", "A: {}"):
            for name in ("math", "gsm8k"):
                assert not verify(form.format(code), {"verifier": name, "answer": "0"}).correct
    assert not canary.exists()


def test_math_ten_megabytes_are_too_long_at_once() -> None:
    start = time.monotonic()
    assert verify(r"\boxed{2}" + "9" * 10_000_000, {"verifier": "math", "answer": "2"}).extracted == "too long"
    assert time.monotonic() - start < 1


@pytest.mark.slow
@pytest.mark.data
def test_math_third_party_cases() -> None:
    """No false positive. False negatives: 1 of 64 extended (prose in Chinese without any marker), 0 of 112 core."""
    wrong: dict[tuple[str, str], list[str]] = {}
    for row in cases("math"):
        if row["tier"] not in ("core", "extended"):
            continue
        texts = [row["prediction"]]
        if row["kind"] == "answer" and "boxed" not in row["prediction"]:
            texts.append(rf"\boxed{{{row['prediction']}}}")
        for text in texts:
            correct = verify(text, {"verifier": "math", "answer": row["gold"]}).correct
            if correct != row["expected"]:
                kind = "false positive" if correct else "false negative"
                wrong.setdefault((row["tier"], kind), []).append(row["id"])
    assert ("core", "false positive") not in wrong
    assert ("extended", "false positive") not in wrong
    assert ("core", "false negative") not in wrong
    assert len(wrong.get(("extended", "false negative"), [])) <= 1, wrong


# ---------------------------------------------------------------- ifeval

NEEDS_IFEVAL = pytest.mark.skipif(importlib.util.find_spec("if_verifiable") is None, reason="extra 'ifeval' absent")


def test_ifeval_without_its_package_says_so() -> None:
    if importlib.util.find_spec("if_verifiable") is not None:
        pytest.skip("the package is installed")
    raw = {"instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}
    with pytest.raises(ModuleNotFoundError, match=r"alignment-lab\[ifeval\]"):
        ifeval.parse_gold(raw)
    verdict = verify("no comma", {**raw, "verifier": "ifeval"})
    assert verdict.outcome is Outcome.ERROR
    assert "alignment-lab[ifeval]" in (verdict.extracted or "")


@pytest.mark.parametrize("raw", ["x", {}, {"instruction_id_list": ["a"], "kwargs": []}, {"instruction_id_list": []}])
def test_ifeval_refuses_golds_of_the_wrong_shape(raw: Any) -> None:
    with pytest.raises(ValueError, match="expected"):
        ifeval.parse_gold(raw)


@NEEDS_IFEVAL
def test_ifeval_names_the_instructions_that_are_not_followed() -> None:
    names = ["punctuation:no_comma", "keywords:existence"]
    gold = ifeval.parse_gold({"instruction_id_list": names, "kwargs": [{}, {"keywords": ["lab"]}]})
    assert verify("A lab without commas.", gold).correct
    assert verify("A lab, with commas.", gold) == Verdict(Outcome.INCORRECT, "punctuation:no_comma")
    assert verify("", gold).outcome is Outcome.INCORRECT
    with pytest.raises(ValueError, match="unknown instruction 'no:such'"):
        ifeval.parse_gold({"instruction_id_list": ["no:such"], "kwargs": [{}]})


@NEEDS_IFEVAL
@pytest.mark.data
def test_ifeval_agrees_with_every_registered_third_party_case() -> None:
    wrong = []
    for row in cases("ifeval"):
        if row["registered"]:
            gold = {"verifier": "ifeval", "instruction_id_list": [row["instruction_id"]], "kwargs": [row["kwargs"]]}
            verdict = verify(row["response"], gold)
            if verdict.correct != row["expected"]:
                wrong.append((row["id"], verdict))
    assert wrong == []


# ---------------------------------------------------------------- isolation


def test_child_answers_and_is_kept(probe: Worker) -> None:
    text = "\ud800 \x00 \u202e \r\n"
    assert probe.call({"do": "echo", "value": text}) == text
    child = probe._process
    assert probe.call({"do": "echo", "value": [1, None]}) == [1, None]
    assert probe._process is child


@pytest.mark.parametrize(
    ("request_", "outcome", "reason"),
    [
        ({"do": "spin"}, Outcome.TIMEOUT, "0.3 s of work"),
        ({"do": "sleep", "seconds": 30}, Outcome.TIMEOUT, "no answer in 1 s"),
        ({"do": "allocate", "bytes": 1 << 33}, Outcome.TIMEOUT, "memory limit"),
        ({"do": "die"}, Outcome.ERROR, "exit status 3"),
    ],
)
def test_child_that_oversteps_is_stopped_and_replaced(
    probe: Worker, request_: dict[str, Any], outcome: Outcome, reason: str
) -> None:
    with pytest.raises(WorkerStoppedError, match=reason) as caught:
        probe.call(request_)
    assert caught.value.outcome is outcome
    assert probe.call({"do": "echo", "value": 1}) == 1


def test_child_cannot_write_and_its_exceptions_are_told(probe: Worker, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="OSError"):
        probe.call({"do": "write", "path": str(tmp_path / "file")})
    assert not (tmp_path / "file").exists() or (tmp_path / "file").read_text() == ""
    with pytest.raises(TaskError, match="ValueError: do: unknown 'nonsense'"):
        probe.call({"do": "nonsense"})


def test_close_leaves_no_process(probe: Worker) -> None:
    probe.call({"do": "echo", "value": 1})
    assert probe._process is not None
    child = probe._process
    probe.close()
    assert child.poll() is not None
    with pytest.raises(ValueError, match="task: expected one of"):
        Worker("nonsense")


# ---------------------------------------------------------------- dispatch


def test_unknown_verifier_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="'gms8k'; did you mean 'gsm8k'"):
        verify("x", {"verifier": "gms8k"})
    with pytest.raises(ValueError, match="unknown name None"):
        verify("x", {})
    assert find_verifier("math").verify is math.verify


def test_many_keeps_the_order_and_mixes_verifiers() -> None:
    golds = [gsm8k.parse_gold(3), {"verifier": "math", "answer": "x"}, gsm8k.parse_gold(4)]
    outcomes = [verdict.outcome for verdict in verify_many(["#### 3", r"\boxed{x}", "#### 3"], golds)]
    assert outcomes == [Outcome.CORRECT, Outcome.CORRECT, Outcome.INCORRECT]
    assert verify_many([], []) == []
    with pytest.raises(ValueError, match="1 completions but 0 golds"):
        verify_many(["x"], [])


def test_broken_verifier_aborts_instead_of_reading_as_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def broken(completion: str, gold: Any) -> Verdict:
        calls.append(completion)
        if completion == "bad":
            raise RuntimeError("no")
        return Verdict(Outcome.CORRECT)

    monkeypatch.setitem(verifiers.VERIFIERS, "broken", Verifier(dict, broken))
    gold = {"verifier": "broken"}
    assert verify("bad", gold) == Verdict(Outcome.ERROR, "RuntimeError: no")
    # 5 errors in 100 are tolerated and stay visible; the 6th aborts at once
    tolerated = verify_many(["bad"] * 5 + ["good"] * 95, [gold] * 100)
    assert [verdict.outcome for verdict in tolerated].count(Outcome.ERROR) == 5
    calls.clear()
    with pytest.raises(BrokenVerifierError, match=r"6 errors in 6 of 100.*RuntimeError: no"):
        verify_many(["bad"] * 6 + ["good"] * 94, [gold] * 100)
    assert len(calls) == 6
    with pytest.raises(BrokenVerifierError, match="1 errors in 1 of 1"):
        verify_many(["bad"], [gold])
    assert verify_many(["bad", "good", "good", "good"], [gold] * 4)[0].outcome is Outcome.ERROR

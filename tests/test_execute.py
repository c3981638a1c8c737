"""Running a plan: parallel workers, failures that stay where they are, death, signals, progress."""

from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lab.execute import Outcome, Schedule, execute
from lab.plan import Plan, Step, Work
from lab.progress import Event
from lab.records import Ledger
from lab.store import Context, StageResult, Store, StoreError
from lab.worker import Stopped, StopSwitch, environment

HERE = Path(__file__).parent
RUNNER = f"{Path(__file__).stem}.run_stage"


def run_stage(
    kind: str, config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context
) -> Ledger | StageResult:
    """The stages of these tests; what it does is in the config."""
    began = time.monotonic()
    print("printed by", kind)
    for index in range(config.get("progress", 0)):
        context.progress(index + 1, config["progress"], "at work")
    if config.get("fail"):
        raise ValueError("as told")
    if config.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if config.get("exit"):
        sys.exit(3)
    time.sleep(config.get("sleep", 0.0))
    read = sorted((name, (path / "text").read_text()) for name, path in inputs.items())
    (out / "text").write_text(f"{kind} {sorted(config.items())} {read}")
    span = {"began": began, "ended": time.monotonic(), "pid": os.getpid(), "threads": os.environ.get("OMP_NUM_THREADS")}
    return StageResult(Ledger(demonstrations=1), span)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.syspath_prepend(HERE)  # workers get this process's path
    return Store(tmp_path / "store", poll_seconds=0.02)


def go(steps: list[Step], store: Store, workers: int = 2, **options: Any) -> Outcome:
    return execute(Plan(steps), store, workers=workers, runner=RUNNER, **{"show": False, **options})


def names(steps: tuple[Step, ...] | list[Step]) -> set[str]:
    return {step.label for step in steps}


def graph() -> list[Step]:
    """ok1 -> ok2; bad -> dead1 -> dead2 (which also needs ok2); other."""
    ok1 = Step("a", {"n": 1}, label="ok1")
    ok2 = Step("a", {"n": 2}, {"x": ok1}, label="ok2")
    bad = Step("a", {"fail": True, "token": 12345}, label="bad")
    dead1 = Step("a", {"n": 3}, {"x": bad}, label="dead1")
    dead2 = Step("a", {"n": 4}, {"x": dead1, "y": ok2}, label="dead2")
    return [dead2, Step("a", {"n": 5}, label="other")]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failing_step_skips_its_dependants_only(store: Store, workers: int) -> None:
    outcome = go(graph(), store, workers)
    assert names(outcome.done) == {"ok1", "ok2", "other"}
    assert [(item.step.label, item.reason) for item in outcome.failed] == [("bad", "ValueError: as told")]
    assert {item.step.label: names(item.because) for item in outcome.skipped} == {"dead1": {"bad"}, "dead2": {"bad"}}
    assert not outcome.ok
    log = outcome.failed[0].log.read_text()
    assert outcome.failed[0].log == store.failure_log(outcome.failed[0].step.key)
    for part in ("Traceback", 'raise ValueError("as told")', '"token":12345'):
        assert part in log
    if workers:
        assert "printed by a" in log
    assert "skipped  dead2: needs bad" in outcome.summary()
    assert not list((store.root / "a").glob("*.tmp-*"))
    again = go(graph(), store, 0)
    assert names(again.reused) == {"ok1", "ok2", "other"}
    assert (len(again.failed), len(again.skipped), len(again.done)) == (1, 2, 0)


def test_independent_steps_overlap_in_workers_that_live_on(store: Store) -> None:
    steps = [Step("a", {"n": n, "sleep": 0.3}) for n in range(6)]
    events: list[Event] = []
    outcome = go(steps, store, on_event=events.append)
    assert outcome.ok
    spans = [store.load(step.key).metrics for step in steps]
    assert len({span["pid"] for span in spans}) == 2
    assert os.getpid() not in {span["pid"] for span in spans}
    assert {span["threads"] for span in spans} == {"1"}
    assert max(sum(b["began"] <= a["began"] < b["ended"] for b in spans) for a in spans) == 2
    assert [event.what for event in events].count("finish") == 6
    assert (events[-1].over, events[-1].steps) == (6, 6)
    second = go(steps, store)
    assert (len(second.done), len(second.reused)) == (0, 6)
    assert second.seconds < 0.5  # a warm run starts no worker


def test_an_exclusive_step_runs_alone(store: Store) -> None:
    steps = [Step("a", {"n": n, "sleep": 0.15}) for n in range(3)]
    alone = Step("a", {"n": 9, "sleep": 0.1}, resources={"exclusive": True}, work=Work(flops=2e9))
    assert go([*steps, alone], store, flops_per_second=1e9).ok
    mine = store.load(alone.key).metrics
    for step in steps:
        other = store.load(step.key).metrics
        assert other["ended"] <= mine["began"] or mine["ended"] <= other["began"]


def test_an_exclusive_step_that_is_first_in_line_lets_nothing_else_start(store: Store) -> None:
    first, other = Step("a", {"n": 1}, work=Work(flops=9)), Step("a", {"n": 2}, work=Work(flops=1))
    alone = Step("a", {"n": 3}, resources={"exclusive": True}, work=Work(flops=5))
    plan = Plan([other, alone, first])
    schedule = Schedule(plan, store, plan.estimates(store, 1.0))
    assert schedule.next() == first
    assert schedule.next() is None  # alone is next, and waits for first to end; other would delay it
    schedule.finish(first, "built")
    assert schedule.next() == alone
    assert schedule.next() is None
    schedule.finish(alone, "built")
    assert schedule.next() == other


def test_threads_are_those_of_the_step_whatever_ran_before(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import types

    calls: list[int] = []
    torch = types.ModuleType("torch")
    torch.set_num_threads = calls.append  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    chain = Step("a", {"n": 1})
    for n, threads in ((2, 4), (3, 1)):
        chain = Step("a", {"n": n}, {"x": chain}, resources={"exclusive": True, "threads": threads})
    assert go([chain], store, workers=0).ok
    assert calls == [1, 4, 1, 1]


@pytest.mark.parametrize(("how", "reason"), [("kill", "SIGKILL"), ("exit", r"sys\.exit\(3\)")])
def test_a_dead_worker_fails_its_step_and_is_replaced(store: Store, how: str, reason: str) -> None:
    dying = Step("a", {how: True}, label="dying")
    steps = [dying, Step("a", {}, {"x": dying}, label="reader"), *(Step("a", {"n": n}, label="ok") for n in range(3))]
    outcome = go(steps, store, workers=1)
    (failure,) = outcome.failed
    assert failure.step.label == "dying"
    assert re.search(reason, failure.reason)
    assert "printed by a" in failure.log.read_text()
    assert names([item.step for item in outcome.skipped]) == {"reader"}
    assert len(outcome.done) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_input_is_rebuilt_and_its_reader_goes_on(store: Store, workers: int) -> None:
    base = Step("a", {"n": 1}, label="base")
    middle = Step("a", {"n": 2}, {"x": base}, label="middle")
    top = Step("a", {"n": 3}, {"x": middle}, label="top")
    assert go([middle], store, 0).ok
    digest = store.load(middle.key).digest
    (store.path(middle.key) / "text").write_text("rotten")
    store.quarantine(base.key)  # and what it was made of is gone too
    events: list[Event] = []
    outcome = go([top], store, workers, on_event=events.append)
    assert outcome.ok
    assert names(outcome.done) == {"base", "middle", "top"}
    assert [event.step.label for event in events if event.what == "retry"] == ["top"]
    assert store.load(middle.key).digest == digest


def test_idle_workers_warm_up_while_the_first_step_runs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heavy.py").write_text(f"""
import os, time
from pathlib import Path
Path({str(tmp_path)!r}, f"warm-{{os.getpid()}}").write_text(str(time.monotonic()))
""")
    monkeypatch.syspath_prepend(tmp_path)
    first = Step("a", {"sleep": 0.5})
    assert go([Step("a", {"n": 1}, {"x": first}), Step("a", {"n": 2}, {"x": first})], store, warm_up="heavy").ok
    warmed = {int(path.name.partition("-")[2]): float(path.read_text()) for path in tmp_path.glob("warm-*")}
    span = store.load(first.key).metrics
    assert any(at < span["ended"] for pid, at in warmed.items() if pid != span["pid"])
    assert warmed.get(span["pid"], span["ended"]) >= span["ended"]  # work comes before warming


def test_order_is_by_the_longest_chain_and_does_not_vary(store: Store) -> None:
    short = [Step("a", {"n": n}, label=f"short{n}", work=Work(flops=1)) for n in range(3)]
    long = Step("a", {"n": 8}, label="long", work=Work(flops=1))
    long = Step("a", {"n": 9}, {"x": long}, label="longer", work=Work(flops=5))
    plan = Plan([*short, long])
    orders = []
    for _ in range(2):
        schedule = Schedule(plan, store, plan.estimates(store, 1.0))
        order = []
        while (step := schedule.next()) is not None:
            order.append(step.label)
            schedule.finish(step, "built")
        orders.append(order)
    assert orders == [["long", "longer", "short0", "short1", "short2"]] * 2


def test_worker_count_does_not_change_the_bytes(tmp_path: Path, store: Store) -> None:
    digests = []
    for workers in (0, 2):
        one = Store(tmp_path / f"store{workers}")
        assert go([*graph()[1:], graph()[0].inputs["y"]], one, workers).ok
        digests.append({key: one.load(key).digest for key in one.keys()})  # noqa: SIM118
    assert digests[0] == digests[1]
    assert len(digests[0]) == 3


def test_two_runs_at_once_share_their_steps(store: Store, tmp_path: Path) -> None:
    script = tmp_path / "run.py"  # without a __main__ guard, which workers must not need
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(HERE)!r})
        from lab.execute import execute
        from lab.plan import Plan, Step
        from lab.store import Store
        steps = [Step("a", {{"n": n, "sleep": 0.2}}) for n in range(3)]
        store = Store({str(store.root)!r}, poll_seconds=0.02)
        done = execute(Plan(steps), store, workers=1, runner={RUNNER!r}, show=False)
        print(len(done.done), len(done.reused), len(done.failed))
    """)
    )
    runs = [subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    counts = [[int(word) for word in run.communicate(timeout=60)[0].split()] for run in runs]
    assert sum(done for done, _, _ in counts) == 3
    assert [done + reused for done, reused, _ in counts] == [3, 3]
    assert [failed for _, _, failed in counts] == [0, 0]


@pytest.mark.parametrize(("number", "code", "workers"), [("SIGINT", 130, 2), ("SIGTERM", 143, 2), ("SIGTERM", 143, 0)])
def test_signals_stop_everything_and_publish_nothing(
    store: Store, tmp_path: Path, number: str, code: int, workers: int
) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys
        sys.path.insert(0, {str(HERE)!r})
        from lab.execute import execute
        from lab.plan import Plan, Step
        from lab.store import Store
        steps = [Step("a", {{"n": n, "sleep": 60}}) for n in range(3)]
        store = Store({str(store.root)!r})
        execute(Plan(steps), store, workers={workers}, runner={RUNNER!r}, stream=sys.stdout)
    """)
    )
    child = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert "start" in child.stdout.readline()
    began = time.monotonic()
    child.send_signal(signal.Signals[number])
    child.communicate(timeout=20)
    assert child.returncode == code
    assert time.monotonic() - began < 4  # before the grace of 5 s is over: the workers obeyed
    assert store.keys() == []
    assert list((store.root / "a").iterdir()) == []
    assert list((store.root / ".leases").iterdir()) == []


def test_plain_lines_where_there_is_no_terminal(store: Store) -> None:
    stream = io.StringIO()
    base = Step("a", {"progress": 50}, label="the base")
    go([base, Step("a", {"fail": True}, {"x": base}, label="bad")], store, 1, show=True, stream=stream)
    lines = [line.split(maxsplit=1)[1].strip() for line in stream.getvalue().splitlines()]
    assert [line.split("  ")[0].split()[0] for line in lines] == ["start", "done", "start", "FAILED"]
    assert f"[{base.key[:10]}]" in lines[0]
    assert "(1/2)" in lines[1]
    assert "as told" in lines[3]


def test_live_bars_on_a_terminal(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    stream = Terminal()
    assert go([Step("a", {"progress": 5, "sleep": 0.4}, label="the base")], store, 0, show=True, stream=stream).ok
    text = stream.getvalue()
    assert "at work" in text
    assert "5/5" in text
    assert "0/1" in text
    assert "done     the base" in text


def test_nothing_starts_on_an_unwritable_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        go([Step("a")], Store(tmp_path / "file" / "store"))


def test_a_wrong_runner_is_named(store: Store) -> None:
    with pytest.raises(ValueError, match=r"no\.such\.function"):
        execute(Plan([Step("a")]), store, workers=0, runner="no.such.function", show=False)
    outcome = execute(Plan([Step("a")]), store, workers=1, runner="no.such.function", show=False)
    assert "no.such.function" in outcome.failed[0].reason


def test_environment_of_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "0")
    assert environment(False)["OMP_NUM_THREADS"] == "1"
    assert environment(False)["TOKENIZERS_PARALLELISM"] == "true"  # the user's choice
    assert "HF_HUB_OFFLINE" not in environment(False)
    assert environment(True)["HF_HUB_OFFLINE"] == "1"
    assert environment(True)["HF_DATASETS_OFFLINE"] == "0"


def test_a_signal_outside_a_safe_place_waits_for_the_next_one() -> None:
    switch = StopSwitch()
    switch(signal.SIGTERM)
    with pytest.raises(Stopped), switch.safe():
        pytest.fail("the stage may not start")
    with pytest.raises(Stopped):
        switch(signal.SIGTERM)  # insisting works anywhere
    calm = StopSwitch()
    calm.check()
    with pytest.raises(Stopped), calm.safe():
        calm(signal.SIGINT)

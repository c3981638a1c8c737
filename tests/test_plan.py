"""The plan: what identifies a step, in which order steps run, what is missing, what it will cost."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from lab.plan import HIT, MISS, UNNEEDED, Plan, Step, Work, count, duration
from lab.records import Ledger
from lab.store import Store, StoreError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def publish(store: Store, *steps: Step, seconds: float | None = None, flops: float = 0.0) -> None:
    for step in steps:
        with store.build(step) as building:
            assert building is not None
            (building.out / "x").write_text(step.key)
            building.finish(Ledger(training_flops=flops))
        if seconds is not None:  # as if it had taken that long; only ``load`` would notice
            path = store.path(step.key) / "manifest.json"
            text = path.read_text()
            measured = store.manifest(step.key)["duration_seconds"]
            path.write_text(text.replace(f'"duration_seconds": {measured}', f'"duration_seconds": {seconds}'))


def diamond() -> tuple[Step, Step, Step, Step]:
    base = Step("base", {"n": 1})
    left, right = Step("left", {}, {"policy": base}), Step("right", {}, {"policy": base})
    return base, left, right, Step("top", {}, {"l": left, "r": right})


# --- identity


def test_resources_labels_and_work_do_not_affect_identity() -> None:
    plain = Step("sft", {"lr": 0.1})
    dressed = Step("sft", {"lr": 0.1}, label="SFT", resources={"device": "cuda", "threads": 8}, work=Work(1, 2))
    assert plain.key == dressed.key
    assert plain == dressed
    assert len({plain, dressed}) == 1


def test_kind_config_inputs_and_recipe_affect_identity() -> None:
    base, other = Step("base", {"n": 1}), Step("base", {"n": 2})
    steps = [
        Step("sft", {"lr": 0.1}, {"policy": base}, recipe=1),
        Step("dpo", {"lr": 0.1}, {"policy": base}, recipe=1),
        Step("sft", {"lr": 0.2}, {"policy": base}, recipe=1),
        Step("sft", {"lr": 0.1, "seed": 0}, {"policy": base}, recipe=1),
        Step("sft", {"lr": 0.1}, {"policy": other}, recipe=1),
        Step("sft", {"lr": 0.1}, {"reference": base}, recipe=1),
        Step("sft", {"lr": 0.1}, {"policy": base}, recipe=2),
    ]
    assert len({step.key for step in steps}) == len(steps)


def test_a_change_at_the_root_changes_every_descendant() -> None:
    chains = []
    for n in (1, 2):
        step = Step("base", {"n": n})
        chain = [step]
        for _ in range(3):
            step = Step("sft", {}, {"policy": step})
            chain.append(step)
        chains.append([item.key for item in chain])
    assert all(one != two for one, two in zip(*chains, strict=True))


def test_order_of_config_and_inputs_does_not_matter() -> None:
    a, b = Step("a"), Step("b")
    assert Step("c", {"x": 1, "y": 2}, {"a": a, "b": b}).key == Step("c", {"y": 2, "x": 1}, {"b": b, "a": a}).key


def test_editing_the_callers_dict_changes_no_step() -> None:
    config = {"method": {"lr": 0.1}}
    step = Step("sft", config)
    config["method"]["lr"] = 0.2
    assert step.config == {"method": {"lr": 0.1}}
    assert step.key == Step("sft", {"method": {"lr": 0.1}}).key


def test_bad_steps_are_refused_where_they_are_made() -> None:
    with pytest.raises(ValueError, match=r"sft\.config\.method\.lr: nan"):
        Step("sft", {"method": {"lr": float("nan")}})
    with pytest.raises(StoreError, match=r"'\.\./x'"):
        Step("../x")
    with pytest.raises(StoreError, match="'a/b'"):
        Step("sft", {}, {"a/b": Step("base")})


def test_a_step_survives_pickling() -> None:
    top = diamond()[3]
    assert pickle.loads(pickle.dumps(top)).key == top.key


# --- order, hits and misses


def test_topological_order_with_each_key_once() -> None:
    base, left, right, top = diamond()
    again = Step("left", {}, {"policy": Step("base", {"n": 1})}, label="the same step, made elsewhere")
    plan = Plan([top, again, top])
    assert [step.key for step in plan.steps] == [base.key, left.key, right.key, top.key]
    assert plan.steps[1].label == ""
    assert [step.key for step in plan.targets] == [top.key, left.key]


def test_hits_misses_and_what_nobody_needs(store: Store) -> None:
    base, left, right, top = diamond()
    plan = Plan([top])
    assert set(plan.status(store).values()) == {MISS}
    publish(store, base, left, right)
    assert plan.status(store) == {base.key: HIT, left.key: HIT, right.key: HIT, top.key: MISS}
    store.quarantine(base.key)
    assert plan.status(store)[base.key] == UNNEEDED  # both of its readers are there
    assert Plan([top, base]).status(store)[base.key] == MISS  # but it was asked for
    store.quarantine(left.key)
    assert plan.status(store) == {base.key: MISS, left.key: MISS, right.key: HIT, top.key: MISS}


# --- cost


def test_estimates_come_from_the_best_source_there_is(store: Store) -> None:
    step = Step("sft", {"seed": 9}, work=Work(tokens=5, flops=4e9))
    assert Plan([step]).estimates(store)[step.key].basis == "unknown"
    assert Plan([step]).estimates(store, 1e9)[step.key].seconds == 4.0
    publish(store, Step("sft", {"seed": 1}), seconds=7.0)  # says nothing about FLOPs
    assert Plan([step]).estimates(store, 1e9)[step.key].seconds == 7.0
    publish(store, Step("sft", {"seed": 2}, work=Work(flops=1e9)), seconds=3.0, flops=99e9)  # 3 s per planned GFLOP
    publish(store, Step("sft", {"seed": 3}), seconds=10.0, flops=2e9)  # 5 s per counted GFLOP
    assert Plan([step]).estimates(store, 1e9)[step.key].seconds == pytest.approx(4 * (3 + 5) / 2)
    publish(store, step, seconds=2.5)
    assert Plan([step]).estimates(store, 1e9)[step.key].seconds == 2.5


def test_priorities_and_bound_by_hand() -> None:
    base, left, right, top = diamond()
    plan = Plan([top])
    seconds = {base.key: 1.0, left.key: 5.0, right.key: 2.0, top.key: 4.0}
    assert plan.priorities(seconds) == {base.key: 10.0, left.key: 9.0, right.key: 6.0, top.key: 4.0}
    assert plan.bound_seconds(seconds, 2) == 10.0  # the chain base, left, top
    assert plan.bound_seconds(seconds, 1) == 12.0  # the sum
    many = [Step("a", {"n": n}) for n in range(4)]
    assert Plan(many).bound_seconds(dict.fromkeys([step.key for step in many], 3.0), 2) == 6.0
    alone = Step("b", resources={"exclusive": True})
    assert Plan([*many, alone]).bound_seconds({alone.key: 5.0, **{step.key: 3.0 for step in many}}, 2) == 11.0


def test_render(store: Store) -> None:
    base = Step("base", label="the base", work=Work(1.5e6, 2e9))
    sft = Step("sft", {}, {"policy": base}, work=Work(1e3, 6e9))
    publish(store, base)
    lines = Plan([sft]).render(store, workers=2, flops_per_second=1e9).splitlines()
    assert lines[0].split() == ["kind", "label", "key", "state", "tokens", "FLOPs", "time", "basis"]
    assert lines[2].split() == ["base", "the", "base", base.key[:10], "hit"]
    assert lines[3].split() == ["sft", sft.key[:10], "miss", "1.0", "k", "6.0", "G", "6.0", "s", "1.0", "GFLOP/s"]
    assert lines[-2].split() == ["total", "2", "steps", "1", "to", "run", "1.0", "k", "6.0", "G", "6.0", "s"]
    assert lines[-1] == "at least 6.0 s with 2 workers"
    assert "plus 1 steps of unknown duration" in Plan([Step("x")]).render(store, workers=1)


def test_numbers_for_people() -> None:
    assert [count(value) for value in (0, 950, 1234567, 3e12)] == ["", "950 ", "1.2 M", "3.0 T"]
    assert [duration(value) for value in (0.42, 42.4, 200, 7500)] == ["0.4 s", "42 s", "3 min 20 s", "2 h 05 min"]


def test_no_heavy_import() -> None:
    code = "import sys, lab.plan, lab.store, lab.execute; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "lab.execute" in loaded
    assert not {"torch", "numpy", "transformers", "trl", "datasets", "rich"} & set(loaded)

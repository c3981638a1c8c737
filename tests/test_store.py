"""The store as a specification: what makes a key, what survives a crash, who may publish, what is noticed on load."""

# ruff: noqa: PT012 - what is tested is the end of a `with` block that builds something
from __future__ import annotations

import errno
import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab import lease as leases
from lab.artifact import canonical_json, content_key, plain
from lab.plan import Step, Work
from lab.records import Ledger
from lab.store import CorruptArtifact, LeaseLost, MissingArtifact, StageResult, Store, StoreError, main


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", poll_seconds=0.02)


def publish(store: Store, step: Step, text: str = "x", **result: object) -> str:
    with store.build(step) as building:
        assert building is not None
        (building.out / "data.txt").write_text(text)
        (building.out / "final").mkdir()
        (building.out / "final" / "model.bin").write_bytes(bytes(range(256)) * 8)
        building.finish(StageResult(**result))  # type: ignore[arg-type]
    return step.key


def run_python(code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


# --- keys


def test_key_is_sha256_of_the_canonical_text() -> None:
    # printf '%s' '{"config":{"a":1,"b":[0.5,null]},"inputs":{},"kind":"sft","recipe":1}' | sha256sum
    expected = "ddb6e253d44393b9f216bddc4d243d5bc5e2161564461511b12b165f3671cd41"
    assert content_key("sft", {"b": (0.5, None), "a": 1}, {}, 1) == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"method": {"lr": float("nan")}}, "config.method.lr: nan"),
        ({"a": [1, float("inf")]}, r"config.a\[1\]: inf"),
        ({"a": {1: 2}}, "config.a: the key 1 is int"),
        ({"a": np.int64(3)}, "config.a: numpy.int64"),
        ({"a": [{"b": Path("x")}]}, r"config.a\[0\].b: pathlib"),
        ({"a": {1, 2}}, "config.a: builtins.set"),
    ],
)
def test_what_is_not_json_is_refused_with_its_path(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        canonical_json(value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_canonical_json_round_trips_and_ignores_key_order(value: object) -> None:
    text = canonical_json(value)
    assert json.loads(text) == plain(value)
    assert canonical_json(json.loads(text)) == text
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == text


# --- publishing


def test_artifact_and_manifest(store: Store) -> None:
    base = Step("base", {"width": 4})
    sft = Step("sft", {"lr": 0.1}, {"policy": base}, label="the SFT", work=Work(10, 20))
    publish(store, base, "base")
    publish(store, sft, "sft", ledger=Ledger(prompt_tokens=7), metrics={"loss": 0.5, "gap": float("nan")})
    artifact = store.load(sft.key)
    manifest = artifact.manifest
    assert (artifact.path / "data.txt").read_text() == "sft"
    assert artifact.path == store.root / "sft" / sft.key
    assert (artifact.kind, artifact.key, manifest["recipe"], manifest["label"]) == ("sft", sft.key, 1, "the SFT")
    assert manifest["config"] == {"lr": 0.1}
    assert manifest["inputs"] == {"policy": {"key": base.key, "digest": store.load(base.key).digest}}
    assert set(manifest["files"]) == {"data.txt", "final/model.bin"}
    assert manifest["files"]["final/model.bin"]["bytes"] == 2048
    assert manifest["work"] == {"tokens": 10.0, "flops": 20.0}
    assert artifact.metrics == {"loss": 0.5, "gap": None}  # no bare NaN in JSON
    assert artifact.ledger.prompt_tokens == 7
    assert 0 < artifact.ledger.wall_seconds == manifest["duration_seconds"] < 5
    assert manifest["resumed_from"] is None
    assert list(store.lineage(sft.key)) == [base.key, sft.key]
    text = (artifact.path / "manifest.json").read_text()
    assert str(store.root) not in text
    assert os.uname().nodename not in text
    assert not list((store.root / ".leases").iterdir())
    assert not (store.root / ".scratch" / sft.key).exists()


def test_equal_bytes_have_equal_digests_under_different_keys(store: Store) -> None:
    one, two, three = (publish(store, Step("a", {"n": n}), text) for n, text in ((1, "same"), (2, "same"), (3, "not")))
    assert store.load(one).digest == store.load(two).digest != store.load(three).digest


def test_a_failing_build_leaves_nothing_but_its_scratch(store: Store) -> None:
    step = Step("a")
    with pytest.raises(RuntimeError, match="boom"), store.build(step) as building:
        assert building is not None
        (building.out / "half").write_text("half")
        (building.scratch / "step-3").write_text("3")
        raise RuntimeError("boom")
    assert not store.has(step.key)
    assert not list((store.root / "a").iterdir())
    with store.build(step) as building:
        assert building is not None
        assert (building.scratch / "step-3").read_text() == "3"
        (building.out / "x").write_text("x")
    assert store.load(step.key).manifest["resumed_from"] == "scratch"
    assert not (store.root / ".scratch" / step.key).exists()


@pytest.mark.parametrize("name", ["manifest.json", "bad name", "ünï"])
def test_bad_file_names_are_refused(store: Store, name: str) -> None:
    with pytest.raises(StoreError, match=name), store.build(Step("a")) as building:
        assert building is not None
        (building.out / name).write_text("x")
    assert store.keys() == []


def test_links_and_empty_artifacts_are_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="plain files"), store.build(Step("a")) as building:
        assert building is not None
        (building.out / "link").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="wrote no files"), store.build(Step("a")):
        pass
    for kind in ("../a", ".leases", "a/b", ""):
        with pytest.raises(StoreError), store.build(Step(kind)):
            pass
    with pytest.raises(StoreError, match="not a key"):
        store.load("../../etc/passwd")


def test_unwritable_store_is_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="file/store: cannot be written"), store.build(Step("a")):
        pytest.fail("no work may be done")


def test_full_disk_names_the_path_and_publishes_nothing(tmp_path: Path) -> None:
    """A limit on file size stands in for a full disk: the write fails in the stage with an error that has no path."""
    store, step = Store(tmp_path / "s"), Step("a")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        with pytest.raises(OSError, match=step.key) as caught, store.build(step) as building:
            assert building is not None
            with open(building.out / "big", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(60_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.errno == errno.EFBIG
    assert not list((store.root / "a").iterdir())
    publish(store, step)  # and the store goes on


# --- corruption


@pytest.mark.parametrize("damage", ["flip", "cut", "zero tail", "missing", "extra", "manifest"])
def test_damage_is_noticed_and_the_step_can_be_built_again(store: Store, damage: str) -> None:
    step = Step("a")
    key = publish(store, step)
    path = store.path(key) / "final" / "model.bin"
    data = bytearray(path.read_bytes())
    name = "model.bin"
    if damage == "flip":
        data[random.Random(0).randrange(len(data))] ^= 1
        path.write_bytes(data)
    elif damage == "cut":
        path.write_bytes(data[:-1])
    elif damage == "zero tail":
        path.write_bytes(data[:1000] + bytes(len(data) - 1000))
    elif damage == "missing":
        path.unlink()
    elif damage == "extra":
        name = "adapter_config.json"
        (path.parent / name).write_text("{}")
    else:
        name = "manifest.json"
        edited = json.loads((store.path(key) / name).read_text())
        edited["metrics"] = {"accuracy": 1.0}
        (store.path(key) / name).write_text(json.dumps(edited))
    assert store.has(key)  # cheap, so it cannot know
    assert name in "".join(store.problems(key))
    with pytest.raises(CorruptArtifact, match=name) as caught:
        store.load(key)
    assert caught.value.key == key
    assert not store.has(key)
    assert len(list((store.root / ".quarantine").iterdir())) == 1
    publish(store, step)
    store.load(key)


def test_a_corrupt_input_is_never_built_on(store: Store) -> None:
    base = Step("base")
    publish(store, base)
    (store.path(base.key) / "data.txt").write_text("y")
    with pytest.raises(CorruptArtifact, match=r"data\.txt"), store.build(Step("sft", {}, {"policy": base})):
        pytest.fail("no work may be done")
    with pytest.raises(MissingArtifact), store.build(Step("sft", {}, {"policy": base})):
        pytest.fail("no work may be done")


def test_a_folder_without_a_manifest_is_not_an_artifact(store: Store) -> None:
    step = Step("a")
    (store.root / "a" / step.key).mkdir(parents=True)
    (store.root / "a" / step.key / "data.txt").write_text("half")
    assert not store.has(step.key)
    publish(store, step, "whole")
    assert (store.load(step.key).path / "data.txt").read_text() == "whole"


# --- crashes and concurrency

BUILDER = """
    import sys, time
    from pathlib import Path
    from lab.plan import Step
    from lab.store import Store
    root, pause = sys.argv[1], float(sys.argv[2])
    store = Store(root, poll_seconds=0.02)
    with store.build(Step("a", {"n": 1})) as building:
        if building is None:
            print("reused", flush=True)
        else:
            print("building", flush=True)
            for index in range(20):
                (building.out / f"part-{index}").write_bytes(bytes(10_000))
                time.sleep(pause)
            print("built", flush=True)
"""


def test_kill_in_mid_build_publishes_nothing_and_the_next_run_takes_over_at_once(store: Store) -> None:
    """The lease of a killed process on this machine does not have to go stale first (60 s by default)."""
    step = Step("a", {"n": 1})
    for seed in range(3):
        child = run_python(BUILDER, str(store.root), "0.02")
        assert child.stdout is not None
        assert child.stdout.readline() == "building\n"
        time.sleep(random.Random(seed).uniform(0, 0.2))
        child.kill()
        child.communicate()
        assert not store.has(step.key)
        assert len(list((store.root / "a").glob("*.tmp-*"))) == 1  # the last builder swept what the one before left
    began = time.monotonic()
    publish(store, step)
    assert time.monotonic() - began < 5
    assert [path.name for path in (store.root / "a").iterdir()] == [step.key]
    assert not list((store.root / ".leases").iterdir())


def test_a_death_just_before_the_rename_publishes_nothing(store: Store) -> None:
    step = Step("a", {"n": 1})
    dying = "import os\nos.rename = lambda *_: os.kill(os.getpid(), 9)\n" + textwrap.dedent(BUILDER)
    child = run_python(dying, str(store.root), "0")
    assert child.communicate(timeout=30)[0].split() == ["building", "built"]
    assert child.returncode == -signal.SIGKILL
    (left,) = (store.root / "a").iterdir()
    assert (left / "manifest.json").is_file()  # complete, but under no key
    assert not store.has(step.key)
    publish(store, step)
    assert not left.exists()


def test_four_processes_at_once_build_once(store: Store) -> None:
    children = [run_python(BUILDER, str(store.root), "0.02") for _ in range(4)]
    said = [child.communicate(timeout=30)[0].split() for child in children]
    assert sorted(said) == [["building", "built"], ["reused"], ["reused"], ["reused"]]
    store.load(Step("a", {"n": 1}).key)


def test_a_stale_lease_is_taken_over_and_the_late_writer_may_not_publish(tmp_path: Path) -> None:
    """The holder lives (so only its silence can tell), its heartbeat does not come, and it comes back too late."""
    step = Step("a")
    slow = Store(tmp_path, heartbeat_seconds=1000, stale_seconds=0.3, poll_seconds=0.02)
    fast = Store(tmp_path, heartbeat_seconds=0.05, stale_seconds=0.3, poll_seconds=0.02)
    waited = []
    with pytest.raises(LeaseLost), slow.build(step) as late:
        assert late is not None
        (late.out / "data.txt").write_text("late")
        with fast.build(step, on_wait=lambda: waited.append(1)) as building:
            assert building is not None
            (building.out / "data.txt").write_text("in time")
    assert waited
    assert (fast.load(step.key).path / "data.txt").read_text() == "in time"
    assert not list((tmp_path / ".leases").iterdir())
    assert not list((tmp_path / "a").glob("*.tmp-*"))


def test_a_late_writer_may_not_publish_before_the_new_builder_either(tmp_path: Path) -> None:
    step = Step("a")
    slow = Store(tmp_path, heartbeat_seconds=1000, stale_seconds=0.2, poll_seconds=0.02)
    took, published = threading.Event(), threading.Event()

    def successor() -> None:
        with Store(tmp_path, heartbeat_seconds=0.05, stale_seconds=0.2, poll_seconds=0.02).build(step) as building:
            assert building is not None
            took.set()
            published.wait(5)  # still at work when the late writer wants to publish
            (building.out / "data.txt").write_text("new")

    thread = threading.Thread(target=successor)
    with pytest.raises(LeaseLost), slow.build(step) as late:
        assert late is not None
        (late.out / "data.txt").write_text("late")
        thread.start()
        assert took.wait(5)
    assert not slow.has(step.key)
    published.set()
    thread.join()
    assert (slow.load(step.key).path / "data.txt").read_text() == "new"


def test_a_lease_lost_while_files_are_hashed_is_noticed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    step = Step("a")
    successor = store.root / ".leases" / f"{step.key}.000002"

    def hash_slowly(path: Path) -> str:
        successor.write_text("{}")
        return "0" * 64

    with pytest.raises(LeaseLost), store.build(step) as building:
        assert building is not None
        (building.out / "x").write_text("x")
        monkeypatch.setattr("lab.store.sha256_file", hash_slowly)
    assert not store.has(step.key)
    assert successor.exists()  # the loser does not remove the winner's lease


def test_of_two_that_see_a_free_key_one_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "_generations", lambda *_: [])  # as both saw it before either wrote
    lease = leases.acquire(tmp_path, "k", 10, 60)
    assert lease is not None
    assert leases.acquire(tmp_path, "k", 10, 60) is None
    monkeypatch.undo()
    lease.release()


def test_a_heartbeat_keeps_the_lease(tmp_path: Path) -> None:
    (tmp_path / "l").mkdir()
    lease = leases.acquire(tmp_path / "l", "k", heartbeat_seconds=0.05, stale_seconds=0.4)
    assert lease is not None
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        assert leases.acquire(tmp_path / "l", "k", 0.05, 0.4) is None
        time.sleep(0.05)
    lease.check()
    lease.release()
    assert not leases.is_held(tmp_path / "l", "k", 0.4)


def test_a_holder_on_another_machine_is_judged_by_the_file_systems_clock(tmp_path: Path) -> None:
    path = tmp_path / "k.000001"
    owner = {"boot": "another", "namespace": "x", "pid": 1, "start": "1"}
    path.write_text(json.dumps({"token": "t", "process": owner}))
    now = leases.filesystem_now(tmp_path)
    os.utime(path, (now - 50, now - 50))
    assert leases.is_held(tmp_path, "k", 60)
    os.utime(path, (now - 70, now - 70))
    assert not leases.is_held(tmp_path, "k", 60)
    path.write_text("")  # its writer died between O_EXCL and write
    os.utime(path, (now - 70, now - 70))
    lease = leases.acquire(tmp_path, "k", 10, 60)
    assert lease is not None
    assert lease.generation == 2
    lease.release()
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_swept_and_those_of_a_live_builder_are_not(store: Store) -> None:
    dead = store.root / "a" / f"{'0' * 64}.tmp-dead"
    dead.mkdir(parents=True)
    (dead / "part").write_text("x")
    with store.build(Step("a")) as building:
        assert building is not None
        assert not dead.exists()
        store.prepare()
        assert building.out.is_dir()
        (building.out / "x").write_text("x")


# --- upkeep


def test_gc_keeps_ancestors_and_does_nothing_unless_told(store: Store) -> None:
    base, old = Step("base"), Step("old")
    sft = Step("sft", {}, {"policy": base})
    for step in (base, old, sft):
        publish(store, step)
    assert [path.name for path, _ in store.gc([sft.key])] == [old.key]
    assert store.gc([sft.key], older_than=3600) == []
    assert store.has(old.key)
    ((path, size),) = store.gc([sft.key], delete=True)
    assert path.name == old.key
    assert size > 2048
    assert store.keys() == sorted([base.key, sft.key])
    store.gc([], delete=True)
    assert store.keys() == []


def test_lineage_names_the_descendant_of_a_lost_ancestor(store: Store) -> None:
    base = Step("base")
    sft = Step("sft", {}, {"policy": base})
    publish(store, base)
    publish(store, sft)
    store.quarantine(base.key)
    with pytest.raises(MissingArtifact, match=sft.key):
        store.lineage(sft.key)
    assert list(store.lineage(sft.key, missing_ok=True)) == [sft.key]


def test_command_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    base = Step("base", label="a base")
    sft = Step("sft", {"lr": 0.25}, {"policy": base})
    publish(store, base)
    publish(store, sft)
    at = ["--store", str(store.root)]
    assert main(["ls", *at]) == 0
    said = capsys.readouterr().out
    assert {line.split()[0] for line in said.splitlines()} == {base.key[:10], sft.key[:10]}
    assert "a base" in said
    assert main(["show", sft.key[:8], *at]) == 0
    said = capsys.readouterr().out
    assert '"lr": 0.25' in said
    assert f"policy = {base.key[:10]}  base a base" in said
    assert main(["verify", *at]) == 0
    (store.path(base.key) / "data.txt").write_text("y")
    assert main(["verify", base.key[:8], *at]) == 1
    assert "data.txt: sha256" in capsys.readouterr().err
    assert main(["verify", sft.key[:8], *at]) == 0
    assert main(["show", "zz", *at]) == 2
    assert "'zz'" in capsys.readouterr().err
    assert main(["gc", "--keep", sft.key[:8], *at]) == 0
    assert "would remove" in capsys.readouterr().out
    assert main(["verify", "--quarantine", *at]) == 1
    assert store.keys() == [sft.key]
    assert main(["ls", "--store", str(store.root / "nowhere")]) == 2

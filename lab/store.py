"""Content-addressed artifacts: what a step made, under the name of what was asked.

A folder ``<store>/<kind>/<key>`` exists only when it is complete: it is built beside its place, synced, given its
manifest last and renamed. Files are hashed again on every load, because a flipped bit or a zeroed tail in a weight file
loads silently. Names with a leading dot in the store are the store's own.

    python -m lab.store ls | show KEY | verify [KEY] | gc [--delete]      [--store PATH]

This is not a cache with a policy (nothing is ever removed unless ``gc`` is told to), nor a database.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lab import lease as leases
from lab.artifact import (
    KEY,
    MANIFEST,
    Artifact,
    Buildable,
    Context,
    CorruptArtifact,
    MissingArtifact,
    StageResult,
    StoreError,
    canonical_json,
    check_name,
    content_key,
    finite,
    fsync_folder,
    list_files,
    plain,
    provenance,
    sha256_file,
    sha256_text,
    utc_now,
)
from lab.lease import Lease, LeaseLost
from lab.records import Ledger

__all__ = [
    "Artifact", "Building", "Context", "CorruptArtifact", "LeaseLost", "MissingArtifact", "StageResult", "Store",
    "StoreError", "canonical_json", "content_key", "plain",
]  # fmt: skip

FORMAT = 1


class Building:
    """An artifact on its way: write files under ``out``, then call ``finish``; the store publishes on exit."""

    def __init__(self, step: Buildable, out: Path, scratch: Path, inputs: Mapping[str, Artifact], lease: Lease):
        self.step, self.out, self.scratch, self.lease = step, out, scratch, lease
        self.artifacts = inputs
        self.result = StageResult(resumed_from="scratch" if any(scratch.iterdir()) else None)

    @property
    def inputs(self) -> dict[str, Path]:
        """The folders of the verified inputs, by name."""
        return {name: artifact.path for name, artifact in self.artifacts.items()}

    def finish(self, result: StageResult | Ledger | None) -> None:
        """Record what the stage returned. Raises TypeError on anything else."""
        if isinstance(result, Ledger):
            result = StageResult(result)
        elif result is None:
            result = StageResult()
        elif not isinstance(result, StageResult):
            raise TypeError(f"stage {self.step.kind}: returned {type(result).__name__}, expected Ledger or StageResult")
        resumed = result.resumed_from or self.result.resumed_from
        self.result = StageResult(result.ledger, result.metrics, resumed)


class Store:
    """Artifacts under one root folder, which many processes and machines may share. Opening it touches nothing."""

    def __init__(self, root: Path | str, heartbeat_seconds: float = 10.0, stale_seconds: float = 60.0,
                 poll_seconds: float = 0.2):  # fmt: skip
        self.root = Path(root).resolve()
        self.heartbeat_seconds, self.stale_seconds, self.poll_seconds = heartbeat_seconds, stale_seconds, poll_seconds

    # reading

    def kinds(self) -> list[str]:
        """The kinds that have artifacts."""
        try:
            with os.scandir(self.root) as entries:
                names = [e.name for e in entries if not e.name.startswith(".") and e.is_dir(follow_symlinks=False)]
        except FileNotFoundError:
            return []
        return sorted(names)

    def keys(self, kind: str | None = None) -> list[str]:
        """All keys that ``has`` knows (of one kind), sorted."""
        found = []
        for name in [kind] if kind else self.kinds():
            if (self.root / name).is_dir():
                found += [entry for entry in os.listdir(self.root / name) if KEY.fullmatch(entry)]
        return sorted(key for key in found if self.has(key))

    def path(self, key: str) -> Path:
        """The folder of an artifact. Raises MissingArtifact."""
        if not KEY.fullmatch(key):
            raise StoreError(f"store {self.root}: {key!r} is not a key (64 hex digits)")
        for kind in self.kinds():
            folder = self.root / kind / key
            if folder.is_dir():
                if folder.resolve() != folder:
                    raise StoreError(f"{folder}: a symbolic link, which a store may not hold")
                return folder
        raise MissingArtifact(key, f"store {self.root}: no artifact {key}")

    def has(self, key: str) -> bool:
        """Cheap: the manifest is there and parses. ``load`` is what verifies."""
        try:
            self.manifest(key)
        except StoreError:
            return False
        return True

    def manifest(self, key: str) -> dict[str, Any]:
        """The manifest as stored. Raises MissingArtifact, or StoreError when it does not parse or is another key's."""
        path = self.path(key) / MANIFEST
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StoreError(f"{path}: unreadable manifest: {error}") from error
        if not isinstance(manifest, dict) or manifest.get("key") != key or manifest.get("format") != FORMAT:
            raise StoreError(f"{path}: not a manifest of {key} in format {FORMAT}")
        return manifest

    def manifests(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Every readable manifest (of one kind), by key."""
        found = []
        for key in self.keys(kind):
            with contextlib.suppress(StoreError):
                found.append(self.manifest(key))
        return found

    def problems(self, key: str) -> list[str]:
        """What is wrong with an artifact, each line naming a path; empty when every byte is as published."""
        folder = self.path(key)
        try:
            manifest = self.manifest(key)
            seal = manifest.pop("seal", None)
            if seal != sha256_text(canonical_json(manifest, "manifest")):
                return [f"{folder / MANIFEST}: edited since it was published"]
            files = manifest["files"]
            found = list_files(folder)
        except MissingArtifact:
            raise
        except StoreError as error:
            return [str(error)]
        wrong = [f"{folder / name}: missing" for name in sorted(set(files) - set(found))]
        for name in sorted(found):
            if name not in files:
                if not Path(name).name.startswith("."):  # file managers and NFS drop hidden files
                    wrong.append(f"{folder / name}: not in the manifest")
            elif self._digest(key, folder / name) != files[name]["sha256"]:
                wrong.append(f"{folder / name}: sha256 differs from the manifest")
        return wrong

    def load(self, key: str) -> Artifact:
        """The artifact, every file verified against its SHA-256.

        Raises MissingArtifact, or CorruptArtifact naming the file after moving the folder to quarantine, so that the
        key counts as not built and the next run builds it again.
        """
        wrong = self.problems(key)
        if wrong:
            said = "moved to quarantine: run again to rebuild it"
            try:
                self.quarantine(key)
            except OSError as error:
                said = f"could not be moved to quarantine: {error.strerror}"
            more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
            raise CorruptArtifact(key, f"{wrong[0]}{more} ({said})")
        return Artifact(self.path(key), self.manifest(key))

    def _digest(self, key: str, path: Path) -> str:
        try:
            return sha256_file(path)
        except FileNotFoundError as error:
            raise MissingArtifact(key, f"{path}: gone while it was verified") from error

    def resolve(self, prefix: str) -> str:
        """The one key that starts with ``prefix``. Raises StoreError when there is none or more than one."""
        found = [key for key in self.keys() if key.startswith(prefix)]
        if len(found) != 1:
            said = ", ".join(key[:16] for key in found) if found else "none"
            raise StoreError(f"store {self.root}: {prefix!r} is the start of {len(found)} keys ({said}), expected 1")
        return found[0]

    def lineage(self, key: str, missing_ok: bool = False) -> dict[str, dict[str, Any]]:
        """The manifests of ``key`` and of all its ancestors, ancestors first. Raises MissingArtifact, naming the
        descendant, when an ancestor is gone (``missing_ok`` leaves it out)."""
        order: dict[str, dict[str, Any]] = {}

        def visit(this: str, parent: str | None) -> None:
            if this in order:
                return
            try:
                manifest = self.manifest(this)
            except MissingArtifact as error:
                if parent and missing_ok:
                    return
                raise MissingArtifact(this, f"{error} (input of {parent})" if parent else str(error)) from error
            for item in manifest["inputs"].values():
                visit(item["key"], this)
            order[this] = manifest

        visit(key, None)
        return order

    # writing

    def prepare(self) -> None:
        """Open for writing: make the folders, prove that a file can be written, sweep what dead builders left.

        Raises StoreError naming the path, before any work is done. There is no fall-back to another folder.
        """
        try:
            for name in (".leases", ".scratch", ".quarantine", ".failures"):
                (self.root / name).mkdir(parents=True, exist_ok=True)
            probe = self.root / f".write-{uuid.uuid4().hex}"
            probe.write_bytes(b"?")
            probe.unlink()
        except OSError as error:
            raise StoreError(f"store {self.root}: cannot be written: {error.strerror or error}") from error
        for leftover in self._leftovers():
            shutil.rmtree(leftover, ignore_errors=True)

    def _leftovers(self) -> list[Path]:
        """Temporary folders whose builder is dead."""
        found = [path for kind in self.kinds() for path in (self.root / kind).glob("*.tmp-*")]
        return [path for path in found if not self.is_building(path.name.partition(".tmp-")[0])]

    def is_building(self, key: str) -> bool:
        """True while a live builder holds the key's lease."""
        return leases.is_held(self.root / ".leases", key, self.stale_seconds)

    def failure_log(self, key: str) -> Path:
        """Where the traceback of a failed step goes."""
        return self.root / ".failures" / f"{key}.log"

    def quarantine(self, key: str) -> Path:
        """Move an artifact out of the way, for people to look at. Raises MissingArtifact, OSError."""
        folder = self.path(key)
        target = self.root / ".quarantine" / f"{key}-{uuid.uuid4().hex[:8]}"
        target.parent.mkdir(exist_ok=True)
        try:
            os.replace(folder, target)
        except FileNotFoundError as error:
            raise MissingArtifact(key, f"{folder}: gone before it could be moved to quarantine") from error
        return target

    @contextlib.contextmanager
    def build(self, step: Buildable, on_wait: Callable[[], None] | None = None) -> Iterator[Building | None]:
        """Build an artifact: ``with store.build(step) as building``.

        Yields None when the artifact exists (another builder held the lease, was waited for, and published). Otherwise
        the body writes into ``building.out``; leaving it publishes, an exception publishes nothing and keeps only the
        scratch folder. ``on_wait`` is called at every look (each ``poll_seconds``) while another builder is at work.
        Raises StoreError (unwritable, bad names), MissingArtifact or CorruptArtifact (an input), LeaseLost, and
        OSError with the path when the disk is full.
        """
        check_name(step.kind, "step.kind")
        if step.kind.startswith("."):
            raise StoreError(f"step.kind: {step.kind!r} may not start with a dot")
        self.prepare()
        out = self.root / step.kind / f"{step.key}.tmp-{uuid.uuid4().hex}"
        scratch = self.root / ".scratch" / step.key
        lease = None
        try:
            lease = self._wait_for_lease(step.key, on_wait)
            if lease is None:
                yield None
                return
            with contextlib.suppress(MissingArtifact):
                self.path(step.key)
                self.quarantine(step.key)  # there, but its manifest does not parse
            inputs = {name: self.load(key) for name, key in sorted(step.input_keys.items())}
            started, clock = utc_now(), time.monotonic()
            out.mkdir(parents=True)
            scratch.mkdir(exist_ok=True)
            building = Building(step, out, scratch, inputs, lease)
            yield building
            self._publish(building, started, time.monotonic() - clock)
            shutil.rmtree(scratch, ignore_errors=True)
            self.failure_log(step.key).unlink(missing_ok=True)
        except OSError as error:
            if error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise OSError(error.errno, error.strerror, str(out)) from error
            raise
        finally:
            shutil.rmtree(out, ignore_errors=True)
            if lease is not None:
                lease.release()

    def _wait_for_lease(self, key: str, on_wait: Callable[[], None] | None) -> Lease | None:
        while not self.has(key):
            lease = leases.acquire(self.root / ".leases", key, self.heartbeat_seconds, self.stale_seconds)
            if lease is not None:
                if not self.has(key):
                    return lease
                lease.release()
                return None
            if on_wait is not None:
                on_wait()
            time.sleep(self.poll_seconds)
        return None

    def _publish(self, building: Building, started: str, seconds: float) -> None:
        step, out, result = building.step, building.out, building.result
        building.lease.check()
        files = {}
        for name in list_files(out):
            if name == MANIFEST:
                raise StoreError(f"{out / name}: a stage may not write the manifest")
            with open(out / name, "rb+") as file:
                os.fsync(file.fileno())
            files[name] = {"sha256": sha256_file(out / name), "bytes": (out / name).stat().st_size}
        if not files:
            raise StoreError(f"{out}: stage {step.kind} wrote no files")
        ledger = asdict(result.ledger)
        ledger["wall_seconds"] = ledger["wall_seconds"] or seconds
        inputs = {name: {"key": a.key, "digest": a.digest} for name, a in building.artifacts.items()}
        manifest = plain({
            "format": FORMAT, "kind": step.kind, "key": step.key, "label": step.label, "config": step.config,
            "recipe": step.recipe, "inputs": inputs, "files": files,
            "digest": sha256_text(canonical_json({name: item["sha256"] for name, item in files.items()})),
            "ledger": finite(ledger), "metrics": finite(result.metrics), "work": step.recorded_work,
            "resumed_from": result.resumed_from, "started": started, "duration_seconds": seconds, **provenance(),
        }, "manifest")  # fmt: skip
        manifest["seal"] = sha256_text(canonical_json(manifest, "manifest"))
        with open(out / MANIFEST, "w", encoding="utf-8") as file:
            json.dump(manifest, file, indent=1, sort_keys=True, allow_nan=False)
            file.flush()
            os.fsync(file.fileno())
        for folder in [out, *(path for path in out.rglob("*") if path.is_dir())]:
            fsync_folder(folder)
        building.lease.check()
        try:
            os.rename(out, out.parent / step.key)  # fails on a folder that is not empty: a second writer never wins
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise LeaseLost(f"{step.key[:10]}: another builder has published it") from error
            raise
        fsync_folder(out.parent)

    def gc(self, keep_keys: Iterable[str] = (), older_than: float = 0.0,
           delete: bool = False) -> list[tuple[Path, int]]:  # fmt: skip
        """What is not an ancestor of ``keep_keys`` and is at least ``older_than`` seconds old: (path, bytes) of each.

        Nothing is removed unless ``delete``. Scratch of unfinished steps, quarantine and failure logs of that age are
        listed too; what a live builder holds never is.
        """
        self.prepare()
        kept = {ancestor for key in keep_keys for ancestor in self.lineage(key, missing_ok=True)}
        now = leases.filesystem_now(self.root)
        candidates = [self.path(key) for key in self.keys() if key not in kept]
        for name in (".scratch", ".quarantine", ".failures"):
            candidates += sorted((self.root / name).iterdir())
        found = []
        for path in candidates:
            stamp = path / MANIFEST if (path / MANIFEST).is_file() else path
            if now - stamp.stat().st_mtime < older_than or self.is_building(path.name):
                continue
            sizes = [item.stat().st_size for item in (path.rglob("*") if path.is_dir() else [path]) if item.is_file()]
            found.append((path, sum(sizes)))
            if delete:
                trash = self.root / f".trash-{uuid.uuid4().hex}"
                os.replace(path, trash)  # in one move: half an artifact must never be seen under its key
                shutil.rmtree(trash) if trash.is_dir() else trash.unlink()
        return found


# --- command line --------------------------------------------------------------------------------------------------


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _list(store: Store) -> int:
    for manifest in sorted(store.manifests(), key=lambda manifest: (manifest["started"], manifest["key"])):
        size = _size(sum(item["bytes"] for item in manifest["files"].values()))
        print(f"{manifest['key'][:10]}  {manifest['kind']:<14} {size:>9} {manifest['duration_seconds']:>8.1f} s  "
              f"{manifest['started'][:19]}  {manifest['label']}")  # fmt: skip
    return 0


def _show(store: Store, key: str) -> int:
    print(json.dumps(store.manifest(key), indent=1, sort_keys=True))
    manifests = store.lineage(key, missing_ok=True)

    def tree(this: str, name: str, digest: str, depth: int) -> None:
        manifest = manifests.get(this)
        said = "NOT IN THE STORE" if manifest is None else f"{manifest['kind']} {manifest['label']}"
        if manifest is not None and digest != manifest["digest"]:
            said += f"  (was {digest[:10]} when used, now {manifest['digest'][:10]}: rebuilt with other bytes)"
        print(f"{'  ' * depth}{name}{this[:10]}  {said}")
        for title, item in (manifest or {"inputs": {}})["inputs"].items():
            tree(item["key"], f"{title} = ", item["digest"], depth + 1)

    print("\nlineage")
    tree(key, "", manifests[key]["digest"], 0)
    return 0


def _verify(store: Store, keys: Sequence[str], quarantine: bool) -> int:
    bad = 0
    for key in keys:
        wrong = store.problems(key)
        for line in wrong:
            print(line, file=sys.stderr)
        if wrong:
            bad += 1
            if quarantine:
                print(f"{key[:10]}: moved to {store.quarantine(key)}", file=sys.stderr)
    print(f"{len(keys) - bad} of {len(keys)} artifacts are as published")
    return 1 if bad else 0


def _gc(store: Store, keep: Sequence[str], older_than_days: float, delete: bool) -> int:
    found = store.gc([store.resolve(key) for key in keep], older_than_days * 86400, delete)
    for path, size in found:
        print(f"{_size(size):>9}  {path.relative_to(store.root)}")
    total = _size(sum(size for _, size in found))
    print(f"{'removed' if delete else 'would remove (repeat with --delete)'}: {len(found)} paths, {total}")
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status (1: something is corrupt, 2: bad arguments or no such key)."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--store", default=os.environ.get("ALIGNMENT_LAB_STORE", "store"), help="default: %(default)s")
    parser = argparse.ArgumentParser(prog="python -m lab.store", description="Look into a store of artifacts.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("ls", parents=[common], help="one line an artifact, oldest first")
    show = commands.add_parser("show", parents=[common], help="a manifest and its lineage")
    show.add_argument("key", help="a key or its start")
    verify = commands.add_parser("verify", parents=[common], help="hash every file again")
    verify.add_argument("key", nargs="?", help="a key or its start; default: all")
    verify.add_argument("--quarantine", action="store_true", help="move what is corrupt out of the way")
    gc = commands.add_parser("gc", parents=[common], help="list, or remove, what nothing that is kept needs")
    gc.add_argument("--keep", nargs="*", default=[], metavar="KEY", help="keep these and all their ancestors")
    gc.add_argument("--older-than", type=float, default=0.0, metavar="DAYS")
    gc.add_argument("--delete", action="store_true", help="without it nothing is removed")
    arguments = parser.parse_args(argv)
    store = Store(arguments.store)
    try:
        if not store.root.is_dir():
            raise StoreError(f"store {store.root}: no such folder")
        if arguments.command == "ls":
            return _list(store)
        if arguments.command == "show":
            return _show(store, store.resolve(arguments.key))
        if arguments.command == "verify":
            keys = [store.resolve(arguments.key)] if arguments.key else store.keys()
            return _verify(store, keys, arguments.quarantine)
        return _gc(store, arguments.keep, arguments.older_than, arguments.delete)
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

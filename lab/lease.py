"""One builder at a time for a key, on one machine or many that share a folder.

A lease is the file ``<key>.<generation>`` made with O_EXCL; the highest generation is the holder. A stale holder is
taken over by making the next generation, so exactly one taker wins and generations are fencing tokens: a holder that
no longer has the highest one may not publish. This is not a lock against hostile programs, and it needs no server.

A lease is stale when its heartbeat stopped (measured on the file system's own clock, never on another host's) or, at
once, when the process that wrote it ran on this machine and is gone: a run killed a second ago can be repeated now.
"""

from __future__ import annotations

import json
import os
import threading
import uuid
from pathlib import Path
from typing import Any


class LeaseLost(RuntimeError):  # noqa: N818
    """Another builder took this key over, because this one seemed dead; what was built here may not be published."""


def filesystem_now(folder: Path) -> float:
    """The time on the file system's clock, in seconds: the modification time of a file made this moment."""
    probe = folder / f".clock-{uuid.uuid4().hex}"
    probe.touch()
    try:
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _start_of(pid: int) -> str | None:
    """The kernel's start tick of a live process (so that a reused pid is not mistaken), None if gone or a zombie."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields[19]


def _this_process() -> dict[str, Any] | None:
    """What tells this process from every other that can see the same boot: None where /proc does not say."""
    try:
        return {
            "boot": Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            "namespace": os.readlink("/proc/self/ns/pid"),  # containers share a boot id, not their process ids
            "pid": os.getpid(),
            "start": _start_of(os.getpid()),
        }
    except OSError:
        return None


def _is_gone(owner: Any) -> bool:
    """True only when the owner surely ran here and surely ended."""
    here = _this_process()
    if not isinstance(owner, dict) or here is None:
        return False
    if any(owner.get(name) != here[name] for name in ("boot", "namespace")) or not isinstance(owner.get("pid"), int):
        return False
    try:
        return _start_of(owner["pid"]) != owner.get("start")
    except OSError:
        pass  # no such process, or one of another user on a machine that hides those
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _generations(folder: Path, key: str) -> list[tuple[int, Path]]:
    """The lease files of a key, oldest generation first."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name, _, number = entry.name.rpartition(".")
            if name == key and number.isdigit():
                found.append((int(number), folder / entry.name))
    return sorted(found)


def _is_stale(path: Path, stale_seconds: float) -> bool:
    try:
        beat = path.stat().st_mtime
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return False  # released this moment: look again
    try:
        owner = json.loads(text).get("process")
    except (ValueError, AttributeError):
        owner = None  # its writer is between O_EXCL and write, or died there
    return _is_gone(owner) or filesystem_now(path.parent) - beat > stale_seconds


def is_held(folder: Path, key: str, stale_seconds: float) -> bool:
    """True while a live builder holds the key."""
    held = _generations(folder, key)
    return bool(held) and not _is_stale(held[-1][1], stale_seconds)


class Lease:
    """A held lease. Its heartbeat runs in a thread until ``release``; ``lost`` is set when it was taken over."""

    def __init__(self, folder: Path, key: str, path: Path, generation: int, token: str, heartbeat_seconds: float):
        self.key, self.path, self.generation = key, path, generation
        self._folder, self._token, self._heartbeat_seconds = folder, token, heartbeat_seconds
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{key[:10]}", daemon=True)
        self._thread.start()

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat_seconds):
            try:
                os.utime(self.path)  # no time given: the file system stamps its own
            except FileNotFoundError:
                self.lost.set()
                return
            except OSError:
                continue  # a hiccup of a network file system; if it lasts, another builder takes over
            if not self.holds():
                self.lost.set()
                return

    def holds(self) -> bool:
        """True while this lease is still the highest generation and still ours. Reads the folder anew."""
        try:
            if json.loads(self.path.read_text(encoding="utf-8"))["token"] != self._token:
                return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        held = _generations(self._folder, self.key)
        return bool(held) and held[-1][0] == self.generation

    def check(self) -> None:
        """Raise LeaseLost if the lease was taken over."""
        if self.lost.is_set() or not self.holds():
            self.lost.set()
            raise LeaseLost(f"{self.key[:10]}: the lease was taken over by another builder; nothing was published")

    def release(self) -> None:
        """Stop the heartbeat and remove the lease, and the dead generations under it. Never raises."""
        self._stop.set()
        self._thread.join()
        try:
            if self.holds():
                for _, path in _generations(self._folder, self.key):
                    path.unlink(missing_ok=True)
        except OSError:
            pass  # it goes stale by itself


def acquire(folder: Path, key: str, heartbeat_seconds: float, stale_seconds: float) -> Lease | None:
    """The lease of a key, or None while a live builder holds it. OSError when the folder cannot be written.

    The caller must look again whether the key was built: the last holder may have published and left in between.
    """
    held = _generations(folder, key)
    if held and not _is_stale(held[-1][1], stale_seconds):
        return None
    generation = held[-1][0] + 1 if held else 1
    path, token = folder / f"{key}.{generation:06d}", uuid.uuid4().hex
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    except FileExistsError:
        return None  # another taker was faster
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"token": token, "process": _this_process()}, file)
    except OSError:
        path.unlink(missing_ok=True)  # a full disk must not leave a lease that nobody holds
        raise
    return Lease(folder, key, path, generation, token, heartbeat_seconds)

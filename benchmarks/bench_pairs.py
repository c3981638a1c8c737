"""Seconds and memory to prepare 100,000 preference pairs: the streaming reader against the two obvious ways.

    python benchmarks/bench_pairs.py [--pairs 100000] [--repetitions 3]

Prepare: read a JSONL file, check every row, count identical, duplicate and contradictory pairs, leave out those that
are declared, split by prompt, write training and held-out pairs and a card. lab: the check before a run (one pass) and
the stage (another). stage: the stage alone. list: all rows as dicts, a set of text triples. datasets: ``load_dataset``,
``map`` to the lab's row, ``filter`` with a set, split by ``filter``, ``to_json``. Each runs in a process of its own, in
turns; memory is the process's largest resident set. The number of pairs kept is asserted to be the same.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

WAYS = ("lab", "stage", "list", "datasets")


def write_pairs(path: Path, count: int) -> None:
    """Pairs of about 1.6 kB: one in 50 repeats an earlier one, one in 100 has two equal sides."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(5000)]

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(words, k=rng.randint(low, high)))

    rows: list[str] = []
    with open(path, "w", encoding="utf-8") as file:
        for number in range(count):
            if number % 50 == 49:
                line = rng.choice(rows)
            else:
                chosen = text(40, 160)
                rejected = chosen if number % 100 == 7 else text(40, 160)
                line = json.dumps({"prompt": f"{number}: {text(10, 80)}", "chosen": chosen, "rejected": rejected})
                rows = [*rows[-200:], line]
            file.write(line + "\n")


def prepare_lab(path: Path, out: Path, check: bool) -> int:
    from lab.config import PairsFileConfig
    from lab.data.origin import file_digest
    from lab.data.planned import plan_pairs
    from lab.stages import pairs_file
    from lab.store import Context

    settings = PairsFileConfig("file", str(path), "pairs", max_characters=0)
    config: dict[str, Any] = {"format": "pairs", "held_out": 0.15, "limit": 0, "max_characters": 0, "seed": 0,
                              "drop": list(settings.drop), "digest": file_digest(path)}  # fmt: skip
    if check:
        config = plan_pairs(settings).config
    context = Context(key="k", seed_root="s", scratch=out / "scratch", resources={"path": str(path)})
    metrics = pairs_file.run(config, {}, out, context).metrics
    return int(metrics["pairs"] + metrics["held_out"])


def prepare_list(path: Path, out: Path) -> int:
    from lab.records import derive_seed

    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    seen: set[tuple[str, str, str]] = set()
    kept = []
    for row in rows:
        key = (row["prompt"], row["chosen"], row["rejected"])
        if row["chosen"] != row["rejected"] and key not in seen:
            kept.append(lab_row(row))
        seen.add(key)
    sides: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for row in kept:
        sides[derive_seed("held out", 0, row["prompt"]["text"]) / 2**63 < 0.15].append(row)
    for held_out, side in sides.items():
        side.sort(key=lambda row: derive_seed("pairs", 0, row["prompt"]["text"]))
        (out / f"{held_out}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in side), encoding="utf-8")
    lengths = [(len(row["prompt"]["text"]), len(row["chosen"]), len(row["rejected"])) for row in kept]
    (out / "card.json").write_text(
        json.dumps({"medians": [statistics.median(one) for one in zip(*lengths, strict=True)]})
    )
    return len(kept)


def prepare_datasets(path: Path, out: Path) -> int:
    from datasets import load_dataset

    from lab.records import derive_seed

    seen: set[tuple[str, str, str]] = set()

    def new(row: dict[str, Any]) -> bool:
        key = (row["prompt"]["text"], row["chosen"], row["rejected"])
        fresh = row["chosen"] != row["rejected"] and key not in seen
        seen.add(key)
        return fresh

    rows = load_dataset("json", data_files=str(path), split="train", cache_dir=str(out / "cache"))
    rows = rows.map(lab_row).filter(new)
    rows = rows.map(lambda row: {"place": derive_seed("held out", 0, row["prompt"]["text"]) / 2**63,
                                 "rank": derive_seed("pairs", 0, row["prompt"]["text"])})  # fmt: skip
    for held_out in (True, False):
        side = rows.filter(lambda row, held_out=held_out: (row["place"] < 0.15) == held_out).sort("rank")
        side.remove_columns(["place", "rank"]).to_json(out / f"{held_out}.jsonl")
    return len(rows)


def lab_row(row: dict[str, Any]) -> dict[str, Any]:
    prompt = {"text": row["prompt"], "domain": "pairs", "level": 0}
    return {**row, "prompt": prompt, "annotator": "pairs", "strength": 0.0}


def child(way: str, path: Path, out: Path) -> None:
    begin = time.perf_counter()
    if way in ("lab", "stage"):
        kept = prepare_lab(path, out, check=way == "lab")
    else:
        kept = (prepare_list if way == "list" else prepare_datasets)(path, out)
    seconds = time.perf_counter() - begin
    usage = resource.getrusage(resource.RUSAGE_SELF)
    print(json.dumps({"seconds": seconds, "cpu": usage.ru_utime + usage.ru_stime, "kilobytes": usage.ru_maxrss,
                      "kept": kept}))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--child", nargs=3, metavar=("WAY", "FILE", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], Path(options.child[1]), Path(options.child[2]))
        return
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    with TemporaryDirectory() as scratch:
        path = Path(scratch) / "pairs.jsonl"
        write_pairs(path, options.pairs)
        print(f"{options.pairs:,} pairs, {path.stat().st_size / 1e6:.0f} MB")
        for turn in range(options.repetitions):
            for way in WAYS:
                out = Path(scratch) / f"{way}{turn}"
                out.mkdir()
                command = [sys.executable, __file__, "--child", way, str(path), str(out)]
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
                subprocess.run(["rm", "-r", str(out)], check=True)
    assert len({one["kept"] for runs in found.values() for one in runs}) == 1, found
    print("| way      | seconds             | CPU seconds | to list, CPU | largest memory, MB | to list |")
    for way, runs in found.items():
        seconds = [one["seconds"] for one in runs]
        cpu = statistics.median(one["cpu"] for one in runs)
        ratio = statistics.median(one["cpu"] / other["cpu"] for one, other in zip(runs, found["list"], strict=True))
        memory = statistics.median(one["kilobytes"] / 1024 for one in runs)
        smaller = statistics.median(
            one["kilobytes"] / other["kilobytes"] for one, other in zip(runs, found["list"], strict=True)
        )
        span = f"{statistics.median(seconds):.1f} ({min(seconds):.1f}-{max(seconds):.1f})"
        print(f"| {way:8} | {span:19} | {cpu:11.1f} | {ratio:12.2f} | {memory:18.0f} | {smaller:7.2f} |")


if __name__ == "__main__":
    main()

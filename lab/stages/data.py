"""The data step: prompts and demonstrations in disjoint splits, from the embedded world, a file or the Hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lab.data.card import write_card
from lab.data.jsonl import write_records
from lab.data.origin import Origin
from lab.data.sources import load, split
from lab.records import DOMAINS, Demonstration, Ledger, Prompt
from lab.store import Context, StageResult

DEMONSTRATIONS = ("base", "sft", "preference_demonstrations")
"""Splits that hold demonstrations; all others hold prompts."""
NAMED_ROWS = 20
"""The card names at most so many rows that could not be read."""


def run(config: Mapping[str, Any], inputs: Mapping[str, Path], out: Path, context: Context) -> StageResult:
    """Write `<split>.jsonl` for every split and `card.json` (counts, duplicates dropped, lengths).

    Config for `kind: world`: `seed`, demonstrators `base` and `sft`, `counts` of base, sft, preference, rl, evaluation,
    tuning; optional `levels` and `domains` (how often each domain comes, 1 where it is not named). For `kind: jsonl`:
    `digest` (of the file, or of a Hub data set's rows), `question`, `answer`, `verifier`, `domain`, `seed`, `counts`
    (no base), optional `demonstration`, `rows` and `drop` (`lab.config.data.JsonlData`). Where the rows lie is no part
    of identity: `context.resources` has the fields of an `Origin`, or `config` its `path`.
    Raises ValueError naming file, line and key, and data that are not the planned ones.
    """
    card: dict[str, Any] = {"kind": config["kind"]}
    match config["kind"]:
        case "world":
            splits = _world(config)
        case "jsonl":
            splits = _jsonl(config, Origin.of(config, context.resources), card)
        case other:
            raise ValueError(f"data.kind: expected world or jsonl, got {other!r}")
    card["splits"] = {}
    for done, (name, rows) in enumerate(splits.items(), 1):
        write_records(out / f"{name}.jsonl", rows)
        card["splits"][name] = _summary(rows)
        context.progress(done, len(splits), name)
    write_card(out, card, f"Prompts and demonstrations: {config['kind']}")
    used = sum(len(rows) for name, rows in splits.items() if name in ("base", "sft"))
    return StageResult(Ledger(demonstrations=used), card)


def _world(config: Mapping[str, Any]) -> dict[str, Sequence[Prompt | Demonstration]]:
    from lab.world.domains import LEVELS, Demonstrator
    from lab.world.generate import splits

    base, sft = Demonstrator(**config["base"]), Demonstrator(**config["sft"])
    domains = [name for name in DOMAINS for _ in range(config.get("domains", {}).get(name, 1))]
    drawn: dict[str, Sequence[Prompt | Demonstration]] = dict(
        splits(config["counts"], base, sft, config["seed"], domains, config.get("levels", LEVELS))
    )
    return drawn


def _jsonl(
    config: Mapping[str, Any], origin: Origin, card: dict[str, Any]
) -> dict[str, Sequence[Prompt | Demonstration]]:
    columns = {key: config[key] for key in ("question", "answer", "verifier", "domain")}
    columns |= {"demonstration": config.get("demonstration", ""), "drop": config.get("drop", ())}
    loaded = load(origin, **columns)
    if config.get("digest") not in (None, loaded.digest):
        what = "rows have" if origin.hub else "file has"
        raise ValueError(f"{origin.name}: the {what} changed since the plan was made (SHA-256 {loaded.digest[:12]}...)")
    cut = split(loaded.rows, config["counts"], config["seed"])
    card |= {
        "digest": loaded.digest,
        "rows": len(loaded.rows),
        "duplicates_dropped": loaded.duplicates,
        "conflicting_duplicates": loaded.conflicts,
    }
    if config.get("drop"):
        card["unreadable"] = {"count": len(loaded.unreadable), "rows": list(loaded.unreadable[:NAMED_ROWS])}
    splits: dict[str, Sequence[Prompt | Demonstration]] = {
        name: rows if name in DEMONSTRATIONS else [row.prompt for row in rows] for name, rows in cut.items()
    }
    # The data's own answers to the preference prompts: a weak policy may have no right one to prefer.
    splits["preference_demonstrations"] = cut["preference"]
    return splits


def _summary(rows: Sequence[Prompt | Demonstration]) -> dict[str, Any]:
    """Counts by domain and lengths in characters."""
    prompts = [row.prompt if isinstance(row, Demonstration) else row for row in rows]
    card: dict[str, Any] = {
        "count": len(rows),
        "domains": dict(sorted(Counter(prompt.domain for prompt in prompts).items())),
        "prompt_characters": _spread([len(prompt.text) for prompt in prompts]),
    }
    completions = [len(row.completion) for row in rows if isinstance(row, Demonstration)]
    if completions:
        card["completion_characters"] = _spread(completions)
    return card


def _spread(lengths: Sequence[int]) -> dict[str, float]:
    if not lengths:
        return {}
    return {"minimum": min(lengths), "mean": round(sum(lengths) / len(lengths), 1), "maximum": max(lengths)}

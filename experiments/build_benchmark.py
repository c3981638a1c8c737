"""Question: can models and votes write a benchmark of reward models, and does it say what a written one says?

Prediction, from the procedure of RewardBench 2 (arXiv 2506.01937): where a rule checks, the items are right; where a
small judge and the majority decide, some are not, and the gold utility itself then loses points. Reward models score
lower than on the written items, where completions come from their own lineage, and length predicts nothing once the
items take turns in length. Whatever the rows say is the result.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.running import carry_out
from lab.config import LabConfig
from lab.graph.building import BUILT, BuildingGraph, build_building_graph
from lab.store import Store
from lab.typed import plain

if TYPE_CHECKING:
    import pandas as pd

STEPS = ("prompts", "suitable", "unseen", "clean", "answered", "labelled", "difficult", "items")
"""The funnel, in order."""


def run(config: LabConfig) -> int:
    """Print the plan (``plan=true``) or build and measure, and write the tables; 0 if every step finished."""
    graph, store = build_building_graph(config), Store(Path(config.run.store))
    if graph.left_out:
        print(f"left out, they do not read prompts of a file: {', '.join(graph.left_out)}", file=sys.stderr)
    outcome = carry_out(config, graph.steps, store)
    if outcome is not None and outcome.ok:
        report(config, graph, store)
    return 0 if outcome is None or outcome.ok else 1


def report(config: LabConfig, graph: BuildingGraph, store: Store) -> None:
    """``table.csv``, ``table.md``, ``summary.json`` and the built ``items.jsonl`` in ``run.results``."""
    from lab.tables import csv_bytes, json_bytes, records, table_digest, write_bytes

    table = measured(config, graph, store)
    cards = {name: _card(store, graph, name) for name in graph.sets if _is_built(graph, name)}
    folder = Path(config.run.results)
    folder.mkdir(parents=True, exist_ok=True)
    labels = {name: candidate.label for name, candidate in config.candidates.items()}
    lines = [*funnel_lines(cards[BUILT]), "", *set_lines(table, labels), "", *label_lines(cards)]
    settings = plain(config.build_benchmark)
    summary = {
        "experiment": config.experiment,
        "scale": config.scale.name,
        "note": config.scale.note or None,
        "seeds": list(range(config.first_seed, config.first_seed + config.seeds)),
        "resamples": config.run.resamples,
        "build_benchmark": _named(settings),
        "left_out": list(graph.left_out),
        "table_sha256": table_digest(table),
        "table": records(table),
        "cards": cards,
        "steps": [_source(store, step) for step in [graph.prompts, *graph.answers.values(), *graph.sets.values()]],
        "runs": [
            {"candidate": run.candidate, "seed": run.seed, "set": run.set, **_source(store, run.step)}
            for run in graph.runs
        ],
    }
    items = store.load(graph.sets[BUILT].key).path / "items.jsonl"
    files = {
        "table.csv": csv_bytes(table),
        "table.md": ("\n".join(lines) + "\n").encode(),
        "summary.json": json_bytes(summary),
        "items.jsonl": items.read_bytes(),
    }
    for name, content in files.items():
        write_bytes(folder / name, content)
    print("\n".join(["", *lines, "", *(str(folder / name) for name in files)]))


def measured(config: LabConfig, graph: BuildingGraph, store: Store) -> pd.DataFrame:
    """A row for each set, part of it and reward source (``lab.benchmarks.scoring.score_table``)."""
    import pandas as pd

    from lab.benchmarks.items import Scores, read_items, read_scores
    from lab.benchmarks.scoring import score_table

    frames = []
    for name, step in graph.sets.items():
        items = read_items(store.load(step.key).path / "items.jsonl")
        scores: dict[str, list[Scores]] = {}
        for run in graph.runs:
            if run.set == name:
                path = store.load(run.step.key).path / "scores.parquet"
                scores.setdefault(run.candidate, []).append(read_scores(path, items))
        if scores:
            table = score_table(items, scores, may_abstain=True, resamples=config.run.resamples)
            table.insert(0, "set", name)
            frames.append(table[table["half"] == "all"].drop(columns=["half"]))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["set"])


# ---------------------------------------------------------------- text


def funnel_lines(card: Mapping[str, Any]) -> list[str]:
    """The funnel as Markdown, a row a domain."""
    funnel = card["funnel"]
    domains = list(funnel["prompts"])
    lines = [f"| domain | {' | '.join(STEPS)} | four models | mislabelled |", "|---" * (len(STEPS) + 3) + "|"]
    for domain in domains:
        counts = [str(funnel[step].get(domain, 0)) for step in STEPS]
        lines.append(f"| {domain} | {' | '.join(counts)} | | {_errors(card, domain)} |")
    totals = [str(sum(funnel[step].values())) for step in STEPS]
    four = "–" if card["four_models"] is None else f"{card['four_models']:.0%}"
    return [*lines, f"| all | {' | '.join(totals)} | {four} | {_errors(card, 'all')} |"]


def _errors(card: Mapping[str, Any], domain: str) -> str:
    found = card["mislabelled_items"].get(domain)
    if found is None or found["share"] is None:
        return "–"
    return f"{found['wrong']} of {found['known']} ({found['share']:.0%})"


def set_lines(table: pd.DataFrame, labels: Mapping[str, str]) -> list[str]:
    """Score and interval of every source on every set, by part, as Markdown."""
    if table.empty:
        return []
    sets = list(dict.fromkeys(table["set"]))
    lines = [f"| part | source | {' | '.join(one.replace('_', ' ') for one in sets)} |", "|---" * (len(sets) + 2) + "|"]
    for part in dict.fromkeys(table["part"]):
        for model in labels:
            rows = table[(table["part"] == part) & (table["model"] == model)].set_index("set")
            cells = [_cell(rows.loc[one].to_dict()) if one in rows.index else "–" for one in sets]
            if any(cell != "–" for cell in cells):
                lines.append(f"| {part} | {labels[model]} | {' | '.join(cells)} |")
        rows = table[table["part"] == part].drop_duplicates("set").set_index("set")
        cells = [f"{rows.loc[one, 'longer_wins_words']:.0%}" if one in rows.index else "–" for one in sets]
        lines.append(f"| {part} | *longest is right, in words* | {' | '.join(cells)} |")
    return [*lines, "", "In brackets 95% intervals by bootstrap over items and seeds."]


def _cell(row: Mapping[str, Any]) -> str:
    if row["score"] != row["score"]:
        return "–"
    return f"{row['score']:.1%} [{row['low']:.1%}, {row['high']:.1%}]"


def label_lines(cards: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """How good the votes are, who wrote what, and what length does, as Markdown."""
    card = cards[BUILT]
    lines = ["| domain | voter | votes | for right | against the truth |", "|---|---|---|---|---|"]
    for domain, voters in card["voters"].items():
        for voter, found in voters.items():
            if isinstance(found, dict):
                errors = found["errors"]
                wrong = "–" if errors["share"] is None else f"{errors['share']:.1%}"
                lines.append(f"| {domain} | {voter} | {found['votes']} | {found['right']} | {wrong} |")
    models = card["models"]["all"]
    said = [
        f"{model} {models['chosen'].get(model, 0):.0%} / {models['rejected'].get(model, 0):.0%}"
        for model in sorted({*models["chosen"], *models["rejected"]})
    ]
    longer = card["longer_wins_words"]
    declared = ", ".join(card["gold_domains"])
    return [
        *lines,
        "",
        *(
            [f"Labels of {declared} are the truth, by declaration; the votes there are only measured."]
            if declared
            else []
        ),
        f"Shares of each model among chosen / rejected: {', '.join(said)}.",
        f"The longest completion is right: {longer['any']['all']:.1%} of items put together regardless of length, "
        f"{longer['balanced']['all']:.1%} where they take turns in length (this set: {card['lengths']}).",
    ]


# ---------------------------------------------------------------- provenance


def _is_built(graph: BuildingGraph, name: str) -> bool:
    return graph.sets[name].kind == "benchmark_build"


def _card(store: Store, graph: BuildingGraph, name: str) -> dict[str, Any]:
    path = store.load(graph.sets[name].key).path / "card.json"
    return dict(json.loads(path.read_text(encoding="utf-8")))


def _named(value: Any) -> Any:
    """Plain data with every path as the name of its file: no path of this machine leaves it."""
    if isinstance(value, list):
        return [_named(item) for item in value]
    if not isinstance(value, dict):
        return value
    paths = ("path", "prompts", "completions")
    found = {
        key: Path(item).name if key in paths and isinstance(item, str) else _named(item) for key, item in value.items()
    }
    if "against" in found:
        found["against"] = [Path(item).name for item in found["against"]]
    return found


def _source(store: Store, step: Any) -> dict[str, Any]:
    """What a step is and what came of it. No path of this machine."""
    manifest = store.manifest(step.key)
    kept = ("kind", "key", "digest", "config", "metrics", "ledger", "duration_seconds", "git", "packages", "python")
    return {"label": step.title, **{name: manifest[name] for name in kept}}

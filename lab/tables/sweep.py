"""From the points of a sweep over reward-model sizes to its tables. No torch.

Axis suffixes: S policy seeds, P prompts. Strata are domains of one prompt set: name -> (S, P), NaN for a missing cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats as scipy_stats

from lab.stats import Floats, HierarchicalBootstrap, Interval, interval_columns
from lab.tables.cells import in_order, mean_rows
from lab.tables.writing import json_bytes, records

ACCURACIES = ("accuracy", "overall", "easy", "hard")
"""Of a reward model: on held-out pairs; on the benchmark, and on its easy and its hard part."""

WORTH_HAVING = 0.01
"""Smallest effect of interest: accuracy (a share) or gold gained per tenfold parameters. Less is called nothing."""

Strata = dict[str, Floats]


@dataclass(frozen=True)
class SizeSweep:
    """The tables of a sweep over reward-model sizes. Missing values are NaN; ``_low`` and ``_high`` bound an interval.

    - ``table``: a line per planned point (backbone x prompts): parameters, status, n_seeds of n_expected, the reward
      model's accuracies, then for ``best_of_<n>`` and ``ppo`` gold and gold gained over SFT (``_delta``).
    - ``seeds``: a line per point x seed, with the same quantities.
    - ``slopes``: change of a quantity per tenfold parameters, by ``prompts`` ("" where the quantity has none) and as
      the difference between two prompt sets ("hard - easy"). Its verdict: "supported" (the interval lies above 0),
      "refuted" (it lies below ``WORTH_HAVING``) or "open".
    - ``findings``: the same in plain language.
    """

    table: pd.DataFrame
    seeds: pd.DataFrame
    slopes: pd.DataFrame
    findings: tuple[str, ...]
    ns: tuple[int, ...]
    level: float


def size_sweep(
    points: Sequence[Mapping[str, Any]],
    rows: pd.DataFrame | None,
    *,
    ns: Sequence[int] = (16, 64),
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> SizeSweep:
    """The tables of a sweep.

    ``points``, in table order: ``{"backbone", "prompts", "seeds" (planned), "status", "note", "reward_models"}``, the
    last as ``experiments.sweep.write_point`` has them. ``rows``: the columns of ``records.EvalRow`` and ``backbone``,
    ``prompts``; arms ``sft``, ``best_of_n`` and ``ppo_rm``; None if there are none. ``ns``: which n of best-of-n.

    Gold is the unweighted mean over domains of the mean over seeds and prompts; its interval is the hierarchical
    bootstrap's. A slope is the least-squares slope on log10(parameters), taken cell by cell (the same seed and prompt
    with every reward model), so that its interval comes from the same bootstrap: seeds and prompts stay paired across
    sizes. Accuracies have one number a seed: their intervals are Student's t over seeds.

    ValueError for a point given twice.
    """
    keys = [(point["backbone"], point["prompts"]) for point in points]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"size_sweep: point {twice[0]}, {twice[1]} is given twice")
    ns = tuple(ns)
    bootstrap = HierarchicalBootstrap(seed, resamples, level)
    golds = _golds(rows, keys, ns)
    parameters = _parameters(points)
    lines, seed_lines = [], []
    for key, point in zip(keys, points, strict=True):
        models = {one["seed"]: one for one in point["reward_models"]}
        gold = golds.get(key, {})
        needed = [gold[name][0] if name in gold else [] for name in (*(f"best_of_{n}" for n in ns), "ppo")]
        present = [seed for seed in point["seeds"] if seed in models and all(seed in have for have in needed)]
        line: dict[str, Any] = {"backbone": key[0], "prompts": key[1], "parameters": parameters[key[0]]}
        line |= {"status": point["status"], "note": point["note"]}
        line |= {"n_seeds": len(present), "n_expected": len(point["seeds"])}
        for name in ACCURACIES:
            values = [model[name] for model in models.values() if model.get(name) is not None]
            line |= interval_columns(name, t_interval(values, level))
        for name in ("chance", "length_only", "training_flops"):
            known = [float(model[name]) for model in models.values() if model.get(name) is not None]
            line[name] = float(np.mean(known)) if known else math.nan
        line |= _gold_columns(key, gold, ns, bootstrap)
        lines.append(line)
        seed_lines += _seed_lines(key, parameters[key[0]], point["seeds"], models, gold, ns)
    table, seeds = pd.DataFrame(lines), pd.DataFrame(seed_lines)
    slopes = _slopes(points, golds, parameters, ns, bootstrap, level)
    return SizeSweep(table, seeds, slopes, findings(slopes, ns), ns, level)


# ---------------------------------------------------------------------------------------------------------------- gold

Gold = dict[str, tuple[list[int], Strata]]
"""Quantity ("sft", "best_of_16", "ppo") -> its seeds and its cells."""


def _golds(rows: pd.DataFrame | None, keys: Sequence[tuple[str, str]], ns: Sequence[int]) -> dict[Any, Gold]:
    """Every point's gold, all points of one prompt set with the same prompts as columns."""
    if rows is None:
        return {}
    rows = rows[rows.decode == "sampled"]
    cells = rows.groupby(["backbone", "prompts", "arm", "step", "final", "seed", "domain", "prompt_id"]).gold.mean()
    cells = cells.reset_index()
    found: dict[Any, Gold] = {}
    for prompts, of_set in cells.groupby("prompts"):
        columns = {d: sorted(of_set.prompt_id[of_set.domain == d].unique()) for d in in_order(of_set.domain.unique())}
        for backbone in [b for b, p in keys if p == prompts]:
            own = of_set[of_set.backbone == backbone]
            parts = {"sft": own[own.arm == "sft"], "ppo": own[(own.arm == "ppo_rm") & own.final]}
            parts |= {f"best_of_{n}": own[(own.arm == "best_of_n") & (own.step == n)] for n in ns}
            if len(own):
                found[backbone, prompts] = {name: matrices(part, columns) for name, part in parts.items() if len(part)}
    return found


def matrices(cells: pd.DataFrame, columns: Mapping[str, Sequence[str]]) -> tuple[list[int], Strata]:
    """The seeds that have a value in every domain, and domain -> (S, P)."""
    wide = {
        domain: cells[cells.domain == domain].pivot(index="seed", columns="prompt_id", values="gold")
        for domain in columns
    }
    seeds = sorted(set.intersection(*(set(own.index[own.notna().any(axis=1)]) for own in wide.values())))
    strata = {
        domain: own.reindex(index=seeds, columns=list(columns[domain])).to_numpy(float) for domain, own in wide.items()
    }
    return [int(seed) for seed in seeds], strata


def _named(prompts: str, strata: Strata) -> Strata:
    """With the prompt set in the names, so that prompts of two sets are drawn independently."""
    return {f"{prompts}/{domain}": cells for domain, cells in strata.items()}


def _gold_columns(
    key: tuple[str, str], gold: Gold, ns: Sequence[int], bootstrap: HierarchicalBootstrap
) -> dict[str, float]:
    line: dict[str, float] = {}
    base = _named(key[1], {d: mean_rows(cells) for d, cells in gold["sft"][1].items()}) if "sft" in gold else None
    line |= interval_columns("sft", bootstrap.interval("sft", base) if base else None)
    for name in (*(f"best_of_{n}" for n in ns), "ppo"):
        seeds, strata = gold.get(name, ([], {}))
        arm, own = f"{key[0]} {name}", _named(key[1], strata)
        line |= interval_columns(name, bootstrap.interval(arm, own) if seeds else None)
        gap = bootstrap.difference(arm, own, "sft", base) if seeds and base else None
        line |= interval_columns(f"{name}_delta", gap)
    return line


def _seed_lines(
    key: tuple[str, str],
    parameters: float,
    planned: Sequence[int],
    models: Mapping[int, Mapping[str, Any]],
    gold: Gold,
    ns: Sequence[int],
) -> list[dict[str, Any]]:
    start = seed_means(*gold["sft"]) if "sft" in gold else {}
    base = float(np.mean(list(start.values()))) if start else math.nan
    means = {name: seed_means(*gold.get(name, ([], {}))) for name in (*(f"best_of_{n}" for n in ns), "ppo")}
    lines = []
    for seed in planned:
        line: dict[str, Any] = {"backbone": key[0], "prompts": key[1], "parameters": parameters, "seed": seed}
        for name in ACCURACIES:
            value = models.get(seed, {}).get(name)
            line[name] = math.nan if value is None else float(value)
        for name, by_seed in means.items():
            line |= {name: by_seed.get(seed, math.nan), f"{name}_delta": by_seed.get(seed, math.nan) - base}
        lines.append(line)
    return lines


def seed_means(seeds: Sequence[int], strata: Strata) -> dict[int, float]:
    """Seed -> the unweighted mean over domains of its mean over prompts."""
    if not seeds:
        return {}
    means_S = np.mean([np.nanmean(cells, axis=1) for cells in strata.values()], axis=0)
    return {seed: float(mean) for seed, mean in zip(seeds, means_S, strict=True)}


def _parameters(points: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Backbone -> parameters, from any of its points: one that failed is as large as its sister. ValueError if two of
    its points disagree."""
    found: dict[str, float] = {}
    for point in points:
        for model in point["reward_models"]:
            size = float(model["parameters"])
            if found.setdefault(point["backbone"], size) != size:
                raise ValueError(f"backbone {point['backbone']}: {found[point['backbone']]:g} and {size:g} parameters")
    return {point["backbone"]: found.get(point["backbone"], math.nan) for point in points}


# -------------------------------------------------------------------------------------------------------------- slopes


def t_interval(values: Sequence[float], level: float) -> Interval | None:
    """Mean and Student's t interval over seeds; with one seed the interval is unknown (NaN); None without values."""
    own = np.asarray(values, dtype=np.float64)
    if own.size == 0:
        return None
    mean = float(own.mean())
    if own.size == 1:
        return Interval(mean, math.nan, math.nan, 1, 0, "nothing (one seed)")
    half = float(scipy_stats.t.ppf((1 + level) / 2, own.size - 1) * own.std(ddof=1) / math.sqrt(own.size))
    return Interval(mean, mean - half, mean + half, own.size, 0, "seeds")


def slope_weights(x: Sequence[float]) -> Floats:
    """w with sum_i w_i y_i = the least-squares slope of y on x: (x_i - mean x) / sum (x - mean x)^2.

    ValueError where all x are the same.
    """
    centred = np.asarray(x, dtype=np.float64) - np.mean(x)
    if not centred.any():
        raise ValueError(f"slope_weights: expected different x, got {list(x)}")
    return np.asarray(centred / (centred**2).sum())


def _slopes(
    points: Sequence[Mapping[str, Any]],
    golds: Mapping[Any, Gold],
    parameters: Mapping[str, float],
    ns: Sequence[int],
    bootstrap: HierarchicalBootstrap,
    level: float,
) -> pd.DataFrame:
    sets = list(dict.fromkeys(point["prompts"] for point in points))
    lines = [_accuracy_slope(name, points, parameters, level) for name in ACCURACIES]
    for name in (*(f"best_of_{n}" for n in ns), "ppo"):
        by_size = {
            prompts: {
                backbone: golds[backbone, prompts][name]
                for backbone in parameters
                if name in golds.get((backbone, prompts), {}) and not math.isnan(parameters[backbone])
            }
            for prompts in sets
        }
        for prompts in sets:
            sizes = list(by_size[prompts])
            lines.append(_gold_slope(name, {prompts: 1.0}, by_size, sizes, parameters, bootstrap))
        if len(sets) == 2:
            sizes = [size for size in by_size[sets[0]] if size in by_size[sets[1]]]
            lines.append(_gold_slope(name, {sets[1]: 1.0, sets[0]: -1.0}, by_size, sizes, parameters, bootstrap))
    return pd.DataFrame(lines)


def _accuracy_slope(
    name: str, points: Sequence[Mapping[str, Any]], parameters: Mapping[str, float], level: float
) -> dict[str, Any]:
    """The reward models are trained on the same pool whatever the prompts: a seed's value is the mean over prompts."""
    values: dict[str, dict[int, list[float]]] = {}
    for point in points:
        for model in point["reward_models"]:
            if model.get(name) is not None:
                values.setdefault(point["backbone"], {}).setdefault(model["seed"], []).append(float(model[name]))
    sizes = list(values)
    seeds = sorted(set.intersection(*(set(own) for own in values.values()))) if values else []
    found = None
    if _fits(sizes, parameters) and seeds:
        weights = slope_weights([math.log10(parameters[size]) for size in sizes])
        means_SK = np.array([[np.mean(values[size][seed]) for size in sizes] for seed in seeds])
        found = t_interval(list(means_SK @ weights), level)
    return _slope_line(name, "", found, len(sizes))


def _gold_slope(
    name: str,
    signs: Mapping[str, float],
    by_size: Mapping[str, Mapping[str, tuple[list[int], Strata]]],
    sizes: Sequence[str],
    parameters: Mapping[str, float],
    bootstrap: HierarchicalBootstrap,
) -> dict[str, Any]:
    """The slope in one prompt set, or sum_sets sign x slope: strata of all sets, each scaled so that the bootstrap's
    mean over strata is that sum."""
    label = " - ".join(signs)
    parts = [by_size[prompts][size] for prompts in signs for size in sizes]
    seeds = sorted(set.intersection(*(set(own) for own, _ in parts))) if parts else []
    if not _fits(sizes, parameters) or not seeds:
        return _slope_line(name, label, None, len(sizes))
    weights = slope_weights([math.log10(parameters[size]) for size in sizes])
    strata: Strata = {}
    for prompts, sign in signs.items():
        own = by_size[prompts]
        domains = list(own[sizes[0]][1])
        for domain in domains:
            cells_KSP = np.stack([own[s][1][domain][[own[s][0].index(seed) for seed in seeds]] for s in sizes])
            strata[f"{prompts}/{domain}"] = sign / len(domains) * np.tensordot(weights, cells_KSP, 1)
    strata = {domain: cells * len(strata) for domain, cells in strata.items()}
    return _slope_line(name, label, bootstrap.interval(f"slope {name}", strata), len(sizes))


def _fits(sizes: Sequence[str], parameters: Mapping[str, float]) -> bool:
    return len({parameters[size] for size in sizes}) > 1


def _slope_line(name: str, prompts: str, found: Interval | None, n_sizes: int) -> dict[str, Any]:
    line: dict[str, Any] = {"quantity": name, "prompts": prompts, **interval_columns("slope", found)}
    line |= {"n_sizes": n_sizes, "n_seeds": found.n_seeds if found else 0}
    return line | {"verdict": verdict(line["slope_low"], line["slope_high"], line["n_seeds"])}


def verdict(low: float, high: float, n_seeds: int) -> str:
    """What an interval of a change says of "size buys something worth having"; of one seed's runs alone: nothing."""
    if math.isnan(low) or n_seeds < 2:
        return "open"
    if high < WORTH_HAVING:
        return "refuted"
    return "supported" if low > 0 else "open"


# ------------------------------------------------------------------------------------------------------------ findings


def findings(slopes: pd.DataFrame, ns: Sequence[int]) -> tuple[str, ...]:
    """Answers to "does size buy accuracy, best-of-n, PPO; and only on hard prompts?", in words."""
    by_key = {(line.quantity, line.prompts): line for line in slopes.itertuples()}
    said = []
    for name, label in (("accuracy", "on held-out pairs"), ("hard", "on the hard part of the benchmark")):
        said.append(f"Does size buy accuracy {label}? {_sentence(by_key[name, ''])}.")
    for name, label in (*((f"best_of_{n}", f"best-of-{n}") for n in ns), ("ppo", "PPO")):
        sets = [prompts for quantity, prompts in by_key if quantity == name and " - " not in prompts]
        for prompts in sets:
            said.append(f"Does size buy gold with {label}, {prompts} prompts? {_sentence(by_key[name, prompts])}.")
        if len(sets) == 2:
            both = f"{sets[1]} - {sets[0]}"
            easy, hard, gap = (by_key[name, prompts] for prompts in (*sets, both))
            only = only_hard(easy.verdict, hard.verdict, gap.verdict).capitalize()
            gap_said = _sentence(gap)
            said.append(
                f"With {label}, does it pay on {sets[1]} prompts only? {only}. More than on {sets[0]}? {gap_said}."
            )
    return tuple(said)


def only_hard(easy: str, hard: str, gap: str) -> str:
    """Whether size pays on hard prompts alone, from the verdicts on easy, on hard and on their difference.

    Supported needs all three: something on hard, nothing worth having on easy, and more on hard than on easy.
    """
    if easy == "supported" or hard == "refuted" or gap == "refuted":
        return "refuted"
    return "supported" if (easy, hard, gap) == ("refuted", "supported", "supported") else "open"


def _sentence(line: Any) -> str:
    if math.isnan(line.slope):
        return "Open: not measured"
    style, unit = ("+.1f", "points") if line.quantity in ACCURACIES else ("+.3f", "gold")
    slope, low, high = (
        value * (100 if unit == "points" else 1) for value in (line.slope, line.slope_low, line.slope_high)
    )
    interval = "" if math.isnan(low) else f" [{low:{style}}, {high:{style}}]"
    counts = f"{line.n_sizes} sizes, {line.n_seeds} seed{'s' if line.n_seeds != 1 else ''}"
    return f"{line.verdict.capitalize()}: {slope:{style}} {unit} per tenfold parameters{interval} ({counts})"


# -------------------------------------------------------------------------------------------------------------- output


def summary(found: SizeSweep) -> bytes:
    """``table.json``: all tables and findings; ``lab.figures.sweep`` draws from it alone."""
    return json_bytes(
        {
            "table": records(found.table),
            "seeds": records(found.seeds),
            "slopes": records(found.slopes),
            "findings": list(found.findings),
            "ns": list(found.ns),
            "level": found.level,
        }
    )


def _lines(found: SizeSweep) -> tuple[list[str], list[list[str]]]:
    golds = [*(f"best_of_{n}" for n in found.ns), "ppo"]
    head = ["backbone", "prompts", "parameters", "seeds", "accuracy", "benchmark", "its hard part"]
    head += [*(f"best-of-{n} gold" for n in found.ns), "PPO gold", "PPO Δ SFT", "RM training FLOPs", "status"]
    body = []
    for line in found.table.to_dict("records"):
        cells = [line["backbone"], line["prompts"], number(line["parameters"], ",.0f")]
        cells.append(f"{line['n_seeds']} of {line['n_expected']}")
        cells += [with_interval(line, name, ".1%") for name in ("accuracy", "overall", "hard")]
        cells += [with_interval(line, name, ".3f") for name in golds] + [with_interval(line, "ppo_delta", "+.3f")]
        cells.append(number(line["training_flops"], ".2g"))
        body.append([*cells, f"{line['status']}: {line['note']}".rstrip(": ")])
    return head, body


def _caption(found: SizeSweep) -> str:
    return (
        f"[{found.level:.0%} intervals: gold by bootstrap over seeds and prompts, accuracy by Student's t over seeds; "
        f"refuted: less than {WORTH_HAVING:g} per tenfold parameters, with the whole interval]"
    )


def markdown(found: SizeSweep) -> str:
    """``table.md``: the lines that people read, then the findings."""
    head, body = _lines(found)
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in body]
    return "\n".join([*lines, "", _caption(found), "", *(f"- {sentence}" for sentence in found.findings), ""])


def terminal(found: SizeSweep) -> str:
    """The same as text."""
    return "\n".join([*aligned(*_lines(found)), "", *found.findings, "", _caption(found)])


def aligned(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table for the terminal, its columns aligned to the left."""
    widths = [max(len(line[column]) for line in [head, *body]) for column in range(len(head))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in (head, ["-" * width for width in widths], *body)
    ]


def with_interval(line: Mapping[str, Any], name: str, style: str) -> str:
    """``0.512 [0.480, 0.544]`` from the columns of ``name``; a dash where it is missing."""
    if math.isnan(line[name]):
        return "–"
    ends = (
        "" if math.isnan(line[f"{name}_low"]) else f" [{line[f'{name}_low']:{style}}, {line[f'{name}_high']:{style}}]"
    )
    return f"{line[name]:{style}}{ends}"


def number(value: float, style: str) -> str:
    """The value, or a dash where it is missing."""
    return "–" if math.isnan(value) else format(value, style)

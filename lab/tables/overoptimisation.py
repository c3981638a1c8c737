"""Who is overoptimised, and by how much: gold along best-of-n and along training, fits of it, and drops from the best.

The question is that of Coste et al. 2023 (arXiv 2310.02743), the fitted forms those of Gao et al. 2022 (arXiv
2210.10760, ``lab.overoptimisation``). No torch, no store.

Axis suffixes: K points of a path, S seeds, P prompts, N samples of one prompt in the pool, B bootstrap resamples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from lab.best_of_n import by_domain, gold_curve, proxy_curve
from lab.overoptimisation import Method, fit_table
from lab.stats import Floats, HierarchicalBootstrap, best_of_n_kl, holm, interval_columns
from lab.tables.curves import Curve
from lab.tables.reward_models import Pool
from lab.tables.sweep import WORTH_HAVING, t_interval

ALPHA = 0.05
"""Of a contrast's p value, after Holm's correction over the contrasts of its method."""


@dataclass(frozen=True)
class Planned:
    """One model under one method, as the plan has it.

    ``against``: the models of the same method with which its drop is compared, the main one first. ``note``: what went
    wrong.
    """

    method: Method
    model: str
    label: str
    n_expected: int
    against: tuple[str, ...] = ()
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.method} {self.model}"


@dataclass(frozen=True)
class Track:
    """Where one model led, point by point. ``at`` (K): n of best-of-n, or optimizer steps.

    ``sqrt_kl``, ``proxy_gain`` (over SFT, NaN where unknown): (K, S); ``gold``: domain -> (K, S, P); ``start``: domain
    -> (1, P), of the SFT checkpoint on the same prompts.
    """

    seeds: tuple[int, ...]
    at: tuple[int, ...]
    sqrt_kl: Floats
    gold: Mapping[str, Floats]
    start: Mapping[str, Floats]
    proxy_gain: Floats

    def gain(self, index: int) -> dict[str, Floats]:
        """Domain -> (S, P): gold over SFT at one point."""
        return {domain: cells[index] - self.start[domain] for domain, cells in self.gold.items()}

    @property
    def end_sqrt_kl(self) -> float:
        """Of the mean KL over seeds."""
        return math.sqrt(float(np.mean(self.sqrt_kl[-1] ** 2)))

    @property
    def gains(self) -> Floats:
        """(K, S): gold over SFT, means over prompts and then over domains."""
        return _domain_mean({domain: cells - self.start[domain] for domain, cells in self.gold.items()})


@dataclass(frozen=True)
class Overoptimisation:
    """The tables. Missing values are NaN; ``_low`` and ``_high`` bound the interval of a number.

    - ``curves``: a line per model, method and point: the mean over seeds (``seed`` empty), and each seed.
    - ``fits``: ``lab.overoptimisation.fit_table``, and ``note``: why there is no fit.
    - ``table``: a line per model and method: best, end, the drop between them, and the main contrast.
    - ``contrasts``: a line per method, model and reference: the difference of their drops, and the verdict on
      "overoptimises less".
    """

    curves: pd.DataFrame
    fits: pd.DataFrame
    table: pd.DataFrame
    contrasts: pd.DataFrame
    level: float


Key = tuple[Method, str]
"""Method and model."""


# ---------------------------------------------------------------------------------------------------------- the paths


def best_of_n_track(scores: ArrayLike, seeds: Sequence[int], pool: Pool, ns: Sequence[int]) -> Track:
    """The path of best-of-n by normalised ``scores`` (S, P, N) on the pool; ``ns`` starts at 1, which is SFT."""
    if list(ns) != sorted(set(ns)) or ns[0] != 1:
        raise ValueError(f"best of n: expected increasing n from 1, got {list(ns)}")
    order = np.argsort(np.array(pool.prompt_ids))  # as in the paths of training, for the same halves of the prompts
    scores_SPN, gold_PN = np.asarray(scores, dtype=np.float64)[:, order], pool.gold[order]
    domains = [pool.domains[place] for place in order]
    gold_KSP = np.moveaxis(gold_curve(scores_SPN, gold_PN, ns), -1, 0)
    proxy_KSP = np.moveaxis(proxy_curve(scores_SPN, ns), -1, 0)
    split = [by_domain(cells, domains) for cells in gold_KSP]
    proxy_KS = _domain_mean({name: np.stack(cells) for name, cells in _transposed(proxy_KSP, domains).items()})
    return Track(
        tuple(seeds),
        tuple(ns),
        np.repeat(np.sqrt(best_of_n_kl(ns))[:, None], len(seeds), axis=1),
        {name: np.stack([point[name] for point in split]) for name in split[0]},
        by_domain(gold_PN.mean(-1)[None], domains),
        proxy_KS - proxy_KS[:1],
    )


def _transposed(values_KSP: Floats, domains: Sequence[str]) -> dict[str, list[Floats]]:
    points = [by_domain(cells, domains) for cells in values_KSP]
    return {name: [point[name] for point in points] for name in points[0]}


def training_track(curve: Curve, proxy_start: ArrayLike) -> Track:
    """The path of a policy's checkpoints. ``proxy_start`` (S,): what its own reward gives SFT completions, by seed."""
    if curve.steps[0] != 0:
        raise ValueError(f"{curve.arm}: expected a path from the SFT checkpoint, got one from step {curve.steps[0]}")
    proxy_KS = curve.scalars["proxy"].copy()
    proxy_KS[0] = np.asarray(proxy_start, dtype=np.float64)  # the curve has there what another reward gives
    return Track(curve.seeds, curve.steps, curve.sqrt_kl, curve.gold, curve.start, proxy_KS - proxy_KS[:1])


def pool_start(scores: ArrayLike, domains: Sequence[str]) -> Floats:
    """(S,): the mean score of SFT completions, over prompts and then over domains; ``scores`` (S, P, N) on the pool."""
    values_SP = np.asarray(scores, dtype=np.float64).mean(-1)
    return _domain_mean({name: cells[None] for name, cells in by_domain(values_SP, domains).items()})[0]


def _domain_mean(values: Mapping[str, Floats]) -> Floats:
    """(K, S) of domain -> (K, S, P): over known prompts, then over domains; NaN where a domain has none."""
    means = []
    for cells in values.values():
        known = np.isfinite(cells)
        count = known.sum(-1)
        total = np.where(known, cells, 0.0).sum(-1)
        means.append(np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0))
    return np.asarray(np.mean(means, axis=0))


# ---------------------------------------------------------------------------------------------------------- the tables


def overoptimisation(
    planned: Sequence[Planned],
    tracks: Mapping[Key, Track],
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Overoptimisation:
    """All tables, in the order of ``planned``; ``tracks`` holds those that were run, by (method, model)."""
    bootstrap = HierarchicalBootstrap(seed, resamples, level)
    known = {(one.method, one.model): one for one in planned}
    run = {key: tracks[key] for key in known if key in tracks}
    curves = pd.concat([_curve(known[key], track, bootstrap, level) for key, track in run.items()], ignore_index=True)
    drops = {key: Drop.of(known[key].name, track) for key, track in run.items()}
    contrasts = _contrasts(known, run, drops, bootstrap)
    lines = [_line(one, run.get((one.method, one.model)), drops, contrasts, bootstrap) for one in planned]
    fits = _fits(known, run, bootstrap, resamples, level, seed)
    return Overoptimisation(curves, fits, pd.DataFrame(lines), contrasts, level)


def _curve(one: Planned, track: Track, bootstrap: HierarchicalBootstrap, level: float) -> pd.DataFrame:
    head = {"method": one.method, "model": one.model, "label": one.label}
    gains_KS, lines = track.gains, []
    for k, at in enumerate(track.at):
        line: dict[str, Any] = {**head, "seed": pd.NA, "n_seeds": len(track.seeds), "at": at}
        line["sqrt_kl"] = math.sqrt(float(np.mean(track.sqrt_kl[k] ** 2)))
        line |= interval_columns("gold_gain", bootstrap.interval(one.name, track.gain(k)))
        proxy_S = track.proxy_gain[k]
        lines.append(line | interval_columns("proxy_gain", t_interval(list(proxy_S), level)))
    for (s, number), (k, at) in itertools.product(enumerate(track.seeds), enumerate(track.at)):
        line = {**head, "seed": number, "n_seeds": 1, "at": at, "sqrt_kl": track.sqrt_kl[k, s]}
        lines.append(line | {"gold_gain": gains_KS[k, s], "proxy_gain": track.proxy_gain[k, s]})
    return pd.DataFrame(lines).astype({"seed": "Int64"})


# ---------------------------------------------------------------------------------------------------------------- drops


@dataclass(frozen=True)
class Drop:
    """The best point of a path and its end. Cells: domain -> (S, P).

    The highest of several noisy means is too high, and a drop from it is never negative. So the best point is chosen on
    one half of the prompts and measured on the other, both ways (``chosen``: the points of the two halves): where gold
    only wobbles, the drop is 0 on average. Every seed is measured at the same point, where their mean is highest.
    """

    chosen: tuple[int, int]
    best: Mapping[str, Floats]
    end: Mapping[str, Floats]
    drop: Mapping[str, Floats]

    @classmethod
    def of(cls, name: str, track: Track) -> Drop:
        """ValueError naming a domain of fewer than two prompts."""
        few = [domain for domain, cells in track.gold.items() if cells.shape[-1] < 2]
        if few:
            raise ValueError(f"{name}: domain {few[0]} has fewer than two prompts, and the best point takes two halves")
        chosen = tuple(_highest(track, judged=1 - half) for half in (0, 1))
        best = {}
        for domain, cells_KSP in track.gold.items():
            cells_SP = cells_KSP[chosen[0]].copy()
            cells_SP[:, 1::2] = cells_KSP[chosen[1]][:, 1::2]
            best[domain] = cells_SP - track.start[domain]
        end = track.gain(len(track.at) - 1)
        drop = {domain: best[domain] - end[domain] for domain in best}
        return cls((chosen[0], chosen[1]), best, end, drop)

    @property
    def ends_at_best(self) -> bool:
        """Both halves like the end best: no drop, by definition and without an interval."""
        return all(not cells[np.isfinite(cells)].any() for cells in self.drop.values())


def _highest(track: Track, judged: int) -> int:
    """The point that the prompts of number ``judged``, ``judged`` + 2 and so on like best."""
    gains_KS = _domain_mean({d: (cells - track.start[d])[..., judged::2] for d, cells in track.gold.items()})
    means_K = gains_KS.mean(1)
    if np.isnan(means_K).all():
        raise ValueError("no point of the path has a known gold in every domain")
    return int(np.nanargmax(means_K))


def _line(
    one: Planned,
    track: Track | None,
    drops: Mapping[Key, Drop],
    contrasts: pd.DataFrame,
    bootstrap: HierarchicalBootstrap,
) -> dict[str, Any]:
    n_seeds = len(track.seeds) if track else 0
    status = "complete" if n_seeds == one.n_expected else "partial" if n_seeds else "failed"
    line: dict[str, Any] = {"method": one.method, "model": one.model, "label": one.label, "n_seeds": n_seeds}
    line |= {"n_expected": one.n_expected, "status": status, "note": one.note}
    drop = drops.get((one.method, one.model))
    means_K = track.gains.mean(1) if track else np.full(1, np.nan)
    top = int(np.nanargmax(means_K)) if np.isfinite(means_K).any() else -1
    for name, k in (("best", top), ("end", -1)):
        line[f"{name}_at"] = track.at[k] if track else math.nan
        line[f"{name}_sqrt_kl"] = math.sqrt(float(np.mean(track.sqrt_kl[k] ** 2))) if track else math.nan
        cells = None if drop is None else drop.best if name == "best" else drop.end
        line |= interval_columns(f"{name}_gain", bootstrap.interval(one.name, cells) if cells else None)
    line |= interval_columns("drop", bootstrap.interval(one.name, drop.drop) if drop else None)
    line["ends_at_best"] = bool(drop and drop.ends_at_best)
    line["overoptimised"] = bool(line["drop_low"] > 0)
    own = contrasts[(contrasts.method == one.method) & (contrasts.model == one.model)]
    main = own.iloc[0] if len(own) else None
    line["reference"] = "" if main is None else main.reference
    for name in ("drop_delta", "drop_delta_low", "drop_delta_high", "p", "p_holm"):
        line[name] = math.nan if main is None else main[name]
    return line | {"verdict": "" if main is None else main.verdict}


CONTRASTS = (
    "method", "model", "label", "reference", "reference_label", "n_seeds", "drop", "reference_drop", "end_sqrt_kl",
    "reference_end_sqrt_kl", "drop_delta", "drop_delta_low", "drop_delta_high", "p", "p_holm", "verdict", "because",
)  # fmt: skip


def _contrasts(
    known: Mapping[Key, Planned], run: Mapping[Key, Track], drops: Mapping[Key, Drop], bootstrap: HierarchicalBootstrap
) -> pd.DataFrame:
    lines = []
    for key, one in known.items():
        for reference in one.against:
            other = (one.method, reference)
            if key not in run or other not in run:
                continue
            mine, theirs, name = drops[key].drop, drops[other].drop, known[other].name
            base = bootstrap.interval(name, theirs)
            line: dict[str, Any] = {"method": one.method, "model": one.model, "label": one.label}
            line |= {"reference": reference, "reference_label": known[other].label}
            line |= {"n_seeds": min(len(run[key].seeds), len(run[other].seeds))}
            line |= {"drop": bootstrap.interval(one.name, mine).point, "reference_drop": base.point}
            line |= {"end_sqrt_kl": run[key].end_sqrt_kl, "reference_end_sqrt_kl": run[other].end_sqrt_kl}
            line |= interval_columns("drop_delta", bootstrap.difference(one.name, mine, name, theirs))
            line["p"] = bootstrap.difference_p(one.name, mine, name, theirs)
            lines.append(line | {"reference_low": base.low})
    table = pd.DataFrame(lines, columns=[*(n for n in CONTRASTS if n != "p_holm"), "reference_low"])
    table["p_holm"] = math.nan
    for _, own in table.groupby("method"):
        table.loc[own.index, "p_holm"] = holm(own.p.to_numpy(dtype=np.float64))
    said = [
        verdict(one.drop_delta_low, one.drop_delta_high, one.p_holm, one.n_seeds, one.reference_low)
        for one in table.itertuples()
    ]
    table["verdict"], table["because"] = [one for one, _ in said], [why for _, why in said]
    return table[list(CONTRASTS)]


def verdict(low: float, high: float, p_holm: float, n_seeds: int, reference_low: float) -> tuple[str, str]:
    """What the interval of (drop - the reference's drop) says of "overoptimises less", and why it says no more.

    Refuted: more is lost, or surely less than ``WORTH_HAVING`` is saved. Supported: surely something is saved, after
    Holm's correction. Open: one seed, a reference that is not surely overoptimised (``reference_low``, the lower end of
    its drop, is not above 0: nothing to prevent), or an interval that allows both.
    """
    if math.isnan(low) or n_seeds < 2:
        return "open", "one seed leaves it open"
    if low > 0:
        return "refuted", "it loses more"
    if not reference_low > 0:
        return "open", "the reference is not surely overoptimised itself, so there is nothing to prevent"
    if low > -WORTH_HAVING:
        return "refuted", f"it saves less than {WORTH_HAVING:g}"
    if high < 0:
        return ("supported", "") if p_holm < ALPHA else ("open", "not after Holm's correction")
    return "open", "the interval allows both"


# ----------------------------------------------------------------------------------------------------------------- fits


def _fits(
    known: Mapping[Key, Planned],
    run: Mapping[Key, Track],
    bootstrap: HierarchicalBootstrap,
    resamples: int,
    level: float,
    seed: int,
) -> pd.DataFrame:
    lines = []
    for (method, model), track in run.items():
        one = known[method, model]
        head = {"method": method, "model": model, "label": one.label}
        distinct = [len(set(own[own > 0])) for own in track.sqrt_kl.T]
        if min(distinct) < 2 or not np.isfinite(track.gains).all():
            why = "fewer than two points away from SFT" if min(distinct) < 2 else "gold is unknown at some point"
            lines.append(pd.DataFrame([head | {"n_seeds": len(track.seeds), "note": f"no fit: {why}"}]))
            continue
        points, seeds = len(track.at), len(track.seeds)
        curve = pd.DataFrame({
            "model": model, "method": method, "seed": np.tile(track.seeds, points),
            "sqrt_kl": track.sqrt_kl.ravel(), "gold_gain": track.gains.ravel(),
        })  # fmt: skip
        draws = None
        if method == "bon":  # all seeds share their KL, so whole curves can be drawn over seeds and prompts
            gain_BK = np.stack([bootstrap.draws(one.name, track.gain(k)) for k in range(points)], axis=1)
            draws = {(model, str(method)): (track.sqrt_kl[:, 0], gain_BK)}
        found = fit_table(curve, draws, resamples=resamples, seed=seed, level=level)
        found.insert(2, "label", one.label)
        lines.append(found.assign(note="" if draws or seeds > 1 else "one seed: no interval"))
    table = pd.concat(lines, ignore_index=True)
    return table[["method", "model", "label", *(n for n in table.columns if n not in ("method", "model", "label"))]]

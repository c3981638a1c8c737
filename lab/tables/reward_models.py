"""Many reward sources on one pool and one benchmark: what each scores, costs, and is worth to best-of-n and a policy.

The tables take what others have measured (scores on the pool, the benchmark's table, the arms' table) and put it side
by side. No torch, no store.

Axis suffixes: S seeds of a reward source, P prompts, N samples of one prompt in the pool, K values of n, H pairs of
samples of one prompt, B bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lab.best_of_n import by_domain, curve_table, gold_curve
from lab.diagnostics import association, diagnose
from lab.records import Outcome
from lab.stats import Floats, HierarchicalBootstrap, holm, interval_columns
from lab.tables.agreement import curve_lines, pair_columns
from lab.tables.voting import voting_table

BASELINE, OUTCOME, MAJORITY = "bt", "outcome", "majority"
"""The candidate from which differences are measured; the one with which the process models are compared; no model."""

SHOWN = (16, 64)
"""The n of best-of-n in the table of candidates, where they were run."""

FAMILIES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "bt": ("Bradley-Terry", ("classifier",)),
    "ensemble": ("Ensembles", ("ensemble",)),
    "other": ("Other reward models", ("multi_objective", "outcome", "process", "judge", "implicit")),
    "rule": ("With a rule or the truth", ("mixture", "verifier", "gold")),
    "control": ("Controls", ("random", "length", "constant")),
}
"""Family -> its heading and the kinds of reward source in it, in the order of tables and figures."""

MODELS = ("bt", "ensemble", "other")
"""The families that learnt their reward and use no rule: the reward models that a benchmark is there to rank."""

BENCHMARKS: Mapping[str, tuple[str, str, str]] = {
    "rb1": (" pairs", "all", "RewardBench-style pairs"),
    "rb2": ("", "all", "RewardBench-2-style best of four"),
    "rb2_hard": ("", "hard", "its hard half"),
    "rb2_easy": ("", "easy", "its easy half"),
}
"""Column -> what the benchmark's name ends in, the half of its items, and what people call it."""

DIAGNOSTICS = ("spread", "spearman_gold", "spearman_length")
COSTS = (
    "preference_labels", "ratings", "step_labels", "verifier_calls", "judge_calls", "training_flops",
    "sampling_flops", "seconds_per_1000",
)  # fmt: skip

PREDICTORS: Mapping[str, str] = {
    **{name: text for name, (_, _, text) in BENCHMARKS.items()},
    "held_out_accuracy": "accuracy on held-out pairs",
    "pool_accuracy": "accuracy on pairs of the pool",
    "spread": "spread within a prompt",
    "spearman_gold": "rank correlation with gold within a prompt",
    "spearman_length": "rank correlation with length within a prompt",
    "ece_fitted": "calibration error after one temperature",
}
"""What might tell which reward model is good for use, before it is used."""

OF_THE_POOL = ("pool_accuracy", "spearman_gold", "ece_fitted")
"""Predictors that have seen the gold of the very samples from which best-of-n picks: no forecast of it."""


# ---------------------------------------------------------------------------------------------------------- the input


@dataclass(frozen=True)
class Pool:
    """The samples that every source scored, prompt by prompt.

    ``gold``, ``lengths`` (tokens), ``correct`` (1, 0, or NaN where no rule could say) and ``answers``: (P, N).
    ``verifiable``: (P,), whether there is a rule.
    """

    prompt_ids: tuple[str, ...]
    domains: tuple[str, ...]
    gold: Floats
    lengths: Floats
    correct: Floats
    answers: tuple[tuple[str | None, ...], ...]
    verifiable: NDArray[np.bool_]

    @property
    def samples(self) -> int:
        return self.gold.shape[1]


def read_pool(path: Path) -> Pool:
    """The pool that ``lab.stages.pool`` wrote. ValueError, naming the file, where prompts differ in sample counts."""
    frame = pq.read_table(path).to_pandas()
    prompts = frame.drop_duplicates("prompt_id")
    samples = len(frame) // len(prompts)
    if list(frame.prompt_id) != list(np.repeat(prompts.prompt_id.to_numpy(), samples)):
        raise ValueError(f"{path}: expected {samples} samples of each of {len(prompts)} prompts, prompt by prompt")

    def matrix(column: pd.Series) -> Floats:
        return column.to_numpy(dtype=np.float64).reshape(len(prompts), samples)

    unknown = frame.verdict.isna() | frame.verdict.isin([Outcome.TIMEOUT.value, Outcome.ERROR.value])
    correct = (frame.verdict == Outcome.CORRECT.value).astype(float).where(~unknown)
    answers = [None if one is None or one != one else str(one) for one in frame.extracted]
    return Pool(
        tuple(prompts.prompt_id),
        tuple(prompts.domain),
        matrix(frame.gold),
        matrix(frame.length),
        matrix(correct),
        tuple(tuple(answers[start : start + samples]) for start in range(0, len(answers), samples)),
        frame.verdict.notna().to_numpy().reshape(len(prompts), samples).any(1),
    )


def read_scores(path: Path, pool: Pool) -> Floats:
    """(P, N) scores that ``lab.stages.score`` wrote, NaN where there is none. ValueError if of another pool."""
    frame = pq.read_table(path).to_pandas()
    if list(frame.prompt_id) != list(np.repeat(np.array(pool.prompt_ids, dtype=object), pool.samples)):
        raise ValueError(f"{path}: these are not scores of this pool")
    return frame.score.to_numpy(dtype=np.float64).reshape(len(pool.prompt_ids), pool.samples)


@dataclass(frozen=True)
class Measured:
    """One reward source: its normalised scores (S, P, N) of the S ``seeds`` that are complete (None: no seed is).

    ``log_odds`` (S,): what turns a difference of scores into the Bradley-Terry log-odds that the source states; NaN
    where it states none. ``held_out`` (S,): its accuracy on held-out pairs, NaN where not measured. ``costs``: means
    over seeds. ``own_lineage``: whether it starts from the policy's own base. ``note``: what went wrong.
    """

    label: str
    kind: str
    n_expected: int
    seeds: tuple[int, ...] = ()
    scores: Floats | None = None
    log_odds: tuple[float, ...] = ()
    held_out: tuple[float, ...] = ()
    costs: Mapping[str, float] = field(default_factory=dict)
    own_lineage: bool = True
    note: str = ""

    @property
    def family(self) -> str:
        return next(family for family, (_, kinds) in FAMILIES.items() if self.kind in kinds)


@dataclass(frozen=True)
class RewardModels:
    """The tables. Missing values are NaN; ``_low`` and ``_high`` bound the interval of a number.

    - ``kinds``: a line per candidate: everything.
    - ``curves``: a line per candidate and n (``lab.best_of_n.curve_table``).
    - ``voting``: a line per candidate, rule and n, on the domains with a rule verifier (``lab.tables.voting``).
    - ``association``: a line per set of candidates, predictor and outcome: correlations over candidates.
    - ``calibration``: a line per candidate, scale (stated, fitted) and bin of confidence.
    - ``benchmark``, ``tests``: as given (every part of every benchmark; paired tests against the baseline).
    """

    kinds: pd.DataFrame
    curves: pd.DataFrame
    voting: pd.DataFrame
    association: pd.DataFrame
    calibration: pd.DataFrame
    benchmark: pd.DataFrame
    tests: pd.DataFrame
    shown: tuple[int, ...]
    baseline: str
    level: float


def assert_shared(what: str, found: Mapping[str, str]) -> None:
    """Raises ValueError, naming the runs on each side, unless all of ``found`` (run -> digest of ``what``) are one."""
    sides: dict[str, list[str]] = {}
    for name, digest in found.items():
        sides.setdefault(digest, []).append(name)
    if len(sides) > 1:
        said = "; ".join(f"{', '.join(names[:4])}{' ...' if len(names) > 4 else ''}: {d}" for d, names in sides.items())
        raise ValueError(f"cannot compare: {what} differs between candidates ({said})")


# ---------------------------------------------------------------------------------------------------------- the tables


def reward_models(
    measured: Mapping[str, Measured],
    pool: Pool,
    benchmark: pd.DataFrame,
    tests: pd.DataFrame,
    policies: pd.DataFrame,
    *,
    ns: Sequence[int],
    benchmark_name: str = "world",
    baseline: str = BASELINE,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> RewardModels:
    """All tables of the candidates in ``measured``, in its order.

    ``benchmark`` and ``tests``: of ``lab.benchmarks.scoring`` (score_table, compare_models against the baseline), model
    = candidate. ``policies``: of PPO against a candidate, indexed by candidate: gold, gold_low, gold_high, kl_nats,
    n_seeds, n_expected. ``ns``: the n of the curves, from 1 to the pool's samples. ValueError if no candidate has a
    complete seed.
    """
    scored = {name: one.scores for name, one in measured.items() if one.scores is not None}
    if not scored:
        raise ValueError("no candidate has both its scores on the pool and its benchmark: there is nothing to compare")
    bootstrap = HierarchicalBootstrap(seed, resamples, level)
    shown = tuple(n for n in SHOWN if n in ns) or tuple(n for n in ns if n > 1)[-2:]
    lines = [
        {"candidate": name, "label": one.label, "family": one.family, "kind": one.kind, "own_lineage": one.own_lineage}
        | _presence(one)
        | _benchmark_columns(benchmark, benchmark_name, name)
        | _pool_columns(name, one, pool, shown, bootstrap)
        | _policy_columns(policies, name)
        | {cost: float(one.costs.get(cost, math.nan)) for cost in COSTS}
        for name, one in measured.items()
    ]
    kinds = _with_differences(pd.DataFrame(lines), scored, pool, shown[0], baseline, bootstrap)
    kinds = _with_benchmark_tests(kinds, tests, benchmark_name)
    return RewardModels(
        kinds,
        curve_table(scored, pool.gold, pool.domains, ns, bootstrap).rename(columns={"model": "candidate"}),
        voting_table(
            scored, pool.correct, pool.answers, pool.domains, pool.verifiable, pool.prompt_ids, ns, bootstrap,
            reference=OUTCOME,
        ),
        _association_table(kinds, shown[0], resamples, level, seed),
        _calibration_table(measured, pool, bootstrap),
        benchmark.rename(columns={"model": "candidate"}),
        tests,
        shown,
        baseline,
        level,
    )  # fmt: skip


def _presence(one: Measured) -> dict[str, Any]:
    n_seeds = len(one.seeds)
    status = "complete" if n_seeds == one.n_expected else "partial" if n_seeds else "failed"
    return {"n_seeds": n_seeds, "n_expected": one.n_expected, "status": status, "note": one.note}


def _benchmark_columns(table: pd.DataFrame, benchmark: str, name: str) -> dict[str, float]:
    """Overall scores, and beside them what chance and "the longest completion is right" score on the same items."""
    line: dict[str, float] = {}
    for column, (ending, half, _) in BENCHMARKS.items():
        of = (table["benchmark"] == benchmark + ending) & (table["half"] == half) & (table["part"] == "overall")
        own = table[of & (table["model"] == name)]
        beside = table[of].dropna(subset=["score"]) if len(table) else table
        line |= {f"{column}{end}": math.nan for end in ("", "_low", "_high", "_chance", "_longer_wins")}
        if len(own):
            row = own.iloc[0]
            line |= {column: row["score"], f"{column}_low": row["low"], f"{column}_high": row["high"]}
        if len(beside):
            line |= {f"{column}_{name}": float(beside[name].iloc[0]) for name in ("chance", "longer_wins")}
    return line


def _pool_columns(
    name: str, one: Measured, pool: Pool, shown: Sequence[int], bootstrap: HierarchicalBootstrap
) -> dict[str, Any]:
    """Best-of-n, diagnostics and calibration; NaN throughout without scores."""
    pairs = pair_columns(one.scores, one.log_odds, pool.gold, pool.domains, bootstrap, name)
    held_out = [value for value in one.held_out if not math.isnan(value)]
    line: dict[str, Any] = {"held_out_accuracy": float(np.mean(held_out)) if held_out else math.nan} | pairs
    scores = one.scores
    gold_SPK = None if scores is None else gold_curve(scores, pool.gold, shown)
    for k, n in enumerate(shown):
        found = None if gold_SPK is None else bootstrap.interval(name, by_domain(gold_SPK[..., k], pool.domains))
        line |= interval_columns(f"bon_{n}", found)
    row: dict[str, Any] = {}
    if scores is not None and pool.samples > 1:
        row = diagnose(name, scores, pool.gold, pool.lengths, pool.domains, shown[:1], bootstrap)
    for key in (*DIAGNOSTICS, f"regret_{shown[0]}"):
        own = {} if f"{key}_domains" in row else row  # a mean over fewer domains is another quantity
        line |= {f"{key}{end}": own.get(f"{key}{end}", math.nan) for end in ("", "_low", "_high")}
    return line | {key: row.get(key, math.nan) for key in ("constant_scores", "unscored")}


def _policy_columns(policies: pd.DataFrame, name: str) -> dict[str, float]:
    keys = {"ppo": "gold", "ppo_low": "gold_low", "ppo_high": "gold_high", "ppo_kl_nats": "kl_nats",
            "ppo_n_seeds": "n_seeds", "ppo_n_expected": "n_expected"}  # fmt: skip
    if name not in policies.index:
        return dict.fromkeys(keys, math.nan)
    return {key: float(policies[column][name]) for key, column in keys.items()}


def _with_differences(
    kinds: pd.DataFrame,
    scored: Mapping[str, Floats],
    pool: Pool,
    n: int,
    baseline: str,
    bootstrap: HierarchicalBootstrap,
) -> pd.DataFrame:
    """Best-of-n gold less the baseline's, paired by prompt, and Holm's correction over all candidates."""
    cells = {
        name: by_domain(gold_curve(scores, pool.gold, [n])[..., 0], pool.domains) for name, scores in scored.items()
    }
    lines = {}
    for name in kinds.candidate:
        known = name in cells and baseline in cells and name != baseline
        gap = bootstrap.difference(name, cells[name], baseline, cells[baseline]) if known else None
        p = bootstrap.difference_p(name, cells[name], baseline, cells[baseline]) if known else math.nan
        lines[name] = interval_columns(f"bon_{n}_delta", gap) | {f"bon_{n}_p": p}
    found = pd.DataFrame.from_dict(lines, orient="index").reset_index(drop=True)
    found[f"bon_{n}_p_holm"] = _holm(found[f"bon_{n}_p"])
    return pd.concat([kinds, found], axis=1)


def _holm(p_values: pd.Series) -> pd.Series:
    adjusted = pd.Series(math.nan, index=p_values.index)
    known = p_values.notna()
    if known.any():
        adjusted[known] = holm(p_values[known].to_numpy())
    return adjusted


def _with_benchmark_tests(kinds: pd.DataFrame, tests: pd.DataFrame, benchmark: str) -> pd.DataFrame:
    """McNemar's p against the baseline on each benchmark's items, corrected over candidates."""
    for column, (ending, half, _) in BENCHMARKS.items():
        of = (tests["benchmark"] == benchmark + ending) & (tests["half"] == half) & (tests["part"] == "overall")
        own = tests[of].set_index("first").p_holm if len(tests) else pd.Series(dtype=float)
        kinds[f"{column}_p_holm"] = kinds.candidate.map(own).astype(float)
    return kinds


def _association_table(kinds: pd.DataFrame, n: int, resamples: int, level: float, seed: int) -> pd.DataFrame:
    """Over which candidates, predictor, outcome; Spearman and Pearson with intervals over candidates.

    ``same_samples``: predictor and outcome are of the same samples' gold.
    """
    models = kinds.family.isin(MODELS)
    sets = {
        "reward models": models,
        "reward models of the policy's lineage": models & kinds.own_lineage,
        "all": pd.Series(True, index=kinds.index),
    }
    lines = []
    for over, chosen in sets.items():
        own = kinds[chosen]
        for outcome in (f"bon_{n}", "ppo"):
            more = {} if outcome != "ppo" else {f"bon_{n}": f"best-of-{n} gold"}
            for predictor, text in {**PREDICTORS, **more}.items():
                found = association(own[predictor], own[outcome], resamples, seed, level=level)
                same = outcome != "ppo" and predictor in OF_THE_POOL
                key = {"over": over, "outcome": outcome, "predictor": predictor, "label": text, "same_samples": same}
                lines.append(key | found)
    return pd.DataFrame(lines)


def _calibration_table(measured: Mapping[str, Measured], pool: Pool, bootstrap: HierarchicalBootstrap) -> pd.DataFrame:
    frames = [
        curve_lines(one.scores, one.log_odds, pool.gold, bootstrap).assign(candidate=name)
        for name, one in measured.items()
        if one.scores is not None
    ]
    table = pd.concat(frames, ignore_index=True)
    return table[["candidate", *[name for name in table.columns if name != "candidate"]]]

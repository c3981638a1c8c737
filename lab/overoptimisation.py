"""Gold against distance from the start: the forms of Gao et al. 2022 (arXiv 2210.10760), fitted, bounded and judged.

With d = sqrt(KL) in nats and R the gold gained over the start, R(0) = 0:

    best of n   R(d) = d (a - b d)        peak at d = a / 2b,         height a^2 / 4b
    RL          R(d) = d (a - b log d)    peak at d = exp(a/b - 1),   height b d

Both are linear in (a, b), so the least squares have a closed form. (A form in circulation for RL, a sqrt(KL) - b KL, is
that of best of n.) Axis suffixes: S seeds, K points of a curve, B bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import special

from lab.records import derive_seed
from lab.stats import Floats

Method = Literal["bon", "rl"]


def predict(method: Method, a: ArrayLike, b: ArrayLike, d: ArrayLike) -> Floats:
    """R(d) of the form for ``method``; ``a``, ``b`` and ``d`` broadcast."""
    rise, fall = _features(method, np.asarray(d, dtype=np.float64))
    return np.asarray(np.asarray(a) * rise - np.asarray(b) * fall)


def fit(method: Method, d: ArrayLike, gain: ArrayLike) -> tuple[float, float]:
    """(a, b) by least squares, every point weighing the same.

    ``d`` (K,) = sqrt(KL), ``gain`` (K,) = gold above the start. ValueError for fewer than two different d > 0, a d < 0,
    or a number that is not finite.
    """
    x, y = np.asarray(d, dtype=np.float64).ravel(), np.asarray(gain, dtype=np.float64).ravel()
    _check(x, y)
    a, b = _solve(*_normal_equations(method, x, y))
    return float(a), float(b)


@dataclass(frozen=True)
class Peak:
    """Where gold is highest on a fitted curve. ``extrapolated``: beyond the largest d that was measured."""

    at: float
    height: float
    extrapolated: bool


def peak(method: Method, a: float, b: float, largest_d: float) -> Peak | None:
    """The fitted curve's maximum over d > 0; None where it has none: it rises for ever, or falls from the start."""
    at, height = (float(value) for value in _peaks(method, np.array(a), np.array(b)))
    return Peak(at, height, at > largest_d) if 0 < at < math.inf else None


@dataclass(frozen=True)
class HeldOut:
    """Errors on the points beyond the cut of what was fitted up to it: root mean squares, in units of gold."""

    points: int
    form: float  # the method's own form
    other_form: float  # the other method's form: for RL the popular wrong one, a sqrt(KL) - b KL
    last_value: float  # no form at all: the gain stays what it was at each seed's last point before the cut
    typical: float  # root mean square of the gains themselves, what the errors are small or large against


def held_out(
    method: Method, d: ArrayLike, gain: ArrayLike, cut: float, seeds: Sequence[Any] | None = None
) -> HeldOut | None:
    """How well the points with d > ``cut`` are predicted from those with d <= ``cut``.

    ``d``, ``gain``, ``seeds``: (K,), points of all seeds together; ``seeds`` None: one curve. None where fewer than two
    different d > 0 lie up to the cut, or nothing beyond it, or a seed with points beyond has none up to it.
    """
    x, y = np.asarray(d, dtype=np.float64).ravel(), np.asarray(gain, dtype=np.float64).ravel()
    of = np.zeros(x.size, dtype=int) if seeds is None else np.unique(np.asarray(seeds), return_inverse=True)[1]
    early, late = x <= cut, x > cut
    if np.unique(x[early & (x > 0)]).size < 2 or not late.any():
        return None
    last = np.full(of.max() + 1, np.nan)
    for seed in np.unique(of[early]):
        own = np.flatnonzero(early & (of == seed))
        last[seed] = y[own[x[own].argmax()]]
    stays = last[of[late]]
    if np.isnan(stays).any():
        return None
    other: Method = "rl" if method == "bon" else "bon"
    own_form = predict(method, *fit(method, x[early], y[early]), x[late])
    other_form = predict(other, *fit(other, x[early], y[early]), x[late])
    after = y[late]
    return HeldOut(after.size, _rms(own_form - after), _rms(other_form - after), _rms(stays - after), _rms(after))


# ----------------------------------------------------------------------------------------------- bootstrap draws


def seed_draws(
    method: Method,
    d: ArrayLike,
    gain: ArrayLike,
    seeds: Sequence[Any],
    *,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[Floats, Floats]:
    """(B,) draws of a and of b: whole curves of seeds are drawn with replacement and the form fitted to them.

    As in ``lab.stats.HierarchicalBootstrap``, deviations from the fit to all are stretched by sqrt(S / (S - 1)) and by
    t_{S-1} / z of ``level``, without which the percentiles of a few seeds are far too narrow. ValueError for one seed,
    or where some draw of seeds determines no curve (one seed has fewer than two different d > 0).
    """
    x, y = np.asarray(d, dtype=np.float64).ravel(), np.asarray(gain, dtype=np.float64).ravel()
    _check(x, y)
    names, of = np.unique(np.asarray(seeds), return_inverse=True)
    if names.size < 2:
        raise ValueError("seed_draws: with one seed the variation between seeds cannot be allowed for")
    for index, name in enumerate(names):
        if np.unique(x[(of == index) & (x > 0)]).size < 2:
            raise ValueError(f"seed_draws: seed {name} has fewer than two different points with d > 0")
    sums = [_normal_equations(method, x[of == index], y[of == index]) for index in range(names.size)]
    left_S22, right_S2 = np.stack([left for left, _ in sums]), np.stack([right for _, right in sums])
    rng = np.random.Generator(np.random.Philox(derive_seed("overoptimisation", seed, method, *names)))
    drawn_BS = rng.multinomial(names.size, np.full(names.size, 1 / names.size), size=resamples).astype(np.float64)
    a_B, b_B = _solve(np.einsum("bs,sij->bij", drawn_BS, left_S22), drawn_BS @ right_S2)
    upper = (1 + level) / 2
    stretch = math.sqrt(names.size / (names.size - 1)) * special.stdtrit(names.size - 1, upper) / special.ndtri(upper)
    a, b = _solve(left_S22.sum(0), right_S2.sum(0))
    return a + stretch * (a_B - a), b + stretch * (b_B - b)


def curve_draws(method: Method, d_K: ArrayLike, gain_BK: ArrayLike) -> tuple[Floats, Floats]:
    """(B,) draws of a and of b: the form fitted to each drawn curve, e.g. those of ``lab.best_of_n.gain_draws``."""
    x, y = np.asarray(d_K, dtype=np.float64), np.asarray(gain_BK, dtype=np.float64)
    if y.ndim != 2 or y.shape[1:] != x.shape:
        raise ValueError(f"curve_draws: expected gains (B, {x.size}), got shape {y.shape}")
    _check(x, y)
    rise, fall = _features(method, x)
    design = np.stack([rise, -fall], axis=1)
    return _solve(design.T @ design, y @ design)


# -------------------------------------------------------------------------------------------------------- table


def fit_table(
    curves: pd.DataFrame,
    draws: Mapping[tuple[str, str], tuple[ArrayLike, ArrayLike]] | None = None,
    *,
    cut_share: float = 0.6,
    resamples: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> pd.DataFrame:
    """A line per model and method: the fit, its peak, intervals, and how well it predicts larger KL.

    ``curves``: a line per point, columns model, seed, method ("bon" or "rl"), sqrt_kl, gold_gain; gains are over the
    start. ``draws``: (model, method) -> (sqrt_kl (K,), gold_gain (B, K)) where whole curves were resampled elsewhere
    (over prompts too); without it the seeds of the model are resampled, and with one seed intervals are NaN.

    Columns: model, method, n_seeds, n_points, largest_sqrt_kl, a, b, rmse (in sample);
    ``peak``: "inside", "beyond the data" (``extrapolated``), "still rising" (b <= 0) or "falls from the start";
    peak_at, peak_height (NaN without a peak); each of a, b, peak_at, peak_height with _low and _high. In the intervals
    a draw that rises for ever peaks at infinity and one that falls from the start at 0 (``draws_with_peak``: the share
    that do neither), so an end may be infinite.
    ``cut`` = ``cut_share`` x the largest sqrt_kl; held_out (points beyond), and rmse_form, rmse_other_form,
    rmse_last_value there (NaN where nothing could be held out), relative_error = rmse_form / root mean square gain.
    """
    missing = [name for name in ("model", "seed", "method", "sqrt_kl", "gold_gain") if name not in curves.columns]
    if missing:
        raise ValueError(f"fit_table: column {missing[0]!r} is missing, found {', '.join(curves.columns)}")
    lines = []
    for (model, method), own in curves.groupby(["model", "method"], sort=False):
        d, gain = own.sqrt_kl.to_numpy(dtype=np.float64), own.gold_gain.to_numpy(dtype=np.float64)
        seeds, count = own.seed.to_numpy(), own.seed.nunique()
        try:
            a, b = fit(method, d, gain)
            if draws is not None and (model, method) in draws:
                a_B, b_B = curve_draws(method, *draws[model, method])
            elif count > 1:
                a_B, b_B = seed_draws(method, d, gain, seeds, resamples=resamples, seed=seed, level=level)
            else:
                a_B, b_B = np.full(1, np.nan), np.full(1, np.nan)
        except ValueError as error:
            raise ValueError(f"model {model!r}, method {method!r}: {error}") from error
        line: dict[str, Any] = {"model": model, "method": method, "n_seeds": count, "n_points": len(own)}
        line |= {"largest_sqrt_kl": d.max(), "rmse": _rms(predict(method, a, b, d) - gain)}
        line |= _peak_columns(method, a, b, a_B, b_B, float(d.max()), level)
        line |= _held_out_columns(method, d, gain, cut_share * float(d.max()), seeds)
        lines.append(line)
    return pd.DataFrame(lines)


def _peak_columns(
    method: Method, a: float, b: float, a_B: Floats, b_B: Floats, largest_d: float, level: float
) -> dict[str, Any]:
    found = peak(method, a, b, largest_d)
    if found:
        verdict = "beyond the data" if found.extrapolated else "inside"
    else:
        verdict = "falls from the start" if b > 0 else "still rising"
    at_B, height_B = _peaks(method, a_B, b_B)
    columns: dict[str, Any] = {"peak": verdict, "extrapolated": bool(found and found.extrapolated)}
    columns["draws_with_peak"] = math.nan if np.isnan(a_B).any() else float(((at_B > 0) & np.isfinite(at_B)).mean())
    at, height = (found.at, found.height) if found else (math.nan, math.nan)
    for name, point, drawn in (("a", a, a_B), ("b", b, b_B), ("peak_at", at, at_B), ("peak_height", height, height_B)):
        # order statistics, not an average of two of them: infinity minus infinity is not a number
        low = np.quantile(drawn, (1 - level) / 2, method="lower")
        high = np.quantile(drawn, (1 + level) / 2, method="higher")
        columns |= {name: point, f"{name}_low": float(low), f"{name}_high": float(high)}
    return columns


def _held_out_columns(method: Method, d: Floats, gain: Floats, cut: float, seeds: Sequence[Any]) -> dict[str, Any]:
    found = held_out(method, d, gain, cut, seeds)
    columns: dict[str, Any] = {"cut": cut, "held_out": found.points if found else 0}
    columns["rmse_form"] = found.form if found else math.nan
    columns["rmse_other_form"] = found.other_form if found else math.nan
    columns["rmse_last_value"] = found.last_value if found else math.nan
    columns["relative_error"] = found.form / found.typical if found and found.typical > 0 else math.nan
    return columns


# ------------------------------------------------------------------------------------------------- the equations


def _features(method: str, d: Floats) -> tuple[Floats, Floats]:
    """(rise, fall) with R = a rise - b fall."""
    match method:
        case "bon":
            return d, d * d
        case "rl":
            return d, special.xlogy(d, d)  # 0 at d = 0
        case _:
            raise ValueError(f"overoptimisation: expected method bon or rl, got {method!r}")


def _peaks(method: str, a: Floats, b: Floats) -> tuple[Floats, Floats]:
    """Place and height of the maximum over d >= 0: infinite where the curve rises for ever, 0 where it never rises."""
    _features(method, np.zeros(1))  # refuses an unknown method
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        if method == "bon":
            at = np.maximum(a / (2 * b), 0.0)
            height = np.maximum(a, 0.0) ** 2 / (4 * b)
        else:
            at = np.exp(a / b - 1)
            height = b * at
    rises = (b < 0) | ((b == 0) & (a > 0))
    flat = (b == 0) & (a <= 0)
    return (np.where(rises, np.inf, np.where(flat, 0.0, at)), np.where(rises, np.inf, np.where(flat, 0.0, height)))


def _normal_equations(method: str, d: Floats, gain: Floats) -> tuple[Floats, Floats]:
    """X'X (2, 2) and X'y (2,) of gain = X (a, b)."""
    rise, fall = _features(method, d)
    design = np.stack([rise, -fall], axis=1)
    return design.T @ design, design.T @ gain


def _solve(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """(a, b) of [[p, q], [q, r]] (a, b) = (u, v), over any leading axes, by Cramer's rule."""
    p, q, r = left[..., 0, 0], left[..., 0, 1], left[..., 1, 1]
    determinant = p * r - q * q
    u, v = right[..., 0], right[..., 1]
    return np.asarray((r * u - q * v) / determinant), np.asarray((p * v - q * u) / determinant)


def _check(d: Floats, gain: Floats) -> None:
    if gain.shape[-1:] != d.shape:
        raise ValueError(f"expected a gain for each sqrt(KL), got shapes {gain.shape} and {d.shape}")
    if not (np.isfinite(d).all() and np.isfinite(gain).all()) or (d < 0).any():
        raise ValueError("expected finite gains and finite sqrt(KL) >= 0")
    if np.unique(d[d > 0]).size < 2:
        raise ValueError(f"two numbers need at least two different sqrt(KL) > 0, got {sorted(set(d.tolist()))}")


def _rms(values: Floats) -> float:
    return math.sqrt(float(np.mean(np.square(values))))

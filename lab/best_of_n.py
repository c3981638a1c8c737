"""What best-of-n and voting are worth for many n at once, from one pool of samples of each prompt. No models, no files.

Axis suffixes: S reward-model seeds, P prompts, N samples of one prompt in the pool, K values of n, R random subsets,
C distinct answers of one prompt, B bootstrap resamples.
A sample that the reward model cannot score (NaN) loses to every sample that it can.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import special

from lab.records import derive_seed
from lab.stats import Floats, HierarchicalBootstrap, best_of_n_kl, interval_columns

# ----------------------------------------------------------------------------------------------------- best of n


def rank_chances(total: int, ns: Sequence[int]) -> Floats:
    """(K, N): the chance C(i-1, n-1) / C(N, n) that the i-th of N samples in ascending order is the best of a random
    subset of n. Rows sum to 1. ValueError unless every n is in 1..N."""
    if not len(ns) or min(ns) < 1 or max(ns) > total:
        raise ValueError(f"best of n: expected n from 1 to the pool's {total} samples, got {list(ns)}")
    chances = np.zeros((len(ns), total))
    rank = np.arange(total, 1, -1)
    for row, n in enumerate(ns):
        # from the top: n / N, then x (i - n) / (i - 1) from rank i to i - 1, which reaches 0 at rank n - 1 and stays
        chances[row, ::-1] = n / total * np.concatenate([[1.0], np.cumprod((rank - n) / (rank - 1))])
    return chances


def gold_curve(scores: ArrayLike, gold: ArrayLike, ns: Sequence[int]) -> Floats:
    """Expected gold of best-of-n by score, without bias, for every n: as ``lab.stats.best_of_n_gold``, for many n.

    Samples of equal score share the mean of their golds. That is the exact expectation of breaking ties at random, so
    no seed enters, a constant score earns the plain mean, and neither gains from the order in which samples were drawn.

    ``scores`` (..., N); ``gold`` (..., N) of the same shape or one that broadcasts to it, e.g. (S, P, N) and (P, N).
    Returns (..., K). A prompt with an unknown gold (NaN) has NaN everywhere.
    """
    s = np.where(np.isnan(scores), -np.inf, np.asarray(scores, dtype=np.float64))
    g = np.asarray(gold, dtype=np.float64)
    if s.ndim < g.ndim or s.shape[s.ndim - g.ndim :] != g.shape:
        raise ValueError(f"best of n: expected one gold a score, got shapes {s.shape} and {g.shape}")
    chances = rank_chances(s.shape[-1], ns)
    order = np.argsort(s, axis=-1)
    s = np.take_along_axis(s, order, -1)
    g = np.take_along_axis(np.broadcast_to(g, s.shape), order, -1)
    first = np.ones(s.shape, dtype=bool)
    first[..., 1:] = s[..., 1:] != s[..., :-1]
    starts = np.flatnonzero(first)  # of the runs of equal scores; each prompt's first sample starts one
    sizes = np.diff(starts, append=first.size)
    shared = np.repeat(np.add.reduceat(g.ravel(), starts) / sizes, sizes).reshape(g.shape) if g.size else g
    return np.asarray(shared @ chances.T)


def proxy_curve(scores: ArrayLike, ns: Sequence[int]) -> Floats:
    """Expected highest score among n random samples, without bias: (..., N) -> (..., K). NaN where any score is NaN."""
    s = np.asarray(scores, dtype=np.float64)
    return np.asarray(np.sort(s, axis=-1) @ rank_chances(s.shape[-1], ns).T)


# ------------------------------------------------------------------------------------------------------ tables


def by_domain(values_SP: Floats, domains: Sequence[str]) -> dict[str, Floats]:
    """(S, P) values as the strata of a HierarchicalBootstrap: domain -> (S, P of the domain)."""
    names = np.asarray(domains)
    if values_SP.ndim != 2 or names.shape != values_SP.shape[1:]:
        raise ValueError(f"expected a domain a prompt, got {names.shape} domains and values of shape {values_SP.shape}")
    return {str(name): values_SP[:, names == name] for name in dict.fromkeys(domains)}


def curve_table(
    scores: Mapping[str, ArrayLike],
    gold_PN: ArrayLike,
    domains: Sequence[str],
    ns: Sequence[int],
    bootstrap: HierarchicalBootstrap,
) -> pd.DataFrame:
    """A line per model and n, with intervals over reward-model seeds and prompts, domains weighing the same.

    ``scores``: model -> (S, P, N) or (P, N). Columns: model, n, kl_nats (the bound log n - (n - 1) / n), sqrt_kl; gold,
    gold_gain (over the pool's plain mean, paired by prompt) and proxy, each with _low and _high; n_seeds, n_prompts.
    The proxy is NaN where a domain has no fully scored prompt: a mean over fewer domains is another quantity.
    """
    lines: list[dict[str, Any]] = []
    for model, given in scores.items():
        scores_SPN = _with_seeds(model, given, gold_PN)
        gold_SPK, proxy_SPK = gold_curve(scores_SPN, gold_PN, ns), proxy_curve(scores_SPN, ns)
        gain_SPK = gold_SPK - np.asarray(gold_PN, dtype=np.float64).mean(-1)[:, None]
        for index, n in enumerate(ns):
            kl = float(best_of_n_kl(n))
            line: dict[str, Any] = {"model": model, "n": n, "kl_nats": kl, "sqrt_kl": math.sqrt(kl)}
            for name, values in (("gold", gold_SPK), ("gold_gain", gain_SPK), ("proxy", proxy_SPK)):
                strata = by_domain(values[..., index], domains)
                known = all(np.isfinite(cells).any(1).all() for cells in strata.values())
                line |= interval_columns(name, bootstrap.interval(model, strata) if known or name != "proxy" else None)
            lines.append(line | {"n_seeds": scores_SPN.shape[0], "n_prompts": scores_SPN.shape[1]})
    return pd.DataFrame(lines)


def seed_table(
    scores: Mapping[str, ArrayLike], gold_PN: ArrayLike, domains: Sequence[str], ns: Sequence[int]
) -> pd.DataFrame:
    """A line per model, reward-model seed (its number) and n: what ``lab.overoptimisation.fit_table`` reads.

    Columns: model, seed, method ("bon"), n, kl_nats, sqrt_kl, gold, gold_gain (over the pool's plain mean), proxy.
    """
    kl = best_of_n_kl(ns)
    frames = []
    for model, given in scores.items():
        scores_SPN = _with_seeds(model, given, gold_PN)
        gold_SK = _domain_mean(gold_curve(scores_SPN, gold_PN, ns), domains)
        start = _domain_mean(np.asarray(gold_PN, dtype=np.float64).mean(-1)[None, :, None], domains)
        proxy_SK = _domain_mean(proxy_curve(scores_SPN, ns), domains)
        seeds, count = scores_SPN.shape[0], len(ns)
        columns = {
            "model": model,
            "seed": np.repeat(np.arange(seeds), count),
            "method": "bon",
            "n": np.tile(ns, seeds),
            "kl_nats": np.tile(kl, seeds),
            "sqrt_kl": np.tile(np.sqrt(kl), seeds),
            "gold": gold_SK.ravel(),
            "gold_gain": (gold_SK - start).ravel(),
            "proxy": proxy_SK.ravel(),
        }
        frames.append(pd.DataFrame(columns))
    return pd.concat(frames, ignore_index=True)


def gain_draws(
    model: str,
    scores: ArrayLike,
    gold_PN: ArrayLike,
    domains: Sequence[str],
    ns: Sequence[int],
    bootstrap: HierarchicalBootstrap,
) -> Floats:
    """(B, K): resamples of one model's whole curve of gold_gain, over reward-model seeds and prompts together.

    A resample is one draw of seeds and prompts for all n: fit a form to each row for the form's own interval.
    """
    scores_SPN = _with_seeds(model, scores, gold_PN)
    gain_SPK = gold_curve(scores_SPN, gold_PN, ns) - np.asarray(gold_PN, dtype=np.float64).mean(-1)[:, None]
    return np.stack([bootstrap.draws(model, by_domain(gain_SPK[..., k], domains)) for k in range(len(ns))], axis=1)


def _with_seeds(model: str, scores: ArrayLike, gold_PN: ArrayLike) -> Floats:
    array, gold = np.asarray(scores, dtype=np.float64), np.asarray(gold_PN)
    array = array[None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[1:] != gold.shape:
        raise ValueError(f"{model}: expected scores (S, P, N) or (P, N) for gold {gold.shape}, got {array.shape}")
    return array


def _domain_mean(values_SPK: Floats, domains: Sequence[str]) -> Floats:
    """(S, K): mean over a domain's known prompts, then over domains; NaN where a domain has none."""
    means = []
    for name in dict.fromkeys(domains):
        cells = values_SPK[:, np.asarray(domains) == name]
        known = np.isfinite(cells)
        count = known.sum(1)
        sums = np.where(known, cells, 0.0).sum(1)
        means.append(np.divide(sums, count, out=np.full(sums.shape, np.nan), where=count > 0))
    return np.asarray(np.mean(means, axis=0))


# ------------------------------------------------------------------------------------------------------- voting

Scheme = Literal["exp", "sigmoid", "score"]


def vote_weights(scores: ArrayLike, scheme: Scheme, temperature: float = 1.0) -> Floats:
    """(..., N): what a sample's vote for its answer counts, from its score; NaN stays NaN and casts no vote.

    exp: exp(score / temperature), a softmax over the voters. sigmoid: P(better than a mean SFT sample) under
    Bradley-Terry, for scores that are 0 there. score: the normalised score itself, so further votes of a negative score
    hurt an answer. None depends on the rest of the pool, so voting in a random subset is voting with n samples.

    ValueError where exp underflows to 0: then the vote is best-of-n and should be called that.
    """
    if not temperature > 0:
        raise ValueError(f"vote_weights: expected temperature > 0, got {temperature}")
    s = np.asarray(scores, dtype=np.float64) / temperature
    match scheme:
        case "exp":
            known = np.where(np.isnan(s), -np.inf, s)
            highest = known.max(axis=-1, keepdims=True)
            weights = np.exp(s - np.where(np.isfinite(highest), highest, 0.0))
            if (weights == 0).any():
                raise ValueError(f"vote_weights: exp of the scores underflows at temperature {temperature}")
            return np.asarray(weights)
        case "sigmoid":
            return np.asarray(special.expit(s))
        case "score":
            return np.asarray(s)
        case _:
            raise ValueError(f"vote_weights: expected exp, sigmoid or score, got {scheme!r}")


def voting_curve(
    answers_PN: Sequence[Sequence[str | None]],
    correct_PN: ArrayLike,
    ns: Sequence[int],
    *,
    weights: ArrayLike | None = None,
    subsets: int = 0,
    seed: int = 0,
    prompt_ids: Sequence[str] | None = None,
) -> Floats:
    """How often the answer with the most votes among n samples is correct: (P, K), or (..., P, K) as ``weights``.

    Majority voting (Wang et al. 2022, arXiv 2203.11171), or weighted by a reward model where ``weights`` (..., P, N)
    are given. Answers that tie share the credit: the exact expectation of choosing among them at random. A sample with
    no answer (None), or an unknown weight (NaN), casts no vote; where nobody votes the result is wrong. An answer is as
    correct as the mean of ``correct_PN`` over the samples of that prompt that give it and were verified: 0 or 1 for a
    verifier that judges by the answer. Where an answer that nobody could verify (all NaN) wins, the result is NaN.

    ``subsets`` 0: the first n samples. R > 0: the mean over R random subsets of n, without bias, drawn for each prompt
    by seed and prompt id (or its number where no ids are given), nested in n, and the same for all weights.
    """
    codes_PN, truth_PC = _codes(answers_PN, correct_PN)
    prompts, total = codes_PN.shape
    rank_chances(total, ns)  # refuses an impossible n
    w = np.ones(codes_PN.shape) if weights is None else np.asarray(weights, dtype=np.float64)
    if w.shape[-2:] != codes_PN.shape:
        raise ValueError(f"voting: expected weights (..., {prompts}, {total}), got shape {w.shape}")
    place_PRN = _places(prompts, total, subsets, seed, prompt_ids)
    answer_PNC = (codes_PN[..., None] == np.arange(truth_PC.shape[1])).astype(np.float64)
    flat = w.reshape(-1, prompts, total)
    right = np.zeros((len(flat), prompts, len(ns)))
    for index, n in enumerate(ns):
        inside_PRN = (place_PRN < n).astype(np.float64)
        for row, weights_PN in enumerate(flat):
            votes_PRC, stand_PRC = _votes(inside_PRN, answer_PNC, weights_PN)
            share_PC = _winners(votes_PRC, stand_PRC).mean(1)
            right[row, :, index] = np.where(share_PC > 0, share_PC * truth_PC, 0.0).sum(-1)
    return right.reshape(*w.shape[:-2], prompts, len(ns))


def vote(
    answers: Sequence[str | None], weights: ArrayLike | None = None, *, seed: int = 0, prompt_id: str = ""
) -> str | None:
    """The answer with the most votes among n samples; ties are broken at random by seed and prompt; None if none."""
    codes_PN, _ = _codes([answers], np.zeros((1, len(answers))))
    w = np.ones(len(answers)) if weights is None else np.asarray(weights, dtype=np.float64)
    answer_PNC = (codes_PN[..., None] == np.arange(max(codes_PN.max(initial=-1) + 1, 1))).astype(np.float64)
    votes_PRC, stand_PRC = _votes(np.ones((1, 1, len(answers))), answer_PNC, w[None])
    tied = np.flatnonzero(_winners(votes_PRC, stand_PRC)[0, 0])
    if not tied.size:
        return None
    rng = np.random.Generator(np.random.Philox(key=derive_seed("vote", seed, prompt_id)))
    return answers[int(np.flatnonzero(codes_PN[0] == rng.choice(tied))[0])]


def _codes(answers_PN: Sequence[Sequence[str | None]], correct_PN: ArrayLike) -> tuple[NDArray[np.int64], Floats]:
    """Answers as numbers (P, N), -1 for none, in order of first appearance; and how correct each is (P, C), or NaN."""
    correct = np.asarray(correct_PN, dtype=np.float64)
    if correct.ndim != 2 or [len(row) for row in answers_PN] != [correct.shape[1]] * correct.shape[0]:
        raise ValueError(f"voting: expected an answer for each of correct's {correct.shape}")
    codes = np.full(correct.shape, -1)
    for line, row in enumerate(answers_PN):
        known: dict[str, int] = {}
        codes[line] = [-1 if answer is None else known.setdefault(answer, len(known)) for answer in row]
    truth = np.zeros((len(codes), max(int(codes.max(initial=-1)) + 1, 1)))
    for code in range(truth.shape[1]):
        verified = (codes == code) & ~np.isnan(correct)
        count = verified.sum(1)
        total = np.where(verified, correct, 0.0).sum(1)
        truth[:, code] = np.divide(total, count, out=np.full(len(codes), np.nan), where=count > 0)
    return codes, truth


def _places(prompts: int, total: int, subsets: int, seed: int, prompt_ids: Sequence[str] | None) -> NDArray[np.int64]:
    """(P, R, N): each sample's place in line; the first n in line vote."""
    if subsets == 0:
        return np.broadcast_to(np.arange(total), (prompts, 1, total))
    if subsets < 0 or (prompt_ids is not None and len(prompt_ids) != prompts):
        raise ValueError(f"voting: expected subsets >= 0 and an id for each of {prompts} prompts, got {subsets=}")
    names = range(prompts) if prompt_ids is None else prompt_ids
    lines = np.tile(np.arange(total), (subsets, 1))
    generators = [np.random.Generator(np.random.Philox(key=derive_seed("voters", seed, name))) for name in names]
    return np.stack([rng.permuted(lines, axis=1) for rng in generators])


def _votes(inside_PRN: Floats, answer_PNC: Floats, weights_PN: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Votes for each answer (P, R, C), and whether anybody in the subset cast one for it."""
    casts_PNC = answer_PNC * ~np.isnan(weights_PN)[..., None]
    votes = inside_PRN @ (casts_PNC * np.nan_to_num(weights_PN)[..., None])
    return votes, (inside_PRN @ casts_PNC) > 0


def _winners(votes_PRC: Floats, stand_PRC: NDArray[np.bool_]) -> Floats:
    """(P, R, C): 1 / k for each of the k answers with the most votes; all 0 where none stands."""
    standing = np.where(stand_PRC, votes_PRC, -np.inf)
    best = standing.max(-1, keepdims=True)
    # sums of the same weights in another order differ in the last digits, and that must not decide a tie
    tied = stand_PRC & (standing >= best - 1e-9 * np.abs(best))
    return np.asarray(tied / np.maximum(tied.sum(-1, keepdims=True), 1))

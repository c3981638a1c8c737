"""Losses, advantages and estimators: pure functions, tensors in and out. Each is one equation of one paper.

Axis suffixes name the shapes: ``_B`` rows (completions), ``_BT`` rows x completion tokens. Rows of one prompt lie
together: row ``g * G + i`` is completion ``i`` of group ``g``. Completions are right-padded: ``mask_BT`` is 1 at real
tokens, first of them at ``t = 0``, without holes. Log-probabilities and KL are in nats.

A reward of NaN means that nobody could score that completion. It takes no part in any baseline, mean or deviation,
and its own advantage is exactly 0. Nothing here knows a trainer, a model or a tokenizer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STD_EPSILON = 1e-4
"""Added to standard deviations before dividing, as TRL's GRPOTrainer does: all-equal rewards give advantage 0."""


# Masked sums and moments ---------------------------------------------------------------------------------------------


def masked_mean(x: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``x`` where ``mask`` is 1, as a scalar; 0 where the mask is empty. NaN outside the mask is ignored."""
    return torch.where(mask.bool(), x, 0.0).sum() / mask.sum().clamp(min=1)


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance of ``x`` where ``mask`` is 1, as a scalar."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def whiten(x: Tensor, mask: Tensor, shift_mean: bool = True, epsilon: float = 1e-8) -> Tensor:
    """x' = (x - mean) / sqrt(var + epsilon) over the real entries, 0 elsewhere.

    ``shift_mean=False`` puts the mean back, as lm-human-preferences does for rewards (Ziegler et al. 2019,
    arXiv:1909.08593, released code).
    """
    mean = masked_mean(x, mask)
    whitened = (x - mean) * torch.rsqrt(masked_variance(x, mask) + epsilon)
    return torch.where(mask.bool(), whitened if shift_mean else whitened + mean, 0.0)


def _nan_std(x: Tensor, dim: int) -> Tensor:
    """Sample standard deviation (n - 1) of the non-NaN entries along ``dim`` (kept); NaN where fewer than two."""
    count = (~x.isnan()).sum(dim, keepdim=True)
    squares = torch.nansum((x - torch.nanmean(x, dim, keepdim=True)) ** 2, dim, keepdim=True)
    return torch.where(count > 1, (squares / (count - 1).clamp(min=1)).sqrt(), torch.nan)


# Advantages ----------------------------------------------------------------------------------------------------------


def _grouped(rewards_B: Tensor, group_size: int) -> Tensor:
    if group_size < 1 or rewards_B.ndim != 1 or rewards_B.numel() % group_size:
        raise ValueError(f"rewards: shape {tuple(rewards_B.shape)} does not split into groups of {group_size}")
    return rewards_B.view(-1, group_size)


def zero_spread_groups(rewards_B: Tensor, group_size: int) -> Tensor:
    """Per group, whether its scorable rewards are all equal (or fewer than two): no learning signal. Shape (B / G,)."""
    rewards_PG = _grouped(rewards_B, group_size)
    low_P = torch.where(rewards_PG.isnan(), torch.inf, rewards_PG).amin(1)
    high_P = torch.where(rewards_PG.isnan(), -torch.inf, rewards_PG).amax(1)
    return high_P <= low_P


def _zero_without_signal(advantages_PG: Tensor, rewards_PG: Tensor) -> Tensor:
    """Exact zeros for unscorable rows and for groups without spread, where rounding would leave an arbitrary sign."""
    silent_P = zero_spread_groups(rewards_PG.reshape(-1), rewards_PG.shape[1])
    return torch.where(rewards_PG.isnan() | silent_P[:, None], 0.0, advantages_PG).reshape(-1)


def group_advantages(rewards_B: Tensor, group_size: int, scale: str = "group") -> Tensor:
    """GRPO's advantage, A_i = (r_i - mean(r_group)) / std. Shao et al. 2024 (arXiv:2402.03300), outcome supervision.

    ``scale``: "group" divides by the group's standard deviation, "batch" by that of all rewards, "none" not at all
    (Liu et al. 2025, arXiv:2503.20783: the group's deviation favours prompts that are nearly solved or hopeless).
    Shape (B,) in and out. Raises ValueError if B is no multiple of ``group_size`` or ``scale`` is unknown.
    """
    rewards_PG = _grouped(rewards_B, group_size)
    centred_PG = rewards_PG - torch.nanmean(rewards_PG, 1, keepdim=True)
    if scale == "group":
        centred_PG = centred_PG / (_nan_std(rewards_PG, 1) + STD_EPSILON)
    elif scale == "batch":
        centred_PG = centred_PG / (_nan_std(rewards_B, 0) + STD_EPSILON)
    elif scale != "none":
        raise ValueError(f"scale: expected group, batch or none, got {scale!r}")
    return _zero_without_signal(centred_PG, rewards_PG)


def leave_one_out_advantages(rewards_B: Tensor, group_size: int) -> Tensor:
    """RLOO's advantage, A_i = r_i - mean of the other scorable rewards of the group. Shape (B,) in and out.

    Kool et al. 2019 (openreview r1lgTGL5DE); Ahmadian et al. 2024 (arXiv:2402.14740). Alone in its group: 0.
    """
    rewards_PG = _grouped(rewards_B, group_size)
    others_P1 = (~rewards_PG.isnan()).sum(1, keepdim=True) - 1
    baselines_PG = (torch.nansum(rewards_PG, 1, keepdim=True) - rewards_PG) / others_P1.clamp(min=1)
    return _zero_without_signal(rewards_PG - baselines_PG, rewards_PG)


def gae(rewards_BT: Tensor, values_BT: Tensor, mask_BT: Tensor, gamma: float, lambda_: float) -> Tensor:
    """Generalised advantage estimation. Schulman et al. 2016 (arXiv:1506.02438), equation 16, finite episode.

    delta_t = r_t + gamma v_{t+1} - v_t,  A_t = delta_t + gamma lambda A_{t+1},  with v = 0 after the last real token
    (an episode ends there, whether by the end-of-sequence token or by the token budget). Padding: A_t = 0.
    """
    mask_BT = mask_BT.to(values_BT.dtype)
    v_BT, r_BT = torch.where(mask_BT > 0, values_BT, 0.0), torch.where(mask_BT > 0, rewards_BT, 0.0)
    advantages_BT = torch.zeros_like(v_BT)
    a_tp1_B = v_tp1_B = torch.zeros_like(v_BT[:, 0])
    for t in range(v_BT.shape[1] - 1, -1, -1):
        delta_t_B = r_BT[:, t] + gamma * v_tp1_B - v_BT[:, t]
        a_tp1_B = (delta_t_B + gamma * lambda_ * a_tp1_B) * mask_BT[:, t]
        advantages_BT[:, t] = a_tp1_B
        v_tp1_B = v_BT[:, t]
    return advantages_BT


def discounted_returns(rewards_BT: Tensor, mask_BT: Tensor, gamma: float) -> Tensor:
    """G_t = r_t + gamma G_{t+1} within the real tokens, 0 in the padding (Sutton and Barto 2018, equation 3.9)."""
    return gae(rewards_BT, torch.zeros_like(rewards_BT), mask_BT, gamma, 1.0)


# Policy and value losses, per token: the caller masks and averages --------------------------------------------------


def clipped_policy_loss(logprobs_BT: Tensor, old_logprobs_BT: Tensor, advantages_BT: Tensor, clip: float) -> Tensor:
    """-min(w_t A_t, clip(w_t, 1 - clip, 1 + clip) A_t), w_t = pi(a_t) / pi_old(a_t), per token.

    PPO's surrogate, Schulman et al. 2017 (arXiv:1707.06347), equation 7. Shape (B, T).
    """
    w_BT = torch.exp(logprobs_BT - old_logprobs_BT)
    return -torch.minimum(w_BT * advantages_BT, w_BT.clamp(1 - clip, 1 + clip) * advantages_BT)


def clipped_value_loss(values_BT: Tensor, old_values_BT: Tensor, returns_BT: Tensor, clip: float) -> Tensor:
    """max((v_t - G_t)^2, (clip(v_t, v_old - clip, v_old + clip) - G_t)^2) / 2, per token; ``clip = inf`` is plain.

    The value loss of OpenAI's PPO2 release; Engstrom et al. 2020 (arXiv:2005.12729), section 3. Shape (B, T).
    """
    near_BT = torch.clamp(values_BT, old_values_BT - clip, old_values_BT + clip)
    return 0.5 * torch.maximum((values_BT - returns_BT) ** 2, (near_BT - returns_BT) ** 2)


def explained_variance(values_BT: Tensor, returns_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """1 - Var(G - v) / Var(G): 1 is a perfect critic, 0 one no better than a constant. NaN if returns do not vary."""
    variance = masked_variance(returns_BT, mask_BT)
    return torch.where(variance > 0, 1 - masked_variance(returns_BT - values_BT, mask_BT) / variance, torch.nan)


# Kullback-Leibler ----------------------------------------------------------------------------------------------------


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """log pi - log pi_ref at samples of pi: unbiased for KL(pi || ref), may be negative (Schulman 2020, Approximating
    KL Divergence, joschu.net/blog/kl-approx.html)."""
    return logprobs - reference_logprobs


def kl_k2(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(log pi - log pi_ref)^2 / 2: biased, low variance, never negative (Schulman 2020)."""
    return 0.5 * (logprobs - reference_logprobs) ** 2


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """(w - 1) - log w, w = pi_ref / pi: unbiased and never negative (Schulman 2020); GRPO's penalty."""
    log_w = reference_logprobs - logprobs
    return torch.expm1(log_w) - log_w


def kl_in_reward(
    scores_B: Tensor, logprobs_BT: Tensor, reference_logprobs_BT: Tensor, mask_BT: Tensor, coefficient: float
) -> Tensor:
    """r_t = -coefficient (log pi(a_t) - log pi_ref(a_t)) + score at the last real token, 0 in the padding. (B, T).

    Ziegler et al. 2019 (arXiv:1909.08593), equation 2, spread over the tokens as in Ouyang et al. 2022
    (arXiv:2203.02155). A row whose score is NaN is NaN at its last token: the caller leaves unscorable rows out.
    """
    penalty_BT = -coefficient * kl_k1(logprobs_BT, reference_logprobs_BT)
    rewards_BT = torch.where(mask_BT.bool(), penalty_BT, 0.0)
    last_B = mask_BT.sum(1).long() - 1
    rows = torch.nonzero(last_B >= 0).squeeze(1)
    rewards_BT[rows, last_B[rows]] += scores_B[rows].to(rewards_BT.dtype)
    return rewards_BT


def adaptive_kl_coefficient(
    coefficient: float, kl_nats: float, target_nats: float, gain: float = 0.1, error_clip: float = 0.2
) -> float:
    """e = clip(KL / target - 1, -error_clip, error_clip); coefficient' = coefficient (1 + gain e).

    The proportional controller of Ziegler et al. 2019 (arXiv:1909.08593), section 2.2. Raises ValueError unless the
    target is positive.
    """
    if target_nats <= 0:
        raise ValueError(f"target_nats: expected a positive number, got {target_nats!r}")
    error = min(max(kl_nats / target_nats - 1.0, -error_clip), error_clip)
    return coefficient * (1.0 + gain * error)


# Preferences ---------------------------------------------------------------------------------------------------------


def bradley_terry_loss(chosen_B: Tensor, rejected_B: Tensor, margin_B: Tensor | float = 0.0) -> Tensor:
    """-log sigmoid(r_chosen - r_rejected - margin), per pair (Bradley and Terry 1952; margin: Touvron et al. 2023)."""
    return -F.logsigmoid(chosen_B - rejected_B - margin_B)


def dpo_loss(
    chosen_logprobs_B: Tensor,
    rejected_logprobs_B: Tensor,
    reference_chosen_logprobs_B: Tensor,
    reference_rejected_logprobs_B: Tensor,
    beta: float,
    kind: str = "sigmoid",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss per pair of h = log pi/ref(chosen) - log pi/ref(rejected), from sums of log-probabilities; shape (B,).

    - "sigmoid": -(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h). DPO, Rafailov et al. 2023 (arXiv:2305.18290);
      e = ``label_smoothing`` is cDPO (Mitchell 2023).
    - "ipo": (h - 1 / (2 beta))^2. Azar et al. 2024 (arXiv:2310.12036); there h is of average log-probabilities in
      TRL, so pass per-token means to compare.
    - "hinge": max(0, 1 - beta h). SLiC, Zhao et al. 2023 (arXiv:2305.10425).
    - "sigmoid_norm": -log sigmoid(beta h) with h of per-token means, which the caller passes. Length-normalised DPO,
      Lambert et al. 2024 (arXiv:2411.15124), equation 6.
    - "robust": (-(1 - e) log sigmoid(beta h) + e log sigmoid(-beta h)) / (1 - 2 e). Chowdhury et al. 2024
      (arXiv:2403.00409); unbiased when a share e < 1/2 of the labels is flipped.

    Raises ValueError for an unknown ``kind`` or a smoothing outside [0, 1/2).
    """
    if not 0.0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing: expected a number in [0, 0.5), got {label_smoothing!r}")
    h_B = (chosen_logprobs_B - reference_chosen_logprobs_B) - (rejected_logprobs_B - reference_rejected_logprobs_B)
    right_B, wrong_B = F.logsigmoid(beta * h_B), F.logsigmoid(-beta * h_B)
    if kind == "sigmoid_norm":
        return -right_B
    if kind == "sigmoid":
        return -(1 - label_smoothing) * right_B - label_smoothing * wrong_B
    if kind == "robust":
        return (-(1 - label_smoothing) * right_B + label_smoothing * wrong_B) / (1 - 2 * label_smoothing)
    if kind == "ipo":
        return (h_B - 1 / (2 * beta)) ** 2
    if kind == "hinge":
        return torch.relu(1 - beta * h_B)
    raise ValueError(f"kind: expected sigmoid, sigmoid_norm, ipo, hinge or robust, got {kind!r}")


def kto_loss(
    logratios_B: Tensor,
    desirable_B: Tensor,
    mismatched_logratios_B: Tensor,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Loss per completion: w (1 - sigmoid(beta (r - z))) if it is good, w (1 - sigmoid(beta (z - r))) if bad. (B,).

    KTO, Ethayarajh et al. 2024 (arXiv:2402.01306), equations 7 and 8: r = log pi/ref(y | x) of the completion, z =
    max(0, mean log pi/ref(y' | x)) over completions y' of other prompts, through which no gradient flows.
    ``desirable_B``: whether each completion is good.
    """
    z = mismatched_logratios_B.mean().clamp(min=0).detach()
    gain_B = torch.where(desirable_B, logratios_B - z, z - logratios_B)
    weight_B = torch.where(desirable_B, desirable_weight, undesirable_weight)
    return weight_B * (1 - torch.sigmoid(beta * gain_B))

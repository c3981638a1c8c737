"""Objectives against numbers worked by hand, brute-force sums, enumeration and properties."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lab import objectives as o

NAN = math.nan


def tensor(*rows: object) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def close(actual: torch.Tensor, expected: object, tolerance: float = 1e-9) -> None:
    torch.testing.assert_close(
        actual.double(), torch.as_tensor(expected, dtype=torch.float64), rtol=0, atol=tolerance, equal_nan=True
    )


# Group baselines -----------------------------------------------------------------------------------------------------


def test_group_advantages_without_scaling_are_rewards_minus_their_group_mean() -> None:
    close(o.group_advantages(tensor(1, 2, 3, 10, 10, 40), 3, "none"), [-1, 0, 1, -10, -10, 20])


def test_group_scaling_divides_by_the_sample_deviation_of_the_group() -> None:
    # Groups (1, 2, 3): std 1. (10, 10, 40): mean 20, squares 100 + 100 + 400 = 600, std sqrt(300).
    expected = [-1 / 1.0001, 0, 1 / 1.0001] + [x / (math.sqrt(300) + 1e-4) for x in (-10, -10, 20)]
    close(o.group_advantages(tensor(1, 2, 3, 10, 10, 40), 3, "group"), expected)


def test_batch_scaling_divides_by_the_sample_deviation_of_all_rewards() -> None:
    # Rewards 0, 2, 4, 6: mean 3, squares 9 + 1 + 1 + 9 = 20, std sqrt(20 / 3).
    expected = [x / (math.sqrt(20 / 3) + 1e-4) for x in (-1, 1, -1, 1)]
    close(o.group_advantages(tensor(0, 2, 4, 6), 2, "batch"), expected)


def test_unscorable_rewards_leave_the_group_baseline_and_get_exactly_zero() -> None:
    assert o.group_advantages(tensor(1, NAN, 3, NAN), 4, "none").tolist() == [-1, 0, 1, 0]
    assert o.leave_one_out_advantages(tensor(1, NAN, 3, 8), 4).tolist() == [1 - 5.5, 0, 3 - 4.5, 8 - 2]


@pytest.mark.parametrize("rewards", [[NAN, NAN], [0.7, NAN]])
def test_a_group_with_fewer_than_two_scores_teaches_nothing(rewards: list[float]) -> None:
    for scale in ("group", "batch", "none"):
        assert o.group_advantages(tensor(*rewards), 2, scale).tolist() == [0, 0]
    assert o.leave_one_out_advantages(tensor(*rewards), 2).tolist() == [0, 0]


def test_leave_one_out_subtracts_the_mean_of_the_others() -> None:
    close(o.leave_one_out_advantages(tensor(1, 2, 6, 5, 5, 5), 3), [1 - 4, 2 - 3.5, 6 - 1.5, 0, 0, 0])


def test_equal_rewards_give_exactly_zero_although_their_mean_rounds() -> None:
    rewards = torch.full((7,), 0.1)
    assert (rewards - rewards.mean()).abs().max() > 0  # the trap: float32 does round here
    for scale in ("group", "batch", "none"):
        assert not o.group_advantages(rewards, 7, scale).any()
    assert not o.leave_one_out_advantages(rewards, 7).any()
    assert o.zero_spread_groups(tensor(1, 1, 1, 2, NAN, 3, NAN, NAN), 2).tolist() == [True, False, True, True]


@given(st.lists(st.floats(-10, 10), min_size=4, max_size=4), st.floats(-5, 5))
def test_baselines_cancel_a_constant_and_leave_one_out_is_scaled_centring(rewards: list[float], shift: float) -> None:
    r = tensor(*rewards)
    loo, centred = o.leave_one_out_advantages(r, 4), o.group_advantages(r, 4, "none")
    close(loo, centred * 4 / 3, 1e-8)  # A_loo = G / (G - 1) (r - mean)
    close(o.leave_one_out_advantages(r + shift, 4), loo, 1e-8)
    close(loo.sum(), 0.0, 1e-8)


def test_shapes_and_names_are_checked() -> None:
    with pytest.raises(ValueError, match="groups of 3"):
        o.leave_one_out_advantages(tensor(1, 2, 3, 4), 3)
    with pytest.raises(ValueError, match="group, batch or none, got 'std'"):
        o.group_advantages(tensor(1, 2), 2, "std")


# Generalised advantage estimation ------------------------------------------------------------------------------------


def test_gae_by_hand() -> None:
    # gamma = lambda = 1/2. delta = (1 + 1 - 4, 0 + 3 - 2, 2 - 6) = (-2, 1, -4); A_2 = -4, A_1 = 1 - 1, A_0 = -2 + 0.
    advantages = o.gae(tensor([1, 0, 2]), tensor([4, 2, 6]), tensor([1, 1, 1]), 0.5, 0.5)
    close(advantages, [[-2, 0, -4]])


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1), st.integers(1, 6))
def test_gae_equals_the_double_sum_of_its_definition(seed: int, gamma: float, lambda_: float, length: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    r, v = torch.randn(2, 6, generator=generator, dtype=torch.float64).unbind(0)
    mask = (torch.arange(6) < length).double()
    expected = []
    for t in range(length):
        total = 0.0
        for k in range(length - t):
            value_after = v[t + k + 1] if t + k + 1 < length else 0.0
            total += (gamma * lambda_) ** k * float(r[t + k] + gamma * value_after - v[t + k])
        expected.append(total)
    close(o.gae(r[None], v[None], mask[None], gamma, lambda_), [expected + [0.0] * (6 - length)], 1e-8)


def test_lambda_one_is_return_minus_value_and_lambda_zero_the_one_step_error() -> None:
    r, v, mask = tensor([1, 2, 3]), tensor([5, 7, 9]), tensor([1, 1, 1])
    returns = o.discounted_returns(r, mask, 0.5)
    close(returns, [[1 + 0.5 * (2 + 0.5 * 3), 2 + 0.5 * 3, 3]])
    close(o.gae(r, v, mask, 0.5, 1.0), returns - v)
    close(o.gae(r, v, mask, 0.5, 0.0), [[1 + 3.5 - 5, 2 + 4.5 - 7, 3 - 9]])


def test_padding_changes_nothing_even_if_it_holds_nan() -> None:
    r, v = tensor([1, 2]), tensor([3, 4])
    padded = o.gae(tensor([1, 2, NAN, 9]), tensor([3, 4, 9, NAN]), tensor([1, 1, 0, 0]), 0.9, 0.8)
    close(padded[:, :2], o.gae(r, v, tensor([1, 1]), 0.9, 0.8))
    assert padded[:, 2:].tolist() == [[0, 0]]


# Whitening, losses, critic -------------------------------------------------------------------------------------------


def test_whiten_uses_real_entries_only() -> None:
    x, mask = tensor([1, 3, 100], [5, NAN, 7]), tensor([1, 1, 0], [1, 0, 1])
    # Real entries 1, 3, 5, 7: mean 4, population variance 5.
    close(o.whiten(x, mask), torch.tensor([[-3, -1, 0], [1, 0, 3]]) / math.sqrt(5), 1e-7)
    close(
        o.whiten(x, mask, shift_mean=False),
        [[4 - 3 / 5**0.5, 4 - 1 / 5**0.5, 0], [4 + 1 / 5**0.5, 0, 4 + 3 / 5**0.5]],
        1e-7,
    )
    assert o.masked_mean(x, torch.zeros_like(mask)) == 0


def test_clipped_policy_loss_takes_the_pessimistic_branch() -> None:
    ratios = tensor(1.5, 1.5, 0.5, 0.5, 1.1)
    loss = o.clipped_policy_loss(ratios.log(), torch.zeros(5), tensor(2, -2, 2, -2, 1), 0.2)
    close(loss, [-2.4, 3.0, -1.0, 1.6, -1.1])


def test_clipped_policy_loss_has_no_gradient_where_it_clips() -> None:
    logprobs = tensor(math.log(1.5), math.log(1.5), 0.0).requires_grad_()
    o.clipped_policy_loss(logprobs, torch.zeros(3), tensor(2, -2, 3), 0.2).sum().backward()
    close(logprobs.grad, [0, 3.0, -3.0])  # -A w where it is not clipped


def test_clipped_value_loss_takes_the_larger_error() -> None:
    # v = 3, old = 1, clip 0.5: clipped to 1.5. Return 4: errors 1 and 6.25. Return 2: errors 1 and 0.25.
    close(o.clipped_value_loss(tensor(3, 3), tensor(1, 1), tensor(4, 2), 0.5), [6.25 / 2, 0.5])
    close(o.clipped_value_loss(tensor(3), tensor(1), tensor(4), math.inf), [0.5])


def test_explained_variance() -> None:
    returns, mask = tensor([1, 2, 3, 99]), tensor([1, 1, 1, 0])
    close(o.explained_variance(returns, returns, mask), 1.0)
    close(o.explained_variance(tensor([5, 5, 5, 0]), returns, mask), 0.0)
    close(o.explained_variance(-returns, returns, mask), -3.0)  # residual 2 G: variance 4 Var(G)
    assert o.explained_variance(returns, torch.ones_like(returns), mask).isnan()


# Kullback-Leibler ----------------------------------------------------------------------------------------------------


def test_k1_and_k3_are_unbiased_and_k2_is_not_by_enumeration() -> None:
    pi, ref = tensor(0.5, 0.3, 0.2), tensor(0.2, 0.2, 0.6)
    exact = (pi * (pi / ref).log()).sum()
    close((pi * o.kl_k1(pi.log(), ref.log())).sum(), exact)
    close((pi * o.kl_k3(pi.log(), ref.log())).sum(), exact)
    assert abs((pi * o.kl_k2(pi.log(), ref.log())).sum() - exact) > 1e-3
    assert (o.kl_k3(pi.log(), ref.log()) >= 0).all()
    close(o.kl_k2(tensor(1.0), tensor(-2.0)), [4.5])


def test_the_score_lands_on_the_last_real_token() -> None:
    rewards = o.kl_in_reward(
        tensor(5, 7, 9), tensor([1, 2, 3], [1, 1, 1], [4, 4, 4]), torch.zeros(3, 3, dtype=torch.float64),
        torch.tensor([[1, 1, 0], [1, 1, 1], [0, 0, 0]]), 0.5,
    )  # fmt: skip
    close(rewards, [[-0.5, 4, 0], [-0.5, -0.5, 6.5], [0, 0, 0]])


def test_the_sum_of_shaped_rewards_is_score_minus_sequence_penalty() -> None:
    logprobs, reference, mask = torch.randn(4, 5), torch.randn(4, 5), (torch.arange(5) < 3).expand(4, 5)
    scores = torch.randn(4)
    shaped = o.kl_in_reward(scores, logprobs, reference, mask, 0.1).sum(1)
    torch.testing.assert_close(shaped, scores - 0.1 * ((logprobs - reference) * mask).sum(1))


def test_the_kl_controller_moves_towards_its_target_within_its_clip() -> None:
    assert o.adaptive_kl_coefficient(0.2, 6.6, 6.0) == pytest.approx(0.2 * (1 + 0.1 * 0.1))
    assert o.adaptive_kl_coefficient(0.2, 600, 6.0) == pytest.approx(0.2 * 1.02)
    assert o.adaptive_kl_coefficient(0.2, 0.0, 6.0) == pytest.approx(0.2 * 0.98)
    assert o.adaptive_kl_coefficient(0.2, 6.0, 6.0) == pytest.approx(0.2)
    with pytest.raises(ValueError, match="target_nats"):
        o.adaptive_kl_coefficient(0.2, 1.0, 0.0)


# Preferences ---------------------------------------------------------------------------------------------------------


def test_bradley_terry_by_hand() -> None:
    close(o.bradley_terry_loss(tensor(2, 1), tensor(2, 3)), [math.log(2), math.log(1 + math.exp(2))])
    close(o.bradley_terry_loss(tensor(2), tensor(1), 1.0), [math.log(2)])


def test_dpo_family_by_hand() -> None:
    policy = tensor(-1.0), tensor(-4.0)
    reference = tensor(-2.0), tensor(-3.0)  # h = (-1 + 2) - (-4 + 3) = 2; with beta 0.5, beta h = 1
    sigma = 1 / (1 + math.exp(-1))
    close(o.dpo_loss(*policy, *reference, 0.5), [-math.log(sigma)])
    close(o.dpo_loss(*policy, *reference, 0.5, "sigmoid", 0.1), [-0.9 * math.log(sigma) - 0.1 * math.log(1 - sigma)])
    robust = (-0.9 * math.log(sigma) + 0.1 * math.log(1 - sigma)) / 0.8
    close(o.dpo_loss(*policy, *reference, 0.5, "robust", 0.1), [robust])
    close(o.dpo_loss(*policy, *reference, 0.5, "ipo"), [(2 - 1) ** 2])
    close(o.dpo_loss(*policy, *reference, 0.25, "hinge"), [0.5])
    close(o.dpo_loss(*policy, *reference, 1.0, "hinge"), [0.0])
    with pytest.raises(ValueError, match="got 'dpo'"):
        o.dpo_loss(*policy, *reference, 0.5, "dpo")


def test_robust_dpo_is_unbiased_under_flipped_labels() -> None:
    chosen, rejected, reference = tensor(-1.0), tensor(-3.0), tensor(-2.0)
    flip = 0.2
    right = o.dpo_loss(chosen, rejected, reference, reference, 0.7, "robust", flip)
    wrong = o.dpo_loss(rejected, chosen, reference, reference, 0.7, "robust", flip)
    close((1 - flip) * right + flip * wrong, o.dpo_loss(chosen, rejected, reference, reference, 0.7))

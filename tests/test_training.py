"""What the trainers share."""

from __future__ import annotations

import numpy as np
import pytest

from lab.training import batch_order, evenly


def test_batches_hold_rows_of_similar_length_in_random_order() -> None:
    lengths = list(np.random.default_rng(0).integers(5, 40, size=1000))
    order = batch_order(lengths, batch=10, epochs=1, seed=3, window=20)
    assert sorted(order) == list(range(1000))
    batches = np.array(lengths)[order].reshape(-1, 10)
    assert np.ptp(batches, axis=1).mean() < 0.2 * np.ptp(lengths)
    means = batches.mean(axis=1)  # not from long to short: neighbours go up as often as down
    assert 0.35 < (np.diff(means) > 0).mean() < 0.65


def test_the_order_covers_epochs_and_drops_only_what_fills_no_batch() -> None:
    order = batch_order([7] * 25, batch=10, epochs=2, seed=0, window=20)
    assert len(order) == 40
    assert len(batch_order([7] * 40, batch=10, epochs=1.5, seed=0, window=1)) == 60
    assert sorted(batch_order([7] * 4, batch=10, epochs=1, seed=0, window=20)) == [0, 1, 2, 3]
    assert batch_order([7] * 40, 10, 1, seed=1, window=1) != batch_order([7] * 40, 10, 1, seed=2, window=1)


@pytest.mark.parametrize(("steps", "count", "points"), [(40, 3, [10, 20, 30]), (2, 3, [1]), (5, 0, []), (1, 2, [])])
def test_snapshots_are_interior_points(steps: int, count: int, points: list[int]) -> None:
    assert evenly(steps, count) == points

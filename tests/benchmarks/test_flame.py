"""The flame that is learned in docs/flame.md: it burns, and the same seed burns the same way."""

from __future__ import annotations

from itertools import islice

import numpy as np

from benchmarks import flame


def test_a_flame_is_seeded_and_moves() -> None:
    once, again, other = (np.stack(list(islice(flame.frames(32, 15, seed), 3))) for seed in (0, 0, 1))
    assert once.shape == (3, 32, 32, 3) and once.dtype == np.uint8
    assert np.array_equal(once, again) and not np.array_equal(once, other)
    assert (once[0] != once[1]).any()
    assert once[:, 16:].mean() > 2 * once[:, :8].mean()  # it stands on the ground

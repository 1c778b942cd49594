from itertools import pairwise, product

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rankwise.latency.smooth import monotone, monotone_grid, points, stair


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5))
def test_the_monotone_fit_is_the_closest_of_all(values: list[int]) -> None:
    """Against every sequence of halves and thirds, among which block means of few small integers lie."""
    found = monotone(np.array(values, dtype=np.float64))
    assert (np.diff(found) >= 0).all()
    levels = (
        sorted({n / d for d in (1, 2, 3, 4, 5) for n in range(4 * d + 1)}) if len(values) <= 3 else range(5)
    )
    best = min(
        sum((a - b) ** 2 for a, b in zip(values, rising, strict=True))
        for rising in product(levels, repeat=len(values))
        if all(a <= b for a, b in pairwise(rising))
    )
    error = float(((found - values) ** 2).sum())
    assert error <= best + 1e-9
    if len(values) <= 3:
        assert error >= best - 1e-9


def test_a_grid_falls_along_no_axis_and_stays_where_it_did_not_before() -> None:
    rising = np.add.outer(np.arange(4.0), np.arange(3.0))
    assert np.array_equal(monotone_grid(rising), rising)
    noisy = rising + np.random.default_rng(0).normal(0, 1.5, rising.shape)
    found = monotone_grid(noisy)
    assert (np.diff(found, axis=0) >= 0).all()
    assert (np.diff(found, axis=1) >= 0).all()


def test_both_ends_of_every_stair_are_timed_where_steps_are_large() -> None:
    assert points(32) == [1, 8, 9, 16, 17, 24, 25, 32]
    assert points(6) == [1, 3, 6]
    assert points(512, most=4) == [1, 128, 256, 384, 512]
    assert [stair(width, 512) for width in (1, 8, 9, 129, 512)] == [8, 8, 16, 136, 512]
    assert [stair(width, 64) for width in (1, 9, 33)] == [1, 9, 33]
    assert all(width % 8 == 0 for width in points(1000)[1:-1])

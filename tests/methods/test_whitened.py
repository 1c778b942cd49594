"""whitened against the textbook solution through a root of the input moment, and singular data."""

import numpy as np
import pytest
import torch

from rankwise.methods import get_method
from tests.methods.by_hand import CASES, case, measured_error, patches_of, statistics_of


@pytest.mark.parametrize("name", sorted(CASES))
def test_error_is_eckart_young_behind_the_root_of_the_input_moment(name: str) -> None:
    layer, x = case(name)
    method = get_method("whitened")
    if method.supports(layer):
        pytest.skip("too thin")
    statistics = statistics_of(layer, x)
    table = method.candidates(layer, statistics)
    tails = np.zeros(len(table))
    for weight, rows in zip(layer.matrix().numpy(), patches_of(layer, x), strict=True):
        triangle = np.linalg.qr(rows)[1]  # rows^T rows = R^T R
        values = np.linalg.svd(weight @ triangle.T, compute_uv=False) ** 2 / len(x)
        tails += [values[r:].sum() for r in table.choices["rank"]]
    np.testing.assert_allclose(table.error, tails, atol=1e-9 * table.scale)
    index = len(table) // 2
    built = method.build(layer, statistics, table.choice(index))
    assert measured_error(layer, built, x) == pytest.approx(table.error[index], rel=1e-7, abs=1e-12)


def test_fewer_data_than_inputs_are_normal_input() -> None:
    layer, x = case("linear", examples=3)
    method, statistics = get_method("whitened"), statistics_of(layer, x)
    table = method.candidates(layer, statistics)
    assert table.error[2] == pytest.approx(0.0, abs=1e-10 * table.scale)  # three rows span three dimensions
    built = method.build(layer, statistics, table.choice(2))
    torch.testing.assert_close(built(x), layer.module(x))

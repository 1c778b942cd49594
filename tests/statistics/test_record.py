import numpy as np
import pytest
import torch

from rankwise.errors import CalibrationError
from rankwise.statistics.record import LayerStatistics

G, D, O = 2, 4, 3  # noqa: E741


def some(rows: int, seed: int, factored: bool = False, samples: int = 0) -> LayerStatistics:
    """Statistics of random rows, computed from their definition."""
    random = np.random.default_rng(seed)
    u, y = random.normal(size=(rows, G, D)), random.normal(size=(rows, G, O))
    held = LayerStatistics(float(rows), 2.0 * rows)
    held.input_sum = torch.from_numpy(u.sum(0))
    held.output_sum = torch.from_numpy(y.sum(0))
    held.output_square = torch.from_numpy(np.einsum("ngo,ngp->gop", y, y))
    held.cross = torch.from_numpy(np.einsum("ngo,ngd->god", y, u))
    if factored:
        held.input_rows = torch.from_numpy(u.transpose(1, 0, 2).copy())
    else:
        held.input_square = torch.from_numpy(np.einsum("ngd,nge->gde", u, u))
    if samples:
        keys = np.sort(random.uniform(size=rows))[:samples]
        held.sample_keys, held.sample_limit = torch.from_numpy(keys), samples
        held.sample_inputs = torch.from_numpy(u[:samples].copy())
        held.sample_outputs = torch.from_numpy(y[:samples].copy())
    return held


def moment(seeds: list[tuple[int, int]]) -> np.ndarray:
    u = np.concatenate([np.random.default_rng(seed).normal(size=(rows, G, D)) for rows, seed in seeds])
    return np.einsum("ngd,nge->gde", u, u)


@pytest.mark.parametrize("first", [(2, True), (2, False), (3, True)])
@pytest.mark.parametrize("second", [(1, True), (1, False), (3, True), (9, False)])
def test_sums_and_factors_merge(first: tuple[int, bool], second: tuple[int, bool]) -> None:
    a, b = some(first[0], 1, first[1]), some(second[0], 2, second[1])
    before = {k: v.clone() for k, v in a.tensors().items()}
    merged = a + b
    rows = first[0] + second[0]
    assert merged.examples == rows and merged.positions == 2 * rows
    expected = torch.from_numpy(moment([(first[0], 1), (second[0], 2)])) / (2 * rows)
    torch.testing.assert_close(merged.input_moment, expected, rtol=1e-12, atol=1e-14)
    stays_factored = first[1] and second[1] and rows < D
    assert (merged.input_rows is not None) == stays_factored
    assert (merged.input_square is None) == stays_factored
    torch.testing.assert_close(merged.output_mean, (a.output_sum + b.output_sum) / (2 * rows))
    assert all(torch.equal(value, before[key]) for key, value in a.tensors().items())
    a += b
    for key, value in merged.tensors().items():
        torch.testing.assert_close(a.tensors()[key], value)


def test_adding_is_commutative_and_has_a_neutral_element() -> None:
    a, b = some(5, 1, samples=4), some(6, 2, samples=4)
    one, other = (a + b).tensors(), (b + a).tensors()
    alone = (LayerStatistics() + a).tensors()
    for key, value in one.items():
        torch.testing.assert_close(value, other[key], rtol=1e-14, atol=1e-14)
    for key, value in a.tensors().items():
        assert torch.equal(alone[key], value)
        assert torch.equal((a + LayerStatistics()).tensors()[key], value)


def test_the_merged_sample_has_the_smallest_keys() -> None:
    a, b = some(5, 1, samples=4), some(6, 2, samples=4)
    merged = a + b
    assert a.sample_keys is not None and b.sample_keys is not None
    expected = np.sort(np.concatenate([a.sample_keys.numpy(), b.sample_keys.numpy()]))[:4]
    assert merged.sample_keys is not None
    np.testing.assert_array_equal(merged.sample_keys.numpy(), expected)
    sources = torch.cat([a.sample_inputs, b.sample_inputs])  # type: ignore[list-item]
    keys = torch.cat([a.sample_keys, b.sample_keys])
    for key, row in zip(merged.sample_keys, merged.sample_inputs, strict=True):  # type: ignore[arg-type]
        assert torch.equal(sources[keys == key][0], row)


def test_covariances_follow_from_their_definition() -> None:
    random = np.random.default_rng(0)
    u, y = random.normal(size=(9, G, D)) + 3, random.normal(size=(9, G, O)) - 1
    held = LayerStatistics(9.0, 9.0)
    held.input_sum, held.output_sum = torch.from_numpy(u.sum(0)), torch.from_numpy(y.sum(0))
    held.input_square = torch.from_numpy(np.einsum("ngd,nge->gde", u, u))
    held.output_square = torch.from_numpy(np.einsum("ngo,ngp->gop", y, y))
    for group in range(G):
        np.testing.assert_allclose(held.input_covariance[group], np.cov(u[:, group].T, bias=True), atol=1e-12)
        np.testing.assert_allclose(
            held.output_covariance[group], np.cov(y[:, group].T, bias=True), atol=1e-12
        )


def test_what_is_missing_is_named() -> None:
    with pytest.raises(CalibrationError, match=r"'gradient_square' was not collected; collected: input_sum"):
        _ = some(3, 0).gradient_moment
    with pytest.raises(CalibrationError, match="empty"):
        _ = LayerStatistics(output_sum=torch.zeros(1, 2)).output_mean


def test_unlike_statistics_do_not_add() -> None:
    lacking = some(3, 2)
    lacking.output_sum = None
    with pytest.raises(CalibrationError, match="only one side holds 'output_sum'"):
        _ = some(3, 1) + lacking
    other = some(3, 2)
    other.output_sum = torch.zeros(1, 2)
    with pytest.raises(CalibrationError, match=r"shapes \(2, 3\) and \(1, 2\)"):
        _ = some(3, 1) + other


def test_tensors_round_trip() -> None:
    held = some(5, 1, samples=3)
    again = LayerStatistics.from_tensors(held.tensors())
    assert (again.examples, again.positions, again.sample_limit) == (5.0, 10.0, 3)
    assert again.tensors().keys() == held.tensors().keys()

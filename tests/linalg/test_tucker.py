import itertools

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from tensorly.decomposition import partial_tucker
from tests.linalg.test_cp import moment, randn

from rankwise.linalg.cp import metric_error
from rankwise.linalg.tucker import hosvd_errors, tucker
from rankwise.linalg.tucker2 import Tucker2Options, tucker2, tucker2_errors, tucker2_grid


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [
        ((6, 7), {0: 2, 1: 2}),
        ((6, 5, 3, 3), {0: 3, 1: 2}),
        ((4, 5, 6), {0: 2, 1: 3, 2: 2}),
        ((4, 5, 6), {2: 3}),
    ],
)
def test_error_is_not_above_that_of_tensorly(shape: tuple[int, ...], ranks: dict[int, int]) -> None:
    tensor = randn(*shape)
    tensorly.set_backend("numpy")
    (core, factors), _ = partial_tucker(
        tensor.numpy(), rank=list(ranks.values()), modes=list(ranks), init="svd", n_iter_max=200, tol=1e-12
    )
    theirs = np.square(tensor.numpy() - tensorly.tenalg.multi_mode_dot(core, factors, list(ranks))).sum()
    ours = tucker(tensor, ranks, sweeps=200, tolerance=1e-14)
    assert ours.error <= theirs * (1 + 1e-4)
    assert ours.error == pytest.approx(float((tensor - ours.tensor()).square().sum()))
    for mode, factor in ours.factors.items():
        torch.testing.assert_close(factor.T @ factor, torch.eye(ranks[mode], dtype=torch.float64))


def test_one_mode_is_the_truncated_svd_of_its_unfolding() -> None:
    tensor = randn(6, 5, 3)
    values = np.linalg.svd(tensor.movedim(1, 0).reshape(5, 18).numpy(), compute_uv=False)
    assert tucker(tensor, {1: 2}).error == pytest.approx(np.square(values[2:]).sum())


def test_known_rank_is_recovered() -> None:
    core = randn(2, 3, 3, 3)
    tensor = torch.einsum("ijkl,ti,sj->tskl", core, randn(8, 2, seed=1), randn(7, 3, seed=2))
    assert tucker(tensor, {0: 2, 1: 3}).error < 1e-12 * float(tensor.square().sum())
    fit = tucker2(tensor, 2, 3, input_metric=moment(63), output_metric=moment(8))
    assert fit.error < 1e-12 * fit.scale


def test_hosvd_errors_are_those_of_each_truncation_and_bound_hooi() -> None:
    tensor = randn(4, 5, 3)
    errors = hosvd_errors(tensor, [0, 1])
    assert errors.shape == (5, 6)
    assert errors[0, 0] == pytest.approx(float(tensor.square().sum()))
    assert errors[4, 5] == pytest.approx(0.0, abs=1e-12)
    for a, b in itertools.product(range(1, 5), range(1, 6)):
        truncated = tucker(tensor, {0: a, 1: b}, sweeps=0)
        assert errors[a, b] == pytest.approx(truncated.error, abs=1e-10)
        assert tucker(tensor, {0: a, 1: b}).error <= errors[a, b] + 1e-10


def test_a_metric_per_mode_is_whitening() -> None:
    tensor, metric = randn(5, 6, 2), moment(6)
    fit = tucker(tensor, {0: 2, 1: 3}, metrics={1: metric}, sweeps=50)
    difference = (tensor - fit.tensor()).numpy()
    measured = np.einsum("tsk,su,tuk->", difference, metric.numpy(), difference)
    assert fit.error == pytest.approx(measured, rel=1e-6)
    plain = (tensor - tucker(tensor, {0: 2, 1: 3}, sweeps=50).tensor()).numpy()
    assert fit.error < np.einsum("tsk,su,tuk->", plain, metric.numpy(), plain)


def test_smallest_case_in_a_metric_is_the_best_of_many_searches() -> None:
    tensor, inputs, outputs = randn(3, 3, 2), moment(6), moment(3, seed=5)

    def objective(flat: np.ndarray) -> float:
        a, b, core = flat[:3], flat[3:6], flat[6:]
        difference = (tensor.numpy() - np.einsum("i,j,k->ijk", a, b, core)).reshape(3, 6)
        return float(np.trace(outputs.numpy() @ difference @ inputs.numpy() @ difference.T))

    rng = np.random.default_rng(0)
    best = min(minimize(objective, rng.normal(size=8), tol=1e-12).fun for _ in range(10))
    options = Tucker2Options(sweeps=200, floor=1e-9)
    fit = tucker2(tensor, 1, 1, input_metric=inputs, output_metric=outputs, options=options)
    assert fit.error == pytest.approx(best, rel=1e-4)


def test_one_sided_models_in_a_metric() -> None:
    tensor, inputs, outputs = randn(6, 4, 3, 3), moment(36), moment(6, seed=3)
    dense = tucker2(tensor, 0, 0, input_metric=inputs, output_metric=outputs)
    torch.testing.assert_close(dense.tensor(), tensor)
    left = tucker2(
        tensor, 2, 0, input_metric=inputs, output_metric=outputs, options=Tucker2Options(floor=1e-9)
    )
    half = torch.linalg.cholesky(outputs).T @ tensor.flatten(1) @ torch.linalg.cholesky(inputs)
    values = np.linalg.svd(half.numpy(), compute_uv=False)
    assert left.error == pytest.approx(np.square(values[2:]).sum(), rel=1e-5)
    right = tucker2(tensor, 0, 2, input_metric=inputs, output_metric=outputs)
    assert right.factors.keys() == {1}
    assert right.core.shape == (6, 2, 3, 3)


def test_the_exact_metric_beats_the_channel_metric_and_plain_tucker() -> None:
    tensor, inputs = randn(8, 6, 3, 3), moment(54)
    exact = tucker2(tensor, 4, 3, input_metric=inputs).error
    channels = tucker2(tensor, 4, 3, input_metric=inputs, options=Tucker2Options(exact_limit=0)).error
    plain = metric_error(tensor - tucker(tensor, {0: 4, 1: 3}).tensor(), inputs)
    assert exact < channels < plain


@settings(deadline=None, max_examples=15)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.integers(0, 1000),
    st.sampled_from(["identity", "input", "two_sided"]),
)
def test_grid_exact_at_full_rank_and_errors_as_measured(dims: list[int], seed: int, metric: str) -> None:
    tensor = randn(*dims, seed=seed)
    inputs = None if metric == "identity" else moment(tensor[0].numel(), seed, rows=3)
    outputs = moment(dims[0], seed, rows=1) if metric == "two_sided" else None
    grid = [(a, b) for a in range(1, dims[0] + 1) for b in range(1, dims[1] + 1)]
    fits = tucker2_grid(tensor, grid, input_metric=inputs, output_metric=outputs)
    for fit in fits:
        measured = metric_error(tensor - fit.tensor(), inputs, outputs)
        assert fit.error == pytest.approx(measured, rel=1e-6, abs=1e-9 * (1 + fit.scale))
    torch.testing.assert_close(fits[-1].tensor(), tensor, rtol=1e-6, atol=1e-6)


def test_errors_without_a_whole_metric_bound_those_of_the_fits() -> None:
    tensor, inputs, outputs = randn(6, 5, 3), moment(15), moment(6, seed=2)
    pairs = [(2, 2), (0, 3), (4, 0), (0, 0)]
    for metric in (None, outputs):
        bounds = tucker2_errors(tensor, pairs, output_metric=metric)
        fits = tucker2_grid(tensor, pairs, output_metric=metric, options=Tucker2Options(floor=1e-9))
        for bound, fit in zip(bounds, fits, strict=True):
            assert fit.error <= bound * (1 + 1e-6) + 1e-9 * fit.scale
    exact = tucker2_errors(tensor, pairs, input_metric=inputs)
    assert exact == [fit.error for fit in tucker2_grid(tensor, pairs, input_metric=inputs)]
    rough = tucker2_errors(tensor, pairs, input_metric=inputs, options=Tucker2Options(exact_limit=0))
    assert rough[0] > rough[-1] == pytest.approx(0, abs=1e-9)


def test_more_sweeps_are_never_worse() -> None:
    tensor, inputs = randn(8, 6, 3, 3), moment(54)
    errors = [
        tucker2(tensor, 4, 3, input_metric=inputs, options=Tucker2Options(sweeps=n, floor=1e-9)).error
        for n in (0, 1, 2, 8)
    ]
    assert errors == sorted(errors, reverse=True)


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="allowed: 1 to the size"):
        tucker(randn(3, 4), {0: 5})

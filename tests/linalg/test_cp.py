from itertools import pairwise

import numpy as np
import pytest
import tensorly
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from tensorly.decomposition import parafac

from rankwise.linalg.cp import CPOptions, cp, cp_curve, cp_tensor, metric_error, refine
from rankwise.linalg.cp_correction import error_preserving_correction, sensitivity
from rankwise.linalg.cp_metric import Weighted, separable_parts
from rankwise.linalg.cp_solver import Euclidean, component_norms, khatri_rao


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def moment(size: int, seed: int = 0, rows: int | None = None) -> torch.Tensor:
    """A second moment with a wide spectrum; singular where ``rows`` is smaller than ``size``."""
    samples = randn(rows or 4 * size, size, seed=seed) * torch.logspace(0, -1.5, size, dtype=torch.float64)
    mixed = samples @ torch.linalg.qr(randn(size, size, seed=seed + 1))[0]
    return mixed.T @ mixed / len(mixed)


def low_rank(shape: tuple[int, ...], rank: int, seed: int = 0) -> torch.Tensor:
    return cp_tensor([randn(dim, rank, seed=seed + n) for n, dim in enumerate(shape)])


def test_cp_tensor_is_the_sum_of_outer_products() -> None:
    a, b, c = randn(3, 2), randn(4, 2, seed=1), randn(2, 2, seed=2)
    expected = np.einsum("ir,jr,kr->ijk", a.numpy(), b.numpy(), c.numpy())
    np.testing.assert_allclose(cp_tensor([a, b, c]).numpy(), expected, atol=1e-14)


@pytest.mark.parametrize("metric", ["identity", "input", "two_sided"])
@pytest.mark.parametrize("shape", [(5, 6), (4, 5, 6), (8, 6, 3, 3), (4, 3, 2, 3, 2)])
def test_known_rank_is_recovered(shape: tuple[int, ...], metric: str) -> None:
    tensor = low_rank(shape, 3)
    inputs = None if metric == "identity" else moment(tensor[0].numel())
    outputs = moment(shape[0]) if metric == "two_sided" else None
    options = CPOptions(ridge=0.0, iterations=60, metric_iterations=60)
    curve = cp_curve(tensor, [1, 2, 3], input_metric=inputs, output_metric=outputs, options=options)
    assert curve[-1].relative_error < 1e-3
    assert curve[0].relative_error > 0.1


@pytest.mark.parametrize("rank", [2, 6, 12])
def test_error_is_not_above_that_of_tensorly(rank: int) -> None:
    tensor = randn(8, 8, 3, 3) + 2 * low_rank((8, 8, 3, 3), 3)
    tensorly.set_backend("numpy")
    weights, factors = parafac(
        tensor.numpy(), rank, n_iter_max=200, init="svd" if rank <= 8 else "random", random_state=0, tol=1e-10
    )
    theirs = np.square(tensor.numpy() - tensorly.cp_to_tensor((weights, factors))).sum()
    ours = cp(tensor, rank, options=CPOptions(starts=3))
    assert ours.error <= theirs * 1.01
    assert ours.error == pytest.approx(float((tensor - ours.tensor()).square().sum()), rel=1e-9)


def test_rank_one_in_a_metric_is_the_best_of_many_searches() -> None:
    tensor, inputs, outputs = randn(3, 2, 2), moment(4), moment(3, seed=5)

    def objective(flat: np.ndarray) -> float:
        a, b, c = flat[:3], flat[3:5], flat[5:]
        difference = (tensor.numpy() - np.einsum("i,j,k->ijk", a, b, c)).reshape(3, 4)
        return float(np.trace(outputs.numpy() @ difference @ inputs.numpy() @ difference.T))

    rng = np.random.default_rng(0)
    best = min(minimize(objective, rng.normal(size=7), tol=1e-12).fun for _ in range(12))
    options = CPOptions(ridge=0.0, starts=4, metric_iterations=50, floor=1e-9)
    fit = cp(tensor, 1, input_metric=inputs, output_metric=outputs, options=options)
    assert fit.error == pytest.approx(best, rel=1e-4)


def test_the_exact_metric_beats_the_separable_one_and_plain_cp() -> None:
    tensor, inputs = randn(8, 6, 3, 3), moment(54)
    errors = {}
    for name, options in {"exact": CPOptions(), "separable": CPOptions(exact_limit=0)}.items():
        errors[name] = cp(tensor, 10, input_metric=inputs, options=options).error
    errors["plain"] = metric_error(tensor - cp(tensor, 10).tensor(), inputs)
    assert errors["exact"] < errors["separable"] < errors["plain"]


def test_metric_error_is_the_mean_squared_output_error() -> None:
    difference, samples = randn(4, 3, 2), randn(50, 6, seed=1)
    expected = np.mean(np.sum((samples.numpy() @ difference.reshape(4, 6).numpy().T) ** 2, axis=1))
    assert metric_error(difference, samples.T @ samples / 50) == pytest.approx(expected)


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.integers(1, 5), min_size=2, max_size=4),
    st.integers(0, 1000),
    st.sampled_from(["identity", "input", "two_sided"]),
)
def test_the_curve_never_rises_and_reports_its_errors(dims: list[int], seed: int, metric: str) -> None:
    tensor = randn(*dims, seed=seed)
    inputs = None if metric == "identity" else moment(tensor[0].numel(), seed, rows=2)
    outputs = moment(dims[0], seed, rows=1) if metric == "two_sided" else None
    curve = cp_curve(tensor, [1, 2, 4, 7], input_metric=inputs, output_metric=outputs)
    assert [fit.rank for fit in curve] == [1, 2, 4, 7]
    for smaller, larger in pairwise(curve):
        assert larger.error <= smaller.error
    for fit in curve:
        measured = metric_error(tensor - fit.tensor(), inputs, outputs)
        assert fit.error == pytest.approx(measured, rel=1e-6, abs=1e-9 * (1 + fit.scale))


def test_same_input_same_bits_whatever_the_global_generator() -> None:
    tensor = randn(6, 5, 3, 3)
    torch.manual_seed(1)
    first = cp_curve(tensor, [3, 40])
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = cp_curve(tensor, [3, 40])
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first, second, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a.factors, b.factors, strict=True))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_scale_of_tensor_and_metric_does_not_matter(scale: float) -> None:
    tensor, inputs = randn(6, 5, 3, 3), moment(45)
    plain = cp(tensor, 8, input_metric=inputs).relative_error
    assert cp(tensor * scale, 8, input_metric=inputs / scale).relative_error == pytest.approx(plain, rel=1e-3)


def test_zero_tensor_and_empty_metric() -> None:
    assert cp(torch.zeros(3, 4, 2), 2).error == 0
    fit = cp(low_rank((3, 4, 2), 2), 2, input_metric=torch.zeros(8, 8, dtype=torch.float64))
    assert fit.error == 0
    assert torch.isfinite(fit.tensor()).all()


def degenerate_tensor() -> torch.Tensor:
    """Border rank 2, rank 3: rank-2 models get better for ever while their terms grow (de Silva and Lim)."""
    a, b = torch.linalg.qr(randn(5, 2))[0].T
    pairs = [(a, a, b), (a, b, a), (b, a, a)]
    return sum(torch.einsum("i,j,k->ijk", *p) for p in pairs)  # type: ignore[return-value]


def test_degenerate_fits_are_reported_and_the_ridge_prevents_them() -> None:
    wild = cp(degenerate_tensor(), 2, options=CPOptions(ridge=0.0, iterations=100, starts=3))
    tame = cp(degenerate_tensor(), 2, options=CPOptions(ridge=1e-2, iterations=100, starts=3))
    assert wild.degenerate
    assert not tame.degenerate
    assert wild.error < tame.error < 0.1 * tame.scale


def test_correction_lowers_sensitivity_within_the_bound() -> None:
    tensor = degenerate_tensor()
    wild = cp(tensor, 2, options=CPOptions(ridge=0.0, iterations=30, starts=3))
    bound = max(wild.error * 1.5, 1e-3 * wild.scale)
    corrected = error_preserving_correction(tensor, list(wild.factors), bound)
    assert sensitivity(corrected) < 0.5 * sensitivity(list(wild.factors))
    assert float((tensor - cp_tensor(corrected)).square().sum()) <= bound * (1 + 1e-6)
    assert component_norms(corrected).max() < component_norms(list(wild.factors)).max()
    with pytest.raises(ValueError, match="raise the bound"):
        error_preserving_correction(tensor, [f * 0.5 for f in wild.factors], wild.error)


def test_sensitivity_is_the_expected_change_under_noise() -> None:
    factors = [randn(3, 2), randn(4, 2, seed=1), randn(2, 2, seed=2)]
    generator = torch.Generator().manual_seed(3)
    step, changes = 1e-4, []
    for _ in range(4000):
        noisy = [f + step * torch.randn(f.shape, dtype=f.dtype, generator=generator) for f in factors]
        changes.append(float((cp_tensor(noisy) - cp_tensor(factors)).square().sum()) / step**2)
    assert np.mean(changes) == pytest.approx(sensitivity(factors), rel=0.05)


@pytest.mark.parametrize("weighted", [False, True])
def test_linearisation_against_autograd(weighted: bool) -> None:
    tensor = randn(4, 3, 2, 2)
    problem = Weighted(tensor, moment(12)) if weighted else Euclidean(tensor)
    metric = moment(12) if weighted else torch.eye(12, dtype=torch.float64)
    factors = [randn(dim, 3, seed=n) for n, dim in enumerate(tensor.shape)]
    root = torch.linalg.cholesky(metric)

    def residual(*given: torch.Tensor) -> torch.Tensor:
        return ((cp_tensor(given) - tensor).flatten(1) @ root).flatten()

    assert problem.value(factors) == pytest.approx(float(residual(*factors).square().sum()))
    jacobian = torch.cat(
        [j.flatten(1) for j in torch.autograd.functional.jacobian(residual, tuple(factors))], dim=1
    )
    system = problem.linearise(factors)
    downhill = torch.cat([d.flatten() for d in system.downhill])
    torch.testing.assert_close(downhill, -jacobian.T @ residual(*factors))
    steps = [randn(*f.shape, seed=9 + n) for n, f in enumerate(factors)]
    image = torch.cat([p.flatten() for p in system.product(steps)])
    wanted = jacobian.T @ (jacobian @ torch.cat([s.flatten() for s in steps]))
    single = {"rtol": 1e-4, "atol": 1e-5 * float(wanted.abs().max())} if weighted else {}
    torch.testing.assert_close(image, wanted, **single)
    first = problem.solve_first(factors)
    best = problem.value([first, *factors[1:]])
    assert best <= problem.value([first + 1e-3 * randn(*first.shape, seed=20), *factors[1:]])


def test_separable_parts_of_a_kronecker_product_are_its_parts() -> None:
    left, right = moment(3), moment(4, seed=7)
    found = separable_parts(torch.kron(left, right), (3, 4))
    torch.testing.assert_close(torch.kron(*found), torch.kron(left, right))


def test_khatri_rao_has_kronecker_columns() -> None:
    a, b = randn(3, 2), randn(4, 2, seed=1)
    for column in range(2):
        torch.testing.assert_close(khatri_rao([a, b])[:, column], torch.kron(a[:, column], b[:, column]))


def test_refine_returns_its_start_where_steps_do_not_help() -> None:
    tensor = randn(6, 6, 3, 3)
    fit = cp(tensor, 6, options=CPOptions(ridge=0.0, iterations=40))
    assert refine(tensor, fit, options=CPOptions(ridge=10.0)) is fit  # the norms weigh more than the error
    assert refine(tensor, fit, options=CPOptions(ridge=0.0)).error <= fit.error


def test_refine_is_never_worse() -> None:
    tensor, inputs = randn(6, 5, 3, 3), moment(45)
    fit = cp(tensor, 8, input_metric=inputs, options=CPOptions(iterations=2, metric_iterations=2))
    better = refine(tensor, fit, input_metric=inputs)
    assert better.error < fit.error
    assert better.rank == fit.rank


def test_errors_say_what_is_allowed() -> None:
    with pytest.raises(ValueError, match="strictly increasing"):
        cp_curve(randn(3, 3), [2, 2])
    with pytest.raises(ValueError, match="order 2"):
        cp_curve(randn(3), [1])
    with pytest.raises(ValueError, match="needs \\(6, 6\\)"):
        cp(randn(4, 3, 2), 1, input_metric=torch.eye(5))

"""Fits of factors in a metric, against numpy's least squares and brute force."""

import numpy as np
import torch

from rankwise.linalg.factor_fit import Quadratic, fit_factors, reduced_rank

torch.set_default_dtype(torch.float32)


def problem(groups: int = 2, rows: int = 5, columns: int = 7) -> Quadratic:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs, outputs = draw(groups, 40, columns), draw(groups, 30, rows)
    return Quadratic(draw(groups, rows, columns), inputs.mT @ inputs / 40, outputs.mT @ outputs / 30)


def by_hand(goal: Quadratic, matrix: torch.Tensor) -> float:
    total = 0.0
    for target, moment, metric, found in zip(goal.target, goal.moment, goal.metric, matrix, strict=True):
        d = (found - target).numpy()
        total += np.trace(metric.numpy() @ d @ moment.numpy() @ d.T)
    return total


def test_value_is_the_trace() -> None:
    goal = problem()
    matrix = torch.zeros_like(goal.target)
    assert np.isclose(goal.value(matrix), by_hand(goal, matrix))


def test_reduced_rank_is_the_best_of_its_rank() -> None:
    goal = problem()
    for rank in (1, 3, 5):
        right, left = reduced_rank(goal, rank)
        reached = by_hand(goal, left @ right)
        expected = 0.0  # Eckart-Young in whitened coordinates, by numpy's Cholesky and SVD
        for target, moment, metric in zip(goal.target, goal.moment, goal.metric, strict=True):
            a, b = np.linalg.cholesky(metric.numpy()), np.linalg.cholesky(moment.numpy())
            expected += (np.linalg.svd(a.T @ target.numpy() @ b)[1][rank:] ** 2).sum()
        assert np.isclose(reached, expected, rtol=1e-9, atol=1e-9)
        assert torch.isclose(left.square().mean(), right.square().mean(), rtol=0.5)


def test_gauss_newton_finds_the_least_squares_solution_of_a_linear_factor() -> None:
    goal = problem(groups=1)
    basis = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = fit_factors(
        lambda w: (w["a"] @ basis.T)[None],
        {"a": torch.zeros(5, 4, dtype=torch.float64)},
        goal,
        iterations=60,
        tolerance=1e-14,
    )["a"]
    root = np.linalg.cholesky(goal.moment[0].numpy())  # the metric does not matter for free rows
    expected = np.linalg.lstsq((basis.numpy().T @ root).T, (goal.target[0].numpy() @ root).T, rcond=None)[0].T
    assert np.allclose(found.numpy(), expected, atol=1e-5)


def test_gauss_newton_reaches_the_reduced_rank_optimum_and_never_rises() -> None:
    goal = problem(groups=1)
    generator = torch.Generator().manual_seed(3)
    start = {
        "right": torch.randn(2, 7, generator=generator, dtype=torch.float64),
        "left": torch.randn(5, 2, generator=generator, dtype=torch.float64),
    }

    def compose(w: dict[str, torch.Tensor]) -> torch.Tensor:
        return (w["left"] @ w["right"])[None]

    right, left = reduced_rank(goal, 2)
    best = goal.value(left @ right)
    values = [goal.value(compose(start))]
    for steps in (1, 3, 60):
        values.append(
            goal.value(compose(fit_factors(compose, start, goal, iterations=steps, tolerance=1e-14)))
        )
    assert values == sorted(values, reverse=True)
    assert values[0] > 2 * best
    assert values[-1] < 1.01 * best

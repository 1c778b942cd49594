import numpy as np
import pytest
import torch

from rankwise.linalg.quadratic_fit import fit_products, fit_quadratic_form


def symmetric(n: int) -> torch.Tensor:
    matrix = torch.randn(n, n, dtype=torch.float64)
    return matrix + matrix.mT


def basis(n: int) -> list[np.ndarray]:
    """All symmetric matrices with one free entry."""
    found = []
    for i in range(n):
        for j in range(i, n):
            one = np.zeros((n, n))
            one[i, j] = one[j, i] = 1.0
            found.append(one)
    return found


def smallest(design: np.ndarray, right: np.ndarray, n: int) -> np.ndarray:
    """Least squares over symmetric matrices by numpy; minimum Frobenius norm by weighing the unknowns."""
    sizes = np.array([np.linalg.norm(b) for b in basis(n)])
    entries = np.linalg.lstsq(design / sizes, right, rcond=1e-9)[0] / sizes
    return sum(e * b for e, b in zip(entries, basis(n), strict=True))


@pytest.mark.parametrize("count", [2, 4, 30])
def test_products_agree_with_numpys_least_squares(count: int) -> None:
    points, images = torch.randn(count, 4, dtype=torch.float64), torch.randn(count, 4, dtype=torch.float64)
    design = np.stack([(points.numpy() @ b).ravel() for b in basis(4)], axis=1)
    wanted = smallest(design, images.numpy().ravel(), 4)
    got = fit_products(points.mT @ points, points.mT @ images)
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-8)


@pytest.mark.parametrize("count", [3, 10, 11, 60])
def test_quadratic_forms_agree_with_numpys_least_squares(count: int) -> None:
    points, values = torch.randn(count, 4, dtype=torch.float64), torch.randn(count, dtype=torch.float64)
    design = np.stack([np.einsum("ni,ij,nj->n", points, b, points) for b in basis(4)], axis=1)
    got = fit_quadratic_form(points, values)
    np.testing.assert_allclose(got.numpy(), smallest(design, values.numpy(), 4), atol=1e-7)


def test_exact_data_give_the_matrix_back() -> None:
    wanted = symmetric(5)
    points = torch.randn(40, 5, dtype=torch.float64)
    torch.testing.assert_close(fit_products(points.mT @ points, points.mT @ points @ wanted), wanted)
    values = torch.einsum("ni,ij,nj->n", points, wanted, points)
    torch.testing.assert_close(fit_quadratic_form(points, values), wanted)


def test_no_data_give_zero() -> None:
    nothing = torch.zeros(2, 3, 3)
    assert not fit_products(nothing, nothing).any()
    assert not fit_quadratic_form(torch.zeros(4, 3), torch.zeros(4)).any()

import numpy as np
import pytest
import scipy.optimize
import torch

from rankwise.linalg.lowrank import principal_axes
from rankwise.linalg.rectified_fit import best_auxiliary, rectified_fit


@pytest.mark.parametrize("penalty", [0.01, 0.3, 1.0, 20.0])
def test_auxiliary_is_the_best_of_a_fine_grid(penalty: float) -> None:
    target, mapped = (v.flatten() for v in torch.meshgrid(
        torch.linspace(0, 3, 13).double(), torch.linspace(-3, 3, 25).double(), indexing="ij"
    ))  # fmt: skip
    grid = torch.linspace(-4, 4, 8001).double()[:, None]

    def cost(z: torch.Tensor) -> torch.Tensor:
        return (target - z.clamp_min(0)).square() + penalty * (z - mapped).square()

    found = cost(best_auxiliary(target, mapped, penalty))
    wanted = cost(grid).amin(0)
    assert (found <= wanted + 1e-12).all()
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def rows(examples: int = 300, size: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(size, size, generator=generator, dtype=torch.float64)
    return torch.randn(examples, size, generator=generator, dtype=torch.float64) @ mix - 0.8


def loss(y: torch.Tensor, left: torch.Tensor, right: torch.Tensor, offset: torch.Tensor) -> float:
    mapped = y @ (left @ right).mT + offset
    return float((y.clamp_min(0) - mapped.clamp_min(0)).square().sum())


def pca(y: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    axes = principal_axes((y - y.mean(0)).mT @ (y - y.mean(0)))[1][:, :rank]
    return axes, axes.mT, y.mean(0) - axes @ (axes.mT @ y.mean(0))


@pytest.mark.parametrize("rank", [1, 3])
def test_behind_the_relu_it_is_better_than_pca_and_near_a_direct_search(rank: int) -> None:
    y = rows()
    ours = rectified_fit(y, rank, (0.01, 1.0), 25, 1e-3)
    assert ours[0].shape == (6, rank) and ours[1].shape == (rank, 6)
    start = pca(y, rank)
    assert loss(y, *ours) < 0.9 * loss(y, *start)

    def error(flat: np.ndarray) -> tuple[float, np.ndarray]:
        parts = torch.from_numpy(flat).requires_grad_()
        left, right, offset = parts[: 6 * rank], parts[6 * rank : 12 * rank], parts[12 * rank :]
        mapped = y @ (left.view(6, rank) @ right.view(rank, 6)).mT + offset
        value = (y.clamp_min(0) - mapped.clamp_min(0)).square().sum()
        value.backward()
        return float(value.detach()), parts.grad.numpy()

    flat = torch.cat([part.flatten() for part in start]).numpy()
    best = scipy.optimize.minimize(error, flat, jac=True, method="BFGS").fun
    assert loss(y, *ours) < best + 0.35 * (loss(y, *start) - best)


def test_never_worse_than_pca_and_exact_at_full_rank() -> None:
    few = rows(examples=3)
    assert loss(few, *rectified_fit(few, 1, (0.01, 1.0), 5, 0.0)) <= loss(few, *pca(few, 1))
    left, right, offset = rectified_fit(rows(), 6, (0.01, 1.0), 5, 1e-3)
    torch.testing.assert_close(left @ right, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(offset, torch.zeros(6, dtype=torch.float64))

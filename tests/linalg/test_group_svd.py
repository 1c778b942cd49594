"""Group SVD against numpy: spectra, norms of the assembled difference, metrics, nested regressions."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from rankwise.linalg.group_svd import (
    nested_gains,
    regression,
    residual_norms,
    scaled_cholesky,
    shifted,
    slice_factors,
    slice_spectra,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(count: int, size: int, rank: int) -> torch.Tensor:
    rows = normal(count, rank, size, seed=1)
    return rows.mT @ rows


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 2, 9, 4), (1, 2, 80, 90), (1, 1, 100, 70)])
def test_spectra_are_those_of_numpy(shape: tuple[int, ...]) -> None:
    slices = normal(*shape)
    found = slice_spectra(slices).numpy()
    wanted = np.linalg.svd(slices.numpy(), compute_uv=False)
    assert_allclose(found, wanted, atol=1e-7 * wanted.max())


@pytest.mark.parametrize("shape", [(2, 4, 6), (2, 6, 4)])
@pytest.mark.parametrize("data_rank", [3, 12])
def test_metric_spectra_and_factors_are_eckart_young_behind_a_matrix_root(
    shape: tuple[int, int, int], data_rank: int
) -> None:
    slices, metric = normal(*shape), moments(shape[0], shape[2], data_rank)
    spectra = slice_spectra(slices, metric).numpy()
    for i, (matrix, moment) in enumerate(zip(slices.numpy(), metric.numpy(), strict=True)):
        values, vectors = np.linalg.eigh(moment)
        root = vectors * np.sqrt(values.clip(0)) @ vectors.T
        wanted = np.linalg.svd(matrix @ root, compute_uv=False)
        assert_allclose(spectra[i], wanted, atol=1e-6 * wanted[0])
        for rank in range(1, min(shape[1:]) + 1):
            decoder, encoder = slice_factors(slices, rank, metric)
            rest = matrix - (decoder @ encoder)[i].numpy()
            assert_allclose(
                np.trace(rest @ moment @ rest.T), (wanted[rank:] ** 2).sum(), atol=1e-9 * wanted[0] ** 2
            )


@pytest.mark.parametrize("metric", [None, moments(2, 5, 2)])
@pytest.mark.parametrize("rows", [3, 5, 8])
def test_full_rank_reproduces_every_slice(rows: int, metric: torch.Tensor | None) -> None:
    slices = normal(2, rows, 5)
    decoder, encoder = slice_factors(slices, min(rows, 5), metric)
    assert_allclose((decoder @ encoder).numpy(), slices.numpy(), atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (2, 2, 9, 3), (1, 4, 6, 2)])
def test_residual_norms_are_operator_norms_of_the_assembled_difference(shape: tuple[int, ...]) -> None:
    slices, full = normal(*shape), min(shape[2:])
    found = residual_norms(slices, range(full + 1)).numpy()
    for rank in range(full + 1):
        decoder, encoder = slice_factors(slices, rank)
        rest = (slices - decoder @ encoder).numpy()
        assembled = [np.concatenate(list(group), axis=1) for group in rest]
        assert_allclose(found[rank], max(np.linalg.norm(a, 2) for a in assembled), atol=1e-7)


def test_largest_value_left_out_bounds_the_operator_norm_with_the_root_of_the_slices() -> None:
    slices = normal(1, 4, 6, 8)
    largest = shifted(slice_spectra(slices)).numpy()
    exact = residual_norms(slices, range(1, 7)).numpy()
    assert (exact >= largest - 1e-7).all()
    assert (exact <= np.sqrt(4) * largest + 1e-7).all()
    assert (exact[:-1] > 1.01 * largest[:-1]).all()  # so the bound without the root does not hold


def test_nested_gains_and_regression_are_least_squares() -> None:
    features, targets = normal(200, 6), normal(200, 3, seed=2)
    targets = targets + features[:, :3]
    gains = nested_gains(features.T @ features, features.T @ targets, 2).numpy()
    for step in (1, 2, 3):
        some = features[:, : 2 * step].numpy()
        fitted = some @ np.linalg.lstsq(some, targets.numpy(), rcond=None)[0]
        assert_allclose(gains[step - 1], (fitted**2).sum(), rtol=1e-8)
    wanted = np.linalg.lstsq(features.numpy(), targets.numpy(), rcond=None)[0]
    assert_allclose(regression(features.T @ features, features.T @ targets).numpy(), wanted.T, atol=1e-8)


def test_dependent_and_empty_features_are_normal_input() -> None:
    features = normal(50, 3)
    features = torch.cat([features, features, torch.zeros(50, 1, dtype=torch.float64)], 1)
    target = features[:, :1] * 2.0
    gains = nested_gains(features.T @ features, features.T @ target, 1).numpy()
    assert_allclose(gains, float(target.square().sum()), rtol=1e-6)
    lower, scale = scaled_cholesky(torch.zeros(3, 3, dtype=torch.float64))
    assert torch.isfinite(lower).all() and torch.isfinite(scale).all()

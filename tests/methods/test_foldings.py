"""Foldings: the two layers compute the dense layer with the assembled kernel, over the whole layer grid."""

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from rankwise.methods.foldings import (
    FOLDINGS,
    Folding,
    assemble,
    build_folded,
    check_folding,
    chosen_foldings,
    fold,
    fold_factors,
    foldings,
    nearest_slices,
    slice_counts,
    sliceable,
)
from rankwise.network import Layer, find_layers
from rankwise.network.factors import chain_cost
from rankwise.network.layer import Geometry
from tests.conformance.layer_cases import LAYER_CASES, LayerCase, build
from tests.methods.by_hand import layer_of, measured_cost

GRID = [case for case in LAYER_CASES if "linear" not in case.name and "hf" not in case.name]


def out_first(module: nn.Module, weight: torch.Tensor) -> np.ndarray:
    """(out, in / groups, *k) of a convolution of either kind."""
    if not isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return weight.detach().numpy()
    per_group = weight.detach().numpy().reshape(module.groups, -1, *weight.shape[1:])
    return per_group.swapaxes(1, 2).reshape(-1, *per_group.shape[1:2], *weight.shape[2:])


def kernel_of(chain: nn.Sequential, groups: int) -> np.ndarray:
    """The kernel that two convolutions with complementary axes amount to, channel by channel."""
    first, second = (out_first(m, m.weight) for m in chain)
    middle, slices = first.shape[0], chain[0].groups // groups
    inner, outer = first.shape[1] * slices, second.shape[0]
    kernel = np.zeros((outer, inner, *np.maximum(first.shape[2:], second.shape[2:])))
    for o, z in itertools.product(range(outer), range(second.shape[1])):
        unit = (o // (outer // groups)) * (middle // groups) + z  # channel between the two layers
        block = (unit // (middle // (groups * slices))) % slices
        for c in range(first.shape[1]):
            kernel[o, block * first.shape[1] + c] += second[o, z] * first[unit, c]
    return kernel


def dense_with(layer: Layer, kernel: np.ndarray) -> nn.Module:
    module, groups = copy.deepcopy(layer.module), layer.geometry.groups
    if layer.geometry.kind == "conv_transpose":
        per_group = kernel.reshape(groups, -1, *kernel.shape[1:]).swapaxes(1, 2)
        kernel = per_group.reshape(-1, *per_group.shape[2:])
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(kernel))
    return module


def random_factors(
    layer: Layer, folding: Folding, slices: int, rank: int
) -> tuple[torch.Tensor, torch.Tensor]:
    geometry, generator = layer.geometry, torch.Generator().manual_seed(5)
    e, d = folding.elements(geometry)
    columns = geometry.in_channels // geometry.groups // slices * e
    shapes = (geometry.groups, slices, geometry.rows * d, rank), (geometry.groups, slices, rank, columns)
    decoder, encoder = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    return decoder, encoder


@pytest.mark.parametrize("case", GRID, ids=lambda case: case.name)
def test_two_layers_equal_the_dense_layer_with_the_assembled_kernel(case: LayerCase) -> None:
    model, batches = build(case)
    (layer,) = find_layers(model, batches[0])
    for folding, slices in itertools.product(foldings(layer.geometry).values(), slice_counts(layer.geometry)):
        decoder, encoder = random_factors(layer, folding, slices, 2)
        chain = build_folded(layer, folding, decoder, encoder, layer.bias())
        kernel = kernel_of(chain, layer.geometry.groups)
        with torch.no_grad():
            wanted = dense_with(layer, kernel)(batches[0])
            torch.testing.assert_close(chain(batches[0]), wanted, rtol=1e-10, atol=1e-10)
        found = assemble(layer.geometry, folding, decoder, encoder).numpy()
        np.testing.assert_allclose(found, kernel.reshape(found.shape), atol=1e-12)
        factors = fold_factors(layer, folding, slices, 2, layer.bias() is not None)
        predicted = tuple(int(cost[0]) for cost in chain_cost(layer, factors))
        assert predicted == measured_cost(chain, batches[0])


def test_fold_puts_rows_and_columns_where_the_table_says() -> None:
    kernel = torch.arange(2 * 4 * 3 * 5, dtype=torch.float64).reshape(2, 4, 3, 5)
    geometry = Geometry("conv", 4, 2, (3, 5), (1, 1), (0, 0), (1, 1))
    known = foldings(geometry)
    array = kernel.numpy()
    wanted = {
        "channel": array.reshape(2, 4 * 15),
        "axis1": array.transpose(0, 2, 1, 3).reshape(2 * 3, 4 * 5),
        "axis0": array.transpose(0, 3, 1, 2).reshape(2 * 5, 4 * 3),
        "pointwise": array.transpose(0, 2, 3, 1).reshape(2 * 15, 4),
    }
    assert set(known) == set(wanted)
    for name, matrix in wanted.items():
        whole = fold(kernel, geometry, known[name], 1)[0, 0].numpy()
        np.testing.assert_array_equal(whole, matrix)
        halves = fold(kernel, geometry, known[name], 2)[0].numpy()
        np.testing.assert_array_equal(np.concatenate(list(halves), 1), matrix)  # slices of true channels


@pytest.mark.parametrize(
    ("module", "shape", "names"),
    [
        (nn.Linear(6, 4), (2, 6), ["channel"]),
        (nn.Conv2d(4, 4, 1), (2, 4, 3, 3), ["channel"]),
        (nn.Conv1d(4, 4, 3), (2, 4, 8), ["channel", "pointwise"]),
        (nn.Conv2d(4, 4, (1, 3)), (2, 4, 5, 5), ["channel", "pointwise"]),
        (nn.Conv2d(4, 4, 3), (2, 4, 5, 5), ["channel", "axis0", "axis1", "pointwise"]),
        (nn.Conv3d(2, 2, 2), (1, 2, 3, 3, 3), list(FOLDINGS)),
    ],
)
def test_a_layer_has_the_foldings_that_differ(
    module: nn.Module, shape: tuple[int, ...], names: list[str]
) -> None:
    geometry = layer_of(module, torch.zeros(shape)).geometry
    assert set(foldings(geometry)) == set(names)
    assert next(iter(foldings(geometry))) == "channel"
    assert [f.name for f in chosen_foldings(geometry, "all")] == list(foldings(geometry))


def test_names_stand_for_the_folding_that_they_coincide_with() -> None:
    rectangular = Geometry("conv", 4, 4, (3, 1), (1, 1), (0, 0), (1, 1))

    def chosen(name: str) -> list[str]:
        return [folding.name for folding in chosen_foldings(rectangular, name)]

    assert chosen("axis0") == ["channel"] and chosen("axis1") == ["pointwise"]
    assert chosen("spatial") == [] and chosen("axis2") == [] and chosen("all") == ["channel", "pointwise"]
    with pytest.raises(ValueError, match=r"folding='diagonal'.*spatial"):
        check_folding("diagonal")


def test_slices_divide_the_channels_and_ties_go_to_more_slices() -> None:
    geometry = Geometry("conv", 24, 4, (3,), (1,), (0,), (1,), groups=2)
    assert slice_counts(geometry) == [1, 2, 3, 4, 6, 12]
    assert [nearest_slices(geometry, k) for k in (1, 5, 8, 9, 100)] == [1, 6, 6, 12, 12]


def test_only_linear_layers_on_rows_can_have_a_grouped_encoder() -> None:
    rows = layer_of(nn.Linear(6, 4), torch.zeros(2, 6))
    tokens = layer_of(nn.Linear(6, 4), torch.zeros(2, 3, 6))
    assert sliceable(rows) and not sliceable(tokens)
    decoder, encoder = random_factors(rows, foldings(rows.geometry)["channel"], 3, 1)
    chain = build_folded(rows, foldings(rows.geometry)["channel"], decoder, encoder, rows.bias()).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    matrix = torch.cat([d @ e for d, e in zip(decoder[0], encoder[0], strict=True)], 1)
    wanted = x @ matrix.T + rows.bias()
    torch.testing.assert_close(chain(x), wanted, rtol=1e-5, atol=1e-6)  # the layer is float32

import pytest
import torch
from torch import nn

from rankwise.network.layer import Geometry, geometry_of
from rankwise.statistics import moments
from rankwise.statistics.patches import patches

CASES = [
    (nn.Linear(7, 5), (3, 7)),
    (nn.Conv2d(8, 12, 3, padding=1), (3, 8, 9, 10)),
    (nn.Conv2d(16, 12, 3, padding=1, groups=2), (3, 16, 9, 10)),
    (nn.Conv2d(8, 12, (3, 5), padding="same", dilation=(1, 2)), (3, 8, 12, 26)),
    (nn.Conv2d(8, 4, (1, 4), padding=(0, 3)), (3, 8, 3, 12)),
    (nn.Conv2d(8, 12, 3, padding=(1, 2), padding_mode="circular"), (3, 8, 9, 10)),
    (nn.Conv1d(8, 12, 5, padding=2, padding_mode="reflect"), (3, 8, 20)),
    (nn.Conv3d(8, 4, (3, 2, 3), padding=(1, 0, 1)), (3, 8, 5, 6, 5)),
    (nn.Conv2d(8, 12, 3, stride=2), (3, 8, 9, 10)),
    (nn.Conv2d(8, 12, 3), (3, 8, 4, 4)),
    (nn.Conv2d(8, 12, 1, stride=2), (3, 8, 9, 10)),
    (nn.Conv2d(8, 12, 1, padding=1), (3, 8, 4, 5)),
    (nn.Conv2d(6, 6, 3, groups=6), (3, 6, 9, 10)),
    (nn.ConvTranspose2d(8, 4, (3, 2), stride=2, padding=1, output_padding=(1, 0)), (3, 8, 9, 7)),
    (nn.ConvTranspose1d(16, 4, 3, dilation=2, groups=2), (3, 16, 9)),
    (nn.ConvTranspose2d(8, 4, 1, stride=2), (3, 8, 4, 5)),
]
ids = [f"{type(module).__name__}-{index}" for index, (module, _) in enumerate(CASES)]


def case(index: int) -> tuple[Geometry, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Geometry, input, output and example weights."""
    module, shape = CASES[index]
    geometry = geometry_of(module)
    assert geometry is not None
    x = torch.randn(shape).double() + 0.5
    with torch.no_grad():
        return geometry, x, module.double()(x), torch.rand(3).double()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("index", range(len(CASES)), ids=ids)
def test_patch_sums_are_those_of_the_patches(index: int, weighted: bool) -> None:
    geometry, x, _, weights = case(index)
    w = weights if weighted else torch.ones(3).double()
    u = patches(geometry, x)
    total, square = moments.patch_sums(geometry, x.float(), weights if weighted else None)
    u = patches(geometry, x.float().double())
    torch.testing.assert_close(total, torch.einsum("n,npgd->gd", w, u), rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(square, torch.einsum("n,npgd,npge->gde", w, u, u), rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("index", range(len(CASES)), ids=ids)
def test_pieces_add_up(index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    geometry, x, y, weights = case(index)
    whole = (*moments.patch_sums(geometry, x, weights), moments.cross_sums(geometry, x, y, weights))
    monkeypatch.setattr(moments, "_MOST", 1)
    pieces = (*moments.patch_sums(geometry, x, weights), moments.cross_sums(geometry, x, y, weights))
    for one, other in zip(whole, pieces, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("index", range(len(CASES)), ids=ids)
def test_cross_and_channel_sums(index: int) -> None:
    geometry, x, y, weights = case(index)
    u = patches(geometry, x)  # (N, P, G, d)
    rows = y.flatten(2).mT if y.ndim > 2 else y[:, None]
    rows = rows.unflatten(2, (geometry.groups, -1))  # (N, P, G, o)
    cross = moments.cross_sums(geometry, x, y, weights)
    expected = torch.einsum("n,npgo,npgd->god", weights, rows, u)
    torch.testing.assert_close(cross, expected, rtol=1e-11, atol=1e-10)
    total, square = moments.channel_sums(geometry.groups, y, weights)
    torch.testing.assert_close(total, torch.einsum("n,npgo->go", weights, rows), rtol=1e-11, atol=1e-11)
    expected = torch.einsum("n,npgo,npgq->goq", weights, rows, rows)
    torch.testing.assert_close(square, expected, rtol=1e-11, atol=1e-10)


def test_shifted_products_are_used_where_they_pay() -> None:
    used = [moments._shifts_pay(case(i)[0], tuple(CASES[i][1][2:])) for i in (1, 2, 3)]
    assert used == [True, True, True]
    assert not moments._shifts_pay(case(8)[0], (9, 10))  # stride 2
    assert not moments._shifts_pay(case(9)[0], (4, 4))  # edges as large as the map
    assert not moments._shifts_pay(case(12)[0], (9, 10))  # one channel per group

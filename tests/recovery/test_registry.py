import copy

import pytest
import torch
from torch import nn

from rankwise.errors import UnknownNameError
from rankwise.recovery import get_recovery, recoveries, register_recovery


def test_names_and_nearest() -> None:
    assert {"batchnorm", "batchnorm-plain", "bias"} <= set(recoveries())
    with pytest.raises(UnknownNameError, match=r"Did you mean .*'batchnorm'"):
        get_recovery("batchnrom")
    with pytest.raises(ValueError, match="taken"):
        register_recovery("bias")(lambda *_: None)


@pytest.mark.parametrize("name", ["batchnorm", "batchnorm-plain", "bias"])
def test_the_common_signature_repairs_a_shifted_layer(name: str) -> None:
    torch.manual_seed(0)
    original = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)).eval()
    x = torch.randn(64, 4, generator=torch.Generator().manual_seed(1))
    get_recovery("batchnorm-plain")(original, original, [x], [])
    model = copy.deepcopy(original)
    with torch.no_grad():
        model[0].bias.add_(2.0)
    get_recovery(name)(model, original, [x], ["0"])
    with torch.no_grad():
        assert torch.allclose(model(x), original(x), atol=1e-3)


@pytest.mark.parametrize(("name", "shape", "expected"), [("a", (64, 5, 3, 2), 1), ("b", (64, 7, 5), -1)])
def test_moments_against_numpy(name: str, shape: tuple[int, ...], expected: int) -> None:
    from rankwise.recovery.moments import channel_moments, merged

    values = 100 + torch.randn(shape, generator=torch.Generator().manual_seed(0))
    rows = values.double().movedim(expected, -1).flatten(0, -2).numpy()
    parts = merged([channel_moments(v, expected, name) for v in values.split([10, 1, 53])])
    assert parts.count == len(rows)
    assert torch.allclose(parts.mean, torch.from_numpy(rows.mean(0)), rtol=1e-12)
    assert torch.allclose(parts.var, torch.from_numpy(rows.var(0)), rtol=1e-9)

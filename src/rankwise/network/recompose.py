"""Back from factors to the layers that they stand in for, with the weights that they have now."""

import torch
from torch import nn

from rankwise.network.chain import leaves, linear_map
from rankwise.network.layer import geometry_of, store_kernel_
from rankwise.network.state import duplicate


def recompose(model: nn.Module, original: nn.Module) -> nn.Module | None:
    """A network shaped as ``original`` that computes what ``model`` does; None where there is none.

    Every chain of factors is multiplied out (Liebenwein et al., ALDS, do so before they compress a
    retrained network again); all else is copied. Networks with fewer channels, or with a bias where
    ``original`` has none, have no such form.
    """
    dense = duplicate(original)
    state = model.state_dict()
    for name, module in original.named_modules():
        own = _find(model, name)
        geometry = geometry_of(module)
        if geometry is None or own is None or geometry_of(own) is not None:
            continue
        parts = leaves(own)
        if geometry.kind == "conv_transpose" or not parts or any(p.bias is not None for p in parts[:-1]):
            return None
        first, last = geometry_of(parts[0]), geometry_of(parts[-1])
        if first is None or last is None or first.in_channels != geometry.in_channels:
            return None
        if last.out_channels != geometry.out_channels:
            return None
        place = dense.get_submodule(name)
        bias = parts[-1].bias
        if (bias is None) != (place.bias is None):
            return None
        found = linear_map(own, geometry)
        if found is None:
            return None
        compose, weights = found
        store_kernel_(place, compose(weights))
        if isinstance(bias, torch.Tensor) and isinstance(place.bias, torch.Tensor):
            with torch.no_grad():
                place.bias.copy_(bias)
        state = {key: value for key, value in state.items() if not key.startswith(f"{name}.")}
    shapes = {key: getattr(value, "shape", None) for key, value in dense.state_dict().items()}
    if any(key not in shapes or shapes[key] != getattr(v, "shape", None) for key, v in state.items()):
        return None
    dense.load_state_dict(state, strict=False)
    return dense


def _find(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None

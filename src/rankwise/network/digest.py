"""A short name for the weights of a network."""

from hashlib import sha256

import torch
from torch import nn

from rankwise.network.state import stored


def digest(model: nn.Module) -> str:
    """16 hexadecimal digits out of all names and tensors of the ``state_dict`` of ``model``."""
    state = sha256()
    for name, value in stored(model).items():
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return state.hexdigest()[:16]

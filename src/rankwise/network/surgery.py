"""Replacing modules by name, inside any container, without breaking the modules that hold them."""

from torch import nn

from rankwise.errors import PlanError


def get_module(model: nn.Module, name: str) -> nn.Module:
    """The submodule called ``name``.

    Raises:
        PlanError: the model has no such submodule.
    """
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        known = [n for n, _ in model.named_modules() if n]
        raise PlanError(
            f"The model has no module {name!r} ({error}); it has {len(known)} modules, "
            f"among them {', '.join(known[:8])}."
        ) from error


def _disable_fast_paths(model: nn.Module, name: str) -> None:
    """Make every enclosing transformer module call its children instead of reading their weights."""
    parts = name.split(".")
    for depth in range(len(parts)):
        parent = model.get_submodule(".".join(parts[:depth]))
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0  # read only to decide on the fused path
        elif isinstance(parent, nn.TransformerEncoder):
            parent.use_nested_tensor = False


def replace_(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place of the submodule ``name``, also in Sequential, ModuleList, ModuleDict.

    A module that the model holds under several names is replaced under all of them. A replaced child
    of ``nn.TransformerEncoderLayer`` switches that layer's fused eval path off, which reads
    ``linear1.weight`` and ``linear2.weight`` directly, and the nested tensors of the encoder around it.

    Raises:
        PlanError: the model has no such submodule, or ``name`` is empty (the model itself).
    """
    if not name:
        raise PlanError("The model itself cannot be replaced; name one of its submodules.")
    old = get_module(model, name)
    for place in [n for n, held in model.named_modules(remove_duplicate=False) if held is old]:
        _disable_fast_paths(model, place)
        parent, _, leaf = place.rpartition(".")
        model.get_submodule(parent)._modules[leaf] = module

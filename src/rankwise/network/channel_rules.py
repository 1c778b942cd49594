"""How each ATen operator moves channel labels from its inputs to its outputs."""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map

from rankwise.network.labels import LabelSpace

Tensor = torch.Tensor
Lookup = Callable[[Tensor], Tensor | None]

_FIXED = "combined with a tensor of fixed size"


@dataclass
class Call:
    """One operator call: what went in, what came out, and the labels of what went in."""

    space: LabelSpace
    func: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any
    lookup: Lookup

    @property
    def name(self) -> str:
        """Name of the operator without namespace, overload and the underscore of in-place forms."""
        return str(self.func._schema.name).split("::")[-1].rstrip("_")

    def argument(self, name: str, default: Any = None) -> Any:
        """An argument by its name in the operator's schema."""
        for position, spec in enumerate(self.func._schema.arguments):
            if spec.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, default)
        return default

    def tensors(self) -> list[Tensor]:
        """Every tensor among the arguments."""
        return [t for t in tree_leaves((self.args, self.kwargs)) if isinstance(t, Tensor)]

    def labels(self, tensor: Tensor, reason: str = _FIXED) -> Tensor:
        """Labels of an argument; one constant label for a tensor that has none."""
        found = self.lookup(tensor)
        return found if found is not None else self.constant(tensor, reason)

    def constant(self, like: Tensor, reason: str) -> Tensor:
        """One constant label, of the shape of ``like``."""
        return torch.tensor(self.space.constant(reason)).expand(like.shape)

    def on_labels(self) -> Any:
        """The same operator, run on the labels of its tensor arguments."""
        args, kwargs = tree_map(
            lambda a: self.labels(a) if isinstance(a, Tensor) else a, (self.args, self.kwargs)
        )
        return self.func(*args, **kwargs)

    def frozen(self, reason: str) -> Any:
        """Freeze what goes in; what comes out is constant."""
        for tensor in self.tensors():
            labels = self.lookup(tensor)
            if labels is not None:
                self.space.freeze(labels, reason)
        return tree_map(lambda o: self.constant(o, reason) if isinstance(o, Tensor) else o, self.out)


def _same(call: Call) -> Any:
    return call.labels(call.tensors()[0])


def _move(call: Call) -> Any:
    return call.on_labels()


def _view_blocks(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Smallest runs of dimensions of equal product in two shapes of equal product."""
    i = j = 0
    while i < len(old) or j < len(new):
        olds, news = [i] if i < len(old) else [], [j] if j < len(new) else []
        left, right = (old[i] if olds else 1), (new[j] if news else 1)
        i, j = i + len(olds), j + len(news)
        while left != right:
            if left < right:
                left, i = left * old[i], i + 1
                olds.append(i - 1)
            else:
                right, j = right * new[j], j + 1
                news.append(j - 1)
        yield olds, news


def _view(call: Call) -> Any:
    """Reshape. Where channels are split into (a, b), channels of equal place in b go together."""
    labels = call.labels(call.args[0])
    old, new = labels.shape, call.out.shape
    moved = labels.reshape(new)
    if 0 in old:
        return moved
    for olds, news in _view_blocks(old, new):
        if not any(call.space.varies(labels, d) for d in olds):
            continue
        wide = [d for d in news if new[d] > 1]
        if len(wide) > 1 or sum(old[d] > 1 for d in olds) > 1:
            call.space.suspect(labels)
        for dim in wide[:-1]:
            moved = call.space.unite_along(moved, dim).expand(new)
    if any(call.space.varies(labels, d) for d in range(len(old))):
        call.space.suspect(labels)
    return moved


def _pieces(call: Call) -> Any:
    """Split and chunk: equal pieces of channels keep equal places."""
    labels = call.labels(call.args[0])
    dim = call.argument("dim", 0)
    pieces = call.on_labels()
    if call.space.varies(labels, dim % labels.ndim):
        if len({piece.shape[dim] for piece in pieces}) > 1 or call.name.startswith("unbind"):
            call.space.freeze(labels, "split into pieces of unequal size")
        else:
            for piece in pieces[1:]:
                call.space.unite(pieces[0], piece)
            call.space.suspect(labels)
    return pieces


def _part(call: Call) -> Any:
    """Slice, select and roll: channels that are addressed by their place cannot go."""
    labels = call.labels(call.args[0])
    dims = call.argument("dim", call.argument("dims", 0))
    whole = call.name == "slice" and call.out.shape == labels.shape
    for dim in [dims] if isinstance(dims, int) else dims:
        if not whole and call.space.varies(labels, dim % labels.ndim):
            call.space.freeze(labels, "channels are addressed by their place")
    return call.on_labels()


def _cat(call: Call) -> Any:
    tensors = [t for t in call.args[0] if t.numel() > 0]
    dim = call.argument("dim", 0)
    return torch.cat([call.labels(t, "concatenated with a tensor of fixed size") for t in tensors], dim)


def _pad(call: Call) -> Any:
    """Zero padding: of a spatial dimension, nothing changes; of the channels, the new ones are constant."""
    labels, pads = call.labels(call.args[0]), call.args[1]
    code = call.space.constant("padded by a fixed number of channels")
    for place, dim in enumerate(range(labels.ndim - 1, labels.ndim - 1 - len(pads) // 2, -1)):
        before, after = pads[2 * place : 2 * place + 2]
        if before == after == 0:
            continue
        if labels.shape[dim] > 1 and not call.space.varies(labels, dim):
            labels = _resized(labels, dim, call.out.shape[dim])
            continue
        if before < 0 or after < 0:
            call.space.freeze(labels, "channels are addressed by their place")
        spec = [0, 0] * place + [before, after]
        labels = torch.nn.functional.pad(labels, spec, value=code)
    return labels


def _resized(labels: Tensor, dim: int, size: int) -> Tensor:
    """Labels that are constant along ``dim``, with ``size`` entries there."""
    shape = list(labels.shape)
    shape[dim] = size
    return labels.narrow(dim, 0, 1).expand(shape)


def _spatial(call: Call) -> Any:
    """Pooling and resizing over the last dimensions: each channel stays itself."""
    match = re.search(r"([123])d", call.name)
    labels = call.labels(call.args[0])
    spatial = int(match.group(1)) if match else 0
    for dim in range(labels.ndim - spatial, labels.ndim):
        if call.space.varies(labels, dim):
            return call.frozen(f"passes through aten.{call.name} across channels")

    index: tuple[Any, ...] = (..., *[slice(0, 1)] * spatial)

    def resized(out: Any) -> Any:
        return labels[index].expand(out.shape) if isinstance(out, Tensor) else out

    return tree_map(resized, call.out)


def _reduced_dims(call: Call, ndim: int) -> list[int]:
    dims = call.argument("dim")
    if dims is None or dims == []:
        return list(range(ndim))
    return [d % ndim for d in ([dims] if isinstance(dims, int) else dims)] if ndim else []


def _reduce(call: Call) -> Any:
    """Mean, sum, maximum ...: over positions only."""
    labels = call.labels(call.args[0])
    dims = _reduced_dims(call, labels.ndim)
    if any(call.space.varies(labels, d) for d in dims):
        return call.frozen(f"passes through aten.{call.name} across channels")
    for dim in dims:
        labels = labels.narrow(dim, 0, 1)
    return tree_map(lambda o: labels.reshape(o.shape) if isinstance(o, Tensor) else o, call.out)


def _along(call: Call) -> Any:
    """Softmax, cumulative sums: of the same shape, over positions only."""
    labels = call.labels(call.args[0])
    if any(call.space.varies(labels, d) for d in _reduced_dims(call, labels.ndim)):
        return call.frozen(f"passes through aten.{call.name} across channels")
    return tree_map(lambda o: labels if isinstance(o, Tensor) else o, call.out)


def _elementwise(call: Call) -> Any:
    """Operands meet entry by entry; what is one value for several channels is not a channel of its own."""
    out: Tensor = tree_leaves(call.out)[0]
    result: Tensor | None = None
    for tensor in call.tensors():
        if tensor.numel() == 1:
            labels = call.lookup(tensor)
            if out.numel() > 1:
                if labels is not None:
                    call.space.freeze(labels, "one value is shared by several channels")
                continue
            labels = labels if labels is not None else call.constant(tensor, _FIXED)
        else:
            labels = call.labels(tensor)
        result = labels if result is None else _meet(call.space, result, labels)
    return result.expand(out.shape) if result is not None else call.constant(out, _FIXED)


def _meet(space: LabelSpace, a: Tensor, b: Tensor) -> Tensor:
    """Labels of an elementwise function of two operands with broadcasting."""
    ndim = max(a.ndim, b.ndim)
    a, b = a.reshape((1,) * (ndim - a.ndim) + a.shape), b.reshape((1,) * (ndim - b.ndim) + b.shape)
    a_rides = any(a.shape[d] == 1 < b.shape[d] and space.varies(b, d) for d in range(ndim))
    b_rides = any(b.shape[d] == 1 < a.shape[d] and space.varies(a, d) for d in range(ndim))
    shape = torch.broadcast_shapes(a.shape, b.shape)
    for rides, labels in ((a_rides, a), (b_rides, b)):
        if rides:
            space.freeze(labels, "one value is shared by several channels")
    if a_rides and b_rides:
        return torch.tensor(space.constant("an outer product of channels")).expand(shape)
    if a_rides or b_rides:
        return (b if a_rides else a).expand(shape)
    return space.unite(a.expand(shape), b.expand(shape))


_RULES: dict[str, Callable[[Call], Any]] = {
    **dict.fromkeys(("clone", "_to_copy", "alias", "detach", "lift_fresh", "contiguous", "zeros_like",
                     "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "fill", "zero"),
                    _same),
    **dict.fromkeys(("permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "stack", "flip", "repeat",
                     "pixel_shuffle", "pixel_unshuffle"), _move),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias", "flatten"), _view),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unsafe_split", "unbind"), _pieces),
    **dict.fromkeys(("slice", "select", "roll", "narrow"), _part),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "max", "min", "var", "std", "var_mean", "prod"), _reduce),
    **dict.fromkeys(("_softmax", "_log_softmax", "cumsum", "logcumsumexp"), _along),
    **dict.fromkeys(("hardswish", "prelu", "_prelu_kernel", "rsub", "threshold", "masked_fill"),
                    _elementwise),
    "cat": _cat,
    "constant_pad_nd": _pad,
}  # fmt: skip
_SPATIAL = re.compile(
    r"^_?(adaptive_)?(avg|max)_pool[123]d|^upsample_|^_upsample_|^(reflection|replication)_pad[123]d"
)
_REASONS = {
    "native_layer_norm": "normalised over all its channels (LayerNorm)",
    "native_group_norm": "normalised over groups of channels by a function",
    "embedding": "read from an embedding table",
}


def propagate(call: Call) -> Any:
    """Labels of what the call puts out, in the structure of ``call.out``; None where none are needed."""
    if all(call.lookup(t) is None for t in call.tensors()):
        return None
    rule = _RULES.get(call.name)
    if rule is None and torch.Tag.pointwise in call.func.tags:
        rule = _elementwise
    if rule is None and _SPATIAL.match(call.name):
        rule = _spatial
    if rule is None:
        return call.frozen(_REASONS.get(call.name, f"passes through aten.{call.name}"))
    return rule(call)

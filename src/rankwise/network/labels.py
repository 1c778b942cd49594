"""Channel labels: which channel each element of an activation belongs to, and which must go together.

Every activation has a label tensor of its own shape. A positive entry is a channel label; labels that
must be removed together are united. A negative entry is a constant whose size is fixed in the model.
"""

from collections.abc import Sequence

import torch

Tensor = torch.Tensor


def constant_dims(tensor: Tensor) -> list[int]:
    """Dimensions along which ``tensor`` is constant by construction: of stride 0 or size 1."""
    return [d for d in range(tensor.ndim) if tensor.shape[d] == 1 or tensor.stride(d) == 0]


def compact(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, all of one shape, cut to size 1 where all are constant by construction."""
    shared = set.intersection(*(set(constant_dims(t)) for t in tensors))
    out = []
    for tensor in tensors:
        for dim in shared:
            if tensor.shape[dim] > 1:
                tensor = tensor.narrow(dim, 0, 1)
        out.append(tensor)
    return out


def _without_repeats(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, all of one shape, cut to size 1 along every dimension where all of them repeat."""
    out = list(tensors)
    for dim in range(out[0].ndim):
        firsts = [tensor.narrow(dim, 0, 1) for tensor in out]
        if out[0].shape[dim] > 1 and all(bool((t == f).all()) for t, f in zip(out, firsts, strict=True)):
            out = firsts
    return out


class LabelSpace:
    """Labels with union-find, and the reasons why some of them cannot be removed."""

    def __init__(self) -> None:
        self._parent: list[int] = [0]
        self._frozen: dict[int, str] = {}
        self._constants: list[str] = [""]
        self._probe: set[int] = set()
        self._table: Tensor | None = None  # representative of every label, while nothing has changed

    def fresh(self, count: int) -> Tensor:
        """New labels, int64 ``(count,)``."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        self._table = None
        return torch.arange(first, first + count)

    def constant(self, reason: str) -> int:
        """The negative label of constants whose size is fixed for ``reason``."""
        if reason not in self._constants:
            self._constants.append(reason)
        return -self._constants.index(reason)

    def find(self, label: int) -> int:
        """The representative of a positive label."""
        root = label
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[label] != root:
            self._parent[label], label = root, self._parent[label]
        return root

    def resolve(self, labels: Tensor) -> Tensor:
        """Each positive label replaced by its representative; the shape is kept."""
        if self._table is None:
            table = torch.tensor(self._parent)
            while not torch.equal(table[table], table):
                table = table[table]
            self._table = table
        (small,) = compact([labels])
        roots = torch.where(small > 0, self._table[small.clamp(min=0)], small)
        return roots.expand(labels.shape)

    def _distinct(self, labels: Tensor) -> list[int]:
        """The representatives among ``labels``, each once."""
        (small,) = compact([self.resolve(labels)])
        return [label for label in torch.unique(small).tolist() if label > 0]

    def _unite(self, a: int, b: int) -> None:
        if a < 0 and b < 0:
            return
        if a < 0 or b < 0:
            self._freeze(max(a, b), self._constants[-min(a, b)])
            return
        a, b = self.find(a), self.find(b)
        if a == b:
            return
        a, b = min(a, b), max(a, b)
        self._parent[b] = a
        self._table = None
        if b in self._frozen:
            self._frozen.setdefault(a, self._frozen.pop(b))
        if b in self._probe:
            self._probe.discard(b)
            self._probe.add(a)

    def unite(self, a: Tensor, b: Tensor) -> Tensor:
        """Unite the labels of two tensors of one shape entry by entry; returns the union's labels."""
        if a is b:
            return a
        shape = a.shape
        a, b = _without_repeats(compact([a, b]))
        pairs = torch.stack([self.resolve(t).reshape(-1) for t in (a, b)])
        pairs = pairs[:, pairs[0] != pairs[1]]
        for x, y in torch.unique(pairs, dim=1).t().tolist():
            self._unite(x, y)
        return torch.where(a > 0, a, b).expand(shape)

    def unite_along(self, labels: Tensor, dim: int) -> Tensor:
        """Unite the labels along ``dim``; returns them with that dimension cut to size 1."""
        first = labels.narrow(dim, 0, 1)
        if not self.varies(labels, dim):
            return first
        self.unite(labels, first.expand(labels.shape))
        return labels.amax(dim, keepdim=True)  # a positive label where there is one

    def _freeze(self, label: int, reason: str) -> None:
        self._frozen.setdefault(self.find(label), reason)

    def freeze(self, labels: Tensor, reason: str) -> None:
        """Mark every positive label as one that must not be removed."""
        for label in self._distinct(labels):
            self._freeze(label, reason)

    def reason(self, label: int) -> str | None:
        """Why a label must not be removed; None where it may be."""
        return self._frozen.get(self.find(label)) if label > 0 else self._constants[-label]

    def suspect(self, labels: Tensor) -> None:
        """Note that removing these labels relies on sizes that the model computes at run time."""
        self._probe.update(self._distinct(labels))

    def suspected(self, label: int) -> bool:
        """Whether :meth:`suspect` named the label or one united with it."""
        return self.find(label) in self._probe

    def varies(self, labels: Tensor, dim: int) -> bool:
        """Whether the labels differ along ``dim`` after all unions."""
        if labels.shape[dim] <= 1 or labels.stride(dim) == 0:
            return False
        roots = self.resolve(labels)
        return bool((roots != roots.narrow(dim, 0, 1)).any())

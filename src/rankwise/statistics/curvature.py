"""How much a loss at the network's output suffers when directions of a layer's output are projected out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from rankwise.errors import CalibrationError
from rankwise.linalg.quadratic_fit import fit_products, fit_quadratic_form
from rankwise.network.batches import (
    batch_size,
    detached,
    device_of,
    forward,
    output_tensor,
    split_batch,
    to_device,
)
from rankwise.network.layer import Layer
from rankwise.network.state import preserved, unfused
from rankwise.statistics.gradient import class_rows, loss_function, sampled_loss
from rankwise.statistics.hooks import hooked
from rankwise.statistics.record import LayerStatistics

Tensor = torch.Tensor
OutputLoss = Literal["mse", "kl"] | Callable[[Tensor, Tensor], Tensor]
_CHUNK = 1 << 22  # float64 numbers held at a time
Estimate = Literal["averaged", "local", "sampled", "gradient"]


@dataclass(frozen=True)
class Curvature:
    """What the statistic "curvature" is: for a direction p, p^T H p is the expected loss of one example
    when a layer's output y becomes y - p p^T (y - E[y]) at all positions.

    Args:
        estimate: "local" differentiates the loss twice, along one random direction per example and
            layer; "averaged" has the same expectation, with the mean over all directions in closed
            form, and takes one backward pass for all layers; "sampled" measures the loss itself along
            random directions, without gradients; "gradient" is the first-order change of the
            cross-entropy with the batches' targets, which may be negative.
        loss: of the changed model output against the original one: "mse" (mean over its entries), "kl"
            (symmetric, between softmaxes), or a function ``loss(old, new)`` giving one number per
            example, smallest (0) where both are equal; not for "averaged".
        rounds: random directions, or draws, per example.
        seed: of the draws.
    """

    estimate: Estimate = "averaged"
    loss: OutputLoss = "mse"
    rounds: int = 1
    seed: int = 0


def squared_error(old: Tensor, new: Tensor) -> Tensor:
    """Mean squared difference of each example, (N,)."""
    return (new - old).square().flatten(1).mean(1)


def symmetric_kl(old: Tensor, new: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) of the softmaxes, averaged over each example's rows of classes, (N,)."""
    p, q = (functional.log_softmax(class_rows(logits), 1) for logits in (old, new))
    return ((p.exp() - q.exp()) * (p - q)).sum(1).view(len(old), -1).mean(1)


_LOSSES: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {"mse": squared_error, "kl": symmetric_kl}


@dataclass(eq=False)
class _Probe:
    """Random unit directions of one layer on one batch, and what was found along them."""

    layer: Layer
    mean: Tensor  # (G, o)
    square: Tensor = field(init=False)  # (G, o, o) sum of p p^T, or of what each example adds
    cross: Tensor = field(init=False)  # (G, o, o)
    points: list[Tensor] = field(default_factory=list)  # each (N, G, o)
    values: list[Tensor] = field(default_factory=list)  # each (N, G)

    def __post_init__(self) -> None:
        size = self.mean.shape[1]
        self.square = torch.zeros(len(self.mean), size, size, dtype=torch.float64)
        self.cross = torch.zeros_like(self.square)

    def directions(self, count: int, generator: torch.Generator) -> Tensor:
        """(count, G, o), each of length 1."""
        drawn = torch.randn(count, *self.mean.shape, generator=generator, dtype=torch.float64)
        unit: Tensor = drawn / drawn.norm(dim=2, keepdim=True)
        return unit

    def projected(self, y: Tensor, direction: Tensor, reader: Tensor) -> Tensor:
        """y - p z^T (y - E[y]) with p, z (N, G, o) of the example that each entry of ``y`` belongs to."""
        axis = -1 if self.layer.geometry.kind == "linear" else 1
        last = y.movedim(axis, -1).unflatten(-1, tuple(self.mean.shape))  # (N, ..., G, o)
        p, z = (_per_entry(v.to(y), last) for v in (direction, reader))
        dots = ((last - self.mean.to(y)) * z).sum(-1, keepdim=True)
        changed: Tensor = (last - p * dots).flatten(-2).movedim(-1, axis)
        return changed

    def by_example(self, y: Tensor, count: int) -> Tensor:
        """``y`` as (N, positions of one call, G, o) on the CPU, in float64."""
        axis = -1 if self.layer.geometry.kind == "linear" else 1
        last = y.to("cpu", torch.float64).movedim(axis, -1)
        if last.shape[0] != count and last.ndim > 2 and last.shape[1] == count:  # sequence first
            last = last.transpose(0, 1)
        return last.reshape(count, -1, *self.mean.shape)

    def add_products(self, direction: Tensor, product: Tensor) -> None:
        """Take in y = M p of each example."""
        p = direction.transpose(0, 1)  # (G, N, o)
        self.square += p.mT @ p
        self.cross += p.mT @ product.to("cpu", torch.float64).transpose(0, 1)

    def fitted(self, estimate: Estimate, examples: int) -> Tensor:
        """H, (G, o, o)."""
        if estimate == "local":
            found = fit_products(self.square, self.cross) / 2  # p^T M p is twice the second-order loss
        elif estimate != "sampled":
            found = (self.square + self.square.mT) / (2 * examples)
        else:
            points, values = torch.cat(self.points), torch.cat(self.values)
            pairs = zip(points.unbind(1), values.unbind(1), strict=True)
            found = torch.stack([fit_quadratic_form(p, v) for p, v in pairs])
        if not torch.isfinite(found).all():
            raise CalibrationError(f"the curvature at layer {self.layer.name!r} is NaN or infinite")
        return found


def _per_entry(vectors: Tensor, like: Tensor) -> Tensor:
    """(N, G, o) so that it broadcasts over ``like`` (entries, ..., G, o), entries being N or a multiple."""
    count, between = len(vectors), like.ndim - 3
    if like.shape[0] != count and between and like.shape[1] == count:  # sequence first
        return vectors.view(1, count, *(1,) * (between - 1), *vectors.shape[1:])
    if like.shape[0] % count:
        raise CalibrationError(f"{like.shape[0]} entries do not split into {count} examples")
    repeated = vectors.repeat_interleave(like.shape[0] // count, 0)
    return repeated.view(like.shape[0], *(1,) * between, *vectors.shape[1:])


def add_curvature_(
    found: Mapping[str, LayerStatistics],
    model: nn.Module,
    layers: Sequence[Layer],
    batches: Iterable[Any],
    options: Curvature,
) -> None:
    """Put ``curvature_sum`` into the statistics ``found`` of ``layers``, which hold output means.

    One pass over ``batches`` in evaluation mode, each of the ``rounds`` inside it. A round of "averaged"
    or "gradient" costs one forward and one backward pass in all; one of "local" these two and one more
    backward pass per layer; one of "sampled" a forward pass per layer and group.

    Raises:
        CalibrationError: the batches are a spent iterator, hold no targets where they are needed, or
            give NaN or infinite values.
    """
    if options.estimate not in _PASSES:
        raise CalibrationError(f"estimate={options.estimate!r} was given; allowed: {', '.join(_PASSES)}.")
    if callable(options.loss) and options.estimate == "averaged":
        raise CalibrationError("estimate='averaged' takes loss 'mse' or 'kl'; a function takes 'local'.")
    if not callable(options.loss) and options.loss not in _LOSSES:
        raise CalibrationError(f"loss={options.loss!r} was given; allowed: 'mse', 'kl' or a function.")
    probes = {layer.name: _Probe(layer, found[layer.name].output_mean) for layer in layers}
    generator = torch.Generator().manual_seed(options.seed)
    device = device_of(model)
    examples = 0
    with torch.inference_mode(False), preserved(model), unfused():
        model.eval().requires_grad_(False)
        for batch in batches:
            batch = detached(to_device(batch, device))
            examples += batch_size(batch)
            for _ in range(options.rounds):
                _PASSES[options.estimate](model, batch, probes, options, generator)
    if not examples:
        raise CalibrationError(
            "The curvature needs a second pass over the batches, but an iterator that can be read once was "
            "given; pass a list or a DataLoader."
        )
    for name, probe in probes.items():
        found[name].curvature_sum = probe.fitted(options.estimate, examples) * found[name].examples


def _loss(options: Curvature) -> Callable[[Tensor, Tensor], Tensor]:
    return options.loss if callable(options.loss) else _LOSSES[options.loss]


@contextmanager
def _projecting(
    model: nn.Module, probes: Mapping[str, _Probe], vectors: Mapping[str, tuple[Tensor, Tensor]]
) -> Iterator[None]:
    with hooked(model, vectors, lambda name, x, y: probes[name].projected(y, *vectors[name])):
        yield


def _local(
    model: nn.Module, batch: Any, probes: Mapping[str, _Probe], options: Curvature, generator: torch.Generator
) -> None:
    """Hessian-vector products of loss(z) at z = 0, the output being y - p z^T (y - E[y])."""
    count = batch_size(batch)
    p = {name: probe.directions(count, generator) for name, probe in probes.items()}
    z = {name: torch.zeros_like(v, requires_grad=True) for name, v in p.items()}
    vectors = {name: (p[name], z[name]) for name in probes}
    attention = sdpa_kernel(SDPBackend.MATH)  # the only one that can be differentiated twice
    with _projecting(model, probes, vectors), torch.enable_grad(), attention:
        output = output_tensor(forward(model, batch))
        total = _loss(options)(output.detach(), output).sum()
    if not total.requires_grad:
        return
    first = torch.autograd.grad(total, list(z.values()), create_graph=True, allow_unused=True)
    for (name, probe), slope in zip(probes.items(), first, strict=True):
        # a random sign per group leaves only the group's own block in expectation
        coin = torch.randint(0, 2, (count, len(probe.mean), 1), generator=generator) * 2.0 - 1.0
        product = None
        if slope is not None and slope.requires_grad:
            along = (slope * coin * p[name]).sum()
            (product,) = torch.autograd.grad(along, z[name], retain_graph=True, allow_unused=True)
        probe.add_products(p[name], torch.zeros_like(p[name]) if product is None else product * coin)


def _sampled(
    model: nn.Module, batch: Any, probes: Mapping[str, _Probe], options: Curvature, generator: torch.Generator
) -> None:
    """The loss itself with one direction of one layer projected out."""
    with torch.no_grad():
        original = output_tensor(forward(model, batch))
        for name, probe in probes.items():
            p = probe.directions(batch_size(batch), generator)
            losses = []
            for alone in torch.eye(p.shape[1], dtype=p.dtype)[:, :, None]:  # one group at a time
                with _projecting(model, probes, {name: (p * alone, p)}):
                    changed = output_tensor(forward(model, batch))
                losses.append(_loss(options)(original, changed).to("cpu", torch.float64))
            probe.points.append(p)
            probe.values.append(torch.stack(losses, 1))


def _products(
    model: nn.Module, batch: Any, probes: Mapping[str, _Probe], total: Callable[[Any], Tensor]
) -> Iterator[tuple[_Probe, Tensor]]:
    """Per layer B = sum over positions of (y - E[y]) g^T, g the gradient of ``total`` of the output.

    Yields (N, G, o, o) in pieces of a few examples each.
    """
    seen: dict[str, list[Tensor]] = {name: [] for name in probes}

    def remember(name: str, x: Tensor, y: Tensor) -> Tensor:
        leaf = y if y.requires_grad else y.detach().requires_grad_()
        seen[name].append(leaf)
        return leaf.clone()

    with hooked(model, probes, remember), torch.enable_grad():
        summed = total(forward(model, batch))
    if not summed.requires_grad:
        return  # no layer's gradient reaches the output
    leaves = [leaf for calls in seen.values() for leaf in calls]
    slopes: Sequence[Tensor | None] = torch.autograd.grad(summed, leaves, allow_unused=True)
    slope = dict(zip(map(id, leaves), slopes, strict=True))
    count = batch_size(batch)
    for name, probe in probes.items():
        used = [(y, g) for y in seen[name] if (g := slope[id(y)]) is not None]
        if not used:
            continue
        rows = torch.cat([probe.by_example(y.detach(), count) for y, _ in used], 1) - probe.mean
        gradients = torch.cat([probe.by_example(g, count) for _, g in used], 1)  # (N, P, G, o)
        step = max(1, _CHUNK // probe.square.numel())
        for a, g in zip(rows.split(step), gradients.split(step), strict=True):
            yield probe, torch.einsum("npgi,npgj->ngij", a, g)


def _averaged(
    model: nn.Module, batch: Any, probes: Mapping[str, _Probe], options: Curvature, generator: torch.Generator
) -> None:
    """The mean of the fit of "local" over all directions p, for one draw v with E[v v^T] the loss's Hessian.

    With g the gradient of v . output and B as in :func:`_products`, the loss's curvature between two
    positions is E[g_s g_t^T]; integrating p p^T M p over the sphere gives
    M = (B B^T + tr(B) (B + B^T)) / (o + 2), and half of it is the loss.
    """

    def total(output: Any) -> Tensor:
        logits = output_tensor(output)
        if options.loss == "mse":
            coins = torch.randint(0, 2, logits.shape, generator=generator).to(logits) * 2.0 - 1.0
            summed, size = (logits * coins).sum(), 2.0 / logits[0].numel()
        else:
            summed, size = sampled_loss(output, generator), 2.0 * len(logits) / len(class_rows(output))
        return summed * torch.tensor(size).sqrt()

    for probe, products in _products(model, batch, probes, total):
        trace = products.diagonal(dim1=2, dim2=3).sum(-1)[..., None, None]
        fitted = products @ products.mT + 2.0 * trace * products  # symmetrised in the end
        probe.square += fitted.sum(0) / (2.0 * (products.shape[-1] + 2) * options.rounds)


def _gradient(
    model: nn.Module, batch: Any, probes: Mapping[str, _Probe], options: Curvature, generator: torch.Generator
) -> None:
    """The first-order change of the cross-entropy with the batch's targets, -p^T (y - E[y]) g^T p."""
    target = split_batch(model, batch)[2]
    loss = loss_function("targets", options.seed)
    for probe, products in _products(model, batch, probes, lambda o: loss(o, target, batch_size(batch))):
        probe.square -= products.sum(0) / options.rounds


_PASSES: dict[str, Callable[..., None]] = {
    "averaged": _averaged,
    "local": _local,
    "sampled": _sampled,
    "gradient": _gradient,
}

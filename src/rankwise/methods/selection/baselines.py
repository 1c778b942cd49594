"""The selections that the field compares with: norms, BatchNorm scales, chance, ThiNet, PFP.

Each can be followed by the reconstruction of the interpolative decomposition (``reconstruct=True``),
which is the honest comparison of the selections themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rankwise.linalg.elimination import greedy_removal, sample_distinct, sampling_probabilities
from rankwise.methods.base import register
from rankwise.methods.selection.base import ChannelMethod, GroupView

Tensor = torch.Tensor


def _descending(scores: Tensor) -> Tensor:
    return scores.argsort(descending=True, stable=True)


@register("l1")
@dataclass(frozen=True)
class L1(ChannelMethod):
    """Keep the channels whose filters have the largest sum of absolute weights."""

    summary = "keep filters with the largest L1 norm"
    source = "Li, Kadav, Durdanovic, Samet, Graf, ICLR 2017"

    def order(self, view: GroupView) -> Tensor:
        """See :meth:`ChannelMethod.order`."""
        return _descending(view.total([(w.abs().sum(1), units) for w, units in view.producers]))


@register("l2")
@dataclass(frozen=True)
class L2(ChannelMethod):
    """Keep the channels whose filters have the largest Euclidean norm."""

    summary = "keep filters with the largest L2 norm"
    source = "He, Kang, Dong, Fu, Yang, IJCAI 2018 (the criterion of soft filter pruning)"

    def order(self, view: GroupView) -> Tensor:
        """See :meth:`ChannelMethod.order`."""
        return _descending(view.total([(w.square().sum(1), units) for w, units in view.producers]))


@register("bn_scale")
@dataclass(frozen=True)
class BatchNormScale(ChannelMethod):
    """Keep the channels with the largest BatchNorm scales; by L2 norm where a group has no BatchNorm."""

    summary = "keep channels with the largest BatchNorm scale"
    source = "Liu et al., 'Learning efficient convolutional networks through network slimming', ICCV 2017"

    def order(self, view: GroupView) -> Tensor:
        """See :meth:`ChannelMethod.order`."""
        if not view.scales:
            return L2.order(L2(), view)
        return _descending(view.total([(gamma.abs(), units) for gamma, units in view.scales]))


@register("random")
@dataclass(frozen=True)
class Random(ChannelMethod):
    """Keep channels at random."""

    summary = "keep channels at random"

    def order(self, view: GroupView) -> Tensor:
        """See :meth:`ChannelMethod.order`."""
        return torch.randperm(view.group.size, generator=view.generator)


@register("thinet")
@dataclass(frozen=True)
class ThiNet(ChannelMethod):
    """Remove, one by one, the channels whose summed contribution to the next layer stays smallest.

    In terms of second moments over all outputs and calibration positions instead of a sample of them;
    contributions through different kernel positions are taken as uncorrelated.
    """

    summary = "greedy removal of what the next layer misses least"
    source = "Luo, Wu, Lin, ICCV 2017"
    needs_data = True

    def order(self, view: GroupView) -> Tensor:
        """See :meth:`ChannelMethod.order`."""
        n = view.group.size
        contribution = torch.zeros(n, n, dtype=torch.float64)
        for reader in view.readers:
            loss = reader.moment.double() * reader.weight.double()
            member = torch.zeros(n, len(loss), dtype=torch.float64)
            for u, channels in enumerate(reader.units):
                member[u, list(channels)] = 1.0
            contribution += member @ loss @ member.mT
        return greedy_removal(contribution)


@register("pfp")
@dataclass(frozen=True)
class PFP(ChannelMethod):
    """Provable filter pruning: keep channels by their largest share in any output of the next layer.

    By default the channels with the largest sensitivities; ``randomized`` draws them with
    probabilities in proportion, and scales the kept ones so that outputs are right in expectation.
    """

    summary = "keep channels by their largest share in any output of the next layer"
    source = "Liebenwein, Baykal, Lang, Feldman, Rus, ICLR 2020"
    needs_data = True
    needs_sensitivity = True

    randomized: bool = False

    def order(self, view: GroupView) -> Tensor:
        """See :meth:`ChannelMethod.order`."""
        if self.randomized:
            return self._draw(view, view.group.size)[0]
        return _descending(view.total(view.sensitivities))

    def factors(self, view: GroupView, kept: Sequence[int]) -> Tensor | None:
        """See :meth:`ChannelMethod.factors`."""
        if not self.randomized or self.reconstruct:
            return None
        drawn, factors = self._draw(view, len(kept))
        by_unit = dict(zip(drawn.tolist(), factors.tolist(), strict=True))
        return torch.tensor([by_unit[u] for u in kept], dtype=torch.float64)

    def _draw(self, view: GroupView, count: int) -> tuple[Tensor, Tensor]:
        """The first ``count`` distinct channels of one sequence of draws, the same for every count."""
        probabilities = sampling_probabilities(view.total(view.sensitivities))
        generator = torch.Generator().manual_seed(view.generator.initial_seed())
        return sample_distinct(probabilities, count, generator)

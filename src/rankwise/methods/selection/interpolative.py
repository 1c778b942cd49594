"""Interpolative decomposition of a group's activations: keep some channels, predict the others from them."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from rankwise.errors import UnknownNameError
from rankwise.linalg.elimination import backward_elimination
from rankwise.linalg.interpolative import (
    adaptive_random,
    pivoted_cholesky,
    randomly_pivoted,
    rank_for,
    strong_rrqr,
)
from rankwise.methods.base import register
from rankwise.methods.selection.base import ChannelMethod, GroupView

Tensor = torch.Tensor
Selector = Literal["output", "cholesky", "rrqr", "random_cholesky", "adaptive_random", "norm", "random"]


@register("interpolative")
@dataclass(frozen=True)
class Interpolative(ChannelMethod):
    """Keep the channels from which the others are best predicted; the consumers absorb the prediction.

    ``selector``: "output" removes, one by one, the channel whose loss the refitted consumers feel
    least; "cholesky" is the published one, the pivots of the column-pivoted QR of the activations;
    "rrqr" improves those by swaps until no coefficient exceeds 2; "random_cholesky" and
    "adaptive_random" draw the pivots; "norm" and "random" are for comparison. With ``eps`` the rank
    of every group is the smallest with ||Z - Z_J T||_F <= eps ||Z||_F, whatever the allocator.
    """

    summary = "keep channels that predict the others; consumers absorb the prediction"
    source = "Chee, Flynn, Damle, De Sa, NeurIPS 2022, section 3"
    needs_data = True

    reconstruct: bool = True
    selector: Selector = "output"
    eps: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.selector not in get_args(Selector):
            raise UnknownNameError("selector", self.selector, get_args(Selector))

    def order(self, view: GroupView) -> Tensor:
        """See :meth:`ChannelMethod.order`."""
        moment = view.moment()
        match self.selector:
            case "output":
                view.curves.append(backward_elimination(view.readers, view.group.size, self.ridge))
                return view.curves[-1][0]
            case "norm":
                return moment.diagonal().argsort(descending=True, stable=True)
            case "random":
                return torch.randperm(view.group.size, generator=view.generator)
            case "random_cholesky":
                return randomly_pivoted(moment, view.generator)[0]
            case _:
                return pivoted_cholesky(moment)[0]

    def kept(self, view: GroupView, order: Tensor, count: int) -> list[int]:
        """See :meth:`ChannelMethod.kept`."""
        if self.selector == "rrqr" and count < view.group.size:
            return strong_rrqr(view.moment(), count).tolist()
        if self.selector == "adaptive_random" and count < view.group.size:
            return adaptive_random(view.moment(), count, view.generator).tolist()
        return super().kept(view, order, count)

    def rank(self, view: GroupView) -> int | None:
        """The rank that ``eps`` asks for; None where it is not set."""
        return None if self.eps is None else rank_for(pivoted_cholesky(view.moment())[1], self.eps)

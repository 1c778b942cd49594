"""Which options of a layer may be chosen: rank multiples, smallest and largest ranks, per-layer wishes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from rankwise.allocation.base import Table
from rankwise.errors import RankwiseError, UnknownNameError
from rankwise.methods.base import is_rank

OVERRIDES = ("dense", "max_rank", "min_rank", "multiple_of", "rank")


def _ranks(table: Table) -> npt.NDArray[np.int64]:
    """The ranks of every option, (options, names); negative where its method has no such rank."""
    columns = [values.astype(np.int64) for name, values in table.candidates.choices.items() if is_rank(name)]
    return np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), dtype=np.int64)


def _narrow(table: Table, allowed: npt.NDArray[np.bool_]) -> Table:
    return replace(table, allowed=allowed if table.allowed is None else allowed & table.allowed)


def restrict(table: Table, multiple_of: int = 1, min_rank: int = 0, max_rank: int | None = None) -> Table:
    """The table in which only dense and options with suitable ranks may be chosen.

    A rank is suitable that lies in ``min_rank..max_rank`` and is a multiple of ``multiple_of``; where the
    largest that the layer offers is below ``multiple_of``, as on a side of few channels, every rank is
    one. Where an option has several ranks (Tucker), each must be suitable. Options without a rank stay,
    and rank 0 means that: a part that is not there. Indices keep their meaning.
    """
    if multiple_of < 1:
        raise RankwiseError(f"multiple_of={multiple_of} was given; it must be at least 1.")
    ranks = _ranks(table)
    suitable = (ranks % multiple_of == 0) | (ranks.max(axis=0) < multiple_of)
    suitable &= ranks >= min_rank
    if max_rank is not None:
        suitable &= ranks <= max_rank
    allowed = (suitable | (ranks <= 0)).all(axis=1)
    allowed[0] = True
    return _narrow(table, allowed)


def _only_rank(table: Table, rank: int) -> Table:
    ranks = _ranks(table)
    allowed = ((ranks == rank) | (ranks < 0)).all(axis=1) & (ranks == rank).any(axis=1)
    allowed[0] = False
    if not allowed.any():
        offered = sorted(set(ranks[1:][ranks[1:] > 0].tolist()))
        span = f"{offered[0]} to {offered[-1]}" if offered else "none"
        raise RankwiseError(f"Layer {table.name!r} has no candidate of rank {rank}; its ranks: {span}.")
    return replace(table, allowed=allowed)


def _override(table: Table, wish: Mapping[str, Any]) -> Table:
    if wish.get("dense"):
        return replace(table, allowed=np.arange(len(table)) == 0)
    if "rank" in wish:
        return _only_rank(table, wish["rank"])
    return restrict(table, **{name: value for name, value in wish.items() if name != "dense"})


def apply_overrides(tables: Sequence[Table], overrides: Mapping[str, Mapping[str, Any]]) -> list[Table]:
    """The tables narrowed by wishes for single layers, given by glob of the layer's name.

    A wish is ``{"dense": True}``, ``{"rank": r}`` (every rank of the option is exactly this, whatever
    the method calls it; not dense), or any of ``min_rank``, ``max_rank`` and ``multiple_of`` as in
    :func:`restrict`. Where several globs match a layer, later ones win, key by key.

    Raises:
        UnknownNameError: a glob matches no layer, or a wish has an unknown key.
        RankwiseError: a layer has no candidate of the rank asked for.
    """
    for glob, wish in overrides.items():
        for key in wish:
            if key not in OVERRIDES:
                raise UnknownNameError(f"override for {glob!r}", key, OVERRIDES)
        if not any(fnmatchcase(table.name, glob) for table in tables):
            raise UnknownNameError("layer in overrides", glob, [table.name for table in tables])
    narrowed = []
    for table in tables:
        wish = {
            k: v for glob, keys in overrides.items() if fnmatchcase(table.name, glob) for k, v in keys.items()
        }
        narrowed.append(_override(table, wish) if wish else table)
    return narrowed

"""Which options of a layer may be chosen: rank multiples, smallest and largest ranks, per-layer wishes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import numpy.typing as npt

from rankwise.allocation.base import Table
from rankwise.errors import RankwiseError, UnknownNameError

OVERRIDES = ("dense", "max_rank", "min_rank", "multiple_of", "rank")


def _ranks(table: Table) -> npt.NDArray[np.int64]:
    """The ranks of every option, (options, names): all integer choices called ``rank`` or ``rank_*``."""
    found = table.candidates.choices
    names = [name for name in found if name == "rank" or name.startswith("rank_")]
    columns = [found[name].astype(np.int64) for name in names]
    return np.stack(columns, axis=1) if columns else np.zeros((len(table), 0), dtype=np.int64)


def _full_ranks(table: Table, ranks: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The largest rank offered within each option's structure (all its other choices), (options, names)."""
    other = [
        np.unique(values, return_inverse=True)[1]
        for name, values in table.candidates.choices.items()
        if name != "rank" and not name.startswith("rank_")
    ]
    keys = np.stack([np.zeros(len(table), dtype=np.int64), *other], axis=1)
    _, structure = np.unique(keys[1:], axis=0, return_inverse=True)  # the dense option has no structure
    structure = structure.reshape(-1)
    full = np.zeros((int(structure.max(initial=-1)) + 1, ranks.shape[1]), dtype=np.int64)
    np.maximum.at(full, structure, ranks[1:])
    return np.concatenate([ranks[:1], full[structure]])


def _narrow(table: Table, allowed: npt.NDArray[np.bool_]) -> Table:
    return replace(table, allowed=allowed if table.allowed is None else allowed & table.allowed)


def restrict(table: Table, multiple_of: int = 1, min_rank: int = 0, max_rank: int | None = None) -> Table:
    """The table in which only dense and options with suitable ranks may be chosen.

    A rank is suitable that lies in ``min_rank..max_rank`` and is a multiple of ``multiple_of`` or the
    full rank of its structure. Where an option has several ranks (Tucker), each must be suitable.
    Options without a rank stay, and rank 0 means that: a part that is not there. Indices keep their
    meaning.
    """
    if multiple_of < 1:
        raise RankwiseError(f"multiple_of={multiple_of} was given; it must be at least 1.")
    ranks = _ranks(table)
    suitable = (ranks % multiple_of == 0) | (ranks == _full_ranks(table, ranks))
    suitable &= ranks >= min_rank
    if max_rank is not None:
        suitable &= ranks <= max_rank
    allowed = (suitable | (ranks == 0)).all(axis=1)
    return _narrow(table, allowed)


def _only_rank(table: Table, rank: int) -> Table:
    ranks = _ranks(table)
    allowed = (ranks == rank).all(axis=1) & (ranks.shape[1] > 0)
    allowed[0] = False
    if not allowed.any():
        offered = sorted(set(ranks[1:].ravel().tolist()))
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

    A wish is ``{"dense": True}``, ``{"rank": r}`` (exactly this rank, not dense), or any of
    ``min_rank``, ``max_rank`` and ``multiple_of`` as in :func:`restrict`. Where several globs match a
    layer, later ones win, key by key.

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

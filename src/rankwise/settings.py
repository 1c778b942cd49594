"""The options of one compression as one value, and the stage that they ask for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from rankwise.allocation import Allocator, get_allocator
from rankwise.auto import Automatic, AutoStage
from rankwise.budget import Budget
from rankwise.errors import RankwiseError, UnknownNameError
from rankwise.factorise import Factorisation, Survey
from rankwise.methods import Method, get_method
from rankwise.methods.selection import ChannelMethod
from rankwise.narrow import Narrowing
from rankwise.network.names import Patterns
from rankwise.progress import Progress, Stopwatch, silent
from rankwise.recovery import NamedRecovery, Recovery, get_recovery
from rankwise.statistics.channels import ChannelMoments
from rankwise.timed import Timed

MethodLike = str | Method | ChannelMethod | Automatic
AllocatorLike = str | Allocator
RecoveryLike = str | NamedRecovery


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to compress: the options of :func:`compress`, which describes them, as one value."""

    method: MethodLike | Sequence[MethodLike] = "auto"
    allocator: AllocatorLike = "knapsack"
    recovery: Sequence[RecoveryLike] = ()
    include: Patterns | None = None
    exclude: Patterns | None = None
    overrides: Mapping[str, Mapping[str, Any]] | None = None
    multiple_of: int = 1
    min_rank: int = 1
    fold_batchnorm: bool | None = None
    seed: int = 0
    max_memory: int | None = None
    progress: Progress = silent
    notes: Mapping[str, Any] | None = None
    survey: Survey | None = None
    moments: dict[str, ChannelMoments] | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Settings":
        """Settings out of keyword arguments, names looked up, so that mistakes show before any work.

        Raises:
            UnknownNameError: an unknown option, method, allocator or recovery.
        """
        known = {f.name for f in fields(cls)}
        for name in options:
            if name not in known:
                raise UnknownNameError("option", name, known)
        given = cls(**options)
        if isinstance(given.recovery, (str, NamedRecovery)):
            given = replace(given, recovery=(given.recovery,))
        for recovery in given.recovery:
            recovery_of(recovery)
        if isinstance(given.allocator, str):
            given = replace(given, allocator=get_allocator(given.allocator))
        shared = given.survey is not None or given.moments is not None
        if shared and (given.recipe or given.fold_batchnorm or given.automatic):
            raise RankwiseError(
                "A survey or moments were given; they hold neither for a recipe or auto nor after folding "
                "BatchNorm."
            )
        return given if given.recipe else replace(given, method=methods_of(given.method))

    @property
    def recipe(self) -> str | None:
        """The recipe of two methods, such as "interpolative+pca", if that is what is asked for."""
        return self.method if isinstance(self.method, str) and "+" in self.method else None

    @property
    def rereads(self) -> bool:
        """Whether the batches are read more than once, where memory is not limited."""
        if self.recipe or self.automatic or self.recovery:
            return True
        return any(getattr(method, "sequential", False) for method in methods_of(self.method))

    def folds(self, budget: Budget) -> bool:
        """Whether BatchNorm is folded first."""
        given = self.fold_batchnorm
        return budget.latency is not None and self.automatic is not None if given is None else given

    @property
    def automatic(self) -> Automatic | None:
        """The settings of "auto", where methods are mixed per layer by what is measured."""
        found = [] if self.recipe else [m for m in methods_of(self.method) if isinstance(m, Automatic)]
        return found[0] if found else None

    def stage(
        self, limits: Mapping[str, int], watch: Stopwatch, timed: Timed | None = None
    ) -> Factorisation | Narrowing | AutoStage:
        """What does the work: single layers are factorised, channel groups are narrowed."""
        solver = self.allocator
        common: dict[str, Any] = {
            "allocator": get_allocator(solver) if isinstance(solver, str) else solver, "limits": limits,
            "include": self.include, "exclude": self.exclude, "overrides": self.overrides or {},
            "multiple_of": self.multiple_of, "min_rank": self.min_rank, "seed": self.seed,
            "max_memory": self.max_memory, "progress": self.progress, "watch": watch, "timed": timed,
        }  # fmt: skip
        if self.automatic:
            return AutoStage(**self.automatic.config(), **common)
        chosen = methods_of(self.method)
        channels = [method for method in chosen if isinstance(method, ChannelMethod)]
        if channels and len(chosen) > 1:
            raise RankwiseError(
                f"Method {channels[0].name!r} chooses channels and cannot compete with other methods for a "
                "layer; use it in a call of its own: the second call compresses what the first one leaves."
            )
        if channels:
            return Narrowing(method=channels[0], known=self.moments, **common)
        layerwise = [method for method in chosen if isinstance(method, Method)]
        return Factorisation(methods=layerwise, known=self.survey, **common)

    def as_dict(self, budget: Budget) -> dict[str, Any]:
        """What a plan keeps of the settings."""
        solver = get_allocator(self.allocator) if isinstance(self.allocator, str) else self.allocator
        return {
            **(self.notes or {}),
            "methods": [{"name": m.name, **m.config()} for m in methods_of(self.method)],
            "allocator": {"name": solver.name, **solver.config()},
            "budget": budget.as_dict(),
            "recovery": names_of(self.recovery),
            "seed": self.seed,
        }


def recovery_of(given: RecoveryLike) -> Recovery:
    """The function behind a name or a named function."""
    return get_recovery(given) if isinstance(given, str) else given


def names_of(given: Sequence[RecoveryLike]) -> list[str]:
    """The names of recoveries."""
    return [recovery if isinstance(recovery, str) else recovery.name for recovery in given]


def methods_of(given: MethodLike | Sequence[MethodLike]) -> list[Method | ChannelMethod | Automatic]:
    """The configured methods behind names, methods, or several of them."""
    known = (Method, ChannelMethod, Automatic)
    several = [given] if isinstance(given, (str, *known)) else list(given)
    found = [_named(method) if isinstance(method, str) else method for method in several]
    if len(found) > 1 and any(isinstance(method, Automatic) for method in found):
        raise RankwiseError("Method 'auto' was given with others; it brings the methods that compete itself.")
    for method in found:
        if not isinstance(method, known):
            raise RankwiseError(
                f"A method of type {type(method).__name__} was given; allowed: name or Method."
            )
    return found


def _named(name: str) -> Method | ChannelMethod | Automatic:
    found: Method | ChannelMethod | Automatic = Automatic() if name == Automatic.name else get_method(name)
    return found

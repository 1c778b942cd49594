"""What the two stages of a compression have in common: how the budget is shared, and what may change."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rankwise.allocation import Allocator
from rankwise.network.names import Patterns
from rankwise.progress import Progress, Stopwatch, silent
from rankwise.timed import Timed, rough


@dataclass(eq=False, kw_only=True)
class Stage:
    """Settings of a stage. ``limits`` are absolute and those of the whole model.

    ``notes`` is what the plan keeps of the run.
    ``timed`` measures what a limit on latency is about; it is there whenever there is such a limit.
    """

    allocator: Allocator
    limits: Mapping[str, int]
    include: Patterns | None = None
    exclude: Patterns | None = None
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    multiple_of: int = 1
    min_rank: int = 1
    seed: int = 0
    max_memory: int | None = None
    timed: Timed | None = None
    progress: Progress = silent
    watch: Stopwatch = field(default_factory=Stopwatch)
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.timed is not None:
            self.allocator = rough(self.allocator)

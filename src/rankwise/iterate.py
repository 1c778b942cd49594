"""Narrowing step by step, measuring again what changed: the published iteration and a better one.

Chee, Flynn, Damle and De Sa, "Model Preserving Compression for Neural Networks" (NeurIPS 2022), section 4.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from rankwise.allocation.iterative import Iterative
from rankwise.allocation.widths import allowed_widths
from rankwise.errors import BudgetError
from rankwise.linalg.interpolative import diagonal_of_r
from rankwise.methods.selection import GroupView
from rankwise.network import Cost
from rankwise.network.channel_group import ChannelGroup
from rankwise.progress import Progress, silent
from rankwise.scene import Batches, Scene, replay_of

Tensor = torch.Tensor


@dataclass(frozen=True, eq=False)
class _Move:
    """Narrowing one group to ``width`` units, and how much that loses for what it saves."""

    group: ChannelGroup
    width: int
    score: float
    error: float
    scale: float


@dataclass(eq=False)
class Iteration:
    """Settings; :meth:`run_` narrows the model of a scene in place."""

    rule: Iterative
    limits: Mapping[str, int]
    overrides: Mapping[str, Mapping[str, Any]]
    min_width: int = 1
    multiple_of: int = 1
    progress: Progress = silent
    steps: int = 0
    _allowed: dict[str, list[int]] = field(default_factory=dict)  # widths per group, ascending

    def run_(
        self, scene: Scene, batches: Batches | None
    ) -> tuple[dict[str, list[int]], dict[str, tuple[float, float]]]:
        """Narrow until the limits hold and every group has a width that it may have.

        Returns:
            per group the units of the original model that stay, and the summed error of its steps with
            the error of keeping no unit.

        Raises:
            BudgetError: no group can be narrowed further and the limits do not hold.
            UnknownNameError, RankwiseError: as :func:`rankwise.allocation.apply_overrides`.
        """
        sizes = {group.name: group.size for group in scene.free}
        self._allowed = allowed_widths(sizes, self.overrides, self.multiple_of, self.min_width)
        alive = {group.name: list(range(group.size)) for group in scene.free}
        errors = {name: (0.0, 0.0) for name in alive}
        now, stale = scene, set(scene.intakes)
        now.replay = replay_of(scene.layers.values(), scene.max_memory)
        known: dict[str, tuple[GroupView, Tensor, _Move | None]] = {}
        while self._over(now.cost) or self._due(now.free):
            self.progress("iterate", self.steps, 0)
            now.measure(batches, stale)
            moves = self._moves(now, known, stale)
            if not moves:
                raise BudgetError(self._stuck(now.cost))
            kept, views = self._chosen(now, moves, known)
            for move in moves:
                if move.group.name in kept:
                    spent, scale = errors[move.group.name]
                    errors[move.group.name] = (spent + move.error, max(scale, move.scale))
            for name, units in kept.items():
                alive[name] = [alive[name][u] for u in units]
            now, stale = now.narrowed_(kept, views)
            self.steps += 1
        scene.collected = now.collected
        return alive, errors

    def _over(self, cost: Cost) -> bool:
        return any(getattr(cost, m) > limit for m, limit in self.limits.items())

    def _stuck(self, cost: Cost) -> str:
        parts = ", ".join(
            f"{m}: {limit:,} allowed, {getattr(cost, m):,} left" for m, limit in self.limits.items()
        )
        return f"No channel group can be narrowed further, and the budget is not met; {parts}."

    def _due(self, groups: Iterable[ChannelGroup]) -> list[str]:
        """Groups that may not stay as wide as they are, whatever the limits say."""
        return [group.name for group in groups if group.size not in self._allowed[group.name]]

    def _moves(
        self, scene: Scene, known: dict[str, tuple[GroupView, Tensor, _Move | None]], stale: set[str]
    ) -> list[_Move]:
        """One move per group that can still be narrowed (that must be, where any is), the best first."""
        moves = []
        for group in scene.free:
            old = known.get(group.name)
            if (
                old is None
                or old[0].group.size != group.size
                or any(p.name in stale for p in group.consumers)
            ):
                view = scene.view(group)
                order = scene.method.order(view)
                old = known[group.name] = (view, order, self._move(scene, view, order))
            if old[2] is not None:
                moves.append(self._scored(scene, group, old[1], old[2]))
        due = set(self._due(scene.free))
        return sorted(
            [move for move in moves if move.group.name in due] or moves, key=lambda move: move.score
        )

    def _move(self, scene: Scene, view: GroupView, order: Tensor) -> _Move | None:
        size = view.group.size
        narrower = [width for width in self._allowed[view.group.name] if width < size]
        if not narrower:
            return None
        width = max((w for w in narrower if w <= self.rule.step * size), default=narrower[0])
        if self.rule.published:
            diagonal = diagonal_of_r(view.moment())
            error = float(diagonal[width] / diagonal[0]) if float(diagonal[0]) > 0 else 0.0
            return _Move(view.group, width, 0.0, error, 1.0)
        curve = scene.method.errors(view, order)
        return _Move(view.group, width, 0.0, float(curve[width]), float(curve[0]))

    def _scored(self, scene: Scene, group: ChannelGroup, order: Tensor, move: _Move) -> _Move:
        """The move with its error over what it costs (published) or saves (by default)."""
        if self.rule.published:
            members = {p.name for p in (*group.producers, *group.consumers)}
            weight = 0.1 * sum(scene.layers[name].cost.macs for name in members)
            return _Move(group, move.width, move.error / max(weight, 1e-300), move.error, move.scale)
        after = scene.widths.cost({group.name: order[: move.width].tolist()})
        saved = sum(
            (getattr(scene.cost, m) - getattr(after, m)) / max(1, limit)
            for m, limit in self.limits.items()
            if getattr(scene.cost, m) > limit
        )
        score = move.error / saved if saved > 0 else float("inf")
        return _Move(group, move.width, score, move.error, move.scale)

    def _chosen(
        self,
        scene: Scene,
        moves: Sequence[_Move],
        known: Mapping[str, tuple[GroupView, Tensor, _Move | None]],
    ) -> tuple[dict[str, list[int]], dict[str, GroupView]]:
        """Units that stay in the groups of this step; the last group only as narrow as the limits ask."""
        kept: dict[str, list[int]] = {}
        touched: set[str] = set()
        for move in moves:
            members = {port.name for port in move.group.ports}
            if touched & members:
                continue
            view, order, _ = known[move.group.name]
            width = move.width if self.rule.published else self._needed(scene, kept, move, order)
            then = {**kept, move.group.name: order[:width].tolist()}
            if not self.rule.published and self._wasteful(scene, then) and move is not moves[-1]:
                continue
            touched |= members
            kept[move.group.name] = scene.method.kept(view, order, width)
            several = 1 if self.rule.published else self.rule.several
            if len(kept) >= several or not self._over(scene.widths.cost(kept)):
                break
        return kept, {name: known[name][0] for name in kept}

    def _wasteful(self, scene: Scene, kept: Mapping[str, list[int]]) -> bool:
        """Whether these widths come out more than 1 % of a limit below every limit."""
        cost = scene.widths.cost(kept)
        return all(getattr(cost, m) < 0.99 * limit for m, limit in self.limits.items())

    def _needed(self, scene: Scene, kept: Mapping[str, list[int]], move: _Move, order: Tensor) -> int:
        """The largest width, from the move's to one less than now, with which the limits hold."""
        widths = [w for w in self._allowed[move.group.name] if move.width <= w < move.group.size]

        def exceeds(width: int) -> bool:
            return self._over(scene.widths.cost({**kept, move.group.name: order[:width].tolist()}))

        return widths[max(0, bisect_left(widths, True, key=exceeds) - 1)]

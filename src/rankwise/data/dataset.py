"""A data set as explicit splits, and a split as batches made on demand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

import torch

from rankwise.data.preprocessing import Transform, identity
from rankwise.errors import DataError

Task = Literal["classification", "language"]
Augmentation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


class Source(Protocol):
    """Stored examples, fetched by index."""

    def __len__(self) -> int: ...

    def fetch(self, indices: torch.Tensor) -> torch.Tensor:
        """The examples ``indices`` as one tensor ``(len(indices), ...)``, before preprocessing."""
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Examples held as one tensor ``(N, ...)``, uint8 for images."""

    values: torch.Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.values)

    def fetch(self, indices: torch.Tensor) -> torch.Tensor:
        """Rows ``indices`` of the tensor."""
        return self.values[indices]


@dataclass(frozen=True, eq=False)
class Split:
    """Some examples of a source, with their labels, if any.

    Iterating gives single examples ``(x, label)``, or ``x`` without labels, preprocessed and without
    a batch dimension; :meth:`batches` is the fast way.
    """

    name: str
    source: Source = field(repr=False)
    indices: torch.Tensor = field(repr=False)  # (n,) int64 into source
    labels: torch.Tensor | None = field(default=None, repr=False)  # (n, ...) int64
    transform: Transform = identity

    @classmethod
    def of(cls, name: str, source: Source, labels: torch.Tensor | None, transform: Transform) -> "Split":
        """All examples of ``source``."""
        if labels is not None and len(labels) != len(source):
            raise DataError(f"Split {name!r} has {len(source)} examples but {len(labels)} labels.")
        return cls(name, source, torch.arange(len(source)), labels, transform)

    def __len__(self) -> int:
        return len(self.indices)

    def subset(self, positions: torch.Tensor, name: str | None = None) -> "Split":
        """The examples at ``positions`` (int64, in this order) of this split."""
        labels = None if self.labels is None else self.labels[positions]
        return replace(self, name=name or self.name, indices=self.indices[positions], labels=labels)

    def take(self, n: int) -> "Split":
        """The first ``n`` examples, or all when there are fewer."""
        return self.subset(torch.arange(min(n, len(self))))

    def batches(
        self,
        batch_size: int = 128,
        *,
        shuffle: bool = False,
        augment: Augmentation | None = None,
        seed: int = 0,
    ) -> "Batches":
        """The examples in batches of ``batch_size``; the last one may be smaller.

        ``shuffle`` and ``augment`` draw from a generator seeded with ``seed``; every further pass over
        the same object draws on from ``seed + 1``, ``seed + 2``, ... Without them each pass is the same.

        Raises:
            DataError: ``batch_size`` is less than one.
        """
        if batch_size < 1:
            raise DataError(f"A batch size of {batch_size} was given; allowed are 1 and more.")
        return Batches(self, batch_size, shuffle, augment, seed)

    def fetch(self, positions: torch.Tensor) -> torch.Tensor:
        """The stored examples at ``positions``, before preprocessing."""
        return self.source.fetch(self.indices[positions])

    def __iter__(self) -> Iterator[Any]:
        for batch in self.batches(1):
            yield tuple(part[0] for part in batch) if isinstance(batch, tuple) else batch[0]


@dataclass(eq=False)
class Batches:
    """Batches of a split, made when they are asked for; may be iterated over any number of times.

    A batch is ``(inputs, labels)``, or ``inputs`` alone when the split has no labels.

    ``ranks`` processes share each pass: it is cut into batches of ``batch_size * ranks`` examples, and
    ``rank`` gets its own ``batch_size`` of each. A last batch that would leave a rank without an example
    is left out.
    """

    split: Split
    batch_size: int
    shuffle: bool = False
    augment: Augmentation | None = None
    seed: int = 0
    rank: int = 0
    ranks: int = 1
    _passes: int = field(default=0, init=False, repr=False)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.split), self.batch_size * self.ranks)
        return whole + (rest >= self.ranks)

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass draw what pass number ``epoch`` of a new object would draw."""
        self._passes = epoch

    def shard(self, rank: int, ranks: int) -> "Batches":
        """The part of each pass that process ``rank`` of ``ranks`` gets; augmented by its own draws."""
        return replace(self, rank=rank, ranks=ranks)

    def divide(self, share: float) -> tuple["Batches", "Batches"]:
        """These batches without the last ``share`` of the examples, and those: in order, not augmented.

        Either part has at least one example where there are two.
        """
        count = len(self.split)
        held = min(max(1, round(share * count)), count - 1)
        first, last = torch.arange(count).split([count - held, held])
        rest, kept = self.split.subset(first), self.split.subset(last)
        return replace(self, split=rest), replace(self, split=kept, shuffle=False, augment=None)

    def __iter__(self) -> Iterator[Any]:
        generator = torch.Generator().manual_seed(self.seed + self._passes)
        self._passes += 1
        count = len(self.split)
        order = torch.randperm(count, generator=generator) if self.shuffle else torch.arange(count)
        if self.rank:
            generator.manual_seed(self.seed + self._passes - 1 + (self.rank << 32))
        for shared in order.split(self.batch_size * self.ranks)[: len(self)]:
            positions = shared[self.rank :: self.ranks]
            stored = self.split.fetch(positions)
            if self.augment is not None:
                stored = self.augment(stored, generator)
            inputs = self.split.transform(stored)
            labels = self.split.labels
            yield inputs if labels is None else (inputs, labels[positions])


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set with its splits. Calibration and validation examples come from training data only.

    ``train`` is all training data; ``test`` is for reporting only. ``held_out`` is a validation split
    that the data set itself brings; without one, validation examples are cut off the training data.
    ``augmentation`` is how the usual networks on this data set were trained; it acts before
    preprocessing, and only where a caller passes it to :meth:`Split.batches`.
    """

    name: str
    test: Split | None
    train: Split | None = None
    held_out: Split | None = None
    task: Task = "classification"
    classes: tuple[str, ...] = ()
    augmentation: Augmentation | None = None
    no_train_reason: str = ""

    def _training(self, wanted: str) -> Split:
        if self.train is None or len(self.train) == 0:
            why = f" {self.no_train_reason}" if self.no_train_reason else ""
            raise DataError(
                f"{wanted} examples of data set {self.name!r} were asked for, but it has no training "
                f"split, and they are never taken from test data.{why}"
            )
        return self.train

    @property
    def validation_size(self) -> int:
        """Training examples kept for validation: a tenth, 5,000 at most; 0 with a held-out split."""
        if self.held_out is not None or self.train is None:
            return 0
        return min(5000, len(self.train) // 10)

    def calibration(self, n: int | None = None, seed: int = 0) -> Split:
        """``n`` training examples, not augmented: the first ``n`` of a permutation seeded with ``seed``.

        By default 1,024, or what there is when that is less. The permutation is

        ``torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))``. Disjoint from
        ``validation(seed=seed)``, which takes the permutation's end.

        Raises:
            DataError: there is no training split, or ``n`` exceeds what validation leaves of it.
        """
        train = self._training("Calibration")
        allowed = len(train) - self.validation_size
        n = min(1024, allowed) if n is None else n
        if not 1 <= n <= allowed:
            kept = f", {self.validation_size} of them kept for validation" if self.validation_size else ""
            raise DataError(
                f"{n} calibration examples of {self.name!r} were asked for; allowed are 1 to {allowed} "
                f"(the training split has {len(train)}{kept})."
            )
        return train.subset(_permutation(len(train), seed)[:n], "calibration")

    def validation(self, n: int | None = None, seed: int = 0) -> Split:
        """``n`` examples to choose settings on, by default all that are kept for it.

        The held-out split where the data set has one, otherwise the end of the seeded permutation
        of the training split, disjoint from ``calibration(seed=seed)``.

        Raises:
            DataError: there is no training split, or fewer than ``n`` examples.
        """
        if self.held_out is not None:
            pool = self.held_out
        else:
            train = self._training("Validation")
            pool = train.subset(_permutation(len(train), seed)[len(train) - self.validation_size :])
        n = len(pool) if n is None else n
        if not 1 <= n <= len(pool):
            raise DataError(
                f"{n} validation examples of {self.name!r} were asked for; allowed are 1 to {len(pool)}."
            )
        return replace(pool.take(n), name="validation")

    def training(self) -> Split:
        """The whole training split.

        Raises:
            DataError: there is none.
        """
        return self._training("Training")

    def fitting(self, seed: int = 0) -> Split:
        """The training examples that ``validation(seed=seed)`` leaves, to train on while it judges.

        Raises:
            DataError: there is no training split.
        """
        train = self._training("Training")
        if not self.validation_size:
            return train
        return train.subset(_permutation(len(train), seed)[: len(train) - self.validation_size], "training")

    def testing(self) -> Split:
        """The test split.

        Raises:
            DataError: there is none.
        """
        if self.test is None or len(self.test) == 0:
            raise DataError(f"Data set {self.name!r} has no test split; it cannot be evaluated on.")
        return self.test


def _permutation(count: int, seed: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))

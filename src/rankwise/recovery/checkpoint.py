"""Checkpoints of long training: written whole or not at all, and resumed only by the same settings."""

import json
import pickle
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankwise.errors import TrainingError
from rankwise.files import json_text, write_atomically
from rankwise.network.state import seed_

State = dict[str, Any]

_CONFIGURATION, _STATE = "configuration", "state"


def save_checkpoint(path: Path, configuration: Mapping[str, Any], state: State) -> None:
    """Write ``state`` (tensors, numbers, text, and containers of them) to ``path``.

    The file holds no code: it is read back with ``weights_only=True``.

    Raises:
        TrainingError: it cannot be written (a full disk); what was at ``path`` is as it was.
    """
    content = {_CONFIGURATION: json_text(dict(configuration)), _STATE: state}
    try:
        write_atomically(path, partial(torch.save, content))
    except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
        kept = "; the one written before is intact" if path.exists() else ""
        raise TrainingError(
            f"The checkpoint {str(path)!r} cannot be written ({error}){kept}. Free some space and run the "
            "same command again: it goes on from there."
        ) from error


def load_checkpoint(path: Path, configuration: Mapping[str, Any]) -> State | None:
    """The state at ``path``; None where there is no file. Half-written files of killed runs are removed.

    Raises:
        TrainingError: the file cannot be read, or was written under another configuration; the message
            says what differs.
    """
    for unfinished in path.parent.glob(f".{path.stem}.*.part{path.suffix}"):
        unfinished.unlink(missing_ok=True)
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        before, state = json.loads(content[_CONFIGURATION]), content[_STATE]
    except (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        pickle.UnpicklingError,
    ) as error:
        raise TrainingError(
            f"The checkpoint {str(path)!r} cannot be read ({error}); delete it to start anew."
        ) from error
    refuse_changes(path, before, json.loads(json_text(dict(configuration))))
    return dict(state)


def refuse_changes(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Make sure that two configurations are the same.

    Raises:
        TrainingError: they are not; names each setting that differs, with both values.
    """
    missing = "unset"
    differing = [
        f"{name} was {before.get(name, missing)!r}, now {now.get(name, missing)!r}"
        for name in sorted({*before, *now})
        if before.get(name, missing) != now.get(name, missing)
    ]
    if differing:
        raise TrainingError(
            f"{str(path)!r} belongs to a run with other settings and is not resumed: {'; '.join(differing)}. "
            "Give the same settings, another folder, or delete the file to start anew."
        )


def random_state() -> State:
    """The state of every global random generator: torch's on CPU and CUDA, numpy's, Python's."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys, np.int64)), position, has_gauss, cached],
        "python": random.getstate(),
    }


def restore_random_state_(state: Mapping[str, Any]) -> None:
    """Set the global random generators to what :func:`random_state` found."""
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


@contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the global random generators as they were."""
    before = random_state()
    try:
        yield
    finally:
        restore_random_state_(before)


def seed_all(seed: int) -> None:
    """Seed every global random generator."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    seed_(seed)

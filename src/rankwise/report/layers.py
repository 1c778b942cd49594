"""What was done to every layer of a trial: from its metrics, or from the plan beside them."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from rankwise.report.trials import Json, Trial, number, rows, table, text

PLAN_FILE = "plan.json"
Round = Callable[[float | None], float | None]
SPECTRUM_POINTS = 128  # values of one spectrum that the page draws


class Names:
    """Texts said once and referred to by their place."""

    def __init__(self) -> None:
        self._places: dict[str, int] = {}

    def place(self, name: str) -> int:
        """The place of ``name``, a new one if it is new."""
        return self._places.setdefault(name, len(self._places))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)


def layers_of(trial: Trial, names: Names, rounded: Round) -> list[list[Any]]:
    """Per layer: name and choice as places in ``names``, params and macs before and after, relative error."""
    found = []
    for row in rows(trial.metrics.get("layers")) or _edits(trial):
        before, after = table(row.get("before")), table(row.get("after"))
        error, scale = number(row.get("error")), number(row.get("scale"))
        relative = None if error is None or not scale else rounded(error / scale)
        costs = [number(side.get(name)) for name in ("params", "macs") for side in (before, after)]
        name = text(row.get("name") or row.get("target"))
        found.append([names.place(name), names.place(_choice(row)), *costs, relative])
    return found


def _edits(trial: Trial) -> list[Json]:
    """The edits of the plan beside the metrics; none where there is no plan, or none that can be read."""
    try:
        plan = json.loads((trial.folder / PLAN_FILE).read_bytes())
    except (OSError, ValueError):
        return []
    return rows(table(plan).get("edits"))


def _choice(row: Json) -> str:
    op = text(row.get("op"))
    choice = row.get("choice")
    if op == "keep":
        return "kept whole"
    if isinstance(choice, dict):
        told = {key: value for key, value in choice.items() if value is not None and key != "kept"}
        return ", ".join(f"{key} {text(value)}" for key, value in told.items()) or op
    return text(choice) or op


def spectra_of(trial: Trial, names: Names, rounded: Round) -> dict[str, list[list[float | None]]]:
    """By layer: at most :data:`SPECTRUM_POINTS` (position from 1, value relative to the largest)."""
    found = {}
    for name, values in table(trial.metrics.get("spectra")).items():
        known = [number(value) for value in values] if isinstance(values, list) else []
        largest = max((value for value in known if value is not None), default=0.0)
        if largest <= 0:
            continue
        every = -(-len(known) // SPECTRUM_POINTS)
        found[str(names.place(text(name)))] = [
            [at + 1, rounded(value / largest)]
            for at, value in enumerate(known)
            if value is not None and (at % every == 0 or at == len(known) - 1)
        ]
    return found

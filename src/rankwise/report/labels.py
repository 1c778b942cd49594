"""Names of configurations: as short as tells them apart."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rankwise.report.trials import Trial, text

Options = tuple[tuple[str, str], ...]  # names and values
OTHERS = ("schedule", "recovery", "include", "exclude", "multiple_of", "fold_batchnorm")


@dataclass(frozen=True)
class Setting:
    """How a trial was made, without its network, target and seed; ``others`` in the order of ``OTHERS``."""

    method: str = ""
    method_options: Options = ()
    allocator: str = ""
    allocator_options: Options = ()
    measure: str = ""
    others: tuple[str, ...] = ("",) * len(OTHERS)

    @classmethod
    def of(cls, trial: Trial) -> "Setting":
        """The setting of ``trial``."""
        given = trial.metrics
        return cls(
            text(given.get("method")),
            _options(given.get("method_options")),
            text(given.get("allocator")),
            _options(given.get("allocator_options")),
            text(given.get("measure")),
            tuple(text(given.get(name)) for name in OTHERS),
        )


def labels(settings: Iterable[Setting]) -> dict[Setting, str]:
    """The shortest texts that tell ``settings`` apart: the method, and each aspect that differs.

    Of the options of a method, or of an allocator, those are named that differ where it is used.
    """
    known = list(dict.fromkeys(settings))
    allocators = {setting.allocator for setting in known}
    measures = {setting.measure for setting in known}
    found = {}
    for own in known:
        method = _differing(own.method_options, [s.method_options for s in known if s.method == own.method])
        allocator = _differing(
            own.allocator_options, [s.allocator_options for s in known if s.allocator == own.allocator]
        )
        parts = [own.method + (f" ({method})" if method else "")]
        if len(allocators) > 1 or allocator:
            parts.append((own.allocator or "no allocator") + (f" ({allocator})" if allocator else ""))
        if len(measures) > 1:
            parts.append(f"by {own.measure or 'budget'}")
        for place, name in enumerate(OTHERS):
            if len({setting.others[place] for setting in known}) > 1:
                parts.append(f"{name} {own.others[place] or 'none'}")
        found[own] = ", ".join(filter(None, parts)) or "unnamed"
    return found


def _options(value: Any) -> Options:
    if isinstance(value, dict):
        return tuple((str(key), text(entry)) for key, entry in value.items())
    return (("options", text(value)),) if text(value) else ()


def _differing(own: Options, among: Iterable[Options]) -> str:
    """Those of ``own`` options that have another value, or none, somewhere ``among`` the rest."""
    tables = [dict(options) for options in among]
    names = {name for options in tables for name in options}
    differ = {name for name in names if len({options.get(name) for options in tables}) > 1}
    named = ", ".join(f"{name}={value or 'none'}" for name, value in own if name in differ)
    return named or ("defaults" if differ else "")

"""Names of configurations: as short as tells them apart."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rankwise.report.trials import Trial, table, text

Options = tuple[tuple[str, str], ...]  # names and values
COSTS = ("params", "macs", "bytes", "latency")
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
        budget = table(given.get("budget"))
        return cls(
            text(given.get("method")),
            _options(given.get("method_options")),
            text(given.get("allocator")),
            _options(given.get("allocator_options")),
            text(given.get("measure")) or "+".join(name for name in COSTS if name in budget),
            tuple(_other(given.get(name)) for name in OTHERS),
        )


def _other(value: Any) -> str:
    """``value`` as text; nothing where it is what happens without it."""
    usual = value in (None, False, 1, "one-shot") or table(value).get("name") == "one-shot"
    return "" if usual else text(value)


def labels(settings: Iterable[Setting]) -> dict[Setting, str]:
    """The shortest texts that tell ``settings`` apart: the method, and each aspect that differs.

    Of the options of a method, or of an allocator, those are named that differ where it is used. An aspect
    that is not given is another value only where the names would be the same otherwise.
    """
    known = list(dict.fromkeys(settings))
    found = {own: _label(own, known, lenient=True) for own in known}
    counts = Counter(found.values())
    return {
        own: label if counts[label] == 1 else _label(own, known, lenient=False)
        for own, label in found.items()
    }


def _label(own: Setting, known: Sequence[Setting], lenient: bool) -> str:
    def differ(values: Iterable[str]) -> bool:
        return len({value for value in values if value or not lenient}) > 1

    same_method = [s.method_options for s in known if s.method == own.method]
    method = _differing(own.method_options, same_method, lenient)
    same_allocator = [s.allocator_options for s in known if s.allocator == own.allocator]
    allocator = _differing(own.allocator_options, same_allocator, lenient)
    parts = [own.method + (f" ({method})" if method else "")]
    if differ(setting.allocator for setting in known) or allocator:
        parts.append((own.allocator or "no allocator") + (f" ({allocator})" if allocator else ""))
    if differ(setting.measure for setting in known):
        parts.append(f"by {own.measure or 'budget'}")
    for place, name in enumerate(OTHERS):
        if len({setting.others[place] for setting in known}) > 1:
            parts.append(f"{name} {own.others[place] or 'none'}")
    return ", ".join(filter(None, parts)) or "unnamed"


def _options(value: Any) -> Options:
    if isinstance(value, dict):
        return tuple((str(key), text(entry)) for key, entry in value.items() if text(entry))
    return (("options", text(value)),) if text(value) else ()


def _differing(own: Options, among: Iterable[Options], lenient: bool) -> str:
    """Those of ``own`` options that have another value, or (unless ``lenient``) none, somewhere ``among``."""
    tables = [dict(options) for options in among]
    names = {name for options in tables for name in options}
    differ = {
        name
        for name in names
        if len({options.get(name) for options in tables if name in options or not lenient}) > 1
    }
    named = ", ".join(f"{name}={value}" for name, value in own if name in differ)
    return named or ("defaults" if differ and not lenient else "")

"""Choosing layers by name: globs and regular expressions over qualified names."""

import re
from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase

from rankwise.errors import RankwiseError, UnknownNameError

Pattern = str | re.Pattern[str]
Patterns = Pattern | Iterable[Pattern]

EXCLUDED, NOT_INCLUDED = "excluded by name", "not among the included names"


def as_patterns(patterns: Patterns | None) -> tuple[Pattern, ...]:
    """``patterns`` as a tuple: one pattern, several, or None for none."""
    if patterns is None:
        return ()
    return (patterns,) if isinstance(patterns, (str, re.Pattern)) else tuple(patterns)


def matcher(pattern: Pattern) -> Callable[[str], bool]:
    """A predicate on names for one pattern.

    A string is a glob over the whole name, in which ``*`` also passes dots (``layer1.*``); a string
    that starts with ``re:`` and a compiled expression are regular expressions over the whole name.

    Raises:
        RankwiseError: the regular expression cannot be compiled.
    """
    if isinstance(pattern, str) and not pattern.startswith("re:"):
        return lambda name: fnmatchcase(name, pattern)
    try:
        compiled = re.compile(pattern[3:]) if isinstance(pattern, str) else pattern
    except re.error as error:
        raise RankwiseError(f"The name pattern {pattern!r} is not a regular expression: {error}.") from error
    return lambda name: compiled.fullmatch(name) is not None


def matches(name: str, patterns: Patterns | None) -> bool:
    """Whether any of ``patterns`` matches ``name``; see :func:`matcher`."""
    return any(matcher(pattern)(name) for pattern in as_patterns(patterns))


def filter_names(
    names: Iterable[str], include: Patterns | None = None, exclude: Patterns | None = None
) -> dict[str, str]:
    """The names that ``include`` and ``exclude`` leave out, each with the reason.

    ``include`` None takes every name; ``exclude`` wins over ``include``.

    Raises:
        UnknownNameError: a pattern matches no name at all, so that a slip of the pen is not passed over.
    """
    names = list(names)
    included, excluded = as_patterns(include), as_patterns(exclude)
    for pattern in (*included, *excluded):
        if not any(map(matcher(pattern), names)):
            text = pattern if isinstance(pattern, str) else pattern.pattern
            raise UnknownNameError("layer name or pattern", text, names)
    left_out = {}
    for name in names:
        if matches(name, excluded):
            left_out[name] = EXCLUDED
        elif include is not None and not matches(name, included):
            left_out[name] = NOT_INCLUDED
    return left_out

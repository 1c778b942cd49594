"""Options by name: their names and types are checked against the fields of what they configure."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from rankwise.errors import OptionError, RankwiseError, UnknownNameError

_WORDS: dict[Any, str] = {
    bool: "true, false",
    int: "a whole number",
    float: "a number",
    str: "a name",
    NoneType: "null",
}


def configured(kind: str, made: Any, options: Mapping[str, Any]) -> Any:
    """``made(**options)``, where ``made`` is a dataclass; ``kind`` is what messages call it.

    Raises:
        UnknownNameError: an option that is no field of ``made``.
        OptionError: a value that is not of the field's type, or that ``made`` refuses.
    """
    known = [field.name for field in fields(made)]
    hints = get_type_hints(made) if options else {}
    for name in options:
        if name not in known:
            raise UnknownNameError(f"option of {kind}", name, known)
    wrong = next((name for name, value in options.items() if not _fits(value, hints[name])), None)
    try:
        built = made(**options)
    except RankwiseError:
        raise
    except ValueError as error:
        raise OptionError(f"Options of {kind}: {error}") from error
    except TypeError:
        if wrong is None:
            raise
    if wrong is None:
        return built
    allowed = ", ".join(_allowed(hints[wrong]))
    raise OptionError(f"{wrong}={options[wrong]!r} was given as option of {kind}; allowed: {allowed}.")


def _parts(hint: Any) -> tuple[Any, ...]:
    """The types of a union; of any other type itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the type ``hint``; true of types that options in files cannot have."""
    return any(_fits_one(value, part) for part in _parts(hint))


def _fits_one(value: Any, hint: Any) -> bool:
    if get_origin(hint) is Literal:
        return not isinstance(value, bool) and value in get_args(hint)
    if get_origin(hint) is Callable:
        return callable(value)
    if get_origin(hint) is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(part, get_args(hint)[0]) for part in value)
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real) and not isinstance(value, bool)
    return not isinstance(hint, type) or hint not in _WORDS or isinstance(value, hint)


def _allowed(hint: Any) -> list[str]:
    found = []
    for part in _parts(hint):
        if get_origin(part) is Literal:
            found += [repr(value) for value in get_args(part)]
        elif get_origin(part) is tuple:
            found.append(f"a list of which each is {', '.join(_allowed(get_args(part)[0]))}")
        else:
            found.append(_WORDS.get(part, "a function" if get_origin(part) is Callable else str(part)))
    return found

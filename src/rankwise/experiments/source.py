"""Experiment files: YAML with includes, a quick size and overrides; mistakes are told with file and line."""

import re
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from rankwise.errors import ExperimentError, UnknownNameError
from rankwise.experiments.config import Experiment

Key = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML as everybody reads it: 1e-4 is a number, which YAML 1.1 has as a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


@dataclass
class Content:
    """The content of a file, and where each of its keys stands: "file:line"."""

    values: dict[str, Any] = field(default_factory=dict)
    places: dict[Key, str] = field(default_factory=dict)

    def merge_(self, later: "Content") -> None:
        """Let ``later`` win: mappings are merged, everything else is replaced."""
        self.values = _merged(self.values, later.values)
        new = {key for key in later.places if key and not isinstance(_at(later.values, key), dict)}
        stale = {key for key in self.places if any(key[:n] in new for n in range(1, len(key)))}
        self.places = {k: v for k, v in self.places.items() if k not in stale} | later.places

    def place(self, key: Key) -> str:
        """Where ``key`` stands, or what it lies in."""
        return next((self.places[key[:n]] for n in range(len(key), -1, -1) if key[:n] in self.places), "")


def _at(values: Any, key: Key) -> Any:
    """What stands at ``key``; None where nothing does."""
    try:
        for part in key:
            values = values[part]
    except (KeyError, IndexError, TypeError):
        return None
    return values


def _merged(earlier: Mapping[str, Any], later: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(earlier)
    for key, value in later.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = _merged(old, value) if both else deepcopy(value)  # type: ignore[arg-type] # dicts
    return merged


def read_experiment(path: str | Path, *, overrides: Sequence[str] = (), quick: bool = False) -> Experiment:
    """The experiment in the YAML file ``path``.

    Args:
        path: the file; the files under its key ``include`` are read first, relative to it.
        overrides: settings such as ``"calibration.examples=64"`` or ``"models.0.weights=w.pt"``, which win
            over the file; values are YAML.
        quick: whether the section ``quick`` is merged into the rest.

    Raises:
        ExperimentError: a file is missing or no YAML, or a key or value is wrong; every mistake is listed
            with its file, line and key, the nearest name and the allowed ones.
    """
    content = _read(Path(path), ())
    small = content.values.pop("quick", None)
    if quick and not isinstance(small, Mapping):
        raise ExperimentError(f"{path} has no section 'quick'; run it without --quick.")
    if quick and isinstance(small, Mapping):
        inside = {key[1:]: place for key, place in content.places.items() if key[:1] == ("quick",)}
        content.merge_(Content(dict(small), {key: place for key, place in inside.items() if key}))
    for text in overrides:
        _override_(content, text)
    try:
        return Experiment.model_validate(content.values)
    except ValidationError as error:
        problems = [_explained(content, problem) for problem in error.errors()]
        raise ExperimentError("\n".join(dict.fromkeys(problems))) from error


def _read(path: Path, outer: tuple[Path, ...]) -> Content:
    """The content of ``path`` on top of what it includes; ``outer`` are the files that include it."""
    if path.resolve() in outer:
        raise ExperimentError(f"{path} includes itself.")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a text file"
        raise ExperimentError(f"The experiment file {path} cannot be read: {reason}.") from error
    own = _parsed(text, path)
    included = own.values.pop("include", [])
    content = Content()
    for name in [included] if isinstance(included, str) else included:
        if not isinstance(name, str):
            raise ExperimentError(f"{own.place(('include',))}: include: allowed are names of files.")
        content.merge_(_read(path.parent / name, (*outer, path.resolve())))
    content.merge_(own)
    return content


def _parsed(text: str, path: Path) -> Content:
    try:
        root = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f":{mark.line + 1}"
        problem = getattr(error, "problem", None) or str(error)
        raise ExperimentError(f"{path}{line}: this is no YAML: {problem}.") from error
    if not isinstance(values, dict) or root is None:
        raise ExperimentError(f"{path}:1: an experiment file is a mapping of keys to values.")
    places: dict[Key, str] = {(): f"{path}:1"}
    _locate_(root, (), path, places)
    return Content(values, places)


def _locate_(node: yaml.Node, key: Key, path: Path, places: dict[Key, str]) -> None:
    """Enter the lines of all keys under ``node``; a key that is given twice is an error."""
    inside: Iterable[tuple[Any, yaml.Node, yaml.Node]] = ()
    if isinstance(node, yaml.MappingNode):
        inside = ((name.value, name, value) for name, value in node.value)
    elif isinstance(node, yaml.SequenceNode):
        inside = ((index, item, item) for index, item in enumerate(node.value))
    for name, at, value in inside:
        place = f"{path}:{at.start_mark.line + 1}"
        if places.get((*key, name), "").startswith(f"{path}:"):
            raise ExperimentError(f"{place}: {_dotted((*key, name))}: this key stands here twice.")
        places[(*key, name)] = place
        _locate_(value, (*key, name), path, places)


def _override_(content: Content, text: str) -> None:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ExperimentError(f"--set {text}: allowed is KEY=VALUE, as in --set calibration.examples=64.")
    key: Key = tuple(int(part) if part.isdigit() else part for part in name.split("."))
    here: Any = content.values
    for part, after in zip(key, (*key[1:], None), strict=True):
        fits = (isinstance(here, dict) and isinstance(part, str)) or (
            isinstance(here, list) and isinstance(part, int) and part < len(here)
        )
        if not fits:
            held = f"a list of {len(here)}" if isinstance(here, list) else type(here).__name__
            raise ExperimentError(f"--set {text}: {part!r} does not fit into {held}.")
        if after is None:
            try:
                here[part] = yaml.load(value, Loader=_Loader)
            except yaml.YAMLError as error:
                raise ExperimentError(f"--set {text}: {value!r} is no YAML value.") from error
            break
        inner = here.get(part) if isinstance(here, dict) else here[part]
        if not isinstance(inner, (dict, list)):
            here[part] = {} if inner is None else {"name": inner}
        here = here[part]
    content.places[key] = f"--set {text}"


def _explained(content: Content, problem: Any) -> str:
    """One mistake as "file:line: key: what is wrong, and what is allowed"."""
    key: Key = problem["loc"]
    cause = getattr(problem.get("ctx", {}).get("error"), "__cause__", None)
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = str(UnknownNameError("key", str(key[-1]), _allowed_keys(key[:-1])))
    elif problem["type"] == "missing":
        message = "this key is missing."
    elif isinstance(cause, UnknownNameError) and (*key, cause.given) in content.places:
        key = (*key, cause.given)
    elif not isinstance(cause, Exception) and problem["type"] != "value_error":
        message = f"{message}; {problem['input']!r} was given."
    return f"{content.place(key)}: {_dotted(key)}: {message}" if key else f"{content.place(key)}: {message}"


def _allowed_keys(key: Key) -> list[str]:
    """The keys of the section at ``key``."""
    section: type[BaseModel] = Experiment
    for part in key:
        if isinstance(part, str) and part in section.model_fields:
            section = _section_in(section.model_fields[part].annotation) or section
    more = ["include", "quick"] if section is Experiment else []
    return [*section.model_fields, *more]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _dotted(key: Key) -> str:
    return ".".join(map(str, key))

"""Options that several commands share."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.cli.console import errors
from rankwise.errors import RankwiseError
from rankwise.experiments.single import is_file
from rankwise.files import check_writable
from rankwise.models import MODELS


def folder(path: Path | None) -> Path | None:
    """A folder for what a command writes, checked before any work."""
    if path is not None:
        check_writable(path, folder=True)
    return path


def file(path: Path | None) -> Path | None:
    """A file that a command writes, checked before any work."""
    if path is not None:
        check_writable(path, folder=False)
    return path


ModelName = Annotated[
    str, typer.Argument(metavar="MODEL", help="A network: NAME, torchvision:NAME, package.module:callable.")
]
FileOrModel = Annotated[
    str, typer.Argument(metavar="FILE|MODEL", help="A file that rankwise saved, or a network.")
]
Data = Annotated[
    str, typer.Option("--data", help="A data set: digits, cifar10, imagefolder:PATH, random:3,224,224, ...")
]
OptionalData = Annotated[
    str | None, typer.Option("--data", help="A data set; needed where a method looks at data.")
]
Weights = Annotated[str | None, typer.Option(help="A file with the network's weights.")]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        help="auto, or a method; several by commas compete per layer; FIRST+SECOND splits the budget.",
    ),
]
MethodOptions = Annotated[
    list[str] | None, typer.Option("--method-option", metavar="NAME=VALUE", help="A setting of the method.")
]
Allocator = Annotated[str, typer.Option("--allocator", help="How the budget is shared among layers.")]
AllocatorOptions = Annotated[
    list[str] | None,
    typer.Option("--allocator-option", metavar="NAME=VALUE", help="A setting of the allocator."),
]
BudgetText = Annotated[
    str, typer.Option("--budget", help="What is KEPT: params=0.5,macs=0.6 or latency=0.7,batch_size=32")
]
Recover = Annotated[
    str,
    typer.Option(
        "--recover",
        metavar="RECOVERY",
        help="After surgery, several by commas: none, closed-form, distill, finetune:EPOCHS, ...",
    ),
]
Calibration = Annotated[
    int | None, typer.Option(help="Calibration examples, out of the training split [default: up to 1024].")
]
Seed = Annotated[int, typer.Option(help="Seed of all that is random.")]
Device = Annotated[str, typer.Option(help="Where the network runs: cpu, cuda, cuda:1, ...")]
Include = Annotated[list[str] | None, typer.Option("--include", help="Glob of layers that may change.")]
Exclude = Annotated[list[str] | None, typer.Option("--exclude", help="Glob of layers that must not change.")]
MultipleOf = Annotated[int, typer.Option(help="Ranks are multiples of this number.")]
MaxMemory = Annotated[
    float | None, typer.Option(help="GiB that the calibration statistics may take at once.")
]
FoldBatchNorm = Annotated[
    bool | None,
    typer.Option(
        "--fold-batchnorm/--no-fold-batchnorm",
        help="First fold each BatchNorm into the layer before it [default: for auto and latency].",
    ),
]
Out = Annotated[
    Path | None, typer.Option(help="Folder for the model, the plan and the metrics.", callback=folder)
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def settings(pairs: list[str] | None) -> dict[str, Any]:
    """``["rank=3", "side=input"]`` as a dict; values are JSON where they can be, text otherwise."""
    found: dict[str, Any] = {}
    for pair in pairs or []:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise RankwiseError(f"The setting {pair!r} was given; allowed is NAME=VALUE.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def in_bytes(gibibytes: float | None) -> int | None:
    """A limit on memory as the library takes it."""
    if gibibytes is not None and not gibibytes > 0:
        raise RankwiseError(f"A memory of {gibibytes:g} GiB was given; allowed are numbers above 0.")
    return None if gibibytes is None else int(gibibytes * 2**30)


def keep_apart(written: Iterable[Path], *read: str | Path | None) -> None:
    """Make sure that no file that is ``written`` is one of those that are ``read``.

    Raises:
        RankwiseError: one is.
    """
    sources = {Path(one).resolve() for one in read if one is not None}
    for path in written:
        if path.resolve() in sources:
            raise RankwiseError(f"{path} would be read and overwritten; allowed is another --out.")


def tell_random(model: str, weights: str | None, option: str = "--weights") -> None:
    """Say on standard error that the network has random weights, where that is sure."""
    name = model.partition("#")[0]
    untrained = name in MODELS or (name.startswith("torchvision:") and "@" not in name)
    if weights is None and untrained and not is_file(model):
        errors.print(f"{model} has random weights; {option} FILE gives it others", markup=False)

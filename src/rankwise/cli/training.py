"""The command ``finetune``: train a network or a compressed file with labels, resumable."""

from pathlib import Path
from typing import Annotated, Any

import typer

from rankwise.cli import options
from rankwise.cli.console import percent, print_json, print_table, progress_bars
from rankwise.experiments.single import METRICS_FILE, MODEL_FILE, PLAN_FILE
from rankwise.experiments.training import TrainingRun, train
from rankwise.recovery.finetune import CHECKPOINT_FILE
from rankwise.recovery.logs import LOG_FILE


def finetune(
    model: options.FileOrModel,
    data: options.Data,
    epochs: Annotated[int, typer.Option(help="Passes over the training split.")],
    out: Annotated[
        Path,
        typer.Option(help="Folder for the model, the logs and the checkpoint.", callback=options.folder),
    ],
    weights: options.Weights = None,
    distill: Annotated[
        bool, typer.Option("--distill", help="Half of the loss is the divergence from the original.")
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="The FILE or MODEL to learn from [default: what the file was made of].")
    ] = None,
    teacher_weights: Annotated[str | None, typer.Option(help="Weights of the teacher.")] = None,
    optimizer: Annotated[str, typer.Option(help="sgd or adamw.")] = "sgd",
    lr: Annotated[float | None, typer.Option(help="Learning rate [default: it is tried out].")] = None,
    schedule: Annotated[str, typer.Option(help="cosine, multistep or constant.")] = "cosine",
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="Any other setting: ema=0.999, clip=1, mix=0.3"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per batch and process.")] = 128,
    strategy: Annotated[str, typer.Option(help="auto (DDP under torchrun), fsdp, ...")] = "auto",
    precision: Annotated[str | None, typer.Option(help="As Fabric names it: bf16-mixed, ...")] = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Train with labels; validation data out of the training split picks the epoch. Resumes from OUT."""
    options.keep_apart((out / MODEL_FILE,), model, weights, teacher, teacher_weights)
    given: dict[str, Any] = {"epochs": epochs, "optimizer": optimizer, "lr": lr, "schedule": schedule}
    if distill or teacher is not None:
        given["mix"] = 0.5
    run = TrainingRun(
        model, data, {**given, **options.settings(option)}, weights, distill, teacher, teacher_weights,
        batch_size, seed, strategy, precision,
    )  # fmt: skip
    with progress_bars(quiet=json) as progress:
        metrics = train(run, out, progress)
    if not metrics:  # not the first of several processes
        return
    if json:
        print_json(metrics)
        return
    rows = [[name, *_cells(metrics, name)] for name in ("top1", "loss", "agreement")]
    print_table(
        f"{model} on {data}, {epochs} epochs, best {metrics['best']}, learning rate {metrics['lr']:g}",
        ("test", "before", "after"), rows, right=(1, 2),
    )  # fmt: skip
    typer.echo(f"written to {out}: {MODEL_FILE}, {PLAN_FILE}, {METRICS_FILE}, {LOG_FILE}, {CHECKPOINT_FILE}")


def _cells(metrics: dict[str, Any], name: str) -> list[str]:
    values = [metrics[stage].get(name) for stage in ("before", "after")]
    return [("-" if v is None else f"{v:.4f}") if name == "loss" else percent(v) for v in values]

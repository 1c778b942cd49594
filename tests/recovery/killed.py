"""Runs jobs that are killed at chosen moments and started again; a script, so that it can fork cheaply.

``python -m tests.recovery.killed FOLDER JOB,JOB MOMENT...``: each job is run once without interruption
into FOLDER/JOB/whole, and then in FOLDER/JOB/cut, killed (SIGKILL) at each MOMENT in turn and started
again, and at last run to its end. A moment is ``step:N`` (after the N-th step from its start), or
``write:N`` (in the middle of writing the N-th checkpoint). Prints one JSON line: per job the exit
statuses, and whether the final weights are the same bit for bit.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tests.recovery.digits import batches, network

from rankwise.recovery import checkpoint


def finetune(out: Path, progress: Callable[[str, int, int], None], **options: Any) -> torch.nn.Module:
    from rankwise.recovery.finetune import finetune

    train, validation = batches(size=32, train=200)
    net = torch.nn.Sequential(torch.nn.Dropout(0.1), torch.nn.BatchNorm2d(1), *network())
    settings = {"epochs": 3, "lr": 0.05, "ema": 0.9, "mix": 0.3, "teacher": network(1)} | options
    return finetune(
        net, train, validation, out=out, checkpoint_seconds=-1.0, progress=progress, **settings
    ).model


def adamw(out: Path, progress: Callable[[str, int, int], None]) -> torch.nn.Module:
    return finetune(out, progress, optimizer="adamw", lr=None, trial=3, schedule="multistep")


def staged(out: Path, progress: Callable[[str, int, int], None], stages: Any) -> torch.nn.Module:
    from rankwise.recovery.training import FineTuning
    from rankwise.schedule import Schedule

    train, validation = batches(size=50, train=150)
    plan = Schedule(stages=stages, training=FineTuning(epochs=1, lr=0.02, freeze_batchnorm=True))
    inputs = [x for x, _ in train.split.batches(50)]
    return plan.run(network(), inputs, train, validation, out=out, progress=progress)[-1]


def alternation(out: Path, progress: Callable[[str, int, int], None]) -> torch.nn.Module:
    from rankwise import Budget
    from rankwise.recovery.training import FineTuning
    from rankwise.schedule import Alternation

    train, validation = batches(size=50, train=150)
    plan = Alternation(
        budget=Budget(params=0.6), rounds=2, finish=1, mu=0.1, training=FineTuning(epochs=1, lr=0.02)
    )
    example = next(iter(train))[0]
    return plan.run(network(), train, validation, example=example, out=out, progress=progress).model


def schedules(kind: str) -> Callable[..., torch.nn.Module]:
    def job(out: Path, progress: Callable[[str, int, int], None]) -> torch.nn.Module:
        from rankwise import schedule

        listed = {
            "one-shot": schedule.one_shot(0.6, 2),
            "iterative": schedule.iterative(0.5, 1, step=0.7),
            "cascade": schedule.cascade([0.8, 0.6], 1),
            "retrain-sweep": schedule.retrain_sweep(0.6, [1, 2]),
        }
        return staged(out, progress, listed[kind])

    return job


JOBS: dict[str, Callable[..., torch.nn.Module]] = {
    "sgd": finetune,
    "adamw": adamw,
    "alternation": alternation,
    **{kind: schedules(kind) for kind in ("one-shot", "iterative", "cascade", "retrain-sweep")},
}


def schedules_checkpoint_often() -> None:
    """Let schedules write a checkpoint after every step."""
    from rankwise import schedule
    from rankwise.recovery.finetune import finetune

    schedule.finetune = partial(finetune, checkpoint_seconds=-1.0)


def run(job: str, out: Path, moment: str | None) -> None:
    """One attempt, in this process."""
    kind, _, number = (moment or ":0").partition(":")
    left = {"step": 0, "write": 0, kind: int(number)}

    def die(what: str) -> bool:
        left[what] -= 1
        return left[what] == 0

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "finetune" and die("step"):
            os.kill(os.getpid(), signal.SIGKILL)

    save = torch.save

    def half(content: Any, path: Path) -> None:
        save(content, path)
        if die("write"):
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    schedules_checkpoint_often()
    checkpoint.torch.save = half  # type: ignore[attr-defined] # the module's torch
    torch.set_num_threads(1)
    model = JOBS[job](out, progress)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, out / "final.safetensors")


def attempt(job: str, out: Path, moment: str | None) -> int:
    child = os.fork()
    if child == 0:
        run(job, out, moment)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def interrupted(folder: Path, job: str, moments: list[str]) -> dict[str, Any]:
    for name in ("whole", "cut"):
        (folder / name).mkdir(parents=True)
    codes = [attempt(job, folder / "whole", None)]
    codes += [attempt(job, folder / "cut", moment) for moment in [*moments, None]]
    files = [folder / name / "final.safetensors" for name in ("whole", "cut")]
    return {"codes": codes, "same": files[0].read_bytes() == files[1].read_bytes()}


if __name__ == "__main__":
    for slow in ("lightning_fabric", "torch.utils.tensorboard", "rankwise.schedule"):
        with suppress(ImportError):
            import_module(slow)  # once, before the forks
    where, jobs, *when = sys.argv[1:]
    print(json.dumps({job: interrupted(Path(where) / job, job, when) for job in jobs.split(",")}))

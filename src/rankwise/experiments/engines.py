"""Who does the trials: processes of this machine, or a Ray cluster."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol
from uuid import uuid4

from rankwise.errors import ExperimentError, RankwiseError
from rankwise.experiments.execution import Job, run_trials
from rankwise.experiments.machine import cores
from rankwise.experiments.trials import Trial, groups
from rankwise.files import write_text

Group = Sequence[Trial]
SECONDS = 0.5  # between two looks at what has come
ATTEMPTS = 3  # at a group whose worker is lost
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
TOKEN_FILE = ".run"


class Engine(Protocol):
    """Does trials; those that share work are done by one process one after another."""

    def run(self, trials: Sequence[Trial], job: Job, look: Callable[[], None]) -> None:
        """Do all ``trials``; ``look`` is called now and then, and at the end.

        Raises:
            RankwiseError: a network or data cannot be had, or workers are lost again and again.
        """
        ...


@dataclass(frozen=True)
class Local:
    """``jobs`` processes of this machine, which share its cores; one job is done in this process."""

    jobs: int = 1

    @property
    def threads(self) -> int:
        """Threads of each process: together they have the cores, or what OMP_NUM_THREADS allows each."""
        allowed = os.environ.get(THREADS[0], "")
        share = max(1, cores() // self.jobs)
        return min(share, int(allowed)) if allowed.isdigit() and int(allowed) else share

    def run(self, trials: Sequence[Trial], job: Job, look: Callable[[], None]) -> None:
        """As :meth:`Engine.run`. A process that dies is replaced, and its trials are done again."""
        job = replace(job, threads=self.threads)
        if self.jobs == 1:
            for trial in trials:
                run_trials([trial], job)
                look()
            return
        left: list[Group] = list(groups(trials, self.jobs))
        for _ in range(ATTEMPTS):
            left = self._attempt(left, job, look)
            if not left:
                return
        raise ExperimentError(_lost([trial for group in left for trial in group]))

    def _attempt(self, work: Sequence[Group], job: Job, look: Callable[[], None]) -> list[Group]:
        """Do the groups in ``work``; returns those that a dying process took along."""
        context = multiprocessing.get_context("spawn")
        with (
            _environment(dict.fromkeys(THREADS, str(job.threads))),
            ProcessPoolExecutor(self.jobs, context, _start_worker) as pool,
        ):
            futures: dict[Future[None], Group] = {
                pool.submit(_in_worker, group, job): group for group in work
            }
            try:
                _follow(futures, look)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.terminate()
                raise
        return [group for future, group in futures.items() if future.exception() is not None]


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end when it does, however that was."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Environment variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _in_worker(group: Group, job: Job) -> None:
    try:
        run_trials(group, job)
    except RankwiseError as error:  # some of ours cannot travel between processes
        raise ExperimentError(f"{type(error).__name__}: {error}") from None


def _follow(futures: dict[Future[None], Group], look: Callable[[], None]) -> None:
    """Wait for all ``futures``; an error other than a dead process ends the waiting."""
    waiting = set(futures)
    while waiting:
        done, waiting = wait(waiting, SECONDS, FIRST_EXCEPTION)
        look()
        for future in done:
            error = future.exception()
            if error is not None and not isinstance(error, BrokenProcessPool):
                raise error


def _lost(trials: Sequence[Trial]) -> str:
    named = "; ".join(trial.describe() for trial in trials[:3])
    return (
        f"The processes of {len(trials)} trials died {ATTEMPTS} times (out of memory?): {named}, ... What is "
        "finished is kept; fewer jobs at once need less memory."
    )


@dataclass(frozen=True)
class OnRay:
    """Tasks on a Ray cluster, each with ``cpus``, ``gpus`` and ``memory`` (bytes) of a node.

    ``address`` is that of an existing cluster, "auto" for the one that this machine belongs to; None uses
    the one that this process is connected to, or starts one here. The folder of the results must be the
    same on all nodes.
    """

    address: str | None = None
    cpus: int = 1
    gpus: float = 0.0
    memory: int | None = None

    def run(self, trials: Sequence[Trial], job: Job, look: Callable[[], None]) -> None:
        """As :meth:`Engine.run`. What a lost worker or node had is done again elsewhere."""
        ray = _ray()
        own = not ray.is_initialized()
        if own:
            ray.init(address=self.address, include_dashboard=False, log_to_driver=False)
        token = uuid4().hex
        write_text(job.out / TOKEN_FILE, token)
        job = replace(job, out=job.out.resolve(), threads=self.cpus)
        resources = {"num_cpus": self.cpus, "num_gpus": self.gpus, "memory": self.memory}
        task = ray.remote(max_retries=ATTEMPTS, **resources)(_on_node)
        slots = int(ray.cluster_resources().get("CPU", 1)) // self.cpus
        pending = [task.remote(group, job, token) for group in groups(trials, slots)]
        try:
            while pending:
                done, pending = ray.wait(pending, timeout=SECONDS)
                look()
                for one in done:
                    _result(ray, one)
        finally:
            for one in pending:
                ray.cancel(one, force=True)
            (job.out / TOKEN_FILE).unlink(missing_ok=True)
            if own:
                ray.shutdown()


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise ExperimentError("--engine ray needs Ray: pip install rankwise[sweep].") from error
    return ray


def _result(ray: Any, task: Any) -> None:
    try:
        ray.get(task)
    except ray.exceptions.RayTaskError as error:
        raise ExperimentError(str(error.cause)) from error
    except ray.exceptions.RayError as error:
        raise ExperimentError(
            f"Ray lost a task {ATTEMPTS} times and more ({type(error).__name__}). What is finished is kept."
        ) from error


def _on_node(group: Group, job: Job, token: str) -> None:
    """Do ``group`` on whatever node this is, if it sees the folder of the run."""
    path = job.out / TOKEN_FILE
    if not path.is_file() or path.read_text() != token:
        raise ExperimentError(
            f"The node {os.uname().nodename} does not see the folder {job.out} of this run; with --engine "
            "ray it must lie on a file system that all nodes share."
        )
    _in_worker(group, job)

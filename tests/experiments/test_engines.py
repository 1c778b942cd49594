"""Engines: a process or a node that dies costs time, and nothing else."""

import os
import pickle
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from rankwise.errors import ExperimentError
from rankwise.experiments import engines
from rankwise.experiments.engines import Local, OnRay
from rankwise.experiments.execution import Job
from rankwise.experiments.machine import cores
from rankwise.experiments.runner import run_experiment
from rankwise.experiments.trials import trials_of
from tests.experiments.small import experiment, figures


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert Local(1).threads == cores() and Local(cores()).threads == 1 and Local(1000).threads == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert Local(1).threads == 1


def _kill_a_child(out: Path, killed: list[int]) -> None:
    """Kill a process of the pool as soon as a trial has finished."""
    while not list(out.glob("trials/*/metrics.json")):
        time.sleep(0.02)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for child in map(int, children):
        if not killed and b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(child, signal.SIGKILL)
            killed.append(child)


def test_processes_give_what_one_gives_also_when_one_dies(tmp_path: Path) -> None:
    given, killed = experiment(), []
    trials = trials_of(given, tmp_path)
    killer = threading.Thread(target=_kill_a_child, args=(tmp_path / "two", killed))
    killer.start()
    state = run_experiment(given, trials, tmp_path / "two", Local(2))
    killer.join()
    assert len(state.finished) == len(trials) and len(killed) == 1
    run_experiment(given, trials, tmp_path / "one", Local(1))
    assert figures(trials, tmp_path / "two") == figures(trials, tmp_path / "one")


def test_errors_travel_between_processes(tmp_path: Path) -> None:
    given = experiment(data=f"imagefolder:{tmp_path}/nothing")
    with pytest.raises(ExperimentError, match="DataError") as caught:
        engines._in_worker(trials_of(given, tmp_path), Job(tmp_path))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Two raylets on this machine, one core each; the test may kill the second."""
    ray = pytest.importorskip("ray", reason="Ray is not installed: pip install rankwise[sweep]")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    small = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    made = Cluster(initialize_head=True, head_node_args=small)
    made.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    made.wait_for_nodes()
    ray.init(address=made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def test_a_node_that_dies_costs_no_trial(cluster: Any, tmp_path: Path) -> None:
    given = experiment(repetitions=2)
    trials = trials_of(given, tmp_path)
    out, alone = tmp_path / "ray", tmp_path / "local"
    (second,) = [node for node in cluster.list_all_nodes() if not node.head]
    hosts: list[int] = []

    def kill_after_two(_: Any, __: Any, done: int, ___: int) -> None:
        if done >= 2 and not hosts:
            hosts.append(done)
            cluster.remove_node(second, allow_graceful=False)

    state = run_experiment(given, trials, out, OnRay(), told=kill_after_two)
    assert len(state.finished) == len(trials) and hosts and hosts[0] < len(trials)
    run_experiment(given, trials, alone, Local(1))
    assert figures(trials, out) == figures(trials, alone)

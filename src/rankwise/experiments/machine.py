"""What a figure was measured on: hardware, versions, and the memory that it took."""

import os
import platform
import resource
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("rankwise", "torch", "numpy", "scipy", "torchvision")


@cache
def versions() -> dict[str, str]:
    """Python and the packages that decide about figures, those that are there; the commit in a checkout."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    git = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:  # no git
        commit = ""
    return {**found, "commit": commit} if commit else found


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, its threads, memory in bytes, and the accelerator."""
    found: dict[str, Any] = {
        "cpu": _field("/proc/cpuinfo", "model name") or platform.processor() or platform.machine(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "host": platform.node(),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def restart_peak() -> None:
    """Let :func:`peak_bytes` count from now on, where the system can (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def peak_bytes() -> int:
    """The most memory that this process has held at once, since :func:`restart_peak` where that works."""
    kilobytes = _field("/proc/self/status", "VmHWM").removesuffix("kB").strip()
    return 1024 * (int(kilobytes) if kilobytes else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def _field(path: str, name: str) -> str:
    """The value after ``name:`` in a file of the system, or nothing."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    values = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in values if key.strip() == name), "")

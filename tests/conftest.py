"""What every test shares: one thread, repeatable examples, a seeded generator, the folder of real data."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("rankwise", deadline=None, derandomize=True, max_examples=25, print_blob=True)
settings.load_profile("rankwise")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Start every test from the same global generator, whatever ran before it in this process."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the real data sets and weights; tests that use it are skipped without one."""
    folder = os.environ.get("RANKWISE_DATA")
    if not folder:
        pytest.skip("RANKWISE_DATA is not set: no real data sets and weights (README, 'Real data')")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"RANKWISE_DATA={folder} is not a folder")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what asks for the real data, so that ``-m "not data"`` leaves it out."""
    for item in items:
        if "data_dir" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.data)

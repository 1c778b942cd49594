"""Work in threads: the same results, in order, and torch's settings as they were."""

import threading
import time
from collections.abc import Iterator

import pytest
import torch

import rankwise
from rankwise.methods import get_method
from rankwise.threads import in_threads
from tests.network.skip_net import SkipNet, images


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_results_come_in_order_with_one_thread_each_and_the_callers_gradient_mode() -> None:
    def work(item: int) -> tuple[int, int, bool]:
        return item * item, torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        assert in_threads(work, range(9)) == [(i * i, 1, False) for i in range(9)]
    assert in_threads(work, [3]) == [(9, 2, True)]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_there_are_at_most_four() -> None:
    torch.set_num_threads(8)

    def work(item: int) -> int:
        time.sleep(0.01)  # so that no thread can do all of it
        return threading.get_ident()

    assert 1 < len(set(in_threads(work, range(24)))) <= 4
    assert torch.get_num_threads() == 8


@pytest.mark.usefixtures("two_threads")
def test_an_error_comes_through_and_leaves_the_threads_as_they_were() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    seen: list[int] = []
    with pytest.raises(ValueError, match="two"):
        in_threads(work, range(6), seen.append)
    assert seen == [1, 2]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_one_that_is_stopped_by_its_caller_gives_the_threads_back() -> None:
    def stop(count: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        in_threads(lambda item: item, range(100), stop)
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_network_is_compressed_alike_with_one_thread_and_with_two() -> None:
    torch.manual_seed(0)
    model = SkipNet().eval()
    batches = [images(6, seed) for seed in range(3)]
    method = get_method("cp", metric="input", effort=0.01, polish=3)
    found = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        small = rankwise.compress(model, batches, rankwise.Budget(params=0.6), method=[method, "whitened"])
        found.append(small.state_dict())
    assert found[0].keys() == found[1].keys()
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name])

import pytest

from rankwise.errors import BudgetError
from rankwise.latency import settle

WHOLE = 1_000_000


@pytest.mark.parametrize("asked", [0.9, 0.7, 0.5, 0.3])
@pytest.mark.parametrize("truth", [lambda p: p, lambda p: 0.4 + 0.6 * p, lambda p: p**0.5, lambda p: p**2])
def test_the_measured_time_is_what_is_asked_for_however_the_parts_mislead(truth, asked) -> None:  # type: ignore[no-untyped-def]
    if truth(0.0) > asked:
        return
    found = settle(
        lambda limit: limit, lambda choice: choice, lambda choice: truth(choice / WHOLE), asked, 1, WHOLE
    )
    assert 0.95 * asked <= found.last.measured <= asked
    assert found.choice == found.last.limit
    assert len(found.rounds) <= 9


def test_a_right_prediction_needs_one_round() -> None:
    found = settle(lambda x: x, lambda x: x, lambda x: x / WHOLE, 0.6, 1, WHOLE)
    assert [trial.limit for trial in found.rounds] == [588_000]


def test_coarse_choices_give_the_one_nearest_below() -> None:
    """Widths in large steps: 0.9, 0.6 and 0.3 of the time are all there is."""

    def choose(limit: int) -> float:
        return max([share for share in (0.9, 0.6, 0.3) if share <= limit / WHOLE], default=0.3)

    found = settle(choose, lambda s: round(s * WHOLE), lambda s: s, 0.8, 300_000, WHOLE)
    assert found.choice == 0.6


def test_what_cannot_be_met_says_what_can() -> None:
    with pytest.raises(BudgetError, match=r"fastest network that was measured takes 0\.550 of it"):
        settle(lambda x: x, lambda x: x, lambda x: 0.5 + 0.5 * x / WHOLE, 0.4, 100_000, WHOLE)


def test_nothing_slower_than_the_original_is_returned() -> None:
    with pytest.raises(BudgetError, match=r"takes 1\.200 of it"):
        settle(lambda x: x, lambda x: x, lambda x: 1.2, 0.99, 1, WHOLE)


def test_a_network_that_is_fast_enough_already_stays_as_it_is() -> None:
    found = settle(lambda x: x, lambda x: x, lambda x: 1.0, 0.9, 1, WHOLE, whole_measured=0.85)
    assert (found.choice, found.rounds) == (WHOLE, ())

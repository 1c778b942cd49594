import pytest

from rankwise.errors import BudgetError
from rankwise.latency import settle

WHOLE = 1_000_000


@pytest.mark.parametrize("asked", [0.9, 0.7, 0.5, 0.3])
@pytest.mark.parametrize("truth", [lambda p: p, lambda p: 0.4 + 0.6 * p, lambda p: p**0.5, lambda p: p**2])
def test_the_measured_time_is_what_is_asked_for_however_the_parts_mislead(truth, asked) -> None:  # type: ignore[no-untyped-def]
    def measure(choice: int) -> float:
        return truth(choice / WHOLE)

    if truth(0.0) > asked:
        with pytest.raises(BudgetError, match=r"fastest network that was measured takes 0\.40"):
            settle(lambda limit: limit, lambda choice: choice, measure, asked, 1, WHOLE)
        return
    found = settle(lambda limit: limit, lambda choice: choice, measure, asked, 1, WHOLE)
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


def test_what_seems_right_is_looked_at_twice() -> None:
    """The first look is lucky by 4 %; the mean of both counts."""
    seen: list[int] = []

    def measure(choice: int) -> float:
        seen.append(choice)
        return choice / WHOLE * (1.04 if seen.count(choice) == 2 else 1.0)

    found = settle(lambda x: x, lambda x: x, measure, 0.58, 1, WHOLE)
    assert seen[0] == seen[1] == round(0.98 * 0.58 * WHOLE)
    assert found.last.measured == pytest.approx(1.02 * seen[0] / WHOLE)


@pytest.mark.parametrize(("share", "ends"), [(0.805, True), (0.815, True), (0.817, False)])
def test_what_is_hardly_too_slow_is_taken_where_nothing_is_faster(share: float, ends: bool) -> None:
    def run() -> float:
        return settle(lambda x: x, lambda x: x, lambda x: share, 0.8, 1, WHOLE).last.measured

    if ends:
        assert run() == share
    else:
        with pytest.raises(BudgetError, match=rf"takes {share:.3f} of it"):
            run()


def test_another_limit_that_stands_in_the_way_later_leaves_what_was_found() -> None:
    def choose(limit: int) -> int:
        if limit < 780_000:
            raise BudgetError("MACs")
        return limit

    found = settle(choose, lambda x: x, lambda x: 0.81, 0.8, 1, WHOLE)
    assert (found.choice, found.last.measured, len(found.rounds)) == (784_000, 0.81, 1)
    with pytest.raises(BudgetError, match=r"takes 0\.900 of it"):
        settle(choose, lambda x: x, lambda x: 0.9, 0.8, 1, WHOLE)
    with pytest.raises(BudgetError, match="MACs"):
        settle(choose, lambda x: x, lambda x: 0.9, 0.7, 1, WHOLE)


@pytest.mark.parametrize(("low", "high"), [(0.57, 1.0), (0.2, 0.605)])
def test_between_two_trials_the_next_is_well_inside(low: float, high: float) -> None:
    """A step with the aim of 0.588 close to one of its ends, where a straight line makes little way."""
    found = settle(lambda x: x, lambda x: x, lambda x: low if x < 575_000 else high, 0.6, 1, WHOLE)
    limits = [trial.limit for trial in found.rounds]
    assert len(limits) == 9
    for done in range(2, 9):
        below = max(x for x in limits[:done] if x < 575_000)
        above = min(x for x in limits[:done] if x >= 575_000)
        assert 0.049 < (limits[done] - below) / (above - below) < 0.951


def test_what_cannot_be_met_says_what_can() -> None:
    with pytest.raises(BudgetError, match=r"fastest network that was measured takes 0\.550 of it"):
        settle(lambda x: x, lambda x: x, lambda x: 0.5 + 0.5 * x / WHOLE, 0.4, 100_000, WHOLE)


def test_nothing_slower_than_the_original_is_returned() -> None:
    with pytest.raises(BudgetError, match=r"takes 1\.200 of it"):
        settle(lambda x: x, lambda x: x, lambda x: 1.2, 0.99, 1, WHOLE)
    with pytest.raises(BudgetError, match=r"takes 1\.005 of it"):  # within the slack, above the original
        settle(lambda x: x, lambda x: x, lambda x: 1.005, 0.99, 1, WHOLE)


def test_a_network_that_is_fast_enough_already_stays_as_it_is() -> None:
    found = settle(lambda x: x, lambda x: x, lambda x: 1.0, 0.9, 1, WHOLE, whole_measured=0.85)
    assert (found.choice, found.rounds) == (WHOLE, ())

import pytest

from rankwise.budget import Budget
from rankwise.errors import BudgetError
from rankwise.network import Cost


def test_limits_are_fractions_kept_or_absolute_numbers() -> None:
    original = Cost(params=1001, macs=2000, bytes=4004)
    assert Budget(params=0.5, macs=300).limits(original) == {"params": 500, "macs": 300}
    assert Budget(bytes=1.0).limits(original) == {"bytes": 4004}
    assert Budget(params=1).limits(original) == {"params": 1001}


def test_parse_reads_what_the_command_line_takes() -> None:
    assert Budget.parse("params=0.5, macs=123456") == Budget(params=0.5, macs=123456)


@pytest.mark.parametrize("text", ["", "params", "params=", "speed=0.5", "params=0.5,params=0.6", "macs=half"])
def test_parse_says_what_it_does_not_understand(text: str) -> None:
    with pytest.raises(BudgetError, match="given"):
        Budget.parse(text)


@pytest.mark.parametrize("value", [0, -0.5, 1.5, float("nan"), float("inf"), True, "0.5"])
def test_senseless_values_are_refused(value: object) -> None:
    with pytest.raises(BudgetError, match="allowed is the fraction kept"):
        Budget(params=value)  # type: ignore[arg-type]


def test_an_empty_budget_is_refused() -> None:
    with pytest.raises(BudgetError, match="at least one of params, macs, bytes, latency"):
        Budget()


def test_latency_is_a_fraction_milliseconds_or_a_time_with_its_unit() -> None:
    original = Cost(params=10, macs=10, bytes=10, latency=4_000_000)
    assert Budget(latency=0.5).limits(original) == {"latency": 2_000_000}
    assert Budget(latency=3).limits(original) == {"latency": 3_000_000}
    assert Budget(latency="500us").limits(original) == {"latency": 500_000}
    assert Budget(latency="0.8 ms", macs=0.5).limits(original) == {"macs": 5, "latency": 800_000}
    assert Budget(latency=9.5).limits(original) == {"latency": 4_000_000}


def test_where_latency_is_measured_is_part_of_the_text() -> None:
    text = "latency=0.6,device=cpu,batch_size=1,threads=2,runtime=torch,dtype=float64"
    found = Budget.parse(text)
    assert found == Budget(latency=0.6, threads=2, dtype="float64")
    assert Budget(**found.as_dict()) == found
    assert Budget.parse("latency=0.8ms") == Budget(latency="0.8ms")
    assert eval(repr(found)) == found


@pytest.mark.parametrize("value", [0, -1, True, "fast", "3", "0ms", float("nan"), float("inf")])
def test_senseless_times_are_refused(value: object) -> None:
    with pytest.raises(BudgetError, match="allowed is the fraction kept, in"):
        Budget(latency=value)  # type: ignore[arg-type]


def test_a_target_without_a_latency_is_refused() -> None:
    with pytest.raises(BudgetError, match="threads=2 was given without a latency"):
        Budget(macs=0.5, threads=2)

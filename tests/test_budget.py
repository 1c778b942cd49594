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
    with pytest.raises(BudgetError, match="at least one of params, macs, bytes"):
        Budget()

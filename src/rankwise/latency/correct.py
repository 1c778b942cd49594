"""From predicted to measured time: choose under a predicted limit, measure, correct the limit, again."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from rankwise.errors import BudgetError

T = TypeVar("T")
AIM = 0.98
"""The share of what is asked for that is aimed at: room for the noise of the next measurement."""
LOWEST = 0.96
"""A result is not improved further between this share of what is asked for and all of it."""
SLACK = 1.02
"""How far above what is asked for a result may be measured when nothing below was found."""


@dataclass(frozen=True)
class Round:
    """One trial: the limit on predicted time, the predicted time, the measured share of the original's."""

    limit: int
    predicted: int
    measured: float


@dataclass(frozen=True, eq=False)
class Settled(Generic[T]):
    """What was chosen at the end, its measured share of the original's time, and all trials."""

    choice: T
    last: Round
    rounds: tuple[Round, ...]


def settle(
    choose: Callable[[int], T],
    predict: Callable[[T], int],
    measure: Callable[[T], float],
    asked: float,
    least: int,
    whole: int,
    whole_measured: float = 1.0,
    most: int = 9,
) -> Settled[T]:
    """The choice whose measured time is what is asked for, or a little less.

    Args:
        choose: what is best within a limit on the predicted time.
        predict: predicted time of a choice.
        measure: measured time of a choice over that of the original.
        asked: the wanted share of the original's time.
        least: the smallest predicted time of any choice.
        whole: predicted time of the choice that changes nothing.
        whole_measured: its measured time over the original's (below 1 where BatchNorm was folded).
        most: trials.

    The limit at which the line through the last two trials, or through those on both sides of the aim,
    reaches the aim is tried next; at first the one through the unchanged network and nothing at all.

    Raises:
        BudgetError: even the fastest choice takes longer; says what it takes. Or ``choose`` finds nothing
            within the first limit.
    """
    if whole_measured <= asked:
        unchanged = choose(whole)
        return Settled(unchanged, Round(whole, predict(unchanged), whole_measured), ())
    aim = asked * AIM
    above, below = Round(whole, whole, whole_measured), None
    rounds: list[Round] = []
    found: list[tuple[T, Round]] = []
    limit = _inside(whole * aim / whole_measured, least, whole)
    while len(rounds) < most and all(limit != earlier.limit for earlier in rounds):
        try:
            choice = choose(limit)
        except BudgetError:  # of another limit too: what was found before may do
            if not found:
                raise
            break
        trial = Round(limit, predict(choice), measure(choice))
        if LOWEST * asked <= trial.measured <= asked:  # perhaps by luck: a second look counts as much
            trial = replace(trial, measured=(trial.measured + measure(choice)) / 2)
        rounds.append(trial)
        found.append((choice, trial))
        if LOWEST * asked <= trial.measured <= asked:
            break
        if trial.measured > aim:
            previous, above = above, trial
        else:
            previous, below = above, trial
        limit = _between(below, above, aim) if below else _further(previous, above, aim, least)
    return _best(found, asked, tuple(rounds))


def _inside(limit: float, least: int, most: int) -> int:
    return max(least, min(round(limit), most))


def _further(first: Round, second: Round, aim: float, least: int) -> int:
    """Where the line through two trials above the aim reaches it; where it does not fall, in proportion."""
    fall = (first.measured - second.measured) / max(first.limit - second.limit, 1)
    wanted = second.limit - (second.measured - aim) / fall if fall > 0 else 0.0
    proportional = second.limit * aim / second.measured
    return _inside(max(wanted, 0.75 * proportional) if fall > 0 else proportional, least, second.limit)


def _between(below: Round, above: Round, aim: float) -> int:
    """Where the line through trials on both sides reaches the aim, inside the middle nine tenths."""
    rise = above.measured - below.measured
    share = (aim - below.measured) / rise if rise > 0 else 0.5
    return below.limit + round((above.limit - below.limit) * min(max(share, 0.05), 0.95))


def _best(found: list[tuple[T, Round]], asked: float, rounds: tuple[Round, ...]) -> Settled[T]:
    """The choice that is nearest below what is asked for, or else hardly above it."""
    close = [pair for pair in found if LOWEST * asked <= pair[1].measured <= asked]
    above = [pair for pair in found if asked < pair[1].measured <= min(1.0, SLACK * asked)]
    below = [pair for pair in found if pair[1].measured <= asked]
    if close or (below and not above):
        choice, trial = max(close or below, key=lambda pair: pair[1].measured)
    elif above:
        choice, trial = min(above, key=lambda pair: pair[1].measured)
    else:
        raise BudgetError(_too_slow(asked, min(trial.measured for _, trial in found)))
    return Settled(choice, trial, rounds)


def _too_slow(asked: float, reached: float) -> str:
    return (
        f"The latency budget of {asked:.3f} of the original's time cannot be met by these methods on this "
        f"target: the fastest network that was measured takes {reached:.3f} of it. "
        f"Allowed: latency={reached + 0.005:.2f} or more, another method (narrower channels are often "
        "faster where factorised layers are not), fold_batchnorm=True, or a larger batch_size (with a small "
        "one a fast device waits for calls, which no method makes shorter)."
    )

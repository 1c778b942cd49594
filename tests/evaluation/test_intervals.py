import numpy as np
import pytest
import torch
from scipy.stats import binom

from rankwise.evaluation import bootstrap_rates


def table(hits: int, n: int) -> torch.Tensor:
    return torch.stack([torch.ones(n, dtype=torch.long), (torch.arange(n) < hits).long()], 1)


def test_one_prediction_per_example_gives_binomial_quantiles() -> None:
    (interval,) = bootstrap_rates(table(300, 400), resamples=20000)
    low, high = binom.ppf([0.025, 0.975], 400, 0.75) / 400
    assert interval.low == pytest.approx(low, abs=0.006)
    assert interval.high == pytest.approx(high, abs=0.006)


def test_whole_examples_are_drawn() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(1, 20, 50)
    hits = generator.binomial(sizes, 0.4)
    (interval,) = bootstrap_rates(torch.tensor(np.stack([sizes, hits], 1)), resamples=20000)
    drawn = generator.integers(0, 50, (20000, 50))  # by hand: resample rows, then divide the sums
    rates = hits[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(rates, [0.025, 0.975])
    assert interval.low == pytest.approx(low, abs=0.004)
    assert interval.high == pytest.approx(high, abs=0.004)


def test_the_seed_decides_and_a_sure_rate_has_no_width() -> None:
    counts = table(30, 100)
    assert bootstrap_rates(counts, seed=1) == bootstrap_rates(counts, seed=1)
    assert bootstrap_rates(counts, seed=1) != bootstrap_rates(counts, seed=2)
    (sure,) = bootstrap_rates(table(10, 10))
    assert (sure.low, sure.high) == (1.0, 1.0)


def test_higher_confidence_is_wider() -> None:
    narrow, wide = (bootstrap_rates(table(60, 200), confidence=c)[0] for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.high < wide.high

"""Names say what differs and no more; every case is written out by hand."""

from pathlib import Path
from typing import Any

import pytest

from rankwise.report.labels import Setting, labels
from rankwise.report.trials import Trial


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ([{"method": "svd"}, {"method": "pca"}], ["svd", "pca"]),
        (
            [{"method": "cp", "method_options": {"factors": 4, "metric": "input"}},
             {"method": "cp", "method_options": {"factors": 3, "metric": "input"}}, {"method": "svd"}],
            ["cp (factors=4)", "cp (factors=3)", "svd"],
        ),
        ([{"method": "cp", "method_options": {"factors": 4}}, {"method": "cp"}],
         ["cp (factors=4)", "cp (defaults)"]),
        ([{"method": "svd", "method_options": {"energy": energy}} for energy in (None, 0.9)],
         ["svd (defaults)", "svd (energy=0.9)"]),
        ([{"method": "svd", "allocator": "knapsack", "measure": "macs", "multiple_of": 1,
           "schedule": {"name": "one-shot", "step": None}, "fold_batchnorm": False,
           "method_options": {"rank": 3, "side": "in"}},
          {"method": "svd", "method_options": {"rank": 4}}, {"method": "pca", "budget": {"macs": 0.5}}],
         ["svd (rank=3)", "svd (rank=4)", "pca"]),
        ([{"method": "svd", "allocator": "knapsack"}, {"method": "pca", "allocator": "uniform"}],
         ["svd, knapsack", "pca, uniform"]),
        ([{"method": "svd", "allocator": "knapsack"},
          {"method": "svd", "allocator": "knapsack", "allocator_options": {"gap": 0.1}}],
         ["svd, knapsack (defaults)", "svd, knapsack (gap=0.1)"]),
        ([{"method": "svd", "measure": "macs"}, {"method": "svd", "measure": "params"}],
         ["svd, by macs", "svd, by params"]),
        ([{"method": "svd", "recovery": ["bias", "refit"]}, {"method": "svd"}],
         ["svd, recovery bias, refit", "svd, recovery none"]),
        ([{"method": "svd", "schedule": {"name": "iterative", "step": 0.9}}, {"method": "svd"}],
         ["svd, schedule iterative (step=0.9)", "svd, schedule none"]),
        ([{"method": "svd", "method_options": ["odd"]}, {}], ["svd", "unnamed"]),
    ],
)  # fmt: skip
def test_names_tell_settings_apart(given: list[dict[str, Any]], named: list[str]) -> None:
    found = labels(Setting.of(Trial(Path(), metrics)) for metrics in given)
    assert list(found.values()) == named

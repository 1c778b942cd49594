"""alds: every bound against numpy on the assembled kernel, its options, and properties over random shapes."""

import sys
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rankwise.methods import Candidates, get_method
from rankwise.methods.alds import ALDS
from rankwise.network import Layer
from tests.methods.by_hand import case, layer_of, measured_cost, measured_error, statistics_of
from tests.methods.test_foldings import kernel_of
from tests.methods.test_svd import conv, unfolded


def some(table: Candidates, count: int = 12) -> list[dict[str, Any]]:
    return [{**table.choice(i), "index": i} for i in range(0, len(table), max(1, len(table) // count))]


def slice_values(layer: Layer, choice: dict[str, Any]) -> list[np.ndarray]:
    """Singular values of each folded slice, cut from the kernel's channels."""
    parts = np.split(layer.kernel().numpy(), choice["slices"], axis=1)
    return [np.linalg.svd(unfolded(part, choice["folding"]), compute_uv=False) for part in parts]


@pytest.mark.parametrize("bound", ["max", "theorem", "operator", "energy"])
def test_error_is_what_the_bound_says(bound: str) -> None:
    layer, _ = conv(bias=False)
    kernel = layer.kernel().numpy()
    method = get_method("alds", metric="identity", bound=bound)
    table = method.candidates(layer, None)
    assert set(table.choices["folding"]) == {"channel", "axis0", "axis1", "pointwise"}
    assert set(table.choices["slices"]) == {1, 2, 3, 6}
    assert not method.requires and table.unit == ("weight" if bound == "energy" else "operator")
    for choice in some(table):
        rank, k = choice["rank"], choice["slices"]
        norm = np.linalg.norm(unfolded(kernel, choice["folding"]), 2)
        left_out = max(values[rank] if rank < len(values) else 0.0 for values in slice_values(layer, choice))
        rest = kernel - kernel_of(method.build(layer, None, choice), 1)
        exact = np.linalg.norm(unfolded(rest, choice["folding"]), 2)
        wanted = {
            "max": left_out / norm,
            "theorem": np.sqrt(k) * left_out / norm,
            "operator": exact / norm,
            "energy": (rest**2).sum(),
        }[bound]
        assert table.error[choice["index"]] == pytest.approx(wanted, abs=1e-7)
        assert left_out <= exact + 1e-7 <= np.sqrt(k) * left_out + 2e-7  # Theorem 1, and why it has the root


def test_grouped_layers_are_sliced_within_their_groups() -> None:
    layer, x = case("conv2d_grouped")
    method = get_method("alds", metric="identity", bound="operator")
    table = method.candidates(layer, None)
    assert set(table.choices["slices"]) == {1, 3}
    for choice in some(table, 8):
        built = method.build(layer, None, choice)
        assert built[0].groups == 2 * choice["slices"]
        rest = layer.kernel().numpy() - kernel_of(built, 2)
        norms = [
            max(np.linalg.norm(unfolded(part, choice["folding"]), 2) for part in np.split(kernel, 2))
            for kernel in (rest, layer.kernel().numpy())
        ]
        assert table.error[choice["index"]] == pytest.approx(norms[0] / norms[1], abs=1e-7)
        assert measured_cost(built, x) == (table.params[choice["index"]], table.macs[choice["index"]])


def test_slices_fixed_folding_fixed_and_constant_ratio() -> None:
    layer, _ = conv(bias=False)

    def choices(**options: Any) -> dict[str, np.ndarray]:
        return get_method("alds", metric="identity", **options).candidates(layer, None).choices

    assert set(choices(groups=4)["slices"]) == {3}
    assert set(choices(groups=5)["slices"]) == {6}
    assert set(choices(folding="pointwise")["folding"]) == {"pointwise"}
    (rank,), (slices,) = (choices(ratio=0.5, folding="channel")[name] for name in ("rank", "slices"))
    errors = {}
    for k in (1, 2, 3, 6):
        kept = int(0.5 * layer.cost.params // (8 * k + 54))
        values = slice_values(layer, {"slices": k, "folding": "channel"})
        if kept:
            norm = np.linalg.norm(unfolded(layer.kernel().numpy(), "channel"), 2)
            errors[max(v[kept] if kept < len(v) else 0.0 for v in values) / norm] = (kept, k)
    assert (rank, slices) == errors[min(errors)]


def test_linear_layers_on_rows_are_sliced_and_others_are_not() -> None:
    linear, x = case("linear")
    assert set(get_method("alds", metric="identity").candidates(linear, None).choices["slices"]) == {1, 3}
    tokens, _ = case("linear_tokens")
    assert set(get_method("alds", metric="identity").candidates(tokens, None).choices["slices"]) == {1}
    built = get_method("alds", metric="identity").build(
        linear, None, {"rank": 2, "slices": 3, "folding": "channel"}
    )
    assert [type(m).__name__ for m in built] == ["Unflatten", "Conv1d", "Flatten", "Linear"]
    assert built(x).shape == (len(x), 6)


@pytest.mark.parametrize(
    "name", ["linear", "conv1d", "conv2d", "conv2d_dilated", "conv2d_grouped", "conv3d", "transposed"]
)
def test_data_beat_weights_for_the_same_choice(name: str) -> None:
    layer, x = case(name)
    statistics = statistics_of(layer, x)
    data, plain = get_method("alds"), get_method("alds", metric="identity")
    table = data.candidates(layer, statistics)
    assert data.requires == {"input"} and table.unit == "output"
    for choice in some(table, 10):
        error = measured_error(layer, data.build(layer, statistics, choice), x)
        assert error == pytest.approx(table.error[choice["index"]], rel=1e-6, abs=1e-7 * table.scale)
        assert error <= measured_error(layer, plain.build(layer, None, choice), x) * (1 + 1e-6) + 1e-7


def test_two_sided_error_is_half_the_gradient_weighed_output_error() -> None:
    layer, x = case("linear")
    gradient = torch.randn(40, 6, dtype=torch.float64) * torch.arange(1.0, 7.0)
    statistics = statistics_of(layer, x, gradient=gradient)
    method = get_method("alds", metric="two_sided")
    table = method.candidates(layer, statistics)
    metric = (gradient.T @ gradient / 40).numpy()
    metric = metric + np.trace(metric) / 6 * np.eye(6)
    for choice in some(table, 6):
        rest = (method.build(layer, statistics, choice)(x) - layer.module(x)).detach().numpy()
        wanted = 0.5 * np.einsum("ni,ij,nj->", rest, metric, rest) / 40
        assert table.error[choice["index"]] == pytest.approx(wanted, rel=1e-6, abs=1e-7 * table.scale)


def test_rows_kept_instead_of_the_moment_give_the_same() -> None:
    layer, x = case("linear", examples=5)
    square = statistics_of(layer, x)
    rows = replace(square, input_square=None, input_rows=x[None])
    ours, theirs = (get_method("alds").candidates(layer, s) for s in (rows, square))
    np.testing.assert_allclose(ours.error, theirs.error, atol=1e-8 * theirs.scale)


def test_what_would_not_fit_into_memory_or_time_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = layer_of(nn.Linear(8200, 3), torch.zeros(2, 8200))
    assert [k for _, k in get_method("alds").offered(wide)] == [1]
    assert len(get_method("alds", metric="identity").offered(wide)) > 1
    layer, _ = conv()
    monkeypatch.setattr(sys.modules[ALDS.__module__], "LARGEST_WORK", 1500.0)
    offered = get_method("alds", folding="channel").offered(layer)
    assert [k for _, k in offered] == [1, 2]  # 1 always, 2 x 8^3; not 3 x 8^3


def test_wrong_options_say_what_is_allowed() -> None:
    for options, words in [
        ({"bound": "spectral"}, "max, theorem, operator, energy"),
        ({"groups": 0}, "1 and above"),
        ({"metric": "identity", "energy": 0.9}, "energy= needs"),
    ]:
        with pytest.raises(ValueError, match=words):
            get_method("alds", **options)


@given(
    inputs=st.sampled_from([2, 4, 6]),
    outputs=st.integers(2, 7),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2]),
    metric=st.sampled_from(["identity", "input"]),
    seed=st.integers(0, 99),
)
def test_exact_at_full_rank_monotone_and_cost_as_predicted(
    inputs: int, outputs: int, kernel: tuple[int, int], groups: int, metric: str, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Conv2d(inputs, outputs * groups, kernel, padding=1, groups=groups).double()
    with torch.no_grad():
        module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
    x = torch.randn(3, inputs, 4, 4, generator=generator, dtype=torch.float64)
    layer = layer_of(module, x)
    method = get_method("alds", metric=metric, bound="energy")
    statistics = statistics_of(layer, x) if metric == "input" else None
    table = method.candidates(layer, statistics)
    curves = np.array(
        [f"{f}/{k}" for f, k in zip(*(table.choices[n] for n in ("folding", "slices")), strict=True)]
    )
    for curve in set(curves):
        ranks, errors = table.choices["rank"][curves == curve], table.error[curves == curve]
        assert (np.diff(ranks) == 1).all()
        assert (np.diff(errors) <= 1e-9 * table.scale).all()
    for index in {0, len(table) // 2}:
        built = method.build(layer, statistics, table.choice(index))
        assert measured_cost(built, x) == (table.params[index], table.macs[index])
    full = method.build(layer, statistics, table.choice(len(table) - 1))
    torch.testing.assert_close(full(x), module(x), rtol=1e-8, atol=1e-8)

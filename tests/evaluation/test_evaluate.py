import json
from collections import UserDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from torch import nn

from rankwise.errors import DataError, RankwiseError
from rankwise.evaluation import compare, evaluate, measure, record_decisions

CLASSES, N = 7, 60


class Table(nn.Module):
    """A "model" that answers example ``i`` with row ``i`` of a table; inputs are the row numbers."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.calls = 0

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.logits[rows]


def tables(seed: int = 0, n: int = N, classes: int = CLASSES) -> tuple[Table, Table, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(n, classes, generator=generator)
    b = a + 0.7 * torch.randn(n, classes, generator=generator)
    labels = torch.where(
        torch.rand(n, generator=generator) < 0.6,
        a.argmax(1),
        torch.randint(classes, (n,), generator=generator),
    )
    return Table(a), Table(b), labels


def loader(labels: torch.Tensor | None, size: int = 16, n: int = N) -> list[object]:
    rows = torch.arange(n)
    if labels is None:
        return list(rows.split(size))
    return list(zip(rows.split(size), labels.split(size), strict=True))


@given(seed=st.integers(0, 1000))
def test_figures_against_numpy(seed: int) -> None:
    a, b, labels = tables(seed)
    result = evaluate(b, loader(labels), a, resamples=10)
    x, y, t = a.logits.detach().double().numpy(), b.logits.detach().double().numpy(), labels.numpy()
    p, q = log_softmax(x, 1), log_softmax(y, 1)
    da, db = x.argmax(1), y.argmax(1)
    order = np.argsort(-y, 1)[:, :5]
    assert result.examples == result.predictions == N
    assert result.top1 == pytest.approx((db == t).mean())
    assert result.top5 == pytest.approx((order == t[:, None]).any(1).mean())
    assert result.loss == pytest.approx(-q[np.arange(N), t].mean(), rel=1e-6)
    assert result.agreement == pytest.approx((da == db).mean())
    assert result.kl == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-4)
    assert result.flips is not None
    assert result.flips.right_to_wrong == ((da == t) & (db != t)).sum()
    assert result.flips.wrong_to_right == ((da != t) & (db == t)).sum()
    assert result.flips.wrong_to_wrong == ((da != t) & (db != t) & (da != db)).sum()
    for row in result.per_class:
        members = t == row.label
        assert row.examples == members.sum()
        if members.any():
            assert row.accuracy == pytest.approx((db == t)[members].mean())
            assert row.agreement == pytest.approx((da == db)[members].mean())
        else:
            assert row.accuracy is None
    assert result.perplexity is None


def test_a_model_agrees_with_itself() -> None:
    a, _, labels = tables()
    result = evaluate(a, loader(labels), a)
    assert (result.agreement, result.kl) == (1.0, 0.0)
    assert result.flips is not None
    assert result.flips.right_to_wrong == result.flips.wrong_to_right == result.flips.wrong_to_wrong == 0
    assert result.intervals["agreement"].low == result.intervals["agreement"].high == 1.0


def test_cached_decisions_give_the_same_figures_without_running_the_reference() -> None:
    a, b, labels = tables()
    decisions = record_decisions(a, loader(labels))
    runs = a.calls
    assert evaluate(b, loader(labels), decisions) == evaluate(b, loader(labels), a)
    assert evaluate(b, loader(labels, 7), decisions) == evaluate(b, loader(labels, 16), decisions)
    assert a.calls == runs + len(loader(labels))
    assert len(decisions) == N


def test_decisions_of_other_data_are_refused() -> None:
    a, b, labels = tables()
    decisions = record_decisions(a, loader(labels))
    other = (labels + 1) % CLASSES
    for batches in (loader(other), loader(labels)[:-1], loader(labels) * 2):
        with pytest.raises(DataError, match="recorded on other data"):
            evaluate(b, batches, decisions)


def test_one_forward_pass_per_model_and_batch() -> None:
    a, b, labels = tables()
    batches = loader(labels)
    measure(b, batches, a)
    assert (a.calls, b.calls) == (len(batches), len(batches))


def test_without_labels_agreement_remains() -> None:
    a, b, _ = tables()
    result = evaluate(b, loader(None), a)
    decided = a.logits.argmax(1)
    assert result.top1 is None
    assert result.loss is None
    assert result.flips is None
    assert result.agreement == pytest.approx(float((decided == b.logits.argmax(1)).double().mean()))
    assert [row.examples for row in result.per_class] == torch.bincount(decided, minlength=CLASSES).tolist()
    alone = evaluate(b, loader(None))
    assert alone.agreement is None
    assert alone.per_class == ()
    assert alone.intervals == {}


def test_top5_needs_more_than_five_classes() -> None:
    a, _, labels = tables(classes=5)
    assert evaluate(a, loader(labels)).top5 is None


def test_ignored_labels_do_not_count() -> None:
    a, b, labels = tables()
    some = labels.clone()
    some[::3] = -100
    result = evaluate(b, loader(some), a)
    kept = some != -100
    assert result.predictions == int(kept.sum())
    assert result.examples == N
    assert result.top1 == pytest.approx(float((b.logits.argmax(1) == labels)[kept].double().mean()))


def test_batches_may_be_mappings() -> None:
    a, _, labels = tables()
    batches = [UserDict(rows=rows, labels=targets) for rows, targets in loader(labels)]
    assert evaluate(a, batches) == evaluate(a, loader(labels))


class Bigram(nn.Module):
    """A language model that predicts from the current token alone."""

    def __init__(self, seed: int, wrap: bool = False) -> None:
        super().__init__()
        table = torch.randn(9, 9, generator=torch.Generator().manual_seed(seed))
        self.table, self.wrap = nn.Parameter(table), wrap

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> object:
        logits = self.table[input_ids]
        return SimpleNamespace(logits=logits) if self.wrap else logits


def test_language_modelling_against_numpy() -> None:
    a, b = Bigram(0), Bigram(1)
    tokens = torch.randint(9, (6, 11), generator=torch.Generator().manual_seed(2))
    result = evaluate(b, [(tokens[:4], tokens[:4]), (tokens[4:], tokens[4:])], a)
    t = tokens.numpy()
    logp = log_softmax(b.table.detach().double().numpy(), 1)
    losses = [-logp[row[i - 1], row[i]] for row in t for i in range(1, 11)]
    assert result.task == "language"
    assert (result.examples, result.predictions) == (6, 60)
    assert result.loss == pytest.approx(np.mean(losses))
    assert result.perplexity == pytest.approx(np.exp(np.mean(losses)))
    same = a.table.argmax(1) == b.table.argmax(1)
    assert result.agreement == pytest.approx(float(same[tokens[:, :-1]].double().mean()))
    assert result.per_class == ()
    assert evaluate(b, [tokens], a).loss == pytest.approx(result.loss)  # the tokens are their own labels


def test_padding_does_not_count_in_language_modelling() -> None:
    tokens = torch.randint(9, (2, 8), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    batch = UserDict(input_ids=tokens, attention_mask=mask)
    result = evaluate(Bigram(0, wrap=True), [batch])
    assert result.predictions == 7 + 4
    assert result.loss == pytest.approx(
        float(
            nn.functional.cross_entropy(
                Bigram(0).table.detach()[torch.cat([tokens[0, :-1], tokens[1, :4]])],
                torch.cat([tokens[0, 1:], tokens[1, 1:5]]),
            )
        )
    )


def test_compare_lists_what_changed() -> None:
    a, b, labels = tables()
    comparison = compare(a, b, loader(labels))
    da, db = a.logits.argmax(1), b.logits.argmax(1)
    assert [c.example for c in comparison.changed] == (da != db).nonzero().flatten().tolist()
    for change in comparison.changed:
        assert (change.a, change.b) == (int(da[change.example]), int(db[change.example]))
        assert change.label == int(labels[change.example])
        assert change.position == 0
        assert change.kl > 0
    assert comparison.a == evaluate(a, loader(labels))
    assert comparison.b == evaluate(b, loader(labels), a)
    assert json.loads(json.dumps(comparison.to_json()))["b"]["agreement"] == comparison.b.agreement


def test_compare_counts_positions_within_an_example() -> None:
    a, b = Bigram(0), Bigram(1)
    tokens = torch.randint(9, (3, 6), generator=torch.Generator().manual_seed(2))
    differs = (a.table.argmax(1) != b.table.argmax(1))[tokens[:, :-1]]
    changed = compare(a, b, [tokens]).changed
    assert [(c.example, c.position) for c in changed] == [tuple(i) for i in differs.nonzero().tolist()]


def test_costs_and_json() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 7))
    batches = [(torch.randn(4, 3, 4), torch.zeros(4, dtype=torch.long))]
    result = evaluate(model, batches)
    assert (result.params, result.macs, result.bytes) == (91, 84, 364)
    stored = json.loads(json.dumps(result.to_json()))
    assert stored["top1"] == result.top1
    assert len(stored["per_class"]) == 7
    assert stored["intervals"]["top1"]["low"] == result.intervals["top1"].low


def test_the_models_are_left_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 7), nn.BatchNorm1d(7), nn.Dropout(0.5)).train()
    model[1].eval()
    reference = nn.Linear(4, 7).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    evaluate(model, [torch.randn(5, 4, generator=torch.Generator().manual_seed(0))], reference)
    assert [m.training for m in model] == [True, False, True]
    assert reference.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)
    assert model[0].weight.grad is None


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, dtype=torch.long)]])
def test_an_empty_loader_is_refused(batches: list[torch.Tensor]) -> None:
    a, _, _ = tables()
    with pytest.raises(DataError, match="empty"):
        evaluate(a, batches)
    with pytest.raises(DataError, match="empty"):
        record_decisions(a, batches)


def test_what_does_not_fit_is_refused() -> None:
    a, _, labels = tables()
    other, _, _ = tables(classes=4)
    rows = torch.arange(4)
    broken = Table(torch.full((N, CLASSES), float("nan")))
    for model, batches, reference, error, message in (
        (a, loader(labels % 4), other, RankwiseError, r"decides on \(16, 4\)"),
        (broken, loader(labels), None, RankwiseError, "NaN or infinite"),
        (a, [(rows, torch.tensor([0, 1, 2, 7]))], None, DataError, "allowed are 0 to 6"),
        (a, [(rows, torch.zeros(3).long())], None, DataError, "one integer class per prediction"),
        (nn.Identity(), [torch.zeros(4)], None, RankwiseError, r"shape \(4,\)"),
        (Bigram(0), [(rows.view(2, 2), rows)], None, DataError, "one label per position"),
    ):
        with pytest.raises(error, match=message):
            evaluate(model, batches, reference)
    for options in ({"confidence": 1.0}, {"resamples": 0}):
        with pytest.raises(DataError, match="at least one resample"):
            evaluate(a, loader(labels), **options)


def test_models_that_read_their_inputs_differently_are_compared_on_their_own_data() -> None:
    a, b, labels = tables()
    shifted = Table(a.logits.detach().roll(1, 0))  # reads row i of ``a`` as number i + 1
    rows = (torch.arange(N) + 1) % N
    own = list(zip(rows.split(16), labels.split(16), strict=True))
    found = compare(shifted, b, loader(labels), loader_a=own, resamples=10)
    expected = compare(a, b, loader(labels), resamples=10)
    assert found.b == expected.b and found.a == expected.a and found.changed == expected.changed
    with pytest.raises(DataError, match="numbers of batches"):
        compare(shifted, b, loader(labels), loader_a=own[:-1])
    with pytest.raises(DataError, match="different examples"):
        compare(shifted, b, loader(labels), loader_a=loader(labels.flip(0)))

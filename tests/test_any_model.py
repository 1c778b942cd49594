"""Models as strangers bring them: within the budget, with reasons, unchanged themselves, saved and loaded."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import rankwise
from rankwise import Budget, Compression, compression
from rankwise.network.batches import forward, output_tensor

Tensor = torch.Tensor


def rows(*shape: int, kind: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=generator).to(kind) for _ in range(2)]


def words(count: int = 50) -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(count, (4, 7), generator=generator) for _ in range(2)]


class Words(nn.Module):
    """Input and output embeddings are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(50, 16), nn.Linear(16, 64), nn.Linear(64, 16)
        self.out = nn.Linear(16, 50, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.down(self.up(self.embed(x)).relu()))
        return result


class Normalised(nn.Module):
    """Weights that are computed from others, in all the ways that torch has."""

    def __init__(self) -> None:
        super().__init__()
        self.new = nn.utils.parametrizations.weight_norm(nn.Linear(16, 32))
        self.old = nn.utils.weight_norm(nn.Linear(32, 32))
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(32, 32))
        self.plain, self.last = nn.Linear(32, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.plain(self.spectral(self.old(self.new(x)))).relu())
        return result


class Shared(nn.Module):
    """A layer under two names and called twice, one read functionally, one never reached; containers."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.never, self.read = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.same = nn.Sequential(self.twice, nn.ReLU())
        self.named = nn.ModuleDict({"wide": nn.Linear(16, 48)})
        self.listed = nn.ModuleList([nn.Linear(48, 48), nn.Linear(48, 16)])

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.linear(self.twice(self.same(x)), self.read.weight)
        x = self.named["wide"](x)
        for layer in self.listed:
            x = layer(x.relu())
        return x


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.cell = nn.Linear(16, 32), nn.LSTM(32, 32, batch_first=True)
        self.wide, self.leave = nn.Linear(32, 64), nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.leave(self.wide(self.cell(self.enter(x))[0]).relu())
        return result


def images(kind: torch.dtype = torch.float32, layout: torch.memory_format = torch.contiguous_format) -> Any:
    def make() -> nn.Module:
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(4),
            nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10),
        )  # fmt: skip
        return model.to(kind).to(memory_format=layout)

    return make


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16,
    )  # fmt: skip
    model: nn.Module = transformers.BertForSequenceClassification(config)
    return model


def gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=16, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    model: nn.Module = transformers.GPT2LMHeadModel(config)
    return model


def encoded(labels: bool = False) -> list[Any]:
    transformers = pytest.importorskip("transformers")
    extra = {"labels": torch.tensor([0, 1, 1, 0])} if labels else {}
    return [
        transformers.BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids), **extra})
        for ids in words()
    ]


def vit() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    model: nn.Module = models.VisionTransformer(16, 4, 1, 2, 32, 64, num_classes=10)
    return model


@dataclass(frozen=True)
class Case:
    """A model, its batches, the budget, and the reasons that the plan gives, by layer."""

    make: Callable[[], nn.Module]
    data: Callable[[], list[Any]]
    budget: dict[str, float]
    reasons: dict[str, str] = field(default_factory=dict)


FUSED = "read by the fused attention"
CASES = {
    "tied": Case(Words, words, {"params": 0.8}, {"out": "weight tied with embed.weight"}),
    "weight norms": Case(
        Normalised, lambda: rows(16, 16), {"params": 0.8},
        {"new": "parametrised", "old": "computed from weight_g", "spectral": "parametrised"},
    ),
    "shared": Case(
        Shared, lambda: rows(16, 16), {"macs": 0.7},
        {"never": "never reached", "read": "read outside its own forward"},
    ),
    "lstm": Case(Recurrent, lambda: rows(4, 5, 16), {"macs": 0.8}),
    "several budgets": Case(images(), lambda: rows(4, 3, 16, 16), {"params": 0.5, "macs": 0.6, "bytes": 0.5}),
    "bfloat16": Case(images(torch.bfloat16), lambda: rows(4, 3, 16, 16, kind=torch.bfloat16), {"macs": 0.5}),
    "float16": Case(images(torch.float16), lambda: rows(4, 3, 16, 16, kind=torch.float16), {"macs": 0.5}),
    "float64": Case(images(torch.float64), lambda: rows(4, 3, 16, 16, kind=torch.float64), {"macs": 0.5}),
    "channels last": Case(
        images(layout=torch.channels_last),
        lambda: [x.to(memory_format=torch.channels_last) for x in rows(4, 3, 16, 16)], {"macs": 0.5},
    ),
    "encoder": Case(
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 64, batch_first=True), 1),
        lambda: rows(4, 6, 16), {"params": 0.8}, {"layers.0.self_attn.out_proj": FUSED},
    ),
    "encoder and decoder": Case(
        lambda: nn.Transformer(16, 2, 1, 1, 64, batch_first=True),
        lambda: [(x, x[:, 1:]) for x in rows(4, 6, 16)], {"params": 0.8},
        {"decoder.layers.0.multihead_attn.out_proj": FUSED},
    ),
    "vision transformer": Case(
        vit, lambda: rows(4, 3, 16, 16), {"macs": 0.8},
        {"encoder.layers.encoder_layer_0.self_attention.out_proj": FUSED},
    ),
    "bert": Case(bert, encoded, {"macs": 0.6}),
    "bert with labels": Case(bert, lambda: encoded(labels=True), {"params": 0.85}),
    "gpt2": Case(gpt2, encoded, {"macs": 0.7}, {"lm_head": "weight tied with transformer.wte.weight"}),
}  # fmt: skip


def outputs(model: nn.Module, batch: Any) -> Tensor:
    with torch.no_grad():
        return output_tensor(forward(model.eval(), batch))


def budget_is_met_and_used(done: Compression, budget: dict[str, float]) -> None:
    original, final = done.original.as_dict(), done.final.as_dict()
    spare = {name: fraction - final[name] / original[name] for name, fraction in budget.items()}
    assert min(spare.values()) >= 0
    assert min(spare.values()) < 0.03  # these networks are small, and so are their ranks


@pytest.mark.filterwarnings(
    "ignore:.*weight_norm.*is deprecated", "ignore:enable_nested_tensor is True", "ignore:.*norm_first"
)
@pytest.mark.parametrize("name", CASES)
def test_any_model_compresses(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    model, data = case.make().train(), case.data()
    before = copy.deepcopy(model.state_dict())
    done = compression(model, data, Budget(**case.budget), method="whitened")
    budget_is_met_and_used(done, case.budget)
    kept = {edit.target: edit.reason or "" for edit in done.plan.edits if edit.op == "keep"}
    assert all(text in kept[layer] for layer, text in case.reasons.items())
    assert all(kept.values()) and done.plan.changes()
    assert model.training and all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert {p.dtype for p in done.model.parameters()} == {p.dtype for p in model.parameters()}
    expected = outputs(done.model, data[0])
    assert torch.isfinite(expected).all()
    rankwise.save(done.model, tmp_path / "model.safetensors")
    loaded = rankwise.load(tmp_path / "model.safetensors", case.make())
    assert torch.equal(outputs(loaded, data[0]), expected)

from pathlib import Path

import pytest
import torch
from torch import nn

from rankwise.data import PREPROCESSINGS, Split, load_data
from rankwise.errors import RankwiseError, UnknownNameError
from rankwise.models import MODELS, LoadedModel, load_model

PARAMETERS = {
    "digits_cnn": 59_146,
    "lenet300_100": 266_610,
    "mnist_cnn": 1_199_882,
    "mnist_lenet": 431_080,
    "cifar10_resnet20": 269_722,
    "cifar10_resnet32": 464_154,
    "cifar10_resnet44": 658_586,
    "cifar10_resnet56": 853_018,
    "cifar10_resnet110": 1_727_962,
    "cifar10_resnet8": 78_186,
    "cifar10_vgg16_bn": 14_724_042,
    "cifar10_densenet22": 71_686,
    "cifar10_wrn16_8": 10_961_370,
    "cifar10_vit": 811_146,
    "mobilenet_v1_075": 2_585_560,
    "tinystories_llama": 260_032,
}


@pytest.mark.parametrize("name", MODELS)
def test_every_network_has_its_published_size_and_reads_its_example(name: str) -> None:
    loaded = load_model(name)
    assert sum(p.numel() for p in loaded.module.parameters()) == PARAMETERS[name]
    assert not loaded.module.training
    with torch.no_grad():
        logits = loaded.module(loaded.example)
    classes = {"mobilenet_v1_075": 1000, "tinystories_llama": 512}.get(name, 10)
    assert logits.shape == ((1, 512, classes) if loaded.task == "language" else (1, classes))
    assert loaded.preprocessing in PREPROCESSINGS


def test_initial_weights_depend_on_the_seed_only() -> None:
    before = torch.get_rng_state()
    first, again, other = (load_model("lenet300_100", seed=s).module.fc1.weight for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_language_model_predicts_from_earlier_tokens_only() -> None:
    loaded = load_model("tinystories_llama")
    tokens = torch.randint(512, (2, 20), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 512
    with torch.no_grad():
        first, second = loaded.module(tokens), loaded.module(changed)
    assert torch.allclose(first[:, :12], second[:, :12], atol=1e-5)
    assert not torch.allclose(first[:, 12:], second[:, 12:], atol=1e-3)


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean .*'cifar10_resnet20'"):
        load_model("cifar10_resnet2")
    pytest.importorskip("torchvision")
    with pytest.raises(UnknownNameError, match="resnet18"):
        load_model("torchvision:resnet81")
    with pytest.raises(UnknownNameError, match="IMAGENET1K_V1"):
        load_model("torchvision:resnet18@IMAGENET")


def test_torchvision_by_name() -> None:
    pytest.importorskip("torchvision")
    loaded = load_model("torchvision:squeezenet1_1")
    assert loaded.example is not None
    assert loaded.module(loaded.example).shape == (1, 1000)


def test_a_callable_gives_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_models_module.py").write_text(
        "from torch import nn\n"
        "from rankwise.models import LoadedModel\n"
        "def plain(): return nn.Linear(2, 3)\n"
        "def described(): return LoadedModel('mine', nn.Linear(2, 3), preprocessing='unit')\n"
        "def wrong(): return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    loaded = load_model("my_models_module:plain")
    assert isinstance(loaded, LoadedModel)
    assert isinstance(loaded.module, nn.Linear)
    assert loaded.example is None
    assert load_model("my_models_module:described").preprocessing == "unit"
    for spec, message in (
        ("my_models_module:wrong", "returned int"),
        ("my_models_module:no", "neither a known name"),
        ("no_such_module_here:x", "neither a known name"),
    ):
        with pytest.raises(RankwiseError, match=message):
            load_model(spec)


def accuracy_and_loss(loaded: LoadedModel, split: Split) -> tuple[float, float]:
    right = loss = count = 0.0
    with torch.no_grad():
        for inputs, labels in split.batches(50):
            logits = loaded.module(inputs)
            if loaded.task == "language":
                logits, labels = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            right += int((logits.argmax(1) == labels).sum())
            loss += float(nn.functional.cross_entropy(logits.double(), labels, reduction="sum"))
            count += len(labels)
    return right / count, loss / count


@pytest.mark.parametrize(
    ("name", "file", "examples", "accuracy", "loss"),
    [
        ("mnist_lenet", "mnist_lenet", 10_000, 0.9896, 0.0319),
        ("cifar10_resnet20", "cifar10_resnet20", 10_000, 0.9173, 0.3727),
        ("cifar10_resnet8", "cifar10_resnet8", 10_000, 0.8719, 0.4064),
        # On a part of the test data, within three standard errors of the whole set's figures:
        ("cifar10_resnet32", "cifar10_resnet32", 1000, 0.9263, None),
        ("cifar10_vit", "cifar10_vit", 1000, 0.7372, None),
        ("mobilenet_v1_075", "imagenet_mobilenet_v1_0.75_224", 60, 0.831, None),
        ("tinystories_llama", "tinystories_llama_260k", 128, None, 1.3861),
    ],
)
def test_real_weights_reproduce_their_stated_figures(
    data_dir: Path, name: str, file: str, examples: int, accuracy: float | None, loss: float | None
) -> None:
    loaded = load_model(name, data_dir / "weights" / f"{file}.pt")
    data = load_data(loaded.dataset, transform=loaded.preprocessing, root=data_dir)
    split = data.testing()
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    measured, measured_loss = accuracy_and_loss(loaded, split.subset(order[:examples]))
    if loss is not None:
        assert measured_loss == pytest.approx(loss, abs=1e-4)
    if accuracy is not None:
        error = 0.0 if examples == len(split) else 3 * (accuracy * (1 - accuracy) / examples) ** 0.5
        assert measured == pytest.approx(accuracy, abs=max(error, 1e-9))

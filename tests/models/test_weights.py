from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from rankwise.errors import WeightsError
from rankwise.models import load_model, load_weights_, read_weights


def small() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_both_formats_load(tmp_path: Path, suffix: str) -> None:
    source, target = small(), small()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(source.state_dict(), path)
    else:
        save_file(source.state_dict(), path)
    load_weights_(target, path)
    for name, tensor in source.state_dict().items():
        assert torch.equal(tensor, target.state_dict()[name])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_wrapped_checkpoints_load(tmp_path: Path, prefix: str) -> None:
    source, target = small(), small()
    state = {prefix + name: tensor for name, tensor in source.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w.pt")
    load_weights_(target, tmp_path / "w.pt")
    assert torch.equal(source[0].weight, target[0].weight)


def test_a_misfit_lists_the_keys_and_changes_nothing(tmp_path: Path) -> None:
    state = small().state_dict()
    del state["2.bias"], state["1.num_batches_tracked"]
    state["extra"] = torch.ones(1)
    state["0.weight"] = torch.ones(3, 5)
    torch.save(state, tmp_path / "w.pt")
    target = small()
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        load_weights_(target, tmp_path / "w.pt")
    message = str(caught.value)
    assert "missing: 2.bias;" in message
    assert "unexpected: extra;" in message
    assert "0.weight (3, 5) for (3, 4)" in message
    assert all(torch.equal(before[name], tensor) for name, tensor in target.state_dict().items())


def test_weights_of_another_network_are_refused_with_few_keys_shown(tmp_path: Path) -> None:
    torch.save(load_model("cifar10_resnet32").module.state_dict(), tmp_path / "w.pt")
    with pytest.raises(WeightsError, match=r"do not fit CifarResNet\. unexpected: layer1\.3\..*and \d+ more"):
        load_model("cifar10_resnet20", tmp_path / "w.pt")


def test_batchnorm_counts_may_be_absent(tmp_path: Path) -> None:
    state = small().state_dict()
    del state["1.num_batches_tracked"]
    torch.save(state, tmp_path / "w.pt")
    target = small()
    load_weights_(target, tmp_path / "w.pt")
    assert torch.equal(target[2].bias, state["2.bias"])


def test_a_tied_weight_may_be_given_once(tmp_path: Path) -> None:
    source, target = Tied(), Tied()
    save_file({"embedding.weight": source.embedding.weight.detach()}, tmp_path / "w.safetensors")
    load_weights_(target, tmp_path / "w.safetensors")
    assert torch.equal(target.head.weight, source.embedding.weight)
    assert target.head.weight is target.embedding.weight


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is not there"):
        read_weights(tmp_path / "absent.pt")
    torch.save(small().state_dict(), tmp_path / "whole.pt")
    save_file(small().state_dict(), tmp_path / "whole.safetensors")
    for suffix in (".pt", ".safetensors"):
        cut = tmp_path / f"cut{suffix}"
        cut.write_bytes((tmp_path / f"whole{suffix}").read_bytes()[:-40])
        with pytest.raises(WeightsError, match="not a readable weights file"):
            read_weights(cut)
    (tmp_path / "text.pt").write_text("epochs: 3\n")  # the unpickler's answer is KeyError: 101
    with pytest.raises(WeightsError, match="not a readable weights file"):
        read_weights(tmp_path / "text.pt")
    torch.save(small(), tmp_path / "module.pt")
    with pytest.raises(WeightsError, match="not a readable weights file"):
        read_weights(tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="holds list"):
        read_weights(tmp_path / "list.pt")
    torch.save({"a": 1, "b": torch.ones(1)}, tmp_path / "mixed.pt")
    with pytest.raises(WeightsError, match="no tensors: a"):
        read_weights(tmp_path / "mixed.pt")

"""One file holds the model: round trips, and the errors of files that do not fit."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from rankwise import Budget, Plan, compress, load, plan_of, read_plan, save
from rankwise.errors import FileFormatError, PlanError, UnknownNameError, WeightsError
from rankwise.plan import reshape_
from tests.test_compress import batches, small_cnn


@pytest.fixture(scope="module")
def compressed() -> nn.Module:
    return compress(small_cnn(), batches(), Budget(macs=0.5), method="pca")


@pytest.fixture
def file(compressed: nn.Module, tmp_path: Path) -> Path:
    save(compressed, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def test_the_loaded_model_gives_identical_outputs(compressed: nn.Module, file: Path) -> None:
    skeleton = small_cnn()
    before = skeleton.state_dict()
    loaded = load(file, skeleton)
    with torch.no_grad():
        assert torch.equal(loaded(batches()[0]), compressed(batches()[0]))
    assert plan_of(loaded) == plan_of(compressed) == read_plan(file)
    assert list(skeleton.state_dict()) == list(before)
    assert all(p.requires_grad for p in loaded.parameters())


def test_a_meta_skeleton_is_filled(compressed: nn.Module, file: Path) -> None:
    with torch.device("meta"):
        skeleton = small_cnn()
    loaded = load(file, skeleton)
    with torch.no_grad():
        assert torch.equal(loaded(batches()[0]), compressed(batches()[0]))


def test_the_file_is_smaller_than_the_original_saved_the_same_way(file: Path, tmp_path: Path) -> None:
    save(small_cnn(), tmp_path / "original.safetensors")
    assert file.stat().st_size < (tmp_path / "original.safetensors").stat().st_size


def test_tied_weights_are_stored_once_and_tied_again(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(20, 8), nn.Linear(8, 8)
            self.out = nn.Linear(8, 20, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.out(self.body(self.embed(x)))

    model = Tied()
    save(model, tmp_path / "tied.safetensors")
    with safe_open(tmp_path / "tied.safetensors", "pt") as stored:
        assert sorted(stored.keys()) == ["body.bias", "body.weight", "embed.weight"]
    loaded = load(tmp_path / "tied.safetensors", Tied())
    assert loaded.out.weight is loaded.embed.weight
    assert torch.equal(loaded.embed.weight, model.embed.weight)


class Versioned(nn.Linear):
    """Has an extra state, and no forward of its own."""

    def __init__(self, state: object = None) -> None:
        super().__init__(8, 8)
        self.state = state

    def get_extra_state(self) -> object:
        return self.state

    def set_extra_state(self, state: object) -> None:
        self.state = state


def test_extra_states_are_stored_where_json_can(tmp_path: Path) -> None:
    def net(state: object) -> nn.Sequential:
        return nn.Sequential(nn.Linear(8, 8), Versioned(state), nn.Linear(8, 4))

    data = [torch.randn(16, 8) for _ in range(4)]
    options = {"method": "svd", "exclude": "1", "recovery": ["closed-form"]}
    model = compress(net({"version": [1, "a"]}), data, Budget(params=0.9), **options)  # type: ignore[arg-type]
    save(model, tmp_path / "model.safetensors")
    loaded = load(tmp_path / "model.safetensors", net({}))
    assert torch.equal(loaded(data[0]), model(data[0])) and loaded[1].state == {"version": [1, "a"]}
    for unstorable in ((1, 2), {1: 2}, object()):
        with pytest.raises(FileFormatError, match=r"module '1', a .* allowed are tensors"):
            save(net(unstorable), tmp_path / "other.safetensors")


def test_a_truncated_file_is_named(file: Path) -> None:
    content = file.read_bytes()
    for length in (0, 5, 200, len(content) - 10):
        file.write_bytes(content[:length])
        with pytest.raises(FileFormatError, match="truncated"):
            load(file, small_cnn())


def test_a_missing_and_a_foreign_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no file"):
        load(tmp_path / "nothing.safetensors", small_cnn())
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(FileFormatError, match="no rankwise plan"):
        load(tmp_path / "foreign.safetensors", small_cnn())


def test_a_skeleton_that_does_not_fit_is_refused_and_kept(file: Path) -> None:
    other = nn.Sequential(nn.Linear(3, 3))
    with pytest.raises(PlanError, match="does not fit the skeleton"):
        load(file, other)
    wider = small_cnn()
    wider[0] = nn.Conv2d(3, 20, 3)
    with pytest.raises(WeightsError, match="shape"):
        load(file, wider)
    assert [type(m).__name__ for m in other.modules()] == ["Sequential", "Linear"]


def changed_plan(model: nn.Module, **changes: object) -> str:
    content = json.loads(plan_of(model).to_json())
    content.update(changes)
    return json.dumps(content)


def test_plans_from_the_future_and_of_unknown_methods_are_refused(compressed: nn.Module) -> None:
    with pytest.raises(PlanError, match="version 99"):
        Plan.from_json(changed_plan(compressed, version=99))
    edits = json.loads(plan_of(compressed).to_json())["edits"]
    edits[0] = {"op": "replace", "target": "0", "method": "whitned"}
    with pytest.raises(UnknownNameError, match="Did you mean 'whitened'"):
        Plan.from_json(changed_plan(compressed, edits=edits))
    edits[0] = {"op": "explode", "target": "0"}
    with pytest.raises(UnknownNameError, match="plan operation"):
        Plan.from_json(changed_plan(compressed, edits=edits))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "rankwise.plan", "version": 1}'])
def test_malformed_plans_are_refused(text: str) -> None:
    with pytest.raises(PlanError):
        Plan.from_json(text)


def test_plans_of_unlisted_modules_are_refused(compressed: nn.Module, tmp_path: Path) -> None:
    content = json.loads(plan_of(compressed).to_json())
    next(e for e in content["edits"] if "module" in e)["module"] = {"type": "Bilinear"}
    metadata = {"rankwise.plan": json.dumps(content)}
    save_file({"a": torch.zeros(1)}, tmp_path / "odd.safetensors", metadata)
    with pytest.raises(PlanError, match="'Bilinear'; allowed"):
        load(tmp_path / "odd.safetensors", small_cnn())


@pytest.mark.parametrize("aliases", ["{", "[]", "3", '{"a": "b"}', '{"a": [3]}'])
def test_a_malformed_list_of_shared_tensors_is_named(aliases: str, file: Path) -> None:
    with safe_open(file, "pt") as stored:
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
        metadata = stored.metadata() | {"rankwise.aliases": aliases}
    save_file(tensors, file, metadata)
    with pytest.raises(FileFormatError, match="shared tensors"):
        load(file, small_cnn())


@pytest.mark.parametrize("entry", ["target", "config", "choice", "module", "before"])
@pytest.mark.parametrize("value", [3, ["a", 1], "text", True])
def test_entries_of_a_wrong_type_are_refused(entry: str, value: object, compressed: nn.Module) -> None:
    content = json.loads(plan_of(compressed).to_json())
    edit = next(e for e in content["edits"] if "module" in e)
    edit[entry] = value
    with pytest.raises(PlanError):
        load_plan(content)


def load_plan(content: object) -> None:
    reshape_(small_cnn(), Plan.from_json(json.dumps(content)))


def test_a_failed_write_leaves_the_old_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = file.read_bytes()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("rankwise.io.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(small_cnn(), file)
    assert file.read_bytes() == before
    assert [p.name for p in file.parent.iterdir()] == [file.name]

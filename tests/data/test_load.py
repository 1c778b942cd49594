import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from rankwise.data import DATA, PREPROCESSINGS, DataSet, InMemory, Split, data_root, load_data
from rankwise.data.arrays import read_cifar_batch, read_idx
from rankwise.errors import DataError, UnknownNameError


def write_idx(path: Path, values: np.ndarray) -> None:
    header = b"\x00\x00\x08" + bytes([values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wb") as file:
        file.write(header + values.tobytes())


def write_image(path: Path, size: tuple[int, int], value: int) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new("RGB", size, (value, value, value)).save(path)


def test_digits_splits_are_fixed_and_disjoint() -> None:
    data, again = load_data("digits"), load_data("digits")
    assert (len(data.train), len(data.test)) == (1437, 360)
    images, labels = next(iter(data.test.batches(360)))
    assert torch.equal(images, next(iter(again.test.batches(360)))[0])
    assert images.shape == (360, 1, 8, 8)
    assert float(images.min()) == -1.0
    assert float(images.max()) == 1.0
    assert torch.bincount(labels).min() > 20
    assert not set(data.train.indices.tolist()) & set(data.test.indices.tolist())


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_format_plain_and_compressed(tmp_path: Path, suffix: str) -> None:
    generator = np.random.default_rng(0)
    images = {
        name: generator.integers(0, 256, (n, 28, 28), np.uint8) for name, n in (("train", 6), ("t10k", 4))
    }
    for name, values in images.items():
        write_idx(tmp_path / f"FashionMNIST/raw/{name}-images-idx3-ubyte{suffix}", values)
        labels = np.arange(len(values), dtype=np.uint8)
        write_idx(tmp_path / f"FashionMNIST/raw/{name}-labels-idx1-ubyte{suffix}", labels)
    data = load_data("fashionmnist", root=tmp_path, transform="raw")
    for name, split in (("train", data.train), ("t10k", data.test)):
        x, y = next(iter(split.batches(10)))
        assert np.array_equal(x[:, 0].numpy(), images[name])
        assert y.tolist() == list(range(len(images[name])))


def test_broken_idx_files(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    write_idx(whole, np.zeros((4, 3), np.uint8))
    assert read_idx(whole).shape == (4, 3)
    for name, data, message in (
        ("short", whole.read_bytes()[:-2], "truncated"),
        ("header", whole.read_bytes()[:6], "truncated"),
        ("other", b"hello", "not an idx file"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=message):
            read_idx(tmp_path / name)
    with pytest.raises(DataError, match="Cannot read"):
        read_idx(tmp_path / "absent")


def write_cifar(folder: Path, name: str, count: int) -> np.ndarray:
    folder.mkdir(exist_ok=True)
    data = np.random.default_rng(len(name)).integers(0, 256, (count, 3072), np.uint8)
    with (folder / name).open("wb") as file:
        pickle.dump({"data": data, "labels": [i % 10 for i in range(count)]}, file, protocol=2)
    return data


def test_cifar_format(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    parts = [write_cifar(folder, f"data_batch_{i}", 12) for i in range(1, 6)]
    test = write_cifar(folder, "test_batch", 3)
    data = load_data("cifar10", root=tmp_path, transform="raw")
    assert len(data.train) == 60
    train = torch.cat([x for x, _ in data.train.batches(7)])
    assert np.array_equal(train.numpy(), np.concatenate(parts).reshape(-1, 3, 32, 32))
    images, labels = next(iter(data.test.batches(3)))
    assert np.array_equal(images.numpy(), test.reshape(-1, 3, 32, 32))
    assert labels.tolist() == [0, 1, 2]


def test_cifar_files_run_no_code_and_may_not_be_truncated(tmp_path: Path) -> None:
    evil = tmp_path / "evil"
    evil.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(DataError, match=r"os\.system is not allowed|posix"):
        read_cifar_batch(evil)
    write_cifar(tmp_path, "batch", 4)
    cut = tmp_path / "cut"
    cut.write_bytes((tmp_path / "batch").read_bytes()[:-500])
    with pytest.raises(DataError, match="not a readable CIFAR-10 batch"):
        read_cifar_batch(cut)


@pytest.mark.parametrize("name", ["mnist", "fashionmnist", "cifar10", "imagenet-sample", "tinystories"])
def test_an_absent_folder_says_what_was_looked_for_and_how_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(name, root=tmp_path)
    message = str(caught.value)
    assert str(tmp_path / DATA[name].place) in message
    assert "RANKWISE_DATA" in message
    assert ("download=True" in message) == (name in ("mnist", "fashionmnist", "cifar10"))


def test_the_root_is_the_argument_then_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANKWISE_DATA", "/somewhere")
    assert data_root() == Path("/somewhere")
    assert data_root(tmp_path) == tmp_path
    monkeypatch.delenv("RANKWISE_DATA")
    assert data_root() == Path.home() / ".cache/rankwise-data"


def test_unknown_names_give_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'cifar10'"):
        load_data("cifar100")
    with pytest.raises(UnknownNameError, match="preprocessing 'imagnet'"):
        load_data("digits", transform="imagnet")
    with pytest.raises(DataError, match="neither a known name"):
        load_data("digit:3")


def test_imagefolder_splits_and_sizes(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        for label, name in enumerate(("ant", "bee")):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i}.png", (40 + 10 * i, 30), 50 * label)
    data = load_data(f"imagefolder:{tmp_path}", transform="raw")
    assert data.classes == ("ant", "bee")
    assert (len(data.train), len(data.validation()), len(data.testing())) == (6, 4, 2)
    images, labels = next(iter(data.train.batches(6)))
    assert images.shape == (6, 3, 224, 224)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert torch.equal(images.amax((1, 2, 3)).round(), 50.0 * labels)


def test_imagefolder_relative_to_the_root_with_val_as_test(tmp_path: Path) -> None:
    write_image(tmp_path / "set/train/a/0.png", (8, 8), 1)
    write_image(tmp_path / "set/val/a/0.png", (8, 8), 1)
    data = load_data("imagefolder:set", root=tmp_path)
    assert data.test is not None
    assert data.test.name == "val"
    assert data.held_out is None


def test_imagefolder_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="found none"):
        load_data(f"imagefolder:{tmp_path}")
    with pytest.raises(DataError, match="looked for"):
        load_data("imagefolder:absent", root=tmp_path)
    with pytest.raises(DataError, match="imagefolder:PATH"):
        load_data("imagefolder")
    (tmp_path / "train/a").mkdir(parents=True)
    with pytest.raises(DataError, match="No images"):
        load_data(f"imagefolder:{tmp_path}")
    write_image(tmp_path / "train/a/0.png", (8, 8), 1)
    write_image(tmp_path / "test/b/0.png", (8, 8), 1)
    with pytest.raises(DataError, match="first split lacks: b"):
        load_data(f"imagefolder:{tmp_path}")
    (tmp_path / "test/b").rename(tmp_path / "test/a")
    (tmp_path / "test/a/0.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="not a readable image"):
        list(load_data(f"imagefolder:{tmp_path}").testing())


def test_imagenet_sample_is_test_only_unless_images_are_set_aside(tmp_path: Path) -> None:
    for i in range(4):
        write_image(tmp_path / f"imagenet-sample-1000/n{i}_thing_{i}.png", (224, 224), i)
    data = load_data("imagenet-sample", root=tmp_path, transform="raw")
    assert data.classes == ("thing_0", "thing_1", "thing_2", "thing_3")
    images, labels = next(iter(data.testing().batches(4)))
    assert torch.equal(images[:, 0, 0, 0].long(), labels)
    with pytest.raises(DataError, match="imagenet-sample:500"):
        data.calibration()
    part = load_data("imagenet-sample:3", root=tmp_path, transform="raw")
    assert len(part.calibration()) == 3
    assert len(part.testing()) == 1
    for bad in ("4", "x"):
        with pytest.raises(DataError, match="allowed"):
            load_data(f"imagenet-sample:{bad}", root=tmp_path)


def test_random_examples_depend_on_their_index_only() -> None:
    data = load_data("random:3,8,6")
    whole = next(iter(data.test.batches(8)))
    parts = torch.cat(list(data.test.take(8).batches(3)))
    assert whole.shape == (8, 3, 8, 6)
    assert torch.equal(whole, parts)
    assert not torch.equal(whole[0], next(iter(data.train.batches(1)))[0])
    assert abs(float(whole.mean())) < 0.1
    for bad in ("random", "random:3,x", "random:0"):
        with pytest.raises(DataError, match="random:3,224,224"):
            load_data(bad)


def test_token_windows(tmp_path: Path) -> None:
    path = tmp_path / DATA["tinystories"].place
    path.parent.mkdir(parents=True)
    np.save(path, np.arange(12, dtype=np.uint16).reshape(4, 3))
    data = load_data("tinystories", root=tmp_path)
    tokens, labels = next(iter(data.testing().batches(4)))
    assert data.task == "language"
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, labels)
    with pytest.raises(DataError, match="tinystories:2"):
        data.calibration()
    part = load_data("tinystories:3", root=tmp_path)
    assert (len(part.train), len(part.test)) == (3, 1)
    with pytest.raises(DataError, match="0 to 3 windows"):
        load_data("tinystories:4", root=tmp_path)
    np.save(path, np.zeros(3))
    with pytest.raises(DataError, match=r"integers \(windows, length\)"):
        load_data("tinystories", root=tmp_path)
    path.write_bytes(b"no array")
    with pytest.raises(DataError, match="Cannot read token windows"):
        load_data("tinystories", root=tmp_path)


def test_a_function_may_give_a_data_set_or_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_data_module.py").write_text(
        "import torch\n"
        "from rankwise.data import DataSet, InMemory, Split\n"
        "def tensors():\n"
        "    return {'train': (torch.ones(4, 2), torch.zeros(4).long()), 'test': torch.ones(3, 2)}\n"
        "def whole():\n"
        "    return DataSet('mine', test=Split.of('test', InMemory(torch.ones(5, 1)), None, lambda x: x))\n"
        "def wrong():\n"
        "    return 3\n"
        "def wrong_split():\n"
        "    return {'train': [1, 2]}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    data = load_data("my_data_module:tensors")
    assert (len(data.train), len(data.test)) == (4, 3)
    assert data.test.labels is None
    assert load_data("my_data_module:whole").name == "mine"
    for function, message in (
        ("wrong", "returned int"),
        ("wrong_split", "does not hold tensors"),
        ("no", "no"),
    ):
        with pytest.raises(DataError, match=message):
            load_data(f"my_data_module:{function}")


def test_every_data_set_names_a_known_preprocessing() -> None:
    assert {entry.preprocessing for entry in DATA.values()} <= set(PREPROCESSINGS)
    assert isinstance(load_data("random:2"), DataSet)
    assert isinstance(Split.of("x", InMemory(torch.ones(1)), None, lambda x: x), Split)


def test_the_real_sets_have_their_published_sizes(data_dir: Path) -> None:
    mnist = load_data("mnist", root=data_dir)
    assert (len(mnist.train), len(mnist.test)) == (60000, 10000)
    counts = torch.bincount(mnist.test.labels).tolist()
    assert counts == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    cifar = load_data("cifar10", root=data_dir, transform="unit")
    assert (len(cifar.train), len(cifar.test)) == (50000, 10000)
    assert torch.bincount(cifar.train.labels).tolist() == [5000] * 10
    means = torch.stack([x.mean((0, 2, 3)) for x, _ in cifar.train.batches(5000)]).mean(0)
    assert torch.allclose(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-4)
    assert len(load_data("imagenet-sample", root=data_dir).test) == 1000
    assert len(load_data("tinystories", root=data_dir).test) == 128
    ants = load_data("imagefolder:hymenoptera_data", root=data_dir)
    assert (len(ants.train), len(ants.test)) == (244, 153)

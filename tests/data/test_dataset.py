import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankwise.data import CropFlip, DataSet, InMemory, Preprocessing, Split
from rankwise.errors import DataError


def numbers(n: int, name: str = "train") -> Split:
    values = torch.arange(n, dtype=torch.uint8 if n < 256 else torch.int64).view(n, 1, 1, 1)
    return Split.of(name, InMemory(values), torch.arange(n) % 3, Preprocessing(divisor=1.0))


def ids(split: Split) -> set[int]:
    return set(split.fetch(torch.arange(len(split))).flatten().tolist())


def test_calibration_is_the_start_of_the_seeded_permutation() -> None:
    data = DataSet("numbers", test=numbers(5, "test"), train=numbers(200))
    expected = torch.randperm(200, generator=torch.Generator().manual_seed(7))[:32]
    images = torch.cat([x for x, _ in data.calibration(32, seed=7).batches(5)])
    assert images.flatten().long().tolist() == expected.tolist()


@given(n=st.integers(1, 180), seed=st.integers(0, 50))
def test_calibration_and_validation_are_disjoint_parts_of_training_data(n: int, seed: int) -> None:
    data = DataSet("numbers", test=numbers(5, "test"), train=numbers(200))
    calibration, validation = data.calibration(n, seed), data.validation(seed=seed)
    assert len(calibration) == n
    assert len(validation) == 20
    assert not ids(calibration) & ids(validation)


def test_calibration_beyond_what_validation_leaves_is_refused() -> None:
    data = DataSet("numbers", test=None, train=numbers(200))
    assert len(data.calibration()) == 180
    with pytest.raises(
        DataError, match=r"181 calibration examples.*1 to 180.*20 of them kept for validation"
    ):
        data.calibration(181)
    with pytest.raises(DataError, match="allowed are 1 to 20"):
        data.validation(21)


def test_a_held_out_split_is_the_validation_split() -> None:
    data = DataSet("numbers", test=None, train=numbers(20), held_out=numbers(7, "val"))
    assert len(data.validation()) == 7
    assert len(data.calibration()) == 20


def test_a_set_without_training_data_never_gives_test_examples() -> None:
    data = DataSet("numbers", test=numbers(9, "test"), no_train_reason="Because.")
    for ask in (data.calibration, data.validation):
        with pytest.raises(DataError, match=r"never taken from test data\. Because\."):
            ask()


def test_a_set_without_test_data_says_so() -> None:
    with pytest.raises(DataError, match="no test split"):
        DataSet("numbers", test=None, train=numbers(3)).testing()


def test_batches_are_the_same_on_every_pass_and_cover_everything() -> None:
    batches = numbers(10).batches(4)
    assert len(batches) == 3
    first, second = list(batches), list(batches)
    assert [len(x) for x, _ in first] == [4, 4, 2]
    assert all(torch.equal(a, b) and torch.equal(s, t) for (a, s), (b, t) in zip(first, second, strict=True))
    assert torch.cat([y for _, y in first]).tolist() == [i % 3 for i in range(10)]


def test_shuffled_batches_change_between_passes_and_repeat_with_the_seed() -> None:
    def order(batches: object) -> list[int]:
        return torch.cat([x for x, _ in batches]).flatten().long().tolist()  # type: ignore[attr-defined]

    batches = numbers(50).batches(8, shuffle=True, seed=3)
    first, second = order(batches), order(batches)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert order(numbers(50).batches(8, shuffle=True, seed=3)) == first


def test_batches_do_not_touch_the_global_generator() -> None:
    before = torch.get_rng_state()
    list(numbers(10).batches(4, shuffle=True, augment=CropFlip(0)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(DataError, match="batch size of 0"):
        numbers(3).batches(0)


def test_an_empty_split_has_no_batches() -> None:
    empty = numbers(3).take(0)
    assert len(empty) == 0
    assert list(empty.batches(2)) == []


def test_a_split_iterates_over_single_examples() -> None:
    pairs = list(numbers(3))
    assert [(int(x), int(y)) for x, y in pairs] == [(0, 0), (1, 1), (2, 2)]
    unlabelled = Split.of("x", InMemory(torch.ones(2, 3)), None, lambda x: x)
    assert [tuple(x.shape) for x in unlabelled] == [(3,), (3,)]


def test_labels_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match="3 examples but 2 labels"):
        Split.of("x", InMemory(torch.ones(3, 1)), torch.zeros(2), lambda x: x)


def test_preprocessing_is_the_stated_formula() -> None:
    images = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    result = Preprocessing(mean=mean, std=std)(images)
    for channel in range(3):
        expected = (images[:, channel].double() / 255 - mean[channel]) / std[channel]
        assert torch.allclose(result[:, channel].double(), expected, atol=1e-6)


def test_crop_and_flip_draw_windows_of_the_padded_image_per_example() -> None:
    images = torch.randint(1, 256, (40, 2, 6, 5), dtype=torch.uint8)
    changed = CropFlip(2)(images, torch.Generator().manual_seed(0))
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    kinds = set()
    for before, after in zip(padded, changed, strict=True):
        windows = {
            (top, left, side)
            for top in range(5)
            for left in range(5)
            for side, view in (("plain", after), ("mirrored", after.flip(-1)))
            if torch.equal(before[:, top : top + 6, left : left + 5], view)
        }
        assert windows
        kinds |= windows
    assert {side for _, _, side in kinds} == {"plain", "mirrored"}
    assert len({top for top, _, _ in kinds}) == 5

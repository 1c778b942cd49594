"""The table of configurations: complete, without doubles, and understood by methods and allocators."""

import pytest

from rankwise.allocation import allocators, get_allocator
from rankwise.errors import UnknownNameError
from rankwise.experiments.variants import variants
from rankwise.methods import get_method, methods


def test_every_method_is_there_and_its_default_comes_first() -> None:
    found = variants()
    count = len(methods())
    assert [v.method for v in found[:count]] == list(methods())
    assert {v.role for v in found[:count]} == {"default"}


def test_no_two_rows_are_the_same_configuration() -> None:
    found = [str(v.as_dict()) for v in variants()]
    assert len(set(found)) == len(found)
    labels = [v.label for v in variants()]
    assert len(set(labels)) == len(labels)


def test_every_option_exists() -> None:
    for variant in variants(allocators=allocators()):
        get_method(variant.method, **variant.options)
        get_allocator(variant.allocator, **variant.allocator_options)


def test_names_and_roles_choose() -> None:
    assert [v.label for v in variants(["svd"], ["default"])] == ["svd / knapsack"]
    assert {v.allocator for v in variants(["svd"], ["paper"])} == {"uniform", "energy", "lrank"}
    assert variants(["svd"], ["paper"], allocators=["energy"])[0].label == "svd / energy"
    with pytest.raises(UnknownNameError, match="svdd"):
        variants(["svdd"])

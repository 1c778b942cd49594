"""Experiment files: includes, the quick size, overrides; mistakes with their place and what is allowed."""

from pathlib import Path

import pytest

from rankwise.errors import ExperimentError
from rankwise.experiments.config import Experiment
from rankwise.experiments.source import read_experiment
from rankwise.methods import methods
from tests.experiments.small import TEXT, experiment, written


def test_a_file_says_what_the_sections_say(tmp_path: Path) -> None:
    assert read_experiment(written(tmp_path)) == experiment(data="digits")


def test_an_included_file_comes_first_and_mappings_are_merged(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    written(tmp_path / "parts", "calibration: {examples: 7, batch_size: 3}\nbudgets: [0.9]\n", "base.yaml")
    path = written(tmp_path, f"include: parts/base.yaml\n{TEXT}")
    found = read_experiment(path)
    assert (found.calibration.examples, found.calibration.batch_size) == (64, 3)
    assert found.budgets == [0.8, 0.5]


def test_files_that_include_each_other_are_refused(tmp_path: Path) -> None:
    written(tmp_path, "include: b.yaml\n", "a.yaml")
    with pytest.raises(ExperimentError, match=r"a\.yaml includes itself"):
        read_experiment(written(tmp_path, "include: [a.yaml]\n", "b.yaml").parent / "a.yaml")


def test_quick_changes_only_what_it_names(tmp_path: Path) -> None:
    path = written(tmp_path, TEXT + "quick:\n  calibration: {examples: 8}\n")
    assert read_experiment(path) == experiment(data="digits")
    quick = read_experiment(path, quick=True)
    assert quick.calibration.examples == 8 and quick.budgets == [0.8, 0.5]
    with pytest.raises(ExperimentError, match="no section 'quick'"):
        read_experiment(written(tmp_path), quick=True)


def test_overrides_win_and_make_sections(tmp_path: Path) -> None:
    overrides = [
        "calibration.examples=9",
        "evaluation.split=validation",
        "budgets.1=0.25",
        "methods.0.options.folding=all",
    ]
    found = read_experiment(
        written(tmp_path, TEXT + "quick: {calibration: {examples: 8}}\n"), overrides=overrides, quick=True
    )
    assert found.calibration.examples == 9 and found.evaluation.split == "validation"
    assert found.budgets == [0.8, 0.25]
    assert found.methods[0].name == "svd" and found.methods[0].options == {"folding": "all"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("calibration", "allowed is KEY=VALUE"),
        ("budgets.7=0.1", "7 does not fit into a list of 2"),
        ("budgets.first=0.1", "'first' does not fit into a list"),
        ("calibration.examples=[1", "no YAML value"),
        ("calibration.exampels=1", "--set calibration.exampels=1: calibration.exampels: Unknown key"),
    ],
)
def test_a_wrong_override_says_so(change: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=message.replace(".", r"\.").replace("[", r"\[")):
        read_experiment(written(tmp_path), overrides=[change])


OPTION = "quick:\n  methods:\n    - name: svd\n      options:\n        foldin: all\n"
MISTAKES = {
    "an unknown key": ("calibraton: {}\n", "yaml:8: calibraton: Unknown key 'calibraton'. Did you mean"),
    "a key in a section": ("recovery: []\nlayers:\n  includ: [a]\n", "yaml:10: layers.includ: Unknown key"),
    "a method": ("quick: {methods: [svd, svdd]}\n", "yaml:8: methods.1.name: Unknown method 'svdd'. Did you"),
    "an option": (OPTION, "yaml:12: methods.0.options.foldin: Unknown option of method 'svd' 'foldin'. Did"),
    "an option of an allocator": (
        "allocators: {name: knapsack, options: {gapp: 1}}\n",
        "yaml:8: allocators.0.options: Unknown option of allocator 'knapsack' 'gapp'. Did you mean 'gap'",
    ),
    "an allocator": (
        "allocators: [knapsak]\n",
        "yaml:8: allocators.0.name: Unknown allocator 'knapsak'. Did",
    ),
    "a recovery": ("recovery: batchnrm\n", "Unknown recovery 'batchnrm'. Did you mean 'batchnorm'"),
    "a setting of a recovery": (
        "recovery: {name: finetune, epochs: 1, lrr: 0.1}\n",
        "yaml:8: recovery.0: Unknown setting of recovery 'finetune' 'lrr'. Did you mean 'lr'",
    ),
    "a missing setting of a recovery": (
        "recovery: finetune\n",
        "yaml:8: recovery.0: recovery 'finetune' needs the setting 'epochs'",
    ),
    "a model": ("quick: {models: digits_cn}\n", "Unknown model 'digits_cn'. Did you mean 'digits_cnn'"),
    "a data set": ("quick: {data: digts}\n", "data: Unknown data set 'digts'. Did you mean 'digits'"),
    "one of few values": ("measure: parms\n", "yaml:8: measure: Input should be 'params', 'macs' or 'bytes'"),
    "a number": ("quick: {budgets: [0.5, 1.5]}\n", "budgets.1: Input should be less than or equal to 1; 1.5"),
    "a budget twice": ("quick: {budgets: [0.5, 0.5]}\n", "budgets [0.5, 0.5] holds a value twice"),
    "seeds and repetitions": ("seeds: [1, 2]\nrepetitions: 3\n", "repetitions=3 and 2 seeds were given"),
    "a key twice": ("title: again\n", "yaml:8: title: this key stands here twice"),
    "a schedule": ("schedule: iterative\n", "iterative with a step between 0 and 1"),
    "no YAML": ("]\n", "yaml:8: this is no YAML"),
}


@pytest.mark.parametrize(("text", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_has_its_place_and_what_is_allowed(text: str, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, TEXT + text)
    with pytest.raises(ExperimentError) as caught:
        read_experiment(path, quick="quick" in text)
    assert message in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError) as caught:
        read_experiment(written(tmp_path, "methods: [svdd]\nbudgets: []\nmodels: digits_cnn\n"))
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert any(line.endswith("title: this key is missing.") for line in lines)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExperimentError, match=r"nothing\.yaml cannot be read: No such file"):
        read_experiment(tmp_path / "nothing.yaml")
    with pytest.raises(ExperimentError, match=r"other\.yaml cannot be read"):
        read_experiment(written(tmp_path, "include: other.yaml\n"))


def test_numbers_may_be_written_with_a_power_of_ten(tmp_path: Path) -> None:
    text = TEXT + "recovery: {name: finetune, epochs: 1, lr: 1e-4}\n"
    found = read_experiment(written(tmp_path, text), overrides=["recovery.weight_decay=5e-4"])
    assert found.recovery[0].settings == {"epochs": 1, "lr": 1e-4, "weight_decay": 5e-4}


def test_all_means_every_method() -> None:
    assert [row.name for row in experiment(methods="all").methods] == list(methods())
    more = experiment(methods=["all", {"name": "auto", "options": {"effort": "fast"}}]).methods
    assert [row.name for row in more] == [*methods(), "auto"]


def test_the_schema_takes_what_the_sections_take() -> None:
    schema = Experiment.model_json_schema()
    assert schema["additionalProperties"] is False
    assert {"title", "models", "methods", "budgets"} <= set(schema["required"])

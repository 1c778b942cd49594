"""Every file in ``recipes/`` is understood, names what exists, and says what a user must bring."""

from pathlib import Path

import pytest

from rankwise.data import DATA
from rankwise.errors import ExperimentError
from rankwise.experiments.config import Experiment, Network
from rankwise.experiments.source import read_experiment
from rankwise.experiments.trials import trials_of
from rankwise.models import MODELS

RECIPES = Path(__file__).parents[2] / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))
IDS = [file.relative_to(RECIPES).as_posix() for file in FILES]


def sizes(file: Path) -> list[Experiment]:
    """The experiment in full size, and in its quick size where it has one."""
    found = [read_experiment(file)]
    try:
        found.append(read_experiment(file, quick=True))
    except ExperimentError as error:
        assert "no section 'quick'" in str(error)
        assert found[0].requires
    return found


def resolves(network: Network) -> bool:
    """Whether the name is ours or torchvision's."""
    base = network.name.partition("#")[0]
    kind, _, name = base.partition(":")
    if kind != "torchvision":
        return base in MODELS
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    name, _, weights = name.partition("@")
    known = [entry.name for entry in models.get_model_weights(name)]
    return name in models.list_models() and (not weights or weights in known)


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_a_recipe_is_understood_and_says_what_it_needs(file: Path) -> None:
    for experiment in sizes(file):
        data = experiment.data
        assert data is not None
        for network in experiment.models:
            assert resolves(network) or (experiment.requires and ":" in network.name)
        ready = data in ("digits",) or data.startswith("random:")
        assert ready or ((data.partition(":")[0] in DATA or ":" in data) and experiment.requires)
    assert file.read_text().startswith("# yaml-language-server: $schema=../../docs/experiment.schema.json\n")


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_published_figures_have_their_source_and_belong_to_the_networks(file: Path) -> None:
    full = read_experiment(file)
    names = {network.name for network in full.models}
    for row in full.published:
        assert row.model in names and len(row.source) > 10
        assert row.top1 is not None or row.loss is not None


@pytest.mark.parametrize("file", FILES, ids=IDS)
def test_a_quick_size_is_small(file: Path) -> None:
    full, *quick = sizes(file)
    for small in quick:
        assert len(small.budgets) <= 3 and len(small.all_seeds) == 1
        assert file.parent.name == "digits" or (small.evaluation.limit or 10_000) <= 1000
        assert len(small.methods) <= len(full.methods)


def test_the_recipes_that_need_nothing_have_trials() -> None:
    file = RECIPES / "digits" / "compare.yaml"
    full = read_experiment(file)
    assert len(full.methods) >= 19
    assert len(trials_of(full, file.parent)) == len(full.methods) * 5 * 3


def test_the_real_network_is_found(data_dir: Path) -> None:
    file = RECIPES / "cifar" / "alds_resnet20.yaml"
    trials = trials_of(read_experiment(file), file.parent)
    assert trials[0].setting.weights == str(data_dir / "weights" / "cifar10_resnet20.pt")

"""What an experiment file may say, as typed sections; every name in it is checked when it is read."""

from collections.abc import Callable
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)
from pydantic_core.core_schema import ValidationInfo

from rankwise.allocation import allocators, get_allocator
from rankwise.auto import Automatic
from rankwise.budget import Budget
from rankwise.data import DATA
from rankwise.errors import RankwiseError, UnknownNameError
from rankwise.experiments.recovering import FINETUNE, SETTINGS
from rankwise.experiments.variants import methods_of
from rankwise.methods import methods
from rankwise.models import MODELS
from rankwise.recovery import recoveries

Measure = Literal["params", "macs", "bytes"]
Fraction = Annotated[float, Field(gt=0, le=1)]


def checked(look_up: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Call ``look_up``; what it raises on purpose becomes a ``ValueError``, which pydantic gives a place."""
    try:
        look_up(*arguments, **options)
    except (RankwiseError, TypeError) as error:
        raise ValueError(str(error)) from error


def _known(kind: str, given: str, names: Any, other_forms: tuple[str, ...] = ()) -> str:
    if given not in names and ":" not in given:
        error = UnknownNameError(kind, given, [*names, *other_forms])
        raise ValueError(str(error)) from error
    return given


def _data_set(name: str) -> str:
    return _known("data set", name, DATA, ("package.module:function",))


DataName = Annotated[str, AfterValidator(_data_set)]


def _listed(given: Any) -> Any:
    return given if isinstance(given, list) else [given]


class Section(BaseModel):
    """A mapping without unknown keys. A string stands for the key ``name`` alone, where there is one."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) and "name" in cls.model_fields else given

    @classmethod
    def __get_pydantic_json_schema__(cls, core: Any, handler: Any) -> dict[str, Any]:
        """The schema, with the string that may stand for the whole."""
        schema: dict[str, Any] = handler(core)
        if "name" not in cls.model_fields:
            return schema
        title = {"title": cls.__name__, "description": cls.__doc__ or ""}
        return {**title, "anyOf": [{"type": "string"}, schema]}


class Train(Section):
    """How a network without published weights is trained, once for the experiment."""

    epochs: int = Field(gt=0)
    learning_rate: float = Field(
        default=4e-3, gt=0, description="The highest of a one-cycle schedule of AdamW."
    )
    batch_size: int = Field(default=64, gt=0)
    weight_decay: float = Field(default=5e-4, ge=0)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    examples: int | None = Field(
        default=None, gt=0, description="Drawn from the training split; by default all of it."
    )
    each_seed: bool = Field(default=False, description="Whether every repetition has a network of its own.")


class Network(Section):
    """A network: its name, and where its weights come from."""

    name: str = Field(
        description="As on the command line: NAME, torchvision:NAME[@WEIGHTS], package.module:callable."
    )
    weights: str | None = Field(
        default=None,
        description="A weights file: looked for from here, from the experiment file, in RANKWISE_DATA.",
    )
    train: Train | None = None
    data: DataName | None = Field(default=None, description="Its data set, where it is not the experiment's.")

    @field_validator("name")
    @classmethod
    def _model_exists(cls, name: str) -> str:
        _known("model", name.partition("#")[0], MODELS, ("torchvision:NAME", "package.module:callable"))
        return name

    @model_validator(mode="after")
    def _one_source(self) -> "Network":
        if self.weights is not None and self.train is not None:
            raise ValueError("weights and train were both given; allowed is one of them.")
        return self


class AllocatorRow(Section):
    """An allocator and its options."""

    name: str
    options: dict[str, Any] = {}

    @field_validator("name")
    @classmethod
    def _exists(cls, name: str) -> str:
        return _known("allocator", name, allocators())

    @field_validator("options")
    @classmethod
    def _options_exist(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "name" in info.data:
            checked(get_allocator, info.data["name"], **options)
        return options


class Layers(Section):
    """Which layers may change."""

    include: Annotated[list[str], BeforeValidator(_listed)] = Field(
        default=[], description="Globs of those that may; by default all."
    )
    exclude: Annotated[list[str], BeforeValidator(_listed)] = Field(
        default=[], description="Globs of those that must not."
    )


class MethodRow(Section):
    """A method and its options; several by commas compete for every layer, FIRST+SECOND follow each other."""

    name: str
    options: dict[str, Any] = {}
    allocators: Annotated[list[AllocatorRow], BeforeValidator(_listed)] | None = Field(
        default=None, description="In place of the experiment's."
    )
    layers: Layers | None = Field(default=None, description="In place of the experiment's.")

    @field_validator("name")
    @classmethod
    def _exists(cls, name: str) -> str:
        for part in name.replace("+", ",").split(","):
            _known("method", part.strip(), [*methods(), Automatic.name])
        return name

    @field_validator("options")
    @classmethod
    def _options_exist(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "name" in info.data:
            checked(methods_of, info.data["name"], options)
        return options


class Calibration(Section):
    """The training examples that compression may look at, without their labels."""

    examples: int | None = Field(default=None, gt=0, description="By default 1,024, or what there is.")
    batch_size: int = Field(default=128, gt=0)
    without_classes: list[int] = Field(
        default=[], description="Labels whose examples are taken out after the draw."
    )


class Evaluation(Section):
    """What the figures are measured on."""

    split: Literal["test", "validation"] = Field(
        default="test", description="validation: held-out training examples, for choices."
    )
    limit: int | None = Field(default=None, gt=0, description="The first so many examples only.")
    batch_size: int = Field(default=128, gt=0)


class RecoveryRow(Section):
    """What is done after compression: the name of a recovery, and its settings, if it has any."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str
    processes: int = Field(
        default=1, gt=0, description="finetune: processes started by torchrun, which share every batch."
    )

    @field_validator("name")
    @classmethod
    def _exists(cls, name: str) -> str:
        return _known("recovery", name, {*recoveries(), *SETTINGS})

    @model_validator(mode="after")
    def _settings_exist(self) -> "RecoveryRow":
        made = SETTINGS.get(self.name)
        known = [] if made is None else fields(made)
        for name in self.settings:
            if name not in {f.name for f in known}:
                allowed = [f.name for f in known] or ["none"]
                error = UnknownNameError(f"setting of recovery {self.name!r}", name, allowed)
                raise ValueError(str(error)) from error
        for absent in (f.name for f in known if f.default is f.default_factory):
            if absent not in self.settings:
                raise ValueError(f"recovery {self.name!r} needs the setting {absent!r}.")
        if self.processes > 1 and self.name != FINETUNE:
            raise ValueError(f"processes={self.processes} was given; allowed is that for {FINETUNE!r} only.")
        if made is not None:
            checked(made, **self.settings)
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What was given beside the name."""
        return dict(self.model_extra or {})

    @property
    def label(self) -> str:
        """For tables: the name and the settings that were given."""
        given = {**self.settings, **({"processes": self.processes} if self.processes > 1 else {})}
        return " ".join([self.name, *(f"{key}={value}" for key, value in given.items())])


class Schedule(Section):
    """Whether the budget is reached at once, or in several compressions one after another."""

    name: Literal["one-shot", "iterative"] = "one-shot"
    step: Fraction | None = Field(
        default=None, description="iterative: what every step may keep of what the step before left."
    )

    recover: Literal["last", "each"] = Field(
        default="last", description="iterative: whether to recover after the last step or after each."
    )

    @model_validator(mode="after")
    def _step_fits(self) -> "Schedule":
        if (self.name == "iterative") != (self.step is not None and self.step < 1):
            raise ValueError(
                "allowed are one-shot without a step, and iterative with a step between 0 and 1."
            )
        return self


class Published(Section):
    """A figure out of a publication, shown beside ours. ``kept`` is a fraction, ``loss`` is in points."""

    work: str
    model: str
    method: str
    measure: Literal["params", "macs"]
    kept: Fraction
    top1: float | None = Field(default=None, ge=0, le=100, description="In percent.")
    loss: float | None = Field(default=None, description="Points of top-1 lost; negative: gained.")
    agreement: float | None = Field(default=None, ge=0, le=100, description="In percent.")
    retrained: bool = Field(description="Whether the network was trained after compression.")
    source: str = Field(description="Where the figure was read.")


class Experiment(Section):
    """A sweep: every model, seed, method, allocator and budget is one trial."""

    title: str
    description: str = ""
    requires: str = Field(default="", description="What a user must bring: weights, data, time.")
    models: Annotated[list[Network], BeforeValidator(_listed)] = Field(min_length=1)
    data: DataName | None = Field(
        default=None, description="The data set; by default each network's usual one."
    )
    methods: Annotated[list[MethodRow], BeforeValidator(_listed)] = Field(
        min_length=1, description="A list, or 'all' for the defaults of every method."
    )
    allocators: Annotated[list[AllocatorRow], BeforeValidator(_listed)] = Field(
        default=[AllocatorRow(name="knapsack")], min_length=1
    )
    measure: Measure = "params"
    budgets: list[Fraction] = Field(min_length=1, description="Fractions of the measure that are kept.")
    schedule: Schedule = Schedule()
    recovery: Annotated[list[RecoveryRow], BeforeValidator(_listed)] = Field(
        default=[], description="What is done after compression, in order."
    )
    recoveries: list[Annotated[list[RecoveryRow], BeforeValidator(_listed)]] | None = Field(
        default=None, min_length=1, description="Several of them, each in trials of its own; [] for none."
    )
    repetitions: int | None = Field(default=None, gt=0, description="Seeds 0, 1, ... where none are named.")
    seeds: list[int] | None = Field(default=None, min_length=1)
    calibration: Calibration = Calibration()
    evaluation: Evaluation = Evaluation()
    layers: Layers = Layers()
    multiple_of: int = Field(default=1, gt=0)
    fold_batchnorm: bool = False
    max_memory: float | None = Field(default=None, gt=0, description="GiB that statistics may take at once.")
    published: list[Published] = []

    @field_validator("methods", mode="before")
    @classmethod
    def _all_methods(cls, given: Any) -> Any:
        rows = _listed(given)
        return [name for row in rows for name in (methods() if row == "all" else [row])]

    @model_validator(mode="after")
    def _consistent(self) -> "Experiment":
        if self.recovery and self.recoveries is not None:
            raise ValueError("recovery and recoveries were both given; allowed is one of them.")
        if self.seeds is not None and self.repetitions not in (None, len(self.seeds)):
            raise ValueError(f"repetitions={self.repetitions} and {len(self.seeds)} seeds were given.")
        for name, values in (("seeds", self.seeds or []), ("budgets", self.budgets)):
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {values} holds a value twice.")
        Budget.of({self.measure: self.budgets[0]})
        return self

    @property
    def all_recoveries(self) -> list[list[RecoveryRow]]:
        """The chains of recoveries that are compared."""
        return [self.recovery] if self.recoveries is None else self.recoveries

    @property
    def all_seeds(self) -> list[int]:
        """The seed of every repetition."""
        return self.seeds or list(range(self.repetitions or 1))


def json_schema() -> dict[str, Any]:
    """The JSON schema of an experiment file, for editors."""
    schema = Experiment.model_json_schema()
    whole = dict(schema["properties"])
    files = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}
    more = {
        "include": {**files, "description": "Experiment files that this one goes on from."},
        "quick": {
            "type": "object",
            "properties": whole,
            "additionalProperties": False,
            "description": "What --quick changes.",
        },
    }
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return {**head, **schema, "properties": {**whole, **more}}

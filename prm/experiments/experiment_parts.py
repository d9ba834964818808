"""The parts of an experiment of the paper: trained models as rows, the paper's figures, and the claims about them."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Literal, TypedDict

from prm.checks import Natural, NonNegative
from prm.io.json_estimates import Ends, estimate_of, number_of
from prm.io.rows import Json
from prm.io.tables import plain
from prm.metrics import Estimate


@dataclass(frozen=True)
class Published:
    """The paper's figures of a row, in percent, as printed; "~" marks figures from its prose, "-" is none."""

    top: str = "-"
    generic: str = "-"
    majority: str = "-"
    minority: str = "-"


@dataclass(frozen=True)
class ExperimentRow:
    """One model of a table.

    Args:
        name: of the row and of its run folder.
        label: name of the row in the table.
        settings: differences from the experiment's config, by dotted key; laptop: further ones at that scale.
        paper: the paper's figures.
    """

    name: str
    label: str
    settings: Mapping[str, object] = field(default_factory=dict)
    laptop: Mapping[str, object] = field(default_factory=dict, kw_only=True)
    paper: Published = field(default_factory=Published)


@dataclass(frozen=True)
class GroupResult:
    """Mean accuracy, in [0, 1], over the users of one group, its standard error, and the means of the baselines."""

    people: int
    mean: float
    error: float
    controls: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class EvaluationPoint:
    """One evaluation on the validation part during training; accuracies in [0, 1], log losses in nats."""

    step: int
    accuracy: float
    generic_accuracy: float
    nll: float
    generic_nll: float


@dataclass(frozen=True)
class Result:
    """The results of a row on its held-out part.

    Args:
        top: accuracy on comparisons of known users (Accuracy-top).
        generic: accuracy on those of unknown users (Accuracy-generic); `None` without any.
        groups: known users by group, the majority first (Accuracy-average).
        nll: log loss on the comparisons of `top`, in nats.
        controls: accuracy of each baseline on them, including the tuned uniform model.
        gain: `top` minus the tuned uniform model's, paired; `None` without one.
        user_parameters, shared_parameters: number of trained parameters (N_u, N_l).
        steps: number of training steps; 0 if the objective was solved to its optimum.
        seconds: of training and evaluation.
        looks: evaluations on the validation part, in order of steps.
    """

    top: Estimate
    generic: Estimate | None
    groups: dict[str, GroupResult]
    nll: Estimate
    controls: dict[str, Estimate]
    gain: Estimate | None
    user_parameters: int
    shared_parameters: int
    steps: int
    seconds: float
    looks: tuple[EvaluationPoint, ...] = ()

    def to_dict(self) -> dict[str, Json]:
        """JSON-ready; an infinite end of an interval, and a mean of nothing, is null."""
        return plain(asdict(self))

    @classmethod
    def from_dict(cls, values: "StoredResult") -> "Result":
        """The result that `to_dict` gave as a `StoredResult`."""
        generic, gain = values["generic"], values["gain"]
        return cls(
            top=estimate_of(values["top"]),
            generic=None if generic is None else estimate_of(generic),
            groups={name: _group(group) for name, group in values["groups"].items()},
            nll=estimate_of(values["nll"]),
            controls={name: estimate_of(ends) for name, ends in values["controls"].items()},
            gain=None if gain is None else estimate_of(gain),
            user_parameters=values["user_parameters"],
            shared_parameters=values["shared_parameters"],
            steps=values["steps"],
            seconds=values["seconds"],
            looks=tuple(EvaluationPoint(**look) for look in values["looks"]),
        )


def _group(value: "_Group") -> GroupResult:
    controls = {name: number_of(mean) for name, mean in value["controls"].items()}
    return GroupResult(value["people"], number_of(value["mean"]), number_of(value["error"]), controls)


class _Group(TypedDict):
    people: Natural
    mean: float | None
    error: float | None
    controls: dict[str, float | None]


class _Look(TypedDict):
    step: Natural
    accuracy: float
    generic_accuracy: float
    nll: float
    generic_nll: float


class StoredResult(TypedDict):
    """A `Result` as JSON."""

    top: Ends
    generic: Ends | None
    groups: dict[str, _Group]
    nll: Ends
    controls: dict[str, Ends]
    gain: Ends | None
    user_parameters: Natural
    shared_parameters: Natural
    steps: Natural
    seconds: NonNegative
    looks: list[_Look]


Results = Mapping[str, Result]
Verdict = tuple[bool | None, str]


@dataclass(frozen=True)
class Claim:
    """Something that the paper leads one to expect of its rows.

    Args:
        words: the claim as text.
        rows: names of the rows it is about; it is left open if one of them is missing.
        judge: a function: (whether it holds, `None` if figures are missing; the figures that decide it).
    """

    words: str
    rows: tuple[str, ...]
    judge: Callable[[Results], Verdict]


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Args:
        config: name of its YAML in the folder of configs.
        groups: metadata field with the users' group.
        picture: `bars` of the accuracies, or `curves` over the training steps.
    """

    name: str
    title: str
    config: str
    rows: tuple[ExperimentRow, ...]
    claims: tuple[Claim, ...] = ()
    groups: str | None = None
    picture: Literal["bars", "curves"] = "bars"

    @property
    def has_published(self) -> bool:
        """True if the paper has figures of any row."""
        return any(row.paper != Published() for row in self.rows)

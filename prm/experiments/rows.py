"""What an experiment of the paper is made of: trained models as rows, what the paper says of them, what must hold."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypedDict

from prm.checks import Natural, NonNegative
from prm.io.tables import plain
from prm.metrics import Estimate


@dataclass(frozen=True)
class Published:
    """The paper's figures of a row, in percent, as printed; "~" where only its prose tells, "-" where nothing does."""

    top: str = "-"
    generic: str = "-"
    majority: str = "-"
    minority: str = "-"


@dataclass(frozen=True)
class ExperimentRow:
    """One model of a table.

    Args:
        name: of the row and of its run folder.
        label: what the table calls it.
        settings: what differs from the experiment's config, by dotted key; laptop: what further does at that scale.
        paper: the paper's figures.
    """

    name: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    laptop: Mapping[str, Any] = field(default_factory=dict, kw_only=True)
    paper: Published = field(default_factory=Published)


@dataclass(frozen=True)
class GroupResult:
    """People of one kind: mean over them of each one's accuracy, in [0, 1], its standard error, and the controls'."""

    people: int
    mean: float
    error: float
    controls: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Look:
    """One look at the validation part in training; accuracies in [0, 1], likelihoods in nats."""

    step: int
    accuracy: float
    generic_accuracy: float
    nll: float
    generic_nll: float


@dataclass(frozen=True)
class Result:
    """How a row did on what was held out.

    Args:
        top: accuracy on comparisons by people it has learnt from (Accuracy-top).
        generic: accuracy on those by strangers (Accuracy-generic); `None` without any.
        groups: people it has learnt from, by group, the majority first (Accuracy-average).
        nll: likelihood on the comparisons of `top`, in nats.
        controls: accuracy of each control on them, the tuned uniform model among them.
        gain: `top` less the tuned uniform model's, paired; `None` without one.
        user_parameters, shared_parameters: how many numbers were trained (N_u, N_l).
        steps: of training; 0 where the objective went to its optimum.
        seconds: of training and evaluation.
        looks: at the validation part, in order of steps.
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
    looks: tuple[Look, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; an interval without an end, and a mean of nothing, is null."""
        found: dict[str, Any] = plain(asdict(self))
        return found

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Result":
        """What `to_dict` gave; `StoredResult` is what it holds."""
        known = dict(values)
        for name in ("top", "generic", "nll", "gain"):
            known[name] = _estimate(known[name]) if known[name] is not None else None
        known["controls"] = {name: _estimate(value) for name, value in known["controls"].items()}
        known["groups"] = {name: _group(value) for name, value in known["groups"].items()}
        known["looks"] = tuple(Look(**look) for look in known["looks"])
        return cls(**known)


def _number(value: float | None, missing: float = math.nan) -> float:
    return missing if value is None else value


def _group(value: Mapping[str, Any]) -> GroupResult:
    controls = {name: _number(mean) for name, mean in value["controls"].items()}
    return GroupResult(value["people"], _number(value["mean"]), _number(value["error"]), controls)


def _estimate(ends: Mapping[str, float | None]) -> Estimate:
    return Estimate(_number(ends["value"]), _number(ends["low"], -math.inf), _number(ends["high"], math.inf))


class _Ends(TypedDict):
    value: float | None
    low: float | None
    high: float | None


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

    top: _Ends
    generic: _Ends | None
    groups: dict[str, _Group]
    nll: _Ends
    controls: dict[str, _Ends]
    gain: _Ends | None
    user_parameters: Natural
    shared_parameters: Natural
    steps: Natural
    seconds: NonNegative
    looks: list[_Look]


Results = Mapping[str, Result]
Verdict = tuple[bool | None, str]


@dataclass(frozen=True)
class Claim:
    """Something the paper leads one to expect of its rows.

    Args:
        words: the expectation.
        rows: names of the rows it speaks of; it is left open where one of them is missing.
        judge: whether it holds, `None` where figures are missing, and the figures it was judged by.
    """

    words: str
    rows: tuple[str, ...]
    judge: Callable[[Results], Verdict]


@dataclass(frozen=True)
class Experiment:
    """One table or figure.

    Args:
        config: name of its YAML in the folder of configs.
        groups: metadata field that tells people's group.
        picture: `bars` of the accuracies, or `curves` over the steps of training.
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
        """True where the paper has figures of some row."""
        return any(row.paper != Published() for row in self.rows)

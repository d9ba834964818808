"""What an experiment of the paper is made of: trained models as rows, what the paper says of them, what must hold."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from prm.metrics import Estimate


@dataclass(frozen=True)
class Published:
    """The paper's figures of a row, in percent, as printed; "~" where only its prose tells, "-" where nothing does."""

    top: str = "-"
    generic: str = "-"
    majority: str = "-"
    minority: str = "-"


@dataclass(frozen=True)
class Row:
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
class Group:
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
    groups: dict[str, Group]
    nll: Estimate
    controls: dict[str, Estimate]
    gain: Estimate | None
    user_parameters: int
    shared_parameters: int
    steps: int
    seconds: float
    looks: tuple[Look, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Result":
        """What `to_dict` gave."""
        known = dict(values)
        for name in ("top", "generic", "nll", "gain"):
            known[name] = Estimate(**known[name]) if known[name] is not None else None
        known["controls"] = {name: Estimate(**value) for name, value in known["controls"].items()}
        known["groups"] = {name: Group(**value) for name, value in known["groups"].items()}
        known["looks"] = tuple(Look(**look) for look in known["looks"])
        return cls(**known)


Results = Mapping[str, Result]


@dataclass(frozen=True)
class Claim:
    """Something the paper leads one to expect of its rows.

    Args:
        words: the expectation.
        rows: names of the rows it speaks of; it is left open where one of them is missing.
        judge: whether it holds, and the figures it was judged by.
    """

    words: str
    rows: tuple[str, ...]
    judge: Callable[[Results], tuple[bool, str]]


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
    rows: tuple[Row, ...]
    claims: tuple[Claim, ...] = ()
    groups: str | None = None
    picture: Literal["bars", "curves"] = "bars"

    @property
    def has_published(self) -> bool:
        """True where the paper has figures of some row."""
        return any(row.paper != Published() for row in self.rows)

"""The sets of real people: what is read, how it is thinned, and what is held out."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prm.checks import built
from prm.config import FeedbackConfig
from prm.data.comparison import Comparison
from prm.data.sources import read_feedback
from prm.data.splits import SplitBy


@dataclass(frozen=True)
class RealPeople:
    """A set of real people, and the question that is asked of it.

    Args:
        name: of its folder and its rows; letters, digits and dashes.
        title: of its section.
        about: who compared what, and where it is from; a sentence or two.
        path: in the data folder.
        source, settings: how the log is read (`data.source` and other keys of `data`).
        holdout_by: what a held-out comparison does not share with those that are trained on.
        least: people with fewer comparisons are left out.
        people, each: at most so many people, and comparisons of each, drawn at random; 0 takes all.
    """

    name: str
    title: str
    about: str
    path: str
    source: str
    holdout_by: SplitBy
    settings: Mapping[str, object] = field(default_factory=dict)
    least: int = 0
    people: int = 0
    each: int = 0

    def read(self, data: Path) -> list[Comparison]:
        """All comparisons. Raises `PrmError` if the set is not in the folder or cannot be read."""
        settings = {"path": str(data / self.path), "source": self.source, **self.settings}
        return read_feedback(built(FeedbackConfig, settings)).comparisons


def thinned(comparisons: Sequence[Comparison], of: RealPeople, seed: int) -> list[Comparison]:
    """The comparisons that a set keeps, in their order; which ones depends on the seed and on the log."""
    draw = np.random.default_rng(seed)
    theirs: dict[str, list[int]] = defaultdict(list)
    for i, c in enumerate(comparisons):
        theirs[c.user_id].append(i)
    users = sorted(user for user, indices in theirs.items() if len(indices) >= of.least)
    kept = [users[i] for i in draw.permutation(len(users))[: of.people or None]]
    drawn = [[theirs[user][i] for i in draw.permutation(len(theirs[user]))[: of.each or None]] for user in kept]
    return [comparisons[i] for i in sorted(i for indices in drawn for i in indices)]


def _arguments(name: str, title: str, holdout_by: SplitBy) -> RealPeople:
    about = "People say which of two arguments for one side of a debate convinces more (UKPConvArg1, CC BY 4.0)."
    source = "ukpconvarg1"
    return RealPeople(name, title, about, source, source, holdout_by, least=40, people=120, each=100)


SETS = (
    RealPeople(
        "writers-prompts",
        "Literary passages, new prompts",
        "Professional writers rank three versions of a passage (salesforce/creativity_eval, BSD-3).",
        "writers/rankings.jsonl.gz",
        "rankings",
        "prompt",
    ),
    RealPeople(
        "harms-requests",
        "Harmful requests, new requests",
        "People rate from 0 to 100 how harmful a request to an assistant is (PluriHarms, MIT).",
        "harms/ratings.csv.gz",
        "ratings",
        "response",
        {"min_rating_difference": 20.0},
        each=250,
    ),
    _arguments("arguments-prompts", "Arguments, new sides of debates", "prompt"),
    _arguments("arguments-pairs", "Arguments, new pairs", "pair"),
    RealPeople(
        "jokes",
        "Jokes, new jokes",
        "People rate 100 jokes from -10 to 10 (Jester, Goldberg and others 2001).",
        "jester5k",
        "jester",
        "response",
        {"min_rating_difference": 2.0, "max_pairs": 4},
        people=100,
    ),
)

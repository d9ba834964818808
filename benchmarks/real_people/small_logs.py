"""Does a rule beat the models on small logs of real people? Each set is thinned to 300 to 1,000 comparisons, ten times.

`python -m benchmarks.real_people.small_logs DATA`. A killed command goes on with the fit that it was at.
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.real_people.measure import Measuring
from benchmarks.real_people.sets import SETS, RealPeople, thinned
from prm.config import BackboneConfig
from prm.evaluation.compare.config import Name
from prm.evaluation.compare.run import compare_models
from prm.io.formatting import estimated
from prm.io.tables import write_json, write_jsonl
from prm.metrics import Array, Estimate, estimate, nll
from prm.report import show
from prm.report.page import markdown

RULES: tuple[Name, ...] = ("rules", "length_sign")
MODELS: tuple[Name, ...] = ("uniform", "stack")
LEAST, MOST = 300, 1000  # comparisons of a log


class Draw(NamedTuple):
    """One small log: its number of comparisons, and each model's log loss of the m that were held out, by user [m]."""

    size: int
    users: list[str]
    losses: dict[str, Array]


@dataclass(frozen=True)
class Lead:
    """A rule against a model: how much lower its log loss is over all draws, in nats, and the draws where it surely is.

    Intervals are 95% over people; those in several draws count as one.
    """

    set: str
    rule: str
    model: str
    nats: Estimate
    surely: int
    draws: int


def draw_log(of: RealPeople, how: Measuring, seed: int) -> Draw:
    """Thin the set, and fit and score the models on it; what an earlier call finished is kept."""
    log = thinned(of.read(how.data), of, seed)
    draw = np.random.default_rng(seed)
    size = min(len(log), int(draw.integers(LEAST, MOST + 1)))
    config = replace(how, folder=how.folder / str(seed), seed=seed, models=(*RULES, *MODELS)).config(of)
    config.after = [0]
    write_jsonl(config.data.path, [log[i] for i in sorted(draw.permutation(len(log))[:size])])
    finished = compare_models(config)
    index = np.concatenate([fold.test.numpy() for fold in finished.folds])
    p = finished.problem.data.p_chosen.numpy()[index]
    margins = {name: np.concatenate([part.margin.numpy() for part in finished.results[name]]) for name in config.names}
    users = [finished.problem.comparisons[i].user_id for i in index]
    return Draw(size, users, {name: nll(margin, p) for name, margin in margins.items()})


def leads(name: str, draws: Sequence[Draw]) -> list[Lead]:
    """Each rule against each model."""
    found = []
    for rule, model in product(RULES, MODELS):
        by_draw = [draw.losses[model] - draw.losses[rule] for draw in draws]
        ids = [np.unique(draw.users, return_inverse=True)[1] for draw in draws]
        surely = sum(estimate(nats, users).low > 0.0 for nats, users in zip(by_draw, ids, strict=True))
        users = np.unique([user for draw in draws for user in draw.users], return_inverse=True)[1]
        found.append(Lead(name, rule, model, estimate(np.concatenate(by_draw), users), surely, len(draws)))
    return found


def main(arguments: Sequence[str] | None = None, sets: Sequence[RealPeople] = SETS) -> None:
    """Print the table and write `leads.json`. Raises `PrmError` if a set cannot be read."""
    parser = ArgumentParser(prog="python -m benchmarks.real_people.small_logs", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--sets", nargs="*", choices=[one.name for one in sets], help="default: all")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/small-logs"), help="what a killed command resumes from"
    )
    parser.add_argument("--backbone", default=BackboneConfig.name)
    args = parser.parse_args(arguments)
    how, found = Measuring(args.data, args.folder, backbone=args.backbone), []
    for one in sets:
        if not args.sets or one.name in args.sets:
            found += leads(one.name, [draw_log(one, how, seed) for seed in range(args.draws)])
            write_json(args.folder / "leads.json", {"leads": [asdict(lead) for lead in found]})
    header = ["set", "rule", "model", "lower by, nats", "surely"]
    rows = [[x.set, x.rule, x.model, estimated(x.nats, 3, sign="+"), f"{x.surely} of {x.draws}"] for x in found]
    show("\n".join(markdown(header, rows)))


if __name__ == "__main__":
    main()

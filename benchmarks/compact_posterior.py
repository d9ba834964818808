"""What posteriors of few columns lose in log loss, and save in bytes.

`python -m benchmarks.compact_posterior DATA` trains the shipped runs of UKPConvArg1 and Jester with all columns of
everybody's posterior, as many as 64, and reduces these to the columns that some shares of the prior's variance justify
(`prm.users.bayes_model.LEFT_OUT`). Jester's run holds out jokes, so that its users are known. A run that is in the
folder is not trained again.
"""

import copy
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save

from benchmarks.real_people.sets import RealPeople, thinned
from prm.config import FeedbackConfig, TrainConfig
from prm.data.comparison import Comparison
from prm.data.sources import read_feedback
from prm.errors import PrmError
from prm.io.disk import make_folder
from prm.io.folders import is_run
from prm.io.tables import plain, write_json, write_jsonl
from prm.io.yaml_settings import read_config
from prm.metrics import Array, Estimate, estimate, nll
from prm.models.reward_model import RewardModel
from prm.report import show, table
from prm.scoring.scorer import Scorer
from prm.scoring.update_users import pairs_of
from prm.training.heads.bayes_fit import continue_bayes
from prm.training.heads.objective import PairFeatures
from prm.training.run import train
from prm.users import bayes_model
from prm.users.bayes_model import Bayes
from prm.users.ragged_rows import RaggedRows

SETS: dict[str, tuple[str, str, dict[str, object]]] = {  # config, folder of the data, other settings
    "ukp": ("configs/prm/ukp-bayes.yaml", "ukpconvarg1", {}),
    "jester": ("configs/prm/jester-bayes.yaml", "jester5k", {"data.holdout_by": "response", "data.test_fraction": 0.2}),
}
Spread = tuple[float, float, float]  # median, mean and maximum over users
SHARES = (0.01, 0.03, 0.09)
_ROWS = 64  # whose posteriors are made at once


@dataclass(frozen=True)
class Row:
    """Posteriors that leave out a share of the prior's variance; over the users who have held-out comparisons.

    Args:
        columns, saved, stored: of a user: number of columns, bytes in a run and in memory, bytes in a service's store.
        loss, gain: log loss (nats) of held-out comparisons, and how much more than with all columns it is.
        updated, updated_gain: of one half of them, after the other half was learnt one by one.
    """

    share: float
    columns: Spread
    saved: Spread
    stored: Spread
    loss: float
    gain: Estimate
    updated: float
    updated_gain: Estimate


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, then print the tables and write them as JSON.

    Raises `PrmError` if a set cannot be read, or if a run in the folder has other users than `bayes`.
    """
    parser = ArgumentParser(prog="python -m benchmarks.compact_posterior", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--sets", nargs="*", choices=list(SETS), default=list(SETS))
    parser.add_argument("--shares", nargs="*", type=float, default=SHARES)
    parser.add_argument("--people", type=int, default=0, help="users that are drawn of each set; 0 takes all")
    parser.add_argument("--backbone", default=TrainConfig().backbone.name)
    parser.add_argument("--folder", type=Path, default=Path("runs/compact_posterior"))
    args = parser.parse_args(arguments)
    for name in args.sets:
        run = args.folder / name
        if not is_run(str(run)):
            with leaving_out(0.0):
                train(config_of(name, args.data, run, args.people, args.backbone))
        model, pairs, users = held_out(run)
        rows = measured(model, pairs, users, [0.0, *args.shares])
        about = {"users": len(set(users)), "comparisons": len(users), "rank": len(model.prior)}
        write_json(args.folder / f"{name}.json", plain({**about, "rows": [asdict(row) for row in rows]}))
        of = f"{name}, {about['users']:,} users, rank {about['rank']}"
        show(table(f"{of}: median / mean / maximum", SIZES, list(map(sizes_of, rows))))
        title = f"{of}: log loss (nats) of {about['comparisons']:,} held-out comparisons"
        show(table(title, LOSSES, list(map(losses_of, rows))))


def config_of(name: str, data: Path, run: Path, people: int, backbone: str) -> TrainConfig:
    """The settings of a set's run; with `people`, on a log that is written beside it."""
    file, folder, settings = SETS[name]
    settings = {**settings, "data.path": str(data / folder), "output_dir": str(run), "backbone.name": backbone}
    config = read_config(TrainConfig, Path(__file__).resolve().parents[1] / file, settings=settings)
    if people:
        comparisons = read_feedback(config.data).comparisons
        log, least = run.parent / f"{name}.jsonl", config.data.min_comparisons
        make_folder(log.parent)
        few = RealPeople(name, "", "", "", "pairs", "pair", least=least, people=people)
        write_jsonl(log, thinned(comparisons, few, config.seed))
        of_ratings = {name: getattr(FeedbackConfig(), name) for name in ("min_rating_difference", "max_pairs")}
        config.data = replace(config.data, path=str(log), source="pairs", **of_ratings)
    return config


@contextmanager
def leaving_out(share: float) -> Iterator[None]:
    """A block in which posteriors may leave out so much of the prior's variance of an average pair's logit."""
    before = bayes_model.LEFT_OUT
    bayes_model.LEFT_OUT = share
    try:
        yield
    finally:
        bayes_model.LEFT_OUT = before


def held_out(run: Path) -> tuple[Bayes, PairFeatures, list[str]]:
    """(the user model of a run, its held-out comparisons of users that it knows, their users)."""
    scorer = Scorer.from_pretrained(run, device="cpu", cache=True)
    model, index = scorer.checkpoint.model, scorer.checkpoint.users
    users = model.user_model
    if not isinstance(users, Bayes) or not isinstance(model, RewardModel):
        raise PrmError(f"{run} has other users than 'bayes': name another --folder")
    log: list[Comparison] = read_feedback(FeedbackConfig(path=str(run / "test.jsonl"))).comparisons
    log = [c for c in log if index.row(c.user_id)]
    pairs = pairs_of(model, scorer.reader, log, [index.row(c.user_id) for c in log])
    return users, pairs, [c.user_id for c in log]


def measured(model: Bayes, pairs: PairFeatures, users: Sequence[str], shares: Sequence[float]) -> list[Row]:
    """A row for each share; the first is what others are compared with."""
    learns = every_other(users)
    checked, names = (
        pairs.take((~learns).nonzero().squeeze(1)),
        [u for u, own in zip(users, learns, strict=True) if not own],
    )
    rows: list[Row] = []
    first: tuple[Array, Array] | None = None
    for share in shares:
        compact = reduced(model, share)
        loss, size = losses(compact, pairs), sizes(compact, torch.unique(pairs.rows))
        with leaving_out(share):
            continue_bayes(compact, pairs.take(learns.nonzero().squeeze(1)))
        after = losses(compact, checked)
        first = first or (loss, after)
        gains = estimate(loss - first[0], users), estimate(after - first[1], names)
        rows.append(Row(share, *size, float(loss.mean()), gains[0], float(after.mean()), gains[1]))
    return rows


def every_other(users: Sequence[str]) -> torch.Tensor:
    """Whether it is a user's second, fourth, ... comparison, bool [n]."""
    seen = dict[str, int]()
    out = []
    for user in users:
        seen[user] = seen.get(user, 0) + 1
        out.append(seen[user] % 2 == 0)
    return torch.tensor(out)


def reduced(model: Bayes, share: float) -> Bayes:
    """A copy whose posteriors have the columns that a share justifies."""
    compact = copy.deepcopy(model)
    compact.factors = RaggedRows(model.n_rows, len(model.prior))
    with leaving_out(share):
        for rows in torch.arange(1, model.n_rows).split(_ROWS):
            compact.set_posterior(rows, model.posterior(rows), model.left_out(rows))
    return compact


@torch.no_grad()
def losses(model: Bayes, pairs: PairFeatures) -> Array:
    """Log loss of each comparison, nats, [n]."""
    base = None if pairs.base is None else pairs.base[pairs.chosen] - pairs.base[pairs.rejected]
    margins = [model.margins(d, pairs.rows[k], None if base is None else base[k]) for k, d in pairs.differences()]
    return nll(torch.cat(margins).numpy(), pairs.p_chosen.numpy())


def sizes(model: Bayes, rows: torch.Tensor) -> tuple[Spread, Spread, Spread]:
    """Number of columns, bytes in a run and bytes in a store of the users with these rows."""
    place = model.factors.first[0].nbytes + model.factors.count[0].nbytes
    own = [model.row_tensors(int(row)) for row in rows]
    saved = np.array([sum(tensor.nbytes for tensor in tensors.values()) + place for tensors in own])
    stored = np.array([len(save(tensors)) for tensors in own])
    return _spread(model.factors.count[rows].numpy()), _spread(saved), _spread(stored)


def _spread(values: NDArray[np.int64] | NDArray[np.int32]) -> Spread:
    return float(np.median(values)), float(values.mean()), float(values.max())


SIZES = ["left out", "columns", "bytes in a run", "bytes in a store"]
LOSSES = ["left out", "log loss", "above the first", "half learnt one by one", "above the first"]


def sizes_of(row: Row) -> list[str]:
    """The sizes of a row as texts."""
    spreads = [" / ".join(f"{x:,.0f}" for x in values) for values in (row.columns, row.saved, row.stored)]
    return [f"{row.share:.1%}", *spreads]


def losses_of(row: Row) -> list[str]:
    """The log losses of a row as texts, with 95% intervals."""
    gains = [f"{e.value:+.5f} [{e.low:+.5f}, {e.high:+.5f}]" for e in (row.gain, row.updated_gain)]
    return [f"{row.share:.1%}", f"{row.loss:.4f}", gains[0], f"{row.updated:.4f}", gains[1]]


if __name__ == "__main__":
    main()

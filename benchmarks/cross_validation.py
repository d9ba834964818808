"""Whether the cross-validated log loss predicts the held-out one, on subsamples of real users, ten draws each.

`python -m benchmarks.cross_validation` prints a table and stores the draws in `runs/cross-validation.json`, from which
a killed run is resumed. It needs the data sets in `--data`; the features of the embedded backbone are computed once and
cached.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from prm.checks import built
from prm.config import FeatureSpec, FeedbackConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.data.sources import read_feedback
from prm.data.splits import SplitBy, keys_of, split
from prm.features.hidden_states import read_features
from prm.io.tables import write_json
from prm.metrics import Array, correct
from prm.models.reward_model import standard_of
from prm.report import show, table
from prm.training.heads.average import fit_average
from prm.training.heads.bayes_fit import fit_bayes, search_bayes
from prm.training.heads.grid_search import HeadData, Search, search
from prm.training.heads.settings_choice import Chosen, choose
from prm.training.linear_heads import feature_specs_of, folds_of
from prm.training.losses import bradley_terry
from prm.training.setup import encode_texts, new_checkpoint
from prm.users.index import UserIndex

SIZES, DRAWS, KINDS = (500, 1000), 10, ("uniform", "individual", "bayes")


@dataclass(frozen=True)
class Log:
    """A data set: how to load it, by what to split it, and the size of the held-out part."""

    name: str
    path: str
    source: str
    by: SplitBy
    test_fraction: float
    settings: dict[str, object]


LOGS = (
    Log("writers", "writers/rankings.jsonl.gz", "rankings", "prompt", 0.25, {}),
    Log("harms", "harms/ratings.csv.gz", "ratings", "pair", 0.2, {"min_rating_difference": 20.0}),
    Log("harms, new requests", "harms/ratings.csv.gz", "ratings", "response", 0.3, {"min_rating_difference": 20.0}),
    Log("ukp", "ukpconvarg1", "ukpconvarg1", "pair", 0.2, {"ties": "drop"}),
)


@dataclass(frozen=True)
class Read:
    """A log with the features of its texts, and the indices [2, n] of chosen and rejected among them."""

    log: Log
    comparisons: list[Comparison]
    features: dict[FeatureSpec, Tensor]
    index: Tensor


class Draw(TypedDict):
    """A kind of model trained on one draw.

    Its log loss (nats) by cross-validation (`promised`) and on the held-out part (`given`), the standard error of their
    difference, the held-out accuracy in [0, 1], and the number of settings that were averaged.
    """

    kind: str
    promised: float
    given: float
    error: float
    accuracy: float
    averaged: int


def read(log: Log, data: Path) -> Read:
    """Compute the features of every text once, without the users' texts, as for `bayes`."""
    settings = built(FeedbackConfig, {"path": str(data / log.path), "source": log.source, **log.settings})
    comparisons = [replace(c, user_text="") for c in read_feedback(settings).comparisons]
    config = TrainConfig()
    checkpoint = new_checkpoint(config, UserIndex.from_comparisons(comparisons))
    texts, index = encode_texts(checkpoint.encoder(), comparisons)
    features = read_features(checkpoint.model, texts, feature_specs_of(config, checkpoint.model))
    return Read(log, comparisons, features, index)


def draw_of(read_log: Read, size: int, seed: int, kinds: Sequence[str]) -> list[Draw]:
    """Cross-validated and held-out log loss of each kind of model trained on `size` comparisons."""
    index = {id(c): i for i, c in enumerate(read_log.comparisons)}
    train, held_out = split(read_log.comparisons, read_log.log.by, read_log.log.test_fraction, seed)
    train = [train[i] for i in np.random.default_rng(seed).permutation(len(train))[:size]]
    users = UserIndex.from_comparisons(train)
    config = TrainConfig(seed=seed)
    config.data.holdout_by = read_log.log.by
    used, pairs = torch.unique(read_log.index[:, [index[id(c)] for c in train]], return_inverse=True)
    rows = torch.tensor([users.row(c.user_id) for c in train])
    labels = torch.tensor([[c.p_chosen, c.weight] for c in train])
    features = {spec: states[used] for spec, states in read_log.features.items()}
    data = HeadData(features, pairs[0], pairs[1], rows, labels[:, 0], labels[:, 1], folds_of(config, train))
    uniform = search(data, replace(config, users=UserConfig("uniform")), 1)
    out: list[Draw] = []
    for kind in kinds:
        of_kind = replace(config, users=UserConfig(kind))  # type: ignore[arg-type]
        best = _best(data, uniform, of_kind, users.n_rows)
        margin = _margins(read_log, data, best, of_kind, users, [index[id(c)] for c in held_out])
        p = np.array([c.p_chosen for c in held_out])
        loss = bradley_terry(torch.from_numpy(margin), torch.from_numpy(p)).numpy()
        promised = bradley_terry(best.margin, data.p_chosen)[~best.margin.isnan()].numpy()
        validated = [c for c, m in zip(train, best.margin, strict=True) if not m.isnan()]
        out.append(
            {
                "kind": kind,
                "promised": float(promised.mean()),
                "given": float(loss.mean()),
                "error": float(
                    np.hypot(_error(promised, validated, read_log.log.by), _error(loss, held_out, read_log.log.by))
                ),
                "accuracy": float(np.nanmean(correct(margin, p))),
                "averaged": len(best.trials),
            }
        )
    return out


def _best(data: HeadData, uniform: Search, config: TrainConfig, n_rows: int) -> Chosen:
    if config.users.kind == "bayes":
        return search_bayes(data, uniform, config, n_rows)[0]
    return choose(uniform if config.users.kind == "uniform" else search(data, config, n_rows), data)


def _margins(
    read_log: Read, data: HeadData, best: Chosen, config: TrainConfig, users: UserIndex, rows: Sequence[int]
) -> Array:
    """Margins of the comparisons in `rows` (held out) by the final model, fitted on all of `data`."""
    mean, scale = standard_of(data.states(best.feature_spec))
    all_states = (replace(data, features=read_log.features).states(best.feature_spec) - mean) / scale
    states = (data.states(best.feature_spec) - mean) / scale
    fit = fit_bayes if config.users.kind == "bayes" else fit_average
    model = fit(data, best, config, users.n_rows, states)
    chosen, rejected = read_log.index[:, list(rows)]
    user_rows = torch.tensor([users.row(read_log.comparisons[i].user_id) for i in rows])
    with torch.no_grad():
        return model.margins(all_states[chosen] - all_states[rejected], user_rows).double().numpy()


def _error(loss: Array, comparisons: Sequence[Comparison], by: SplitBy) -> float:
    """Standard error of the mean, clustered by user or by the split key, whichever is larger."""
    clusterings = [[c.user_id for c in comparisons], [keys[0] for keys in keys_of(comparisons, by)]]
    residuals = loss - loss.mean()
    sums = [np.bincount(np.unique(names, return_inverse=True)[1], residuals) for names in clusterings]
    return float(max(np.sqrt((s**2).sum() * len(s) / max(len(s) - 1, 1)) for s in sums) / len(loss))


def main(arguments: Sequence[str] | None = None, folder: Path = Path("runs")) -> None:
    """Compute missing draws, then print the table."""
    parser = ArgumentParser(prog="python -m benchmarks.cross_validation", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--sets", nargs="*", default=[log.name for log in LOGS])
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--draws", type=int, default=DRAWS)
    args = parser.parse_args(arguments)
    output = folder / "cross-validation.json"
    known: dict[str, list[Draw]] = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    for log in (log for log in LOGS if log.name in args.sets):
        texts: Read | None = None
        for seed in range(args.draws):
            for size in args.sizes:
                key = " | ".join([log.name, str(size), str(seed), " ".join(args.kinds)])
                if key not in known:
                    texts = texts or read(log, args.data)
                    known[key] = draw_of(texts, size, seed, args.kinds)
                    write_json(output, known)
                    show(f"{key}: {known[key]}")
    show(table("promises", HEADER, rows_of(known)))


HEADER = ["", "comparisons", "", "draws", "cross-validated", "held-out", "difference", "within its error", "accuracy %"]


def rows_of(known: dict[str, list[Draw]]) -> list[list[str]]:
    """Means over the draws, and how many differences are below 1.96 of their standard errors."""
    groups: dict[tuple[str, ...], list[Draw]] = {}
    for key, rows in known.items():
        for row in rows:
            groups.setdefault((*key.split(" | ")[:2], row["kind"]), []).append(row)
    out = []
    for names, draws in sorted(groups.items()):
        figures = np.array([[d["promised"], d["given"], d["error"], d["accuracy"]] for d in draws])
        promised, given, error, right = figures.T
        within = int((np.abs(promised - given) < 1.96 * error).sum())
        difference = f"{(promised - given).mean():+.3f} ± {np.sqrt((error**2).mean()):.3f}"
        cells = [
            f"{promised.mean():.3f}",
            f"{given.mean():.3f}",
            difference,
            f"{within} of {len(draws)}",
            f"{100 * right.mean():.1f}",
        ]
        out.append([*names, str(len(draws)), *cells])
    return out


if __name__ == "__main__":
    main()

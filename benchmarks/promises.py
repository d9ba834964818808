"""Is the likelihood that cross-validation promises what held-out comparisons give? On real people, thinned, ten draws.

`python -m benchmarks.promises` prints a table and keeps the draws in `runs/promises.json`, behind which a killed run
goes on. It needs the data sets of `--data`; texts are read by the embedded backbone once, into the cache.
"""

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prm.config import FeedbackConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.data.sources import read_feedback
from prm.data.splits import SplitBy, keys_of, split
from prm.features.hidden_states import read_features
from prm.io.tables import write_json
from prm.metrics import Array, correct
from prm.models.reward_model import standard_of
from prm.report import show, table
from prm.training.bayes_fit import fit_bayes, search_bayes
from prm.training.head_average import fit_average
from prm.training.head_choice import Chosen, choose
from prm.training.head_search import HeadData, Search, search
from prm.training.linear_heads import feature_specs_of, folds_of
from prm.training.losses import bradley_terry
from prm.training.setup import encode_texts, new_checkpoint
from prm.users.index import UserIndex

SIZES, DRAWS, KINDS = (500, 1000), 10, ("uniform", "individual", "bayes")


@dataclass(frozen=True)
class Log:
    """A data set: how it is read, what its held-out part shares nothing of, and how large that is."""

    name: str
    path: str
    source: str
    by: SplitBy
    test_fraction: float
    settings: dict[str, Any]


LOGS = (
    Log("writers", "writers/rankings.jsonl.gz", "rankings", "prompt", 0.25, {}),
    Log("harms", "harms/ratings.csv.gz", "ratings", "pair", 0.2, {"min_rating_difference": 20.0}),
    Log("harms, new requests", "harms/ratings.csv.gz", "ratings", "response", 0.3, {"min_rating_difference": 20.0}),
    Log("ukp", "ukpconvarg1", "ukpconvarg1", "pair", 0.2, {"ties": "drop"}),
)


@dataclass(frozen=True)
class Read:
    """A log whose texts have been read: features of the texts, places [2, n] of chosen and rejected among them."""

    log: Log
    comparisons: list[Comparison]
    features: dict[Any, Tensor]
    index: Tensor


def read(log: Log, data: Path) -> Read:
    """Read every text once; what people say of themselves is left out, as `bayes` does."""
    settings = FeedbackConfig(path=str(data / log.path), source=log.source, **log.settings)  # type: ignore[arg-type]
    comparisons = [replace(c, user_text="") for c in read_feedback(settings).comparisons]
    config = TrainConfig()
    checkpoint = new_checkpoint(config, UserIndex.from_comparisons(comparisons))
    texts, index = encode_texts(checkpoint.encoder(), comparisons)
    features = read_features(checkpoint.model, texts, feature_specs_of(config, checkpoint.model))
    return Read(log, comparisons, features, index)


def draw_of(found: Read, size: int, seed: int, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """What each kind of model promises after `size` comparisons, and what the held-out part gives."""
    place = {id(c): i for i, c in enumerate(found.comparisons)}
    learn, held_out = split(found.comparisons, found.log.by, found.log.test_fraction, seed)
    learn = [learn[i] for i in np.random.default_rng(seed).permutation(len(learn))[:size]]
    users = UserIndex.from_comparisons(learn)
    config = TrainConfig(seed=seed)
    config.data.holdout_by = found.log.by
    used, places = torch.unique(found.index[:, [place[id(c)] for c in learn]], return_inverse=True)
    rows = torch.tensor([users.row(c.user_id) for c in learn])
    labels = torch.tensor([[c.p_chosen, c.weight] for c in learn])
    features = {reading: states[used] for reading, states in found.features.items()}
    data = HeadData(features, places[0], places[1], rows, labels[:, 0], labels[:, 1], folds_of(config, learn))
    uniform = search(data, replace(config, users=UserConfig("uniform")), 1)
    out = []
    for kind in kinds:
        chosen = replace(config, users=UserConfig(kind))  # type: ignore[arg-type]
        kept = _kept(data, uniform, chosen, users.n_rows)
        margin = _outcome(found, data, kept, chosen, users, [place[id(c)] for c in held_out])
        p = np.array([c.p_chosen for c in held_out])
        loss = bradley_terry(torch.from_numpy(margin), torch.from_numpy(p)).numpy()
        promised = bradley_terry(kept.margin, data.p_chosen)[~kept.margin.isnan()].numpy()
        judged = [c for c, m in zip(learn, kept.margin, strict=True) if not m.isnan()]
        out.append(
            {
                "kind": kind,
                "promised": float(promised.mean()),
                "given": float(loss.mean()),
                "error": float(np.hypot(_error(promised, judged, found.log.by), _error(loss, held_out, found.log.by))),
                "accuracy": float(np.nanmean(correct(margin, p))),
                "averaged": len(kept.trials),
            }
        )
    return out


def _kept(data: HeadData, uniform: Search, config: TrainConfig, n_rows: int) -> Chosen:
    if config.users.kind == "bayes":
        return search_bayes(data, uniform, config, n_rows)[0]
    return choose(uniform if config.users.kind == "uniform" else search(data, config, n_rows), data)


def _outcome(
    found: Read, data: HeadData, kept: Chosen, config: TrainConfig, users: UserIndex, places: Sequence[int]
) -> Array:
    """Margins of the held-out comparisons by the model as it is saved, fitted on everything."""
    mean, scale = standard_of(data.states(kept.reading))
    whole = (replace(data, features=found.features).states(kept.reading) - mean) / scale
    states = (data.states(kept.reading) - mean) / scale
    fit = fit_bayes if config.users.kind == "bayes" else fit_average
    model = fit(data, kept, config, users.n_rows, states)
    chosen, rejected = found.index[:, list(places)]
    judges = torch.tensor([users.row(found.comparisons[i].user_id) for i in places])
    with torch.no_grad():
        return model.margins(whole[chosen] - whole[rejected], judges).double().numpy()


def _error(loss: Array, comparisons: Sequence[Comparison], by: SplitBy) -> float:
    """Standard error of the mean of what hangs together by people, or by what is split, whichever is larger."""
    whole = [[c.user_id for c in comparisons], [keys[0] for keys in keys_of(comparisons, by)]]
    away = loss - loss.mean()
    sums = [np.bincount(np.unique(names, return_inverse=True)[1], away) for names in whole]
    return float(max(np.sqrt((s**2).sum() * len(s) / max(len(s) - 1, 1)) for s in sums) / len(loss))


def main(arguments: Sequence[str] | None = None, folder: Path = Path("runs")) -> None:
    """Every draw that is not there yet, then the table."""
    parser = ArgumentParser(prog="python -m benchmarks.promises", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--sets", nargs="*", default=[log.name for log in LOGS])
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--draws", type=int, default=DRAWS)
    args = parser.parse_args(arguments)
    output = folder / "promises.json"
    known: dict[str, Any] = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
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


HEADER = ["", "comparisons", "", "draws", "promised", "given", "promised less given", "within its error", "accuracy %"]


def rows_of(known: dict[str, list[dict[str, Any]]]) -> list[list[str]]:
    """Means over the draws; how many of them are off by less than 1.96 of their own errors."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for key, rows in known.items():
        for row in rows:
            groups.setdefault((*key.split(" | ")[:2], row["kind"]), []).append(row)
    out = []
    for names, draws in sorted(groups.items()):
        promised, given, error, right = (
            np.array([d[k] for d in draws]) for k in ("promised", "given", "error", "accuracy")
        )
        within = int((np.abs(promised - given) < 1.96 * error).sum())
        off = f"{(promised - given).mean():+.3f} ± {np.sqrt((error**2).mean()):.3f}"
        figures = [
            f"{promised.mean():.3f}",
            f"{given.mean():.3f}",
            off,
            f"{within} of {len(draws)}",
            f"{100 * right.mean():.1f}",
        ]
        out.append([*names, str(len(draws)), *figures])
    return out


if __name__ == "__main__":
    main()

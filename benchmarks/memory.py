"""Memory in fresh processes: of scoring, of a million users beyond one, and of runs beyond one backbone.

`python -m benchmarks.memory PART ARGUMENTS` measures one part (Linux only: from /proc) and prints it as JSON.
`python -m benchmarks.memory posteriors smollm2-135m 1000000 64 24` saves and opens a million users of `bayes` with 64
directions and 3 columns each on average, and estimates what a hundred million would take.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch

from benchmarks.heads import empty_cache
from benchmarks.ratio import Ratio
from benchmarks.scoring import answers_of, soft_prompts, words
from prm.checkpoint import checkpoint as checkpoints
from prm.config import BackboneConfig, DataConfig, SearchConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.evaluation.evaluate import evaluate_run
from prm.features.hidden_states import read_features
from prm.io.tables import write_jsonl
from prm.models.backbones import resolve
from prm.scoring.scorer import Scorer
from prm.training.run import train
from prm.training.setup import encode_texts, new_checkpoint
from prm.users.bayes_model import Bayes
from prm.users.index import UserIndex

_SCORED = 100  # users of the million, spread over all rows
_RANK, _COLUMNS = (
    64,
    24,
)  # of their posteriors: the default, and the mean that benchmarks/compact_posterior.py finds for Jester
_ESTIMATED = 100_000_000  # users
_REPEATS = 3  # of opening, of which the fastest counts
_SIDES = words(30), words(8)  # preferred by one user, and by the other
_LOG = [Comparison(f"person {k}", f"What of number {i}?", _SIDES[k], _SIDES[1 - k]) for i in range(20) for k in (0, 1)]


def ratios(backbone: str = "smollm2-135m", million: int = 1_000_000, people: int = 100) -> Iterator[Ratio]:
    """Memory of a hundred users' soft prompts and of small runs; time and memory to load a million users' linear heads.

    Loading is measured after all imports and without disk reads: the files were just written. Memory is the process's
    anonymous memory; the kernel also maps up to two megabytes of cached file pages around each row that is read.
    """
    if sys.platform != "linux":
        return
    for tokens in (1, 10):
        for field, what, bar in (("peak", "with the model", 2.0), ("above", "above the loaded model", None)):
            yield Ratio(
                f"peak memory of scoring {what}, soft prompt of {tokens} as suffix, 16 responses: {people} users / one",
                partial(_scoring_takes, field, backbone, people, tokens),
                partial(_scoring_takes, field, backbone, 1, tokens),
                at_most=bar,
                repeats=1,
                unit="bytes",
            )
    name = resolve(backbone)
    for bits in (16, 32):
        with small_run(name, bits) as run:
            for what, first in {
                "training linear heads": partial(_own, "training", name, bits),
                "evaluating them and the uniform model": partial(_own, "evaluating", run),
            }.items():
                yield Ratio(
                    f"peak memory, less imports, {bits} bits: {what} / reading the log with one backbone",
                    first,
                    partial(_own, "reading", name, bits),
                    at_most=1.15,
                    repeats=1,
                    unit="bytes",
                )
    saved = {"linear heads": saved_people, "posteriors": saved_posteriors}
    for what, save in saved.items():
        with save(backbone, million) as many, save(backbone, 1) as one:
            yield from _ratios_of_many(what, many, million, one)


def _ratios_of_many(kind: str, many: Path, people: int, one: Path) -> Iterator[Ratio]:
    yield Ratio(
        f"loading the {kind} of {people:,} users / two seconds",
        lambda: measured_apart("loading", many, people)["seconds"],
        lambda: 2.0,
        at_most=1.0,
        repeats=3,
        unit="reported seconds",
    )
    table = (many / "model.safetensors").stat().st_size
    for field, what, bar in (("own", "memory", 0.01), ("mapped", "mapped pages of files", None)):
        yield Ratio(
            f"{what} that {kind} of {people:,} users add to one, {_SCORED} of them scored / their table",
            partial(_added, field, many, people, one),
            lambda: table,
            at_most=bar,
            repeats=1,
            unit="bytes",
        )


def _scoring_takes(field: str, backbone: str, people: int, tokens: int) -> float:
    return float(measured_apart("scoring", backbone, people, tokens)[field])


def _own(part: str, *arguments: object) -> float:
    return float(measured_apart(part, *arguments)["own"])


def _added(field: str, many: Path, people: int, one: Path) -> float:
    return float(measured_apart("loading", many, people)[field] - measured_apart("loading", one, 1)[field])


@contextmanager
def saved_people(backbone: str, people: int) -> Iterator[Path]:
    """A temporary run folder with linear heads of random weights."""
    with tempfile.TemporaryDirectory() as parent:
        config = TrainConfig(users=UserConfig("individual"))
        config.backbone.name = backbone
        checkpoint = new_checkpoint(config, UserIndex(f"person {i}" for i in range(people)))
        with torch.no_grad():
            checkpoint.model.user_model.per_row()[0].uniform_(generator=torch.Generator().manual_seed(0))
        folder = Path(parent) / "run"
        folder.mkdir()
        checkpoints.save(checkpoint, folder, {})
        del checkpoint
        yield folder


@contextmanager
def saved_posteriors(backbone: str, people: int, rank: int = _RANK, columns: int = _COLUMNS) -> Iterator[Path]:
    """A temporary run folder of `bayes` with random posteriors, of none to twice as many columns."""
    with tempfile.TemporaryDirectory() as parent:
        config = TrainConfig(users=UserConfig("bayes", rank=rank))
        config.backbone.name = backbone
        checkpoint = new_checkpoint(config, UserIndex(f"person {i}" for i in range(people)))
        users, draw = checkpoint.model.user_model, torch.Generator().manual_seed(0)
        assert isinstance(users, Bayes)
        with torch.no_grad():
            users.moment.copy_(torch.eye(rank))
            users.set_prior(torch.eye(rank))
            users.basis.normal_(generator=draw)
            users.means[1:].normal_(generator=draw)
            count = torch.randint(2 * columns + 1, (people,), generator=draw)
            users.factors.make_room(int(count.sum()))
            users.factors.vectors.uniform_(0.0, 0.1, generator=draw)
            users.factors.count[1:] = count
            users.factors.first.copy_(users.factors.count.cumsum(0) - users.factors.count)
        folder = Path(parent) / "run"
        folder.mkdir()
        checkpoints.save(checkpoint, folder, {})
        del checkpoint, users
        yield folder


@contextmanager
def small_run(backbone: str, bits: int) -> Iterator[Path]:
    """A temporary run folder with linear heads for two users."""
    with tempfile.TemporaryDirectory() as parent:
        yield _train(backbone, bits, Path(parent))


def _train(backbone: str, bits: int, folder: Path) -> Path:
    write_jsonl(folder / "log.jsonl", _LOG)
    config = TrainConfig(
        output_dir=str(folder / "run"),
        data=DataConfig(path=str(folder / "log.jsonl")),
        backbone=_backbone(backbone, bits),
        search=SearchConfig(folds=2, l2=[100.0], user_l2=[100.0], poolings=["mean"]),
    )
    with empty_cache():
        return train(config)


def _backbone(name: str, bits: int) -> BackboneConfig:
    return BackboneConfig(name, dtype="bfloat16" if bits == 16 else "float32")


def scoring(backbone: str, people: int, tokens: int) -> dict[str, float]:
    """Peak bytes of scoring 16 responses for suffix soft prompts, without loading, and bytes above the model."""
    users = [f"u{i}" for i in range(people)]
    scorer = soft_prompts(backbone, "bfloat16", tokens, users)
    prompt, responses = words(300), answers_of(16, 60)
    scorer.score(words(8), answers_of(1, 4))  # warm-up: libraries allocate memory at first use
    before = _restart_peak()
    scorer.score_users(prompt, responses, users)
    peak = status("VmHWM")
    return {"peak": peak, "above": peak - before}


def loading(folder: str, people: int) -> dict[str, float]:
    """Seconds to load a run; anonymous memory and mapped file pages, in bytes, after some users were scored."""
    started = time.perf_counter()
    scorer = Scorer.from_pretrained(folder, device="cpu")
    seconds = time.perf_counter() - started
    scored = [f"person {i * people // _SCORED}" for i in range(min(people, _SCORED))]
    assert all(scorer.knows(user) for user in scored)
    scorer.score_users("What now?", ["This.", "That, I say."], scored)
    return {"seconds": seconds, "own": status("RssAnon"), "mapped": status("RssFile")}


def posteriors(backbone: str, people: int, rank: int = _RANK, columns: int = _COLUMNS) -> dict[str, float]:
    """Bytes on disk of a run of `bayes`; seconds to open it and bytes that its users add; and `estimated`, at scale."""
    with saved_posteriors(backbone, people, rank, columns) as many, saved_posteriors(backbone, 1, rank, columns) as one:
        disk = {
            name: (many / f"{name}.safetensors").stat().st_size - (one / f"{name}.safetensors").stat().st_size
            for name in ("model", "users")
        }
        runs = [(measured_apart("loading", many, people), measured_apart("loading", one, 1)) for _ in range(_REPEATS)]
    # other work only adds to either
    taken = {n: min(found[n] for found, _ in runs) - min(first[n] for _, first in runs) for n in runs[0][0]}
    return {"people": people, **disk, **taken, **estimated(taken, disk, people, _ESTIMATED)}


def estimated(taken: Mapping[str, float], disk: Mapping[str, float], measured: int, people: int) -> dict[str, float]:
    """What so many users would take, from what `measured` ones took more than one.

    Extrapolated in proportion to the number of users: bytes on disk, and the seconds of opening, which reads all of
    them once. That holds while the files are in the system's file cache; a disk that reads more slowly takes as long as
    it reads. Not extrapolated: the mapped pages of those who are scored, which are as many whatever the size of a run.

    Args:
        taken: `seconds` and bytes of `own` memory that the measured users added.
        disk: bytes of each file that they added.
    """
    times = people / measured
    return {
        "estimated people": people,
        "estimated bytes a person": sum(disk.values()) / measured,
        "estimated disk": times * sum(disk.values()),
        "estimated seconds": times * taken["seconds"],
        "estimated own": times * max(0.0, taken["own"]),
    }


def reading(backbone: str, bits: int) -> dict[str, float]:
    """Peak bytes of loading a backbone and reading the texts of a small log with it; bytes above the imports.

    Args:
        backbone: folder or hub id.
        bits: per weight, 16 or 32.
    """
    before = status("VmRSS")
    checkpoint = new_checkpoint(TrainConfig(backbone=_backbone(backbone, bits)), UserIndex.from_comparisons(_LOG))
    texts, _ = encode_texts(checkpoint.encoder(), _LOG)
    with empty_cache():
        read_features(checkpoint.model, texts, [checkpoint.model.feature_spec])
    return _peak_above(before)


def training(backbone: str, bits: int) -> dict[str, float]:
    """The same of training linear heads on this log."""
    before = status("VmRSS")
    with tempfile.TemporaryDirectory() as folder:
        _train(backbone, bits, Path(folder))
    return _peak_above(before)


def evaluating(run: str) -> dict[str, float]:
    """The same of evaluating a run on this log."""
    before = status("VmRSS")
    with empty_cache():
        evaluate_run(run, _LOG)
    return _peak_above(before)


def _peak_above(before: int) -> dict[str, float]:
    peak = status("VmHWM")
    # the kernel counts pages per core: where nothing grew, its peak can be a few pages below the earlier count
    return {"peak": peak, "own": max(0, peak - before)}


PARTS: dict[str, Callable[..., dict[str, float]]] = {
    "scoring": scoring,
    "loading": loading,
    "posteriors": posteriors,
    "reading": reading,
    "training": training,
    "evaluating": evaluating,
}


def measured_apart(part: str, *arguments: object) -> dict[str, float]:
    """The result of a part in a separate process."""
    command = [sys.executable, "-m", "benchmarks.memory", part, *map(str, arguments)]
    result: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result


def _restart_peak() -> int:
    """Reset the peak to the resident bytes, and return them."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(field: str, process: int | None = None) -> int:
    """Bytes of a field of a process's status, of this one by default: resident memory (`VmRSS`; `RssAnon`, `RssFile`)
    or its peak (`VmHWM`)."""
    text = Path(f"/proc/{process or 'self'}/status").read_text()
    lines = dict(line.split(":", 1) for line in text.splitlines())
    return int(lines[field].split()[0]) * 1024


if __name__ == "__main__":
    part, name, *numbers = sys.argv[1:]
    print(json.dumps(PARTS[part](name, *map(int, numbers))))

"""What scoring files costs as texts, users, responses, layers and workers grow: measured small, fitted, extrapolated.

`python -m benchmarks scale` prints the tables, and writes what was measured to `runs/bench-growth.json`.
"""

import math
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM

from benchmarks.heads import empty_cache
from benchmarks.memory import saved_people
from benchmarks.ratio import timed
from benchmarks.scale import Work, measured_apart, write_rows
from benchmarks.scoring import UKP, answers_of, untrained_scorer, words
from prm.features.hidden_states import compute_features
from prm.io.environment import environment
from prm.io.tables import plain, write_json
from prm.models.backbones import load_tokenizer, resolve
from prm.models.loading import load_config
from prm.models.reward_model import RewardModel
from prm.report import show
from prm.report.page import markdown
from prm.scale import job, sort_texts
from prm.scale.sort_texts import TEXTS
from prm.scale.work_files import opened, write_batches

_GROUPS = "groups in a work file: to open one"
_NO_LINE = math.nan, math.nan
_FLAT = 0.05  # what grows by less over all sizes is taken for constant
_HEADER = ("checking and writing", "until a model has loaded", "reading", "peak memory", "disk", "to and from workers")


class Cost(NamedTuple):
    """Seconds and bytes of a job; NaN for what was not measured.

    Args:
        passes: seconds of the passes that one process makes.
        start: seconds until the first model has loaded.
        read: seconds of reading after that.
        memory: the peaks of all processes, added up.
        disk: work files, output, and the run's own files.
        network: texts and rewards, as they are pickled for Ray's workers.
    """

    passes: float = math.nan
    start: float = math.nan
    read: float = math.nan
    memory: float = math.nan
    disk: float = math.nan
    network: float = math.nan


@dataclass(frozen=True)
class Growth:
    """One thing that grows, while all others stay.

    Args:
        sizes: at which it is measured.
        target: size that the costs are extrapolated to; 0 for none.
        unfit: fields of `Cost` that do not follow a line.
    """

    name: str
    sizes: Sequence[int]
    cost: Callable[[int], Cost]
    target: int = 0
    unfit: Collection[str] = ()


def growths(backbone: str = "smollm2-135m", size: float = 1.0) -> Iterator[Growth]:
    """What grows. But for one of them, texts are read by a small random backbone with the same tokenizer.

    Args:
        size: of all numbers of texts, as a share.
    """
    rows = int(2000 * size)

    def steps(first: int, factor: int = 2) -> list[int]:
        return [max(1, int(first * size)) * factor**i for i in range(3)]

    with tempfile.TemporaryDirectory() as folder:
        parent = Path(folder)

        def score(name: str, n: int, layers: int = 4, users: int = 100, answers: int = 1, workers: int = 0) -> Cost:
            path = write_rows(parent / "rows.parquet", n, answers, users=users)
            with saved_people(name or small_backbone(backbone, parent, layers), users) as run:
                took = measured_apart(Work(str(run), str(path), workers))
                own = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
            disk = took.work + took.output + own
            return Cost(took.check + took.write, took.start, took.read, took.peak, disk, took.sent + took.received)

        # memory stops growing where buffers are full, at more texts than these: `scale` has the ratio
        yield Growth("texts", steps(30_000), lambda n: score("", n), 10**8, unfit=("memory",))
        reading, rest = f"texts that {Path(backbone).name} reads", [field for field in Cost._fields if field != "read"]
        yield Growth(reading, steps(200), lambda n: score(backbone, n), 10**8, unfit=rest)
        yield Growth("users of the run", steps(10_000, 5), lambda n: score("", rows, users=n), 10**6)
        yield Growth("responses of a row", [4, 16, 64], lambda n: score("", max(1, rows // 8), answers=n))
        yield Growth("layers of the backbone", [2, 4, 8], lambda n: score("", rows, layers=n))
        workers = "workers of Ray, a thread each"
        yield Growth(workers, [1, 2, 4], lambda n: score("", rows, workers=n), 64, unfit=("start", "read"))
        deep = small_backbone(backbone, parent, 8)
        yield Growth("layers whose hidden states are kept", [1, 2, 4], lambda n: _kept(deep, max(8, rows // 4), n))
        yield Growth(_GROUPS, [64, 512, 4096], lambda n: _opening(parent, n))


def small_backbone(name: str, parent: Path, layers: int, width: int = 64) -> str:
    """The folder of a random language model with a backbone's tokenizer and vocabulary."""
    folder = parent / f"backbone-{layers}"
    if not folder.exists():
        config = load_config(resolve(name), f"backbone {name!r}")
        config.update(
            {
                "hidden_size": width,
                "intermediate_size": 2 * width,
                "num_hidden_layers": layers,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": width // 4,
            }
        )
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).save_pretrained(folder)
        load_tokenizer(name).save_pretrained(folder)
    return str(folder)


def _kept(backbone: str, texts: int, layers: int) -> Cost:
    """Reading texts into the store of features, from which heads are trained."""
    scorer = untrained_scorer(backbone, "float32")
    assert isinstance(scorer.model, RewardModel)
    model = scorer.model
    encoded = [scorer.reader.encode("What of kings?", response) for response in answers_of(texts, 60)]
    settings = [(layer + 1, "mean") for layer in range(layers)]
    with empty_cache() as cache:
        seconds = timed(lambda: compute_features(model, encoded, settings))
        return Cost(read=seconds, disk=sum(file.stat().st_size for file in cache.rglob("*") if file.is_file()))


def _opening(parent: Path, groups: int) -> Cost:
    """Opening a work file and reading one of its groups, as the second pass does for each file and group."""
    path, batch = parent / "texts.arrow", _batch(40_000)
    share = len(batch) // groups
    write_batches(path, TEXTS, (batch.slice(i * share, share) for i in range(groups)), {})

    def read(times: int = 100) -> None:
        for i in range(times):
            with opened(path) as reader:
                reader.get_batch(i * groups // times)

    return Cost(read=timed(read) / 100, disk=path.stat().st_size)


def _batch(n: int) -> pa.RecordBatch:
    """Texts of average length as a work file holds them."""
    ints = {name: np.arange(n) for name in ("prompt_hash", "key_high", "key_low", "portion", "position")}
    prompt, response = (words(int(np.mean(lengths))) for lengths in UKP)
    texts = {"prompt": prompt, "response": response, "user_text": "", "user": "person 0"}
    columns = ints | {name: [text] * n for name, text in texts.items()}
    return pa.record_batch([pa.array(columns[field.name]).cast(field.type) for field in TEXTS], schema=TEXTS)


def write_growth(folder: Path, backbone: str = "smollm2-135m", size: float = 1.0) -> None:
    """Measure all, print Markdown tables, and write `bench-growth.json` anew after each thing that grows."""
    records, raw, lines, far = list[dict[str, object]](), list[list[str]](), list[list[str]](), list[list[str]]()
    opening = math.nan
    for growth in growths(backbone, size):
        costs = np.array([growth.cost(n) for n in growth.sizes])
        found = [
            _NO_LINE if field in growth.unfit else fitted(growth.sizes, column)
            for field, column in zip(Cost._fields, costs.T, strict=True)
        ]
        beyond = [constant + slope * growth.target for slope, constant in found]
        records.append(
            {"name": growth.name, "sizes": list(growth.sizes), "costs": plain(costs.tolist()), "lines": plain(found)}
            | ({"target": growth.target, "extrapolated": plain(beyond)} if growth.target else {})
        )
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "bench-growth.json", {"fields": Cost._fields, "growths": records, **environment()})
        show(f"{growth.name}: measured")
        raw += [
            _row(growth.name, n, map(shown, Cost._fields, cost)) for n, cost in zip(growth.sizes, costs, strict=True)
        ]
        lines.append([growth.name, *map(_line, Cost._fields, found)])
        if growth.target:
            far.append(_row(growth.name, growth.target, map(shown, Cost._fields, beyond)))
        if growth.name == _GROUPS:
            opening = costs[:, Cost._fields.index("read")].max()
    for title, header, rows in (
        ("measured", ["grows", "size", *_HEADER], raw),
        ("fitted", ["grows", *_HEADER], lines),
        ("extrapolated, on one machine like this", ["grows", "size", *_HEADER], far),
    ):
        print("", f"**{title}**", "", *markdown(header, rows), sep="\n")
    texts, files, groups = _at(10**8)
    print(
        f"\n{texts:,} texts as above lie in {files:,} work files of {groups:,} groups. To open each group in each file "
        f"takes {shown('read', opening * files * groups)}, which the lines above do not show."
    )


def _at(texts: int) -> tuple[int, int, int]:
    """(texts, work files, groups in each) of so many texts, four to a prompt, in Parquet."""
    size = _batch(1000).nbytes / 1000 * texts
    return texts, math.ceil(size / sort_texts._LOT_BYTES), job.groups_for(texts * job.ROW_BYTES)


def _row(name: str, size: int, cells: Iterable[str]) -> list[str]:
    return [name, f"{size:,}", *cells]


def fitted(sizes: Sequence[int], costs: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> tuple[float, float]:
    """(slope, constant) of the line of least squares; slope 0 for what falls, or hardly grows."""
    if not np.isfinite(costs).all():
        return _NO_LINE
    slope, constant = np.polyfit(sizes, costs, 1)
    if slope <= 0 or np.ptp(costs) < _FLAT * costs.min():
        return 0.0, float(costs.mean())
    return float(slope), float(constant)


def _line(field: str, line: tuple[float, float]) -> str:
    slope, constant = line
    if math.isnan(slope):
        return "-"
    return f"{shown(field, constant)} + {shown(field, slope)} each" if slope else shown(field, constant)


def shown(field: str, value: float) -> str:
    """Seconds or bytes, for people."""
    if math.isnan(value):
        return "-"
    units = _SECONDS if field in ("passes", "start", "read") else _BYTES
    size, unit = next(((size, unit) for size, unit in units if abs(value) >= size), units[-1])
    number = value / size
    return f"{number:,.0f} {unit}" if abs(number) >= 100 else f"{number:.3g} {unit}"


_SECONDS = [(3600.0, "h"), (1.0, "s"), (1e-3, "ms"), (1e-6, "us")]
_BYTES = [(1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "bytes")]

"""Files of any size: Ray against one process on the same cores, and a million rows in constant memory.

Each job has a process of its own: `python -m benchmarks.scale WORK` prints what it took, both as JSON.
"""

import dataclasses
import json
import logging
import os
import pickle
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch

from benchmarks.memory import saved_people, status
from benchmarks.ratio import Ratio
from benchmarks.scoring import UKP, words
from prm.report import show
from prm.scale import ray_engine, score_files
from prm.scale.check_texts import Checker
from prm.scale.job import input_files, open_job
from prm.scale.read_texts import Read, Task, read_texts, read_with
from prm.scale.score_files import SCORES
from prm.scale.sort_texts import sort_texts
from prm.scale.write_shards import write_shards
from prm.scoring.scorer import Scorer

_ROWS_AT_ONCE = 8192  # of a file that is made
_OBJECT_STORE = 256 << 20  # bytes, as for a Ray that the command starts
_LOOKS = 0.1  # seconds between two looks at the memory of other processes


@dataclass(frozen=True)
class Work:
    """A job to measure.

    Args:
        run: its folder.
        path: the file to score.
        workers: of Ray, of one thread each; 0 is this process, with two threads.
    """

    run: str
    path: str
    workers: int = 0


class Taken(NamedTuple):
    """What a job took: seconds, and bytes.

    Args:
        check, start, read, write: seconds of the three passes; those of the second one until the first model has
            loaded, Ray's own start included, and after that.
        peak: memory of the process and of those that it started, the peaks of all added up.
        work: of the work files, just before they are removed.
        output: of the shards.
        sent, received: texts that were read and their rewards, as they are pickled for Ray's workers.
        tasks: number of times that something was sent.
    """

    check: float
    start: float
    read: float
    write: float
    peak: float
    work: float
    output: float
    sent: float
    received: float
    tasks: float


def ratios(
    backbone: str = "smollm2-135m",
    texts: int = 2000,
    rows: int = 1_000_000,
    fewer: int = 100_000,
    different: int = 1000,
) -> Iterator[Ratio]:
    """Texts a second of Ray over one process's; peak memory of many rows over fewer.

    Args:
        texts: all different, that both engines read; their lengths are those of UKPConvArg.
        rows, fewer: that ask for `different` responses.
    """
    if sys.platform != "linux":  # memory is read from /proc
        return
    with saved_people(backbone, 100) as run, tempfile.TemporaryDirectory() as folder:
        path = write_rows(Path(folder) / "texts.parquet", texts)

        def per_second(workers: int) -> float:
            took = measured_apart(Work(str(run), str(path), workers))
            what = "Ray" if workers else "one process"
            show(
                f"{what}: {took.start:.1f} s until a model has loaded, then {texts:,} texts in "
                f"{took.read:.1f} s; {took.sent:,.0f} bytes sent in {took.tasks:.0f} tasks, "
                f"{took.received:,.0f} received; {took.peak / 1e6:,.0f} MB"
            )
            return texts / took.read

        yield Ratio(
            f"{texts:,} different texts once a model has loaded: Ray, two workers of one thread / one process of two",
            lambda: per_second(2),
            lambda: per_second(0),
            at_least=0.85,
            repeats=1,
            unit="texts a second",
        )

        def peak(rows: int) -> float:
            made = write_rows(Path(folder) / f"{rows}.parquet", rows, different=different, users=100)
            took = measured_apart(Work(str(run), str(made)))
            show(
                f"{rows:,} rows, {made.stat().st_size:,} bytes: checked {rows / took.check:,.0f}, read "
                f"{rows / took.read:,.0f} and written {rows / took.write:,.0f} a second; work files "
                f"{took.work:,.0f} bytes, output {took.output:,.0f}; {took.peak / 1e6:,.0f} MB"
            )
            return took.peak

        yield Ratio(
            f"peak memory of a process that scores rows with {different:,} different responses: "
            f"{rows:,} rows / {fewer:,}",
            lambda: peak(rows),
            lambda: peak(fewer),
            at_most=1.1,
            repeats=1,
            unit="bytes",
        )


def write_rows(path: Path, rows: int, answers: int = 1, different: int = 0, users: int = 1) -> Path:
    """Write a Parquet file of rows to score, a few at a time; four rows have the same prompt.

    Args:
        answers: responses of a row.
        different: number of different responses in all rows; all if 0.
        users: "person 0" and so on, in turn.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = torch.Generator().manual_seed(0)
    prompts, responses = (_cycle(lengths, draw) for lengths in UKP)
    pool = [next(responses) for _ in range(different)]
    asked = [next(prompts) for _ in range(-(-different // 4))]
    schema = pa.schema({"user_id": pa.string(), "prompt": pa.string(), "responses": pa.list_(pa.string())})
    with pq.ParquetWriter(path, schema) as writer:
        prompt = ""
        for start in range(0, rows, _ROWS_AT_ONCE):
            columns: dict[str, list[object]] = {name: [] for name in schema.names}
            for i in range(start, min(rows, start + _ROWS_AT_ONCE)):
                prompt = prompt if i % 4 else next(prompts)
                columns["user_id"].append(f"person {i % users}")
                if different:
                    k = [(i * answers + j) * 7919 % different for j in range(answers)]
                    columns["prompt"].append(asked[k[0] // 4])
                    columns["responses"].append([pool[place] for place in k])
                else:
                    columns["prompt"].append(prompt)
                    columns["responses"].append([next(responses) for _ in range(answers)])
            writer.write_table(pa.table(columns, schema))
    return path


def _cycle(lengths: list[int], draw: torch.Generator) -> Iterator[str]:
    while True:
        for length in lengths:
            yield words(length, draw)


def measured_apart(work: Work) -> Taken:
    """What a job takes in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", json.dumps(dataclasses.asdict(work))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return Taken(**json.loads(done.stdout.splitlines()[-1]))


def measure(work: Work) -> Taken:
    """Score a file into a temporary folder, pass by pass, as `score_files` does."""
    with tempfile.TemporaryDirectory() as folder, watched() as peak:
        run, inputs = Path(work.run), input_files(work.path)
        started = time.perf_counter()
        job = open_job(Path(folder) / "scores", run, None, inputs, SCORES.name)
        checker = Checker(run, None)
        found = sort_texts(job, SCORES, checker)
        sorted_at = time.perf_counter()
        counts: Counter[str] = Counter()
        with engine(work) as (read, loaded):
            rewards = read_texts(job, found, _counted(read, counts))
            read_at = time.perf_counter()
        begun = time.perf_counter()
        write_shards(job, SCORES, checker, found, rewards)
        end = time.perf_counter()
        output = sum(path.stat().st_size for path in job.folder.glob("*.parquet"))
        files = sum(path.stat().st_size for path in job.work.iterdir())
        seconds = (sorted_at - started, loaded[0] - sorted_at, read_at - loaded[0], end - begun)
        return Taken(*seconds, peak(), files, output, counts["sent"], counts["received"], counts["tasks"])


@contextmanager
def engine(work: Work) -> Iterator[tuple[Read, list[float]]]:
    """How the texts are read, and when models had loaded, by `time.perf_counter`."""
    loaded = list[float]()

    def load() -> Scorer:
        scorer = Scorer.from_pretrained(work.run, device="cpu")
        loaded.append(time.perf_counter())
        return scorer

    if not work.workers:
        threads = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            yield read_with(load), loaded
        finally:
            torch.set_num_threads(threads)
        return
    import ray

    def sent(*texts: object, real: Callable[..., object] = ray_engine.send) -> object:
        loaded.append(time.perf_counter())
        return real(*texts)

    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    quiet = {"include_dashboard": False, "logging_level": logging.ERROR, "log_to_driver": False}
    ray.init("local", num_cpus=work.workers, object_store_memory=_OBJECT_STORE, **quiet)
    try:
        with patch.object(ray_engine, "send", sent):
            yield score_files._engine("ray", work.run, None, "cpu", work.workers), loaded
    finally:
        ray.shutdown()


def _counted(read: Read, counts: Counter[str]) -> Read:
    """Reads tasks and counts them, and the bytes of texts and rewards, pickled as Ray does."""

    def counted(tasks: Iterable[Task]) -> Iterator[tuple[Task, Sequence[float]]]:
        for task, rewards in read(tasks):
            counts["tasks"] += 1
            counts["sent"] += len(pickle.dumps(task.texts, 5))
            counts["received"] += len(pickle.dumps(rewards, 5))
            yield task, rewards

    return counted


@contextmanager
def watched() -> Iterator[Callable[[], float]]:
    """Gives a function that adds up the peak memory, in bytes, of this process and of all that it has started."""
    peaks, stop = dict[int, int](), threading.Event()

    def look() -> None:
        while not stop.wait(_LOOKS):
            for process in started_by(os.getpid()):
                with suppress(OSError, KeyError):  # it has ended
                    peaks[process] = status("VmHWM", process)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield lambda: float(status("VmHWM") + sum(peaks.values()))
    finally:
        stop.set()
        thread.join()


def started_by(process: int) -> Iterator[int]:
    """The processes that a process has started, and those that they have."""
    with suppress(OSError):
        for thread in Path(f"/proc/{process}/task").iterdir():
            for child in map(int, (thread / "children").read_text().split()):
                yield child
                yield from started_by(child)


if __name__ == "__main__":
    print(json.dumps(measure(Work(**json.loads(sys.argv[1])))._asdict()))

"""Second pass: read each group's texts once, and keep the rewards of all who ask for them in a work file.

A task is a group, or a slice of a large one. Equal texts share a key, and a key is in one task: what the backbone reads
here it reads nowhere else. What is in memory is one task. Rewards are kept, not hidden states: of a hundred million
texts these would fill hundreds of gigabytes, and be read back in random order.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prm.data.comparison import Prompt
from prm.io.progress import progress, without_bars
from prm.models.backbones import device_named
from prm.scale.job import Job
from prm.scale.sort_texts import Portion, texts_path, unpacked_prompt
from prm.scale.work_files import about, opened, write_batches
from prm.scoring.scorer import Scorer

_TASK_TEXTS = 4096
_REWARDS = pa.schema({"position": pa.int32(), "reward": pa.float32()})


Ints = NDArray[np.int32]


class Texts(NamedTuple):
    """Different (text, user) pairs to score, a column each; `users` that the run does not know are `None`."""

    prompts: list[Prompt]
    responses: list[str]
    users: list[str | None]
    user_texts: list[str]


@dataclass(frozen=True)
class Task:
    """Texts to score, and where their rewards go.

    Args:
        path: the work file of the rewards.
        pair: for each place, the index of its pair in `texts`, int32 [n].
        portion, position: the places: the input's portions, and the responses in them, int32 [n] each.
    """

    path: Path
    texts: Texts
    pair: Ints
    portion: Ints
    position: Ints


Read = Callable[[Iterable[Task]], Iterator[tuple[Task, Sequence[float]]]]  # a reward for each pair, in any order


def read_with(load: Callable[[], Scorer]) -> Read:
    """Reads tasks in this process, one after the other. The model is loaded for the first."""

    def read(tasks: Iterable[Task]) -> Iterator[tuple[Task, Sequence[float]]]:
        scorer: Scorer | None = None
        for task in tasks:
            scorer = scorer or load()
            yield task, rewards_of(scorer, task.texts)

    return read


def reader_of(run: str, backbone: str | None, device: str | None) -> Callable[[Texts], list[float]]:
    """Load a run; returns what computes the rewards of a task's pairs, for a worker."""
    return partial(rewards_of, Scorer.from_pretrained(run, backbone, device_named(device)))


def rewards_of(scorer: Scorer, texts: Texts) -> list[float]:
    """The rewards of the pairs; each text is read once."""
    with without_bars():
        return scorer.score_batch(texts.prompts, texts.responses, texts.users, texts.user_texts).tolist()


def read_texts(job: Job, portions: Sequence[Portion], read: Read) -> list[Path]:
    """Compute the rewards that are missing; the work files of all, each with a batch for each portion."""
    paths, missing, done = list[Path](), list[tuple[Path, int, int, int]](), 0
    for group in range(job.groups):
        texts = sum(portion.groups[group] for portion in portions)
        slices = -(-texts // _TASK_TEXTS)
        for part in range(slices):
            path = job.work / f"rewards-{group:04d}-{part:04d}.arrow"
            paths.append(path)
            if found := about(path, job.key):
                done += int(str(found["texts"]))
            else:
                missing.append((path, group, part, slices))
    total = sum(portion.texts for portion in portions)
    with progress(desc="scoring", unit="text", total=total, initial=done) as bar:
        for task, rewards in read(_task(job, len(portions), *entry) for entry in missing):
            _write(job, task, rewards, len(portions))
            bar.update(len(task.pair))
    return paths


def rewards_in(paths: Sequence[Path], portion: int, size: int) -> NDArray[np.float32]:
    """The rewards of a portion's responses, float32 [size]; each is there once, or `ValueError` is raised."""
    rewards, times = np.zeros(size, np.float32), np.zeros(size, np.int64)
    for path in paths:
        with opened(path) as reader:
            batch = reader.get_batch(portion)
        at = batch.column("position").to_numpy()
        rewards[at] = batch.column("reward").to_numpy()
        np.add.at(times, at, 1)
    if not (times == 1).all():
        raise ValueError(f"portion {portion}: {int((times != 1).sum())} rewards are missing, or there twice")
    return rewards


def _task(job: Job, portions: int, path: Path, group: int, part: int, slices: int) -> Task:
    """The texts of a group, or of the part of it whose keys fall into this slice."""
    pair_of: dict[tuple[bytes, str | None], int] = {}
    texts, pairs, places = Texts([], [], [], []), list[int](), list[tuple[int, int]]()
    prompts: dict[str, Prompt] = {}  # one object for all responses to a prompt
    for number in range(portions):
        with opened(texts_path(job, number)) as reader:
            batch = reader.get_batch(group)
        for i, (key, user) in enumerate(zip(*(batch.column(n).to_pylist() for n in ("key", "user")), strict=True)):
            if int.from_bytes(key[8:]) % slices != part:
                continue
            if (pair := pair_of.setdefault((key, user), len(pair_of))) == len(texts.users):
                prompt = batch.column("prompt")[i].as_py()
                texts.prompts.append(prompts.setdefault(prompt, unpacked_prompt(prompt)))
                texts.responses.append(batch.column("response")[i].as_py())
                texts.users.append(user)
                texts.user_texts.append(batch.column("user_text")[i].as_py())
            pairs.append(pair)
            places.append((number, batch.column("position")[i].as_py()))
    portion, position = np.array(places, np.int32).reshape(-1, 2).T
    return Task(path, texts, np.array(pairs, np.int32), portion, position)


def _write(job: Job, task: Task, rewards: Sequence[float], portions: int) -> None:
    values = np.array(rewards, np.float32)[task.pair]

    def batches() -> Iterator[pa.RecordBatch]:
        for number in range(portions):
            here = task.portion == number
            columns = [pa.array(task.position[here], pa.int32()), pa.array(values[here], pa.float32())]
            yield pa.record_batch(columns, schema=_REWARDS)

    write_batches(task.path, _REWARDS, batches(), {"job": job.key, "texts": len(task.pair)})

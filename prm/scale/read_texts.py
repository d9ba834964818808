"""Second pass: read each group's texts once, and keep the rewards of all who ask for them in work files.

Equal texts share a key, and a key is in one task: what the backbone reads here it reads nowhere else. What is in memory
is a group, or a part of a large one; it is cut into tasks. Rewards are kept, not hidden states: of a hundred million
texts these would fill hundreds of gigabytes, and be read back in random order.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from prm.data.comparison import Prompt
from prm.errors import counted
from prm.io.progress import progress, without_bars
from prm.models.backbones import device_named
from prm.scale.job import Job
from prm.scale.sort_texts import TEXTS, Sorted, unpacked_prompt
from prm.scale.work_files import about, opened, write_batches
from prm.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

_TASKS = 512  # of a job, and more where these would have more texts than
_TASK_TEXTS = 4096  # pairs of text and user, at most
_LEAST_TEXTS = 128  # below which a task of a small job does not go: each is a file
_PART_BYTES = 1 << 25  # of texts, repeated ones too, that are in memory at once
_BLOCK_TEXTS = 1 << 23  # whose rewards are in memory at once, 5 bytes each
_REWARDS = pa.schema({"portion": pa.int32(), "position": pa.int32(), "reward": pa.float32()})

Ints = NDArray[np.int32]
Places = NDArray[np.intp]


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


def read_texts(job: Job, found: Sorted, read: Read) -> list[Path]:
    """Compute the rewards that are missing; the work files of all."""
    paths, total = list[Path](), sum(portion.texts for portion in found.portions)
    size = min(_TASK_TEXTS, max(_LEAST_TEXTS, total // _TASKS))
    logger.info("reading %s for %s", counted(total, "response"), counted(sum(p.rows for p in found.portions), "row"))
    with progress(desc="scoring", unit="text", total=total) as bar:

        def missing() -> Iterator[Task]:
            for group in range(job.groups):
                for path, task in _tasks(job, found, group, size):
                    paths.append(path)
                    if known := about(path, job.key):
                        texts = int(str(known["texts"]))
                        bar.initial, bar.n = bar.initial + texts, bar.n + texts
                    else:
                        yield task()

        for task, rewards in read(missing()):
            _write(job, task, rewards)
            bar.update(len(task.pair))
    return paths


class Rewards:
    """The rewards of the work files, by portion; a few million are in memory."""

    def __init__(self, files: Sequence[Path], found: Sorted):
        self._files, self._texts = files, [portion.texts for portion in found.portions]
        self._first, self._ends, self._values = 0, np.zeros(1, np.int64), np.zeros(0, np.float32)

    def of(self, portion: int) -> NDArray[np.float32]:
        """Rewards of a portion's responses, float32 [texts]; each is there once, or `ValueError` is raised."""
        if not 0 <= portion - self._first < len(self._ends) - 1:
            self._load(portion)
        start, end = self._ends[portion - self._first : portion - self._first + 2]
        return self._values[start:end]

    def _load(self, first: int) -> None:
        ends = np.cumsum([0, *self._texts[first:]])
        ends = ends[: max(2, int(np.searchsorted(ends, _BLOCK_TEXTS, "right")))]
        values, times = np.zeros(ends[-1], np.float32), np.zeros(ends[-1], np.uint8)
        for path in self._files:
            with opened(path) as reader:
                batch = reader.get_batch(0)
            portion, position, reward = (batch.column(name).to_numpy() for name in _REWARDS.names)
            here = (portion >= first) & (portion < first + len(ends) - 1)
            at = ends[portion[here] - first] + position[here]
            values[at] = reward[here]
            np.add.at(times, at, 1)
        if not (times == 1).all():
            wrong = int((times != 1).sum())
            raise ValueError(f"from portion {first} on: {wrong} rewards are missing, or there twice")
        self._first, self._ends, self._values = first, ends, values


def _tasks(job: Job, found: Sorted, group: int, size: int) -> Iterator[tuple[Path, Callable[[], Task]]]:
    """The work files of a group's rewards, each with a function that makes its task."""
    number = 0
    for texts in _parts(job, found, group):
        prompt_changes, key_changes, pair_changes = _changes(texts)
        starts = np.flatnonzero(pair_changes)  # of pairs, in `texts`
        places = cuts(np.flatnonzero(prompt_changes[starts]), np.flatnonzero(key_changes[starts]), len(starts), size)
        for begin, end in pairwise(places):
            path = job.work / f"rewards-{group:04d}-{number:04d}.arrow"
            number += 1
            stop = starts[end] if end < len(starts) else len(texts)
            yield path, partial(_task, path, texts.slice(starts[begin], stop - starts[begin]))


def _parts(job: Job, found: Sorted, group: int) -> Iterator[pa.RecordBatch]:
    """A group's texts, sorted by prompt, key and user; a large group in parts, by prompt, or else by key."""
    parts = -(-found.groups[group] // _PART_BYTES)
    for i in range(parts):
        size = sum(batch.nbytes for batch in _chosen(job, found, group, (parts, i), (1, 0))) if parts > 1 else 0
        pieces = max(1, size // _PART_BYTES)
        for j in range(pieces):
            yield from _sorted(_chosen(job, found, group, (parts, i), (pieces, j)))


def _sorted(texts: Iterable[pa.RecordBatch]) -> list[pa.RecordBatch]:
    """The texts as one batch, or none; apart, so that those in another order are not kept in memory."""
    found = []
    for batch in pa.Table.from_batches(texts, TEXTS).combine_chunks().to_batches():
        users = batch.column("user").dictionary_encode().indices.fill_null(-1)
        columns = [users, *(batch.column(name) for name in ("key_low", "key_high", "prompt_hash"))]
        found.append(batch.take(pa.array(np.lexsort([column.to_numpy() for column in columns]))))
    return found


def _chosen(
    job: Job, found: Sorted, group: int, prompts: tuple[int, int], keys: tuple[int, int]
) -> Iterator[pa.RecordBatch]:
    """A group's texts in each work file, those of the i-th of n parts by prompt, and of the j-th of m by key."""
    for path in found.files:
        with opened(path) as reader:
            batch = reader.get_batch(group)
        prompt, key = (batch.column(name).to_numpy() for name in ("prompt_hash", "key_low"))
        chosen = (prompt // job.groups % prompts[0] == prompts[1]) & (key % keys[0] == keys[1])
        yield batch if chosen.all() else batch.filter(pa.array(chosen))


def _changes(texts: pa.RecordBatch) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
    """Whether each of the sorted texts has another prompt, another key and another pair than the one before."""
    prompt, *keys = (_differs(texts.column(name)) for name in ("prompt_hash", "key_high", "key_low"))
    key = prompt | keys[0] | keys[1]
    return prompt, key, key | _differs(texts.column("user").dictionary_encode().indices.fill_null(-1))


def _differs(column: pa.Array) -> NDArray[np.bool_]:
    values = column.to_numpy()
    return np.concatenate([[True], values[1:] != values[:-1]])


def cuts(prompts: Places, keys: Places, pairs: int, size: int) -> list[int]:
    """Where tasks of a size begin and the last one ends: before a prompt if possible, or else before a text.

    Args:
        prompts, keys: the pairs where a prompt, or a text, begins, ascending.
    """
    found = [0]
    while (limit := found[-1] + size) < pairs:
        for starts in (prompts, keys):
            at = int(starts[np.searchsorted(starts, limit, "right") - 1])
            if at > found[-1]:
                break
        else:  # one text of so many users
            after = np.searchsorted(keys, limit)
            at = int(keys[after]) if after < len(keys) else pairs
        found.append(at)
    return [*found, pairs] if found[-1] < pairs else found


def _task(path: Path, places: pa.RecordBatch) -> Task:
    """The task of some of the sorted texts."""
    changes = _changes(places)[-1]
    rows = places.take(pa.array(np.flatnonzero(changes)))
    packed, responses, users, user_texts = (
        rows.column(name).to_pylist() for name in ("prompt", "response", "user", "user_text")
    )
    unpacked = {prompt: unpacked_prompt(prompt) for prompt in set(packed)}  # one object for all responses to a prompt
    texts = Texts([unpacked[prompt] for prompt in packed], responses, users, user_texts)
    pair = (np.cumsum(changes) - 1).astype(np.int32)
    return Task(path, texts, pair, *(places.column(name).to_numpy() for name in ("portion", "position")))


def _write(job: Job, task: Task, rewards: Sequence[float]) -> None:
    columns = [task.portion, task.position, np.array(rewards, np.float32)[task.pair]]
    batch = pa.record_batch([pa.array(c, f.type) for c, f in zip(columns, _REWARDS, strict=True)], schema=_REWARDS)
    write_batches(task.path, _REWARDS, [batch], {"job": job.key, "texts": len(task.pair)})

"""Reads texts with Ray: workers that hold one backbone each, on the GPUs or else the CPUs of a cluster.

A queue of our own over Ray's actors, and not Ray Data: its blocks are cut as it likes and their order and retries are
its own, so that a task that kills its worker would be tried for ever, and what a killed job has done could not be
found again by name. Here a task is sent whole and only its rewards come back, and this process alone writes. A task
whose worker or node died is sent to another one: it is written once, whoever read it.
"""

import logging
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from prm.errors import PrmError
from prm.scale.read_texts import Read, Task, Texts, rewards_of

if TYPE_CHECKING:
    from prm.scoring.scorer import Scorer

logger = logging.getLogger(__name__)

_DEATHS = 3  # workers that may die of one task, or one after the other before one has read anything
_PATIENCE = 60.0  # seconds without a worker before that is said
_OBJECT_STORE = 256 << 20  # bytes of shared memory, for a Ray that is started here; tasks are a few megabytes


class _Method(Protocol):
    def remote(self, *arguments: object) -> object: ...


class _Actor(Protocol):
    load: _Method
    read: _Method


class Worker:
    """What an actor does: it loads a run once, and reads tasks.

    Args:
        threads: of torch. More than the worker's CPUs would wait for each other.
    """

    def __init__(self, run: str, backbone: str | None, device: str | None, threads: int):
        self._run, self._backbone, self._device, self._threads = run, backbone, device, threads
        self._scorer: Scorer | None = None

    def load(self) -> None:
        """Load the run; apart from the constructor, so that its errors come back as they are."""
        import torch

        from prm.models.backbones import device_named
        from prm.scoring.scorer import Scorer

        torch.set_num_threads(self._threads)
        self._scorer = Scorer.from_pretrained(self._run, self._backbone, device_named(self._device))

    def read(self, texts: Texts) -> list[float]:
        """The rewards of a task's pairs."""
        assert self._scorer is not None
        return rewards_of(self._scorer, texts)


def require_ray() -> None:
    """Raise `PrmError` if Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise PrmError("--engine ray needs Ray: pip install 'personalized-rm[ray]'") from None


def read_with_ray(run: str, backbone: str | None, device: str | None, workers: int | None) -> Read:
    """Reads tasks with Ray; the run, and its backbone, must lie at the same path on every machine.

    The environment variable `RAY_ADDRESS` names the cluster; without it Ray is started on this machine. Reading raises
    `PrmError` for what a worker cannot load or score, and if workers keep dying.
    """
    require_ray()

    def read(tasks: Iterable[Task]) -> Iterator[tuple[Task, Sequence[float]]]:
        with _connected():
            pool = _Pool(str(Path(run).resolve()), backbone, device, workers)
            try:
                yield from pool.read(tasks)
            finally:
                pool.close()

    return read


@contextmanager
def _connected() -> Iterator[None]:
    import ray

    if ray.is_initialized():  # by the caller, who also ends it
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's own 15, other programs would leave workers no time
    here = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    address = os.environ.get("RAY_ADDRESS") or "local"
    ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **here)
    try:
        yield
    finally:
        ray.shutdown()


class _Busy(NamedTuple):
    """What a worker is doing: a task, or loading."""

    worker: _Actor
    task: Task | None


class _Pool:
    """Workers with a task each at most; a dead one is replaced."""

    def __init__(self, run: str, backbone: str | None, device: str | None, workers: int | None):
        import ray

        self._ray = ray
        resources = ray.cluster_resources()
        gpus, cpus = (0 if device == "cpu" else int(resources.get("GPU", 0))), int(resources.get("CPU", 1))
        self._size = workers or gpus or max(1, cpus)
        largest = max(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])
        threads = max(1, min(largest, cpus // self._size))  # a worker is on one machine
        self._arguments = (run, backbone, device, threads)
        # Ray restarts no worker by itself, and calls no method again: the queue does both
        options = {"num_cpus": threads, "num_gpus": min(1.0, gpus / self._size), "max_restarts": 0}
        self._actor = ray.remote(**options)(Worker)
        self._busy: dict[object, _Busy] = {}
        self._given_back: list[Task] = []
        self._workers: list[_Actor] = []
        self._deaths = Counter[str]()

    def read(self, tasks: Iterable[Task]) -> Iterator[tuple[Task, Sequence[float]]]:
        """`Read`."""
        waiting, idle = iter(tasks), list[_Actor]()
        if (first := next(waiting, None)) is None:
            return
        self._given_back.append(first)
        for _ in range(self._size):
            self._start()
        while True:
            while idle and (task := self._given_back.pop() if self._given_back else next(waiting, None)):
                worker = idle.pop()
                self._busy[send(worker, task.texts)] = _Busy(worker, task)
            if not self._given_back and all(busy.task is None for busy in self._busy.values()) and idle:
                return
            for ended in self._ended():
                worker, task = self._busy.pop(ended)
                try:
                    rewards = self._ray.get(ended)
                except self._ray.exceptions.RayTaskError as error:
                    raise self._cause(error) from None
                except self._ray.exceptions.RayError as error:
                    self._replace(task, error)
                    continue
                idle.append(worker)
                if task is not None:
                    self._deaths.clear()
                    yield task, rewards

    def close(self) -> None:
        """End the workers, so that their CPUs are free for whatever comes next."""
        for worker in self._workers:
            self._ray.kill(worker)

    def _start(self) -> None:
        worker = self._actor.remote(*self._arguments)
        self._workers.append(worker)
        self._busy[worker.load.remote()] = _Busy(worker, None)

    def _ended(self) -> list[object]:
        """The calls that have ended, once one has."""
        while True:
            ended, _ = self._ray.wait(list(self._busy), num_returns=1, timeout=_PATIENCE)
            if ended:
                return list(ended)
            if all(busy.task is None for busy in self._busy.values()):
                logger.warning("no worker has loaded the model yet: has Ray free CPUs or GPUs? (see 'ray status')")

    def _replace(self, task: Task | None, error: Exception) -> None:
        """Start another worker for one that died, and give its task back."""
        what = "loading the model" if task is None else f"reading {task.path.name}"
        said = next(iter(str(error).splitlines()), type(error).__name__)
        logger.warning("a worker died while %s: %s", what, said)
        self._deaths[what] += 1
        if self._deaths[what] == _DEATHS * (self._size if task is None else 1):
            raise PrmError(
                f"{_DEATHS} workers died one after the other while {what}: is there memory for {self._size} models? "
                f"--workers says how many; the last one: {said}"
            )
        if task is not None:
            self._given_back.append(task)
        self._start()

    def _cause(self, error: Exception) -> Exception:
        """The error of a worker's own code."""
        cause = getattr(error, "cause", None)
        return cause if isinstance(cause, PrmError) else error


def send(worker: _Actor, texts: Texts) -> object:
    """Let a worker read; returns Ray's reference to the rewards."""
    return worker.read.remote(texts)

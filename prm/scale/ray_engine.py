"""Work with Ray: workers that hold one backbone each, on the GPUs or else the CPUs of a cluster.

A queue of our own over Ray's actors, and not Ray Data: its blocks are cut as it likes and their order and retries are
its own, so that a task that kills its worker would be tried for ever, and what a killed job has done could not be
found again by name. Here a task is sent whole and only its results come back, and this process alone writes. A task
whose worker or node died is sent to another one: its result comes once, whoever has read it.
"""

import logging
import os
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Generic, NamedTuple, Protocol, TypeVar
from urllib.parse import urlsplit

from prm.errors import PrmError

logger = logging.getLogger(__name__)

_DEATHS = 3  # workers that may die of one task, or one after the other before one has read anything
_PATIENCE = 60.0  # seconds without a worker before that is said
_ANSWER = 20.0  # seconds for the machine of a cluster to take a connection
_OBJECT_STORE = 256 << 20  # bytes of shared memory, for a Ray that is started here; tasks are a few megabytes

T = TypeVar("T")
Texts = TypeVar("Texts")
Read = TypeVar("Read")  # what is read of texts: rewards, hidden states


class _Method(Protocol):
    def remote(self, *arguments: object) -> object: ...


class _Actor(Protocol):
    load: _Method
    read: _Method


class Task(NamedTuple, Generic[T, Texts]):
    """What one worker is given at once.

    Args:
        of: what the result comes back with; it stays in this process.
        texts: what is sent to the worker.
        name: for messages.
    """

    of: T
    texts: Texts
    name: str


class Worker(Generic[Texts, Read]):
    """What an actor does: it loads a model once, and reads tasks.

    Args:
        load: loads a model, and returns what reads a task's texts. A function of a module, or a `partial` of one: it is
            sent by name.
        threads: of torch. More than the worker's CPUs would wait for each other.
    """

    def __init__(self, load: Callable[[], Callable[[Texts], Read]], threads: int):
        self._load, self._threads = load, threads

    def load(self) -> None:
        """Load the model; apart from the constructor, so that its errors come back as they are."""
        import torch

        torch.set_num_threads(self._threads)
        self._read = self._load()

    def read(self, texts: Texts) -> Read:
        """The result of a task."""
        return self._read(texts)


def require_ray() -> None:
    """Raise `PrmError` if Ray is not installed, or nothing answers at `RAY_ADDRESS`; Ray would try for minutes."""
    try:
        import ray
    except ImportError:
        raise PrmError("--engine ray needs Ray: pip install 'personalized-rm[ray]'") from None
    if not ray.is_initialized() and (address := os.environ.get("RAY_ADDRESS")):
        with _naming(address):
            _require_answer(address)


def read_with_ray(
    load: Callable[[], Callable[[Texts], Read]],
    tasks: Iterable[Task[T, Texts]],
    device: str | None,
    workers: int | None,
) -> Iterator[tuple[T, Read]]:
    """Yield (`of`, result) of each task, as they are ready; models must lie at the same path on every machine.

    The next task is taken when a worker is free: what is in memory here is a task for each worker.

    Args:
        load: as of `Worker`.
        device: `cpu` leaves GPUs alone.
        workers: one for each GPU, or else each CPU, if not given.

    Raises `PrmError` for what a worker cannot load or read, and if workers keep dying.
    """
    with connected():
        pool = _Pool[T, Texts, Read](load, device, workers)
        try:
            yield from pool.read(tasks)
        finally:
            pool.close()


def gpus(device: str | None) -> int:
    """Number of the cluster's GPUs that are to be used; Ray is connected."""
    import ray

    return 0 if device == "cpu" else int(ray.cluster_resources().get("GPU", 0))


@contextmanager
def connected() -> Iterator[None]:
    """Connect to Ray within the block, unless it is connected.

    The environment variable `RAY_ADDRESS` names the cluster; without it Ray is started on this machine. Raises
    `PrmError` if there is no cluster, or one of another version.
    """
    import ray

    if ray.is_initialized():  # by the caller, who also ends it
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's own 15, other programs would leave workers no time
    here = {} if os.environ.get("RAY_ADDRESS") else {"include_dashboard": False, "object_store_memory": _OBJECT_STORE}
    address = os.environ.get("RAY_ADDRESS") or "local"
    with _naming(address):
        _require_answer(address)
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **here)
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _naming(address: str) -> Iterator[None]:
    """Name the address in errors: there is no cluster, or one of another version."""
    try:
        yield
    except (OSError, RuntimeError, ValueError) as error:
        said = next(iter(str(error).splitlines()), type(error).__name__)
        raise PrmError(f"no Ray at {address!r} (RAY_ADDRESS): {said}") from None


def _require_answer(address: str) -> None:
    """Raise `OSError` or `ValueError` if an address with a host and a port takes no connection."""
    place = urlsplit(address if "://" in address else f"//{address}")
    if place.hostname and place.port:
        socket.create_connection((place.hostname, place.port), timeout=_ANSWER).close()


class _Busy(NamedTuple, Generic[T, Texts]):
    """What a worker is doing: a task, or loading."""

    worker: _Actor
    task: Task[T, Texts] | None


class _Pool(Generic[T, Texts, Read]):
    """Workers with a task each at most; a dead one is replaced."""

    def __init__(self, load: Callable[[], Callable[[Texts], Read]], device: str | None, workers: int | None):
        import ray

        self._ray = ray
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        cpus, cards = sum(int(node.get("CPU", 0)) for node in nodes), gpus(device)
        self._size = workers or cards or max(1, cpus)
        share = 1 / max(1, -(-self._size // cards)) if cards else 0.0  # of a GPU
        threads, room = room_for(self._size, share, nodes)
        if room < self._size:
            logger.warning("Ray has room for %d of %d workers: the others wait for CPUs or GPUs", room, self._size)
        self._arguments = (load, threads)
        # Ray restarts no worker by itself, and calls no method again: the queue does both
        options = {"num_cpus": threads, "num_gpus": share, "max_restarts": 0}
        self._actor = ray.remote(**options)(Worker)
        self._busy: dict[object, _Busy[T, Texts]] = {}
        self._given_back: list[Task[T, Texts]] = []
        self._workers: list[_Actor] = []
        self._deaths = Counter[str]()

    def read(self, tasks: Iterable[Task[T, Texts]]) -> Iterator[tuple[T, Read]]:
        """As `read_with_ray`."""
        waiting, idle = iter(tasks), list[_Actor]()
        self._given_back = [*islice(waiting, self._size)][::-1]
        for _ in self._given_back:
            self._start()
        while self._busy or idle:
            while idle and (task := self._given_back.pop() if self._given_back else next(waiting, None)):
                worker = idle.pop()
                self._busy[send(worker, task.texts)] = _Busy(worker, task)
            if not self._given_back and all(busy.task is None for busy in self._busy.values()) and idle:
                return
            for ended in self._ended():
                worker, task = self._busy.pop(ended)
                try:
                    result = self._ray.get(ended)
                except self._ray.exceptions.RayTaskError as error:
                    raise self._cause(error) from None
                except self._ray.exceptions.RayError as error:
                    self._replace(task, error)
                    continue
                idle.append(worker)
                if task is not None:
                    self._deaths.clear()
                    yield task.of, result

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

    def _replace(self, task: Task[T, Texts] | None, error: Exception) -> None:
        """Start another worker for one that died, and give its task back."""
        what = "loading the model" if task is None else f"reading {task.name}"
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


def room_for(workers: int, gpu: float, nodes: Sequence[Mapping[str, float]]) -> tuple[int, int]:
    """(threads of a worker, number of workers that have room): as many threads as let all workers run at once.

    Args:
        gpu: a worker's share of a GPU; 0 on CPUs.
        nodes: resources of each machine, on one of which a worker must find both.
    """

    def room(threads: int) -> int:
        on_gpus = [int(node.get("GPU", 0)) * round(1 / gpu) if gpu else workers for node in nodes]
        return sum(min(int(node.get("CPU", 0)) // threads, n) for node, n in zip(nodes, on_gpus, strict=True))

    most = max((int(node.get("CPU", 0)) for node in nodes), default=1)
    threads = next((threads for threads in range(most, 1, -1) if room(threads) >= workers), 1)
    return threads, room(threads)


def send(worker: _Actor, texts: object) -> object:
    """Let a worker read; returns Ray's reference to the result."""
    return worker.read.remote(texts)

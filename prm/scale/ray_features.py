"""Hidden states for linear heads by Ray: workers read the texts, the command alone writes the store."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from types import TracebackType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prm.config import LayerPooling
from prm.errors import counted
from prm.features.hidden_states import Portion, Reading, reader_of
from prm.models.backbones import choose_device, device_named
from prm.scale.ray_engine import Task, connected, gpus, read_with_ray, require_ray

logger = logging.getLogger(__name__)

Arrays = dict[LayerPooling, NDArray[np.float32]]


class RayWorkers:
    """`prm.features.hidden_states.Workers` on Ray, which is connected when a text is to be read; a context manager.

    The backbone must lie at the same path on every machine, or be a hub id.

    Args:
        device: of the workers; `cpu` leaves GPUs alone.
        workers: one for each GPU, or else each CPU, if not given.

    Raises `PrmError` if Ray is not installed.
    """

    def __init__(self, device: str | None = None, workers: int | None = None):
        require_ray()
        self._device, self._workers, self._stack = device, workers, ExitStack()
        self._is_connected = False

    def __enter__(self) -> "RayWorkers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
        self._is_connected = False

    def on_cpu(self) -> bool:
        """Whether the workers compute on CPUs."""
        self._connect()
        return not gpus(self._device)

    def read(
        self, reading: Reading, portions: Sequence[Portion]
    ) -> Iterator[tuple[int, Mapping[LayerPooling, Tensor]]]:
        """As of `Workers`. A worker that dies, or its machine, is replaced."""
        self._connect()
        many = len(portions)
        logger.info("%s to read on Ray, in %s", counted(sum(map(len, portions)), "text"), counted(many, "task"))
        load = partial(load_reader, reading, self._device)
        tasks = (Task(i, portion, f"task {i + 1} of {many}") for i, portion in enumerate(portions))
        for number, arrays in read_with_ray(load, tasks, self._device, self._workers):
            # copied, since Ray's arrays are read-only and in its shared memory
            yield number, {setting: torch.tensor(states) for setting, states in arrays.items()}

    def _connect(self) -> None:
        if not self._is_connected:
            self._stack.enter_context(connected())
            self._is_connected = True


def load_reader(reading: Reading, device: str | None) -> Callable[[Portion], Arrays]:
    """Load the backbone; returns what computes a portion's hidden states, float32 [n, d] per setting, for a worker."""
    read = reader_of(reading, device_named(device) or choose_device())

    def arrays(portion: Portion) -> Arrays:
        return {setting: states.float().cpu().numpy() for setting, states in read(portion).items()}

    return arrays

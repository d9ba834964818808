"""Tensors as safetensors files."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from prm.errors import PrmError
from prm.io import disk
from prm.io.disk import write_whole

_REFUSED = ("os error", "PytorchStreamWriter")  # in the messages of Rust and torch when the disk is full


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a file atomically. Raises `PrmError` if it cannot be written."""
    write_whole(path, partial(to_file, tensors, metadata))


def to_file(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None, path: Path) -> None:
    """Write tensors to a temporary file. Raises `OSError`."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(on_cpu, path, metadata=metadata)
    except SafetensorError as error:  # wraps the system's error
        raise OSError(None, str(error), str(path)) from None


def blocks_of(path: Path, name: str, elements: int = 2**22) -> Iterator[Tensor]:
    """A tensor of a file in parts along its first axis, of about so many elements.

    Each part is mapped by itself: what was read does not count as memory of this process.
    """
    start, end = 0, 1
    while start < end:
        with safe_open(path, "pt") as file:
            tensor = file.get_slice(name)
            end, *row = tensor.get_shape()
            size = max(1, elements // max(1, math.prod(row)))
            part = tensor[start : start + size] if end else None
        if part is not None:
            yield part
        del part
        start += size


@contextmanager
def written_by_others(folder: Path) -> Iterator[None]:
    """Block in which transformers, PEFT or tokenizers write to the folder: one step of `prm.io.disk`.

    Raises `PrmError` if the system refuses a write; each library reports that in another way.
    """
    disk.before("others", folder)
    try:
        yield
    except PrmError:
        raise
    except Exception as error:
        refused = isinstance(error, OSError | SafetensorError) or any(word in str(error) for word in _REFUSED)
        if not refused:
            raise
        reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
        raise PrmError(f"{folder}: cannot be written: {reason}") from error

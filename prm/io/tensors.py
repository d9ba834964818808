"""Tensors as safetensors files."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from prm.errors import PrmError
from prm.io import disk
from prm.io.disk import write_whole

_REFUSED = ("os error", "PytorchStreamWriter")  # in what Rust and torch say of a full disk


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a file of tensors, whole or not at all. Raises `PrmError` where it cannot be written."""
    write_whole(path, partial(to_file, tensors, metadata))


def to_file(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None, path: Path) -> None:
    """Write into a file that nobody knows yet. Raises `OSError`."""
    parts: dict[str, Any] = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(parts, path, metadata=metadata)
    except SafetensorError as error:  # it wraps what the system says
        raise OSError(None, str(error), str(path)) from None


@contextmanager
def written_by_others(folder: Path) -> Iterator[None]:
    """What transformers, PEFT and tokenizers write there within the block, which is one step (`prm.io.disk`).

    Raises `PrmError` for what the system refuses them; each says it in another way.
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

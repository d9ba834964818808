"""Tensors as safetensors files."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from prm.disk import write_whole


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

"""Versions of this package and of what it stands on, the machine, and the commit. Imports torch to describe it only."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from prm.io.disk import cache_dir
from prm.io.run_files import Environment

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "safetensors")


def version_of(package: str) -> str:
    """The version of an installed package; "unknown" if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


__version__ = version_of("personalized-rm")


def environment() -> Environment:
    """Package versions, git commit and time, for `run.json`."""
    return {
        "versions": {package: version_of(package) for package in _PACKAGES},
        "commit": commit(),
        "written": now(),
    }


def now() -> str:
    """The time, ISO 8601, in whole seconds."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def commit() -> str | None:
    """The git commit of this code; `None` if it is not in a repository of its own."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed package may lie in somebody else's repository
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:  # there is no git
        return None


def description() -> dict[str, object]:
    """What a report of a fault needs to say of the machine and of what is installed, JSON-ready.

    `device` and `threads` are those that a command would use.
    """
    return {
        "version": __version__,
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **_torch(),
        "cpus": os.cpu_count(),
        "cache": str(cache_dir()),
        "versions": {package: version_of(package) for package in _PACKAGES},
    }


def _torch() -> dict[str, object]:
    try:
        import torch

        accelerator = torch.accelerator.current_accelerator(check_available=True)
    except Exception as error:  # a broken installation is what the description may be needed for
        return {"device": f"torch cannot be used: {error}", "threads": None}
    name = "cpu" if accelerator is None else accelerator.type
    if name == "cuda":
        name += f" ({torch.cuda.get_device_name()})"
    return {"device": name, "threads": torch.get_num_threads()}

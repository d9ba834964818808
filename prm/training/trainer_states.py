"""States of a run in training: folders `checkpoint-STEP`. A killed run is taken up from the last one that is whole."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import cast

from accelerate.utils import broadcast_object_list

from prm.errors import CheckpointError
from prm.io.digests import check_digests, digest
from prm.io.disk import remove, sync_tree
from prm.io.tables import write_json
from prm.models.backbones import processes

logger = logging.getLogger(__name__)

_SEAL = "digests.json"


def state_folder(folder: Path, step: int) -> Path:
    """Place of the state after so many steps; transformers' trainers use the same name."""
    return folder / f"checkpoint-{step}"


def step_of(state: Path) -> int:
    """Steps that a state has behind it."""
    return int(state.name.rpartition("-")[2])


def seal(state: Path) -> None:
    """Write the digest of every file of a state. It comes last: a state without it was not finished."""
    files = sorted(path for path in state.rglob("*") if path.is_file() and path.name != _SEAL)
    sync_tree(state)
    write_json(state / _SEAL, {path.relative_to(state).as_posix(): digest(path) for path in files})


def keep_last(folder: Path, number: int) -> None:
    """Remove all states but the last ones."""
    for state in _newest_first(folder)[number:]:
        remove(state)


def last_whole(folder: Path, needs: Callable[[Path], Path | None] | None = None) -> Path | None:
    """The newest state that is whole, the same on every process; newer ones are removed, damaged ones with a warning.

    Args:
        needs: another state that a state cannot do without.
    """
    found: list[Path | None] = [None]
    if processes().is_main_process:
        for state in _newest_first(folder):
            if _is_whole(state):
                other = needs(state) if needs else None
                if other is None or _is_whole(other):
                    found = [state]
                    break
            remove(state)
    if processes().num_processes > 1:
        broadcast_object_list(found)
    return found[0]


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)


def _is_whole(state: Path) -> bool:
    try:
        known = json.loads((state / _SEAL).read_text(encoding="utf-8"))
        check_digests(state, cast(dict[str, str], known))
    except FileNotFoundError:  # a kill came first
        return False
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("%s cannot be read (%s): the run is taken up from an earlier state", state / _SEAL, error)
        return False
    except CheckpointError as error:
        logger.warning("%s. The run is taken up from an earlier state", error)
        return False
    return True

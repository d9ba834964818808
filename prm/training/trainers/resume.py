"""Trainer checkpoints: folders `checkpoint-STEP`. A killed run is resumed from the newest intact one."""

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
    """Folder of the checkpoint after so many steps, named as in transformers."""
    return folder / f"checkpoint-{step}"


def step_of(state: Path) -> int:
    """Number of steps taken at a checkpoint."""
    return int(state.name.rpartition("-")[2])


def seal(state: Path) -> None:
    """Write the digest of every file of a checkpoint. They come last: a checkpoint without them is incomplete."""
    files = sorted(path for path in state.rglob("*") if path.is_file() and path.name != _SEAL)
    sync_tree(state)
    write_json(state / _SEAL, {path.relative_to(state).as_posix(): digest(path) for path in files})


def keep_last(folder: Path, number: int) -> None:
    """Remove all checkpoints but the newest `number`."""
    for state in _newest_first(folder)[number:]:
        remove(state)


def last_intact(folder: Path, needs: Callable[[Path], Path | None] | None = None) -> Path | None:
    """The newest intact checkpoint, the same on every process; newer ones are removed, damaged ones with a warning.

    Args:
        needs: maps a checkpoint to another one that it depends on, if any.
    """
    newest: list[Path | None] = [None]
    if processes().is_main_process:
        for checkpoint in _newest_first(folder):
            if is_intact(checkpoint):
                required = needs(checkpoint) if needs else None
                if required is None or is_intact(required):
                    newest = [checkpoint]
                    break
            remove(checkpoint)
    if processes().num_processes > 1:
        broadcast_object_list(newest)
    return newest[0]


def interrupted(checkpoint: Path | None, resume_from: object) -> KeyboardInterrupt:
    """What Ctrl-C raises in a training from Python: it says how to go on.

    Args:
        checkpoint: the last one of this training, if there is one.
        resume_from: the argument of `train` that goes on from it.
    """
    if checkpoint is None:
        how = "it had no checkpoint yet ('save_steps'), so make model and trainer anew to begin again"
    else:
        how = f"trainer.train(resume_from_checkpoint={resume_from!r}) goes on from step {step_of(checkpoint)}"
    return KeyboardInterrupt(f"training was stopped: {how}")


def newest_complete(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, damaged since or not."""
    return next((state for state in _newest_first(folder) if (state / _SEAL).is_file()), None)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)


def is_intact(state: Path) -> bool:
    """Whether a checkpoint is sealed and each of its files as it was written; a damaged one is logged."""
    try:
        digests = json.loads((state / _SEAL).read_text(encoding="utf-8"))
        check_digests(state, cast(dict[str, str], digests))
    except FileNotFoundError:  # killed before it was sealed
        return False
    except (OSError, ValueError, AttributeError) as error:
        logger.warning("%s cannot be read (%s): the run is resumed from an earlier checkpoint", state / _SEAL, error)
        return False
    except CheckpointError as error:
        logger.warning("%s. The run is resumed from an earlier checkpoint", error)
        return False
    return True

"""Saves a model that is in memory as a run folder: a new one, or a loaded one with what has changed since."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prm.checkpoint.checkpoint import Checkpoint, save
from prm.checkpoint.config_file import read_config
from prm.checkpoint.model_card import write_card
from prm.data.baselines import votes_of
from prm.data.comparison import Comparison
from prm.errors import CheckpointError, PrmError
from prm.io.disk import copy, link_tree, make_folder, real, remove
from prm.io.folders import atomic_folder, is_run, working_in
from prm.io.run_files import Controls, RunFiles, read_controls, read_run
from prm.io.tables import write_json, write_jsonl
from prm.models.backbone_state import lock_of, switched
from prm.users.index import UserIndex

_RESULTS = ("evaluation*", "audit*", "cold_start*", "result.json")  # of other parameters than those that are saved
# what a run folder may hold of an earlier model; results by users and comparisons among them
_OF_A_RUN = (
    "config.json",
    "run.json",
    "model.safetensors",
    "users.safetensors",
    "comparisons.safetensors",
    "metrics.json",
    "controls.json",
    "README.md",
    "adapter",
    "backbone",
    "tokenizer",
    "uniform",
    "curve",
    "logs",
    *(f"{name}.jsonl" for name in ("test", "skipped", "people", "samples", "answers", "reward_scale")),
    *_RESULTS,
)
_PARTS = ("adapter", "backbone", "tokenizer", "uniform", "metrics.json")  # fitting users in memory changes none of them


def save_copy(checkpoint: Checkpoint[Any], folder: Path, test: Sequence[Comparison] = ()) -> None:
    """Write a model as a run folder, with the users that were fitted or forgotten in memory; it appears when complete.

    A folder that exists keeps its checkpoints and files of others; those of an earlier save are replaced. If it is the
    folder that the model was loaded from, the rest stays, except results if a user has changed: `prm forget` removes
    the comparisons of a user, too.

    Args:
        test: comparisons that were held out from a model that was trained in memory.

    Raises `PrmError` if another command uses the folder, or if it is a file or another run that would lose files, and
    `CheckpointError` if weights that are to be copied from the folder of the model are gone.
    """
    target, source = real(folder), checkpoint.folder
    if source is not None and not (source / "config.json").is_file():
        raise CheckpointError(f"{source}, from which the model was loaded, is gone, and its weights are copied from it")
    in_place = source is not None and real(source) == target
    with ExitStack() as stack:
        make_folder(target.parent)
        stack.enter_context(working_in(target))
        temporary = stack.enter_context(atomic_folder(target))
        if target.is_dir():
            link_tree(target, temporary)
        if not in_place:
            _remove(temporary, _OF_A_RUN)
        if source is not None and not in_place:
            _copy_parts(source, temporary, checkpoint)
        run = checkpoint.record.get("run.json") if source is None else read_run(source)
        model = checkpoint.model
        with lock_of(checkpoint.users), switched(model.backbone), lock_of(model.user_model):
            save(checkpoint, temporary, run or {"kind": checkpoint.kind}, shared=source is None)
        if source is None:
            _write_record(temporary, checkpoint.record, checkpoint.users)
        if test:
            write_jsonl(temporary / "test.jsonl", test)
        is_same = source is not None and read_config(temporary).files == read_config(source).files
        if not is_same:
            _remove(temporary, _RESULTS)
        write_card(temporary, len(checkpoint.users), source if is_same else None)
        if not in_place:
            _refuse_losing(target, temporary)


def _refuse_losing(target: Path, new: Path) -> None:
    """Raise `PrmError` if the target is another run, of which files are not in `new`."""
    if not is_run(target) or _origin(target) == _origin(new):
        return
    lost = [path.name for pattern in _OF_A_RUN for path in target.glob(pattern) if not (new / path.name).exists()]
    if lost:
        raise PrmError(f"{target} holds another run, of which {', '.join(lost[:3])} would be lost: name another folder")


def _origin(run: Path) -> tuple[object, ...]:
    """What a run was trained by and on."""
    record = read_run(run)
    return record.get("kind"), record.get("trainer"), record.get("data", {}).get("fingerprint")


def _remove(folder: Path, patterns: Iterable[str]) -> None:
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        remove(path)


def _write_record(target: Path, record: RunFiles, users: UserIndex) -> None:
    """Write what is known of a training in memory, beside `run.json`."""
    if "metrics.json" in record:
        write_json(target / "metrics.json", record["metrics.json"])
    if "controls.json" in record:
        _write_votes(target, record["controls.json"], users)


def _copy_parts(source: Path, target: Path, checkpoint: Checkpoint[Any]) -> None:
    """Copy what fitting users does not change, and what the users who are still known chose by length."""
    for name in _PARTS:
        if (source / name).exists():
            copy(source / name, target / name)
    if (votes := read_controls(source)) is not None:
        _write_votes(target, votes, checkpoint.users)


def _write_votes(target: Path, votes: Controls, users: UserIndex) -> None:
    """Write what the users who are still known chose by length, and everyone together."""
    write_json(target / "controls.json", votes_of(votes, lambda user: not user or user in users))

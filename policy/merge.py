"""Merge a policy's adapter into its weights, to serve it as a plain language model."""

from pathlib import Path

from peft import PeftModel

from prm.checkpoint import checkpoint as checkpoints
from prm.errors import PrmError
from prm.io.disk import copy, make_folder
from prm.io.folders import atomic_folder, refuse_existing, working_in
from prm.io.run_files import read_run

_COPIED = ("test.jsonl", "skipped.jsonl", "controls.json", "metrics.json")


def merge_run(run: str | Path, output: str | Path) -> Path:
    """Copy a policy's run with its LoRA adapter merged, so that `backbone/` is a plain language model.

    The users stay in their own file; the copy samples and scores as the run does. Raises `PrmError` if the run has no
    adapter or `output` exists.
    """
    run, target = Path(run), Path(output)
    make_folder(target.parent)
    with working_in(target):
        _merge(run, target)
    return target


def _merge(run: Path, target: Path) -> None:
    refuse_existing(target, "name another folder")
    checkpoints.read_config(run)  # refuses a language model's name, which is not a run
    checkpoint = checkpoints.load_policy(str(run))
    if not isinstance(checkpoint.model.backbone, PeftModel):
        raise PrmError(f"{run} has no adapter to merge")
    checkpoint.model.merge_adapter()
    checkpoint.tuned = True
    with atomic_folder(target) as folder:
        for name in _COPIED:
            if (run / name).is_file():
                copy(run / name, folder / name)
        checkpoints.save(checkpoint, folder, read_run(run) | {"merged_from": str(run)})

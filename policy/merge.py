"""A policy's adapter folded into its weights, for whoever serves plain language models."""

from pathlib import Path

from peft import PeftModel

from prm.checkpoint import checkpoint as checkpoints
from prm.errors import PrmError
from prm.io.disk import copy, make_folder
from prm.io.folders import atomic_folder, working_in
from prm.io.run_files import read_run

_KEPT = ("test.jsonl", "skipped.jsonl", "controls.json", "metrics.json")


def merge_run(run: str | Path, output: str | Path) -> Path:
    """A copy of a policy's run whose LoRA adapter is merged: `backbone/` is then a plain language model.

    People stay in their own file beside it, and the copy answers and scores as the run does. Raises `PrmError` where
    there is no adapter, or `output` exists.
    """
    run, target = Path(run), Path(output)
    make_folder(target.parent)
    with working_in(target):
        _merge(run, target)
    return target


def _merge(run: Path, target: Path) -> None:
    if target.exists():
        raise PrmError(f"{target} exists already; give another folder")
    checkpoints.read_config(run)  # a language model by name is no run
    checkpoint = checkpoints.load_policy(str(run))
    if not isinstance(checkpoint.model.backbone, PeftModel):
        raise PrmError(f"{run} holds no adapter to merge")
    checkpoint.model.merge_adapter()
    checkpoint.tuned = True
    with atomic_folder(target) as folder:
        for name in _KEPT:
            if (run / name).is_file():
                copy(run / name, folder / name)
        checkpoints.save(checkpoint, folder, read_run(run) | {"merged_from": str(run)})

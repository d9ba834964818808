"""Removing a person from a run (`prm forget`)."""

import json
import shutil
from pathlib import Path

from prm.checkpoint import load, read_run, save
from prm.features import own_stores
from prm.files import read_rows, write_json, write_jsonl
from prm.folders import atomic_folder, link_tree, work_folder
from prm.model import RewardModel


def forget_user(folder: str | Path, user: str) -> None:
    """Remove a person from a run: their row, their lines in its files, and training states that hold them.

    Cached features that may hold their text go too. What shared weights (backbone, adapter, e_0, centres,
    head) learnt from them stays, and so do hidden states of their texts among a kernel's landmarks, and what other
    runs know of them: that which this one started from, those that started from it. Raises `PrmError` if the user is
    unknown.
    """
    folder = Path(folder)
    checkpoint = load(folder)
    row = checkpoint.users.forget(user)
    checkpoint.model.user_model.forget_row(row)
    run = read_run(folder)
    stores = set(run.get("feature_stores", []))
    model = checkpoint.model
    if run["data"]["has_user_text"] and isinstance(model, RewardModel) and model.is_linear:
        stores |= set(map(str, own_stores(model)))  # left by an evaluation, or by new people
    for store in stores:
        shutil.rmtree(store, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        link_tree(folder, temporary)
        for path in temporary.rglob("*.jsonl"):
            # a bad row without an id may be theirs as well as anybody's
            nobodys = user if path.name == "skipped.jsonl" else None
            kept = [row for _, row in read_rows(path) if row.get("user_id", nobodys) != user]
            write_jsonl(path, kept) if kept else path.unlink()
        for path in temporary.rglob("controls.json"):
            controls = json.loads(path.read_text(encoding="utf-8"))
            controls.get("length_sign", {}).pop(user, None)
            write_json(path, controls)
        for path in [*temporary.rglob("evaluation*"), *temporary.rglob("audit*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.rmtree(temporary / "trainer", ignore_errors=True)
        save(checkpoint, temporary, run, shared=False)
    shutil.rmtree(work_folder(folder), ignore_errors=True)

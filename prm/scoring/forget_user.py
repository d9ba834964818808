"""Remove a user from a run (`prm forget`)."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from prm.checkpoint.checkpoint import load, save
from prm.data.baselines import votes_of
from prm.errors import listed
from prm.features.cache_folder import clear_store, own_stores_among
from prm.features.hidden_states import own_stores
from prm.features.reference_logps import reference_folder
from prm.io.disk import remove
from prm.io.folders import NOTE, changed_folder, discard_work, is_begun_or_finished, work_folder, working_in
from prm.io.run_files import Controls, RunRecord, fitting, read_controls, read_json, read_run
from prm.io.tables import read_rows, write_json, write_jsonl
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel
from prm.training.work_folder import STALE, STATES

# derived from users' data: removed, and remade without the user by the commands that made them
_DERIVED = (*STALE, "samples.jsonl", "answers.jsonl", "curve", "logs", STATES, NOTE, ".*.tmp")
_WITHOUT_USERS = {"adapter", "tokenizer", "backbone"}
_PLACEHOLDER = "somebody who was forgotten"


def forget_user(folder: str | Path, user: str) -> list[str]:
    """Remove a user from a run: their row, their lines in its files, results derived from them, and cached features.

    Shared weights (backbone, adapter, e_0, centres, head) that were trained on them stay, and so do hidden states of
    their texts among a kernel's landmarks, and their data in other runs: the one that this run started from and those
    that started from it. Returns messages about what else stays because it does not belong to the run.

    Raises `PrmError` if the user is unknown, or another command uses the run.
    """
    with working_in(folder) as real:
        checkpoint = load(real)
        row = checkpoint.users.forget(user)
        checkpoint.model.user_model.forget_row(row)
        run = read_run(real)
        files = dict(_cleaned_files(real, user, row))
        # files outside the run go first: if killed here, the run still knows the user and the command can be repeated
        stays = [*_clear_caches(checkpoint.model, run, real), *_links(real)]
        if is_begun_or_finished(work_folder(real)):
            discard_work(work_folder(real))
        with changed_folder(real, real) as temporary:
            _clean(temporary, files)
            for entry in run.get("adapted", ()):
                entry.pop("fingerprint", None)  # includes the user's comparisons
            record = fitting(real / "run.json", RunRecord, _without_id(run, user))
            save(checkpoint, temporary, record, shared=False)
            named = [path.relative_to(temporary) for path in _files(temporary) if _names_user(path, user)]
        stays += [f"{real / path} still names the user; it was not written by this library" for path in named]
    return stays


def _clear_caches(model: RewardModel | Policy, run: RunRecord, folder: Path) -> list[str]:
    """Remove cached features of the texts that the run has read; returns messages about other folders."""
    ours, others = own_stores_among(run.get("feature_stores", []))
    if isinstance(model, RewardModel):
        ours += own_stores(model) if model.is_linear else []  # left by an evaluation, or by new users
    else:
        ours.append(reference_folder(model))
    for store in ours:
        clear_store(store)
    if not others:
        return []
    return [f"{folder / 'run.json'} names folders outside the cache ($PRM_CACHE): {listed(others)}"]


def _links(folder: Path) -> list[str]:
    """Messages about the targets of the run's links, which are not part of the run but may hold the user's data."""
    links = [path for path in folder.rglob("*") if path.is_symlink() and not _without_users(path, folder)]
    return [f"{path.resolve()}, to which {path} links" for path in links]


def _derived_files(folder: Path) -> Iterator[Path]:
    for pattern in _DERIVED:
        yield from list(folder.rglob(pattern))


def _cleaned_files(folder: Path, user: str, row: int) -> Iterator[tuple[Path, object]]:
    """Yield (path below the run, content without the user) of each file that changes, except those `save` writes.

    Raises `PrmError` naming a damaged file, before anything is changed.
    """
    removed = set(_derived_files(folder))
    for path in _files(folder):
        if not removed.isdisjoint((path, *path.parents)):
            continue
        if path.suffix == ".jsonl":
            rows = [line for _, line in read_rows(path)] if path.stat().st_size else []
            missing_id = user if path.name == "skipped.jsonl" else None  # a bad row without an id may be the user's
            others = [line for line in rows if line.get("user_id", missing_id) != user]
            if len(others) < len(rows) or not rows:
                yield path.relative_to(folder), others
        elif path.name in ("controls.json", "metrics.json", "run.json"):
            content, without = _json_without(path, user)
            kept = _without_row(_without_id(without, user), row)
            if kept != content:
                yield path.relative_to(folder), kept


def _json_without(path: Path, user: str) -> tuple[object, object]:
    """(content of a JSON file, the same without values of the user)."""
    if path.name == "controls.json":
        votes = read_controls(path.parent) or Controls(length_sign={})
        return votes, votes_of(votes, lambda name: name != user)
    content = read_json(path, dict[str, object])
    return content, content


def _clean(folder: Path, files: Mapping[Path, object]) -> None:
    """Remove the user from the files of a run, except those that `save` writes."""
    for path in _derived_files(folder):
        remove(path)
    for name, kept in files.items():
        if not isinstance(kept, list):
            write_json(folder / name, kept)
        elif kept:
            write_jsonl(folder / name, kept)
        else:
            remove(folder / name)


def _files(folder: Path) -> Iterator[Path]:
    """The run's files that may name users; weights and tokenizers do not."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".safetensors" and not _without_users(path, folder):
            yield path


def _without_users(path: Path, folder: Path) -> bool:
    return not _WITHOUT_USERS.isdisjoint(path.relative_to(folder).parts)


def _without_id(value: object, user: str) -> object:
    """The value, with a placeholder wherever a text quotes the id."""
    if isinstance(value, str):
        return value.replace(repr(user), _PLACEHOLDER).replace(json.dumps(user), _PLACEHOLDER)
    if isinstance(value, dict):
        return {_without_id(key, user): _without_id(inner, user) for key, inner in value.items()}
    return [_without_id(inner, user) for inner in value] if isinstance(value, list) else value


def _without_row(value: object, row: int) -> object:
    """The value without metrics of one row of the user table, such as `reward/3`."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if not re.fullmatch(rf".*/{row}", key)}
        return {key: _without_row(inner, row) for key, inner in kept.items()}
    return [_without_row(inner, row) for inner in value] if isinstance(value, list) else value


def _names_user(path: Path, user: str) -> bool:
    return _quotes(path.read_bytes().decode("utf-8", "replace"), user)


def _quotes(text: str, user: str) -> bool:
    return json.dumps(user) in text or json.dumps(user, ensure_ascii=False) in text or repr(user) in text

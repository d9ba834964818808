"""Removing a person from a run (`prm forget`)."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from prm.checkpoint.checkpoint import load, save
from prm.errors import listed
from prm.features.hidden_states import own_stores
from prm.features.reference_logps import reference_folder
from prm.features.store import clear_store, own_stores_among
from prm.io.disk import remove
from prm.io.folders import changed_folder, work_folder, working_in
from prm.io.run_files import read_json, read_length_signs, read_run
from prm.io.tables import read_rows, write_json, write_jsonl
from prm.models.reward_model import RewardModel
from prm.training.work_folder import NOTE, STALE, STATES

# made of a run and what people say: anew by the command that made them, without whoever is forgotten
_MADE_OF_PEOPLE = (*STALE, "samples.jsonl", "answers.jsonl", "curve", "logs", STATES, NOTE, ".*.tmp")
_OF_NO_PERSON = {"adapter", "tokenizer", "backbone"}
_SOMEBODY = "somebody who was forgotten"


def forget_user(folder: str | Path, user: str) -> list[str]:
    """Remove a person from a run: their row, their lines in its files, what was made of them, and cached features.

    What shared weights (backbone, adapter, e_0, centres, head) learnt from them stays, and so do hidden states of their
    texts among a kernel's landmarks, and what other runs know of them: that which this one started from, those that
    started from it. Returns, in words, what else stays: what is not the run's own to remove.

    Raises `PrmError` if the user is unknown, or another command is at work in the run.
    """
    with working_in(folder) as real:
        checkpoint = load(real)
        row = checkpoint.users.forget(user)
        checkpoint.model.user_model.forget_row(row)
        run = read_run(real)
        files = dict(_cleaned(real, user, row))
        # all that lies elsewhere goes first: where this is ended, the person is still known, and can be forgotten again
        stays = [*_clear_caches(checkpoint.model, run, real), *_links(real)]
        remove(work_folder(real))
        with changed_folder(real, real) as temporary:
            _clean(temporary, files)
            for taken_in in run.get("adapted", ()):
                taken_in.pop("fingerprint", None)  # of their comparisons, too
            save(checkpoint, temporary, _without_id(run, user), shared=False)
            named = [path.relative_to(temporary) for path in _files(temporary) if _names(path, user)]
        stays += [f"{real / path} still names them, and is no file of ours" for path in named]
    return stays


def _clear_caches(model: Any, run: dict[str, Any], folder: Path) -> list[str]:
    """Remove what is kept of the texts that the run has read; returns what is not ours to remove."""
    ours, others = own_stores_among(run.get("feature_stores", []))
    if isinstance(model, RewardModel):
        ours += own_stores(model) if model.is_linear else []  # left by an evaluation, or by new people
    else:
        ours.append(reference_folder(model))
    for store in ours:
        clear_store(store)
    if not others:
        return []
    return [f"{folder / 'run.json'} names folders that are not in our cache ($PRM_CACHE): {listed(others)}"]


def _links(folder: Path) -> list[str]:
    """What links of the run lead to: it is no part of the run, and may hold what it held of the person."""
    links = [path for path in folder.rglob("*") if path.is_symlink() and not _of_no_person(path, folder)]
    return [f"{path.resolve()}, which {path} is a link to" for path in links]


def _made_of_people(folder: Path) -> Iterator[Path]:
    for pattern in _MADE_OF_PEOPLE:
        yield from list(folder.rglob(pattern))


def _cleaned(folder: Path, user: str, row: int) -> Iterator[tuple[Path, Any]]:
    """(path below the run, what it holds without the person) of each file that changes, beside what `save` writes.

    Raises `PrmError` naming a file that is damaged, before anything is changed.
    """
    gone = set(_made_of_people(folder))
    for path in _files(folder):
        if not gone.isdisjoint((path, *path.parents)):
            continue
        if path.suffix == ".jsonl":
            rows = [found for _, found in read_rows(path)] if path.stat().st_size else []
            nobodys = user if path.name == "skipped.jsonl" else None  # a bad row without an id may be anybody's
            kept: Any = [found for found in rows if found.get("user_id", nobodys) != user]
            if len(kept) < len(rows) or not rows:
                yield path.relative_to(folder), kept
        elif path.name in ("controls.json", "metrics.json", "run.json"):
            signs = read_length_signs(path.parent) if path.name == "controls.json" else None
            content = read_json(path, dict[str, Any]) if signs is None else {"length_sign": signs}
            kept = _without_row(_without_id(content, user), row)
            if signs is not None:
                kept["length_sign"].pop(user, None)
            if kept != content:
                yield path.relative_to(folder), kept


def _clean(folder: Path, files: Mapping[Path, Any]) -> None:
    """Take the person out of the files of a run, but for those that `save` writes."""
    for path in _made_of_people(folder):
        remove(path)
    for name, kept in files.items():
        if name.suffix == ".json":
            write_json(folder / name, kept)
        elif kept:
            write_jsonl(folder / name, kept)
        else:
            remove(folder / name)


def _files(folder: Path) -> Iterator[Path]:
    """The run's files that may name people; weights and tokenizers do not."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".safetensors" and not _of_no_person(path, folder):
            yield path


def _of_no_person(path: Path, folder: Path) -> bool:
    return not _OF_NO_PERSON.isdisjoint(path.relative_to(folder).parts)


def _without_id(value: Any, user: str) -> Any:
    """The value, with a word in place of the id wherever a text quotes it."""
    if isinstance(value, str):
        return value.replace(repr(user), _SOMEBODY).replace(json.dumps(user), _SOMEBODY)
    if isinstance(value, dict):
        return {_without_id(key, user): _without_id(inner, user) for key, inner in value.items()}
    return [_without_id(inner, user) for inner in value] if isinstance(value, list) else value


def _without_row(value: Any, row: int) -> Any:
    """The value without the figures that are of one row of the user table, as `reward/3` is."""
    if isinstance(value, dict):
        kept = {key: inner for key, inner in value.items() if not re.fullmatch(rf".*/{row}", key)}
        return {key: _without_row(inner, row) for key, inner in kept.items()}
    return [_without_row(inner, row) for inner in value] if isinstance(value, list) else value


def _names(path: Path, user: str) -> bool:
    return _quotes(path.read_bytes().decode("utf-8", "replace"), user)


def _quotes(text: str, user: str) -> bool:
    return json.dumps(user) in text or json.dumps(user, ensure_ascii=False) in text or repr(user) in text

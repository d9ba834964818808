"""A trained reward model as one folder, safetensors only, that refuses what it was not trained with."""

import hashlib
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prm.backbones import (
    load_backbone,
    load_tokenizer,
    template_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from prm.conditioned import unconditioned
from prm.config import RewardConfig, UserConfig
from prm.errors import CheckpointError
from prm.features import own_stores
from prm.files import read_rows, write_json, write_jsonl
from prm.model import RewardModel, build_user_model
from prm.readings import words
from prm.tokens import Place, TextEncoder
from prm.users import UserIndex

_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "safetensors")


@dataclass
class Checkpoint:
    """A reward model with everything that scoring needs.

    `settings` holds the config sections backbone, users and reward as they were trained, and `base_head`: true
    where the backbone came with a head of its own. `tuned` says that the backbone's own weights were trained: they
    are then saved along. `folder` is where it was loaded from, if it was.
    """

    model: RewardModel
    users: UserIndex
    tokenizer: PreTrainedTokenizerBase
    settings: dict[str, Any]
    tuned: bool = False
    folder: Path | None = None

    def encoder(self) -> TextEncoder:
        """The encoder that the model was trained with."""
        reward, users = self.settings["reward"], self.settings["users"]
        place: Place = "front" if reward["form"] == "linear_head" else reward["place"]
        whole = self.settings["base_head"]
        length = self.settings["backbone"]["max_length"]
        encoder = TextEncoder(self.tokenizer, self.model.vocab_size, users["tokens"], place, length, whole)
        padding = self.model.config.pad_token_id if whole else None
        while encoder.end_ids and encoder.end_ids[-1] == padding:
            encoder.end_ids.pop()  # reward models read the last token that is no padding, even where a text ends in it
        return encoder


def save(checkpoint: Checkpoint, folder: Path, run: dict[str, Any]) -> None:
    """Write the folder's files. The caller sees to it that the folder appears at once (`atomic_folder`).

    Args:
        run: what is known of how the model came about; goes to `run.json` with versions and commit.
    """
    model = checkpoint.model
    save_file(model.head_state(), folder / "model.safetensors")
    if checkpoint.tuned:
        with unconditioned(model.backbone) as plain:
            plain.save_pretrained(folder / "backbone")
            plain.__dict__.pop("uncut_fingerprint", None)  # of the weights before they were trained
            model.fingerprint = weights_fingerprint(plain)
        checkpoint.tokenizer.save_pretrained(folder / "backbone")
    elif isinstance(model.backbone, PeftModel):
        model.backbone.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
        (folder / "adapter" / "README.md").unlink(missing_ok=True)  # a template that knows nothing of this model
    config = {
        "format": 1,
        "kind": "reward_model",
        **checkpoint.settings,
        "fingerprints": {
            "backbone": model.fingerprint,
            "tokenizer": tokenizer_fingerprint(checkpoint.tokenizer),
            "template": template_fingerprint(checkpoint.tokenizer),
        },
        "user_id": checkpoint.users.to_json(),
        "judgements": checkpoint.users.judgements_to_json(),
    }
    write_json(folder / "config.json", config)
    checkpoint.tokenizer.save_pretrained(folder / "tokenizer")
    template = config["fingerprints"]["template"]
    write_json(folder / "run.json", {**run, "template": template, "environment": environment()})
    (folder / "README.md").write_text(_card(checkpoint, run), encoding="utf-8")


def load(
    folder: str | Path,
    backbone: str | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Checkpoint:
    """Read a folder that `save` wrote.

    Args:
        backbone: where the backbone lies now, if not where `config.json` says.
        dtype: of the backbone; as trained where not given.

    Raises `CheckpointError` where files are missing or damaged, or backbone, tokenizer or template differ
    from those of the training run.
    """
    folder = Path(folder)
    recover(folder)
    config = read_config(folder)
    tuned = folder / "backbone"
    name = backbone or (str(tuned) if tuned.is_dir() else config["backbone"]["name"])
    if dtype is None:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config["backbone"]["dtype"]]
    model_backbone = load_backbone(name, config["backbone"]["layers"], dtype)
    users = UserIndex(config["user_id"], config.get("judgements", ()))
    reward, dim = RewardConfig(**config["reward"]), model_backbone.config.get_text_config().hidden_size
    user_model = build_user_model(UserConfig(**config["users"]), users.n_rows, dim * reward.n_reads)
    config.setdefault("base_head", False)  # the first runs of this format have none
    base = torch.nn.Linear(dim, 1) if config["base_head"] else None
    model = RewardModel(model_backbone, user_model, reward, base)
    _refuse_other(config, "backbone", model.fingerprint, f"{name} (weights differ)")
    # the tokenizer of the backbone at hand, not our copy: it is the one the texts will meet elsewhere too
    tokenizer = load_tokenizer(name)
    _refuse_other(config, "tokenizer", tokenizer_fingerprint(tokenizer), f"that of {name}")
    _refuse_other(config, "template", template_fingerprint(tokenizer), f"that of {name}")
    _load_head(model, folder / "model.safetensors")
    if (folder / "adapter").is_dir():
        attach_adapter(model, folder / "adapter")
    model.requires_grad_(False).eval()
    settings = {key: config[key] for key in ("backbone", "users", "reward", "base_head")}
    return Checkpoint(model.to(device or torch.device("cpu")), users, tokenizer, settings, tuned.is_dir(), folder)


def attach_adapter(model: RewardModel, folder: Path) -> None:
    """Load a LoRA adapter into the model's backbone, below its conditioned embedding."""
    model.backbone = cast(PreTrainedModel, PeftModel.from_pretrained(model.backbone, str(folder)))


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a run. Raises `CheckpointError` where the folder is no finished run."""
    path = Path(folder) / "config.json"
    if not path.is_file():
        unfinished = work_folder(Path(folder)).is_dir()
        hint = "; its training was not finished: run the same 'prm train' again" if unfinished else ""
        raise CheckpointError(f"{folder}: no trained model here (config.json is missing){hint}")
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None
    if config.get("kind") != "reward_model" or config.get("format") != 1:
        found = f"kind {config.get('kind')!r}, format {config.get('format')!r}"
        raise CheckpointError(f"{path}: expected kind 'reward_model', format 1, found {found}")
    return config


def read_run(folder: Path) -> dict[str, Any]:
    """`run.json` of a run. Raises `CheckpointError` where it is missing or damaged."""
    path = Path(folder) / "run.json"
    try:
        run: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: missing or damaged: {error}") from None
    return run


def digest(folder: Path) -> str:
    """Hex digest of what a run has learnt, and of whom."""
    found = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("adapter/*.safetensors")]):
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def forget_user(folder: str | Path, user: str) -> None:
    """Remove a person from a run: their row, their lines in its files, and training states that hold them.

    Cached features that may hold their text go too. What shared weights (backbone, adapter, e_0, centres,
    head) learnt from them stays, and so does what other runs know of them: that which this one started from, those
    that started from it. Raises `PrmError` if the user is unknown.
    """
    folder = Path(folder)
    checkpoint = load(folder)
    row = checkpoint.users.forget(user)
    checkpoint.model.user_model.forget_row(row)
    run = read_run(folder)
    stores = set(run.get("feature_stores", []))
    if run["data"]["has_user_text"] and checkpoint.model.is_linear:  # those that an evaluation left
        stores |= set(map(str, own_stores(checkpoint.model)))
    for store in stores:
        shutil.rmtree(store, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
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
        save(checkpoint, temporary, run)
    shutil.rmtree(work_folder(folder), ignore_errors=True)


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """A temporary folder that takes the target's place when the block ends without an error.

    A folder already there is replaced. A kill leaves the old folder or the new one; between the two
    renames the old one waits beside it, and `recover` puts it back.
    """
    temporary = target.with_name(f".{target.name}.new")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    publish(temporary, target)


def publish(source: Path, target: Path) -> None:
    """Rename a finished folder to its place, replacing what is there."""
    old = _old(target)
    recover(target)
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    source.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def recover(target: Path) -> None:
    """Put back the old folder where a kill fell between the two renames of `publish`."""
    if not target.exists() and _old(target).exists():
        _old(target).rename(target)


def work_folder(target: Path) -> Path:
    """Where a run trains before its folder appears."""
    return target.with_name(target.name + ".partial")


def environment() -> dict[str, Any]:
    """Versions, git commit and time, for `run.json`."""
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "unknown"
    here = Path(__file__).parent
    git = subprocess.run(["git", "-C", str(here), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "versions": versions,
        "commit": git.stdout.strip() or None,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _old(target: Path) -> Path:
    return target.with_name(f".{target.name}.old")


def _refuse_other(config: dict[str, Any], what: str, found: str, name: str) -> None:
    expected = config["fingerprints"][what]
    if found != expected:
        trained = config["backbone"]["name"]
        raise CheckpointError(
            f"trained with the {what} of {trained} ({what} {expected}), asked to load with {name} ({what} {found})"
        )


def _load_head(model: RewardModel, path: Path) -> None:
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises its own type, which shares no base with OSError
        raise CheckpointError(f"{path}: missing or damaged: {error}") from None
    own = model.head_state()
    if state.keys() != own.keys():
        raise CheckpointError(f"{path}: holds {sorted(state)}, expected {sorted(own)}")
    for name, tensor in state.items():
        if tensor.shape != own[name].shape:
            raise CheckpointError(f"{path}: {name} is {list(tensor.shape)}, expected {list(own[name].shape)}")
    model.load_state_dict(state, strict=False)


def _card(checkpoint: Checkpoint, run: dict[str, Any]) -> str:
    settings = checkpoint.settings
    data = run.get("data", {})
    card = data.get("card")
    of_what = f" of {card['name']} ({card['citation']}; licence: {card['licence']})" if card else ""
    return f"""---
library_name: personalized-rm
tags: [reward-model, personalisation]
---
# Personalised reward model

Scores an answer to a prompt for a given person. Load it with `prm.Scorer.from_pretrained(folder)`.

| | |
|---|---|
| backbone | {settings["backbone"]["name"]} ({settings["backbone"]["layers"] or "all"} layers) |
| user model | {settings["users"]["kind"]}, {settings["users"]["tokens"]} token(s), {len(checkpoint.users.ids)} people |
| reward | {settings["reward"]["form"]} |
| reads (layers, pooling) | {", ".join(words(checkpoint.model.reading))} |
| trained on | {data.get("train_comparisons", "?")} comparisons{of_what}, fingerprint {data.get("fingerprint", "?")} |

The user index holds the ids of the people in the training data, and each person's numbers hold something of
their taste: treat the folder as personal data. `prm forget` removes one person; what shared weights learnt
from them stays. An unknown user gets the generic score.
"""

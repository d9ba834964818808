"""`config.json` of a run: what stands in it, and how it is read."""

from datetime import date
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

from prm.checkpoint.formats import FORMAT
from prm.checks import Count, Positive, Text, built, kinds_of, require
from prm.config import RewardModelConfig, UseOfText, UserConfig
from prm.errors import CheckpointError, PrmError
from prm.io.digests import digest_of_values
from prm.io.folders import recover, work_folder
from prm.io.run_files import COPY_BACK, read_json, refuse_unfit
from prm.models.nystroem import LANDMARKS

REWARD_MODEL, POLICY = "reward_model", "policy"


class _ConfigKind(TypedDict):
    kind: Literal["reward_model", "policy"]


class _Backbone(TypedDict):
    name: Text
    layers: Count | None
    dtype: Literal["float32", "bfloat16"]
    max_length: Count
    folder: bool
    day: str


class _Fingerprints(TypedDict):
    backbone: str
    tokenizer: str
    template: str
    texts: str


class _ConfigBase(TypedDict):
    """The part of `config.json` that reward models and policies share."""

    backbone: _Backbone
    users: UserConfig
    adapter: bool
    backbone_settings: dict[str, Any]
    files: dict[str, str]


class _RewardModelConfigFile(_ConfigBase):
    reward: RewardModelConfig
    base_head: bool
    landmarks: int
    user_text: UseOfText
    fingerprints: _Fingerprints


class _PolicyFingerprints(_Fingerprints):
    reference: str


class _Objective(TypedDict):
    method: str
    beta: NotRequired[Positive]


class _PolicyConfigFile(_ConfigBase):
    objective: _Objective
    fingerprints: _PolicyFingerprints


def read_config(folder: Path) -> dict[str, Any]:
    """Load a run's `config.json`. Raises `CheckpointError` if it is damaged, or the folder is no finished run."""
    path = Path(folder) / "config.json"
    recover(path.parent)
    if not path.is_file():
        unfinished = work_folder(Path(folder)).is_dir()
        hint = "; its training was not finished: run the same command again" if unfinished else ""
        raise CheckpointError(f"{folder}: no trained model here (config.json is missing){hint}")
    config: dict[str, Any] = read_json(path, _ConfigKind)
    digest_now = digest_of_values(config)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {config.get('format')!r}, expected {FORMAT}. Runs of format 1 put user tokens before "
            "a beginning-of-text token, those of format 2 have other names of settings. Train it again"
        )
    refuse_unfit(path, _RewardModelConfigFile if config["kind"] == REWARD_MODEL else _PolicyConfigFile, config)
    try:
        _check_consistency(config)
    except ValueError as error:  # ours, or the day's
        raise CheckpointError(f"{path} is damaged: {error}: {COPY_BACK}") from None
    if config.get("digest", digest_now) != digest_now:  # earlier runs have none
        raise CheckpointError(f"{path} was changed after it was written: {COPY_BACK}")
    return config


def _check_consistency(config: dict[str, Any]) -> None:
    """Raise `PrmError` for values of a `config.json` that contradict each other."""
    for name, kind in {"users": UserConfig, "reward": RewardModelConfig}.items():
        if name in config:
            built(kind, config[name], name)
            require(not kinds_of(kind).keys() - config[name].keys(), name, f"must hold {', '.join(kinds_of(kind))}")
    if missing := {"model.safetensors", "users.safetensors"} - config["files"].keys():
        raise PrmError(f"'files' has no digest of {min(missing)}")
    if config["backbone"]["day"]:
        date.fromisoformat(config["backbone"]["day"])
    if config["kind"] == POLICY:
        has_beta = config["objective"]["method"] != "dpo" or "beta" in config["objective"]
        require(has_beta, "objective.beta", "is missing")
        return
    kernel, landmarks = config["reward"]["kernel"], config["landmarks"]
    if not (1 <= landmarks <= LANDMARKS if kernel == "rbf" else landmarks == 0):
        raise PrmError(f"a kernel {kernel!r} with landmarks {landmarks!r}")
    kind, user_text = config["users"]["kind"], config["user_text"]
    if user_text == "prior" and kind != "bayes":
        raise PrmError(f"user_text {user_text!r} with users.kind {kind!r}")

"""`config.json` of a run: what stands in it, and how it is read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, NotRequired, TypedDict, TypeVar

from prm.checks import Count, Positive, Text, built, kinds_of, require
from prm.config import LANDMARKS, RewardModelConfig, UseOfText, UserConfig
from prm.errors import CheckpointError, PrmError
from prm.io.digests import digest_of_values
from prm.io.folders import recover, work_folder
from prm.io.missing import no_such
from prm.io.run_files import COPY_BACK, FieldsOf, fitting, read_json, refuse_unfit

# 1, refused: user tokens in the prefix came before a beginning-of-text token, a response ended with all that the chat
#    template writes after it except line ends, the template's date was today's, and files had no digests
# 2, refused: settings and stored tensors had other names
# 3: settings and tensors have their present names; a prefix comes after a beginning-of-text token, a response ends as
#    `prm.data.chat_template.ending_of` says, the date is that of training
# 4: users' posteriors have columns of their own number; those of format 3 all had as many, and are still read
FORMAT = 4
_READ = (3, FORMAT)

Kind = Literal["reward_model", "policy"]

REWARD_MODEL: Kind = "reward_model"
POLICY: Kind = "policy"

_SETTINGS: dict[Kind, tuple[str, ...]] = {
    REWARD_MODEL: ("backbone", "users", "reward", "base_head", "landmarks", "user_text"),
    POLICY: ("backbone", "users", "objective"),
}

Group = TypeVar("Group", UserConfig, RewardModelConfig)


@dataclass(frozen=True)
class BackboneRecord:
    """The backbone of a trained model, and how it reads texts.

    Args:
        name: folder or hub id, as in the run's settings.
        layers: number of layers that are used; all if `None`.
        max_length: of a sequence in tokens, limited to what the backbone supports.
        folder: whether `name` is a folder and no hub id.
        day: ISO date that the chat template takes for today's; empty if it uses none.
        omitted_system_prompt: what the chat template would write above conversations without a system message, and is
            left out; empty if it writes nothing, or if that stays: in backbones with a reward head and in older runs.
    """

    name: Text
    layers: Count | None
    dtype: Literal["float32", "bfloat16"]
    max_length: Count
    folder: bool
    day: str
    omitted_system_prompt: str = ""


@dataclass(frozen=True)
class TrainedBy:
    """How a policy was trained: the command's name for the method, and the method's settings."""

    method: str
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def beta(self) -> float | None:
        """The factor of the implicit reward of P-DPO; `None` for other methods, whose policies are no rewards."""
        beta = self.settings.get("beta")
        return beta if isinstance(beta, int | float) else None


@dataclass
class ModelSettings:
    """What must be known of a trained model to encode texts for it and to build it again.

    Args:
        reward: of a reward model; `None` for a policy.
        base_head: whether the backbone came with a reward head.
        landmarks: number of landmarks of the kernel; 0 without one.
        user_text: whether it precedes the `prompt` or is `unread`.
        objective: of a trained policy; `None` for a reward model, and for a language model without training.
    """

    backbone: BackboneRecord
    users: UserConfig
    reward: RewardModelConfig | None = None
    base_head: bool = False
    landmarks: int = 0
    user_text: UseOfText = "prompt"
    objective: TrainedBy | None = None

    def to_dict(self) -> dict[str, object]:
        """The keys of `config.json` that a model of this kind has."""
        values = asdict(self)
        if self.objective is not None:
            values["objective"] = {"method": self.objective.method, **self.objective.settings}
        return {name: values[name] for name in _SETTINGS[POLICY if self.reward is None else REWARD_MODEL]}


class Fingerprints(TypedDict):
    """Hex digests of what a model was trained with. `reference`: the model that a policy started from."""

    backbone: str
    tokenizer: str
    template: str
    texts: str
    reference: NotRequired[str]


@dataclass(frozen=True)
class ConfigFile:
    """The content of a `config.json`.

    Args:
        adapter: whether the run has an adapter.
        backbone_settings: the settings of the backbone's own config that change what it computes.
        files: digests of the run's other files, by relative path.
    """

    kind: Kind
    settings: ModelSettings
    adapter: bool
    backbone_settings: dict[str, object]
    fingerprints: Fingerprints
    files: dict[str, str]


class _KindOnly(TypedDict):
    kind: Kind


class _CommonKeys(_KindOnly):
    """The keys that reward models and policies share."""

    backbone: Annotated[dict[str, object], FieldsOf(BackboneRecord)]
    users: Annotated[dict[str, object], FieldsOf(UserConfig)]
    adapter: bool
    backbone_settings: dict[str, object]
    fingerprints: Fingerprints
    files: dict[str, str]


class _RewardModelKeys(_CommonKeys):
    reward: Annotated[dict[str, object], FieldsOf(RewardModelConfig)]
    base_head: bool
    landmarks: int
    user_text: UseOfText


class _Objective(TypedDict):
    method: str
    beta: NotRequired[Positive]


class _PolicyKeys(_CommonKeys):
    objective: _Objective


def read_config(folder: Path) -> ConfigFile:
    """Load a run's `config.json`. Raises `CheckpointError` if it is damaged, or the folder is no finished run."""
    path = Path(folder) / "config.json"
    recover(path.parent)
    if not path.is_file():
        unfinished = work_folder(Path(folder)).is_dir()
        hint = "; its training was not finished: run the same command again" if unfinished else ""
        if not path.parent.is_dir() and not unfinished:
            is_file = Path(folder).is_file()
            raise CheckpointError(f"{folder}: a file, not a run folder" if is_file else no_such(folder, "folder"))
        raise CheckpointError(f"{folder}: no trained model here (config.json is missing){hint}")
    config = read_json(path, dict[str, object])
    refuse_unfit(path, _KindOnly, config)
    digest_now = digest_of_values(config)
    if config.get("format") not in _READ:
        raise CheckpointError(
            f"{path}: format {config.get('format')!r}, expected {' or '.join(map(str, _READ))}. Runs of format 1 put "
            "user tokens before a beginning-of-text token, those of format 2 have other names of settings. Train it "
            "again"
        )
    if config.get("user_text") == "prior":  # other runs of this format are read as they were
        raise CheckpointError(
            f"{path}: users' texts set their priors in this run, which is no longer read. Train it again"
        )
    keys: _CommonKeys
    if config["kind"] == REWARD_MODEL:
        keys = reward_model = fitting(path, _RewardModelKeys, config)
        build = partial(_reward_model_settings, reward_model)
    else:
        keys = policy = fitting(path, _PolicyKeys, config)
        build = partial(_policy_settings, policy)
    try:
        settings = build()
        _check_consistency(keys, settings)
    except ValueError as error:  # ours, or the day's
        raise CheckpointError(f"{path} is damaged: {error}: {COPY_BACK}") from None
    if config.get("digest", digest_now) != digest_now:  # earlier runs have none
        raise CheckpointError(f"{path} was changed after it was written: {COPY_BACK}")
    return ConfigFile(
        keys["kind"], settings, keys["adapter"], keys["backbone_settings"], keys["fingerprints"], keys["files"]
    )


def _reward_model_settings(keys: _RewardModelKeys) -> ModelSettings:
    backbone, users = _backbone_and_users(keys)
    reward = _complete(RewardModelConfig, keys["reward"], "reward")
    return ModelSettings(backbone, users, reward, keys["base_head"], keys["landmarks"], keys["user_text"])


def _policy_settings(keys: _PolicyKeys) -> ModelSettings:
    backbone, users = _backbone_and_users(keys)
    method, settings = keys["objective"]["method"], {**keys["objective"]}
    del settings["method"]
    return ModelSettings(backbone, users, objective=TrainedBy(method, settings))


def _backbone_and_users(keys: _CommonKeys) -> tuple[BackboneRecord, UserConfig]:
    return built(BackboneRecord, keys["backbone"], "backbone"), _complete(UserConfig, keys["users"], "users")


def _complete(kind: type[Group], stored: Mapping[str, object], key: str) -> Group:
    """A group of settings. Raises `PrmError` for a value that does not fit, and unless all values are there."""
    names = kinds_of(kind)
    require(not names.keys() - stored.keys(), key, f"must hold {', '.join(names)}")
    return built(kind, stored, key)


def _check_consistency(keys: _CommonKeys, settings: ModelSettings) -> None:
    """Raise `ValueError` for values of a `config.json` that contradict each other."""
    if missing := {"model.safetensors", "users.safetensors"} - keys["files"].keys():
        raise PrmError(f"'files' has no digest of {min(missing)}")
    if settings.backbone.day:
        date.fromisoformat(settings.backbone.day)
    if settings.objective is not None:
        require(
            settings.objective.method != "dpo" or settings.objective.beta is not None, "objective.beta", "is missing"
        )
        require("reference" in keys["fingerprints"], "fingerprints.reference", "is missing")
    if settings.reward is None:
        return
    kernel, landmarks = settings.reward.kernel, settings.landmarks
    if not (1 <= landmarks <= LANDMARKS if kernel == "rbf" else landmarks == 0):
        raise PrmError(f"a kernel {kernel!r} with landmarks {landmarks!r}")

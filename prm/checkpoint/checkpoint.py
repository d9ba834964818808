"""A trained reward model or policy as one folder, safetensors only, that refuses what it was not trained with."""

import hashlib
import logging
import subprocess
from dataclasses import asdict, dataclass, replace
from datetime import UTC, date, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Generic, Literal, NotRequired, TypedDict, TypeVar

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prm.checkpoint.formats import FORMAT, refuse_other_texts, texts_fingerprint
from prm.checkpoint.model_card import model_card
from prm.checks import Count, Positive, Text, built, kinds_of, require
from prm.config import BackboneConfig, RewardModelConfig, UserConfig
from prm.data.chat_template import today, writes_date
from prm.data.encoding import Place, TextEncoder
from prm.errors import CheckpointError, PrmError, some
from prm.io.digests import check_digests, digest_of_values, file_digests
from prm.io.disk import remove
from prm.io.folders import recover, work_folder
from prm.io.run_files import COPY_BACK, read_json, refuse_unfit
from prm.io.tables import write_json, write_text
from prm.io.tensors import write_tensors, written_by_others
from prm.models.adapters import FOLDER as ADAPTER
from prm.models.adapters import attach_adapter, refuse_unlike
from prm.models.backbone_state import unconditioned
from prm.models.backbones import (
    is_reward_model,
    is_run,
    load_backbone,
    load_causal_lm,
    load_reward_model,
    load_tokenizer,
    reading_settings,
    seen_from,
    template_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from prm.models.max_length import reach, window
from prm.models.nystroem import LANDMARKS
from prm.models.policy_model import Policy, build_policy
from prm.models.reward_model import RewardModel, build_user_model
from prm.users.index import UserIndex

logger = logging.getLogger(__name__)

REWARD_MODEL, POLICY = "reward_model", "policy"
_SETTINGS = {
    REWARD_MODEL: ("backbone", "users", "reward", "base_head", "landmarks", "user_text"),
    POLICY: ("backbone", "users", "objective"),
}
_PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "numpy", "safetensors")


Model = TypeVar("Model", RewardModel, Policy)


class _Any(TypedDict):
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


class _Saved(TypedDict):
    """`config.json`, as `save` writes it."""

    backbone: _Backbone
    users: UserConfig
    adapter: bool
    backbone_settings: dict[str, Any]
    files: dict[str, str]


class _Reward(_Saved):
    reward: RewardModelConfig
    base_head: bool
    landmarks: int
    user_text: Literal["prompt", "prior", "unread"]
    fingerprints: _Fingerprints


class _OfPolicy(_Fingerprints):
    reference: str


class _Objective(TypedDict):
    method: str
    beta: NotRequired[Positive]


class _Policy(_Saved):
    objective: _Objective
    fingerprints: _OfPolicy


@dataclass
class Checkpoint(Generic[Model]):
    """A reward model or a policy with everything that scoring and answering need.

    `settings` holds the config sections backbone (`backbone_settings`) and users as they were trained; of a reward
    model also `reward`, `base_head`: true where the backbone came with a head of its own, `landmarks`: their number
    where there is a kernel, else 0, and `user_text`: whether it is read in front of the `prompt`, moves a person's
    `prior`, or is `unread`; of a policy `objective`: the method that trained it and its numbers. `tuned` says that the
    backbone's own weights were trained: they are then saved along. `folder` is where it was loaded from, if it was.
    """

    model: Model
    users: UserIndex
    tokenizer: PreTrainedTokenizerBase
    settings: dict[str, Any]
    tuned: bool = False
    folder: Path | None = None

    def __post_init__(self) -> None:
        """Raise `PrmError` where the tokenizer makes ids that the model would take for users."""
        rows, vocabulary = self.model.vocab_size, self.tokenizer.get_vocab()
        if (highest := max(vocabulary.values())) >= rows:
            name = self.settings["backbone"]["name"]
            past = some([repr(word) for word, i in vocabulary.items() if i >= rows])
            raise PrmError(
                f"{name}: its tokenizer makes ids up to {highest}, its embedding has {rows} rows: {past} would be read "
                f"as people. Give them rows (transformers' resize_token_embeddings({highest + 1})) or take them out of "
                "the tokenizer, and save the model"
            )

    @property
    def kind(self) -> str:
        """`reward_model` or `policy`."""
        return POLICY if isinstance(self.model, Policy) else REWARD_MODEL

    def encoder(self) -> TextEncoder:
        """The encoder that the model was trained with; a policy's users stand in front, where answers can follow."""
        return make_encoder(self.tokenizer, self.model.vocab_size, self.settings, self.model.config)


def make_encoder(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, settings: dict[str, Any], config: Any
) -> TextEncoder:
    """The encoder of a model with these settings, as `Checkpoint` has them.

    Args:
        config: of the language model.
    """
    backbone, reward, whole = settings["backbone"], settings.get("reward"), settings.get("base_head", False)
    place: Place | Literal["apart"] = "prefix"
    if reward is not None:
        place = "apart" if reward["form"] == "linear_head" else reward["position"]
    tokens, length = settings["users"]["num_virtual_tokens"], backbone["max_length"]
    encoder = TextEncoder(tokenizer, vocab_size, tokens, place, length, whole, backbone["day"])
    padding = config.pad_token_id if whole else None
    while encoder.end_ids and encoder.end_ids[-1] == padding:
        encoder.end_ids.pop()  # reward models read the last token that is no padding, even where a text ends in it
    return encoder


def backbone_settings(
    config: BackboneConfig, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, day: str = ""
) -> dict[str, Any]:
    """The section as `Checkpoint.settings` has it.

    `max_length` is what the backbone can read where the config asks for more, `dtype` the backbone's. Beside these it
    has `folder`: whether the name is one, and no hub id; and `day`: the date that the chat template takes for today's,
    empty where it asks for none.

    Args:
        day: ISO date on which training started; today where empty.
    """
    longest, half = reach(backbone), next(backbone.parameters()).dtype == torch.bfloat16
    if config.max_length > longest:
        logger.warning(
            "%s: 'backbone.max_length' %d becomes %d, the most that it reads alike whatever stands beside it",
            config.name,
            config.max_length,
            longest,
        )
    config = replace(config, max_length=min(config.max_length, longest), dtype="bfloat16" if half else "float32")
    date = (day or today()) if writes_date(tokenizer) else ""
    return asdict(config) | {"folder": Path(config.name).expanduser().is_dir(), "day": date}


def save(checkpoint: Checkpoint[Any], folder: Path, run: dict[str, Any], shared: bool = True) -> None:
    """Write the folder's files. The caller sees to it that the folder appears at once (`prm.io.folders.atomic_folder`).

    Args:
        run: what is known of how the model came about; goes to `run.json` with versions and commit.
        shared: write backbone, adapter and tokenizer, too; they lie in the folder already where only people changed.
    """
    model = checkpoint.model
    write_tensors(folder / "model.safetensors", model.head_state())
    people = {name: torch.from_numpy(array) for name, array in checkpoint.users.to_arrays().items()}
    write_tensors(folder / "users.safetensors", people)
    if shared:
        _save_shared(checkpoint, folder)
    config = {
        "format": FORMAT,
        "kind": checkpoint.kind,
        **checkpoint.settings,
        "adapter": not checkpoint.tuned and isinstance(model.backbone, PeftModel),
        "backbone_settings": reading_settings(model.config),
        "fingerprints": {
            "backbone": model.fingerprint,
            "tokenizer": tokenizer_fingerprint(checkpoint.tokenizer),
            "template": template_fingerprint(checkpoint.tokenizer),
            "texts": texts_fingerprint(checkpoint.encoder()),
            **({"reference": model.origin} if isinstance(model, Policy) else {}),
        },
        "files": file_digests(folder),
    }
    write_json(folder / "config.json", config | {"digest": digest_of_values(config)})
    template = config["fingerprints"]["template"]
    write_json(folder / "run.json", {**run, "template": template, "environment": environment()})
    write_text(folder / "README.md", model_card(model, checkpoint.settings, len(checkpoint.users), run))


def _save_shared(checkpoint: Checkpoint[Any], folder: Path) -> None:
    """Backbone or adapter, as far as they were trained, and the tokenizer. Others write them, in place."""
    model = checkpoint.model
    if checkpoint.tuned:
        with unconditioned(model.backbone) as plain, written_by_others(folder / "backbone"):
            plain.save_pretrained(folder / "backbone")
            plain.__dict__.pop("uncut_fingerprint", None)  # of the weights before they were trained
            model.fingerprint = weights_fingerprint(plain)
            checkpoint.tokenizer.save_pretrained(folder / "backbone")
    elif isinstance(model.backbone, PeftModel):
        with written_by_others(folder / "adapter"):
            model.backbone.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
        remove(folder / "adapter" / "README.md")  # a template that knows nothing of this model
    with written_by_others(folder / "tokenizer"):
        checkpoint.tokenizer.save_pretrained(folder / "tokenizer")


def load(
    folder: str | Path,
    backbone: str | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Checkpoint[Any]:
    """Read a folder that `save` wrote.

    Args:
        backbone: where the backbone lies now, if not where `config.json` says. Of a policy whose own weights were
            trained it is what the policy started from (`add_reference`).
        dtype: of the backbone; as trained where not given.

    Raises `CheckpointError` where files are missing or damaged, or backbone, tokenizer or template differ
    from those of the training run.
    """
    folder = Path(folder)
    config = read_config(folder)
    check_digests(folder, config["files"])
    tuned = folder / "backbone"
    if tuned.is_dir() and (backbone is None or config["kind"] == POLICY):
        name = str(tuned)
    else:
        name = backbone or backbone_of(config["backbone"], folder)
    if dtype is None:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[config["backbone"]["dtype"]]
    users = _users_in(folder / "users.safetensors")
    model = (_new_policy if config["kind"] == POLICY else _new_reward_model)(config, name, users.n_rows, dtype)
    _refuse_other(config, "backbone", model.fingerprint, f"{name} (weights differ)")
    _refuse_other_settings(config, model, name)
    # the tokenizer of the backbone at hand, not our copy: it is the one the texts will meet elsewhere too
    tokenizer = load_tokenizer(name)
    _refuse_other(config, "tokenizer", tokenizer_fingerprint(tokenizer), f"that of {name}")
    _refuse_other(config, "template", template_fingerprint(tokenizer), f"that of {name}")
    _load_head(model, folder / "model.safetensors")
    if config["adapter"]:
        attach_adapter(model, folder / ADAPTER)
    model.requires_grad_(False).eval()
    settings = {key: config[key] for key in _SETTINGS[config["kind"]]}
    model = model.to(device or torch.device("cpu"))
    found: Checkpoint[Any] = Checkpoint(model, users, tokenizer, settings, tuned.is_dir(), folder)
    refuse_other_texts(config, found.encoder(), folder)
    return found


def load_onto(folder: str | Path, backbone: PreTrainedModel) -> Checkpoint[RewardModel]:
    """A reward model that reads with a backbone already in memory, whole, conditioned, and left as it is.

    Whoever scores sees to it that no adapter but the run's is at work, and that user ids mean this model's people.
    Raises `CheckpointError` where weights, tokenizer or template are not those of the training run.
    """
    folder = Path(folder)
    config = read_config(folder)
    if config["kind"] != REWARD_MODEL or (folder / "backbone").is_dir():
        raise CheckpointError(f"{folder} holds no reward model, or one that trained its backbone: it shares none")
    check_digests(folder, config["files"])
    users, name = _users_in(folder / "users.safetensors"), backbone_of(config["backbone"], folder)
    with unconditioned(backbone):
        model = _reward_model_on(backbone, config, users.n_rows)
    _refuse_other(config, "backbone", model.fingerprint, "the one in memory")
    _refuse_other_settings(config, model, "the one in memory")
    tokenizer = load_tokenizer(name)
    _refuse_other(config, "tokenizer", tokenizer_fingerprint(tokenizer), f"that of {name}")
    _refuse_other(config, "template", template_fingerprint(tokenizer), f"that of {name}")
    _load_head(model, folder / "model.safetensors")
    for name_, parameter in model.named_parameters():
        if not name_.startswith("backbone."):
            parameter.requires_grad_(False)
    settings = {key: config[key] for key in _SETTINGS[REWARD_MODEL]}
    device = next(backbone.parameters()).device
    found = Checkpoint(model.to(device), users, tokenizer, settings, folder=folder)
    refuse_other_texts(config, found.encoder(), folder)
    return found


def backbone_of(trained: dict[str, Any], folder: Path | None) -> str:
    """Where a run's backbone lies, from here; a folder is not looked for on the hub where it is missing."""
    name = str(trained["name"]) if folder is None else seen_from(folder, trained["name"])
    if trained.get("folder", False) and not Path(name).expanduser().is_dir():
        raise CheckpointError(
            f"{folder}: trained on the folder {name}, which is neither here nor in a folder above the run: say where "
            "it lies now with --backbone or backbone=, or run the command from where it did in training"
        )
    return name


def _new_reward_model(config: dict[str, Any], name: str, n_rows: int, dtype: torch.dtype) -> RewardModel:
    """The model of a `config.json` without what it has learnt."""
    backbone = (
        load_reward_model(name, dtype)[0]  # its head is also among what the run has learnt
        if is_reward_model(name)
        else load_backbone(name, config["backbone"]["layers"], dtype)
    )
    return _reward_model_on(backbone, config, n_rows)


def _reward_model_on(backbone: PreTrainedModel, config: dict[str, Any], n_rows: int) -> RewardModel:
    """The same on a backbone that is there; one that is deeper than the run's, which was cut, is read at that depth."""
    text_config, layers = backbone.config.get_text_config(), config["backbone"]["layers"]
    reward, dim = RewardModelConfig(**config["reward"]), text_config.hidden_size
    if layers and layers < text_config.num_hidden_layers and not reward.features:
        reward = replace(reward, features=[f"{layers} {reward.pooling}"])
    landmarks, width = config["landmarks"], dim * reward.num_features
    text_dim = width if config["user_text"] == "prior" else 0
    with torch.device("meta"):  # no memory for what is about to be mapped from the file
        user_model = build_user_model(UserConfig(**config["users"]), n_rows, landmarks or width, text_dim)
    base = torch.nn.Linear(dim, 1) if config["base_head"] else None
    return RewardModel(backbone, user_model, reward, base, landmarks)


def _new_policy(config: dict[str, Any], name: str, n_rows: int, dtype: torch.dtype) -> Policy:
    """The policy of a `config.json` without what its people and its adapter have learnt."""
    backbone = load_causal_lm(name, dtype)
    with torch.device("meta"):
        users = build_user_model(UserConfig(**config["users"]), n_rows, backbone.config.get_text_config().hidden_size)
    return Policy(backbone, users, config["fingerprints"]["reference"])


def load_policy(
    name: str, device: torch.device | None = None, dtype: torch.dtype | None = None, day: str = ""
) -> Checkpoint[Policy]:
    """A policy's run folder; or a language model by name, as a policy that knows nobody.

    Args:
        dtype: as trained where not given; float32 for a language model.
        day: ISO date that a language model's chat template takes for today's; today where empty. A run has its own.

    Raises `PrmError` for a reward model, and for what cannot be loaded.
    """
    if is_run(name):
        if read_config(Path(name))["kind"] != POLICY:
            raise CheckpointError(f"{name} holds a reward model: it scores answers and cannot write them")
        return load(name, device=device, dtype=dtype)
    users = UserConfig("uniform", num_virtual_tokens=0)
    policy = build_policy(name, users, 1, 0, dtype or torch.float32).requires_grad_(False).eval()
    longest = BackboneConfig(name, max_length=window(policy.backbone))
    tokenizer = load_tokenizer(name)
    settings = {"backbone": backbone_settings(longest, policy.backbone, tokenizer, day), "users": asdict(users)}
    return Checkpoint(policy.to(device or torch.device("cpu")), UserIndex(), tokenizer, settings | {"objective": {}})


def add_reference(checkpoint: Checkpoint[Any], backbone: str | None = None) -> None:
    """Load what a policy is compared with, where its own weights hold what it has learnt.

    Args:
        backbone: where the language model that the policy started from lies now, if not where the run says.

    Raises `CheckpointError` for another model than that.
    """
    policy = checkpoint.model
    if not checkpoint.tuned or not isinstance(policy, Policy):
        return
    name = backbone or backbone_of(checkpoint.settings["backbone"], checkpoint.folder)
    start = build_policy(
        name, UserConfig("uniform", num_virtual_tokens=0), 1, 0, next(policy.backbone.parameters()).dtype
    )
    if start.fingerprint != policy.origin:
        raise CheckpointError(
            f"the policy started from other weights ({policy.origin}) than {name} ({start.fingerprint})"
        )
    policy.compare_with(start.requires_grad_(False).eval().to(policy.device))


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json` of a run. Raises `CheckpointError` where it is damaged, or the folder is no finished run."""
    path = Path(folder) / "config.json"
    recover(path.parent)
    if not path.is_file():
        unfinished = work_folder(Path(folder)).is_dir()
        hint = "; its training was not finished: run the same command again" if unfinished else ""
        raise CheckpointError(f"{folder}: no trained model here (config.json is missing){hint}")
    config: dict[str, Any] = read_json(path, _Any)
    found = digest_of_values(config)
    if config.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {config.get('format')!r}, expected {FORMAT}. Runs of format 1 put user tokens before "
            "a beginning-of-text token, those of format 2 have other names of settings. Train it again"
        )
    refuse_unfit(path, _Reward if config["kind"] == REWARD_MODEL else _Policy, config)
    try:
        _refuse_apart(config)
    except ValueError as error:  # ours, or the day's
        raise CheckpointError(f"{path} is damaged: {error}: {COPY_BACK}") from None
    if config.get("digest", found) != found:  # earlier runs have none
        raise CheckpointError(f"{path} was changed after it was written: {COPY_BACK}")
    return config


def _refuse_apart(config: dict[str, Any]) -> None:
    """Raise `PrmError` for values of a `config.json` that do not go together."""
    for name, kind in {"users": UserConfig, "reward": RewardModelConfig}.items():
        if name in config:
            built(kind, config[name], name)
            require(not kinds_of(kind).keys() - config[name].keys(), name, f"must hold {', '.join(kinds_of(kind))}")
    if missing := {"model.safetensors", "users.safetensors"} - config["files"].keys():
        raise PrmError(f"'files' has no digest of {min(missing)}")
    if config["backbone"]["day"]:
        date.fromisoformat(config["backbone"]["day"])
    if config["kind"] == POLICY:
        known = config["objective"]["method"] != "dpo" or "beta" in config["objective"]
        require(known, "objective.beta", "is missing")
        return
    kernel, landmarks = config["reward"]["kernel"], config["landmarks"]
    if not (1 <= landmarks <= LANDMARKS if kernel == "rbf" else landmarks == 0):
        raise PrmError(f"a kernel {kernel!r} with landmarks {landmarks!r}")
    kind, user_text = config["users"]["kind"], config["user_text"]
    if user_text == "prior" and kind != "bayes":
        raise PrmError(f"user_text {user_text!r} with users.kind {kind!r}")


def read_users(folder: Path) -> UserIndex:
    """The user index of a run, read where it lies. Raises `CheckpointError` where it is missing or damaged."""
    config, name = read_config(folder), "users.safetensors"
    check_digests(Path(folder), {name: config["files"][name]})
    return _users_in(Path(folder) / name)


def _users_in(path: Path) -> UserIndex:
    try:
        return UserIndex.from_arrays({name: tensor.numpy() for name, tensor in _mapped(path).items()})
    except CheckpointError:
        raise
    except PrmError as error:
        raise CheckpointError(f"{path} is damaged: {error}: {COPY_BACK}") from None


def digest(folder: Path) -> str:
    """Hex digest of what a run has learnt, and of whom."""
    return hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:16]


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


def _refuse_other(config: dict[str, Any], what: str, found: str, name: str) -> None:
    expected = config["fingerprints"][what]
    if found != expected:
        trained = config["backbone"]["name"]
        raise CheckpointError(
            f"trained with the {what} of {trained} ({what} {expected}), asked to load with {name} ({what} {found})"
        )


def _refuse_other_settings(config: dict[str, Any], model: RewardModel | Policy, name: str) -> None:
    """Settings that only one of two versions of transformers knows are passed over."""
    given, found = config["backbone_settings"], reading_settings(model.config)
    for key in sorted(given.keys() & found.keys()):
        if given[key] != found[key]:
            trained = config["backbone"]["name"]
            raise CheckpointError(
                f"trained with {key} {given[key]!r} of {trained}, asked to load with {name}, where it is {found[key]!r}"
            )


def _load_head(model: RewardModel | Policy, path: Path) -> None:
    """Give the model what it has learnt, people's rows as they lie in the file: what is written there stays here."""
    state, expected = _mapped(path), {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.")}
    refuse_unlike(state, expected, path)
    tables = {id(table) for table in model.user_model.per_row()}
    people = {f"user_model.{name}" for name, own in model.user_model.named_parameters() if id(own) in tables}
    # all else is small, and products are the same to the bit only where memory is aligned as usual
    state = {name: tensor if name in people else tensor.clone() for name, tensor in state.items()}
    model.load_state_dict(state, strict=False, assign=True)


def _mapped(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name: pages are read when first touched, and copied when written to.

    The file must not be written to while somebody holds them; `prm.io.tensors` puts another one in its place.
    """
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own type, which shares no base with OSError
        raise CheckpointError(f"{path}: missing or damaged: {error}") from None

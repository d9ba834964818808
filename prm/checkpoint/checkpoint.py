"""Saves and loads a reward model or policy as one folder, safetensors only; refuses other backbones or tokenizers."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from prm.checkpoint.config_file import (
    FORMAT,
    POLICY,
    REWARD_MODEL,
    BackboneRecord,
    ConfigFile,
    Kind,
    ModelSettings,
    read_config,
)
from prm.checkpoint.formats import refuse_other_texts, texts_fingerprint
from prm.checkpoint.model_card import write_card
from prm.config import BackboneConfig, Position, UserConfig
from prm.data.chat_template import today, writes_date
from prm.data.encoding import TextEncoder
from prm.data.system_prompt import default_system_prompt, without_default_system_prompt
from prm.errors import CheckpointError, PrmError, some
from prm.io.digests import check_digests, digest_of_values, file_digests
from prm.io.disk import remove
from prm.io.environment import environment
from prm.io.folders import is_run
from prm.io.run_files import COPY_BACK, RunFiles, RunRecord
from prm.io.tables import write_json
from prm.io.tensors import blocks_of, write_tensors, written_by_others
from prm.models.backbone_paths import seen_from
from prm.models.backbone_state import unconditioned
from prm.models.backbones import (
    load_causal_lm,
    load_tokenizer,
    reading_settings,
    template_fingerprint,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from prm.models.length_limits import reach, window
from prm.models.loading import quietly
from prm.models.policy_model import Policy, build_policy
from prm.models.reward_model import RewardModel
from prm.models.saved_adapters import FOLDER as ADAPTER
from prm.models.saved_adapters import attach_adapter, refuse_unlike
from prm.models.shared_backbone import BackboneLoader
from prm.users.build import build_user_model
from prm.users.id_table import Column
from prm.users.index import UserIndex
from prm.users.trained_on import TrainedOn

logger = logging.getLogger(__name__)

Model = TypeVar("Model", RewardModel, Policy)
Built = TypeVar("Built", UserIndex, TrainedOn)

COMPARISONS = "comparisons.safetensors"  # digests of those that were trained on; read by evaluations alone


@dataclass
class Checkpoint(Generic[Model]):
    """A reward model or a policy with everything that scoring and sampling need.

    `tuned`: the backbone's own weights were trained, and are saved. `folder`: where it was loaded from, if it was.
    `record`: of a model that was made in memory, what its JSON files will hold, such as `run.json`, by name.
    """

    model: Model
    users: UserIndex
    tokenizer: PreTrainedTokenizerBase
    settings: ModelSettings
    tuned: bool = False
    folder: Path | None = None
    record: RunFiles = field(default_factory=RunFiles)

    def __post_init__(self) -> None:
        """Raise `PrmError` if the tokenizer has ids that the model would take for user ids."""
        self.tokenizer = as_read(self.settings.backbone, self.tokenizer)
        n_rows, vocabulary = self.model.vocab_size, self.tokenizer.get_vocab()
        if (highest := max(vocabulary.values())) >= n_rows:
            name = self.settings.backbone.name
            user_like = some([repr(word) for word, i in vocabulary.items() if i >= n_rows])
            raise PrmError(
                f"{name}: its tokenizer has ids up to {highest}, its embedding has {n_rows} rows: {user_like} would be "
                f"taken for users. Resize it (transformers' resize_token_embeddings({highest + 1})) or remove them "
                "from the tokenizer, and save the model"
            )

    @property
    def kind(self) -> Kind:
        """`reward_model` or `policy`."""
        return POLICY if isinstance(self.model, Policy) else REWARD_MODEL

    def encoder(self) -> TextEncoder:
        """The encoder that the model was trained with; a policy's user tokens are a prefix."""
        return make_encoder(self.tokenizer, self.model.vocab_size, self.settings, self.model.config)


def make_encoder(
    tokenizer: PreTrainedTokenizerBase, vocab_size: int, settings: ModelSettings, config: PretrainedConfig
) -> TextEncoder:
    """Build the encoder of a model.

    Args:
        config: of the language model.
    """
    backbone, reward = settings.backbone, settings.reward
    position: Position | Literal["apart"] = "prefix"
    if reward is not None:
        position = "apart" if reward.form == "linear_head" else reward.position
    tokens, has_base_head = settings.users.num_virtual_tokens, settings.base_head
    encoder = TextEncoder(tokenizer, vocab_size, tokens, position, backbone.max_length, has_base_head, backbone.day)
    padding = config.pad_token_id if has_base_head else None
    while encoder.end_ids and encoder.end_ids[-1] == padding:
        encoder.end_ids.pop()  # reward models use the last token that is no padding, even of a text that ends in it
    return encoder


def as_read(record: BackboneRecord, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The backbone's tokenizer as the model reads texts with it: without the system prompt that the run leaves out."""
    return without_default_system_prompt(tokenizer) if record.omitted_system_prompt else tokenizer


def backbone_record(
    config: BackboneConfig,
    backbone: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    day: str = "",
    base_head: bool = False,
) -> BackboneRecord:
    """What a run keeps of its backbone. `max_length` is limited to what it supports, `dtype` is that of its weights.

    Args:
        day: ISO date on which training started; today if empty.
        base_head: whether the backbone came with a reward head, which was trained on its template's system prompt.
    """
    limit, is_bfloat16 = reach(backbone), next(backbone.parameters()).dtype == torch.bfloat16
    if config.max_length > limit:
        logger.warning(
            "%s: 'backbone.max_length' %d becomes %d, the maximum at which scores do not depend on the rest of a batch",
            config.name,
            config.max_length,
            limit,
        )
    return BackboneRecord(
        name=config.name,
        layers=config.layers,
        dtype="bfloat16" if is_bfloat16 else "float32",
        max_length=min(config.max_length, limit),
        folder=Path(config.name).expanduser().is_dir(),
        day=(day or today()) if writes_date(tokenizer) else "",
        omitted_system_prompt="" if base_head else default_system_prompt(tokenizer),
    )


def save(checkpoint: Checkpoint[Any], folder: Path, run: RunRecord, shared: bool = True) -> None:
    """Write the folder's files. The caller makes it atomic (`prm.io.folders.atomic_folder`).

    Args:
        run: how the model was trained; written to `run.json` with versions and commit.
        shared: also write backbone, adapter and tokenizer; false if only users changed and the folder has them.
    """
    model = checkpoint.model
    write_tensors(folder / "model.safetensors", model.head_state())
    user_arrays = {name: torch.from_numpy(array) for name, array in checkpoint.users.to_arrays().items()}
    write_tensors(folder / "users.safetensors", user_arrays)
    if (trained_on := checkpoint.users.trained_on) is not None:
        write_tensors(folder / COMPARISONS, {n: torch.from_numpy(a) for n, a in trained_on.to_arrays().items()})
    if shared:
        _save_shared(checkpoint, folder)
    template = template_fingerprint(checkpoint.tokenizer)
    config: dict[str, object] = {
        "format": FORMAT,
        "kind": checkpoint.kind,
        **checkpoint.settings.to_dict(),
        "adapter": not checkpoint.tuned and isinstance(model.backbone, PeftModel),
        "backbone_settings": reading_settings(model.config),
        "fingerprints": {
            "backbone": model.fingerprint,
            "tokenizer": tokenizer_fingerprint(checkpoint.tokenizer),
            "template": template,
            "texts": texts_fingerprint(checkpoint.encoder()),
            **({"reference": model.origin} if isinstance(model, Policy) else {}),
        },
        "files": file_digests(folder),
    }
    write_json(folder / "config.json", config | {"digest": digest_of_values(config)})
    write_json(folder / "run.json", {**run, "template": template, "environment": environment()})
    write_card(folder, len(checkpoint.users))


def _save_shared(checkpoint: Checkpoint[Any], folder: Path) -> None:
    """Save the tokenizer, and the backbone or adapter if trained, with their libraries' own functions."""
    model = checkpoint.model
    if checkpoint.tuned:
        with unconditioned(model.backbone) as plain, written_by_others(folder / "backbone"), quietly():
            plain.save_pretrained(folder / "backbone")
            plain.__dict__.pop("uncut_fingerprint", None)  # of the weights before training
            model.fingerprint = weights_fingerprint(plain)
            checkpoint.tokenizer.save_pretrained(folder / "backbone")
    elif isinstance(model.backbone, PeftModel):
        with written_by_others(folder / "adapter"), quietly():
            model.backbone.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
        remove(folder / "adapter" / "README.md")  # PEFT's template
    with written_by_others(folder / "tokenizer"):
        checkpoint.tokenizer.save_pretrained(folder / "tokenizer")


def load(
    folder: str | Path,
    backbone: str | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype | None = None,
    loader: BackboneLoader | None = None,
) -> Checkpoint[Any]:
    """Load a folder that `save` wrote.

    Args:
        backbone: folder or hub id of the backbone, if it is no longer that of `config.json`. For a policy whose own
            weights were trained, it is the model that training started from (`add_reference`).
        dtype: of the backbone; as trained if not given.
        loader: reward models that are loaded with the same one share their backbone's weights.

    Raises `CheckpointError` if files are missing or damaged, or if backbone, tokenizer or template differ from those of
    the training run.
    """
    folder = Path(folder)
    config = read_config(folder)
    _refuse_damaged(folder, config)
    trained, tuned = config.settings.backbone, folder / "backbone"
    if tuned.is_dir() and (backbone is None or config.kind == POLICY):
        name = str(tuned)
    else:
        name = backbone or backbone_of(trained, folder)
    if dtype is None:
        dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[trained.dtype]
    users = _load_users(folder, config)
    model: RewardModel | Policy
    if config.kind == POLICY:
        model = _new_policy(config, name, users.n_rows, dtype)
    else:
        plain = (loader or BackboneLoader()).load(name, trained.layers, dtype)
        model = _reward_model_on(plain, config.settings, users.n_rows)
    _refuse_changed(config, "backbone", model.fingerprint, f"{name} (weights differ)")
    _refuse_changed_settings(config, model, name)
    # the backbone's tokenizer, not the run's copy: other programs use that one, too
    tokenizer = as_read(config.settings.backbone, load_tokenizer(name))
    _refuse_changed(config, "tokenizer", tokenizer_fingerprint(tokenizer), f"that of {name}")
    _refuse_changed(config, "template", template_fingerprint(tokenizer), f"that of {name}")
    _load_head(model, folder / "model.safetensors")
    if config.adapter:
        attach_adapter(model, folder / ADAPTER)
    model.requires_grad_(False).eval()
    model = model.to(device or torch.device("cpu"))
    checkpoint: Checkpoint[Any] = Checkpoint(model, users, tokenizer, config.settings, tuned.is_dir(), folder)
    refuse_other_texts(config.fingerprints["texts"], checkpoint.encoder(), folder)
    return checkpoint


def load_onto(folder: str | Path, backbone: PreTrainedModel) -> Checkpoint[RewardModel]:
    """Load a reward model onto a full, conditioned backbone that is already in memory, without changing it.

    The caller activates the run's adapter and user model for scoring. Raises `CheckpointError` if weights, tokenizer or
    template are not those of the training run.
    """
    folder = Path(folder)
    config = read_config(folder)
    if config.kind != REWARD_MODEL or (folder / "backbone").is_dir():
        raise CheckpointError(f"{folder} holds no reward model, or one with a trained backbone, which cannot be shared")
    _refuse_damaged(folder, config)
    users, name = _load_users(folder, config), backbone_of(config.settings.backbone, folder)
    with unconditioned(backbone):
        model = _reward_model_on(backbone, config.settings, users.n_rows)
    _refuse_changed(config, "backbone", model.fingerprint, "the one in memory")
    _refuse_changed_settings(config, model, "the one in memory")
    tokenizer = as_read(config.settings.backbone, load_tokenizer(name))
    _refuse_changed(config, "tokenizer", tokenizer_fingerprint(tokenizer), f"that of {name}")
    _refuse_changed(config, "template", template_fingerprint(tokenizer), f"that of {name}")
    _load_head(model, folder / "model.safetensors")
    for parameter_name, parameter in model.named_parameters():
        if not parameter_name.startswith("backbone."):
            parameter.requires_grad_(False)
    device = next(backbone.parameters()).device
    checkpoint = Checkpoint(model.to(device), users, tokenizer, config.settings, folder=folder)
    refuse_other_texts(config.fingerprints["texts"], checkpoint.encoder(), folder)
    return checkpoint


def backbone_of(trained: BackboneRecord, folder: Path | None) -> str:
    """The folder or hub id of a run's backbone. Raises `CheckpointError` if it was a folder that is missing now."""
    name = trained.name if folder is None else seen_from(folder, trained.name)
    if trained.folder and not Path(name).expanduser().is_dir():
        raise CheckpointError(
            f"{folder}: trained on the folder {name}, which is neither here nor in a parent folder of the run: name "
            "its location with --backbone or backbone=, or run the command in the working directory of training"
        )
    return name


def _reward_model_on(backbone: PreTrainedModel, settings: ModelSettings, n_rows: int) -> RewardModel:
    """The model of a `config.json` without its trained tensors.

    If the run's backbone was truncated and this one is not, the features name the run's depth.
    """
    text_config, layers, reward = backbone.config.get_text_config(), settings.backbone.layers, settings.reward
    assert reward is not None
    if layers and layers < text_config.num_hidden_layers and not reward.features:
        reward = replace(reward, features=[f"{layers} {reward.pooling}"])
    dim = text_config.hidden_size
    with torch.device("meta"):  # no memory: tensors are memory-mapped from the file
        user_model = build_user_model(settings.users, n_rows, settings.landmarks or dim * reward.num_features)
    base = torch.nn.Linear(dim, 1) if settings.base_head else None
    return RewardModel(backbone, user_model, reward, base, settings.landmarks)


def _new_policy(config: ConfigFile, name: str, n_rows: int, dtype: torch.dtype) -> Policy:
    """The policy of a `config.json` without its trained user model and adapter."""
    backbone = load_causal_lm(name, dtype)
    with torch.device("meta"):
        users = build_user_model(config.settings.users, n_rows, backbone.config.get_text_config().hidden_size)
    return Policy(backbone, users, config.fingerprints["reference"])


def load_policy(
    name: str, device: torch.device | None = None, dtype: torch.dtype | None = None, day: str = ""
) -> Checkpoint[Policy]:
    """Load a policy from its run folder, or a language model by name as a policy without users.

    Args:
        dtype: as trained if not given; float32 for a language model.
        day: ISO date of today for a language model's chat template; today if empty. Not used for a run.

    Raises `PrmError` for a reward model, and for what cannot be loaded.
    """
    if is_run(name):
        if read_config(Path(name)).kind != POLICY:
            raise CheckpointError(f"{name} holds a reward model: it scores responses and cannot generate them")
        return load(name, device=device, dtype=dtype)
    model = load_causal_lm(name, dtype or torch.float32).requires_grad_(False)
    checkpoint = without_users(model, load_tokenizer(name), name, day)
    checkpoint.model.to(device or torch.device("cpu"))
    return checkpoint


def without_users(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, day: str = ""
) -> Checkpoint[Policy]:
    """A causal language model as a policy without users; wraps its input embedding and switches its dropout off.

    `day` is as of `load_policy`. Raises `PrmError` if the tokenizer has ids that the model does not have.
    """
    users = UserConfig("uniform", num_virtual_tokens=0)
    user_model = build_user_model(users, 1, model.config.get_text_config().hidden_size).requires_grad_(False)
    policy = Policy(model, user_model.to(model.device)).eval()
    config = BackboneConfig(name, max_length=window(model))
    return Checkpoint(
        policy, UserIndex(), tokenizer, ModelSettings(backbone_record(config, model, tokenizer, day), users)
    )


def add_reference(checkpoint: Checkpoint[Any], backbone: str | None = None) -> None:
    """Load the reference of a policy whose own weights were trained; do nothing for others.

    Args:
        backbone: folder or hub id of the language model that training started from, if not that of the run.

    Raises `CheckpointError` for another model.
    """
    policy = checkpoint.model
    if not checkpoint.tuned or not isinstance(policy, Policy):
        return
    name = backbone or backbone_of(checkpoint.settings.backbone, checkpoint.folder)
    reference = build_policy(
        name, UserConfig("uniform", num_virtual_tokens=0), 1, 0, next(policy.backbone.parameters()).dtype
    )
    if reference.fingerprint != policy.origin:
        raise CheckpointError(
            f"the policy started from other weights ({policy.origin}) than {name} ({reference.fingerprint})"
        )
    policy.compare_with(reference.requires_grad_(False).eval().to(policy.device))


def read_users(folder: Path) -> UserIndex:
    """A run's user index, memory-mapped. Raises `CheckpointError` if it is missing or damaged."""
    config, name = read_config(folder), "users.safetensors"
    check_digests(Path(folder), {name: config.files[name]})
    return _built_from(Path(folder) / name, UserIndex.from_arrays)


def refresh_card(folder: Path) -> None:
    """Write the run's README.md again, with the results that were written since; does nothing without a model."""
    if (folder / "config.json").is_file():
        write_card(folder, len(read_users(folder)))


def check_comparisons(folder: Path) -> None:
    """Raise `CheckpointError` if the file of digests of comparisons has changed; `load` does not read it."""
    check_digests(folder, {name: one for name, one in read_config(folder).files.items() if name == COMPARISONS})


def _refuse_damaged(folder: Path, config: ConfigFile) -> None:
    """Raise `CheckpointError` if a file that `load` reads is missing or has changed."""
    check_digests(folder, {name: one for name, one in config.files.items() if name != COMPARISONS})


def _load_users(folder: Path, config: ConfigFile) -> UserIndex:
    users = _built_from(folder / "users.safetensors", UserIndex.from_arrays)
    # opened now, so that it stays that of this model whatever becomes of the folder
    users.trained_on = _built_from(folder / COMPARISONS, TrainedOn) if COMPARISONS in config.files else None
    return users


def _built_from(path: Path, build: Callable[[Mapping[str, Column]], Built]) -> Built:
    """What is built from the memory-mapped arrays of a file. Raises `CheckpointError` if they are not its arrays."""
    try:
        return build({name: tensor.numpy() for name, tensor in _memory_map(path).items()})
    except CheckpointError:
        raise
    except PrmError as error:
        raise CheckpointError(f"{path} is damaged: {error}: {COPY_BACK}") from None


def digest(folder: Path) -> str:
    """Hex digest of a run: of its trained tensors, settings and users."""
    return hashlib.sha256((folder / "config.json").read_bytes()).hexdigest()[:16]


def _refuse_changed(
    config: ConfigFile, what: Literal["backbone", "tokenizer", "template"], found: str, name: str
) -> None:
    if found != (expected := config.fingerprints[what]):
        raise CheckpointError(
            f"trained with the {what} of {config.settings.backbone.name} ({what} {expected}), asked to load with "
            f"{name} ({what} {found})"
        )


def _refuse_changed_settings(config: ConfigFile, model: RewardModel | Policy, name: str) -> None:
    """Raise `CheckpointError` for a changed setting; settings that only one of two transformers versions has pass."""
    old, new = config.backbone_settings, reading_settings(model.config)
    for key in sorted(old.keys() & new.keys()):
        if old[key] != new[key]:
            raise CheckpointError(
                f"trained with {key} {old[key]!r} of {config.settings.backbone.name}, asked to load with {name}, where "
                f"it is {new[key]!r}"
            )


def _load_head(model: RewardModel | Policy, path: Path) -> None:
    """Load the trained tensors; users' tables stay memory-mapped, and writing to them does not change the file.

    Raises `CheckpointError` if the tensors are not those of such a model.
    """
    on_file, users, prefix = _memory_map(path), model.user_model, "user_model."
    saved = users.adopt({k.removeprefix(prefix): v for k, v in on_file.items() if k.startswith(prefix)})
    state = {k: v for k, v in on_file.items() if not k.startswith(prefix)}
    state |= {f"{prefix}{name}": tensor for name, tensor in saved.items()}
    refuse_unlike(state, {k: v for k, v in model.state_dict().items() if not k.startswith("backbone.")}, path)
    # the rest is copied: it is small, and products are the same to the bit only with the usual memory alignment
    user_tables = {f"{prefix}{name}" for name in users.own_tensors}
    state = {name: tensor if name in user_tables else tensor.clone() for name, tensor in state.items()}

    def blocks(name: str) -> Iterator[torch.Tensor]:
        return blocks_of(path, prefix + name) if prefix + name in on_file else iter([saved[name]])

    try:
        users.check_saved(blocks)
    except PrmError as error:
        raise CheckpointError(f"{path} is damaged: {error}: {COPY_BACK}") from None
    model.load_state_dict(state, strict=False, assign=True)


def _memory_map(path: Path) -> dict[str, torch.Tensor]:
    """The memory-mapped tensors of a file by name: pages are read on first access and copied on write.

    The file must not be written to while they are in use; `prm.io.tensors` replaces it instead.
    """
    try:
        return load_file(path)
    except Exception as error:  # SafetensorError is no OSError
        raise CheckpointError(f"{path}: missing or damaged: {error}") from None

"""Set up a training run: a new model or that of an earlier run, and tokenised comparisons."""

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.config_file import ModelSettings
from prm.config import INHERITED_LOG_KEYS, TrainConfig, feature_depth
from prm.data.comparison import Comparison, Prompt
from prm.data.encoding import Encoded, TextEncoder
from prm.errors import DataError, PrmError
from prm.io.progress import progress
from prm.io.run_files import read_group, read_run, refuse_unfit
from prm.models.backbone_state import unconditioned
from prm.models.backbones import (
    choose_device,
    choose_dtype,
    is_reward_model,
    load_backbone,
    load_reward_model,
    load_tokenizer,
    processes,
    truncate_layers,
)
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel, build_reward_model
from prm.models.shared_backbone import share_weights
from prm.training.encoded_pairs import EncodedPair
from prm.training.template_check import unlike_own_pipeline
from prm.users.index import UserIndex
from prm.users.user_model import UserModel

logger = logging.getLogger(__name__)

_MODEL_SETTINGS = ("alpha", "train", "backbone", "users", "reward", "lora")

UNTRAINED_GENERIC = "alpha = 1 does not train the generic user: it becomes the mean of all users"


def new_checkpoint(config: TrainConfig, users: UserIndex, day: str = "") -> Checkpoint[RewardModel]:
    """An untrained model on its device, the backbone frozen unless `train: full`.

    Args:
        day: ISO date that the chat template takes for today's, now and whenever the model is loaded; today if empty.

    Raises `PrmError` if the backbone is a reward model and the config names layers or poolings that its head cannot
    read.
    """
    device = choose_device() if config.fast_path else processes().device
    full = config.train == "full"
    # trained weights are always float32
    dtype = torch.float32 if full else choose_dtype(config.backbone.dtype, device)
    name, base = config.backbone.name, None
    if is_reward_model(name):
        if config.backbone.layers is not None or config.reward.features or config.reward.pooling != "last":
            raise PrmError(
                f"{name} is a reward model: leave out 'backbone.layers' and 'reward.features', and set "
                "'reward.pooling' to 'last'"
            )
        backbone, base = load_reward_model(name, dtype)
    else:
        backbone = load_backbone(name, config.backbone.layers, dtype, bidirectional=config.fast_path)
    checkpoint = _checkpoint_on(backbone.requires_grad_(full), base, config, users, landmarks=0, day=day)
    checkpoint.model.to(device)
    return checkpoint


def with_shared_backbone(
    model: RewardModel, config: TrainConfig, users: UserIndex, landmarks: int, day: str
) -> Checkpoint[RewardModel]:
    """As `new_checkpoint`, with the weights of the frozen backbone and the base head of another model.

    Args:
        model: with linear heads, at least as deep as the config asks for.
        landmarks: number of landmark texts of a kernel between hidden states and heads; 0 for no kernel.
    """
    with unconditioned(model.backbone) as plain:
        backbone = share_weights(plain, config.backbone.layers)
    checkpoint = _checkpoint_on(backbone, model.base, config, users, landmarks, day)
    checkpoint.model.to(model.standard_mean.device)
    return checkpoint


def _checkpoint_on(
    backbone: PreTrainedModel, base: nn.Linear | None, config: TrainConfig, users: UserIndex, landmarks: int, day: str
) -> Checkpoint[RewardModel]:
    layers = config.backbone.layers
    if config.reward.features:  # layers above the deepest are not used
        layers = feature_depth(config.reward.feature_spec(backbone.config.get_text_config().num_hidden_layers))
        truncate_layers(backbone, layers)
    model = build_reward_model(backbone, config.users, config.reward, users.n_rows, config.seed, base, landmarks)
    tokenizer = load_tokenizer(config.backbone.name)
    cut, has_head = replace(config.backbone, layers=layers), base is not None
    record = checkpoints.backbone_record(cut, backbone, tokenizer, day, has_head)
    settings = ModelSettings(record, config.users, config.reward, has_head, landmarks)
    return Checkpoint(model, users, tokenizer, settings, tuned=config.train == "full")


def announce_backbone(checkpoint: Checkpoint[RewardModel] | Checkpoint[Policy]) -> None:
    """Log what of the chat template is left out, and of a backbone with a reward head, what it reads differently."""
    name, omitted = checkpoint.settings.backbone.name, checkpoint.settings.backbone.omitted_system_prompt
    if omitted:
        logger.info("%s: prompts without a system message have none; its template would add %r", name, omitted)
    if not checkpoint.settings.base_head:
        return
    logger.info("%s is a reward model: its head is kept, and users add to it", name)
    if differing := unlike_own_pipeline(checkpoint.encoder(), checkpoint.model.config.pad_token_id):
        logger.warning(
            "%s: its own pipeline tokenises %s differently: scores of such texts differ from that pipeline's",
            name,
            ", ".join(differing),
        )


def load_earlier_checkpoint(config: TrainConfig, comparisons: Sequence[Comparison]) -> Checkpoint[RewardModel]:
    """The model of `start_from`, with rows for new users in the comparisons, who start as the generic user."""
    device = choose_device() if config.fast_path else processes().device
    checkpoint = checkpoints.load(config.start_from, device=device)
    known = checkpoint.users.n_rows
    continue_checkpoint(checkpoint, config.train, comparisons)
    checkpoint.model.to(device)
    new = checkpoint.users.n_rows - known
    logger.info("%s: %d users, %d new", config.start_from, len(checkpoint.users.ids) - new, new)
    return checkpoint


def continue_checkpoint(
    checkpoint: Checkpoint[RewardModel], train: str, comparisons: Sequence[Comparison], is_new: bool = False
) -> None:
    """Add rows for new users, who start as the generic user, and say which parameters are trained.

    Args:
        train: `frozen` trains the users' rows alone.
        is_new: an untrained model, whose parameters say so already.
    """
    model = checkpoint.model
    checkpoint.users.learn(comparisons)
    if checkpoint.users.n_rows > model.user_model.n_rows:
        model.user_model.grow(checkpoint.users.n_rows)
    if is_new:
        return
    train_shared = train != "frozen"
    for name, parameter in model.named_parameters():
        adapter_or_full = "lora_" in name or (train == "full" and not name.startswith("base."))
        parameter.requires_grad_(train_shared and (adapter_or_full or not name.startswith(("backbone.", "base."))))
    if not train_shared:
        for table in model.user_model.per_row():
            table.requires_grad_(True)


def with_settings_of_run(config: TrainConfig) -> TrainConfig:
    """The config with the settings of the earlier run `start_from`.

    Model settings are inherited: a value that differs from the run's and from the default is refused. `optim` and the
    settings of reading the log are inherited if they are at their defaults. Inherited values are logged.

    Raises `PrmError` for a conflicting setting, and for a model with nothing to train.
    """
    run, defaults = Path(config.start_from), TrainConfig()
    model = checkpoints.read_config(run)
    if model.kind != checkpoints.REWARD_MODEL:
        raise PrmError(f"{run} holds a policy: 'prm train' continues reward models only")
    config_of_run = read_run(run, *(f"config.{name}" for name in (*_MODEL_SETTINGS, "optim", "data")))["config"]
    refuse_unfit(run / "run.json", TrainConfig, config_of_run, "config")
    stored = model.settings.to_dict()
    earlier = config_of_run | {name: stored[name] for name in ("backbone", "users", "reward")}
    inherited: list[str] = []
    changes: dict[str, Any] = {}
    for name in (*_MODEL_SETTINGS, "optim"):
        value, default = getattr(config, name), getattr(defaults, name)
        changes[name] = inherit(name, value, default, earlier[name], None if name == "optim" else run, inherited)
    log = asdict(defaults.data) | read_group(run, "data")  # earlier runs have fewer settings
    data = {
        n: inherit(f"data.{n}", getattr(config.data, n), getattr(defaults.data, n), log[n], None, inherited)
        for n in INHERITED_LOG_KEYS
    }
    config = replace(config, **changes, data=replace(config.data, **data))
    if inherited and processes().is_main_process:
        logger.info("from %s: %s", run, ", ".join(inherited))
    if config.train == "frozen" and config.users.kind == "uniform":
        raise PrmError(
            f"{run} is uniform on a frozen backbone: it has no user parameters to continue with; train a new run"
        )
    return config


def inherit(key: str, value: Any, default: Any, earlier: Any, run: Path | None, inherited: list[str]) -> Any:
    """The earlier run's value, field by field for a dataclass. With a `run`, raises if `value` is a third one."""
    if is_dataclass(value) and not isinstance(value, type):
        field_values = {
            f.name: inherit(
                f"{key}.{f.name}",
                getattr(value, f.name),
                getattr(default, f.name),
                earlier.get(f.name, getattr(default, f.name)),  # earlier runs have fewer settings
                run,
                inherited,
            )
            for f in fields(value)
        }
        return replace(value, **field_values)
    if value not in (default, earlier):
        if run is not None:
            raise PrmError(f"config key '{key}' is {value!r}, but {run} was trained with {earlier!r}: leave it out")
        return value
    if value != earlier:
        inherited.append(f"{key} {earlier!r}")
    return earlier


def set_generic_row(user_model: UserModel, alpha: float) -> None:
    """If alpha = 1 left the generic user untrained, set it to the mean of all users and log a warning."""
    if alpha == 1.0 and user_model.row_zero_needs_training:
        logger.warning(UNTRAINED_GENERIC)
        user_model.set_row(0, torch.arange(1, user_model.n_rows))


def encode_pairs(
    encoder: TextEncoder, users: UserIndex, comparisons: Sequence[Comparison], text_dropout: float = 0.0, seed: int = 0
) -> list[EncodedPair]:
    """Comparisons as sequences with the user's row; `user_text` is left out of a seeded share of them.

    Raises `DataError` naming the row whose response does not fit.
    """
    pairs = []
    with _truncation_logged(encoder):
        for c, text in _with_text(comparisons, text_dropout, seed):
            sides = [_encode(encoder, c, y, users.row(c.user_id), text) for y in (c.chosen, c.rejected)]
            pairs.append(EncodedPair(sides[0], sides[1], c.p_chosen, c.weight))
    return pairs


def encode_pairs_with_plain(
    encoder: TextEncoder, users: UserIndex, comparisons: Sequence[Comparison], text_dropout: float = 0.0, seed: int = 0
) -> list[tuple[EncodedPair, tuple[Encoded, Encoded]]]:
    """As `encode_pairs`, with each pair's texts also without user and `user_text`, for a reference model."""
    pairs = []
    with _truncation_logged(encoder):
        for c, text in _with_text(comparisons, text_dropout, seed):
            with _naming_row(c):
                row = users.row(c.user_id)
                both = [encoder.encode_with_plain(c.prompt, y, row, text) for y in (c.chosen, c.rejected)]
            (chosen, plain_chosen), (rejected, plain_rejected) = both
            pairs.append((EncodedPair(chosen, rejected, c.p_chosen, c.weight), (plain_chosen, plain_rejected)))
    return pairs


def encode_texts(
    encoder: TextEncoder, comparisons: Sequence[Comparison], text_dropout: float = 0.0, seed: int = 0
) -> tuple[list[Encoded], torch.Tensor]:
    """Each distinct text once, without a user, and the positions [2, n] of chosen and rejected among them.

    For linear heads, which read texts without users. Raises `DataError` as `encode_pairs` does.
    """
    positions: dict[tuple[Prompt, str, str], int] = {}
    texts: list[Encoded] = []
    index = torch.empty(2, len(comparisons), dtype=torch.long)
    with _truncation_logged(encoder):
        for n, (c, text) in enumerate(_with_text(comparisons, text_dropout, seed)):
            for side, response in enumerate((c.chosen, c.rejected)):
                key = c.prompt, response, text
                if key not in positions:
                    positions[key] = len(texts)
                    texts.append(encoder.without_user(_encode(encoder, c, response, 0, text)))
                index[side, n] = positions[key]
    return texts, index


def _with_text(comparisons: Sequence[Comparison], dropout: float, seed: int) -> Iterator[tuple[Comparison, str]]:
    """Yield each comparison with its user's text, or with "" for a seeded share of them; shows progress."""
    draw = random.Random(seed)
    for c in progress(comparisons, desc="tokenising", unit="pair"):
        yield c, "" if draw.random() < dropout else c.user_text


def _encode(encoder: TextEncoder, c: Comparison, response: str, row: int, text: str) -> Encoded:
    with _naming_row(c):
        return encoder.encode(c.prompt, response, row, text)


@contextmanager
def _naming_row(c: Comparison) -> Iterator[None]:
    """Add the comparison's row to a `DataError` raised inside."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{c.origin or 'a comparison'}: {error}") from None


@contextmanager
def _truncation_logged(encoder: TextEncoder) -> Iterator[None]:
    before = replace(encoder.cuts)
    yield
    if truncated := encoder.cuts.sequences - before.sequences:
        logger.warning(
            "%d sequences lost their oldest prompt text to max_length %d (%d tokens in all)",
            truncated,
            encoder.max_length,
            encoder.cuts.tokens - before.tokens,
        )

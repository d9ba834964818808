"""What a training run starts with: a new model or that of an earlier run, and comparisons as ids."""

import logging
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.config import HOW_A_LOG_IS_READ, TrainConfig
from prm.data.comparison import Comparison, latest_user_texts
from prm.data.encoding import Encoded, TextEncoder
from prm.errors import DataError, PrmError
from prm.io.progress import progress
from prm.io.run_files import read_run, refuse_unfit
from prm.layer_pooling import depth
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
from prm.models.reward_model import RewardModel, build_reward_model
from prm.training.own_template import unlike_own_pipeline
from prm.training.reward_trainer import EncodedPair
from prm.users.index import UserIndex
from prm.users.models import UserModel

logger = logging.getLogger(__name__)

_OF_THE_MODEL = ("alpha", "train", "backbone", "users", "reward", "lora")

UNTRAINED_STRANGER = "alpha = 1 trains nothing for the unknown user: it becomes the mean of all users"


def new_checkpoint(config: TrainConfig, users: UserIndex, landmarks: int = 0, day: str = "") -> Checkpoint[RewardModel]:
    """An untrained model on its device, the backbone frozen unless `train: full`.

    Args:
        landmarks: texts that a kernel between hidden states and heads is to be made of; there is none if 0.
        day: ISO date that is today for the chat template, in this model and wherever it is loaded; today where empty.

    Raises `PrmError` where the config asks a reward model for what its head cannot read.
    """
    device = choose_device() if config.fast_path else processes().device
    full = config.train == "full"
    # what is trained is float32, whatever the frozen weights of other runs are
    dtype = torch.float32 if full else choose_dtype(config.backbone.dtype, device)
    name, base = config.backbone.name, None
    if from_head := is_reward_model(name):
        if config.backbone.layers is not None or config.reward.features or config.reward.pooling != "last":
            raise PrmError(
                f"{name} is a reward model: leave out 'backbone.layers' and 'reward.features', and set "
                "'reward.pooling' to 'last'"
            )
        backbone, base = load_reward_model(name, dtype)
    else:
        backbone = load_backbone(name, config.backbone.layers, dtype)
    layers = config.backbone.layers
    if config.reward.features:  # nothing behind the deepest is ever looked at
        layers = depth(config.reward.reading(backbone.config.get_text_config().num_hidden_layers))
        truncate_layers(backbone, layers)
    backbone.requires_grad_(full)
    model = build_reward_model(backbone, config.users, config.reward, users.n_rows, config.seed, base, landmarks)
    tokenizer = load_tokenizer(name)
    of_backbone = checkpoints.backbone_settings(replace(config.backbone, layers=layers), backbone, tokenizer, day)
    settings: dict[str, Any] = {"backbone": of_backbone, "users": asdict(config.users)}
    settings |= {"reward": asdict(config.reward), "base_head": from_head, "landmarks": landmarks}
    settings["user_text"] = "prompt"
    return Checkpoint(model.to(device), users, tokenizer, settings, tuned=full)


def announce_base_head(checkpoint: Checkpoint[RewardModel]) -> None:
    """Say that the backbone came with a head, and where its scores may not be those of its own pipeline."""
    if not checkpoint.settings["base_head"]:
        return
    name = checkpoint.settings["backbone"]["name"]
    logger.info("%s is a reward model: its head is kept, and users add to it", name)
    if unlike := unlike_own_pipeline(checkpoint.encoder(), checkpoint.model.config.pad_token_id):
        logger.warning(
            "%s: its own pipeline reads %s otherwise than we do: scores of such texts differ from its own",
            name,
            ", ".join(unlike),
        )


def load_earlier_checkpoint(config: TrainConfig, comparisons: Sequence[Comparison]) -> Checkpoint[RewardModel]:
    """The model of `start_from`, with rows for whoever is new in the comparisons; they start as the unknown user."""
    device = choose_device() if config.fast_path else processes().device
    checkpoint = checkpoints.load(config.start_from, device=device)
    model = checkpoint.model
    known = checkpoint.users.n_rows
    checkpoint.users.learn(comparisons)
    model.user_model.grow(checkpoint.users.n_rows)
    model.to(device)
    everything = config.train != "frozen"
    for name, parameter in model.named_parameters():
        adapts = "lora_" in name or (config.train == "full" and not name.startswith("base."))
        parameter.requires_grad_(everything and (adapts or not name.startswith(("backbone.", "base."))))
    if not everything:
        for table in model.user_model.per_row():
            table.requires_grad_(True)
    new = checkpoint.users.n_rows - known
    logger.info("%s: %d people, %d new", config.start_from, len(checkpoint.users.ids) - new, new)
    return checkpoint


def with_settings_of_run(config: TrainConfig) -> TrainConfig:
    """The config with the settings of the run that it goes on from, but for what is given anew.

    Those of the model stay: a value that differs from the run's and from the default is refused, and which of them
    are taken over is logged. How the log is read and `optim` are taken over where they stand at their defaults.

    Raises `PrmError` for a setting that says otherwise, and for a model with nothing to learn.
    """
    run, usual = Path(config.start_from), TrainConfig()
    model = checkpoints.read_config(run)
    if model["kind"] != checkpoints.REWARD_MODEL:
        raise PrmError(f"{run} holds a policy: 'prm train' goes on from reward models")
    config_of_run = read_run(run, *(f"config.{name}" for name in (*_OF_THE_MODEL, "optim", "data")))["config"]
    refuse_unfit(run / "run.json", TrainConfig, config_of_run, "config")
    earlier = config_of_run | {name: model[name] for name in ("backbone", "users", "reward")}
    taken: list[str] = []
    changes: dict[str, Any] = {}
    for name in (*_OF_THE_MODEL, "optim"):
        given, default = getattr(config, name), getattr(usual, name)
        changes[name] = _inherit(name, given, default, earlier[name], None if name == "optim" else run, taken)
    log = asdict(usual.data) | earlier["data"]  # earlier runs have fewer settings
    data = {
        n: _inherit(f"data.{n}", getattr(config.data, n), getattr(usual.data, n), log[n], None, taken)
        for n in HOW_A_LOG_IS_READ
    }
    config = replace(config, **changes, data=replace(config.data, **data))
    if taken and processes().is_main_process:
        logger.info("from %s: %s", run, ", ".join(taken))
    if config.train == "frozen" and config.users.kind == "uniform":
        raise PrmError(f"{run} is uniform on a frozen backbone: it holds nobody's numbers to go on with; train it anew")
    return config


def _inherit(key: str, given: Any, usual: Any, earlier: Any, run: Path | None, taken: list[str]) -> Any:
    """The earlier run's value, a dataclass of settings field by field; with a `run`, no other is allowed."""
    if is_dataclass(given) and not isinstance(given, type):
        values = {
            f.name: _inherit(
                f"{key}.{f.name}",
                getattr(given, f.name),
                getattr(usual, f.name),
                earlier.get(f.name, getattr(usual, f.name)),  # earlier runs have fewer settings
                run,
                taken,
            )
            for f in fields(given)
        }
        return replace(given, **values)
    if given not in (usual, earlier):
        if run is not None:
            raise PrmError(f"config key '{key}' is {given!r}, but {run} was trained with {earlier!r}: leave it out")
        return given
    if given != earlier:
        taken.append(f"{key} {earlier!r}")
    return earlier


def set_generic_row(user_model: UserModel, alpha: float) -> None:
    """Where alpha = 1 left the unknown user untrained, give it the mean of all users, and say so."""
    if alpha == 1.0 and user_model.row_zero_needs_training:
        logger.warning(UNTRAINED_STRANGER)
        user_model.set_row(0, torch.arange(1, user_model.n_rows))


def encode_pairs(
    encoder: TextEncoder, users: UserIndex, comparisons: Sequence[Comparison], text_dropout: float = 0.0, seed: int = 0
) -> list[EncodedPair]:
    """Comparisons as sequences with the judge's row; `user_text` is left out of a seeded share of them.

    Raises `DataError` naming the row whose response does not fit.
    """
    pairs = []
    with _cuts_reported(encoder):
        for c, text in _with_text(comparisons, text_dropout, seed):
            sides = [_encode(encoder, c, y, users.row(c.user_id), text) for y in (c.chosen, c.rejected)]
            pairs.append(EncodedPair(sides[0], sides[1], c.p_chosen, c.weight))
    return pairs


def encode_pairs_with_plain(
    encoder: TextEncoder, users: UserIndex, comparisons: Sequence[Comparison], text_dropout: float = 0.0, seed: int = 0
) -> list[tuple[EncodedPair, tuple[Encoded, Encoded]]]:
    """As `encode_pairs`; beside each pair the same two texts without the judge and their words, for a reference."""
    pairs = []
    with _cuts_reported(encoder):
        for c, text in _with_text(comparisons, text_dropout, seed):
            with _at(c):
                row = users.row(c.user_id)
                both = [encoder.encode_with_plain(c.prompt, y, row, text) for y in (c.chosen, c.rejected)]
            (chosen, plain_chosen), (rejected, plain_rejected) = both
            pairs.append((EncodedPair(chosen, rejected, c.p_chosen, c.weight), (plain_chosen, plain_rejected)))
    return pairs


def encode_texts(
    encoder: TextEncoder, comparisons: Sequence[Comparison], text_dropout: float = 0.0, seed: int = 0
) -> tuple[list[Encoded], torch.Tensor]:
    """Each text once, without a user, and the positions [2, n] of chosen and rejected among them.

    For linear heads, which take the user off. Raises `DataError` as `encode_pairs` does.
    """
    places: dict[tuple[Any, ...], int] = {}
    texts: list[Encoded] = []
    index = torch.empty(2, len(comparisons), dtype=torch.long)
    with _cuts_reported(encoder):
        for n, (c, text) in enumerate(_with_text(comparisons, text_dropout, seed)):
            for side, response in enumerate((c.chosen, c.rejected)):
                key = c.prompt, response, text
                if key not in places:
                    places[key] = len(texts)
                    texts.append(encoder.without_user(_encode(encoder, c, response, 0, text)))
                index[side, n] = places[key]
    return texts, index


def encode_people(
    encoder: TextEncoder, users: UserIndex, comparisons: Sequence[Comparison]
) -> tuple[list[Encoded], torch.Tensor, torch.Tensor]:
    """What people say of themselves, each text once and by itself; rows [m] of who says something, places [m] of what.

    Raises `DataError` naming the row whose text does not fit.
    """
    last = {c.user_id: c for c in latest_user_texts(comparisons)}
    encoded: dict[str, Encoded] = {}
    for c in last.values():
        if c.user_text not in encoded:
            with _at(c):
                encoded[c.user_text] = encoder.encode_alone(c.user_text)
    place = {text: i for i, text in enumerate(encoded)}
    rows = torch.tensor([users.row(user) for user in last], dtype=torch.long)
    places = torch.tensor([place[c.user_text] for c in last.values()], dtype=torch.long)
    return list(encoded.values()), rows, places


def _with_text(comparisons: Sequence[Comparison], dropout: float, seed: int) -> Iterator[tuple[Comparison, str]]:
    """Each comparison with its user text, or without for a seeded share of them; shows progress."""
    draw = random.Random(seed)
    for c in progress(comparisons, desc="tokenising", unit="pair"):
        yield c, "" if draw.random() < dropout else c.user_text


def _encode(encoder: TextEncoder, c: Comparison, response: str, row: int, text: str) -> Encoded:
    with _at(c):
        return encoder.encode(c.prompt, response, row, text)


@contextmanager
def _at(c: Comparison) -> Iterator[None]:
    """A `DataError` from here names the row."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{c.origin or 'a comparison'}: {error}") from None


@contextmanager
def _cuts_reported(encoder: TextEncoder) -> Iterator[None]:
    before = replace(encoder.cuts)
    yield
    if truncate_layers := encoder.cuts.sequences - before.sequences:
        logger.warning(
            "%d sequences lost their oldest prompt text to max_length %d (%d tokens in all)",
            truncate_layers,
            encoder.max_length,
            encoder.cuts.tokens - before.tokens,
        )

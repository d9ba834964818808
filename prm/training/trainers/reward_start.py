"""The start of a reward model's training by gradient steps: calibration, adapters, and the model of a trainer."""

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig

from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.hub_model import HubModel
from prm.config import TrainConfig
from prm.data.comparison import Comparison
from prm.data.encoding import Batch, pad
from prm.errors import PrmError
from prm.io.folders import is_run
from prm.io.progress import progress
from prm.io.run_files import read_run
from prm.models.lora import add_lora, as_backbone_adapter, with_adapter
from prm.models.reward_model import RewardModel
from prm.training.encoded_pairs import EncodedPair
from prm.training.personalized_model import PersonalizedRewardModel, refuse_without_gradients, untrained
from prm.training.setup import announce_backbone, continue_checkpoint, inherit
from prm.training.trainers.arguments import PersonalizedRewardConfig, Train

logger = logging.getLogger(__name__)

_CALIBRATION_PAIRS = 128
_TRAINS: tuple[Train, ...] = ("frozen", "lora", "full")


def prepare(
    checkpoint: Checkpoint[RewardModel],
    pairs: Sequence[EncodedPair],
    config: TrainConfig,
    adapter: LoraConfig | None = None,
) -> None:
    """Standardise the states of an untrained model by its training pairs, and put adapters on its backbone."""
    model = checkpoint.model
    announce_backbone(checkpoint)
    keeps_base_head = model.score is not None and checkpoint.settings.base_head
    if not keeps_base_head:
        calibrate(model, pairs, config.seed)
    if config.train == "lora":
        torch.manual_seed(config.seed)
        add_lora(model, adapter or config.lora)


@torch.no_grad()
def calibrate(model: RewardModel, pairs: Sequence[EncodedPair], seed: int) -> None:
    """Set the head's mean and scale from the untrained model's hidden states on a sample of training pairs."""
    sample = random.Random(seed).sample(list(pairs), min(_CALIBRATION_PAIRS, len(pairs)))
    pooled = []
    for pair in progress(sample, desc="standardising hidden states", unit="pair"):
        batch = Batch(*(field.to(model.standard_mean.device) for field in pad([pair.chosen, pair.rejected])))
        if model.is_linear:
            _, batch = model.take_off_users(batch)
        pooled.append(model.pooled(batch))
    model.standardise_by(torch.cat(pooled))


@dataclass(frozen=True)
class Started:
    """A model that a trainer trains, and how.

    Args:
        config: the trainer's arguments as settings of a run.
        is_new: whether it is untrained: calibration and adapters follow.
        adapter: of PEFT, instead of `config.lora`.
    """

    model: PersonalizedRewardModel
    config: TrainConfig
    is_new: bool
    adapter: LoraConfig | None

    @property
    def rows_only(self) -> bool:
        """True if only the rows of the data's users are trained: those of a trained model on a frozen backbone."""
        return not self.is_new and self.config.train == "frozen"


def start_model(
    model: HubModel[RewardModel] | str | Path,
    args: PersonalizedRewardConfig,
    comparisons: Sequence[Comparison],
    adapter: PeftConfig | None,
) -> Started:
    """The model that a trainer trains, with rows for all users of the data; a name is that of a backbone or a run.

    Raises `PrmError` for arguments that contradict the model or one another.
    """
    lora = as_backbone_adapter(adapter) if adapter is not None else None
    if not isinstance(model, HubModel) and is_run(model):
        model = PersonalizedRewardModel.from_pretrained(model)
    if isinstance(model, HubModel) and not isinstance(model, PersonalizedRewardModel):
        raise PrmError(f"the model is a {type(model).__name__}, not a PersonalizedRewardModel")
    if isinstance(model, PersonalizedRewardModel):
        if lora is not None and not model.fresh:
            raise PrmError("'peft_config' is for a new model, and this one is trained further as it is: leave it out")
        config, is_new = with_adapter(_settings_of_model(model, args), lora), model.fresh
    else:
        config, is_new = with_adapter(args.settings(str(model), args.train or "lora"), lora), True
        logger.info("loading %s", config.backbone.name)
        model = PersonalizedRewardModel(untrained(config, [c.user_id for c in comparisons]))
    refuse_without_gradients(config)
    if not is_new and config.train == "frozen" and config.users.kind == "uniform":
        raise PrmError("the model is uniform on a frozen backbone: it has no user parameters to train further")
    continue_checkpoint(model.checkpoint, config.train, comparisons, is_new)
    model.fresh, model.checkpoint.folder = False, None  # saved from memory from now on
    return Started(model, config, is_new, lora)


def _settings_of_model(model: PersonalizedRewardModel, args: PersonalizedRewardConfig) -> TrainConfig:
    """The arguments as settings; what the model says, and the arguments leave at its default, is the model's."""
    checkpoint, defaults = model.checkpoint, TrainConfig()
    run = checkpoint.record.get("run.json") or read_run(Path(checkpoint.folder or ""), "config")
    train = next((name for name in _TRAINS if name == run["config"].get("train")), None)
    if train is None:
        raise PrmError(f"{checkpoint.folder}: run.json does not say what was trained")
    if args.train not in (None, train):
        raise PrmError(f"argument 'train' is '{args.train}', but the model was made for '{train}': leave it out")
    config, stored = args.settings(checkpoint.settings.backbone.name, train), checkpoint.settings.to_dict()
    record, named = checkpoint.settings.backbone, Path(str(checkpoint.folder or "the model"))
    for name, mine in (("layers", record.layers), ("dtype", record.dtype)):
        if (given := getattr(config.backbone, name)) not in (None, "auto", mine):
            raise PrmError(f"argument '{name}' is {given!r}, but the model has {mine!r}: leave it out")
    return replace(
        config,
        users=inherit("users", config.users, defaults.users, stored["users"], named, []),
        reward=inherit("reward", config.reward, defaults.reward, stored["reward"], named, []),
        backbone=replace(config.backbone, layers=record.layers, dtype=record.dtype, max_length=record.max_length),
        start_from=str(checkpoint.folder or ""),
    )

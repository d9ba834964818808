"""Set up a policy for training."""

from collections.abc import Sequence

import torch
from peft import LoraConfig

from policy.config import DpoConfig, OnlineConfig, PpoConfig, SftConfig
from prm.checkpoint.checkpoint import Checkpoint, backbone_record
from prm.checkpoint.config_file import ModelSettings, TrainedBy
from prm.config import RunConfig, UserConfig
from prm.data.sources import Feedback
from prm.errors import PrmError
from prm.models.backbones import choose_dtype, load_tokenizer, processes
from prm.models.lora import add_lora
from prm.models.packing import checkpointing
from prm.models.policy_model import Policy, build_policy
from prm.training.setup import announce_backbone
from prm.training.unreadable_rows import BOTH, encoder_of_config, readable
from prm.users.index import UserIndex


def readable_by_policy(
    config: SftConfig | DpoConfig | PpoConfig | OnlineConfig, feedback: Feedback, sides: Sequence[str] = BOTH
) -> Feedback:
    """Drop or refuse rows that a policy of this config cannot encode (see `prm.training.unreadable_rows.readable`).

    Args:
        sides: the responses that it is trained on; empty for the prompts alone.
    """
    users = UserConfig("uniform", num_virtual_tokens=0) if isinstance(config, SftConfig) else config.users
    return readable(feedback, encoder_of_config(config.backbone, users), config.data.on_bad_row == "skip", sides)


def new_policy(
    config: RunConfig,
    users: UserConfig,
    index: UserIndex,
    objective: TrainedBy,
    day: str = "",
    adapter: LoraConfig | None = None,
) -> Checkpoint[Policy]:
    """Build an untrained policy on its device, with fresh adapters if `train` is `lora`.

    Raises `PrmError` if the backbone cannot be loaded, is a reward model, or has no token that ends a response.

    Args:
        day: as in `prm.training.setup.new_checkpoint`.
        adapter: of PEFT, instead of `config.lora`.
    """
    device, full = processes().device, config.train == "full"
    # trained weights are always float32; frozen ones may have another dtype
    dtype = torch.float32 if full else choose_dtype(config.backbone.dtype, device)
    policy = build_policy(config.backbone.name, users, index.n_rows, config.seed, dtype)
    policy.backbone.requires_grad_(full)
    if config.train == "lora":
        torch.manual_seed(config.seed)  # same initial adapters as TRL with this seed
        add_lora(policy, adapter or config.lora)
    tokenizer = load_tokenizer(config.backbone.name)
    record = backbone_record(config.backbone, policy.backbone, tokenizer, day)
    settings = ModelSettings(record, users, objective=objective)
    if config.optim.gradient_checkpointing:
        policy.backbone.activation_checkpointing_enable(activation_checkpointing_kwargs=checkpointing(policy.backbone))
    checkpoint = Checkpoint(policy.to(device), index, tokenizer, settings, tuned=full)
    announce_backbone(checkpoint)
    if not checkpoint.encoder().end_ids:
        raise PrmError(
            f"{config.backbone.name}: neither its chat template nor its tokenizer has a token that ends a response, so "
            "the policy could not learn to stop: give the tokenizer an eos_token"
        )
    return checkpoint

"""Load a reward model onto the policy's own backbone, if possible."""

import logging
from functools import partial
from pathlib import Path

import torch

from policy.ppo.roles import Roles
from policy.rewards.personal import PersonalReward
from prm.checkpoint import checkpoint as checkpoints
from prm.models.backbone_state import unconditioned
from prm.models.backbones import weights_fingerprint
from prm.models.saved_adapters import FOLDER as ADAPTER
from prm.scoring.scorer import Scorer

logger = logging.getLogger(__name__)


def shared_reward(folder: str | Path, roles: Roles) -> tuple[PersonalReward, bool]:
    """Load (the reward model of a run, whether it shares the policy's language model and takes no extra memory).

    It is shared if its backbone has the weights and dtype of the policy's base model, and it trained at most an
    adapter; otherwise it is loaded separately. `policy sft` changes the weights: a policy that starts from such a run
    shares with reward models trained on that run. For a reward model with fewer layers the policy's upper layers are
    computed too, but not used.
    """
    shared = _can_share(Path(folder), roles)
    logger.info("%s %s", folder, "shares the policy's backbone" if shared else "has its own backbone")
    if not shared:
        return PersonalReward(Scorer.from_pretrained(folder, device=roles.policy.device)), False
    scorer = Scorer(checkpoints.load_onto(folder, roles.policy.base_model))  # type: ignore[arg-type]
    has_adapter = checkpoints.read_config(Path(folder)).adapter
    roles.add_reward(scorer.model.user_model, Path(folder) / ADAPTER if has_adapter else None)
    return PersonalReward(scorer, partial(roles.switched_to, "reward")), True


def _can_share(folder: Path, roles: Roles) -> bool:
    config, backbone = checkpoints.read_config(folder), roles.policy.base_model
    if config.kind != checkpoints.REWARD_MODEL or (folder / "backbone").is_dir():
        return False
    dtype = next(backbone.parameters()).dtype
    with unconditioned(backbone) as base_model:  # type: ignore[arg-type]
        same = weights_fingerprint(base_model) == config.fingerprints["backbone"]
    return same and config.settings.backbone.dtype == {torch.bfloat16: "bfloat16"}.get(dtype, "float32")

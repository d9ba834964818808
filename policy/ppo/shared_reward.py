"""A reward model that reads with the policy's own backbone, where it can."""

import logging
from functools import partial
from pathlib import Path

import torch

from policy.ppo.roles import Roles
from policy.rewards.personal import PersonalReward
from prm.checkpoint import checkpoint as checkpoints
from prm.models.adapters import FOLDER as ADAPTER
from prm.models.backbone_state import unconditioned
from prm.models.backbones import weights_fingerprint
from prm.scoring.scorer import Scorer

logger = logging.getLogger(__name__)


def shared_reward(folder: str | Path, roles: Roles) -> tuple[PersonalReward, bool]:
    """(the reward model of a run, whether it reads with the policy's own language model and takes no memory).

    It can share where its backbone's weights and dtype are those below the policy's adapters, and it trained no more
    of them than an adapter. `policy sft` changes weights: a policy that starts from such a run shares with reward
    models that were trained on that run. Any other is loaded beside it. A model that was cut is read at its depth, but
    the layers above are run, too.
    """
    shared = _can_share(Path(folder), roles)
    logger.info("%s %s", folder, "reads with the policy's backbone" if shared else "has a backbone of its own")
    if not shared:
        return PersonalReward(Scorer.from_pretrained(folder, device=roles.policy.device)), False
    scorer = Scorer(checkpoints.load_onto(folder, roles.policy.base_model))  # type: ignore[arg-type]
    adapted = checkpoints.read_config(Path(folder))["adapter"]
    roles.take_in_reward(scorer.model.user_model, Path(folder) / ADAPTER if adapted else None)
    return PersonalReward(scorer, partial(roles.playing, "reward")), True


def _can_share(folder: Path, roles: Roles) -> bool:
    config, backbone = checkpoints.read_config(folder), roles.policy.base_model
    if config["kind"] != checkpoints.REWARD_MODEL or (folder / "backbone").is_dir():
        return False
    dtype = next(backbone.parameters()).dtype
    with unconditioned(backbone) as plain:  # type: ignore[arg-type]
        same = weights_fingerprint(plain) == config["fingerprints"]["backbone"]
    return same and config["backbone"]["dtype"] == {torch.bfloat16: "bfloat16"}.get(dtype, "float32")

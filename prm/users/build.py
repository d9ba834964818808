"""Build the user model that the settings ask for (`users.kind`), and initialise it."""

import torch
from torch import Tensor

from prm.config import UserConfig
from prm.users.bayes_model import Bayes
from prm.users.kinds import Cluster, Individual, LowRank, Separate, Uniform
from prm.users.stack_model import Stack
from prm.users.user_model import UserModel


@torch.no_grad()
def init_from_token_embeddings(model: UserModel, words: Tensor, seed: int) -> None:
    """Initialise embeddings with token embeddings [V, dim], so that a soft prompt starts as plausible input.

    e_0, the centres and separate rows take tokens drawn without replacement if the table is large enough; offsets stay
    0 and cluster weights start near uniform.
    """
    generator = torch.Generator().manual_seed(seed)
    for name in model.EMBEDDINGS:
        parameter = model.get_parameter(name)
        n = parameter.numel() // model.dim
        draw = torch.randperm(len(words), generator=generator)[torch.arange(n) % len(words)]
        parameter.copy_(words[draw].float().view_as(parameter))
    model.break_symmetry(generator)


@torch.no_grad()
def init_near_zero(model: UserModel, seed: int) -> None:
    """Initialise linear heads at 0, except centres and bases, which gradients could not move from there."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, Cluster):
        model.centres.normal_(std=0.1 / model.dim**0.5, generator=generator)
    if isinstance(model, LowRank):
        model.basis.normal_(std=0.1 / model.dim**0.5, generator=generator)
    model.break_symmetry(generator)


def user_model_class(config: UserConfig) -> type[UserModel]:
    """The class of the config's user model."""
    classes: dict[str, type[UserModel]] = {
        "uniform": Uniform,
        "cluster": Cluster,
        "low_rank": LowRank,
        "stack": Stack,
        "bayes": Bayes,
    }
    return classes.get(config.kind) or (Individual if config.generic else Separate)


def build_user_model(config: UserConfig, n_rows: int, dim: int) -> UserModel:
    """Build the config's user model (section 4.3), not initialised."""
    if config.kind == "uniform":
        return Uniform(n_rows, config.num_virtual_tokens, dim)
    if config.kind == "cluster":
        return Cluster(n_rows, config.num_virtual_tokens, dim, config.clusters, config.softmax)
    if config.kind == "low_rank":
        return LowRank(n_rows, config.num_virtual_tokens, dim, min(config.rank, dim))
    if config.kind == "stack":
        return Stack(n_rows, config.num_virtual_tokens, dim)
    if config.kind == "bayes":
        return Bayes(n_rows, config.num_virtual_tokens, dim, min(config.rank, dim))
    return (Individual if config.generic else Separate)(n_rows, config.num_virtual_tokens, dim)

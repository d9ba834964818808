"""Weights that FSDP2 shards over the processes: which launches are refused, how weights are read and written.

Trained weights are kept whole in a checkpoint, as without sharding: the processes gather each of them, and the main one
writes. Of the optimiser's state each process writes its own part; `torch.distributed.checkpoint`, which is accelerate's
default, would unpickle it.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import load_fsdp_optimizer, parse_flag_from_env, save_fsdp_optimizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from prm.errors import PrmError


def is_sharded() -> bool:
    """Whether `accelerate launch` was told to shard the weights (FSDP)."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def refuse_launch(what: str, shards: bool) -> None:
    """Raise `PrmError` for settings of `accelerate launch` with which this run would not train what it should.

    Args:
        what: is trained, for the message.
        shards: whether its weights can be sharded.
    """
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("no", "fp32"):
        raise PrmError(
            f"accelerate's mixed_precision is {precision!r}, which would round rewards, too: set it to 'no', and "
            "backbone.dtype to 'bfloat16' for frozen weights (that is the default on GPUs)"
        )
    for flag, name in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if parse_flag_from_env(flag):
            raise PrmError(f"accelerate is set to {name}, which no run supports: shard weights by FSDP2")
    if not is_sharded():
        return
    if not shards:
        raise PrmError(f"{what} does not shard its weights: launch it without FSDP (distributed_type MULTI_GPU)")
    wrong = {
        "fsdp_version": ("2", os.environ.get("FSDP_VERSION", "1")),
        "fsdp_cpu_ram_efficient_loading": ("false", os.environ.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")),
        "fsdp_activation_checkpointing": ("false", os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false")),
    }
    why = {
        "fsdp_cpu_ram_efficient_loading": "each process checks the weights that it loads",
        "fsdp_activation_checkpointing": "optim.gradient_checkpointing does the same",
    }
    for key, (needed, found) in wrong.items():
        if found.lower() != needed:
            reason = f": {why[key]}" if key in why else ""
            raise PrmError(f"accelerate's {key} is {found.lower()}, and must be {needed}{reason}")


@torch.no_grad()
def trained_weights(model: nn.Module, here: bool) -> dict[str, Tensor]:
    """All trained parameters by name, whole; those that are sharded on the CPU, or no GPU would have room for all.

    Every process must call it if they are sharded.

    Args:
        here: whether this is the process that saves; others get nothing.
    """
    _reshard(model)
    found: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            whole = parameter.full_tensor().cpu() if isinstance(parameter, DTensor) else parameter.detach()
            found |= {name: whole} if here else {}
    return found


@torch.no_grad()
def load_weights(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set parameters, sharded or not, to whole tensors of their names."""
    _reshard(model)
    for name, parameter in model.named_parameters():
        if name not in weights:
            continue
        whole = weights[name].to(parameter.device)
        if isinstance(parameter, DTensor):  # every process has read the same file
            whole = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.copy_(whole)


@torch.no_grad()
def gather_weights(model: nn.Module, here: bool) -> None:
    """Make parameters whole where they are to be saved, on the CPU; sharded ones stay so on the other processes.

    Every process must call it. The model cannot be trained or run further.

    Args:
        here: whether this is the process that saves.
    """
    _reshard(model)
    found: dict[int, nn.Parameter] = {}  # tied weights stay tied
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if not isinstance(parameter, DTensor):
                continue
            if id(parameter) not in found:
                whole = parameter.full_tensor()
                found[id(parameter)] = nn.Parameter(whole.cpu(), parameter.requires_grad) if here else parameter
            module._parameters[name] = found[id(parameter)]


def save_optimizer(accelerator: Accelerator, optimizer: Optimizer, model: nn.Module, folder: Path) -> None:
    """Write the state of a sharded model's optimiser. Every process must call it."""
    save_fsdp_optimizer(accelerator.state.fsdp_plugin, accelerator, optimizer, model, str(folder), use_dcp=False)


def load_optimizer(accelerator: Accelerator, optimizer: Optimizer, model: nn.Module, folder: Path) -> None:
    """Read what `save_optimizer` wrote, by as many processes. Every process must call it."""
    load_fsdp_optimizer(accelerator.state.fsdp_plugin, accelerator, optimizer, model, str(folder), use_dcp=False)


def _reshard(model: nn.Module) -> None:
    """Take back what a forward pass has gathered and left so, as the outermost module does."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()

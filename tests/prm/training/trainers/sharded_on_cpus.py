"""A command under FSDP2 on CPUs: `python -m tests.prm.training.trainers.sharded_on_cpus prm train run.yaml`.

The environment variable `STOP_AT_STEP` ends it in that step, as a kill does.

accelerate has FSDP on accelerators only, and drops it on CPUs in silence. Here it takes it there, too: torch shards
over gloo as over NCCL, so that all code of ours and of transformers is that of GPUs.
"""

import os
import sys
from importlib import import_module

from accelerate import state
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from torch import Tensor
from transformers import Trainer

_init = state.AcceleratorState.__init__


def _with_fsdp(
    self: state.AcceleratorState,
    *args: object,
    fsdp_plugin: FullyShardedDataParallelPlugin | None = None,
    **kwargs: object,
) -> None:
    _init(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
    if fsdp_plugin is not None and self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin


_step = Trainer.training_step


def _stopped(self: Trainer, *args: object, **kwargs: object) -> Tensor:
    if self.state.global_step == int(os.environ.get("STOP_AT_STEP", "-1")):
        os._exit(1)
    return _step(self, *args, **kwargs)  # type: ignore[arg-type]


if __name__ == "__main__":
    state.AcceleratorState.__init__ = _with_fsdp  # type: ignore[method-assign]
    Trainer.training_step = _stopped  # type: ignore[method-assign]
    import_module(f"{sys.argv[1]}.cli").main(sys.argv[2:])

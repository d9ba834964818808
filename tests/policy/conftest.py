"""A small policy, trained or not, that the tests of the package share."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from policy.config import DpoConfig
from policy.dpo import train_dpo
from prm.config import BackboneConfig, DataConfig, OptimConfig, UserConfig
from prm.io.tables import write_jsonl
from tests.planted import opposed_people


def dpo_config(backbone: str, folder: Path, **changes: Any) -> DpoConfig:
    """One epoch on `folder`/log.jsonl, in float32."""
    base = DpoConfig(
        output_dir=str(folder / "run"),
        data=DataConfig(path=str(folder / "log.jsonl")),
        backbone=BackboneConfig(backbone, dtype="float32"),
        users=UserConfig(num_virtual_tokens=2),
        optim=OptimConfig(epochs=1.0, batch_size=4, micro_batch_size=4, eval_steps=5, early_stopping_patience=50),
    )
    return replace(base, **changes)


@pytest.fixture(scope="session")
def trained(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of P-DPO with LoRA on four opposed people; p0 and p2 like kings, p1 and p3 do not."""
    folder = tmp_path_factory.mktemp("dpo")
    write_jsonl(folder / "log.jsonl", opposed_people(50, 0))
    optim = OptimConfig(epochs=6.0, batch_size=8, micro_batch_size=8, eval_steps=500, early_stopping_patience=99)
    optim.user_lr, optim.lora_lr = 0.05, 6e-3
    data = DataConfig(path=str(folder / "log.jsonl"), test_fraction=0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        return train_dpo(dpo_config(backbone_of("llama"), folder, optim=optim, data=data))

"""Linear heads are trained and saved with one backbone in memory, as if each had loaded its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm.checkpoint.checkpoint import Checkpoint, read_config
from prm.config import BackboneConfig, DataConfig, RewardModelConfig, SearchConfig, TrainConfig, UserConfig
from prm.io.tables import write_jsonl
from prm.models.reward_model import RewardModel
from prm.training import linear_heads
from prm.training.run import train
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex
from tests.planted import opposed_people
from tests.prm.training.test_setup import save_reward_model
from tests.tiny_runs import config_of, files_of, small_log

LOG = small_log(24)
WITH_TEXTS = [
    replace(c, user_text=f"{'hates lazy dogs' if int(c.user_id[1:]) % 2 else 'loves old kings'}, says {c.user_id}")
    for c in opposed_people(6, 0, people=30)
]
SEARCH = SearchConfig(folds=2, l2=[1.0], user_l2=[1.0], layers=[1, 3, 4])
UNSEARCHED = SearchConfig(folds=2, l2=[1.0], user_l2=[1.0])
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "averaged": ("linear", {"search": SEARCH}),
    "cut": ("linear", {"search": replace(SEARCH, layers=[1, 2])}),
    "features": ("linear", {"reward": RewardModelConfig(features=["1 mean", "3 last"]), "search": UNSEARCHED}),
    "uniform": ("linear", {"users": UserConfig("uniform")}),
    "texts": ("bayes", {"users": UserConfig("bayes", rank=4)}),
    "unread": ("bayes", {"users": UserConfig("bayes", rank=4, text_dropout=1.0)}),
    "reward model": ("bayes", {"search": replace(UNSEARCHED, poolings=["last"])}),
}


def config_in(folder: Path, name: str, backbone_of: Callable[..., str]) -> TrainConfig:
    kind, changes = CASES[name]
    if name == "reward model":
        backbone = save_reward_model(folder.parent / "backbone", "llama")
    else:
        backbone = backbone_of("llama", layers=4)
    settings = BackboneConfig(backbone, 3 if name == "cut" else None, dtype="float32", max_length=120)
    folder.mkdir()
    write_jsonl(folder / "log.jsonl", WITH_TEXTS if name in ("texts", "unread") else LOG)
    config = config_of(kind, backbone, folder)
    assert isinstance(config, TrainConfig)
    return replace(config, backbone=settings, **changes)


def loaded_anew(
    model: RewardModel, config: TrainConfig, users: UserIndex, landmarks: int, day: str
) -> Checkpoint[RewardModel]:
    assert landmarks == 0
    return new_checkpoint(config, users, day)


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_that_of_backbones_loaded_for_each_head(
    backbone_of: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loads: list[str], name: str
) -> None:
    """Every file to the bit; the weights are loaded once."""
    runs = []
    for way in ("shared", "anew"):
        config = config_in(tmp_path / way, name, backbone_of)
        monkeypatch.setenv("PRM_CACHE", str(tmp_path / way / "cache"))
        if way == "anew":
            monkeypatch.setattr(linear_heads, "with_shared_backbone", loaded_anew)
        runs.append(train(config))
        assert len(loads) == (1 if way == "shared" else 4 - (name == "uniform"))
    assert files_of(runs[0]) == files_of(runs[1])
    for file in ("config.json", "uniform/config.json")[: 1 + (name != "uniform")]:
        assert (runs[0] / file).read_bytes() == (runs[1] / file).read_bytes()
    assert read_config(runs[0]).settings.user_text == ("unread" if name == "unread" else "prompt")


def test_continuing_a_run_loads_its_backbone_once(
    backbone_of: Callable[..., str], tmp_path: Path, loads: list[str]
) -> None:
    run = train(config_in(tmp_path / "first", "averaged", backbone_of))
    loads.clear()
    write_jsonl(tmp_path / "log.jsonl", [replace(c, user_id=f"new {c.user_id}") for c in LOG])
    data = DataConfig(path=str(tmp_path / "log.jsonl"))
    train(TrainConfig(output_dir=str(tmp_path / "run"), start_from=str(run), data=data))
    assert len(loads) == 1

"""A run scores the same tomorrow, and one whose texts would be read otherwise is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.config_file import TrainedBy
from prm.config import BackboneConfig, DataConfig, RewardModelConfig, SearchConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison, Message
from prm.errors import CheckpointError
from prm.io.run_files import Metrics, RunRecord
from prm.io.tables import write_jsonl
from prm.scoring.scorer import Scorer
from prm.training.prepare_log import DataSplit, split_data
from prm.training.run import make_run, train
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex
from tests.conftest import CHAT_TEMPLATE, Clock

DATED = "{{ '<|system|>today is ' + strftime_now('%d %B %Y') + '<|end|>' }}" + CHAT_TEMPLATE
QUESTION = [Message("user", "?")]
FIRST, LATER = "2026-11-29", "2026-12-24"


def with_template(backbone: str, folder: Path, template: str) -> str:
    shutil.copytree(backbone, folder)
    (folder / "chat_template.jinja").write_text(template)
    return str(folder)


@pytest.fixture
def dated(tiny: str, tmp_path: Path) -> str:
    """A backbone whose chat template writes the date."""
    return with_template(tiny, tmp_path / "dated", DATED)


def config_of(backbone: str, folder: Path, log: list[Comparison], run: str = "run") -> TrainConfig:
    write_jsonl(folder / "log.jsonl", log)
    return TrainConfig(
        output_dir=str(folder / run),
        data=DataConfig(str(folder / "log.jsonl")),
        backbone=BackboneConfig(backbone, dtype="float32"),
        search=SearchConfig(folds=2, l2=[1.0], user_l2=[1.0], layers=[2], poolings=["last"]),
    )


def test_a_run_scores_the_same_on_another_day(
    dated: str, tmp_path: Path, comparisons: list[Comparison], clock: Clock
) -> None:
    clock.set(FIRST)
    run = train(config_of(dated, tmp_path, comparisons))
    asked = ("what about a king?", ["the fox", "seven wizards mix"], "long")
    scores = Scorer.from_pretrained(run).score(*asked)
    clock.set(LATER)
    scorer = Scorer.from_pretrained(run)
    assert torch.equal(scorer.score(*asked), scores)
    assert "29 November 2026" in scorer.encoder.prompt_text(QUESTION)
    assert json.loads((run / "run.json").read_text())["day"] == FIRST
    other = train(config_of(dated, tmp_path, comparisons, "other"))
    assert "24 December 2026" in Scorer.from_pretrained(other).encoder.prompt_text(QUESTION)
    assert not torch.equal(Scorer.from_pretrained(other).score(*asked), scores)
    uniform = checkpoints.read_config(run / "uniform")
    assert uniform.settings.backbone.day == FIRST


def test_a_run_that_is_taken_up_later_keeps_its_first_day(
    tiny: str, tmp_path: Path, comparisons: list[Comparison], clock: Clock
) -> None:
    config, days = config_of(tiny, tmp_path, comparisons), list[str]()

    def fit(parts: DataSplit, work: Path, run: RunRecord) -> Metrics:
        days.append(run["day"])
        raise KeyboardInterrupt

    for day in (FIRST, LATER):
        clock.set(day)
        with pytest.raises(KeyboardInterrupt):
            make_run(config, checkpoints.REWARD_MODEL, lambda: split_data(config), fit)
    assert days == [FIRST, FIRST]


def test_a_language_model_by_name_reads_todays_date_and_a_policy_its_own(
    dated: str, tiny: str, tmp_path: Path, clock: Clock
) -> None:
    clock.set(FIRST)
    found = checkpoints.load_policy(dated)
    run = tmp_path / "run"
    run.mkdir()
    found.settings.objective = TrainedBy("sft")
    checkpoints.save(found, run, {})
    clock.set(LATER)
    texts = [checkpoints.load_policy(name).encoder().prompt_text(QUESTION) for name in (str(run), dated)]
    assert ["29 November 2026" in texts[0], "24 December 2026" in texts[1]] == [True, True]
    begun = new_checkpoint(TrainConfig(backbone=BackboneConfig(dated)), UserIndex(), day=FIRST)
    assert "29 November 2026" in begun.encoder().prompt_text(QUESTION)
    assert checkpoints.load_policy(tiny).settings.backbone.day == ""


def save_untrained(backbone: str, folder: Path, **changes: Any) -> Path:
    config = TrainConfig(backbone=BackboneConfig(backbone, dtype="float32"), **changes)
    folder.mkdir()
    checkpoints.save(new_checkpoint(config, UserIndex(["anna"])), folder, {})
    return folder


def test_special_tokens_that_changed_are_noticed(backbone_of: Callable[..., str], tmp_path: Path) -> None:
    """Neither the tokenizer's own file nor the template tells."""
    backbone = tmp_path / "backbone"
    shutil.copytree(backbone_of(chat=False), backbone)
    run = save_untrained(
        str(backbone),
        tmp_path / "run",
        users=UserConfig("uniform", num_virtual_tokens=0),
        reward=RewardModelConfig("soft_prompt"),
    )
    assert Scorer.from_pretrained(run)
    config = backbone / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"eos_token": "<|eos|>"', '"eos_token": "<|end|>"'))
    with pytest.raises(CheckpointError, match="in training"):
        Scorer.from_pretrained(run)

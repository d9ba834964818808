"""A run scores the same tomorrow, and one whose texts would be read otherwise is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.config_file import TrainedBy
from prm.config import BackboneConfig, DataConfig, RewardModelConfig, SearchConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison, Message
from prm.errors import CheckpointError
from prm.io.digests import digest_of_values
from prm.io.run_files import Metrics, RunRecord
from prm.io.tables import write_json, write_jsonl
from prm.scoring.scorer import Scorer
from prm.training.prepare_log import DataSplit, split_data
from prm.training.run import make_run, train
from prm.training.setup import new_checkpoint
from prm.training.unreadable_rows import encoder_of_run
from prm.users.index import UserIndex
from tests.conftest import CHAT_TEMPLATE, Clock
from tests.prm.training.test_setup import save_reward_model

ON_ITS_OWN = "be kind"
WITH_DEFAULT = "{% if messages[0]['role'] != 'system' %}{{ '<|system|>be kind<|end|>\n' }}{% endif %}" + CHAT_TEMPLATE
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


def test_runs_leave_out_a_templates_own_system_prompt(
    tiny: str, tmp_path: Path, comparisons: list[Comparison], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    backbone = with_template(tiny, tmp_path / "with default", WITH_DEFAULT)
    run = train(config_of(backbone, tmp_path, comparisons))
    assert ON_ITS_OWN in caplog.text
    config = json.loads((run / "config.json").read_text())
    assert config["backbone"]["omitted_system_prompt"] == ON_ITS_OWN
    scorer, plain = Scorer.from_pretrained(run), train(config_of(tiny, tmp_path, comparisons, "plain"))
    assert scorer.encoder.prompt_text(QUESTION) == "<|user|>?<|end|>\n<|assistant|>"
    asked = ("what about a king?", ["the fox", "seven wizards mix"], "long")
    assert torch.equal(scorer.score(*asked), Scorer.from_pretrained(plain).score(*asked))
    assert encoder_of_run(run).prompt_text(QUESTION) == scorer.encoder.prompt_text(QUESTION)
    for name in (backbone, str(run / "tokenizer")):  # a language model's own, and what other programs read
        tokenizer = AutoTokenizer.from_pretrained(name)
        text = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
        assert (ON_ITS_OWN in text) == (name == backbone)
    policy = checkpoints.load_policy(backbone)
    assert policy.encoder().prompt_text(QUESTION) == scorer.encoder.prompt_text(QUESTION)


def test_an_older_run_keeps_it(tiny: str, tmp_path: Path) -> None:
    """It was trained on texts with it; its config has no such key."""
    backbone = with_template(tiny, tmp_path / "with default", WITH_DEFAULT)
    checkpoint = new_checkpoint(TrainConfig(backbone=BackboneConfig(backbone, dtype="float32")), UserIndex())
    record = replace(checkpoint.settings.backbone, omitted_system_prompt="")
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    older = Checkpoint(checkpoint.model, UserIndex(), tokenizer, replace(checkpoint.settings, backbone=record))
    (tmp_path / "run").mkdir()
    checkpoints.save(older, tmp_path / "run", {})
    config = json.loads((tmp_path / "run/config.json").read_text())
    del config["backbone"]["omitted_system_prompt"], config["digest"]
    write_json(tmp_path / "run/config.json", config | {"digest": digest_of_values(config)})
    found = Scorer.from_pretrained(tmp_path / "run").encoder.prompt_text(QUESTION)
    assert found == "<|system|>be kind<|end|>\n<|user|>?<|end|>\n<|assistant|>"


def test_a_reward_model_reads_its_templates_own_system_prompt(tmp_path: Path) -> None:
    """Its head was trained on it."""
    folder = save_reward_model(tmp_path / "rm", "llama")
    (tmp_path / "rm/chat_template.jinja").write_text(WITH_DEFAULT)
    checkpoint = new_checkpoint(TrainConfig(backbone=BackboneConfig(folder, dtype="float32")), UserIndex())
    assert checkpoint.encoder().prompt_text(QUESTION).startswith("<|system|>be kind")
    assert checkpoint.settings.backbone.omitted_system_prompt == ""


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

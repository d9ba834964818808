"""The setting `trainer`: what reaches transformers, and what is refused by the name of our own setting."""

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback, TrainingArguments

from prm import train
from prm.checks import keys_of
from prm.cli import main
from prm.config import TrainConfig
from prm.errors import PrmError
from prm.io.tables import write_jsonl
from prm.training.trainers.trainer_setting import OUR_SETTING, UNSUPPORTED
from tests.planted import opposed_people
from tests.tiny_runs import config_of, train_any

LOG = opposed_people(8, 0, people=2)


class Seen(TrainerCallback):
    """What a callback of the caller sees."""

    def __init__(self) -> None:
        self.logged: list[int] = []
        self.arguments: Any = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.arguments = args
        if "loss" in logs:
            self.logged.append(state.global_step)


def settings(tiny: str, tmp_path: Path) -> dict[str, Any]:
    write_jsonl(tmp_path / "log.jsonl", LOG)
    return asdict(config_of("soft", tiny, tmp_path))


def test_arguments_and_callbacks_reach_transformers(tiny: str, tmp_path: Path) -> None:
    given, seen = settings(tiny, tmp_path), Seen()
    given["optim"] |= {"epochs": 4.0, "batch_size": 4, "micro_batch_size": 4, "eval_steps": 4}
    del given["data"]["path"], given["trainer"]
    trainer = {"callbacks": [seen], "logging_steps": 2, "run_name": "mine", "report_to": ["tensorboard"]}
    run = train(LOG, trainer=trainer, **given)
    assert seen.logged == [2, 4, 6, 8]
    assert (seen.arguments.run_name, seen.arguments.report_to) == ("mine", [])
    stored = json.loads((run.folder / "run.json").read_text())["config"]["trainer"]
    assert stored == {"logging_steps": 2, "run_name": "mine", "report_to": ["tensorboard"]}


@pytest.mark.parametrize("name", OUR_SETTING)
def test_what_a_setting_decides_is_refused_with_its_name(tiny: str, tmp_path: Path, name: str) -> None:
    config = config_of("soft", tiny, tmp_path, trainer={name: 1})
    with pytest.raises(PrmError, match=rf"trainer\.{name}") as raised:
        train_any("soft", config)
    named = {key for key in keys_of(TrainConfig) if f"'{key}'" in str(raised.value)}
    assert named


def test_the_refused_names_are_arguments_of_transformers() -> None:
    known = {field.name for field in fields(TrainingArguments)}
    assert set(OUR_SETTING) | set(UNSUPPORTED) <= known


@pytest.mark.parametrize(
    ("trainer", "named"),
    [
        ({"logging_step": 1}, r"trainer\.logging_step'.*'logging_steps'"),
        ({"weight_decay": 0.1}, r"trainer\.weight_decay'"),
        ({"hub_token": "secret"}, r"trainer\.hub_token'"),
        ({"report_to": "wandbb"}, "wandbb"),
        ({"report_to": 3}, r"trainer\.report_to'"),
        ({"push_to_hub": "yes"}, r"trainer\.push_to_hub'"),
        ({"logging_steps": "many"}, "trainer"),
        ({"callbacks": "mine.Callback"}, r"trainer\.callbacks'.*prm\.train"),
    ],
)
def test_wrong_and_unknown_arguments_are_refused_before_reading(
    tiny: str, tmp_path: Path, trainer: Any, named: str
) -> None:
    with pytest.raises(PrmError, match=named):
        train_any("soft", config_of("soft", tiny, tmp_path, trainer=trainer))  # there is no log


def test_the_fast_path_has_no_trainer(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(PrmError, match=r"'trainer'.*push_to_hub.*'train: lora'"):
        train_any("linear", config_of("linear", tiny, tmp_path, trainer={"logging_steps": 1}))
    given = asdict(config_of("linear", tiny, tmp_path))
    del given["trainer"], given["data"]["path"]
    with pytest.raises(PrmError, match="callbacks"):
        train(LOG, trainer={"callbacks": [Seen()]}, **given)
    given = settings(tiny, tmp_path)
    del given["trainer"], given["data"]["path"]
    with pytest.raises(PrmError, match="TrainerCallbacks, got int"):
        train(LOG, trainer={"callbacks": [3]}, **given)


def test_flags_set_single_arguments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--data.path", str(tmp_path), "--train", "lora", "--trainer.seed", "3"])
    assert "trainer.seed" in capsys.readouterr().err

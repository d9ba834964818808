"""From a log to its parts: what is held out, what is left out, and that nothing is lost on the way."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prm.checkpoint import load
from prm.cli import _train_config, build_train_parser
from prm.comparison import Comparison
from prm.config import BackboneConfig, DataConfig, OptimConfig, SearchConfig, TrainConfig
from prm.controls import length_signs
from prm.errors import PrmError
from prm.files import write_jsonl
from prm.run import split_parts, train
from tests.conftest import read_log
from tests.planted import opposed_people


def config_of(folder: Path, log: list[Comparison], **data: object) -> TrainConfig:
    write_jsonl(folder / "log.jsonl", log)
    return TrainConfig(train="lora", data=DataConfig(path=str(folder / "log.jsonl"), **data))  # type: ignore[arg-type]


def people_with(**judgements: int) -> list[Comparison]:
    rows = opposed_people(max(judgements.values()), 0, people=1)
    return [replace(c, user_id=user) for user, n in judgements.items() for c in rows[:n]]


def test_people_with_little_are_left_out_of_every_part_and_counted(tmp_path: Path) -> None:
    """ann has 20, bob 3: of about 16 and 2 to learn from, 5 are asked for."""
    log = people_with(ann=20, bob=3)
    parts = split_parts(config_of(tmp_path, log, test_fraction=0.2, min_comparisons=5, validation_fraction=0.1))
    kept = [*parts.train, *parts.validation, *parts.test]
    assert {c.user_id for c in kept} == {"ann"}
    assert parts.account["left_out"] == {"by people with fewer than 5 to learn from": 3, "people left out so": 1}
    assert len(kept) == 20


def test_held_out_people_count_by_what_there_is_to_judge_them_by(tmp_path: Path) -> None:
    log = people_with(**{f"p{i}": 6 for i in range(9)}, few=2)
    parts = split_parts(config_of(tmp_path, log, split="user", test_fraction=0.3, min_comparisons=3))
    assert len(parts.test) in (12, 18)  # two or three people
    assert not {c.user_id for c in parts.test} & {c.user_id for c in [*parts.train, *parts.validation]}
    with pytest.raises(PrmError, match=r"data\.min_comparisons|nothing is left"):
        split_parts(config_of(tmp_path, log, split="user", test_fraction=0.3, min_comparisons=7))


@pytest.mark.parametrize("fast", [True, False])
def test_comparisons_between_the_parts_are_counted(tmp_path: Path, fast: bool) -> None:
    """By answer: 190 pairs of 20 answers, all of them in a part or accounted for."""
    answers = [f"answer {i}" for i in range(20)]
    log = [Comparison("a", "q", a, b) for a in answers for b in answers if a < b]
    config = config_of(tmp_path, log, split="response", test_fraction=0.3, validation_fraction=0.3)
    config.train = "frozen" if fast else "lora"
    parts = split_parts(config)
    sides = [{x for c in part for x in (c.chosen, c.rejected)} for part in (parts.train, parts.validation, parts.test)]
    assert [len(side) for side in sides] == ([14, 0, 6] if fast else [10, 4, 6])
    assert not any(a & b for a, b in ((sides[0], sides[1]), (sides[0], sides[2]), (sides[1], sides[2])))
    kept = len(parts.train) + len(parts.validation) + len(parts.test)
    assert kept + sum(parts.account["left_out"].values()) == 190


def test_an_empty_part_is_refused_by_the_key_that_makes_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = [replace(c, time=float(i)) for i, c in enumerate(people_with(ann=5, bob=5))]
    with pytest.raises(PrmError, match=r"data\.validation_fraction.*empty"):
        split_parts(config_of(tmp_path, log, split="time", validation_fraction=0.15))
    with pytest.raises(PrmError, match=r"data\.test_from.*empty"):
        split_parts(config_of(tmp_path, log, split="time", test_from=99.0))
    with caplog.at_level("WARNING"):
        split_parts(config_of(tmp_path, log, split="time", validation_fraction=0.4))
    assert "only 4 validation comparisons" in caplog.text


def test_judgements_of_a_pair_are_thinned_for_learning_alone(tmp_path: Path) -> None:
    log = opposed_people(30, 0, people=4)
    config = config_of(tmp_path, log, test_fraction=0.2, judges_per_pair=1)
    parts = split_parts(config)
    assert len(parts.train) + len(parts.validation) == 24
    assert len(parts.test) == 24
    assert parts.account["left_out"] == {"more than 1 people's judgement of a pair": 72}
    assert {c.user_id for c in parts.train} == {"p0", "p1", "p2", "p3"}


@pytest.mark.parametrize("how", ["frozen", "lora"])
def test_the_test_part_reaches_neither_training_nor_what_it_is_stopped_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Nor the controls that are learnt. The three parts share no prompt, and together they are the log."""
    given: list[list[Comparison]] = []
    monkeypatch.setattr("prm.run.train_head", lambda config, learn, work, run: given.extend([learn, []]) or {})
    monkeypatch.setattr("prm.run.train_steps", lambda config, learn, check, *_: given.extend([learn, check]) or {})
    log = [replace(c, chosen=c.chosen + " and so on") for c in opposed_people(30, 0)]
    config = config_of(tmp_path, log, test_fraction=0.3, validation_fraction=0.3)
    run = train(replace(config, train=how, output_dir=str(tmp_path / "run")))
    learn, validation = given
    test = read_log(run / "test.jsonl")
    assert [len(test), len(validation) > 0] == [36, how == "lora"]
    prompts = [{c.prompt for c in part} for part in (learn, validation, test)]
    assert not any(a & b for a, b in ((prompts[0], prompts[1]), (prompts[0], prompts[2]), (prompts[1], prompts[2])))
    assert len(learn) + len(validation) + len(test) == len(log)
    signs = json.loads((run / "controls.json").read_text())["length_sign"]
    assert signs == length_signs([*learn, *validation])
    assert signs[""] == len(log) - len(test)


@pytest.mark.parametrize("how", ["frozen", "lora"])
def test_people_held_out_get_no_rows(tiny: str, tmp_path: Path, how: str) -> None:
    """A row that nothing trains would be a stranger's in disguise."""
    log = opposed_people(8, 0, people=8)
    config = config_of(tmp_path, log, split="user", test_fraction=0.25, validation_fraction=0.3)
    run = train(
        replace(
            config,
            train=how,
            output_dir=str(tmp_path / "run"),
            backbone=BackboneConfig(tiny, dtype="float32"),
            search=SearchConfig(folds=2, l2=[1.0], user_l2=[1.0]),
            optim=OptimConfig(epochs=0.1),
        )
    )
    assert sorted(load(run).users.ids) == sorted({c.user_id for c in split_parts(replace(config, train=how)).train})
    assert len(load(run).users.ids) == (6 if how == "frozen" else 4)


@pytest.mark.parametrize(("given", "value"), [("2.5", 2.5), ("1700000000", 1.7e9), ("2026-03-01", "2026-03-01")])
def test_a_date_or_a_number_by_flag_and_by_file(tmp_path: Path, given: str, value: float | str) -> None:
    """A date that YAML knows as one is its text again."""
    path = tmp_path / "run.yaml"
    path.write_text(f"data:\n  path: x\n  split: time\n  test_from: {given}\n")
    for arguments in (["--config", str(path)], ["--data.path", "x", "--data.split", "time", "--data.test_from", given]):
        parser = build_train_parser()
        config = _train_config(parser, parser.parse_args(arguments))
        assert config.data.test_from == value
        config.check()

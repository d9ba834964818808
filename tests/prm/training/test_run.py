"""From a log to its parts: what is held out, what is left out, and that nothing is lost on the way."""

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm.checkpoint.checkpoint import load
from prm.checks import built
from prm.cli.arguments import build_parser
from prm.config import BackboneConfig, DataConfig, OptimConfig, SearchConfig, TldrConfig, TrainConfig
from prm.data.baselines import length_votes
from prm.data.comparison import Comparison
from prm.errors import DataError, PrmError
from prm.io.tables import write_jsonl
from prm.scoring.forget_user import forget_user
from prm.training.linear_heads import folds_of
from prm.training.prepare_log import split_data
from prm.training.run import train
from tests.conftest import read_log
from tests.planted import opposed_people
from tests.prm.data.sources.public.test_psoups import PROMPTS, row
from tests.prm.data.sources.public.test_tldr_length import post


def config_of(folder: Path, log: list[Comparison], **data: object) -> TrainConfig:
    write_jsonl(folder / "log.jsonl", log)
    return TrainConfig(train="lora", data=DataConfig(path=str(folder / "log.jsonl"), **data))  # type: ignore[arg-type]


def people_with(**judgements: int) -> list[Comparison]:
    rows = opposed_people(max(judgements.values()), 0, people=1)
    return [replace(c, user_id=user) for user, n in judgements.items() for c in rows[:n]]


def test_people_with_little_are_left_out_of_every_part_and_counted(tmp_path: Path) -> None:
    """ann has 20, bob 3: of about 16 and 2 to learn from, 5 are asked for."""
    log = people_with(ann=20, bob=3)
    parts = split_data(config_of(tmp_path, log, test_fraction=0.2, min_comparisons=5, validation_fraction=0.1))
    kept = [*parts.train, *parts.validation, *parts.test]
    assert {c.user_id for c in kept} == {"ann"}
    assert parts.account["left_out"] == {
        "of users below data.min_comparisons 5": 3,
        "users below data.min_comparisons": 1,
    }
    assert len(kept) == 20


def test_held_out_people_count_by_what_there_is_to_judge_them_by(tmp_path: Path) -> None:
    log = people_with(**{f"p{i}": 6 for i in range(9)}, few=2)
    parts = split_data(config_of(tmp_path, log, holdout_by="user", test_fraction=0.3, min_comparisons=3))
    assert len(parts.test) in (12, 18)  # two or three people
    assert not {c.user_id for c in parts.test} & {c.user_id for c in [*parts.train, *parts.validation]}
    with pytest.raises(PrmError, match=r"data\.min_comparisons|nothing is left"):
        split_data(config_of(tmp_path, log, holdout_by="user", test_fraction=0.3, min_comparisons=7))


@pytest.mark.parametrize("fast", [True, False])
def test_comparisons_between_the_parts_are_counted(tmp_path: Path, fast: bool) -> None:
    """By answer: 190 pairs of 20 answers, all of them in a part or accounted for."""
    answers = [f"answer {i}" for i in range(20)]
    log = [Comparison("a", "q", a, b) for a in answers for b in answers if a < b]
    config = config_of(tmp_path, log, holdout_by="response", test_fraction=0.3, validation_fraction=0.3)
    config.train = "frozen" if fast else "lora"
    parts = split_data(config)
    sides = [{x for c in part for x in (c.chosen, c.rejected)} for part in (parts.train, parts.validation, parts.test)]
    assert [len(side) for side in sides] == ([14, 0, 6] if fast else [10, 4, 6])
    assert not any(a & b for a, b in ((sides[0], sides[1]), (sides[0], sides[2]), (sides[1], sides[2])))
    kept = len(parts.train) + len(parts.validation) + len(parts.test)
    assert kept + sum(parts.account["left_out"].values()) == 190


def test_an_empty_part_is_refused_by_the_key_that_makes_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = [replace(c, time=float(i)) for i, c in enumerate(people_with(ann=5, bob=5))]
    with pytest.raises(PrmError, match=r"data\.validation_fraction.*empty"):
        split_data(config_of(tmp_path, log, holdout_by="time", validation_fraction=0.15))
    with pytest.raises(PrmError, match=r"data\.test_from.*empty"):
        split_data(config_of(tmp_path, log, holdout_by="time", test_from=99.0))
    with caplog.at_level("WARNING"):
        split_data(config_of(tmp_path, log, holdout_by="time", validation_fraction=0.4))
    assert "4 validation comparisons" in caplog.text


def test_judgements_of_a_pair_are_thinned_for_learning_alone(tmp_path: Path) -> None:
    log = opposed_people(30, 0, people=4)
    config = config_of(tmp_path, log, test_fraction=0.2, judges_per_pair=1)
    parts = split_data(config)
    assert len(parts.train) + len(parts.validation) == 24
    assert len(parts.test) == 24
    assert parts.account["left_out"] == {"over data.judges_per_pair 1": 72}
    assert {c.user_id for c in parts.train} == {"p0", "p1", "p2", "p3"}


@pytest.mark.parametrize("how", ["frozen", "lora"])
def test_the_test_part_reaches_neither_training_nor_what_it_is_stopped_by(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Any
) -> None:
    """Nor the controls that are learnt. The three parts share no prompt, and together they are the log."""
    given: list[list[Comparison]] = []
    monkeypatch.setattr("prm.training.run.train_head", lambda config, learn, *_: given.extend([learn, []]) or {})
    monkeypatch.setattr(
        "prm.training.run.train_steps", lambda config, learn, check, *_: given.extend([learn, check]) or {}
    )
    log = [replace(c, chosen=c.chosen + " and so on") for c in opposed_people(30, 0)]
    config = config_of(tmp_path, log, test_fraction=0.3, validation_fraction=0.3)
    run = train(replace(config, train=how, backbone=BackboneConfig(tiny), output_dir=str(tmp_path / "run")))
    learn, validation = given
    test = read_log(run / "test.jsonl")
    assert [len(test), len(validation) > 0] == [36, how == "lora"]
    prompts = [{c.prompt for c in part} for part in (learn, validation, test)]
    assert not any(a & b for a, b in ((prompts[0], prompts[1]), (prompts[0], prompts[2]), (prompts[1], prompts[2])))
    assert len(learn) + len(validation) + len(test) == len(log)
    votes = json.loads((run / "controls.json").read_text())
    assert votes == length_votes([*learn, *validation])
    assert votes["length_sign"][""] == votes["length_count"][""] == len(log) - len(test)


@pytest.mark.parametrize("how", ["frozen", "lora"])
def test_people_held_out_get_no_rows(tiny: str, tmp_path: Path, how: Any) -> None:
    """A row that nothing trains would be a stranger's in disguise."""
    log = opposed_people(8, 0, people=8)
    config = config_of(tmp_path, log, holdout_by="user", test_fraction=0.25, validation_fraction=0.3)
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
    assert sorted(load(run).users.ids) == sorted({c.user_id for c in split_data(replace(config, train=how)).train})
    assert len(load(run).users.ids) == (6 if how == "frozen" else 4)


@pytest.mark.parametrize(("given", "value"), [("2.5", 2.5), ("1700000000", 1.7e9), ("2026-03-01", "2026-03-01")])
def test_a_date_or_a_number_by_flag_and_by_file(tmp_path: Path, given: str, value: float | str) -> None:
    """A date that YAML knows as one is its text again."""
    path = tmp_path / "run.yaml"
    path.write_text(f"data:\n  path: x\n  holdout_by: time\n  test_from: {given}\n")
    for arguments in (
        ["--config", str(path)],
        ["--data.path", "x", "--data.holdout_by", "time", "--data.test_from", given],
    ):
        config = built(TrainConfig, build_parser().parse_args(["train", *arguments]).settings)
        assert config.data.test_from == value
        config.check()


def marks(c: Comparison, part: str | None) -> Comparison:
    return replace(c, metadata={} if part is None else {"split": part})


def in_parts(pairs: int = 12) -> list[Comparison]:
    """Two pairs to a prompt. Two people who are learnt from and tested on every fourth prompt, and one of whom nothing
    is learnt."""
    rows = [replace(c, prompt=f"about {i // 6}") for i, c in enumerate(opposed_people(pairs, 0, people=3))]
    return [
        marks(c, "unseen" if c.user_id == "p2" else "test" if i // 6 % 4 == 0 else "train") for i, c in enumerate(rows)
    ]


@pytest.mark.parametrize("fast", [True, False])
def test_given_parts_are_taken_as_they_are(tmp_path: Path, fast: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Validation and folds go by prompt. Strangers judged what was learnt from: the warning counts those prompts."""
    log = in_parts(32)
    config = config_of(tmp_path, [*log, marks(log[0], None)], holdout_by="given", validation_fraction=0.25)
    config.train = "frozen" if fast else "lora"
    with caplog.at_level("WARNING"):
        parts = split_data(config)
    assert {c.metadata.get("split") for c in [*parts.train, *parts.validation]} == {"train"}
    assert Counter(c.metadata.get("split") for c in parts.test) == {"test": 16, "unseen": 32, None: 1}
    assert "12 of the 16 prompts" in caplog.text
    assert parts.account["left_out"] == {}
    assert len(parts.train) + len(parts.validation) == 48
    if fast:
        fold = {c.prompt: f for c, f in zip(parts.train, folds_of(config, parts.train).tolist(), strict=True)}
        assert all(fold[c.prompt] == f for c, f in zip(parts.train, folds_of(config, parts.train).tolist()))
        assert {tuple(f) for f in fold.values()} == {(i, i) for i in range(5)}
    else:
        assert not {c.prompt for c in parts.train} & {c.prompt for c in parts.validation}
        assert len(parts.validation) == 12


def test_a_log_without_marks_has_no_given_split(tmp_path: Path) -> None:
    with pytest.raises(PrmError, match=r"'data\.holdout_by'.*'split'"):
        split_data(config_of(tmp_path, people_with(ann=5), holdout_by="given"))
    with pytest.raises(PrmError, match=r"data\.test_fraction"):
        split_data(config_of(tmp_path, in_parts(), holdout_by="given", test_fraction=0.2))


@pytest.mark.parametrize("fraction", [0.0, 1 / 3])
def test_what_is_never_to_be_learnt_from_is_held_out_or_left_out(tmp_path: Path, fraction: float) -> None:
    """By any other split: a third of the prompts, with all judgements of them, or nothing."""
    config = config_of(tmp_path, in_parts(), test_fraction=fraction)
    config.train = "frozen"
    parts = split_data(config)
    assert {c.metadata["split"] for c in parts.train} == {"train"}
    assert len(parts.test) == 36 * fraction
    never = parts.account["left_out"]["held out by the source"]
    assert len(parts.train) + len(parts.test) + never == 36
    assert never == sum(c.metadata["split"] != "train" for c in in_parts() if c not in parts.test)
    if fraction:
        assert "unseen" in {c.metadata["split"] for c in parts.test}
        assert not {c.prompt for c in parts.train} & {c.prompt for c in parts.test}


def test_nothing_but_held_out_marks_leaves_nothing(tmp_path: Path) -> None:
    log = [marks(c, "test") for c in people_with(ann=5)]
    with pytest.raises(PrmError, match=r"held out by the source.*: 5\}"):
        split_data(config_of(tmp_path, log))


@pytest.mark.parametrize("split", ["given", "prompt"])
def test_unknown_users_are_not_left_out_for_having_no_training_data(tmp_path: Path, split: str) -> None:
    """They count by what there is to judge them by; the others, by what there is to learn from."""
    fraction = 0.0 if split == "given" else 0.5
    parts = split_data(config_of(tmp_path, in_parts(), holdout_by=split, test_fraction=fraction, min_comparisons=2))
    assert {c.user_id for c in parts.test} == {"p0", "p1", "p2"}
    with pytest.raises(PrmError, match=r"data\.min_comparisons|nothing is left"):
        split_data(config_of(tmp_path, in_parts(), holdout_by=split, test_fraction=fraction, min_comparisons=13))


def test_simulated_unknown_users_are_tested_and_never_trained_on(tmp_path: Path) -> None:
    posts = [post("a b", "c", f"post {i}") for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, posts)))
    tldr = TldrConfig(num_users=4, num_unseen_users=3)
    data = DataConfig(path=str(tmp_path), source="tldr_length", tldr=tldr, test_fraction=0.25)
    parts = split_data(TrainConfig(data=data))
    assert {c.user_id for c in parts.train} == {f"length_{i}" for i in range(4)}
    assert {c.user_id for c in parts.test} == {f"length_{i}" for i in range(7)}
    assert parts.account["left_out"] == {"held out by the source": 45}


def psoups_config(folder: Path, render: bool, **data: object) -> TrainConfig:
    """Six people on 30 questions; with `render`, the rejected answer is what Python prints of a list."""
    (folder / "rm_training").mkdir(exist_ok=True)
    for user in PROMPTS:
        rows = []
        for i in range(30):
            answers = [f"The {word} number {i}." for word in random.Random(f"{user}{i}").sample(["old", "new"], 2)]
            rows.append(row(user, f"Why {i}?", answers[0], str([answers[1]]) if render else answers[1]))
        (folder / "rm_training" / f"{user}.json").write_text(json.dumps(rows))
    data_config = DataConfig(path=str(folder), source="psoups", **data)  # type: ignore[arg-type]
    return TrainConfig(output_dir=str(folder / "run"), data=data_config)


def test_a_rejected_answer_rendered_as_a_list_stops_the_run_before_it_starts(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        train(replace(psoups_config(tmp_path, render=True, holdout_by="given"), backbone=BackboneConfig(tiny)))
    said = str(caught.value)
    assert said.startswith(f"{tmp_path}: ")
    assert " 100.0% " in said
    assert "Python list or dict" in said
    assert "data.on_artefact: warn" in said
    assert "\n" not in said
    assert not (tmp_path / "run").exists()
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("is_folder", [True, False], ids=["a folder", "a file"])
def test_what_stands_in_the_place_of_the_work_folder_stays(tiny: str, tmp_path: Path, is_folder: bool) -> None:
    """A run trains in NAME.partial; something of that name that is no unfinished run is not removed, nor replaced."""
    config = psoups_config(tmp_path, render=False, holdout_by="given")
    config.backbone = BackboneConfig(tiny, dtype="float32")
    theirs = tmp_path / "run.partial"
    precious = theirs / "thesis.txt" if is_folder else theirs
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("years of work")
    with pytest.raises(PrmError, match="is no unfinished run"):
        train(config)
    assert precious.read_text() == "years of work"
    theirs.rename(tmp_path / "elsewhere")
    train(config)
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("years of work")
    forget_user(tmp_path / "run", load(tmp_path / "run").users.ids[0])
    assert (theirs / "thesis.txt").is_file()


@pytest.mark.parametrize("render", [True, False])
def test_artefacts_may_be_warned_of_alone(
    tmp_path: Path, tiny: str, render: bool, caplog: pytest.LogCaptureFixture
) -> None:
    config = psoups_config(tmp_path, render, holdout_by="given", on_artefact="warn" if render else "stop")
    config.backbone = BackboneConfig(tiny, dtype="float32")
    config.search = SearchConfig(folds=2, l2=[1.0], user_l2=[1.0], poolings=["last"])
    with caplog.at_level("WARNING"):
        train(config)
    assert ("100.0%" in caplog.text) == render
    assert (tmp_path / "run" / "model.safetensors").is_file()


def with_lists(share: float, likes: float) -> list[Comparison]:
    """200 people; of a `share` one answer is a list, which a part `likes` of those prefers."""
    log = []
    for i in range(200):
        plain = f"The answer number {i}."
        other = f"Look:\n- answer number {i}." if i < 200 * share else f"Another answer number {i}."
        pair = (other, plain) if i % 20 < 20 * likes else (plain, other)
        log.append(Comparison(f"u{i}", f"q{i}", *pair))
    return log


def test_half_of_the_pairs_is_too_much_and_less_is_a_warning(
    tiny: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class ReachedError(Exception):
        pass

    def reached(*args: object) -> None:
        raise ReachedError

    monkeypatch.setattr("prm.training.run.open_work_folder", reached)
    with pytest.raises(DataError, match=r" 50\.0% .*list"):
        train(replace(config_of(tmp_path, with_lists(0.5, 1.0)), backbone=BackboneConfig(tiny)))
    caplog.clear()
    for share, likes, warned in (
        (0.45, 1.0, True),
        (1.0, 0.5, False),
        (1.0, 0.9, False),
    ):  # tastes differ, or nearly all
        with caplog.at_level("WARNING"), pytest.raises(ReachedError):
            train(replace(config_of(tmp_path, with_lists(share, likes)), backbone=BackboneConfig(tiny)))
        assert ("exactly one response has a list" in caplog.text) == warned
        caplog.clear()


def test_ties_and_what_is_held_out_say_nothing_of_artefacts(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same lists, but as ties, or in the held-out part."""
    seen: list[int] = []
    monkeypatch.setattr(
        "prm.training.run.open_work_folder", lambda *args: seen.append(1) or (_ for _ in ()).throw(PrmError("x"))
    )
    lists = with_lists(1.0, 1.0)
    ties = [replace(c, p_chosen=0.5) for c in lists]
    held_out = [marks(c, "test") for c in lists] + [marks(c, "train") for c in people_with(ann=20)]
    for log, split in ((ties, "prompt"), (held_out, "given")):
        with pytest.raises(PrmError, match=r"^x$"):
            train(replace(config_of(tmp_path, log, holdout_by=split), backbone=BackboneConfig(tiny)))
    assert seen == [1, 1]

"""Results by the values of a metadata field."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import prm.cli
from prm.config import BackboneConfig, DataConfig, OptimConfig, SearchConfig, TrainConfig
from prm.data.baselines import length_margins, longest
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.evaluation.evaluate import Drawn, evaluate, evaluate_run
from prm.evaluation.groups import group_of_people, groups_of
from prm.evaluation.rows import LENGTH_SIGN, Labels
from prm.io.disk import cache_dir
from prm.io.tables import read_rows, write_jsonl
from prm.metrics import nll
from prm.scoring.forget_user import forget_user
from prm.scoring.scorer import Scorer
from prm.training.run import train
from tests.planted import opposed_people

DRAWN: tuple[Drawn, ...] = ("people", "prompts")


@pytest.fixture
def run(tiny: str, tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "log.jsonl", opposed_people(16, 0, people=2))
    config = TrainConfig(
        output_dir=str(tmp_path / "run"),
        data=DataConfig(path=str(tmp_path / "log.jsonl")),
        backbone=BackboneConfig(tiny, dtype="float32"),
        search=SearchConfig(folds=2, l2=[0.1], user_l2=[0.1], poolings=["mean"]),
    )
    return train(config)


def test_slices_share_out_the_comparisons_that_have_the_field(run: Path) -> None:
    """Value by value the figures are those of an evaluation on these comparisons alone."""
    scorer = Scorer.from_pretrained(run)
    log = opposed_people(12, 4, people=2)
    log = [replace(c, metadata={"side": c.user_id, "n": i} if i < 20 else {}) for i, c in enumerate(log)]
    result = evaluate(scorer, log, by=["side", "n"])
    sides = [s for s in result.slices if s.key == "side"]
    assert [(s.value, s.comparisons, s.users) for s in sides] == [("p0", 10, 1), ("p1", 10, 1)]
    for part in sides:
        alone = evaluate(scorer, [c for c in log if c.metadata.get("side") == part.value])
        for name in ("personal", "generic user", "longest answer"):
            found = next(row for row in part.rows if row.name == name)
            assert found.accuracy == alone.row(name).accuracy
            if found.nll is not None:
                expected = alone.row(name).nll
                assert expected is not None
                assert found.nll.value == pytest.approx(expected.value, abs=1e-6)
    quarters = [s for s in result.slices if s.key == "n"]
    assert [(s.value, s.comparisons) for s in quarters] == [
        ("0 to 4", 5),
        ("5 to 9", 5),
        ("10 to 14", 5),
        ("15 to 19", 5),
    ]
    with pytest.raises(PrmError, match="'colour'"):
        evaluate(scorer, log, by=["colour"])


def test_people_by_how_much_they_had_judged(run: Path) -> None:
    """A stranger from 0, a newcomer of 3 from 1, those of the log from 10 on; gains are those of each part alone."""
    scorer, uniform = Scorer.from_pretrained(run), Scorer.from_pretrained(run / "uniform")
    new = [replace(c, user_id="zoe") for c in opposed_people(3, 7, people=1)]
    scorer.fit_user("zoe", new)
    log = opposed_people(6, 4, people=2)
    log += [replace(c, user_id=user) for user in ("zoe", "eve") for c in opposed_people(4, 5, people=1)]
    slices = evaluate(scorer, log, uniform, by=["train_comparisons"]).slices
    assert [(s.value, s.users, s.comparisons) for s in slices] == [("0", 1, 4), ("1", 1, 4), ("10", 2, 12)]
    for part, people in zip(slices, (["eve"], ["zoe"], ["p0", "p1"]), strict=True):
        alone = evaluate(scorer, [c for c in log if c.user_id in people], uniform)
        assert part.gain is not None
        assert alone.gain is not None
        assert part.gain.value == alone.gain.value
        assert part.gain_nll is not None
        assert alone.gain_nll is not None
        assert part.gain_nll.value == pytest.approx(alone.gain_nll.value, abs=1e-6)
    said = [replace(c, metadata={"train_comparisons": "many"}) for c in log]
    assert [s.value for s in evaluate(scorer, said, uniform, by=["train_comparisons"]).slices] == ["many"]


def test_every_control_stands_beside_the_model_and_nobody_is_passed_over(run: Path) -> None:
    """Strangers, and people with one judgement, are evaluated like everybody else, and counted."""
    log = [*opposed_people(6, 4, people=2), replace(opposed_people(1, 5)[0], user_id="zoe")]
    result = evaluate_run(run, log)
    assert [row.name for row in result.rows] == [
        "personal",
        "generic user",
        "uniform, tuned",
        "users shuffled",
        "longest answer",
        "length sign per user",
    ]
    assert (result.comparisons, result.users, result.unknown_users) == (13, 3, 1)
    assert set(result.per_user) == {"p0", "p1", "zoe"}


def test_each_users_taste_for_length_has_a_log_loss_if_the_run_counted_its_comparisons(run: Path) -> None:
    """Runs of earlier versions did not, and are evaluated without it."""
    log = opposed_people(6, 4, people=2)
    counted, controls = evaluate_run(run, log), json.loads((run / "controls.json").read_text())
    p = np.array([c.p_chosen for c in log])
    expected = nll(length_margins(log, controls), p).mean()
    (run / "controls.json").write_text(json.dumps({"length_sign": controls["length_sign"]}))
    earlier = evaluate_run(run, log)
    for result, has in ((counted, True), (earlier, False)):
        row = result.row(LENGTH_SIGN)
        (against,) = [a for a in result.verdict.against if a.name == LENGTH_SIGN]
        assert [value is not None for value in (row.nll, row.brier, row.calibration, against.nats)] == [has] * 4
        assert [r.name for r in result.rows][-2:] == ["longest answer", LENGTH_SIGN]
    loss = counted.row(LENGTH_SIGN).nll
    assert loss is not None
    assert loss.value == pytest.approx(expected)


def test_intervals_are_drawn_over_people_or_prompts(run: Path) -> None:
    """Two people who never agree: the longer answer is right for one of them on every prompt, so prompts agree."""
    log = [replace(c, chosen=c.chosen + " and so on" * (c.user_id == "p0")) for c in opposed_people(8, 4, people=2)]
    log = [replace(c, rejected=c.rejected + " and so on" * (c.user_id == "p1")) for c in log]
    scorer = Scorer.from_pretrained(run)
    people, prompts = (evaluate(scorer, log, drawn=drawn).row("longest answer").accuracy for drawn in DRAWN)
    assert (people.low, people.high) == (0.0, 1.0)
    assert (prompts.low, prompts.value, prompts.high) == (0.5, 0.5, 0.5)


def test_the_command_shows_slices_and_reads_any_kind_of_feedback(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ratings in a CSV, with a column carried along; the file of numbers holds them too."""
    rows = ["who,prompt,response,stars,place"]
    for c in opposed_people(6, 4, people=2):
        rows += [
            f"{c.user_id},{c.prompt},{c.chosen},5,{c.user_id}",
            f"{c.user_id},{c.prompt},{c.rejected},2,{c.user_id}",
        ]
    log = tmp_path / "ratings.csv"
    log.write_text("\n".join(rows) + "\n")
    flags = ["--data.source", "ratings", "--data.columns", '{"user_id": "who", "rating": "stars"}']
    prm.cli.main(["evaluate", str(run), str(log), *flags, "--data.metadata", '["place"]', "--by", "place"])
    shown = capsys.readouterr().out
    assert "accuracy % by place" in shown
    assert "12 comparisons of 6 prompts by 2 users" in " ".join(shown.split())
    stored = json.loads((run / "evaluation-ratings.json").read_text())
    assert [s["value"] for s in stored["slices"]] == ["p0", "p1"]


def test_bad_rows_are_listed_beside_the_run_and_go_with_the_person(tiny: str, tmp_path: Path) -> None:
    """What unclear to be anybody's goes with whoever is forgotten first."""
    log = tmp_path / "log.jsonl"
    write_jsonl(log, opposed_people(16, 0, people=2))
    bad = [{"user_id": "p0", "prompt": "x"}, {"user_id": "p1", "prompt": "y"}]
    log.write_text(log.read_text() + "\n".join(json.dumps(row) for row in bad) + "\n{broken\n")
    config = TrainConfig(
        output_dir=str(tmp_path / "run"),
        data=DataConfig(path=str(log), on_bad_row="skip"),
        backbone=BackboneConfig(tiny, dtype="float32"),
        search=SearchConfig(folds=2, l2=[1.0], user_l2=[1.0]),
    )
    run = train(config)
    listed = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert [(row.get("user_id"), row["row"]) for row in listed] == [("p0", bad[0]), ("p1", bad[1]), (None, "{broken")]
    assert listed[0]["row_of"].endswith("log.jsonl, line 33")
    assert "'chosen'" in listed[0]["fault"]
    data = json.loads((run / "run.json").read_text())["data"]
    assert data["rows"] == {"used": 32, "bad": 3}
    forget_user(run, "p0")
    assert [row["user_id"] for _, row in read_rows(run / "skipped.jsonl")] == ["p1"]


def test_adapters_never_meet_in_one_store_of_features(tiny: str, tmp_path: Path) -> None:
    """Two LoRA runs on one backbone, evaluated one after the other: each scores by its own hidden states."""
    log = opposed_people(8, 0, people=2)
    write_jsonl(tmp_path / "log.jsonl", log)
    scores = []
    for seed in (0, 1):
        config = TrainConfig(
            output_dir=str(tmp_path / f"run{seed}"),
            seed=seed,
            train="lora",
            data=DataConfig(path=str(tmp_path / "log.jsonl")),
            backbone=BackboneConfig(tiny, dtype="float32"),
            optim=OptimConfig(epochs=4.0, batch_size=4, micro_batch_size=4, lora_lr=0.05),
        )
        run = train(config)
        asked = (log[0].prompt, [log[0].chosen, log[0].rejected], "p0")
        scores.append(Scorer.from_pretrained(run).score(*asked))
        evaluate_run(run, log)
        assert torch.equal(Scorer.from_pretrained(run, cache=True).score(*asked), scores[-1])
    assert not torch.allclose(scores[0], scores[1])


def test_what_an_evaluation_cached_of_somebodys_words_goes_with_them(tiny: str, tmp_path: Path) -> None:
    """A fully trained linear head has no store of its own until it is evaluated."""
    log = [replace(c, user_text=f"I am {c.user_id}.") for c in opposed_people(8, 0, people=2)]
    write_jsonl(tmp_path / "log.jsonl", log)
    config = TrainConfig(
        output_dir=str(tmp_path / "run"),
        train="full",
        data=DataConfig(path=str(tmp_path / "log.jsonl")),
        backbone=BackboneConfig(tiny, dtype="float32"),
        optim=OptimConfig(epochs=1.0, batch_size=4, micro_batch_size=4),
    )
    run = train(config)
    evaluate_run(run, log)
    assert list(cache_dir().rglob("*.safetensors"))
    forget_user(run, "p0")
    assert not list(cache_dir().rglob("*.safetensors"))
    forget_user(run, "p1")


def test_values_of_a_field_stand_in_their_order(run: Path) -> None:
    log = [
        replace(c, metadata={"n": n}) for c, n in zip(opposed_people(4, 4, people=2), (10, 2, 1, 3) * 2, strict=True)
    ]
    assert [s.value for s in evaluate(Scorer.from_pretrained(run), log, by=["n"]).slices] == ["1", "2", "3", "10"]


def test_known_and_unknown_users_are_separate_groups(run: Path) -> None:
    """p0 and p1 are known; p2 and p3, of the same two tastes, are not: each side's figures are its own evaluation's."""
    scorer = Scorer.from_pretrained(run)
    log = opposed_people(8, 4, people=4)
    known, unknown = ([c for c in log if (c.user_id in ("p0", "p1")) is side] for side in (True, False))
    both = evaluate(scorer, log)
    for name in ("personal", "generic user", "longest answer"):
        assert both.row(name).top == evaluate(scorer, known).row(name).accuracy
        assert both.row(name).generic == evaluate(scorer, unknown).row(name).accuracy
    assert both.row("personal").generic == both.row("generic user").generic
    alone = evaluate(scorer, known).row("personal")
    assert alone.top == alone.accuracy
    assert alone.generic is None
    assert evaluate(scorer, unknown).row("personal").top is None


def test_macro_gain_counts_people_alike(run: Path) -> None:
    """The uniform model is wrong for one of two people on each prompt: gains of both, however much each judged."""
    scorer, uniform = Scorer.from_pretrained(run), Scorer.from_pretrained(run / "uniform")
    log = opposed_people(12, 4, people=2)
    log = [c for i, c in enumerate(log) if c.user_id == "p0" or i < 6]
    result = evaluate(scorer, log, uniform)
    accuracies = [[entry["personal"], entry["uniform, tuned"]] for entry in result.per_user.values()]
    each = -np.diff(np.array(accuracies, np.float64))[:, 0]
    assert result.gain_macro is not None
    assert result.gain_macro.value == pytest.approx(each.mean())
    assert result.gain is not None
    assert result.gain.value == pytest.approx((12 * each[0] + 3 * each[1]) / 15)


GROUPED = [Comparison(user, f"q{i}", "a long answer" if long else "a", "not short", metadata=metadata)
           for user, metadata, hits in (
               ("ann", {"age": "old"}, 4), ("bob", {"age": "old"}, 2), ("cat", {"age": "old"}, 3),
               ("dan", {"age": "young"}, 1), ("eve", {"age": "young"}, 1), ("fay", {}, 4))
           for i, long in enumerate([True] * hits + [False] * (4 - hits))]  # fmt: skip


def test_groups_worked_by_hand() -> None:
    """The longer answer is right in 4, 2, 3 of 4 (old: mean 3/4, deviation 1/4) and in 1, 1 of 4 (young)."""
    margin = longest(GROUPED)
    users = np.array([c.user_id for c in GROUPED])
    p = np.ones(len(GROUPED))
    known = users != "bob"
    everyone = groups_of("age", GROUPED, {"rule": margin}, Labels(p, users, users, np.ones_like(known)))
    old, young = everyone.groups
    assert (old.value, old.people, old.comparisons, old.majority) == ("old", 3, 12, True)
    assert (young.value, young.people, young.comparisons, young.majority) == ("young", 2, 8, False)
    assert (old.rows[0].accuracy, young.rows[0].accuracy) == (pytest.approx(0.75), pytest.approx(0.25))
    assert old.rows[0].error == pytest.approx(0.25 / 3**0.5)
    assert old.rows[0].gap is None
    assert young.rows[0].gap is not None
    assert young.rows[0].gap.value == pytest.approx(0.5)
    assert 0 < young.rows[0].gap.low < young.rows[0].gap.high < 1
    assert (everyone.without, everyone.known_only) == (1, False)
    some = groups_of("age", GROUPED, {"rule": margin}, Labels(p, users, users, known))
    assert (some.known_only, some.groups[0].people, some.groups[0].rows[0].accuracy) == (True, 2, pytest.approx(0.875))


def test_a_person_of_two_groups_is_named() -> None:
    two = [
        replace(GROUPED[0], origin="log, line 1"),
        replace(GROUPED[1], metadata={"age": "new"}, origin="log, line 2"),
    ]
    with pytest.raises(PrmError, match=r"'ann'.*'age'.*'old'.*'new'.*line 1.*line 2"):
        group_of_people("age", two)
    with pytest.raises(PrmError, match="'size'"):
        group_of_people("size", GROUPED)


def test_the_command_shows_groups_and_parameters(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Width 32: two people and the unknown one make 96 numbers, all else is frozen. Tables fit 100 columns."""
    monkeypatch.setenv("COLUMNS", "150")
    log = [replace(c, metadata={"side": c.user_id, "n": i}) for i, c in enumerate(opposed_people(12, 4, people=3))]
    write_jsonl(tmp_path / "side.jsonl", log)
    prm.cli.main(["evaluate", str(run), str(tmp_path / "side.jsonl"), "--groups", "side"])
    shown = capsys.readouterr().out
    for text in (
        "known users",
        "unknown users",
        "worst users",
        "Brier",
        "calibration error",
        "by side",
        "gap",
        "96 of the user model",
    ):
        assert text in shown, text
    assert max(len(line) for line in shown.splitlines() if line[:1] in "│┃┏┌") <= 100
    stored = json.loads((run / "evaluation-side.json").read_text())
    assert stored["parameters"] == {"users": 96, "shared": 0}
    assert [g["value"] for g in stored["groups"]["groups"]] == ["p0", "p1"]  # p2 is unknown to the model
    assert stored["groups"]["known_only"]
    assert stored["rows"][0]["calibration"]["bins"]
    assert stored["groups"]["groups"][1]["rows"][0]["gap"]["low"] is None
    with pytest.raises(SystemExit):
        prm.cli.main(["evaluate", str(run), str(tmp_path / "side.jsonl"), "--groups", "n"])
    assert "'p0'" in capsys.readouterr().err

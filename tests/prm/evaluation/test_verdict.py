"""The verdict of an evaluation: states by hand, intervals shared with everything else, and where it is carried."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from prm.cli import main
from prm.config import BackboneConfig, DataConfig, SearchConfig, TrainConfig
from prm.evaluation.evaluate import Evaluation, evaluate_run
from prm.evaluation.pooled_runs import pool
from prm.evaluation.rows import PERSONAL, Labels
from prm.evaluation.verdict import Against, Verdict, standing, verdict_of
from prm.io.tables import write_json, write_jsonl
from prm.metrics import Array, Estimate, correct, estimate, nll
from prm.report.text.evaluation import notes
from prm.training.run import train
from tests.planted import opposed_people

GENERIC, UNIFORM, LONGEST, SHUFFLED = "generic user", "uniform, tuned", "longest answer", "users shuffled"


def interval(low: float, high: float) -> Estimate:
    return Estimate((low + high) / 2, low, high)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({"a": (0.1, 0.3), "b": (0.05, 0.15)}, ("better", "b")),  # the best baseline is the one least behind
        ({"a": (0.1, 0.3), "b": (-0.02, 0.15)}, ("no better", "b")),
        ({"a": (-0.03, 0.03), "b": (-0.02, 0.15)}, ("no better", "a")),
        ({"a": (-0.1, -0.01), "b": (-0.3, 0.01)}, ("worse", "a")),  # b's middle is lower, but only a is sure
        ({"a": (-0.15, -0.05), "b": (-0.1, -0.01)}, ("worse", "a")),
        ({"a": (0.1, 0.3), "b": (-0.15, 0.1)}, ("too few", "b")),  # an interval as wide as this says nothing
        ({"a": (0.0, 0.0)}, ("no better", "a")),
        ({"a": (0.01, 0.5)}, ("better", "a")),
    ],
)
def test_states_by_hand(gains: Mapping[str, tuple[float, float]], expected: tuple[str, str]) -> None:
    assert standing([(name, interval(*ends)) for name, ends in gains.items()], wide=0.2) == expected


def judged(n: int, people: int, rights: Mapping[str, float], rules: tuple[str, ...] = (LONGEST,)) -> Verdict:
    """Rows that are right on the first so many hundredths of everybody's comparisons."""
    users = np.array([f"p{i % people}" for i in range(n)])
    spot = np.argsort(np.argsort(np.arange(n) // people, kind="stable"), kind="stable") / n
    margins: dict[str, Array] = {name: np.where(spot < share, 1.0, -1.0) for name, share in rights.items()}
    models = {name: margin for name, margin in margins.items() if name not in rules}
    labels = Labels(np.ones(n), users, users, np.ones(n, np.bool_))
    return verdict_of(models, {name: margins[name] for name in rules if name in margins}, labels, "people")


def test_a_rule_that_does_as_well_decides_and_not_the_broken_opponent() -> None:
    """The case that was told as a gain of 14 points: personal 65%, uniform 51, its own generic user 63, a rule 68."""
    found = judged(600, 6, {"personal": 0.65, UNIFORM: 0.51, GENERIC: 0.63, LONGEST: 0.68})
    assert (found.state, found.beside) == ("worse", LONGEST)
    assert judged(600, 6, {"personal": 0.65, UNIFORM: 0.51, LONGEST: 0.65}).state == "no better"
    assert judged(600, 6, {"personal": 0.65, UNIFORM: 0.51, LONGEST: 0.6}).state == "better"


@pytest.mark.parametrize(("n", "people", "enough"), [(7, 7, False), (30, 3, False), (30, 5, True), (29, 5, False)])
def test_too_few_to_say_anything(n: int, people: int, enough: bool) -> None:
    """Everything is right for the personal model, and wrong for all others: still nothing is said of so few."""
    found = judged(n, people, {"personal": 1.0, UNIFORM: 0.0, GENERIC: 0.0, SHUFFLED: 1.0})
    assert (found.state == "better") == enough
    assert (found.state == "too few") != enough


def test_intervals_are_the_paired_ones() -> None:
    draw = np.random.default_rng(0)
    users = np.array([f"p{i % 9}" for i in range(300)])
    p = np.where(draw.random(300) < 0.1, 0.5, 1.0)
    models = {name: draw.normal(0.3, 1.0, 300) for name in ("personal", GENERIC, SHUFFLED)}
    found = verdict_of(models, {LONGEST: draw.normal(0.1, 1.0, 300)}, Labels(p, users, users, p > 0), "people")
    generic, rule = found.against
    assert (generic.name, rule.name, rule.nats) == (GENERIC, LONGEST, None)
    ours, theirs = models["personal"], models[GENERIC]
    assert generic.points == estimate(correct(ours, p) - correct(theirs, p), users)
    assert generic.nats == estimate(nll(theirs, p) - nll(ours, p), users)
    assert found.shuffled is not None
    assert found.shuffled.nats == estimate(nll(models[SHUFFLED], p) - nll(ours, p), users)


def test_a_model_that_differs_by_rounding_alone_is_not_worse() -> None:
    draw, users = np.random.default_rng(0), np.array([f"p{i % 30}" for i in range(300)])
    p, margin = np.ones(300), draw.normal(1.0, 1.0, 300)
    models = {PERSONAL: margin - 1e-7, UNIFORM: margin, GENERIC: margin}
    found = verdict_of(models, {}, Labels(p, users, users, p > 0), "people")
    assert all(a.nats is not None and a.nats.high < 0.0 for a in found.against)
    assert found.state == "no better"
    assert "worse" not in found.says


def test_who_is_at_chance_is_named() -> None:
    """600 comparisons of six people who are all alike: half right is chance, six tenths are not."""
    assert judged(600, 6, {"personal": 0.7, UNIFORM: 0.5, GENERIC: 0.6}).at_chance == (UNIFORM,)
    assert judged(600, 6, {"personal": 0.7, UNIFORM: 0.6}).at_chance == ()
    assert judged(600, 6, {"personal": 0.5, UNIFORM: 0.5}).at_chance == ("personal", UNIFORM)


@pytest.fixture
def run(tiny: str, tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "log.jsonl", opposed_people(16, 0, people=6))
    return train(
        TrainConfig(
            output_dir=str(tmp_path / "run"),
            data=DataConfig(path=str(tmp_path / "log.jsonl"), test_fraction=0.4),
            backbone=BackboneConfig(tiny, dtype="float32"),
            search=SearchConfig(folds=2, l2=[0.1], user_l2=[0.1], poolings=["mean"]),
        )
    )


def test_terminal_json_and_page_carry_it(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """First on the terminal; the audit's page has it too, word for word."""
    monkeypatch.setenv("COLUMNS", "1000")
    main(["evaluate", str(run)])
    shown = capsys.readouterr().out.splitlines()
    stored = json.loads((run / "evaluation-test.json").read_text(encoding="utf-8"))["verdict"]
    assert shown[1] == stored["says"]
    names = [a["name"] for a in stored["against"]]
    assert names == [UNIFORM, GENERIC, LONGEST, "length sign per user"]
    main(["audit", str(run)])
    assert stored["says"] in capsys.readouterr().out
    page = (run / "audit" / "index.html").read_text(encoding="utf-8")
    assert stored["says"] in page
    assert pool([run]).verdict.against[1].points.value == pytest.approx(stored["against"][1]["points"]["value"])


def test_pooled_runs_are_worded_by_the_worst_of_all_baselines(tmp_path: Path) -> None:
    """Two runs of nine people who gain 10 points over the uniform model, and none over the longest answer."""
    entry: Callable[[int], dict[str, float]] = lambda i: {  # noqa: E731
        "comparisons": 10, "ties": 0, "train_comparisons": 30,
        "personal": 0.7, UNIFORM: 0.6, LONGEST: 0.6 + 0.2 * (i % 2),
        "nats saved": 0.1,
    }  # fmt: skip
    for name in "ab":
        (tmp_path / name).mkdir()
        table = {f"p{i}": entry(i) for i in range(9)}
        write_json(tmp_path / name / "evaluation-test.json", {"per_user": table})
    found = pool([tmp_path / "a", tmp_path / "b"])
    assert found.everybody.gain.low > 0.0
    assert (found.verdict.state, found.verdict.beside) == ("no better", LONGEST)
    assert found.verdict.against[0].points == found.everybody.gain


def test_seven_comparisons_warn_of_nothing(run: Path) -> None:
    """Of so few, somebody else's taste that predicts as well as people's own shows nothing."""
    log = opposed_people(2, 4, people=4)[:7]
    result = evaluate_run(run, [replace(c, chosen=c.rejected, rejected=c.chosen) for c in log])
    assert result.verdict.shuffled is not None
    assert result.verdict.shuffled.nats is not None
    assert result.verdict.shuffled.nats.value < 0.0
    assert not any("warning" in note for note in notes(result))
    more = [replace(c, chosen=c.rejected, rejected=c.chosen) for c in opposed_people(20, 4, people=6)]
    assert any("warning" in note for note in notes(evaluate_run(run, more)))


@pytest.mark.parametrize(
    ("nats", "state", "words"),
    [
        ((0.3, 0.1, 0.5), "better", ""),
        ((0.3, -0.079, 0.74), "better", "too few users"),  # six users of two kinds: they are few, not unlearnt
        ((0.012, -0.005, 0.03), "no better", "too few users"),
        ((0.3, 0.0, 0.6), "better", "too few users"),
        ((0.002, -0.004, 0.008), "better", "warning: another user's parameters predict users as well as"),
        ((0.0, 0.0, 0.0), "better", "warning: another user's parameters predict users as well as"),
        ((-0.2, -0.6, 0.2), "better", "warning: another user's parameters predict users as well as"),
        ((-0.2, -0.3, -0.1), "better", "warning: another user's parameters predict users better than"),
        ((-0.2, -0.3, -0.1), "too few", ""),
        ((0.3, -0.079, 0.74), "too few", ""),
    ],
)
def test_the_note_on_shuffled_users_follows_its_interval(
    nats: tuple[float, float, float], state: Literal["better", "no better", "too few"], words: str
) -> None:
    even = interval(-0.1, 0.1)
    verdict = Verdict("", state, UNIFORM, (), (), Against(SHUFFLED, even, even, Estimate(*nats)))
    result = Evaluation(100, 50, 0, 6, 0, verdict, [], None, None, None, {})
    found = [note for note in notes(result) if "shuffled" in note or "another user" in note]
    assert len(found) == bool(words)
    assert all(words in note for note in found)
    assert any(note.startswith("warning") for note in found) == words.startswith("warning")

"""Newcomers after so many judgements: planted people, by hand, and who is left out."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from prm.cli import main
from prm.config import BackboneConfig, DataConfig, SearchConfig, TrainConfig, UserConfig
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.evaluation.cold_start import ColdStart, ColdStartStep, cold_start_run
from prm.evaluation.evaluate import evaluate
from prm.evaluation.new_users import affordable, new_users_of_run
from prm.evaluation.verdict import Against, verdict_on
from prm.io.tables import write_json, write_jsonl
from prm.metrics import Estimate
from prm.scoring.scorer import Scorer
from prm.training.run import train
from tests.planted import opposed_people


@pytest.fixture
def run(tiny: str, tmp_path: Path) -> Path:
    write_jsonl(tmp_path / "log.jsonl", opposed_people(60, 0, people=12))
    return train(
        TrainConfig(
            output_dir=str(tmp_path / "run"),
            data=DataConfig(path=str(tmp_path / "log.jsonl")),
            backbone=BackboneConfig(tiny, dtype="float32"),
            users=UserConfig("bayes", rank=12),
            search=SearchConfig(folds=2, l2=[1.0], layers=[2], poolings=["mean"]),
        )
    )


def newcomers(prompts: int = 60, people: int = 6) -> list[Comparison]:
    return [replace(c, user_id=f"new {c.user_id}") for c in opposed_people(prompts, 3, people=people)]


def test_planted_newcomers_are_learnt_step_by_step(run: Path) -> None:
    few = [replace(c, user_id="few") for c in newcomers(10, 1)]
    known = opposed_people(4, 5, people=2)
    result = cold_start_run(run, [*newcomers(), *few, *known], [0, 5, 25])
    assert (result.people, result.comparisons, result.left_out, result.known) == (6, 6 * 30, 1, 2)
    first, _, last = (step.rows[0].accuracy.value for step in result.steps)
    assert first == pytest.approx(result.steps[0].rows[1].accuracy.value, abs=0.05)  # nobody is known after none
    assert last > first + 0.08
    assert result.steps[0].gain_nll is not None
    assert abs(result.steps[0].gain_nll.value) < 0.01
    assert result.steps[2].gain_nll is not None
    assert result.steps[2].gain_nll.value > 0.02


def test_a_step_is_a_fit_and_an_evaluation(run: Path) -> None:
    """By time nothing is drawn: the first k of a person's earlier half, measured on the later one."""
    log = [replace(c, time=float(i)) for i, c in enumerate(newcomers(20, 1))]
    (step,) = cold_start_run(run, log, [4], by="time").steps
    scorer = Scorer.from_pretrained(run)
    scorer.fit_user("new p0", log[:4])
    alone = evaluate(scorer, log[10:], Scorer.from_pretrained(run / "uniform"))
    assert step.rows[0].accuracy.value == alone.row("personal").accuracy.value
    assert step.gain == alone.gain


def test_from_which_step_on_it_pays() -> None:
    """A step that gains before one that does not counts for nothing."""

    def at(after: int, low: float, low_nll: float) -> ColdStartStep:
        gain, saved = Estimate(0.1, low, 0.2), Estimate(0.1, low_nll, 0.2)
        verdict = verdict_on(gain, [Against("uniform, tuned", gain, gain, saved)], 99, 9)
        return ColdStartStep(after, verdict, [], gain, saved)

    def pays(*steps: ColdStartStep) -> int | None:
        return ColdStart(list(steps), 1, 1, 0, 0, "prompt").pays_from

    assert pays(at(1, 0.1, 0.1), at(5, -0.1, 0.1), at(10, 0.1, 0.1), at(20, 0.1, 0.1)) == 10
    assert pays(at(1, 0.1, 0.1), at(5, 0.1, -0.1)) is None
    assert pays(at(0, 0.1, 0.1)) == 0


def test_the_command_leaves_the_run_as_it_is(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_jsonl(tmp_path / "new.jsonl", newcomers())
    before = (run / "model.safetensors").read_bytes()
    main(["cold_start", str(run), str(tmp_path / "new.jsonl"), "--after", "0", "20"])
    printed = capsys.readouterr().out
    assert "6 users, 180 comparisons held out by prompt" in printed
    assert "from 20 training comparisons on" in printed
    assert (run / "model.safetensors").read_bytes() == before
    stored = json.loads((run / "cold_start-new.json").read_text(encoding="utf-8"))
    assert [step["after"] for step in stored["steps"]] == [0, 20]


def test_the_page_of_an_evaluation_has_the_curve_of_new_users(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Computed from the log, until `prm cold_start` has one; with a page, JSON alone is printed."""
    write_jsonl(tmp_path / "new.jsonl", [*newcomers(), *opposed_people(20, 5, people=6)])
    page, log = run / "pages" / "evaluation.html", str(tmp_path / "new.jsonl")
    main(["evaluate", str(run), log, "--json", "--page", str(page)])
    printed = json.loads(capsys.readouterr().out)
    assert {"data": log} | printed == json.loads((run / "evaluation-new.json").read_text(encoding="utf-8"))
    html = page.read_text(encoding="utf-8")
    assert "Fitted to 20 comparisons of each" in html  # half of 60; 50 are too many
    assert f"prm evaluate {run} {log} --json --page {page}" in html
    assert json.loads((run / "config.json").read_text())["digest"] in html
    main(["cold_start", str(run), log, "--after", "0", "10", "--page", str(tmp_path / "cold.html")])
    assert f"written to {tmp_path / 'cold.html'}" in " ".join(capsys.readouterr().out.split())
    main(["evaluate", str(run), log, "--page", str(page)])
    for path in (page, tmp_path / "cold.html"):
        assert "Fitted to 10 comparisons of each" in path.read_text(encoding="utf-8")


def test_stored_curves_are_checked_and_the_one_of_the_log_wins(run: Path) -> None:
    result = cold_start_run(run, newcomers(), [0, 5]).to_dict()
    for name, people in (("new", 6), ("other", 7)):
        write_json(run / f"cold_start-{name}.json", result | {"data": f"{name}.jsonl", "people": people})
    os.utime(run / "cold_start-new.json", (1, 1))
    found = [new_users_of_run(run, Path(f"{name}.jsonl"), []) for name in ("new", "other", "else")]
    assert [(curve.data, curve.people) for curve in found if curve] == [
        ("new.jsonl", 6),
        ("other.jsonl", 7),
        ("other.jsonl", 7),
    ]
    (run / "cold_start-other.json").write_text('{"steps": 3}')
    with pytest.raises(PrmError, match=r"cold_start-other\.json"):
        new_users_of_run(run, Path("other.jsonl"), [])


@pytest.mark.parametrize(
    ("counts", "after"),
    [
        ([40] * 5, [0, 1, 2, 5, 10, 20]),
        ([40] * 4, []),  # too few people
        ([1] * 50, []),  # nothing to hold out
        ([40] * 5 + [4] * 5, [0, 1, 2, 5, 10, 20]),
        ([40] * 5 + [4] * 7, [0, 1, 2]),  # of twelve, six are needed
        ([2] * 9, [0, 1]),
        ([], []),
    ],
)
def test_what_a_log_affords(counts: list[int], after: list[int]) -> None:
    assert affordable(counts) == after


def test_nobody_new(run: Path) -> None:
    with pytest.raises(PrmError, match=r"\b20\b.* comparisons|comparisons.*\b20\b"):
        cold_start_run(run, opposed_people(60, 0, people=2), [20])
    with pytest.raises(PrmError, match=r"\b0 or\b|at least 0\b"):
        cold_start_run(run, newcomers(), [-1])

"""Several evaluated runs taken together."""

import json
from pathlib import Path
from typing import Any

import pytest

from prm.errors import PrmError
from prm.evaluation.pooled_runs import pool
from prm.io.tables import write_json


def entry(n: int, personal: float | None, uniform: float | None, saved: float, ties: int = 0, learnt: int = 9) -> Any:
    return {
        "comparisons": n,
        "ties": ties,
        "train_comparisons": learnt,
        "personal": personal,
        "uniform, tuned": uniform,
        "nats saved": saved,
    }


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    """Ann is in both runs; bob has one comparison, a tie."""
    tables = [
        {"ann": entry(4, 1.0, 0.5, 0.1), "bob": entry(1, None, None, 0.2, ties=1, learnt=60)},
        {"ann": entry(6, 0.5, 1.0, -0.05), "cid": entry(5, 0.75, 0.5, 0.3, ties=1, learnt=51)},
    ]
    for name, table in zip("ab", tables, strict=True):
        (tmp_path / name).mkdir()
        write_json(tmp_path / name / "evaluation-test.json", {"per_user": table})
    return [tmp_path / "a", tmp_path / "b"]


def test_by_hand(runs: list[Path]) -> None:
    """Ann gains 2 of 4 and loses 3 of 6; cid gains 1 of the 4 that are no ties; bob counts in likelihoods alone."""
    pooled = pool(runs)
    found = pooled.everybody
    assert (pooled.runs, found.people, found.comparisons) == (2, 3, 16)
    assert found.gain.value == pytest.approx((2 - 3 + 1) / 14)
    assert found.gain_macro.value == pytest.approx((-1 / 10 + 1 / 4) / 2)
    assert found.gain_nll.value == pytest.approx((0.4 - 0.3 + 0.2 + 1.5) / 16)
    assert found.gain_nll_macro.value == pytest.approx((0.1 / 10 + 0.2 + 0.3) / 3)
    assert found.gain_nll.low < found.gain_nll.value < found.gain_nll.high


def test_a_run_that_was_trained_on_what_it_is_evaluated_on_is_named(
    runs: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = runs[1] / "evaluation-test.json"
    write_json(path, json.loads(path.read_text()) | {"overlap": {"own": 3, "others": 0}})
    pool(runs)
    assert [record.args for record in caplog.records] == [(runs[1], 3, "test")]


def test_people_of_whom_enough_was_learnt(runs: list[Path]) -> None:
    found = pool(runs, more_than=51).everybody
    assert (found.people, found.comparisons) == (1, 1)
    with pytest.raises(PrmError, match=r" 2 runs .* 60 "):
        pool(runs, more_than=60)


def test_people_by_what_was_learnt_of_them(runs: list[Path]) -> None:
    """Ann's 9 judgements are in one group; those of bob (60) and cid (51) in another: 0.2 + 5 x 0.3 nats of 6."""
    few, many = pool(runs).by_train_comparisons
    assert (few[0], few[1], few[2].people, few[2].comparisons) == (5, 9, 1, 10)
    assert (many[0], many[1], many[2].people, many[2].comparisons) == (50, 99, 2, 6)
    assert few[2].gain.value == pytest.approx(-1 / 10)
    assert many[2].gain_nll.value == pytest.approx(1.7 / 6)


def test_from_how_many_judgements_it_pays(tmp_path: Path) -> None:
    """Three groups of three people: the first gains nothing, the second in likelihood alone, the third in both."""
    table: dict[str, Any] = {}
    for learnt, personal, saved in ((3, 0.5, -0.1), (12, 0.5, 0.1), (60, 1.0, 0.2)):
        table |= {f"p{learnt}-{i}": entry(4, personal, 0.5, saved + i / 100, learnt=learnt) for i in range(3)}
    (tmp_path / "a").mkdir()
    write_json(tmp_path / "a" / "evaluation-test.json", {"per_user": table})
    found = pool([tmp_path / "a"])
    assert found.pays_from == (50, 10)
    assert found.to_dict()["pays_from"] == (50, 10)


def test_a_thousand_people_are_pooled(tmp_path: Path) -> None:
    """Their number has a comma where it is shown."""
    (tmp_path / "a").mkdir()
    table = {f"p{i}": entry(4, 1.0, 0.5, 0.1) for i in range(1000)}
    write_json(tmp_path / "a" / "evaluation-test.json", {"per_user": table})
    found = pool([tmp_path / "a"])
    assert (found.everybody.people, found.verdict.state) == (1000, "better")


def test_another_log_than_the_held_out_part(runs: list[Path]) -> None:
    (runs[0] / "evaluation-test.json").rename(runs[0] / "evaluation-new.json")
    assert pool(runs[:1], "new").everybody.people == 2


def test_a_run_that_cannot_be_pooled_is_named(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(PrmError, match=r"/c: no such folder"):
        pool([*runs, tmp_path / "c"])
    (tmp_path / "c").mkdir()
    with pytest.raises(PrmError, match=r"c/evaluation-test[.]json"):
        pool([*runs, tmp_path / "c"])
    (tmp_path / "d").mkdir()
    write_json(
        tmp_path / "d" / "evaluation-test.json", {"per_user": {"ann": {"comparisons": 3, "ties": 0, "personal": 0.5}}}
    )
    with pytest.raises(PrmError, match=r"d/evaluation-test[.]json.*'nats saved'"):
        pool([*runs, tmp_path / "d"])

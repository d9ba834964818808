"""`prm compare` from a log to a page, resumed, and the YAML that it writes, trained and scored."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prm.cli import main
from prm.evaluation.evaluate import evaluate
from prm.io.tables import write_jsonl
from prm.scoring.scorer import Scorer
from tests.planted import opposed_people

QUICK = (
    "--folds 2 --search.folds 2 --search.layers [2] --search.poolings [mean] --search.l2 [1.0] --search.user_l2 [1.0]"
)


@pytest.fixture
def command(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command on twelve people in two camps."""
    monkeypatch.chdir(tmp_path)
    log = [replace(c, user_text=f"I am {c.user_id}.") for c in opposed_people(30, 0, people=12)]
    write_jsonl(tmp_path / "log.jsonl", log)
    models = ["--models", "[length_sign, individual, stack]"]
    return ["compare", "log.jsonl", "--backbone.name", tiny, "--backbone.dtype", "float32", *QUICK.split(), *models]


def test_a_log_becomes_a_page_and_settings_that_train(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    main([*command, "--json"])
    result = json.loads(capsys.readouterr().out)
    assert result["train"] in ("individual", "stack")
    assert {row["name"] for row in result["rows"]} >= {"uniform", "length_sign", "individual", "stack"}
    assert [step["after"] for step in result["new_users"]] == [0, 1, 2, 5, 10]  # nobody has 20 training comparisons
    page = Path("runs/compare/index.html").read_text()
    assert "follows people" in page
    assert "users:" in page  # the settings
    main(["train", "runs/compare/train.yaml", "--search.folds", "2", "--backbone.dtype", "float32"])
    scorer = Scorer.from_pretrained("runs/compare/run")
    assert scorer.checkpoint.settings.user_text == "unread"  # as in the comparison
    assert evaluate(scorer, opposed_people(30, 0, people=12)).row("personal").accuracy.value > 0.7  # on what it knows


def test_a_second_call_prints_what_was_kept_and_other_settings_are_refused(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(command)
    first = capsys.readouterr().out
    assert "next: prm train" in first
    times = {path: path.stat().st_mtime_ns for path in Path("runs/compare/parts").iterdir()}
    main(command)
    assert capsys.readouterr().out == first
    assert times == {path: path.stat().st_mtime_ns for path in Path("runs/compare/parts").iterdir()}
    with pytest.raises(SystemExit):
        main([*command, "--seed", "1"])
    assert "seed" in capsys.readouterr().err
    main([*command, "--seed", "1", "--overwrite", "true"])
    assert all(times.get(path) != path.stat().st_mtime_ns for path in Path("runs/compare/parts").iterdir())

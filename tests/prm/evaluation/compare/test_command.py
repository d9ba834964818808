"""`prm compare` from a log to a page, resumed, and the YAML that it writes, trained and scored."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from prm.cli import main
from prm.data.comparison import Comparison
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
    assert "follows users" in page
    assert "output_dir" in page  # the settings
    main(["train", "runs/compare/train.yaml", "--search.folds", "2", "--backbone.dtype", "float32"])
    scorer = Scorer.from_pretrained("runs/compare/run")
    assert scorer.checkpoint.settings.user_text == "unread"  # as in the comparison
    assert evaluate(scorer, opposed_people(30, 0, people=12)).row("personal").accuracy.value > 0.7  # on what it knows


def test_where_a_rule_predicts_best_there_is_nothing_to_train(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """And no YAML of an earlier comparison stays."""
    draw, words = random.Random(0), ["fox", "king", "mix", "lazy", "dog"]
    pairs = [[" ".join(draw.choices(words, k=k)) for k in (draw.randint(5, 9), 4)] for _ in range(40)]  # long, short
    log = [
        Comparison(f"p{person}", f"question {i}?", pair[person % 2], pair[1 - person % 2])
        for i, pair in enumerate(pairs)
        for person in range(12)
    ]
    write_jsonl("log.jsonl", log)
    recipe = Path("runs/compare/train.yaml")
    recipe.parent.mkdir(parents=True)
    recipe.write_text("# of an earlier comparison\n")
    main([*command, "--overwrite", "true"])
    out = capsys.readouterr().out
    assert (out.count("next: "), "prm train runs" in out) == (1, False)
    assert f"{recipe} is not written" in out
    assert not recipe.exists()
    kept = json.loads(Path("runs/compare/compare.json").read_text())
    assert (kept["train"], kept["baselines"]) == (None, {"length_sign": 2})
    assert "output_dir" not in Path("runs/compare/index.html").read_text()  # no settings


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
    Path("runs/compare/started.json").unlink()  # nothing says whose the parts are
    with pytest.raises(SystemExit):
        main([*command, "--overwrite", "true"])
    assert any(Path("runs/compare/parts").iterdir())

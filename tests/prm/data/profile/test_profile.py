"""The whole description: order, JSON, faults, page and command."""

import json
import random
import subprocess
import sys
from collections import Counter
from math import inf
from pathlib import Path

import pytest

from prm.cli import main
from prm.data.profile import describe
from prm.io.tables import write_jsonl
from prm.report import write_profile
from prm.report.text.profile import sections
from tests.planted import opposed_people
from tests.prm.cli.test_arguments import error_of
from tests.prm.data.profile.logs import described, encoder_of, judged, log_of, many


def test_the_order_of_the_rows_changes_nothing(tiny: str) -> None:
    draw = random.Random(1)
    rows = [c for c in opposed_people(40, 1, people=12) if draw.random() < 0.8]
    rows += [
        judged(f"p{i % 12}", f"q{i % 7}", draw.random() < 0.6, chosen_first=draw.random() < 0.5) for i in range(200)
    ]
    rows += [judged(f"p{i}", "t", draw.random() < 0.5, p_chosen=0.5) for i in range(9)]
    first = describe(log_of(rows), encoder_of(tiny, 64)).to_dict()
    draw.shuffle(rows)
    assert describe(log_of(rows), encoder_of(tiny, 64)).to_dict() == first


def test_to_dict_survives_json() -> None:
    for rows in (opposed_people(20, 0), many("a", 1)):
        written = described(rows).to_dict()
        found = json.loads(json.dumps(written, allow_nan=False))
        assert found == written
    assert found["longer_won"]["share"] == {"value": 1.0, "low": None, "high": None}
    assert found["people"]["comparisons"] == 1
    assert described(many("a", 1)).longer_won.share.low == -inf  # type: ignore[union-attr]


def test_faults_are_counted_and_listed() -> None:
    skipped = [{"row_of": f"log, line {i}", "fault": f"fault {i}", "row": {}} for i in range(7)]
    rows = [judged("Ann", "1"), judged("ann ", "1"), judged("bob", "1"), judged("bob", "1", False)]
    faults = describe(log_of(rows, skipped=skipped, pairs=Counter({"kept": 4, "said twice": 3})), None).faults
    assert (faults.bad, faults.duplicates, faults.contradictions, faults.alike) == (7, 3, 1, 1)
    assert [bad["fault"] for bad in faults.first_bad] == [f"fault {i}" for i in range(5)]
    assert faults.first_alike == (("Ann", "ann "),)


def test_page_holds_the_numbers_and_no_foreign_markup(tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>"
    skipped = [{"row_of": "log, line 3", "fault": f"bad {evil}", "row": {}, "user_id": evil}]
    rows = [*opposed_people(30, 0), *many(f"{evil}A", 12, False), *many(f"{evil}a", 12)]
    found = describe(log_of(rows, skipped=skipped), None)
    write_profile(found, tmp_path / "new" / "page", f"log {evil}")
    page = (tmp_path / "new" / "page" / "index.html").read_text()
    assert page.count("<script") == 1  # our own
    assert "&lt;script&gt;" in page
    for text in ("<b>6</b>users", "<b>144</b>comparisons", "30-99", "66.7%"):
        assert text in page, text
    assert page.count("<svg") == 2
    for section in sections(found):
        assert section.title in page
        assert all(len(row) == len(section.header) for row in section.rows)
    kept = json.loads((tmp_path / "new" / "page" / "describe.json").read_text())
    assert kept == {"data": f"log {evil}"} | found.to_dict()


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl("log.jsonl", [*opposed_people(30, 0), judged("p0", "dup")])
    return tmp_path


def test_command_prints_tables_json_and_writes_a_page(log: Path, tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["data", "describe", "log.jsonl", "--backbone", tiny, "--max_length", "64", "--output", "page"])
    shown = capsys.readouterr().out
    for text in ("121 rows", "Yes, by the rule of thumb", "at most 64 tokens", "page/index.html"):
        assert text in shown
    main(["data", "describe", "log.jsonl", "--backbone", tiny, "--max_length", "64", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert {"data": "log.jsonl"} | printed == json.loads((log / "page" / "describe.json").read_text())
    assert printed["people"]["people"] == 4
    assert printed["tokens"]["max_length"] == 64
    main(["data", "describe", "log.jsonl", "--backbone", "none", "--json"])
    assert json.loads(capsys.readouterr().out)["tokens"] is None


def test_command_takes_the_flags_of_the_log(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"user_id": "a", "prompt": "q", "response": text, "rating": i} for i, text in enumerate(("x", "y", "z"))]
    rows += [{"user_id": "a", "prompt": "q", "response": "w", "rating": "high"}]
    write_jsonl("rated.jsonl", rows)
    command = ["data", "describe", "rated.jsonl", "--data.source", "ratings", "--backbone", "none"]
    assert "rated.jsonl, line 4" in error_of(capsys, *command)
    main([*command, "--data.on_bad_row", "skip", "--data.min_rating_difference", "2"])
    shown = capsys.readouterr().out
    assert "bad: rated.jsonl, line 4" in shown
    assert "1 kept" in shown


def test_command_mistakes_are_one_clear_line(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.jsonl" in error_of(capsys, "data", "describe", "none.jsonl", "--backbone", "none")
    assert "no/such" in error_of(capsys, "data", "describe", "log.jsonl", "--backbone", "no/such")
    assert "--max_length" in error_of(capsys, "data", "describe", "log.jsonl", "--max_length", "0")
    for arguments in (["data"], ["data", "describe"], ["data", "discribe", "log.jsonl"]):
        message = error_of(capsys, *arguments)
        assert message.startswith("error: ")
        assert "\n" not in message
    assert "data.min_rating_difference" in error_of(
        capsys, "data", "describe", "log.jsonl", "--data.min_rating_difference", "1", "--backbone", "none"
    )
    assert "sauce" in error_of(capsys, "data", "describe", "log.jsonl", "--data.sauce", "ratings")


def test_without_a_backbone_no_torch_is_loaded(log: Path) -> None:
    code = (
        "import sys\nfrom prm.cli import main\n"
        "main(['data', 'describe', 'log.jsonl', '--backbone', 'none', '--output', 'page'])\n"
        "sys.exit(3 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

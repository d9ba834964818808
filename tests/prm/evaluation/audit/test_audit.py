"""The whole audit: planted losers, order, hostile input, page and command."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prm.cli import main
from prm.config import BackboneConfig, DataConfig, SearchConfig, TrainConfig
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.evaluation.audit import Audit, audit
from prm.io.tables import write_jsonl
from prm.report import write_audit
from prm.report.text.audit import headline, sections
from prm.scoring.forget_user import forget_user
from prm.training.run import train
from tests.planted import opposed_people
from tests.prm.cli.test_arguments import error_of
from tests.prm.evaluation.audit.fakes import FakeScorer, by_length, judged

LONG, SHORT = "one two three four cycling", "one damn two"


def planted() -> list[Comparison]:
    """ann takes the longer answer, bob the shorter; both speak of cycling."""
    rows = [judged("ann", f"q{i}", LONG, SHORT, user_text="I like cycling.") for i in range(12)]
    rows += [judged("bob", f"q{i}", SHORT, LONG, user_text="I hate cycling.") for i in range(12)]
    return [*rows, judged("zoe", "q", LONG, SHORT), judged("ann", "t", LONG, SHORT, p_chosen=0.5)]


def audited(log: list[Comparison], users: tuple[str, ...] = ("ann", "bob"), **more: Any) -> Audit:
    """A personal model that gives everybody the longer answer, and the answer with their own words before all."""

    def reward(prompt: str, response: str, user: str | None, text: str) -> float:
        return len(response.split()) + 10.0 * ("cycling" in text and "cycling" in response)

    uniform = FakeScorer([], by_length(-1))
    return audit(FakeScorer(users, reward), uniform, log, **more)  # type: ignore[arg-type]


def test_the_person_that_loses_is_named_with_what_it_costs() -> None:
    """ann gets her taste from the personal model, and bob hers; the uniform model gives everybody the shorter one."""
    found = audited(planted(), phrases=["damn"])
    assert [(p.user, p.gain, p.picks_verdict) for p in found.people.people] == [
        ("bob", -1.0, "loses"),
        ("ann", 1.0, "gains"),
    ]
    assert [p.user for p in found.people.losers] == ["bob"]
    assert (found.unknown_users, found.comparisons, found.ties) == (1, 26, 1)
    assert "Of 2 users, 1 clearly gain by personalisation (by log loss), 1 clearly lose, and for 0" in headline(found)
    noted = " ".join(note for section in sections(found) for note in section.notes)
    row = next(part for part in sections(found) if part.title == "Users that clearly lose").rows
    assert [cells[:5] for cells in row] == [("bob", "12", "-100.0", "0, 12", "< 0.001")]
    assert "lowest accuracy, of users with 10 or more comparisons: bob, 0.0% of 12 (uniform: 100.0%)" in noted
    assert found.drift.agreement.value == 0
    assert found.length is not None
    assert found.length.excess.value == pytest.approx(1 - 13 / 25)
    assert found.echo is not None
    assert (found.echo.comparisons, found.echo.with_text.pairs) == (24, 24)  # type: ignore[union-attr]
    assert found.echo.shift.value == 0  # type: ignore[union-attr]
    assert found.flagged is not None
    assert [(one.user, one.picks["personal"]) for one in found.flagged.people] == [("ann", 0), ("bob", 0), ("zoe", 0)]
    assert [one.picks["uniform, tuned"] for one in found.flagged.people] == [13, 12, 1]


def test_a_planted_sycophant_is_found() -> None:
    """The model wants it short, unless an answer repeats what the person says of themselves: right for ann alone."""

    def reward(prompt: str, response: str, user: str | None, text: str) -> float:
        return 10.0 * ("cycling" in text and "cycling" in response) - len(response.split())

    uniform = FakeScorer([], by_length(-1))
    echo = audit(FakeScorer(["ann", "bob"], reward), uniform, planted()).echo  # type: ignore[arg-type]
    assert echo is not None
    assert echo.shift is not None
    assert (echo.shift.value, echo.gain.value) == (1.0, 0.0)
    assert echo.with_text is not None
    assert echo.with_text.people.value == 0.5
    assert echo.with_text.excess.value == 0.5


def test_the_order_of_the_rows_changes_nothing() -> None:
    log = planted()
    first = audited(log, phrases=["damn"]).to_dict()
    random.Random(0).shuffle(log)
    assert audited(log, phrases=["damn"]).to_dict() == first


def test_one_person_without_words_or_views_of_their_own_is_audited() -> None:
    rows = [replace(c, user_text="") for c in planted() if c.user_id == "ann"][:3]
    for log in (rows, rows[:1], [replace(rows[0], p_chosen=0.5)], [judged("ann", "q", "a b", "b a")]):
        found = audited(log)
        assert (found.echo, found.flagged) == (None, None)
        assert "Of 1 user, 0 clearly gain" in headline(found)
        assert json.loads(json.dumps(found.to_dict(), allow_nan=False))
        assert all(len(row) == len(part.header) for part in sections(found) for row in part.rows)


def test_where_nobody_loses_the_page_says_so_and_what_was_measured() -> None:
    """bob is served as before, and a little less surely: a loss as measured, which one prompt cannot make sure."""
    log = [judged("bob", "q", SHORT, LONG) for _ in range(10)]
    found = audit(FakeScorer(["bob"], by_length(-0.5)), FakeScorer([], by_length(-1)), log)  # type: ignore[arg-type]
    part = next(part for part in sections(found) if part.title == "Users that clearly lose")
    assert part.rows == ()
    assert "no user clearly loses" in part.notes[0]
    # two words fewer: margins 1 and 2, log(1 + e^-1) - log(1 + e^-2) = 0.186
    assert (
        "as measured, 1 of 1 users with 10 or more comparisons lose, 0.186 nats per comparison on average"
        in part.notes[1]
    )


def test_nobody_known_is_an_error() -> None:
    with pytest.raises(PrmError, match="knows none"):
        audited(planted(), users=("mia",))


def test_page_holds_the_numbers_and_no_foreign_markup(tmp_path: Path) -> None:
    evil = "<script>$x_$</script>"
    log = [replace(c, user_id=c.user_id + evil) for c in planted()]
    found = audited(log, users=(f"ann{evil}", f"bob{evil}"), phrases=[evil, "damn"])
    write_audit(found, tmp_path / "new" / "audit", f"run {evil}")
    page = (tmp_path / "new" / "audit" / "index.html").read_text()
    assert page.count("<script") == 1  # our own
    assert page.count("<svg") == 3  # too few comparisons for a picture of reliability
    for section in sections(found):
        assert section.title.replace("'", "&#39;") in page
    assert "&lt;script&gt;" in page


@pytest.fixture
def run(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_jsonl("log.jsonl", opposed_people(24, 0, people=2))
    write_jsonl("new.jsonl", [replace(c, user_text="I am a king.") for c in opposed_people(12, 4, people=2)])
    config = TrainConfig(
        output_dir="run",
        data=DataConfig(path="log.jsonl"),
        backbone=BackboneConfig(tiny, dtype="float32"),
        search=SearchConfig(folds=2, l2=[0.1], user_l2=[0.1], poolings=["mean"]),
    )
    return train(config)


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables within 100 columns, JSON, a page; all of it goes when somebody is forgotten."""
    monkeypatch.setenv("COLUMNS", "150")
    Path("words.txt").write_text("king\n")
    main(["audit", str(run), "new.jsonl", "--words", "words.txt"])
    shown = capsys.readouterr().out
    for text in (
        "gain or lose",
        "Unknown users",
        "differs in length",
        "stated false views",
        "User texts",
        "is flagged",
    ):
        assert text in shown, text
    assert max(len(line) for line in shown.splitlines() if line[:1] in "│┃┏┌") <= 100
    assert (run / "audit" / "index.html").is_file()
    main(["audit", str(run), "new.jsonl", "--words", "words.txt", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert {"data": "new.jsonl"} | printed == json.loads((run / "audit-new.json").read_text())
    assert [p["user"] for p in printed["people"]["people"]] in (["p0", "p1"], ["p1", "p0"])
    forget_user(run, "p0")
    assert not list(run.glob("audit*"))


def test_command_mistakes_are_one_clear_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.txt").write_text("\n")
    assert "empty.txt" in error_of(capsys, "audit", str(run), "new.jsonl", "--words", "empty.txt")
    assert "test.jsonl" in error_of(capsys, "audit", str(run))
    assert "no-such-run" in error_of(capsys, "audit", "no-such-run", "new.jsonl")
    alone = str(run / "uniform")
    assert "--against" in error_of(capsys, "audit", alone, "new.jsonl")
    assert "knows none" in error_of(capsys, "audit", alone, "new.jsonl", "--against", alone)

"""Tables on a terminal of 80 columns."""

from collections.abc import Sequence

import pytest

from prm.report.section import Section
from prm.report.terminal import laid_out, show

HEADER = ("user", "judged", "uniform %", "personal %", "points", "+, -", "nats saved", "picks", "nats")
FIGURES = ("100", "50.0", "60.0", "+10.0", "12, 14", "-0.350 ± 0.864", "?", "?")


def printed(capsys: pytest.CaptureFixture[str], header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    show(*laid_out([Section("title", tuple(header), tuple(tuple(row) for row in rows))]))
    return capsys.readouterr().out.splitlines()


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def test_long_ids_are_cut_in_the_middle_and_each_person_stays_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """As crowd workers have them: alike at their start, 24 characters."""
    ids = [f"5f2b1c9e8d7a4b3c2d1e0{n}" for n in ("9ad", "77c", "111")]
    lines = printed(capsys, HEADER, [(user, *FIGURES) for user in [*ids, "ann"]])
    for cut in ("5f2b1…1e09ad", "5f2b1…1e077c", "5f2b1…1e0111", "ann"):
        (line,) = [line for line in lines if cut in line]
        assert line.split()[1:] == " ".join(FIGURES).split()
    assert max(map(len, lines)) <= 80
    assert "personal %" in lines[2]


def test_what_could_not_be_computed_is_one_line_without_a_heading(capsys: pytest.CaptureFixture[str]) -> None:
    show(*laid_out([Section("Words", (), (), ("no list",), absent=True), Section("Formats", (), (), absent=True)]))
    assert capsys.readouterr().out.splitlines() == ["", "Words: no list"]


def test_ids_that_differ_in_the_middle_alone_stay_apart(capsys: pytest.CaptureFixture[str]) -> None:
    ids = [f"worker-of-this-study-{n}-at-the-university" for n in "12"]
    lines = printed(capsys, ("user", "pairs"), [(user, "3") for user in ids])
    assert len({line for line in lines if "worker" in line}) == 2


def test_no_other_column_is_cut_and_a_table_that_fits_keeps_its_lines(capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, ("", "share"), [("votes predicted by those who agreed before", "50.0%")])
    assert any("│ votes predicted by those who agreed before │" in line for line in lines)


def test_a_file_gets_whole_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of tables and of text: nobody drags a file wider, and `grep` reads lines."""
    monkeypatch.delenv("COLUMNS")
    lines = printed(capsys, ("", *HEADER[1:]), [("a name of a model " * 5, *FIGURES)])
    assert any("│ " + "a name of a model " * 5 in line and "-0.350 ± 0.864" in line for line in lines)
    show("a word " * 40)
    assert capsys.readouterr().out.rstrip() == ("a word " * 40).rstrip()

"""What is said of the people that scores are asked for."""

from collections.abc import Mapping

import pytest

from prm.scoring.user_warnings import warn_about_users


class Counts:
    """As much of a scorer as is asked: who is known, and what they rest on."""

    def __init__(self, counts: Mapping[str, int | None]):
        self.users, self.knows, self.judgements = list(counts), counts.__contains__, counts.get


def said(caplog: pytest.LogCaptureFixture, counts: Mapping[str, int | None], *asked: str | None) -> list[str]:
    caplog.clear()
    warn_about_users(Counts(counts), asked)  # type: ignore[arg-type]
    return caplog.messages


def test_people_who_rest_on_few_comparisons_are_named(caplog: pytest.LogCaptureFixture) -> None:
    counts = {"ann": 4, "bob": 5, "old run": None, "cat": 0}
    few = "fewer than 5 comparisons: "
    (line,) = said(caplog, counts, "ann", "bob", "old run", None, "ann")
    assert f"{few}'ann' (4); " in line
    assert said(caplog, counts, "bob", "old run", None) == []
    (line,) = said(caplog, {f"u{i}": i % 5 for i in range(7)}, *(f"u{i}" for i in range(7)))
    assert f"{few}'u0' (0), 'u1' (1), 'u2' (2) and 4 more " in line


def test_an_unknown_id_gets_the_similar_known_ones_as_a_suggestion(caplog: pytest.LogCaptureFixture) -> None:
    counts = {"anna": 9, "w0001": 9, "Ben": 9}
    assert said(caplog, counts, "ana", "ben", "w001", "anna") == [
        "warning: not in the model: 'ana' (did you mean 'anna'?), 'ben' (did you mean 'Ben'?), "
        "'w001' (did you mean 'w0001'?)"
    ]
    assert said(caplog, counts, "zoe", None, "w7", "") == []
    assert "'101.0' (did you mean '101'?)" in said(caplog, {"101": 9, "1010": 9}, "101.0")[0]

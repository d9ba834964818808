"""Verdicts out of free text."""

import pytest

from policy.judging.judges.prompts import read_verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Verdict: A", "A"),
        ("They like it brief.\n\nVerdict: B", "B"),
        ("**Verdict: A**", "A"),
        ("**Verdict:** TIE.", "TIE"),
        ("verdict - tie", "TIE"),
        ("Verdict: a tie", "TIE"),
        ("Verdict: Answer B", "B"),
        ("Verdict: 'A'\n", "A"),
        ("Verdict: A\nOn second thought,\nVerdict: B", "B"),
        ("Verdict: B\n\nThat is my answer.", "B"),
        ("Verdict: A and B are alike", None),
        ("Verdict: A or B or TIE", None),
        ("Verdict: Amsterdam", None),
        ("A", None),
        ("I prefer answer A", None),
        ("", None),
    ],
)
def test_verdicts(reply: str, verdict: str | None) -> None:
    assert read_verdict(reply) == verdict

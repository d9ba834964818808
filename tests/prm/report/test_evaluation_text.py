"""The words of an evaluation follow its figures."""

import re
from dataclasses import replace

import pytest

from prm.evaluation.page_details import details_of
from prm.metrics import Estimate
from prm.report.text import evaluation, evaluation_page
from prm.report.text.units import lower_by, lower_card
from tests.prm.report.pages import evaluated


def test_the_accuracy_is_of_the_comparisons_without_ties() -> None:
    found = replace(evaluated(), ties=6)
    decided = found.comparisons - 6
    numbers = re.findall(r"\d+(?:\.\d+)?", evaluation_page.lead(found).split("(95%")[0])
    assert numbers[1:] == [str(decided), "6", str(found.users)]
    assert str(decided) in evaluation_page.cards(found, details_of(found))[0][1]


@pytest.mark.parametrize(
    ("ends", "word", "numbers"),
    [
        ((0.146, 0.1, 0.2), "lower", ["0.146", "0.100", "0.200"]),
        ((-0.146, -0.2, -0.1), "higher", ["0.146", "0.100", "0.200"]),
        ((-0.146, -0.2, 0.1), "not clearly", ["0.146", "-0.100", "0.200"]),
        ((0.0004, 0.0001, 0.0004), "not clearly", ["0.000", "0.000", "0.000"]),
    ],
)
def test_words_for_a_log_loss_follow_sign_and_interval(
    ends: tuple[float, float, float], word: str, numbers: list[str]
) -> None:
    says, (number, what, interval) = lower_by(Estimate(*ends)), lower_card(Estimate(*ends))
    assert says.startswith(word)
    assert word in what
    assert re.findall(r"-?\d\.\d+", says) == re.findall(r"-?\d\.\d+", f"{number} {interval}") == numbers


def test_a_higher_log_loss_is_nowhere_lower_by_less_than_nothing() -> None:
    worse, found = Estimate(-0.146, -0.2, -0.1), evaluated()
    against = tuple(a if a.nats is None else replace(a, nats=worse) for a in found.verdict.against)
    found = replace(found, gain_nll=worse, verdict=replace(found.verdict, against=against))
    says = [
        evaluation_page.lead(found),
        *evaluation.notes(found),
        *(" ".join(c) for c in evaluation_page.cards(found, details_of(evaluated()))),
    ]
    told = [one for one in says if "0.146" in one]
    assert len(told) == 3
    assert all("higher" in one and "-0.146" not in one for one in told)

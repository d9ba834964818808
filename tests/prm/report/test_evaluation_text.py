"""The words of an evaluation follow its figures."""

import re
from dataclasses import replace

from prm.evaluation.page_details import details_of
from prm.report.text import evaluation_page
from tests.prm.report.pages import evaluated


def test_the_accuracy_is_of_the_comparisons_without_ties() -> None:
    found = replace(evaluated(), ties=6)
    decided = found.comparisons - 6
    numbers = re.findall(r"\d+(?:\.\d+)?", evaluation_page.lead(found).split("(95%")[0])
    assert numbers[1:] == [str(decided), "6", str(found.users)]
    assert str(decided) in evaluation_page.cards(found, details_of(found))[0][1]

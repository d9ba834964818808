"""`ukp_sample`, the comparisons that come with the package: what they are, and that the stated rule chooses them."""

import json
from collections import Counter, defaultdict
from importlib import resources
from itertools import combinations

import pytest

from prm.config import SHIPPED, FeedbackConfig
from prm.data.comparison import Comparison
from prm.data.sources import read_feedback
from prm.data.sources.public import ukp_sample
from prm.errors import PrmError
from prm.io.rows import Row
from tests.conftest import read_log
from tests.paths import SHARED

REAL = SHARED / "data" / "ukpconvarg1"
FOLDER = resources.files(ukp_sample.__package__)
DEBATES = ("ban-plastic-water-bottles", "firefox-vs-internet-explorer", "should-physical-education", "tv-is-better")


def test_the_sample_is_read_by_its_name() -> None:
    raw = [json.loads(line) for line in FOLDER.joinpath("ukp_sample.jsonl").read_text(encoding="utf-8").splitlines()]
    found = read_feedback(FeedbackConfig(path=SHIPPED))
    assert [c.to_row() for c in found.comparisons] == raw
    assert found.rows == {"used": 200}
    assert found.account()[0] == ukp_sample.CARD.line
    assert found.skipped == found.notes == []
    per_user = Counter(row["user_id"] for row in raw)
    assert len(per_user) == 8
    assert min(per_user.values()) >= 20
    assert len({row["prompt"] for row in raw}) == 8
    assert not any("p_chosen" in row for row in raw)


def test_the_terms_lie_beside_the_sample() -> None:
    terms = FOLDER.joinpath("ukp_sample.LICENSE.txt").read_text(encoding="utf-8")
    assert all(word in terms for word in ("Habernal", "Gurevych", "UKP Lab", "licenses/by/4.0", "Changes."))


def test_the_sample_is_pairs_and_a_log_in_memory_is_not_the_sample() -> None:
    with pytest.raises(PrmError, match=r"data\.source"):
        FeedbackConfig(path=SHIPPED, source="ratings")
    row = {"user_id": "a", "prompt": "?", "chosen": "x", "rejected": "y"}
    found = read_feedback(FeedbackConfig(path=SHIPPED), rows=[Row("log", row)])
    assert (len(found.comparisons), found.card) == (1, None)


def choose(log: list[Comparison]) -> list[Comparison]:
    """The comparisons that the rule in `ukp_sample.LICENSE.txt` chooses."""
    by_user = defaultdict(list)
    for c in log:
        if str(c.metadata["debate"]).startswith(DEBATES):
            by_user[c.user_id].append(c)
    workers = [user for user in by_user if 20 <= len(by_user[user]) <= 40]
    eight = next(e for e in combinations(workers, 8) if sum(len(by_user[user]) for user in e) == 200)
    return [c for c in log if c.user_id in eight and str(c.metadata["debate"]).startswith(DEBATES)]


@pytest.mark.data
@pytest.mark.skipif(not REAL.is_dir(), reason="the data is not here")
def test_the_sample_is_what_the_rule_chooses() -> None:
    assert choose(read_log(REAL, "ukpconvarg1", ties="drop")) == read_log(SHIPPED)

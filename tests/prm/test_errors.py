"""What is said of a name that nobody knows."""

import pytest

from policy.compare.training import _with_needs
from prm.errors import PrmError, closest, counted, hint, listed
from prm.users.index import UserIndex
from rerank.curves.commands import common_users


class Knows:
    """As much of a scorer as is asked: who is known."""

    def __init__(self, users: list[str]):
        self.users, self.knows = users, users.__contains__


def test_the_closest_and_the_count() -> None:
    assert hint("ana", ["anna", "Ben"], "users") == "; did you mean 'anna'? (2 users known)"
    assert hint("ben", ["anna", "Ben"], "users") == "; did you mean 'Ben'? (2 users known)"
    assert hint("zoe", [f"w{i}" for i in range(1200)], "users") == " (1,200 users known)"
    assert [counted(n, "user") for n in (1, 1200)] == ["1 user", "1,200 users"]
    assert [counted(n, "pair") for n in (0, 1)] == ["0 pairs", "1 pair"]
    assert [counted(n, "batch") for n in (1, 2)] == ["1 batch", "2 batches"]
    assert listed(["sft", "dpo"]) == "sft, dpo"
    assert listed([f"dpo-{i}" for i in range(1200)]) == "1,200 others"


def test_what_two_names_share_by_their_place_makes_them_no_closer() -> None:
    assert [closest(given, ["log.jsonl"]) for given in ("lgo.jsonl", "tea.jsonl")] == ["log.jsonl", None]
    assert [closest(given, ["search.layers"]) for given in ("serach.layer", "search.nope")] == ["search.layers", None]


def test_a_message_names_no_more_than_one_of_many() -> None:
    """Whoever is asked for: in the index of a run, in two runs, among the runs of a comparison."""
    many = [f"worker-{i:04d}" for i in range(3000)]
    with pytest.raises(PrmError) as index:
        UserIndex(many).forget("worker-12")
    with pytest.raises(PrmError) as curve:
        common_users(Knows(many), Knows(many), ["worker-12"])  # type: ignore[arg-type]
    with pytest.raises(PrmError) as runs:
        _with_needs(["worker-12"], dict.fromkeys(many))  # type: ignore[arg-type]
    for error in (index, curve, runs):
        said = str(error.value)
        assert len(said) < 150
        assert "3,000" in said
        assert "'worker-12'" in said
        assert said.count("worker-") == 2

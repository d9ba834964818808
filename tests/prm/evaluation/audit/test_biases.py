"""Length, formats and flagged words: what the model prefers beyond what people do."""

from math import isnan
from pathlib import Path

import numpy as np
import pytest

from prm.errors import DataError
from prm.evaluation.audit.biases import correlation_with, find_bias, find_formats, find_length, has_it
from prm.evaluation.audit.flagged_words import find_flagged, finder, read_phrases
from tests.prm.evaluation.audit.fakes import judged

LONG, SHORT = "one two three four", "one two"


def test_a_leaning_worked_by_hand() -> None:
    """Six pairs: in four exactly one answer has it, one of them a tie. People took it in 1 of 3, the model in 2.5."""
    has = has_it([True, False, False, True, True, False], [False, True, True, False, True, False])
    p = np.array([1.0, 1.0, 1.0, 0.5, 1.0, 1.0])
    found = find_bias(
        "it", has, {"personal": np.array([2.0, -1.0, 0, 1, 1, 1]), "other": -np.ones(6)}, p, list("abcdef")
    )
    assert found is not None
    assert (found.pairs, found.people.value) == (3, pytest.approx(1 / 3))
    assert found.picks == pytest.approx({"personal": 2.5 / 3, "other": 2 / 3})
    assert found.excess.value == pytest.approx(1.5 / 3)
    assert find_bias("it", np.full(6, np.nan), {"personal": np.ones(6)}, p, list("abcdef")) is None


def test_a_planted_taste_for_length_is_found() -> None:
    """ann takes the longer half of the time and is always given it; bob takes the shorter and is given it."""
    log = [judged("ann", f"q{i}", *((LONG, SHORT) if i % 2 else (SHORT, LONG))) for i in range(10)]
    log += [judged("bob", f"q{i}", SHORT, LONG) for i in range(10)] + [judged("bob", "q", "same size", "size same")]
    words = np.array([len(c.chosen.split()) - len(c.rejected.split()) for c in log], np.float64)
    users = [c.user_id for c in log]
    margin = np.where(np.array(users) == "ann", words, -words)
    everyone, people = find_length(log, {"personal": margin, "uniform": -words}, np.ones(len(log)), users)
    assert everyone is not None
    assert (everyone.pairs, everyone.people.value, everyone.excess.value) == (20, 0.25, 0.25)
    ann, bob = people
    assert (ann.user, ann.pairs, ann.person, ann.picks) == ("ann", 10, 0.5, {"personal": 1.0, "uniform": 0.0})
    assert (bob.pairs, bob.person, bob.picks["personal"]) == (10, 0.0, 0.0)
    assert (ann.correlation, bob.correlation) == (pytest.approx(1), pytest.approx(-1))


def test_correlation_is_that_of_both_orders() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(1, 1, 50), draw.normal(2, 1, 50)
    both = np.corrcoef(np.concatenate([a, -a]), np.concatenate([b, -b]))[0, 1]
    assert correlation_with(a, b) == pytest.approx(both)
    assert isnan(correlation_with(np.zeros(3), np.ones(3)))


def test_a_planted_format_comes_first_and_rare_ones_are_left_out() -> None:
    """People take the list in half of the pairs, the model always; the code fence stands in too few pairs."""
    listed, plain = "- one\n- two.", "One and two."
    log = [judged(f"u{i % 5}", f"q{i}", *((listed, plain) if i % 2 else (plain, listed))) for i in range(40)]
    log += [judged("u0", f"c{i}", "```x```.", "An x.") for i in range(5)]
    users = [c.user_id for c in log]
    margin = np.array([1.0 if c.chosen == listed else -1.0 for c in log])
    found = {f.name: f for f in find_formats(log, {"personal": margin}, np.ones(len(log)), users)}
    assert found["has a list"].excess.value == pytest.approx(0.5)
    assert found["has a list"].pairs == 40
    assert "has a code fence" not in found


def test_phrases_are_whole_words_in_any_case_and_across_lines() -> None:
    flagged = finder(["damn", "gun law", "c++", "#tag"])
    for text in ("Damn it", "so DAMN.", "a gun\n law", "C++ is old", "see #tag."):
        assert flagged(text), text
    for text in ("goddamnit", "gun lawyer", "gun", "tag", "c + +", "é"):
        assert not flagged(text), text


def test_flagged_picks_worked_by_hand() -> None:
    """Four pairs of ann with one flagged answer: personal picks it in 3, generic in 1, uniform in half of one."""
    log = [judged("ann", f"q{i}", "a damn cat", "a cat") for i in range(3)]
    log += [judged("ann", "q3", "a cat", "a damn cat"), judged("bob", "q0", "a cat", "a dog")]
    users = [c.user_id for c in log]
    margins = {
        "personal": np.array([1.0, 1, -1, -1, 1]),
        "generic user": np.array([1.0, -1, -1, 1, 1]),
        "uniform, tuned": np.array([0.0, -1, -1, 1, 1]),
    }
    found = find_flagged(log, margins, np.ones(5), users, ["damn", "hell"])
    assert (found.phrases, found.answers) == (2, 1)
    (ann,) = found.people
    assert (ann.user, ann.pairs) == ("ann", 4)
    assert ann.picks == {"personal": 3, "generic user": 1, "uniform, tuned": 0.5}
    assert ann.only_personal == {"generic user": 2, "uniform, tuned": 2.5}
    assert found.leaning is not None
    assert found.leaning.people.value == 0.75
    assert find_flagged(log, margins, np.ones(5), users, ["nothing"]).leaning is None


def test_a_list_of_words_is_read_and_a_bad_one_named(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffdamn\r\n\n  gun   law \ndamn\n".encode())
    assert read_phrases(path) == ["damn", "gun law"]
    for content, fault in ((b"", "holds no word"), (b" \n\n", "holds no word"), (b"\xff\xfe", "not UTF-8")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"words.txt: {fault}"):
            read_phrases(path)
    with pytest.raises(DataError, match=r"none\.txt"):
        read_phrases(tmp_path / "none.txt")

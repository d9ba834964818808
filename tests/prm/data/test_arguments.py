"""Columns and texts that callers of the library pass; other kinds of lists are in `scoring/test_python_types.py`."""

from typing import Any

import pandas as pd
import pytest

from prm.data.arguments import require_columns, require_comparisons, require_user_text
from prm.data.comparison import Comparison
from prm.errors import DataError, PrmError


def test_columns_come_back_in_their_order_with_the_texts_last() -> None:
    given = require_columns(users=pd.Series(["a", None]), prompts=("x", "y"), user_texts=[None, "I like foxes"])
    assert given == [["a", None], ["x", "y"], ["", "I like foxes"]]
    assert require_columns(users=["a"]) == [["a"], [""]]
    assert require_columns(users=[], prompts=[]) == [[], [], []]


@pytest.mark.parametrize(
    ("columns", "lengths"),
    [
        ({"prompts": ["x"], "users": ["a", "b"]}, "1, 2"),
        ({"prompts": ["x"], "users": ["a"], "user_texts": []}, "1, 1, 0"),
        ({"users": ["a"], "user_texts": ["", ""]}, "1, 2"),
    ],
)
def test_unequal_lengths_are_refused(columns: dict[str, Any], lengths: str) -> None:
    with pytest.raises(PrmError, match=lengths):
        require_columns(**columns)


@pytest.mark.parametrize("text", [3, " ", ["I like foxes"], b"fox", float("nan"), "\ud800"])
def test_a_users_text_that_is_blank_or_no_text_is_refused(text: Any) -> None:
    with pytest.raises(DataError, match="user_text"):
        require_user_text("user_text", text)
    with pytest.raises(DataError, match="user_texts"):
        require_columns(users=["a"], user_texts=[text])


def test_comparisons_of_one_user() -> None:
    log = [Comparison("a", "x", "y", "z"), Comparison("b", "x", "y", "z")]
    assert require_comparisons(iter(log[:1]), "a") == log[:1]
    for given, user, place in ((log, "a", 1), (log, "b", 0), ([log[0].to_row()], "a", 0)):
        with pytest.raises(PrmError, match=rf"comparisons\[{place}\]"):
            require_comparisons(given, user)  # type: ignore[arg-type]
    with pytest.raises(PrmError, match="'user'"):
        require_comparisons([], "")

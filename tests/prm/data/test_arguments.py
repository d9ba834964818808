"""Columns and texts that callers of the library pass; other kinds of lists are in `scoring/test_python_types.py`."""

import re
from typing import Any

import numpy as np
import pandas as pd
import pytest

from prm.data.arguments import require_columns, require_user_text
from prm.data.comparison import Comparison
from prm.data.sources.in_memory import require_comparisons
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
    rows = [c.to_row() for c in log]
    nobodys: dict[str, object] = {"prompt": "x", "chosen": np.str_("y"), "rejected": "z", "user_text": pd.NA}
    assert require_comparisons([log[0], rows[0], nobodys], "a") == log[:1] * 3
    assert require_comparisons(pd.DataFrame(rows[:1]), "a") == log[:1]  # type: ignore[arg-type]
    misspelt = {("choosen" if name == "chosen" else name): value for name, value in rows[0].items()}
    bad: list[tuple[Any, str, str]] = [
        (log, "a", "comparisons[1]"), (log, "b", "comparisons[0]"), (rows, "a", "comparisons[1]"),
        (["x"], "a", "comparisons[0]"), ([rows[0], misspelt], "a", "comparisons[1]': field 'choosen'"),
        ([{"prompt": "x", "chosen": "y"}], "a", "comparisons[0]': field 'rejected'"),
        ([rows[0] | {"p_chosen": 2}], "a", "comparisons[0]': 'p_chosen'"),
    ]  # fmt: skip
    for given, user, named in bad:
        with pytest.raises(PrmError, match=re.escape(named)) as raised:
            require_comparisons(given, user)
        assert "'data." not in str(raised.value)  # no settings describe them
    with pytest.raises(PrmError, match="'user'"):
        require_comparisons([], "")

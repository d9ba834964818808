"""Logs are recognised by their columns: as they were read before, in one way only, or not without being told."""

import csv
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prm.config import DataConfig, FeedbackConfig
from prm.data.sources import Feedback, read_feedback
from prm.errors import DataError, PrmError
from prm.io.yaml_settings import feedback_like_a_runs
from tests.prm.data.sources.formats.logs import said, turns
from tests.prm.data.sources.logs import read, read_csv, refused
from tests.prm.data.sources.test_sources import FUZZ, LOGS, ROWS, SETTINGS, as_csv
from tests.prm.io.workbooks import write_workbook

# 0 or 1: which of two answers; 2: a tie
PLACES = [0, 1, 1, 0, 2, 1, 0, 0, 1, 2]
EXPECTED = [
    (f"{'=' if place == 2 else ''}p{i % 3}", f"q{i}", *((f"b{i}", f"a{i}") if place == 1 else (f"a{i}", f"b{i}")))
    for i, place in enumerate(PLACES)
]
Written = tuple[Any, Any, Any]  # how the first answer, the second and a tie are written


def log(
    columns: tuple[str, str], written: Written, pick: str = "winner", prompt: str = "prompt"
) -> list[dict[str, Any]]:
    """Ten rows, written in some way."""
    first, second = columns
    return [
        {"annotator": f"p{i % 3}", prompt: f"q{i}", first: f"a{i}", second: f"b{i}", pick: written[place]}
        for i, place in enumerate(PLACES)
    ]


AB, ONE_TWO, ZERO_ONE = ("response_a", "response_b"), ("answer1", "answer2"), ("response_0", "response_1")
SPELLINGS: list[tuple[tuple[str, str], Written]] = [
    (AB, ("a", "b", "tie")),
    (AB, ("A", " B ", "Tie")),
    (AB, ("response_a", "response_b", "both")),
    (AB, ("Response A", "Response B", "No preference")),
    (AB, ("model_a", "model_b", "tie (bothbad)")),
    (AB, ("model_a", "model_b", "both_bad")),
    (AB, ("Assistant A", "Assistant B", "equal")),
    (AB, ("[[A]]", "[[B]]", "[[tie]]")),
    (AB, ("A is better", "B is better", "Equally good")),
    (AB, ("left", "right", "draw")),
    (AB, ("first", "second", "neither")),
    (AB, (1, 2, "tie")),
    (AB, ("1", "2", "tie")),
    (ONE_TWO, (1, 2, "tie")),
    (ONE_TWO, (1.0, 2.0, "tie")),
    (ONE_TWO, ("answer1", "answer2", "same")),
    (ONE_TWO, ("Answer 1", "Answer 2", "a tie")),
    (ONE_TWO, ("A", "B", "tie")),
    (ZERO_ONE, (0, 1, "tie")),
    (ZERO_ONE, ("0", "1", "tie")),
    (("Answer A", "Answer B"), ("Answer A", "Answer B", "Tie")),
    (("outputLeft", "outputRight"), ("outputLeft", "outputRight", "none")),
]


@pytest.mark.parametrize(("columns", "written"), SPELLINGS)
def test_which_answer_was_chosen_is_read_in_common_words(
    tmp_path: Path, columns: tuple[str, str], written: Written
) -> None:
    rows = log(columns, written)
    found = read(tmp_path, rows, "auto")
    assert said(found) == EXPECTED
    assert found.rows == {"used": 10}
    as_csv(rows, tmp_path / "log.csv")
    table = read_feedback(FeedbackConfig(path=str(tmp_path / "log.csv")))
    assert table.comparisons == found.comparisons
    parts = ("read as 'picks'", "user_id from annotator", f"responses from {columns[0]} and {columns[1]}", "is a tie")
    assert all(part in found.read_as for part in parts)
    named = read(tmp_path, rows, "picks")  # the kind of feedback is named, and nothing else
    assert (named.comparisons, named.read_as) == (found.comparisons, found.read_as)
    if isinstance(written[0], str) and not written[0].isdigit():  # numbers count from 0 where all is named
        settled = {"user_id": "annotator", "responses": list(columns), "chosen": "winner"}
        assert read(tmp_path, rows, "picks", columns=settled).comparisons == found.comparisons


@pytest.mark.parametrize("kind", ROWS)
def test_a_kind_that_is_named_has_its_columns_under_common_names_too(tmp_path: Path, kind: str) -> None:
    """Of pairs without a prompt of that name, both texts may begin with it."""
    rows = ROWS[kind]
    other = {"user_id": "annotator", "prompt": "question"} if kind != "pairs" else {"user_id": "annotator"}
    found = read(tmp_path, [{other.get(name, name): value for name, value in row.items()} for row in rows], kind)
    assert found.comparisons == read(tmp_path, rows, kind).comparisons
    assert "user_id from annotator" in found.read_as


@pytest.mark.parametrize("pick", ["winner", "choice", "preferred", "better_response", "Vote", "label", "preference"])
@pytest.mark.parametrize("prompt", ["prompt", "question", "instruction", "query", "Input", "context"])
@pytest.mark.parametrize("stem", ["response", "answer", "completion", "output", "model_answer", "human_ref"])
def test_columns_are_known_by_their_names(tmp_path: Path, pick: str, prompt: str, stem: str) -> None:
    assert said(read(tmp_path, log((f"{stem}_a", f"{stem}_b"), ("a", "b", "tie"), pick, prompt), "auto")) == EXPECTED


@pytest.mark.parametrize(
    "name",
    ["judge", "Annotator", "user", "userId", "worker_id", "WorkerId", "rater", "labeler_id", "judge_hash", "user_name"],
)
@pytest.mark.parametrize("ids", [("ann", "bob"), (7, 8), ("Ann B. Smith", "x" * 36)])
def test_who_judged_is_known_by_the_columns_name(tmp_path: Path, name: str, ids: tuple[Any, Any]) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    found = read(tmp_path, [row | {name: user} for user in ids], "auto")
    assert [c.user_id for c in found.comparisons] == [str(user) for user in ids]
    assert f"user_id from {name}" in found.read_as


def test_prose_is_nobodys_name_and_without_a_name_the_settings_are_asked_for(tmp_path: Path) -> None:
    row: dict[str, Any] = {"prompt": "p", "chosen": "a", "rejected": "b"}
    for value in ("what is the best tea?", "x" * 101, ["ann"], True, 1.5, {"id": 3}):
        message = refused(tmp_path, [row | {"user": value}], "auto")
        assert "line 1: field 'user_id' is missing" in message
        assert all(part in message for part in ("'data.columns', as in {user_id: COLUMN}", "'data.anonymous: true'"))
    anonymous = read(tmp_path, [row | {"judge": "ann"}], "auto", anonymous=True)
    assert [c.user_id for c in anonymous.comparisons] == ["anonymous"]  # as settled before names were recognised


def test_an_own_user_id_wins_and_two_others_are_refused(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "judge": "j", "annotator": "k"}
    assert read(tmp_path, [row | {"user_id": "u"}], "auto").comparisons[0].user_id == "u"
    message = refused(tmp_path, [row], "auto")
    assert all(part in message for part in ("log.jsonl: ", "'judge' or 'annotator'", "'data.columns.user_id'"))
    named = read(tmp_path, [row], "auto", columns={"user_id": "judge"})
    assert named.comparisons[0].user_id == "j"


# change of the row, settings that settle it, what must be said
UNCLEAR: list[tuple[dict[str, Any], dict[str, Any], list[str]]] = [
    (
        {"choice": "b"},
        {"columns": {"chosen": "winner"}},
        ["'winner' or 'choice'", "'data.columns.chosen'"],
    ),
    (
        {"question": "x", "query": "y", "prompt": ...},
        {"columns": {"prompt": "query"}},
        ["'question' or 'query'", "'data.columns.prompt'"],
    ),
    (
        {"answer1": "x", "answer2": "y"},
        {"columns": {"responses": ["response_a", "response_b"]}},
        ["'response_a', 'response_b'", "'answer1', 'answer2'", "'data.columns.responses'"],
    ),
    (
        {"winner": ...},
        {"columns": {"chosen": "flag"}},
        ["'response_a', 'response_b'", "no column that says which", "'data.columns.chosen'"],
    ),
    (
        {"rating": 3, "label": True, "response": "z", "winner": ..., "response_a": ..., "response_b": ...},
        {"source": "thumbs"},
        ["'ratings' or 'thumbs'", "'data.source'"],
    ),
]


@pytest.mark.parametrize(("change", "settled", "parts"), UNCLEAR)
def test_two_readings_are_refused_naming_both_and_the_setting_that_chooses(
    tmp_path: Path, change: dict[str, Any], settled: dict[str, Any], parts: list[str]
) -> None:
    base = {"user_id": "u", "prompt": "p", "response_a": "a", "response_b": "b", "winner": "a", "flag": "a"} | change
    row = {name: value for name, value in base.items() if value is not ...}
    message = refused(tmp_path, [row], "auto")
    assert message.startswith("log.jsonl: ")
    assert all(part in message for part in parts)
    rows = [row, row | {"label": False, "response": "y"}] if "label" in row else [row]
    source = settled.get("source", "auto")
    assert len(read(tmp_path, rows, source, columns=settled.get("columns", {})).comparisons) == 1


@pytest.mark.parametrize(
    ("columns", "value", "example"),
    [
        (ONE_TWO, 1, "{a: 1, b: 2}"),
        (ONE_TWO, "0", "{a: 1, b: 2}"),
        (AB, 0, "{a: 1, b: 2}"),
        (AB, 1, "{a: 1, b: 2}"),
        (AB, True, "{a: true, b: false}"),
        (AB, "False", "{a: true, b: false}"),
        (AB, "response_c", "{a: [A, 'response_c'], b: B}"),
        (AB, -1, "{a: [A, -1], b: B}"),
    ],
)
def test_a_value_that_may_mean_either_answer_is_a_bad_row_that_says_which_setting_settles_it(
    tmp_path: Path, columns: tuple[str, str], value: Any, example: str
) -> None:
    """As "1" is `answer1` by its name and `answer2` counted from 0."""
    rows = log(columns, (value, value, value))
    message = refused(tmp_path, rows, "auto")
    assert message.startswith(f"log.jsonl, line 1: 'chosen' (column 'winner') is {value!r}, which ")
    assert f"'data.values', as in {example}" in message
    assert len(message) < 300
    assert f"'{columns[0]}'" not in message or "may" not in message
    with pytest.raises(DataError, match="all of the 10 rows are bad"):
        read(tmp_path, rows, "auto", on_bad_row="skip")
    found = read(tmp_path, rows, "auto", values={"b": value})
    assert {c.chosen for c in found.comparisons} == {f"b{i}" for i in range(10)}


def test_a_letter_that_is_also_an_answers_text_is_refused(tmp_path: Path) -> None:
    """As in multiple-choice questions: was response_a chosen, or the answer "A"?"""
    row = {"user_id": "u", "prompt": "p", "response_a": "B", "response_b": "A", "winner": "A"}
    message = refused(tmp_path, [row], "auto")
    assert all(part in message for part in ("line 1: 'chosen'", "'response_a' or the response", "'data.values'"))
    assert read(tmp_path, [row], "auto", values={"a": "A", "b": "B"}).comparisons[0].chosen == "B"
    assert read(tmp_path, [row | {"response_a": "A", "response_b": "B"}], "auto").comparisons[0].chosen == "A"


def test_the_text_of_the_chosen_answer_is_read(tmp_path: Path) -> None:
    rows = [row | {"winner": row["response_b"]} for row in log(AB, ("a", "b", "tie"))]
    assert {c.chosen for c in read(tmp_path, rows, "auto").comparisons} == {f"b{i}" for i in range(10)}


def test_the_name_of_the_model_is_read(tmp_path: Path) -> None:
    """As long as the other answer is not the same model's."""
    models = [("m", "n"), ("n", "m")]
    rows: list[dict[str, Any]] = [
        row | {"model_a": models[i % 2][0], "model_b": models[i % 2][1], "winner": (*models[i % 2], "tie")[PLACES[i]]}
        for i, row in enumerate(log(AB, ("a", "b", "tie")))
    ]
    found = read(tmp_path, rows, "auto")
    assert said(found) == EXPECTED
    assert "a name in model_a or model_b" in found.read_as
    same = rows[0] | {"model_b": "m"}
    assert "line 11: 'chosen' (column 'winner') is 'm', which is not known" in refused(tmp_path, [*rows, same], "auto")


VALUES: list[tuple[dict[str, Any], Written]] = [
    ({"a": 1, "b": 2, "tie": 0}, (1, 2, 0)),
    ({"a": 1, "b": 2, "tie": [0, 3]}, ("1", "2", "3")),
    ({"a": True, "b": False, "tie": "null"}, (True, False, "null")),
    ({"a": True, "b": False, "tie": "?"}, ("TRUE", "FALSE", "?")),
    ({"a": "b", "b": "a", "tie": "x"}, ("b", "a", "X")),
    ({"a": [-3, -2, -1], "b": [1, 2, 3], "tie": 0}, (-2, 3.0, "0")),
    ({"a": "ist besser", "b": "ist schlechter", "tie": "beide"}, ("ist besser", " Ist schlechter", "beide")),
]


@pytest.mark.parametrize(("values", "written"), VALUES)
@pytest.mark.parametrize("source", ["auto", "picks"])
def test_the_settings_say_what_values_mean(
    tmp_path: Path, values: dict[str, Any], written: Written, source: str
) -> None:
    columns: Any = {"user_id": "annotator", "responses": [*AB], "chosen": "winner"}
    given: Any = columns if source == "picks" else {}
    assert said(read(tmp_path, log(AB, written), source, values=values, columns=given)) == EXPECTED


def test_values_that_the_settings_do_not_name_are_bad_rows(tmp_path: Path) -> None:
    rows = log(AB, ("a", "b", "tie"))
    message = refused(tmp_path, rows, "auto", values={"a": "a", "b": "b"})
    assert message.startswith(
        "log.jsonl, line 5: 'chosen' (column 'winner') is 'tie', which 'data.values' does not name"
    )
    found = read(tmp_path, rows, "auto", values={"a": "a", "b": "b"}, on_bad_row="skip")
    assert found.rows == {"used": 8, "bad": 2}
    lists = [{"user_id": "u", "prompt": "p", "responses": ["x", "y", "z"], "chosen": 3}]
    assert {c.chosen for c in read(tmp_path, lists, "picks", values={"a": 1, "b": 2, "c": 3}).comparisons} == {"z"}
    assert "'chosen' is position 25" in refused(tmp_path, lists, "picks", values={"z": 3})


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ({"values": {"first": 1}}, "data.values"),
        ({"values": {"A": 1}}, "data.values"),
        ({"values": {"a": 1, "b": "1"}}, "data.values"),
        ({"values": {"a": [1, 2], "tie": 2.0}}, "data.values"),
        ({"values": {"a": None}}, "data.values"),
        ({"values": {"a": 1}, "source": "pairs"}, "data.values"),
        ({"values": {"a": 1}, "source": "jester"}, "data.values"),
        ({"source": "chatbot"}, "data.source"),
    ],
)
def test_wrong_settings_are_named(given: dict[str, Any], key: str) -> None:
    with pytest.raises(PrmError, match=rf"config key '{key}'"):
        FeedbackConfig(path="x", **given)


def test_values_are_refused_where_nothing_is_picked(tmp_path: Path) -> None:
    message = refused(
        tmp_path, [{"user_id": "u", "prompt": "p", "chosen": "a", "rejected": "b"}], "auto", values={"a": 1}
    )
    assert message == "log.jsonl: is read as 'pairs', but 'data.values' is for picks"


@pytest.mark.parametrize(("gap", "n"), [(2.0, 1), (1.0, 3)])
def test_settings_for_ratings_count_where_ratings_are_recognised(tmp_path: Path, gap: float, n: int) -> None:
    rows = [{"user_id": "u", "prompt": "p", "response": str(r), "rating": r} for r in (1, 2, 3)]
    assert len(read(tmp_path, rows, "auto", min_rating_difference=gap).comparisons) == n


@pytest.mark.parametrize("settings", [{"min_rating_difference": 1.0}, {"standardise": True}])
def test_settings_for_ratings_are_refused_where_nothing_is_rated(tmp_path: Path, settings: dict[str, Any]) -> None:
    (key,) = settings
    message = refused(tmp_path, [{"user_id": "u", "prompt": "p", "chosen": "a", "rejected": "b"}], "auto", **settings)
    assert f"'data.{key}'" in message


PUBLISHED: dict[str, tuple[dict[str, Any], Written]] = {
    "Stanford": ({"history": "q", "human_ref_A": "A", "human_ref_B": "B", "score_A": 2, "post_id": "p"}, (1, 0, None)),
    "HelpSteer2": ({"prompt": "q", "response_1": "A", "response_2": "B", "preference_statement": "x"}, (-2, 3, 0)),
    "HelpSteer3": ({"context": turns("q"), "response1": "A", "response2": "B", "domain": "general"}, (-1, 2, 0)),
}  # fmt: skip
NUMBERS = {"Stanford": "labels", "HelpSteer2": "preference_strength", "HelpSteer3": "overall_preference"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sets_whose_numbers_mean_something_of_their_own(tmp_path: Path, name: str) -> None:
    row, written = PUBLISHED[name]
    places = [place for place in PLACES if written[place] is not None]
    rows = [row | {NUMBERS[name]: written[place]} for place in places]
    found = read(tmp_path, rows, "auto", anonymous=True)
    expected = {0: ("A", "B", 1.0), 1: ("B", "A", 1.0), 2: ("A", "B", 0.5)}
    for comparison, place in zip(found.comparisons, places, strict=True):
        pair = (
            sorted([comparison.chosen, comparison.rejected]) if place == 2 else [comparison.chosen, comparison.rejected]
        )
        assert (*pair, comparison.p_chosen) == expected[place]
    assert {c.prompt if isinstance(c.prompt, str) else c.prompt[0].content for c in found.comparisons} == {"q"}
    assert name in found.read_as
    other: Any = {"a": written[1], "b": written[0], "tie": [] if written[2] is None else written[2]}
    turned = read(tmp_path, rows, "auto", anonymous=True, values=other)
    assert [c.chosen for c in turned.comparisons if not c.is_tie] == [
        c.rejected for c in found.comparisons if not c.is_tie
    ]


PAIR: dict[str, Any] = {"user_id": "u", "prompt": "tea?", "chosen": "yes", "rejected": "no"}
EXTRA = {
    "winner": "a", "response_a": "x", "response_b": "y",
    "conversation_a": turns("q", "a"), "conversation_b": turns("q", "b"),
    "judge": "j", "annotator": "k", "question": "which tea is it?", "instruction": "say", "context": "c", "data": {},
    "annotations": [], "fields": {}, "responses": ["x", "y"], "ranks": [1, 2], "preferred_output": [], "label": True,
    "non_preferred_output": [], "rating": 3, "response": "z", "prompt_id": "7f", "messages": turns("q", "a"),
    "chosen_response": "v", "rejected_response": "w", "conversations": [], "score_chosen": 1.0,
    "models": [], "type": "x",
}  # fmt: skip
SIDES: list[dict[str, Any]] = [
    {"chosen": "yes", "rejected": "no"},
    {"chosen": "The sky is blue.", "rejected": "The sky is green."},
    {"chosen": turns("q", "a"), "rejected": turns("q", "b")},
    {"prompt": turns("q"), "chosen": turns("", "a")[1:], "rejected": turns("", "b")[1:]},
    {"prompt": "q", "chosen": ["a", "b"], "rejected": ["c"]},
    {"prompt": "", "chosen": turns("q", "a"), "rejected": turns("q", "b")},
]  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=400, suppress_health_check=list(HealthCheck))
@given(
    st.lists(st.sampled_from(SIDES), min_size=1, max_size=3),
    st.sets(st.sampled_from([*EXTRA, "prompt", "user_id"]), max_size=6),
    st.sampled_from(["", "anonymous", "question", "skip"]),
)
def test_what_was_read_as_pairs_is_read_as_it_was(sides: list[dict[str, Any]], names: set[str], how: str) -> None:
    """The same comparisons and the same account, whatever other columns there are."""
    extra = {name: (EXTRA | PAIR)[name] for name in sorted(names)}
    more: dict[str, Any] = {"anonymous": how == "anonymous", "on_bad_row": "skip" if how == "skip" else "stop"}
    if how == "question":
        extra |= {"question": "which?"}
        more |= {"columns": {"prompt": "question"}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("".join(json.dumps(extra | side) + "\n" for side in sides))
        try:
            before = read_feedback(FeedbackConfig(path=str(path), source="pairs", **more))
        except DataError:
            return
        if before.skipped:
            return
        now = read_feedback(FeedbackConfig(path=str(path), **more))
        assert [c.to_row() for c in now.comparisons] == [c.to_row() for c in before.comparisons]
        assert (now.rows, now.pairs, now.notes) == (before.rows, before.pairs, before.notes)


@FUZZ
@given(LOGS, SETTINGS)
def test_arbitrary_rows_of_pairs_are_read_as_they_were(rows: list[dict[str, Any]], config: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
        try:
            before = read_feedback(FeedbackConfig(path=str(path), **config | {"source": "pairs"}))
        except DataError:
            return
        now = read_feedback(FeedbackConfig(path=str(path), **config | {"source": "auto"}))
        assert [c.to_row() for c in now.comparisons] == [c.to_row() for c in before.comparisons]
        assert now.account() == before.account()


@pytest.mark.parametrize("source", ROWS)
def test_our_own_kinds_are_recognised(tmp_path: Path, source: str) -> None:
    found = read(tmp_path, ROWS[source], "auto")
    stated = read(tmp_path, ROWS[source], source)
    assert (found.comparisons, found.rows, found.pairs) == (stated.comparisons, stated.rows, stated.pairs)
    assert found.read_as == ("" if source == "pairs" else f"read as '{source}'")
    assert stated.read_as == ""


CELL = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=8).filter(str.strip)
LOG_ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "annotator": st.sampled_from(["ann", "bob", "Zoë"]), "question": CELL, "answer_a": CELL.map("a: ".__add__),
            "answer_b": CELL.map("b: ".__add__), "winner": st.sampled_from(["A", "b", "tie", "answer_a"]),
        }
    ),
    min_size=1,
    max_size=6,
)  # fmt: skip


@settings(derandomize=True, deadline=None, max_examples=80, suppress_health_check=list(HealthCheck))
@given(LOG_ROWS, st.sampled_from([";", ",", "\t"]), st.sampled_from(["utf-8-sig", "utf-16"]), st.booleans())
def test_a_csv_that_excel_saved_is_the_same_log_as_json_lines(
    rows: list[dict[str, Any]], delimiter: str, encoding: str, announced: bool
) -> None:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter, lineterminator="\r\n")
    writer.writeheader()
    writer.writerows(rows)
    with tempfile.TemporaryDirectory() as folder:
        table, lines = Path(folder) / "log.csv", Path(folder) / "log.jsonl"
        first = f"sep={delimiter}\r\n" if announced else ""
        table.write_bytes((first + out.getvalue()).encode(encoding))
        lines.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
        stated = [read_feedback(FeedbackConfig(path=str(path))) for path in (table, lines)]
        assert stated[0].comparisons == stated[1].comparisons
        assert stated[0].rows == stated[1].rows
        assert ("separated" in stated[0].read_as) is (delimiter != ",")


def test_what_values_mean_goes_on_to_further_logs_of_a_run(tmp_path: Path) -> None:
    earlier = DataConfig(path="log.csv", values={"a": True, "b": False}).to_dict()
    config, inherited = feedback_like_a_runs({}, "new.csv", earlier)
    assert config.values == {"a": True, "b": False}
    assert inherited == ["data.values {'a': True, 'b': False}"]
    assert feedback_like_a_runs({"source": "picks"}, "new.csv", earlier)[0].values == {}


def test_a_workbook_is_the_same_log(tmp_path: Path) -> None:
    rows = log(AB, ("a", "b", "tie"))
    sheet = [[*rows[0]], *([*row.values()] for row in rows)]
    path = write_workbook(tmp_path / "log.xlsx", {"judgements": sheet})
    found = read_feedback(FeedbackConfig(path=str(path)))
    assert said(found) == EXPECTED
    assert found.comparisons[3].origin == f"{path}, row 5"


@pytest.mark.parametrize(
    ("chosen", "rejected"), [("chosen_response", "rejected_response"), ("text_chosen", "text_rejected")]
)
def test_longer_names_of_chosen_and_rejected(tmp_path: Path, chosen: str, rejected: str) -> None:
    row = {
        "worker": "w",
        "instruction": "tea?",
        chosen: "yes",
        rejected: "no",
        "chosen_model": "x",
        "rejected_model": "y",
    }
    found = read(tmp_path, [row], "auto")
    assert said(found) == [("w", "tea?", "yes", "no")]
    assert f"chosen from {chosen}" in found.read_as
    both = row | {"chosen_answer": "x", "rejected_answer": "y"}
    message = refused(tmp_path, [both], "auto")
    assert all(part in message for part in (f"('{chosen}', '{rejected}')", "'data.columns.chosen'"))
    named: Any = {"chosen": "chosen_answer", "rejected": "rejected_answer"}
    assert said(read(tmp_path, [both], "auto", columns=named)) == [("w", "tea?", "x", "y")]


def test_a_prompt_under_another_name_beside_chosen_and_rejected(tmp_path: Path) -> None:
    """Where they begin alike, it is what they begin with, as ever; where some do, it may be either."""
    apart = {"user_id": "u", "question": "which?", "chosen": "blue", "rejected": "green"}
    alike = apart | {"chosen": "It is blue", "rejected": "It is green"}
    assert said(read(tmp_path, [apart], "auto")) == [("u", "which?", "blue", "green")]
    found = read(tmp_path, [alike], "auto")
    assert said(found) == [("u", "It is ", "blue", "green")]
    assert all(part in found.read_as for part in ("begin with", "'question'", "data.columns.prompt"))
    message = refused(tmp_path, [alike, apart], "auto")
    assert all(
        part in message for part in ("'question'", "begin with", "'data.columns.prompt'", "'data.source: pairs'")
    )
    named = read(tmp_path, [alike, apart], "auto", columns={"prompt": "question"})
    assert [c.prompt for c in named.comparisons] == ["which?", "which?"]


def test_preference_files_of_llama_factory(tmp_path: Path) -> None:
    """Instruction and input are one prompt if the settings say so; ShareGPT's conversations as they are."""
    rows = [
        {"instruction": f"answer {i}", "input": "the question", "chosen": f"good {i}", "rejected": f"bad {i}"}
        for i in range(10)
    ]
    path = tmp_path / "preference.json"
    path.write_text(json.dumps(rows, indent=2))
    with pytest.raises(
        DataError, match=r"'instruction' or 'input' or \['instruction', 'input'\].*data\.columns\.prompt"
    ):
        read_feedback(FeedbackConfig(path=str(path), anonymous=True))
    columns: Any = {"prompt": ["instruction", "input"]}
    found = read_feedback(FeedbackConfig(path=str(path), anonymous=True, columns=columns))
    assert said(found) == [("anonymous", f"answer {i}\nthe question", f"good {i}", f"bad {i}") for i in range(10)]
    talk = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}, {"from": "human", "value": "tea?"}]
    sharegpt = {
        "conversations": talk,
        "chosen": {"from": "gpt", "value": "yes"},
        "rejected": {"from": "gpt", "value": "no"},
    }
    prompt = [("user", "hi"), ("assistant", "hello"), ("user", "tea?")]
    assert said(read(tmp_path, [sharegpt], "auto", anonymous=True)) == [("anonymous", prompt, "yes", "no")]
    broken = sharegpt | {"chosen": {"from": "function_call", "value": "x"}}
    assert "has the unknown role 'function_call'" in refused(tmp_path, [sharegpt, broken], "auto", anonymous=True)


def test_preferences_of_trl_and_reward_bench_are_what_they_were(tmp_path: Path) -> None:
    """Ten rows each; also beside a `prompt_id`."""
    alone = [{"chosen": turns(f"q{i}", "a"), "rejected": turns(f"q{i}", "b"), "prompt_id": f"7f{i}"} for i in range(10)]
    plain = [
        {"prompt": f"q{i}", "chosen": "a", "rejected": "b", "score_chosen": 8.0, "prompt_id": "x"} for i in range(10)
    ]
    models = {"chosen_model": "m", "rejected_model": "n", "subset": "s", "id": 1}
    bench = [{"prompt": f"q{i}", "chosen": "a", "rejected": "b"} | models for i in range(10)]
    unpaired = [{"prompt": f"q{i // 2}", "completion": "ab"[i % 2], "label": i % 2 == 0} for i in range(20)]
    for rows in (alone, plain, bench, unpaired):
        found = read(tmp_path, rows, "auto", anonymous=True)
        prompts = [c.prompt if isinstance(c.prompt, str) else c.prompt[0].content for c in found.comparisons]
        assert prompts == [f"q{i}" for i in range(10)]
        assert {(c.chosen, c.rejected) for c in found.comparisons} == {("a", "b")}
    assert read(tmp_path, bench, "auto", anonymous=True).read_as == ""


def test_cells_that_are_empty_are_bad_rows_and_counted(tmp_path: Path) -> None:
    table = "annotator,question,answer_a,answer_b,winner\nann,q,x,y,a\n,q,x,y,a\nann,,x,y,a\nann,q,x,,a\nann,q,x,y,\n"
    found = read_csv(tmp_path, table, "auto", on_bad_row="skip")
    assert found.rows == {"used": 1, "bad": 4}
    named = [
        "'user_id' (column 'annotator')",
        "'prompt' (column 'question')",
        "holds 1 response",
        "'chosen' (column 'winner')",
    ]
    assert all(name in row["fault"] for name, row in zip(named, found.skipped, strict=True))


def test_a_log_that_is_not_recognised_is_refused_as_pairs(tmp_path: Path) -> None:
    rows = [{"user_id": "u", "text": "x", "score": 3}]
    assert refused(tmp_path, rows, "auto") == refused(tmp_path, rows, "pairs")


def test_bad_rows_at_the_beginning_do_not_hide_the_format(tmp_path: Path) -> None:
    rows: list[Any] = ["{", "[]", *log(AB, ("a", "b", "tie"))]
    found = read(tmp_path, rows, "auto", on_bad_row="skip")
    assert said(found) == EXPECTED
    assert found.rows == {"used": 10, "bad": 2}


def test_rows_after_those_that_are_looked_at_are_read_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prm.data.sources.recognition._LOOKED_AT", 3)
    found: Feedback = read(tmp_path, log(AB, ("model_a", "model_b", "tie")), "auto")
    assert said(found) == EXPECTED
    numbers = log(ONE_TWO, (1, 2, 0))  # no tie among the first three
    assert "line 5: 'chosen' (column 'winner') is 0" in refused(tmp_path, numbers, "auto")

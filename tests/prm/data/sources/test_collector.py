"""What becomes of a log: comparisons, and an account in which every row and every pair stands once."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison
from prm.data.sources import read_feedback
from prm.data.sources.collector import alike_ids, contradictions
from prm.errors import DataError, PrmError, closest
from prm.io.tables import write_jsonl
from tests.prm.data.sources.logs import read, read_csv, refused

PAIR: dict[str, Any] = {"user_id": "ann", "prompt": "tea?", "chosen": "yes", "rejected": "no"}
LISTS = PAIR | {"chosen": [f"a{i}" for i in range(9)], "rejected": ["b", "c"]}


def one(prompt: str, response: str, **more: Any) -> dict[str, Any]:
    return {"user_id": "ann", "prompt": prompt, "response": response} | more


def several(prompt: str, *responses: str, **more: Any) -> dict[str, Any]:
    return {"user_id": "ann", "prompt": prompt, "responses": list(responses)} | more


# source -> (rows, how many of them are bad, pairs that the good ones could form)
LOGS: dict[str, tuple[list[Any], int, int]] = {
    "pairs": (
        [PAIR, PAIR, PAIR | {"p_chosen": 0.5}, LISTS, "{", "[]", PAIR | {"chosen": "no"}, PAIR | {"weight": -1}],
        4,
        3 + 18,
    ),
    "ratings": (
        [
            *(one("p", f"r{i}", rating=i % 7) for i in range(20)),
            one("p", "r3", rating=9),
            one("alone", "r", rating=1),
            one("p", "r", rating="high"),
            one("p", "r", rating=3, time=[]),
            "null",
        ],
        3,
        190,
    ),
    "thumbs": (
        [*(one("p", f"r{i}", label=i % 3 == 0) for i in range(10)), one("q", "r", label=True), one("p", "s", label=7)],
        1,
        45,
    ),
    "picks": (
        [
            several("p", *"abcdefghijkl", chosen="a"),
            several("p", *"abc", chosen=1),
            several("p", *"abc", chosen=1),
            several("q", *"ab", chosen="tie"),
            several("q", *"aab", chosen="b"),
            several("q", *"abc", chosen="tie"),
            several("q", "a", chosen="a"),
        ],
        2,
        66 + 3 + 3 + 1 + 3,
    ),
    "rankings": (
        [
            several("p", *"abcdefghijkl"),
            several("p", *"abc", ranks=[1, 1, 2]),
            several("p", *"abc", ranks=[1, 1, 2]),
            several("p", *"abc", ranks=[1, 2]),
            {"prompt": "p"},
        ],
        2,
        66 + 3 + 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("ties", ["keep", "drop"])
@pytest.mark.parametrize("max_pairs", [1, 3, 100])
@pytest.mark.parametrize("source", LOGS)
def test_every_row_and_every_pair_is_accounted_for(tmp_path: Path, source: str, max_pairs: int, ties: str) -> None:
    rows, bad, pairs = LOGS[source]
    found = read(tmp_path, rows, source, max_pairs=max_pairs, ties=ties, on_bad_row="skip")
    assert sum(found.rows.values()) == len(rows)
    assert sum(found.pairs.values()) == pairs
    assert found.pairs["kept"] == len(found.comparisons)
    assert found.rows["bad"] == len(found.skipped) == bad
    assert min(found.rows.values()) > 0
    assert min(found.pairs.values()) > 0
    origins = {origin for c in found.comparisons for origin in c.origin.split(" and ")}
    assert len(origins) == found.rows["used"]
    assert found.account()[0].startswith(f"{len(rows)} rows: {found.rows['used']} used")
    assert json.loads(json.dumps(found.summary()))["pairs"] == found.pairs


@pytest.mark.parametrize("source", LOGS)
def test_the_first_bad_row_is_the_end_unless_it_may_be_skipped(tmp_path: Path, source: str) -> None:
    assert refused(tmp_path, LOGS[source][0], source).startswith("log.jsonl, line ")


@pytest.mark.parametrize("source", ["ratings", "thumbs", "picks", "rankings"])
def test_comparisons_do_not_depend_on_the_order_of_the_rows(tmp_path: Path, source: str) -> None:
    """But for which of two rows is the later one: times, texts and metadata are the same here."""
    rows = [row for row in LOGS[source][0] if isinstance(row, dict) and row.get("rating") != 9]
    settings: dict[str, Any] = {"max_pairs": 2, "on_bad_row": "skip"}
    there, back = read(tmp_path, rows, source, **settings), read(tmp_path, rows[::-1], source, **settings)
    assert {(c.prompt, c.chosen, c.rejected) for c in there.comparisons} == {
        (c.prompt, c.chosen, c.rejected) for c in back.comparisons
    }
    assert (there.rows, there.pairs) == (back.rows, back.pairs)


def test_skipped_rows_are_listed_with_line_fault_judge_and_content(tmp_path: Path) -> None:
    rows = [PAIR, '{"user_id": "bob"', PAIR | {"chosen": "no", "user_id": 7}, {"prompt": "tea?"}]
    found = read(tmp_path, rows, "pairs", on_bad_row="skip")
    assert [(row["row_of"], row.get("user_id"), row["row"]) for row in found.skipped] == [
        (f"{tmp_path}/log.jsonl, line 2", None, '{"user_id": "bob"'),
        (f"{tmp_path}/log.jsonl, line 3", "7", PAIR | {"chosen": "no", "user_id": 7}),
        (f"{tmp_path}/log.jsonl, line 4", None, {"prompt": "tea?"}),
    ]
    named = (["JSON"], ["'chosen'", "'rejected'"], ["'user_id'", "'chosen'", "'rejected'", "'prompt'"])
    for row, names in zip(found.skipped, named, strict=True):
        assert all(name in row["fault"] for name in names)


def test_whatever_is_skipped_can_be_written_down(tmp_path: Path) -> None:
    """Half a surrogate is no UTF-8; NaN is no JSON."""
    half = "half \ud83d"
    rows = [PAIR, PAIR | {"user_id": half}, PAIR | {"chosen": half, half: half}, PAIR | {"metadata": 3}]
    found = read(tmp_path, rows, "pairs", on_bad_row="skip")
    write_jsonl(tmp_path / "skipped.jsonl", found.skipped)
    kept = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row.get("user_id") for row in kept] == ["half ?", "ann", "ann"]


def test_carried_metadata_can_be_written_down(tmp_path: Path) -> None:
    found = read(tmp_path, [PAIR | {"metadata": {"a": "\ud83d"}, "b": "\ud83d"}], "pairs", metadata=["b"])
    write_jsonl(tmp_path / "test.jsonl", found.comparisons)
    assert found.comparisons[0].metadata == {"a": "?", "b": "?"}


def test_rows_equal_in_every_field_count_once_and_others_do_not(tmp_path: Path) -> None:
    """Both orders of the same two answers shown are two judgements."""
    other: list[dict[str, Any]] = [
        {"weight": 2}, {"time": 1}, {"user_text": "x"}, {"p_chosen": 0.9}, {"metadata": {"a": 1}}, {"user_id": "bob"},
        {"chosen_first": True}, {"chosen_first": False},
    ]  # fmt: skip
    found = read(tmp_path, [PAIR, PAIR, *(PAIR | change for change in other), PAIR], "pairs")
    assert found.rows == {"used": 9, "said twice": 2}
    assert found.pairs == {"kept": 9, "said twice": 2}


def test_a_row_whose_pairs_were_all_said_before_is_counted_so(tmp_path: Path) -> None:
    found = read(tmp_path, [several("p", "a", "b")] * 2, "rankings")
    assert found.rows == {"used": 1, "said twice": 1}


def test_contradictions_count_and_are_noted(tmp_path: Path) -> None:
    found = read(tmp_path, [PAIR, PAIR | {"chosen": "no", "rejected": "yes"}], "pairs")
    assert len(found.comparisons) == 2
    assert len(found.notes) == 1
    assert "both ways: 1" in found.notes[0]
    a, b = Comparison("u", "q", "a", "b"), Comparison("u", "q", "b", "a")
    assert [contradictions(rows) for rows in ([a, a], [a, b], [a, b, a, b])] == [0, 1, 1]
    assert contradictions([a, Comparison("v", "q", "b", "a"), Comparison("u", "r", "b", "a")]) == 0
    assert contradictions([a, Comparison("u", "q", "b", "a", p_chosen=0.5)]) == 0  # a tie is no contrary


def test_ids_that_differ_in_case_or_spaces_are_two_people_and_noted(tmp_path: Path) -> None:
    users = ("Ann", "ann", " ann ", "bob", "an n")
    found = read(tmp_path, [PAIR | {"user_id": user} for user in users], "pairs")
    assert {c.user_id for c in found.comparisons} == set(users)
    (note,) = found.notes
    assert "'Ann' and 'ann' and ' ann '" in note
    assert "the same user?" in note
    assert alike_ids(["a", "b", "c"]) == []


@pytest.mark.parametrize(
    "other",
    [
        "Jose\u0301",
        "JOSE\u0301",
        "Jos\u00e9\u200b",
        "\ufeffJos\u00e9",
        "J\u00ados\u00e9",
        "Jos\u00e9\u00a0",
        "\uff2aos\u00e9",
    ],
)
def test_ids_that_look_alike_are_two_people_and_noted(tmp_path: Path, other: str) -> None:
    found = read(tmp_path, [PAIR | {"user_id": user} for user in ("Jos\u00e9", other, "Jose", "Jo\u200dan")], "pairs")
    assert len({c.user_id for c in found.comparisons}) == 4
    (note,) = found.notes
    first, second = re.findall(r"'[^']*'", note)
    assert first != second
    assert alike_ids(["Jos\u00e9", other, "Jose"]) == [["Jos\u00e9", other]]
    assert closest(other, ["Jose", "Jos\u00e9"], 1.0) == "Jos\u00e9"


def test_columns_that_are_not_read_are_noted(tmp_path: Path) -> None:
    found = read(tmp_path, [PAIR | {"mood": 1}, PAIR | {"age": 2, "time": 3}], "pairs")
    assert found.notes == ["columns that are not read: age, mood"]


MISSPELT = [("user_id", "user_idd"), ("prompt", "promt"), ("chosen", "choosen"), ("rejected", "rejectd")]


@pytest.mark.parametrize(("right", "wrong"), [*MISSPELT, ("weight", "wieght"), ("user_text", "user_txt")])
def test_a_misspelt_column_is_refused_with_what_was_meant(tmp_path: Path, right: str, wrong: str) -> None:
    rows = [{k: v for k, v in PAIR.items() if k != right} | {wrong: "x"}]
    message = refused(tmp_path, rows, "pairs")
    assert all(named in message for named in ("log.jsonl, line 1: ", f"'{wrong}'", f"'{right}'"))


def test_a_column_beside_the_field_that_it_looks_like_is_only_noted(tmp_path: Path) -> None:
    assert read(tmp_path, [PAIR | {"prompts": "x"}], "pairs").notes == ["columns that are not read: prompts"]


def test_fields_are_found_under_the_logs_own_names(tmp_path: Path) -> None:
    row = {"annotator": 7, "question": "tea?", "chosen": "yes", "rejected": "no", "user_id": "session 3"}
    found = read(tmp_path, [row], "pairs", columns={"user_id": "annotator", "prompt": "question"})
    assert (found.comparisons[0].user_id, found.comparisons[0].prompt) == ("7", "tea?")
    assert found.notes == ["columns that are not read: user_id"]


def test_wrong_settings_of_columns_are_refused(tmp_path: Path) -> None:
    missing = refused(tmp_path, [PAIR], "pairs", columns={"user_id": "who"})
    assert missing.startswith("log.jsonl, line 1: ")
    for named in ("'user_id'", "'who'", "'prompt', 'chosen', 'rejected'", "'data.columns'", "data.anonymous"):
        assert named in missing
    unknown = refused(tmp_path, [PAIR], "pairs", columns={"wieght": "w"})
    assert all(named in unknown for named in ("'data.columns'", "'wieght'", "'pairs'", "prompt, chosen, rejected"))
    assert "did you mean 'weight'?" in unknown
    other_case = {"Prompt" if name == "prompt" else name: value for name, value in PAIR.items()}
    assert "--data.columns.prompt 'Prompt'" in refused(tmp_path, [other_case], "pairs")
    turned = refused(tmp_path, [PAIR], "pairs", columns={"who": "user_id", "question": "prompt"})
    assert all(named in turned for named in ("'data.columns'", "{user_id: who, prompt: question}"))
    for field in ("user_id", "time"):
        assert "did you mean 'user_id'?" in refused(tmp_path, [PAIR], "pairs", columns={field: "usr_id"})
    assert "did you mean 'user_id'?" in refused(tmp_path, [PAIR], "pairs", metadata=["usr_id"])
    picks = {"user_id": "a", "prompt": "p", "answer_a": "x", "answer_b": "y", "winner": "a"}
    assert "did you mean 'winner'?" in refused(tmp_path, [picks], "auto", columns={"chosen": "winer"})
    for settings in ({"columns": {"weight": "w"}}, {"metadata": ["w"]}, {"columns": {"user_text": ["w"]}}):
        message = refused(tmp_path, [PAIR, PAIR | {"mood": 1}], "pairs", on_bad_row="skip", **settings)
        assert message.startswith("log.jsonl: ")
        assert "'w'" in message
        assert "'user_id', 'prompt', 'chosen', 'rejected', 'mood'" in message


def test_a_column_that_some_rows_have_is_enough(tmp_path: Path) -> None:
    one, two = read(tmp_path, [PAIR | {"w": 2}, PAIR], "pairs", columns={"weight": "w"}, metadata=["w"]).comparisons
    assert (one.weight, two.weight) == (2.0, 1.0)
    assert (one.metadata, two.metadata) == ({"w": 2}, {})


@pytest.mark.parametrize("ids", [(7, "7"), ("7", 7), (7, "ann"), ("ann", 7)])
def test_a_column_of_ids_is_of_one_type(tmp_path: Path, ids: tuple[Any, Any]) -> None:
    message = refused(tmp_path, [PAIR | {"user_id": user} for user in ids], "pairs")
    assert message.startswith("log.jsonl, line 2: 'user_id'")
    assert "log.jsonl, line 1" in message


def test_whole_numbers_are_ids_and_others_are_not(tmp_path: Path) -> None:
    found = read(tmp_path, [PAIR | {"user_id": user} for user in (7, -1, 10**30)], "pairs")
    assert [c.user_id for c in found.comparisons] == ["7", "-1", str(10**30)]
    others: list[Any] = [7.0, True, None, [], {}, 1e300]
    for user in others:
        assert "line 1: " in refused(tmp_path, [PAIR | {"user_id": user}], "pairs")


def test_with_bad_rows_skipped_the_majority_does_not_matter_but_the_first_type_of_id(tmp_path: Path) -> None:
    found = read(tmp_path, [PAIR | {"user_id": user} for user in ("a", 7, "b", 8)], "pairs", on_bad_row="skip")
    assert [c.user_id for c in found.comparisons] == ["a", "b"]
    assert found.rows == {"used": 2, "bad": 2}


@pytest.mark.parametrize(("row", "skip"), [(PAIR | {"rejected": PAIR["chosen"]}, True), ({"user_id": "ann"}, False)])
def test_a_first_row_is_to_be_skipped_unless_a_setting_is_more_likely_at_fault(
    tmp_path: Path, row: dict[str, object], skip: bool
) -> None:
    message = refused(tmp_path, [row, PAIR], "pairs")
    assert ("'data.on_bad_row: skip'" in message) == skip
    assert ("'data.columns'" in message) != skip


def test_a_log_of_which_nothing_comes_is_refused_with_its_account(tmp_path: Path) -> None:
    message = refused(tmp_path, [one("p", "a", rating=1), one("p", "b", rating=1)], "ratings")
    assert message.startswith("log.jsonl: ")
    assert all(count in message for count in ("2 rows: 2 in no pair", "1 pair: 1 judged equal"))


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"path": ""}, "data.path"),
        ({"source": "pairs", "min_rating_difference": 1.0}, "data.min_rating_difference"),
        ({"source": "pairs", "standardise": True}, "data.standardise"),
        ({"max_pairs": 0}, "data.max_pairs"),
        ({"source": "ratings", "min_rating_difference": -1.0}, "data.min_rating_difference"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, Any], key: str) -> None:
    with pytest.raises(PrmError, match=rf"config key '{key}'"):
        read_feedback(FeedbackConfig(**{"path": "x.jsonl"} | settings))


def test_a_csv_with_two_delimiters_in_its_header_is_refused_by_its_columns(tmp_path: Path) -> None:
    with pytest.raises(PrmError, match=r"line 1: .*'user_id;prompt;chosen\\trejected'"):
        read_csv(tmp_path, "user_id;prompt;chosen\trejected\na;b;c;d\n", "pairs")


def test_nameless_judgements_that_are_equal_may_be_two_peoples(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "a", "rejected": "b"}
    path = tmp_path / "log.jsonl"
    path.write_text((json.dumps(row) + "\n") * 3)
    assert len(read_feedback(FeedbackConfig(path=str(path), anonymous=True)).comparisons) == 3


@pytest.mark.parametrize(("name", "value"), [("columns", {"user_id": "x"}), ("metadata", ["x"]), ("anonymous", True)])
def test_settings_that_a_public_data_set_would_not_heed_are_refused(name: str, value: object) -> None:
    with pytest.raises(PrmError, match=rf"data\.{name}.*jester"):
        read_feedback(FeedbackConfig(path="x", source="jester", **{name: value}))  # type: ignore[arg-type]


def test_a_log_of_another_kind_is_recognised_by_its_columns(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("user_id,prompt,response,rating\nann,tea?,yes,4\n")
    with pytest.raises(DataError, match=r"line 2: .*'chosen', 'rejected'.*data\.source: ratings"):
        read_feedback(FeedbackConfig(path=str(path), source="pairs"))
    path.write_text("user_id,prompt,chosen,rejected\nann,tea?,yes,no\n")
    with pytest.raises(DataError, match=r"data\.source: pairs"):
        read_feedback(FeedbackConfig(path=str(path), source="ratings"))


MISSING = [
    ("pairs", {"who": "a", "q": "b"}, ["user_id", "prompt", "chosen", "rejected"]),
    ("pairs", {"chosen": "a", "rejected": "b"}, ["user_id"]),  # the prompt may be what both begin with
    ("ratings", {"prompt": "q", "answer": "b", "stars": 4}, ["user_id", "response", "rating"]),
    ("ratings", {"prompt": "q", "completion": "b", "stars": 4}, ["user_id", "rating"]),
    ("thumbs", {"user_id": "a", "text": "b"}, ["prompt", "response", "label"]),
    ("picks", {"user_id": "a", "prompt": "b", "winner": "c"}, ["responses", "chosen"]),
    ("rankings", {"user_id": "a", "answers": ["b", "c"]}, ["prompt", "responses"]),
]


@pytest.mark.parametrize(("source", "row", "fields"), MISSING)
def test_all_missing_columns_are_named_at_once_as_a_setting(
    tmp_path: Path, source: str, row: dict[str, Any], fields: list[str]
) -> None:
    message = refused(tmp_path, [row], source)
    (example,) = re.findall(r"'data\.columns', as in (\{.*?\})", message)
    assert list(yaml.safe_load(example)) == fields
    assert (
        ", ".join(f"'{name}'" for name in fields) + (" is missing" if len(fields) == 1 else " are missing") in message
    )
    assert f"the row has {', '.join(map(repr, row))}: " in message
    if "user_id" in fields:
        anonymous = refused(tmp_path, [row], source, anonymous=True) if fields != ["user_id"] else ""
        assert "user_id" not in anonymous


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"user_id": "whoo"}, "field 'user_id' (column 'whoo') is missing; the row has "),
        ({"user_id": "who", "rating": "why"}, "'rating' must be a number, got 'tasty 0'; the row has "),
    ],
)
def test_where_every_row_would_be_skipped_the_first_ones_fault_is_reported(
    tmp_path: Path, columns: dict[str, str], fault: str
) -> None:
    """A wrong name of a column is the settings' fault, not the rows'; one good row, and they are skipped."""
    rows = [f"ann,tea?,yes {i},{i},tasty {i}" for i in range(3)]
    settings: dict[str, Any] = {"on_bad_row": "skip", "columns": columns}
    with pytest.raises(DataError) as caught:
        read_csv(tmp_path, "who,prompt,response,rating,why\n" + "\n".join(rows), "ratings", **settings)
    message = str(caught.value).removeprefix(f"{tmp_path}/log.csv, ")
    assert message.startswith(f"line 2: {fault}'who', 'prompt', 'response', 'rating', 'why'")
    assert "3 rows" in message
    found = read(tmp_path, [{"prompt": "tea?"}, PAIR, {"prompt": "tea?"}], "pairs", on_bad_row="skip")
    assert found.rows == {"used": 1, "bad": 2}


def test_a_conversation_has_an_id_by_any_column_and_two_where_answers_of_two_are_compared(tmp_path: Path) -> None:
    rows = [PAIR | {"session": 7}, PAIR | {"session": None, "prompt": "milk?"}]
    found = read(tmp_path, rows, "pairs", columns={"conversation_id": "session"}).comparisons
    assert [c.conversation_id for c in found] == ["7", None]
    assert [Comparison(**json.loads(json.dumps(c.to_row()))) for c in found] == found
    given = [("a", "x"), ("b", "x"), ("c", "y")]
    rows = [one("p", text, rating=i, conversation_id=where) for i, (text, where) in enumerate(given)]
    pairs = {c.chosen + c.rejected: c.conversation_id for c in read(tmp_path, rows, "ratings").comparisons}
    assert pairs == {"ba": "x", "ca": "y\nx", "cb": "y\nx"}
    assert re.search("'conversation_id'.*7.5", refused(tmp_path, [PAIR | {"conversation_id": 7.5}], "pairs"))

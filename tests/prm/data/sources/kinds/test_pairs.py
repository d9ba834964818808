"""Pairs, in our fields and in those of TRL and reward-bench, worked by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
from trl.data_utils import maybe_extract_prompt

from prm.data.comparison import Comparison, Message
from tests.prm.data.sources.logs import read, read_csv, refused, won

GOOD = {"user_id": "ann", "prompt": "tea?", "chosen": "yes", "rejected": "no"}


def said(*turns: str) -> list[dict[str, str]]:
    """A conversation that the user begins."""
    return [{"role": "assistant" if i % 2 else "user", "content": turn} for i, turn in enumerate(turns)]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def messages(turns: list[dict[str, str]]) -> tuple[Message, ...]:
    return tuple(Message(**turn) for turn in turns)


def test_a_row_is_a_comparison(tmp_path: Path) -> None:
    row = GOOD | {"p_chosen": 0.75, "weight": 2, "time": "2024-05-01", "user_text": "old", "chosen_first": False}
    found = read(tmp_path, [row | {"topic": "drinks", "metadata": {"id": 3}}], "pairs", metadata=["topic"])
    assert found.comparisons == [
        Comparison("ann", "tea?", "yes", "no", "old", 0.75, 2.0, "2024-05-01", False, {"id": 3, "topic": "drinks"})
    ]
    assert (found.rows, found.pairs) == ({"used": 1}, {"kept": 1})
    assert found.account()[0] == "1 row: 1 used"
    assert len(found.account()) == 2  # as many pairs as rows: no line for them


def test_p_chosen_below_half_swaps_the_answers_and_what_was_shown_first(tmp_path: Path) -> None:
    rows = [GOOD | {"p_chosen": 0.2, "chosen_first": True}, GOOD | {"p_chosen": 0, "chosen_first": "no"}]
    one, other = read(tmp_path, rows, "pairs").comparisons
    assert (one.chosen, one.rejected, one.p_chosen, one.chosen_first) == ("no", "yes", 0.8, False)
    assert (other.chosen, other.rejected, other.p_chosen, other.chosen_first) == ("no", "yes", 1.0, True)


@pytest.mark.parametrize("value", [True, 1, "true", "1", "YES"])
def test_chosen_first_is_read_as_logs_write_it(tmp_path: Path, value: Any) -> None:
    assert read(tmp_path, [GOOD | {"chosen_first": value}], "pairs").comparisons[0].chosen_first is True


@pytest.mark.parametrize("value", [2, 1.0, "first", []])
def test_another_chosen_first_is_refused(tmp_path: Path, value: Any) -> None:
    assert "line 1: 'chosen_first' must be true or false, got" in refused(
        tmp_path, [GOOD | {"chosen_first": value}], "pairs"
    )


TRL: dict[str, dict[str, Any]] = {
    "standard, explicit": {"prompt": "The sky is", "chosen": " blue.", "rejected": " green."},
    "conversational, explicit": {"prompt": said("sky?"), "chosen": answer("blue"), "rejected": answer("green")},
    "conversational, explicit, several turns": {
        "prompt": said("hi", "hello", "sky?"),
        "chosen": answer("blue"),
        "rejected": answer("green"),
    },
    "conversational, implicit": {"chosen": said("sky?", "blue"), "rejected": said("sky?", "green")},
    "conversational, implicit, several turns": {
        "chosen": said("hi", "hello", "sky?", "blue"),
        "rejected": said("hi", "hello", "sky?", "green"),
    },
    "conversational, implicit, with a system prompt": {
        "chosen": [{"role": "system", "content": "be brief"}, *said("sky?", "blue")],
        "rejected": [{"role": "system", "content": "be brief"}, *said("sky?", "green")],
    },
    "conversational, implicit, prompt repeated as text": {
        "prompt": "sky?",
        "chosen": said("sky?", "blue"),
        "rejected": said("sky?", "green"),
    },
}


@pytest.mark.parametrize("case", TRL)
def test_trl_formats_are_taken_apart_as_trl_does(tmp_path: Path, case: str) -> None:
    """Against TRL's own function."""
    theirs: Any = maybe_extract_prompt(dict(TRL[case]))
    (ours,) = read(tmp_path, [TRL[case]], "pairs", anonymous=True).comparisons
    if isinstance(theirs["prompt"], str):
        assert (ours.prompt, ours.chosen, ours.rejected) == (theirs["prompt"], theirs["chosen"], theirs["rejected"])
    else:
        assert ours.prompt == messages(theirs["prompt"])
        assert ([ours.chosen], [ours.rejected]) == tuple(
            [turn["content"] for turn in theirs[name]] for name in ("chosen", "rejected")
        )
    assert ours.user_id == "anonymous"


@pytest.mark.parametrize(
    ("chosen", "rejected", "parts"),
    [
        ("The sky is blue.", "The sky is green.", ("The sky is ", "blue.", "green.")),
        ("The sky is blue.", "The sky is black.", ("The sky is ", "blue.", "black.")),  # TRL parts "bl" from "ue."
        ("Human: a\n\nAssistant: yes", "Human: a\n\nAssistant: no, b", ("Human: a\n\nAssistant: ", "yes", "no, b")),
        ("It is so", "It is so and so", ("It is ", "so", "so and so")),
    ],
)
def test_an_implicit_prompt_of_texts_ends_before_the_word_in_which_they_part(
    tmp_path: Path, chosen: str, rejected: str, parts: tuple[str, str, str]
) -> None:
    row: dict[str, Any] = {"chosen": chosen, "rejected": rejected}
    (found,) = read(tmp_path, [row], "pairs", anonymous=True).comparisons
    assert (found.prompt, found.chosen, found.rejected) == parts
    theirs: Any = maybe_extract_prompt(dict(row))
    assert theirs["prompt"].startswith(found.prompt.rstrip())  # type: ignore[union-attr]
    assert found.prompt + found.chosen == chosen  # type: ignore[operator]


@pytest.mark.parametrize(
    "extra",
    ["prompt_id", "promptId", "prompt-hash", "raw_prompt", "chosen_first_model", "weight_kg", "conversation_hash"],
)
@pytest.mark.parametrize("case", ["conversational, implicit", "texts"])
def test_a_column_whose_name_has_another_word_is_another_column(tmp_path: Path, extra: str, case: str) -> None:
    """TRL's data sets with an implicit prompt have a `prompt_id` beside it."""
    row = TRL.get(case) or {"chosen": "The sky is blue.", "rejected": "The sky is green."}
    found = read(tmp_path, [row | {extra: "7f3a"}], "pairs", anonymous=True)
    assert found.comparisons == read(tmp_path, [row], "pairs", anonymous=True).comparisons
    assert found.notes == [f"columns that are not read: {extra}"]


def test_a_prompt_column_that_is_empty_leaves_the_implicit_prompt(tmp_path: Path) -> None:
    row = TRL["conversational, implicit"]
    for empty in ("", None):
        found = read(tmp_path, [row | {"prompt": empty}], "pairs", anonymous=True)
        assert found.comparisons == read(tmp_path, [row], "pairs", anonymous=True).comparisons


def test_prose_in_a_column_called_like_the_prompt_is_not_passed_over(tmp_path: Path) -> None:
    """What both answers begin with would else be taken for the prompt."""
    row = {"user_id": "u", "prompt_text": "which sky?", "chosen": "The sky is blue.", "rejected": "The sky is green."}
    assert "'prompt' is missing, but 'prompt_text' may be it" in refused(tmp_path, [row], "pairs")
    (named,) = read(tmp_path, [row], "pairs", columns={"prompt": "prompt_text"}).comparisons
    assert (named.prompt, named.chosen) == ("which sky?", "The sky is blue.")
    (carried,) = read(tmp_path, [row], "pairs", metadata=["prompt_text"]).comparisons
    assert (carried.prompt, carried.chosen) == ("The sky is ", "blue.")


def test_a_text_prompt_and_answers_as_messages(tmp_path: Path) -> None:
    rows = [GOOD, GOOD | {"chosen": answer("yes"), "rejected": answer("no")}, GOOD | {"chosen": answer("yes")}]
    found = read(tmp_path, rows, "pairs")
    assert found.comparisons == [Comparison(**GOOD)]  # type: ignore[arg-type]
    assert found.rows == {"used": 1, "said twice": 2}


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "different conversations": (
        {"chosen": said("sky?", "blue"), "rejected": said("sea?", "blue")},
        "'chosen' and 'rejected' must hold the same conversation before their last message",
    ),
    "one holds a conversation": ({"chosen": said("sky?", "blue"), "rejected": "green"}, "the same conversation before"),
    "another prompt": (
        {"prompt": "sea?", "chosen": said("sky?", "blue"), "rejected": said("sky?", "green")},
        "'prompt' is not the conversation that 'chosen' and 'rejected' begin with",
    ),
    "another conversation as prompt": (
        {"prompt": said("sea?"), "chosen": said("sky?", "blue"), "rejected": said("sky?", "green")},
        "'prompt' is not the conversation",
    ),
    "ends with the user": ({"chosen": said("sky?"), "rejected": said("sea?")}, "'prompt' is missing"),
    "ends with the user's last word": (
        {"chosen": said("sky?", "blue", "no"), "rejected": said("sky?", "blue", "yes")},
        "must end with a message of role 'user'",
    ),
    "no prompt": ({"chosen": "yes", "rejected": "no"}, "'prompt' is missing, and 'chosen' and 'rejected' do not begin"),
    "no prompt for answers": (
        {"chosen": answer("yes"), "rejected": answer("no")},
        "'prompt' is missing; the row has",
    ),
    "a blank prompt in common": ({"chosen": "\nyes", "rejected": "\nno"}, "'prompt' is empty"),
    "same answers": ({"prompt": "q", "chosen": "a", "rejected": "a"}, "are the same text"),
    "same conversations": ({"chosen": said("q", "a"), "rejected": said("q", "a")}, "are the same text"),
    "a list and a text": ({"prompt": "q", "chosen": ["a"], "rejected": "b"}, "'chosen[0]' must be an object with"),
    "lists without prompt": ({"chosen": ["a"], "rejected": ["b"]}, "field 'prompt' is missing"),
    "lists with a blank": ({"prompt": "q", "chosen": ["a"], "rejected": ["b", " "]}, "'rejected' is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_taken_apart_is_refused(tmp_path: Path, case: str) -> None:
    row, message = BAD[case]
    found = refused(tmp_path, [row], "pairs", anonymous=True)
    assert found.startswith("log.jsonl, line 1: ")
    assert message in found


def test_reward_bench_rows_are_read_as_they_are(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2?", "chosen": "4", "chosen_model": "a", "rejected": "5", "rejected_model": "b"}
    row |= {"subset": "math", "id": 1}  # type: ignore[dict-item]
    found = read(tmp_path, [row], "pairs", anonymous=True, metadata=["subset"])
    assert found.comparisons == [Comparison("anonymous", "2 + 2?", "4", "5", metadata={"subset": "math"})]
    assert found.notes == ["columns that are not read: chosen_model, id, rejected_model"]


def reward_bench_2(n_chosen: int, n_rejected: int) -> dict[str, Any]:
    return {
        "id": "1", "prompt": "q", "chosen": [f"good {i}" for i in range(n_chosen)], "subset": "Ties",
        "rejected": [f"bad {i}" for i in range(n_rejected)], "num_correct": n_chosen, "num_incorrect": n_rejected,
        "total_completions": n_chosen + n_rejected, "models": ["m"], "additional_metadata": {"category": "x"},
    }  # fmt: skip


def test_reward_bench_2_rows_pair_every_chosen_with_every_rejected_answer(tmp_path: Path) -> None:
    found = read(tmp_path, [reward_bench_2(1, 3), reward_bench_2(2, 2) | {"prompt": "p"}], "pairs", anonymous=True)
    one, two = ([(c.chosen, c.rejected) for c in found.comparisons if c.prompt == prompt] for prompt in "qp")
    assert one == [("good 0", "bad 0"), ("good 0", "bad 1"), ("good 0", "bad 2")]
    assert set(two) == {("good 0", "bad 0"), ("good 0", "bad 1"), ("good 1", "bad 0"), ("good 1", "bad 1")}
    assert (found.rows, found.pairs) == ({"used": 2}, {"kept": 7})
    assert "at most 8" in found.rule
    assert "at most" not in read(tmp_path, [GOOD], "pairs").rule  # no lists, no rule of lists


@pytest.mark.parametrize(("n", "m", "most"), [(1, 20, 8), (20, 1, 8), (10, 10, 4), (3, 9, 2), (26, 40, 5), (9, 2, 1)])
def test_lists_of_answers_keep_to_max_pairs_and_the_rest_is_counted(tmp_path: Path, n: int, m: int, most: int) -> None:
    """As many as can be: each answer of the shorter list enters `most`."""
    found = read(tmp_path, [reward_bench_2(n, m)], "pairs", anonymous=True, max_pairs=most)
    times: dict[str, int] = {}
    for a, b in won(found):
        assert a.startswith("good")
        times[a], times[b] = times.get(a, 0) + 1, times.get(b, 0) + 1
    assert len(set(won(found))) == len(found.comparisons)
    assert max(times.values()) == most
    assert found.pairs["kept"] == min(n, m) * most
    assert found.pairs == {"kept": min(n, m) * most, "over max_pairs": n * m - min(n, m) * most}


def test_an_anonymous_log_is_one_persons_and_named_ones_are_asked_for(tmp_path: Path) -> None:
    row = {name: value for name, value in GOOD.items() if name != "user_id"}
    message = refused(tmp_path, [row], "pairs")
    assert message.startswith("log.jsonl, line 1: field 'user_id' is missing; ")
    for part in ("'prompt', 'chosen', 'rejected'", "'data.columns', as in {user_id: COLUMN}", "'data.anonymous: true'"):
        assert part in message
    found = read(tmp_path, [row, row | {"prompt": "milk?"}, GOOD], "pairs", anonymous=True)
    assert [c.user_id for c in found.comparisons] == ["anonymous", "anonymous", "ann"]


def test_a_csv_reads_messages_from_json_and_leaves_text_in_brackets_alone(tmp_path: Path) -> None:
    conversation = json.dumps(said("hi", "hello", "tea?")).replace('"', '""')
    table = f'user_id,prompt,chosen,rejected,p_chosen\nu,"{conversation}",[yes],"[""no""]",0.9\nv,[tea],[1],[2],\n'
    with pytest.raises(ValueError, match=r"line 3: 'p_chosen'"):
        read_csv(tmp_path, table, "pairs")
    one, other = read_csv(tmp_path, table.rstrip() + "1\n", "pairs").comparisons
    assert (one.prompt, one.chosen, one.rejected) == (messages(said("hi", "hello", "tea?")), "[yes]", '["no"]')
    assert (other.prompt, other.chosen, other.rejected) == ("[tea]", "[1]", "[2]")

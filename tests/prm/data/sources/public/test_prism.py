"""PRISM: a survey and conversations in its schema, with every edge that the paper's recipe has."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prm.config import FeedbackConfig
from prm.data.comparison import Message
from prm.data.encoding import TextEncoder
from prm.data.sources import Feedback, read_feedback
from prm.data.sources.public import prism
from prm.data.sources.public.prism_splits import judged_set, other_turns, paper_parts, shortfalls, turn_of
from prm.errors import DataError, PrmError
from prm.models.backbones import load_tokenizer

PREFERENCES = ("values", "creativity", "fluency", "factuality", "diversity", "safety", "personalisation", "helpfulness")
TEXT = (
    "User textual information: preference: creativity, factuality, safety; self_description: I paint.; "
    "age: 25-34 years old; gender: Female; education: University Bachelors Degree; employment: Working full-time; "
    "marital: Never been married; english_proficiency: Fluent"
)


def person(user: str, completed: int = 6, **more: Any) -> dict[str, Any]:
    ranks = dict(zip(PREFERENCES, (5, 1, 7, 3, 6, 2, 8, 4), strict=True)) | {"other": 9}
    about: dict[str, Any] = {"self_description": "I paint.", "age": "25-34 years old", "gender": "Female"}
    about |= {"education": "University Bachelors Degree", "employment_status": "Working full-time"}
    about |= {"marital_status": "Never been married", "english_proficiency": "Fluent", "religion": {"simplified": "x"}}
    row = {"user_id": user, "survey_only": not completed, "num_completed_conversations": completed}
    return row | about | {"system_string": "Be kind.", "order_stated_prefs": ranks} | more


def talk(user: str, name: str, *turns: tuple[str, str, Sequence[str]]) -> dict[str, Any]:
    """A conversation of turns (what the person said, the chosen answer, the others)."""
    history: list[dict[str, Any]] = []
    for number, (said, chosen, others) in enumerate(turns):
        history.append({"turn": number, "role": "user", "content": said})
        for place, answer in enumerate([*others, chosen]):  # the chosen one is not always first
            entry = {"turn": number, "role": "model", "content": answer, "model_name": "m", "score": 50}
            history.append(entry | {"if_chosen": place == len(others), "within_turn_id": place})
    row = {"conversation_id": name, "user_id": user, "conversation_type": "unguided", "conversation_turns": len(turns)}
    return row | {"opening_prompt": turns[0][0] if turns else "", "conversation_history": history, "open_feedback": ""}


def short(user: str, name: str) -> dict[str, Any]:
    return talk(user, name, (f"{name}?", "yes", ["no"]))


def read(folder: Path, survey: list[Any], talks: list[Any], **settings: Any) -> Feedback:
    for name, rows in (("survey", survey), ("conversations", talks)):
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_feedback(FeedbackConfig(path=str(folder), source="prism", **settings))


def test_the_chosen_answer_against_each_other_one_with_the_chosen_path_before_it(tmp_path: Path) -> None:
    turns = [("hi", "good", ["bad", "worse", "worst"]), ("and?", "fine", ["poor"])]
    found = read(tmp_path, [person("user0")], [talk("user0", "c0", *turns)])
    path = (Message("user", "hi"), Message("assistant", "good"), Message("user", "and?"))
    assert [(c.prompt, c.chosen, c.rejected, c.metadata["turn"]) for c in found.comparisons] == [
        (path[:1], "good", "bad", 0),
        (path[:1], "good", "worse", 0),
        (path[:1], "good", "worst", 0),
        (path, "fine", "poor", 1),
    ]
    assert {(c.metadata["dialogue"], c.conversation_id) for c in found.comparisons} == {("c0", "c0")}
    assert found.rows == {"used": 1}


def test_a_long_history_is_not_cut_here_nor_for_later_turns(tmp_path: Path) -> None:
    """Three turns of 2000 characters: the last prompt still begins with the first word."""
    turns = [(f"{i} " + "x" * 1000, f"{i} " + "y" * 1000, ["no"]) for i in range(4)]
    found = read(tmp_path, [person("u")], [talk("u", "c", *turns)])
    last = found.comparisons[-1].prompt
    assert [m[1] for m in last] == [text for turn in turns for text in turn[:2]][:-1]


def test_the_survey_is_the_persons_text_in_both_terms(tmp_path: Path, tiny: str) -> None:
    """The sequence of the unknown user differs from the person's in the user's own token alone."""
    found = read(tmp_path, [person("u")], [short("u", "c")])
    (c,) = found.comparisons
    assert c.user_text == TEXT
    encoder = TextEncoder(load_tokenizer(tiny), 336, 1, "prefix", 512)
    own, generic = (encoder.encode(c.prompt, c.chosen, row, c.user_text).ids for row in (3, 0))
    assert own[1:] == generic[1:]
    assert own != generic
    assert len(generic) > len(encoder.encode(c.prompt, c.chosen, 0).ids) + 100


def test_columns_without_a_value_are_left_out_of_the_text(tmp_path: Path) -> None:
    blank: dict[str, Any] = dict.fromkeys(
        ("self_description", "gender", "education", "employment_status", "marital_status"), " "
    )
    survey = person("u", **blank, english_proficiency=None, order_stated_prefs={"values": 4, "safety": None})
    (c,) = read(tmp_path, [survey], [short("u", "c")]).comparisons
    assert c.user_text == "User textual information: age: 25-34 years old"


def test_length_goes_by_pair(tmp_path: Path) -> None:
    """2300 characters of what is said and one answer: a long reject does not drop its siblings, nor later turns."""
    fits, long = "f" * 2298, "l" * 2299
    turns = [("hi", "good", ["bad", long, fits]), ("so", long, ["bad"]), ("ok", "good", [long])]
    found = read(tmp_path, [person("u")], [talk("u", "c", *turns)])
    assert [c.rejected for c in found.comparisons] == ["bad", fits]
    assert found.pairs == {"kept": 2, "more than 2300 characters": 3}


def test_what_says_nothing_is_left_out_and_counted(tmp_path: Path) -> None:
    survey = [person("u"), person("idle", 0)]
    talks = [
        short("u", "c0"),
        talk("u", "c1", ("hi", "same", ["same", " "]), (" ", "good", ["bad"])),
        talk("u", "c2", ("hi", "good", [])),
        talk("u", "c3"),
        short("idle", "c4"),
    ]
    found = read(tmp_path, survey, talks)
    assert found.rows == {
        "used": 1,
        "no turn with two answers that fit": 3,
        "by somebody without a completed conversation": 1,
    }
    assert found.pairs == {"kept": 1, "the same text twice": 1, "an empty text": 2}
    assert found.notes[0] == "people without a completed conversation: 1"


def test_a_turn_without_a_chosen_answer_has_no_pair(tmp_path: Path) -> None:
    row = talk("u", "c", ("hi", "good", ["bad"]), ("so?", "fine", ["poor"]))
    for entry in row["conversation_history"]:
        entry["if_chosen"] = bool(entry.get("if_chosen")) and entry["turn"] == 1
    (c,) = read(tmp_path, [person("u")], [row]).comparisons
    assert (c.chosen, [m[1] for m in c.prompt]) == ("fine", ["hi", "so?"])


def papers_draw(dialogues: dict[str, list[str]]) -> tuple[set[str], set[str], set[str]]:
    """(dialogues to learn from, seen people, unseen people), step by step with numpy's global generator."""
    np.random.seed(123)
    users = np.array(list(dialogues))
    np.random.shuffle(users)
    train, seen, unseen = set[str](), set[str](), set[str](users[int(len(users) * 0.9) :].tolist())
    for user in users[: int(len(users) * 0.9)]:
        own = np.array(dialogues[user])
        np.random.shuffle(own)
        train |= set(own[: int(len(own) * 0.9)].tolist())
        (seen if len(own) > 1 else unseen).add(str(user))
    return train, seen, unseen


def test_the_split_is_the_papers(tmp_path: Path) -> None:
    """40 people with one to seven dialogues: those with a single one are unseen, whatever they drew."""
    dialogues = {f"user{i}": [f"c{i}-{j}" for j in range(1 + i % 7)] for i in range(40)}
    survey = [person(user) for user in dialogues]
    found = read(tmp_path, survey, [short(user, name) for user, own in dialogues.items() for name in own])
    train, seen, unseen = papers_draw(dialogues)
    parts = {c.metadata["dialogue"]: c.metadata["split"] for c in found.comparisons}
    assert {name for name, part in parts.items() if part == "train"} == train
    assert {c.user_id for c in found.comparisons if c.metadata["split"] in ("train", "test")} == seen
    assert {c.user_id for c in found.comparisons if c.metadata["split"] == "unseen"} == unseen
    single = {user for user, own in dialogues.items() if len(own) == 1}
    assert single <= unseen
    assert len(single) == 6
    assert paper_parts(dialogues) == paper_parts(dict(dialogues))


def test_a_dialogue_without_a_turn_that_fits_stands_outside_the_draw(tmp_path: Path) -> None:
    """The paper drops it whole; its short pair is kept here, but nothing is learnt from it, nor does it shift the
    draw for everybody after it."""
    dialogues = {f"user{i}": [f"c{i}-{j}" for j in range(5)] for i in range(20)}
    talks = [short(user, name) for user, own in dialogues.items() for name in own]
    before = {
        c.metadata["dialogue"]: c.metadata["split"]
        for c in read(tmp_path, [*map(person, dialogues)], talks).comparisons
    }
    odd = talk("user3", "odd", ("hi", "good", ["bad", "l" * 2300]))
    after = {
        c.metadata["dialogue"]: c.metadata["split"]
        for c in read(tmp_path, [*map(person, dialogues)], [odd, *talks]).comparisons
    }
    seen = "train" in {part for name, part in before.items() if str(name).startswith("c3-")}
    assert after == before | {"odd": "test" if seen else "unseen"}


def test_pairs_turns_dialogues_and_users_of_each_part_are_reported(tmp_path: Path) -> None:
    turns = [("hi", "good", ["bad", "worse"]), ("so", "fine", ["poor"])]
    talks = [talk("user0", f"c{i}", *turns) for i in range(10)]
    notes = read(tmp_path, [person("user0")], talks).notes
    assert notes[-3:] == [  # int(0.9 * 1) seen people: nobody
        "part train: 0 pairs in 0 turns of 0 dialogues by 0 people",
        "part test: 0 pairs in 0 turns of 0 dialogues by 0 people",
        "part unseen: 30 pairs in 20 turns of 10 dialogues by 1 people",
    ]


def test_counts_are_compared_where_all_of_it_was_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survey = [person(f"user{i}") for i in range(10)] + [person("idle", 0)]
    talks = [short(f"user{i}", f"c{i}-{j}") for i in range(10) for j in range(2)]
    monkeypatch.setattr(prism, "CARD", replace(prism.CARD, counts={"survey rows": 11, "conversations": 20}))
    monkeypatch.setattr(prism, "PAPER", {"people": 10, "seen people": 9, "unseen people": 1, "dialogues": 20})
    assert "the complete data set: its counts are those of the paper's split" in read(tmp_path, survey, talks).notes
    cut = [*talks[:-1], talk("user9", "c9-1", ("hi", "good", []))]
    (warning,) = [note for note in read(tmp_path, survey, cut).notes if note.startswith("warning")]
    assert "dialogues 19, there 20" in warning
    assert not [note for note in read(tmp_path, survey, talks[:-1]).notes if "original" in note]


def many(folder: Path) -> Feedback:
    """120 people, 12 of them unseen, with 4 dialogues of 3 turns and 4 pairs."""
    turns = [("hi", "good", ["bad", "worse"]), ("so", "fine", ["poor"]), ("then", "yes", ["no"])]
    names = [(f"user{i}", f"c{i}-{j}") for i in range(120) for j in range(4)]
    talks = [
        talk(user, name, *((f"{name} {said}", chosen, others) for said, chosen, others in turns))
        for user, name in names
    ]
    return read(folder, [person(f"user{i}") for i in range(120)], talks)


def test_the_judged_set_is_drawn_with_its_seed(tmp_path: Path) -> None:
    """Ten seen users have one held-out dialogue of 3 turns, ten unseen ones four: 60 turns of first dialogues, and 16
    of second ones, which the unseen alone have. Nothing is in it that is trained on."""
    log = many(tmp_path).comparisons
    found = judged_set(log, seed=3)
    assert found == judged_set(list(log), seed=3) != judged_set(log, seed=4)
    assert len(found) == 76
    people = {part: {c.user_id for c in found if c.metadata["split"] == part} for part in ("train", "test", "unseen")}
    assert [len(own) for own in people.values()] == [0, 10, 10]
    trained = {(c.user_id, c.metadata["dialogue"]) for c in log if c.metadata["split"] == "train"}
    assert not trained & {(c.user_id, c.metadata["dialogue"]) for c in found}
    assert not people["unseen"] & {user for user, _ in trained}
    turns = [(c.metadata["dialogue"], c.metadata["turn"]) for c in found]
    assert len(set(turns)) == 76  # one sample a turn, by its first pair
    dialogues = {c.metadata["dialogue"]: c.user_id for c in found}
    whole = {user for name, user in dialogues.items() if sum(d == name for d, _ in turns) == 3}
    assert whole == people["test"] | people["unseen"]
    assert {c.rejected for c in found} == {"bad", "poor", "no"}
    assert found == [c for c in log if c in found]
    assert shortfalls(found) == []


def test_the_judged_set_holds_everybody_and_what_there_is(tmp_path: Path) -> None:
    """What a log has too little of is said; a prompt that opens two dialogues of a user is answered once."""
    log = many(tmp_path).comparisons
    assert len({c.user_id for c in judged_set(log, people=12, samples=5)}) == 24
    assert shortfalls(judged_set(log, people=12, samples=5), 12, 5) == [
        "24 turns instead of 5: each user has at least one"
    ]
    every = judged_set(log, people=2, samples=5000)
    assert len(every) == 2 * 3 + 2 * 12  # all turns of one and of four dialogues
    few = judged_set(log, people=13)
    assert len({c.user_id for c in few if c.metadata["split"] == "unseen"}) == 12
    assert shortfalls(few, 13) == [
        "12 unseen users instead of 13: the log has no more (metadata 'split' 'unseen')",
    ]
    assert shortfalls(every, 2, 5000) == ["30 turns instead of 5000: the drawn users have no more"]
    again = [replace(c, metadata={**c.metadata, "dialogue": "x"}) for c in every]
    assert len(judged_set([*every, *again], people=2, samples=5000)) == 30
    with pytest.raises(PrmError, match="'split'"):
        judged_set([c for c in log if c.metadata["split"] == "train"])


def test_other_turns_are_those_of_the_dialogue_and_openings_of_others(tmp_path: Path) -> None:
    """By their first pairs, never the judged turn or its prompt."""
    turns = [("hi", "good", ["bad", "worse"]), ("so", "fine", ["poor"]), ("then", "yes", ["no"])]
    talks = [talk("u", "c0", *turns), short("u", "c1"), short("u", "c2"), short("u", "c3"), short("v", "c4")]
    talks.append(talk("u", "c5", ("hi", "also good", ["bad"])))
    log = read(tmp_path, [person("u"), person("v")], talks).comparisons
    own = [c for c in log if c.user_id == "u"]
    first, second = (next(c for c in own if turn_of(c) == ("u", "c0", number)) for number in (0, 1))
    assert [(c.chosen, c.rejected) for c in other_turns(own, second, 0)] == [("good", "bad"), ("yes", "no")]
    names = [turn_of(c)[1:] for c in other_turns(own, first, 3)]
    assert names == [("c0", 1), ("c0", 2), ("c1", 0), ("c2", 0), ("c3", 0)]
    assert [turn_of(c)[1:] for c in other_turns(own, second, 9)][-1] == ("c5", 0)


def test_what_people_expect_and_say_afterwards_is_kept(tmp_path: Path) -> None:
    """The system string is the person's, the feedback the conversation's; null is nothing, and neither is in the
    prompt or the user's text."""
    talks = [short("u", "c0") | {"open_feedback": "Too long."}, short("v", "c1") | {"open_feedback": None}]
    first, second = read(tmp_path, [person("u"), person("v", system_string=None)], talks).comparisons
    said = [(c.metadata["system_string"], c.metadata["open_feedback"]) for c in (first, second)]
    assert said == [("Be kind.", "Too long."), ("", "")]
    assert "Be kind." not in first.user_text
    assert len(first.prompt) == 1


def bad_talk(**entry: Any) -> dict[str, Any]:
    row = short("u", "c9")
    row["conversation_history"][1] |= entry
    return row


BAD: list[tuple[Any, str]] = [
    (short("u", "c9") | {"conversation_history": "hi"}, "'conversation_history' must be a list, got text"),
    (bad_talk(content=None), "'conversation_history[1].content' must be text, got null"),
    (bad_talk(content="\ud800"), "'conversation_history[1].content' holds a lone surrogate"),
    (bad_talk(turn=None), "'conversation_history[1]' must be an object with a whole number as 'turn'"),
    (bad_talk(role="bot"), "'conversation_history[1].role' must be 'user' or 'model', got text"),
    (short(" ", "c9"), "'user_id' is empty"),
    (short("u", "c9") | {"conversation_id": None}, "'conversation_id' must be text, got null"),
    (short("u", "c9") | {"open_feedback": 3}, "'open_feedback' must be text, got int 3"),
    ({k: v for k, v in short("u", "c9").items() if k != "open_feedback"}, "'open_feedback' is missing"),
    ([1], "expected a JSON object, got a list"),
]


@pytest.mark.parametrize(("bad", "said"), BAD)
def test_a_bad_conversation_is_named_or_skipped(tmp_path: Path, bad: Any, said: str) -> None:
    talks = [short("u", "c0"), bad]
    with pytest.raises(DataError) as caught:
        read(tmp_path, [person("u")], talks)
    assert str(caught.value).startswith(f"{tmp_path}/conversations.jsonl, line 2: {said}")
    assert read(tmp_path, [person("u")], talks, on_bad_row="skip").rows == {"used": 1, "bad": 1}


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (person("v", num_completed_conversations=None), "'num_completed_conversations' must be a whole number"),
        (person("v", order_stated_prefs=[]), "'order_stated_prefs' must be an object, got a list"),
        (person("v", self_description="\ud800"), "'the survey's text' holds a lone surrogate"),
        (person(""), "'user_id' is empty"),
        (person("v", system_string=["x"]), "'system_string' must be text, got a list"),
        ("x", "expected a JSON object, got text"),
    ],
)
def test_a_bad_survey_row_is_named(tmp_path: Path, bad: Any, said: str) -> None:
    with pytest.raises(DataError) as caught:
        read(tmp_path, [person("u"), bad], [short("u", "c0")])
    assert str(caught.value).startswith(f"{tmp_path}/survey.jsonl, line 2: {said}")

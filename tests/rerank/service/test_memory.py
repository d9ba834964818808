"""What the service holds in memory of texts and people has limits, and these change no result."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from prm.data.comparison import Prompt
from prm.data.encoding import Encoded
from prm.errors import PrmError
from rerank.service.judgements import Judgement
from rerank.service.learning import Learner
from rerank.service.texts import TextRequest
from tests.rerank.service.conftest import MakeEngine
from tests.rerank.service.test_engine import KING, LIKES_KINGS, MIX, NONE, PROMPT, row_of


def test_a_text_that_two_requests_had_read_counts_once(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is kept while the second request, which did not find it, still tokenises: later ones would find no room."""
    texts = make_engine().texts
    encode, request = texts._reader.encode, TextRequest(PROMPT, KING)

    def read() -> None:
        texts.get([request], time.monotonic() + 20.0)

    def encoded_late(prompt: Prompt, response: str, user_text: str = "") -> Encoded:
        monkeypatch.setattr(texts._reader, "encode", encode)
        read()
        return encode(prompt, response, user_text)

    monkeypatch.setattr(texts._reader, "encode", encoded_late)
    read()
    assert texts.read_texts == 2
    texts.forget([request])
    assert texts.kept_bytes == 0


def test_a_long_log_is_read_in_parts_that_may_wait(make_engine: MakeEngine) -> None:
    engine, prompts = make_engine(max_waiting_texts=2, max_responses=2), ["who?", "when?"]
    for prompt in prompts:
        engine.give_feedback("", "zoe", Judgement("pair", prompt, (KING, NONE), 0))
    for text in (KING, NONE):
        engine.give_feedback("", "zoe", Judgement("thumb", PROMPT, (text,), text == KING))
    engine.texts.forget([TextRequest(prompt, text) for prompt in prompts for text in (KING, NONE)])
    again = engine.give_feedback("", "zoe", Judgement("thumb", PROMPT, (NONE,), 1))  # takes a comparison back
    assert (again.comparisons, again.known_by) == (0, 2)


def test_more_users_than_there_is_room_for_are_refused(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's row would be theirs."""
    monkeypatch.setattr("rerank.service.people._MOST_PEOPLE", 1)
    engine = make_engine()
    users = ["zoe", *(f"u{i}" for i in range(engine.people.most))]
    for i, user in enumerate(users):
        engine.give_feedback("", user, Judgement("pair", PROMPT, (KING, NONE), i % 2))
    found = engine.score_users("", PROMPT, [KING, NONE, MIX], users[:-1])
    assert found[0] == pytest.approx(row_of(engine, "zoe"), abs=1e-4)
    with pytest.raises(PrmError, match=f"room for {engine.people.most}"):
        engine.score_users("", PROMPT, [KING], users)


def test_an_outdated_user_waits_once(
    make_engine: MakeEngine, run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often somebody asks for them before the run has fitted them."""
    make_engine("bayes").give_feedback("", "p0", LIKES_KINGS)
    monkeypatch.setattr(Learner, "_keep_up", lambda self: None)
    people = make_engine("linear").people
    for _ in range(2):
        found = []
        for _ in range(3):
            assert people.one(("", "p0")).outdated
        while (user := people.next_outdated(0.0)) is not None:
            found.append(user)
        assert found == [("", "p0")]


def test_what_waits_to_be_written_has_a_size(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it rankings go on, and are not written down."""
    engine, go = make_engine(), threading.Event()
    write = engine.store.add_shown

    def written_late(rows: Sequence[Mapping[str, object]]) -> None:
        go.wait(20.0)
        write(rows)

    monkeypatch.setattr(engine.store, "add_shown", written_late)
    monkeypatch.setattr("rerank.service.shown_log._MOST_CHARACTERS", 250)
    for _ in range(5):
        engine.rank("", PROMPT, [KING, NONE], "zoe")  # 77 characters each
    go.set()
    engine.shown.wait()
    assert (engine.shown.lost, len(engine.store.shown_to(("", "zoe")))) == (2, 3)
    engine.rank("", PROMPT, [KING, NONE], "zoe")
    engine.shown.wait()
    assert engine.shown.lost == 2

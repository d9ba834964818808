"""Replicas on one store: what one does between two steps of the other neither is lost nor comes back."""

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from prm.data.sources.store.schema import comparisons, feedback, people, shown
from rerank.service.engine import CHAT, Engine
from rerank.service.errors import ConflictError
from rerank.service.judgements import Judgement
from rerank.service.learning import Learner, Receipt
from rerank.service.shown_log import Shown
from rerank.service.store import SavedPerson, Store
from tests.rerank.service.conftest import MakeEngine, on_both, until
from tests.rerank.service.test_engine import KING, LIKES_KINGS, MIX, NONE, PROMPT, row_of

DISLIKES_KINGS = Judgement("pair", PROMPT, (NONE, KING), 0)


def between(engine: Engine, name: str, work: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something once, just before the engine's learner calls this method of its own."""
    real, done = getattr(engine.learner, name), list[bool]()

    def call(*args: object) -> object:
        if not done:
            done.append(True)
            work()
        return real(*args)

    monkeypatch.setattr(engine.learner, name, call)


def thumb(text: str, up: int) -> Judgement:
    return Judgement("thumb", PROMPT, (text,), up)


@on_both
def test_ten_threads_send_one_key(make_engine: MakeEngine) -> None:
    engines, receipts = [make_engine(), make_engine()], list[Receipt]()
    start = threading.Barrier(10)

    def give(engine: Engine) -> None:
        start.wait()
        receipts.append(engine.give_feedback("", "zoe", LIKES_KINGS, key="one"))

    threads = [threading.Thread(target=give, args=(engines[i % 2],)) for i in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(receipts) == 10
    assert {r._replace(again=True) for r in receipts} == {Receipt(receipts[0].feedback_id, 1, 1, True)}
    assert sum(not r.again for r in receipts) == 1
    counts = engines[0].store.counts()
    assert (counts["feedback"], counts["comparisons"], counts["people"]) == (1, 1, 1)


@on_both
def test_thumbs_of_two_replicas_are_compared(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first thumbs of a user, up here and down there, and one that is turned round meanwhile."""
    here, there = make_engine(), make_engine()
    between(here, "_expected", lambda: there.give_feedback("", "zoe", thumb(NONE, 0)), monkeypatch)
    here.give_feedback("", "zoe", thumb(KING, 1))
    between(here, "_expected", lambda: there.give_feedback("", "zoe", thumb(KING, 0)), monkeypatch)
    here.give_feedback("", "zoe", thumb(MIX, 1))
    found = {(row.chosen, row.rejected) for row in here.store.comparisons_of(("", "zoe"))}
    assert found == {(MIX, KING), (MIX, NONE)}
    assert here.people.one(("", "zoe")).comparisons == 2


@pytest.mark.postgres
@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
def test_who_waited_for_a_deletion_sees_it_whatever_the_servers_isolation(store_url: str) -> None:
    first = Store(store_url)
    with first.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        name = first.engine.url.database
        connection.exec_driver_sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    store, who = Store(store_url), ("", "zoe")
    with store.changing(who):
        waiting = threading.Thread(target=store.forget, args=(who,))
        waiting.start()
        time.sleep(0.3)
        with first.writing() as connection:
            first.save(connection, who, SavedPerson(1, "model", 1, b""))
    waiting.join()
    assert not store.saved([who])
    store.close()
    first.close()


@on_both
def test_what_another_replica_has_just_shown_is_found(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    here, there = make_engine(), make_engine()
    write = here.store.add_shown

    def written_late(rows: Sequence[Mapping[str, object]]) -> None:
        time.sleep(0.2)
        write(rows)

    monkeypatch.setattr(here.store, "add_shown", written_late)
    shown_id = here.rank("", PROMPT, [KING, NONE], "zoe").shown_id
    assert there.shown_to("", "zoe", shown_id) == (PROMPT, [KING, NONE])


@on_both
def test_two_replicas_take_one_pick_of_what_was_shown(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one is refused, though it was on its way first."""
    here, there = make_engine(), make_engine()
    late, taken = (Judgement("pick", PROMPT, (KING, NONE), i) for i in (0, 1))
    between(here, "_expected", lambda: there.give_feedback("", "zoe", taken, shown_id="shown-1"), monkeypatch)
    with pytest.raises(ConflictError):
        here.give_feedback("", "zoe", late, shown_id="shown-1")
    assert here.give_feedback("", "zoe", taken, shown_id="shown-1") == Receipt(1, 1, 1, again=True)


@on_both
def test_a_deletion_elsewhere_is_not_undone(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither by feedback that was on its way, nor by what a replica remembers of a user who said as much again."""
    here, there = make_engine(), make_engine()
    there.give_feedback("", "ben", LIKES_KINGS)
    between(here, "_expected", lambda: there.forget("", "p0"), monkeypatch)
    here.give_feedback("", "p0", LIKES_KINGS)
    assert row_of(here, "p0") == row_of(there, "p0") == row_of(there, "ben")
    here.give_feedback("", "zoe", DISLIKES_KINGS)
    assert row_of(here, "zoe") != row_of(here, "ben")
    there.forget("", "zoe")
    there.give_feedback("", "zoe", LIKES_KINGS)
    assert row_of(here, "zoe") == row_of(there, "zoe") == row_of(there, "ben")


@on_both
def test_what_a_chat_showed_is_written(make_engine: MakeEngine) -> None:
    """Its id fits into its columns."""
    engine = make_engine()
    shown_id = engine.rank("", PROMPT, [KING, NONE], "zoe", kind=CHAT).shown_id
    engine.shown.wait()
    assert [row.id for row in engine.store.shown_to(("", "zoe"))] == [shown_id]
    engine.give_feedback("", "zoe", thumb(KING, 1), shown_id=shown_id)


@on_both
def test_what_was_shown_before_a_deletion_elsewhere_is_not_written(make_engine: MakeEngine) -> None:
    here, there = make_engine(), make_engine()
    here.rank("", PROMPT, [KING, NONE], "zoe")
    here.shown.wait()
    (row,) = here.store.shown_to(("", "zoe"))
    there.forget("", "zoe")
    before: Shown = dict(row._mapping)  # type: ignore[assignment]
    after: Shown = {**before, "id": "later", "time": time.time()}
    here.store.add_shown([before, after])
    assert [row.id for row in there.store.shown_to(("", "zoe"))] == ["later"]


@on_both
def test_a_new_run_loses_no_feedback(
    make_engine: MakeEngine, run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given to the new run before it has fitted the user, or to the old run while the new one fits them."""
    old = make_engine("bayes")
    for user in ("zoe", "ben", "p0"):
        old.give_feedback("", user, LIKES_KINGS)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "_keep_up", lambda self: None)
        new = make_engine("linear")
    assert not new.people.one(("", "zoe")).known
    assert new.people.one(("", "p0")).outdated
    trained = new.people.one(("", "p0")).comparisons
    assert new.give_feedback("", "zoe", LIKES_KINGS).known_by == 2
    assert new.give_feedback("", "p0", LIKES_KINGS).known_by == trained + 2
    between(new, "_is_readable", lambda: old.give_feedback("", "ben", LIKES_KINGS), monkeypatch)
    old.give_feedback("", "carl", LIKES_KINGS)
    old.give_feedback("", "carl", LIKES_KINGS)
    for user in ("ben", "ben", "carl"):
        new.learner._refit(("", user))
    assert new.people.one(("", "ben")).comparisons == 2
    assert row_of(new, "ben") == row_of(new, "carl")


def test_a_user_whose_fit_fails_holds_up_nobody(
    make_engine: MakeEngine, run_of: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make_engine("bayes")
    for user in ("anna", "ben", "zoe"):
        old.give_feedback("", user, LIKES_KINGS)
    (first, *others) = old.store.of_other_models("", 3)
    refit = Learner._refit

    def fails_for_the_first(self: Learner, who: tuple[str, str]) -> None:
        if who == first:
            raise RuntimeError("no memory")
        refit(self, who)

    monkeypatch.setattr(Learner, "_refit", fails_for_the_first)
    new = make_engine("linear")
    until(lambda: new.store.of_other_models(new.people.digest, 3) == [first], seconds=4.0)
    assert all(new.people.one(user).known for user in others)


def test_nothing_of_a_forgotten_person_is_in_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that SQLite moved about; with a reader that holds the log, which delays it; and after a kill in between."""
    folder = tmp_path / "store"
    store = Store(f"sqlite:///{folder}/store.db")

    def traces(name: str, where: Path = folder) -> int:
        return sum(file.read_bytes().count(name.encode()) for file in where.iterdir())

    with store.writing() as connection:
        for i in range(1500):
            user = f"user-{i % 7}-x"
            said: dict[str, object] = {
                "namespace": "",
                "user_id": user,
                "kind": "pair",
                "prompt_key": f"{i * 7919 % 1500}",
            }
            said |= {"idempotency_key": f"{i}{user}", "body": f"{user} said " * (i * 31 % 90)}
            connection.execute(insert(feedback).values(**said, received=0.0))
    store.forget(("", "user-0-x"))
    assert (traces("user-0-x"), store.unerased) == (0, False)
    assert traces("user-1-x") > 1000
    monkeypatch.setattr("rerank.service.store._ERASE_WAIT", 0.1)
    reader = sqlite3.connect(folder / "store.db", isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM feedback").fetchone()
    store.forget(("", "user-1-x"))
    assert store.unerased
    reader.close()
    store.erase(1.0)
    assert (traces("user-1-x"), store.unerased) == (0, False)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "erase", lambda *_: None)
        store.forget(("", "user-2-x"))
    killed = shutil.copytree(folder, tmp_path / "killed")
    store.close()
    assert traces("user-2-x", killed) > 0
    again = Store(f"sqlite:///{killed}/store.db")
    assert traces("user-2-x", killed) == 0
    again.close()


@pytest.mark.postgres
@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
def test_no_row_of_a_forgotten_person_is_in_postgresql(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.give_feedback("", "p0", LIKES_KINGS)
    engine.rank("", PROMPT, [KING, NONE], "p0")
    assert engine.forget("", "p0") == 4
    with engine.store.engine.connect() as connection:
        for table in (people, feedback, comparisons, shown):
            rows = [dict(row._mapping) for row in connection.execute(select(table))]
            assert "p0" not in json.dumps(rows, default=str)

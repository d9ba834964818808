"""Opening a store, and a run that was trained on one."""

import json
import shutil
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import create_engine, inspect, update

from prm.cli import main as prm
from prm.config import FeedbackConfig
from prm.data.sources import read_feedback
from prm.data.sources.store.schema import comparisons, facts
from prm.errors import PrmError
from prm.io.tables import write_json
from prm.scoring.scorer import Scorer
from rerank.service.engine import Engine
from rerank.service.judgements import Judgement
from rerank.service.store import Store
from tests.rerank.service.conftest import MakeEngine, on_both, until
from tests.rerank.service.test_engine import KING, LIKES_KINGS, MIX, NONE, PROMPT, row_of
from tests.tiny_runs import config_of, train_any


@on_both
def test_replicas_that_start_at_once_make_one_store(store_url: str) -> None:
    stores = list[Store]()
    start = threading.Barrier(4)

    def make() -> None:
        start.wait()
        stores.append(Store(store_url))

    threads = [threading.Thread(target=make) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({store.digest_of(("", "zoe")) for store in stores}) == 1
    assert len(stores) == 4
    for store in stores:
        store.close()


def test_a_run_is_evaluated_on_a_store(
    engine: Engine, run_of: Callable[[str], Path], store_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its address; the path of its file is refused with that address."""
    engine.give_feedback("", "p0", LIKES_KINGS)
    run = str(shutil.copytree(run_of("bayes"), tmp_path / "run"))
    prm(["evaluate", run, store_url, "--json"])
    assert json.loads(capsys.readouterr().out)["comparisons"] == 1
    engine.close()  # so that its tables are in the file
    with pytest.raises(SystemExit):
        prm(["evaluate", run, store_url.removeprefix("sqlite:///")])
    assert store_url in capsys.readouterr().err


@on_both
def test_a_store_of_another_version_is_refused_and_left_alone(store_url: str) -> None:
    store = Store(store_url)
    with store.writing() as connection:
        connection.execute(update(facts).where(facts.c.name == "version").values(value="7"))
        connection.exec_driver_sql("DROP TABLE shown")
    store.close()
    with pytest.raises(PrmError, match="version 7"):
        Store(store_url)
    with pytest.raises(PrmError, match="version 7"):
        read_feedback(FeedbackConfig(path=store_url))
    engine = create_engine(store.engine.url)
    assert not inspect(engine).has_table("shown")
    engine.dispose()


def test_a_database_of_somebody_else_is_no_store(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE comparisons (id)")
    with pytest.raises(PrmError, match="no store"):
        read_feedback(FeedbackConfig(path=f"sqlite:///{tmp_path}/other.db"))
    (tmp_path / "text.db").write_text("no database, but a text that is longer than the header of one" * 9)
    with pytest.raises(PrmError, match="not a database"):
        Store(f"sqlite:///{tmp_path}/text.db")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://ann:swordfish@127.0.0.1:1/store",
        "postgresql://ann@127.0.0.1:1/store?password=swordfish",
        "postgresql://ann:swordfish@127.0.0.1:port/store",
        "mysql://ann:swordfish@127.0.0.1/store",
        "postgresql:ann:swordfish",
    ],
)
def test_a_password_is_in_no_message(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PrmError) as error:
        Store(url)
    assert "swordfish" not in str(error.value)
    if url.startswith("postgresql"):
        with pytest.raises(SystemExit):
            prm(["data", "describe", url])
        assert "swordfish" not in "".join(capsys.readouterr())


@pytest.mark.postgres
@pytest.mark.parametrize("store_url", ["postgres"], indirect=True)
def test_a_log_with_a_password_is_refused_since_a_run_would_keep_it(store_url: str) -> None:
    Store(store_url).close()
    with pytest.raises(PrmError, match="PGPASSWORD") as error:
        read_feedback(FeedbackConfig(path=store_url.replace("postgres@", "postgres:swordfish@")))
    assert "swordfish" not in str(error.value)


def test_a_run_trained_on_the_store_adds_what_came_since(
    make_engine: MakeEngine, backbone_of: Callable[..., str], store_url: str, tmp_path: Path
) -> None:
    """What the run has seen counts once; what it held out and what came later is added to its users.

    Later is after it read the log, though it was trained for an hour from then on.
    """
    engine = make_engine()
    for i in range(8):
        for user, likes in (("zoe", 0), ("ben", 1)):
            engine.give_feedback("", user, Judgement("pair", f"{PROMPT} {i}", (KING, NONE), likes))
    config = config_of("linear", backbone_of("llama"), tmp_path)
    config.data.path = store_url
    run = train_any("linear", config)
    record = json.loads((run / "run.json").read_text())
    record["environment"]["written"] = (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="seconds")
    write_json(run / "run.json", record)
    expected = Scorer.from_pretrained(run, device="cpu")
    with engine.store.writing() as connection:  # as if it had all been said a minute before
        connection.execute(update(comparisons).values(time=comparisons.c.time - 60))
    engine.give_feedback("", "zoe", LIKES_KINGS)
    engine.give_feedback("", "ben", Judgement("pair", f"{PROMPT} 0", (NONE, KING), 1))  # another view than before
    with engine.store.writing() as connection:
        connection.execute(update(comparisons).where(comparisons.c.id > 16).values(time=comparisons.c.time + 60))
    new = make_engine(run=run)
    until(lambda: not new.store.of_other_models(new.people.digest, 1))
    for user, count in (("zoe", 9), ("ben", 9)):
        assert new.people.one(("", user)).comparisons == count
        trained_on = expected.checkpoint.users.trained_on
        assert trained_on is not None
        log = [c for c in read_feedback(FeedbackConfig(path=store_url)).comparisons if c.user_id == user]
        assert user != "ben" or trained_on.overlap([log[8]])["own"]
        unseen = [c for i, c in enumerate(log) if i == 8 or not trained_on.overlap([c])["own"]]
        assert 0 < len(unseen) < len(log)
        expected.update_user(user, unseen)
        rewards = expected.score(PROMPT, [KING, NONE, MIX], user).tolist()
        assert row_of(new, user) == pytest.approx(rewards, abs=2e-3)  # fits end within 1e-3

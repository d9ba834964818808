"""`rerank report`: figures by hand, stores whose truth is known, and stores that cannot be read."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from prm.data.comparison import parse_prompt
from prm.metrics import Estimate
from rerank.cli import main
from rerank.service.judgements import Judgement
from rerank.service.report.gain import Report, periods, report_on
from rerank.service.report.records import read_records
from rerank.service.store import Store
from tests.rerank.service.conftest import MakeEngine
from tests.rerank.service.report.stores import DAY, START, Writer, planted


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/store.db"
    pytest.importorskip("tests.postgres")
    return request.getfixturevalue("postgres").url()


def report(url: str) -> Report:
    return report_on(read_records(url))


def test_figures_by_hand(url: str) -> None:
    """Anna and ben see their own ranking, zoe and kim the generic user's; the top is response a, or b."""
    to = Writer(url)
    shown = {
        user: [to.show(user, held_out=user in ("zoe", "kim")) for _ in range(2)] for user in ("anna", "ben", "zoe")
    }
    to.say("anna", "pick", "abc", 2, shown["anna"][0])
    to.say("anna", "pick", "abc", 0, shown["anna"][0])  # the later one counts
    to.say("anna", "pick", "abc", 2, shown["anna"][1])  # neither of the two
    to.say("ben", "pick", "abc", 0)  # without an id: the last ranking of these responses
    to.say("zoe", "pick", "abc", 0, shown["zoe"][0])
    to.say("zoe", "pick", "abc", 2, shown["zoe"][1])
    to.say("anna", "pick", "abc", 1, shown["zoe"][0])  # not hers
    same = to.show("kim", held_out=True, personal=1)
    to.say("kim", "pick", "abc", 1, same)
    to.show(None)
    found = report(url)
    (picks,) = found.held_out
    assert (picks.what, picks.personal.answers, picks.held_out.answers) == ("picks", 3, 3)
    assert picks.personal.share.value == pytest.approx((1 / 2 + 1) / 2)
    assert picks.held_out.share.value == pytest.approx((0 + 1) / 2)
    assert picks.more.value == pytest.approx(0.25)
    assert not picks.enough
    duels = {d.on_top: (d.people, d.answers, d.won.value) for d in found.duels}
    assert duels == {"personal": (2, 2, 1.0), "generic": (1, 1, 1.0), "either": (3, 3, 1.0)}
    assert [d.predicted for d in found.duels] == [0.75] * 3
    c = found.counts
    assert (c.people, c.held_out, c.shown, c.answered, c.feedback) == (4, 2, 7, 6, {"pick": 8})


def test_thumbs_and_pairs_belong_to_what_was_shown_before(url: str) -> None:
    to = Writer(url)
    to.say("kim", "thumb", "a", 0)  # before anything was shown
    to.show("kim")
    to.show("anna")
    to.show("anna", prompt="what?")
    to.say("anna", "thumb", "a", 0)
    to.say("anna", "thumb", "a", 1)
    to.say("anna", "thumb", "b", 0)  # not on top
    to.say("anna", "thumb", "a", 0, prompt="who?")  # another prompt
    to.say("anna", "pair", "ba", 0, prompt="what?")  # the generic user's before the person's
    to.show("zoe", held_out=True)
    to.say("zoe", "thumb", "b", 0)
    found = report(url)
    (thumbs,) = found.held_out
    assert (thumbs.what, thumbs.personal.share.value, thumbs.held_out.share.value) == ("thumbs", 1.0, 0.0)
    assert (thumbs.personal.answers, thumbs.more.value) == (1, 1.0)
    (duel,) = found.duels
    assert (duel.on_top, duel.answers, duel.won.value) == ("personal", 1, 0.0)


def test_a_pick_of_those_that_were_returned_is_one_of_all_that_was_shown(url: str) -> None:
    to = Writer(url)
    to.say("anna", "pick", "ab", 0, to.show("anna", ("a", "b", None)))
    to.say("zoe", "pick", "bc", 0, to.show("zoe", (None, "b", "c"), held_out=True))
    (picks,) = report(url).held_out
    assert (picks.personal.answers, picks.held_out.answers) == (1, 1)


def test_people_who_were_in_both_groups_are_left_out(url: str) -> None:
    to = Writer(url)
    for user, groups in {"anna": (False, True), "ben": (False,), "zoe": (True,)}.items():
        for held_out in groups:
            to.say(user, "pick", "abc", int(user == "anna"), to.show(user, held_out=held_out))
    (picks,) = report(url).held_out
    assert (picks.in_both, picks.personal.people, picks.held_out.people) == (1, 1, 1)
    assert picks.more.value == 1.0


def test_gains_by_hand(url: str) -> None:
    """Log losses ln 2 against ln 4, and ln 4 against ln 2; a certain prediction that came out otherwise is finite."""
    to = Writer(url)
    to.say("anna", "pair", "ab", 0, expected=[(0.5, 0.25)])
    to.say("anna", "pair", "ab", 0, expected=[(0.25, 0.5)], known_by=1)
    to.say("ben", "pair", "ab", None, expected=[(0.75, 0.5)], p_chosen=0.5, known_by=3)
    to.say("ben", "pair", "ab", 0, expected=[(0.75, 0.25)], known_by=4)
    to.say("kim", "pair", "ab", 0, expected=[(0.0, 0.5)], known_by=60)
    found = report(url)
    everything, known = found.gains
    tie = math.log(2) + (math.log(0.75) + math.log(0.25)) / 2
    rows = [math.log(2), -math.log(2), tie, math.log(3), math.log(2) + math.log(1e-12)]
    assert everything.nats.value == pytest.approx(np.mean(rows))
    assert known.nats.value == pytest.approx(np.mean(rows[1:]))
    assert everything.nats_of_people.value == pytest.approx((0.0 + (tie + math.log(3)) / 2 + rows[4]) / 3)
    assert everything.points.value == pytest.approx(((0.5 - 0) + (0 - 0.5) + (1 - 0) + (0 - 0.5)) / 4)
    assert {g.name: g.comparisons for g in found.by_known} == {"0": 1, "1": 1, "2 to 4": 2, "50 or more": 1}
    assert (found.counts.comparisons, found.counts.ties) == (5, 1)
    assert found.state == "too few"


def test_what_an_engine_writes_is_understood(make_engine: MakeEngine, store_url: str) -> None:
    """Picks by id, thumbs by their texts, conversations; and what was predicted is what the engine said before."""
    engine, texts = make_engine(holdout=0.5), ["a king jumps", "a lazy dog", "the potions mix"]
    said = [{"role": role, "content": "so?"} for role in ("user", "assistant", "user")]
    conversation = parse_prompt(said)
    held_out, expected = 0, []
    for user in (f"u{i}" for i in range(12)):
        for prompt in ("what?", conversation):
            ranking = engine.rank("", prompt, texts, user)
            held_out += ranking.held_out
            first = ranking.order[0]
            expected += [engine.prefer("", prompt, texts[0], text, user) for text in texts[1:]]
            engine.give_feedback("", user, Judgement("pick", prompt, tuple(texts), 0), shown_id=ranking.shown_id)
            engine.give_feedback("", user, Judgement("thumb", prompt, (texts[first],), 1))
    engine.shown.wait()
    found = report(store_url)
    assert (found.counts.answered, found.counts.shown, found.counts.people) == (24, 24, 12)
    assert {(one.what, one.held_out.answers, one.personal.answers) for one in found.held_out} == {
        (what, held_out, 24 - held_out) for what in ("picks", "thumbs")
    }
    assert sorted(read_records(store_url).predicted.own) == pytest.approx(sorted(expected), abs=1e-5)


def test_what_is_said_again_was_not_predicted_by_what_was_said_first(make_engine: MakeEngine, store_url: str) -> None:
    """A thumb that comes twice, and one that is turned round: the prediction is that from before the first."""
    engine, king, dog = make_engine(), "a king jumps", "a lazy dog"
    first = engine.prefer("", "what?", king, dog, "zoe")
    for text, up in ((king, 1), (dog, 0), (dog, 0)):
        engine.give_feedback("", "zoe", Judgement("thumb", "what?", (text,), up))
    predicted = read_records(store_url).predicted
    assert (predicted.own.tolist(), predicted.known_by.tolist()) == ([pytest.approx(first, abs=1e-6)], [0])
    for text, up in ((king, 0), (dog, 1)):
        engine.give_feedback("", "zoe", Judgement("thumb", "what?", (text,), up))
    assert read_records(store_url).predicted.own.tolist() == [pytest.approx(1.0 - first, abs=1e-6)]


def test_weeks_or_as_many_in_each() -> None:
    weeks = periods(np.array([START, START + 6.9 * DAY, START + 7 * DAY, START + 14 * DAY]))
    assert [(name, part.tolist()) for name, part in weeks] == [
        ("week of 2026-01-05", [True, True, False, False]),
        ("week of 2026-01-12", [False, False, True, False]),
        ("week of 2026-01-19", [False, False, False, True]),
    ]
    equal = periods(START + 60.0 * np.arange(100.0)[::-1])
    assert [int(part.sum()) for _, part in equal] == [34, 33, 33]
    assert equal[0][1][-34:].all()
    assert periods(np.zeros(0)) == periods(np.full(59, START)) == []


@pytest.mark.parametrize(("gain", "state"), [(0.4, "better"), (-0.4, "worse"), (0.0, "no better")])
def test_a_planted_gain_is_found(gain: float, state: str, tmp_path: Path) -> None:
    """By held-out people, between the two picks, in log loss, and the predictions are calibrated."""
    planted(f"sqlite:///{tmp_path}/store.db", gain, people=120)
    found = report(f"sqlite:///{tmp_path}/store.db")
    (picks,) = found.held_out
    # whoever is held out has the other response on top
    assert contains(picks.more, gain)
    assert (found.by, found.state) == ("held-out users", state)
    either = {d.on_top: d for d in found.duels}["either"]
    assert contains(either.won, 0.5 + gain / 2)
    p = 0.5 + gain / 2
    assert contains(found.gains[0].nats, math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p))
    assert found.errors["personal"].low < 0.02
    assert found.losers.share.low <= 0.05
    assert [g.name for g in found.over_time] == [f"week of 2026-01-{day:02d}" for day in (5, 12, 19)]
    assert sum(g.comparisons for g in found.by_known) == sum(g.comparisons for g in found.over_time) == 2400


def test_who_loses_and_by_how_much(tmp_path: Path) -> None:
    """Predictions that are far too sure lose for most people; without held-out ones the predictions decide."""
    planted(f"sqlite:///{tmp_path}/store.db", 0.1, held_out=False, people=40, each=60, overconfident=20.0)
    found = report(f"sqlite:///{tmp_path}/store.db")
    assert (found.by, found.state, found.held_out) == ("predictions", "worse", ())
    assert found.losers.tested == 40
    assert found.losers.lose > 30
    assert found.losers.share.low > 0.5
    assert found.losers.worst_tenth < found.gains[0].nats.value < 0
    assert found.errors["personal"].low > 0.1


def contains(e: Estimate, value: float) -> bool:
    return e.low <= value <= e.high and e.high - e.low < 0.2


def test_an_empty_store_is_too_little(url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Store(url).close()
    main(["report", url, "--output", str(tmp_path / "new/page.html")])
    assert "Too little data" in capsys.readouterr().out
    assert "Too little data" in (tmp_path / "new/page.html").read_text(encoding="utf-8")
    main(["report", url, "--json"])
    values = json.loads(capsys.readouterr().out)
    assert (values["state"], values["gains"], values["counts"]["comparisons"]) == ("too few", [], 0)


def test_the_page_and_the_json_name_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file's path is enough for a SQLite store; what is printed has every table, without ids."""
    planted(f"sqlite:///{tmp_path}/store.db", 0.4)
    page = tmp_path / "report.html"
    main(["report", str(tmp_path / "store.db"), "--output", str(page)])
    printed, written = capsys.readouterr().out, page.read_text(encoding="utf-8")
    main(["report", str(tmp_path / "store.db"), "--json"])
    values = capsys.readouterr().out
    assert json.loads(values)["held_out"][0]["more"]["low"] > 0
    for text in (printed, written, values):
        assert not any(f"u{i}" in text.replace("\n", " ").split() for i in range(60))
    assert written.count("<svg") >= 6


def test_a_password_is_in_no_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(f"sqlite:///{tmp_path}/store.db", 0.4, people=12)
    real = read_records(f"sqlite:///{tmp_path}/store.db")
    monkeypatch.setattr("rerank.service.report.records.read_records", lambda _: real)
    main(["report", "postgresql://me:secret@host/db", "--output", str(tmp_path / "page.html")])
    assert "secret" not in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("fault", ["missing", "version", "no store", "log"])
def test_what_cannot_be_read_is_said_in_one_line(
    fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = tmp_path / "store.db", str(tmp_path / "page.html")
    if fault == "version":
        store = Store(f"sqlite:///{path}")
        with store.writing() as connection:
            connection.exec_driver_sql("update facts set value = '99' where name = 'version'")
        store.close()
    elif fault != "missing":
        path.write_text("no database, but text" * 100)
    output = str(tmp_path / "page.jsonl") if fault == "log" else output
    with pytest.raises(SystemExit):
        main(["report", str(path), "--output", output])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert {"missing": "no such store", "version": "version 99", "no store": "store.db", "log": ".html"}[fault] in line
    assert not Path(output).exists()

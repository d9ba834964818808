"""The service without HTTP: it ranks as `Scorer` does, learns at once, and loses nothing."""

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison
from prm.data.sources import read_feedback
from prm.errors import DataError, PrmError
from prm.scoring.scorer import Scorer
from rerank.ranking.strategies import cautious
from rerank.service.engine import Engine
from rerank.service.errors import ConflictError, UnknownError
from rerank.service.judgements import Judgement
from rerank.service.learning import Receipt
from tests.planted import opposed_people
from tests.rerank.service.conftest import MakeEngine, on_both, until

PROMPT = "what of old wizards?"
KING, NONE, MIX = TEXTS = ["a king jumps over seven", "a lazy dog jumps over", "the potions mix"]
LIKES_KINGS = Judgement("pair", PROMPT, (KING, NONE), 0)


def row_of(engine: Engine, user: str) -> list[float]:
    return engine.score_users("", PROMPT, [KING, NONE, MIX], [user])[0]


def test_judgements_follow_the_rules_of_logs() -> None:
    """A pick beats each other one; a thumb up each thumb down; of two ratings of one response the later counts."""
    pick = Judgement("pick", PROMPT, (KING, NONE, MIX), 1)
    assert {(c.chosen, c.rejected) for c in pick.comparisons("u")} == {(NONE, KING), (NONE, MIX)}
    up, down = (Judgement("thumb", PROMPT, (text,), value) for text, value in ((KING, 1), (NONE, 0)))
    assert up.comparisons("u") == []
    assert [(c.chosen, c.rejected) for c in down.comparisons("u", [up])] == [(KING, NONE)]
    four, two, five = (Judgement("rating", PROMPT, (text,), v) for text, v in ((KING, 4), (NONE, 2), (NONE, 5)))
    assert [(c.chosen, c.rejected) for c in five.comparisons("u", [four, two])] == [(NONE, KING)]
    tie = Judgement("pair", PROMPT, (KING, NONE), None)
    assert [c.p_chosen for c in tie.comparisons("u")] == [0.5]


@pytest.mark.parametrize(
    ("kind", "responses", "value"),
    [("pick", (KING,), 0), ("pick", (KING, NONE), 2), ("pick", (KING, NONE, MIX), None), ("thumb", (KING, NONE), 1)],
)
def test_judgements_that_say_nothing_are_refused(kind: str, responses: tuple[str, ...], value: float | None) -> None:
    with pytest.raises(DataError):
        Judgement(kind, PROMPT, responses, value)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["bayes", "linear"])
def test_it_ranks_and_learns_as_a_scorer_does(
    kind: str, make_engine: MakeEngine, run_of: Callable[[str], Path]
) -> None:
    """Rewards, preferences, and those after feedback of somebody new and of somebody known; fits end within 1e-3."""
    engine, scorer = make_engine(kind), Scorer.from_pretrained(run_of(kind), device="cpu")
    texts, users = [KING, NONE, MIX], ["p0", "p1", "zoe", None]
    for known_by in (0, 1, 2, 3):
        expected = scorer.score_users(PROMPT, texts, users)
        assert torch.tensor(engine.score_users("", PROMPT, texts, users)) == pytest.approx(
            expected, abs=2e-3 if known_by else 1e-4
        )
        for user in ("p0", "zoe"):
            ranking = engine.rank("", PROMPT, texts, user)
            assert ranking.known == scorer.knows(user)
            assert ranking.comparisons == (scorer.judgements(user) or 0)
            assert ranking.order == expected[users.index(user)].argsort(descending=True).tolist()
            assert ranking.relevance[ranking.generic] == 0.5
            assert engine.prefer("", PROMPT, KING, NONE, user) == pytest.approx(
                scorer.prefer(PROMPT, KING, NONE, user), abs=1e-3
            )
            judgement = Judgement("pair", PROMPT, (NONE, MIX) if known_by % 2 else (MIX, NONE), 0)
            receipt = engine.give_feedback("", user, judgement)
            scorer.update_user(user, judgement.comparisons(user))
            assert (receipt.comparisons, receipt.known_by) == (1, scorer.judgements(user))
    assert row_of(engine, "p1") == pytest.approx(scorer.score(PROMPT, texts, "p1").tolist(), abs=1e-4)


@on_both
def test_feedback_is_taken_once(engine: Engine) -> None:
    first = engine.give_feedback("", "zoe", LIKES_KINGS, key="one")
    after = row_of(engine, "zoe")
    assert engine.give_feedback("", "zoe", LIKES_KINGS, key="one") == first._replace(again=True)
    assert row_of(engine, "zoe") == after
    for user, judgement in (("ben", LIKES_KINGS), ("zoe", replace(LIKES_KINGS, value=1))):
        with pytest.raises(ConflictError):
            engine.give_feedback("", user, judgement, key="one")
    assert engine.give_feedback("other", "zoe", LIKES_KINGS, key="one").again is False


@on_both
def test_what_is_taken_back_leaves_no_trace(make_engine: MakeEngine) -> None:
    """Thumbs that were turned round give the parameters of somebody who said so at once."""
    engine = make_engine()
    thumbs = [(KING, 0), (NONE, 1), (MIX, 1), (KING, 1), (NONE, 0)]
    for text, value in thumbs:
        engine.give_feedback("", "zoe", Judgement("thumb", PROMPT, (text,), value))
    for text, value in thumbs[2:]:
        engine.give_feedback("", "ben", Judgement("thumb", PROMPT, (text,), value))
    found = {u: {(c.chosen, c.rejected) for c in engine.store.comparisons_of(("", u))} for u in ("zoe", "ben")}
    assert found["zoe"] == found["ben"] == {(MIX, NONE), (KING, NONE)}
    assert engine.people.one(("", "zoe")).comparisons == 2
    assert row_of(engine, "zoe") == pytest.approx(row_of(engine, "ben"), abs=1e-2)


@on_both
def test_replicas_lose_no_update(make_engine: MakeEngine) -> None:
    """Two engines on one store, four threads each: every feedback counts once, and both know it."""
    engines = [make_engine(), make_engine()]
    receipts: list[Receipt] = []

    def give(engine: Engine, thread: int) -> None:
        for i in range(5):
            receipts.append(engine.give_feedback("", "zoe", LIKES_KINGS, key=f"{thread}-{i}"))

    threads = [threading.Thread(target=give, args=(engines[i % 2], i)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(receipt.known_by for receipt in receipts) == list(range(1, 41))
    assert row_of(engines[0], "zoe") == row_of(engines[1], "zoe")
    assert engines[0].store.counts()["comparisons"] == 40


def test_many_users_share_few_rows(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerank.service.people._MAX_BYTES", 1)  # 64 rows
    engine = make_engine()
    texts = [KING, NONE]
    for i in range(100):
        engine.give_feedback("", f"u{i}", Judgement("pair", PROMPT, (KING, NONE) if i % 2 else (NONE, KING), 0))
    scores = {i: engine.score_users("", PROMPT, texts, [f"u{i}"])[0] for i in range(100)}
    assert all(
        (scores[i][0] - scores[i][1] > scores[1 - i % 2][0] - scores[1 - i % 2][1]) == (i % 2 == 1) for i in scores
    )
    together = engine.score_users("", PROMPT, texts, [f"u{i}" for i in range(0, 100, 2)])
    assert np.array(together) == pytest.approx(np.array([scores[i] for i in range(0, 100, 2)]), abs=1e-6)


def test_a_forgotten_user_is_nobody_even_in_the_run(make_engine: MakeEngine, tmp_path: Path) -> None:
    engine = make_engine()
    everybody = row_of(engine, "nobody")
    assert row_of(engine, "p0") != everybody
    engine.give_feedback("", "p0", Judgement("pair", "swordfish words", ("swordfish king", NONE), 0))
    engine.rank("", "swordfish words", ["swordfish king", NONE], "p0")
    assert engine.forget("", "p0") >= 4
    assert row_of(engine, "p0") == row_of(make_engine(), "p0") == everybody
    assert not any(b"swordfish" in file.read_bytes() for file in (tmp_path / "store").iterdir())
    engine.give_feedback("", "p0", LIKES_KINGS)
    engine.give_feedback("", "ben", LIKES_KINGS)
    assert row_of(engine, "p0") == row_of(engine, "ben")
    assert engine.forget("", "carl") == 0


@on_both
def test_namespaces_are_apart(engine: Engine) -> None:
    engine.give_feedback("acme", "zoe", LIKES_KINGS)
    assert engine.people.one(("acme", "zoe")).known
    assert not engine.people.one(("", "zoe")).known
    shown = engine.rank("acme", PROMPT, [KING, NONE], "zoe").shown_id
    assert engine.shown_to("acme", "zoe", shown) == (PROMPT, [KING, NONE])
    for namespace, user in (("", "zoe"), ("acme", "ben")):
        with pytest.raises(UnknownError):
            engine.shown_to(namespace, user, shown)


@on_both
def test_a_new_run_knows_what_was_said(make_engine: MakeEngine, run_of: Callable[[str], Path], store_url: str) -> None:
    """A run of another kind fits people anew from their log; its own kind takes them over as they are."""
    first = make_engine("bayes")
    for _ in range(3):
        first.give_feedback("", "zoe", LIKES_KINGS)
        first.give_feedback("", "p0", LIKES_KINGS)
    before = row_of(first, "zoe")
    assert row_of(make_engine("bayes"), "zoe") == pytest.approx(before, abs=1e-4)
    other = make_engine("linear")
    until(lambda: not other.store.of_other_models(other.people.digest, 1))
    expected = Scorer.from_pretrained(run_of("linear"), device="cpu")
    expected.fit_user("zoe", LIKES_KINGS.comparisons("zoe") * 3)
    expected.update_user("p0", LIKES_KINGS.comparisons("p0") * 3)
    for user in ("zoe", "p0"):
        assert row_of(other, user) == pytest.approx(expected.score(PROMPT, [KING, NONE, MIX], user).tolist(), abs=1e-4)
    log = read_feedback(FeedbackConfig(path=store_url)).comparisons
    assert {(c.user_id, c.chosen) for c in log} == {("zoe", KING), ("p0", KING)}


def test_held_out_users_see_what_everybody_would(make_engine: MakeEngine) -> None:
    engine = make_engine(holdout=0.5)
    held_out = [engine.rank("", PROMPT, [KING, NONE], f"u{i}").held_out for i in range(200)]
    assert 60 < sum(held_out) < 140
    for user in (f"u{i}" for i in range(10)):
        for _ in range(5):
            engine.give_feedback("", user, Judgement("pair", PROMPT, (MIX, KING), 0))
        ranking = engine.rank("", PROMPT, [KING, NONE, MIX], user)
        generic = engine.rank("", PROMPT, [KING, NONE, MIX]).order
        assert (ranking.order == generic) or not ranking.held_out
        assert ranking.personal == max(range(3), key=row_of(engine, user).__getitem__)


def test_caution_keeps_everybodys_best_until_the_gain_is_certain(
    make_engine: MakeEngine, run_of: Callable[[str], Path]
) -> None:
    """As `rerank --strategy cautious:K`; held-out and unknown users have everybody's order."""
    scorer = Scorer.from_pretrained(run_of("bayes"), device="cpu")
    generic = make_engine().rank("", PROMPT, TEXTS).generic
    other = (generic + 1) % len(TEXTS)
    said = Judgement("pick", PROMPT, tuple(TEXTS), other)

    # how many deviations above 0 the gain of `other` is after each pick; features differ from machine to machine
    certain: list[float] = []
    for _ in range(60):
        scorer.fit_user("zoe", said.comparisons("zoe") * (len(certain) + 1))
        gains = scorer.gains(PROMPT, TEXTS, "zoe")
        certain.append((gains.mean[other] / gains.std[other]).item())
    assert certain[0] < certain[-1] > 0
    caution = (max(certain[0], 0.0) + certain[-1]) / 2

    engine, scorer = make_engine(caution=caution), Scorer.from_pretrained(run_of("bayes"), device="cpu")
    firsts = []
    for times in range(60):
        ranking = engine.rank("", PROMPT, TEXTS, "zoe")
        expected = cautious(scorer.gains(PROMPT, TEXTS, "zoe"), caution)
        assert ranking.generic == generic
        assert ranking.order == expected.argsort(descending=True).tolist() or not times
        assert ranking.order[0] == ranking.personal
        assert ranking.relevance[generic] == 0.5
        if times:
            found = torch.tensor(ranking.relevance, dtype=torch.float64)
            assert found == pytest.approx(torch.sigmoid(expected.double()), abs=1e-3)
        firsts.append(ranking.order[0])
        engine.give_feedback("", "zoe", said)
        scorer.update_user("zoe", said.comparisons("zoe"))
    assert firsts[0] == firsts[1] == generic
    assert firsts[-1] == other
    with pytest.raises(PrmError, match="no uncertainty"):
        make_engine("linear", caution=1.0)


def test_runs_that_cannot_learn_are_refused(
    run_of: Callable[[str], Path], backbone_of: Callable[..., str], store_url: str, tmp_path: Path
) -> None:
    from prm.io.tables import write_jsonl
    from tests.tiny_runs import config_of, train_any

    write_jsonl(tmp_path / "log.jsonl", opposed_people(8, 0))
    soft = train_any("soft", config_of("soft", backbone_of("llama"), tmp_path))
    with pytest.raises(PrmError, match="linear heads"):
        Engine(Scorer.from_pretrained(soft), None)  # type: ignore[arg-type]


@on_both
def test_comparisons_of_a_store_are_a_log(engine: Engine, store_url: str) -> None:
    engine.give_feedback("acme", "zoe", Judgement("pick", PROMPT, (KING, NONE, MIX), 2, user_text="likes potions"))
    engine.give_feedback("", "ben", Judgement("pair", PROMPT, (KING, NONE), None))
    found = read_feedback(FeedbackConfig(path=store_url)).comparisons
    assert [(c.user_id, c.chosen, c.p_chosen, c.user_text) for c in found] == [
        ("acme:zoe", MIX, 1.0, "likes potions"),
        ("acme:zoe", MIX, 1.0, "likes potions"),
        ("ben", found[2].chosen, 0.5, ""),
    ]
    of_a_run = FeedbackConfig(path=store_url, source="ratings", columns={"rating": "stars"}, min_rating_difference=2.0)
    assert read_feedback(of_a_run).comparisons == found
    assert isinstance(found[0], Comparison)
    with pytest.raises(PrmError, match="none"):
        read_feedback(FeedbackConfig(path=store_url.replace("store", "none")))

"""What the store keeps of a user is what the model holds of them: their own columns, and no others."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from sqlalchemy import update

from prm.data.comparison import Comparison
from prm.data.sources.store.schema import people
from prm.models.reward_model import RewardModel
from prm.scoring.scorer import Scorer
from prm.users import bayes_model
from prm.users.bayes_model import Bayes
from rerank.service.engine import Engine
from rerank.service.judgements import Judgement
from rerank.service.people import _model_digest
from tests.rerank.service.conftest import MakeEngine, on_both
from tests.rerank.service.test_engine import KING, LIKES_KINGS, MIX, NONE, row_of

ZOE = ("", "zoe")


@pytest.fixture(autouse=True)
def all_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """However little a comparison tells of a user of these runs."""
    monkeypatch.setattr(bayes_model, "LEFT_OUT", 0.0)


def learns(engine: Engine) -> None:
    for i in range(3):
        engine.give_feedback(*ZOE, Judgement("pair", f"what of it, {i}?", (KING, NONE, MIX)[i % 2 :][:2], 0))


def model_of(engine: Engine) -> Bayes:
    model = engine.people.model.user_model
    assert isinstance(model, Bayes)
    return model


@on_both
def test_a_replica_reads_what_another_one_learnt_to_the_bit(make_engine: MakeEngine) -> None:
    """Also of a user of the run, and of one whose comparisons told nothing."""
    first, other = make_engine(), make_engine()
    learns(first)
    first.give_feedback("", "p0", LIKES_KINGS)
    first.give_feedback("", "ann", Judgement("pair", "what?", (KING, KING + " "), None))
    for user in ("zoe", "p0", "ann"):
        assert row_of(other, user) == pytest.approx(row_of(first, user), abs=1e-5)  # texts are read anew
        with first.people.rows("", [user]) as (_, (mine,)), other.people.rows("", [user]) as (_, (theirs,)):
            rows = zip(
                *(model_of(e).row_tensors(p.row).items() for e, p in ((first, mine), (other, theirs))), strict=True
            )
            assert all(name == same and torch.equal(a, b) for (name, a), (same, b) in rows)


@on_both
@pytest.mark.parametrize(("left_out", "columns"), [(0.0, 1), (1.0, 0)])
def test_the_store_keeps_as_many_columns_as_a_user_has(
    make_engine: MakeEngine, left_out: float, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bayes_model, "LEFT_OUT", left_out)
    engine = make_engine()
    engine.give_feedback(*ZOE, LIKES_KINGS)
    stored = load(engine.store.saved([ZOE])[ZOE].parameters)
    rank = len(model_of(engine).prior)
    assert {name: list(tensor.shape) for name, tensor in stored.items()} == {
        "means": [rank],
        "flatness": [],
        "columns": [columns, rank],
    }
    with engine.people.rows(*ZOE[:1], ["zoe"]) as (_, (person,)):
        assert torch.equal(model_of(engine).factors.of(torch.tensor([person.row]))[0], stored["columns"])


@on_both
def test_what_the_version_before_stored_is_read(make_engine: MakeEngine) -> None:
    """Columns beside columns of zeros; the user goes on from there, and nobody is fitted anew."""
    engine = make_engine()
    learns(engine)
    expected, rank = row_of(engine, "zoe"), len(model_of(engine).prior)
    stored = load(engine.store.saved([ZOE])[ZOE].parameters)
    columns = stored.pop("columns")
    assert 0 < len(columns) < rank
    factors = torch.cat([torch.zeros(rank - len(columns), rank), columns]).T.contiguous()
    with engine.store.writing() as connection:
        connection.execute(update(people).values(parameters=save(stored | {"factors": factors})))
    other = make_engine()
    assert row_of(other, "zoe") == pytest.approx(expected, abs=1e-5)
    assert not other.store.of_other_models(other.people.digest, 1)
    for one in (other, engine):
        one.give_feedback(*ZOE, LIKES_KINGS)
        assert "columns" in load(one.store.saved([ZOE])[ZOE].parameters)
    assert row_of(other, "zoe") == pytest.approx(row_of(engine, "zoe"), abs=1e-6)


def test_a_model_is_the_same_whoever_its_users_are(run_of: Callable[[str], Path]) -> None:
    """Its digest is of what users share: stored users would all be fitted anew."""
    scorer = Scorer.from_pretrained(run_of("bayes"), device="cpu")
    model = scorer.checkpoint.model
    assert isinstance(model, RewardModel)
    before = _model_digest(model, "features")
    scorer.fit_user("ann", [Comparison("ann", "what?", KING, NONE)] * 5)
    scorer.forget_user("p1")
    assert _model_digest(model, "features") == before
    with torch.no_grad():
        model.user_model.get_parameter("prior").mul_(1.5)
    assert _model_digest(model, "features") != before


def test_a_forgotten_user_leaves_no_number_in_memory(make_engine: MakeEngine) -> None:
    engine = make_engine()
    learns(engine)
    row_of(engine, "zoe")
    with engine.people.rows("", ["zoe"]) as (_, (person,)):
        numbers = model_of(engine).row_tensors(person.row)
    engine.forget("", "zoe")
    row_of(engine, "zoe")
    factors = model_of(engine).factors
    held = {x for tensor in (factors.vectors, factors.added) for x in tensor.flatten().tolist()}
    assert not held & set(numbers["columns"].flatten().tolist())

"""What callers of the library hand over: one value where several are meant is refused; arrays and columns are lists."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import torch

from policy.rewards.adapters import trl_reward
from prm.config import BackboneConfig, TrainConfig, UserConfig
from prm.data.arguments import require_list
from prm.data.comparison import Comparison
from prm.errors import PrmError
from prm.evaluation.cold_start import cold_start_run
from prm.evaluation.evaluate import evaluate
from prm.scoring.scorer import Scorer
from prm.training.setup import new_checkpoint
from prm.users.index import UserIndex
from rerank.ranking.strategies import rank
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler

PROMPT, ANSWERS, USERS = "what of fox?", ["an old king", "seven dogs", "x"], ["anna", "ben", "anna"]
LISTS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "numpy": np.array,
    "numpy objects": lambda values: np.array(values, dtype=object),
    "pandas": pd.Series,
    "pandas, cut": lambda values: pd.Series(["before", *values])[1:],
    "datasets": lambda values: datasets.Dataset.from_dict({"a": values})["a"],
    "generator": iter,
}


@pytest.fixture(scope="module")
def scorer(backbone_of: Callable[..., str]) -> Scorer:
    backbone = BackboneConfig(backbone_of("llama"), dtype="float32")
    made = new_checkpoint(TrainConfig(backbone=backbone, users=UserConfig("bayes", rank=4)), UserIndex(["anna", "ben"]))
    draw = torch.Generator().manual_seed(0)
    for parameter in made.model.user_model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=draw).abs())
    made.model.requires_grad_(False)
    return Scorer(made)


@pytest.fixture(scope="module")
def sampler(backbone_of: Callable[..., str]) -> Sampler:
    return Sampler.from_pretrained(backbone_of("llama"), torch.device("cpu"), torch.float32)


@pytest.mark.parametrize("kind", LISTS)
def test_whatever_holds_several_is_read_as_a_list(scorer: Scorer, sampler: Sampler, kind: str) -> None:
    of, how = LISTS[kind], Sampling(max_new_tokens=2)
    pairs = [
        (scorer.score(PROMPT, of(ANSWERS), "anna"), scorer.score(PROMPT, ANSWERS, "anna")),
        (scorer.score_users(PROMPT, of(ANSWERS), of(USERS)), scorer.score_users(PROMPT, ANSWERS, USERS)),
        (
            scorer.score_users(PROMPT, ANSWERS, of(USERS), of(["", "a", ""])),
            scorer.score_users(PROMPT, ANSWERS, USERS, ["", "a", ""]),
        ),
        (
            scorer.score_batch(of([PROMPT] * 3), of(ANSWERS), of(USERS), of(["", "a", ""])),
            scorer.score_batch([PROMPT] * 3, ANSWERS, USERS, ["", "a", ""]),
        ),
        (
            scorer.margin_batch(of([PROMPT] * 3), of(ANSWERS), of(ANSWERS[::-1]), of(USERS)),
            scorer.margin_batch([PROMPT] * 3, ANSWERS, ANSWERS[::-1], USERS),
        ),
        (scorer.gains(PROMPT, of(ANSWERS), "anna").mean, scorer.gains(PROMPT, ANSWERS, "anna").mean),
    ]
    for found, expected in pairs:
        assert torch.equal(found, expected)
    batch = sampler.sample_batch([PROMPT] * 3, USERS, how)
    assert sampler.sample_batch(of([PROMPT] * 3), of(USERS), how) == batch
    assert rank(of(ANSWERS), of([1.0, 3.0, 2.0]))[0].text == ANSWERS[1]


ONE: dict[str, Callable[[Any, Any], Any]] = {  # what is given has the wrong type on purpose
    "score": lambda s, _: s.score(PROMPT, "yes"),
    "score, its deviations": lambda s, _: s.score(PROMPT, "yes", "anna", return_std=True),
    "score, numpy's": lambda s, _: s.score(PROMPT, np.str_("yes")),
    "score, an array of none": lambda s, _: s.score(PROMPT, np.array("yes")),
    "score, bytes": lambda s, _: s.score(PROMPT, b"yes"),
    "score, an object": lambda s, _: s.score(PROMPT, {"yes": 1}),
    "score, a set": lambda s, _: s.score(PROMPT, {"yes", "no"}),
    "score, a table": lambda s, _: s.score(PROMPT, pd.DataFrame({"yes": [1]})),
    "score, nothing": lambda s, _: s.score(PROMPT, None),
    "score_users": lambda s, _: s.score_users(PROMPT, "yes", ["anna"]),
    "score_users, users": lambda s, _: s.score_users(PROMPT, ANSWERS, "anna"),
    "score_users, texts": lambda s, _: s.score_users(PROMPT, ANSWERS, USERS, "abc"),
    "score_batch, prompts": lambda s, _: s.score_batch("abc", ANSWERS, USERS),
    "score_batch": lambda s, _: s.score_batch([PROMPT] * 3, "yes", USERS),
    "score_batch, users": lambda s, _: s.score_batch([PROMPT] * 3, ANSWERS, "ben"),
    "score_batch, texts": lambda s, _: s.score_batch([PROMPT] * 3, ANSWERS, USERS, "abc"),
    "margin_batch": lambda s, _: s.margin_batch([PROMPT] * 3, "yes", ANSWERS, USERS),
    "gains": lambda s, _: s.gains(PROMPT, "yes"),
    "next_question": lambda s, _: s.next_question("anna", "abc"),
    "next_question, its questions": lambda s, _: s.next_question("anna", ["abc"]),
    "fit_user": lambda s, _: s.fit_user("zoe", Comparison("zoe", PROMPT, "a", "b")),
    "update_user": lambda s, _: s.update_user("zoe", "abc"),
    "reward of TRL": lambda s, _: trl_reward(s)([PROMPT] * 3, "abc", user_id=USERS),
    "reward of TRL, users": lambda s, _: trl_reward(s)([PROMPT] * 3, ANSWERS, user_id="ben"),
    "sample_batch": lambda _, s: s.sample_batch("abc", USERS, Sampling(max_new_tokens=1)),
    "sample_batch, users": lambda _, s: s.sample_batch([PROMPT] * 3, "ben", Sampling(max_new_tokens=1)),
    "logps": lambda _, s: s.logps(PROMPT, "yes"),
    "rank": lambda *_: rank("yes", torch.zeros(3)),
    "evaluate": lambda s, _: evaluate(s, [Comparison("anna", PROMPT, "a", "b")], by="turn"),
    "cold_start": lambda *_: cold_start_run("nowhere", [], 3),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", ONE)
def test_one_where_several_are_meant_is_refused(scorer: Scorer, sampler: Sampler, name: str) -> None:
    before = scorer.users
    with pytest.raises(PrmError, match="list"):
        ONE[name](scorer, sampler)
    assert scorer.users == before


def test_columns_of_unequal_length_are_refused(scorer: Scorer) -> None:
    for call in (
        lambda: scorer.score_batch([PROMPT], ANSWERS, USERS),
        lambda: scorer.margin_batch([PROMPT] * 3, ANSWERS, ANSWERS[:2], USERS),
        lambda: scorer.score_users(PROMPT, ANSWERS, USERS, [""]),
    ):
        with pytest.raises(PrmError, match="length"):
            call()


WITH_TEXT: dict[str, Callable[[Scorer, Any], Any]] = {
    "score": lambda s, text: s.score(PROMPT, ANSWERS, "zoe", text),
    "score, its deviations": lambda s, text: torch.stack(s.score(PROMPT, ANSWERS, "zoe", text, return_std=True)),
    "score_users": lambda s, text: s.score_users(PROMPT, ANSWERS, ["zoe", "anna"], [text, text]),
    "score_batch": lambda s, text: s.score_batch([PROMPT] * 3, ANSWERS, USERS, [text] * 3),
    "margin_batch": lambda s, text: s.margin_batch([PROMPT] * 3, ANSWERS, ANSWERS[::-1], USERS, [text] * 3),
    "prefer": lambda s, text: torch.tensor(s.prefer(PROMPT, ANSWERS[0], ANSWERS[1], "zoe", text)),
    "gains": lambda s, text: s.gains(PROMPT, ANSWERS, "zoe", text).mean,
    "next_question": lambda s, text: torch.tensor(
        s.next_question("zoe", [(PROMPT, ANSWERS[0], ANSWERS[1])], text).information
    ),
}


@pytest.mark.parametrize("name", WITH_TEXT)
def test_a_users_text_is_taken_alike_wherever_it_is_given(scorer: Scorer, name: str) -> None:
    """None is no text, and what is blank or no text is refused."""
    ask = WITH_TEXT[name]
    assert torch.equal(ask(scorer, None), ask(scorer, ""))
    assert not torch.equal(ask(scorer, "I like foxes"), ask(scorer, ""))
    for text in (" ", 3, ["I like foxes"], b"fox"):
        with pytest.raises(PrmError, match="user_text"):
            ask(scorer, text)


def test_nothing_to_score_is_nothing_and_nothing_to_choose_from_is_refused(scorer: Scorer) -> None:
    assert [part.shape for part in scorer.score(PROMPT, [], "anna", return_std=True)] == [(0,), (0,)]
    assert scorer.score_users(PROMPT, [], ["anna"]).shape == (1, 0)
    assert scorer.score_users(PROMPT, ANSWERS, []).shape == (0, 3)
    assert scorer.margin_batch([], [], [], []).shape == (0,)
    for ask in (lambda: scorer.gains(PROMPT, [], "anna"), lambda: scorer.next_question("anna", [])):
        with pytest.raises(PrmError, match="empty"):
            ask()


def test_what_a_column_lacks_is_the_unknown_user(scorer: Scorer) -> None:
    users = pd.Series(["anna", None, "ben"])
    found = scorer.score_batch(pd.Series([PROMPT] * 3), ANSWERS, users, pd.Series([None, "", float("nan")]))
    assert torch.equal(found, scorer.score_batch([PROMPT] * 3, ANSWERS, ["anna", None, "ben"]))
    assert require_list("x", pd.Series([1.0, None])) == [1.0, None]


@pytest.mark.parametrize("user", [3, np.int64(3), float("nan"), ["anna"], b"anna", True])
def test_users_that_are_no_text_are_refused(scorer: Scorer, user: Any) -> None:
    ask: list[Callable[[Any], Any]] = [lambda user: scorer.score(PROMPT, ANSWERS, user)]
    for call in (*ask, scorer.knows, scorer.judgements, scorer.forget_user):
        with pytest.raises(PrmError, match="text") as raised:
            call(user)
        assert "did you mean" not in str(raised.value)
    for number, advice in ((3.0, "Int64"), (np.float64(3), "Int64"), (np.int64(3), "'3'")):
        with pytest.raises(PrmError, match=advice):
            scorer.score(PROMPT, ANSWERS, number)  # type: ignore[call-overload]
    assert torch.equal(scorer.score(PROMPT, ANSWERS, np.str_("anna")), scorer.score(PROMPT, ANSWERS, "anna"))


@pytest.mark.parametrize("take", ["fit_user", "update_user"])
def test_somebody_elses_judgements_are_refused(scorer: Scorer, take: str) -> None:
    """Nobody is known afterwards who was not, and nobody has moved."""
    log = [Comparison("zoe", PROMPT, "a king", "b"), Comparison("bob", PROMPT, "a king", "c")]
    before = scorer.score_users(PROMPT, ANSWERS, ["anna", "ben", None])
    with pytest.raises(PrmError, match=r"comparisons\[1\].*'bob'.*'zoe'"):
        getattr(scorer, take)("zoe", log)
    with pytest.raises(PrmError, match=r"comparisons\[0\]"):
        getattr(scorer, take)("zoe", [log[1].to_row()])
    assert scorer.users == ["anna", "ben"]
    assert torch.equal(scorer.score_users(PROMPT, ANSWERS, ["anna", "ben", None]), before)


def test_numpys_scalars_are_pythons() -> None:
    given = Comparison(
        np.str_("u"), np.array([{"role": "user", "content": "q"}]), np.str_("a"), np.str_("b"),  # type: ignore[arg-type]
        p_chosen=np.float32(0.75), weight=np.int64(2), time=np.int64(3), chosen_first=np.bool_(True),  # type: ignore[arg-type]
    )  # fmt: skip
    expected = Comparison("u", [{"role": "user", "content": "q"}], "a", "b", "", 0.75, 2.0, 3, True)  # type: ignore[arg-type]
    assert given == expected
    for name in ("user_id", "chosen", "rejected", "p_chosen", "weight", "time", "chosen_first"):
        assert type(getattr(given, name)) is type(getattr(expected, name)), name


def test_dates_are_the_text_of_their_time() -> None:
    for time, text in (
        (datetime(2026, 1, 2, 3), "2026-01-02T03:00:00"),
        (pd.Timestamp("2026-01-02 03:00"), "2026-01-02T03:00:00"),
        (np.datetime64("2026-01-02"), "2026-01-02"),
    ):
        assert Comparison("u", "q", "a", "b", time=time).time == text  # type: ignore[arg-type]
    with pytest.raises(PrmError, match="'time'"):
        Comparison("u", "q", "a", "b", time=pd.NaT)


@pytest.mark.parametrize("value", [pd.DataFrame({"a": [1, 2]}), np.eye(3)], ids=["table", "array"])
def test_a_value_of_several_lines_is_shown_in_one(scorer: Scorer, value: Any) -> None:
    for call in (lambda: scorer.score(PROMPT, [value], "anna"), lambda: scorer.score_users(PROMPT, ANSWERS, value)):
        with pytest.raises(PrmError) as raised:
            call()
        assert "\n" not in str(raised.value)


def test_a_file_names_its_own_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A flag beside it would be read by nobody."""
    from prm.cli import main as prm_main
    from rerank.cli import main as rerank_main

    (tmp_path / "asked.jsonl").write_text('{"prompt": "q", "response": "a", "user_id": "ben"}\n')
    for main, words in ((prm_main, ["score", "run"]), (rerank_main, ["run"])):
        with pytest.raises(SystemExit):
            main([*words, "--input", str(tmp_path / "asked.jsonl"), "--user", "anna"])
        assert "--user" in capsys.readouterr().err

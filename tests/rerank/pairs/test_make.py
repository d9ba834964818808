"""Pairs of users who disagree, against the scorer's own rewards, and read back as a log."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from prm.errors import DataError, PrmError
from prm.io.tables import read_rows, write_jsonl
from prm.scoring.scorer import Scorer
from rerank import Endpoint, PairRules, Sampler, Sampling, make_pairs
from tests.conftest import read_log
from tests.endpoint_server import FakeEndpoint, Sent, choices
from tests.planted import opposed_people
from tests.tiny_runs import config_of, train_any

PROMPT = "what of fox potions?"
TEXTS = ["an old king", "seven lazy dogs", "mix potions", "the king jumps over a fox"]
ROWS: list[dict[str, Any]] = [
    {"prompt": PROMPT, "user_id": user, "responses": TEXTS, "user_text": "I like tea."} for user in ("p0", "p1")
]


@pytest.fixture(scope="module")
def scorer(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    """Of p0, who likes kings, and p1, who does not."""
    folder = tmp_path_factory.mktemp("pairs")
    write_jsonl(folder / "log.jsonl", opposed_people(20, 0, people=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        return Scorer.from_pretrained(
            train_any("bayes", config_of("bayes", backbone_of("llama"), folder)), device="cpu"
        )


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


def test_each_user_has_their_own_best_and_worst(scorer: Scorer) -> None:
    made = make_pairs(scorer, ROWS)
    for pair, row in zip(made.pairs, ROWS, strict=True):
        rewards = scorer.score(PROMPT, TEXTS, row["user_id"], "I like tea.")
        c = pair.comparison
        assert (c.user_id, c.prompt, c.user_text, c.p_chosen) == (row["user_id"], PROMPT, "I like tea.", 1.0)
        assert (c.chosen, c.rejected) == (TEXTS[int(rewards.argmax())], TEXTS[int(rewards.argmin())])
        assert pair.margin == pytest.approx(float(rewards.max() - rewards.min()), abs=1e-4)
    first, second = (pair.comparison for pair in made.pairs)
    assert "king" in first.chosen
    assert "king" in second.rejected
    assert (made.counts.requests, made.counts.pairs, dict(made.counts.dropped)) == (2, 2, {})
    assert made.counts.mean_margin == pytest.approx(sum(pair.margin for pair in made.pairs) / 2)
    assert made.counts.responses == 4  # the users share them


def test_soft_labels_are_the_models_probabilities(scorer: Scorer) -> None:
    pairs = make_pairs(scorer, ROWS, PairRules(soft_labels=True, max_pairs=2)).pairs
    assert len(pairs) == 4
    for c in (pair.comparison for pair in pairs):
        expected = scorer.prefer(PROMPT, c.chosen, c.rejected, c.user_id, c.user_text)
        assert c.p_chosen == pytest.approx(expected, abs=1e-5)
        assert 0.5 < c.p_chosen < 1.0


def test_a_saved_log_is_read_back_by_training(scorer: Scorer, tmp_path: Path) -> None:
    made = make_pairs(scorer, ROWS, PairRules(soft_labels=True))
    path = tmp_path / "pairs.jsonl"
    made.save(path)
    rows = [row for _, row in read_rows(path)]
    assert [row.keys() for row in rows] == [
        {"user_id", "prompt", "chosen", "rejected", "user_text", "p_chosen", "margin"}
    ] * 2
    assert [row["margin"] for row in rows] == [pair.margin for pair in made.pairs]
    assert read_log(path) == [pair.comparison for pair in made.pairs]
    with pytest.raises(PrmError, match="exists already"):
        made.save(path)
    made.save(path, overwrite=True)


def test_what_is_left_out_is_counted(scorer: Scorer) -> None:
    """By hand: of seven responses one is empty, one cut, one too long to read and one the same as another."""
    given = [
        "an old king",
        "seven dogs",
        "an old king",
        "",
        {"response": "mix potions", "ended": True},
        {"response": "the king jumps over", "ended": False},
        "fox " * 500,
    ]
    rows: list[dict[str, Any]] = [
        {"prompt": PROMPT, "user_id": "p0", "responses": given},
        {"prompt": "a?", "user_id": "zoe", "responses": TEXTS[:1]},
    ]
    made = make_pairs(scorer, rows, PairRules(max_pairs=9))
    counts = made.counts
    usable = ["an old king", "seven dogs", "mix potions"]
    best = usable.pop(int(scorer.score(PROMPT, usable, "p0").argmax()))
    assert {pair.comparison.chosen for pair in made.pairs} == {best}
    assert {pair.comparison.rejected for pair in made.pairs} == set(usable)
    assert (counts.responses, counts.empty, counts.truncated, counts.unreadable, counts.duplicates) == (8, 1, 1, 1, 1)
    assert (counts.requests, dict(counts.dropped), counts.unknown_users) == (2, {"too_few_responses": 1}, 1)
    kept = make_pairs(scorer, rows, PairRules(drop_truncated=False, max_pairs=9)).pairs
    assert "the king jumps over" in {text for p in kept for text in (p.comparison.chosen, p.comparison.rejected)}


def test_users_share_the_responses_of_a_generator_that_does_not_know_them(scorer: Scorer, tiny: str) -> None:
    """Sampled once for both, and a request that comes twice makes pairs once; a policy of theirs is asked for each."""
    rows = [{"prompt": prompt, "user_id": user} for prompt in ("a?", "b?") for user in ("p0", "p1", "p0")]
    with FakeEndpoint(lambda body, number: choices([(text, "stop") for text in TEXTS])) as server:
        made = make_pairs(scorer, rows, generator=Endpoint(server.url, "tiny"), n=4)
        assert sorted(body["messages"][-1]["content"] for body in server.bodies) == ["a?", "b?"]
    assert [(p.comparison.prompt, p.comparison.user_id) for p in made.pairs] == [
        (prompt, user) for prompt in ("a?", "b?") for user in ("p0", "p1")
    ]
    asked = []

    def function(prompt: Any, n: int, user: str | None) -> list[str]:
        asked.append((prompt, user))
        return TEXTS

    make_pairs(scorer, rows[:3], generator=function)
    assert asked == [("a?", "p0"), ("a?", "p1")]


def test_a_sampler_whose_states_are_reused_makes_the_pairs_of_its_texts(scorer: Scorer, tiny: str) -> None:
    sampler, how = Sampler.from_pretrained(tiny, torch.device("cpu"), "float32"), Sampling(max_new_tokens=5)
    rules = PairRules(drop_truncated=False)
    rows = [{"prompt": prompt, "user_id": "p0"} for prompt in ("a?", "b?")]
    made = make_pairs(scorer, rows, rules, sampler, 5, how)
    given = [row | {"responses": sampler.sample(str(row["prompt"]), 5, how)} for row in rows]
    expected = make_pairs(scorer, given, rules)
    assert [p.comparison for p in made.pairs] == [p.comparison for p in expected.pairs]
    assert [p.margin for p in made.pairs] == pytest.approx([p.margin for p in expected.pairs], abs=1e-3)


def test_a_prompt_that_the_generator_refuses_is_counted_and_the_others_go_on(
    scorer: Scorer, caplog: pytest.LogCaptureFixture
) -> None:
    def play(body: dict[str, Any], number: int) -> Sent:
        long = body["messages"][-1]["content"] == "b?"
        return Sent(400, '{"error": {"message": "too long"}}') if long else choices([(text, "stop") for text in TEXTS])

    rows = [{"prompt": prompt, "user_id": "p0"} for prompt in ("a?", "b?", "c?")]
    with FakeEndpoint(play) as server:
        made = make_pairs(scorer, rows, generator=Endpoint(server.url, "tiny"), n=4)
        assert [p.comparison.prompt for p in made.pairs] == ["a?", "c?"]
        assert dict(made.counts.dropped) == {"unanswered": 1}
        assert f"requests[1]: no responses: {server.url}: HTTP 400: 'too long'" in caplog.text
        server.play = lambda body, number: Sent(401)
        with pytest.raises(PrmError, match="401"):
            make_pairs(scorer, rows, generator=Endpoint(server.url, "tiny"), n=4)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"prompt": "a?", "responses": TEXTS}, "user_id"),
        ({"prompt": "a?", "user_id": "p0"}, "no generator"),
        ({"prompt": "", "user_id": "p0", "responses": TEXTS}, "'prompt' is empty"),
        ({"prompt": "a?", "user_id": "p0", "responses": [3]}, "list of texts"),
        ({"prompt": "a?", "user_id": "p0", "responses": [{"response": "a", "ended": "no"}]}, "'ended'"),
    ],
)
def test_a_bad_row_is_named(scorer: Scorer, row: dict[str, Any], fault: str) -> None:
    with pytest.raises(DataError, match=rf"requests\[1\]: .*{fault}"):
        make_pairs(scorer, [ROWS[0], row])

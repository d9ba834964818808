"""`Reranker`: the scorer's rewards sorted by hand, in the shape of sentence-transformers' `CrossEncoder.rank`."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prm.errors import DataError, PrmError
from prm.io.tables import write_jsonl
from prm.scoring.scorer import Scorer
from rerank import Reranker
from tests.planted import opposed_people
from tests.tiny_runs import config_of, train_any

PROMPT = "what of fox potions?"
RESPONSES = ["an old fox", "the king mixes potions", "seven lazy dogs", "an old fox"]


@pytest.fixture(scope="module")
def run(backbone_of: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reranker")
    write_jsonl(folder / "log.jsonl", opposed_people(20, 0, people=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRM_CACHE", str(folder / "cache"))
        return train_any("bayes", config_of("bayes", backbone_of("llama"), folder))


@pytest.mark.parametrize("user", ["p0", "p1", "nobody", None])
def test_responses_are_sorted_by_the_users_rewards(run: Path, user: str | None) -> None:
    rewards = Scorer.from_pretrained(run, device="cpu").score(PROMPT, RESPONSES, user).tolist()
    ranked = Reranker.from_pretrained(run, device="cpu").rank(PROMPT, RESPONSES, user=user)
    order = sorted(range(4), key=lambda i: (-rewards[i], i))
    assert [r["corpus_id"] for r in ranked] == order
    assert [r["score"] for r in ranked] == [rewards[i] for i in order]
    assert [r["text"] for r in ranked] == [RESPONSES[i] for i in order]


def test_it_shows_what_ranks(run: Path, tiny: str) -> None:
    shown = repr(Reranker.from_pretrained(run, strategy="pessimistic:2"))
    assert len(shown.splitlines()) == 1
    for part in ("'linear_head'", "'bayes'", "num_users=2", tiny, "pessimistic:2"):
        assert part in shown


def test_opposed_users_get_opposite_rankings(run: Path) -> None:
    reranker, pair = Reranker.from_pretrained(run), RESPONSES[1:3]
    best = [reranker.rank(PROMPT, pair, user=user, top_k=1)[0]["corpus_id"] for user in ("p0", "p1")]
    assert best == [0, 1]


def test_top_k_and_texts_are_as_asked_for(run: Path) -> None:
    reranker = Reranker.from_pretrained(run)
    everything = reranker.rank(PROMPT, RESPONSES, user="p0")
    short = reranker.rank(PROMPT, RESPONSES, user="p0", top_k=2, return_documents=False)
    assert short == [{"corpus_id": r["corpus_id"], "score": r["score"]} for r in everything[:2]]
    assert reranker.rank(PROMPT, RESPONSES, top_k=9) == reranker.rank(PROMPT, RESPONSES)
    assert reranker.rank(PROMPT, []) == []


def test_keys_are_those_of_a_cross_encoder() -> None:
    sentence_transformers = pytest.importorskip("sentence_transformers")
    source = sentence_transformers.CrossEncoder.rank.__doc__ or ""
    assert all(f'"{key}"' in source or f"'{key}'" in source for key in ("corpus_id", "score", "text"))


def test_a_lower_bound_ranks_by_the_bound(run: Path) -> None:
    scorer = Scorer.from_pretrained(run, device="cpu")
    rewards, deviations = scorer.score(PROMPT, RESPONSES, "p0", return_std=True)
    ranked = Reranker(scorer, "pessimistic:2").rank(PROMPT, RESPONSES, user="p0")
    bounds = rewards - 2 * deviations
    assert {r["corpus_id"]: r["score"] for r in ranked} == pytest.approx(dict(enumerate(bounds.tolist())))
    assert ranked[0]["score"] == pytest.approx(float(torch.max(bounds)))


def test_what_cannot_be_ranked_is_refused(run: Path) -> None:
    reranker = Reranker.from_pretrained(run)
    with pytest.raises(PrmError, match="top_k"):
        reranker.rank(PROMPT, RESPONSES, top_k=0)
    with pytest.raises(PrmError, match="responses"):
        reranker.rank(PROMPT, "one text")
    with pytest.raises(DataError):
        reranker.rank(PROMPT, [""])
    for strategy in ("regularised:1", "bestt"):
        with pytest.raises(PrmError, match=strategy.split(":")[0]):
            Reranker(reranker.scorer, strategy)

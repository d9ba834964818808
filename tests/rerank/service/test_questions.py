"""What is believed of a user, against draws from the posterior; what is asked next, against `Scorer`; and over HTTP."""

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from prm.data.comparison import Prompt
from prm.errors import DataError
from prm.metrics import Array
from prm.models.reward_model import HeadInput
from prm.scoring.scorer import Scorer
from prm.users.bayes_model import Bayes
from rerank.service.engine import Engine
from rerank.service.errors import UnknownError
from rerank.service.http.app import build_app
from rerank.service.judgements import Judgement
from rerank.service.pool import Pool, PoolPrompt, default_pool, read_pool
from rerank.service.questions import Leaning, Questions
from rerank.service.texts import TextRequest
from tests.rerank.service.conftest import MakeEngine, until

WORDS = (("kings", "kings", "no kings"), ("size", "longer", "shorter"))
RESPONSES = ("a king jumps over seven", "a lazy dog jumps over", "the potions mix", "an old king")


def pool_of(prompts: int = 3, kept: int = 1) -> Pool:
    asked = [PoolPrompt(f"what of {name}?", RESPONSES) for name in ("wizards", "foxes", "dogs", "jumps")[:prompts]]
    attributes = np.random.default_rng(0).normal(size=(4 * prompts, 2))
    return Pool(asked, prompts - kept, attributes, WORDS)


@pytest.fixture
def make_questions(make_engine: MakeEngine) -> Iterator[Callable[..., tuple[Engine, Questions]]]:
    """Function that makes an engine of a kind, and its questions of a pool."""
    made: list[Questions] = []

    def make(kind: str = "bayes", pool: Pool | None = None) -> tuple[Engine, Questions]:
        engine = make_engine(kind)
        made.append(Questions(engine, pool or pool_of()))
        return engine, made[-1]

    yield make
    for questions in made:
        questions.close()


def slopes(pool: Pool, rewards: Array) -> Array:
    """Weights of the attributes, by least squares with an intercept for each prompt: another way to the same."""
    dummies = np.eye(len(pool.prompts))[pool.groups()]
    return np.asarray(np.linalg.lstsq(np.hstack([pool.attributes, dummies]), rewards, rcond=None)[0][:2])


@pytest.mark.parametrize("user", ["p0", "zoe", "nobody"])
def test_leanings_are_those_of_draws_from_the_posterior(
    user: str, make_questions: Callable[..., tuple[Engine, Questions]]
) -> None:
    pool = pool_of()
    engine, questions = make_questions(pool=pool)
    for _ in range(3):
        engine.give_feedback("", "zoe", Judgement("pair", "what of it?", RESPONSES[:2], 0))
    with torch.no_grad():
        engine.people.model.user_model.get_parameter("generic").add_(0.1)  # everybody's taste is no user's leaning
    person, one = engine.people.copy(("", user))
    assert isinstance(one, Bayes)
    states = engine.texts.get([TextRequest(*text) for text in pool.texts()], time.monotonic() + 60).states
    factor = one.posterior(torch.tensor([1])).factor[0].double().numpy()
    covariance = one.prior.double().numpy() - factor @ factor.T
    offsets = np.random.default_rng(1).multivariate_normal(one.means[1].double().numpy(), covariance, 20_000)
    drawn = slopes(pool, (states @ one.basis).double().numpy() @ offsets.T)
    found = questions.describe("", user)
    assert [le.weight for le in found.leanings] == pytest.approx(drawn.mean(1), abs=4 * drawn.std(1).max() / 141)
    assert [le.std for le in found.leanings] == pytest.approx(drawn.std(1), rel=0.03)
    assert (found.known, found.comparisons) == (person.known, person.comparisons)
    assert found.sure is not None
    assert (found.sure > 0) == found.known


def test_leanings_without_posteriors_are_slopes_of_the_difference_to_everybody(
    make_questions: Callable[..., tuple[Engine, Questions]],
) -> None:
    pool = pool_of()
    engine, questions = make_questions("linear", pool)
    with torch.no_grad():
        engine.people.model.user_model.shared()[0].add_(0.1)
    rewards = [engine.score_users("", p.prompt, p.responses, ["p0", None]) for p in pool.prompts]
    own, generic = np.concatenate(rewards, 1)
    found = questions.describe("", "p0")
    assert [le.weight for le in found.leanings] == pytest.approx(slopes(pool, own - generic), abs=1e-4)
    assert (found.sure, {le.std for le in found.leanings}) == (None, {None})


def test_leanings_in_words() -> None:
    assert Leaning("list", "lists", "prose", 2.34, 0.42).says == "lists +2.3 ± 0.4"
    assert Leaning("list", "lists", "prose", -2.34, None).says == "prose +2.3"


@pytest.mark.parametrize("kind", ["bayes", "linear"])
def test_every_pair_is_asked_once_the_most_telling_first(
    kind: str, make_questions: Callable[..., tuple[Engine, Questions]], run_of: Callable[[str], Path]
) -> None:
    pool = pool_of()
    engine, questions = make_questions(kind, pool)
    texts = pool.texts()
    pairs = [(texts[a][0], texts[a][1], texts[b][1]) for a, b in pool.pairs()]
    assert len(pairs) == 12
    first = questions.next("", "zoe")
    assert questions.next("", "zoe") == first
    if kind == "bayes":
        best = Scorer.from_pretrained(run_of(kind), device="cpu").next_question("zoe", pairs)
        assert {first.prompt, *first.responses} == set(pairs[best.position])
        assert first.information == pytest.approx(best.information, rel=1e-3)
    seen = set()
    for left in range(12, 0, -1):
        question = questions.next("", "zoe")
        assert question.left == left
        assert (question.information is None) == (kind == "linear")
        seen.add((question.prompt, *sorted(question.responses)))
        engine.give_feedback("", "zoe", Judgement("pair", question.prompt, question.responses, (0, 1, None)[left % 3]))
    assert seen == {(prompt, *sorted(both)) for prompt, *both in pairs}
    with pytest.raises(UnknownError):
        questions.next("", "zoe")
    assert questions.next("other", "zoe").left == 12


def test_previews_are_the_engines_picks(make_questions: Callable[..., tuple[Engine, Questions]]) -> None:
    pool = pool_of(4, kept=3)
    engine, questions = make_questions(pool=pool)
    for user in ("p0", "p1", "zoe"):
        rankings = [engine.rank("", p.prompt, p.responses, user, write_down=False) for p in pool.kept]
        for number, ranking in enumerate(rankings):
            found = questions.preview("", user, number)
            assert (found.prompt, found.personal, found.generic) == (
                pool.kept[number].prompt,
                ranking.personal,
                ranking.generic,
            )
            assert found.differs == [i for i, r in enumerate(rankings) if r.personal != r.generic]
            assert found.p_personal == pytest.approx(ranking.relevance[ranking.personal])
    with pytest.raises(UnknownError):
        questions.preview("", "zoe", 3)


def test_a_pool_is_read_from_requests(tmp_path: Path, engine: Engine) -> None:
    path, reader = tmp_path / "pool.jsonl", engine.scorer.reader
    rows = [{"prompt": f"what of {i}?", "responses": ["a king", f"a dog {i}", "a king"]} for i in range(10)]
    path.write_text("\n".join(map(json.dumps, [*rows, {"prompt": "what of 0?", "responses": ["a king", "the fox"]}])))
    pool = read_pool(str(path), reader)
    assert (len(pool.prompts), len(pool.kept)) == (10, 2)
    assert {len(p.responses) for p in pool.prompts} == {2, 3}
    assert pool.attributes.shape == (len(pool.texts()), len(pool.words))
    assert not {p.prompt for p in pool.kept} & {pool.texts()[i][0] for pair in pool.pairs() for i in pair}
    for wrong in (["a king"], ["a king", "a king"], ["a king", "fox " * 500]):
        path.write_text("\n".join(map(json.dumps, [rows[0], {"prompt": "what?", "responses": wrong}])))
        with pytest.raises(DataError, match="line 2"):
            read_pool(str(path), reader)
    path.write_text("")
    with pytest.raises(DataError):
        read_pool(str(path), reader)


def test_a_runs_own_pool_is_what_it_held_out(engine: Engine, run_of: Callable[[str], Path]) -> None:
    pool = default_pool(engine.scorer)
    assert pool is not None
    rows = [json.loads(line) for line in (run_of("bayes") / "test.jsonl").read_text().splitlines()]
    assert {p.prompt for p in pool.prompts} == {row["prompt"] for row in rows}


def test_over_http(client: TestClient) -> None:
    """A stranger is described as they are ranked; what is asked can be answered as it came."""
    stranger = client.get("/v1/users/zoe").json()
    assert (stranger["known"], stranger["comparisons"], stranger["sure"]) == (False, 0, 0.0)
    assert {le["weight"] for le in stranger["leanings"]} == {0.0}
    question = client.get("/v1/users/zoe/question").json()
    assert question["chosen_by"] == "information"
    chosen, rejected = question["responses"]
    body = {"type": "pair", "user": "zoe", "prompt": question["prompt"], "chosen": chosen, "rejected": rejected}
    assert client.post("/v1/feedback", json=body).json()["known_by"] == 1
    known = client.get("/v1/users/zoe").json()
    assert (known["known"], known["comparisons"]) == (True, 1)
    assert any(le["weight"] for le in known["leanings"])
    assert client.get("/v1/users/zoe/question").json()["left"] == question["left"] - 1
    assert client.get("/v1/users/zoe/preview").json()["number"] == 0
    assert client.get("/v1/users/zoe/preview?number=999").status_code == 404


def test_until_the_pool_is_read_the_service_is_busy(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rerank.service.questions._WAIT", 0.01)
    monkeypatch.setattr(Questions, "_work", lambda self: None)
    with TestClient(build_app(make_engine(), pool=pool_of()), base_url="http://localhost") as client:
        for path in ("", "/question", "/preview"):
            reply = client.get(f"/v1/users/zoe{path}")
            assert (reply.status_code, reply.headers["Retry-After"]) == (503, "2")
        assert client.post("/v1/rerank", json={"query": "what?", "documents": ["a king"]}).status_code == 200


def test_a_pool_that_could_not_be_read_is_read_at_the_next_request(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """From its first text on; the log says where it failed, and not in which text."""
    questions = Questions(make_engine(), pool_of())
    features, broken = questions._features, [RuntimeError("secret")]

    def read(texts: Sequence[tuple[Prompt, str]]) -> HeadInput:
        if questions._num_read and broken:
            raise broken.pop()
        return features(texts)

    monkeypatch.setattr("rerank.service.questions._AT_ONCE", 4)
    monkeypatch.setattr("rerank.service.questions._WAIT", 20.0)
    monkeypatch.setattr(questions, "_features", read)
    questions.start()
    until(lambda: not broken and not questions._thread.is_alive())  # type: ignore[union-attr]
    assert len(questions._ready().features.states) == len(questions._texts)
    assert "RuntimeError at" in caplog.text
    assert "secret" not in caplog.text
    questions.close()


def test_the_page_is_files_of_its_own(client: TestClient) -> None:
    """It loads nothing that the policy forbids: no inline script or style, no other site."""
    reply = client.get("/")
    assert "script-src 'self'" in reply.headers["Content-Security-Policy"]
    assert "unsafe" not in reply.headers["Content-Security-Policy"]
    assert not re.search(r"<style|\sstyle=|<script(?![^>]*\ssrc=)|\son\w+=|https?://", reply.text)
    for name in re.findall(r'(?:href|src)="([^"]*)"', reply.text):
        file = client.get(f"/{name}")
        assert file.status_code == 200
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", file.text)
    assert client.get("/page/nothing.js").status_code == 404

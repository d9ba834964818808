"""Chat completions: the `openai` client on a real port, with a real server as the upstream."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import openai
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from prm.errors import PrmError
from prm.io.endpoint import Endpoint
from rerank.cli import main
from rerank.service.command import build_serve_parser, serve_command
from rerank.service.engine import CHAT, Engine
from rerank.service.http.app import build_app
from rerank.service.judgements import Judgement
from rerank.service.upstream import EndpointUpstream, LocalModel
from tests.endpoint_server import Body, FakeEndpoint, Sent, choices
from tests.rerank.service.conftest import MakeEngine
from tests.rerank.service.live import serving
from tests.rerank.service.test_engine import KING, MIX, NONE, PROMPT

SAID = [(KING, "stop"), (NONE, "stop"), (MIX, "length"), ("", "stop")]
ASK = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}]}

Play = Callable[[Body, int], Sent]


@pytest.fixture(autouse=True)
def _direct(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("OPENAI_API_KEY", "the-upstreams")


@contextmanager
def chatting(engine: Engine, play: Play, timeout: float = 20.0) -> Iterator[tuple[openai.OpenAI, FakeEndpoint]]:
    """Yield a client of the service, and its upstream."""
    with ExitStack() as stack:
        server = stack.enter_context(FakeEndpoint(play))
        app = build_app(engine, upstream=EndpointUpstream(Endpoint(server.url, timeout=timeout)), n=4)
        url = stack.enter_context(serving(app))
        yield openai.OpenAI(base_url=f"{url}/v1", api_key=engine.store.add_key("acme"), max_retries=0), server


def said(body: Body, number: int = 0) -> Sent:
    return choices(SAID[: body.get("n", 1)])


def likes(engine: Engine, user: str, text: str) -> None:
    for other in {KING, NONE, MIX} - {text}:
        for _ in range(3):
            engine.give_feedback("acme", user, Judgement("pair", PROMPT, (text, other), 0))


def test_two_users_get_their_own_answers_and_learn_on(engine: Engine) -> None:
    """Streamed or not; the upstream sees neither users nor their texts nor the client's key; a thumb counts."""
    likes(engine, "anna", KING)
    likes(engine, "ben", NONE)
    with chatting(engine, said) as (client, server):
        for user, best in (("anna", KING), ("ben", NONE)):
            more = {"user_text": "secret-text", "metadata": {"customer": f"secret-{user}"}}
            fields = {"temperature": 0.5, "seed": 7, "stop": ["x"], "max_completion_tokens": 9, "top_p": 0.9}
            client.chat.completions.create(**ASK, user=user, extra_body=more)
            reply = client.chat.completions.create(**ASK, **fields, user=user)
            assert [(c.index, c.message.content) for c in reply.choices] == [(0, best)]
            assert (reply.usage.prompt_tokens, reply.usage.completion_tokens, reply.usage.total_tokens) == (7, 3, 10)
            how = reply.rerank
            assert how == {
                **{"shown": reply.id, "ranked": True, "reason": None, "candidates": 3, "known_user": True},
                "comparisons": 6,
            }
            assert server.bodies[-1] == {**ASK, **fields, "n": 4}
            stream = client.chat.completions.create(
                **ASK, safety_identifier=user, stream=True, stream_options={"include_usage": True}
            )
            chunks = list(stream)
            assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == best
            assert len(chunks) > 4
            assert [c.choices[0].finish_reason for c in chunks if c.choices][-2:] == [None, "stop"]
            assert chunks[-1].usage.total_tokens == 10
            assert len({c.id for c in chunks}) == 1
            thumb = {"type": "thumb", "user": user, "shown": chunks[0].id, "up": False}
            assert client.post("/feedback", body=thumb, cast_to=object)["comparisons"] == 0
        sent = json.dumps([server.bodies, server.headers])
        for hidden in ("anna", "ben", "secret", client.api_key):
            assert hidden not in sent
        (row,) = engine.store.feedback_of(("acme", "ben"))[-1:]
        assert json.loads(row.body)["responses"] == [NONE]
        pick = {"type": "pick", "user": "anna", "shown": reply.id, "chosen": 0}
        with pytest.raises(openai.NotFoundError):  # it was shown to ben
            client.post("/feedback", body=pick, cast_to=object)
        with pytest.raises(openai.BadRequestError, match="one answer"):  # the others were never seen
            client.post("/feedback", body=pick | {"user": "ben"}, cast_to=object)
        assert [m.id for m in client.models.list()] == ["tiny"]


def test_servers_that_give_fewer_choices_are_asked_for_more(make_engine: MakeEngine) -> None:
    """One choice at a time, each with its own seed; what fails of these is a candidate less."""

    def one(body: Body, number: int) -> Sent:
        return Sent(500) if body["seed"] == 6 else choices([SAID[body["seed"] - 5]])

    with chatting(make_engine(), one) as (client, server):
        for sent in (4, 8):  # the service knows the server by the second time
            reply = client.chat.completions.create(**ASK, seed=5)
            assert (reply.rerank["candidates"], reply.usage.total_tokens) == (2, 30)
            assert len(server.bodies) == sent
        assert sorted(body["seed"] for body in server.bodies[4:]) == [5, 6, 7, 8]

    def refuses_n(body: Body, number: int) -> Sent:
        return Sent(400) if "n" in body else choices([SAID[number % 4]])

    with chatting(make_engine(), refuses_n) as (client, server):
        assert client.chat.completions.create(**ASK).rerank["candidates"] == 3
        assert len(server.bodies) == 5


@pytest.mark.parametrize(
    ("sent", "status", "retry_after"),
    [
        (Sent(400, json.dumps({"error": {"message": "too long"}})), 400, None),
        (Sent(404), 404, None),
        (Sent(401, json.dumps({"error": {"message": "wrong key: the-upstreams"}})), 502, None),
        (Sent(429, "slower", (("Retry-After", "7"),)), 429, "7"),
        (Sent(503, "", (("Retry-After", "3"),)), 503, "3"),
        (Sent(500), 502, None),
        (Sent(302, "", (("Location", "http://127.0.0.1:1/"),)), 502, None),
        (Sent(raw="no JSON"), 502, None),
        (Sent(raw='{"choices": []}'), 502, None),
        (Sent(raw='{"choices": [{"message": {"content": 3}}]}'), 502, None),
        (Sent(raw='{"choices": [{"message": {"content": "a", "tool_calls": "x"}}]}'), 502, None),
        (Sent(raw='{"choices": [{"message": {"content": "a", "tool_calls": ["x"]}}]}'), 502, None),
        (Sent(drop=True), 502, None),
        (Sent(delay=1.5, raw="{}"), 504, None),
    ],
)
def test_errors_of_the_upstream_keep_their_status(
    engine: Engine, sent: Sent, status: int, retry_after: str | None
) -> None:
    with chatting(engine, lambda body, number: sent, timeout=0.5) as (client, _):
        for streams in (False, True):
            with pytest.raises(openai.APIStatusError) as raised:
                client.chat.completions.create(**ASK, stream=streams)
            assert raised.value.status_code == status
            assert raised.value.response.headers.get("retry-after") == retry_after
            assert "the-upstreams" not in raised.value.response.text


def test_what_cannot_be_ranked_is_passed_through_and_says_so(engine: Engine) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    tools = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]

    def play(body: Body, number: int) -> Sent:
        return choices([(None, "tool_calls")], tool_calls=[call]) if "tools" in body else said(body)

    with chatting(engine, play) as (client, server):
        reply = client.chat.completions.create(**ASK, tools=tools, user="anna")
        assert reply.choices[0].message.tool_calls[0].function.name == "look"
        assert reply.rerank["ranked"] is False
        assert "tools" in reply.rerank["reason"]
        assert server.bodies[-1] == {**ASK, "tools": tools}
        first, *_, last = client.chat.completions.create(**ASK, tools=tools, stream=True)
        assert first.choices[0].delta.tool_calls[0].id == "c1"
        assert last.choices[0].finish_reason == "tool_calls"
        several = client.chat.completions.create(**ASK, n=3, user="anna")
        assert [c.message.content for c in several.choices] == [KING, NONE, MIX]
        image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]
        assert client.chat.completions.create(model="tiny", messages=image).rerank["ranked"] is False
        parts = [{"role": "user", "name": "anna", "content": [{"type": "text", "text": PROMPT}]}]
        assert client.chat.completions.create(model="tiny", messages=parts).rerank["ranked"] is True
        assert server.bodies[-1]["messages"] == ASK["messages"]


@pytest.mark.parametrize(
    "said",
    [[("", "length"), (None, "stop")], [("king " * 1000, "stop")], [("a \x00 king", "stop")]],
    ids=["empty", "too long for the reward model", "NUL"],
)
def test_answers_that_cannot_be_read_are_given_as_they_are(engine: Engine, said: list[tuple[str, str]]) -> None:
    with chatting(engine, lambda body, number: choices(said * 4)) as (client, _):
        reply = client.chat.completions.create(**ASK, user="anna")
        assert reply.choices[0].message.content == said[0][0]
        assert (reply.rerank["ranked"], reply.rerank["candidates"]) == (False, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "judge", "content": "a"}]},
        {"messages": [{"role": "assistant", "content": "a"}]},
        {"customer_id": "anna"},
        {"user": "anna", "safety_identifier": "ben"},
        {"n": 0},
    ],
)
def test_wrong_requests_never_reach_the_upstream(engine: Engine, fields: dict[str, object]) -> None:
    with chatting(engine, said) as (client, server):
        with pytest.raises(openai.APIStatusError) as raised:
            client.post("/chat/completions", body={**ASK, **fields}, cast_to=object)
        assert raised.value.status_code in (400, 422)
        assert server.bodies == []


def test_the_embedded_model_answers_where_no_server_is_named(make_engine: MakeEngine, tiny: str) -> None:
    engine = make_engine()
    local = LocalModel(tiny, timeout=0.2)
    with serving(build_app(engine, upstream=local, n=3)) as url:
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any, since there are none", max_retries=0)
        assert local._sampler is None  # loaded when it is first asked
        ask = {**ASK, "model": tiny, "max_tokens": 5}
        reply = client.chat.completions.create(**ask, seed=3)
        again = client.chat.completions.create(**ask, seed=3, stop=["zzz"], temperature=0.8)
        assert reply.choices[0].message.content == again.choices[0].message.content
        assert reply.usage.completion_tokens <= 15
        client.chat.completions.create(**ask, temperature=0)
        refused: dict[str, object] = {"model": "gpt-5", "logprobs": True, "top_p": 3, "temperature": "hot", "seed": -1}
        refused |= {"max_tokens": [1], "stop": [1], "response_format": {"type": "json_object"}, "tools": [{}]}
        for field, value in refused.items():
            with pytest.raises(openai.APIStatusError) as raised:
                client.post("/chat/completions", body={**ask, field: value}, cast_to=object)
            assert raised.value.status_code == (404 if field == "model" else 400)
        with local._turn, pytest.raises(openai.APIStatusError) as raised:
            client.chat.completions.create(**ask)
        assert raised.value.status_code == 503


def test_values_that_json_can_hardly_hold(engine: Engine) -> None:
    with chatting(engine, said) as (client, server):
        deep = json.dumps(ASK)[:-1].encode() + b', "logit_bias": ' + b'{"a":' * 700 + b"1" + b"}" * 701
        for raw in (json.dumps({**ASK, "stop": ["\ud800"]}).encode(), deep):
            with pytest.raises(openai.BadRequestError):
                client.post("/chat/completions", content=raw, cast_to=object)
        assert not server.bodies


def test_a_thumb_is_of_the_answer_that_a_held_out_user_saw(make_engine: MakeEngine) -> None:
    """Everybody's best, not the user's own."""
    engine, texts, own = make_engine(holdout=0.999999), [KING, NONE, MIX], 0
    for user in ("p0", "p1"):
        ranking = engine.rank("", PROMPT, texts, user, kind=CHAT)
        assert engine.best_shown_to("", user, ranking.shown_id) == (PROMPT, texts[ranking.order[0]])
        own += ranking.personal != ranking.order[0]
    assert own > 0


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--upstream", "http://"], "url"),
        (["--upstream", "./nowhere"], "nowhere"),
        (["--key_variable", "KEY"], "--key_variable"),
        (["--reader_digest", "0123"], "--reader_digest"),
        (["--reader", "localhost:8000"], "url"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_loaded(flags: list[str], fault: str) -> None:
    with pytest.raises(PrmError, match=fault):
        serve_command(build_serve_parser().parse_args(["no-such-run", *flags]))


def test_usage_is_left_out_where_the_upstream_does_not_count(engine: Engine) -> None:
    """Even if one of several requests was counted; streamed, or not."""

    def uncounted(body: Body, number: int) -> Sent:
        found = choices([SAID[number % 4]])
        return found if number == 1 else found._replace(raw=json.dumps(json.loads(found.raw) | {"usage": None}))

    with chatting(engine, uncounted) as (client, server):
        assert client.chat.completions.create(**ASK).usage is None
        server.bodies.clear()
        with_usage = {"stream": True, "stream_options": {"include_usage": True}}
        chunks = list(client.chat.completions.create(**ASK, **with_usage))
        assert all(chunk.usage is None and chunk.choices for chunk in chunks)


def test_an_upstream_that_is_not_there_is_noticed(
    run_of: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the start, with its address, and by /readyz, which stays ready; not any more once it answers."""
    with FakeEndpoint(said) as server:
        url, port = server.url, server.server_address[1]
    ready = list[dict[str, str]]()

    class Served:
        """Asks twice, in place of a server that runs on."""

        def __init__(self, app: FastAPI, *_: object):
            self.app = app

        def run(self, sockets: list[socket.socket]) -> None:
            with TestClient(self.app, base_url="http://localhost") as client:
                ready.append(client.get("/readyz").json())
                with FakeEndpoint(said, port=port):
                    assert client.get("/v1/models").is_success
                ready.append(client.get("/readyz").json())

    monkeypatch.setattr("rerank.service.http.server.build_server", Served)
    flags = ["--store", str(tmp_path / "a" / "store.db"), "--port", "0", "--upstream", url, "--device", "cpu"]
    main(["serve", str(run_of("bayes")), *flags])
    assert f"--upstream {url}: no answer" in caplog.text
    assert ready == [{"status": "ok", "upstream": "does not answer"}, {"status": "ok"}]
    assert (tmp_path / "a" / "store.db").is_file()
    main(["keys", str(tmp_path / "a" / "store.db"), "list"])


def test_chats_take_no_place_of_rankings(make_engine: MakeEngine) -> None:
    """While the upstream writes, others rank; chats have a limit of their own."""
    engine, begun, go = make_engine(max_requests=1, max_chats=2), threading.Semaphore(0), threading.Event()

    def slow(body: Body, number: int) -> Sent:
        begun.release()
        go.wait(10)
        return said(body)

    rank = {"query": PROMPT, "documents": [KING, NONE]}
    with chatting(engine, slow) as (client, _), ThreadPoolExecutor() as pool:
        waiting = [pool.submit(client.chat.completions.create, **ASK) for _ in range(2)]
        for _ in waiting:
            assert begun.acquire(timeout=10)
        assert client.post("/rerank", body=rank, cast_to=httpx.Response).status_code == 200
        with pytest.raises(openai.APIStatusError, match="chats"):
            client.chat.completions.create(**ASK)
        go.set()
        assert all(one.result().rerank["ranked"] for one in waiting)

"""Responses from an OpenAI-compatible endpoint: what is sent, faults of a real server on loopback, and what comes."""

import json
import socket
from collections import Counter
from collections.abc import Callable, Sequence

import pytest

from prm.data.comparison import Message
from prm.errors import PrmError
from prm.io.endpoint import Endpoint, EndpointError
from rerank.sampling.config import Sampling
from rerank.sampling.endpoint_generator import EndpointGenerator
from rerank.sampling.generator import Drawn, Request, Response
from tests.endpoint_server import Body, FakeEndpoint, Sent, choices, completion

KEY = "sk-of-nobody-0123456789"
HOW = Sampling(max_new_tokens=7, temperature=0.5, top_p=0.9, seed=20)
AT_ONCE = (("retry-after-ms", "1"),)


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("SAMPLER_KEY", KEY)


def generator(server: FakeEndpoint, sampling: Sampling = HOW, **changes: object) -> EndpointGenerator:
    settings: dict[str, object] = {"model": "tiny", "key_variable": "SAMPLER_KEY", "timeout": 5.0}
    return EndpointGenerator(Endpoint(server.url, **settings | changes), sampling)  # type: ignore[arg-type]


def ask(source: EndpointGenerator, n: int, *prompts: str) -> list[Drawn]:
    return list(source.sample([Request(prompt) for prompt in prompts or ("why?",)], n))


def texts(drawn: Drawn) -> list[str]:
    assert not isinstance(drawn, PrmError), drawn
    return [response.text for response in drawn]


def said(body: Body, k: int = 0) -> tuple[str, str]:
    """What the server says: to which prompt, and the seed of choice k."""
    return f"{body['messages'][-1]['content']} {body['seed'] + k}", "stop"


def gives(most: int = 99) -> Callable[[Body, int], Sent]:
    """A server that gives at most so many choices to a request."""
    return lambda body, number: choices([said(body, k) for k in range(min(most, body.get("n", 1)))])


def expected(n: int, prompt: str = "why?") -> list[str]:
    return [f"{prompt} {20 + k}" for k in range(n)]


def test_one_request_asks_for_all_choices() -> None:
    with FakeEndpoint(gives()) as server:
        messages = (Message("system", "be brief"), Message("user", "why?"))
        (drawn,) = generator(server).sample([Request(messages, "anna", "I like tea")], 3)
    assert texts(drawn) == expected(3)
    assert server.bodies == [
        {
            "model": "tiny",
            "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}],
            "n": 3,
            "max_tokens": 7,
            "temperature": 0.5,
            "top_p": 0.9,
            "seed": 20,
        }
    ]  # neither the user nor their text
    assert server.headers[0]["authorization"] == f"Bearer {KEY}"


@pytest.mark.parametrize("most", [1, 2, 3, 5])
def test_a_server_that_gives_fewer_is_asked_until_all_are_there(most: int) -> None:
    """Each choice once, with its own seed, and the same as from a server that gives all at once."""
    with FakeEndpoint(gives(most)) as server:
        source = generator(server)
        assert texts(ask(source, 5)[0]) == expected(5)
        assert len(server.bodies) == {1: 5, 2: 3, 3: 2, 5: 1}[most]
        before = len(server.bodies)
        assert texts(ask(source, 5, "who?")[0]) == expected(5, "who?")
        assert all(body.get("n", 1) <= most for body in server.bodies[before:])  # it is known by then
        assert len(server.bodies) - before == -(-5 // most)


def test_prompts_keep_their_responses_however_replies_arrive() -> None:
    """More prompts than are asked together, and the first replies last; no more in flight than allowed."""
    prompts = [f"what of {i}?" for i in range(11)]

    def play(body: Body, number: int) -> Sent:
        return gives(2)(body, number)._replace(delay=0.03 * (number % 3 == 0))

    with FakeEndpoint(play) as server:
        drawn = ask(generator(server, concurrency=2), 3, *prompts)
        assert server.most_at_once == 2
    assert list(map(texts, drawn)) == [expected(3, prompt) for prompt in prompts]


def test_a_server_that_refuses_several_choices_is_asked_for_one_at_a_time() -> None:
    def play(body: Body, number: int) -> Sent:
        return Sent(400, '{"error": {"message": "n must be 1"}}') if "n" in body else gives()(body, number)

    with FakeEndpoint(play) as server:
        source = generator(server)
        assert texts(ask(source, 4)[0]) == expected(4)
        assert len(server.bodies) == 5
        ask(source, 4, "who?")
        assert len(server.bodies) == 9


def test_a_prompt_that_the_server_refuses_stands_alone() -> None:
    """It costs two requests, and the others are still asked for all at once."""

    def play(body: Body, number: int) -> Sent:
        long = body["messages"][-1]["content"] == "long?"
        return Sent(400, '{"error": {"message": "context_length"}}') if long else gives()(body, number)

    with FakeEndpoint(play) as server:
        source = generator(server)
        first, refused, last = ask(source, 4, "a?", "long?", "b?")
        assert (texts(first), texts(last)) == (expected(4, "a?"), expected(4, "b?"))
        assert isinstance(refused, PrmError)
        assert not isinstance(refused, EndpointError)
        assert str(refused) == f"{server.url}: HTTP 400: 'context_length'"
        assert len(server.bodies) == 4
        ask(source, 4, "c?")
        assert server.bodies[-1]["n"] == 4


PASSING = {
    "500": Sent(500, "oops", AT_ONCE),
    "429": Sent(429, '{"error": {"message": "slow down"}}', AT_ONCE),
    "hang-up": Sent(drop=True),
    "timeout": completion("too late")._replace(delay=1.0),
    "malformed JSON": Sent(200, '{"choices": [{"mess'),
    "no choices": choices([]),
    "null": Sent(200, "null"),
}


@pytest.mark.parametrize("name", PASSING)
def test_faults_that_pass_are_tried_again(name: str) -> None:
    def play(body: Body, number: int) -> Sent:
        return PASSING[name] if number == 0 else gives()(body, number)

    with FakeEndpoint(play) as server:
        assert texts(ask(generator(server, timeout=0.5), 3)[0]) == expected(3)
        assert [body["n"] for body in server.bodies] == [3, 3]


@pytest.mark.parametrize(
    ("sent", "fault"),
    [
        (Sent(500, "oops", AT_ONCE), "no answer: HTTP 500 'oops', after 2 attempts"),
        (Sent(503, "", AT_ONCE), "no answer: HTTP 503, after 2 attempts"),
        (completion("late")._replace(delay=1.0), "no answer: ReadTimeout no complete response within 0.2 s, after 2"),
    ],
    ids=["500", "503", "timeout"],
)
def test_a_server_that_stays_down_ends_it_with_its_url_and_status(sent: Sent, fault: str) -> None:
    with FakeEndpoint(lambda body, number: sent) as server:
        source = generator(server, max_retries=1, timeout=0.2, concurrency=1)
        with pytest.raises(EndpointError) as raised:
            ask(source, 3, *"abcd")
        assert str(raised.value).startswith(f"{server.url}: {fault}")
        assert len(server.bodies) == 2  # no other prompt is sent


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match=rf"{url}: no answer: ConnectError"):
            ask(EndpointGenerator(Endpoint(url, "tiny", max_retries=0), HOW), 2)


@pytest.mark.parametrize("name", ["malformed JSON", "no choices"])
def test_replies_that_stay_unreadable_are_given_up(name: str) -> None:
    with FakeEndpoint(lambda body, number: PASSING[name]) as server:
        (drawn,) = ask(generator(server, max_retries=2), 3)
        assert isinstance(drawn, PrmError)
        assert str(drawn).startswith(f"{server.url}: no answer: ")
        assert len(server.bodies) == 3


@pytest.mark.parametrize("status", [401, 403])
def test_a_bad_key_stops_at_once_and_is_shown_nowhere(status: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "prm")
    with FakeEndpoint(lambda body, number: Sent(status, f'{{"error": {{"message": "bad key {KEY}"}}}}')) as server:
        with pytest.raises(EndpointError, match=rf"{server.url}: HTTP {status} 'bad key.*SAMPLER_KEY") as raised:
            ask(generator(server, concurrency=1), 2, *"abcdef")
        assert len(server.bodies) == 1
    assert KEY not in str(raised.value) + caplog.text + json.dumps(server.bodies) + repr(generator(server).endpoint)


def test_reasons_say_whether_a_response_ended() -> None:
    said: Sequence[tuple[str | None, str | None]] = [
        (" a \n", "stop"), ("b", "length"), ("c", None), ("d", "content_filter"), (None, "length"), ("", "stop"),
    ]  # fmt: skip
    with FakeEndpoint(lambda body, number: choices(said)) as server:
        (drawn,) = ask(generator(server), 6)
    assert drawn == [
        Response("a", True), Response("b", False), Response("c", None), Response("d", False), Response("", False),
        Response("", True),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("models", "fault"), [(("one", "two"), "has 2 models: one, two; name one"), ((), "has 0 models; name one")]
)
def test_the_only_model_need_not_be_named(models: Sequence[str], fault: str) -> None:
    with FakeEndpoint(gives(), ["the-only-one"]) as server:
        source = generator(server, model="")
        assert len(ask(source, 2, "a?", "b?")) == 2
        assert {body["model"] for body in server.bodies} == {"the-only-one"}
        assert len(server.headers) == 3  # the list is asked for once
        server.models = models
        with pytest.raises(EndpointError, match=f"{server.url} {fault}"):
            ask(generator(server, model=""), 2)


def test_options_are_laid_over_the_settings_and_null_leaves_one_out() -> None:
    options = {"max_tokens": None, "max_completion_tokens": 9, "seed": None, "top_k": 5, "temperature": 2}
    with FakeEndpoint(lambda body, number: choices([("a", "stop")] * body["n"])) as server:
        ask(generator(server, options=options), 2)
    (body,) = server.bodies
    del body["messages"]
    assert body == {"model": "tiny", "n": 2, "temperature": 2, "top_p": 0.9, "max_completion_tokens": 9, "top_k": 5}


@pytest.mark.parametrize("changed", ["repetition_penalty", "no_repeat_ngram", "min_new_tokens"])
def test_settings_that_the_api_does_not_have_are_refused(changed: str) -> None:
    with pytest.raises(PrmError, match=rf"sampling\.{changed}.*options"):
        EndpointGenerator(Endpoint("http://x/v1"), Sampling(**{changed: 2}))  # type: ignore[arg-type]


def test_a_server_that_does_not_sample_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with FakeEndpoint(lambda body, number: choices([("same", "stop")] * body["n"])) as server:
        source = generator(server)
        for _ in range(2):
            assert Counter(texts(ask(source, 4)[0])) == {"same": 4}
        assert caplog.text.count(f"{server.url}: all 4 responses") == 1
        caplog.clear()
        server.play = gives()
        ask(generator(server), 4)
        assert caplog.text == ""


def test_a_password_in_the_address_is_refused() -> None:
    with pytest.raises(PrmError, match="key_variable") as raised:
        Endpoint("http://me:secret@host/v1")
    assert "secret" not in str(raised.value)

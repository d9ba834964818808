"""A language model as judge, against a real server on loopback: verdicts, faults, caching, cost."""

import asyncio
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from policy.judging.judges import Duel, Endpoint, LLMJudge, llm
from prm.data.comparison import Comparison
from prm.errors import DataError, PrmError
from prm.io.endpoint import EndpointError
from tests.endpoint_server import Body, FakeEndpoint, Sent, answers, completion, likes_shorter
from tests.paths import ROOT

KEY = "sk-of-nobody-0123456789"


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("JUDGE_KEY", KEY)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "judge" / "replies.jsonl"


def endpoint(server: FakeEndpoint, **more: object) -> Endpoint:
    settings: dict[str, object] = {"key_variable": "JUDGE_KEY", "timeout": 5.0}
    return Endpoint(server.url, "tiny", **{**settings, **more})  # type: ignore[arg-type]


def duels(n: int = 3) -> list[Duel]:
    """The first answer is the shorter one in every second duel, from the first on."""
    pairs = [(f"no {i}", f"no, by no means {i}") for i in range(n)]
    return [Duel(f"u{i}", f"what about {i}?", *(p if i % 2 == 0 else p[::-1])) for i, p in enumerate(pairs)]


def test_a_taste_shows_in_both_orders(cache: Path) -> None:
    with FakeEndpoint(likes_shorter) as server:
        judged = LLMJudge(endpoint(server), cache)(duels(4))
    assert judged.scores.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert (judged.unjudged, list(judged.disagreed), judged.notes()) == ({}, [], [])
    shown = [answers(body) for body in server.bodies]
    assert len(shown) == 8
    assert {(b, a) for a, b in shown} == set(shown)  # every pair once in either order


def test_a_model_that_prefers_a_position_makes_ties(cache: Path) -> None:
    with FakeEndpoint(lambda body, n: completion("Verdict: A")) as server:
        judged = LLMJudge(endpoint(server), cache)(duels(3))
    assert judged.scores.tolist() == [0.5, 0.5, 0.5]
    assert list(judged.disagreed) == [0, 1, 2]
    (note,) = judged.notes()
    assert note.startswith("3 of 3 ")


def test_a_tie_in_one_order_and_a_win_in_the_other_is_a_tie(cache: Path) -> None:
    def play(body: Body, number: int) -> Sent:
        return completion("Verdict: TIE" if len(answers(body)[0]) < 6 else "Verdict: B")

    with FakeEndpoint(play) as server:
        judged = LLMJudge(endpoint(server), cache)(duels(1))
    assert (judged.scores.tolist(), list(judged.disagreed)) == ([0.5], [0])


def test_ties_stay_ties_and_equal_answers_cost_nothing(cache: Path) -> None:
    same = Duel("anna", "why?", "because", "because")
    with FakeEndpoint(lambda body, n: completion("Alike.\n**Verdict: tie**")) as server:
        judged = LLMJudge(endpoint(server), cache)([same, *duels(1)])
    assert (judged.scores.tolist(), list(judged.disagreed)) == ([0.5, 0.5], [])
    assert len(server.bodies) == 2


AT_ONCE = (("retry-after-ms", "1"),)
PASSING = {  # what the client tries again
    "429": Sent(429, '{"error": {"message": "slow down"}}', (("Retry-After", "0.4"),)),
    "500": Sent(500, "oops", AT_ONCE),
    "hang-up": Sent(drop=True),
    "cut short": completion("Verdict: A")._replace(cut=30),
    "silence": completion("Verdict: A")._replace(delay=2.0),
    "dripping": completion("Verdict: A")._replace(drip=0.05),
}


@pytest.mark.parametrize("name", PASSING)
def test_faults_that_may_pass_are_tried_again(cache: Path, name: str) -> None:
    def play(body: Body, number: int) -> Sent:
        return PASSING[name] if number == 0 else likes_shorter(body)

    with FakeEndpoint(play) as server:
        timeout = 1.0 if name in ("silence", "dripping") else 5.0
        judged = LLMJudge(endpoint(server, concurrency=1, timeout=timeout), cache)(duels(1))
    assert judged.scores.tolist() == [1.0]
    assert len(server.bodies) == 3  # a fault, two answers
    if name == "429":
        assert server.times[1] - server.times[0] >= 0.4


def body_of(message: str, choice: str = "", usage: str = "") -> Sent:
    return Sent(raw=f'{{"choices": [{{"message": {message}{choice}}}]{usage}}}')


BROKEN = {  # no reply, whatever else: the same question may get one another time
    "500": Sent(500, "oops", AT_ONCE),
    "too long": completion("Verdict: A" + " " * 10_000_000),
    "HTML": Sent(200, "<html><body>Bad gateway</body></html>", (("Content-Type", "text/html"),)),
    "bytes": Sent(200, "\x00\ud7ff", (("Content-Type", "application/json; charset=klingon"),)),
    "broken JSON": Sent(200, '{"choices": [{"mess', (("Content-Type", "application/json"),)),
    "nested": Sent(200, "[" * 100_000),
    "long number": body_of("1" * 5000),
    "null": Sent(200, "null"),
    "a list": Sent(200, "[1, 2]"),
    "null choices": Sent(200, '{"choices": null}'),
    "no choice": Sent(200, '{"choices": []}'),
    "null message": body_of("null"),
    "content that is a list": body_of('{"content": [{"type": "text", "text": "Verdict: A"}]}'),
    "content that is a number": body_of('{"content": 1e999}'),
    "refusal that is no text": body_of('{"content": null, "refusal": {"a": 1}}'),
    "usage that is no object": body_of('{"content": "Verdict: A"}', usage=', "usage": 3'),
    "empty text": completion(""),
}


def number_of(body: Body) -> int:
    """Of the duel that a request is about."""
    return int(answers(body)[0].split()[-1])


def test_a_fault_that_stays_is_named_and_is_no_tie(cache: Path) -> None:
    """Every second duel meets a fault of its own, in both orders."""
    faults = list(BROKEN.values())

    def play(body: Body, number: int) -> Sent:
        return faults[number_of(body) // 2] if number_of(body) % 2 else likes_shorter(body)

    with FakeEndpoint(play) as server:
        n = 2 * len(faults)
        judged = LLMJudge(endpoint(server, max_retries=0, concurrency=1), cache)(duels(n))
        assert judged.scores[::2].tolist() == [1.0] * len(faults)
        for i, name in enumerate(BROKEN):
            assert judged.unjudged[2 * i + 1].startswith("no answer: "), name
        assert judged.notes()[0].startswith(f"{n // 2} of {n} duels not judged: {n // 2} no answer; duel 1: ")
        assert len(server.bodies) == 2 * n
        server.play = likes_shorter
        again = LLMJudge(endpoint(server), cache)(duels(n))
        assert again.scores.tolist() == [1.0, 0.0] * (n // 2)  # what failed is asked again, and nothing else
        assert len(server.bodies) == 3 * n


ODD = {  # replies all the same
    "surrogate": completion("They like \ud83d it.\nVerdict: A"),
    "numbers": body_of(
        '{"content": "Verdict: A", "refusal": null}',
        ', "finish_reason": 1e999',
        ', "usage": {"prompt_tokens": 1e999, "completion_tokens": "many", "cost": NaN}',
    ),
    "huge number": body_of('{"content": "Verdict: A"}', usage=f', "usage": {{"prompt_tokens": {"9" * 400}.5}}'),
    "no verdict": completion("\udcff\x00\x1b[31m"),
    "surrogate in the reason": completion(None, finish="\ud800"),
    "header beyond ASCII": completion("Verdict: A")._replace(headers=(("X-Odd", "\xff"),)),
}


def test_odd_numbers_and_texts_leave_run_and_cache_whole(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = list(ODD.values())
    with FakeEndpoint(lambda body, n: odd[number_of(body)]) as server:
        first = LLMJudge(endpoint(server), cache)(duels(len(odd)))
        again = LLMJudge(endpoint(server), cache)(duels(len(odd)))
        assert len(server.bodies) == 2 * len(odd)
    np.testing.assert_array_equal(first.scores, again.scores)
    assert first.unjudged == again.unjudged
    assert [name for i, name in enumerate(ODD) if i in first.unjudged] == ["no verdict", "surrogate in the reason"]
    (*map(str.encode, first.unjudged.values()), capsys.readouterr().out.encode())  # all of it can be printed and kept


def test_half_a_surrogate_pair_in_an_answer_is_sent_as_a_question_mark(cache: Path) -> None:
    with FakeEndpoint(likes_shorter) as server:
        judged = LLMJudge(endpoint(server), cache)([Duel("anna", "why?", "\ud83d", "no idea")])
    assert judged.scores.tolist() == [1.0]
    assert ("?", "no idea") in {answers(body) for body in server.bodies}


def test_an_answer_that_drips_for_ever_ends_with_the_timeout(cache: Path) -> None:
    drips = completion("Verdict: A" + " " * 200)._replace(drip=0.05)
    with FakeEndpoint(lambda body, n: drips) as server:
        judged = LLMJudge(endpoint(server, timeout=0.3, max_retries=0), cache)(duels(1))
        assert time.perf_counter() - server.times[0] < 5  # a whole answer takes more than 15 seconds
    assert judged.unjudged[0] == "no answer: ReadTimeout no complete response within 0.3 s, after 1 attempts"


def test_it_judges_where_an_event_loop_runs_as_in_a_notebook(cache: Path) -> None:
    async def cell() -> list[float]:
        return LLMJudge(endpoint(server), cache)(duels(2)).scores.tolist()

    with FakeEndpoint(likes_shorter) as server:
        assert asyncio.run(cell()) == [1.0, 0.0]


def test_without_the_client_one_line_says_what_to_install(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    monkeypatch.delitem(sys.modules, "prm.io.endpoint_client", raising=False)
    with pytest.raises(PrmError, match=r"pip install 'personalized-rm\[endpoint\]'"):
        LLMJudge(Endpoint("http://x/v1", "tiny"), cache)(duels(1))


WORDLESS = {
    "refused": completion(None, refusal="I can't judge this"),
    "no verdict": completion("Both have their merits."),
    "cut off before a verdict": completion("Let me think about", finish="length"),
    "no verdict: content_filter": completion(None, finish="content_filter"),
}


@pytest.mark.parametrize("reason", WORDLESS)
def test_a_reply_without_a_verdict_is_counted_and_not_paid_twice(cache: Path, reason: str) -> None:
    def play(body: Body, number: int) -> Sent:
        return WORDLESS[reason] if "no 0" in answers(body) else likes_shorter(body)

    with FakeEndpoint(play) as server:
        for _ in range(2):
            judged = LLMJudge(endpoint(server), cache)(duels(2))
            assert np.isnan(judged.scores[0])
            assert judged.scores[1] == 0.0
            assert judged.unjudged[0].startswith(reason)
        assert len(server.bodies) == 4


def test_a_bad_request_fails_alone_and_is_not_tried_again(cache: Path) -> None:
    """A prompt that is too long, say: however many there are, once anything was answered."""

    def play(body: Body, number: int) -> Sent:
        return likes_shorter(body) if number < 2 else Sent(400, '{"error": {"message": "context_length"}}')

    with FakeEndpoint(play) as server:
        judged = LLMJudge(endpoint(server, concurrency=1), cache)(duels(9))
    assert judged.scores[0] == 1.0
    assert sorted(judged.unjudged) == list(range(1, 9))
    assert judged.unjudged[8] == "HTTP 400: 'context_length'"
    assert len(server.bodies) == 18


@pytest.mark.parametrize("sent", [Sent(400, "no such field"), Sent(500, "oops")], ids=["bad setting", "down"])
def test_an_endpoint_that_never_answers_is_given_up(cache: Path, sent: Sent) -> None:
    with FakeEndpoint(lambda body, n: sent) as server:
        judge = LLMJudge(endpoint(server, max_retries=0, concurrency=2), cache)
        with pytest.raises(EndpointError, match=r"\b10 \w+ in a row"):
            judge(duels(200))
    assert len(server.bodies) < 200  # of 400


def test_nobody_listens(cache: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        with pytest.raises(EndpointError, match="ConnectError"):
            LLMJudge(Endpoint(url, "tiny", max_retries=0), cache)(duels(9))


@pytest.mark.parametrize("status", [401, 403])
def test_a_bad_key_stops_at_once_and_is_shown_nowhere(
    cache: Path, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def play(body: Body, number: int) -> Sent:
        if number < 2:
            return likes_shorter(body)._replace(delay=0.5 * number)  # the second comes when the third was refused
        return Sent(status, f'{{"error": {{"message": "bad key {KEY}"}}}}')

    with FakeEndpoint(play) as server:
        with pytest.raises(EndpointError, match=f"{status}.*bad key.*JUDGE_KEY") as raised:
            LLMJudge(endpoint(server, concurrency=2), cache)(duels(30))
        assert len(server.bodies) <= 4
        assert len(cache.read_text().splitlines()) == 2  # what was paid for before is kept
        assert {h["authorization"] for h in server.headers} == {f"Bearer {KEY}"}
    printed = capsys.readouterr()
    for text in (str(raised.value), cache.read_text(), printed.out, printed.err, json.dumps(server.bodies)):
        assert KEY not in text


def test_no_key_is_no_header_and_a_missing_one_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JUDGE_KEY")
    with FakeEndpoint(likes_shorter) as server:
        LLMJudge(endpoint(server), cache)(duels(1))
        assert "authorization" not in server.headers[0]
        server.play = lambda body, n: Sent(401)
        with pytest.raises(EndpointError, match="JUDGE_KEY"):
            LLMJudge(endpoint(server), cache)(duels(2))


def test_a_key_that_is_none_is_not_sent(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "two\nlines")
    with FakeEndpoint(likes_shorter) as server, pytest.raises(EndpointError, match="JUDGE_KEY") as raised:
        LLMJudge(endpoint(server), cache)(duels(1))
    assert "lines" not in str(raised.value)
    assert server.bodies == []


@pytest.mark.parametrize(
    "sent",
    [
        Sent(404, '{"error": {"message": "no such model", "code": "model_not_found"}}'),
        Sent(429, '{"error": {"message": "you have no money left", "code": "insufficient_quota"}}'),
        Sent(402, "pay"),
    ],
    ids=["no model", "no quota", "no money"],
)
def test_what_no_other_question_would_survive_stops_at_once(cache: Path, sent: Sent) -> None:
    with FakeEndpoint(lambda body, n: sent) as server:
        with pytest.raises(EndpointError, match="'tiny'"):
            LLMJudge(endpoint(server, concurrency=1, max_retries=0), cache)(duels(5))
        assert len(server.bodies) == 1


def test_a_redirect_does_not_take_the_key_along(cache: Path) -> None:
    with FakeEndpoint(likes_shorter) as other:
        moved = Sent(302, "", (("Location", f"{other.url}/chat/completions"),))
        with FakeEndpoint(lambda body, n: moved) as server, pytest.raises(EndpointError, match="302"):
            LLMJudge(endpoint(server), cache)(duels(1))
        assert other.headers == []


def test_a_killed_run_goes_on_and_pays_nothing_twice(cache: Path) -> None:
    """Killed for good, by signal 9, while it waits for the tenth reply; a half line is left where it wrote."""
    child: list[subprocess.Popen[bytes]] = []

    def play(body: Body, number: int) -> Sent:
        if number == 9:
            child[0].send_signal(signal.SIGKILL)
        return likes_shorter(body)

    script = "import sys; from tests.policy.judging.judges.test_llm import duels\n"
    script += "from policy.judging.judges import Endpoint, LLMJudge\n"
    script += "LLMJudge(Endpoint(sys.argv[1], 'tiny', concurrency=1), sys.argv[2])(duels(8))"
    with FakeEndpoint(play) as server:
        command = [sys.executable, "-c", script, server.url, str(cache)]
        child.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=os.environ | {"no_proxy": "*"}))
        assert child[0].wait(60) == -signal.SIGKILL
        paid = len(cache.read_text().splitlines())
        assert paid == 9
        with cache.open("a") as file:
            file.write('{"key": "half')
        server.play = likes_shorter
        judge = LLMJudge(Endpoint(server.url, "tiny"), cache)
        assert judge.cost(duels(8)).cached == paid
        before = len(server.bodies)
        assert judge(duels(8)).scores.tolist() == [1.0, 0.0] * 4
        assert len(server.bodies) - before == 16 - paid
        assert LLMJudge(Endpoint(server.url, "tiny"), cache)(duels(8)).scores.tolist() == [1.0, 0.0] * 4
        assert len(server.bodies) - before == 16 - paid


@pytest.mark.parametrize(
    "other",
    [
        lambda e, d: (Endpoint(e.url, "other"), d),
        lambda e, d: (Endpoint(e.url, "tiny", options={"temperature": 1}), d),
        lambda e, d: (e, [Duel(d[0].user_id, d[0].prompt, d[0].first + "!", d[0].second)]),
        lambda e, d: (e, [Duel(d[0].user_id, "other?", d[0].first, d[0].second)]),
        lambda e, d: (e, [Duel(d[0].user_id, d[0].prompt, d[0].first, d[0].second, "likes it brief")]),
    ],
    ids=["model", "options", "answer", "prompt", "person"],
)
def test_whatever_changes_what_is_sent_is_asked_anew(
    cache: Path, other: Callable[[Endpoint, list[Duel]], tuple[Endpoint, list[Duel]]]
) -> None:
    with FakeEndpoint(likes_shorter) as server:
        first = Endpoint(server.url, "tiny")
        LLMJudge(first, cache)(duels(1))
        changed, asked = other(first, duels(1))
        LLMJudge(changed, cache)(asked)
        assert len(server.bodies) == 4


def test_another_file_is_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"user_id": "anna", "prompt": "why?"}\n')
    with pytest.raises(DataError, match=r"log\.jsonl, line 1"):
        LLMJudge(Endpoint("http://x/v1", "tiny"), path)


def test_cost_by_hand_and_printed_before_the_first_call(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(llm, "show", lambda *lines: events.extend(lines))

    def play(body: Body, number: int) -> Sent:
        events.append("asked")
        return likes_shorter(body)

    with FakeEndpoint(play) as server:
        priced = endpoint(server, price_in=2.0, price_out=10.0, options={"max_tokens": 100})
        LLMJudge(priced, cache)(duels(1))
        judge = LLMJudge(priced, cache)
        cost = judge.cost(duels(3))
        assert (cost.calls, cost.cached, cost.tokens_out) == (4, 2, 400)
        events.clear()
        judge(duels(3))
    size = sum(len(m["content"].encode()) for body in server.bodies[2:] for m in body["messages"])
    assert cost.tokens_in == size // 4
    assert cost.price == pytest.approx((cost.tokens_in * 2.0 + 400 * 10.0) / 1e6)
    assert events == [str(cost)] + ["asked"] * 4
    expected = f"judging: 4 calls (2 replies are cached), about {cost.tokens_in:,} tokens of requests and at most 400"
    assert str(cost).startswith(expected)


def test_cost_without_prices_or_limit() -> None:
    judge = LLMJudge(Endpoint("http://x/v1", "tiny", options={}, price_in=1.0, price_out=1.0), "nowhere.jsonl")
    cost = judge.cost(duels(2))
    assert (cost.tokens_out, cost.price) == (None, None)
    assert "no prices" in str(cost)
    assert not Path("nowhere.jsonl").exists()


def test_no_more_at_once_than_allowed(cache: Path) -> None:
    with FakeEndpoint(lambda body, n: likes_shorter(body)._replace(delay=0.05)) as server:
        LLMJudge(endpoint(server, concurrency=3), cache)(duels(9))
    assert server.most_at_once == 3


def test_the_question_tells_of_the_person_and_not_their_id(cache: Path) -> None:
    past = (
        Comparison("anna-7", "tea?", "green tea", "black tea"),
        Comparison("anna-7", "cake?", "plum", "x" * 5000, p_chosen=0.5),
    )
    duel = Duel("anna-7", "coffee?", "espresso", "", "likes it strong", "too chatty", past, "Be brief.")
    with FakeEndpoint(likes_shorter) as server:
        LLMJudge(endpoint(server), cache)([duel])
    body = server.bodies[0]
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("tiny", 0, 512)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    text = body["messages"][1]["content"]
    for part in (
        "likes it strong",
        "too chatty",
        "Be brief.",
        "The person: coffee?",
        "They preferred: green tea",
        "To: black tea",
    ):
        assert part in text
    assert "They liked both alike: plum" in text
    assert "x" * 1200 + " ..." in text
    assert answers(body) in {("espresso", "(nothing)"), ("(nothing)", "espresso")}
    assert "anna-7" not in json.dumps(server.bodies)


@pytest.mark.parametrize(
    ("url", "more"),
    [
        ("file:///etc/hostname", {}),
        ("localhost:8000", {}),
        ("http://", {}),
        ("http://x", {"timeout": 0}),
        ("http://x", {"options": {"a": math.nan}}),
        ("http://[", {}),
        ("http://x:y", {}),
    ],
)
def test_an_endpoint_that_makes_no_sense(url: str, more: dict[str, int]) -> None:
    with pytest.raises(PrmError, match="endpoint"):
        Endpoint(url, "tiny", **more)  # type: ignore[arg-type]

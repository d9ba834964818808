"""Who may ask: keys and namespaces, sites, numbers of requests and connections; and what is written of them."""

import hashlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from prm.config import FeedbackConfig
from prm.data.comparison import Prompt
from prm.data.encoding import Encoded
from prm.data.sources import read_feedback
from prm.data.sources.store.schema import comparisons, feedback, people
from rerank.cli import main
from rerank.service.config import ServiceConfig
from rerank.service.engine import Engine
from rerank.service.http.app import build_app
from rerank.service.report.records import read_records
from tests.rerank.service.conftest import MakeEngine
from tests.rerank.service.sockets import listening, request, send

RANK = {"query": "what of old wizards?", "documents": ["a king jumps", "a lazy dog"], "user": "zoe"}
TOLD = {"type": "pair", "user": "zoe", "prompt": "what?", "chosen": "a king jumps", "rejected": "a lazy dog"}


@contextmanager
def asking(engine: Engine, key: str | None = None, needs_key: bool = True) -> Iterator[TestClient]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with TestClient(build_app(engine, needs_key, ("*",)), base_url="http://ranks.example", headers=headers) as client:
        yield client


def test_a_key_is_needed_and_ends(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong and removed keys get the words that none gets; health and the page's files are open, all else is not."""
    monkeypatch.setattr("rerank.service.http.known_keys._MOST_AGE", 0.2)
    monkeypatch.setattr("rerank.service.http.known_keys._LEAST_AGE", 0.0)
    with asking(engine) as client:
        refused = [client.post("/v1/rerank", json=RANK)]
        for key in ("", "prm-", "prm-wrong", "x" * 5000):
            headers = {"Authorization": f"Bearer {key}"}
            refused.append(client.post("/v1/rerank", json=RANK, headers=headers))
        refused += [
            client.get(path) for path in ("/metrics", "/docs", "/openapi.json", "/nope", "/v1/users/zoe/export")
        ]
        assert {reply.status_code for reply in refused} == {401}
        assert len({reply.content for reply in refused}) == 1
        assert refused[0].headers["WWW-Authenticate"] == "Bearer"
        for path in ("/healthz", "/readyz", "/", "/page/page.js", "/page/page.css"):
            assert client.get(path).status_code == 200

        headers = {"Authorization": f"bearer {engine.store.add_key('acme')}"}
        for path in ("/metrics", "/docs", "/openapi.json"):
            assert client.get(path, headers=headers).status_code == 200
        assert engine.store.remove_keys([row.digest for row in engine.store.list_keys()]) == 1
        time.sleep(0.25)
        last = client.post("/v1/rerank", json=RANK, headers=headers)
        assert (last.status_code, last.content) == (401, refused[0].content)


def test_where_none_is_needed_a_key_still_has_to_be_right(engine: Engine) -> None:
    """What clients send as a placeholder is no key of this service; one that looks like it must be known."""
    acme = engine.store.add_key("acme")
    with asking(engine, needs_key=False) as client:
        for key, status, known in (("none", 200, False), (acme, 200, True), (acme[:-1], 401, None)):
            headers = {"Authorization": f"Bearer {key}"}
            if known:
                assert client.post("/v1/feedback", json=TOLD, headers=headers).json()["known_by"] == 1
            reply = client.post("/v1/rerank", json=RANK, headers=headers)
            assert reply.status_code == status
            assert known is None or reply.json()["known_user"] is known


def test_a_key_reaches_nobody_of_another_namespace(engine: Engine) -> None:
    """Neither by id, nor by what was shown, nor by idempotency keys, nor by users of the run; nor can it end them."""
    with ExitStack() as stack:
        own, other = (stack.enter_context(asking(engine, engine.store.add_key(name))) for name in ("acme", "evil"))
        keyed = TOLD | {"idempotency_key": "one"}
        assert own.post("/v1/feedback", json=keyed).json()["known_by"] == 1
        shown = own.post("/v1/rerank", json=RANK).json()["id"]
        before = own.get("/v1/users/zoe/export").json()
        assert before["known"]
        assert before["shown"]

        assert other.post("/v1/rerank", json=RANK | {"user": "p1"}).json()["known_user"] is False
        for user in ("zoe", "acme:zoe", "p0", ":p0"):
            found = other.get(f"/v1/users/{user}/export").json()
            assert (found["known"], found["feedback"], found["comparisons"], found["shown"]) == (False, [], [], [])
            assert other.delete(f"/v1/users/{user}").json()["records"] == 0
        pick = {"type": "pick", "user": "zoe", "shown": shown, "chosen": 0}
        unknown = pick | {"shown": "shown-" + "0" * 32}
        replies = [other.post("/v1/feedback", json=body) for body in (pick, unknown)]
        assert [reply.status_code for reply in replies] == [404, 404]
        assert replies[0].text.replace(shown, "") == replies[1].text.replace(unknown["shown"], "")
        taken = other.post("/v1/feedback", json=keyed).json()
        assert (taken["again"], taken["known_by"]) == (False, 1)
        assert other.delete("/v1/users/zoe").status_code == 200
        assert own.get("/v1/users/zoe/export").json() == before
        assert own.post("/v1/feedback", json=pick).json()["known_by"] == 2


def test_keys_are_made_listed_and_removed(store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["keys", store_url, "list"])  # there is no store yet
    main(["keys", store_url, "add", "acme", "--note", "the shop"])
    key = capsys.readouterr().out.strip()
    main(["keys", store_url, "list"])
    main(["keys", store_url, "list", "--json"])
    listed = capsys.readouterr().out
    assert "acme" in listed
    assert "the shop" in listed
    assert key not in listed
    kept = b"".join(file.read_bytes() for file in Path(store_url.removeprefix("sqlite:///")).parent.iterdir())
    assert key.encode() not in kept
    assert key.removeprefix("prm-").encode() not in kept
    for wrong in (["add"], ["list", "acme"], ["add", "a:b"], ["add", ""], ["add", "a" * 81], ["remove", "acne"]):
        with pytest.raises(SystemExit):
            main(["keys", store_url, *wrong])
    main(["keys", store_url, "remove", "acme"])
    main(["keys", store_url, "list"])
    assert "acme" not in capsys.readouterr().out.partition("\n")[2]


def test_one_key_of_a_namespace_is_removed(store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """By its id, which the list shows; the namespace's others stay."""
    keys = []
    for namespace in ("acme", "acme", "evil"):
        main(["keys", store_url, "add", namespace])
        keys.append(hashlib.sha256(capsys.readouterr().out.strip().encode()).hexdigest()[:8])
    main(["keys", store_url, "list"])
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [
        [key, namespace] for key, namespace in zip(keys, ("acme", "acme", "evil"), strict=True)
    ]
    main(["keys", store_url, "remove", keys[0]])
    assert keys[0] in capsys.readouterr().out
    for wrong in (keys[0], keys[1][:7], ""):
        with pytest.raises(SystemExit):
            main(["keys", store_url, "remove", wrong])
    capsys.readouterr()
    main(["keys", store_url, "list", "--json"])
    assert [row["id"] for row in json.loads(capsys.readouterr().out)] == keys[1:]
    main(["keys", store_url, "remove", "acme", "--json"])
    assert json.loads(capsys.readouterr().out) == {"removed": 1, "ids": [keys[1]]}


def test_a_key_for_all_users_knows_those_of_the_run(
    engine: Engine, store_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their ids have no namespace; what they say is kept under them, as on loopback."""
    main(["keys", store_url, "add", "--all_users"])
    with asking(engine, capsys.readouterr().out.strip()) as client:
        assert client.post("/v1/rerank", json=RANK | {"user": "p0"}).json()["known_user"]
        assert client.post("/v1/feedback", json=TOLD | {"user": "p0"}).is_success
    assert [c.user_id for c in read_feedback(FeedbackConfig(path=store_url)).comparisons] == ["p0"]
    main(["keys", store_url, "remove", "--all_users"])
    assert not engine.store.has_keys()
    for wrong in (["add", "acme", "--all_users"], ["list", "--all_users"], ["remove", "--all_users"]):
        with pytest.raises(SystemExit):
            main(["keys", store_url, *wrong])


@pytest.mark.parametrize("needs_key", [True, False])
def test_a_user_of_a_namespace_is_one_person_for_whoever_may_ask(
    needs_key: bool, engine: Engine, store_url: str
) -> None:
    """`acme:zoe` is the same user by a key for all users, without keys on loopback, and in a log; `urn:zoe` is none."""
    key = engine.store.add_key("") if needs_key else None
    with asking(engine, engine.store.add_key("acme")) as acme, asking(engine, key, needs_key) as everybody:
        assert acme.post("/v1/feedback", json=TOLD).json()["known_by"] == 1
        shown = acme.post("/v1/rerank", json=RANK).json()["id"]
        named = {"user": "acme:zoe"}
        assert everybody.post("/v1/feedback", json=TOLD | named | {"prompt": "who?"}).json()["known_by"] == 2
        pick = {"type": "pick", "shown": shown, "chosen": 0} | named
        assert everybody.post("/v1/feedback", json=pick).json()["known_by"] == 3
        assert everybody.post("/v1/rerank", json=RANK | named).json()["comparisons"] == 3
        assert everybody.get("/v1/users/acme:zoe").json()["known"]
        found, own = (c.get(f"/v1/users/{user}/export").json() for c, user in ((everybody, "acme:zoe"), (acme, "zoe")))
        assert found == own | named
        assert len(own["shown"]) == 2
        assert everybody.post("/v1/feedback", json=TOLD | {"user": "urn:zoe"}).json()["known_by"] == 1
        assert engine.store.saved([("acme", "zoe"), ("", "urn:zoe")]).keys() == {("acme", "zoe"), ("", "urn:zoe")}
        assert engine.store.counts()["people"] == 2
        assert everybody.delete("/v1/users/acme:zoe").json()["records"] == 9
        assert not acme.get("/v1/users/zoe").json()["known"]
    assert [c.user_id for c in read_feedback(FeedbackConfig(path=store_url)).comparisons] == ["urn:zoe"]


def test_users_go_to_a_namespace_that_is_made_after_them(engine: Engine) -> None:
    """With what they said, and forgotten ones stay forgotten."""
    with asking(engine, needs_key=False) as client:
        for user in ("acme:zoe", "acme:bob", "acme-zoe"):
            client.post("/v1/feedback", json=TOLD | {"user": user})
        client.delete("/v1/users/acme:bob")
        with asking(engine, engine.store.add_key("acme")) as acme:
            assert acme.get("/v1/users/zoe").json()["comparisons"] == 1
            assert acme.post("/v1/feedback", json=TOLD | {"prompt": "who?"}).json()["known_by"] == 2
    assert engine.store.is_forgotten([("acme", "bob"), ("acme", "zoe")]) == {("acme", "bob")}
    assert not engine.store.saved([("", "acme:zoe")])


def test_a_log_says_who_was_two_users(engine: Engine, store_url: str, caplog: pytest.LogCaptureFixture) -> None:
    """A store of an early release may have both; whoever is forgotten is so as both."""
    with asking(engine, needs_key=False) as client:
        client.post("/v1/feedback", json=TOLD | {"user": "acme:zoe"})
        client.post("/v1/feedback", json=TOLD)
        with engine.store.writing() as connection:
            for table in (people, feedback, comparisons):
                connection.execute(update(table).where(table.c.user_id == "zoe").values(namespace="acme"))
        read_feedback(FeedbackConfig(path=store_url))
        assert "acme:zoe" in caplog.text
        assert client.delete("/v1/users/acme:zoe").json()["records"] == 6


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "ranks.example"])
def test_others_are_not_served_without_keys(host: str, store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the run is read: there is none."""
    with pytest.raises(SystemExit):
        main(["serve", "runs/none", "--store", store_url, "--host", host])
    assert f"rerank keys {store_url} add" in capsys.readouterr().err


def test_a_store_without_a_key_is_noticed_where_one_is_required(
    store_url: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "runs/none", "--store", store_url, "--require_key", "--port", "0"])
    assert f"rerank keys {store_url} add" in caplog.text


def test_what_one_request_may_have_may_wait(store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    ServiceConfig(max_waiting_texts=2, max_responses=2)
    with pytest.raises(SystemExit):
        main(["serve", "runs/none", "--store", store_url, "--service.max_waiting_texts", "255", "--port", "0"])
    error = capsys.readouterr().err
    assert "service.max_waiting_texts" in error
    assert "service.max_responses" in error


def test_a_port_that_is_taken_is_named(store_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before the run is read: there is none."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit):
            main(["serve", "runs/none", "--store", store_url, "--port", port])
    assert f"--port {port}" in capsys.readouterr().err


def test_a_field_that_looks_like_one_of_ours_is_refused(client: TestClient) -> None:
    """It would rank for everybody; fields of other products are left unread."""
    without = {name: value for name, value in RANK.items() if name != "user"}
    for name in ("user_id", "usr", "User", "documnets"):
        assert client.post("/v1/rerank", json={**without, name: "zoe"}).status_code == 400
    for name in ("max_chunks_per_doc", "max_tokens_per_doc", "truncation", "priority"):
        assert client.post("/v1/rerank", json={**RANK, name: 1}).status_code == 200


def test_a_pick_is_among_what_was_returned(client: TestClient, engine: Engine) -> None:
    """`top_n` leaves the worst out: it teaches nothing, and cannot be picked; positions stay those of the request."""
    documents = ["a king jumps", "a lazy dog", "the potions mix"]
    reply = client.post("/v1/rerank", json={**RANK, "documents": documents, "top_n": 2}).json()
    first, second = (result["index"] for result in reply["results"])
    pick = {"type": "pick", "user": "zoe", "shown": reply["id"]}
    assert client.post("/v1/feedback", json={**pick, "chosen": 3 - first - second}).status_code == 400
    assert client.post("/v1/feedback", json={**pick, "chosen": 3}).status_code == 400
    assert client.post("/v1/feedback", json={**pick, "chosen": second}).json()["comparisons"] == 1
    (row,) = engine.store.comparisons_of(("", "zoe"))
    assert (row.chosen, row.rejected) == (documents[second], documents[first])
    assert client.delete("/v1/users/zoe").status_code == 200
    alone = client.post("/v1/rerank", json={**RANK, "top_n": 1}).json()
    chosen = alone["results"][0]["index"]
    assert client.post("/v1/feedback", json={**pick, "shown": alone["id"], "chosen": chosen}).status_code == 400


def test_a_thumb_that_nothing_follows_from_says_so(client: TestClient) -> None:
    """The first, and one that is equal to it; not the one that differs, nor its repeat."""

    def noted(response: str, up: bool) -> bool:
        thumb = {"type": "thumb", "user": "zoe", "prompt": "what?", "response": response, "up": up}
        reply = client.post("/v1/feedback", json=thumb | {"idempotency_key": response}).json()
        assert ("note" in reply) == (reply["comparisons"] == 0)
        return "note" in reply

    assert [noted("a", True), noted("b", True), noted("c", False), noted("c", False)] == [True, True, False, False]


def test_what_was_shown_has_one_pick(client: TestClient, engine: Engine) -> None:
    """The same one again is a repeat, another one is refused; a pick without `shown` counts each time."""
    shown = client.post("/v1/rerank", json=RANK).json()["id"]
    pick = {"type": "pick", "user": "zoe", "shown": shown, "chosen": 1}
    first = client.post("/v1/feedback", json=pick).json()
    assert client.post("/v1/feedback", json=pick).json() == first | {"again": True}
    assert client.post("/v1/feedback", json=pick | {"idempotency_key": "two"}).json() == first | {"again": True}
    assert client.post("/v1/feedback", json=pick | {"chosen": 0}).status_code == 409
    assert client.post("/v1/feedback", json={"type": "thumb", "user": "zoe", "shown": shown, "up": True}).is_success
    alone = {"type": "pick", "user": "zoe", "prompt": RANK["query"], "responses": RANK["documents"], "chosen": 0}
    assert [client.post("/v1/feedback", json=alone).json()["known_by"] for _ in range(2)] == [2, 3]
    told = engine.metrics.registry.get_sample_value
    assert [told("rerank_feedback_total", {"kind": kind}) for kind in ("pick", "thumb")] == [3.0, 1.0]


def test_a_text_that_is_too_long_is_named(client: TestClient) -> None:
    """With its place, its length and the limit, 200 tokens; nothing is learnt of it."""
    long, row = "king " * 300, {"prompt": "what?", "user_id": None}
    pick = {"type": "pick", "user": "zoe", "prompt": "what?", "responses": ["a", "b", long], "chosen": 0}
    thumb = {"type": "thumb", "user": "zoe", "prompt": "what?", "response": long, "up": True}
    for path, body, name in (
        ("rerank", RANK | {"documents": ["a", {"text": long}]}, "documents[1]"),
        ("score", {"prompt": "what?", "responses": ["a", long], "users": ["p0", "p1"]}, "responses[1]"),
        ("score?empty=0", {"prompts": ["what?"] * 3, "responses": ["a", "", long]}, "responses[2]"),
        ("score", {"query": ["a", long], "prompts": [""] * 2, "labels": [row] * 2}, "query[1]"),
        ("prefer", {"prompt": "what?", "a": "a", "b": long}, "b"),
        ("feedback", TOLD | {"rejected": long}, "rejected"),
        ("feedback", pick, "responses[2]"),
        ("feedback", thumb, "response"),
    ):
        reply = client.post(f"/v1/{path}", json=body)
        message = reply.json()["error"]["message"]
        assert reply.status_code == 400
        assert message.startswith(f"'{name}'")
        assert re.search(r"\b60\d tokens.* 200 ", message)
    assert client.get("/v1/users/zoe/export").json()["feedback"] == []


def test_usage_counts_what_is_read(client: TestClient, engine: Engine) -> None:
    """Each document with the query, whether its hidden states are kept or not."""
    reader, query = engine.scorer.reader, str(RANK["query"])
    tokens = sum(len(reader.encode(query, text).ids) for text in RANK["documents"])
    for _ in range(2):
        assert client.post("/v1/rerank", json=RANK).json()["usage"] == {"total_tokens": tokens}


def test_forgetting_again_is_no_error(client: TestClient, store_url: str) -> None:
    """And counts nobody: of somebody unknown nothing was there; a user of the run was forgotten once."""
    client.post("/v1/feedback", json=TOLD)
    users = ("zoe", "zoe", "nobody", "p0", "p0")
    replies = [client.delete(f"/v1/users/{user}") for user in users]
    assert [reply.status_code for reply in replies] == [200] * 5
    assert [reply.json()["records"] for reply in replies] == [3, 0, 0, 0, 0]
    assert read_records(store_url).counts.forgotten == 2


@pytest.mark.parametrize("number", [1e308, -1e308, 1e6 + 1])
def test_numbers_have_bounds_that_are_said(number: float, client: TestClient) -> None:
    rating = {"type": "rating", "user": "zoe", "prompt": "what?", "response": "a", "rating": number}
    assert client.post("/v1/feedback", json=rating | {"rating": 1e6 if number > 0 else -1e6}).is_success
    for reply in (
        client.post("/v1/feedback", json=rating),
        client.post("/v1/score", params={"empty": number}, json={"prompt": "what?", "responses": ["a"]}),
    ):
        assert reply.status_code == 422
        assert "1000000" in reply.json()["error"]["message"]


def test_ids_with_slashes_are_users(client: TestClient) -> None:
    assert client.post("/v1/feedback", json={**TOLD, "user": "a/b"}).status_code == 200
    for path in ("", "/export"):
        assert client.get(f"/v1/users/a%2Fb{path}").json()["known"]


@pytest.mark.parametrize("user", ["a/export", "x/question", "a/b", "/", "..", "a%2Fb", "ä b?"])
def test_an_encoded_slash_belongs_to_the_id(user: str, client: TestClient) -> None:
    """For all that a path can ask of a user."""
    path = "/v1/users/" + quote(user, safe="").replace(".", "%2E")
    assert client.post("/v1/feedback", json={**TOLD, "user": user}).json()["known_by"] == 1
    described, exported = client.get(path).json(), client.get(f"{path}/export").json()
    assert (described["user"], described["comparisons"], "leanings" in described) == (user, 1, True)
    assert (exported["user"], len(exported["feedback"])) == (user, 1)
    assert len(client.get(f"{path}/question").json()["responses"]) == 2
    assert client.delete(path).json() == {"user": user, "records": 3}


@pytest.mark.parametrize(
    "flag",
    [
        ["--allowed_host", "ranks.example:8000"],
        ["--allowed_host", "http://ranks.example"],
        ["--allow_origin", "ranks.example"],
        ["--allow_origin", "https://ranks.example/"],
        ["--port", "65536"],
    ],
)
def test_flags_that_would_never_match_are_refused(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["serve", "runs/none", *flag])
    assert flag[1] in capsys.readouterr().err


def test_each_key_has_its_rate(make_engine: MakeEngine) -> None:
    engine = make_engine(rate="3/minute")
    with asking(engine) as client:
        headers = [{"Authorization": f"Bearer {engine.store.add_key(name)}"} for name in ("a", "b")]
        replies = [client.get("/metrics", headers=headers[0]) for _ in range(5)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429, 429]
        assert 55 <= int(replies[3].headers["Retry-After"]) <= 60
        assert replies[3].json()["error"]["type"] == "rate_limit_error"
        assert client.get("/metrics", headers=headers[1]).status_code == 200
        assert client.get("/healthz", headers=headers[0]).status_code == 200


def test_pages_of_other_sites_may_ask_only_where_it_is_said(make_engine: MakeEngine) -> None:
    ours, other = {"Origin": "https://ours.example"}, {"Origin": "https://other.example"}
    preflight = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
    with TestClient(build_app(make_engine()), base_url="http://localhost:8000") as client:
        assert client.post("/v1/rerank", json=RANK, headers={"Origin": "http://localhost:8000"}).status_code == 200
        assert client.options("/v1/rerank", headers=ours | preflight).status_code in (403, 405)
        reply = client.post("/v1/rerank", json=RANK, headers=ours)
        assert reply.status_code == 403
        assert not [name for name in reply.headers if name.startswith("access-control")]
    app = build_app(make_engine(), origins=["https://ours.example"])
    with TestClient(app, base_url="http://localhost:8000") as client:
        for origin, status in ((ours, 200), (other, 403)):
            reply = client.post("/v1/rerank", json=RANK, headers=origin)
            assert reply.status_code == status
            assert (reply.headers.get("Access-Control-Allow-Origin") == origin["Origin"]) is (status == 200)
        assert client.options("/v1/rerank", headers=ours | preflight).status_code == 200
        assert client.options("/v1/rerank", headers=other | preflight).json()["error"]["code"] == 400


def test_every_reply_is_safe_for_a_browser(client: TestClient) -> None:
    """None is kept, framed or sniffed; a page runs no script and no style but those of this server."""
    for path, status in (("/docs", 200), ("/nope", 404), ("/v1/users/zoe/export", 200), ("/v1/rerank", 405)):
        reply = client.get(path)
        assert reply.status_code == status
        assert reply.headers["Cache-Control"] == "no-store"
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        policy = dict(rule.split(" ", 1) for rule in reply.headers["Content-Security-Policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"


def test_the_page_of_endpoints_loads_nothing(client: TestClient) -> None:
    page, openapi = client.get("/docs").text, client.get("/openapi.json").json()
    assert all(
        f"<code>{m.upper()} {path}</code>" in page for path, methods in openapi["paths"].items() for m in methods
    )
    assert not any(word in page for word in ("://", "src=", "<script", "<style", "style="))


def test_what_is_in_work_has_a_limit(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond it others wait outside, health answers, and a body that does not come takes no place."""
    engine, go, begun = make_engine(max_requests=2), threading.Event(), threading.Semaphore(0)
    rank = engine.rank

    def slow_rank(*args: object, **settings: object) -> object:
        begun.release()
        go.wait(10)
        return rank(*args, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "rank", slow_rank)
    content = '{"query": "what?", "documents": ["a king"]}'
    post = request("POST", "/v1/rerank", content)
    with listening(build_app(engine), engine.config) as port, ExitStack() as stack:
        for _ in range(8):
            waiting = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            waiting.sendall(post[:-5])
        statuses: list[int] = []
        threads = [threading.Thread(target=lambda: statuses.append(send(port, post).status)) for _ in range(2)]
        for thread in threads:
            thread.start()
            assert begun.acquire(timeout=10)
        third = send(port, post)
        assert (third.status, third.headers["retry-after"]) == (503, "1")
        assert send(port, request("GET", "/readyz")).status == 200
        assert send(port, request("GET", "/healthz")).status == 200
        go.set()
        for thread in threads:
            thread.join()
        assert statuses == [200, 200]
        assert send(port, post).status == 200


def test_texts_that_are_too_long_are_not_tokenised(make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those that are not take a request's time and no more, each text once."""
    engine, encoded = make_engine(max_characters=100, timeout=0.3), list[str]()
    encode = engine.texts._reader.encode

    def slow_encode(prompt: Prompt, response: str, user_text: str = "") -> Encoded:
        encoded.append(response)
        time.sleep(0.1)
        return encode(prompt, response, user_text)

    monkeypatch.setattr(engine.texts._reader, "encode", slow_encode)
    with TestClient(build_app(engine), base_url="http://localhost") as client:
        long, pair = "x" * 101, {"prompt": "what?", "a": "a", "b": "b"}
        for path, body in (
            ("rerank", RANK | {"query": long}),
            ("rerank", RANK | {"query": [{"role": "user", "content": "x" * 60}] * 2}),
            ("rerank", RANK | {"documents": ["a", long]}),
            ("rerank", RANK | {"user_text": long}),
            ("score", {"prompts": ["a"], "responses": ["a"], "user_texts": [long]}),
            ("score", {"prompts": ["a", long], "responses": ["a", "b"]}),
            ("prefer", pair | {"b": long}),
            ("prefer", pair | {"user_text": long}),
            ("feedback", TOLD | {"rejected": long}),
            ("feedback", TOLD | {"user_text": long}),
        ):
            assert client.post(f"/v1/{path}", json=body).status_code == 400
        assert encoded == []
        reply = client.post("/v1/rerank", json=RANK | {"documents": [f"a king {i}" for i in range(50)]})
        assert (reply.status_code, reply.headers["Retry-After"]) == (503, "1")
        assert len(encoded) <= 5
        encoded.clear()
        client.post("/v1/rerank", json=RANK | {"documents": ["a king"] * 30})
        assert encoded == ["a king"]

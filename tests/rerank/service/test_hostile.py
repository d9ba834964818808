"""Requests that nobody should send, over a real socket: each is refused with its status, in the form of errors."""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from prm.scoring.scorer import Scorer
from rerank.service.config import ServiceConfig
from rerank.service.engine import Engine
from rerank.service.http.app import build_app
from rerank.service.store import Store
from tests.rerank.service.sockets import listening, request, send

LIMITS = ServiceConfig(
    max_body_bytes=300_000,
    body_timeout=0.3,
    max_responses=40,
    max_characters=3000,
    max_users=8,
    max_connections=20,
)
LONG = "x" * 3001
Parts = bytes | Iterable[bytes | float]


def js(value: object) -> str:
    return json.dumps(value)


GOOD: dict[str, dict[str, object]] = {
    "/v1/rerank": {"query": "what?", "documents": ["a king", "a dog"], "user": "zoe", "top_n": 1, "user_text": "x"},
    "/v1/score": {"prompt": "what?", "responses": ["a king"], "user": "zoe"},
    "/v1/prefer": {"prompt": "what?", "a": "a king", "b": "a dog", "user": "zoe"},
    "/v1/feedback": {"type": "pair", "user": "zoe", "prompt": "what?", "chosen": "a king", "rejected": "a dog"},
}
PICK: dict[str, object] = {"type": "pick", "user": "zoe", "prompt": "what?", "responses": ["a", "b"], "chosen": 0}
RATING: dict[str, object] = {"type": "rating", "user": "zoe", "prompt": "what?", "response": "a", "rating": 1}
THUMB: dict[str, object] = {"type": "thumb", "user": "zoe", "prompt": "what?", "response": "a", "up": True}
GOOD_RANK = js(GOOD["/v1/rerank"])


def not_http() -> Iterator[tuple[str, Parts, int]]:
    """What is no request of HTTP/1.1, or one that two readers would take differently."""
    head = b"POST /v1/prefer HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    yield "words", b"hello\r\n\r\n", 400
    yield "line ends alone", b"\r\n\r\n\r\n", 400
    yield "TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(50) + b"\r\n\r\n", 400
    yield "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400
    yield "SMTP", b"EHLO localhost\r\n\r\n", 400
    yield "a version that there is not", b"GET / HTTP/7.9\r\nHost: localhost\r\n\r\n", 400
    yield "no version", b"GET /metrics\r\n\r\n", 400
    yield "a method with a bracket", b"GE{T / HTTP/1.1\r\nHost: localhost\r\n\r\n", 400
    yield "a space in the path", b"GET /a b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400
    yield "NUL in the path", b"GET /a\x00b HTTP/1.1\r\nHost: localhost\r\n\r\n", 400
    yield "bytes beyond ASCII in the path", b"GET /\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n", 400
    yield "a path of 20,000 characters", request("GET", "/" + "a" * 20_000), 431
    yield "a header of 20,000 characters", request("GET", "/metrics", X="a" * 20_000), 431
    yield "500 headers", request("GET", "/metrics", **{f"X_{i}": "a" * 40 for i in range(500)}), 431
    yield "a path in parts", [b"GET /", *(part for _ in range(20) for part in (b"a" * 1000, 0.005))], 431
    yield "NUL in a header", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: a\x00b\r\n\r\n", 400
    yield "a header without a name", b"GET / HTTP/1.1\r\nHost: localhost\r\n: b\r\n\r\n", 400
    yield "a header without a colon", b"GET / HTTP/1.1\r\nHost: localhost\r\nX\r\n\r\n", 400
    yield "a space before the colon", b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400
    yield "a folded first header", b"GET / HTTP/1.1\r\n Host: localhost\r\n\r\n", 400
    yield "no host", b"GET /metrics HTTP/1.1\r\n\r\n", 400
    yield "no host in HTTP/1.0", b"GET /metrics HTTP/1.0\r\n\r\n", 400
    yield "two hosts", b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400
    for length in ("-1", "x", "+5", "1e3", "0x5", "5, 6", "9" * 30, "5.0"):
        yield f"length {length}", head + f"Content-Length: {length}\r\n\r\nhello".encode(), 400
    yield "two lengths", head + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!", 400
    both = b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
    yield "length and chunks", head + both, 400
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    yield "chunks of no number", chunked + b"zz\r\nhello\r\n0\r\n\r\n", 400
    yield "chunks of less than nothing", chunked + b"-5\r\nhello\r\n0\r\n\r\n", 400
    yield "a chunk longer than it says", chunked + b"2\r\nhello\r\n0\r\n\r\n", 400
    yield "a chunk of many digits", chunked + b"f" * 30 + b"\r\nhello\r\n0\r\n\r\n", 400
    yield "chunks without an end", [chunked + b"5\r\nhello\r\n"], 408
    yield "an unknown transfer", head + b"Transfer-Encoding: gzip\r\n\r\nhello", 400
    yield "chunks twice", head + b"Transfer-Encoding: chunked, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 400
    yield "another server's address", b"GET http://evil.example/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", 404
    yield "the server as a proxy", b"CONNECT evil.example:443 HTTP/1.1\r\nHost: localhost\r\n\r\n", 404
    yield "the path *", b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", 404


def hosts() -> Iterator[tuple[str, Parts, int]]:
    """Names that are not the service's: a page that rebinds its name must not reach it."""
    for host in (
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "localhost@evil.example",
        "localhost:port",
        "localhost:",
        "localhost:123456",
        "localhost localhost",
        "localhost,evil.example",
        "http://localhost",
        "0.0.0.0",
        "127.0.0.2",
        "[::2]",
        "[::1",
        "::1",
        "localhost\xe9",
        "localhost/",
        "*",
    ):
        yield f"host {host!r}", request("POST", "/v1/rerank", GOOD_RANK, host=host), 400
    for origin in ("http://evil.example", "null", "http://localhost:1", "http://localhost.evil.example", "localhost"):
        yield f"page of {origin}", request("POST", "/v1/feedback", js(GOOD["/v1/feedback"]), Origin=origin), 403


def slow() -> Iterator[tuple[str, Parts, int]]:
    """Clients that begin and do not go on, or that say less than they promised."""
    post = request("POST", "/v1/prefer", b"", Content_Type="application/json", Content_Length="100")
    yield "headers that stop", [b"GET /metrics HTTP/1.1\r\nHost: local"], 408
    yield "headers by the byte", [part for _ in range(12) for part in (b"G", 0.05)], 408
    yield "a body that stops", [post + b'{"a'], 408
    yield "a body by the byte", [post, *(part for _ in range(12) for part in (b" ", 0.05))], 408
    yield "a body that never begins", [post], 408


def bodies() -> Iterator[tuple[str, Parts, int]]:
    """Bodies that are no JSON, or JSON that is read in more than one way."""
    for kind in (
        "text/plain",
        "text/json",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/xml",
        "application/json; charset=utf-16",
        "application/json; charset=latin-1",
        "application/json, text/plain",
        "application/jsonx",
        "json",
        "*/*",
    ):
        yield f"type {kind}", request("POST", "/v1/rerank", GOOD_RANK, Content_Type=kind), 415
    yield "no type", request("POST", "/v1/rerank", GOOD_RANK, Content_Type=""), 415
    for coding in ("gzip", "deflate", "br", "x, gzip"):
        yield f"compressed by {coding}", request("POST", "/v1/rerank", b"\x1f\x8b\x08", Content_Encoding=coding), 415
    for name, body in {
        "words": b"hello",
        "a body cut short": GOOD_RANK[:-1].encode(),
        "two values": GOOD_RANK.encode() * 2,
        "a comma too many": b'{"query": "x",}',
        "single quotes": b"{'query': 'x'}",
        "a comment": b'{"query": "x" /* y */}',
        "Python": b'{"query": None}',
        "white space": b"   ",
        "a byte order mark": b"\xef\xbb\xbf" + GOOD_RANK.encode(),
        "UTF-16": GOOD_RANK.encode("utf-16"),
        "UTF-32": GOOD_RANK.encode("utf-32"),
        "Latin-1": b'{"query": "caf\xe9", "documents": ["a"]}',
        "half a character": b'{"query": "\xf0\x9f\x98", "documents": ["a"]}',
        "an overlong character": b'{"query": "\xc0\xaf", "documents": ["a"]}',
        "a surrogate in UTF-8": b'{"query": "\xed\xa0\x80", "documents": ["a"]}',
        "a raw NUL": b'{"query": "a\x00b", "documents": ["a"]}',
        "a raw line end": b'{"query": "a\nb", "documents": ["a"]}',
        "NUL": b'{"query": "a\\u0000b", "documents": ["a"]}',
        "NUL in a key": b'{"query": "a", "documents": ["a"], "b\\u0000": 1}',
        "NUL in a document": b'{"query": "a", "documents": [{"text": "a", "more": ["\\u0000"]}]}',
        "half a surrogate pair": b'{"query": "\\ud800", "documents": ["a"]}',
        "the other half": b'{"query": "a", "documents": ["\\udc00"]}',
        "surrogates in the wrong order": b'{"query": "a", "documents": ["\\udc00\\ud800"]}',
        "half a pair in a key": b'{"query": "a", "documents": ["a"], "\\ud834": 1}',
        "NaN": b'{"query": "a", "documents": ["a"], "top_n": NaN}',
        "infinity": b'{"query": "a", "documents": ["a"], "top_n": Infinity}',
        "less than all": b'{"query": "a", "documents": ["a"], "top_n": -Infinity}',
        "1e999": b'{"query": "a", "documents": ["a"], "top_n": 1e999}',
        "a number of 5,000 digits": b'{"query": "a", "documents": ["a"], "top_n": ' + b"9" * 5000 + b"}",
        "a number beyond 64 bits": b'{"query": "a", "documents": ["a"], "top_n": 9223372036854775808}',
        "a key twice": b'{"query": "a", "query": "b", "documents": ["a"]}',
        "a key twice, once escaped": b'{"query": "a", "qu\\u0065ry": "b", "documents": ["a"]}',
        "a key twice inside": b'{"query": "a", "documents": [{"text": "a", "text": "b"}]}',
        "33 levels": b'{"query": ' + b"[" * 33 + b"]" * 33 + b', "documents": ["a"]}',
        "100,000 levels": b"[" * 100_000 + b"]" * 100_000,
        "100,000 levels of objects": b'{"a":' * 40_000 + b"1" + b"}" * 40_000,
        "140,000 values": b'{"query": "a", "documents": [' + b"0," * 139_999 + b"0]}",
    }.items():
        yield name, request("POST", "/v1/rerank", body), 400
    for name, value in {"text": "x", "number": 3, "true": True, "null": None, "list": [GOOD["/v1/rerank"]]}.items():
        for path in GOOD:
            yield f"{path}: a {name} as the body", request("POST", path, js(value)), 422
    for path in GOOD:
        yield f"{path}: no body", request("POST", path, Content_Length="0"), 422
        yield f"{path}: an empty object", request("POST", path, "{}"), 422


def fields() -> Iterator[tuple[str, Parts, int]]:
    """A right body with one field that is wrong."""
    by_path: dict[str, dict[str, list[object]]] = {
        "/v1/rerank": {
            "query": [None, 3, {}, "", " ", [], [3], ["x"], [{"role": "user"}], [{"role": "king", "content": "x"}]],
            "documents": [None, "x", 3, {}, [], [None], [3], [["x"]], [{}], [{"text": 3}], [""], [" "], ["a", "\t"]],
            "user": [3, True, {}, ["zoe"], "", " ", "a\nb", "a\x7f", "\x85", "u" * 201],
            "top_n": [0, -1, 1.5, "x", "1", True, {}, []],
            "return_documents": ["x", 3, 0.0, 1, "true", {}],
            "user_text": [None, 3, []],
        },
        "/v1/score": {
            "prompt": [None, 3, "", [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]],
            "responses": [None, "x", 3, [], [None], [""], [{}]],
            "user": [3, "", "u" * 201, "a\rb"],
            "users": [["a"], "a", [3], [""]],
            "prompts": [["what?"], "x", []],
            "user_texts": [["x"], "x", [None]],
            "usre": ["zoe"],
        },
        "/v1/prefer": {
            "prompt": [None, "", " ", [], {"role": "user", "content": "x"}],
            "a": [None, "", " ", 3, ["x"]],
            "b": [None, "", {}],
            "user": [3, "\u200b\x00".strip("\x00") + "\n"],
            "more": ["x"],
        },
        "/v1/feedback": {
            "type": [None, "", "pear", 3, {}],
            "user": [None, "", "  ", 3, "u" * 201, "\x1b[2J"],
            "prompt": [None, "", 3],
            "chosen": [None, "", " ", 3, "a dog"],
            "rejected": [None, "", ["x"]],
            "tie": ["x", 3, None],
            "idempotency_key": ["", "k" * 201, 3],
            "weight": [1],
        },
    }
    for path, wrong in by_path.items():
        for field, values in wrong.items():
            for value in values:
                yield f"{path}: {field} = {value!r:.40}", request("POST", path, js(GOOD[path] | {field: value})), 4
    told: list[tuple[dict[str, object], str, list[object]]] = [
        (PICK, "chosen", [-1, 2, 2**62, 0.5, "x", None, []]),
        (PICK, "responses", [None, [], ["a"], ["a", 3], ["a", ""], ["a", "b", None]]),
        (PICK, "shown", ["x", "shown-" + "0" * 32, "x" * 5000, "'; DROP TABLE people; --", 3]),
        (RATING, "rating", ["x", None, [], True, "NaN", "1e999"]),
        (RATING, "response", ["", " ", None, ["a"]]),
        (THUMB, "up", [None, "x", 3, []]),
    ]
    for good, field, values in told:
        for value in values:
            body = js(good | {field: value})
            yield f"{good['type']}: {field} = {value!r:.40}", request("POST", "/v1/feedback", body), 4


def sizes() -> Iterator[tuple[str, Parts, int]]:
    """More than the service takes."""
    large = b'{"query": "' + b"x" * 300_000 + b'"}'
    yield "a large body", request("POST", "/v1/rerank", large), 413
    chunks = b"".join(b"10000\r\n" + b"x" * 65_536 + b"\r\n" for _ in range(5)) + b"0\r\n\r\n"
    yield "a large body in chunks", request("POST", "/v1/rerank", b"", Transfer_Encoding="chunked") + chunks, 413
    yield "a large body to come", request("POST", "/v1/rerank", b"", Content_Length="300001"), 413
    promised = request("POST", "/v1/rerank", b"", Content_Length="99999999999", Expect="100-continue")
    yield "a large body, if it may", promised, 413
    rank, score, prefer, told = (GOOD[path] for path in GOOD)
    turns = [{"role": "user" if i % 2 == 0 else "assistant", "content": "xy"} for i in range(1001)]
    rows: dict[str, object] = {"prompts": ["what?"] * 41, "responses": ["a"] * 41}
    for name, path, body in (
        ("documents of 41", "/v1/rerank", rank | {"documents": ["a king"] * 41}),
        ("thousands of documents", "/v1/rerank", rank | {"documents": ["a"] * 5000}),
        ("a long document", "/v1/rerank", rank | {"documents": [LONG]}),
        ("a document of 50,000 characters", "/v1/rerank", rank | {"documents": ["a", "ab " * 16_667]}),
        ("a document that the model cannot hold", "/v1/rerank", rank | {"documents": ["king " * 500]}),
        ("a long document with fields", "/v1/rerank", rank | {"documents": [{"text": LONG, "a": 1}]}),
        ("a long query", "/v1/rerank", rank | {"query": LONG}),
        ("a conversation that is long", "/v1/rerank", rank | {"query": turns}),
        ("a long role", "/v1/rerank", rank | {"query": [{"role": LONG, "content": "x"}]}),
        ("a long text of the user", "/v1/rerank", rank | {"user_text": LONG}),
        ("responses of 41", "/v1/score", score | {"responses": ["a"] * 41}),
        ("rows of 41", "/v1/score", rows),
        ("nine users", "/v1/score", {**score, "user": None, "users": [f"u{i}" for i in range(9)]}),
        ("a user nine times", "/v1/score", {**score, "user": None, "users": ["u"] * 9}),
        ("a long prompt of a row", "/v1/score", {"prompts": [LONG], "responses": ["a"]}),
        ("a user's long text of a row", "/v1/score", {"prompts": ["a"], "responses": ["a"], "user_texts": [LONG]}),
        ("a long response", "/v1/prefer", prefer | {"a": LONG}),
        ("a long text of the user to prefer", "/v1/prefer", prefer | {"user_text": LONG}),
        ("a long response in feedback", "/v1/feedback", told | {"chosen": LONG}),
        ("a long prompt in feedback", "/v1/feedback", told | {"prompt": LONG}),
        ("a long text of the user in feedback", "/v1/feedback", told | {"user_text": LONG}),
        ("a pick among 41", "/v1/feedback", PICK | {"responses": [f"a {i}" for i in range(41)]}),
    ):
        yield name, request("POST", path, js(body)), 400


def paths() -> Iterator[tuple[str, Parts, int]]:
    """Ids in paths, tricks with paths, and methods that are none."""
    for user, status in {
        "": 422,
        "%20": 422,
        "%E3%80%80": 422,
        "u" * 201: 422,
        "%00": 400,
        "zoe%00": 400,
        "%0a": 400,
        "%0d%0aSet-Cookie:x=1": 400,
        "%1b%5b2J": 400,
        "%7f": 400,
        "%c2%85": 400,
        "%ff": 400,
        "%c0%af": 400,
        "%ed%a0%80": 400,
        "%f0%9f%98": 400,
    }.items():
        yield f"forget {user[:30]!r}", request("DELETE", f"/v1/users/{user}"), status
        yield f"export {user[:30]!r}", request("GET", f"/v1/users/{user}/export"), status
    for path in (
        "/nope",
        "/v1",
        "/v1/rerank/",
        "/v1//rerank",
        "//v1/rerank",
        "/V1/rerank",
        "/v1/rerank%20",
        "/v1/%72erank/x",
        "/redoc",
        "/.env",
        "/.git/config",
        "/page/../../pyproject.toml",
        "/page/%2e%2e/%2e%2e/pyproject.toml",
        "/../../../../etc/passwd",
        "/wp-login.php",
        "/metrics;x",
    ):
        yield f"path {path}", request("GET", path), 404
    for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "post", "X" * 100):
        yield f"method {method[:10]}", request(method, "/v1/rerank"), 405
    yield "method HEAD", request("HEAD", "/v1/rerank", Connection="close"), 405
    for path in ("/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
        yield f"post to {path}", request("POST", path, "{}"), 405
    for key in ("prm-x", "prm-" + "x" * 5000, "prm-\xe9", "prm-' OR 1=1 --"):
        authorization = request("POST", "/v1/rerank", GOOD_RANK, Authorization=f"Bearer {key}")
        yield f"key {key[:20]}", authorization, 401


TABLE = [
    pytest.param(parts, status, id=f"{part.__name__}: {name}")
    for part in (not_http, hosts, slow, bodies, fields, sizes, paths)
    for name, parts, status in part()
]


ODD_USERS = (
    *("..", "../../metrics", "%2e%2e%2f%2e%2e%2fmetrics", "..%5c..%5cetc", "//etc/passwd"),
    *("%27%20OR%201=1%20--", "%", "%zz", "nobody%3Fuser=zoe", "nobody", "%F0%9F%A6%8A"),
)


@pytest.fixture(scope="module")
def engine(run_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Engine:
    store = Store(f"sqlite:///{tmp_path_factory.mktemp('hostile')}/store.db")
    return Engine(Scorer.from_pretrained(run_of("bayes"), device="cpu"), store, LIMITS)


@pytest.fixture(scope="module")
def port(engine: Engine) -> Iterator[int]:
    with listening(build_app(engine), LIMITS) as number:
        yield number
        assert send(number, request("GET", "/readyz")).status == 200
    counted = {m.name: m.samples for m in engine.metrics.registry.collect()}["rerank_requests"]
    assert not [sample.labels for sample in counted if sample.labels["status"] >= "500"]


def test_the_table_is_long() -> None:
    assert len(TABLE) >= 200


@pytest.mark.parametrize("user", ODD_USERS)
def test_an_odd_id_is_a_user_of_whom_nothing_is_known(port: int, user: str) -> None:
    reply = send(port, request("DELETE", f"/v1/users/{user}"))
    assert (reply.status, json.loads(reply.body)["records"]) == (200, 0)


@pytest.mark.parametrize(("parts", "status"), TABLE)
def test_it_is_refused(port: int, parts: Parts, status: int) -> None:
    """With that status (4: the endpoint's 400, 404 or 422), in seconds, and without a word that is not for users."""
    started = time.monotonic()
    reply = send(port, parts)
    assert time.monotonic() - started < 5
    assert reply.status == status or (status == 4 and reply.status in (400, 404, 422)), reply
    assert (reply.headers["x-content-type-options"], reply.headers["cache-control"]) == ("nosniff", "no-store")
    if reply.body:
        assert reply.message
        assert not any(word in reply.message for word in ("Traceback", "sqlalchemy", "pydantic", ".py"))

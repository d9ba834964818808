"""Neither logs, whatever their level, nor metrics hold what users wrote, their ids, or keys."""

import io
import logging
from collections.abc import Iterator

import pytest
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from rerank.service.engine import Engine
from rerank.service.http.app import build_app
from tests.rerank.service.conftest import MakeEngine
from tests.rerank.service.sockets import listening, request, send

SECRETS = ("swordfish", "uma-of-turin", "prm-", "once-only")
BODY = '{"type": "pair", "user": "uma-of-turin", "prompt": "swordfish?", "chosen": "swordfish", "rejected": "no"%s}'
RANK = '{"query": "swordfish?", "documents": ["swordfish", "a dog"], "user": "uma-of-turin"}'


@pytest.fixture
def everything(capfd: pytest.CaptureFixture[str]) -> Iterator[io.StringIO]:
    """All that is logged while a test runs, down to the lowest level, and what libraries print."""
    written = io.StringIO()
    handler, root = logging.StreamHandler(written), logging.getLogger()
    names = ("", "uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi", "asyncio", "rerank")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(1)
    root.addHandler(handler)
    yield written
    root.removeHandler(handler)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)


def test_logs_and_metrics_hold_nothing_of_users(
    make_engine: MakeEngine, everything: io.StringIO, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(rate="60/minute")
    key = engine.store.add_key("acme")
    with listening(build_app(engine, needs_key=True), engine.config) as port:

        def ask(method: str, path: str, body: str = "", **headers: str) -> int:
            return send(port, request(method, path, body, Authorization=f"Bearer {key}", **headers)).status

        assert ask("POST", "/v1/rerank", RANK) == 200
        assert ask("POST", "/v1/feedback", BODY % "", Idempotency_Key="once-only") == 200
        assert ask("POST", "/v1/feedback", BODY % ', "tie": true', Idempotency_Key="once-only") == 409
        assert ask("POST", "/v1/feedback", BODY % ', "swordfish": "swordfish"') == 422
        assert ask("POST", "/v1/feedback", BODY.replace("pair", "swordfish") % "") == 422
        assert ask("POST", "/v1/feedback", "swordfish") == 400
        assert ask("GET", "/v1/users/uma-of-turin/export?swordfish=uma-of-turin") == 200
        assert ask("GET", "/v1/users/uma-of-turin/swordfish") == 200  # an id with a slash
        assert ask("SWORDFISH", "/swordfish") == 404
        assert send(port, request("POST", "/v1/rerank", RANK, Authorization="Bearer prm-swordfish")).status == 401
        assert send(port, b"swordfish prm- uma-of-turin\r\n\r\n").status == 400

        def fail(*args: object, **more: object) -> None:
            raise RuntimeError("swordfish of uma-of-turin") from KeyError("swordfish")

        with monkeypatch.context() as patch:
            patch.setattr(engine.texts, "_read", fail)
            assert ask("POST", "/v1/rerank", RANK.replace("a dog", "another")) == 500
        _fail_at(engine, "INSERT INTO feedback")
        assert ask("POST", "/v1/feedback", BODY % "") == 503
        _fail_at(engine, "INSERT INTO shown")
        assert ask("POST", "/v1/rerank", RANK) == 200
        engine.shown.wait()
        assert ask("DELETE", "/v1/users/uma-of-turin") == 200
        metrics = send(port, request("GET", "/metrics", Authorization=f"Bearer {key}")).body.decode()
    engine.close()
    printed = capfd.readouterr()
    for text in (everything.getvalue(), metrics, printed.out, printed.err):
        assert [secret for secret in (*SECRETS, key) if secret in text.lower()] == []
    assert "RuntimeError at test_private_logs.py" in everything.getvalue()  # what failed, and where
    assert "1 records of what was shown are lost" in everything.getvalue()
    assert 'route="/v1/feedback"' in metrics


def _fail_at(engine: Engine, statement: str) -> None:
    """The next such statement fails as a database might, quoting it."""

    @event.listens_for(engine.store.engine, "before_cursor_execute")
    def fail(*args: object) -> None:
        if str(args[2]).startswith(statement):
            event.remove(engine.store.engine, "before_cursor_execute", fail)
            raise OperationalError(str(args[2]), {"text": args[3]}, RuntimeError(f"row {args[3]} is refused"))

"""The application: endpoints, errors, and who may ask."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from sqlite3 import SQLITE_FULL

from anyio.to_thread import current_default_thread_limiter
from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.security import HTTPBearer
from sqlalchemy.exc import DataError, SQLAlchemyError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException as HttpError
from starlette.middleware.cors import CORSMiddleware

from prm.errors import PrmError, shorten
from prm.io.environment import __version__
from rerank.service.config import CANDIDATES
from rerank.service.engine import Engine
from rerank.service.errors import BusyError, ConflictError, UnknownError, reason_of
from rerank.service.http import chat, feedback, health, listing, page, ranking, scoring, teaching, users
from rerank.service.http.common import ERRORS, described
from rerank.service.http.gate import Gate
from rerank.service.pool import Pool, default_pool
from rerank.service.questions import Questions
from rerank.service.upstream import LocalModel, Upstream

logger = logging.getLogger(__name__)

LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_DISK_FULL = "53100"  # PostgreSQL's code
_BEARER = HTTPBearer(auto_error=False, description="an API key: `rerank keys`")  # for the OpenAPI; the gate checks it
_SPARE_THREADS = 4  # for what is no request in work: whether the database answers
_CORS_HEADERS = ["Authorization", "Content-Type", "Idempotency-Key"]
_STATUS: dict[type[Exception], int] = {BusyError: 503, ConflictError: 409, UnknownError: 404}


def build_app(
    engine: Engine,
    needs_key: bool = False,
    hosts: Sequence[str] = LOOPBACK,
    origins: Sequence[str] = (),
    upstream: Upstream | None = None,
    n: int = CANDIDATES,
    pool: Pool | None = None,
) -> FastAPI:
    """The application of an engine, which it closes when it stops.

    Args:
        needs_key: refuse requests without an API key.
        hosts: names by which it may be addressed; "*" is any, "*.example.com" any below.
        origins: sites whose pages may ask from a browser, as "https://example.com"; "*" is any.
        upstream: writes the answers of `/v1/chat/completions`; the embedded model if left out. It is closed, too.
        n: answers that the upstream is asked for.
        pool: questions that users may be asked; `default_pool` if left out.
    """
    chatting = chat.Chat(upstream or LocalModel(timeout=engine.config.timeout), n)
    questions = Questions(engine, pool or default_pool(engine.scorer))

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        most = engine.config.max_requests + engine.config.max_chats
        current_default_thread_limiter().total_tokens = most + _SPARE_THREADS
        yield
        chatting.upstream.close()
        questions.close()
        engine.close()

    app = FastAPI(
        title="rerank",
        version=__version__,
        summary="Best of N, for each user",
        lifespan=life,
        docs_url=None,  # its scripts come from elsewhere
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.engine, app.state.chat, app.state.questions = engine, chatting, questions
    for part in (ranking, scoring, chat, feedback, users, teaching, health, listing, page):
        secured = [Depends(_BEARER)] if needs_key and part is not health else []
        app.include_router(part.router, responses=ERRORS, dependencies=secured)
    app.add_middleware(Gate, engine=engine, needs_key=needs_key, hosts=hosts, origins=origins)
    if origins:  # outside of the gate, so that pages can read its refusals
        app.add_middleware(
            _Cors, allow_origins=list(origins), allow_methods=["GET", "POST", "DELETE"], allow_headers=_CORS_HEADERS
        )
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HttpError, _http)
    app.add_exception_handler(PrmError, _refused)
    app.add_exception_handler(SQLAlchemyError, _database)
    return app


class _Cors(CORSMiddleware):
    def preflight_response(self, request_headers: Headers) -> Response:
        reply = super().preflight_response(request_headers)
        if reply.status_code < 400:
            return reply
        return _reply(400, "pages of this site may not ask so: see --allow_origin")


def _reply(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(described(status, message), status, headers)


def _invalid(_: Request, error: Exception) -> Response:
    """What is wrong with a body, where; without the values, which may be texts of a user."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{'.'.join(map(str, fault['loc'][1:])) or 'body'}: {fault['msg']}" for fault in error.errors()[:3]]
    return _reply(422, shorten("; ".join(faults)))


def _http(_: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return _reply(error.status_code, str(error.detail), dict(error.headers or {}))


def _refused(_: Request, error: Exception) -> Response:
    status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 400)
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, BusyError) else None
    return _reply(status, str(error), headers)


def _database(_: Request, error: Exception) -> Response:
    """The request was not carried out: its transaction was taken back."""
    cause = getattr(error, "orig", None) or error
    logger.error("the database failed: %s", reason_of(error))
    if isinstance(error, DataError):
        return _reply(400, "a text holds a character that the database cannot keep, such as NUL")
    if getattr(cause, "sqlite_errorcode", None) == SQLITE_FULL or getattr(cause, "sqlstate", None) == _DISK_FULL:
        return _reply(507, "the database has no room left")
    return _reply(503, "the database does not answer", {"Retry-After": "5"})

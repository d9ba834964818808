"""`/healthz`, `/readyz` and `/metrics`."""

import time

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from sqlalchemy.exc import SQLAlchemyError

from rerank.service.http.common import UseEngine, fault

router = APIRouter(tags=["health"])


_KEPT_FOR = 1.0  # seconds for which the database's answer is believed: anybody may ask for it


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get("/readyz")
def readyz(engine: UseEngine, request: Request) -> dict[str, str]:
    """The database answers, too; 503 if not. `upstream` is there while the model that writes for chats does not answer.

    Without it all but chats are served.
    """
    state = request.app.state
    asked, answers = getattr(state, "database", (-_KEPT_FOR, False))
    if time.monotonic() - asked >= _KEPT_FOR:
        try:
            engine.store.ping()
            answers = True
        except SQLAlchemyError:
            answers = False
        state.database = time.monotonic(), answers
    if not answers:
        raise fault(503, "the database does not answer", **{"Retry-After": "5"})
    return {"status": "ok"} | ({"upstream": "does not answer"} if state.chat.upstream.trouble() else {})


@router.get(
    "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
)
def metrics(engine: UseEngine) -> Response:
    """Counts and times for Prometheus."""
    return Response(generate_latest(engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)

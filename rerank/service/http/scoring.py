"""`/v1/score` and `/v1/prefer`: rewards, and how likely a user prefers one response to another."""

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, Field

from prm.errors import DataError
from rerank.service.http.common import (
    Body,
    Id,
    PromptBody,
    UseEngine,
    UseNamespace,
    check_length,
    check_texts,
    prompt_of,
)

router = APIRouter(tags=["scoring"])


class ScoreBody(Body):
    """Either one `prompt` with several `responses`, for a `user` or for several `users`; or rows, one of each list."""

    prompt: PromptBody | None = None
    prompts: list[PromptBody] | None = None
    responses: Annotated[list[str], Field(min_length=1)]
    user: Id | None = None
    users: list[Id | None] | None = None
    user_texts: list[str] | None = None


class ScoreReply(BaseModel):
    """Rewards in logits: [n] for one user or for rows, [m][n] for m users of one prompt."""

    model: str
    scores: list[float] | list[list[float]]


@router.post("/v1/score")
def score(body: ScoreBody, engine: UseEngine, namespace: UseNamespace) -> ScoreReply:
    """Rewards of responses for users."""
    if (body.prompt is None) == (body.prompts is None):
        raise DataError("give 'prompt' for one prompt, or 'prompts' for one of each row")
    if body.user is not None and body.users is not None:
        raise DataError("give 'user' or 'users', not both")
    responses = check_texts(engine, "responses", body.responses)
    if body.users is not None and len(set(body.users)) > engine.config.max_users:
        raise DataError(f"'users' names more than {engine.config.max_users} users")
    n = len(responses)
    if body.prompt is not None:
        prompt = prompt_of(engine, body.prompt)
        if body.user_texts is not None:
            raise DataError("'user_texts' are for rows: give 'prompts'")
        users = [body.user] if body.users is None else body.users
        rows = engine.score_users(namespace, prompt, responses, users)
        return ScoreReply(model=engine.name, scores=rows[0] if body.users is None else rows)
    assert body.prompts is not None
    of_rows = [body.user] * n if body.users is None else body.users
    texts = [""] * n if body.user_texts is None else check_texts(engine, "user_texts", body.user_texts)
    for name, size in {"prompts": len(body.prompts), "users": len(of_rows), "user_texts": len(texts)}.items():
        if size != n:
            raise DataError(f"'{name}' has {size} entries, 'responses' {n}")
    prompts = [prompt_of(engine, prompt, f"prompts[{i}]") for i, prompt in enumerate(body.prompts)]
    return ScoreReply(model=engine.name, scores=engine.score(namespace, prompts, responses, of_rows, texts))


class PreferBody(Body):
    """Two responses to a prompt."""

    prompt: PromptBody
    a: str
    b: str
    user: Id | None = None
    user_text: str = ""


class PreferReply(BaseModel):
    """P(the user prefers a to b), in [0, 1]."""

    model: str
    p_a: float


@router.post("/v1/prefer")
def prefer(body: PreferBody, engine: UseEngine, namespace: UseNamespace) -> PreferReply:
    """How likely the user prefers one response to another."""
    for name, text in {"a": body.a, "b": body.b, "user_text": body.user_text}.items():
        check_length(engine, name, text)
    p = engine.prefer(namespace, prompt_of(engine, body.prompt), body.a, body.b, body.user, body.user_text)
    return PreferReply(model=engine.name, p_a=p)

"""`/v1/rerank` and `/v2/rerank`, in the shape of Cohere and Jina, for a user."""

import uuid
from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field

from prm.errors import DataError, closest
from rerank.service.http.common import (
    MaybeUser,
    OpenBody,
    PromptBody,
    UseEngine,
    UseNamespace,
    UserText,
    check_length,
    check_texts,
    naming,
    prompt_of,
)

router = APIRouter(tags=["ranking"])


class Document(BaseModel):
    """A document with fields; its `text` is read."""

    model_config = ConfigDict(extra="allow")
    text: Annotated[str, Field(description="what is read", examples=["Freeze it."])]


_OWN = ("user", "user_text", "query", "documents", "top_n", "return_documents")


class RerankBody(OpenBody):
    """Responses to rank; `user` is whose preference counts, without it everybody's.

    `rank_fields` is Cohere's, and may be `["text"]`. Other products' fields are left unread; one that looks like a
    misspelt field of these is refused.
    """

    model_config = ConfigDict(extra="allow")

    query: PromptBody
    documents: Annotated[
        list[str | Document],
        Field(
            min_length=1,
            description="responses: texts, or objects with a `text`",
            examples=[["Freeze it.", "In a bread bin."]],
        ),
    ]
    top_n: Annotated[
        Annotated[int, Field(ge=1)] | None,
        Field(description="how many are returned, the best; all if left out", examples=[1]),
    ] = None
    return_documents: Annotated[bool, Field(description="return the documents, too", examples=[False])] = False
    user: MaybeUser = None
    user_text: UserText = ""
    model: Annotated[str | None, Field(description="not read: the run ranks", examples=["rerank"])] = None
    rank_fields: Annotated[
        list[str] | None, Field(description="Cohere's: `text` alone is read", examples=[["text"]])
    ] = None


class Result(BaseModel):
    """A ranked response.

    `relevance_score`: P(this response is preferred to the one that is best for everybody), by the difference of their
    rewards; with `--service.caution` a lower bound of it, by which they are ordered. `logit`: the reward.
    """

    index: int
    relevance_score: float
    logit: float
    document: dict[str, object] | None = None


class RerankReply(BaseModel):
    """Responses, best first. `id` names what was shown, for feedback.

    `usage.total_tokens`: tokens that the reward model reads, of all documents, each with the query.
    """

    id: str
    model: str
    results: list[Result]
    known_user: bool
    comparisons: int
    meta: dict[str, object]
    usage: dict[str, int]


def _rerank(body: RerankBody, engine: UseEngine, namespace: UseNamespace, version: str) -> RerankReply:
    if isinstance(body.query, list) and not body.query:
        raise DataError("'query' is an empty list")
    for name in body.model_extra or {}:
        if near := closest(name, _OWN):
            raise DataError(f"the body has a field {name[:40]!r}; did you mean {near!r}?")
    if body.rank_fields not in (None, ["text"]):
        raise DataError("'rank_fields' names other fields than 'text', which alone is read")
    check_length(engine, "user_text", body.user_text)
    texts = check_texts(engine, "documents", [d if isinstance(d, str) else d.text for d in body.documents])
    query = prompt_of(engine, body.query, "query")
    with naming(lambda i: f"documents[{i}]"):
        ranking = engine.rank(namespace, query, texts, body.user, body.user_text, top_n=body.top_n)

    def document(i: int) -> dict[str, object] | None:
        if not body.return_documents:
            return None
        given = body.documents[i]
        return {"text": given} if isinstance(given, str) else given.model_dump()

    results = [
        Result(index=i, relevance_score=ranking.relevance[i], logit=ranking.logits[i], document=document(i))
        for i in ranking.order[: body.top_n]
    ]
    return RerankReply(
        id=ranking.shown_id or uuid.uuid4().hex,
        model=engine.name,
        results=results,
        known_user=ranking.known,
        comparisons=ranking.comparisons,
        meta={"api_version": {"version": version}, "billed_units": {"search_units": 1}},
        usage={"total_tokens": ranking.tokens},
    )


@router.post("/v1/rerank", response_model_exclude_none=True)
def rerank_v1(body: RerankBody, engine: UseEngine, namespace: UseNamespace) -> RerankReply:
    """Rank responses for a user."""
    return _rerank(body, engine, namespace, "1")


@router.post("/v2/rerank", response_model_exclude_none=True)
def rerank_v2(body: RerankBody, engine: UseEngine, namespace: UseNamespace) -> RerankReply:
    """Rank responses for a user."""
    return _rerank(body, engine, namespace, "2")

"""`/v1/score` and `/v1/prefer`: rewards, and how likely a user prefers one response to another."""

import json
from collections.abc import Callable, Collection, Sequence
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, Discriminator, Field, Tag

from prm.data.comparison import Prompt
from prm.errors import DataError
from rerank.service.engine import Engine
from rerank.service.http.common import (
    MOST_REWARD,
    Body,
    Id,
    MaybePrompt,
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

router = APIRouter(tags=["scoring"])


class ScoreBody(Body):
    """Either one `prompt` with several `responses`, for a `user` or for several `users`; or rows, one of each list."""

    prompt: MaybePrompt = None
    prompts: Annotated[
        list[PromptBody] | None,
        Field(description="the prompt of each response", examples=[["How do I keep bread fresh?", "TV or books?"]]),
    ] = None
    responses: Annotated[
        list[str], Field(min_length=1, description="texts to score", examples=[["Freeze it.", "In a bread bin."]])
    ]
    user: MaybeUser = None
    users: Annotated[
        list[Id | None] | None,
        Field(
            description="with `prompt`: users for each of whom all responses are scored; with `prompts`: the user of "
            "each response; null is everybody",
            examples=[["anna", None]],
        ),
    ] = None
    user_texts: Annotated[
        list[str] | None,
        Field(
            description="with `prompts`: the user's text about themselves for each response, or an empty one",
            examples=[["I bake on Sundays.", ""]],
        ),
    ] = None


class ScoreReply(BaseModel):
    """Rewards in logits: [n] for one user or for rows, [m][n] for m users of one prompt."""

    model: str
    scores: list[float] | list[list[float]]


class QueryBody(OpenBody):
    """The rows of OpenRLHF's `--reward.remote_url`.

    A query is one text: the prompt in the policy's chat template, which is the row of `prompts`, and the response. A
    label is a JSON object, or its text, with `prompt`, which the reward model reads in its own template, and `user_id`,
    which may be null; it may hold `user_text`.
    """

    query: Annotated[
        list[str],
        Field(
            min_length=1,
            description="prompt, in the policy's template, and response, as one text each",
            examples=[["<|user|>How do I keep bread fresh?<|assistant|>Freeze it."]],
        ),
    ]
    prompts: Annotated[
        list[str],
        Field(
            description="what each query begins with", examples=[["<|user|>How do I keep bread fresh?<|assistant|>"]]
        ),
    ]
    labels: Annotated[
        list[str | dict[str, object]],
        Field(
            description="`prompt`, `user_id` and, optionally, `user_text` of each query, as an object or its JSON",
            examples=[[{"prompt": "How do I keep bread fresh?", "user_id": "anna"}]],
        ),
    ]


class QueryReply(BaseModel):
    """Rewards in logits, one of each query; `scores` are the same."""

    rewards: list[float]
    scores: list[float]
    extra_logs: dict[str, list[float]]


class Label(OpenBody):
    """What a row of OpenRLHF says of its prompt and its user."""

    prompt: PromptBody
    user_id: Id | None
    user_text: str | None = None


def _shape(body: object) -> str:
    names = body if isinstance(body, dict) else getattr(body, "__dict__", {})  # a list or a number has no names
    return "query" if "query" in names else "responses"


AnyScoreBody = Annotated[
    Annotated[ScoreBody, Tag("responses")] | Annotated[QueryBody, Tag("query")], Discriminator(_shape)
]
Empty = Annotated[
    float | None,
    Query(
        description="reward of an empty response; without it one is refused",
        ge=-MOST_REWARD,
        le=MOST_REWARD,
        allow_inf_nan=False,
    ),
]
End = Annotated[str, Query(description="text that ends the responses of a policy; it is not read", max_length=100)]


@router.post("/v1/score")
def score(
    body: AnyScoreBody, engine: UseEngine, namespace: UseNamespace, empty: Empty = None, end: End = ""
) -> ScoreReply | QueryReply:
    """Rewards of responses for users; also in the shape of OpenRLHF."""
    if isinstance(body, QueryBody):
        return _score_queries(body, engine, namespace, empty, end)
    if (body.prompt is None) == (body.prompts is None):
        raise DataError("give 'prompt' for one prompt, or 'prompts' for one of each row")
    if body.user is not None and body.users is not None:
        raise DataError("give 'user' or 'users', not both")
    responses = [text.removesuffix(end) for text in check_texts(engine, "responses", body.responses)]
    named = body.users or []
    _check_users(engine, set(named) if body.prompt is None else named)  # of one prompt each has a reply of its own
    n = len(responses)
    if body.prompt is not None:
        prompt = prompt_of(engine, body.prompt)
        if body.user_texts is not None:
            raise DataError("'user_texts' are for rows: give 'prompts'")
        users = [body.user] if body.users is None else body.users

        def by_user(kept: Sequence[int]) -> list[list[float]]:
            with naming(lambda i: f"responses[{kept[i]}]"):
                return engine.score_users(namespace, prompt, [responses[i] for i in kept], users)

        rows = _with_empty(engine, responses, empty, by_user, len(users))
        return ScoreReply(model=engine.name, scores=rows[0] if body.users is None else rows)
    assert body.prompts is not None
    of_rows = [body.user] * n if body.users is None else body.users
    texts = [""] * n if body.user_texts is None else check_texts(engine, "user_texts", body.user_texts)
    for name, size in {"prompts": len(body.prompts), "users": len(of_rows), "user_texts": len(texts)}.items():
        if size != n:
            raise DataError(f"'{name}' has {size} entries, 'responses' {n}")
    prompts = [prompt_of(engine, prompt, f"prompts[{i}]") for i, prompt in enumerate(body.prompts)]
    scores = _score_rows(engine, namespace, prompts, responses, of_rows, texts, empty, "responses")
    return ScoreReply(model=engine.name, scores=scores)


def _score_queries(body: QueryBody, engine: Engine, namespace: str, empty: float | None, end: str) -> QueryReply:
    n = len(check_texts(engine, "query", body.query))
    for name, size in {"prompts": len(body.prompts), "labels": len(body.labels)}.items():
        if size != n:
            raise DataError(f"'{name}' has {size} entries, 'query' {n}")
    responses = []
    for i, (query, prompt) in enumerate(zip(body.query, body.prompts, strict=True)):
        if not query.startswith(prompt):
            raise DataError(f"'query[{i}]' does not begin with 'prompts[{i}]': was the prompt cut?")
        responses.append(query[len(prompt) :].removesuffix(end))
    labels = [_label(label, f"labels[{i}]") for i, label in enumerate(body.labels)]
    _check_users(engine, {label.user_id for label in labels})
    prompts = [prompt_of(engine, label.prompt, f"labels[{i}].prompt") for i, label in enumerate(labels)]
    texts = [label.user_text or "" for label in labels]
    users = [label.user_id for label in labels]
    rewards = _score_rows(engine, namespace, prompts, responses, users, texts, empty, "query")
    return QueryReply(rewards=rewards, scores=rewards, extra_logs={})


def _label(label: str | dict[str, object], name: str) -> Label:
    """Raises `DataError` for what is no object with `prompt` and `user_id`."""
    try:
        return Label.model_validate(json.loads(label) if isinstance(label, str) else label)
    except (ValueError, RecursionError):
        raise DataError(f"'{name}' must be a JSON object with 'prompt' and 'user_id'") from None


def _check_users(engine: Engine, users: Collection[str | None]) -> None:
    if len(users) > engine.config.max_users:
        raise DataError(f"a request names at most {engine.config.max_users} users, this one {len(users)}")


def _score_rows(
    engine: Engine,
    namespace: str,
    prompts: Sequence[Prompt],
    responses: Sequence[str],
    users: Sequence[str | None],
    texts: Sequence[str],
    empty: float | None,
    name: str,
) -> list[float]:
    """Rewards [b] of rows; `name` is that of the list that the responses came in."""
    for i, text in enumerate(texts):
        check_length(engine, f"user_texts[{i}]", text)

    def rows(kept: Sequence[int]) -> list[list[float]]:
        columns = ([column[i] for i in kept] for column in (prompts, responses, users, texts))
        with naming(lambda i: f"{name}[{kept[i]}]"):
            return [engine.score(namespace, *columns)]  # type: ignore[arg-type]

    return _with_empty(engine, responses, empty, rows, 1)[0]


def _with_empty(
    engine: Engine,
    responses: Sequence[str],
    empty: float | None,
    score: Callable[[Sequence[int]], list[list[float]]],
    m: int,
) -> list[list[float]]:
    """Rewards [m][n] by `score`, which takes positions; empty responses have the reward `empty`, if it is given."""
    if empty is None:
        return score(range(len(responses)))
    kept = [i for i, response in enumerate(responses) if engine.scorer.reader.has_tokens(response)]
    rewards = [[empty] * len(responses) for _ in range(m)]
    for row, found in zip(rewards, score(kept) if kept else [[]] * m, strict=True):
        for i, reward in zip(kept, found, strict=True):
            row[i] = reward
    return rewards


class PreferBody(Body):
    """Two responses to a prompt."""

    prompt: PromptBody
    a: Annotated[str, Field(description="a response", examples=["Freeze it."])]
    b: Annotated[str, Field(description="another one", examples=["In a bread bin."])]
    user: MaybeUser = None
    user_text: UserText = ""


class PreferReply(BaseModel):
    """P(the user prefers a to b), in [0, 1]."""

    model: str
    p_a: float


@router.post("/v1/prefer")
def prefer(body: PreferBody, engine: UseEngine, namespace: UseNamespace) -> PreferReply:
    """How likely the user prefers one response to another."""
    for name, text in {"a": body.a, "b": body.b, "user_text": body.user_text}.items():
        check_length(engine, name, text)
    prompt = prompt_of(engine, body.prompt)
    with naming(lambda i: "ab"[i]):
        p = engine.prefer(namespace, prompt, body.a, body.b, body.user, body.user_text)
    return PreferReply(model=engine.name, p_a=p)

"""`/v1/feedback`: what a user said. It is on disk before the reply, and the next request sees it."""

from collections.abc import Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Header
from pydantic import BaseModel, Field

from prm.errors import DataError
from rerank.service.http.common import (
    MOST_REWARD,
    Body,
    MaybePrompt,
    PromptBody,
    Text,
    UseEngine,
    UseNamespace,
    User,
    UserText,
    check_length,
    check_texts,
    prompt_of,
)
from rerank.service.judgements import SINGLE, Judgement

router = APIRouter(tags=["feedback"])

Key = Annotated[str, Field(min_length=1, max_length=200)]
BodyKey = Annotated[
    Key | None,
    Field(description="the same feedback with the same key is taken once; also as a header", examples=["form 17"]),
]
Shown = Annotated[
    str | None,
    Field(
        description="id of what was shown to the user, of the reply to a ranking or a chat",
        examples=["shown-4f0c2b1d9a6e4c7f8b3a5d2e1f0c9b8a"],
    ),
]
Response = Annotated[str | None, Field(min_length=1, description="text of the response", examples=["Freeze it."])]
_NOT_COMPARED = "learnt from once this user judges another response to this prompt differently"


class PairBody(Body):
    """The user preferred one response to another; `tie` says that neither was better."""

    type: Annotated[Literal["pair"], Field(description="what the user said", examples=["pair"])]
    user: User
    prompt: PromptBody
    chosen: Annotated[Text, Field(description="the preferred response", examples=["Freeze it."])]
    rejected: Annotated[Text, Field(description="the other one", examples=["In a bread bin."])]
    tie: Annotated[bool, Field(description="neither was better", examples=[False])] = False
    user_text: UserText = ""
    idempotency_key: BodyKey = None


class PickBody(Body):
    """The user picked one of several: of those that were `shown` under an id, or of `responses` to a `prompt`.

    What was shown has one pick of the user: the same one again is a repeat (`again`), another one is refused (409).
    """

    type: Annotated[Literal["pick"], Field(description="what the user said", examples=["pick"])]
    user: User
    chosen: Annotated[int, Field(ge=0, description="position of the pick, from 0", examples=[1])]
    shown: Shown = None
    prompt: MaybePrompt = None
    responses: Annotated[
        list[Text] | None, Field(description="texts, two or more", examples=[["Freeze it.", "In a bread bin."]])
    ] = None
    user_text: UserText = ""
    idempotency_key: BodyKey = None


class ThumbBody(Body):
    """Thumb up or down for a response: compared with the user's other thumbs on the prompt.

    It is the response that was `shown` first under an id (a chat's only one), or a `response` to a `prompt`.
    """

    type: Annotated[Literal["thumb"], Field(description="what the user said", examples=["thumb"])]
    user: User
    shown: Shown = None
    prompt: MaybePrompt = None
    response: Response = None
    up: Annotated[bool, Field(description="whether the thumb is up", examples=[True])]
    user_text: UserText = ""
    idempotency_key: BodyKey = None


class RatingBody(Body):
    """A rating of a response, named as for a thumb; higher is better. Compared with the user's others on the prompt."""

    type: Annotated[Literal["rating"], Field(description="what the user said", examples=["rating"])]
    user: User
    shown: Shown = None
    prompt: MaybePrompt = None
    response: Response = None
    rating: Annotated[
        float,
        Field(
            ge=-MOST_REWARD,
            le=MOST_REWARD,
            allow_inf_nan=False,
            description="on any scale, from -1,000,000 to 1,000,000",
            examples=[4],
        ),
    ]
    user_text: UserText = ""
    idempotency_key: BodyKey = None


FeedbackBody = Annotated[PairBody | PickBody | ThumbBody | RatingBody, Field(discriminator="type")]


class FeedbackReply(BaseModel):
    """`comparisons`: how many followed. `known_by`: by how many the user is known. `again`: it had come before.

    `note` is there where nothing could be learnt yet, and says what is missing.
    """

    id: int
    comparisons: int
    known_by: int
    again: bool
    note: str | None = None


@router.post("/v1/feedback", response_model_exclude_none=True)
def feedback(
    body: FeedbackBody,
    engine: UseEngine,
    namespace: UseNamespace,
    idempotency_key: Annotated[Key | None, Header()] = None,
) -> FeedbackReply:
    """Learn from what a user said."""
    check_length(engine, "user_text", body.user_text)
    shown = None if isinstance(body, PairBody) else body.shown
    pick = body.chosen if isinstance(body, PickBody) else 0
    if shown is not None:
        assert not isinstance(body, PairBody)
        given = body.responses if isinstance(body, PickBody) else body.response
        if body.prompt is not None or given is not None:
            raise DataError("give 'shown', or the prompt with what was shown, not both")
        if isinstance(body, PickBody):
            prompt, ranked = engine.shown_to(namespace, body.user, shown)
            responses, pick = _among_shown(ranked, body.chosen)
        else:
            prompt, best = engine.best_shown_to(namespace, body.user, shown)
            responses = [best]
    else:
        if body_prompt := body.prompt:
            prompt = prompt_of(engine, body_prompt)
        else:
            raise DataError("'prompt' is missing")
        responses = check_texts(engine, "responses", _responses(body))
        for name, text in zip(_names(body), responses, strict=True):
            try:
                engine.check(prompt, text, body.user_text)
            except DataError as error:
                raise DataError(f"'{name}': {error}") from None
    if isinstance(body, PairBody):
        if body.chosen == body.rejected:
            raise DataError("'chosen' and 'rejected' are the same text: there is nothing to compare")
        value: float | None = None if body.tie else 0
    else:
        value = pick if isinstance(body, PickBody) else float(body.up if isinstance(body, ThumbBody) else body.rating)
    judgement = Judgement(body.type, prompt, tuple(responses), value, body.user_text)
    key = body.idempotency_key or idempotency_key
    receipt = engine.give_feedback(namespace, body.user, judgement, key, shown)
    if not receipt.again:
        engine.metrics.feedback.labels(body.type).inc()
    return FeedbackReply(
        id=receipt.feedback_id,
        comparisons=receipt.comparisons,
        known_by=receipt.known_by,
        again=receipt.again,
        note=_NOT_COMPARED if body.type in SINGLE and not (receipt.comparisons or receipt.again) else None,
    )


def _among_shown(ranked: Sequence[str | None], chosen: int) -> tuple[list[str], int]:
    """(the responses that the user was shown, position of the pick among them). Raises `DataError` for another pick."""
    if chosen < len(ranked) and ranked[chosen] is None:
        raise DataError(f"'chosen' is position {chosen}, which was not returned: 'top_n' left it out")
    return [text for text in ranked if text is not None], chosen - sum(text is None for text in ranked[:chosen])


def _names(body: PairBody | PickBody | ThumbBody | RatingBody) -> list[str]:
    """The names of `_responses` in the body."""
    if isinstance(body, PairBody):
        return ["chosen", "rejected"]
    return [f"responses[{i}]" for i in range(len(body.responses or []))] if isinstance(body, PickBody) else ["response"]


def _responses(body: PairBody | PickBody | ThumbBody | RatingBody) -> list[str]:
    if isinstance(body, PairBody):
        return [body.chosen, body.rejected]
    if isinstance(body, PickBody):
        if body.responses is None:
            raise DataError("'responses' are missing: give them, or 'shown', the id of what was shown")
        return body.responses
    if body.response is None:
        raise DataError("'response' is missing: give it, or 'shown', the id of what was shown")
    return [body.response]

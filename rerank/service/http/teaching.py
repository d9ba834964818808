"""`/v1/users/{id}`, `/question` and `/preview`: what is believed of a user, what to ask next, and what it changes."""

from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel

from prm.data.comparison import Prompt
from rerank.service.http.common import Message, UseNamespace
from rerank.service.http.users import PathId
from rerank.service.questions import Questions

router = APIRouter(tags=["teaching"])


async def questions_of(request: Request) -> Questions:
    """The questions of the application."""
    return request.app.state.questions


UseQuestions = Annotated[Questions, Depends(questions_of)]


class LeaningReply(BaseModel):
    """What the user likes more than everybody does: `weight` in logits, with its posterior standard deviation."""

    attribute: str
    more: str
    less: str
    weight: float
    std: float | None
    says: str


class UserReply(BaseModel):
    """`comparisons`: by how many the user is known. `sure`: share of the uncertainty that they removed."""

    user: str
    known: bool
    comparisons: int
    sure: float | None
    leanings: list[LeaningReply]
    says: str


class QuestionReply(BaseModel):
    """Two responses to compare; `information` is what the result is expected to tell, in nats."""

    prompt: str | list[Message]
    responses: list[str]
    chosen_by: Literal["information", "random"]
    information: float | None
    left: int


class PreviewReply(BaseModel):
    """`personal`, `generic`: index of the user's best response, and of everybody's, to a prompt that is never asked."""

    number: int
    count: int
    prompt: str | list[Message]
    responses: list[str]
    personal: int
    generic: int
    p_personal: float
    differs: list[int]


@router.get("/v1/users/{user:id}/question")
def question(user: PathId, questions: UseQuestions, namespace: UseNamespace) -> QuestionReply:
    """The pair of responses whose comparison would tell most about the user; a random one without uncertainty."""
    found = questions.next(namespace, user)
    by: Literal["information", "random"] = "random" if found.information is None else "information"
    return QuestionReply(
        prompt=_shown(found.prompt),
        responses=list(found.responses),
        chosen_by=by,
        information=found.information,
        left=found.left,
    )


@router.get("/v1/users/{user:id}/preview")
def preview(
    user: PathId,
    questions: UseQuestions,
    namespace: UseNamespace,
    number: Annotated[int, Query(ge=0, description="of the prompt")] = 0,
) -> PreviewReply:
    """What the user would get for a prompt that nobody is asked about, and what everybody would."""
    found = questions.preview(namespace, user, number)
    return PreviewReply(**{**vars(found), "prompt": _shown(found.prompt), "responses": list(found.responses)})


@router.get("/v1/users/{user:id}")
def describe(user: PathId, questions: UseQuestions, namespace: UseNamespace) -> UserReply:
    """What is known of a user. Somebody unknown is described as such, as they are ranked: `known` is false."""
    found = questions.describe(namespace, user)
    leanings = [LeaningReply(**vars(leaning), says=leaning.says) for leaning in found.leanings]
    return UserReply(user=user, **{**vars(found), "leanings": leanings}, says=found.says)


def _shown(prompt: Prompt) -> str | list[Message]:
    return prompt if isinstance(prompt, str) else [Message(role=m.role, content=m.content) for m in prompt]

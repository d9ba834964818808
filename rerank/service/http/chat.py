"""`/v1/chat/completions` and `/v1/models`, in OpenAI's shape: the best of several answers of any model, for a user."""

import json
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from prm.data.comparison import Prompt, parse_prompt
from prm.errors import DataError, shown
from prm.io.endpoint import StatusError
from prm.io.tables import plain
from rerank.service.engine import CHAT, Engine, Ranking
from rerank.service.http.common import (
    Id,
    MaybeUser,
    Text,
    UseEngine,
    UseNamespace,
    UserText,
    check_length,
    fault,
)
from rerank.service.upstream import Completion, Json, Upstream, turns_of

router = APIRouter(tags=["chat"])

# what goes to the model as it is; a field that is in none of these lists is refused
_SENT = {
    *("model", "temperature", "top_p", "max_tokens", "max_completion_tokens", "stop", "seed"),
    *("frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "top_logprobs", "response_format"),
    *("reasoning_effort", "verbosity", "service_tier"),
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "chat_template_kwargs"),  # vLLM, SGLang
}
_TOOLS = ("tools", "tool_choice", "parallel_tool_calls", "functions", "function_call")
# what may name a user, and what is about accounts of OpenAI
_KEPT_HERE = {"metadata", "store", "prompt_cache_key", "prompt_cache_retention"}
_OWN_FAULTS = (401, 402, 403)  # of the upstream's key and account, which are not the caller's


@dataclass(frozen=True)
class Chat:
    """Who writes the answers, and how many candidates a request asks for."""

    upstream: Upstream
    n: int


class ChatMessage(BaseModel):
    """A message: `content` is text, or parts as OpenAI has them."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: Annotated[Text, Field(description="system, developer, user, assistant or tool", examples=["user"])]
    content: Annotated[
        str | list[dict[str, object]] | None,
        Field(description="text, or parts", examples=["How do I keep bread fresh?"]),
    ] = None
    name: Annotated[str | None, Field(description="of a function; those of people are not sent", examples=["look"])] = (
        None
    )


class StreamOptions(BaseModel):
    """`include_usage`: a last chunk with the usage."""

    model_config = ConfigDict(extra="ignore", strict=True)
    include_usage: Annotated[bool | None, Field(description="end with a chunk of the usage", examples=[True])] = None


class ChatBody(BaseModel):
    """A conversation to answer. `user`, or `safety_identifier`, is whose preference counts; without it everybody's.

    `user_text` is the user's text, for the reward model alone. None of the three is sent to the model. `model`,
    `temperature`, `top_p`, `max_tokens`, `max_completion_tokens`, `seed`, `stop` and the others that OpenAI, vLLM and
    SGLang have are sent as they are; a field that is none of theirs is refused.
    """

    model_config = ConfigDict(extra="allow", strict=True)
    messages: Annotated[
        list[ChatMessage],
        Field(
            min_length=1,
            description="the conversation; its last message is the user's",
            examples=[[{"role": "user", "content": "How do I keep bread fresh?"}]],
        ),
    ]
    model: Annotated[str | None, Field(description="one of `/v1/models`", examples=["smollm2-135m"])] = None
    user: MaybeUser = None
    safety_identifier: Annotated[Id | None, Field(description="the same as `user`", examples=["anna"])] = None
    user_text: UserText = ""
    n: Annotated[
        Annotated[int, Field(ge=1, le=128)] | None,
        Field(description="above 1 so many answers are returned, not ranked", examples=[1]),
    ] = None
    stream: Annotated[bool | None, Field(description="send the answer in parts", examples=[False])] = None
    stream_options: Annotated[
        StreamOptions | None, Field(description="what a stream holds", examples=[{"include_usage": True}])
    ] = None

    def fields(self) -> Json:
        """The fields that may go to the model."""
        fields = {"model": self.model, **(self.model_extra or {})}
        return {name: value for name, value in fields.items() if value is not None}


class How(BaseModel):
    """How the answer was chosen.

    `shown`: id of what was shown, for feedback. `ranked`: false if the answer is the model's own; `reason` says why.
    `candidates`: number of different answers that were ranked.
    """

    shown: str | None = None
    ranked: bool
    reason: str | None = None
    candidates: int
    known_user: bool = False
    comparisons: int = 0


class ChatReply(BaseModel):
    """OpenAI's chat completion, with `rerank`: how the answer was chosen. `id` is `rerank.shown` if it was ranked.

    `usage`: the sum over all answers; it is missing if the upstream does not count.
    """

    id: str
    created: int
    model: str
    choices: list[dict[str, object]]
    usage: dict[str, int] | None = None
    rerank: How
    object: str = "chat.completion"  # after the fields whose types name the built-in


class ModelList(BaseModel):
    """The models that can be asked for."""

    data: list[dict[str, object]]
    object: str = "list"


async def chat_of(request: Request) -> Chat:
    """The chat of the application."""
    return request.app.state.chat


UseChat = Annotated[Chat, Depends(chat_of)]


@router.get("/v1/models")
def models(chat: UseChat) -> ModelList:
    """The models that can be asked for."""
    try:
        return ModelList(data=chat.upstream.models())
    except StatusError as error:
        raise _passed_on(error) from None


@router.post(
    "/v1/chat/completions",
    response_model=ChatReply,
    responses={200: {"content": {"text/event-stream": {}}}},  # a schema would be one of each event's, to some readers
)
def chat_completions(body: ChatBody, engine: UseEngine, namespace: UseNamespace, chat: UseChat) -> Response:
    """The best of several answers, for a user."""
    user = _user_of(body)
    sent, reason = _request_of(body)
    prompt = None if reason else _prompt_of(engine, sent["messages"], body.user_text)
    try:
        found = chat.upstream.complete(sent, body.n or 1 if reason else chat.n)
    except StatusError as error:
        raise _passed_on(error) from None
    choices, how = found.choices, How(ranked=False, reason=reason, candidates=0)
    if prompt is not None:
        choices, how = _best(engine, namespace, prompt, found, user, body.user_text)
    reply = ChatReply(
        id=how.shown or f"chatcmpl-{uuid.uuid4().hex}",
        created=int(time.time()),
        model=found.model or str(sent.get("model", "")),
        choices=[{**choice, "index": i} for i, choice in enumerate(choices)],
        rerank=how,
    ).model_dump(exclude={"usage"})
    if found.prompt_tokens:
        reply["usage"] = {
            "prompt_tokens": found.prompt_tokens,
            "completion_tokens": found.completion_tokens,
            "total_tokens": found.prompt_tokens + found.completion_tokens,
        }
    if not body.stream:
        return JSONResponse(reply)
    with_usage = body.stream_options is not None and bool(body.stream_options.include_usage)
    events = [f"data: {json.dumps(chunk)}\n\n" for chunk in _chunks(reply, with_usage)]
    return Response("".join([*events, "data: [DONE]\n\n"]), media_type="text/event-stream")


def _user_of(body: ChatBody) -> str | None:
    if body.user and body.safety_identifier and body.user != body.safety_identifier:
        raise DataError("'user' and 'safety_identifier' name two users: give one of them")
    return body.user or body.safety_identifier


def _request_of(body: ChatBody) -> tuple[Json, str | None]:
    """(what is sent to the model, why its answer cannot be ranked). Raises `DataError` for an unknown field."""
    fields = body.fields()
    if unknown := [name for name in fields if name not in {*_SENT, *_TOOLS, *_KEPT_HERE}]:
        raise DataError(f"{shown(unknown[0])} is not a field that the service passes on")
    sent = {name: value for name, value in fields.items() if name in _SENT or name in _TOOLS}
    messages = [_message(message) for message in body.messages]
    with_tools = bool({"tools", "functions"} & sent.keys()) or any(
        message["role"] in ("tool", "function") or message.keys() & {"tool_calls", "function_call"}
        for message in messages
    )
    reason = None
    if with_tools:
        reason = "the request has tools"
    elif (body.n or 1) > 1:
        reason = "the request asks for several choices"
    elif any(not isinstance(message["content"], str) for message in messages):
        reason = "a message has content that is no text"
    try:
        return dict(plain({"messages": messages, **sent})), reason
    except RecursionError:
        raise DataError("a field is nested too deeply") from None


def _message(message: ChatMessage) -> Json:
    """A message as it is sent, with its parts of text as one text; names of people stay here."""
    content = message.content
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    sent: Json = {"role": message.role, "content": content}
    if message.role == "function":
        sent["name"] = message.name
    known = ("tool_calls", "tool_call_id", "function_call")
    return sent | {name: value for name, value in (message.model_extra or {}).items() if name in known and value}


def _prompt_of(engine: Engine, messages: object, user_text: str) -> Prompt:
    """The conversation for the reward model. Raises `DataError` for one that it cannot read."""
    prompt = parse_prompt(turns_of(messages), "messages")
    content = prompt if isinstance(prompt, str) else "".join(message.content for message in prompt)
    for name, text in (("messages", content), ("user_text", user_text)):
        check_length(engine, name, text)
    try:
        engine.check(prompt, "a", user_text)
    except DataError as error:
        name = "'messages' with 'user_text'" if user_text else "'messages'"
        raise DataError(f"{name}: {error}") from None
    return prompt


def _best(
    engine: Engine, namespace: str, prompt: Prompt, found: Completion, user: str | None, user_text: str
) -> tuple[list[Json], How]:
    """The best of the choices for the user; the first, unranked, if the reward model can read none of them."""
    choice_of: dict[str, Json] = {}
    for text, choice in zip(found.texts, found.choices, strict=True):
        if text not in choice_of and _is_readable(engine, prompt, text, user_text):
            choice_of[text] = choice
    if not choice_of:
        reason = "the model gave no answer that the reward model can read"
        return found.choices[:1], How(ranked=False, reason=reason, candidates=0)
    texts = list(choice_of)
    ranking: Ranking = engine.rank(namespace, prompt, texts, user, user_text, kind=CHAT)
    how = How(
        shown=ranking.shown_id,
        ranked=True,
        candidates=len(texts),
        known_user=ranking.known,
        comparisons=ranking.comparisons,
    )
    return [choice_of[texts[ranking.order[0]]]], how


def _is_readable(engine: Engine, prompt: Prompt, text: str, user_text: str) -> bool:
    """Whether the reward model can read a response, and a database keep it: not if it is empty, or too long."""
    if not text or "\x00" in text or len(text) > engine.config.max_characters:
        return False
    try:
        engine.check(prompt, text, user_text)
    except DataError:
        return False
    return True


def _passed_on(error: StatusError) -> HTTPException:
    """The error that the caller sees: the upstream's, unless it is about the service's own key or makes no sense."""
    status, message = error.status, f"the upstream: {error}"
    if status in _OWN_FAULTS:
        status, message = 502, f"the upstream refuses the service's key or account (HTTP {status})"
    elif not 400 <= status < 500 and status not in (502, 503, 504):
        status, message = 502, f"{message} (HTTP {status})"
    return fault(status, message, **({} if error.retry_after is None else {"Retry-After": str(error.retry_after)}))


def _chunks(reply: Json, with_usage: bool) -> Iterator[Json]:
    """A reply in the chunks of a stream, each some words."""
    head = {name: reply[name] for name in ("id", "created", "model", "rerank")} | {"object": "chat.completion.chunk"}
    usage: Json = {"usage": None} if with_usage else {}
    choices = reply["choices"]
    assert isinstance(choices, list)
    for i, choice in enumerate(choices):
        message = dict(choice.get("message") or {})
        content = message.pop("content", None)
        if calls := message.pop("tool_calls", None):
            message["tool_calls"] = [{"index": k, **call} for k, call in enumerate(calls)]
        first = {"role": "assistant", **message} | ({"content": ""} if content else {})
        yield head | usage | {"choices": [_delta(i, first) | _logprobs(choice)]}
        for piece in re.findall(r"\s*\S+|\s+$", content or ""):
            yield head | usage | {"choices": [_delta(i, {"content": piece})]}
        yield head | usage | {"choices": [_delta(i, {}, choice.get("finish_reason") or "stop")]}
    if with_usage and "usage" in reply:
        yield head | {"choices": [], "usage": reply["usage"]}


def _delta(index: int, delta: Mapping[str, object], finish: object = None) -> Json:
    return {"index": index, "delta": dict(delta), "finish_reason": finish}


def _logprobs(choice: Mapping[str, object]) -> Json:
    """The log-probabilities of all tokens, if the request asked for them."""
    return {"logprobs": choice["logprobs"]} if choice.get("logprobs") else {}

"""Who writes the answers that are ranked: a server in OpenAI's shape, or a model in this process."""

import json
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from prm.data.comparison import parse_messages
from prm.errors import DataError, shown
from prm.io.endpoint import Endpoint, StatusError, UnreadableError, read_replies
from prm.io.tables import plain
from rerank.sampling.config import Sampling
from rerank.service.errors import BusyError

if TYPE_CHECKING:
    from rerank.sampling.sampler import Sampler

LOCAL_MODEL = "smollm2-135m"
_LOCAL_FIELDS = {
    "model",
    "messages",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "seed",
    "stop",
    "response_format",
}
_MOST_LOCAL_TOKENS, _MOST_STOPS = 1024, 16
_COLDEST = 1e-3  # the sampler's temperature for 0, which it does not take
_NO_ANSWER = (502, 504)
_PROBE_SECONDS = 5.0
_OF_THE_REQUEST = (400, 422)  # some servers refuse `n` above 1 with these

Json = dict[str, object]


@dataclass(frozen=True)
class Completion:
    """The choices of a model for one request.

    Args:
        model: its name.
        choices: in OpenAI's shape, at least one.
        texts: of the choices, without surrounding white space; "" for one without text.
        prompt_tokens, completion_tokens: summed over all requests that were sent for it; 0 if they were not counted.
    """

    model: str
    choices: list[Json]
    texts: list[str]
    prompt_tokens: int
    completion_tokens: int


class Upstream(Protocol):
    """Writes choices for a conversation; safe to call from many threads."""

    def complete(self, body: Mapping[str, object], n: int) -> Completion:
        """Up to n choices for a request in OpenAI's shape, whose fields go to the model as they are.

        Raises `StatusError` if there is none, and `BusyError` if it is not its turn in time.
        """
        ...

    def models(self) -> list[Json]:
        """The models that can be asked for, in OpenAI's shape. Raises `StatusError`."""
        ...

    def trouble(self) -> str:
        """Why the last request had no answer; "" if it had one, or if there was none."""
        ...

    def close(self) -> None:
        """Stop."""
        ...


class EndpointUpstream:
    """A server in OpenAI's shape. Imports the `openai` client, an extra.

    A server that gives fewer choices than asked, or refuses `n` above 1, is asked for the rest in further requests. If
    these fail, fewer choices come back.
    """

    def __init__(self, endpoint: Endpoint):
        from prm.io.endpoint_client import Connection

        self._connection, self._timeout = Connection(endpoint), endpoint.timeout
        self._at_once = 0  # choices that the server gives at once; 0 is any number
        self._trouble = ""

    def complete(self, body: Mapping[str, object], n: int) -> Completion:
        """See `Upstream`."""
        deadline = time.monotonic() + self._timeout
        found, error = self._ask(body, 0, n, deadline)
        if not found and n > 1 and error is not None and error.status in _OF_THE_REQUEST:
            found, error = self._ask(body, 0, 1, deadline)  # is it the number that the server refuses?
            self._at_once = 1 if found else self._at_once
        if not found:
            raise error or StatusError(502, "a completion without a choice")
        if error is None and (number := sum(len(one.choices) for one in found)) < n:
            found += self._ask(body, number, n - number, deadline)[0]
        counted = found if all(one.prompt_tokens for one in found) else []
        return Completion(
            found[0].model,
            [choice for one in found for choice in one.choices][:n],
            [text for one in found for text in one.texts][:n],
            sum(one.prompt_tokens for one in counted),
            sum(one.completion_tokens for one in counted),
        )

    def models(self) -> list[Json]:
        """See `Upstream`."""
        (content,) = self._contents("/models", [None], self._timeout)
        if isinstance(content, StatusError):
            raise content
        try:
            return [{**model, "id": str(model["id"])} for model in plain(json.loads(content))["data"]]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise StatusError(502, "the list of models cannot be read") from None

    def trouble(self) -> str:
        """See `Upstream`."""
        return self._trouble

    def probe(self) -> str:
        """Ask for the models, once; returns why the server does not answer, or refuses the key, or ""."""
        (content,) = self._contents("/models", [None], min(_PROBE_SECONDS, self._timeout))
        if isinstance(content, StatusError) and content.status in (401, 402, 403):
            return f"HTTP {content.status} {content}".rstrip()
        return self._trouble

    def close(self) -> None:
        """See `Upstream`."""
        self._connection.close()

    def _contents(self, path: str, bodies: Sequence[Json | None], timeout: float) -> list[bytes | StatusError]:
        """As of `Connection.ask`, and notes whether there was an answer."""
        contents = self._connection.ask(path, bodies, timeout)
        missing = [str(one) for one in contents if isinstance(one, StatusError) and one.status in _NO_ANSWER]
        self._trouble = missing[0] if len(missing) == len(contents) else ""
        return contents

    def _ask(
        self, body: Mapping[str, object], first: int, count: int, deadline: float
    ) -> tuple[list[Completion], StatusError | None]:
        """(what came back for choices `first` and on, an error if one of the requests failed)."""
        size = min(count, self._at_once or count)
        asked = [(k, min(size, first + count - k)) for k in range(first, first + count, size)]
        bodies = [_numbered(body, *one) for one in asked]
        found: list[Completion] = []
        error = None
        contents = self._contents("/chat/completions", bodies, max(0.0, deadline - time.monotonic()))
        for (_, number), content in zip(asked, contents, strict=True):
            if isinstance(content, StatusError):
                error = content
                continue
            try:
                one = _parsed(content)
            except UnreadableError as fault:
                error = StatusError(502, str(fault))
                continue
            found.append(one)
            if len(one.choices) < number:
                self._at_once = min(len(one.choices), self._at_once or len(one.choices))
        return found, error


class LocalModel:
    """A language model in this process, loaded when it is first asked; it writes for one request at a time.

    Args:
        name: a name, a folder, or a hub id.
        timeout: seconds for which a request waits for its turn.
    """

    def __init__(self, name: str = LOCAL_MODEL, timeout: float = 30.0):
        self.name, self._timeout = name, timeout
        self._turn, self._sampler = threading.Lock(), cast("Sampler | None", None)

    def complete(self, body: Mapping[str, object], n: int) -> Completion:
        """See `Upstream`. Raises `DataError` for a field that the model does not have."""
        if others := [name for name in body if name not in _LOCAL_FIELDS]:
            raise DataError(f"the embedded model has no {others[0]!r}: name a server with --upstream")
        if body.get("response_format") not in (None, {"type": "text"}):
            raise DataError("the embedded model has no 'response_format' but text: name a server with --upstream")
        if body.get("model") not in (None, self.name):
            raise StatusError(404, f"the model {shown(body['model'])} does not exist; there is {self.name!r}")
        sampling, stops = _sampling(body), _stops(body)
        if not self._turn.acquire(timeout=self._timeout):
            raise BusyError("other requests wait for the model")
        try:
            sampler = self._loaded()
            prompt = sampler.encode_prompt(parse_messages("messages", turns_of(body["messages"])))
            responses = sampler.generate([prompt], n, sampling)
            texts = sampler.decode(responses)
            ended = [sampler.has_ended(response) for response in responses]
        finally:
            self._turn.release()
        said = [_cut(text, stops) for text in texts]
        return Completion(
            self.name,
            [
                {
                    "index": i,
                    "message": {"role": "assistant", "content": text},
                    "logprobs": None,
                    "finish_reason": "stop" if ended[i] or text != texts[i] else "length",
                }
                for i, text in enumerate(said)
            ],
            said,
            len(prompt),
            sum(map(len, responses)),
        )

    def models(self) -> list[Json]:
        """See `Upstream`."""
        return [{"id": self.name, "object": "model", "created": 0, "owned_by": "rerank"}]

    def trouble(self) -> str:
        """See `Upstream`."""
        return ""

    def close(self) -> None:
        """See `Upstream`."""

    def _loaded(self) -> "Sampler":
        if self._sampler is None:
            from rerank.sampling.sampler import Sampler

            self._sampler = Sampler.from_pretrained(self.name)
        return self._sampler


def turns_of(messages: object) -> list[Json]:
    """Messages of a request with roles that every model knows."""
    assert isinstance(messages, list)
    return [
        {**message, "role": "system" if message["role"] == "developer" else message["role"]} for message in messages
    ]


def _numbered(body: Mapping[str, object], first: int, count: int) -> Json:
    """The body of a request for `count` choices; choice k has the seed `seed` + k, as in vLLM."""
    number: Json = {"n": count} if count > 1 else {}  # some servers do not know the field
    seed = body.get("seed")
    return {**body, **number} | ({"seed": seed + first} if isinstance(seed, int) else {})


def _parsed(content: bytes) -> Completion:
    """Raises `UnreadableError` for what is no completion."""
    replies = read_replies(content)
    completion = plain(json.loads(content))
    for choice in completion["choices"]:
        calls = choice["message"].get("tool_calls") or []
        if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
            raise UnreadableError("no answer: the tool calls of the completion are no list of objects")
    model = completion.get("model")
    return Completion(
        model if isinstance(model, str) else "",
        [dict(choice) for choice in completion["choices"]],
        [reply.text.strip() for reply in replies],
        replies[0].tokens_in,
        replies[0].tokens_out,
    )


def _sampling(body: Mapping[str, object]) -> Sampling:
    """Raises `PrmError` for a value out of its range."""
    default = Sampling()
    given = {name: value for name, value in body.items() if value is not None}
    tokens = given.get("max_completion_tokens", given.get("max_tokens", default.max_new_tokens))
    temperature = given.get("temperature", default.temperature)
    return Sampling(
        max_new_tokens=min(tokens, _MOST_LOCAL_TOKENS) if isinstance(tokens, int) else tokens,  # type: ignore[arg-type]
        temperature=_COLDEST if temperature == 0 else temperature,  # type: ignore[arg-type]
        top_p=given.get("top_p", default.top_p),  # type: ignore[arg-type]
        seed=given.get("seed", secrets.randbelow(2**63)),  # type: ignore[arg-type]
    )


def _stops(body: Mapping[str, object]) -> list[str]:
    """Raises `DataError` for what is no text."""
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) and text for text in stops[: _MOST_STOPS + 1]):
        raise DataError("'stop' must be text or a list of texts")
    if len(stops) > _MOST_STOPS:
        raise DataError(f"'stop' has {len(stops):,} texts; the embedded model takes {_MOST_STOPS}")
    return stops


def _cut(text: str, stops: Sequence[str]) -> str:
    """The text before the first of the stops."""
    return text[: min((place for stop in stops if (place := text.find(stop)) >= 0), default=len(text))].rstrip()

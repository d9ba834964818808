"""Responses of a model behind an OpenAI-compatible endpoint. Imports no torch."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING

from prm.data.comparison import as_messages
from prm.errors import PrmError, listed
from prm.io.endpoint import Endpoint, EndpointError, Reply, UnansweredError, UnreadableError
from prm.io.tables import plain
from rerank.sampling.config import Sampling
from rerank.sampling.generator import Drawn, Request, Response

if TYPE_CHECKING:
    from prm.io.progress import Bar

logger = logging.getLogger(__name__)

TIMEOUT = 300.0  # seconds for a request: n long responses of a large model take minutes
_PROMPTS_PER_WORKER = 4  # prompts that are sampled together, per request in flight
_CUT = ("length", "content_filter")  # finish reasons of a response that did not end by itself
_OURS = ("repetition_penalty", "no_repeat_ngram", "min_new_tokens")  # settings that the OpenAI API does not have


class EndpointGenerator:
    """Samples responses from a model behind an endpoint, which knows no users: neither ids nor texts are sent.

    A request asks for n choices. A server that gives fewer, or refuses n above 1, is asked again for the rest. Choice k
    has the seed `sampling.seed` + k, as in vLLM, however many choices come at once.

    Raises `PrmError` for settings that the OpenAI API does not have.
    """

    knows_users = False

    def __init__(self, endpoint: Endpoint, sampling: Sampling):
        default = Sampling()
        if changed := [name for name in _OURS if getattr(sampling, name) != getattr(default, name)]:
            raise PrmError(
                f"sampling.{changed[0]}: the OpenAI API has no such setting; pass the server's own name for it in the "
                "endpoint's options (--generator_options)"
            )
        self.endpoint, self._at_once = endpoint, 0  # choices that the server gives at once; 0 is any number
        self._fields: dict[str, object] = {
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
        }
        self._seed, self._warned = sampling.seed, False

    @cached_property
    def model(self) -> str:
        """The model's name: the endpoint's, or that of the only model that the server has.

        Raises `EndpointError` if it has several.
        """
        if self.endpoint.model:
            return self.endpoint.model
        from prm.io.endpoint_client import model_names

        names = model_names(self.endpoint)
        if len(names) != 1:
            raise EndpointError(
                f"{self.endpoint.url} has {len(names)} models{': ' + listed(names) if names else ''}; name one of them "
                "(--generator_model)"
            )
        return names[0]

    def check(self, request: Request) -> None:
        """Do nothing: only the server knows what fits."""

    def sample(self, requests: Iterable[Request], n: int) -> Iterator[Drawn]:
        """Yield n responses to each request, in order, or the server's reason why it has none.

        Raises `EndpointError` if the endpoint refuses the key or the model, or does not answer.
        """
        from prm.io.progress import progress

        remaining = iter(requests)
        while part := list(islice(remaining, _PROMPTS_PER_WORKER * self.endpoint.concurrency)):
            pools = [_Pool(request, n) for request in part]
            with progress(total=n * len(part), desc=f"sampling {n * len(part)} responses", unit="response") as bar:
                while self._ask(pools, bar):
                    pass
            if any(pool.all_equal for pool in pools) and not self._warned:
                self._warned = True
                what = "warning: %s: all %d responses to a prompt are equal: does the server mind temperature and seed?"
                logger.warning(what, self.endpoint.url, n)
            yield from (pool.drawn() for pool in pools)

    def _ask(self, pools: list["_Pool"], bar: "Bar") -> bool:
        """Ask once for what is missing; false if nothing is."""
        from prm.io.endpoint_client import ask_all  # an extra, and slow to import

        asked = {
            f"{i} {first}": (pool, first, count)
            for i, pool in enumerate(pools)
            for first, count in pool.missing(self._at_once)
        }

        def keep(key: str, replies: list[Reply]) -> None:
            pool, first, count = asked[key]
            bar.update(pool.add(first, replies[:count]))
            if len(replies) < count or pool.singly:
                self._at_once = min(len(replies), self._at_once or len(replies))

        def failed(key: str, error: UnansweredError) -> None:
            pool, first, count = asked[key]
            if not pool.tries_again(first, count, error, self.endpoint.max_retries):
                fault = f"{self.endpoint.url}: {error}"
                if not (error.own or isinstance(error, UnreadableError)):
                    raise EndpointError(fault)  # the server is down, or too busy for more requests
                pool.error = PrmError(fault)

        if asked:
            ask_all(self.endpoint, {key: self._body(*request) for key, request in asked.items()}, keep, failed)
        return bool(asked)

    def _body(self, pool: "_Pool", first: int, count: int) -> dict[str, object]:
        messages = [{"role": m.role, "content": m.content} for m in as_messages(pool.request.prompt)]
        number = {"n": count} if count > 1 else {}  # some servers do not know the field
        fields = self._fields | {"seed": self._seed + first} | dict(self.endpoint.options or {})
        given = {name: value for name, value in fields.items() if value is not None}
        return {"model": self.model, "messages": plain(messages), **number, **given}


class _Pool:
    """The n choices of one request, by number, as they arrive.

    `singly`: the server refused a request for several; `error`: why there will be none.
    """

    def __init__(self, request: Request, n: int):
        self.request, self.singly, self.error = request, False, None if n > 0 else PrmError("n must be at least 1")
        self._n, self._responses, self._failures = n, dict[int, Response](), Counter[int]()

    def missing(self, at_once: int) -> list[tuple[int, int]]:
        """(first number, how many) of each request for what is missing, `at_once` choices each (0: any number)."""
        if self.error is not None:
            return []
        numbers = [k for k in range(self._n) if k not in self._responses]
        size = 1 if self.singly else at_once or self._n
        runs: list[list[int]] = []
        for k in numbers:
            if runs and runs[-1][-1] == k - 1 and len(runs[-1]) < size:
                runs[-1].append(k)
            else:
                runs.append([k])
        if self.singly and not self._responses:
            del runs[1:]  # whether it is the number or the prompt that the server refuses shows in one
        return [(run[0], len(run)) for run in runs]

    def add(self, first: int, replies: list[Reply]) -> int:
        """Add consecutive choices; returns their number."""
        for k, reply in enumerate(replies, start=first):
            ended = reply.finish not in _CUT if reply.finish else None
            self._responses[k] = Response(reply.text.strip(), ended)
        return len(replies)

    def tries_again(self, first: int, count: int, error: UnansweredError, max_retries: int) -> bool:
        """Whether a request that failed is worth another one."""
        if error.own and count > 1:
            self.singly = True
            return True
        self._failures[first] += 1
        return isinstance(error, UnreadableError) and self._failures[first] <= max_retries

    @property
    def all_equal(self) -> bool:
        """Whether several choices have one text."""
        return len(self._responses) > 1 and len({response.text for response in self._responses.values()}) == 1

    def drawn(self) -> Drawn:
        """The choices in the order of their numbers, or the error."""
        return self.error or [self._responses[k] for k in range(self._n)]

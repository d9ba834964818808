"""A language model behind an OpenAI-compatible endpoint, used as a judge."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from policy.judging.judges.cache import ReplyCache, request_key
from policy.judging.judges.duels import Duel, JudgedDuels
from policy.judging.judges.prism import prism_question, read_result
from policy.judging.judges.prompts import Verdict, read_verdict, role_play
from prm.data.comparison import prompt_key
from prm.errors import PrmError
from prm.io.endpoint import Endpoint, EndpointError, Reply, UnansweredError
from prm.io.progress import progress
from prm.io.tables import plain
from prm.report import show

_BYTES_PER_TOKEN = 4  # roughly, for English and, with its longer UTF-8 codes, for other scripts
_MAX_CONSECUTIVE_FAILURES = 10  # after these the endpoint is assumed to be down
_OPTIONS: Mapping[str, object] = {"temperature": 0, "max_tokens": 512}  # of a request, unless the endpoint has its own

Bodies = dict[str, Mapping[str, object]]  # request bodies by key


@dataclass(frozen=True)
class Protocol:
    """How a language model judges.

    Args:
        question: the chat messages for a duel; response A is its first one.
        read_verdict: the verdict of a reply, or `None`.
        both_orders: ask in both orders of the responses; otherwise once, in an order that the seed draws.
    """

    question: Callable[[Duel], list[dict[str, str]]]
    read_verdict: Callable[[str], Verdict | None]
    both_orders: bool = True


ROLE_PLAY = Protocol(role_play, read_verdict)
PRISM = Protocol(prism_question, read_result, both_orders=False)  # the paper's Table 2


class _Request(NamedTuple):
    """A request; with `swapped`, response A is the second one of the duel."""

    key: str
    body: Mapping[str, object]
    swapped: bool


@dataclass(frozen=True)
class Cost:
    """An estimate of what judging costs.

    Args:
        calls: requests to send, without retries.
        cached: requests whose replies are in the cache.
        tokens_in: tokens of the requests, estimated from their length.
        tokens_out: maximum tokens of the replies; `None` if the endpoint's options set no limit.
        price: maximum price of both; `None` without prices or without a limit.
    """

    calls: int
    cached: int
    tokens_in: int
    tokens_out: int | None
    price: float | None

    def __str__(self) -> str:
        out = "any number of" if self.tokens_out is None else f"at most {self.tokens_out:,}"
        tokens = f"about {self.tokens_in:,} tokens of requests and {out} tokens of replies"
        price = "no prices given" if self.price is None else f"at most about {self.price:,.2f}"
        return f"judging: {self.calls:,} calls ({self.cached:,} replies are cached), {tokens}; {price}"


class LLMJudge:
    """Asks a model to role-play the user, in both orders of the responses; if the verdicts disagree, it is a tie.

    A protocol may ask in one order; the notes then count how often the response that was shown first won. Prints its
    cost first. Equal responses tie without a request. A duel is not judged if a reply fails, refuses or states no
    verdict; the notes of the result count these, and are printed.

    Args:
        endpoint: the model's endpoint.
        cache: JSON Lines file of replies, from which a killed run is resumed.
        protocol: what is asked.
        seed: of the order of the responses if a protocol asks in one.
    """

    def __init__(self, endpoint: Endpoint, cache: str | Path, protocol: Protocol = ROLE_PLAY, seed: int = 0):
        if not endpoint.model:
            raise PrmError(f"{endpoint.url}: name the model that judges")
        self.endpoint, self._options = endpoint, _OPTIONS if endpoint.options is None else endpoint.options
        self.cache = ReplyCache(cache)
        self.protocol, self.seed = protocol, seed

    def cost(self, duels: Sequence[Duel]) -> Cost:
        """The cost of judging these duels, given the cache."""
        return self._cost(_bodies(self._requests(duels)))

    def __call__(self, duels: Sequence[Duel]) -> JudgedDuels:
        """Judge the duels. Raises `PrmError` if the endpoint refuses the key or the model, or seems to be down."""
        requests = self._requests(duels)
        bodies = _bodies(requests)
        show(str(self._cost(bodies)))
        failures = self._ask({key: body for key, body in bodies.items() if key not in self.cache})
        judged = self._judged(requests, failures)
        show(*judged.notes())
        return judged

    def _requests(self, duels: Sequence[Duel]) -> list[list[_Request]]:
        """The requests of each duel, in both orders the given one first; none for equal responses."""
        requests = []
        for duel in duels:
            both = [self._request(duel, swapped) for swapped in (False, True)]
            if both[0].key == both[1].key:  # equal responses
                both = []
            elif not self.protocol.both_orders:
                both = [both[_is_swapped(duel, self.seed)]]
            requests.append(both)
        return requests

    def _request(self, duel: Duel, swapped: bool) -> _Request:
        asked = replace(duel, first=duel.second, second=duel.first) if swapped else duel
        messages = plain(self.protocol.question(asked))  # half a surrogate pair cannot be sent
        body = {"model": self.endpoint.model, "messages": messages, **self._options}
        return _Request(request_key(self.endpoint.url, body), body, swapped)

    def _cost(self, bodies: Bodies) -> Cost:
        uncached = [body for key, body in bodies.items() if key not in self.cache]
        texts = (message["content"] for body in uncached for message in _messages(body))
        tokens_in = sum(len(text.encode()) for text in texts) // _BYTES_PER_TOKEN
        limit = self._options.get("max_tokens", self._options.get("max_completion_tokens"))
        tokens_out = limit * len(uncached) if isinstance(limit, int) else None
        price_in, price_out = self.endpoint.price_in, self.endpoint.price_out
        price = None
        if price_in is not None and price_out is not None and tokens_out is not None:
            price = (tokens_in * price_in + tokens_out * price_out) / 1e6
        return Cost(len(uncached), len(bodies) - len(uncached), tokens_in, tokens_out, price)

    def _ask(self, bodies: Bodies) -> dict[str, str]:
        """Send the requests and cache the replies; returns the reasons of failures by key."""
        failures: dict[str, str] = {}
        if not bodies:
            return failures
        from prm.io.endpoint_client import ask_all  # an extra, and slow to import

        answered = consecutive = 0
        with progress(total=len(bodies), desc="judging", unit="call") as bar:

            def keep(key: str, replies: list[Reply]) -> None:
                nonlocal answered, consecutive
                if replies[0].is_empty:
                    failed(key, UnansweredError("no answer: an empty completion"))
                    return
                self.cache.add(key, replies[0])
                answered, consecutive = answered + 1, 0
                bar.update()

            def failed(key: str, failure: UnansweredError) -> None:
                nonlocal consecutive
                failures[key] = str(failure)
                consecutive += 1
                bar.update()
                if consecutive >= _MAX_CONSECUTIVE_FAILURES and not (failure.own and answered):
                    raise EndpointError(
                        f"{self.endpoint.url}: {consecutive} requests in a row failed, the last with: {failure}; "
                        f"replies are kept in {self.cache.path}: repeat the call to resume"
                    )

            ask_all(self.endpoint, bodies, keep, failed)
        return failures

    def _judged(self, requests: Sequence[Sequence[_Request]], failures: Mapping[str, str]) -> JudgedDuels:
        scores = np.full(len(requests), np.nan)
        unjudged, disagreed, of_a = {}, [], list[float]()
        for i, asked in enumerate(requests):
            if not asked:
                scores[i] = 0.5
                continue
            verdicts = [self._verdict(request.key, failures) for request in asked]
            if reasons := [reason for _, reason in verdicts if reason]:
                unjudged[i] = reasons[0]
                continue
            of_a += [score for score, _ in verdicts]
            found = {1.0 - score if r.swapped else score for r, (score, _) in zip(asked, verdicts, strict=True)}
            if len(found) > 1:
                disagreed.append(i)
            scores[i] = 0.5 if len(found) > 1 else found.pop()
        remarks = [] if self.protocol.both_orders else _position(of_a, self.seed)
        return JudgedDuels(scores, unjudged, disagreed, remarks)

    def _verdict(self, key: str, failures: Mapping[str, str]) -> tuple[float, str]:
        """(score of response A, "") of a reply, or (NaN, reason)."""
        if key in failures:
            return float("nan"), failures[key]
        reply = self.cache[key]
        verdict = self.protocol.read_verdict(reply.text)
        if verdict is not None:
            return {"A": 1.0, "TIE": 0.5, "B": 0.0}[verdict], ""
        if reply.refusal:
            return float("nan"), f"refused: {reply.refusal}"
        if reply.finish == "length":
            return float("nan"), "cut off before a verdict: raise the token limit in the endpoint's options"
        return float("nan"), f"no verdict: {' '.join(reply.text.split())[-100:] or reply.finish}"


def _messages(body: Mapping[str, object]) -> list[dict[str, str]]:
    """The messages of a request that `LLMJudge` made."""
    messages = body["messages"]
    assert isinstance(messages, list)
    return messages


def _bodies(requests: Sequence[Sequence[_Request]]) -> Bodies:
    return {request.key: request.body for asked in requests for request in asked}


def _is_swapped(duel: Duel, seed: int) -> bool:
    """Whether the second response is shown first: a fair coin by user and prompt, whatever else is judged."""
    digest = hashlib.sha256(f"{seed}\x00{duel.user_id}\x00{prompt_key(duel.prompt)}".encode(errors="replace"))
    return bool(digest.digest()[0] & 1)


def _position(of_a: Sequence[float], seed: int) -> list[str]:
    """A sentence on how often the response that was shown first won, given the scores of response A."""
    decided = [score for score in of_a if score != 0.5]
    if not decided:
        return []
    won = f"the response that was shown first won {sum(decided):.0f} of {len(decided)} verdicts without ties"
    return [f"{won}; each duel was asked in one order, drawn by seed {seed}"]

"""A language model behind an OpenAI-compatible endpoint, used as a judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from policy.judging.judges.cache import ReplyCache, request_key
from policy.judging.judges.duels import Duel, JudgedDuels
from policy.judging.judges.prompts import read_verdict, role_play
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

    Prints its cost first. Equal responses tie without a request. A duel is not judged if a reply fails, refuses or
    states no verdict; the notes of the result count these, and are printed.

    Args:
        endpoint: the model's endpoint.
        cache: JSON Lines file of replies, from which a killed run is resumed.
    """

    def __init__(self, endpoint: Endpoint, cache: str | Path):
        if not endpoint.model:
            raise PrmError(f"{endpoint.url}: name the model that judges")
        self.endpoint, self._options = endpoint, _OPTIONS if endpoint.options is None else endpoint.options
        self.cache = ReplyCache(cache)

    def cost(self, duels: Sequence[Duel]) -> Cost:
        """The cost of judging these duels, given the cache."""
        bodies = {key: body for requests in self._requests(duels) for key, body in requests.items()}
        return self._cost(bodies)

    def __call__(self, duels: Sequence[Duel]) -> JudgedDuels:
        """Judge the duels. Raises `PrmError` if the endpoint refuses the key or the model, or seems to be down."""
        requests = self._requests(duels)
        bodies = {key: body for both in requests for key, body in both.items()}
        show(str(self._cost(bodies)))
        failures = self._ask({key: body for key, body in bodies.items() if key not in self.cache})
        judged = self._judged([list(both) for both in requests], failures)
        show(*judged.notes())
        return judged

    def _requests(self, duels: Sequence[Duel]) -> list[Bodies]:
        """The requests of each duel in both orders, the given one first; none for equal responses."""
        both = [{**self._request(duel), **self._request(_swapped(duel))} for duel in duels]
        return [bodies if len(bodies) == 2 else {} for bodies in both]  # equal responses: both requests have one key

    def _request(self, duel: Duel) -> Bodies:
        messages = plain(role_play(duel))  # half a surrogate pair cannot be sent
        body = {"model": self.endpoint.model, "messages": messages, **self._options}
        return {request_key(self.endpoint.url, body): body}

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

    def _judged(self, requests: Sequence[Sequence[str]], failures: Mapping[str, str]) -> JudgedDuels:
        scores = np.full(len(requests), np.nan)
        unjudged, disagreed = {}, []
        for i, keys in enumerate(requests):
            if not keys:
                scores[i] = 0.5
                continue
            verdicts = [self._verdict(key, failures) for key in keys]
            if reasons := [reason for _, reason in verdicts if reason]:
                unjudged[i] = reasons[0]
                continue
            first, swapped = verdicts[0][0], 1.0 - verdicts[1][0]
            scores[i] = first if first == swapped else 0.5
            if first != swapped:
                disagreed.append(i)
        return JudgedDuels(scores, unjudged, disagreed)

    def _verdict(self, key: str, failures: Mapping[str, str]) -> tuple[float, str]:
        """(score of response A, "") of a reply, or (NaN, reason)."""
        if key in failures:
            return float("nan"), failures[key]
        reply = self.cache[key]
        verdict = read_verdict(reply.text)
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


def _swapped(duel: Duel) -> Duel:
    return replace(duel, first=duel.second, second=duel.first)

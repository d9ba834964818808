"""A language model behind an OpenAI-compatible endpoint, as judge."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from policy.judging.judges.cache import ReplyCache, request_key
from policy.judging.judges.duels import Duel, JudgedDuels
from policy.judging.judges.endpoint import Endpoint, EndpointError, Reply, UnansweredError
from policy.judging.judges.prompts import read_verdict, role_play
from prm.errors import PrmError
from prm.io.progress import progress
from prm.io.tables import plain
from prm.report import show

_BYTES_A_TOKEN = 4  # of English, roughly; scripts with long UTF-8 codes have about as many tokens for their bytes
_IN_A_ROW = 10  # failures without an answer between them, after which an endpoint is taken to be down

Bodies = dict[str, dict[str, Any]]  # request bodies by key


@dataclass(frozen=True)
class Cost:
    """What judging takes, before it starts.

    Args:
        calls: questions to be sent; those among them that failed are sent again.
        cached: questions whose replies are there already.
        tokens_in: of the questions, estimated from their length.
        tokens_out: of the replies, at most; `None` where the endpoint's options set no limit.
        price: of both, at most; `None` where prices or the limit are not given.
    """

    calls: int
    cached: int
    tokens_in: int
    tokens_out: int | None
    price: float | None

    def __str__(self) -> str:
        out = "any number of" if self.tokens_out is None else f"at most {self.tokens_out:,}"
        tokens = f"about {self.tokens_in:,} tokens of questions and {out} tokens of replies"
        price = "no prices given" if self.price is None else f"at most about {self.price:,.2f}"
        return f"judging: {self.calls:,} calls ({self.cached:,} replies are cached), {tokens}; {price}"


class LLMJudge:
    """Plays the person, and is asked twice, with the answers in either order: if that changes the verdict, it is a tie.

    Its cost is printed before it starts. Equal answers tie without a question. A duel is not judged where a reply
    fails, refuses, or states no verdict; the notes of what it returns count these, and are printed.

    Args:
        endpoint: where the model answers.
        cache: JSON Lines file of replies; a run that was killed goes on from it.
    """

    def __init__(self, endpoint: Endpoint, cache: str | Path):
        self.endpoint = endpoint
        self.cache = ReplyCache(cache)

    def cost(self, duels: Sequence[Duel]) -> Cost:
        """What judging these duels takes, given what is cached."""
        bodies = {key: body for asked in self._questions(duels) for key, body in asked.items()}
        return self._cost(bodies)

    def __call__(self, duels: Sequence[Duel]) -> JudgedDuels:
        """The verdicts. Raises `PrmError` where the endpoint refuses the key or the model, or seems to be down."""
        asked = self._questions(duels)
        bodies = {key: body for questions in asked for key, body in questions.items()}
        show(str(self._cost(bodies)))
        failures = self._ask({key: body for key, body in bodies.items() if key not in self.cache})
        judged = self._judged([list(questions) for questions in asked], failures)
        show(*judged.notes())
        return judged

    def _questions(self, duels: Sequence[Duel]) -> list[Bodies]:
        """Both orders' requests of each duel, the given order first; none for equal answers."""
        found = [{**self._question(duel), **self._question(_swapped(duel))} for duel in duels]
        return [bodies if len(bodies) == 2 else {} for bodies in found]  # equal answers ask the same in either order

    def _question(self, duel: Duel) -> Bodies:
        messages = plain(role_play(duel))  # half a surrogate pair cannot be sent
        body = {"model": self.endpoint.model, "messages": messages, **self.endpoint.options}
        return {request_key(self.endpoint.url, body): body}

    def _cost(self, bodies: Bodies) -> Cost:
        open_ones = [body for key, body in bodies.items() if key not in self.cache]
        texts = (message["content"] for body in open_ones for message in body["messages"])
        tokens_in = sum(len(text.encode()) for text in texts) // _BYTES_A_TOKEN
        options = self.endpoint.options
        limit = options.get("max_tokens", options.get("max_completion_tokens"))
        tokens_out = None if limit is None else limit * len(open_ones)
        price_in, price_out = self.endpoint.price_in, self.endpoint.price_out
        price = None
        if price_in is not None and price_out is not None and tokens_out is not None:
            price = (tokens_in * price_in + tokens_out * price_out) / 1e6
        return Cost(len(open_ones), len(bodies) - len(open_ones), tokens_in, tokens_out, price)

    def _ask(self, bodies: Bodies) -> dict[str, str]:
        """Send the requests and cache the replies; why some failed, by key."""
        failures: dict[str, str] = {}
        if not bodies:
            return failures
        ask_all = _client()
        answered = in_a_row = 0
        with progress(total=len(bodies), desc="judging", unit="call") as bar:

            def keep(key: str, reply: Reply) -> None:
                nonlocal answered, in_a_row
                self.cache.add(key, reply)
                answered, in_a_row = answered + 1, 0
                bar.update()

            def failed(key: str, failure: UnansweredError) -> None:
                nonlocal in_a_row
                failures[key] = str(failure)
                in_a_row += 1
                bar.update()
                if in_a_row >= _IN_A_ROW and not (failure.own and answered):
                    raise EndpointError(
                        f"{self.endpoint.url}: {in_a_row} questions in a row failed, the last with: {failure}; what "
                        f"was answered is in {self.cache.path}, and the same call goes on from there"
                    )

            ask_all(self.endpoint, bodies, keep, failed)
        return failures

    def _judged(self, asked: Sequence[Sequence[str]], failures: Mapping[str, str]) -> JudgedDuels:
        scores = np.full(len(asked), np.nan)
        unjudged, disagreed = {}, []
        for i, keys in enumerate(asked):
            if not keys:
                scores[i] = 0.5
                continue
            found = [self._verdict(key, failures) for key in keys]
            if reasons := [reason for _, reason in found if reason]:
                unjudged[i] = reasons[0]
                continue
            given, swapped = found[0][0], 1.0 - found[1][0]
            scores[i] = given if given == swapped else 0.5
            if given != swapped:
                disagreed.append(i)
        return JudgedDuels(scores, unjudged, disagreed)

    def _verdict(self, key: str, failures: Mapping[str, str]) -> tuple[float, str]:
        """(score of answer A, "") of a reply, or (NaN, why there is none)."""
        if key in failures:
            return float("nan"), failures[key]
        reply = self.cache[key]
        verdict = read_verdict(reply.text)
        if verdict is not None:
            return {"A": 1.0, "TIE": 0.5, "B": 0.0}[verdict], ""
        if reply.refusal:
            return float("nan"), f"refused: {reply.refusal}"
        if reply.finish == "length":
            return float("nan"), "cut off before a verdict: raise the limit of tokens in the endpoint's options"
        return float("nan"), f"no verdict: {' '.join(reply.text.split())[-100:] or reply.finish}"


def _client() -> Callable[..., None]:
    """`client.ask_all`. Raises `PrmError` where the extra `judge` is not installed."""
    try:
        from policy.judging.judges.client import ask_all
    except ModuleNotFoundError as error:
        if error.name not in ("openai", "httpx2", "anyio"):
            raise
        raise PrmError(
            "a language model as judge is asked through the openai client: pip install 'personalized-rm[judge]'"
        ) from None
    return ask_all


def _swapped(duel: Duel) -> Duel:
    return replace(duel, first=duel.second, second=duel.first)

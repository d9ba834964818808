"""Rank requests: score the candidates, and rank them by the chosen strategy."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from prm.data.comparison import Prompt
from prm.errors import PrmError
from prm.scoring.scorer import Scorer
from prm.scoring.text_reader import TextReader
from rerank.ranking.strategies import Ranked, cautious, pessimistic, plackett_luce, rank, regularised, soft
from rerank.ranking.strategy_flag import Strategy
from rerank.sampling.generator import Request, Response
from rerank.sampling.sampler import Sampler

BY_REWARDS = ("best", "soft")  # strategies that need nothing else
REPLACED = ("responses", "ranking")  # columns that a ranking takes the place of


class Ranking(NamedTuple):
    """Candidates, best first, with the rewards and reported scores, float [n], in the order of the input.

    Without a value of its own, a strategy's score is the reward.
    """

    candidates: list[Ranked]
    rewards: Tensor
    scores: Tensor


class Texts(NamedTuple):
    """Texts of responses, [n] each: the text, how often it was sampled, and whether it ended."""

    texts: list[str]
    times: list[int]
    ended: list[bool | None]


def distinct_responses(responses: Iterable[Response], reader: TextReader) -> Texts:
    """The different texts that can be scored, in order. Raises `PrmError` if there is none."""
    times, ended, empty = dict[str, int](), dict[str, bool | None](), list[Response]()
    for response in responses:
        if not reader.has_tokens(response.text):
            empty.append(response)
            continue
        times[response.text] = times.get(response.text, 0) + 1
        ended[response.text] = ended.get(response.text) or response.ended
    if not times:
        cut = bool(empty) and all(response.ended is False for response in empty)
        hint = "all were cut: raise sampling.max_new_tokens" if cut else "try another prompt or a higher temperature"
        raise PrmError(f"every sampled response is empty; {hint}")
    return Texts(list(times), list(times.values()), [ended[text] for text in times])


def _as_given(responses: Sequence[Response]) -> Texts:
    times = Counter(response.text for response in responses)
    return Texts([r.text for r in responses], [times[r.text] for r in responses], [r.ended for r in responses])


class Ranker:
    """Ranks responses for users.

    Args:
        seed: of the `soft` strategy's draw.
        sampler: gives the log-probabilities for `regularised`.
    """

    def __init__(self, scorer: Scorer, strategy: Strategy, seed: int = 0, sampler: Sampler | None = None):
        self._scorer, self._strategy, self._seed, self._sampler = scorer, strategy, seed, sampler

    def answer(self, request: Request, sampled: Sequence[Response] = ()) -> dict[str, object]:
        """Return the request's row with `known_user` and `ranking`: best first, each with its reward.

        An entry also has the strategy's value, if it is another one, and `ended`, if it is known.

        Raises `PrmError` if the request cannot be served.

        Args:
            sampled: responses to a request without any; equal ones become one, empty ones are left out.
        """
        given = request.responses
        texts, times, ended = _as_given(given) if given else distinct_responses(sampled, self._scorer.reader)
        ranked = self.rank(request.prompt, texts, request.user, request.user_text, times)
        return answer_row(request.row, ranked, ended, self._strategy, self._scorer.knows(request.user))

    def rank(
        self,
        prompt: Prompt,
        texts: list[str],
        user: str | None = None,
        user_text: str = "",
        times: Sequence[int] | None = None,
    ) -> Ranking:
        """Rank n candidates. `times`: how often each was sampled, [n]; once if left out. Raises as `answer` does."""
        rewards = self._scorer.score(prompt, texts, user, user_text)
        counts = torch.ones(len(texts)) if times is None else torch.tensor(times)
        ranked_by, scores = self._values(prompt, texts, user, user_text, rewards, counts)
        return Ranking(rank(texts, ranked_by), rewards, scores)

    def _values(
        self, prompt: Prompt, texts: list[str], user: str | None, user_text: str, rewards: Tensor, times: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(values to rank candidates by, values to report), each [n]."""
        name, parameter = self._strategy.name, self._strategy.parameter
        if name in BY_REWARDS:
            return values_of(self._strategy, rewards, times, self._seed)
        scores = rewards
        if name == "regularised":
            assert self._sampler is not None
            scores = regularised(rewards, self._sampler.logps(prompt, texts, user, user_text), parameter)
        elif name == "pessimistic":
            scores = pessimistic(*self._scorer.score(prompt, texts, user, user_text, return_std=True), parameter)
        elif name == "cautious":
            scores = cautious(self._scorer.gains(prompt, texts, user, user_text), parameter)
        return scores, scores


def values_of(strategy: Strategy, rewards: Tensor, times: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """(values to rank candidates by, values to report), [n] each, by a strategy of `BY_REWARDS`."""
    if strategy.name == "best":
        return rewards, rewards
    probabilities = soft(rewards, strategy.parameter, times)
    return plackett_luce(probabilities, seed), probabilities


def rank_rewards(responses: Sequence[Response], rewards: Tensor, strategy: Strategy, seed: int) -> Ranking:
    """Given responses ranked by rewards [n] that are known, by a strategy of `BY_REWARDS`."""
    texts, times, _ = _as_given(responses)
    ranked_by, scores = values_of(strategy, rewards, torch.tensor(times), seed)
    return Ranking(rank(texts, ranked_by), rewards, scores)


def answer_row(
    row: Mapping[str, object], ranked: Ranking, ended: Sequence[bool | None], strategy: Strategy, known: bool
) -> dict[str, object]:
    """A request's row with `known_user` and `ranking`, as of `Ranker.answer`; `ended` is in the order of the input."""
    ranking: list[dict[str, object]] = []
    for index, text, _ in ranked.candidates:
        extra: dict[str, object] = {}
        if strategy.score_name:
            extra[strategy.score_name] = float(ranked.scores[index])
        if ended[index] is not None:
            extra["ended"] = ended[index]
        ranking.append({"text": text, "reward": float(ranked.rewards[index])} | extra)
    rest = {key: value for key, value in row.items() if key not in REPLACED}
    return rest | {"known_user": known, "ranking": ranking}

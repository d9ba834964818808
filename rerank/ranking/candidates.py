"""Candidates for users: sampled, and their hidden states handed to the reward model if it shares the backbone."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from torch import Tensor

from prm.data.comparison import Prompt, PromptLike
from prm.errors import PrmError
from prm.io.progress import progress
from prm.metrics import Array
from prm.models.reward_model import RewardModel
from prm.scoring.scorer import Scorer
from rerank.sampling.config import Sampling
from rerank.sampling.generator import Drawn, Generator, Request, Response, require_responses
from rerank.sampling.hidden_states import ResponseStates, same_weights
from rerank.sampling.sampler import Sampler


class Candidates:
    """Samples responses for a scorer.

    If the scorer has linear heads on the generator's own frozen backbone, the hidden states computed while sampling
    are reused, and scoring costs nothing. A response whose text tokenises differently from its sampled ids is
    encoded again.
    """

    def __init__(self, sampler: Sampler, scorer: Scorer):
        self._sampler, self._scorer = sampler, scorer
        self._same = same_weights(sampler.policy, scorer.model)

    def sample(
        self, prompt: PromptLike, n: int, sampling: Sampling, user: str | None = None, user_text: str = ""
    ) -> list[str]:
        """Sample n responses, the same as `Sampler.sample`."""
        return self._sampler.decode(self.generate(prompt, n, sampling, user, user_text))

    def generate(
        self, prompt: PromptLike, n: int, sampling: Sampling, user: str | None = None, user_text: str = ""
    ) -> list[list[int]]:
        """Sample the ids of n responses, as `Sampler.generate` does."""
        sampler, scorer = self._sampler, self._scorer
        prompt_ids, end_ids = sampler.encode_prompt(prompt, user, user_text), scorer.encoder.end_ids
        fits = len(prompt_ids) + sampling.max_new_tokens + len(end_ids) <= sampler.window
        if not (self._same and fits and n > 0):
            return sampler.generate([prompt_ids], n, sampling)
        states = ResponseStates(sampler.policy, cast(RewardModel, scorer.model), n, end_ids, sampler.end_ids)
        drawn = sampler.generate([prompt_ids], n, sampling, states)
        texts = sampler.decode(drawn)
        reader = scorer.reader
        scorable = {
            i: reader.encode(prompt, text, user_text) for i, text in enumerate(texts) if reader.has_tokens(text)
        }
        reusable = [i for i, text in scorable.items() if text.ids == [*prompt_ids, *states.own(drawn[i]), *end_ids]]
        reader.reuse([scorable[i] for i in reusable], states.pooled()[reusable])
        return drawn


class LocalGenerator:
    """A `Generator` of a sampler, which hands hidden states to the scorer where it can: see `Candidates`."""

    def __init__(self, sampler: Sampler, scorer: Scorer, sampling: Sampling):
        self.sampler, self._sampling = sampler, sampling
        self._candidates = Candidates(sampler, scorer)

    @property
    def knows_users(self) -> bool:
        """Whether the policy has user parameters."""
        return self.sampler.policy.user_tokens > 0

    def check(self, request: Request) -> None:
        """Raise `DataError`, starting with the request's location, if the prompt leaves no room for a response."""
        self.sampler.check(request.location, request.prompt, self._sampling, request.user, request.user_text)

    def sample(self, requests: Iterable[Request], n: int) -> Iterator[Drawn]:
        """Yield n responses to each request. The scorer knows those of the last one: score them first."""
        for request in requests:
            try:
                ids = self._candidates.generate(request.prompt, n, self._sampling, request.user, request.user_text)
            except PrmError as error:
                yield error
                continue
            ended = [self.sampler.has_ended(response) for response in ids]
            yield [Response(*pair) for pair in zip(self.sampler.decode(ids), ended, strict=True)]


@dataclass(frozen=True)
class Pool:
    """Responses to one prompt for one user, with their rewards.

    Args:
        texts: the sampled responses, [n]; some may be equal, some empty.
        personal: rewards for the user, [n]; an empty response, which cannot be scored, gets the pool's lowest.
        generic: rewards for the generic user, [n].
        gold: rewards of the judge, another reward model, for the user, [n].
        uniform: rewards of the tuned uniform model, [n]; `None` if there is none.
    """

    user: str
    prompt: Prompt
    texts: tuple[str, ...]
    personal: Array
    generic: Array
    gold: Array
    uniform: Array | None = None

    def to_row(self) -> dict[str, object]:
        """Return a JSON-ready dict."""
        columns = {"personal": self.personal, "generic": self.generic, "uniform": self.uniform, "gold": self.gold}
        rewards = {name: column.tolist() for name, column in columns.items() if column is not None}
        rows = zip(self.texts, *rewards.values(), strict=True)
        prompt = self.prompt if isinstance(self.prompt, str) else [m._asdict() for m in self.prompt]
        return {"user_id": self.user, "prompt": prompt, "responses": [dict(zip(("text", *rewards), r)) for r in rows]}


def collect(
    generator: Generator,
    scorer: Scorer,
    gold: Scorer,
    prompts: Sequence[Prompt],
    users: Sequence[str],
    n: int,
    uniform: Scorer | None = None,
) -> list[list[Pool]]:
    """For each prompt, sample a pool of n responses per user; skip prompts for which a user's responses are all empty.

    A generator that does not know users samples one pool per prompt for all of them. Raises as the generator does.

    Args:
        uniform: a model of the scorer's own backbone without users, whose rewards are wanted, too.
    """
    groups: list[Sequence[str]] = [[user] for user in users] if generator.knows_users else [users]
    requests = (Request(p, group[0] if generator.knows_users else None) for p in prompts for group in groups)
    sampled, pools = generator.sample(requests, n), []
    for prompt in progress(prompts, desc="best of n", unit="prompt"):
        row = []
        for group in groups:
            texts = [response.text for response in require_responses(next(sampled))]
            row += _score_pools(scorer, gold, prompt, texts, group, uniform)
        if len(row) == len(users):
            pools.append(row)
    return pools


def _score_pools(
    scorer: Scorer,
    gold: Scorer,
    prompt: Prompt,
    texts: list[str],
    users: Sequence[str],
    uniform: Scorer | None = None,
) -> list[Pool]:
    """Score one prompt's responses for these users: one pool each, or none if every response is empty."""
    scorable = [
        text for text in dict.fromkeys(texts) if scorer.reader.has_tokens(text) and gold.reader.has_tokens(text)
    ]
    if not scorable:
        return []
    columns = [scorable.index(text) if text in scorable else len(scorable) for text in texts]

    def rewards(model: Scorer, whom: Sequence[str | None]) -> Array:
        return _with_worst(model.score_users(prompt, scorable, whom))[:, columns]

    personal, judged = rewards(scorer, [*users, None]), rewards(gold, users)
    same = rewards(uniform, [None])[0] if uniform is not None else None
    return [Pool(u, prompt, tuple(texts), personal[i], personal[-1], judged[i], same) for i, u in enumerate(users)]


def _with_worst(rewards: Tensor) -> Array:
    """Append to rewards [m, n] a column that holds each row's lowest."""
    r = rewards.double().numpy()
    return np.concatenate([r, r.min(1, keepdims=True)], axis=1)

"""Candidates for people: sampled, and known to the reward model without a second reading where that can be."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from torch import Tensor

from prm.data.comparison import Prompt
from prm.io.progress import progress
from prm.metrics import Array
from prm.models.reward_model import RewardModel
from prm.scoring.scorer import Scorer
from rerank.sampling.config import Sampling
from rerank.sampling.hidden_states import ResponseStates, same_weights
from rerank.sampling.sampler import Sampler


class Candidates:
    """Samples for a scorer.

    Where the scorer's linear heads stand on the generator's own frozen backbone, what they read of an answer was
    computed when it was drawn: it is handed over, and scoring costs nothing. An answer whose text is tokenised
    otherwise than it was drawn is read again.
    """

    def __init__(self, sampler: Sampler, scorer: Scorer):
        self._sampler, self._scorer = sampler, scorer
        self._same = same_weights(sampler.policy, scorer.model)

    def sample(
        self, prompt: Prompt, n: int, sampling: Sampling, user: str | None = None, user_text: str = ""
    ) -> list[str]:
        """The same n answers as `Sampler.sample`, which see."""
        return self._sampler.texts(self.draw(prompt, n, sampling, user, user_text))

    def draw(
        self, prompt: Prompt, n: int, sampling: Sampling, user: str | None = None, user_text: str = ""
    ) -> list[list[int]]:
        """Their ids, as `Sampler.draw` gives them."""
        sampler, scorer = self._sampler, self._scorer
        asked, end_ids = sampler.ask(prompt, user, user_text), scorer.encoder.end_ids
        fits = len(asked) + sampling.max_new_tokens + len(end_ids) <= sampler.window
        if not (self._same and fits and n > 0):
            return sampler.draw([asked], n, sampling)
        states = ResponseStates(sampler.policy, cast(RewardModel, scorer.model), n, end_ids, sampler.end_ids)
        drawn = sampler.draw([asked], n, sampling, states)
        texts = sampler.texts(drawn)
        read = {i: scorer.text(prompt, text, user_text) for i, text in enumerate(texts) if scorer.fits(text)}
        known = [i for i, text in read.items() if text.ids == [*asked, *states.own(drawn[i]), *end_ids]]
        scorer.hold([read[i] for i in known], states.pooled()[known])
        return drawn


@dataclass(frozen=True)
class Pool:
    """Answers to one prompt for one person, and what they are worth.

    Args:
        texts: as drawn, [n]; some may be equal, some empty.
        personal: rewards for the person, [n]; an empty answer, which no reward model can read, has the pool's lowest.
        generic: those of everybody's pick, for the unknown user.
        gold: those of the judge, another reward model, for the person.
    """

    user: str
    prompt: Prompt
    texts: tuple[str, ...]
    personal: Array
    generic: Array
    gold: Array

    def to_row(self) -> dict[str, Any]:
        """JSON-ready."""
        rewards = zip(self.texts, self.personal.tolist(), self.generic.tolist(), self.gold.tolist(), strict=True)
        names = ("text", "personal", "generic", "gold")
        prompt = self.prompt if isinstance(self.prompt, str) else [m._asdict() for m in self.prompt]
        return {"user_id": self.user, "prompt": prompt, "answers": [dict(zip(names, row)) for row in rewards]}


def collect(
    sampler: Sampler,
    scorer: Scorer,
    gold: Scorer,
    prompts: Sequence[Prompt],
    users: Sequence[str],
    n: int,
    how: Sampling,
) -> list[list[Pool]]:
    """For each prompt a pool of n answers for each person; prompts are left out where somebody's answers are all empty.

    A generator that knows nobody answers each prompt once for all.
    """
    candidates, found = Candidates(sampler, scorer), []
    alike = sampler.policy.user_tokens == 0
    for prompt in progress(prompts, desc="best of n", unit="prompt"):
        if alike:
            texts = candidates.sample(prompt, n, how)
            row = _judged(scorer, gold, prompt, texts, users)
        else:
            row = []
            for user in users:
                row += _judged(scorer, gold, prompt, candidates.sample(prompt, n, how, user), [user])
        if len(row) == len(users):
            found.append(row)
    return found


def _judged(scorer: Scorer, gold: Scorer, prompt: Prompt, texts: list[str], users: Sequence[str]) -> list[Pool]:
    """The pools of these people; none where every answer is empty."""
    read = [text for text in dict.fromkeys(texts) if scorer.fits(text) and gold.fits(text)]
    if not read:
        return []
    place = [read.index(text) if text in read else len(read) for text in texts]
    ours = _with_worst(scorer.score_users(prompt, read, [*users, None]))[:, place]
    theirs = _with_worst(gold.score_users(prompt, read, users))[:, place]
    return [Pool(u, prompt, tuple(texts), ours[i], ours[-1], theirs[i]) for i, u in enumerate(users)]


def _with_worst(rewards: Tensor) -> Array:
    """Rewards [m, n] with a column behind them that holds each row's lowest."""
    r = rewards.double().numpy()
    return np.concatenate([r, r.min(1, keepdims=True)], axis=1)

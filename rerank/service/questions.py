"""What a service asks a user next, and what it believes of the user, in words."""

import json
import logging
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from prm.checkpoint.checkpoint import Checkpoint
from prm.data.comparison import Prompt, parse_prompt, prompt_key
from prm.errors import PrmError
from prm.metrics import slopes_within
from prm.models.reward_model import HeadInput, RewardModel
from prm.scoring.head_scores import other_pairs
from prm.scoring.text_reader import TextReader
from prm.users.bayes_model import Bayes
from prm.users.user_model import UserModel
from rerank.service.engine import Engine
from rerank.service.errors import BusyError, UnknownError, place_of
from rerank.service.pool import Pool
from rerank.service.texts import TextRequest

logger = logging.getLogger(__name__)

_AT_ONCE = 16  # texts of the pool read in one go: other requests' texts come between
_PATIENCE = 600.0  # seconds that a part of the pool may wait
_WAIT = 3.0  # seconds that a request waits for the pool
_CLEAR, _LIKELY = 2.0, 1.0  # standard deviations from 0, for a leaning to be named
_LEAST = 0.05  # logits, likewise
_NAMED = 3


@dataclass(frozen=True)
class Leaning:
    """What a user likes more than everybody does, of one attribute.

    Args:
        attribute: its name.
        more, less: what more and less of it are called.
        weight: logits per unit of the attribute, the user's minus the generic user's: of an everyday attribute one is
            present or not, and length is in 20 words; of a plain count one is its standard deviation over the pool.
        std: posterior standard deviation of the weight; `None` if the run keeps no uncertainty.
    """

    attribute: str
    more: str
    less: str
    weight: float
    std: float | None

    @property
    def says(self) -> str:
        """The leaning in words: `a list +2.3 ± 0.4`."""
        size = f"{abs(self.weight):.1f}"
        figure = f"{self.more if self.weight >= 0 else self.less} {'' if size == '0.0' else '+'}{size}"
        return figure if self.std is None else f"{figure} ± {self.std:.1f}"


@dataclass(frozen=True)
class Description:
    """What is known of a user.

    Args:
        known: false for somebody who scores as the generic user.
        comparisons: number that the user is known by, ties aside.
        sure: share of the uncertainty about the user's preferences that their comparisons removed, in [0, 1]; `None`
            if the run keeps no uncertainty.
        leanings: one for each attribute; none without a pool.
    """

    known: bool
    comparisons: int
    sure: float | None
    leanings: Sequence[Leaning]

    @property
    def says(self) -> str:
        """What the user leans to most clearly, in a sentence."""
        if not self.known:
            return "Nothing is known yet: picks are those for everybody."
        clear = [le for le in self.leanings if abs(le.weight) > max(_LEAST, _CLEAR * (le.std or 0.0))]
        likely = [
            le for le in self.leanings if le not in clear and abs(le.weight) > max(_LEAST, _LIKELY * (le.std or 0.0))
        ]
        parts = {"More than others": clear, "Perhaps": likely}
        says = [f"{start}: {', '.join(_strongest(some))}." for start, some in parts.items() if some]
        return " ".join(says) or "Nothing stands out yet."


@dataclass(frozen=True)
class Question:
    """Two responses for a user to compare.

    Args:
        information: expected gain about the user's other comparisons, in nats; `None` if the run keeps no uncertainty:
            the question is then a random one.
        left: number of the pool's questions that the user was not asked before, this one included.
    """

    prompt: Prompt
    responses: tuple[str, str]
    information: float | None
    left: int


@dataclass(frozen=True)
class Preview:
    """What a user would get for a prompt that nobody is asked about.

    Args:
        number: of the prompt, from 0.
        count: number of such prompts.
        personal, generic: index of the user's best response, and of the generic user's.
        p_personal: P(the user prefers the first to the second).
        differs: numbers of the prompts where they are two.
    """

    number: int
    count: int
    prompt: Prompt
    responses: tuple[str, ...]
    personal: int
    generic: int
    p_personal: float
    differs: list[int]


class _Read(NamedTuple):
    """The pool's hidden states [n, d], directions of its attributes [k, d], and pairs of texts: int64 [2, q], [2, t]"""

    features: HeadInput
    directions: Tensor
    asked: Tensor
    others: Tensor | None


class Questions:
    """The pool of a service, read once in the background when it is first needed.

    Methods raise `BusyError` until it is read.
    """

    def __init__(self, engine: Engine, pool: Pool | None):
        self._engine, self._pool = engine, pool
        self._texts = pool.texts() if pool else []
        self._pairs = pool.pairs() if pool else []
        # kept on disk, where training left its own: these are no texts of users
        self._reader = TextReader(cast(Checkpoint[RewardModel], engine.scorer.checkpoint), cache=True)
        self._is_bayes = isinstance(engine.people.model.user_model, Bayes)
        self._read: _Read | None = None
        self._done, self._lock, self._stopping = threading.Event(), threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None
        self._num_read = 0

    def close(self) -> None:
        """Stop reading."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()

    def start(self) -> None:
        """Begin to read the pool, unless that was done."""
        with self._lock:
            if self._read is None and self._pool and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._work, name="reads the pool", daemon=True)
                self._thread.start()

    def describe(self, namespace: str, user: str) -> Description:
        """What is known of a user; of somebody unknown, what is expected of anybody."""
        person, one = self._engine.people.copy((namespace, user))
        sure = float(one.share_known(torch.tensor([1]))) if isinstance(one, Bayes) else None
        if self._pool is None:
            return Description(person.known, person.comparisons, sure, [])
        weights, deviations = leanings(one, self._ready().directions)
        found = [
            Leaning(*words, weight, None if deviations is None else float(deviations[i]))
            for i, (words, weight) in enumerate(zip(self._pool.words, weights.tolist(), strict=True))
        ]
        return Description(person.known, person.comparisons, sure, found)

    def next(self, namespace: str, user: str) -> Question:
        """The pair of the pool whose result is expected to tell most about a user, of those not asked before.

        Without posteriors it is a random one. Raises `UnknownError` if there is no pair left.
        """
        if not self._pairs:
            raise UnknownError(
                "the run held none out. Start the service with --pool FILE: JSON Lines, each with a prompt and two "
                "responses or more."
            )
        who, read = self._engine.store.key_of(namespace, user), self._ready()
        said = self._engine.store.comparisons_of(who)
        asked = {
            (prompt_key(parse_prompt(json.loads(row.prompt))), frozenset((row.chosen, row.rejected))) for row in said
        }
        keys = [prompt_key(prompt) for prompt, _ in self._texts]
        new = [
            i
            for i, (a, b) in enumerate(self._pairs)
            if (keys[a], frozenset((self._texts[a][1], self._texts[b][1]))) not in asked
        ]
        if not new:
            raise UnknownError("the user has answered all questions.")
        draw = random.Random(f"{who[0]} {who[1]} {len(said)}")  # the same question until it is answered
        information = self._information(who, read, new) if self._is_bayes else None
        best = int(information.argmax()) if information is not None else draw.randrange(len(new))
        first, second = draw.sample(self._pairs[new[best]], 2)  # neither side is favoured
        return Question(
            self._texts[first][0],
            (self._texts[first][1], self._texts[second][1]),
            None if information is None else float(information[best]),
            len(new),
        )

    @torch.no_grad()
    def preview(self, namespace: str, user: str, number: int) -> Preview:
        """What a user would get for a prompt that nobody is asked about. Raises `UnknownError` without such prompts."""
        kept = self._pool.kept if self._pool else []
        if not 0 <= number < len(kept):
            raise UnknownError(f"there are {len(kept)} prompts that nobody is asked about: {number} is none of them")
        features = self._ready().features
        with self._engine.people.rows(namespace, [user, None]) as (model, people):
            heads = model.heads(torch.tensor([person.row for person in people]))
        rewards = self._engine.people.model.linear_reward_users(features, heads)
        start = len(self._texts) - sum(len(p.responses) for p in kept)
        picks, differs = list[tuple[int, int, float]](), list[int]()
        for i, p in enumerate(kept):
            own, generic = rewards[:, start : start + len(p.responses)].double()
            personal, common = int(own.argmax()), int(generic.argmax())
            picks.append((personal, common, float(torch.sigmoid(own[personal] - own[common]))))
            differs += [i] if personal != common else []
            start += len(p.responses)
        (prompt, responses), (personal, common, p_personal) = kept[number], picks[number]
        return Preview(number, len(kept), prompt, responses, personal, common, p_personal, differs)

    @torch.no_grad()
    def _information(self, who: tuple[str, str], read: _Read, new: Sequence[int]) -> Tensor:
        """As of `Scorer.next_question`, of each of these pairs, [n]."""
        _, one = self._engine.people.copy(who)
        assert isinstance(one, Bayes)
        asked = read.asked[:, list(new)]
        if read.others is None:
            return torch.zeros(len(new))
        first, second = torch.cat([asked, read.others], 1)
        states, base = read.features
        base_margin = None if base is None else base[first] - base[second]
        rows = torch.ones(len(first), dtype=torch.long)
        return one.information(states[first] - states[second], rows, len(new), base_margin)

    def _ready(self) -> _Read:
        if self._read is None:
            self.start()
            self._done.wait(min(_WAIT, self._engine.config.timeout))
        if self._read is None:
            raise BusyError(f"the questions are being read: {self._num_read} of {len(self._texts)} texts", 2)
        return self._read

    def _work(self) -> None:
        """Read the pool; a request that comes after a failure begins anew."""
        parts, self._num_read = list[HeadInput](), 0
        try:
            while self._num_read < len(self._texts) and not self._stopping.is_set():
                part = self._texts[self._num_read : self._num_read + _AT_ONCE]
                try:
                    parts.append(self._features(part))
                    self._num_read += len(part)
                except BusyError:  # users' requests go first
                    self._stopping.wait(1.0)
            if self._stopping.is_set():
                return
            self._read = self._prepared(parts)
            self._done.set()
        except (PrmError, OSError, RuntimeError) as error:  # of the texts, the store of features, and the backbone
            logger.error("the questions could not be read: %s", place_of(error))  # the run's own are of people

    @torch.no_grad()
    def _features(self, texts: Sequence[tuple[Prompt, str]]) -> HeadInput:
        if self._engine.reads_elsewhere:
            return self._engine.texts.get([TextRequest(*text) for text in texts], time.monotonic() + _PATIENCE)
        prompts, responses = [prompt for prompt, _ in texts], [response for _, response in texts]
        pooled, index = self._reader.pooled(prompts, responses, [""] * len(texts))
        return self._engine.people.model.head_input(pooled[index])

    def _prepared(self, parts: Sequence[HeadInput]) -> _Read:
        assert self._pool is not None
        states = torch.cat([part.states for part in parts])
        base = [part.base for part in parts if part.base is not None]
        features = HeadInput(states, torch.cat(base) if base else None)
        directions = slopes_within(self._pool.attributes, states.double().cpu().numpy(), self._pool.groups())
        asked = torch.tensor(self._pairs, dtype=torch.long).reshape(-1, 2).T
        prompts = [self._texts[first][0] for first, _ in self._pairs]
        others = other_pairs(prompts, asked) if self._pairs else None
        return _Read(features, torch.from_numpy(directions.astype(np.float32)).to(states), asked, others)


def _strongest(some: Sequence[Leaning]) -> list[str]:
    return [leaning.says for leaning in sorted(some, key=lambda le: -abs(le.weight))[:_NAMED]]


@torch.no_grad()
def leanings(one: UserModel, directions: Tensor) -> tuple[Tensor, Tensor | None]:
    """(weights [k] of attributes in row 1's rewards minus those in row 0's, their posterior standard deviations [k]).

    A reward is linear in the user's parameters, so that least squares of rewards on attributes are, too: an
    attribute's weight is the reward of its direction. With posteriors these are rewards in logits as the user would
    give them, before they are averaged over what is not known of the user. The second is `None` without posteriors.

    Args:
        directions: hidden states per unit of each attribute, [k, d].
    """
    row = torch.ones(len(directions), dtype=torch.long)
    if not isinstance(one, Bayes):
        heads = one(torch.tensor([0, 1]))[:, 0]
        return directions @ (heads[1] - heads[0]), None
    mean, variance = one.logits(directions, row)
    generic, _ = one.logits(directions, torch.zeros_like(row))
    return mean - generic, variance.clamp_min(0.0).sqrt()

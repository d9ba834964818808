"""The service without HTTP: ranks for users, learns from what they say, and forgets them."""

import json
import logging
import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from prm.checkpoint.checkpoint import Checkpoint
from prm.data.comparison import Prompt, parse_prompt
from prm.data.sources.store.schema import Record
from prm.errors import DataError, PrmError
from prm.models.reward_model import HeadInput, RewardModel
from prm.scoring.head_scores import GainOverGeneric
from prm.scoring.scorer import Scorer
from prm.users.user_model import ALL_ALIKE
from rerank.ranking.strategies import cautious
from rerank.service.config import ServiceConfig
from rerank.service.errors import UnknownError
from rerank.service.judgements import Judgement
from rerank.service.learning import Learner, Receipt
from rerank.service.metrics import Metrics
from rerank.service.people import People, Person, User
from rerank.service.shown_log import Shown, ShownLog
from rerank.service.store import Store, UserKey, spellings, to_json
from rerank.service.texts import Read, TextFeatures, TextRequest

logger = logging.getLogger(__name__)

_JSON = {"prompt", "responses", "body"}  # columns that hold JSON
LIST, CHAT = "shown", "chatcmpl"  # what the ids of rankings begin with: all responses were shown, or the best alone


@dataclass(frozen=True)
class Ranking:
    """n responses ranked for a user.

    Args:
        shown_id: names what was shown, for feedback; "" if it was not written down.
        order: indices of the responses, best first.
        logits: rewards, [n], in the order of the input.
        relevance: P(this response is preferred to the generic user's best one), [n]: the logistic function of the
            difference of the two rewards, in float64; with `caution`, of a lower bound of it. The order is by this.
        known: false if the user scores as the generic user.
        comparisons: number that the user is known by.
        held_out: the order is the generic user's, to measure the gain.
        personal, generic: index of the user's best response, and of the generic user's.
        tokens: number that the reward model reads: of each response with the prompt, whether it is kept or not.
    """

    shown_id: str
    order: list[int]
    logits: list[float]
    relevance: list[float]
    known: bool
    comparisons: int
    held_out: bool
    personal: int
    generic: int
    tokens: int


class Engine:
    """Ranks, scores and learns for the users of a run and of a store; safe to call from many threads.

    Args:
        scorer: of a run with linear heads; it belongs to the engine from here on.
        read: hidden states [n, d] of texts; the scorer's own backbone if left out.

    Raises `PrmError` for another run, and for one whose users have no parameters of their own.
    """

    def __init__(self, scorer: Scorer, store: Store, config: ServiceConfig | None = None, read: Read | None = None):
        model = scorer.model
        if not isinstance(model, RewardModel) or not model.is_linear:
            raise PrmError("a service needs a run with linear heads ('reward.form linear_head')")
        if not model.user_model.per_row():
            raise PrmError("the run's model is uniform: it has no user parameters")
        if model.user_model.all_alike:
            logger.warning("warning: %s", ALL_ALIKE)
        self.scorer, self.store, self.config = scorer, store, config or ServiceConfig()
        if self.config.caution:
            model.posterior()  # says what is missing
        checkpoint = cast(Checkpoint[RewardModel], scorer.checkpoint)
        self.people = People(checkpoint, store, scorer.feature_digest)
        kept = self.config.kept_megabytes * 2**20
        self.reads_elsewhere = read is not None
        self.texts = TextFeatures(model, scorer.reader, read, kept, self.config.max_waiting_texts)
        self.shown = ShownLog(store)
        self.name = scorer.checkpoint.folder.name if scorer.checkpoint.folder else "run"
        self.metrics = Metrics()
        self.metrics.watch(self)
        self.learner = Learner(scorer, store, self.people, self.texts, self.config)

    def close(self) -> None:
        """Finish what is written, and stop."""
        self.learner.close()
        self.texts.close()
        self.shown.close()
        self.store.close()

    @torch.no_grad()
    def rank(
        self,
        namespace: str,
        prompt: Prompt,
        responses: Sequence[str],
        user: User = None,
        user_text: str = "",
        write_down: bool = True,
        kind: str = LIST,
        top_n: int | None = None,
    ) -> Ranking:
        """Rank responses for a user.

        Args:
            kind: `LIST`, or `CHAT` if the user is shown the best one alone.
            top_n: how many of a list the user is shown, the best; all if left out.

        Raises `UnreadableError` for a text that the model cannot read, and `BusyError` if it is not its turn in time.
        """
        n = len(responses)
        if n == 0:
            raise PrmError("'responses' is empty: there is nothing to rank")
        texts = [TextRequest(prompt, text, user_text) for text in responses]
        features, tokens = self.texts.counted(texts, self._deadline())
        if user is not None:
            namespace, user = self.store.key_of(namespace, user)
        held_out = user is not None and self._is_held_out((namespace, user))
        with self.people.rows(namespace, [user, None]) as (model, people):
            own, generic = model.linear_reward_users(features, model.heads(_rows(people))).double()
            common = int(generic.argmax())
            careful = self.config.caution > 0.0 and people[0].known
            gains = self._lower_bounds(model, features, people[0], common) if careful else own - own[common]
        by = generic if held_out else own
        ranked_by = generic - generic[common] if held_out else gains
        personal = int(gains.argmax())
        ranking = Ranking(
            shown_id=f"{kind}-{secrets.token_hex(15)}" if write_down else "",  # as long as the column's 40 allow
            order=torch.argsort(ranked_by, descending=True, stable=True).tolist(),
            logits=by.tolist(),
            relevance=torch.sigmoid(ranked_by).tolist(),
            known=people[0].known,
            comparisons=people[0].comparisons,
            held_out=held_out,
            personal=personal,
            generic=common,
            tokens=tokens,
        )
        if write_down:
            p_personal = float(torch.sigmoid(own[personal] - own[common]))
            seen = set(ranking.order[:top_n])
            kept = [text if i in seen else None for i, text in enumerate(responses)]
            self._write_down(namespace, user, prompt, kept, ranking, p_personal)
        return ranking

    def _lower_bounds(self, model: RewardModel, features: HeadInput, person: Person, pick: int) -> Tensor:
        """Lower bounds of what a user gains from each of n responses over the one at `pick`, in logits, float64 [n]."""
        rows = torch.full((len(features.states),), person.row, dtype=torch.long)
        mean, variance = model.linear_logits(features, features.at(torch.full_like(rows, pick)), rows)
        return cautious(GainOverGeneric(pick, mean, variance.sqrt()), self.config.caution).double()

    def check(self, prompt: Prompt, response: str, user_text: str = "") -> None:
        """Raise `DataError` for a text that the model cannot read."""
        self.scorer.reader.check(prompt, response, user_text)

    def score(
        self,
        namespace: str,
        prompts: Sequence[Prompt],
        responses: Sequence[str],
        users: Sequence[User],
        user_texts: Sequence[str],
    ) -> list[float]:
        """Rewards, in logits, of b rows: any mix of prompts and users. Raises as `rank` does."""
        rows = zip(prompts, responses, user_texts, strict=True)
        features = self.texts.get([TextRequest(*row) for row in rows], self._deadline())
        with self.people.rows(namespace, users) as (model, people):
            heads = model.heads(_rows(people))
            return model.linear_reward(features, heads).double().tolist()

    def score_users(
        self, namespace: str, prompt: Prompt, responses: Sequence[str], users: Sequence[User]
    ) -> list[list[float]]:
        """Rewards, in logits, of n responses for each of m users, [m][n]. Raises as `rank` does."""
        rewards, _ = self._rewards(self._read(prompt, responses), namespace, users)
        return rewards.tolist()

    def prefer(self, namespace: str, prompt: Prompt, a: str, b: str, user: User = None, user_text: str = "") -> float:
        """P(the user prefers a to b), in [0, 1]. Raises as `rank` does."""
        features = self._read(prompt, [a, b], user_text)
        with self.people.rows(namespace, [user]) as (model, people):
            margin = model.linear_margin(features.at(torch.tensor([0])), features.at(torch.tensor([1])), _rows(people))
        return float(torch.sigmoid(margin.double()))

    def give_feedback(
        self, namespace: str, user: str, judgement: Judgement, key: str | None = None, shown_id: str | None = None
    ) -> Receipt:
        """Learn from what a user said. When this returns it is on disk, and the next request sees it.

        Args:
            key: idempotency key: the same feedback with the same key is taken once.
            shown_id: of what was shown. It has one pick of the user: the same one again is taken once.

        Raises `ConflictError` for a key that came with something else and for a second, different pick of what was
        shown, and as `rank` does.
        """
        return self.learner.learn(self.store.key_of(namespace, user), judgement, key or uuid.uuid4().hex, shown_id)

    def shown_to(self, namespace: str, user: User, shown_id: str) -> tuple[Prompt, list[str | None]]:
        """(the prompt, the responses) that were ranked under an id; `None` for those that the user was not shown.

        Raises `UnknownError` if not to this user, and `DataError` if only the best was shown.
        """
        row = self._shown_row(namespace, user, shown_id)
        if shown_id.startswith(CHAT):
            raise DataError("one answer alone was shown under this id: there is nothing to pick from")
        return parse_prompt(json.loads(row["prompt"])), list(json.loads(row["responses"]))

    def best_shown_to(self, namespace: str, user: User, shown_id: str) -> tuple[Prompt, str]:
        """(the prompt, the response that stood first) of what was shown under an id. Raises as `shown_to` does."""
        row = self._shown_row(namespace, user, shown_id)
        first = row["generic" if row["held_out"] else "personal"]
        return parse_prompt(json.loads(row["prompt"])), json.loads(row["responses"])[first]

    def forget(self, namespace: str, user: str) -> int:
        """Remove all that the store has of a user, who scores as the generic user from now on.

        So does a user of the run, which itself is not changed: `prm forget` does that. Returns the number of records
        removed; 0 for somebody of whom the store has nothing, which is no error.
        """
        who = self.store.key_of(namespace, user)
        with self.learner.lock(who):
            self.shown.wait()
            person, both = self.people.one(who), spellings(who)
            said = [row for spelling in both for row in self.store.comparisons_of(spelling)]
            seen = [row for spelling in both for row in self.store.shown_to(spelling)]
            texts = [(row.prompt, y, row.user_text) for row in said for y in (row.chosen, row.rejected)]
            texts += [(row.prompt, y, "") for row in seen for y in json.loads(row.responses) if y]
            self.texts.forget([TextRequest(parse_prompt(json.loads(prompt)), *rest) for prompt, *rest in texts])
            removed = self.store.forget(who, person.known)
            self.people.one(who)  # takes the user's parameters out of memory
        return removed

    def export(self, namespace: str, user: str) -> dict[str, object]:
        """All that the store has of a user, JSON-ready."""
        who = self.store.key_of(namespace, user)
        self.shown.wait()
        person = self.people.one(who)
        drop = ("namespace", "user_id")

        def plain(rows: Sequence[Record]) -> list[dict[str, object]]:
            kept = [{name: value for name, value in row._mapping.items() if name not in drop} for row in rows]
            return [row | {name: json.loads(row[name]) for name in _JSON & row.keys()} for row in kept]

        return {
            "user": user,
            "known": person.known,
            "comparisons_known_by": person.comparisons,
            "feedback": plain(self.store.feedback_of(who)),
            "comparisons": plain(self.store.comparisons_of(who)),
            "shown": plain(self.store.shown_to(who)),
        }

    def _read(self, prompt: Prompt, responses: Sequence[str], user_text: str = "") -> HeadInput:
        return self.texts.get([TextRequest(prompt, text, user_text) for text in responses], self._deadline())

    def _deadline(self) -> float:
        return time.monotonic() + self.config.timeout

    def _shown_row(self, namespace: str, user: User, shown_id: str) -> Shown:
        if user is not None:
            namespace, user = self.store.key_of(namespace, user)
        row = self.shown.find(namespace, shown_id)
        if row is None or row["user_id"] != user:
            raise UnknownError(f"nothing was shown to this user as {shown_id!r}")
        return row

    @torch.no_grad()
    def _rewards(self, features: HeadInput, namespace: str, users: Sequence[User]) -> tuple[Tensor, list[Person]]:
        """(float64 rewards [m, n], the m users)."""
        with self.people.rows(namespace, users) as (model, people):
            heads = model.heads(_rows(people))
            return model.linear_reward_users(features, heads).double(), people

    def _is_held_out(self, user: UserKey) -> bool:
        return self.config.holdout > 0 and int(self.store.digest_of(user)[:13], 16) / 16**13 < self.config.holdout

    def _write_down(
        self,
        namespace: str,
        user: User,
        prompt: Prompt,
        responses: Sequence[str | None],
        ranking: Ranking,
        p_personal: float,
    ) -> None:
        self.shown.add(
            {
                "id": ranking.shown_id,
                "namespace": namespace,
                "user_id": user,
                "prompt": to_json(prompt if isinstance(prompt, str) else [m._asdict() for m in prompt]),
                "responses": to_json(list(responses)),
                "held_out": ranking.held_out,
                "personal": ranking.personal,
                "generic": ranking.generic,
                "p_personal": p_personal,
                "comparisons": ranking.comparisons,
                "time": time.time(),
            }
        )


def _rows(people: Sequence[Person]) -> Tensor:
    return torch.tensor([person.row for person in people], dtype=torch.long)

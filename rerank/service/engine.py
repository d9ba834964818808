"""The service without HTTP: ranks for users, learns from what they say, and forgets them."""

import json
import logging
import math
import secrets
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple, cast

import torch
from sqlalchemy import Connection
from torch import Tensor

from prm.checkpoint.checkpoint import Checkpoint
from prm.data.comparison import Comparison, Prompt, parse_prompt
from prm.data.sources.store.reader import full_id
from prm.data.sources.store.schema import Record
from prm.errors import DataError, PrmError
from prm.io.run_files import read_run
from prm.models.reward_model import HeadInput, RewardModel
from prm.scoring.head_scores import GainOverGeneric
from prm.scoring.scorer import Scorer
from prm.training.heads.objective import PairFeatures
from prm.training.user_fit import fit_heads, penalty_of
from prm.users.user_model import ALL_ALIKE, UserModel
from rerank.ranking.strategies import cautious
from rerank.service.config import ServiceConfig
from rerank.service.errors import BusyError, ConflictError, UnknownError, place_of
from rerank.service.judgements import SINGLE, Judgement, Kind
from rerank.service.metrics import Metrics
from rerank.service.people import People, Person, User
from rerank.service.shown_log import Shown, ShownLog
from rerank.service.store import Store, UserKey, spellings, to_json
from rerank.service.texts import Read, TextFeatures, TextRequest

logger = logging.getLogger(__name__)

_TRIES = 50  # of an update that other replicas were quicker with
_LOCKS = 256
_REFIT_AT_ONCE = 100
_PAUSE = 5.0  # seconds between tries of what failed in the background
_TEXTS_AT_ONCE = 512  # read for one user; no more than may wait, so that a long log can be read
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


class Receipt(NamedTuple):
    """What became of a feedback.

    Args:
        comparisons: how many comparisons followed from it.
        known_by: number of comparisons that the user is known by now.
        again: the same feedback had come before, with the same idempotency key, or as the pick of what was shown:
            nothing was done.
    """

    feedback_id: int
    comparisons: int
    known_by: int
    again: bool


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
        self._user_l2, self._trained = penalty_of(checkpoint), _trained(checkpoint)
        self.people = People(checkpoint, store, scorer.feature_digest)
        kept = self.config.kept_megabytes * 2**20
        self.reads_elsewhere = read is not None
        self.texts = TextFeatures(model, scorer.reader, read, kept, self.config.max_waiting_texts)
        self.shown = ShownLog(store)
        self.name = scorer.checkpoint.folder.name if scorer.checkpoint.folder else "run"
        self.metrics = Metrics()
        self.metrics.watch(self)
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._stopping = threading.Event()
        self._background = threading.Thread(target=self._keep_up, name="refits users", daemon=True)
        self._background.start()

    def close(self) -> None:
        """Finish what is written, and stop."""
        self._stopping.set()
        self.people.wake()
        self._background.join()
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
        who = self.store.key_of(namespace, user)
        key = key or uuid.uuid4().hex
        body = to_json(judgement.to_row())
        if (receipt := self._before(who, key, judgement, body)) is not None:
            return receipt
        with self._locks[hash(who) % _LOCKS]:
            for _ in range(_TRIES):
                if (receipt := self._learn(who, judgement, key, body, shown_id)) is not None:
                    return receipt
        raise BusyError("other replicas keep updating this user")

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
        with self._locks[hash(who) % _LOCKS]:
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

    def _before(self, who: UserKey, key: str, judgement: Judgement, body: str) -> Receipt | None:
        """The receipt of the same feedback, if it came before."""
        row = self.store.feedback_of_key(who[0], key)
        if row is None:
            return None
        if (row.user_id, row.kind, row.body) != (who[1], judgement.kind, body):
            raise ConflictError("the idempotency key was used for other feedback: make a new one")
        known_by = self.people.one(who).comparisons
        return Receipt(row.id, self.store.comparisons_from(row.id), known_by, again=True)

    def _picked(self, who: UserKey, judgement: Judgement, shown_id: str, person: Person) -> Receipt | None:
        """The receipt of the user's pick of what was shown under an id, if there is one and it is this one.

        Raises `ConflictError` if it is another one.
        """
        picks = self.store.judged(who, judgement.prompt_digest, judgement.kind)
        row = next((row for row in picks if row.shown_id == shown_id), None)
        if row is None:
            return None
        if _judgement(row.kind, row.body).value != judgement.value:
            raise ConflictError("the user picked another response of those shown under this id: one pick counts")
        return Receipt(row.id, self.store.comparisons_from(row.id), person.comparisons, again=True)

    def _learn(self, who: UserKey, judgement: Judgement, key: str, body: str, shown_id: str | None) -> Receipt | None:
        """Take a feedback in one transaction; `None`, and nothing is done, if the user changed meanwhile."""
        person, one = self.people.copy(who)
        if person.outdated:  # these parameters are without what the user said before
            self._refit(who)
            return None
        if judgement.kind == "pick" and shown_id and (receipt := self._picked(who, judgement, shown_id, person)):
            return receipt
        earlier, stale = self._earlier(who, judgement)
        comparisons = judgement.comparisons(full_id(*who), [_judgement(row.kind, row.body) for row in earlier])
        expected = self._expected(person, one, comparisons)
        if stale:  # what a user takes back cannot be taken out of the parameters: they are fitted anew
            kept = [_comparison(row, who) for row in self.store.comparisons_of(who) if row.id not in stale]
            one, known_by = self._fitted_anew(who, [*kept, *comparisons])
        else:
            known_by = person.comparisons + self._fit(one, comparisons, not person.known)
        row = {
            "idempotency_key": key,
            "kind": judgement.kind,
            "prompt_key": judgement.prompt_digest,
            "body": body,
            "shown_id": shown_id,
        }
        with self.store.changing(who) as connection:
            if self._has_changed(connection, who, person, judgement, earlier):
                return None
            if (number := self.store.add_feedback(connection, who, row)) is not None:
                self.store.drop_comparisons(connection, stale)
                first = {frozenset((row.chosen, row.rejected)): row for row in stale.values()}
                said = [
                    _columns(c) | _predicted(c, *ps, person.comparisons, first.get(frozenset((c.chosen, c.rejected))))
                    for c, ps in zip(comparisons, expected, strict=True)
                ]
                self.store.add_comparisons(connection, who, number, said)
                if comparisons or stale:
                    self.store.save(connection, who, self.people.to_save(one, person.version, known_by))
        if number is None:  # another replica was given the same
            return self._before(who, key, judgement, body)
        return Receipt(number, len(comparisons), known_by, again=False)

    def _has_changed(
        self, connection: Connection, who: UserKey, person: Person, judgement: Judgement, earlier: Sequence[Record]
    ) -> bool:
        """Whether the user is another than the one that a feedback was worked out for."""
        if self.store.versions([who], connection).get(who, 0) != person.version:
            return True
        if judgement.kind not in SINGLE:
            return False
        now = self.store.judged(who, judgement.prompt_digest, judgement.kind, connection)
        return [row.id for row in now] != [row.id for row in earlier]

    def _earlier(self, who: UserKey, judgement: Judgement) -> tuple[list[Record], dict[int, Record]]:
        """(what the user said before of the prompt's responses, the comparisons that no longer hold, by number)."""
        if judgement.kind not in SINGLE:
            return [], {}
        rows, (own,) = self.store.judged(who, judgement.prompt_digest, judgement.kind), judgement.responses
        if all(_judgement(row.kind, row.body).responses != (own,) for row in rows):
            return rows, {}
        numbers = {row.id for row in rows}
        followed = [row for row in self.store.comparisons_of(who) if row.feedback_id in numbers]
        return rows, {row.id: row for row in followed if own in (row.chosen, row.rejected)}

    def _fit(self, one: UserModel, comparisons: Sequence[Comparison], is_new: bool) -> int:
        """Fit row 1 to comparisons; returns how many were no ties."""
        if not comparisons:
            return 0
        fit_heads(one, self._pairs(comparisons), torch.tensor([False, is_new]), self._user_l2)
        return sum(not c.is_tie for c in comparisons)

    def _fitted_anew(self, who: UserKey, comparisons: Sequence[Comparison]) -> tuple[UserModel, int]:
        """(the user as the run has them, fitted to those comparisons that the run has not seen; number known by)."""
        trained, one = self.people.as_trained(who)
        known = self.scorer.checkpoint.users.trained_on if trained.known else None
        seen = [False] * len(comparisons) if known is None else known.in_users(comparisons)
        # digests do not tell that a user said it again since, or the contrary: times do
        seen = [is_seen and _moment(c) <= self._trained for is_seen, c in zip(seen, comparisons, strict=True)]
        new = [c for c, is_seen in zip(comparisons, seen, strict=True) if not is_seen and self._is_readable(c)]
        return one, trained.comparisons + self._fit(one, new, not trained.known)

    def _is_readable(self, comparison: Comparison) -> bool:
        """False for a comparison that another run could read and this one cannot."""
        try:
            self.scorer.reader.check_comparison(comparison)
        except DataError:
            return False
        return True

    @torch.no_grad()
    def _expected(self, person: Person, one: UserModel, comparisons: Sequence[Comparison]) -> list[tuple[float, float]]:
        """P of each comparison's result before it was known: by the user's parameters, and by the generic user's."""
        if not comparisons:
            return []
        pairs = self._pairs(comparisons)
        differences = pairs.texts[pairs.chosen] - pairs.texts[pairs.rejected]
        base = None if pairs.base is None else pairs.base[pairs.chosen] - pairs.base[pairs.rejected]
        own = one.margins(differences, pairs.rows if person.known else torch.zeros_like(pairs.rows), base)
        generic = one.margins(differences, torch.zeros_like(pairs.rows), base)
        return list(zip(torch.sigmoid(own.double()).tolist(), torch.sigmoid(generic.double()).tolist(), strict=True))

    @torch.no_grad()
    def _pairs(self, comparisons: Sequence[Comparison]) -> PairFeatures:
        """Comparisons as input of heads, all of row 1."""
        chosen, rejected = (
            [TextRequest(c.prompt, y, c.user_text) for c, y in zip(comparisons, side, strict=True)]
            for side in ([c.chosen for c in comparisons], [c.rejected for c in comparisons])
        )
        position = {text: i for i, text in enumerate(dict.fromkeys([*chosen, *rejected]))}
        texts, parts = list(position), list[HeadInput]()
        size = min(_TEXTS_AT_ONCE, self.config.max_waiting_texts)
        for start in range(0, len(texts), size):
            parts.append(self.texts.get(texts[start : start + size], self._deadline()))
        states = torch.cat([part.states for part in parts])
        base = None if parts[0].base is None else torch.cat([part.base for part in parts if part.base is not None])
        first, second = (torch.tensor([position[text] for text in side]) for side in (chosen, rejected))
        labels = torch.tensor([[c.p_chosen, c.weight] for c in comparisons])
        rows = torch.ones(len(comparisons), dtype=torch.long)
        return PairFeatures(states, first, second, rows, labels[:, 0], labels[:, 1], base)

    def _keep_up(self) -> None:
        """In the background: fit users to this run whose parameters belong to another one, those asked for first."""
        failed, is_looking = set[UserKey](), True
        while not self._stopping.is_set():
            try:
                asked_for = self.people.next_outdated(0.0 if is_looking else _PAUSE)
                users = [] if asked_for is None else [asked_for]
                if not users and is_looking:
                    users = self.store.of_other_models(self.people.digest, _REFIT_AT_ONCE, failed)
                    is_looking = bool(users)
                elif not users and failed:
                    is_looking, failed = True, set()
                for user in users:
                    if self._stopping.is_set():
                        return
                    try:
                        with self._locks[hash(user) % _LOCKS]:
                            self._refit(user)
                    except (PrmError, RuntimeError) as error:  # of a user's texts, or their fit: others go on
                        failed.add(user)
                        logger.warning("a user could not be fitted to this run: %s", place_of(error))
                self.store.erase(_PAUSE)
            except Exception as error:  # the database may be back at the next try
                logger.error("users could not be fitted to this run: %s", place_of(error))
                self._stopping.wait(_PAUSE)

    def _refit(self, who: UserKey) -> None:
        """Fit a user to this run, from what they said; nothing is done if they change meanwhile."""
        saved = self.store.saved([who]).get(who)
        if saved is None or saved.model == self.people.digest:
            return
        comparisons = [_comparison(row, who) for row in self.store.comparisons_of(who)]
        one, known_by = self._fitted_anew(who, comparisons)
        with self.store.changing(who) as connection:
            if self.store.versions([who], connection).get(who) == saved.version:
                self.store.save(connection, who, self.people.to_save(one, saved.version, known_by))


def _rows(people: Sequence[Person]) -> Tensor:
    return torch.tensor([person.row for person in people], dtype=torch.long)


def _judgement(kind: Kind, body: str) -> Judgement:
    row = json.loads(body)
    prompt = parse_prompt(row["prompt"])
    return Judgement(kind, prompt, tuple(row["responses"]), row["value"], row.get("user_text", ""))


def _comparison(row: Record, who: UserKey) -> Comparison:
    prompt = parse_prompt(json.loads(row.prompt))
    return Comparison(
        full_id(*who), prompt, row.chosen, row.rejected, row.user_text, p_chosen=row.p_chosen, time=row.time
    )


def _moment(comparison: Comparison) -> float:
    """When a user said it, in seconds since 1970; infinite for what they say now."""
    return math.inf if comparison.time is None else float(comparison.time)


def _trained(checkpoint: Checkpoint[RewardModel]) -> float:
    """When the run read its log, or was written, in seconds since 1970; infinite if nobody knows."""
    record = read_run(checkpoint.folder) if checkpoint.folder else {}
    at = record.get("data", {}).get("read_at") or record.get("environment", {}).get("written")
    return math.inf if at is None else datetime.fromisoformat(at).timestamp() + 1.0  # whole seconds


def _predicted(c: Comparison, own: float, generic: float, known_by: int, first: Record | None) -> dict[str, object]:
    """What was predicted of a comparison before the user said anything of the pair.

    Args:
        own, generic, known_by: as of now.
        first: the same pair, whatever the user preferred of it before.
    """
    if first is not None:  # what was learnt from the user's first word on the pair does not predict the second
        turned, known_by = first.chosen != c.chosen, first.known_by
        own, generic = ((1.0 - p if turned else p) for p in (first.expected, first.expected_generic))
    return {"expected": own, "expected_generic": generic, "known_by": known_by}


def _columns(c: Comparison) -> dict[str, object]:
    prompt = c.prompt if isinstance(c.prompt, str) else [m._asdict() for m in c.prompt]
    return {
        "prompt": to_json(prompt),
        "chosen": c.chosen,
        "rejected": c.rejected,
        "p_chosen": c.p_chosen,
        "user_text": c.user_text,
        "time": time.time(),
    }

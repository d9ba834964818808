"""How the service learns: a user's parameters after each feedback, and their fit to a new run in the background."""

import json
import logging
import math
import threading
import time
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple, cast

import torch
from sqlalchemy import Connection

from prm.checkpoint.checkpoint import Checkpoint
from prm.data.comparison import Comparison, parse_prompt
from prm.data.sources.store.reader import full_id
from prm.data.sources.store.schema import Record
from prm.errors import DataError, PrmError
from prm.io.run_files import read_run
from prm.models.reward_model import HeadInput, RewardModel
from prm.scoring.scorer import Scorer
from prm.training.heads.objective import PairFeatures
from prm.training.user_fit import fit_heads, penalty_of
from prm.users.user_model import UserModel
from rerank.service.config import ServiceConfig
from rerank.service.errors import BusyError, ConflictError, place_of
from rerank.service.judgements import SINGLE, Judgement, Kind
from rerank.service.people import People, Person
from rerank.service.store import Store, UserKey, to_json
from rerank.service.texts import TextFeatures, TextRequest

logger = logging.getLogger(__name__)

_TRIES = 50  # of an update that other replicas were quicker with
_LOCKS = 256
_REFIT_AT_ONCE = 100
_PAUSE = 5.0  # seconds between tries of what failed in the background
_TEXTS_AT_ONCE = 512  # read for one user; no more than may wait, so that a long log can be read


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


class Learner:
    """Takes users' feedback into their parameters; safe to call from many threads.

    Args:
        scorer: of the service's run.
    """

    def __init__(self, scorer: Scorer, store: Store, people: People, texts: TextFeatures, config: ServiceConfig):
        checkpoint = cast(Checkpoint[RewardModel], scorer.checkpoint)
        self.scorer, self.store, self.people, self.texts, self.config = scorer, store, people, texts, config
        self._user_l2, self._trained = penalty_of(checkpoint), _trained(checkpoint)
        self._locks = [threading.Lock() for _ in range(_LOCKS)]
        self._stopping = threading.Event()
        self._background = threading.Thread(target=self._keep_up, name="refits users", daemon=True)
        self._background.start()

    def close(self) -> None:
        """Stop the background thread."""
        self._stopping.set()
        self.people.wake()
        self._background.join()

    def lock(self, who: UserKey) -> threading.Lock:
        """The lock under which this process changes a user."""
        return self._locks[hash(who) % _LOCKS]

    def learn(self, who: UserKey, judgement: Judgement, key: str, shown_id: str | None) -> Receipt:
        """Learn from a feedback; see `Engine.give_feedback`."""
        body = to_json(judgement.to_row())
        if (receipt := self._before(who, key, judgement, body)) is not None:
            return receipt
        with self.lock(who):
            for _ in range(_TRIES):
                if (receipt := self._learn(who, judgement, key, body, shown_id)) is not None:
                    return receipt
        raise BusyError("other replicas keep updating this user")

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
            parts.append(self.texts.get(texts[start : start + size], time.monotonic() + self.config.timeout))
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
                        with self.lock(user):
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

"""Stores that are written row by row, as a service would have."""

import json
from collections.abc import Sequence

import numpy as np
from sqlalchemy import insert

from prm.data.sources.store.schema import comparisons, feedback, shown
from rerank.service.judgements import Judgement, Kind
from rerank.service.store import Store, to_json

Row = dict[str, object]
DAY = 86_400.0
START = 1_767_571_200.0  # Monday, 2026-01-05


class Writer:
    """Writes what people were shown and said, in the order of the calls, a minute apart."""

    def __init__(self, url: str):
        self.store, self._n, self.time = Store(url), 0, START

    def show(
        self,
        user: str | None,
        responses: Sequence[str | None] = ("a", "b", "c"),
        personal: int = 0,
        generic: int = 1,
        held_out: bool = False,
        p_personal: float = 0.75,
        prompt: str = "why?",
        known_by: int = 5,
    ) -> str:
        """A ranking; returns its id."""
        row: Row = {"prompt": to_json(prompt), "responses": to_json(list(responses)), "held_out": held_out}
        row |= {"personal": personal, "generic": generic, "p_personal": p_personal, "comparisons": known_by}
        self._n, self.time = self._n + 1, self.time + 60
        number = f"shown-{self._n}"
        self.store.add_shown([{"id": number, "namespace": "", "user_id": user, "time": self.time, **row}])
        return number

    def say(
        self,
        user: str,
        kind: Kind,
        responses: Sequence[str],
        value: float | None,
        shown_id: str | None = None,
        prompt: str = "why?",
        expected: Sequence[tuple[float, float]] = (),
        p_chosen: float = 1.0,
        known_by: int = 0,
    ) -> None:
        """A feedback, with the comparisons that follow from it: P of each by the person, and by the generic user."""
        self._n, self.time = self._n + 1, self.time + 60
        judgement = Judgement(kind, prompt, tuple(responses), value)
        row: Row = {"idempotency_key": str(self._n), "kind": kind, "prompt_key": judgement.prompt_digest}
        row |= {"body": to_json(judgement.to_row()), "shown_id": shown_id, "received": self.time}
        common: Row = {"chosen": "a", "rejected": "b", "p_chosen": p_chosen, "user_text": "", "known_by": known_by}
        common |= {"prompt": json.dumps(prompt), "time": self.time}
        with self.store.writing() as connection:
            number = self.store.add_feedback(connection, ("", user), row)
            assert number is not None
            said = [common | {"expected": own, "expected_generic": generic} for own, generic in expected]
            self.store.add_comparisons(connection, ("", user), number, said)


def planted(
    url: str, gain: float, held_out: bool = True, people: int = 60, each: int = 20, overconfident: float = 1.0
) -> None:
    """Half of the people are held out; `gain` is how much more often they pick the person's best of two responses.

    A person's parameters know P of each answer, which is 0.5 + `gain` / 2 for the person's best, and its logit is
    predicted `overconfident` times too large; the generic user's is 0.5.
    """
    draw, store = np.random.default_rng(0), Store(url)
    p = 0.5 + gain / 2
    logit = overconfident * np.log(p / (1 - p))
    rows, said, follow = list[Row](), list[Row](), list[Row]()
    for person in range(people):
        user, is_held_out = f"u{person}", held_out and person % 2 == 1
        for k in range(each):
            time, prompt = START + (k + person / people) * DAY, f"question {k}"
            took = draw.random() < p
            judgement = Judgement("pick", prompt, ("x", "y"), 0 if took else 1)
            name = f"{user}-{k}"
            own: Row = {"namespace": "", "user_id": user}
            rows.append(own | {"id": name, "prompt": to_json(prompt), "responses": to_json(["x", "y"])})
            rows[-1] |= {"held_out": is_held_out, "personal": 0, "generic": 1, "p_personal": p}
            rows[-1] |= {"comparisons": k, "time": time}
            said.append(own | {"idempotency_key": name, "kind": "pick", "prompt_key": judgement.prompt_digest})
            said[-1] |= {"body": to_json(judgement.to_row()), "shown_id": name, "received": time + 1}
            said[-1] |= {"id": len(said) + 1}
            sign = 1.0 if took else -1.0
            follow.append(own | {"feedback_id": len(said) + 1, "prompt": to_json(prompt), "p_chosen": 1.0})
            follow[-1] |= {"chosen": "xy"[not took], "rejected": "xy"[took], "user_text": "", "known_by": k}
            follow[-1] |= {"expected": 1 / (1 + np.exp(-sign * logit)), "expected_generic": 0.5, "time": time + 1}
    with store.writing() as connection:
        connection.execute(insert(shown), rows)
        connection.execute(insert(feedback), said)
        connection.execute(insert(comparisons), follow)
    store.close()

"""Judges that go by a rule: the answer that measures more wins."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from policy.judging.judges.duels import Duel, Judge, JudgedDuels
from prm.data.baselines import count_words
from prm.errors import PrmError

Rule = Callable[[str], float]  # an answer to how much of it there is of what the rule likes


def longer(answer: str) -> float:
    """More words."""
    return float(count_words(answer))


def shorter(answer: str) -> float:
    """Fewer words."""
    return -float(count_words(answer))


def contains(phrase: str) -> Rule:
    """The phrase stands in the answer, in upper or lower case."""
    return lambda answer: float(phrase.casefold() in answer.casefold())


def named_rule(name: str) -> Rule:
    """`longer`, `shorter`, or `contains:PHRASE`. Raises `PrmError` for anything else."""
    kind, _, phrase = name.partition(":")
    if kind == "contains" and phrase:
        return contains(phrase)
    if name not in (rules := {"longer": longer, "shorter": shorter}):
        raise PrmError(f"a rule is 'longer', 'shorter' or 'contains:PHRASE', got {name!r}")
    return rules[name]


def by_rule(rule: Rule) -> Judge:
    """One rule for everybody; equal measures tie."""
    return lambda duels: JudgedDuels(np.array([_score(rule, duel) for duel in duels], np.float64))


def by_person(rules: Mapping[str, Rule]) -> Judge:
    """Everybody by a rule of their own; duels of people without one are not judged."""

    def judge(duels: Sequence[Duel]) -> JudgedDuels:
        known = [rules.get(duel.user_id) for duel in duels]
        scores = [np.nan if rule is None else _score(rule, duel) for rule, duel in zip(known, duels, strict=True)]
        missing = {i: f"no rule: {duels[i].user_id}" for i, rule in enumerate(known) if rule is None}
        return JudgedDuels(np.array(scores, np.float64), missing)

    return judge


def _score(rule: Rule, duel: Duel) -> float:
    return float(np.sign(rule(duel.first) - rule(duel.second)) + 1.0) / 2.0

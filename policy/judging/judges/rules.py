"""Judges by a rule: the response with the higher value wins."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from policy.judging.judges.duels import Duel, Judge, JudgedDuels
from prm.data.baselines import count_words
from prm.errors import PrmError, meant

Rule = Callable[[str], float]  # from a response to its value


def longer(response: str) -> float:
    """The number of words."""
    return float(count_words(response))


def shorter(response: str) -> float:
    """Minus the number of words."""
    return -float(count_words(response))


def contains(phrase: str) -> Rule:
    """1 if the phrase is in the response, in upper or lower case, else 0."""
    return lambda response: float(phrase.casefold() in response.casefold())


def named_rule(name: str) -> Rule:
    """`longer`, `shorter`, or `contains:PHRASE`. Raises `PrmError` for anything else."""
    kind, _, phrase = name.partition(":")
    if kind == "contains" and phrase:
        return contains(phrase)
    if name not in (rules := {"longer": longer, "shorter": shorter}):
        near = meant(kind, [*rules, "contains"])
        raise PrmError(f"a rule is 'longer', 'shorter' or 'contains:PHRASE', got {name!r}{near}")
    return rules[name]


def by_rule(rule: Rule) -> Judge:
    """Judge by one rule for all users; equal values tie."""
    return lambda duels: JudgedDuels(np.array([_score(rule, duel) for duel in duels], np.float64))


def by_user(rules: Mapping[str, Rule]) -> Judge:
    """Judge by a rule for each user; duels of users without one are not judged."""

    def judge(duels: Sequence[Duel]) -> JudgedDuels:
        by_duel = [rules.get(duel.user_id) for duel in duels]
        scores = [np.nan if rule is None else _score(rule, duel) for rule, duel in zip(by_duel, duels, strict=True)]
        missing = {i: f"no rule: {duels[i].user_id}" for i, rule in enumerate(by_duel) if rule is None}
        return JudgedDuels(np.array(scores, np.float64), missing)

    return judge


def _score(rule: Rule, duel: Duel) -> float:
    return float(np.sign(rule(duel.first) - rule(duel.second)) + 1.0) / 2.0

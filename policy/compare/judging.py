"""Gold rewards of responses, by a rule or a gold reward model, and the judge that they make."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from policy.compare.config import CompareConfig
from policy.judging.judges import Duel, Judge, JudgedDuels, named_rule
from prm.data.comparison import Comparison, naming_rows, prompt_key
from prm.errors import DataError, PrmError
from prm.metrics import Array
from prm.scoring.scorer import Scorer

Gold = Callable[[Sequence[Comparison], Sequence[str]], Array]


def open_gold(config: CompareConfig) -> tuple[Gold, Callable[[Comparison], bool], str]:
    """(rewards of a response to each case, NaN for an empty one; whether it can judge a case; unit of the rewards)."""
    if config.judge.gold:
        scorer = Scorer.from_pretrained(config.resolve(config.judge.gold), cache=True)
        return gold_by_model(scorer), lambda c: scorer.knows(c.user_id), "in the judge's logits"
    field = config.judge.rule_field
    return gold_by_rule(field), lambda c: bool(c.metadata.get(field)), "as each user's rule counts"


def gold_rewards(gold: Gold, cases: Sequence[Comparison], responses: Mapping[str, Sequence[str]]) -> dict[str, Array]:
    """Rewards [n] by arm. A response without a reward gets the minimum over the arms' responses to the case.

    Raises `PrmError` if no response to a case has a reward.
    """
    names = list(responses)
    flat = gold([c for _ in names for c in cases], [text for name in names for text in responses[name]])
    values = flat.reshape(len(names), len(cases))
    if np.isnan(values).all(0).any():
        raise PrmError("all responses to a prompt are empty: the gold reward model cannot score them")
    return dict(zip(names, np.where(np.isnan(values), np.nanmin(values, axis=0), values), strict=True))


def by_reward(
    cases: Sequence[Comparison], responses: Mapping[str, Sequence[str]], rewards: Mapping[str, Array]
) -> Judge:
    """A judge that looks the rewards up: the response with the higher one wins."""
    known = {
        (c.user_id, prompt_key(c.prompt), text): float(value)
        for name, texts in responses.items()
        for c, text, value in zip(cases, texts, rewards[name], strict=True)
    }

    def judge(duels: Sequence[Duel]) -> JudgedDuels:
        pairs = [[known[d.user_id, prompt_key(d.prompt), text] for text in (d.first, d.second)] for d in duels]
        margins = np.array([first - second for first, second in pairs])
        return JudgedDuels(0.5 * (1.0 + np.sign(margins)))

    return judge


def mixed_rules(config: CompareConfig, cases: Sequence[Comparison]) -> list[str]:
    """A sentence if the users' rules have different units."""
    field = config.judge.rule_field
    if not field or len({str(c.metadata[field]).startswith("contains:") for c in cases}) < 2:
        return []
    return [
        "Some users' rules count words, others' are 0 or 1: rewards and gains over everybody mix unlike units. "
        "Use wins, and groups with one rule."
    ]


def gold_by_rule(field: str) -> Gold:
    """Rewards by the rule that stands in a metadata field of each case."""

    def rewards(cases: Sequence[Comparison], responses: Sequence[str]) -> Array:
        rules = {name: named_rule(name) for name in {str(c.metadata[field]) for c in cases}}
        return np.array([rules[str(c.metadata[field])](r) for c, r in zip(cases, responses, strict=True)], np.float64)

    return rewards


def gold_by_model(scorer: Scorer, skip_unreadable: bool = False) -> Gold:
    """Rewards by a reward model, NaN for empty responses.

    Args:
        skip_unreadable: also NaN for what does not fit its `max_length`, which otherwise raises `DataError`.
    """

    def rewards(cases: Sequence[Comparison], responses: Sequence[str]) -> Array:
        out = np.full(len(cases), np.nan)
        scored = [i for i, response in enumerate(responses) if scorer.reader.has_tokens(response)]
        if skip_unreadable:
            scored = [i for i in scored if _fits(scorer, cases[i], responses[i])]
        chosen = [cases[i] for i in scored]
        rows = [
            (f"a response to the prompt of {c.origin or 'a case'}", (c, responses[i])) for i, c in zip(scored, chosen)
        ]
        with naming_rows(rows, lambda row: scorer.reader.check(row[0].prompt, row[1], row[0].user_text)):
            values = scorer.score_batch(
                [c.prompt for c in chosen],
                [responses[i] for i in scored],
                [c.user_id for c in chosen],
                [c.user_text for c in chosen],
            )
        out[scored] = values.double().numpy()
        return out

    return rewards


def _fits(scorer: Scorer, case: Comparison, response: str) -> bool:
    try:
        scorer.reader.check(case.prompt, response, case.user_text)
    except DataError:
        return False
    return True

"""What is true of an answer for a person: a number from a rule or a gold reward model, and the duels it decides."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from policy.compare.config import CompareConfig
from policy.judging.judges import Duel, Judge, JudgedDuels, named_rule
from prm.data.comparison import Comparison, naming_rows, prompt_key
from prm.errors import PrmError
from prm.metrics import Array
from prm.scoring.scorer import Scorer

Gold = Callable[[Sequence[Comparison], Sequence[str]], Array]


def open_gold(config: CompareConfig) -> tuple[Gold, Callable[[Comparison], bool], str]:
    """(rewards of an answer to each case, NaN for what cannot be read; whom it can judge; in which unit)."""
    if config.judge.gold:
        scorer = Scorer.from_pretrained(config.place(config.judge.gold), cache=True)
        return _by_model(scorer), lambda c: scorer.knows(c.user_id), "in the judge's logits"
    field = config.judge.rule_field
    return _by_rule(field), lambda c: bool(c.metadata.get(field)), "as each person's rule counts"


def gold_rewards(gold: Gold, cases: Sequence[Comparison], answers: Mapping[str, Sequence[str]]) -> dict[str, Array]:
    """Rewards [n] by arm. What cannot be read is worth the least that any arm's answer to the case is.

    Raises `PrmError` where a case has no answer that can be read.
    """
    names = list(answers)
    flat = gold([c for _ in names for c in cases], [text for name in names for text in answers[name]])
    values = flat.reshape(len(names), len(cases))
    if np.isnan(values).all(0).any():
        raise PrmError("all answers to a prompt are empty, and the gold reward model cannot read them")
    return dict(zip(names, np.where(np.isnan(values), np.nanmin(values, axis=0), values), strict=True))


def by_reward(cases: Sequence[Comparison], answers: Mapping[str, Sequence[str]], rewards: Mapping[str, Array]) -> Judge:
    """The answer with the higher reward wins; what was scored once decides every duel."""
    known = {
        (c.user_id, prompt_key(c.prompt), text): float(value)
        for name, texts in answers.items()
        for c, text, value in zip(cases, texts, rewards[name], strict=True)
    }

    def judge(duels: Sequence[Duel]) -> JudgedDuels:
        pairs = [[known[d.user_id, prompt_key(d.prompt), text] for text in (d.first, d.second)] for d in duels]
        margins = np.array([first - second for first, second in pairs])
        return JudgedDuels(0.5 * (1.0 + np.sign(margins)))

    return judge


def mixed_rules(config: CompareConfig, cases: Sequence[Comparison]) -> list[str]:
    """A sentence where people's rules count different things."""
    field = config.judge.rule_field
    if not field or len({str(c.metadata[field]).startswith("contains:") for c in cases}) < 2:
        return []
    return [
        "Some people's rules count words, others' are 0 or 1: rewards and gains of everybody together add up unlike "
        "things. Go by wins, and by groups of one rule."
    ]


def _by_rule(field: str) -> Gold:
    def rewards(cases: Sequence[Comparison], answers: Sequence[str]) -> Array:
        rules = {name: named_rule(name) for name in {str(c.metadata[field]) for c in cases}}
        return np.array([rules[str(c.metadata[field])](a) for c, a in zip(cases, answers, strict=True)], np.float64)

    return rewards


def _by_model(scorer: Scorer) -> Gold:
    def rewards(cases: Sequence[Comparison], answers: Sequence[str]) -> Array:
        out = np.full(len(cases), np.nan)
        read = [i for i, answer in enumerate(answers) if scorer.fits(answer)]
        chosen = [cases[i] for i in read]
        rows = [(f"an answer to the prompt of {c.origin or 'a case'}", (c, answers[i])) for i, c in zip(read, chosen)]
        with naming_rows(rows, lambda row: scorer.check_length(row[0].prompt, row[1], row[0].user_text)):
            found = scorer.score_batch(
                [c.prompt for c in chosen],
                [answers[i] for i in read],
                [c.user_id for c in chosen],
                [c.user_text for c in chosen],
            )
        out[read] = found.double().numpy()
        return out

    return rewards

"""A reward model that was trained on other data, as judge."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from policy.judging.judges.duels import Duel, Judge, JudgedDuels
from prm.data.comparison import naming_rows

if TYPE_CHECKING:
    from prm.scoring.scorer import Scorer


def gold(scorer: "Scorer", tie_below: float = 0.0, strangers: bool = False) -> Judge:
    """The answer with the higher reward wins; an empty one loses, as a reward model cannot read it.

    It is gold only if it learnt nothing from what trained the judged models.

    Args:
        tie_below: margins up to here, in logits, are ties.
        strangers: judge also for people that it does not know, as its unknown user would.
    """

    def judge(duels: Sequence[Duel]) -> JudgedDuels:
        scores = np.full(len(duels), np.nan)
        unknown = {i for i, duel in enumerate(duels) if not (strangers or scorer.knows(duel.user_id))}
        read = []
        for i, duel in enumerate(duels):
            if i in unknown:
                continue
            has = scorer.fits(duel.first), scorer.fits(duel.second)
            if all(has) and duel.first != duel.second:
                read.append(i)
            else:
                scores[i] = 0.5 * (1 + has[0] - has[1])
        if read:
            scores[read] = _by_margin(scorer, [duels[i] for i in read], tie_below)
        return JudgedDuels(scores, {i: f"unknown to the gold model: {duels[i].user_id}" for i in sorted(unknown)})

    return judge


def _by_margin(scorer: "Scorer", duels: Sequence[Duel], tie_below: float) -> list[float]:
    answers = [(place, (d, text)) for d in duels for place, text in zip(d.origins, (d.first, d.second), strict=True)]
    with naming_rows(answers, lambda row: scorer.check_length(row[0].prompt, row[1], row[0].user_text)):
        margins = scorer.margin_batch(
            [duel.prompt for duel in duels],
            [duel.first for duel in duels],
            [duel.second for duel in duels],
            [duel.user_id for duel in duels],
            [duel.user_text for duel in duels],
        ).tolist()
    return [0.5 if abs(margin) <= tie_below else float(margin > 0) for margin in margins]

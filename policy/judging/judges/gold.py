"""A reward model that was trained on other data, used as a judge."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from policy.judging.judges.duels import Duel, Judge, JudgedDuels
from prm.data.comparison import naming_rows

if TYPE_CHECKING:
    from prm.scoring.scorer import Scorer


def gold(scorer: "Scorer", tie_below: float = 0.0, generic: bool = False) -> Judge:
    """Make a judge: the response with the higher reward wins; an empty one loses, as it has no reward.

    The model is gold only if it was not trained on the data of the models that it judges.

    Args:
        tie_below: margins of at most this size, in logits, are ties.
        generic: also judge for users that the model does not know, with the reward of the generic user.
    """

    def judge(duels: Sequence[Duel]) -> JudgedDuels:
        scores = np.full(len(duels), np.nan)
        unknown = {i for i, duel in enumerate(duels) if not (generic or scorer.knows(duel.user_id))}
        scored = []
        for i, duel in enumerate(duels):
            if i in unknown:
                continue
            readable = scorer.reader.has_tokens(duel.first), scorer.reader.has_tokens(duel.second)
            if all(readable) and duel.first != duel.second:
                scored.append(i)
            else:
                scores[i] = 0.5 * (1 + readable[0] - readable[1])
        if scored:
            scores[scored] = _by_margin(scorer, [duels[i] for i in scored], tie_below)
        return JudgedDuels(scores, {i: f"unknown to the gold model: {duels[i].user_id}" for i in sorted(unknown)})

    return judge


def _by_margin(scorer: "Scorer", duels: Sequence[Duel], tie_below: float) -> list[float]:
    rows = [(origin, (d, text)) for d in duels for origin, text in zip(d.origins, (d.first, d.second), strict=True)]
    with naming_rows(rows, lambda row: scorer.reader.check(row[0].prompt, row[1], row[0].user_text)):
        margins = scorer.margin_batch(
            [duel.prompt for duel in duels],
            [duel.first for duel in duels],
            [duel.second for duel in duels],
            [duel.user_id for duel in duels],
            [duel.user_text for duel in duels],
        ).tolist()
    return [0.5 if abs(margin) <= tie_below else float(margin > 0) for margin in margins]

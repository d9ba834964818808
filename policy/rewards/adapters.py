"""The scorer as the reward of TRL's trainers (`RLOOTrainer`, `GRPOTrainer`: `reward_funcs`), as TRL 1.16 calls it.

Rewards are logits. A policy may answer with nothing, which no reward model can read: that gets `empty`, which should
lie below what real answers get. `examples/` has the same for verl and OpenRLHF.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from prm.data.comparison import require_list
from prm.errors import PrmError

if TYPE_CHECKING:
    from prm.scoring.scorer import Scorer

EMPTY = -10.0


def trl_reward(
    scorer: "Scorer", user_column: str = "user_id", text_column: str = "user_text", empty: float = EMPTY
) -> Callable[..., list[float]]:
    """A function for TRL's `reward_funcs`; the data set needs a column with the user, `None` for the unknown one.

    TRL hands over prompts and completions, as texts or as messages, and every other column as a list, all repeated
    for each generation. A column with the person's own text is read where there is one. Raises `PrmError` where the
    user column is missing: everybody would be the unknown user, and nobody would notice.
    """

    def personal_reward(prompts: list[Any], completions: list[Any], **columns: Any) -> list[float]:
        if user_column not in columns:
            raise PrmError(f"the data set has no column {user_column!r}; name the users' column with 'user_column'")
        done, users = require_list("completions", completions), require_list(user_column, columns[user_column])
        answers = [c if isinstance(c, str) else c[-1]["content"] or "" for c in done]
        given = columns.get(text_column)
        texts = [""] * len(answers) if given is None else [text or "" for text in require_list(text_column, given)]
        return _rewards(scorer, require_list("prompts", prompts), answers, users, texts, empty)

    return personal_reward


def _rewards(
    scorer: "Scorer",
    prompts: Sequence[Any],
    answers: Sequence[str],
    users: Sequence[str | None],
    texts: Sequence[str],
    empty: float,
) -> list[float]:
    """One reward for each row, by the scorer where there is an answer to read."""
    out = [empty] * len(answers)
    read = [i for i, answer in enumerate(answers) if scorer.fits(answer)]
    if read:
        rewards = scorer.score_batch(
            [prompts[i] for i in read], [answers[i] for i in read], [users[i] for i in read], [texts[i] for i in read]
        )
        for i, reward in zip(read, rewards.tolist(), strict=True):
            out[i] = reward
    return out

"""Use a scorer as `reward_funcs` of TRL's trainers (`RLOOTrainer`, `GRPOTrainer`), as called by TRL 1.16.

Rewards are logits. An empty response, which cannot be scored, gets the reward `empty`, which should be below those of
other responses. `examples/` has the same for verl and OpenRLHF.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from prm.data.arguments import Prompts, Texts, Users, require_list
from prm.errors import PrmError

if TYPE_CHECKING:
    from prm.scoring.scorer import Scorer

EMPTY = -10.0

Completion = str | Sequence[Mapping[str, str]]  # as TRL passes it: text, or messages


def trl_reward(
    scorer: "Scorer", user_column: str = "user_id", text_column: str = "user_text", empty: float = EMPTY
) -> Callable[..., list[float]]:
    """Build a function for TRL's `reward_funcs`; the data set needs a user column, `None` for the generic user.

    TRL passes prompts and completions, as texts or messages, and every other column as a list, all repeated for each
    generation. A column with the user's text is used if there is one. The function raises `PrmError` if the user
    column is missing: otherwise every user would silently be the generic user.
    """

    def personal_reward(
        prompts: Prompts, completions: Sequence[Completion], **columns: Sequence[str | None]
    ) -> list[float]:
        if user_column not in columns:
            raise PrmError(f"the data set has no column {user_column!r}; name the users' column with 'user_column'")
        contents, users = require_list("completions", completions), require_list(user_column, columns[user_column])
        responses, column = [text_of(content) for content in contents], columns.get(text_column)
        texts = [""] * len(responses) if column is None else [t or "" for t in require_list(text_column, column)]
        return _rewards(scorer, require_list("prompts", prompts), responses, users, texts, empty)

    return personal_reward


def text_of(completion: Completion) -> str:
    """The text of a completion: its own, or the content of its last message."""
    return completion if isinstance(completion, str) else completion[-1]["content"] or ""


def _rewards(
    scorer: "Scorer", prompts: Prompts, responses: Texts, users: Users, texts: Texts, empty: float
) -> list[float]:
    """One reward per row: the scorer's, or `empty` if there is no response to score."""
    rewards = [empty] * len(responses)
    scorable = [i for i, response in enumerate(responses) if scorer.reader.has_tokens(response)]
    if scorable:
        scores = scorer.score_batch(
            [prompts[i] for i in scorable],
            [responses[i] for i in scorable],
            [users[i] for i in scorable],
            [texts[i] for i in scorable],
        )
        for i, reward in zip(scorable, scores.tolist(), strict=True):
            rewards[i] = reward
    return rewards

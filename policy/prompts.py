"""The schedule of prompts and users in online training: users take turns over the prompts of a log."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from prm.data.comparison import Comparison, Prompt, as_messages
from prm.data.encoding import TextEncoder
from prm.errors import DataError, PrmError
from prm.users.index import UserIndex

Item = TypeVar("Item")


class UserPrompt(NamedTuple):
    """A prompt of one user.

    Args:
        user: `None` is the generic user.
        row: the user's row of the user model.
        ids: user, user text and prompt, up to the start of the response.
        plain_ids: the prompt alone, as the reference reads it.
    """

    prompt: Prompt
    user: str | None
    user_text: str
    row: int
    ids: list[int]
    plain_ids: list[int]


def balanced_prompts(
    prompts: Sequence[Prompt], people: Sequence[str], n: int, alpha: float, seed: int
) -> list[tuple[Prompt, str | None]]:
    """Pair n prompts with users; any stretch of the list holds all users, and all prompts, equally often.

    Both come in rounds, each in a new order, so that no user gets the same prompts every time.

    Args:
        alpha: share of the prompts with a user; the rest go to the generic user.
    """
    next_prompts, next_users = rounds(prompts, f"{seed} prompts", 0, n), rounds(people, f"{seed} people", 0, n)
    has_user = [int((i + 1) * alpha + 1e-9) > int(i * alpha + 1e-9) for i in range(n)]  # spread evenly
    return [(next(next_prompts), next(next_users) if personal and people else None) for personal in has_user]


def texts_of(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """Each user's last text."""
    return {c.user_id: c.user_text for c in comparisons if c.user_text}


def encode_prompts(
    encoder: TextEncoder, users: UserIndex, asked: Sequence[tuple[Prompt, str | None]], texts: dict[str, str]
) -> list[UserPrompt]:
    """Encode the prompts for the policy, without truncation."""
    plain = {prompt: encoder.template_ids(as_messages(prompt)) for prompt in dict.fromkeys(p for p, _ in asked)}
    encoded = []
    for prompt, user in asked:
        row, text = users.row(user), texts.get(user or "", "")
        encoded.append(UserPrompt(prompt, user, text, row, encoder.encode_prompt(prompt, row, text), plain[prompt]))
    return encoded


def prompts_that_fit(
    encoder: TextEncoder, prompts: Sequence[Prompt], texts: Iterable[str], max_new_tokens: int
) -> list[Prompt]:
    """The distinct prompts that leave room for a response in `encoder.max_length`, whatever the user.

    Args:
        texts: the users' texts; the longest one must fit.

    Raises `PrmError` if no prompt fits.
    """
    distinct = list(dict.fromkeys(prompts))
    longest_text = max(texts, key=lambda text: len(encoder.text_ids(text)), default="")
    room = encoder.max_length - max_new_tokens
    fit = [prompt for prompt in distinct if _length(encoder, prompt, longest_text) <= room]
    if not fit:
        raise PrmError(
            f"config key 'backbone.max_length': none of {len(distinct)} prompts fits into {room} tokens: "
            f"a response takes {max_new_tokens} of {encoder.max_length}"
        )
    return fit


def _length(encoder: TextEncoder, prompt: Prompt, text: str) -> float:
    """Number of tokens of a prompt; infinite if it cannot be encoded."""
    try:
        return len(encoder.encode_prompt(prompt, 0, text))
    except DataError:
        return float("inf")


def rounds(items: Sequence[Item], seed: str, start: int, n: int) -> Iterator[Item]:
    """Items `start` to `start + n` of an endless list of rounds; each round holds all items in a new order."""
    order: list[Item] = []
    for number in range(start, start + n):
        turn, index = divmod(number, len(items))
        if not order or index == 0:
            order = random.Random(f"{seed} {turn}").sample(items, len(items))
        yield order[index]

"""Who is asked what in a run that learns from its own answers: people in turn, over the prompts of a log."""

import random
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from prm.data.comparison import Comparison, Prompt, as_messages
from prm.data.encoding import TextEncoder
from prm.errors import DataError, PrmError
from prm.users.index import UserIndex

Item = TypeVar("Item")


class UserPrompt(NamedTuple):
    """A prompt as one person asks it.

    Args:
        user: `None` is the unknown user.
        row: of the user model.
        ids: user, user text and prompt, up to where the answer begins.
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
    """n prompts and who asks them. Any stretch of the list holds everybody alike, and so it is with prompts.

    Both come in rounds, each in a new order, so that nobody has prompts of their own.

    Args:
        alpha: share that people ask; the unknown user asks the rest.
    """
    asked, who = rounds(prompts, f"{seed} prompts", 0, n), rounds(people, f"{seed} people", 0, n)
    turns = [int((i + 1) * alpha + 1e-9) > int(i * alpha + 1e-9) for i in range(n)]  # spread as evenly as they can be
    return [(next(asked), next(who) if personal and people else None) for personal in turns]


def texts_of(comparisons: Sequence[Comparison]) -> dict[str, str]:
    """What each person last said of themselves."""
    return {c.user_id: c.user_text for c in comparisons if c.user_text}


def encode_prompts(
    encoder: TextEncoder, users: UserIndex, asked: Sequence[tuple[Prompt, str | None]], texts: dict[str, str]
) -> list[UserPrompt]:
    """The questions as the policy reads them; nothing is cut."""
    plain = {prompt: encoder.template_ids(as_messages(prompt)) for prompt in dict.fromkeys(p for p, _ in asked)}
    found = []
    for prompt, user in asked:
        row, text = users.row(user), texts.get(user or "", "")
        found.append(UserPrompt(prompt, user, text, row, encoder.encode_question(prompt, row, text), plain[prompt]))
    return found


def prompts_that_fit(
    encoder: TextEncoder, prompts: Sequence[Prompt], texts: Iterable[str], max_new_tokens: int
) -> list[Prompt]:
    """The distinct prompts that leave room for an answer in `encoder.max_length`, whoever asks them.

    Args:
        texts: what people say of themselves; the longest stands for all.

    Raises `PrmError` where there is none.
    """
    distinct = list(dict.fromkeys(prompts))
    longest_text = max(texts, key=lambda text: len(encoder.text_ids(text)), default="")
    room = encoder.max_length - max_new_tokens
    fit = [prompt for prompt in distinct if _length(encoder, prompt, longest_text) <= room]
    if not fit:
        raise PrmError(
            f"config key 'backbone.max_length': none of {len(distinct)} prompts fits {room} tokens, which answers of "
            f"{max_new_tokens} leave of {encoder.max_length}"
        )
    return fit


def _length(encoder: TextEncoder, prompt: Prompt, text: str) -> float:
    """Tokens of a question; endless where it cannot be read at all."""
    try:
        return len(encoder.encode_question(prompt, 0, text))
    except DataError:
        return float("inf")


def rounds(items: Sequence[Item], seed: str, start: int, n: int) -> Iterator[Item]:
    """Items number `start` to `start + n` of an endless list that is round after round of all, each in a new order."""
    order: list[Item] = []
    for number in range(start, start + n):
        turn, place = divmod(number, len(items))
        if not order or place == 0:
            order = random.Random(f"{seed} {turn}").sample(items, len(items))
        yield order[place]

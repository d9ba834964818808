"""Truncation of what is too long: the oldest prompt text is cut first, user and response never."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from prm.data.comparison import Message
from prm.errors import DataError


def cut_to_fit(
    messages: Sequence[Message],
    ids_of: Callable[[Sequence[Message]], list[int]],
    tokenizer: PreTrainedTokenizerBase,
    space: int,
    max_length: int,
) -> tuple[int, list[int]]:
    """(number of ids of the whole conversation, its ids, cut to at most `space`).

    Whole turns go first, the oldest before the others, then the beginning of the last message. A system message stays.

    Args:
        ids_of: ids of a conversation, with the chat template.
        max_length: of the whole sequence, for the error.

    Raises `DataError` if the template alone leaves no space for a token of the last message.
    """
    messages = list(messages)
    ids = ids_of(messages)
    full = len(ids)
    while len(ids) > space and (shorter := _without_oldest_turn(messages)) is not None:
        messages = shorter
        ids = ids_of(messages)
    while len(ids) > space:
        last = messages[-1]
        messages[-1] = last._replace(
            content=_drop_beginning(last.content, tokenizer, len(ids) - space, space, max_length)
        )
        ids = ids_of(messages)
    return full, ids


def _without_oldest_turn(messages: list[Message]) -> list[Message] | None:
    """The system message and the conversation from its second user turn on; `None` without a second one."""
    system = 1 if messages[0].role == "system" else 0
    later_turns = [i for i in range(system + 1, len(messages)) if messages[i].role == "user"]
    return messages[:system] + messages[later_turns[0] :] if later_turns else None


def _drop_beginning(text: str, tokenizer: PreTrainedTokenizerBase, n: int, space: int, max_length: int) -> str:
    """The text without its first n tokens."""
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    # several tokens may share one character: move the cut to the next character
    while 0 < n < len(offsets) and offsets[n][0] == offsets[n - 1][0]:
        n += 1
    if n >= len(offsets):
        raise DataError(
            f"the response, with the user and the chat template, takes {max_length - space} tokens, and the "
            f"model reads {max_length} in all: not enough is left for the prompt; shorten the response, or raise "
            f"'backbone.max_length' to {max_length + n - len(offsets) + 1} at least"
        )
    return text[offsets[n][0] :]

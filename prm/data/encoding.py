"""Encodes texts as token ids.

A sequence is `[user ids] [user text] prompt response end` with the user as a prefix, or
`[user text] prompt response end [user ids]` as a suffix. If the tokenizer or the chat template writes a
beginning-of-text token, it comes first: many models attend to it in every text. Prompt and response are tokenised
separately, so that all responses to a prompt share its ids exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prm.config import Position
from prm.data.chat_template import ChatTemplate, ending_of
from prm.data.comparison import Message, Prompt, as_messages
from prm.data.truncation import cut_to_fit
from prm.errors import DataError


class Encoded(NamedTuple):
    """One sequence: `ids`, and the half-open range of positions of the response's text."""

    ids: list[int]
    response: tuple[int, int]


@dataclass
class Cuts:
    """Counts of truncated sequences and of tokens removed from them."""

    sequences: int = 0
    tokens: int = 0


class TextEncoder:
    """Encodes (user row, user text, prompt, response) as ids.

    Args:
        tokenizer: the backbone's; its chat template is applied if it has one.
        vocab_size: V, rows of the backbone's input embedding; user ids start there.
        user_tokens: T_u, ids per user; 0 leaves the user out.
        position: of the user's ids; `apart` is before everything, for linear heads, which remove them again.
        max_length: maximum ids per sequence. The oldest prompt text is cut first; user and response stay.
        whole_ending: end with everything that the chat template writes after a response, line breaks included, as
            reward models read it; otherwise with the end of the turn.
        day: ISO date that the chat template takes for today; the current date if empty.

    Raises `PrmError` for a broken chat template.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        user_tokens: int,
        position: Position | Literal["apart"],
        max_length: int,
        whole_ending: bool = False,
        day: str = "",
    ):
        self.tokenizer, self.vocab_size, self.user_tokens = tokenizer, vocab_size, user_tokens
        self.position, self.max_length = position, max_length
        self.cuts = Cuts()
        self.template = ChatTemplate(tokenizer, day) if tokenizer.chat_template is not None else None
        self.end_ids, self.stop_ids = ending_of(tokenizer, self.template, whole_ending)
        # responses to one prompt often come one after another; replaced as a whole, so that threads may share it
        self._last_prompt: tuple[tuple[Message, ...], list[int]] = ((), [])

    def user_ids(self, row: int) -> list[int]:
        """The T_u ids of a row: V + row T_u + slot."""
        first = self.vocab_size + row * self.user_tokens
        return list(range(first, first + self.user_tokens))

    def encode(self, prompt: Prompt, response: str, row: int = 0, user_text: str = "") -> Encoded:
        """One sequence. Raises `DataError` if user and response leave no space for prompt text."""
        return self._sequence(*self._parts(prompt, response, user_text), self.user_ids(row))

    def for_user(self, sequence: Encoded, row: int) -> Encoded:
        """The same sequence with the ids of another user."""
        user = self._user_of(sequence)
        return sequence._replace(ids=[*sequence.ids[: user.start], *self.user_ids(row), *sequence.ids[user.stop :]])

    def without_user(self, sequence: Encoded) -> Encoded:
        """The same sequence without the user's ids."""
        user, (start, end) = self._user_of(sequence), sequence.response
        ids, moved = (
            [*sequence.ids[: user.start], *sequence.ids[user.stop :]],
            self.user_tokens * (user.start < start),
        )
        return Encoded(ids, (start - moved, end - moved))

    def encode_with_plain(
        self, prompt: Prompt, response: str, row: int = 0, user_text: str = ""
    ) -> tuple[Encoded, Encoded]:
        """(the sequence, the same prompt and response without user and user text), for models without users.

        Both are truncated alike. Raises as `encode` does.
        """
        text_ids, prompt_ids, response_ids = self._parts(prompt, response, user_text)
        return self._sequence(text_ids, prompt_ids, response_ids, self.user_ids(row)), self._sequence(
            [], prompt_ids, response_ids, []
        )

    def encode_prompt(self, prompt: Prompt, row: int = 0, user_text: str = "") -> list[int]:
        """Ids of the user and the prompt, up to where the response begins, untruncated.

        Raises `DataError` for a bad prompt.
        """
        prompt_ids = _some(self.template_ids(as_messages(prompt)), "prompt")
        return self._with_user(self._joined(self.text_ids(user_text), prompt_ids), self.user_ids(row))

    def _parts(self, prompt: Prompt, response: str, user_text: str) -> tuple[list[int], list[int], list[int]]:
        """Ids of user text, prompt and response; the prompt is cut to the space that the others leave."""
        response_ids, text_ids = _some(self.ids(response), "response") if response else [], self.text_ids(user_text)
        space = self.max_length - len(response_ids) - len(self.end_ids) - self.user_tokens - len(text_ids)
        return text_ids, _some(self._prompt_ids(prompt, space), "prompt"), response_ids

    def _sequence(self, text: list[int], prompt: list[int], response: list[int], user: list[int]) -> Encoded:
        is_suffix = self.position == "suffix"
        before = self._joined(text, prompt)
        before = before if is_suffix else self._with_user(before, user)
        ids = [*before, *response, *self.end_ids, *(user if is_suffix else [])]
        return Encoded(ids, (len(before), len(before) + len(response)))

    def _with_user(self, before: list[int], user: list[int]) -> list[int]:
        start = 0 if self.position == "apart" else self._bos_in(before)
        return [*before[:start], *user, *before[start:]]

    def _user_of(self, sequence: Encoded) -> slice:
        """Positions of the user's ids."""
        ids, n = sequence.ids, self.user_tokens
        start = len(ids) - n if self.position == "suffix" else int(n > 0 and ids[0] < self.vocab_size)
        return slice(start, start + n)

    def text_ids(self, user_text: str) -> list[int]:
        """Ids of a user's text as it stands before a prompt. Raises `DataError` if it has no tokens."""
        if not user_text:
            return []
        ids, ending = self.ids(user_text + "\n\n"), self.ids("\n\n")
        return _some(ids if ids != ending else [], "user_text")

    def _joined(self, text: list[int], prompt: list[int]) -> list[int]:
        start = self._bos_in(prompt)
        return [*prompt[:start], *text, *prompt[start:]]

    def _bos_in(self, ids: list[int]) -> int:
        """Number of beginning-of-text tokens: 1 or 0."""
        bos = self.tokenizer.bos_token_id
        return int(bos is not None and ids[:1] == [bos])

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The conversation as the backbone reads it, up to where the response begins.

        Raises `DataError` if the chat template refuses it.
        """
        if self.template is not None:
            return self.template(messages, answer_follows=True)
        if len(messages) == 1:
            return messages[0].content
        return "\n\n".join(f"{m.role}: {m.content}" for m in messages) + "\n\nassistant: "

    def _prompt_ids(self, prompt: Prompt, space: int) -> list[int]:
        messages = tuple(as_messages(prompt))
        last, whole = self._last_prompt
        if messages != last:
            whole = self.template_ids(messages)
            self._last_prompt = messages, whole

        def ids_of(some: Sequence[Message]) -> list[int]:
            return list(whole) if tuple(some) == messages else self.template_ids(some)

        full, ids = cut_to_fit(messages, ids_of, self.tokenizer, space, self.max_length)
        self.cuts.sequences += len(ids) < full
        self.cuts.tokens += full - len(ids)
        return ids

    def template_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the conversation, up to where the response begins, untruncated."""
        # a chat template writes its own first token
        return self.ids(self.prompt_text(messages), special=self.template is None)

    def ids(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text; with `special`, after the special tokens with which the tokenizer begins a text."""
        ids = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        if special and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]  # some tokenizers also end every text
        return list(ids)


def _some(ids: list[int], what: str) -> list[int]:
    """The ids. Raises `DataError` if there are none."""
    if not ids:
        raise DataError(f"no token is left of the {what}: the tokenizer drops all of its characters")
    return ids


class Batch(NamedTuple):
    """Right-padded sequences: `attention_mask` is True on real tokens, `response_mask` on the response's text."""

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


def pad(sequences: Sequence[Encoded]) -> Batch:
    """int64 ids and bool masks, [b, longest]. Padding has id 0; only the mask distinguishes it."""
    width = max(len(s.ids) for s in sequences)
    ids = torch.zeros(len(sequences), width, dtype=torch.long)
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    response = torch.zeros_like(mask)
    for i, sequence in enumerate(sequences):
        ids[i, : len(sequence.ids)] = torch.tensor(sequence.ids)
        mask[i, : len(sequence.ids)] = True
        response[i, slice(*sequence.response)] = True
    return Batch(ids, mask, response)


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, longest first, each of at most `max_tokens` padded tokens."""
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    start = 0
    while start < len(order):
        size = max(1, max_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size

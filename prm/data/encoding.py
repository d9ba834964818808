"""Text to ids. After this room there are no strings.

A sequence is `[user ids] [user text] prompt response end` with the user in front, or
`[user text] prompt response end [user ids]` with the user behind. A beginning-of-text token, where the tokenizer or
the chat template writes one, comes first of all: many models attend to it whatever they read. Prompt and response are
tokenised apart, so that all responses to a prompt share its ids exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prm.data.chat_template import ChatTemplate, ending_of
from prm.data.comparison import Message, Prompt, as_messages
from prm.errors import DataError

Place = Literal["prefix", "suffix"]


class Encoded(NamedTuple):
    """One sequence: `ids`, and the half-open range of positions that the response's own text takes."""

    ids: list[int]
    response: tuple[int, int]


@dataclass
class Cuts:
    """What truncation took away so far."""

    sequences: int = 0
    tokens: int = 0


class TextEncoder:
    """Turns (user row, user text, prompt, response) into ids.

    Args:
        tokenizer: the backbone's; its chat template is applied where it has one.
        vocab_size: width V of the backbone's input embedding; user ids start there.
        user_tokens: T_u, ids per user; 0 leaves the user out.
        place: where the user's ids stand; `apart` is before all else, for linear heads, which take them off again.
        max_length: most ids per sequence. The oldest prompt text goes first; user and response stay.
        whole_ending: end with everything that the chat template writes behind an answer, line ends included, as
            reward models read it; without it, with the end of the turn.
        day: ISO date that the chat template writes where it asks for today's; today where empty.

    Raises `PrmError` for a chat template that is broken.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        user_tokens: int,
        place: Place | Literal["apart"],
        max_length: int,
        whole_ending: bool = False,
        day: str = "",
    ):
        self.tokenizer, self.vocab_size, self.user_tokens = tokenizer, vocab_size, user_tokens
        self.place, self.max_length = place, max_length
        self.cuts = Cuts()
        self.template = ChatTemplate(tokenizer, day) if tokenizer.chat_template is not None else None
        self.end_ids, self.stop_ids = ending_of(tokenizer, self.template, whole_ending)

    def user_ids(self, row: int) -> list[int]:
        """The T_u ids of a row: V + row T_u + slot."""
        first = self.vocab_size + row * self.user_tokens
        return list(range(first, first + self.user_tokens))

    def encode(self, prompt: Prompt, response: str, row: int = 0, user_text: str = "") -> Encoded:
        """One sequence. Raises `DataError` where user and response leave no room for any prompt text."""
        return self._sequence(*self._parts(prompt, response, user_text), self.user_ids(row))

    def for_user(self, sequence: Encoded, row: int) -> Encoded:
        """The same sequence for another user: their ids in the place of whose it was made for."""
        place = self._user_of(sequence)
        return sequence._replace(ids=[*sequence.ids[: place.start], *self.user_ids(row), *sequence.ids[place.stop :]])

    def without_user(self, sequence: Encoded) -> Encoded:
        """The same sequence without its user."""
        place, (start, end) = self._user_of(sequence), sequence.response
        ids, moved = (
            [*sequence.ids[: place.start], *sequence.ids[place.stop :]],
            self.user_tokens * (place.start < start),
        )
        return Encoded(ids, (start - moved, end - moved))

    def encode_with_plain(
        self, prompt: Prompt, response: str, row: int = 0, user_text: str = ""
    ) -> tuple[Encoded, Encoded]:
        """(the sequence, the same prompt and response without user and text): what a model reads that sees no users.

        Both are cut alike. Raises as `encode` does.
        """
        text, asked, answer = self._parts(prompt, response, user_text)
        return self._sequence(text, asked, answer, self.user_ids(row)), self._sequence([], asked, answer, [])

    def encode_question(self, prompt: Prompt, row: int = 0, user_text: str = "") -> list[int]:
        """Ids up to where the answer begins, the user in front; nothing is cut. Raises `DataError` for a bad prompt."""
        asked = _some(self.template_ids(as_messages(prompt)), "prompt")
        return self._with_user(self._joined(self.text_ids(user_text), asked), self.user_ids(row))

    def encode_alone(self, user_text: str) -> Encoded:
        """What somebody says of themselves, read by itself: an answer to an empty prompt, without a user.

        Raises `DataError` where it is too long, or no token is left of it.
        """
        asked, answer = self.template_ids([Message("user", "")]), _some(self.ids(user_text), "user_text")
        ids = [*asked, *answer, *self.end_ids]
        if len(ids) > self.max_length:
            raise DataError(
                f"the user_text takes {len(ids)} of {self.max_length} tokens; raise 'backbone.max_length' or shorten it"
            )
        return Encoded(ids, (len(asked), len(asked) + len(answer)))

    def _parts(self, prompt: Prompt, response: str, user_text: str) -> tuple[list[int], list[int], list[int]]:
        """Ids of user text, prompt and response; the prompt is cut to what the others leave of `max_length`."""
        answer, text = _some(self.ids(response), "response") if response else [], self.text_ids(user_text)
        room = self.max_length - len(answer) - len(self.end_ids) - self.user_tokens - len(text)
        return text, _some(self._prompt_ids(prompt, room), "prompt"), answer

    def _sequence(self, text: list[int], asked: list[int], answer: list[int], user: list[int]) -> Encoded:
        behind = self.place == "suffix"
        before = self._joined(text, asked)
        before = before if behind else self._with_user(before, user)
        ids = [*before, *answer, *self.end_ids, *(user if behind else [])]
        return Encoded(ids, (len(before), len(before) + len(answer)))

    def _with_user(self, before: list[int], user: list[int]) -> list[int]:
        place = 0 if self.place == "apart" else self._bos_in(before)
        return [*before[:place], *user, *before[place:]]

    def _user_of(self, sequence: Encoded) -> slice:
        """Where the user's ids stand."""
        ids, n = sequence.ids, self.user_tokens
        start = len(ids) - n if self.place == "suffix" else int(n > 0 and ids[0] < self.vocab_size)
        return slice(start, start + n)

    def text_ids(self, user_text: str) -> list[int]:
        """Ids of what somebody says of themselves, as it stands before a prompt.

        Raises `DataError` where no token is left of it.
        """
        if not user_text:
            return []
        ids, ending = self.ids(user_text + "\n\n"), self.ids("\n\n")
        return _some(ids if ids != ending else [], "user_text")

    def _joined(self, text: list[int], asked: list[int]) -> list[int]:
        place = self._bos_in(asked)
        return [*asked[:place], *text, *asked[place:]]

    def _bos_in(self, ids: list[int]) -> int:
        """How many tokens say that the text begins: 1 or 0."""
        bos = self.tokenizer.bos_token_id
        return int(bos is not None and ids[:1] == [bos])

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The conversation as the backbone reads it, up to where the answer begins.

        Raises `DataError` where the chat template refuses it.
        """
        if self.template is not None:
            return self.template(messages, answer_follows=True)
        if len(messages) == 1:
            return messages[0].content
        return "\n\n".join(f"{m.role}: {m.content}" for m in messages) + "\n\nassistant: "

    def _prompt_ids(self, prompt: Prompt, room: int) -> list[int]:
        messages = as_messages(prompt)
        ids = self.template_ids(messages)
        if len(ids) <= room:
            return ids
        full = len(ids)
        while len(ids) > room and (shorter := _without_oldest_turn(messages)) is not None:
            messages = shorter
            ids = self.template_ids(messages)
        while len(ids) > room:
            messages[-1] = messages[-1]._replace(content=self._drop_front(messages[-1].content, len(ids) - room, room))
            ids = self.template_ids(messages)
        self.cuts.sequences += 1
        self.cuts.tokens += full - len(ids)
        return ids

    def _drop_front(self, text: str, n: int, room: int) -> str:
        """The text without its first n tokens."""
        offsets = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        # several tokens may share one character: the cut moves on to where the next one begins
        while 0 < n < len(offsets) and offsets[n][0] == offsets[n - 1][0]:
            n += 1
        if n >= len(offsets):
            raise DataError(
                f"the response, with the user and the chat template, leaves {room} of {self.max_length} tokens "
                "for the prompt, which is not enough; shorten the response, or raise 'backbone.max_length' to "
                f"{self.max_length + n - len(offsets) + 1} at least"
            )
        return text[offsets[n][0] :]

    def template_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the whole conversation, up to where the answer begins; nothing is cut."""
        # a chat template writes its own first token
        return self.ids(self.prompt_text(messages), special=self.template is None)

    def ids(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text; with `special`, behind whatever opens every text of this tokenizer."""
        ids = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        if special and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]  # some tokenizers close every text
        return list(ids)


def _some(ids: list[int], what: str) -> list[int]:
    """The ids. Raises `DataError` where there is none: nothing could be read of it."""
    if not ids:
        raise DataError(f"no token is left of the {what}: the tokenizer passes over all that it holds")
    return ids


def _without_oldest_turn(messages: list[Message]) -> list[Message] | None:
    """The conversation from its second user turn on, under the same system message; `None` if that is the last."""
    head = 1 if messages[0].role == "system" else 0
    later = [i for i in range(head + 1, len(messages)) if messages[i].role == "user"]
    return messages[:head] + messages[later[0] :] if later else None


class Batch(NamedTuple):
    """Right-padded sequences; both masks are True on real tokens, `response` on the response's own text."""

    input_ids: Tensor
    attention_mask: Tensor
    response_mask: Tensor


def pad(sequences: Sequence[Encoded]) -> Batch:
    """int64 ids and bool masks, [b, longest]. Padding has id 0 and is told apart by the mask alone."""
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

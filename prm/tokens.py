"""Text to ids. After this room there are no strings.

A sequence is `[user ids] [user text] prompt response end` with the user in front, or
`[user text] prompt response end [user ids]` with the user behind. Prompt and response are tokenised
apart, so that all responses to a prompt share its ids exactly.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prm.comparison import Message, Prompt, as_messages
from prm.errors import DataError

Place = Literal["front", "behind"]

_MARK = "\u2063answer\u2063"  # invisible separators: no template and no text holds this


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
        place: where the user's ids stand.
        max_length: most ids per sequence. The oldest prompt text goes first; user and response stay.
        whole_ending: end with everything that the chat template writes behind an answer, line ends included, as
            reward models read it; without it, with the end of the turn.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        user_tokens: int,
        place: Place,
        max_length: int,
        whole_ending: bool = False,
    ):
        self.tokenizer, self.vocab_size, self.user_tokens = tokenizer, vocab_size, user_tokens
        self.place, self.max_length = place, max_length
        self.cuts = Cuts()
        self.end_ids = self._end_of_answer(whole_ending)

    def user_ids(self, row: int) -> list[int]:
        """The T_u ids of a row: V + row T_u + slot."""
        first = self.vocab_size + row * self.user_tokens
        return list(range(first, first + self.user_tokens))

    def encode(self, prompt: Prompt, response: str, row: int = 0, user_text: str = "") -> Encoded:
        """One sequence. Raises `DataError` where user and response leave no room for any prompt text."""
        return self._sequence(*self._parts(prompt, response, user_text), self.user_ids(row))

    def for_user(self, sequence: Encoded, row: int) -> Encoded:
        """The same sequence for another user: their ids in the place of whose it was made for."""
        n, ids = self.user_tokens, sequence.ids
        if n == 0:
            return sequence
        user = self.user_ids(row)
        return sequence._replace(ids=[*user, *ids[n:]] if self.place == "front" else [*ids[:-n], *user])

    def encode_with_plain(
        self, prompt: Prompt, response: str, row: int = 0, user_text: str = ""
    ) -> tuple[Encoded, Encoded]:
        """(the sequence, the same prompt and response without user and text): what a model reads that sees no users.

        Both are cut alike. Raises as `encode` does.
        """
        text, asked, answer = self._parts(prompt, response, user_text)
        return self._sequence(text, asked, answer, self.user_ids(row)), self._sequence([], asked, answer, [])

    def encode_question(self, prompt: Prompt, row: int = 0, user_text: str = "") -> list[int]:
        """Ids up to where the answer begins, the user in front; nothing is cut."""
        return [*self.user_ids(row), *self._joined(self._text_ids(user_text), self.template_ids(as_messages(prompt)))]

    def encode_alone(self, user_text: str) -> Encoded:
        """What somebody says of themselves, read by itself: an answer to an empty prompt, without a user.

        Raises `DataError` where it is too long.
        """
        asked, answer = self.template_ids([Message("user", "")]), self._ids(user_text)
        ids = [*asked, *answer, *self.end_ids]
        if len(ids) > self.max_length:
            raise DataError(
                f"the user_text takes {len(ids)} of {self.max_length} tokens; raise 'max_length' or shorten it"
            )
        return Encoded(ids, (len(asked), len(asked) + len(answer)))

    def _parts(self, prompt: Prompt, response: str, user_text: str) -> tuple[list[int], list[int], list[int]]:
        """Ids of user text, prompt and response; the prompt is cut to what the others leave of `max_length`."""
        answer, text = self._ids(response), self._text_ids(user_text)
        room = self.max_length - len(answer) - len(self.end_ids) - self.user_tokens - len(text)
        return text, self._prompt_ids(prompt, room), answer

    def _sequence(self, text: list[int], asked: list[int], answer: list[int], user: list[int]) -> Encoded:
        before = self._joined(text, asked)
        ids, start = [*before, *answer, *self.end_ids], len(before)
        if self.place == "front":
            return Encoded([*user, *ids], (start + len(user), start + len(user) + len(answer)))
        return Encoded([*ids, *user], (start, start + len(answer)))

    def _text_ids(self, user_text: str) -> list[int]:
        return self._ids(user_text + "\n\n") if user_text else []

    def _joined(self, text: list[int], asked: list[int]) -> list[int]:
        bos = self.tokenizer.bos_token_id
        if text and bos is not None and asked[:1] == [bos]:
            return [bos, *text, *asked[1:]]
        return [*text, *asked]

    def prompt_text(self, messages: Sequence[Message]) -> str:
        """The conversation as the backbone reads it, up to where the answer begins."""
        if self.tokenizer.chat_template is None:
            if len(messages) == 1:
                return messages[0].content
            return "\n\n".join(f"{m.role}: {m.content}" for m in messages) + "\n\nassistant: "
        turns = [m._asdict() for m in messages]
        return str(self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))

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
                "for the prompt, which is not enough; shorten the response, or raise 'max_length' to "
                f"{self.max_length + n - len(offsets) + 1} at least"
            )
        return text[offsets[n][0] :]

    def template_ids(self, messages: Sequence[Message]) -> list[int]:
        """Ids of the whole conversation, up to where the answer begins; nothing is cut."""
        return self._ids(self.prompt_text(messages), special=self._has_bos_apart())

    def _has_bos_apart(self) -> bool:
        # a chat template writes its own first token
        return self.tokenizer.chat_template is None

    def _ids(self, text: str, special: bool = False) -> list[int]:
        ids = self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"]
        if special and ids and ids[-1] == self.tokenizer.eos_token_id:
            ids = ids[:-1]  # some tokenizers close every text
        return list(ids)

    def _end_of_answer(self, whole: bool) -> list[int]:
        """Ids that close an answer: what the template writes behind one, else the end-of-text token."""
        if self.tokenizer.chat_template is None:
            return [self.tokenizer.eos_token_id] if self.tokenizer.eos_token_id is not None else []
        turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
        text = str(self.tokenizer.apply_chat_template(turns, tokenize=False))
        ending = text.partition(_MARK)[2]
        return self._ids(ending if whole else ending.rstrip("\n"))


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

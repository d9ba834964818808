"""Text to ids: where everything stands, and what goes when there is no room."""

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from tokenizers.normalizers import Replace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from prm.config import Position
from prm.data.comparison import Message, Prompt
from prm.data.encoding import Encoded, TextEncoder, pad
from prm.errors import DataError
from tests.conftest import CHAT_TEMPLATE, build_tokenizer

V = 336  # the embedding is wider than the tokenizer's 320 ids
CHAT = build_tokenizer()
PLAIN = build_tokenizer(chat=False)
PLACES: tuple[Any, ...] = ("prefix", "suffix", "apart")


def with_bos() -> PreTrainedTokenizerFast:
    """A tokenizer that opens every text with <|system|> and closes it with <|eos|>."""
    tokenizer = build_tokenizer(chat=False)
    tokenizer.bos_token = "<|system|>"
    special = [(name, tokenizer.convert_tokens_to_ids(name)) for name in ("<|system|>", "<|eos|>")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|system|> $A <|eos|>", special_tokens=special
    )
    return tokenizer


def with_bos_in_template() -> PreTrainedTokenizerFast:
    tokenizer = with_bos()
    tokenizer.chat_template = "{{ bos_token }}" + CHAT_TEMPLATE
    return tokenizer


BOS = with_bos()
TOKENIZERS = {"chat": CHAT, "plain": PLAIN, "bos": BOS, "bos in template": with_bos_in_template()}


def encoder(
    tokenizer: PreTrainedTokenizerFast = CHAT,
    user_tokens: int = 0,
    position: Position = "prefix",
    max_length: int = 500,
) -> TextEncoder:
    return TextEncoder(tokenizer, V, user_tokens, position, max_length)


def ids(text: str) -> list[int]:
    return list(CHAT(text, add_special_tokens=False)["input_ids"])


def text_of(sequence: Encoded) -> str:
    return str(CHAT.decode([i for i in sequence.ids if i < V]))


def response_of(sequence: Encoded) -> list[int]:
    return sequence.ids[slice(*sequence.response)]


PROMPT, ANSWER = "the quick fox?", "a lazy dog"
RENDERED = "<|user|>the quick fox?<|end|>\n<|assistant|>"


@pytest.mark.parametrize("user_tokens", [0, 3])
@pytest.mark.parametrize("position", ["prefix", "suffix", "apart"])
@pytest.mark.parametrize("name", ["chat", "bos", "bos in template"])
def test_a_sequence_for_another_user_is_what_encoding_for_them_gives(
    name: str, position: Position, user_tokens: int
) -> None:
    """With text of their own and a prompt that is cut; and for no user, what encoding without users gives."""
    made = encoder(TOKENIZERS[name], user_tokens, position, max_length=30)
    first, other = (made.encode("fox " * 40, ANSWER, row, "I like kings.") for row in (0, 5))
    assert made.for_user(first, 5) == other
    assert made.for_user(other, 0) == first
    plain = encoder(TOKENIZERS[name], 0, position, max_length=30 - user_tokens).encode(
        "fox " * 40, ANSWER, 0, "I like kings."
    )
    assert made.without_user(first) == made.without_user(other) == plain


@pytest.mark.parametrize("position", ["prefix", "suffix"])
def test_user_ids_stand_where_they_belong_and_name_row_and_slot(position: Position) -> None:
    sequence = encoder(user_tokens=3, position=position).encode(PROMPT, ANSWER, row=5)
    user = [V + 15, V + 16, V + 17]
    body = ids(RENDERED) + ids(ANSWER) + ids("<|end|>")
    assert sequence.ids == (user + body if position == "prefix" else body + user)
    start = len(ids(RENDERED)) + (3 if position == "prefix" else 0)
    assert sequence.response == (start, start + len(ids(ANSWER)))


def test_without_user_tokens_no_row_leaves_a_trace() -> None:
    assert encoder().encode(PROMPT, ANSWER, row=5) == encoder().encode(PROMPT, ANSWER, row=0)
    assert max(encoder().encode(PROMPT, ANSWER, row=5).ids) < V


@pytest.mark.parametrize("response", ["a lazy dog", " dog ", "x", "naïve 😀 日本\n\n1. one\n", "\ttab"])
@pytest.mark.parametrize("position", ["prefix", "suffix"])
@pytest.mark.parametrize("tokenizer", [CHAT, PLAIN, BOS], ids=["chat", "plain", "bos"])
def test_the_response_range_decodes_to_exactly_the_response(
    tokenizer: PreTrainedTokenizerFast, position: Position, response: str
) -> None:
    sequence = encoder(tokenizer, 2, position).encode(PROMPT, response, 1, "likes brevity")
    assert tokenizer.decode(response_of(sequence)) == response


def test_the_chat_template_is_applied_once_and_the_end_of_turn_closes_the_answer() -> None:
    messages = (
        Message("system", "be brief"),
        Message("user", "hi"),
        Message("assistant", "yes"),
        Message("user", "so"),
    )
    assert text_of(encoder().encode(messages, ANSWER)) == (
        "<|system|>be brief<|end|>\n<|user|>hi<|end|>\n<|assistant|>yes<|end|>\n<|user|>so<|end|>\n<|assistant|>"
        "a lazy dog<|end|>"
    )
    assert encoder().end_ids == ids("<|end|>")


@pytest.mark.parametrize("tokenizer", [CHAT, PLAIN, BOS], ids=["chat", "plain", "bos"])
def test_a_string_is_a_conversation_of_one_user_message(tokenizer: PreTrainedTokenizerFast) -> None:
    by_text = encoder(tokenizer, 2).encode(PROMPT, ANSWER, 1, "brief")
    assert by_text == encoder(tokenizer, 2).encode((Message("user", PROMPT),), ANSWER, 1, "brief")


@pytest.mark.parametrize("tokenizer", [CHAT, PLAIN], ids=["chat", "plain"])
def test_candidates_of_one_prompt_share_its_ids_exactly(tokenizer: PreTrainedTokenizerFast) -> None:
    """Also where prompt and answer together would merge into other tokens."""
    prompts = [encoder(tokenizer).encode("the qu", answer) for answer in ("ick brown", " ick", "\n", "<")]
    assert len({(s.response[0], tuple(s.ids[: s.response[0]])) for s in prompts}) == 1


def test_without_a_chat_template_it_is_plain_text_and_end_of_text() -> None:
    assert text_of(encoder(PLAIN).encode(PROMPT, ANSWER)) == "the quick fox?a lazy dog<|eos|>"
    chat = (Message("system", "s"), Message("user", "u"))
    assert text_of(encoder(PLAIN).encode(chat, ANSWER)) == "system: s\n\nuser: u\n\nassistant: a lazy dog<|eos|>"


def test_user_text_comes_before_the_prompt_and_after_the_user_ids() -> None:
    sequence = encoder(user_tokens=1).encode(PROMPT, ANSWER, 0, "likes brevity")
    assert sequence.ids[0] == V
    assert text_of(sequence) == f"likes brevity\n\n{RENDERED}a lazy dog<|end|>"


@pytest.mark.parametrize("user_text", ["", "likes brevity"])
def test_the_beginning_of_text_stays_first_and_alone(user_text: str) -> None:
    bos = BOS.bos_token_id
    sequence = encoder(BOS, user_tokens=2).encode(PROMPT, ANSWER, 0, user_text)
    assert sequence.ids[:3] == [bos, V, V + 1]
    assert sequence.ids.count(bos) == 1
    assert sequence.ids.count(BOS.eos_token_id) == 1
    above = f"{user_text}\n\n" if user_text else ""
    assert text_of(sequence) == f"<|system|>{above}the quick fox?a lazy dog<|eos|>"
    assert BOS.decode(response_of(sequence)) == ANSWER


@pytest.mark.parametrize("name", ["bos", "bos in template"])
@pytest.mark.parametrize("user_text", ["", "likes brevity"])
def test_prefix_users_stand_after_the_beginning_of_text(name: str, user_text: str) -> None:
    """By hand, in every way to put a text together; a linear head's user is taken off, and stands before all."""
    made, bos, user = encoder(TOKENIZERS[name], 2), BOS.bos_token_id, [V + 6, V + 7]
    asked = ids(PROMPT) if name == "bos" else ids(RENDERED)
    end = [made.tokenizer.eos_token_id] if name == "bos" else ids("<|end|>")
    text = ids(f"{user_text}\n\n") if user_text else []
    before = [bos, *user, *text, *asked]
    personal = Encoded([*before, *ids(ANSWER), *end], (len(before), len(before) + len(ids(ANSWER))))
    assert made.encode(PROMPT, ANSWER, 3, user_text) == personal
    assert made.encode_prompt(PROMPT, 3, user_text) == before
    plain = Encoded([bos, *asked, *ids(ANSWER), *end], (1 + len(asked), 1 + len(asked) + len(ids(ANSWER))))
    assert made.encode_with_plain(PROMPT, ANSWER, 3, user_text) == (personal, plain)
    behind, apart = (
        encoder(TOKENIZERS[name], 2, position).encode(PROMPT, ANSWER, 3, user_text) for position in PLACES[1:]
    )
    assert behind.ids == [bos, *text, *asked, *ids(ANSWER), *end, *user]
    assert apart.ids == [*user, bos, *text, *asked, *ids(ANSWER), *end]


def test_a_template_that_writes_the_beginning_of_text_gets_no_second_one() -> None:
    sequence = encoder(TOKENIZERS["bos in template"]).encode(PROMPT, ANSWER)
    assert text_of(sequence) == f"<|system|>{RENDERED}a lazy dog<|end|>"


LONG = (
    Message("system", "be brief"),
    Message("user", "the quick brown fox"),
    Message("assistant", "jumps over"),
    Message("user", "a lazy dog while"),
    Message("assistant", "seven wizards"),
    Message("user", "mix potions for an old king"),
)
TURN = re.compile(r"<\|(system|user|assistant)\|>(.*?)<\|end\|>\n", re.DOTALL)


def turns_read(sequence: Encoded) -> list[tuple[str, str]]:
    """The turns of the prompt as the backbone reads them; markers must be whole."""
    prompt = str(CHAT.decode(sequence.ids[: sequence.response[0]]))
    turns = TURN.findall(prompt)
    whole = "".join(f"<|{role}|>{content}<|end|>\n" for role, content in turns) + "<|assistant|>"
    assert prompt == whole
    return turns


def shortest(prompt: Prompt, response: str) -> int:
    """Length when one token of the last message is left under the system message."""
    head = [m for m in prompt[:1] if isinstance(m, Message) and m.role == "system"]
    return len(encoder().encode((*head, Message("user", "g")), response).ids)


@pytest.mark.parametrize("conversation", [LONG, LONG[1:], LONG[2:]], ids=["system", "user first", "answer first"])
def test_truncation_takes_whole_old_turns_then_the_beginning_of_the_last(conversation: tuple[Message, ...]) -> None:
    """At every length: a tail of the conversation that starts with the user, or a tail of its last message."""
    system = [tuple(m) for m in conversation if m.role == "system"]
    rest = [tuple(m) for m in conversation if m.role != "system"]
    tails = [rest[i:] for i in range(len(rest)) if i == 0 or rest[i][0] == "user"]
    lengths = [len(encoder().template_ids([Message(*m) for m in system + tail])) for tail in tails]
    around = len(ids(ANSWER)) + 1  # the response and the token behind it
    for room in range(shortest(conversation, ANSWER) - around, lengths[0] + 2):
        sequence = encoder(max_length=room + around).encode(conversation, ANSWER)
        turns = turns_read(sequence)
        assert sequence.response[0] <= room
        assert turns[: len(system)] == system
        fitting = [tail for tail, length in zip(tails, lengths, strict=True) if length <= room]
        if fitting:
            assert turns[len(system) :] == fitting[0]
        else:
            [(role, content)] = turns[len(system) :]
            assert role == "user"
            assert content
            assert rest[-1][1].endswith(content)


def test_the_last_message_loses_no_more_than_it_must() -> None:
    whole = encoder().encode("the quick brown fox", ANSWER)
    for n, kept in ((1, " quick brown fox"), (2, "ick brown fox"), (3, " brown fox"), (4, " fox")):
        sequence = encoder(max_length=len(whole.ids) - n).encode("the quick brown fox", ANSWER)
        assert turns_read(sequence) == [("user", kept)]


def test_cuts_are_counted_in_sequences_and_tokens() -> None:
    free = encoder()
    full = len(free.encode("the quick brown fox", ANSWER).ids)
    assert (free.cuts.sequences, free.cuts.tokens) == (0, 0)
    tight = encoder(max_length=full - 1)
    tight.encode("the quick brown fox", ANSWER)
    tight.encode("fox", ANSWER)
    tight.encode("over the quick brown fox", ANSWER)  # "o", "ver", " ", "the" go
    assert (tight.cuts.sequences, tight.cuts.tokens) == (2, 1 + 4)


@pytest.mark.parametrize("position", ["prefix", "suffix"])
@pytest.mark.parametrize("tokenizer", [CHAT, PLAIN, BOS], ids=["chat", "plain", "bos"])
def test_truncation_never_takes_from_user_user_text_or_response(
    tokenizer: PreTrainedTokenizerFast, position: Position
) -> None:
    full = encoder(tokenizer, 2, position).encode("the quick brown fox", ANSWER, 3, "likes brevity")
    cut = encoder(tokenizer, 2, position, len(full.ids) - 1).encode("the quick brown fox", ANSWER, 3, "likes brevity")
    assert text_of(cut) == text_of(full).replace("the quick", " quick")
    assert [i for i in cut.ids if i >= V] == [V + 6, V + 7]
    assert tokenizer.decode(response_of(cut)) == ANSWER


@pytest.mark.parametrize("max_length", [1, 6, -1])
def test_a_response_that_leaves_no_room_for_a_prompt_is_refused(max_length: int) -> None:
    limit = shortest((Message("user", "g"),), ANSWER) - 1 if max_length == -1 else max_length
    with pytest.raises(DataError, match=f"{limit} .*'backbone.max_length'") as error:
        encoder(max_length=limit).encode(PROMPT, ANSWER)
    enough = int(str(error.value).split()[-3])
    assert enough > limit
    assert encoder(max_length=enough).encode(PROMPT, ANSWER).ids
    with pytest.raises(DataError, match="not enough"):
        encoder(max_length=enough - 1).encode(PROMPT, ANSWER)


@pytest.mark.timeout(3)
@pytest.mark.parametrize("prompt", ["élan and verve", "日本 and more", "😀 and more"], ids=["2 bytes", "3", "4"])
def test_truncation_by_any_number_of_tokens_ends_where_one_letter_takes_several(prompt: str) -> None:
    full = len(encoder().encode(prompt, ANSWER).ids)
    for limit in range(full - 1, shortest(prompt, ANSWER), -1):
        [(_, kept)] = turns_read(encoder(max_length=limit).encode(prompt, ANSWER))
        assert prompt.endswith(kept)


def deaf(chat: bool) -> TextEncoder:
    """A tokenizer that passes over zero-width characters."""
    tokenizer = build_tokenizer(chat)
    tokenizer.backend_tokenizer.normalizer = Replace("\u200b", "")
    return encoder(tokenizer, 1)


@pytest.mark.parametrize("chat", [True, False])
def test_a_text_of_which_no_token_is_left_is_refused_by_its_name(chat: bool) -> None:
    made = deaf(chat)
    for attempt in (made.encode, made.encode_with_plain):
        with pytest.raises(DataError, match="response"):
            attempt(PROMPT, "\u200b\u200b")
        assert attempt(PROMPT, "")  # an answer that is empty by itself is the caller's affair
        assert attempt(PROMPT, "\u200bfox") == attempt(PROMPT, "fox")
    with pytest.raises(DataError, match="user_text"):
        made.encode(PROMPT, ANSWER, user_text="\u200b")
    if not chat:
        for unread in (made.encode_prompt, lambda prompt: made.encode(prompt, ANSWER)):
            with pytest.raises(DataError, match="prompt"):
                unread("\u200b")


@pytest.mark.parametrize("max_length", [60, 500])
def test_a_prompt_is_tokenised_once_for_all_its_responses(max_length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each sequence, cut or not, is the one that an encoder of its own gives."""
    prompt, made = "what of " * 40, encoder(max_length=max_length)
    read, prompt_text = list[str](), TextEncoder.prompt_text

    def noted(self: TextEncoder, messages: Sequence[Message]) -> str:
        read.extend([messages[0].content] if self is made and messages[0].content == prompt else [])
        return prompt_text(self, messages)

    monkeypatch.setattr(TextEncoder, "prompt_text", noted)
    for response in ("a king", "a lazy dog", "the fox " * 4):
        assert made.encode(prompt, response) == encoder(max_length=max_length).encode(prompt, response)
    assert len(read) == 1
    assert made.encode("why?", "a king") == encoder(max_length=max_length).encode("why?", "a king")


def batch_rows(*sequences: Encoded) -> tuple[list[list[int]], list[list[bool]], list[list[bool]]]:
    batch = pad(sequences)
    return batch.input_ids.tolist(), batch.attention_mask.tolist(), batch.response_mask.tolist()


def test_padding_is_on_the_right_and_both_masks_are_true_on_real_tokens() -> None:
    rows: Sequence[Encoded] = (Encoded([7, 0, 9], (1, 2)), Encoded([5, 4, 3, 2], (2, 4)))
    ids_, mask, response = batch_rows(*rows)
    assert ids_ == [[7, 0, 9, 0], [5, 4, 3, 2]]
    assert mask == [[True, True, True, False], [True] * 4]  # a real token of id 0 is no padding
    assert response == [[False, True, False, False], [False, False, True, True]]
    assert pad(rows).input_ids.dtype == torch.int64
    assert pad(rows[:1]).attention_mask.all()

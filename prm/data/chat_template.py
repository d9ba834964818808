"""What a chat template writes: on one day for a whole run, within seconds, and where it refuses, in one line."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from prm.data.comparison import Message
from prm.errors import DataError, PrmError
from prm.io.time_limit import within

_CLOCK = "strftime_now"  # the one way in which a template can ask for the time
_SECONDS = 5.0  # for a conversation, of which a template makes a text in a few thousandths of one
_MARK = "\u2063answer\u2063"  # invisible separators: no template and no text holds this
_ASKED = [Message("user", "?")]


def today() -> str:
    """ISO date."""
    return date.today().isoformat()


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether what the chat template writes depends on the day."""
    return tokenizer.chat_template is not None and _CLOCK in str(tokenizer.get_chat_template())


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: one that has a chat template.
        day: ISO date that is today for the template; today where empty.

    Raises `PrmError` for a template that is not written correctly.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, day: str = ""):
        self.writes_date = writes_date(tokenizer)
        self._today = datetime.fromisoformat(day or today())
        # not by `apply_chat_template`, which lets nobody say what day it is
        try:
            self._compiled = _compile_jinja_template(tokenizer.get_chat_template())
        except TemplateSyntaxError as error:
            raise PrmError(f"the chat template is broken in its line {error.lineno}: {error.message}") from None
        self._tokens = dict(tokenizer.special_tokens_map)

    def __call__(self, messages: Sequence[Message], answer_follows: bool = False) -> str:
        """The conversation as text; with `answer_follows`, up to where the answer begins.

        Raises `DataError` where the template refuses the conversation, or is not done with it in seconds.
        """
        known: dict[str, Any] = {**self._tokens, _CLOCK: self._today.strftime, "tools": None, "documents": None}
        known |= {"messages": [m._asdict() for m in messages], "add_generation_prompt": answer_follows}
        try:
            return str(within(_SECONDS, lambda: self._compiled.render(known)))
        except TimeoutError as error:
            raise DataError(f"the chat template loops: {error}") from None
        except TemplateError as error:
            raise DataError(f"the chat template refuses the conversation: {_one_line(error)}") from None
        except Exception as error:  # whatever its expressions come to
            raise DataError(f"the chat template fails: {type(error).__name__}: {_one_line(error)}") from None

    def ending(self) -> str:
        """What it writes after an answer; empty where it does not write answers as they are.

        Raises `PrmError` where it refuses every conversation that ends with an answer.
        """
        answered = [*_ASKED, Message("assistant", _MARK)]
        try:
            try:
                text = self(answered)
            except DataError:
                text = self([Message("system", "?"), *answered])
        except DataError as error:
            raise PrmError(f"where an answer ends cannot be read off the chat template: {error}") from None
        return text.partition(_MARK)[2]


class Ending(NamedTuple):
    """How an answer ends.

    Args:
        ids: read after the answer's own tokens.
        stops: tokens at which an answer that is being written ends.
    """

    ids: list[int]
    stops: list[int]


def ending_of(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None, whole: bool) -> Ending:
    """The one place that says where an answer ends: for training, sampling and scoring alike.

    It ends with the first end token that the template writes after it; white space before it is read, but ends
    nothing. Where the template writes none, or there is no template, it is the end-of-text token. Both are empty where
    there is neither.

    Args:
        whole: read all that the template writes after an answer, and nothing else.
    """
    eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if template is None:
        return Ending(eos, list(eos))
    ids = list(tokenizer(template.ending(), add_special_tokens=False, verbose=False)["input_ids"])
    marks = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    place = next((i for i, token in enumerate(ids) if token in marks and str(tokenizer.decode([token])).strip()), None)
    stops = sorted({*eos, *(ids[place : place + 1] if place is not None else [])})
    if whole:
        return Ending(ids, stops)
    return Ending(ids[: place + 1] if place is not None else eos, stops)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

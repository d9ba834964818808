"""Renders chat templates: with one date for a complete run, within a time limit, with errors in one line."""

from collections.abc import Sequence
from datetime import date, datetime
from typing import NamedTuple

from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template

from prm.data.comparison import Message
from prm.errors import DataError, PrmError
from prm.io.time_limit import within

_CLOCK = "strftime_now"  # the only way for a template to get the time
_SECONDS = 5.0  # per conversation; rendering usually takes milliseconds
_MARK = "\u2063answer\u2063"  # has invisible separators, so no template and no text contains it
_PROMPT = [Message("user", "?")]


def today() -> str:
    """Today's ISO date."""
    return date.today().isoformat()


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template's output depends on the date."""
    return tokenizer.chat_template is not None and _CLOCK in str(tokenizer.get_chat_template())


class ChatTemplate:
    """A tokenizer's chat template.

    Args:
        tokenizer: has a chat template.
        day: ISO date that the template takes for today; the current date if empty.

    Raises `PrmError` for a template with a syntax error.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, day: str = ""):
        self.writes_date = writes_date(tokenizer)
        self._today = datetime.fromisoformat(day or today())
        # `apply_chat_template` does not let the caller set the date
        try:
            self._compiled = _compile_jinja_template(tokenizer.get_chat_template())
        except TemplateSyntaxError as error:
            raise PrmError(f"the chat template is broken in its line {error.lineno}: {error.message}") from None
        self._tokens = dict(tokenizer.special_tokens_map)

    def __call__(self, messages: Sequence[Message], answer_follows: bool = False) -> str:
        """The conversation as text; with `answer_follows`, up to where the response begins.

        Raises `DataError` if the template refuses the conversation or takes more than a few seconds.
        """
        variables: dict[str, object] = {**self._tokens, _CLOCK: self._today.strftime, "tools": None, "documents": None}
        variables |= {"messages": [m._asdict() for m in messages], "add_generation_prompt": answer_follows}
        try:
            return str(within(_SECONDS, lambda: self._compiled.render(variables)))
        except TimeoutError as error:
            raise DataError(f"the chat template loops: {error}") from None
        except TemplateError as error:
            raise DataError(f"the chat template refuses the conversation: {_one_line(error)}") from None
        except Exception as error:  # a template's expressions can raise anything
            raise DataError(f"the chat template fails: {type(error).__name__}: {_one_line(error)}") from None

    def ending(self) -> str:
        """What the template writes after a response; empty if it does not write responses verbatim.

        Raises `PrmError` if it refuses every conversation that ends with a response.
        """
        conversation = [*_PROMPT, Message("assistant", _MARK)]
        try:
            try:
                text = self(conversation)
            except DataError:
                text = self([Message("system", "?"), *conversation])
        except DataError as error:
            raise PrmError(f"the chat template does not show where a response ends: {error}") from None
        return text.partition(_MARK)[2]


class Ending(NamedTuple):
    """How a response ends.

    Args:
        ids: tokens that follow the response's text.
        stops: tokens at which generation stops.
    """

    ids: list[int]
    stops: list[int]


def ending_of(tokenizer: PreTrainedTokenizerBase, template: ChatTemplate | None, whole: bool) -> Ending:
    """How a response ends, for training, sampling and scoring alike.

    It ends with the first special token that the template writes after it, and any white space before that token.
    Without such a token, or without a template, it ends with the end-of-text token. Without that either, both lists
    are empty.

    Args:
        whole: end with everything that the template writes after a response.
    """
    eos = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    if template is None:
        return Ending(eos, list(eos))
    ids = list(tokenizer(template.ending(), add_special_tokens=False, verbose=False)["input_ids"])
    special = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    end = next((i for i, token in enumerate(ids) if token in special and str(tokenizer.decode([token])).strip()), None)
    stops = sorted({*eos, *(ids[end : end + 1] if end is not None else [])})
    if whole:
        return Ending(ids, stops)
    return Ending(ids[: end + 1] if end is not None else eos, stops)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__

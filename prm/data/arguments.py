"""Checks of what callers of the library pass: lists, columns, texts. Does not import torch."""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, Protocol, TypeVar, runtime_checkable

from prm.data.comparison import Prompt, PromptLike, parse_prompt, require_text
from prm.errors import DataError, PrmError
from prm.io.tables import kind

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

# Columns: one entry per row. `None` is the generic user.
Prompts = Sequence[PromptLike]
Texts = Sequence[str]
Users = Sequence[str | None]


@runtime_checkable
class _Array(Protocol[T_co]):
    """An array or a tensor."""

    def tolist(self) -> Iterable[T_co]: ...


@runtime_checkable
class _PandasColumn(_Array[T_co], Protocol[T_co]):
    def astype(self, kind: type, /) -> "_PandasColumn[T_co]": ...

    def notna(self) -> object: ...

    def where(self, present: object, other: None, /) -> "_PandasColumn[T_co]": ...


def require_list(name: str, values: Iterable[T]) -> list[T]:
    """A list, tuple, array or pandas column as a list; missing values of a column become `None`.

    Raises `DataError` naming the argument for a single value, such as a text.
    """
    if isinstance(values, _PandasColumn):
        values = values.astype(object).where(values.notna(), None).tolist()
    elif isinstance(values, _Array):
        values = values.tolist()
    single = isinstance(values, str | bytes | Mapping | Set) or hasattr(values, "columns")
    if single or not isinstance(values, Iterable):
        raise DataError(f"'{name}' must be a list, got {kind(values)}: put a single value into a list")
    return list(values)


def require_columns(user_texts: Iterable[str | None] | None = None, **columns: Any) -> list[list[Any]]:
    """The columns as lists of equal length, and the users' texts as the last of them; `None` means no texts.

    A missing text is "". Raises `PrmError` for unequal lengths, and as `require_list` and `require_user_text` do.
    """
    lists = {name: require_list(name, values) for name, values in columns.items()}
    if user_texts is not None:
        lists["user_texts"] = require_list("user_texts", user_texts)
    lengths = [len(values) for values in lists.values()]
    if len(set(lengths)) > 1:
        *names, last = lists
        raise PrmError(f"{', '.join(names)} and {last} differ in length: {', '.join(map(str, lengths))}")
    texts = enumerate(lists.pop("user_texts", [""] * lengths[0]))
    lists["user_texts"] = [require_user_text(f"user_texts[{i}]", text) for i, text in texts]
    return [*lists.values()]


def require_texts(name: str, values: Iterable[str]) -> list[str]:
    """The texts as a list. Raises `DataError` as `require_list` does, and naming the first that is blank or no text."""
    return [require_text(f"{name}[{i}]", text) for i, text in enumerate(require_list(name, values))]


def require_prompt(prompt: PromptLike, batch: str) -> Prompt:
    """One prompt. Raises `DataError` as `parse_prompt` does; for a list of prompts it names the function `batch`."""
    if isinstance(prompt, list | tuple) and any(isinstance(one, str) for one in prompt):
        raise DataError(f"'prompt' is one prompt, got a list of {len(prompt)}: '{batch}' takes several")
    return parse_prompt(prompt)


def require_user_text(name: str, text: object) -> str:
    """A user's text; "" for `None`. Raises `DataError` naming the argument for a blank text and what is no text."""
    if not text:
        return ""
    return require_text(name, text)


def require_questions(
    pool: Iterable[tuple[PromptLike, str, str]],
) -> tuple[list[PromptLike], list[str], list[str]]:
    """The columns (prompts, first responses, second responses) of a pool of questions to users.

    Raises `PrmError` if it is empty, for a question that is no list of three, and for a response that is no text.
    """
    questions = [require_list("pool[...]", question) for question in require_list("pool", pool)]
    if not questions:
        raise PrmError("'pool' is empty: there is no comparison to ask")
    if any(len(question) != 3 for question in questions):
        raise PrmError("'pool' must hold a prompt and two responses for each comparison")
    sides = [[require_text(f"pool[{i}][{side}]", q[side]) for i, q in enumerate(questions)] for side in (1, 2)]
    return [question[0] for question in questions], sides[0], sides[1]

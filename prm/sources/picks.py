"""Picks: several answers shown, one chosen."""

from typing import Any

from prm.comparison import parse_prompt
from prm.config import FeedbackConfig
from prm.errors import DataError
from prm.sources.fields import Fields
from prm.sources.judgements import Judged, Judgement

FIELDS = ("prompt", "responses", "chosen")
RULE = "the chosen answer against each other one shown, at most {max_pairs}; a tie of two is one tied pair"

_TIES = ("tie", "tied", "equal", "both", "neither", "none")


def parse(fields: Fields, config: FeedbackConfig, number: int) -> Judgement:
    """The judgement of one row; raises `DataError`.

    `chosen` is the text, its position from 0, its letter (a, b, ...), the name of the column it came from where
    `data.columns` gathers several, or `tie`.
    """
    responses = fields.texts("responses")
    if len(responses) < 2:
        raise DataError(f"'responses' holds {len(responses)} answer; a pick needs two or more")
    place = _place(fields.get("chosen"), responses, config.columns.get("responses"), fields.row.is_text)
    if place is None and len(responses) > 2:
        raise DataError(f"a tie of {len(responses)} answers says nothing: give the one that was chosen")
    common = fields.common()
    answers = [
        Judged(text, float(i == place), number, fields.row.origin, common, place=i) for i, text in enumerate(responses)
    ]
    return Judgement(fields.user_id(), parse_prompt(fields.conversation("prompt")), tuple(answers))


def _place(chosen: Any, responses: list[str], columns: str | list[str] | None, is_text: bool) -> int | None:
    """Position of the chosen answer; `None` for a tie."""
    if isinstance(chosen, str):
        if responses.count(chosen) == 1:
            return responses.index(chosen)
        if isinstance(columns, list) and chosen in columns:
            return _within(columns.index(chosen), responses)
        word = chosen.strip().lower()
        if word in _TIES:
            return None
        if len(word) == 1 and word.isalpha() and word.isascii():
            return _within(ord(word) - ord("a"), responses)
        if is_text and word.isascii() and word.isdigit():
            return _within(int(word), responses)
    elif isinstance(chosen, int) and not isinstance(chosen, bool):
        return _within(chosen, responses)
    raise DataError(f"'chosen' must be one of the responses, its position from 0, its letter, or 'tie', got {chosen!r}")


def _within(place: int, responses: list[str]) -> int:
    if not 0 <= place < len(responses):
        raise DataError(f"'chosen' is position {place} (from 0), but there are {len(responses)} responses")
    return place

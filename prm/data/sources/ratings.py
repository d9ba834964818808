"""Ratings: one answer and a number a row. Answers of one person to one prompt become pairs."""

from prm.config import FeedbackConfig
from prm.data.comparison import Prompt, parse_prompt, require_text
from prm.data.sources.fields import Fields
from prm.data.sources.pairing import RatedResponse

FIELDS = ("prompt", "response", "completion", "rating")
NEEDED = ("prompt", "response", "rating")
RULE = "two answers rated by one person for one prompt, {gap}; an answer enters at most {max_pairs}"


def parse(fields: Fields, config: FeedbackConfig, number: int) -> tuple[str, Prompt, RatedResponse]:
    """(user, prompt, rated answer) of one row; raises `DataError`."""
    return rated(fields, fields.number("rating"), number)


def rated(fields: Fields, score: float, number: int) -> tuple[str, Prompt, RatedResponse]:
    """(user, prompt, answer) of a row with that score. `completion` is TRL's name for the response."""
    user_id, prompt = fields.user_id(), parse_prompt(fields.conversation("prompt"))
    name = "completion" if fields.has("completion") and not fields.has("response") else "response"
    response = fields.conversation(name)
    if isinstance(response, list) and len(response) == 1 and isinstance(response[0], dict):
        response = response[0].get("content")  # a conversation of one answer
    require_text(name, response)
    return user_id, prompt, RatedResponse(response, score, number, fields.row.origin, fields.common())

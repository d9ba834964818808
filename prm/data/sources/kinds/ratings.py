"""Ratings: one response and a number per row. A user's responses to one prompt become pairs."""

from prm.config import FeedbackConfig
from prm.data.comparison import Prompt, parse_prompt, require_text
from prm.data.sources.fields import Fields
from prm.data.sources.pairing import RatedResponse

FIELDS = ("prompt", "response", "completion", "rating")
NEEDED = ("prompt", "response", "rating")
RULE = "two responses rated by one user for one prompt, {gap}; a response enters at most {max_pairs}"


def parse(fields: Fields, config: FeedbackConfig, number: int) -> tuple[str, Prompt, RatedResponse]:
    """(user, prompt, rated response) of one row. Raises `DataError`."""
    return rated(fields, fields.number("rating"), number)


def rated(fields: Fields, score: float, number: int) -> tuple[str, Prompt, RatedResponse]:
    """(user, prompt, rated response) of a row with this score. `completion` is TRL's name for the response."""
    user_id, prompt = fields.user_id(), parse_prompt(fields.conversation("prompt"))
    name = "completion" if fields.has("completion") and not fields.has("response") else "response"
    response = fields.conversation(name)
    if isinstance(response, list) and len(response) == 1 and isinstance(response[0], dict):
        response = response[0].get("content")  # a conversation of one message
    text = require_text(name, response)
    return user_id, prompt, RatedResponse(text, score, number, fields.row.origin, fields.common())

"""Thumbs: one response and up or down per row. A user's ups and downs for one prompt become pairs."""

from prm.config import FeedbackConfig
from prm.data.comparison import Prompt
from prm.data.sources.fields import Fields
from prm.data.sources.kinds.ratings import rated
from prm.data.sources.pairing import RatedResponse
from prm.errors import DataError, shown

FIELDS = ("prompt", "response", "completion", "label")
NEEDED = ("prompt", "response", "label")
RULE = "thumbs up against thumbs down, by one user for one prompt; a response enters at most {max_pairs}"

_UP = ("true", "1", "+1", "up", "yes", "like", "positive", "\N{THUMBS UP SIGN}")
_DOWN = ("false", "0", "-1", "down", "no", "dislike", "negative", "\N{THUMBS DOWN SIGN}")
# skin tones, and how the sign is drawn
_VARIANTS = "\ufe0e\ufe0f\U0001f3fb\U0001f3fc\U0001f3fd\U0001f3fe\U0001f3ff"


def parse(fields: Fields, config: FeedbackConfig, number: int) -> tuple[str, Prompt, RatedResponse]:
    """(user, prompt, rated response) of one row, as in TRL's unpaired preferences. Raises `DataError`."""
    value = fields.get("label")
    word = str(value).strip().lower().rstrip(_VARIANTS).removesuffix(".0")  # pandas makes 1 and 0 floats
    if word not in _UP + _DOWN:
        raise DataError(f"'label' must be true or false (or up/down, 1/0, 1/-1), got {shown(value)}")
    return rated(fields, float(word in _UP), number)

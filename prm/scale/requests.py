"""What a row of a file asks for: the rewards of one or more responses to a prompt, for a user."""

from collections.abc import Mapping
from typing import NamedTuple

from prm.data.comparison import Prompt, as_id, parse_prompt, require_text
from prm.errors import DataError


class Asked(NamedTuple):
    """Responses to score; `user` is `None` for the generic user, `user_text` is the user's text or ""."""

    prompt: Prompt
    responses: list[str]
    user: str | None
    user_text: str


def parse_request(row: Mapping[str, object]) -> Asked:
    """The request of a row with `prompt`, `response` or `responses`, and perhaps `user_id` and `user_text`.

    Raises `DataError` naming the field.
    """
    if "prompt" not in row:
        raise DataError("field 'prompt' is missing")
    responses = row["responses"] if "responses" in row else [row.get("response")]
    if isinstance(row.get("response"), list):
        raise DataError("'response' is one text; give a list under 'responses'")
    if not isinstance(responses, list) or not responses:
        raise DataError("give 'response' (text) or 'responses' (a list of texts)")
    given, text = row.get("user_id"), row.get("user_text") or ""
    user = None if given is None else as_id("user_id", given)
    if not isinstance(text, str):
        raise DataError("'user_text' must be text")
    checked = [require_text("response", response) for response in responses]
    return Asked(parse_prompt(row["prompt"]), checked, user, text)


def scored_row(row: Mapping[str, object], asked: Asked, rewards: list[float], known: bool) -> dict[str, object]:
    """The row with `rewards` (or `reward`, if it has one `response`) and `known_user` added."""
    scores = {"rewards": rewards} if row.get("responses") is not None else {"reward": rewards[0]}
    return {**row, **scores, "known_user": known}

"""What a row of a file asks for: the rewards of one or more responses to a prompt, for a user."""

from collections.abc import Mapping
from typing import NamedTuple

from prm.data.comparison import Prompt, as_id, parse_prompt, require_text
from prm.errors import DataError
from prm.io.tables import kind

ADDED = ("reward", "rewards", "known_user")  # by `scored_row`


class Asked(NamedTuple):
    """Responses to score; `user` is `None` for the generic user, `user_text` is the user's text or "".

    `fault` says what is wrong with a row that is skipped; it then has no responses.
    """

    prompt: Prompt
    responses: list[str]
    user: str | None
    user_text: str
    fault: str = ""


def parse_request(row: Mapping[str, object]) -> Asked:
    """The request of a row with `prompt`, `response` or `responses`, and perhaps `user_id` and `user_text`.

    Raises `DataError` naming the field.
    """
    if "prompt" not in row:
        raise DataError("field 'prompt' is missing")
    if taken := [name for name in ADDED if row.get(name) is not None]:
        raise DataError(f"has a field {taken[0]!r}, which the output adds: rename it, or leave it out")
    responses = _responses(row.get("response"), row.get("responses"))
    given, text = row.get("user_id"), row.get("user_text") or ""
    user = None if given is None else as_id("user_id", given)
    if not isinstance(text, str):
        raise DataError("'user_text' must be text")
    return Asked(parse_prompt(row["prompt"]), responses, user, text)


def _responses(one: object, several: object) -> list[str]:
    if one is not None and several is not None:
        raise DataError("has both 'response' and 'responses': give one of them")
    if isinstance(one, list):
        raise DataError("'response' is one text; give a list under 'responses'")
    if one is not None:
        return [require_text("response", one)]
    if several is None:
        raise DataError("field 'response' (a text) or 'responses' (a list of texts) is missing")
    if not isinstance(several, list):
        raise DataError(f"'responses' must be a list of texts, got {kind(several)}; CSV has one 'response' a row")
    if not several:
        raise DataError("'responses' is empty")
    return [require_text(f"responses[{i}]", response) for i, response in enumerate(several)]


def scored_row(row: Mapping[str, object], asked: Asked, rewards: list[float], known: bool) -> dict[str, object]:
    """The row with `rewards` (or `reward`, if it has one `response`) and `known_user` added."""
    scores = {"rewards": rewards} if row.get("responses") is not None else {"reward": rewards[0]}
    return {**row, **scores, "known_user": known}

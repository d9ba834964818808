"""Messages as logs of all kinds write them, as those that comparisons have."""

from collections.abc import Sequence

from prm.data.comparison import ROLES, Message, parse_messages
from prm.errors import DataError
from prm.io.tables import KeyTwiceError, parse_json

_ROLES = dict.fromkeys(("human", "prompter"), "user") | {"developer": "system"}
_ROLES |= dict.fromkeys(("gpt", "model", "bot", "chatbot", "ai"), "assistant")


def as_messages_of_ours(value: object) -> object:
    """The value, with its messages as objects of `role` and text `content`.

    ShareGPT's `from` and `value` become `role` and `content`, its one message a list of one; a content in parts becomes
    text; a role gets our name for it. Any other value is returned as it is. Raises `DataError` for a part that is no
    text, such as an image.
    """
    if isinstance(value, dict) and (value.keys() >= {"from", "value"} or value.keys() >= {"role", "content"}):
        value = [value]
    if not isinstance(value, list | tuple) or not all(isinstance(message, dict) for message in value):
        return value
    return [_message(message) for message in value]


def read_messages(name: str, value: object) -> tuple[Message, ...]:
    """Messages from a list, or from its JSON text. Raises `DataError` naming the field."""
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except KeyTwiceError as error:
            raise DataError(f"'{name}': {error}") from None
        except ValueError:
            raise DataError(f"'{name}' must be a list of messages, got text that is not JSON") from None
    try:
        return parse_messages(name, as_messages_of_ours(value))
    except DataError as error:
        raise DataError(str(error) if str(error).startswith("'") else f"'{name}': {error}") from None


def written_out(turns: Sequence[Message]) -> str:
    """Turns that begin with an answer, as text: further turns follow after "User:" and "Assistant:"."""
    return "\n\n".join([turns[0].content, *(f"{turn.role.capitalize()}: {turn.content}" for turn in turns[1:])])


def _message(message: dict[str, object]) -> dict[str, object]:
    if message.keys() >= {"from", "value"} and not {"role", "content"} & message.keys():
        message = {"role": message["from"], "content": message["value"]}
    if not message.keys() >= {"role", "content"}:
        return message
    role, content = message["role"], message["content"]
    if isinstance(role, str) and role not in ROLES:
        role = _ROLES.get(role.lower(), role.lower() if role.lower() in ROLES else role)
    return message | {"role": role, "content": _text(content)}


def _text(content: object) -> object:
    """The text of a content that is a list of parts."""
    if not isinstance(content, list | tuple) or not all(isinstance(part, dict) for part in content):
        return content
    for part in content:
        if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
            raise DataError(f"a message holds {part.get('type', 'a part')!r}, which is no text")
    return "".join(part["text"] for part in content)

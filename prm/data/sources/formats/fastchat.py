"""Logs of votes that a FastChat server of one's own writes (`*-conv.json`)."""

from collections.abc import Collection

from prm.data.sources.formats import arena
from prm.data.sources.formats.judgement import Judgement, judged
from prm.errors import DataError
from prm.io.rows import Row

TITLE = "a FastChat server's log"
SAYS = f"judge from 'ip', winner from 'type', {arena.SAYS}"
READS = {"type", "states", "ip"} | arena.READS
COLUMNS = arena.COLUMNS

NO_VOTE = "no vote on two answers"
_VOTES = {
    "leftvote": "model_a",
    "rightvote": "model_b",
    "tievote": "tie",
    "bothbad_vote": "tie (bothbad)",
}


def is_like(names: Collection[str]) -> bool:
    """Whether the columns are those of this format."""
    return {"type", "models", "states"} <= set(names)


def unfold(row: Row) -> list[Judgement]:
    """The vote between two states; rows that are no vote on two are left out. Raises `DataError`."""
    assert row.values is not None
    values = dict(row.values)
    kind, states = values.get("type"), values.get("states")
    if not isinstance(kind, str) or kind not in _VOTES:
        return [judged(row, values, left_out=NO_VOTE)]
    if not isinstance(states, list | tuple) or len(states) != 2:
        raise DataError("'states' must be a list of two conversations")
    sides = {f"conversation_{side}": _messages(state) for side, state in zip("ab", states, strict=True)}
    values |= {"winner": _VOTES[kind], "judge": values.get("ip"), "question_id": states[0].get("conv_id")}
    return arena.unfold(judged(row, values | sides, made=True).row)


def _messages(state: object) -> list[dict[str, object]]:
    """The messages of a state, without examples at its beginning and a turn that was not answered."""
    if not isinstance(state, dict) or not isinstance(state.get("messages"), list | tuple):
        raise DataError("'states' must hold objects with 'messages'")
    messages, roles = list(state["messages"]), state.get("roles")
    if isinstance(offset := state.get("offset"), int):
        messages = messages[offset:]
    if not all(isinstance(message, list | tuple) and len(message) == 2 for message in messages):
        raise DataError("'states' must hold 'messages' of a role and a text each")
    user = roles[0] if isinstance(roles, list | tuple) and roles else "user"
    named = [{"role": "user" if role == user else "assistant", "content": text} for role, text in messages]
    while named and named[-1]["content"] is None:
        named.pop()
    return named

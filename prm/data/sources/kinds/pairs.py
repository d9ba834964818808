"""Pairs: rows with a chosen and a rejected response, also in the preference formats of TRL and reward-bench."""

from collections.abc import Sequence
from itertools import product
from typing import TypeGuard

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, parse_messages, parse_prompt, parse_response
from prm.data.sources.fields import Fields, yes_or_no
from prm.errors import DataError, shown

FIELDS = ("prompt", "chosen", "rejected", "p_chosen", "chosen_first")
NEEDED = ("prompt", "chosen", "rejected")
RULE = "each row is one"
RULE_OF_LISTS = "; lists of responses become chosen against rejected, of which a response enters at most {max_pairs}"


def parse(fields: Fields, config: FeedbackConfig, number: int) -> tuple[list[Comparison], int]:
    """(comparisons of one row, number of pairs beyond `max_pairs`). Raises `DataError`.

    Chosen and rejected are texts, conversations, or lists of texts (reward-bench 2: all chosen against all rejected
    ones). Without `prompt`, the prompt is the common beginning of both (TRL's implicit prompt).
    """
    user_id = fields.user_id()
    chosen, rejected = fields.conversation("chosen"), fields.conversation("rejected")
    if fields.is_blank("p_chosen"):
        raise DataError("'p_chosen' is empty; give a number, or leave the column out")
    common, p_chosen = fields.common(), fields.number("p_chosen", 1.0)
    first = yes_or_no("chosen_first", fields.get("chosen_first")) if fields.has("chosen_first") else None

    def comparison(prompt: object, a: object, b: object) -> Comparison:
        texts = parse_prompt(prompt), parse_response("chosen", a), parse_response("rejected", b)
        return Comparison(user_id, *texts, p_chosen=p_chosen, chosen_first=first, origin=fields.row.origin, **common)

    if _is_text_list(chosen) and _is_text_list(rejected):
        pairs = _some(chosen, rejected, config.max_pairs)
        prompt = fields.conversation("prompt")
        return [comparison(prompt, a, b) for a, b in pairs], len(chosen) * len(rejected) - len(pairs)
    prompt, responses = _split_prompt(fields, chosen, rejected)
    return [comparison(prompt, *responses)], 0


def _split_prompt(fields: Fields, chosen: object, rejected: object) -> tuple[object, tuple[object, object]]:
    """(prompt, (chosen, rejected)); a conversation in chosen and rejected is split off."""
    given = fields.conversation("prompt") if fields.has("prompt") else None
    if isinstance(chosen, str) and isinstance(rejected, str):
        if given is not None:
            return given, (chosen, rejected)
        if like := fields.texts_called_like("prompt"):
            raise DataError(
                f"field 'prompt' is missing, but {shown(like[0])} may be it: name it with 'data.columns', as "
                f"in {{prompt: {like[0]}}}, or under 'data.metadata' if it is another field"
            )
        end_of_prompt = _shared(chosen, rejected)
        if end_of_prompt == 0:
            raise DataError("field 'prompt' is missing, and 'chosen' and 'rejected' do not begin alike")
        return chosen[:end_of_prompt], (chosen[end_of_prompt:], rejected[end_of_prompt:])
    sides = {"chosen": chosen, "rejected": rejected}
    turns = {name: parse_messages(name, side) for name, side in sides.items() if not isinstance(side, str)}
    before = {name: side[:-1] for name, side in turns.items() if len(side) > 1}
    responses = tuple(turns[name][-1:] if name in turns else side for name, side in sides.items())
    if not before:
        return fields.conversation("prompt"), (responses[0], responses[1])
    if len(set(before.values())) > 1 or len(before) < 2:
        raise DataError("'chosen' and 'rejected' must hold the same conversation before their last message")
    shared = before["chosen"]
    if given not in (None, ""):  # an empty column does not contradict the conversation
        messages = parse_messages("prompt", given) if not isinstance(given, str) else None
        same = shared == messages if messages is not None else (len(shared) == 1 and shared[0].content == given)
        if not same:
            raise DataError("'prompt' is not the conversation that 'chosen' and 'rejected' begin with")
    return shared, (responses[0], responses[1])


def could_begin_with_prompt(chosen: object, rejected: object) -> bool:
    """Whether both texts or conversations begin alike, so that their common beginning may be the prompt."""
    if isinstance(chosen, str) and isinstance(rejected, str):
        return bool(chosen[: _shared(chosen, rejected)].strip())
    return all(isinstance(side, list | tuple) and len(side) > 1 for side in (chosen, rejected))


def _shared(a: str, b: str) -> int:
    """Length of the common beginning of both texts, up to the start of the word in which they differ."""
    n = next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))
    while n > 0 and not a[n - 1].isspace():
        n -= 1
    return n


def _is_text_list(value: object) -> TypeGuard[Sequence[str]]:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(v, str) for v in value)


def _some(chosen: Sequence[str], rejected: Sequence[str], max_pairs: int) -> list[tuple[str, str]]:
    """Pairs of both lists, with each response in at most `max_pairs` of them."""
    if len(chosen) <= max_pairs and len(rejected) <= max_pairs:
        return list(product(chosen, rejected))
    used: dict[tuple[int, int], int] = {}
    pairs = []
    for step in range(max(len(chosen), len(rejected))):
        for i, j in {(k % len(chosen), (k + step) % len(rejected)) for k in range(max(len(chosen), len(rejected)))}:
            if used.get((0, i), 0) < max_pairs and used.get((1, j), 0) < max_pairs:
                used[0, i], used[1, j] = used.get((0, i), 0) + 1, used.get((1, j), 0) + 1
                pairs.append((chosen[i], rejected[j]))
    return pairs

"""The paper's protocols for `policy judge --protocol`: what the judge learns about each user.

`prism` (Table 2) reads what `policy prompts` put into the metadata; `psoups` (Table 1) knows the six users.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from policy.judging.answer_files import Answer, Key, PromptRow, duels_of
from policy.judging.judges import Duel
from prm.data.comparison import (
    Comparison,
    as_messages,
    parse_prompt,
    parse_response,
    prompt_key,
    require_number,
)
from prm.data.sources.public.psoups import PROMPTS
from prm.data.splits import TEST, UNSEEN
from prm.errors import DataError, counted
from prm.io.tables import kind

EXAMPLES = 2  # worked examples that a question of `prism` has at least, if the user judged so many turns
_NEEDED = ("split", "system_string", "open_feedback", "examples")
_TABLE_2 = (10, 10, 76)  # seen users, unseen users, samples
_SAMPLE = "sample both sides from one file that 'policy prompts' wrote"


class Example(NamedTuple):
    """A user's comparison of another turn; `same` if it is of the judged conversation."""

    choice: Comparison
    same: bool

    def to_row(self) -> dict[str, object]:
        """JSON-ready, without the user."""
        row = self.choice.to_row()
        fields = {name: row[name] for name in ("prompt", "chosen", "rejected", "p_chosen") if name in row}
        return fields | {"same_conversation": self.same}


def psoups_duels(first: Mapping[Key, Answer], second: Mapping[Key, Answer]) -> list[Duel]:
    """The duels, each with its user's preference prompt as the user's text, which the policies did not see.

    Raises `DataError` naming file and line for a user who is none of the six.
    """
    duels = duels_of(first, second)
    for duel in duels:
        if duel.user_id not in PROMPTS:
            known = ", ".join(PROMPTS)
            raise DataError(f"{duel.origins[0]}: 'user_id' {duel.user_id!r} has no preference prompt; known: {known}")
    return [replace(duel, user_text=PROMPTS[duel.user_id]) for duel in duels]


def prism_duels(first: Mapping[Key, Answer], second: Mapping[Key, Answer]) -> tuple[list[Duel], list[str]]:
    """(duels with worked examples as their history, sentences on their number); metadata is the first file's.

    Raises `DataError` naming file, line and field for metadata that is missing or makes no sense.
    """
    duels, parts = [], []
    for duel in duels_of(first, second):
        key = prompt_key(duel.prompt), duel.user_id
        row, other = first[key].prompt, second[key].prompt
        if other.metadata and other.metadata != row.metadata:
            raise DataError(f"{row.origin}, and {other.origin}: 'metadata' differs: {_SAMPLE}")
        try:
            duels.append(replace(duel, history=tuple(_shown(duel, _examples(row)))))
            parts.append(_part(row))
        except DataError as error:
            raise DataError(f"{row.origin}: {error}") from None
    return duels, _notes(duels, parts)


def _part(row: PromptRow) -> str:
    """The part of the paper's split that the row is from."""
    for name in _NEEDED:
        if name not in row.metadata:
            raise DataError(f"metadata '{name}' is missing: {_SAMPLE}")
    if (part := row.metadata["split"]) not in (TEST, UNSEEN):
        raise DataError(f"metadata 'split' must be {TEST!r} or {UNSEEN!r}, got {part!r}")
    return str(part)


def _examples(row: PromptRow) -> list[Example]:
    """The user's comparisons of other turns, out of the metadata."""
    rows = row.metadata.get("examples", [])
    if not isinstance(rows, list):
        raise DataError(f"metadata 'examples' must be a list, got {kind(rows)}")
    examples = []
    for i, fields in enumerate(rows):
        try:
            if not isinstance(fields, dict):
                raise DataError(f"must be an object, got {kind(fields)}")
            chosen, rejected = (parse_response(name, fields.get(name)) for name in ("chosen", "rejected"))
            p_chosen = require_number("p_chosen", fields.get("p_chosen", 1.0))
            choice = Comparison(str(row.user), parse_prompt(fields.get("prompt")), chosen, rejected, p_chosen=p_chosen)
            if not isinstance(same := fields.get("same_conversation"), bool):
                raise DataError(f"'same_conversation' must be true or false, got {kind(same)}")
        except DataError as error:
            raise DataError(f"metadata 'examples[{i}]': {error}") from None
        examples.append(Example(choice, same))
    return examples


def _shown(duel: Duel, examples: Iterable[Example]) -> list[Comparison]:
    """All examples of the conversation, and others up to `EXAMPLES`; none that holds the judged turn.

    A later turn follows from the response that was chosen in the judged one: it is left out if that one is judged.
    """
    usable = [example for example in examples if not _gives_away(example.choice, duel)]
    shown = [example.choice for example in usable if example.same]
    others = [example.choice for example in usable if not example.same]
    return shown + others[: max(0, EXAMPLES - len(shown))]


def _gives_away(choice: Comparison, duel: Duel) -> bool:
    texts = {choice.chosen, choice.rejected, *(message.content for message in as_messages(choice.prompt))}
    judged = {duel.first.strip(), duel.second.strip()}
    return prompt_key(choice.prompt) == prompt_key(duel.prompt) or not judged.isdisjoint(text.strip() for text in texts)


def _notes(duels: Sequence[Duel], parts: Sequence[str]) -> list[str]:
    people = [len({d.user_id for d, own in zip(duels, parts, strict=True) if own == part}) for part in (TEST, UNSEEN)]
    size = f"{people[0]} seen and {people[1]} unseen users, {counted(len(duels), 'turn')}"
    if (*people, len(duels)) != _TABLE_2:
        size += "; the paper's Table 2 has {} and {}, {} turns".format(*_TABLE_2)
    few = sum(len(duel.history) < EXAMPLES for duel in duels)
    return [size] + ([f"{few} of {counted(len(duels), 'question')} have fewer than {EXAMPLES} examples"] if few else [])

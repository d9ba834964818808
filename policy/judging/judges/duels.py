"""Duels (two responses to a prompt, compared on behalf of a user) and the scores that a judge gives them."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prm.data.comparison import Comparison, Prompt, parse_prompt, require_text
from prm.data.past_comparisons import past_by_user, without_leaks
from prm.errors import DataError, PrmError, counted
from prm.io.tables import kind
from prm.metrics import Array


@dataclass(frozen=True, slots=True)
class Duel:
    """Two responses to one prompt, for one user. A response may be empty: models generate such.

    Args:
        user_text: the user's text.
        open_feedback: the user's comment after the conversation; only a language model as judge reads it.
        history: other comparisons of the user, which show a language model their preferences.
        system_string: how the user wants an assistant to be; only a language model as judge reads it.
        origins: file and line of the two responses ("ours.jsonl, line 7").

    Raises `DataError` naming the field and the fault.
    """

    user_id: str
    prompt: Prompt
    first: str
    second: str
    user_text: str = ""
    open_feedback: str = ""
    history: tuple[Comparison, ...] = ()
    system_string: str = ""
    origins: tuple[str, str] = field(default=("the first response", "the second response"), compare=False)

    def __post_init__(self) -> None:
        require_text("user_id", self.user_id)
        object.__setattr__(self, "prompt", parse_prompt(self.prompt))
        for name in ("first", "second", "user_text", "open_feedback", "system_string"):
            if not isinstance(value := getattr(self, name), str):
                raise DataError(f"'{name}' must be text, got {kind(value)}")


@dataclass(frozen=True)
class JudgedDuels:
    """Scores of duels, in the order of the duels.

    Args:
        scores: of the first response, [n]: 1 won, 0.5 tie, 0 lost, NaN not judged.
        unjudged: reason by index of the duel; the part before the first colon is the kind of reason.
        disagreed: indices of the duels whose verdict changed when the responses were swapped: ties.
        remarks: sentences of the judge's own for the notes.
    """

    scores: Array
    unjudged: Mapping[int, str] = field(default_factory=dict)
    disagreed: Sequence[int] = ()
    remarks: Sequence[str] = ()

    def notes(self) -> list[str]:
        """Sentences on duels that were not judged, or on which the two orders disagreed."""
        duels, lines = counted(len(self.scores), "duel"), list[str]()
        if self.unjudged:
            reasons = Counter(reason.partition(":")[0] for reason in self.unjudged.values())
            shown = ", ".join(f"{times} {reason}" for reason, times in reasons.most_common())
            first = min(self.unjudged)
            lines.append(f"{len(self.unjudged)} of {duels} not judged: {shown}; duel {first}: {self.unjudged[first]}")
        if self.disagreed:
            lines.append(
                f"{len(self.disagreed)} of {duels} had another verdict with the responses in the other order: ties"
            )
        return [*lines, *self.remarks]


Judge = Callable[[Sequence[Duel]], JudgedDuels]


def duels_between(cases: Sequence[Comparison], first: Sequence[str], second: Sequence[str]) -> list[Duel]:
    """A duel for each case, with its user, prompt, user text and, if its metadata has them, what the user said.

    Raises `PrmError` unless both sides have a response for every case.
    """
    if not len(cases) == len(first) == len(second):
        raise PrmError(f"cases and responses differ in number: {len(cases)}, {len(first)}, {len(second)}")
    duels = []
    for case, a, b in zip(cases, first, second, strict=True):
        feedback, system_string = said_by_the_user(case.metadata)
        duels.append(Duel(case.user_id, case.prompt, a, b, case.user_text, feedback, system_string=system_string))
    return duels


def said_by_the_user(metadata: Mapping[str, object]) -> tuple[str, str]:
    """(`open_feedback`, `system_string`) of metadata; "" for what it lacks. Raises `DataError` for what is no text."""
    return _text_of(metadata, "open_feedback"), _text_of(metadata, "system_string")


def _text_of(metadata: Mapping[str, object], name: str) -> str:
    if not isinstance(value := metadata.get(name, ""), str):
        raise DataError(f"metadata '{name}' must be text, got {kind(value)}")
    return value


def with_history(duels: Sequence[Duel], log: Sequence[Comparison], max_history: int = 5) -> list[Duel]:
    """The duels with the user's last `max_history` comparisons in the log, the newest last.

    Leaves out comparisons that would give the verdict away: see `without_leaks`.
    """
    past, out = past_by_user(log), []
    for duel in duels:
        usable = without_leaks(past.get(duel.user_id, ()), duel.prompt, (duel.first, duel.second))
        out.append(replace(duel, history=tuple(usable[max(0, len(usable) - max_history) :])))
    return out

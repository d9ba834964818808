"""Two answers that are to be judged as one person would, and what came of it."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from prm.data.comparison import Comparison, Prompt, as_messages, parse_prompt, require_text
from prm.errors import DataError, PrmError
from prm.io.tables import kind
from prm.metrics import Array


@dataclass(frozen=True, slots=True)
class Duel:
    """Two answers to one prompt, for one person. An answer may be empty: models do give such.

    Args:
        user_text: what the person says of themselves, or asks for.
        feedback: what they said of the conversation afterwards; only a language model reads it.
        past: choices of theirs that a language model may learn their taste from.
        origins: where the two answers stand ("ours.jsonl, line 7").

    Raises `DataError` naming the field and the fault.
    """

    user_id: str
    prompt: Prompt
    first: str
    second: str
    user_text: str = ""
    feedback: str = ""
    past: tuple[Comparison, ...] = ()
    origins: tuple[str, str] = field(default=("the first answer", "the second answer"), compare=False)

    def __post_init__(self) -> None:
        require_text("user_id", self.user_id)
        object.__setattr__(self, "prompt", parse_prompt(self.prompt))
        for name in ("first", "second", "user_text", "feedback"):
            if not isinstance(value := getattr(self, name), str):
                raise DataError(f"'{name}' must be text, got {kind(value)}")


@dataclass(frozen=True)
class JudgedDuels:
    """Verdicts on duels, in their order.

    Args:
        scores: of the first answer, [n]: 1 won, 0.5 tie, 0 lost, NaN not judged.
        unjudged: why not, by position; up to the first colon it says what kind of reason.
        disagreed: positions of the duels that went otherwise when the answers changed places: ties.
    """

    scores: Array
    unjudged: Mapping[int, str] = field(default_factory=dict)
    disagreed: Sequence[int] = ()

    def notes(self) -> list[str]:
        """What a reader of the figures should know, in words."""
        n, lines = len(self.scores), []
        if self.unjudged:
            kinds = Counter(reason.partition(":")[0] for reason in self.unjudged.values())
            shown = ", ".join(f"{times} {reason}" for reason, times in kinds.most_common())
            first = min(self.unjudged)
            lines.append(f"{len(self.unjudged)} of {n} duels not judged: {shown}; duel {first}: {self.unjudged[first]}")
        if self.disagreed:
            lines.append(f"{len(self.disagreed)} of {n} duels went otherwise with the answers in the other order: ties")
        return lines


Judge = Callable[[Sequence[Duel]], JudgedDuels]


def duels_between(cases: Sequence[Comparison], first: Sequence[str], second: Sequence[str]) -> list[Duel]:
    """A duel for each case: its person, prompt and text, and metadata `feedback` where there is some.

    Raises `PrmError` unless there is an answer of each for every case.
    """
    if not len(cases) == len(first) == len(second):
        raise PrmError(f"cases and answers differ in number: {len(cases)}, {len(first)}, {len(second)}")
    return [
        Duel(case.user_id, case.prompt, a, b, case.user_text, case.metadata.get("feedback", ""))
        for case, a, b in zip(cases, first, second, strict=True)
    ]


def with_past(duels: Sequence[Duel], log: Sequence[Comparison], most: int = 5) -> list[Duel]:
    """The duels with the last choices of their person in the log, at most so many, in its order.

    Choices that would give the verdict away are passed over: on the same prompt, later in the same conversation, and
    between answers of which one stands in the duel.
    """
    own: dict[str, list[Comparison]] = defaultdict(list)
    for choice in log:
        own[choice.user_id].append(choice)
    found = []
    for duel in duels:
        shown = [choice for choice in own[duel.user_id] if not _gives_away(choice, duel)]
        found.append(replace(duel, past=tuple(shown[max(0, len(shown) - most) :])))
    return found


def _gives_away(choice: Comparison, duel: Duel) -> bool:
    asked = as_messages(duel.prompt)
    same_start = as_messages(choice.prompt)[: len(asked)] == asked
    return same_start or not {choice.chosen, choice.rejected}.isdisjoint((duel.first, duel.second))

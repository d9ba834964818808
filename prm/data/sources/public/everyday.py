"""Everyday prompts with five good responses each, and simulated users who compare them.

The texts were written for this project. The five responses to a prompt differ in attributes on which tastes differ;
over the data set the attributes are nearly uncorrelated.
"""

import json
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import combinations

from prm.data.comparison import Comparison

ATTRIBUTES = ("length", "formal", "list", "warm", "example", "hedged")
WORDS = {  # of each attribute: (more of it, less of it)
    "length": ("longer", "shorter"),
    "formal": ("formal", "casual"),
    "list": ("a list", "prose"),
    "warm": ("warm", "matter-of-fact"),
    "example": ("an example", "no example"),
    "hedged": ("careful", "sure of itself"),
}
_WORDS_PER_UNIT = 20.0


@dataclass(frozen=True)
class Answer:
    """One response. `attributes` holds the length in units of 20 words, and 1 or 0 for each other attribute."""

    text: str
    attributes: Mapping[str, float]


@dataclass(frozen=True)
class EverydayPrompt:
    """A prompt and its five responses."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class SimulatedUser:
    """A simulated user: utility = sum of weight times attribute, in logits."""

    name: str
    taste: str
    weights: Mapping[str, float]

    def utility(self, answer: Answer) -> float:
        """The user's utility of a response, in logits up to a constant per prompt."""
        return sum(weight * answer.attributes[name] for name, weight in self.weights.items())

    def prefers(self, a: Answer, b: Answer) -> float:
        """P(a > b) under Bradley-Terry (equation 2)."""
        return 1.0 / (1.0 + math.exp(self.utility(b) - self.utility(a)))


# weights that most users share, added to each user's own
_MAJORITY = {"example": 1.5, "hedged": -1.5}
_MINORITY = {"example": -1.5, "hedged": 1.5}


def _user(name: str, taste: str, own: Mapping[str, float], shared: Mapping[str, float] = _MAJORITY) -> SimulatedUser:
    return SimulatedUser(name, taste, {a: own.get(a, 0.0) + shared.get(a, 0.0) for a in ATTRIBUTES})


PEOPLE = (
    _user("ada", "as short as can be", {"length": -2.5}),
    _user("ben", "long and thorough", {"length": 2.5}),
    _user("cleo", "formal", {"formal": 4.0}),
    _user("dan", "casual", {"formal": -4.0}),
    _user("eva", "lists", {"list": 4.0}),
    _user("finn", "flowing prose", {"list": -4.0}),
    _user("gus", "warm", {"warm": 4.0}),
    _user("hana", "matter-of-fact", {"warm": -4.0}),
    _user("ivy", "examples, and some warmth", {"example": 2.5, "warm": 1.5}),
    _user("jon", "careful and formal", {"hedged": 1.5, "formal": 2.0}, _MINORITY),
    _user("kim", "careful, general and brief", {"length": -1.5}, _MINORITY),
    _user("lee", "careful, general and in lists", {"list": 2.0}, _MINORITY),
)

# (user who wants less, user who wants more, attribute)
OPPOSED = (
    ("ada", "ben", "length"),
    ("dan", "cleo", "formal"),
    ("finn", "eva", "list"),
    ("hana", "gus", "warm"),
)


def load_questions() -> list[EverydayPrompt]:
    """The 60 prompts with their responses, in a fixed order."""
    text = resources.files("prm.data.sources.public").joinpath("everyday.jsonl").read_text(encoding="utf-8")
    return [_question(json.loads(line)) for line in text.splitlines()]


def _question(row: dict[str, object]) -> EverydayPrompt:
    answers = []
    for answer in row["answers"]:  # type: ignore[attr-defined]
        flags = {name: float(answer[name]) for name in ATTRIBUTES[1:]}
        length = len(answer["text"].split()) / _WORDS_PER_UNIT
        answers.append(Answer(answer["text"], {"length": length, **flags}))
    return EverydayPrompt(str(row["prompt"]), tuple(answers))


def simulate_comparisons(
    questions: Sequence[EverydayPrompt], people: Sequence[SimulatedUser], seed: int
) -> Iterator[tuple[Comparison, float]]:
    """Every user's noisy comparison of every pair of responses, with the true P(chosen preferred).

    The label is drawn from that probability, so the chosen response is sometimes the less liked one.
    """
    draw = random.Random(seed)
    for person in people:
        for question in questions:
            for a, b in combinations(question.answers, 2):
                p = person.prefers(a, b)
                chosen, rejected, p_chosen = (a, b, p) if draw.random() < p else (b, a, 1.0 - p)
                yield Comparison(person.name, question.prompt, chosen.text, rejected.text), p_chosen

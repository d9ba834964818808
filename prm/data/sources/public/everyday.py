"""Everyday questions with five good answers each, and simulated people who judge them.

The texts were written for this project. The five answers to a question differ in what people differ
about, and carry those attributes; over the set the attributes hardly correlate.
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
_WORDS_PER_UNIT = 20.0


@dataclass(frozen=True)
class Answer:
    """One answer. `attributes` holds the length in units of 20 words, and 1 or 0 for each other attribute."""

    text: str
    attributes: Mapping[str, float]


@dataclass(frozen=True)
class EverydayQuestion:
    """A prompt and its five answers."""

    prompt: str
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class SimulatedUser:
    """A simulated judge: utility = sum of weight times attribute, in logits."""

    name: str
    taste: str
    weights: Mapping[str, float]

    def utility(self, answer: Answer) -> float:
        """How much this person likes an answer, in logits up to a constant per question."""
        return sum(weight * answer.attributes[name] for name, weight in self.weights.items())

    def prefers(self, a: Answer, b: Answer) -> float:
        """P(a > b) under Bradley-Terry (equation 2)."""
        return 1.0 / (1.0 + math.exp(self.utility(b) - self.utility(a)))


# what most people share; what sets a person apart comes on top
_MAJORITY = {"example": 1.5, "hedged": -1.5}
_MINORITY = {"example": -1.5, "hedged": 1.5}


def _person(name: str, taste: str, own: Mapping[str, float], shared: Mapping[str, float] = _MAJORITY) -> SimulatedUser:
    return SimulatedUser(name, taste, {a: own.get(a, 0.0) + shared.get(a, 0.0) for a in ATTRIBUTES})


PEOPLE = (
    _person("ada", "as short as can be", {"length": -2.5}),
    _person("ben", "long and thorough", {"length": 2.5}),
    _person("cleo", "formal", {"formal": 4.0}),
    _person("dan", "casual", {"formal": -4.0}),
    _person("eva", "lists", {"list": 4.0}),
    _person("finn", "flowing prose", {"list": -4.0}),
    _person("gus", "warm", {"warm": 4.0}),
    _person("hana", "matter-of-fact", {"warm": -4.0}),
    _person("ivy", "examples, and some warmth", {"example": 2.5, "warm": 1.5}),
    _person("jon", "careful and formal", {"hedged": 1.5, "formal": 2.0}, _MINORITY),
    _person("kim", "careful, general and brief", {"length": -1.5}, _MINORITY),
    _person("lee", "careful, general and in lists", {"list": 2.0}, _MINORITY),
)

# (who wants less, who wants more, of what)
OPPOSED = (
    ("ada", "ben", "length"),
    ("dan", "cleo", "formal"),
    ("finn", "eva", "list"),
    ("hana", "gus", "warm"),
)


def load_questions() -> list[EverydayQuestion]:
    """The 60 questions, in a fixed order."""
    text = resources.files("prm.data.sources.public").joinpath("everyday.jsonl").read_text(encoding="utf-8")
    return [_question(json.loads(line)) for line in text.splitlines()]


def _question(row: dict[str, object]) -> EverydayQuestion:
    answers = []
    for answer in row["answers"]:  # type: ignore[attr-defined]
        marks = {name: float(answer[name]) for name in ATTRIBUTES[1:]}
        length = len(answer["text"].split()) / _WORDS_PER_UNIT
        answers.append(Answer(answer["text"], {"length": length, **marks}))
    return EverydayQuestion(str(row["prompt"]), tuple(answers))


def judge(
    questions: Sequence[EverydayQuestion], people: Sequence[SimulatedUser], seed: int
) -> Iterator[tuple[Comparison, float]]:
    """Every person's noisy judgement of every pair of answers, with the true P(chosen preferred).

    The label is drawn from that probability, so the chosen answer is the less liked one now and then.
    """
    draw = random.Random(seed)
    for person in people:
        for question in questions:
            for a, b in combinations(question.answers, 2):
                p = person.prefers(a, b)
                chosen, rejected, p_chosen = (a, b, p) if draw.random() < p else (b, a, 1.0 - p)
                yield Comparison(person.name, question.prompt, chosen.text, rejected.text), p_chosen

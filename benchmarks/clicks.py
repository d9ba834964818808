"""What clicks are worth: people who are new to a service click through questions, and best of N gets better for them.

`python -m benchmarks.clicks --data DATA` trains empirical Bayes on some people. Then new people click through 20
questions of a service (`rerank.service.engine`), chosen by how much they tell or at random, and it picks for them among
responses that no question had; with "all texts", among any. A pick is measured as a share of what could be won: 0% is
the generic user's pick, 100% the person's own best response. It prints a table and stores each person's sums in
`runs/clicks/clicks.json`, from which a killed run is resumed.
"""

import json
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from benchmarks.questions import PARTS, TUNED, people_of, trained
from prm.data.comparison import Comparison, Prompt
from prm.data.sources.public.everyday import (
    ATTRIBUTES,
    PEOPLE,
    EverydayPrompt,
    SimulatedUser,
    load_questions,
    simulate_comparisons,
)
from prm.io.formatting import estimated
from prm.io.progress import progress
from prm.io.tables import write_json
from prm.metrics import ratio
from prm.report import show, table
from prm.scoring.scorer import Scorer
from prm.scoring.train_from_python import train
from rerank.demo import divide
from rerank.service.config import ServiceConfig
from rerank.service.engine import Engine
from rerank.service.judgements import Judgement
from rerank.service.store import Store
from rerank.service.texts import TextRequest

AFTER = (0, 3, 5, 10, 20)  # clicks
POOL, TARGETS = 200, 200  # questions to choose from; comparisons that a chosen one is to tell about
N, CHOICES = 8, 10  # responses to pick from, and how often, for each real person
SETS = ("everyday", "harms", "jester", "harms, all texts", "jester, all texts")
RULES = ("by information", "at random")


class Gained(TypedDict):
    """Sums over a person's choices.

    `won`: value of the service's pick above the generic user's, after each number of clicks of `AFTER`; `headroom`: the
    same of the person's own best response; `picks_best`: how often the pick was that response; `choices`: how many.
    """

    won: list[float]
    headroom: float
    picks_best: list[float]
    choices: int


@dataclass(frozen=True)
class Choice:
    """Responses to pick from, and their value for a person."""

    prompt: Prompt
    responses: list[str]
    values: list[float]


@dataclass(frozen=True)
class Clicker:
    """A person: questions with their answers to them, and what the service is to pick from."""

    user: str
    pool: list[Comparison]
    choices: list[Choice]


def everyday(folder: Path) -> Iterator[tuple[Scorer, list[Clicker]]]:
    """Train on the demo's twelve people; 66 new ones have the mean taste of two of those."""
    learn, held_out = divide(load_questions())
    if not (folder / "everyday").is_dir():
        log = [c for c, _ in simulate_comparisons(learn, PEOPLE, seed=7)]
        train(log, users={"kind": "bayes"}, search={"folds": 1}, output_dir=str(folder / "everyday"))
    people = list[Clicker]()
    for a, b in combinations(PEOPLE, 2):
        weights = {name: (a.weights[name] + b.weights[name]) / 2 for name in ATTRIBUTES}
        people.append(_planted(SimulatedUser(f"{a.name} and {b.name}", "", weights), learn, held_out, len(people)))
    yield Scorer.from_pretrained(folder / "everyday"), people


def _planted(
    person: SimulatedUser, learn: Sequence[EverydayPrompt], held_out: Sequence[EverydayPrompt], seed: int
) -> Clicker:
    answers = [c for c, _ in simulate_comparisons(learn, [person], seed)]
    drawn = np.random.default_rng(seed).permutation(len(answers))[:POOL]
    choices = [Choice(q.prompt, [a.text for a in q.answers], [person.utility(a) for a in q.answers]) for q in held_out]
    return Clicker(person.name, [answers[i] for i in drawn], choices)


def real(name: str, data: Path, folder: Path) -> Iterator[tuple[Scorer, list[Clicker]]]:
    """The parts of a set of real people on which the rule was not chosen (`benchmarks.questions`)."""
    name, _, texts_of = name.partition(", ")
    by = "pair" if texts_of else "response"
    for part in PARTS[name](data):
        if part.name.endswith(TUNED):
            continue
        part = replace(part, log=[(*row[:4], "") for row in part.log])  # what people say of themselves is not read
        ratings: dict[str, dict[str, float]] = {}
        for user, _, response, rating, _ in part.log:
            ratings.setdefault(user, {})[response] = rating
        draw, people = np.random.default_rng(0), list[Clicker]()
        for person in people_of(part, by):
            own, prompt = ratings[person.user], person.test[0].prompt
            texts = sorted({text for c in person.test for text in (c.chosen, c.rejected)})
            drawn = [[texts[i] for i in draw.permutation(len(texts))[:N]] for _ in range(CHOICES)]
            choices = [Choice(prompt, each, [own[text] for text in each]) for each in drawn]
            people.append(Clicker(person.user, person.pool, choices))
        yield trained(part, folder), people


def clicked(engine: Engine, person: Clicker, rule: str, seed: int) -> Gained:
    """One person clicks through the questions, under an id that the service has never seen."""
    user, draw, pool = f"new: {person.user}", np.random.default_rng(seed), list(person.pool)
    generic = [engine.rank("", c.prompt, c.responses, write_down=False).generic for c in person.choices]
    best = [max(c.values) for c in person.choices]
    won, hits = [], []
    for clicks in range(AFTER[-1] + 1):
        if clicks:
            i = int(draw.integers(len(pool))) if rule == "at random" else _telling(engine, user, pool, draw)
            c = pool.pop(i)
            engine.give_feedback("", user, Judgement("pair", c.prompt, (c.chosen, c.rejected), 0, c.user_text))
        if clicks in AFTER:
            picks = [
                c.values[engine.rank("", c.prompt, c.responses, user, write_down=False).personal]
                for c in person.choices
            ]
            before = [c.values[i] for c, i in zip(person.choices, generic, strict=True)]
            won.append(float(sum(picks) - sum(before)))
            hits.append(float(np.isclose(picks, best).sum()))
    headroom = sum(best) - sum(c.values[i] for c, i in zip(person.choices, generic, strict=True))
    return Gained(won=won, headroom=float(headroom), picks_best=hits, choices=len(best))


@torch.no_grad()
def _telling(engine: Engine, user: str, pool: Sequence[Comparison], draw: np.random.Generator) -> int:
    """The question whose result tells most about comparisons of any two responses to one prompt.

    As `Scorer.next_question`, for a person whom the service knows.
    """
    responses: dict[Prompt, list[str]] = {}
    for c in pool:
        responses.setdefault(c.prompt, []).extend({c.chosen, c.rejected})
    prompts = list(responses)
    pairs = [(c.prompt, c.chosen, c.rejected) for c in pool]
    for i in draw.integers(len(prompts), size=TARGETS):
        texts = sorted(set(responses[prompts[i]]))
        first, second = draw.permutation(len(texts))[:2]
        pairs.append((prompts[i], texts[first], texts[second]))
    rows = [TextRequest(prompt, text) for prompt, *both in pairs for text in both]
    features = engine.texts.get(rows, time.monotonic() + 600.0)
    one, other = (features.at(torch.arange(start, len(rows), 2)) for start in (0, 1))
    with engine.people.rows("", [user]) as (model, (known,)):
        row = torch.full((len(pairs),), known.row, dtype=torch.long)
        return int(model.linear_information(one, other, row, len(pool)).argmax())


def measured(scorer: Scorer, people: Sequence[Clicker], rule: str, caution: float = 0.0) -> list[Gained]:
    """What each person gained on a service of their own."""
    with tempfile.TemporaryDirectory() as place:
        engine = Engine(scorer, Store(f"sqlite:///{place}/store.db"), ServiceConfig(timeout=600.0, caution=caution))
        try:
            each = progress(people, desc=rule, unit="person")
            return [clicked(engine, person, rule, seed) for seed, person in enumerate(each)]
        finally:
            engine.close()


def rows_of(known: dict[str, list[Gained]]) -> list[list[str]]:
    """A row for each set and rule: share of the headroom captured after each number of clicks, with its interval."""
    rows = []
    for key, people in sorted(known.items()):
        name, rule = key.split(" | ")
        headroom = [person["headroom"] for person in people]
        shares = [ratio([person["won"][i] for person in people], headroom) for i in range(len(AFTER))]
        rows.append([name, rule, str(len(people)), *(estimated(e, 0, 100.0) for e in shares)])
    return rows


HEADER = ["", "questions", "people", *(f"{k} clicks" for k in AFTER)]


def main(arguments: Sequence[str] | None = None, folder: Path = Path("runs/clicks")) -> None:
    """Click what is missing, then print the table."""
    parser = ArgumentParser(prog="python -m benchmarks.clicks", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--sets", nargs="*", choices=SETS, default=SETS)
    parser.add_argument("--caution", type=float, default=0.0, help="as `rerank serve --service.caution`")
    args = parser.parse_args(arguments)
    output = folder / (f"clicks-{args.caution:g}.json" if args.caution else "clicks.json")
    known: dict[str, list[Gained]] = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    for name in args.sets:
        keys = {rule: f"{name} | {rule}" for rule in RULES}
        if keys["at random"] not in known:
            found = {rule: list[Gained]() for rule in RULES}
            for scorer, people in everyday(folder) if name == "everyday" else real(name, args.data, folder):
                saved = scorer.checkpoint.folder
                assert saved is not None
                for rule in RULES:  # an engine takes the scorer's model over: each rule needs its own
                    found[rule] += measured(Scorer.from_pretrained(saved, cache=True), people, rule, args.caution)
            known |= {keys[rule]: gained for rule, gained in found.items()}
            write_json(output, known)
    show(table("share of the headroom captured, %", HEADER, rows_of(known), numeric=2))


if __name__ == "__main__":
    main()

"""What a chosen question is worth: answers of real people who were left out of training, replayed.

`python -m benchmarks.questions --data DATA` trains empirical Bayes on some people, then asks each of the others 20
questions, chosen by each rule, and measures the log loss on comparisons of theirs that were never asked. It prints
tables and stores each rule's curves in `runs/questions/curves.json`, from which a killed run is resumed.
"""

import json
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prm.checks import built
from prm.config import FeedbackConfig
from prm.data.comparison import Comparison
from prm.data.sources import read_feedback
from prm.data.sources.in_memory import rows_in_memory
from prm.data.sources.public import jester
from prm.io.progress import progress
from prm.io.tables import read_table, write_json
from prm.metrics import Array, nll
from prm.models.reward_model import RewardModel
from prm.report import show, table
from prm.scoring.scorer import Scorer
from prm.scoring.train_from_python import train
from prm.scoring.update_users import update_users
from prm.users.bayes.quadrature import FINE, spread_of

QUESTIONS, POOL, DRAWS = 20, 200, 3
AFTER, LEVELS = (0, 1, 2, 3, 5, 10, 20), (3, 5, 10, 20)  # questions; drawn ones that chosen ones are to match
TUNED = ", to choose the rule"  # the people of such a part are not reported
RATED = tuple[str, str, str, float, str]  # user_id, prompt, response, rating, user_text
COLUMNS = ("user_id", "prompt", "response", "rating", "user_text")


@dataclass(frozen=True)
class Part:
    """People to train on, and people who are asked.

    Args:
        log: the rows of all of them.
        gap: minimum difference of two ratings that make a comparison.
        max_pairs: training comparisons that one response enters, per user.
    """

    name: str
    log: list[RATED]
    train: frozenset[str]
    asked: frozenset[str]
    gap: float
    max_pairs: int

    def comparisons(self, users: frozenset[str], max_pairs: int) -> list[Comparison]:
        """All comparisons of these users."""
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in self.log if row[0] in users]
        settings = {"path": "log", "source": "ratings", "min_rating_difference": self.gap, "max_pairs": max_pairs}
        return list(read_feedback(built(FeedbackConfig, settings), rows=rows_in_memory(rows)[1]).comparisons)


@dataclass(frozen=True)
class Person:
    """The comparisons that a person can be asked, and others of theirs."""

    user: str
    pool: list[Comparison]
    test: list[Comparison]


def jester_parts(data: Path) -> Iterator[Part]:
    """300 people to train on; 100 on whom the rule was chosen, and 100 others."""
    jokes = {row["joke_id"]: row["text"] for row in _read(data / "jester5k/jokes.jsonl")}
    log: list[RATED] = [
        (row["user_id"], jester.PROMPT, jokes[row["joke_id"]], float(row["rating"]), "")
        for row in _read(data / "jester5k/ratings.csv.gz")
    ]
    users = shuffled(log, seed=0)
    for name, start, stop in (("jester" + TUNED, 300, 400), ("jester", 400, 500)):
        yield Part(name, log, frozenset(users[:300]), frozenset(users[start:stop]), 2.0, 8)


def harms_parts(data: Path, seed: int = 0, folds: int = 5) -> Iterator[Part]:
    """Each fifth of the people in turn, with the others to train on; the rule was chosen on two fifths of seed 0."""
    log: list[RATED] = [
        (row["user_id"], row["prompt"], row["response"], float(row["rating"]), row["user_text"])
        for row in _read(data / "harms/ratings.csv.gz")
    ]
    users = shuffled(log, seed)
    for fold in range(folds):
        asked = frozenset(users[fold::folds])
        tuned = TUNED if fold < 2 else ""
        yield Part(f"harms, seed {seed}, fold {fold}{tuned}", log, frozenset(users) - asked, asked, 20.0, 8)


def _read(path: Path) -> Iterator[dict[str, str]]:
    return ({name: str(value) for name, value in (row.values or {}).items()} for row in read_table(str(path)))


def shuffled(log: Sequence[RATED], seed: int) -> list[str]:
    """All users of a log, in a random order."""
    users = sorted({row[0] for row in log})
    return [users[i] for i in np.random.default_rng(seed).permutation(len(users))]


def trained(part: Part, folder: Path) -> Scorer:
    """The model of the part's training people; trained once."""
    name = part.name.removesuffix(TUNED).replace(", ", "-").replace(" ", "-")
    if not (folder / name).is_dir():
        log = part.comparisons(part.train, part.max_pairs)
        data = {"holdout_by": "pair", "on_artefact": "warn"}
        # one validation part: what the folds would choose better is the same for all rules
        train(log, users={"kind": "bayes"}, data=data, search={"folds": 1}, output_dir=str(folder / name))
    return Scorer.from_pretrained(folder / name, cache=True)


def people_of(part: Part, by: str, seed: int = 0) -> list[Person]:
    """The people to ask; by `response`, no text of a question is in the other comparisons."""
    draw, logs = np.random.default_rng(seed), dict[str, list[Comparison]]()
    for c in part.comparisons(part.asked, 10_000):
        if not c.is_tie:
            logs.setdefault(c.user_id, []).append(c)
    out = []
    for user, log in sorted(logs.items()):
        log = [log[i] for i in draw.permutation(len(log))]
        pool, test = log[:POOL], log[POOL : 2 * POOL]
        if by == "response":
            texts = sorted({text for c in log for text in (c.chosen, c.rejected)})
            half = {texts[i] for i in draw.permutation(len(texts))[: len(texts) // 2]}
            pool = [c for c in log if {c.chosen, c.rejected} <= half][:POOL]
            test = [c for c in log if half.isdisjoint((c.chosen, c.rejected))][:POOL]
        if len(pool) >= 2 * QUESTIONS and len(test) >= 2 * QUESTIONS:
            out.append(Person(user, pool, test))
    return out


PARTS: dict[str, Callable[[Path], Iterator[Part]]] = {"jester": jester_parts, "harms": harms_parts}
Rule = Callable[[Scorer, str, list[Comparison], np.random.Generator], int]


def _random(scorer: Scorer, user: str, pool: list[Comparison], draw: np.random.Generator) -> int:
    return int(draw.integers(len(pool)))


def _uncertain(scorer: Scorer, user: str, pool: list[Comparison], draw: np.random.Generator) -> int:
    first, second = [c.chosen for c in pool], [c.rejected for c in pool]
    margins = scorer.margin_batch([c.prompt for c in pool], first, second, [user] * len(pool))
    return int(margins.abs().argmin())


def _about_the_user(scorer: Scorer, user: str, pool: list[Comparison], draw: np.random.Generator) -> int:
    """Mutual information of the result and the user's offset (Houlsby et al. 2011, "BALD")."""
    prompts = [c.prompt for c in pool]
    pooled, index = scorer.reader.pooled(
        [*prompts, *prompts], [*(c.chosen for c in pool), *(c.rejected for c in pool)], [""] * (2 * len(pool))
    )
    model = scorer.checkpoint.model
    assert isinstance(model, RewardModel)
    features = model.head_input(pooled)
    rows = torch.full((len(pool),), scorer.checkpoint.users.row(user))
    mean, variance = model.linear_logits(features.at(index[: len(pool)]), features.at(index[len(pool) :]), rows)
    p = torch.sigmoid(mean[:, None] + spread_of(variance, FINE[0].to(mean)))
    weights = FINE[1].to(mean)
    return int((_entropy(p @ weights) - _entropy(p) @ weights).argmax())


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p) + torch.special.entr(1.0 - p)


def _next_question(scorer: Scorer, user: str, pool: list[Comparison], draw: np.random.Generator) -> int:
    return scorer.next_question(user, [(c.prompt, c.chosen, c.rejected) for c in pool]).position


RULES: dict[str, Rule] = {
    "random": _random,
    "uncertain": _uncertain,
    "about the user": _about_the_user,
    "next_question": _next_question,
}


def curves(scorer: Scorer, people: Sequence[Person], rule: Rule, seed: int) -> list[list[float]]:
    """Log loss (nats) of each person's other comparisons after 0, 1, ... answers, [people, QUESTIONS + 1]."""
    _read_once(scorer, people)
    draw = np.random.default_rng(seed)
    pools = {person.user: list(person.pool) for person in people}
    answers: list[Comparison] = []
    losses = []
    for k in progress(range(QUESTIONS + 1), desc="asking", unit="question"):
        if k:
            for user, pool in pools.items():
                answers.append(pool.pop(rule(scorer, user, pool, draw)))
        update_users(scorer.checkpoint, scorer.reader, answers, list(pools), anew=True)
        losses.append(_losses(scorer, people))
    return np.array(losses).T.tolist()


def _read_once(scorer: Scorer, people: Sequence[Person]) -> None:
    """Keep the hidden states of all texts in memory."""
    asked = [c for person in people for c in person.pool + person.test]
    texts = list(dict.fromkeys((str(c.prompt), text) for c in asked for text in (c.chosen, c.rejected)))
    prompts, responses = [prompt for prompt, _ in texts], [response for _, response in texts]
    states, index = scorer.reader.pooled(prompts, responses, [""] * len(texts))
    scorer.reader.reuse([scorer.reader.encode(*text) for text in texts], states[index])


def _losses(scorer: Scorer, people: Sequence[Person]) -> list[float]:
    test = [c for person in people for c in person.test]
    margins = scorer.margin_batch(
        [c.prompt for c in test], [c.chosen for c in test], [c.rejected for c in test], [c.user_id for c in test]
    )
    parts = np.split(nll(margins.numpy(), np.ones(len(test))), np.cumsum([len(person.test) for person in people])[:-1])
    return [float(part.mean()) for part in parts]


def ratio_of(chosen: Array, drawn: Array, k: int) -> float:
    """How many chosen questions give the log loss of k drawn ones, over k; curves of mean log loss, [QUESTIONS + 1].

    Between two numbers of questions the log loss is interpolated. Infinite if chosen ones never give it.
    """
    reached = np.minimum.accumulate(chosen)
    after = int(np.argmax(reached <= drawn[k]))
    if reached[after] > drawn[k]:
        return float("inf")
    step = (reached[after - 1] - drawn[k]) / (reached[after - 1] - reached[after]) if after else 0.0
    return float((max(after - 1, 0) + step) / k)


def interval(chosen: Array, drawn: Array, k: int, resamples: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """`ratio_of` and its 95% interval by bootstrap over people; curves of each person, [people, QUESTIONS + 1]."""
    draw = np.random.default_rng(seed)
    rows = draw.integers(len(chosen), size=(resamples, len(chosen)))
    ratios = [ratio_of(chosen[r].mean(0), drawn[r].mean(0), k) for r in rows]
    low, high = np.quantile(ratios, [0.025, 0.975], method="nearest")
    return ratio_of(chosen.mean(0), drawn.mean(0), k), float(low), float(high)


def main(arguments: Sequence[str] | None = None, folder: Path = Path("runs/questions")) -> None:
    """Replay what is missing, then print the tables."""
    parser = ArgumentParser(prog="python -m benchmarks.questions", description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--sets", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--by", nargs="*", choices=["pair", "response"], default=["pair"])
    parser.add_argument("--rules", nargs="*", choices=list(RULES), default=list(RULES))
    args = parser.parse_args(arguments)
    output = folder / "curves.json"
    known: dict[str, list[list[float]]] = json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {}
    folder.mkdir(parents=True, exist_ok=True)
    for part in (part for name in args.sets for part in PARTS[name](args.data)):
        scorer: Scorer | None = None
        for by in args.by:
            people: list[Person] = []
            for rule, seed in [(each, seed) for each in args.rules for seed in range(DRAWS if each == "random" else 1)]:
                key = " | ".join([part.name, by, rule, str(seed)])
                if key not in known:
                    scorer = scorer or trained(part, folder)
                    people = people or people_of(part, by)
                    known[key] = curves(scorer, people, RULES[rule], seed)
                    write_json(output, known)
                    show(f"{key}: {[round(float(x), 3) for x in np.mean(known[key], 0)[list(AFTER)]]}")
    for (name, by), found in sorted(gathered(known).items()):
        show(table(f"{name}, by {by}: log loss (nats) after so many questions", LOSSES, losses_of(found)))
        show(table(f"{name}, by {by}: questions chosen / drawn, for the same log loss", RATIOS, ratios_of(found)))


def gathered(known: dict[str, list[list[float]]]) -> dict[tuple[str, str], dict[str, Array]]:
    """Curves [people, QUESTIONS + 1] of each rule, for each set and split; draws averaged, folds one below another."""
    draws: dict[tuple[str, str, str, str], list[Array]] = {}
    for key, rows in known.items():
        name, by, rule, _ = key.split(" | ")
        kind = name.split(", ")[0] + (TUNED if name.endswith(TUNED) else "")
        draws.setdefault((kind, by, rule, name), []).append(np.array(rows))
    out: dict[tuple[str, str], dict[str, Array]] = {}
    for (name, by, rule, _), several in sorted(draws.items()):
        rules, mean = out.setdefault((name, by), {}), np.mean(several, 0)
        rules[rule] = np.concatenate([rules[rule], mean]) if rule in rules else mean
    return out


LOSSES = ["", "people", *map(str, AFTER)]
RATIOS = ["", *(f"that of {k} drawn" for k in LEVELS)]


def losses_of(found: dict[str, Array]) -> list[list[str]]:
    """Mean log loss over people after some numbers of questions, by rule."""
    return [[rule, str(len(rows)), *(f"{x:.3f}" for x in rows.mean(0)[list(AFTER)])] for rule, rows in found.items()]


def ratios_of(found: dict[str, Array]) -> list[list[str]]:
    """Each rule's ratios to questions drawn at random, with intervals, if these were drawn for the same people."""
    drawn = found.get("random")
    chosen = {r: rows for r, rows in found.items() if r != "random" and drawn is not None and len(rows) == len(drawn)}
    out = []
    for rule, rows in chosen.items():
        ratios = [interval(rows, found["random"], k) for k in LEVELS]
        out.append([rule, *(f"{value:.2f} [{low:.2f}, {high:.2f}]" for value, low, high in ratios)])
    return out


if __name__ == "__main__":
    main()

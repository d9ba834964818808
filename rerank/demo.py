"""`make demo`: train on simulated users, and show which of five good responses each of them gets.

Twelve simulated users compare the responses to 40 everyday questions, with noise. A model learns their tastes
from that log, and picks among the responses to 20 held-out questions for each of them.
"""

import argparse
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NotRequired, TypedDict

import numpy as np

from prm import report
from prm.cli.output import errors_in_one_line, log_to_stderr
from prm.config import TrainConfig
from prm.data.comparison import Comparison, Prompt, fingerprint
from prm.data.sources.public.everyday import (
    ATTRIBUTES,
    OPPOSED,
    PEOPLE,
    WORDS,
    Answer,
    EverydayPrompt,
    load_questions,
    simulate_comparisons,
)
from prm.evaluation.evaluate import Evaluation, evaluate_run
from prm.io.environment import environment
from prm.io.formatting import figure
from prm.io.rows import Json
from prm.io.run_files import Environment, read_json, read_run
from prm.io.tables import write_json, write_jsonl
from prm.io.yaml_settings import read_train_config
from prm.metrics import noise_ceiling, slopes_within
from prm.report.section import Section
from prm.report.text.evaluation import in_short, notes
from prm.scoring.scorer import Scorer
from prm.training.prepare_log import split_data
from prm.training.run import train
from rerank.ranking.strategies import Ranked, rank
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

_HELD_OUT = 20
_SEED = 7


class _Samples(TypedDict):
    """Cached responses to each question, and the settings that they were sampled with."""

    key: dict[str, object]
    answers: list[list[str]]


class _Directions(TypedDict):
    """Shares of duels whose picks differ as the two users' stated tastes do; the last for the true utilities."""

    stated_direction: float
    stated_direction_by_attribute: dict[str, float]
    duels: int
    true_direction: float


class DemoMetrics(TypedDict):
    """`metrics.json` of the demo."""

    accuracy: dict[str, float]
    rerank: _Directions
    ceiling_per_user: dict[str, float]
    evaluation: dict[str, Json]
    seconds: NotRequired[float]
    config: NotRequired[dict[str, object]]
    environment: NotRequired[Environment]


class FreshResponses(TypedDict):
    """The fresh responses to a question: how many different ones, and their ranking for each user."""

    prompt: str
    distinct: int
    rankings: dict[str, list[Ranked]]


@dataclass(frozen=True)
class Pick:
    """The response picked for a user, with the reasons in words, strongest first."""

    user: str
    answer: Answer
    reward: float
    reasons: list[str]


@dataclass(frozen=True)
class DemoDuel:
    """A held-out question's picks for two users of opposite taste and the generic user.

    `as_stated` is true if the two picks differ in the direction of the two stated tastes.
    """

    prompt: str
    attribute: str
    less: Pick
    more: Pick
    generic: Pick
    as_stated: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo; its files are written to the parent folder of the config's `output_dir`."""
    parser = argparse.ArgumentParser(prog="rerank.demo", description=__doc__)
    parser.add_argument("--config", default="configs/prm/demo.yaml", help="training run of the demo")
    parser.add_argument("--generator", default="smollm2-135m", help="model that samples fresh responses")
    parser.add_argument("-n", type=int, default=16, help="fresh responses per question")
    parser.add_argument("--questions", type=int, default=2, help="held-out questions to sample fresh responses for")
    args = parser.parse_args(argv)
    log_to_stderr()
    with errors_in_one_line():
        run_demo(args)


def run_demo(args: argparse.Namespace) -> None:
    """Simulate the log, train on it, and show what each user gets."""
    started = time.perf_counter()
    config = read_train_config(args.config)
    folder = Path(config.output_dir).parent
    learn, held_out = divide(load_questions())
    test = write_logs(folder, Path(config.data.path), learn, held_out)
    run = trained(config)
    evaluation = evaluate_run(run, [comparison for comparison, _ in test])
    scorer = Scorer.from_pretrained(run, cache=True)
    tastes = learned_tastes(scorer, learn)
    duels = [duel for question in held_out for duel in duels_of(scorer, question, tastes)]
    metrics = summary(evaluation, scorer, test, duels)
    show(evaluation, metrics, duels)
    fresh = fresh_answers(scorer, held_out[: args.questions], args.generator, args.n, folder / "samples.json")
    metrics["seconds"] = round(time.perf_counter() - started, 1)
    metrics |= {"config": config.to_dict(), "environment": environment()}
    write_json(folder / "metrics.json", metrics)
    write_page(folder, evaluation, metrics, duels, fresh, tastes)
    show_fresh(fresh)
    report.show(f"{metrics['seconds']:.0f} s. Numbers: {folder / 'metrics.json'}. Page: {folder / 'index.html'}")


def divide(questions: Sequence[EverydayPrompt]) -> tuple[list[EverydayPrompt], list[EverydayPrompt]]:
    """Split the questions into 40 for training and 20 held out, with a fixed seed."""
    order = list(questions)
    random.Random(_SEED).shuffle(order)
    return order[_HELD_OUT:], order[:_HELD_OUT]


def write_logs(
    folder: Path, train_path: Path, learn: Sequence[EverydayPrompt], held_out: Sequence[EverydayPrompt]
) -> list[tuple[Comparison, float]]:
    """Write the two feedback logs; return the held-out one with its true probabilities."""
    write_jsonl(train_path, [comparison for comparison, _ in simulate_comparisons(learn, PEOPLE, _SEED)])
    test = list(simulate_comparisons(held_out, PEOPLE, _SEED + 1))
    write_jsonl(folder / "test.jsonl", [comparison for comparison, _ in test])
    return test


def trained(config: TrainConfig) -> Path:
    """Return the config's run: the finished one if settings and data are the same, otherwise train it."""
    run, parts = Path(config.output_dir), split_data(config)
    if (run / "run.json").exists():
        cached = read_run(run, "config", "data.fingerprint")
        same_data = cached["data"]["fingerprint"] == fingerprint([*parts.train, *parts.validation, *parts.test])
        if same_data and {**cached["config"], "overwrite": None} == {**config.to_dict(), "overwrite": None}:
            report.show(f"{run} is up to date")
            return run
    config.overwrite = True
    return train(config)


def learned_tastes(scorer: Scorer, questions: Sequence[EverydayPrompt]) -> dict[str | None, dict[str, float]]:
    """Fit each user's rewards to the responses' attributes, by least squares within each question.

    This describes the model on its training questions; `None` is the generic user. Units: logits per unit of
    attribute (20 words; present or not).
    """
    users: list[str | None] = [None, *scorer.users]
    x = np.array([[a.attributes[name] for name in ATTRIBUTES] for q in questions for a in q.answers])
    rewards = [scorer.score_users(q.prompt, [a.text for a in q.answers], users).numpy().T for q in questions]
    of_question = np.repeat(np.arange(len(questions)), [len(q.answers) for q in questions])
    weights = slopes_within(x, np.concatenate(rewards), of_question).T
    table = zip(users, weights.tolist(), strict=True)
    return {user: dict(zip(ATTRIBUTES, row, strict=True)) for user, row in table}


def duels_of(scorer: Scorer, question: EverydayPrompt, tastes: dict[str | None, dict[str, float]]) -> list[DemoDuel]:
    """One duel per pair of opposed users."""
    duels = []
    for less, more, attribute in OPPOSED:
        picks = [pick(scorer, question, user, tastes[user]) for user in (less, more, None)]
        low, high = (p.answer.attributes[attribute] for p in picks[:2])
        duels.append(DemoDuel(question.prompt, attribute, picks[0], picks[1], picks[2], as_stated=low < high))
    return duels


def pick(scorer: Scorer, question: EverydayPrompt, user: str | None, taste: dict[str, float]) -> Pick:
    """Pick the response with the highest reward; the reasons contrast it with the other four by the user's taste."""
    answers = question.answers
    best = rank([a.text for a in answers], scorer.score(question.prompt, [a.text for a in answers], user))[0]
    chosen = answers[best.corpus_id]
    others = [a for a in answers if a is not chosen]
    effects = {}
    for name in ATTRIBUTES:
        surplus = chosen.attributes[name] - sum(a.attributes[name] for a in others) / len(others)
        effects[name] = (taste[name] * surplus, surplus)
    ranked = sorted(effects.items(), key=lambda item: -item[1][0])
    reasons = [f"{WORDS[name][surplus < 0]} {gain:+.1f}" for name, (gain, surplus) in ranked[:2] if gain > 0.05]
    return Pick(user or "generic user", chosen, best.score, reasons)


def summary(
    evaluation: Evaluation, scorer: Scorer, test: Sequence[tuple[Comparison, float]], duels: Sequence[DemoDuel]
) -> DemoMetrics:
    """Compute the figures of `metrics.json`."""
    ceiling = noise_ceiling([p for _, p in test])
    accuracy = {row.name: row.accuracy.value for row in evaluation.rows}
    personal, uniform = accuracy["personal"], accuracy["uniform, tuned"]
    users = sorted({c.user_id for c, _ in test})
    return {
        "accuracy": {
            "personal": personal,
            "uniform": uniform,
            "noise_ceiling": ceiling,
            "generic_user": accuracy["generic user"],
            "users_shuffled": accuracy["users shuffled"],
            "longest_answer": accuracy["longest answer"],
            "length_sign_per_user": accuracy["length sign per user"],
            "share_of_way_to_ceiling": (personal - uniform) / (ceiling - uniform),
        },
        "rerank": {
            "stated_direction": float(np.mean([duel.as_stated for duel in duels])),
            "stated_direction_by_attribute": {
                name: float(np.mean([d.as_stated for d in duels if d.attribute == name])) for _, _, name in OPPOSED
            },
            "duels": len(duels),
            "true_direction": true_direction(sorted({c.prompt for c, _ in test}, key=str)),
        },
        "ceiling_per_user": {u: noise_ceiling([p for c, p in test if c.user_id == u]) for u in users},
        "evaluation": evaluation.to_dict(),
    }


def true_direction(prompts: Sequence[Prompt]) -> float:
    """Share of duels that go as stated if picks maximise the true utilities: an upper bound for any model."""
    people = {person.name: person for person in PEOPLE}
    hits = []
    for question in load_questions():
        if question.prompt in prompts:
            for less, more, attribute in OPPOSED:
                low, high = (max(question.answers, key=people[name].utility) for name in (less, more))
                hits.append(low.attributes[attribute] < high.attributes[attribute])
    return float(np.mean(hits))


def fresh_answers(
    scorer: Scorer, questions: Sequence[EverydayPrompt], generator: str, n: int, cache: Path
) -> list[FreshResponses]:
    """Sample n responses per question (cached on disk) and rank them for two opposed users and the generic one."""
    sampling = Sampling(max_new_tokens=120, temperature=0.6, top_p=0.9)
    key: dict[str, object] = {
        "generator": generator,
        "n": n,
        "sampling": asdict(sampling),
        "prompts": [q.prompt for q in questions],
    }
    again = "delete it, and the responses are sampled again"
    cached = read_json(cache, _Samples, again) if cache.exists() else None
    if cached is None or cached["key"] != key:
        sampler = Sampler.from_pretrained(generator)
        cached = {"key": key, "answers": [sampler.sample(q.prompt, n, sampling) for q in questions]}
        write_json(cache, cached)
    rows: list[FreshResponses] = []
    for question, sampled in zip(questions, cached["answers"], strict=True):
        candidates = [text for text in dict.fromkeys(sampled) if scorer.reader.has_tokens(text)]
        if not candidates:
            logger.warning("every fresh response is empty: %s", question.prompt)
            continue
        users = [OPPOSED[0][0], OPPOSED[0][1], None]
        rewards = scorer.score_users(question.prompt, candidates, users)
        rankings = {user or "generic user": rank(candidates, row) for user, row in zip(users, rewards, strict=True)}
        rows.append({"prompt": question.prompt, "distinct": len(candidates), "rankings": rankings})
    return rows


def show(evaluation: Evaluation, metrics: DemoMetrics, duels: Sequence[DemoDuel]) -> None:
    """Print the demo's tables."""
    accuracy, ceilings = metrics["accuracy"], metrics["ceiling_per_user"]
    taste = {person.name: person.taste for person in PEOPLE}
    per_user = [
        [
            user,
            taste[user],
            *(
                figure(None if v is None else 100 * v)
                for v in (entry["uniform, tuned"], entry["personal"], ceilings[user])
            ),
        ]
        for user, entry in evaluation.per_user.items()
    ]
    # one held-out question per opposed pair, each a different one; the page has them all
    selected = [duels[i * len(OPPOSED) + i] for i in range(len(OPPOSED))]
    report.show(
        report.table(
            "Accuracy on 20 held-out questions",
            ["user", "likes", "uniform %", "personal %", "ceiling %"],
            per_user,
            numeric=2,
        ),
        report.table("All users, with baselines", *in_short(evaluation)),
        evaluation.verdict.says,
        *notes(evaluation),
        f"noise ceiling {100 * accuracy['noise_ceiling']:.1f}%: the personal model closes "
        f"{100 * accuracy['share_of_way_to_ceiling']:.0f}% of the gap between the tuned uniform model and it",
        *(
            report.table(
                duel.prompt,
                ["for", "best of the five responses", "why"],
                [[p.user, _short(p.answer.text), "\n".join(p.reasons)] for p in (duel.less, duel.more, duel.generic)],
                numeric=3,
            )
            for duel in selected
        ),
        f"picks of opposed users differ as stated in {100 * metrics['rerank']['stated_direction']:.0f}% of "
        f"{metrics['rerank']['duels']} duels (with the true tastes: "
        f"{100 * metrics['rerank']['true_direction']:.0f}%)",
    )


def show_fresh(fresh: Sequence[FreshResponses]) -> None:
    """Print the best fresh response for each of the three users."""
    for item in fresh:
        rows = [[user, f"{ranked[0].score:+.2f}", ranked[0].text] for user, ranked in item["rankings"].items()]
        title = f"{item['distinct']} fresh responses to: {item['prompt']}"
        report.show(report.table(title, ["best for", "reward", "response"], rows, numeric=3))


def write_page(
    folder: Path,
    evaluation: Evaluation,
    metrics: DemoMetrics,
    duels: Sequence[DemoDuel],
    fresh: Sequence[FreshResponses],
    tastes: dict[str | None, dict[str, float]],
) -> None:
    """Write the pictures and the self-contained page."""
    stated = np.array([[p.weights[name] for name in ATTRIBUTES] for p in PEOPLE])
    learned = np.array([[tastes[p.name][name] for name in ATTRIBUTES] for p in PEOPLE])
    bound, names = float(abs(np.stack([stated, learned])).max()), [p.name for p in PEOPLE]
    pictures = {
        "accuracy": report.accuracy_picture(evaluation.per_user, metrics["ceiling_per_user"]),
        "stated": report.heat_picture("stated", stated, names, ATTRIBUTES, bound),
        "learned": report.heat_picture("learned", learned, names, ATTRIBUTES, bound),
    }
    header, rows = in_short(evaluation)
    questions: dict[str, list[DemoDuel]] = {}
    for duel in duels:
        questions.setdefault(duel.prompt, []).append(duel)
    report.write_page(
        folder / "index.html",
        "rerank",
        "demo.html",
        metrics=metrics,
        pictures={name: report.save_picture(figure, folder / f"{name}.png") for name, figure in pictures.items()},
        baselines=Section(
            "All users, with baselines", tuple(header), tuple(map(tuple, rows)), tuple(notes(evaluation))
        ),
        verdict=evaluation.verdict.says,
        questions=questions,
        fresh=fresh,
        people=PEOPLE,
    )


def _short(text: str, limit: int = 110) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1].rsplit(" ", 1)[0] + " ..."


if __name__ == "__main__":
    main()

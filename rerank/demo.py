"""`make demo`: good answers, simulated people, and what each of them gets.

Twelve simulated people judge the answers to 40 everyday questions, with noise. A model learns from that log
who likes what, and picks for them among the answers to 20 questions that nobody judged.
"""

import argparse
import logging
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from prm import report
from prm.checkpoint.checkpoint import environment
from prm.cli.output import errors_in_one_line, log_to_stderr
from prm.config import TrainConfig
from prm.data.comparison import Comparison, fingerprint
from prm.data.sources.public.everyday import (
    ATTRIBUTES,
    OPPOSED,
    PEOPLE,
    Answer,
    EverydayQuestion,
    judge,
    load_questions,
)
from prm.evaluation.evaluate import Evaluation, evaluate_run
from prm.io.run_files import read_json, read_run
from prm.io.tables import write_json, write_jsonl
from prm.io.yaml_settings import read_train_config
from prm.metrics import Array, noise_ceiling
from prm.report.text.evaluation import in_short, notes
from prm.scoring.scorer import Scorer
from prm.training.run import split_parts, train
from rerank.ranking.strategies import rank
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

_HELD_OUT = 20
_SEED = 7
_WORDS = {  # (more of it, less of it)
    "length": ("longer", "shorter"),
    "formal": ("formal", "casual"),
    "list": ("a list", "prose"),
    "warm": ("warm", "matter-of-fact"),
    "example": ("an example", "no example"),
    "hedged": ("careful", "sure of itself"),
}


class _Kept(TypedDict):
    """Fresh answers to each question, and what they were sampled with."""

    key: dict[str, Any]
    answers: list[list[str]]


@dataclass(frozen=True)
class Pick:
    """What one person gets of a question's answers: the answer, and the reasons in words, strongest first."""

    user: str
    answer: Answer
    reward: float
    reasons: list[str]


@dataclass(frozen=True)
class DemoDuel:
    """A held-out question's picks for two opposed people and an unknown one.

    `as_stated` is true where the two picks differ in the direction of the two stated tastes.
    """

    prompt: str
    attribute: str
    less: Pick
    more: Pick
    unknown: Pick
    as_stated: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Run the demo; everything it makes is in the folder above the config's `output_dir`."""
    parser = argparse.ArgumentParser(prog="rerank.demo", description=__doc__)
    parser.add_argument("--config", default="configs/prm/demo.yaml", help="training run of the demo")
    parser.add_argument("--generator", default="smollm2-135m", help="model that samples fresh answers")
    parser.add_argument("-n", type=int, default=16, help="fresh answers per question")
    parser.add_argument("--questions", type=int, default=2, help="held-out questions to sample fresh answers for")
    args = parser.parse_args(argv)
    log_to_stderr()
    with errors_in_one_line():
        run_demo(args)


def run_demo(args: argparse.Namespace) -> None:
    """Make the log, learn from it, and show what each person gets."""
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


def divide(questions: Sequence[EverydayQuestion]) -> tuple[list[EverydayQuestion], list[EverydayQuestion]]:
    """(40 to learn from, 20 held out), by a fixed seed."""
    order = list(questions)
    random.Random(_SEED).shuffle(order)
    return order[_HELD_OUT:], order[:_HELD_OUT]


def write_logs(
    folder: Path, train_path: Path, learn: Sequence[EverydayQuestion], held_out: Sequence[EverydayQuestion]
) -> list[tuple[Comparison, float]]:
    """Write the two feedback logs; returns the held-out one with its true probabilities."""
    write_jsonl(train_path, [comparison for comparison, _ in judge(learn, PEOPLE, _SEED)])
    test = list(judge(held_out, PEOPLE, _SEED + 1))
    write_jsonl(folder / "test.jsonl", [comparison for comparison, _ in test])
    return test


def trained(config: TrainConfig) -> Path:
    """The config's run: the finished one where settings and data are the same, else a new one."""
    run, parts = Path(config.output_dir), split_parts(config)
    if (run / "run.json").exists():
        known = read_run(run, "config", "data.fingerprint")
        same_data = known["data"]["fingerprint"] == fingerprint([*parts.train, *parts.validation, *parts.test])
        if same_data and {**known["config"], "overwrite": None} == {**config.to_dict(), "overwrite": None}:
            report.show(f"{run} is up to date")
            return run
    config.overwrite = True
    return train(config)


def learned_tastes(scorer: Scorer, questions: Sequence[EverydayQuestion]) -> dict[str | None, dict[str, float]]:
    """What each person's rewards grow with: least squares of reward on attributes within a question.

    Descriptive: it puts into words what the model does on the questions it learnt from; `None` is the
    unknown user. Units: logits per unit of attribute (20 words; present or not).
    """
    people: list[str | None] = [None, *scorer.users]
    attributes = [[[a.attributes[name] for name in ATTRIBUTES] for a in q.answers] for q in questions]
    x = _centred(np.array(attributes)).reshape(-1, len(ATTRIBUTES))
    rewards = np.stack([scorer.score_users(q.prompt, [a.text for a in q.answers], people).numpy() for q in questions])
    y = _centred(rewards.transpose(0, 2, 1)).reshape(len(x), len(people))
    weights = np.linalg.lstsq(x, y, rcond=None)[0].T
    table = zip(people, weights.tolist(), strict=True)
    return {user: dict(zip(ATTRIBUTES, row, strict=True)) for user, row in table}


def duels_of(scorer: Scorer, question: EverydayQuestion, tastes: dict[str | None, dict[str, float]]) -> list[DemoDuel]:
    """One duel per opposed pair."""
    duels = []
    for less, more, attribute in OPPOSED:
        picks = [pick(scorer, question, user, tastes[user]) for user in (less, more, None)]
        low, high = (p.answer.attributes[attribute] for p in picks[:2])
        duels.append(DemoDuel(question.prompt, attribute, picks[0], picks[1], picks[2], as_stated=low < high))
    return duels


def pick(scorer: Scorer, question: EverydayQuestion, user: str | None, taste: dict[str, float]) -> Pick:
    """The answer with the highest reward, and what sets it apart from the other four in this person's eyes."""
    answers = question.answers
    best = rank([a.text for a in answers], scorer.score(question.prompt, [a.text for a in answers], user))[0]
    chosen = answers[best.place]
    others = [a for a in answers if a is not chosen]
    effect = {}
    for name in ATTRIBUTES:
        surplus = chosen.attributes[name] - sum(a.attributes[name] for a in others) / len(others)
        effect[name] = (taste[name] * surplus, surplus)
    ranked = sorted(effect.items(), key=lambda item: -item[1][0])
    reasons = [f"{_WORDS[name][surplus < 0]} {gain:+.1f}" for name, (gain, surplus) in ranked[:2] if gain > 0.05]
    return Pick(user or "unknown user", chosen, best.reward, reasons)


def summary(
    evaluation: Evaluation, scorer: Scorer, test: Sequence[tuple[Comparison, float]], duels: Sequence[DemoDuel]
) -> dict[str, Any]:
    """The figures of `metrics.json`."""
    ceiling = noise_ceiling([p for _, p in test])
    accuracy = {row.name: row.accuracy.value for row in evaluation.rows}
    personal, uniform = accuracy["personal"], accuracy["uniform, tuned"]
    people = sorted({c.user_id for c, _ in test})
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
        "ceiling_per_user": {u: noise_ceiling([p for c, p in test if c.user_id == u]) for u in people},
        "evaluation": evaluation.to_dict(),
    }


def true_direction(prompts: Sequence[Any]) -> float:
    """Stated direction of a judge who knows every true utility: the most that any model should be asked for."""
    people = {person.name: person for person in PEOPLE}
    hits = []
    for question in load_questions():
        if question.prompt in prompts:
            for less, more, attribute in OPPOSED:
                low, high = (max(question.answers, key=people[name].utility) for name in (less, more))
                hits.append(low.attributes[attribute] < high.attributes[attribute])
    return float(np.mean(hits))


def fresh_answers(
    scorer: Scorer, questions: Sequence[EverydayQuestion], generator: str, n: int, cache: Path
) -> list[dict[str, Any]]:
    """N fresh answers per question, ranked for two opposed people and the unknown one; samples are kept on disk."""
    sampling = Sampling(max_new_tokens=120, temperature=0.6, top_p=0.9)
    key = {"generator": generator, "n": n, "sampling": asdict(sampling), "prompts": [q.prompt for q in questions]}
    known = read_json(cache, _Kept, "delete it, and the answers are sampled again") if cache.exists() else {}
    if known.get("key") != key:
        sampler = Sampler.from_pretrained(generator)
        known = {"key": key, "answers": [sampler.sample(q.prompt, n, sampling) for q in questions]}
        write_json(cache, known)
    out = []
    for question, sampled in zip(questions, known["answers"], strict=True):
        candidates = [text for text in dict.fromkeys(sampled) if scorer.fits(text)]
        if not candidates:
            logger.warning("every fresh answer is empty: %s", question.prompt)
            continue
        people = [OPPOSED[0][0], OPPOSED[0][1], None]
        rewards = scorer.score_users(question.prompt, candidates, people)
        rankings = {user or "unknown user": rank(candidates, row) for user, row in zip(people, rewards, strict=True)}
        out.append({"prompt": question.prompt, "distinct": len(candidates), "rankings": rankings})
    return out


def show(evaluation: Evaluation, metrics: dict[str, Any], duels: Sequence[DemoDuel]) -> None:
    """The demo's tables on the terminal."""
    accuracy, ceilings = metrics["accuracy"], metrics["ceiling_per_user"]
    taste = {person.name: person.taste for person in PEOPLE}
    per_user = [
        [user, taste[user], *(f"{100 * v:.1f}" for v in (entry["uniform, tuned"], entry["personal"], ceilings[user]))]
        for user, entry in evaluation.per_user.items()
    ]
    # one question per opposed pair, each the next one held out; the page has them all
    shown = [duels[i * len(OPPOSED) + i] for i in range(len(OPPOSED))]
    report.show(
        report.table(
            "Accuracy on 20 questions that nobody judged",
            ["person", "likes", "uniform %", "personal %", "ceiling %"],
            per_user,
            numeric=2,
        ),
        report.table("All people, beside the controls", *in_short(evaluation)),
        evaluation.verdict.says,
        *notes(evaluation),
        f"noise ceiling {100 * accuracy['noise_ceiling']:.1f}%: the personal model goes "
        f"{100 * accuracy['share_of_way_to_ceiling']:.0f}% of the way from the tuned uniform model to it",
        *(
            report.table(
                duel.prompt,
                ["for", "best of the five answers", "why"],
                [[p.user, _short(p.answer.text), "\n".join(p.reasons)] for p in (duel.less, duel.more, duel.unknown)],
                numeric=3,
            )
            for duel in shown
        ),
        f"picks of opposed people differ as stated in {100 * metrics['rerank']['stated_direction']:.0f}% of "
        f"{metrics['rerank']['duels']} duels (a judge who knew the true tastes: "
        f"{100 * metrics['rerank']['true_direction']:.0f}%)",
    )


def show_fresh(fresh: Sequence[dict[str, Any]]) -> None:
    """Best fresh answer for each of the three."""
    for item in fresh:
        rows = [[user, f"{ranked[0].reward:+.2f}", ranked[0].text] for user, ranked in item["rankings"].items()]
        title = f"{item['distinct']} fresh answers to: {item['prompt']}"
        report.show(report.table(title, ["best for", "reward", "answer"], rows, numeric=3))


def write_page(
    folder: Path,
    evaluation: Evaluation,
    metrics: dict[str, Any],
    duels: Sequence[DemoDuel],
    fresh: Sequence[dict[str, Any]],
    tastes: dict[str | None, dict[str, float]],
) -> None:
    """Pictures and the self-contained page."""
    stated = np.array([[p.weights[name] for name in ATTRIBUTES] for p in PEOPLE])
    learned = np.array([[tastes[p.name][name] for name in ATTRIBUTES] for p in PEOPLE])
    names = [p.name for p in PEOPLE]
    accuracy = report.accuracy_picture(evaluation.per_user, metrics["ceiling_per_user"])
    pictures = {
        "accuracy": report.save_picture(accuracy, folder / "accuracy.png"),
        "tastes": report.save_picture(
            report.heat_pictures({"stated": stated, "learned": learned}, names, ATTRIBUTES, "logits per unit"),
            folder / "tastes.png",
        ),
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
        pictures=pictures,
        header=header,
        rows=rows,
        verdict=evaluation.verdict.says,
        notes=notes(evaluation),
        questions=questions,
        fresh=fresh,
        people=PEOPLE,
    )


def _centred(values: Array) -> Array:
    """Less the mean over each question's answers (second axis)."""
    return np.asarray(values - values.mean(axis=1, keepdims=True))


def _short(text: str, limit: int = 110) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= limit else flat[: limit - 1].rsplit(" ", 1)[0] + " ..."


if __name__ == "__main__":
    main()

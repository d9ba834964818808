"""Whose pick do writers rank first? Each model picks one of three versions of a passage that it did not train on.

`python -m benchmarks.real_people.picks DATA` prints a table and writes `picks.json` and `picks.md`. Models are fitted
as for the page, by `prm compare`; parts that are in `--folder` already are taken from there.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np

from benchmarks.real_people.measure import Measuring
from benchmarks.real_people.sets import SETS, RealPeople, thinned
from prm.config import BackboneConfig
from prm.data.baselines import count_words
from prm.data.comparison import Comparison, prompt_key
from prm.errors import PrmError
from prm.evaluation.compare.config import BASELINES, Name
from prm.evaluation.compare.run import Finished, compare_models
from prm.evaluation.compare.summary import BEST_BASELINE, BEST_PERSONAL, best_validated
from prm.io.formatting import estimated
from prm.io.tables import plain, write_json, write_jsonl, write_text
from prm.metrics import Array, Estimate, over_both
from prm.report import show, table
from prm.report.page import markdown

WRITERS = SETS[0]
OTHERS = "the others' favourite"  # who have ranked the same versions: no model may know this
CONTROLS = ("random", "longest", "shortest", OTHERS)


@dataclass
class Question:
    """One person's ranking of the responses to a held-out prompt.

    Args:
        losses: of each response, by how many others it is beaten: 0 is the first rank.
        rewards: of each response by model, up to a constant.
    """

    user: str
    prompt: str
    losses: dict[str, float] = field(default_factory=dict)
    rewards: dict[str, dict[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Value:
    """What a pick is worth to the person; means over tied picks.

    Args:
        first: whether the person ranks it first.
        captured: how far its rank is above the mean rank, as a share of how far the first rank is: 0 by chance, 1 for
            an oracle, below 0 for a pick of the worse ones.
    """

    first: float
    captured: float


@dataclass(frozen=True)
class Row:
    """One model or control. Means over people of each one's mean, 95% intervals over people and prompts.

    Args:
        first, captured: as in `Value`.
        more_first, more_captured: less those of the best baseline, on the same questions; `None` for itself.
        chosen: in how many parts it was the best baseline, or the best personal model, by cross-validation.
    """

    name: str
    first: Estimate
    captured: Estimate
    more_first: Estimate | None
    more_captured: Estimate | None
    chosen: int


def questions_of(comparisons: Sequence[Comparison], margins: Mapping[str, Array]) -> list[Question]:
    """The rankings that comparisons are pairs of, in order.

    Args:
        margins: by model, the logit of each comparison's chosen over its rejected response, [n].

    Raises `PrmError` for margins that are not finite.
    """
    for name, margin in margins.items():
        if not np.isfinite(margin).all():
            raise PrmError(f"the model {name!r} gives margins that are not finite: it picks nothing")
    found: dict[tuple[str, str], Question] = {}
    for i, c in enumerate(comparisons):
        key = c.user_id, prompt_key(c.prompt)
        one = found.setdefault(key, Question(*key))
        for text, lost in ((c.chosen, 1.0 - c.p_chosen), (c.rejected, c.p_chosen)):
            one.losses[text] = one.losses.get(text, 0.0) + lost
        for name, margin in margins.items():
            rewards = one.rewards.setdefault(name, {})
            for text, sign in ((c.chosen, 1.0), (c.rejected, -1.0)):
                rewards[text] = rewards.get(text, 0.0) + sign * float(margin[i])
    return list(found.values())


def value_of(question: Question, rewards: Mapping[str, float]) -> Value:
    """The value of the response with the highest reward, or the mean over those that are level."""
    losses = question.losses
    highest, least, mean = max(rewards.values()), min(losses.values()), float(np.mean([*losses.values()]))
    picks = [losses[text] for text, reward in rewards.items() if reward == highest]
    captured = (mean - float(np.mean(picks))) / (mean - least) if mean > least else 0.0
    return Value(float(np.mean([lost == least for lost in picks])), captured)


def controls(questions: Sequence[Question]) -> dict[str, list[Value]]:
    """What picks without a model are worth, by name."""
    on_prompt: dict[str, list[Question]] = {}
    for one in questions:
        on_prompt.setdefault(one.prompt, []).append(one)

    def others(one: Question) -> dict[str, float]:
        ranked = [other.losses for other in on_prompt[one.prompt] if other.user != one.user]
        means = {text: [losses[text] for losses in ranked if text in losses] for text in one.losses}
        return {text: -float(np.mean(found)) if found else -np.inf for text, found in means.items()}

    rewards: dict[str, Callable[[Question], dict[str, float]]] = {
        "random": lambda one: dict.fromkeys(one.losses, 0.0),
        "longest": lambda one: {text: float(count_words(text)) for text in one.losses},
        "shortest": lambda one: {text: -float(count_words(text)) for text in one.losses},
        OTHERS: others,
    }
    return {name: [value_of(one, rewards[name](one)) for one in questions] for name in CONTROLS}


def rows_of(questions: Sequence[Question], chosen: Mapping[str, int]) -> list[Row]:
    """Every control and model against the best baseline, `BEST_BASELINE` among the models."""
    users, prompts = [one.user for one in questions], [one.prompt for one in questions]
    values = controls(questions) | {
        name: [value_of(one, one.rewards[name]) for one in questions] for name in questions[0].rewards
    }
    first = {name: np.array([value.first for value in found]) for name, found in values.items()}
    captured = {name: np.array([value.captured for value in found]) for name, found in values.items()}

    def mean(numbers: Array) -> Estimate:
        return over_both(numbers, users, prompts)

    return [
        Row(
            name,
            mean(first[name]),
            mean(captured[name]),
            None if name == BEST_BASELINE else mean(first[name] - first[BEST_BASELINE]),
            None if name == BEST_BASELINE else mean(captured[name] - captured[BEST_BASELINE]),
            chosen.get(name, 0),
        )
        for name in values
    ]


def picked(finished: Finished) -> tuple[list[Question], dict[str, int]]:
    """(all held-out rankings with the rewards of every model, how often each was chosen by cross-validation)."""
    questions, chosen = list[Question](), dict[str, int]()
    for k, fold in enumerate(finished.folds):
        results = {name: parts[k] for name, parts in finished.results.items()}
        margins = {name: result.margin.numpy().astype(np.float64) for name, result in results.items()}
        for best, baseline in ((BEST_BASELINE, True), (BEST_PERSONAL, False)):
            among = {name: result.record for name, result in results.items() if (name in BASELINES) == baseline}
            if among:
                name = best_validated(among)
                margins[best], chosen[name] = margins[name], chosen.get(name, 0) + 1
        questions += questions_of([finished.problem.comparisons[i] for i in fold.test.tolist()], margins)
    return questions, chosen


def main(arguments: Sequence[str] | None = None, of: RealPeople = WRITERS) -> None:
    """Print the table, and write it with `picks.json`. Raises `PrmError` if the set cannot be read."""
    parser = ArgumentParser(prog="python -m benchmarks.real_people.picks", description=__doc__)
    parser.add_argument("data", type=Path, help="folder of the sets")
    parser.add_argument("--models", nargs="*", choices=get_args(Name), help="default: all that `prm compare` has")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folds", type=int, default=3)
    parser.add_argument("--backbone", default=BackboneConfig.name)
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/real-people"), help="what a killed command resumes from"
    )
    args = parser.parse_args(arguments)
    how = Measuring(args.data, args.folder, args.seed, args.folds, args.backbone, args.models or ())
    config = how.config(of)
    write_jsonl(config.data.path, thinned(of.read(how.data), of, how.seed))
    questions, chosen = picked(compare_models(config))
    rows = rows_of(questions, chosen)
    sizes = {"questions": len(questions), "people": len({q.user for q in questions})}
    sizes["prompts"] = len({q.prompt for q in questions})
    about = {"set": of.name, "seed": args.seed, "folds": args.folds, "backbone": args.backbone, **sizes}
    write_json(args.folder / "picks.json", plain(about | {"rows": [asdict(row) for row in rows]}))
    header = ["pick of", "ranked first, %", "headroom, %", "first, less best baseline", "headroom, less", "chosen"]
    cells = [
        [row.name, *(estimated(e, 1, scale=100.0) for e in (row.first, row.captured))]
        + [estimated(e, 1, scale=100.0, sign="+") for e in (row.more_first, row.more_captured)]
        + [str(row.chosen or "")]
        for row in rows
    ]
    title = ", ".join(f"{count} {what}" for what, count in sizes.items())
    show(table(title, header, cells))
    write_text(args.folder / "picks.md", "\n".join([title, "", *markdown(header, cells), ""]))


if __name__ == "__main__":
    main()

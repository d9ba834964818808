"""Judgements of several answers to one prompt, and the pairs that they become."""

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prm.comparison import Comparison, Prompt, prompt_key
from prm.sources.feedback import Collector

CLOSE, OVER, SAME, REJUDGED = "equal or too close", "over max_pairs", "the same text twice", "judged again later"
ALONE, UNPAIRED = "no other answer by that person to that prompt", "in no pair"
_WITH_TIES = ("picks", "rankings")  # equal scores are said there, not left open


@dataclass(frozen=True)
class Judged:
    """One answer as one person judged it.

    Args:
        score: higher is better; comparable within the judgement only.
        row: number of the log's row that says so.
        place: position in which it was shown, if the log tells.
        common: weight, time, user_text and metadata.
    """

    text: str
    score: float
    row: int
    origin: str
    common: dict[str, Any] = field(default_factory=dict)
    place: int | None = None


@dataclass(frozen=True)
class Judgement:
    """One person's view of some answers to one prompt."""

    user_id: str
    prompt: Prompt
    answers: tuple[Judged, ...]


def group(found: Collector, singles: Sequence[tuple[str, Prompt, Judged]]) -> list[Judgement]:
    """Answers judged one by one (ratings, thumbs), gathered per person and prompt.

    Where a person judged the same answer again, the later row counts, and the collector is told of the other.
    """
    groups: dict[tuple[str, str], dict[str, Judged]] = defaultdict(dict)
    prompts: dict[tuple[str, str], Prompt] = {}
    for user_id, prompt, judged in singles:
        key = user_id, prompt_key(prompt)
        prompts.setdefault(key, prompt)
        if (earlier := groups[key].pop(judged.text, None)) is not None:
            found.left_out(earlier.row, REJUDGED)
        groups[key][judged.text] = judged
    return [Judgement(key[0], prompts[key], tuple(answers.values())) for key, answers in groups.items()]


def collect(found: Collector, judgements: Iterable[Judgement]) -> None:
    """Hand the pairs of the judgements to the collector; a row without any is left out."""
    config = found.config
    for judgement in judgements:
        for answer in judgement.answers:
            found.left_out(answer.row, ALONE if len(judgement.answers) == 1 else UNPAIRED)
        pairs, tally = pair_up(judgement, config.gap, config.max_pairs, keep_ties=config.source in _WITH_TIES)
        found.pairs.update(tally)
        for comparison, better, worse in pairs:
            found.add(comparison, *{better.row, worse.row})


def standardise(judgements: Sequence[Judgement]) -> list[Judgement]:
    """Scores less their person's mean and over their person's deviation; 0 where a person gives one score only."""
    scores: dict[str, list[float]] = defaultdict(list)
    for judgement in judgements:
        scores[judgement.user_id] += [a.score for a in judgement.answers]
    scale = {user: (float(np.mean(s)), float(np.std(s)) or 1.0) for user, s in scores.items()}
    out = []
    for judgement in judgements:
        mean, deviation = scale[judgement.user_id]
        answers = [
            Judged(a.text, (a.score - mean) / deviation, a.row, a.origin, a.common, a.place) for a in judgement.answers
        ]
        out.append(Judgement(judgement.user_id, judgement.prompt, tuple(answers)))
    return out


def pair_up(
    judgement: Judgement, gap: float, max_pairs: int, keep_ties: bool
) -> tuple[list[tuple[Comparison, Judged, Judged]], Counter[str]]:
    """Pairs of answers whose scores differ by `gap` or more, and why the others are none.

    No answer enters more than `max_pairs` of them; which ones is drawn from who judged what, so that neither the
    order of the rows nor other judgements matter. Equal scores make a tie where `keep_ties` says so.
    """
    answers = judgement.answers
    n = len(answers)
    order = sorted(range(n), key=lambda i: answers[i].text)
    random.Random("\x00".join([judgement.user_id, prompt_key(judgement.prompt)])).shuffle(order)
    left, unsaturated = [max_pairs] * n, n
    found: list[tuple[Comparison, Judged, Judged]] = []
    tally: Counter[str] = Counter()
    for i, j in _all_pairs(n):
        if unsaturated < 2:
            tally[OVER] += n * (n - 1) // 2 - tally.total() - len(found)
            break
        a, b = answers[order[i]], answers[order[j]]
        distance = abs(a.score - b.score)
        if a.text == b.text:
            tally[SAME] += 1
        elif (distance == 0.0 and not keep_ties) or (distance > 0.0 and distance < gap):
            tally[CLOSE] += 1
        elif not left[i] or not left[j]:
            tally[OVER] += 1
        else:
            for k in (i, j):
                left[k] -= 1
                unsaturated -= not left[k]
            better, worse = (a, b) if a.score >= b.score else (b, a)
            found.append((_comparison(judgement, better, worse), better, worse))
    return found, tally


def _all_pairs(n: int) -> Iterator[tuple[int, int]]:
    """Every pair of 0..n-1, neighbours first: so every answer gets its share before any gets more."""
    for step in range(1, n // 2 + 1):
        for i in range(n if 2 * step < n else n // 2):
            yield i, (i + step) % n


def _comparison(judgement: Judgement, better: Judged, worse: Judged) -> Comparison:
    later = max(better, worse, key=lambda a: a.row)
    first = None if better.place is None or worse.place is None else better.place < worse.place
    metadata = dict(later.common.get("metadata", {}))
    for key in {**better.common.get("metadata", {}), **worse.common.get("metadata", {})}:
        sides = [a.common.get("metadata", {}).get(key) for a in (better, worse)]
        metadata[key] = sides[0] if sides[0] == sides[1] else sides
    return Comparison(
        judgement.user_id,
        judgement.prompt,
        better.text,
        worse.text,
        user_text=later.common.get("user_text", ""),
        p_chosen=0.5 if better.score == worse.score else 1.0,
        weight=(better.common.get("weight", 1.0) + worse.common.get("weight", 1.0)) / 2,
        time=later.common.get("time"),
        chosen_first=first,
        metadata=metadata,
        origin=better.origin if better.origin == worse.origin else f"{better.origin} and {worse.origin}",
    )

"""Judgements of several answers to one prompt, and the pairs that they become."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from prm.data.comparison import Comparison, Prompt, prompt_key
from prm.data.sources.feedback import Collector

EQUAL, CLOSE = "judged equal", "equal or too close"  # without a gap nothing that differs is too close
OVER, SAME, REJUDGED = "over max_pairs", "the same text twice", "judged again later"
ALONE, UNPAIRED = "no other answer by that person to that prompt", "in no pair"
_SLACK = 1 - 1e-9  # 3.3 and 1.3 are 2 apart, whatever binary fractions make of it


@dataclass(frozen=True)
class RatedResponse:
    """One answer as one person judged it.

    Args:
        score: higher is better; comparable within the judgement only.
        row: number of the log's row that says so.
        place: position in which it was shown, if the log tells.
        common: weight, time, user_text, conversation_id and metadata.
    """

    text: str
    score: float
    row: int
    origin: str
    common: dict[str, Any] = field(default_factory=dict)
    place: int | None = None


@dataclass(frozen=True)
class RatedPrompt:
    """One person's view of some answers to one prompt; `ties` where equal scores say that none is preferred."""

    user_id: str
    prompt: Prompt
    answers: tuple[RatedResponse, ...]
    ties: bool = False


def group(found: Collector, singles: Sequence[tuple[str, Prompt, RatedResponse]]) -> list[RatedPrompt]:
    """Answers judged one by one (ratings, thumbs), gathered per person and prompt.

    Where a person judged the same answer again, the later row counts, and the collector is told of the other.
    """
    groups: dict[tuple[str, str], dict[str, RatedResponse]] = defaultdict(dict)
    prompts: dict[tuple[str, str], Prompt] = {}
    for user_id, prompt, judged in singles:
        key = user_id, prompt_key(prompt)
        prompts.setdefault(key, prompt)
        if (earlier := groups[key].pop(judged.text, None)) is not None:
            found.left_out(earlier.row, REJUDGED)
        groups[key][judged.text] = judged
    return [RatedPrompt(key[0], prompts[key], tuple(answers.values())) for key, answers in groups.items()]


def collect(found: Collector, judgements: Iterable[RatedPrompt]) -> None:
    """Hand the pairs of the judgements to the collector; a row without any is left out."""
    config = found.config
    for judgement in judgements:
        for answer in judgement.answers:
            found.left_out(answer.row, ALONE if len(judgement.answers) == 1 else UNPAIRED)
        pairs, tally = pair_up(judgement, config.min_rating_difference, config.max_pairs)
        found.pairs.update(tally)
        for comparison, better, worse in pairs:
            found.add(comparison, *{better.row, worse.row})


def standardise(judgements: Sequence[RatedPrompt]) -> list[RatedPrompt]:
    """Scores less their person's mean and over their person's deviation; 0 where a person gives one score only."""
    scores: dict[str, list[float]] = defaultdict(list)
    for judgement in judgements:
        scores[judgement.user_id] += [a.score for a in judgement.answers]
    scale = {user: (float(np.mean(s)), float(np.std(s)) or 1.0) for user, s in scores.items()}
    out = []
    for judgement in judgements:
        mean, deviation = scale[judgement.user_id]
        answers = tuple(replace(a, score=(a.score - mean) / deviation) for a in judgement.answers)
        out.append(replace(judgement, answers=answers))
    return out


def pair_up(
    judgement: RatedPrompt, gap: float, max_pairs: int
) -> tuple[list[tuple[Comparison, RatedResponse, RatedResponse]], Counter[str]]:
    """Pairs of answers whose scores differ by `gap` or more, and why the others are none.

    No answer enters more than `max_pairs` of them; which ones is drawn from who judged what, so that neither the
    order of the rows nor other judgements matter. Equal scores make a tie where the judgement says so.
    """
    least = 0.0 if judgement.ties else gap * _SLACK or math.ulp(0.0)
    answers = _in_drawn_order(judgement, least)
    left = [max_pairs] * len(answers)
    waiting = list(range(len(answers)))
    found: list[tuple[Comparison, RatedResponse, RatedResponse]] = []
    # neighbours first, then those two apart, and so on: every answer gets its share before any gets more
    for step in range(1, len(answers) // 2 + 1):
        waiting = [i for i in waiting if left[i]]
        if len(waiting) < 2 or _apart(*_ends([answers[i] for i in waiting])) < least:
            break
        for i in waiting:
            j = (i + step) % len(answers)
            a, b = answers[i], answers[j]
            again = 2 * step == len(answers) and j < i  # halfway round, every pair would come twice
            if left[i] and left[j] and not again and a.text != b.text and _apart(a, b) >= least:
                left[i] -= 1
                left[j] -= 1
                better, worse = (a, b) if a.score >= b.score else (b, a)
                found.append((_comparison(judgement, better, worse), better, worse))
    return found, _tally(judgement, least, len(found), CLOSE if gap else EQUAL)


def _in_drawn_order(judgement: RatedPrompt, least: float) -> list[RatedResponse]:
    """The answers that some other one is far enough from, in an order drawn from who judged what."""
    answers = sorted(judgement.answers, key=lambda a: a.text)
    random.Random("\x00".join([judgement.user_id, prompt_key(judgement.prompt)])).shuffle(answers)
    ends = _ends(answers)
    return [a for a in answers if max(_apart(a, end) for end in ends) >= least]


def _ends(answers: Sequence[RatedResponse]) -> tuple[RatedResponse, RatedResponse]:
    """The worst and the best."""
    return min(answers, key=lambda a: a.score), max(answers, key=lambda a: a.score)


def _apart(a: RatedResponse, b: RatedResponse) -> float:
    return abs(a.score - b.score)


def _tally(judgement: RatedPrompt, least: float, found: int, too_close: str) -> Counter[str]:
    """Why the pairs that were not found are none, counted without going through them: they grow with the square."""
    alike: dict[str, list[float]] = defaultdict(list)
    for answer in judgement.answers:
        alike[answer.text].append(answer.score)
    n = len(judgement.answers)
    same = sum(len(scores) * (len(scores) - 1) // 2 for scores in alike.values())
    close = _close([a.score for a in judgement.answers], least) - sum(_close(s, least) for s in alike.values())
    return +Counter({too_close: close, OVER: n * (n - 1) // 2 - same - close - found, SAME: same})


def _close(scores: list[float], least: float) -> int:
    """Pairs of scores that are less than `least` apart."""
    ranked, first, pairs = sorted(scores), 0, 0
    for i, score in enumerate(ranked):
        while score - ranked[first] >= least and first < i:
            first += 1
        pairs += i - first
    return pairs


def _comparison(judgement: RatedPrompt, better: RatedResponse, worse: RatedResponse) -> Comparison:
    later = max(better, worse, key=lambda a: a.row)
    first = None if better.place is None or worse.place is None else better.place < worse.place
    metadata = dict(later.common.get("metadata", {}))
    for key in {**better.common.get("metadata", {}), **worse.common.get("metadata", {})}:
        sides = [a.common.get("metadata", {}).get(key) for a in (better, worse)]
        metadata[key] = sides[0] if sides[0] == sides[1] else sides
    conversations = [found for a in (better, worse) if (found := a.common.get("conversation_id")) is not None]
    return Comparison(
        judgement.user_id,
        judgement.prompt,
        better.text,
        worse.text,
        user_text=later.common.get("user_text", ""),
        p_chosen=0.5 if better.score == worse.score else 1.0,
        weight=better.common.get("weight", 1.0) / 2 + worse.common.get("weight", 1.0) / 2,
        time=later.common.get("time"),
        chosen_first=first,
        metadata=metadata,
        conversation_id="\n".join(dict.fromkeys(conversations)) or None,
        origin=better.origin if better.origin == worse.origin else f"{better.origin} and {worse.origin}",
    )

"""Turns a user's ratings of several responses to one prompt into pairs."""

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from prm.data.comparison import Comparison, Prompt, prompt_key
from prm.data.sources.collector import Collector
from prm.data.sources.fields import CommonFields

EQUAL, CLOSE = "judged equal", "equal or too close"  # `EQUAL` is used without a minimum difference
OVER, SAME, REJUDGED = "over max_pairs", "the same text twice", "judged again later"
ALONE, UNPAIRED = "no other response of that user to that prompt", "in no pair"
_SLACK = 1 - 1e-9  # 3.3 and 1.3 count as 2 apart despite rounding


@dataclass(frozen=True)
class RatedResponse:
    """One response as one user rated it.

    Args:
        score: higher is better; comparable only within one `RatedPrompt`.
        row: number of its row in the log.
        position: position in which it was shown, if known.
        common: weight, time, user_text, conversation_id and metadata.
    """

    text: str
    score: float
    row: int
    origin: str
    common: CommonFields = field(default_factory=CommonFields)
    position: int | None = None


@dataclass(frozen=True)
class RatedPrompt:
    """One user's ratings of responses to one prompt; with `ties`, equal scores make a tie."""

    user_id: str
    prompt: Prompt
    answers: tuple[RatedResponse, ...]
    ties: bool = False


def group(collector: Collector, singles: Sequence[tuple[str, Prompt, RatedResponse]]) -> list[RatedPrompt]:
    """Group responses that were rated one by one (ratings, thumbs) by user and prompt.

    If a user rated the same response again, the later row counts, and the earlier one is left out.
    """
    groups: dict[tuple[str, str], dict[str, RatedResponse]] = defaultdict(dict)
    prompts: dict[tuple[str, str], Prompt] = {}
    for user_id, prompt, rated in singles:
        key = user_id, prompt_key(prompt)
        prompts.setdefault(key, prompt)
        if (earlier := groups[key].pop(rated.text, None)) is not None:
            collector.left_out(earlier.row, REJUDGED)
        groups[key][rated.text] = rated
    return [RatedPrompt(key[0], prompts[key], tuple(responses.values())) for key, responses in groups.items()]


def collect(collector: Collector, rated_prompts: Iterable[RatedPrompt]) -> None:
    """Add the pairs of all rated prompts to the collector; rows in no pair are left out."""
    config = collector.config
    for rated in rated_prompts:
        for response in rated.answers:
            collector.left_out(response.row, ALONE if len(rated.answers) == 1 else UNPAIRED)
        pairs, tally = pair_up(rated, config.min_rating_difference, config.max_pairs)
        collector.pairs.update(tally)
        for comparison, better, worse in pairs:
            collector.add(comparison, *{better.row, worse.row})


def standardise(rated_prompts: Sequence[RatedPrompt]) -> list[RatedPrompt]:
    """Subtract each user's mean score and divide by their standard deviation, if that is not 0."""
    scores: dict[str, list[float]] = defaultdict(list)
    for rated in rated_prompts:
        scores[rated.user_id] += [a.score for a in rated.answers]
    scale = {user: (float(np.mean(s)), float(np.std(s)) or 1.0) for user, s in scores.items()}
    out = []
    for rated in rated_prompts:
        mean, deviation = scale[rated.user_id]
        responses = tuple(replace(a, score=(a.score - mean) / deviation) for a in rated.answers)
        out.append(replace(rated, answers=responses))
    return out


def pair_up(
    rated: RatedPrompt, gap: float, max_pairs: int
) -> tuple[list[tuple[Comparison, RatedResponse, RatedResponse]], Counter[str]]:
    """(pairs of responses whose scores differ by `gap` or more, counts of other pairs by reason).

    Each response is in at most `max_pairs` pairs, drawn with a seed made of user and prompt, so that neither the order
    of rows nor other ratings matter. With `rated.ties`, equal scores make a tie.
    """
    min_gap = 0.0 if rated.ties else gap * _SLACK or math.ulp(0.0)
    responses = _in_drawn_order(rated, min_gap)
    remaining = [max_pairs] * len(responses)
    open_responses = list(range(len(responses)))
    pairs: list[tuple[Comparison, RatedResponse, RatedResponse]] = []
    # neighbours first, then responses two apart, and so on, so that each gets about as many pairs
    for step in range(1, len(responses) // 2 + 1):
        open_responses = [i for i in open_responses if remaining[i]]
        if len(open_responses) < 2 or _distance(*_ends([responses[i] for i in open_responses])) < min_gap:
            break
        for i in open_responses:
            j = (i + step) % len(responses)
            a, b = responses[i], responses[j]
            again = 2 * step == len(responses) and j < i  # at half the circle, every pair would come twice
            if remaining[i] and remaining[j] and not again and a.text != b.text and _distance(a, b) >= min_gap:
                remaining[i] -= 1
                remaining[j] -= 1
                better, worse = (a, b) if a.score >= b.score else (b, a)
                pairs.append((_comparison(rated, better, worse), better, worse))
    return pairs, _tally(rated, min_gap, len(pairs), CLOSE if gap else EQUAL)


def _in_drawn_order(rated: RatedPrompt, min_gap: float) -> list[RatedResponse]:
    """The responses that can be in a pair, in an order drawn with a seed made of user and prompt."""
    responses = sorted(rated.answers, key=lambda a: a.text)
    random.Random("\x00".join([rated.user_id, prompt_key(rated.prompt)])).shuffle(responses)
    ends = _ends(responses)
    return [a for a in responses if max(_distance(a, end) for end in ends) >= min_gap]


def _ends(responses: Sequence[RatedResponse]) -> tuple[RatedResponse, RatedResponse]:
    """The worst and the best response."""
    return min(responses, key=lambda a: a.score), max(responses, key=lambda a: a.score)


def _distance(a: RatedResponse, b: RatedResponse) -> float:
    return abs(a.score - b.score)


def _tally(rated: RatedPrompt, min_gap: float, n_pairs: int, too_close: str) -> Counter[str]:
    """Counts of the pairs that were not made, by reason, without a loop over all pairs (quadratic)."""
    scores_of_text: dict[str, list[float]] = defaultdict(list)
    for response in rated.answers:
        scores_of_text[response.text].append(response.score)
    n = len(rated.answers)
    same = sum(len(scores) * (len(scores) - 1) // 2 for scores in scores_of_text.values())
    close = _close([a.score for a in rated.answers], min_gap) - sum(_close(s, min_gap) for s in scores_of_text.values())
    return +Counter({too_close: close, OVER: n * (n - 1) // 2 - same - close - n_pairs, SAME: same})


def _close(scores: list[float], min_gap: float) -> int:
    """Number of pairs of scores that are less than `min_gap` apart."""
    ranked, first, pairs = sorted(scores), 0, 0
    for i, score in enumerate(ranked):
        while score - ranked[first] >= min_gap and first < i:
            first += 1
        pairs += i - first
    return pairs


def _comparison(rated: RatedPrompt, better: RatedResponse, worse: RatedResponse) -> Comparison:
    later = max(better, worse, key=lambda a: a.row)
    first = None if better.position is None or worse.position is None else better.position < worse.position
    metadata = dict(later.common.get("metadata", {}))
    for key in {**better.common.get("metadata", {}), **worse.common.get("metadata", {})}:
        sides = [a.common.get("metadata", {}).get(key) for a in (better, worse)]
        metadata[key] = sides[0] if sides[0] == sides[1] else sides
    conversations = [
        conversation_id for a in (better, worse) if (conversation_id := a.common.get("conversation_id")) is not None
    ]
    return Comparison(
        rated.user_id,
        rated.prompt,
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

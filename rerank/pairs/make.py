"""Make pairs: sample or take the responses, score them for each user, and choose by the rules."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from prm.data.baselines import count_words
from prm.data.comparison import Comparison, prompt_key
from prm.errors import DataError, PrmError
from prm.io.folders import refuse_existing
from prm.io.progress import progress
from prm.io.tables import write_jsonl
from prm.scoring.scorer import Scorer
from prm.scoring.user_warnings import warn_about_users
from rerank.pairs.rules import PairRules, choose_pairs
from rerank.ranking.open_generator import GeneratorLike, as_generator
from rerank.ranking.requests import parse_request
from rerank.sampling.config import Sampling
from rerank.sampling.generator import Drawn, Generator, Request, Response

logger = logging.getLogger(__name__)


class PreferencePair(NamedTuple):
    """A comparison, and by how much its chosen response has the higher reward, in logits."""

    comparison: Comparison
    margin: float

    def to_row(self) -> dict[str, object]:
        """The comparison's row with `margin`."""
        return self.comparison.to_row() | {"margin": self.margin}


@dataclass
class PairCounts:
    """What became of the requests and of their responses.

    Args:
        requests: users with a prompt; those without a pair are counted in `dropped` by the rule that refused their
            first pair, by `too_few_responses`, or by `unanswered` if the generator gave none.
        pairs: pairs that were made.
        responses: responses that were given or sampled; of these `empty`, `truncated`, `unreadable` (too long for the
            reward model) and `duplicates` were left out. Users with the same responses count once.
        unknown_users: users that the model does not know: they have the generic user's pairs.
    """

    requests: int = 0
    pairs: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    responses: int = 0
    empty: int = 0
    truncated: int = 0
    unreadable: int = 0
    duplicates: int = 0
    unknown_users: int = 0
    mean_margin: float = 0.0

    def add(self, margins: Sequence[float], refused: str) -> None:
        """Count the pairs of one user and prompt."""
        self.requests += 1
        if not margins:
            self.dropped[refused] += 1
        total = self.mean_margin * self.pairs + sum(margins)
        self.pairs += len(margins)
        self.mean_margin = total / self.pairs if self.pairs else 0.0

    def to_dict(self) -> dict[str, object]:
        """JSON-ready."""
        return vars(self) | {"dropped": dict(self.dropped)}


@dataclass(frozen=True)
class PreferencePairs:
    """Pairs of chosen and rejected responses, and the counts of what became of the others."""

    pairs: list[PreferencePair]
    counts: PairCounts

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write the pairs as JSON Lines, which `policy dpo --data.path` reads.

        Raises `PrmError` if the file exists already, unless `overwrite` is true.
        """
        if not overwrite:
            refuse_existing(Path(path), "name another file, or pass overwrite=True")
        write_jsonl(path, self.pairs)


def make_pairs(
    scorer: Scorer,
    requests: Iterable[Mapping[str, object]],
    rules: PairRules | None = None,
    generator: GeneratorLike | None = None,
    n: int = 16,
    sampling: Sampling | None = None,
) -> PreferencePairs:
    """Make pairs of chosen and rejected responses for each request: rejection sampling, on-policy DPO.

    Args:
        scorer: the reward model or policy that chooses.
        requests: rows with `prompt` and `user_id`, perhaps `responses` (texts, or objects with `response` and `ended`)
            and `user_text`, as in a request file.
        generator: samples responses for rows without any; as of `rerank.BestOfN`.
        n: number of responses to sample.
        sampling: sampling settings.

    Raises `DataError` for a bad row, and `PrmError` as `rerank.BestOfN` does. A prompt that the generator refuses is
    logged and counted.
    """
    parsed = [parse_request(row, f"requests[{i}]") for i, row in enumerate(requests)]
    sampler = as_generator(generator, scorer, sampling or Sampling()) if generator is not None else None
    maker = PairMaker(scorer, rules or PairRules())
    return PreferencePairs(list(maker.pairs(parsed, sampler, n)), maker.counts)


class PairMaker:
    """Makes pairs one prompt at a time, and counts."""

    def __init__(self, scorer: Scorer, rules: PairRules):
        self._scorer, self._rules, self.counts = scorer, rules, PairCounts()

    def pairs(self, requests: Iterable[Request], generator: Generator | None, n: int) -> Iterator[PreferencePair]:
        """Yield the pairs of each distinct request; adjacent ones share responses if they can.

        Raises as `make_pairs` does.
        """
        distinct = list({(prompt_key(r.prompt), r.user, r.responses): r for r in requests}.values())
        self._check(distinct, generator)
        knows_users = generator is not None and generator.knows_users
        groups = [list(group) for _, group in groupby(distinct, lambda r: _source(r, knows_users))]
        sampled: Iterator[Drawn] = iter(())
        if generator is not None:
            sampled = generator.sample((group[0] for group in groups if group[0].responses is None), n)
        for group in progress(groups, desc="pairs", unit="prompt"):
            given = group[0].responses
            yield from self._of_prompt(group, next(sampled) if given is None else list(given))

    def _check(self, requests: Sequence[Request], generator: Generator | None) -> None:
        for request in requests:
            if not request.user:
                raise DataError(f"{request.location}: a pair needs its user: give 'user_id'")
            if request.responses is None and generator is None:
                raise DataError(f"{request.location}: has no 'responses', and there is no generator")
        users = list(dict.fromkeys(request.user for request in requests))
        warn_about_users(self._scorer, users)
        self.counts.unknown_users = sum(not self._scorer.knows(user) for user in users)
        if self.counts.unknown_users:
            what = "warning: %d of %d users are not in the model: their pairs follow the generic user's rewards"
            logger.warning(what, self.counts.unknown_users, len(users))

    def _of_prompt(self, group: Sequence[Request], drawn: Drawn) -> list[PreferencePair]:
        """The pairs of users who have the same responses to a prompt."""
        first, rules = group[0], self._rules
        if isinstance(drawn, PrmError):
            logger.warning("warning: %s: no responses: %s", first.location, drawn)
            for _ in group:
                self.counts.add([], "unanswered")
            return []
        texts = self._usable(first, drawn)
        users, user_texts = [request.user for request in group], [request.user_text for request in group]
        rewards = self._scorer.score_users(first.prompt, texts, users, user_texts).tolist()
        words = list(map(count_words, texts))
        found: list[_Found] = []
        for request, row in zip(group, rewards, strict=True):
            pairs, refused = choose_pairs(row, words, rules, f"{request.user}\x01{prompt_key(request.prompt)}")
            of_user = [_Found(request, texts[i], texts[j], row[i] - row[j]) for i, j in pairs]
            self.counts.add([pair.margin for pair in of_user], refused)
            found += of_user
        return [
            PreferencePair(
                Comparison(str(r.user), r.prompt, chosen, rejected, user_text=r.user_text, p_chosen=p), margin
            )
            for (r, chosen, rejected, margin), p in zip(found, self._labels(found), strict=True)
        ]

    def _labels(self, found: Sequence["_Found"]) -> list[float]:
        """P(chosen > rejected | user) of each pair, or 1."""
        if not (self._rules.soft_labels and found):
            return [1.0] * len(found)
        requests = [pair.request for pair in found]
        margins = self._scorer.margin_batch(
            [r.prompt for r in requests],
            [pair.chosen for pair in found],
            [pair.rejected for pair in found],
            [r.user for r in requests],
            [r.user_text for r in requests],
        )
        labels: list[float] = margins.double().sigmoid().tolist()
        return labels

    def _usable(self, request: Request, responses: Sequence[Response]) -> list[str]:
        """The different texts that may become pairs; the others are counted."""
        texts, counts = dict[str, None](), self.counts
        for text, ended in responses:
            counts.responses += 1
            if not self._scorer.reader.has_tokens(text):
                counts.empty += 1
            elif self._rules.drop_truncated and ended is False:
                counts.truncated += 1
            elif text in texts:
                counts.duplicates += 1
            elif self._fits(request, text):
                texts[text] = None
            else:
                counts.unreadable += 1
        return list(texts)

    def _fits(self, request: Request, text: str) -> bool:
        try:
            self._scorer.reader.check(request.prompt, text, request.user_text)
        except DataError:
            return False
        return True


class _Found(NamedTuple):
    request: Request
    chosen: str
    rejected: str
    margin: float


def _source(request: Request, knows_users: bool) -> tuple[object, ...]:
    """Equal for requests that have the same responses."""
    if request.responses is not None:
        return (prompt_key(request.prompt), request.responses)
    return (prompt_key(request.prompt), request.user if knows_users else None, request.user_text)

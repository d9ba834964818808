"""Questions that a service may ask its users: prompts with two responses or more, and what to say about responses."""

import logging
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prm.config import FeedbackConfig
from prm.data import text_counts
from prm.data.comparison import Comparison, Prompt, prompt_key
from prm.data.sources import read_feedback
from prm.data.sources.public import everyday
from prm.errors import DataError, counted
from prm.io.tables import read_rows
from prm.metrics import Array
from prm.scoring.scorer import Scorer
from prm.scoring.text_reader import TextReader
from prm.users.trained_on import TrainedOn
from rerank.ranking.requests import parse_request

logger = logging.getLogger(__name__)

_MOST_TEXTS = 400  # each is read once, before the first question
_MOST_PAIRS = 1000
_MOST_KEPT, _KEPT_SHARE = 20, 0.2  # of the prompts


class PoolPrompt(NamedTuple):
    """A prompt and its distinct responses, two or more."""

    prompt: Prompt
    responses: tuple[str, ...]


@dataclass(frozen=True)
class Pool:
    """Prompts to ask about, and prompts that nobody is asked about.

    Args:
        prompts: all of them.
        num_asked: users compare two responses to one of the first so many prompts; the others show what was learnt.
        attributes: of each response to each prompt, in order, [n, k].
        words: of each attribute: its name, what more of it is called, and what less of it is.
    """

    prompts: Sequence[PoolPrompt]
    num_asked: int
    attributes: Array
    words: Sequence[tuple[str, str, str]]

    @property
    def kept(self) -> Sequence[PoolPrompt]:
        """The prompts that nobody is asked about."""
        return self.prompts[self.num_asked :]

    def texts(self) -> list[tuple[Prompt, str]]:
        """Each response with its prompt, in the order of `attributes`."""
        return [(p.prompt, response) for p in self.prompts for response in p.responses]

    def groups(self) -> list[int]:
        """The position in `prompts` of each text's prompt."""
        return [i for i, p in enumerate(self.prompts) for _ in p.responses]

    def pairs(self) -> list[tuple[int, int]]:
        """The pairs of responses that users are asked to compare, as positions in `texts`: up to 1,000."""
        found, start = list[tuple[int, int]](), 0
        for p in self.prompts[: self.num_asked]:
            found += combinations(range(start, start + len(p.responses)), 2)
            start += len(p.responses)
        if len(found) > _MOST_PAIRS:
            logger.info("%d of %d pairs of responses are asked", _MOST_PAIRS, len(found))
            found = sorted(random.Random(0).sample(found, _MOST_PAIRS))
        return found


def read_pool(path: str, reader: TextReader) -> Pool:
    """A pool from a file of requests with `responses`, as of `rerank --input`.

    Raises `DataError` naming the line of a row that has fewer than two different responses, or that the run's model
    cannot read, and for a file without rows.
    """
    rows: list[PoolPrompt] = []
    for number, row in read_rows(path):
        request = parse_request(row, f"{path}, line {number}")
        texts = tuple(dict.fromkeys(response.text for response in request.responses or ()))
        if len(texts) < 2:
            raise DataError(f"{request.location}: a question needs two different texts under 'responses'")
        try:
            for text in texts:
                reader.check(request.prompt, text)
        except DataError as error:
            raise DataError(f"{request.location}: {error}") from None
        rows.append(PoolPrompt(request.prompt, texts))
    if not rows:
        raise DataError(f"{path} holds no questions")
    return _divided(rows, path)


def default_pool(scorer: Scorer) -> Pool | None:
    """The everyday questions if the run was trained on them, else its held-out comparisons; `None` without those."""
    trained_on = scorer.checkpoint.users.trained_on
    if trained_on is not None:
        questions = everyday.load_questions()
        asked = [q for q in questions if _is_known(trained_on, q)]
        if asked:
            return _everyday(asked, [q for q in questions if q not in asked])
    folder = scorer.checkpoint.folder
    test = None if folder is None else Path(folder) / "test.jsonl"
    if test is None or not test.is_file():
        return None
    comparisons = read_feedback(FeedbackConfig(path=str(test))).comparisons
    return _divided([PoolPrompt(c.prompt, (c.chosen, c.rejected)) for c in comparisons], str(test))


def _is_known(trained_on: TrainedOn, question: everyday.EverydayPrompt) -> bool:
    pairs = combinations(question.answers, 2)
    overlap = trained_on.overlap([Comparison("anybody", question.prompt, a.text, b.text) for a, b in pairs])
    return overlap["own"] + overlap["others"] > 0


def _everyday(asked: Sequence[everyday.EverydayPrompt], others: Sequence[everyday.EverydayPrompt]) -> Pool:
    questions = [*asked, *others]
    prompts = [PoolPrompt(q.prompt, tuple(a.text for a in q.answers)) for q in questions]
    attributes = [[a.attributes[name] for name in everyday.ATTRIBUTES] for q in questions for a in q.answers]
    words = [(name, *everyday.WORDS[name]) for name in everyday.ATTRIBUTES]
    return Pool(prompts, len(asked), np.array(attributes), words)


def _divided(rows: Iterable[PoolPrompt], name: str) -> Pool:
    """A pool of these prompts, a fifth of which nobody is asked about; responses are described by `text_counts`."""
    merged: dict[str, PoolPrompt] = {}
    for row in rows:
        before = merged.get(key := prompt_key(row.prompt))
        texts = (*before.responses, *row.responses) if before else row.responses
        merged[key] = PoolPrompt(row.prompt, tuple(dict.fromkeys(texts)))
    prompts = list(merged.values())
    random.Random(0).shuffle(prompts)
    taken, texts_taken = list[PoolPrompt](), 0
    for prompt in prompts:
        if taken and texts_taken + len(prompt.responses) > _MOST_TEXTS:
            break
        taken.append(prompt)
        texts_taken += len(prompt.responses)
    if len(taken) < len(prompts):
        logger.info("%s: questions are about %d of %s", name, len(taken), counted(len(prompts), "prompt"))
    num_asked = len(taken) - min(_MOST_KEPT, int(len(taken) * _KEPT_SHARE))
    counts = text_counts.text_counts(text for p in taken for text in p.responses)
    spread = counts.std(axis=0)
    varied = [i for i, deviation in enumerate(spread) if deviation > 1e-9]
    names = [text_counts.COLUMNS[i] for i in varied]
    words = [(name, *text_counts.WORDS[name]) for name in names]
    return Pool(taken, num_asked, (counts / spread.clip(1e-9))[:, varied], words)

"""The answers of every arm, kept as files that `policy judge` reads, with what they cost and how likely they were.

Answers are drawn at temperature 1 from the whole distribution: the mean of log pi - log pi_base over them is then the
divergence from the base, and not that of a narrower draw. All draw and read in the dtype of the base.
"""

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from policy.compare.config import ArmSpec, CompareConfig
from policy.judging.answer_files import Asked, warn_about_unknown_users
from prm.checkpoint import checkpoint as checkpoints
from prm.checks import Natural, NonNegative
from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, Message, as_messages, latest_user_texts, prompt_key
from prm.data.encoding import Encoded
from prm.data.sources import read_feedback
from prm.errors import DataError, PrmError
from prm.features.extract import read_logps
from prm.io.progress import progress
from prm.io.run_files import refuse_unfit
from prm.io.tables import read_rows, write_jsonl
from prm.scoring.scorer import Scorer
from rerank.ranking.candidates import Candidates
from rerank.ranking.strategies import rank
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

_MAX_TOKENS = 4096  # of a pass

Rows = list[dict[str, Any]]


class _Answer(TypedDict):
    response: str
    surprise: float
    tokens: NotRequired[Natural]
    seconds: NotRequired[NonNegative]
    ended: NotRequired[bool]
    logp: NotRequired[float]
    base_logp: NotRequired[float]


@dataclass(frozen=True)
class Asking:
    """What all arms are asked: cases in order, everybody's group, and the base that answers beside them."""

    config: CompareConfig
    cases: tuple[Comparison, ...]
    groups: dict[str, str]
    base: Sampler

    def sampling(self, arm: str) -> Sampling:
        """A draw of its own for each arm: equal policies tie by chance only."""
        seed = zlib.crc32(f"{self.config.seed} {arm}".encode())
        return Sampling(max_new_tokens=self.config.max_new_tokens, temperature=1.0, top_p=1.0, seed=seed)


def answers_path(folder: Path, arm: str) -> Path:
    """The file with an arm's answers."""
    return folder / "answers" / f"{arm}.jsonl"


def answer_arm(name: str, spec: ArmSpec, asking: Asking, folder: Path) -> dict[str, Rows]:
    """The rows of each arm that the spec stands for, from their files where these are of the same making.

    Beside the question and the `response`: `tokens` that were drawn and `seconds` that were spent for it, `ended` by
    itself; `logp` and `base_logp` in nats, where one draw is all there was; `surprise`, nats of the base in each token.
    """
    made_of = _made_of(spec, asking)
    names = spec.names(name)
    kept = {one: kept_rows(answers_path(folder, one), made_of, len(asking.cases)) for one in names}
    if all(rows is not None for rows in kept.values()):
        return {one: rows for one, rows in kept.items() if rows is not None}
    if spec.chosen:
        found = {name: with_surprise([{"response": c.chosen} for c in asking.cases], asking)}
    elif spec.best_of:
        picks = best_of(name, spec, asking)
        found = {one: with_surprise(rows, asking) for one, rows in zip(names, picks, strict=True)}
    else:
        found = {name: list(drawn(name, spec, asking))}
    for one, rows in found.items():
        asked = [Asked(c.prompt, c.user_id).to_row() for c in asking.cases]
        found[one] = [q | row | {"made_of": made_of} for q, row in zip(asked, rows, strict=True)]
        write_jsonl(answers_path(folder, one), found[one])
    return found


def kept_rows(path: Path, made_of: str, n: int) -> Rows | None:
    """The rows of a file, unless it is missing or holds other answers than are asked for."""
    mend = "delete it, and the answers are drawn again"
    try:
        rows = [row for _, row in read_rows(path)] if path.exists() else []
    except DataError as error:
        raise DataError(f"{error}: {mend}") from None
    if len(rows) != n or any(row.get("made_of") != made_of for row in rows):
        return None
    for number, row in enumerate(rows, start=1):
        refuse_unfit(path, _Answer, row, f"line {number}", mend)
        if row.keys() != rows[0].keys():
            raise DataError(f"{path} is damaged: line {number} has other keys than line 1: {mend}")
    return rows


def drawn(name: str, spec: ArmSpec, asking: Asking) -> Iterator[dict[str, Any]]:
    """One answer of a policy to each case, with its log-probability under the policy and under the base."""
    config, base = asking.config, asking.base
    sampler = _sampler(spec, asking)
    texts = {} if spec.as_generic_user else texts_of_run(config.place(spec.run))
    warn_about_unknown_users(name, sampler, [] if spec.as_generic_user else asking.groups)
    bar = progress(total=len(asking.cases), desc=f"{name} answers", unit="question")
    for first in range(0, len(asking.cases), config.batch_size):
        part = asking.cases[first : first + config.batch_size]
        how = asking.sampling(name)
        who = [None if spec.as_generic_user else c.user_id for c in part]
        asked = [
            sampler.ask(_prompt(c, spec, asking), user, texts.get(c.user_id, ""))
            for c, user in zip(part, who, strict=True)
        ]
        started = time.perf_counter()
        answers = sampler.draw(asked, 1, replace(how, seed=how.seed + first))
        seconds = (time.perf_counter() - started) / len(part)
        plain = [base.ask(c.prompt, c.user_id) for c in part]
        own = _logps(sampler, asked, answers)
        theirs = own if sampler is base and asked == plain else _logps(base, plain, answers)
        for text, ids, logp, base_logp in zip(sampler.texts(answers), answers, own, theirs, strict=True):
            ended = bool(ids) and ids[-1] in sampler.end_ids
            cost = {"tokens": len(ids), "seconds": seconds, "ended": ended}
            yield {"response": text, **cost, "logp": logp, "base_logp": base_logp, "surprise": -base_logp / len(ids)}
        bar.update(len(part))
    bar.close()


def best_of(name: str, spec: ArmSpec, asking: Asking) -> list[Rows]:
    """For each number the best so many of one pool, by the reward for the person.

    A policy that knows nobody answers a prompt once for all who ask it. The time of a pick is that of its share of the
    pool: drawing it, and reading it for its person.
    """
    config, sampler = asking.config, _sampler(spec, asking)
    scorer = Scorer.from_pretrained(config.place(spec.reward))
    texts, rewarded = texts_of_run(config.place(spec.run)), texts_of_run(config.place(spec.reward))
    candidates, most = Candidates(sampler, scorer), max(spec.best_of)
    alike = sampler.policy.user_tokens == 0 and not texts and not spec.prompted
    pools: dict[str, list[Comparison]] = {}
    for c in asking.cases:
        pools.setdefault(prompt_key(c.prompt) if alike else f"{prompt_key(c.prompt)}\x01{c.user_id}", []).append(c)
    found: dict[tuple[str, str], Rows] = {}
    for people in progress(pools.values(), desc=f"{name}: pools of {most}", unit="pool"):
        c = people[0]
        started = time.perf_counter()
        ids = candidates.draw(
            _prompt(c, spec, asking), most, asking.sampling(name), c.user_id, texts.get(c.user_id, "")
        )
        pool = sampler.texts(ids)
        drawing = (time.perf_counter() - started) / most
        for one in people:
            started = time.perf_counter()
            picks = _picks(scorer, one, pool, rewarded.get(one.user_id, ""), spec.best_of)
            each = drawing + (time.perf_counter() - started) / most
            found[one.user_id, prompt_key(one.prompt)] = [
                {"response": pool[pick], "tokens": sum(map(len, ids[:n])), "seconds": n * each}
                | {"ended": ids[pick][-1] in sampler.end_ids}
                for n, pick in zip(spec.best_of, picks, strict=True)
            ]
    rows = [found[c.user_id, prompt_key(c.prompt)] for c in asking.cases]
    return [list(column) for column in zip(*rows, strict=True)]


def _picks(scorer: Scorer, case: Comparison, pool: Sequence[str], text: str, numbers: Sequence[int]) -> list[int]:
    """The place of the best of the first n for each n; an empty answer comes last, as a reward model cannot read it."""
    read = [answer for answer in dict.fromkeys(pool) if scorer.fits(answer)]
    rewards = torch.full((len(pool),), float("-inf"))
    if read:
        known = dict(zip(read, scorer.score(case.prompt, read, case.user_id, text).tolist(), strict=True))
        rewards = torch.tensor([known.get(answer, float("-inf")) for answer in pool])
    return [rank(pool[:n], rewards[:n])[0].place for n in numbers]


def texts_of_run(run: str) -> dict[str, str]:
    """What people say of themselves in the log that a run learnt from; nothing where it was not told."""
    held = Path(run) / "test.jsonl"
    if not held.exists():
        return {}
    return {
        c.user_id: c.user_text for c in latest_user_texts(read_feedback(FeedbackConfig(path=str(held))).comparisons)
    }


def _sampler(spec: ArmSpec, asking: Asking) -> Sampler:
    """The policy of an arm. Raises `PrmError` where it writes in tokens that the base could not read."""
    config, base = asking.config, asking.base
    run = config.place(spec.run)
    if run == config.place(config.arms[config.base].run):
        return base
    sampler = Sampler.from_pretrained(run, dtype=base.model.dtype, day=base.day)  # what rounds alike can be compared
    if sampler.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise PrmError(f"{run} has another vocabulary than the base, {config.base}: their answers cannot be compared")
    return sampler


def _prompt(case: Comparison, spec: ArmSpec, asking: Asking) -> Any:
    """The prompt, with the group's instruction in front of its last message where there is one."""
    if not spec.prompted:
        return case.prompt
    group = asking.groups[case.user_id]
    if group not in spec.prompted:
        raise PrmError(
            f"config key 'arms': 'prompted' has no instruction for the group {group!r}, only {list(spec.prompted)}"
        )
    *before, last = as_messages(case.prompt)
    text = f"{spec.prompted[group]}\n\n{last.content}"
    return (*before, Message(last.role, text)) if before else text


def _logps(sampler: Sampler, asked: Sequence[list[int]], answers: Sequence[list[int]]) -> list[float]:
    """log P of each answer as it was drawn, its end token included where it has one; nats."""
    read = [Encoded([*q, *a], (len(q), len(q) + len(a))) for q, a in zip(asked, answers, strict=True)]
    with progress(total=len(read), desc="reading answers", unit="answer") as bar:
        return read_logps(sampler.policy, read, _MAX_TOKENS, bar).tolist()


def with_surprise(rows: Rows, asking: Asking) -> Rows:
    """The rows of answers that were not drawn one by one, each read by the base with its end."""
    base = asking.base
    texts = base.tokenizer([row["response"] for row in rows], add_special_tokens=False)["input_ids"]
    answers = [[*ids, *base.encoder.end_ids] for ids in texts]
    logps = _logps(base, [base.ask(c.prompt, c.user_id) for c in asking.cases], answers)
    return [row | {"surprise": -logp / len(ids)} for row, ids, logp in zip(rows, answers, logps, strict=True)]


def _made_of(spec: ArmSpec, asking: Asking) -> str:
    """Digest of all that an arm's answers follow from."""
    config = asking.config
    runs = [config.place(text) for text in (spec.run, spec.reward, config.arms[config.base].run)]
    learnt = [checkpoints.digest(Path(run)) if checkpoints.is_run(run) else run for run in runs]
    asked = [[c.user_id, prompt_key(c.prompt), c.chosen, asking.groups[c.user_id]] for c in asking.cases]
    what = [asdict(spec), config.seed, config.max_new_tokens, config.batch_size, learnt, asked]
    what += [asking.base.day] if asking.base.day else []
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]

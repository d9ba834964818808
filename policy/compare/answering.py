"""The responses of every arm, stored in files that `policy judge` reads, with their cost and log-probabilities.

Responses are sampled at temperature 1 from the full distribution, so that the mean of log pi - log pi_base over them
estimates the KL divergence from the base. All policies sample and score in the dtype of the base.
"""

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from policy.compare.config import ArmSpec, CompareConfig
from policy.compare.measure import AnswerRow, DrawnRow
from policy.judging.answer_files import PromptRow, warn_about_unknown_users
from prm.checkpoint import checkpoint as checkpoints
from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, Message, Prompt, as_messages, latest_user_texts, prompt_key
from prm.data.encoding import Encoded
from prm.data.sources import read_feedback
from prm.errors import DataError, PrmError
from prm.features.extract import read_logps
from prm.io.folders import is_run
from prm.io.progress import progress
from prm.io.run_files import fitting
from prm.io.tables import read_rows, write_jsonl
from prm.scoring.scorer import Scorer
from rerank.ranking.candidates import Candidates
from rerank.ranking.strategies import rank
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

_MAX_TOKENS = 4096  # of a forward pass

Rows = list[AnswerRow]


@dataclass(frozen=True)
class Task:
    """What all arms share: the cases (prompts with users) in order, the users' groups, and the base policy."""

    config: CompareConfig
    cases: tuple[Comparison, ...]
    groups: dict[str, str]
    base: Sampler

    def sampling(self, arm: str) -> Sampling:
        """Sampling settings with a seed for each arm, so that equal policies tie by chance only."""
        seed = zlib.crc32(f"{self.config.seed} {arm}".encode())
        return Sampling(max_new_tokens=self.config.max_new_tokens, temperature=1.0, top_p=1.0, seed=seed)


def answers_path(folder: Path, arm: str) -> Path:
    """The file with an arm's responses."""
    return folder / "answers" / f"{arm}.jsonl"


def answer_arm(name: str, spec: ArmSpec, task: Task, folder: Path) -> dict[str, Rows]:
    """The rows of each arm that the spec stands for, from their files if these were made from the same inputs."""
    made_of = _made_of(spec, task)
    names = spec.names(name)
    stored = {arm: kept_rows(answers_path(folder, arm), made_of, len(task.cases)) for arm in names}
    if all(rows is not None for rows in stored.values()):
        return {arm: rows for arm, rows in stored.items() if rows is not None}
    if spec.chosen:
        by_arm = {name: with_surprise([{"response": c.chosen} for c in task.cases], task)}
    elif spec.best_of:
        picks = best_of(name, spec, task)
        by_arm = {arm: with_surprise(rows, task) for arm, rows in zip(names, picks, strict=True)}
    else:
        by_arm = {name: list(sample_arm(name, spec, task))}
    for arm, rows in by_arm.items():
        prompts = [PromptRow(c.prompt, c.user_id).to_row() for c in task.cases]
        stored_rows = [{**prompt, **row, "made_of": made_of} for prompt, row in zip(prompts, rows, strict=True)]
        write_jsonl(answers_path(folder, arm), stored_rows)
    return by_arm


def kept_rows(path: Path, made_of: str, n: int) -> Rows | None:
    """The rows of a file, or `None` if it is missing or was made from other inputs."""
    fix = "delete it, and the responses are sampled again"
    try:
        rows = [row for _, row in read_rows(path)] if path.exists() else []
    except DataError as error:
        raise DataError(f"{error}: {fix}") from None
    if len(rows) != n or any(row.get("made_of") != made_of for row in rows):
        return None
    answers = []
    for number, row in enumerate(rows, start=1):
        answers.append(fitting(path, AnswerRow, row, f"line {number}", fix))
        if row.keys() != rows[0].keys():
            raise DataError(f"{path} is damaged: line {number} has other keys than line 1: {fix}")
    return answers


def sample_arm(name: str, spec: ArmSpec, task: Task) -> Iterator[AnswerRow]:
    """Sample one response of a policy to each case, with its log-probability under the policy and the base."""
    config, base = task.config, task.base
    sampler = _sampler(spec, task)
    texts = {} if spec.as_generic_user else texts_of_run(config.resolve(spec.run))
    warn_about_unknown_users(name, sampler, [] if spec.as_generic_user else task.groups)
    bar = progress(total=len(task.cases), desc=f"{name}: sampling", unit="prompt")
    for first in range(0, len(task.cases), config.batch_size):
        part = task.cases[first : first + config.batch_size]
        sampling = task.sampling(name)
        users = [None if spec.as_generic_user else c.user_id for c in part]
        prompts = [
            sampler.encode_prompt(_prompt(c, spec, task), user, texts.get(c.user_id, ""))
            for c, user in zip(part, users, strict=True)
        ]
        started = time.perf_counter()
        responses = sampler.generate(prompts, 1, replace(sampling, seed=sampling.seed + first))
        seconds = (time.perf_counter() - started) / len(part)
        base_prompts = [base.encode_prompt(c.prompt, c.user_id) for c in part]
        logps = _logps(sampler, prompts, responses)
        base_logps = logps if sampler is base and prompts == base_prompts else _logps(base, base_prompts, responses)
        for text, ids, logp, base_logp in zip(sampler.decode(responses), responses, logps, base_logps, strict=True):
            ended = bool(ids) and ids[-1] in sampler.end_ids
            cost: DrawnRow = {"response": text, "tokens": len(ids), "seconds": seconds, "ended": ended}
            yield {**cost, "logp": logp, "base_logp": base_logp, "surprise": -base_logp / len(ids)}
        bar.update(len(part))
    bar.close()


def best_of(name: str, spec: ArmSpec, task: Task) -> list[list[DrawnRow]]:
    """For each N the best of the first N responses of a pool, by the user's reward.

    A policy without users samples one pool for all users of a prompt. The time of a response counts N shares of its
    pool: of sampling it, and of scoring it for the user.
    """
    config, sampler = task.config, _sampler(spec, task)
    scorer = Scorer.from_pretrained(config.resolve(spec.reward))
    texts, reward_texts = texts_of_run(config.resolve(spec.run)), texts_of_run(config.resolve(spec.reward))
    candidates, size = Candidates(sampler, scorer), max(spec.best_of)
    shared = sampler.policy.user_tokens == 0 and not texts and not spec.prompted
    pools: dict[str, list[Comparison]] = {}
    for c in task.cases:
        pools.setdefault(prompt_key(c.prompt) if shared else f"{prompt_key(c.prompt)}\x01{c.user_id}", []).append(c)
    by_case: dict[tuple[str, str], list[DrawnRow]] = {}
    for cases in progress(pools.values(), desc=f"{name}: pools of {size}", unit="pool"):
        c = cases[0]
        started = time.perf_counter()
        ids = candidates.generate(
            _prompt(c, spec, task), size, task.sampling(name), c.user_id, texts.get(c.user_id, "")
        )
        pool = sampler.decode(ids)
        sampling_time = (time.perf_counter() - started) / size
        for case in cases:
            started = time.perf_counter()
            picks = _picks(scorer, case, pool, reward_texts.get(case.user_id, ""), spec.best_of)
            each = sampling_time + (time.perf_counter() - started) / size
            by_case[case.user_id, prompt_key(case.prompt)] = [
                {
                    "response": pool[pick],
                    "tokens": sum(map(len, ids[:n])),
                    "seconds": n * each,
                    "ended": ids[pick][-1] in sampler.end_ids,
                }
                for n, pick in zip(spec.best_of, picks, strict=True)
            ]
    rows = [by_case[c.user_id, prompt_key(c.prompt)] for c in task.cases]
    return [list(column) for column in zip(*rows, strict=True)]


def _picks(scorer: Scorer, case: Comparison, pool: Sequence[str], text: str, numbers: Sequence[int]) -> list[int]:
    """The index of the best of the first n for each n; an empty response comes last, as it has no reward."""
    scored = [response for response in dict.fromkeys(pool) if scorer.reader.has_tokens(response)]
    rewards = torch.full((len(pool),), float("-inf"))
    if scored:
        known = dict(zip(scored, scorer.score(case.prompt, scored, case.user_id, text).tolist(), strict=True))
        rewards = torch.tensor([known.get(response, float("-inf")) for response in pool])
    return [rank(pool[:n], rewards[:n])[0].corpus_id for n in numbers]


def texts_of_run(run: str) -> dict[str, str]:
    """The users' texts in the log that a run was trained on, by user id; empty if it has none."""
    held = Path(run) / "test.jsonl"
    if not held.exists():
        return {}
    return {
        c.user_id: c.user_text for c in latest_user_texts(read_feedback(FeedbackConfig(path=str(held))).comparisons)
    }


def _sampler(spec: ArmSpec, task: Task) -> Sampler:
    """The policy of an arm. Raises `PrmError` if its vocabulary is not that of the base."""
    config, base = task.config, task.base
    run = config.resolve(spec.run)
    if run == config.resolve(config.arms[config.base].run):
        return base
    sampler = Sampler.from_pretrained(
        run, dtype=base.model.dtype, day=base.day
    )  # equal rounding makes log-probabilities comparable
    if sampler.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise PrmError(f"{run} has another vocabulary than the base, {config.base}: their responses cannot be compared")
    return sampler


def _prompt(case: Comparison, spec: ArmSpec, task: Task) -> Prompt:
    """The prompt, with the group's instruction, if there is one, before its last message."""
    if not spec.prompted:
        return case.prompt
    group = task.groups[case.user_id]
    if group not in spec.prompted:
        raise PrmError(
            f"config key 'arms': 'prompted' has no instruction for the group {group!r}, only {list(spec.prompted)}"
        )
    *earlier, last = as_messages(case.prompt)
    text = f"{spec.prompted[group]}\n\n{last.content}"
    return (*earlier, Message(last.role, text)) if earlier else text


def _logps(sampler: Sampler, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> list[float]:
    """log P of each response as sampled, with its end token if it has one; nats."""
    encoded = [Encoded([*p, *r], (len(p), len(p) + len(r))) for p, r in zip(prompts, responses, strict=True)]
    with progress(total=len(encoded), desc="log-probabilities", unit="response") as bar:
        return read_logps(sampler.policy, encoded, _MAX_TOKENS, bar).tolist()


def with_surprise(rows: Sequence[DrawnRow], task: Task) -> Rows:
    """Add `surprise` to rows whose responses were not sampled one by one; the base scores them with an end token."""
    base = task.base
    texts = base.tokenizer([row["response"] for row in rows], add_special_tokens=False)["input_ids"]
    responses = [[*ids, *base.encoder.end_ids] for ids in texts]
    logps = _logps(base, [base.encode_prompt(c.prompt, c.user_id) for c in task.cases], responses)
    return [{**row, "surprise": -logp / len(ids)} for row, ids, logp in zip(rows, responses, logps, strict=True)]


def _made_of(spec: ArmSpec, task: Task) -> str:
    """Digest of all inputs of an arm's responses."""
    config = task.config
    runs = [config.resolve(text) for text in (spec.run, spec.reward, config.arms[config.base].run)]
    digests = [checkpoints.digest(Path(run)) if is_run(run) else run for run in runs]
    cases = [[c.user_id, prompt_key(c.prompt), c.chosen, task.groups[c.user_id]] for c in task.cases]
    inputs = [asdict(spec), config.seed, config.max_new_tokens, config.batch_size, digests, cases]
    inputs += [task.base.day] if task.base.day else []
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]

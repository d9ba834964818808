"""The responses of every arm, stored in files that `policy judge` reads, with their cost and log-probabilities.

Responses are sampled at temperature 1 from the full distribution, so that the mean of log pi - log pi_base over them
estimates the KL divergence from the base. All policies sample and score in the dtype of the base.
"""

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import cast

from policy.compare.config import ArmSpec, CompareConfig
from policy.compare.measure import AnswerRow, Candidate, DrawnRow
from policy.judging.answer_files import PromptRow, warn_about_unknown_users
from prm.checkpoint import checkpoint as checkpoints
from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, Prompt, latest_user_texts, prompt_key
from prm.data.encoding import Encoded
from prm.data.past_comparisons import put_before, texts_of, with_past, without_leaks
from prm.data.sources import read_feedback
from prm.errors import DataError, PrmError
from prm.features.extract import read_logps
from prm.io.folders import is_run
from prm.io.progress import progress
from prm.io.run_files import fitting
from prm.io.tables import read_rows, write_jsonl
from prm.models.shared_backbone import BackboneLoader
from prm.scoring.scorer import Scorer
from rerank.ranking.candidates import Candidates
from rerank.ranking.strategies import rank
from rerank.sampling.config import Sampling
from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

_MAX_TOKENS = 4096  # of a forward pass
_MAX_PROMPT_TOKENS = 32_768  # of all prompts that are sampled together, with padding

Rows = list[AnswerRow]


@dataclass(frozen=True)
class Task:
    """What all arms share: the cases (prompts with users) in order, the users' groups, and the base policy.

    Args:
        past: each user's training comparisons, the newest last.
    """

    config: CompareConfig
    cases: tuple[Comparison, ...]
    groups: dict[str, str]
    base: Sampler
    past: Mapping[str, Sequence[Comparison]] = field(default_factory=dict)

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
    asked = [_prompt(c, spec, task, sampler, texts.get(c.user_id, "")) for c in task.cases]
    if spec.max_history:
        _warn_about_no_past(name, spec, task, asked)
    encoded = [
        sampler.encode_prompt(prompt, None if spec.as_generic_user else c.user_id, texts.get(c.user_id, ""))
        for prompt, c in zip(asked, task.cases, strict=True)
    ]
    sampling = task.sampling(name)
    for first, last in _batches([len(ids) for ids in encoded], config.batch_size):
        part, prompts = task.cases[first:last], encoded[first:last]
        started = time.perf_counter()
        responses = sampler.generate(prompts, 1, replace(sampling, seed=sampling.seed + first))
        seconds = (time.perf_counter() - started) / len(part)
        base_prompts = [base.encode_prompt(c.prompt, c.user_id) for c in part]
        logps = _logps(sampler, prompts, responses)
        base_logps = logps if sampler is base and prompts == base_prompts else _logps(base, base_prompts, responses)
        texts_of_part = sampler.decode(responses)
        words = [ids[: len(ids) - sampler.has_ended(ids)] for ids in responses]
        surprises = _surprises(base, base_prompts, words, texts_of_part)
        for text, ids, logp, base_logp, surprise in zip(
            texts_of_part, responses, logps, base_logps, surprises, strict=True
        ):
            ended = sampler.has_ended(ids)
            cost: DrawnRow = {"response": text, "tokens": len(ids), "seconds": seconds, "ended": ended}
            yield {**cost, "logp": logp, "base_logp": base_logp, "surprise": surprise}
        bar.update(len(part))
    bar.close()


def _warn_about_no_past(name: str, spec: ArmSpec, task: Task, asked: Sequence[Prompt]) -> None:
    """Warn about prompts before which no past comparison stands: to them the arm is no control."""
    without = [_prompt(c, replace(spec, max_history=0), task, task.base, "") for c in task.cases]
    if bare := sum(a == b for a, b in zip(asked, without, strict=True)):
        logger.warning(
            "warning: %s: before %d of %d prompts stands no past comparison: the user has none without the prompt or "
            "its responses, or none fits into the model's window",
            *(name, bare, len(asked)),
        )


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[tuple[int, int]]:
    """Ranges (start, end) of consecutive prompts, each of at most `batch_size` and, unless it is one prompt, of at most
    `_MAX_PROMPT_TOKENS` with padding."""
    start = 0
    for end in range(1, len(lengths) + 1):
        size = end + 1 - start
        if end == len(lengths) or size > batch_size or size * max(lengths[start : end + 1]) > _MAX_PROMPT_TOKENS:
            yield start, end
            start = end


def best_of(name: str, spec: ArmSpec, task: Task) -> list[list[DrawnRow]]:
    """For each N the best of the first N responses of a pool, by the user's reward.

    A policy without users samples one pool for all users of a prompt. The time of a response counts N shares of its
    pool: of sampling it, and of scoring it for the user.
    """
    config, sampler, loader = task.config, _sampler(spec, task), BackboneLoader()
    scorer = Scorer.from_pretrained(config.resolve(spec.reward), loader=loader)
    uniform = Path(config.resolve(spec.reward)) / "uniform"
    own = "personal" if scorer.users else "uniform"
    others = {"generic": scorer} if scorer.users else {}  # also score the pool, for nobody in particular
    others |= {"uniform": Scorer.from_pretrained(uniform, loader=loader)} if is_run(uniform) else {}
    texts, reward_texts = texts_of_run(config.resolve(spec.run)), texts_of_run(config.resolve(spec.reward))
    candidates, size = Candidates(sampler, scorer), max(spec.best_of)
    shared = sampler.policy.user_tokens == 0 and not (texts or spec.prompted or spec.max_history)
    pools: dict[str, list[Comparison]] = {}
    for c in task.cases:
        pools.setdefault(prompt_key(c.prompt) if shared else f"{prompt_key(c.prompt)}\x01{c.user_id}", []).append(c)
    by_case: dict[tuple[str, str], list[DrawnRow]] = {}
    for cases in progress(pools.values(), desc=f"{name}: pools of {size}", unit="pool"):
        c = cases[0]
        text = texts.get(c.user_id, "")
        prompt = _prompt(c, spec, task, sampler, text)
        started = time.perf_counter()
        ids = candidates.generate(prompt, size, task.sampling(name), c.user_id, text)
        pool = sampler.decode(ids)
        sampling_time = (time.perf_counter() - started) / size
        generic = {who: _rewards(model, c.prompt, pool) for who, model in others.items()}
        for case in cases:
            started = time.perf_counter()
            rewards = _rewards(scorer, case.prompt, pool, case.user_id, reward_texts.get(case.user_id, ""))
            each = sampling_time + (time.perf_counter() - started) / size
            by_case[case.user_id, prompt_key(case.prompt)] = [
                {
                    "response": pool[pick],
                    "tokens": sum(map(len, ids[:n])),
                    "seconds": n * each,
                    "ended": ids[pick][-1] in sampler.end_ids,
                    "pool": _candidates(pool[:n], {own: rewards, **generic}),
                }
                for n, pick in ((n, rank(pool[:n], rewards[:n])[0].corpus_id) for n in spec.best_of)
            ]
    rows = [by_case[c.user_id, prompt_key(c.prompt)] for c in task.cases]
    return [list(column) for column in zip(*rows, strict=True)]


def _rewards(
    scorer: Scorer, prompt: Prompt, pool: Sequence[str], user: str | None = None, user_text: str = ""
) -> list[float]:
    """Rewards of a pool, [n]; minus infinity for an empty response, which has none and comes last."""
    scored = [response for response in dict.fromkeys(pool) if scorer.reader.has_tokens(response)]
    rewards = scorer.score(prompt, scored, user, user_text).tolist() if scored else []
    known = dict(zip(scored, rewards, strict=True))
    return [known.get(response, float("-inf")) for response in pool]


def _candidates(pool: Sequence[str], rewards: Mapping[str, Sequence[float]]) -> list[Candidate]:
    """The rows of a pool; JSON has no infinity."""
    columns = {
        name: [None if r == float("-inf") else r for r in column[: len(pool)]] for name, column in rewards.items()
    }
    return [
        cast(Candidate, {"response": text, **{name: column[i] for name, column in columns.items()}})
        for i, text in enumerate(pool)
    ]


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


def _prompt(case: Comparison, spec: ArmSpec, task: Task, sampler: Sampler, user_text: str) -> Prompt:
    """The prompt, with the user's past comparisons and their group's instruction, if any, before its last message."""
    prompt = case.prompt
    if spec.prompted:
        group = task.groups[case.user_id]
        if group not in spec.prompted:
            raise PrmError(
                f"config key 'arms': 'prompted' has no instruction for the group {group!r}, only {list(spec.prompted)}"
            )
        prompt = put_before(prompt, spec.prompted[group])
    room = sampler.window - task.config.max_new_tokens
    past = without_leaks(task.past.get(case.user_id, ()), case.prompt, (case.chosen, case.rejected))
    return with_past(
        prompt,
        past,
        spec.max_history,
        fits=lambda longer: len(sampler.encode_prompt(longer, case.user_id, user_text)) <= room,
    )


def _logps(sampler: Sampler, prompts: Sequence[list[int]], responses: Sequence[list[int]]) -> list[float]:
    """log P of each response as sampled, with its end token if it has one; nats."""
    encoded = [Encoded([*p, *r], (len(p), len(p) + len(r))) for p, r in zip(prompts, responses, strict=True)]
    with progress(total=len(encoded), desc="log-probabilities", unit="response") as bar:
        return read_logps(sampler.policy, encoded, _MAX_TOKENS, bar).tolist()


def _surprises(
    base: Sampler, prompts: Sequence[list[int]], words: Sequence[list[int]], texts: Sequence[str]
) -> list[float | None]:
    """Log loss of the base on each response, nats per token of its words without the end; `None` for an empty one."""
    written = [i for i, text in enumerate(texts) if text.strip()]
    logps = _logps(base, [prompts[i] for i in written], [words[i] for i in written])
    found: list[float | None] = [None] * len(texts)
    for i, logp in zip(written, logps, strict=True):
        found[i] = -logp / len(words[i])
    return found


def with_surprise(rows: Sequence[DrawnRow], task: Task) -> Rows:
    """Add `surprise` to rows whose responses were not sampled one by one."""
    base, texts = task.base, [row["response"] for row in rows]
    words = base.tokenizer(texts, add_special_tokens=False)["input_ids"]
    prompts = [base.encode_prompt(c.prompt, c.user_id) for c in task.cases]
    return [{**row, "surprise": s} for row, s in zip(rows, _surprises(base, prompts, words, texts), strict=True)]


def _made_of(spec: ArmSpec, task: Task) -> str:
    """Digest of all inputs of an arm's responses."""
    config = task.config
    runs = [config.resolve(text) for text in (spec.run, spec.reward, config.arms[config.base].run)]
    digests = [checkpoints.digest(Path(run)) if is_run(run) else run for run in runs]
    cases = [[c.user_id, prompt_key(c.prompt), c.chosen, task.groups[c.user_id]] for c in task.cases]
    settings = asdict(spec)
    if not spec.max_history:
        del settings["max_history"]  # the digest is then that of versions without it, and their responses are kept
    inputs = [settings, config.seed, config.max_new_tokens, config.batch_size, digests, cases]
    inputs += [task.base.day] if task.base.day else []
    inputs += ["pool"] if spec.best_of else []  # older files lack it
    inputs += [texts_of(task.past.get(user, ())) for user in task.groups] if spec.max_history else []
    return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()[:16]

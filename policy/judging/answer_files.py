"""Response files of `policy sample` and `policy judge`: JSON Lines of `prompt`, `user_id` and `response`.

`metadata` of the prompts is kept: a language model as judge reads what the user said there.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from policy.judging.arguments import ANSWERS
from prm.data.comparison import Prompt, as_id, as_messages, parse_prompt, prompt_key
from prm.errors import DataError, PrmError
from prm.io.tables import kind, read_rows

if TYPE_CHECKING:
    from policy.judging.judges import Duel
    from rerank.sampling.config import Sampling
    from rerank.sampling.sampler import Sampler

logger = logging.getLogger(__name__)

NO_METADATA: Mapping[str, object] = MappingProxyType({})
_NAMED = 3  # user ids in a warning

Key = tuple[str, str | None]


class PromptRow(NamedTuple):
    """A prompt and its user; `None` is the generic user. `origin` is its file and line ("prompts.jsonl, line 7")."""

    prompt: Prompt
    user: str | None
    user_text: str = ""
    origin: str = ""
    metadata: Mapping[str, object] = NO_METADATA

    @property
    def key(self) -> Key:
        """By which the rows of two response files are matched."""
        return prompt_key(self.prompt), self.user

    def to_row(self) -> dict[str, object]:
        """JSON-ready."""
        prompt = self.prompt if isinstance(self.prompt, str) else [m._asdict() for m in as_messages(self.prompt)]
        row: dict[str, object] = {"prompt": prompt, "user_id": self.user}
        row |= {"user_text": self.user_text} if self.user_text else {}
        return row | ({"metadata": dict(self.metadata)} if self.metadata else {})


class Answer(NamedTuple):
    """A response to a prompt; `ended` is false if it was cut at max_new_tokens, `None` if the file does not say."""

    prompt: PromptRow
    response: str
    ended: bool | None = None


def read_prompts(path: str, users: Sequence[str] = ()) -> list[PromptRow]:
    """Read the distinct prompts and users of a file, such as a run's `test.jsonl`; with `users`, every prompt for each.

    Raises `DataError` naming file, line and fault.
    """
    rows = [prompt for _, prompt, _ in _read(Path(path))]
    if users:
        rows = [PromptRow(row.prompt, user, origin=row.origin) for row in rows for user in users]
    by_key: dict[Key, PromptRow] = {}
    for row in rows:
        by_key.setdefault(row.key, row)
    return list(by_key.values())


def read_answers(path: str) -> dict[Key, Answer]:
    """Read prompts with their responses, which may be empty; `path` may be a folder that holds `answers.jsonl`.

    Raises `DataError` naming file, line and fault, also for a second response to the same prompt and user.
    """
    file = Path(path) / ANSWERS if Path(path).is_dir() else Path(path)
    if Path(path).is_dir() and not file.is_file():
        raise DataError(
            f"{path} holds no {ANSWERS}: if it is a policy's run, make it by 'policy sample {path} PROMPTS.jsonl'"
        )
    answers: dict[Key, Answer] = {}
    for number, prompt, row in _read(file):
        if not isinstance(response := row.get("response"), str):
            raise DataError(f"{file}, line {number}: 'response' must be text, got {kind(response)}")
        if not isinstance(ended := row.get("ended"), bool | None):
            raise DataError(f"{file}, line {number}: 'ended' must be true or false, got {kind(ended)}")
        if prompt.key in answers:
            raise DataError(f"{file}, line {number}: a second response to the same prompt for user {prompt.user!r}")
        answers[prompt.key] = Answer(prompt, response, ended)
    return answers


def duels_of(first: Mapping[Key, Answer], second: Mapping[Key, Answer]) -> list["Duel"]:
    """A duel for each user and prompt that both files have, in the order of the first; rows need a user.

    What the user says of themselves and in metadata is taken from the first file. Raises `PrmError` if there is no
    duel, and `DataError` naming file, line and field for metadata that a judge cannot read.
    """
    from policy.judging.judges import Duel  # imports numpy
    from policy.judging.judges.duels import said_by_the_user

    duels = []
    for key, (prompt, response, _) in first.items():
        if key in second and prompt.user is not None:
            other, other_response, _ = second[key]
            try:
                feedback, system_string = said_by_the_user(prompt.metadata)
            except DataError as error:
                raise DataError(f"{prompt.origin}: {error}") from None
            duels.append(
                Duel(
                    user_id=prompt.user,
                    prompt=prompt.prompt,
                    first=response,
                    second=other_response,
                    user_text=prompt.user_text,
                    open_feedback=feedback,
                    system_string=system_string,
                    origins=(prompt.origin, other.origin),
                )
            )
    if not duels:
        raise PrmError("the two files have no row in common with the same 'user_id' and 'prompt', and a user")
    if unmatched := len(first) + len(second) - 2 * len(duels):
        logger.warning("%d responses are left out: without a user, or not in the other file", unmatched)
    return duels


def cut_notes(files: Iterable[tuple[str, Mapping[Key, Answer]]]) -> list[str]:
    """A sentence for each file (path, answers) in which responses were cut at max_new_tokens; each is logged."""
    notes = []
    for path, answers in files:
        ended = [answer.ended for answer in answers.values() if answer.ended is not None]
        if cut := ended.count(False):
            notes.append(
                f"{path}: {cut} of {len(ended)} responses were cut at max_new_tokens: a rule such as 'longer' or "
                "'shorter' measures that limit; sample again with a higher --sampling.max_new_tokens"
            )
            logger.warning("warning: %s", notes[-1])
    return notes


def sample_answers(
    sampler: "Sampler", prompts: Sequence[PromptRow], sampling: "Sampling", batch: int
) -> Iterator[dict[str, object]]:
    """Sample one response to each prompt, in batches; yields rows in order, with whether the response `ended`.

    Raises `DataError`, which begins with its origin, for a prompt that does not fit, before any is sampled.
    """
    for row in prompts:
        sampler.check(row.origin, row.prompt, sampling, row.user, row.user_text)
    cut = 0
    for first in range(0, len(prompts), batch):
        part = prompts[first : first + batch]
        encoded = [sampler.encode_prompt(row.prompt, row.user, row.user_text) for row in part]
        drawn = sampler.generate(encoded, 1, replace(sampling, seed=sampling.seed + first))
        for row, ids, response in zip(part, drawn, sampler.decode(drawn), strict=True):
            ended = sampler.has_ended(ids)
            cut += not ended
            yield row.to_row() | {"response": response, "ended": ended}
    if cut:
        limit = sampling.max_new_tokens
        logger.warning("warning: %d of %d responses were cut at max_new_tokens %d", cut, len(prompts), limit)


def warn_about_unknown_users(name: str, sampler: "Sampler", users: Iterable[str | None]) -> None:
    """Warn about users that a policy with users does not know: they get the generic user's responses."""
    if not (sampler.policy.user_tokens and len(sampler.users.ids)):
        return
    named = list(dict.fromkeys(user for user in users if user))
    unknown = [user for user in named if user not in sampler.users]
    if unknown:
        shown = ", ".join(map(repr, unknown[:_NAMED])) + (" and others" if len(unknown) > _NAMED else "")
        logger.warning("warning: %s does not know %d of %d users: %s", name, len(unknown), len(named), shown)


def _read(path: Path) -> Iterator[tuple[int, PromptRow, Mapping[str, object]]]:
    for number, row in read_rows(path):
        origin = f"{path}, line {number}"
        try:
            given, text = row.get("user_id"), row.get("user_text") or ""
            user = None if given is None else as_id("user_id", given)
            if not isinstance(text, str):
                raise DataError(f"'user_text' must be text, got {kind(text)}")
            if not isinstance(metadata := row.get("metadata") or {}, dict):
                raise DataError(f"'metadata' must be an object, got {kind(metadata)}")
            yield number, PromptRow(parse_prompt(row.get("prompt")), user or None, text, origin, metadata), row
        except DataError as error:
            raise DataError(f"{origin}: {error}") from None

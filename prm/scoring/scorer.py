"""`Scorer`: the only door for reranking, policies and every outside caller."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.data.comparison import Comparison, Prompt, naming_rows, placed, require_list, require_text
from prm.data.encoding import Encoded
from prm.errors import CheckpointError, PrmError
from prm.features.batcher import Batcher
from prm.io.tables import kind
from prm.models.backbone_state import lock_of
from prm.models.backbones import choose_device
from prm.models.policy_model import Policy
from prm.models.reward_model import HeadInput, RewardModel
from prm.scoring.update_users import learn_people
from prm.users.bayes.quadrature import information
from prm.users.index import GENERIC_ROW
from prm.users.models import Bayes, UserModel

_PAIRS = 65536  # whose differences of hidden states are held at once


class GainOverGeneric(NamedTuple):
    """Each of n responses against the generic pick, as one person may see it.

    Args:
        pick: place of the generic pick among the responses.
        mean, std: of the person's own logit of preferring each response to the pick, float32 [n]; 0 at the pick.
    """

    pick: int
    mean: Tensor
    std: Tensor


class NextQuestion(NamedTuple):
    """A comparison to ask a person: its place in the pool, and what the answer is expected to tell, in nats."""

    place: int
    information: float


class Scorer:
    """Rewards of answers for a person, in logits: a difference of 1 means odds of e to 1.

    A score depends on its own prompt, response and user alone, not on what else is asked for. An unknown
    user, or `None`, scores as the generic user; `knows` tells. A policy trained by P-DPO scores by its implicit
    reward, beta log pi(answer | prompt, user) / pi_ref(answer | prompt).

    `user_text`, what somebody says of themselves, is read in front of the prompt. With empirical Bayes it says instead
    what to expect of somebody who has not judged, if the run has learnt that; who has keeps what is known.

    Threads may share a scorer: each score is that of a moment, before or after another thread has learnt somebody.

    Args:
        checkpoint: a loaded run.
        max_tokens: tokens per pass of the backbone; bounds memory, changes no score.
        cache: keep hidden states of linear-head models without adapters on disk, so that no text is read twice.
    """

    def __init__(self, checkpoint: Checkpoint[Any], max_tokens: int = 4096, cache: bool = False):
        self.model: RewardModel | Policy = checkpoint.model.eval()
        self._linear = self.model if isinstance(self.model, RewardModel) and self.model.is_linear else None
        self._beta = checkpoint.settings.get("objective", {}).get("beta")
        self._use_of_text = checkpoint.settings.get("user_text", "prompt")
        if isinstance(self.model, Policy) and self._beta is None:
            method = checkpoint.settings["objective"]["method"]
            run = checkpoint.folder or "the policy"
            raise CheckpointError(
                f"{run} was trained by {method}: it answers, and gives no reward. Score with a reward model, or rank "
                f"its answers by one: rerank REWARD_RUN --generator {run}"
            )
        self.encoder = checkpoint.encoder()
        user_text_in_prompt = self._use_of_text == "prompt"
        self._requests = Batcher(self.model, self.encoder, self._beta, max_tokens, cache, user_text_in_prompt)
        self._checkpoint, self._users = checkpoint, checkpoint.users
        self._device = self._requests.device

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        max_tokens: int = 4096,
        cache: bool = False,
    ) -> "Scorer":
        """Load a run folder; device is the accelerator if there is one, dtype that of the training run.

        Raises `CheckpointError` where the folder is damaged or does not fit the backbone.
        """
        where = torch.device(device) if device is not None else choose_device()
        checkpoint = checkpoints.load(folder, backbone, where, dtype)
        checkpoints.add_reference(checkpoint, backbone)
        return cls(checkpoint, max_tokens, cache)

    @property
    def scores_empty(self) -> bool:
        """True where an empty response has something to read, its end; the mean over no tokens is no number."""
        return isinstance(self.model, Policy) or all(pooling == "last" for _, pooling in self.model.reading)

    @property
    def users(self) -> list[str]:
        """Ids of the people the model has learnt from, in row order."""
        return self._users.ids

    @property
    def day(self) -> str:
        """ISO date that the chat template takes for today's: that of training; empty where it asks for none."""
        return str(self._checkpoint.settings["backbone"]["day"])

    def knows(self, user: str | None) -> bool:
        """False for `None` and for anyone the model has not learnt from."""
        return user in self._users

    def judgements(self, user: str | None) -> int | None:
        """Comparisons, ties aside, that the user's own numbers were learnt from.

        `None` for `None`, for anyone the model has not learnt from, and in runs from before they were counted.
        """
        return self._users.judgements(user)

    @overload
    def score(self, prompt: Any, responses: Sequence[str], user: str | None = ..., user_text: str = ...) -> Tensor: ...

    @overload
    def score(
        self,
        prompt: Any,
        responses: Sequence[str],
        user: str | None = ...,
        user_text: str = ...,
        *,
        return_std: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    def score(
        self,
        prompt: Prompt | list[dict[str, str]],
        responses: Sequence[str],
        user: str | None = None,
        user_text: str = "",
        *,
        return_std: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """float32 [n], one reward per response; with `return_std` a pair with their standard deviations.

        These belong to empirical Bayes: how far what the person would say may lie from the reward. Between two
        responses much of it cancels: to choose, see `gains`. Raises `PrmError` where the run keeps no uncertainty.
        """
        responses, user_text = require_list("responses", responses), user_text or ""
        if not return_std:
            n = len(responses)
            return self.score_batch([prompt] * n, responses, [user] * n, [user_text] * n)
        read, n = self._read_with_posterior(prompt, responses, user_text), len(responses)
        with self._heads([user] * n, [user_text] * n) as (model, rows):
            rewards = model.linear_reward(read, rows), model.linear_deviation(read, rows)
        return _finite(rewards[0].cpu()), _finite(rewards[1].cpu())

    @torch.no_grad()
    def score_users(
        self, prompt: Prompt | list[dict[str, str]], responses: Sequence[str], users: Sequence[str | None]
    ) -> Tensor:
        """float32 [m, n], for each user each response. With a linear head the texts are read once for all."""
        responses, users = require_list("responses", responses), require_list("users", users)
        if not responses or not users:
            return torch.empty(len(users), len(responses))
        if self._linear is not None:
            n = len(responses)
            pooled, index = self._requests.pooled([prompt] * n, responses, [""] * n)
            read = self._linear.head_input(pooled).at(index)
            with self._heads(users, [""] * len(users)) as (model, rows):
                return _finite(model.linear_reward_users(read, rows).cpu())
        flat = [(response, user) for user in users for response in responses]
        rewards = self.score_batch([prompt] * len(flat), [r for r, _ in flat], [u for _, u in flat])
        return rewards.view(len(users), len(responses))

    @torch.no_grad()
    def score_batch(
        self,
        prompts: Sequence[Prompt | list[dict[str, str]]],
        responses: Sequence[str],
        users: Sequence[str | None],
        user_texts: Sequence[str] | None = None,
        empty: bool = False,
    ) -> Tensor:
        """float32 [b], rows of any mix of prompts and users; what stands in several of them is read once.

        With `empty`, empty responses are scored as well, by the state at their end, where the model `scores_empty`.
        Raises `DataError` for an empty response or one that does not fit, `PrmError` for unequal lengths and where a
        reward is no finite number.
        """
        prompts, responses, users, texts = _columns(
            prompts=prompts, responses=responses, users=users, user_texts=user_texts
        )
        if not responses:
            return torch.empty(0)
        empty = empty and self.scores_empty
        if self._linear is not None:
            pooled, index = self._requests.pooled(prompts, responses, texts, empty)
            read = self._linear.head_input(pooled).at(index)
            with self._heads(users, texts) as (model, rows):
                return _finite(model.linear_reward(read, rows).cpu())
        people, at = self._copied(users)
        return _finite(self._requests.rewards(prompts, responses, at.tolist(), texts, people, empty).cpu())

    @torch.no_grad()
    def margin_batch(
        self,
        prompts: Sequence[Prompt | list[dict[str, str]]],
        first: Sequence[str],
        second: Sequence[str],
        users: Sequence[str | None],
        user_texts: Sequence[str] | None = None,
    ) -> Tensor:
        """Logits of P(first > second | user), float32 [b], rows of any mix of prompts and users.

        The difference of the two rewards; with empirical-Bayes users what is not known of a person is averaged over,
        pair by pair. Raises as `score_batch` does.
        """
        prompts, first, second, users, texts = _columns(
            prompts=prompts, first=first, second=second, users=users, user_texts=user_texts
        )
        if self._linear is None:
            both = [[*column, *column] for column in (prompts, users, texts)]
            rewards = self.score_batch(both[0], [*first, *second], both[1], both[2])
            return rewards[: len(first)] - rewards[len(first) :]
        pooled, index = self._requests.pooled([*prompts, *prompts], [*first, *second], [*texts, *texts])
        read, out = self._linear.head_input(pooled), torch.empty(len(users))
        with self._heads(users, texts) as (model, rows):
            for start in range(0, len(rows), _PAIRS):
                part = slice(start, min(start + _PAIRS, len(rows)))
                a, b = read.at(index[: len(rows)][part]), read.at(index[len(rows) :][part])
                out[part] = model.linear_margin(a, b, rows[part]).cpu()
        return _finite(out)

    @torch.no_grad()
    def gains(
        self,
        prompt: Prompt | list[dict[str, str]],
        responses: Sequence[str],
        user: str | None = None,
        user_text: str = "",
    ) -> GainOverGeneric:
        """What each response is to this person beside the one that everybody would be given.

        For a cautious choice: the response with the highest `mean - k std` replaces the generic pick (that of a person
        of whom nothing is known, no text either) only where the person's gain is that sure. Empirical Bayes only:
        raises `PrmError` where the run keeps no uncertainty.
        """
        responses, user_text = require_list("responses", responses), user_text or ""
        read, n = self._read_with_posterior(prompt, responses, user_text), len(responses)
        with self._heads([user] * n, [user_text] * n) as (model, rows):
            pick = model.linear_reward(read, torch.zeros_like(rows)).argmax()
            mean, variance = model.linear_logits(read, read.at(pick.expand_as(rows)), rows)
        return GainOverGeneric(int(pick), _finite(mean.cpu()), _finite(variance.sqrt().cpu()))

    @torch.no_grad()
    def next_question(
        self, user: str | None, pool: Sequence[tuple[Any, str, str]], user_text: str = ""
    ) -> NextQuestion:
        """The comparison in the pool whose answer is expected to tell most about this person.

        Its answer shares most information with their offset (Houlsby et al. 2011). Empirical Bayes only: raises
        `PrmError` where the run keeps no uncertainty, and for an empty pool.

        Args:
            pool: (prompt, first response, second response) of comparisons that the person could be asked.
        """
        questions, user_text = [require_list("pool[...]", q) for q in require_list("pool", pool)], user_text or ""
        if not questions:
            raise PrmError("there is no question in the pool")
        if any(len(question) != 3 for question in questions):
            raise PrmError("'pool' must hold of each comparison a prompt and two responses to it")
        model = self._with_posterior()
        prompts, first, second = zip(*questions, strict=True)
        n = len(questions)
        pooled, index = self._requests.pooled([*prompts, *prompts], [*first, *second], [user_text] * (2 * n))
        read = model.head_input(pooled)
        with self._heads([user] * n, [user_text] * n) as (model, rows):
            mean, variance = model.linear_logits(read.at(index[:n]), read.at(index[n:]), rows)
        user_text_in_prompt = _finite(information(mean, variance))
        best = int(user_text_in_prompt.argmax())
        return NextQuestion(best, float(user_text_in_prompt[best]))

    def prefer(
        self, prompt: Prompt | list[dict[str, str]], a: str, b: str, user: str | None = None, user_text: str = ""
    ) -> float:
        """P(a > b | user) under Bradley-Terry (equation 2), averaged over what is not known of the person."""
        return float(torch.sigmoid(self.margin_batch([prompt], [a], [b], [user], [user_text])))

    def fit_user(self, user: str, comparisons: Iterable[Comparison]) -> None:
        """Know a person by these judgements alone, new or not; from none at all they score as the unknown user.

        In memory: `prm adapt` does the same to a run folder. Nobody else's scores move by a bit. Empirical Bayes gives
        the posterior (what the last `user_text` says comes first, where the run has learnt that), other linear heads
        the best offset under the run's penalty, soft prompts gradient steps on the person's own tokens. Raises
        `PrmError` for a uniform model.
        """
        self.adapt(_judged_by(user, comparisons), [user], anew=True)

    def update_user(self, user: str, comparisons: Iterable[Comparison]) -> None:
        """Take in further judgements of a person whose earlier ones are not at hand; a new person is fitted to them.

        Empirical Bayes keeps mean and covariance, and takes in one judgement after the other: 25 judgements by planted
        people without any noise leave probabilities within .02 of those of `fit_user` on all at once, on average.
        Other models are held where they stand as `fit_user` holds a new person at the unknown user.
        """
        self.adapt(_judged_by(user, comparisons), [user])

    def forget_user(self, user: str) -> None:
        """Know nothing of a person any more: they score as the unknown user.

        In memory: `prm forget` does the same to a run folder. Raises `PrmError` for whom the model does not know.
        """
        with lock_of(self._users), lock_of(self.model.user_model):
            self.model.user_model.forget_row(self._users.forget(user))

    def adapt(self, comparisons: Sequence[Comparison], users: Iterable[str] = (), anew: bool = False) -> int:
        """`update_user` for everybody who judged, and for `users`; `anew`: `fit_user`. Returns the number of steps."""
        comparisons, users = _comparisons(comparisons), [str(user) for user in require_list("users", users)]
        with naming_rows(placed(comparisons), self.check_comparison):
            return learn_people(self._checkpoint, self._requests, comparisons, users, anew)

    def text(self, prompt: Any, response: str, user_text: str = "") -> Encoded:
        """What a linear head reads: a sequence without a user. Raises as `check` does."""
        return self._requests.text(*self.check(prompt, response), user_text)

    def hold(self, texts: Sequence[Encoded], pooled: Tensor) -> None:
        """Hidden states [t, d] that whoever wrote these texts has seen: they are not read again, until others are held.

        Linear heads only. The texts carry no user.
        """
        self._requests.hold(texts, pooled)

    def fits(self, response: str) -> bool:
        """False where nothing is left of a response to read: white space, or what the tokenizer passes over."""
        if not response.strip():
            return False
        try:
            response.encode()
        except UnicodeEncodeError:
            return True  # `check` says what is wrong
        return bool(self.encoder.ids(response))

    def check(self, prompt: Any, response: Any) -> tuple[Prompt, str]:
        """A prompt and a response as the encoder takes them. Raises `PrmError` for what is empty or no text."""
        return self._requests.check(prompt, response)

    def check_length(self, prompt: Any, response: Any, user_text: str = "") -> None:
        """Raise `PrmError` for what is empty or no text, and for what does not fit."""
        self.encoder.encode(*self.check(prompt, response), 0, user_text if self._use_of_text == "prompt" else "")
        if user_text and self._use_of_text == "prior":
            self.encoder.encode_alone(user_text)

    def check_comparison(self, c: Comparison) -> None:
        """Raise as `check_length` does, for either of the two answers."""
        for response in (c.chosen, c.rejected):
            self.check_length(c.prompt, response, c.user_text)

    @torch.no_grad()
    def _read_with_posterior(self, prompt: Any, responses: Sequence[str], user_text: str) -> HeadInput:
        """What heads see of n responses; raises where no uncertainty is kept."""
        model, n = self._with_posterior(), len(responses)
        pooled, index = self._requests.pooled([prompt] * n, responses, [user_text] * n)
        return model.head_input(pooled).at(index)

    @contextmanager
    def _heads(self, users: Sequence[str | None], texts: Sequence[str]) -> Iterator[tuple[RewardModel, Tensor]]:
        """(a linear model, rows [b] in it): people of whom nothing is known but a text have a row of that text's there.

        Such rows are in a copy; nobody's own is touched. No other thread changes them meanwhile.
        """
        assert self._linear is not None
        own = self._linear.user_model
        with lock_of(own):
            rows = self._rows(users)
            if not any(texts) or not isinstance(own, Bayes) or own.text_prior is None:
                yield self._linear, rows
                return
            kept, at = torch.unique(torch.cat([rows.new_tensor([GENERIC_ROW]), rows]), return_inverse=True)
            known, n, people = own.known(kept)[at[1:]].tolist(), len(kept), own.subset(kept)
        place: dict[str, int] = {}
        user_text_in_prompt = [
            place.setdefault(text, n + len(place)) if text and not knows else GENERIC_ROW
            for text, knows in zip(texts, known, strict=True)
        ]
        if place:
            people.grow(n + len(place))
            people.set_text_prior(torch.arange(n, n + len(place), device=self._device), self._requests.alone(place))
        temporary = torch.tensor(user_text_in_prompt, device=self._device)
        yield self._linear.with_users(people), torch.where(temporary > 0, temporary, at[1:])

    def _copied(self, users: Sequence[str | None]) -> tuple[UserModel, Tensor]:
        """(these people and the unknown user, as they are now; rows [b] among them)."""
        own = self.model.user_model
        with lock_of(own):
            rows = self._rows(users)
            kept, at = torch.unique(torch.cat([rows.new_tensor([GENERIC_ROW]), rows]), return_inverse=True)
            return own.subset(kept), at[1:]

    def _rows(self, users: Sequence[str | None]) -> Tensor:
        return torch.tensor([self._users.row(user) for user in users], dtype=torch.long, device=self._device)

    def _with_posterior(self) -> RewardModel:
        """The model, if it keeps how sure it is. Raises `PrmError` where it does not."""
        if self._linear is None:
            raise PrmError("the run keeps no uncertainty: train it with users.kind 'bayes'")
        self._linear.posterior()
        return self._linear


def _finite(rewards: Tensor) -> Tensor:
    if broken := int((~rewards.isfinite()).sum()):
        raise PrmError(
            f"{broken} of {rewards.numel()} rewards are not finite numbers: the model is broken or its dtype too narrow"
        )
    return rewards


def _columns(**columns: Any) -> list[list[Any]]:
    """The columns as lists, the last one those of people's texts, which may be left out.

    Raises `PrmError` for one text in place of a list, unequal lengths, and a person's text that is none.
    """
    *names, last = columns
    lists = [require_list(name, columns[name]) for name in names]
    texts = [""] * len(lists[1]) if columns[last] is None else require_list(last, columns[last])
    lengths = [len(column) for column in (*lists, texts)]
    if len(set(lengths)) > 1:
        raise PrmError(f"{', '.join(names)} and {last} differ in length: {', '.join(map(str, lengths))}")
    for text in filter(None, texts):
        require_text(last, text)
    return [*lists, [text or "" for text in texts]]


def _comparisons(comparisons: Iterable[Comparison]) -> list[Comparison]:
    found = require_list("comparisons", comparisons)
    for i, c in enumerate(found):
        if not isinstance(c, Comparison):
            raise PrmError(f"'comparisons[{i}]' must be a Comparison, got {kind(c)}")
    return found


def _judged_by(user: str, comparisons: Iterable[Comparison]) -> list[Comparison]:
    require_text("user", user)
    found = _comparisons(comparisons)
    for i, c in enumerate(found):
        if c.user_id != user:
            raise PrmError(f"'comparisons[{i}]' is a judgement by {c.user_id!r}, not by {user!r}")
    return found

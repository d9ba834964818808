"""`Scorer`: the entry point for reranking, policies and other callers."""

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
from prm.models.backbone_state import lock_of, switched
from prm.models.backbones import choose_device
from prm.models.policy_model import Policy
from prm.models.reward_model import HeadInput, RewardModel
from prm.scoring.update_users import update_users
from prm.users.bayes.quadrature import information
from prm.users.index import GENERIC_ROW
from prm.users.user_models import Bayes, UserModel

_PAIRS = 65536  # differences of hidden states held in memory at once


class GainOverGeneric(NamedTuple):
    """Each of n responses compared with the generic user's best response, for one user.

    Args:
        pick: index of the generic user's best response.
        mean, std: of the user's logit of preferring each response to the pick, float32 [n]; 0 at the pick.
    """

    pick: int
    mean: Tensor
    std: Tensor


class NextQuestion(NamedTuple):
    """A comparison to ask a user: its index in the pool, and the expected information of the result, in nats."""

    place: int
    information: float


class Scorer:
    """Rewards of responses for a user, in logits: a difference of 1 means odds of e to 1.

    A score depends only on its prompt, response and user, not on the rest of the batch. An id that the model does not
    know (`knows`), or `None`, scores as the generic user. A policy trained by P-DPO scores by its implicit reward,
    beta log pi(response | prompt, user) / pi_ref(response | prompt).

    `user_text`, the user's text, is read before the prompt. With empirical Bayes it instead sets the prior of a user
    without comparisons, if the run was trained on texts; users with comparisons keep their posterior.

    Threads may share a scorer: each score is from before or after another thread's update of a user.

    Args:
        checkpoint: a loaded run.
        max_tokens: tokens per forward pass of the backbone; bounds memory, changes no score.
        cache: keep hidden states of linear-head models without adapters on disk, so that no text is read twice.
    """

    def __init__(self, checkpoint: Checkpoint[Any], max_tokens: int = 4096, cache: bool = False):
        self.model: RewardModel | Policy = checkpoint.model
        self._linear = self.model if isinstance(self.model, RewardModel) and self.model.is_linear else None
        self._beta = checkpoint.settings.get("objective", {}).get("beta")
        self._use_of_text = checkpoint.settings.get("user_text", "prompt")
        if isinstance(self.model, Policy) and self._beta is None:
            method = checkpoint.settings["objective"]["method"]
            run = checkpoint.folder or "the policy"
            raise CheckpointError(
                f"{run} was trained by {method}: it is a policy and gives no reward. Score with a reward model, or "
                f"rank the policy's responses by one: rerank REWARD_RUN --generator {run}"
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
        """Load a run folder. Defaults: the accelerator if there is one, and the dtype of the training run.

        Raises `CheckpointError` if the folder is damaged or does not fit the backbone.
        """
        target = torch.device(device) if device is not None else choose_device()
        checkpoint = checkpoints.load(folder, backbone, target, dtype)
        checkpoints.add_reference(checkpoint, backbone)
        return cls(checkpoint, max_tokens, cache)

    @property
    def scores_empty(self) -> bool:
        """True if an empty response can be scored, by its end; a mean over no tokens cannot."""
        return isinstance(self.model, Policy) or all(pooling == "last" for _, pooling in self.model.reading)

    @property
    def users(self) -> list[str]:
        """Ids of the users that the model knows, in row order."""
        return self._users.ids

    @property
    def day(self) -> str:
        """ISO date that the chat template takes for today's: that of training; empty if it uses no date."""
        return str(self._checkpoint.settings["backbone"]["day"])

    def knows(self, user: str | None) -> bool:
        """Whether the model knows this user; false for `None`."""
        return user in self._users

    def judgements(self, user: str | None) -> int | None:
        """Number of comparisons, ties aside, that the user's parameters were trained on.

        `None` for `None`, for users whom the model does not know, and in old runs that do not store it.
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
        """float32 [n], one reward per response; with `return_std` also their posterior standard deviations.

        Standard deviations need empirical Bayes. Between two responses much of the uncertainty cancels: to choose, see
        `gains`. Raises `PrmError` if the run keeps no uncertainty.
        """
        responses, user_text = require_list("responses", responses), user_text or ""
        if not return_std:
            n = len(responses)
            return self.score_batch([prompt] * n, responses, [user] * n, [user_text] * n)
        read, n = self._bayes_input(prompt, responses, user_text), len(responses)
        with self._heads([user] * n, [user_text] * n) as (model, rows):
            rewards = model.linear_reward(read, rows), model.linear_deviation(read, rows)
        return _finite(rewards[0].cpu()), _finite(rewards[1].cpu())

    @torch.no_grad()
    def score_users(
        self, prompt: Prompt | list[dict[str, str]], responses: Sequence[str], users: Sequence[str | None]
    ) -> Tensor:
        """float32 [m, n], rewards by user and response. With a linear head the texts are read once for all users."""
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
        """float32 [b], rewards of any mix of prompts and users; repeated texts are read once.

        With `empty`, empty responses are scored, too, by the hidden state at their end, if the model `scores_empty`.
        Raises `DataError` for an empty response or one that does not fit, `PrmError` for unequal lengths and if a
        reward is not finite.
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
        user_model, rows = self._subset(users)
        return _finite(self._requests.rewards(prompts, responses, rows.tolist(), texts, user_model, empty).cpu())

    @torch.no_grad()
    def margin_batch(
        self,
        prompts: Sequence[Prompt | list[dict[str, str]]],
        first: Sequence[str],
        second: Sequence[str],
        users: Sequence[str | None],
        user_texts: Sequence[str] | None = None,
    ) -> Tensor:
        """Logits of P(first > second | user), float32 [b], for any mix of prompts and users.

        The difference of the two rewards; with empirical Bayes averaged over the user's posterior, pair by pair.
        Raises as `score_batch` does.
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
        """This user's gain from each response over the generic user's best response.

        For a cautious choice: the response with the highest `mean - k std` replaces the generic pick (the best for a
        user without comparisons or text) only if the user's gain is that certain. Empirical Bayes only: raises
        `PrmError` if the run keeps no uncertainty.
        """
        responses, user_text = require_list("responses", responses), user_text or ""
        read, n = self._bayes_input(prompt, responses, user_text), len(responses)
        with self._heads([user] * n, [user_text] * n) as (model, rows):
            pick = model.linear_reward(read, torch.zeros_like(rows)).argmax()
            mean, variance = model.linear_logits(read, read.at(pick.expand_as(rows)), rows)
        return GainOverGeneric(int(pick), _finite(mean.cpu()), _finite(variance.sqrt().cpu()))

    @torch.no_grad()
    def next_question(
        self, user: str | None, pool: Sequence[tuple[Any, str, str]], user_text: str = ""
    ) -> NextQuestion:
        """The comparison in the pool with the highest expected information about this user.

        This is the mutual information of its result and the user's offset (Houlsby et al. 2011). Empirical Bayes only:
        raises `PrmError` if the run keeps no uncertainty, and for an empty pool.

        Args:
            pool: (prompt, first response, second response) of comparisons that the user could be asked.
        """
        candidates, user_text = [require_list("pool[...]", c) for c in require_list("pool", pool)], user_text or ""
        if not candidates:
            raise PrmError("'pool' is empty: there is no comparison to ask")
        if any(len(candidate) != 3 for candidate in candidates):
            raise PrmError("'pool' must hold a prompt and two responses for each comparison")
        model = self._bayes_model()
        prompts, first, second = zip(*candidates, strict=True)
        n = len(candidates)
        pooled, index = self._requests.pooled([*prompts, *prompts], [*first, *second], [user_text] * (2 * n))
        read = model.head_input(pooled)
        with self._heads([user] * n, [user_text] * n) as (model, rows):
            mean, variance = model.linear_logits(read.at(index[:n]), read.at(index[n:]), rows)
        expected_information = _finite(information(mean, variance))
        best = int(expected_information.argmax())
        return NextQuestion(best, float(expected_information[best]))

    def prefer(
        self, prompt: Prompt | list[dict[str, str]], a: str, b: str, user: str | None = None, user_text: str = ""
    ) -> float:
        """P(a > b | user) under Bradley-Terry (equation 2), averaged over the user's posterior."""
        return float(torch.sigmoid(self.margin_batch([prompt], [a], [b], [user], [user_text])))

    def fit_user(self, user: str, comparisons: Iterable[Comparison]) -> None:
        """Fit a user, new or known, to these comparisons only; without any the user scores as the generic user.

        In memory: `prm adapt` does the same to a run folder. All other users' scores stay the same to the bit.
        Empirical Bayes computes the posterior (with a prior from the last `user_text`, if the run was trained on
        texts), other linear heads the best offset under the run's penalty, soft prompts take gradient steps on the
        user's tokens. Raises `PrmError` for a uniform model.
        """
        self.adapt(_comparisons_by(user, comparisons), [user], anew=True)

    def update_user(self, user: str, comparisons: Iterable[Comparison]) -> None:
        """Update a user by further comparisons, without the earlier ones; a new user is fitted to them.

        Empirical Bayes keeps mean and covariance, and takes one comparison after the other: with 25 noise-free
        comparisons of simulated users, probabilities are within .02 of those of `fit_user` on all at once, on average.
        Other models are pulled to the user's current parameters, as `fit_user` pulls a new user to the generic user.
        """
        self.adapt(_comparisons_by(user, comparisons), [user])

    def forget_user(self, user: str) -> None:
        """Remove a user, who then scores as the generic user.

        In memory: `prm forget` does the same to a run folder. Raises `PrmError` if the model does not know the user.
        """
        # the backbone is locked because a sampler reads the policy's own rows with it
        with lock_of(self._users), switched(self.model.backbone), lock_of(self.model.user_model):
            self.model.user_model.forget_row(self._users.forget(user))

    def adapt(self, comparisons: Sequence[Comparison], users: Iterable[str] = (), anew: bool = False) -> int:
        """`update_user`, or with `anew` `fit_user`, for all users of the comparisons and `users`; returns the steps."""
        comparisons, users = _comparisons(comparisons), [str(user) for user in require_list("users", users)]
        with naming_rows(placed(comparisons), self.check_comparison):
            return update_users(self._checkpoint, self._requests, comparisons, users, anew)

    def text(self, prompt: Any, response: str, user_text: str = "") -> Encoded:
        """The sequence that a linear head reads, without a user. Raises as `check` does."""
        return self._requests.text(*self.check(prompt, response), user_text)

    def hold(self, texts: Sequence[Encoded], pooled: Tensor) -> None:
        """Keep hidden states [t, d] of texts that were computed while generating them, until the next call.

        Linear heads only; the texts have no user. Held texts are not read again.
        """
        self._requests.hold(texts, pooled)

    def fits(self, response: str) -> bool:
        """False if a response has no tokens: white space, or characters that the tokenizer drops."""
        if not response.strip():
            return False
        try:
            response.encode()
        except UnicodeEncodeError:
            return True  # `check` reports the fault
        return bool(self.encoder.ids(response))

    def check(self, prompt: Any, response: Any) -> tuple[Prompt, str]:
        """A prompt and a response as the encoder takes them. Raises `PrmError` if empty or no text."""
        return self._requests.check(prompt, response)

    def check_length(self, prompt: Any, response: Any, user_text: str = "") -> None:
        """Raise `PrmError` if prompt or response is empty or no text, or if they do not fit."""
        self.encoder.encode(*self.check(prompt, response), 0, user_text if self._use_of_text == "prompt" else "")
        if user_text and self._use_of_text == "prior":
            self.encoder.encode_user_text(user_text)

    def check_comparison(self, c: Comparison) -> None:
        """Raise as `check_length` does, for either response."""
        for response in (c.chosen, c.rejected):
            self.check_length(c.prompt, response, c.user_text)

    @torch.no_grad()
    def _bayes_input(self, prompt: Any, responses: Sequence[str], user_text: str) -> HeadInput:
        """Head inputs of n responses. Raises `PrmError` if the run keeps no uncertainty."""
        model, n = self._bayes_model(), len(responses)
        pooled, index = self._requests.pooled([prompt] * n, responses, [user_text] * n)
        return model.head_input(pooled).at(index)

    @contextmanager
    def _heads(self, users: Sequence[str | None], texts: Sequence[str]) -> Iterator[tuple[RewardModel, Tensor]]:
        """Yield (a linear model, rows [b] in it), with temporary rows for users who have a text but no comparisons.

        Temporary rows are in a copy of the user model. No other thread changes the rows meanwhile.
        """
        assert self._linear is not None
        user_model = self._linear.user_model
        with lock_of(user_model):
            rows = self._rows(users)
            if not any(texts) or not isinstance(user_model, Bayes) or user_model.text_prior is None:
                yield self._linear, rows
                return
            distinct, inverse = torch.unique(torch.cat([rows.new_tensor([GENERIC_ROW]), rows]), return_inverse=True)
            known = user_model.known(distinct)[inverse[1:]].tolist()
            n, subset = len(distinct), user_model.subset(distinct)
        row_of_text: dict[str, int] = {}
        text_rows = [
            row_of_text.setdefault(text, n + len(row_of_text)) if text and not has_posterior else GENERIC_ROW
            for text, has_posterior in zip(texts, known, strict=True)
        ]
        if row_of_text:
            subset.grow(n + len(row_of_text))
            new_rows = torch.arange(n, n + len(row_of_text), device=self._device)
            subset.set_text_prior(new_rows, self._requests.alone(row_of_text))
        temporary = torch.tensor(text_rows, device=self._device)
        yield self._linear.with_users(subset), torch.where(temporary > 0, temporary, inverse[1:])

    def _subset(self, users: Sequence[str | None]) -> tuple[UserModel, Tensor]:
        """(a copy of the generic user's and these users' rows; the users' rows [b] in it)."""
        user_model = self.model.user_model
        with lock_of(user_model):
            rows = self._rows(users)
            distinct, inverse = torch.unique(torch.cat([rows.new_tensor([GENERIC_ROW]), rows]), return_inverse=True)
            return user_model.subset(distinct), inverse[1:]

    def _rows(self, users: Sequence[str | None]) -> Tensor:
        return torch.tensor([self._users.row(user) for user in users], dtype=torch.long, device=self._device)

    def _bayes_model(self) -> RewardModel:
        """The linear model with posteriors. Raises `PrmError` if the run keeps no uncertainty."""
        if self._linear is None:
            raise PrmError("the run keeps no uncertainty: train it with users.kind 'bayes'")
        self._linear.posterior()
        return self._linear


def _finite(rewards: Tensor) -> Tensor:
    if broken := int((~rewards.isfinite()).sum()):
        raise PrmError(
            f"{broken} of {rewards.numel()} rewards are not finite: the model is broken, or its dtype too narrow"
        )
    return rewards


def _columns(**columns: Any) -> list[list[Any]]:
    """The columns as lists; the last one holds users' texts and may be `None`.

    Raises `PrmError` for a text in place of a list, unequal lengths, and a user's text that is no string.
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
    checked = require_list("comparisons", comparisons)
    for i, c in enumerate(checked):
        if not isinstance(c, Comparison):
            raise PrmError(f"'comparisons[{i}]' must be a Comparison, got {kind(c)}")
    return checked


def _comparisons_by(user: str, comparisons: Iterable[Comparison]) -> list[Comparison]:
    require_text("user", user)
    checked = _comparisons(comparisons)
    for i, c in enumerate(checked):
        if c.user_id != user:
            raise PrmError(f"'comparisons[{i}]' is by user {c.user_id!r}, not by {user!r}")
    return checked

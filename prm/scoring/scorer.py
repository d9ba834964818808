"""`Scorer`: the entry point for reranking, policies and other callers."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, overload

import torch
from torch import Tensor

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.feature_digest import feature_digest
from prm.checkpoint.hub import local_folder
from prm.checkpoint.hub_model import HubModel, in_brief
from prm.checkpoint.saved_copy import save_copy
from prm.data.arguments import (
    Prompts,
    Texts,
    Users,
    require_columns,
    require_list,
    require_prompt,
    require_questions,
    require_texts,
    require_user_text,
)
from prm.data.comparison import Comparison, PromptLike
from prm.data.sources.in_memory import require_comparisons
from prm.errors import PrmError
from prm.models.backbone_state import lock_of, switched
from prm.models.backbones import choose_device
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel
from prm.models.shared_backbone import BackboneLoader
from prm.scoring.given_features import FeatureInputs, checked_features
from prm.scoring.head_scores import GainOverGeneric, HeadScores, NextQuestion
from prm.scoring.text_reader import TextReader
from prm.scoring.update_users import update_users
from prm.scoring.user_rows import copied_rows

logger = logging.getLogger(__name__)


class Scorer:
    """Rewards of responses for a user, in logits: a difference of 1 means odds of e to 1.

    A score depends only on its prompt, response and user, not on the rest of the batch. An id that the model does not
    know (`knows`), or `None`, scores as the generic user. A policy trained by P-DPO scores by its implicit reward,
    beta log pi(response | prompt, user) / pi_ref(response | prompt). Threads may share a scorer: each score is from
    before or after another thread's update of a user.

    `user_text`, the user's text, is read before the prompt, unless the run was trained to leave it unread.

    Args:
        checkpoint: a loaded run, or a `PersonalizedRewardModel`.
        max_tokens: tokens per forward pass of the backbone; bounds memory, changes no score.
        cache: keep hidden states of linear-head models without adapters on disk, so that no text is read twice.

    Raises `CheckpointError` for a policy without an implicit reward.
    """

    def __init__(
        self,
        checkpoint: Checkpoint[RewardModel] | Checkpoint[Policy] | HubModel[RewardModel] | HubModel[Policy],
        max_tokens: int = 4096,
        cache: bool = False,
    ):
        if isinstance(checkpoint, str | Path):
            raise TypeError(f"Scorer takes a loaded run: Scorer.from_pretrained({str(checkpoint)!r})")
        if isinstance(checkpoint, HubModel):
            checkpoint = checkpoint.checkpoint
            checkpoints.add_reference(checkpoint)
        self.checkpoint, self.reader = checkpoint, TextReader(checkpoint, max_tokens, cache)
        self.model: RewardModel | Policy = checkpoint.model
        self.encoder = self.reader.encoder
        self._users = checkpoint.users
        is_linear = isinstance(self.model, RewardModel) and self.model.is_linear
        self._heads = HeadScores(self.reader, checkpoint.users) if is_linear else None

    def __repr__(self) -> str:
        return f"Scorer({in_brief(self.checkpoint)}, device='{self.reader.device}')"

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        backbone: str | None = None,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        max_tokens: int = 4096,
        cache: bool = False,
        loader: BackboneLoader | None = None,
    ) -> "Scorer":
        """Load a run folder, or a hub id; `backbone` is the new name or path of its backbone, if that was moved.

        Defaults: the accelerator if there is one, and the dtype of the training run. Scorers that are loaded with the
        same `loader` share the weights of their backbone, if it is the same.

        Raises `CheckpointError` if the folder is damaged, does not fit the backbone or gives no reward,
        and if the hub gives no such run.
        """
        target = torch.device(device) if device is not None else choose_device()
        checkpoint = checkpoints.load(local_folder(folder), backbone, target, dtype, loader)
        checkpoints.add_reference(checkpoint, backbone)
        return cls(checkpoint, max_tokens, cache)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a run folder that scores to the bit the same, with the users that were fitted or forgotten in memory.

        Held-out comparisons and results stay in the folder that was loaded. Raises `PrmError` if the folder cannot be
        written.
        """
        save_copy(self.checkpoint, Path(folder))

    def push_to_hub(
        self, repo_id: str, *, private: bool = True, revision: str | None = None, token: str | None = None
    ) -> str:
        """Upload what `save_pretrained` writes to the hub; returns the address of the commit.

        User ids and what was learnt about each user are personal data: a new repository is private, and an existing
        public one is refused, unless `private` is false. Raises `PrmError` for what the hub refuses.
        """
        model: HubModel[Any] = HubModel(self.checkpoint)
        return model.push_to_hub(repo_id, private=private, revision=revision, token=token)

    @property
    def scores_empty(self) -> bool:
        """True if an empty response can be scored, by its end; a mean over no tokens cannot."""
        return isinstance(self.model, Policy) or all(pooling == "last" for _, pooling in self.model.feature_spec)

    @property
    def users(self) -> list[str]:
        """Ids of the users that the model knows, in row order."""
        return self._users.ids

    @property
    def day(self) -> str:
        """ISO date that the chat template takes for today's: that of training; empty if it uses no date."""
        return self.checkpoint.settings.backbone.day

    def knows(self, user: str | None) -> bool:
        """Whether the model knows this user; false for `None`. Raises `PrmError` for an id that is no text."""
        return user in self._users

    def judgements(self, user: str | None) -> int | None:
        """Number of comparisons, ties aside, that the user's parameters were trained on.

        `None` for `None`, for users whom the model does not know, and in old runs that do not store it. Raises as
        `knows` does.
        """
        return self._users.num_comparisons(user)

    @overload
    def score(self, prompt: PromptLike, responses: Texts, user: str | None = ..., user_text: str = ...) -> Tensor: ...

    @overload
    def score(
        self,
        prompt: PromptLike,
        responses: Texts,
        user: str | None = ...,
        user_text: str = ...,
        *,
        return_std: Literal[True],
    ) -> tuple[Tensor, Tensor]: ...

    @torch.no_grad()
    def score(
        self,
        prompt: PromptLike,
        responses: Texts,
        user: str | None = None,
        user_text: str = "",
        *,
        return_std: bool = False,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Rewards of n responses to one prompt for one user, float32 [n].

        With `return_std` also their posterior standard deviations, float32 [n], which need empirical Bayes. Between two
        responses much of the uncertainty cancels: to choose, see `gains`. Raises as `score_batch` does, and `PrmError`
        for `return_std` if the run keeps no uncertainty.
        """
        prompt, responses = require_prompt(prompt, "score_batch"), require_list("responses", responses)
        n, text = len(responses), require_user_text("user_text", user_text)
        if not return_std:
            return self.score_batch([prompt] * n, responses, [user] * n, [text] * n)
        scores = self._with_posteriors()
        rewards, std = scores.rewards_with_std([prompt] * n, responses, [user] * n, [text] * n)
        return _finite(rewards), _finite(std)

    @torch.no_grad()
    def score_users(
        self, prompt: PromptLike, responses: Texts, users: Users, user_texts: Texts | None = None
    ) -> Tensor:
        """Rewards of n responses to one prompt for each of m users, float32 [m, n].

        Equal to the bit to `score_batch` of all m n rows. With a linear head each response is read once for all users
        who have the same text before the prompt.

        Args:
            user_texts: one text per user; "" or `None` for a user without.

        Raises as `score_batch` does.
        """
        prompt, responses = require_prompt(prompt, "score_batch"), require_list("responses", responses)
        users, texts = require_columns(users=users, user_texts=user_texts)
        m, n = len(users), len(responses)
        if m == 0 or n == 0:
            return torch.empty(m, n)
        if self._heads is not None and len(set(map(self.reader.text_before_prompt, texts))) == 1:
            return _finite(self._heads.rewards_by_user(prompt, responses, users, texts))
        users, texts = ([value for value in column for _ in range(n)] for column in (users, texts))
        return self.score_batch([prompt] * (m * n), responses * m, users, texts).view(m, n)

    @torch.no_grad()
    def score_batch(
        self, prompts: Prompts, responses: Texts, users: Users, user_texts: Texts | None = None, empty: bool = False
    ) -> Tensor:
        """Rewards of b rows, any mix of prompts and users, float32 [b]; repeated texts are read once.

        Args:
            empty: also score empty responses, by the hidden state at their end, if the model `scores_empty`.

        Raises `DataError` for an argument of the wrong type, an empty response, and a response or a user's text that
        does not fit; `PrmError` for columns of unequal length, for an id that is no text and if a reward is not finite.
        """
        prompts, responses, users, texts = require_columns(
            prompts=prompts, responses=responses, users=users, user_texts=user_texts
        )
        if not responses:
            return torch.empty(0)
        empty = empty and self.scores_empty
        if self._heads is not None:
            return _finite(self._heads.rewards(prompts, responses, users, texts, empty))
        user_model, rows = copied_rows(self.reader, self._users, users)
        return _finite(self.reader.rewards(prompts, responses, rows.tolist(), texts, user_model, empty))

    @torch.no_grad()
    def margin_batch(
        self, prompts: Prompts, first: Texts, second: Texts, users: Users, user_texts: Texts | None = None
    ) -> Tensor:
        """Logits of P(first > second | user) of b pairs, any mix of prompts and users, float32 [b].

        The difference of the two rewards; with empirical Bayes the logit of the probability averaged over the user's
        posterior. Raises as `score_batch` does.
        """
        first, second = require_texts("first", first), require_texts("second", second)
        prompts, first, second, users, texts = require_columns(
            prompts=prompts, first=first, second=second, users=users, user_texts=user_texts
        )
        if self._heads is not None:
            return _finite(self._heads.margins(prompts, first, second, users, texts))
        rewards = self.score_batch([*prompts, *prompts], [*first, *second], [*users, *users], [*texts, *texts])
        return rewards[: len(first)] - rewards[len(first) :]

    @torch.no_grad()
    def gains(
        self, prompt: PromptLike, responses: Texts, user: str | None = None, user_text: str = ""
    ) -> GainOverGeneric:
        """This user's gain from each of n responses over the generic user's best response, in logits.

        For a cautious choice: the response with the highest `mean - k std` replaces the generic pick (the best for a
        user without comparisons or text) only if the user's gain is that certain. Empirical Bayes only: raises
        `PrmError` if the run keeps no uncertainty or there is no response, and as `score_batch` does.
        """
        prompt, responses = require_prompt(prompt, "score_batch"), require_list("responses", responses)
        text = require_user_text("user_text", user_text)
        if not responses:
            raise PrmError("'responses' is empty: there is nothing to choose from")
        pick, mean, variance = self._with_posteriors().gains(prompt, responses, user, text)
        return GainOverGeneric(pick, _finite(mean), _finite(variance.sqrt()))

    @torch.no_grad()
    def next_question(
        self, user: str | None, pool: Sequence[tuple[PromptLike, str, str]], user_text: str = ""
    ) -> NextQuestion:
        """The comparison whose result is expected to tell most about this user's other comparisons.

        This is the mutual information of its result with that of a comparison of any two responses of the pool to one
        prompt (Bickford Smith et al. 2023). The pool holds prompt, first response and second response of each
        comparison that the user could be asked. Empirical Bayes only: raises `PrmError` if the run keeps no
        uncertainty, for an empty pool, and as `score_batch` does.
        """
        prompts, first, second = require_questions(pool)
        text = require_user_text("user_text", user_text)
        information = _finite(self._with_posteriors().information(prompts, first, second, user, text))
        best = int(information.argmax())
        return NextQuestion(best, float(information[best]))

    def prefer(self, prompt: PromptLike, a: str, b: str, user: str | None = None, user_text: str = "") -> float:
        """P(a > b | user) in [0, 1] under Bradley-Terry (equation 2); raises as `score_batch` does.

        With empirical Bayes averaged over the user's posterior.
        """
        return float(torch.sigmoid(self.margin_batch([prompt], [a], [b], [user], [user_text])))

    def feature_ids(self, prompt: PromptLike, responses: Texts, user_text: str = "") -> list[list[int]]:
        """Token ids that the linear heads' backbone reads of each of n responses, for another program that runs it.

        For runs that read the last token; `feature_inputs` is for all. The chat template is applied, and a prompt that
        is too long is cut. Raises `PrmError` for a run that reads a mean, and as `feature_inputs` does.
        """
        return self._inputs_of_last(prompt, responses, user_text).ids[0]

    def feature_texts(self, prompt: PromptLike, responses: Texts, user_text: str = "") -> list[str]:
        """The texts with the token ids of `feature_ids`, for programs that take no ids, special tokens included.

        Raises as `feature_ids` does, and `DataError` for a response of which no text has these ids.
        """
        return self._inputs_of_last(prompt, responses, user_text).texts[0]

    def feature_inputs(self, prompt: PromptLike, responses: Texts, user_text: str = "") -> FeatureInputs:
        """What each model of an export reads of n responses, as `ids` and as `texts`.

        Its method `features` turns the vectors of these models into what `score_features` takes. The chat template is
        applied, and a prompt that is too long is cut. Raises `PrmError` for a model without linear heads, and as
        `score_batch` does.
        """
        text, heads = require_user_text("user_text", user_text), self._linear_heads()
        encoded = [self.reader.encode(prompt, response, text) for response in require_list("responses", responses)]
        return FeatureInputs(heads.model, self.checkpoint.tokenizer, encoded)

    @torch.no_grad()
    def score_features(
        self, features: object, user: str | None = None, *, users: Users | None = None, digest: str = ""
    ) -> Tensor:
        """Rewards of n responses from features [n, d] that `prm export` lets other programs compute, float32 [n].

        The same as those of `score`, or of `score_users`, float32 [m, n], if `users` are given.

        Args:
            features: a tensor, an array or nested lists; several hidden states stand side by side.
            digest: of the export that computed them, to refuse features of another model. Without it only their shape
                is checked, and that they are finite and were not normalised.

        Raises `PrmError` for features that cannot be those of this run, and for a model without linear heads.
        """
        heads = self._linear_heads()
        if digest and digest != self.feature_digest:
            raise PrmError(f"the features are of the export {digest!r}, this run's are {self.feature_digest!r}")
        if users is not None and user is not None:
            raise PrmError("give 'user' or 'users', not both")
        asked = [user] if users is None else require_list("users", users)
        rewards = _finite(heads.rewards_of(checked_features(heads.model, features), asked))
        return rewards[0] if users is None else rewards

    @cached_property
    def feature_digest(self) -> str:
        """Digest of what determines this run's features, as in `export.json`; added users do not change it."""
        self._linear_heads()
        return feature_digest(cast(Checkpoint[RewardModel], self.checkpoint))

    def fit_user(self, user: str, comparisons: Iterable[Comparison | Mapping[str, object]]) -> None:
        """Fit a user, new or known, to these comparisons only.

        With an empty list the model knows the user, who scores as the generic user.

        A comparison may be a dict, as in a list that `train` takes; its `user_id` may be left out.

        In memory: `prm adapt` does the same to a run folder. All other users' scores stay the same to the bit.
        Empirical Bayes computes the posterior, other linear heads the best offset under the run's penalty, soft prompts
        take gradient steps on the user's tokens. Raises `PrmError` for a policy, a uniform model and somebody else's
        comparison, and `DataError` naming the first comparison that the model cannot read; nothing has changed then.
        """
        update_users(self.checkpoint, self.reader, require_comparisons(comparisons, user), [user], anew=True)

    def update_user(self, user: str, comparisons: Iterable[Comparison | Mapping[str, object]]) -> None:
        """Update a user by further comparisons, without the earlier ones; a new user is fitted to them.

        Empirical Bayes keeps mean and covariance, and takes one comparison after the other: with 25 noise-free
        comparisons of simulated users, probabilities are within .02 of those of `fit_user` on all at once, on average.
        Other models are pulled to the user's current parameters, as `fit_user` pulls a new user to the generic user;
        linear heads more strongly along what the user differs in already.
        A comparison that the user was fitted to already counts again, with a warning. Raises as `fit_user` does.
        """
        given = require_comparisons(comparisons, user)
        if twice := sum(self._users.are_learnt(given)):
            logger.warning(
                "the model has learnt %d of these %d comparisons of user %r already: they count once more; 'fit_user' "
                "with all of them counts each once",
                twice,
                len(given),
                user,
            )
        update_users(self.checkpoint, self.reader, given, [user])

    def forget_user(self, user: str) -> None:
        """Remove a user, who then scores as the generic user.

        In memory: `prm forget` does the same to a run folder. Raises `PrmError` if the model does not know the user.
        """
        # the backbone is locked because a sampler reads the policy's own rows with it
        with lock_of(self._users), switched(self.model.backbone), lock_of(self.model.user_model):
            self.model.user_model.forget_row(self._users.forget(user))

    def _linear_heads(self) -> HeadScores:
        """The scores of linear heads. Raises `PrmError` for other models."""
        if self._heads is None:
            raise PrmError("the model has no linear heads: without them no vector of a text alone gives its rewards")
        return self._heads

    def _inputs_of_last(self, prompt: PromptLike, responses: Texts, user_text: str) -> FeatureInputs:
        """`feature_inputs` of a run that reads the last token. Raises `PrmError` for other runs."""
        inputs = self.feature_inputs(prompt, responses, user_text)
        if any(pooling == "mean" for _, pooling in self._linear_heads().model.feature_spec):
            raise PrmError("the run reads the mean over the response: 'feature_inputs' says what to send for it")
        return inputs

    def _with_posteriors(self) -> HeadScores:
        """The scores of linear heads. Raises `PrmError` if the run keeps no uncertainty."""
        if self._heads is None:
            raise PrmError("the run keeps no uncertainty: train it with users.kind 'bayes'")
        self._heads.require_posteriors()
        return self._heads


def _finite(rewards: Tensor) -> Tensor:
    """The rewards on the CPU. Raises `PrmError` if one is not finite."""
    if broken := int((~rewards.isfinite()).sum()):
        hint = "the model is broken, or its dtype too narrow"
        raise PrmError(f"{broken} of {rewards.numel()} rewards are not finite: {hint}")
    return rewards.cpu()

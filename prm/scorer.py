"""`Scorer`: the only door for reranking, policies and every outside caller."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from tqdm import tqdm

from prm import checkpoint as checkpoints
from prm.backbones import choose_device
from prm.causal import Policy
from prm.checkpoint import Checkpoint
from prm.comparison import Prompt, parse_prompt, require_text
from prm.errors import CheckpointError, PrmError
from prm.features import batches, compute_features
from prm.implicit import implicit_rewards
from prm.model import RewardModel
from prm.tokens import Batch, Encoded, pad

_PAIRS = 65536  # whose differences of hidden states are held at once


class Scorer:
    """Rewards of answers for a person, in logits: a difference of 1 means odds of e to 1.

    A score depends on its own prompt, response and user alone, not on what else is asked for. An unknown
    user, or `None`, scores as the generic user; `knows` tells. A policy trained by P-DPO scores by its implicit
    reward, beta log pi(answer | prompt, user) / pi_ref(answer | prompt).

    Args:
        checkpoint: a loaded run.
        max_tokens: padded tokens per pass of the backbone; bounds memory, changes no score.
        cache: keep hidden states of linear-head models without adapters on disk, so that no text is read twice.
    """

    def __init__(self, checkpoint: Checkpoint[Any], max_tokens: int = 4096, cache: bool = False):
        self.model: RewardModel | Policy = checkpoint.model.eval()
        self._linear = self.model if isinstance(self.model, RewardModel) and self.model.is_linear else None
        self._beta = checkpoint.settings.get("objective", {}).get("beta")
        if isinstance(self.model, Policy) and self._beta is None:
            method = checkpoint.settings["objective"]["method"]
            raise CheckpointError(f"the policy was trained by {method}, which gives no reward: score with one of 'dpo'")
        self.encoder = checkpoint.encoder()
        self.max_tokens = max_tokens
        # a store is known by the backbone's weights, which an adapter changes behind their back
        self.cache = cache and not isinstance(self.model.backbone, PeftModel)
        self._users = checkpoint.users
        self._device = next(self.model.parameters()).device

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
    def users(self) -> list[str]:
        """Ids of the people the model has learnt from, in row order."""
        return self._users.ids

    def knows(self, user: str | None) -> bool:
        """False for `None` and for anyone the model has not learnt from."""
        return user in self._users

    def score(
        self,
        prompt: Prompt | list[dict[str, str]],
        responses: Sequence[str],
        user: str | None = None,
        user_text: str = "",
    ) -> Tensor:
        """float32 [n], one reward per response."""
        n = len(responses)
        return self.score_batch([prompt] * n, responses, [user] * n, [user_text] * n)

    @torch.no_grad()
    def score_users(
        self, prompt: Prompt | list[dict[str, str]], responses: Sequence[str], users: Sequence[str | None]
    ) -> Tensor:
        """float32 [m, n], for each user each response. With a linear head the texts are read once for all."""
        if not responses or not users:
            return torch.empty(len(users), len(responses))
        if self._linear is not None:
            pooled = self._pooled([self._text(prompt, response) for response in responses])
            rows = torch.tensor([self._users.row(user) for user in users], dtype=torch.long, device=self._device)
            return _finite(self._linear.linear_reward_users(pooled, rows).cpu())
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
    ) -> Tensor:
        """float32 [b], rows of any mix of prompts and users; what stands in several of them is read once.

        Raises `DataError` for an empty response or one that does not fit, `PrmError` for unequal lengths and where a
        reward is no finite number.
        """
        texts = user_texts if user_texts is not None else [""] * len(responses)
        if not len(prompts) == len(responses) == len(users) == len(texts):
            raise PrmError(
                f"prompts, responses, users and user_texts differ in length: "
                f"{len(prompts)}, {len(responses)}, {len(users)}, {len(texts)}"
            )
        if not responses:
            return torch.empty(0)
        rows = [self._users.row(user) for user in users]
        if self._linear is not None:
            pooled, index = self._distinct(prompts, responses, texts)
            return _finite(self._linear.linear_reward(pooled[index], torch.tensor(rows, device=self._device)).cpu())
        asked = [(*self.check(p, y), t, r) for p, y, t, r in zip(prompts, responses, texts, rows, strict=True)]
        keys, index = self._once(asked)
        if isinstance(self.model, Policy):
            rewards = implicit_rewards(self.model, self.encoder, self._beta, list(keys), self._read)
        else:
            rewards = self._read([self.encoder.encode(p, y, row, t) for p, y, t, row in keys], self.model.soft_reward)
        return _finite(rewards[index].cpu())

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
        texts = user_texts if user_texts is not None else [""] * len(users)
        if self._linear is None:
            both = [[*column, *column] for column in (prompts, users, texts)]
            rewards = self.score_batch(both[0], [*first, *second], both[1], both[2])
            return rewards[: len(first)] - rewards[len(first) :]
        pooled, index = self._distinct([*prompts, *prompts], [*first, *second], [*texts, *texts])
        rows = torch.tensor([self._users.row(user) for user in users], device=self._device)
        out = torch.empty(len(rows))
        for start in range(0, len(rows), _PAIRS):
            part = slice(start, min(start + _PAIRS, len(rows)))
            a, b = pooled[index[: len(rows)][part]], pooled[index[len(rows) :][part]]
            out[part] = self._linear.linear_margin(a, b, rows[part]).cpu()
        return _finite(out)

    def prefer(
        self, prompt: Prompt | list[dict[str, str]], a: str, b: str, user: str | None = None, user_text: str = ""
    ) -> float:
        """P(a > b | user) under Bradley-Terry (equation 2), averaged over what is not known of the person."""
        return float(torch.sigmoid(self.margin_batch([prompt], [a], [b], [user], [user_text])))

    def check(self, prompt: Any, response: Any) -> tuple[Prompt, str]:
        """A prompt and a response as the encoder takes them. Raises `PrmError` for what is empty or no text."""
        return parse_prompt(prompt), _response(response)

    def _text(self, prompt: Prompt | list[dict[str, str]], response: str, user_text: str = "") -> Encoded:
        """A linear head's sequence without the user id that it takes off anyway."""
        encoded = self.encoder.encode(*self.check(prompt, response), 0, user_text)
        start, end = encoded.response
        return Encoded(encoded.ids[1:], (start - 1, end - 1))

    def _distinct(
        self, prompts: Sequence[Any], responses: Sequence[str], texts: Sequence[str]
    ) -> tuple[Tensor, Tensor]:
        """(hidden states [t, d] of each text once, positions [b] among them); linear heads only."""
        asked = [(*self.check(p, y), t) for p, y, t in zip(prompts, responses, texts, strict=True)]
        keys, index = self._once(asked)
        return self._pooled([self._text(p, y, t) for p, y, t in keys]), index

    def _once(self, asked: Sequence[Any]) -> tuple[Iterable[Any], Tensor]:
        """(what is asked for, each once, with progress; positions [b] among it): logs ask for the same many times."""
        place = {key: i for i, key in enumerate(dict.fromkeys(asked))}
        index = torch.tensor([place[key] for key in asked], device=self._device)
        return tqdm(place, desc="tokenising", unit="text", disable=None, delay=2), index

    def _pooled(self, texts: Sequence[Encoded]) -> Tensor:
        """Hidden states [t, d], not standardised; linear heads only."""
        assert self._linear is not None
        if self.cache:
            setting = (self._linear.config.get_text_config().num_hidden_layers, self._linear.form.pooling)
            return compute_features(self._linear, texts, [setting], self.max_tokens)[setting].to(self._device)
        return self._read(texts, self._linear.pooled, len(self._linear.standard_mean))

    def _read(self, sequences: Sequence[Encoded], read: Callable[[Batch], Tensor], *shape: int) -> Tensor:
        """`read` of every sequence, [n, *shape], a batch at a time."""
        out = torch.empty(len(sequences), *shape, device=self._device)
        bar = tqdm(total=len(sequences), desc="scoring", unit="text", disable=None, delay=2)
        for chosen in batches([len(s.ids) for s in sequences], self.max_tokens):
            batch = pad([sequences[i] for i in chosen])
            out[chosen] = read(Batch(*(field.to(self._device) for field in batch)))
            bar.update(len(chosen))
        bar.close()
        return out


def _finite(rewards: Tensor) -> Tensor:
    if broken := int((~rewards.isfinite()).sum()):
        raise PrmError(
            f"{broken} of {rewards.numel()} rewards are not finite numbers: the model is broken or its dtype too narrow"
        )
    return rewards


def _response(response: Any) -> str:
    require_text("response", response)
    return str(response)

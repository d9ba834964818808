"""Turns a caller's prompts and responses into inputs of heads, or into rewards."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor

from prm.data.comparison import Prompt, parse_prompt, require_text
from prm.data.encoding import Encoded, TextEncoder
from prm.features.extract import read_pooled
from prm.features.hidden_states import read_features
from prm.features.reference_logps import implicit_rewards
from prm.features.store import text_key
from prm.io.progress import progress
from prm.models.policy_model import Policy
from prm.models.reward_model import RewardModel
from prm.users.user_models import UserModel


class Batcher:
    """Tokenises texts and runs the backbone on them: on each text once, for all users.

    Args:
        model: a reward model, or a policy that scores by its implicit reward.
        encoder: the model's.
        beta: of the implicit reward; unused for reward models.
        max_tokens: maximum number per pass of the backbone.
        cache: cache hidden states of linear-head models without adapters on disk.
        user_text_in_prompt: put `user_text` before the prompt.
    """

    def __init__(
        self,
        model: RewardModel | Policy,
        encoder: TextEncoder,
        beta: float | None,
        max_tokens: int,
        cache: bool,
        user_text_in_prompt: bool,
    ):
        self.model, self.encoder, self.beta, self.max_tokens = model, encoder, beta, max_tokens
        # stores are named by the backbone's weights, without those of an adapter
        self.cache = cache and not isinstance(model.backbone, PeftModel)
        self.device = next(model.parameters()).device
        self._user_text_in_prompt = user_text_in_prompt
        self._cached_states: dict[bytes, Tensor] = {}

    def check(self, prompt: Any, response: Any, empty: bool = False) -> tuple[Prompt, str]:
        """Validate a prompt and a response for the encoder. Raises `PrmError` if one is empty or no text.

        Args:
            empty: allow an empty response.
        """
        if not (empty and response == ""):
            require_text("response", response)
        return parse_prompt(prompt), str(response)

    def pooled(
        self, prompts: Sequence[Any], responses: Sequence[str], texts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(hidden states [t, d] of the distinct texts, not standardised, indices [b] into them); linear heads only.

        Args:
            texts: the users' texts.
            empty: allow empty responses, whose features are the states at the end of the prompt.
        """
        user_texts = texts if self._user_text_in_prompt else [""] * len(texts)
        requests = [(*self.check(p, y, empty), t) for p, y, t in zip(prompts, responses, user_texts, strict=True)]
        unique, index = self._unique(requests)
        return self._states([self.text(p, y, t) for p, y, t in unique]), index

    def rewards(
        self,
        prompts: Sequence[Any],
        responses: Sequence[str],
        rows: Sequence[int],
        texts: Sequence[str],
        user_model: UserModel,
        empty: bool = False,
    ) -> Tensor:
        """Rewards, float32 [b], of a soft prompt or implicit ones; `rows` are those of `user_model`."""
        requests = [(*self.check(p, y, empty), t) for p, y, t in zip(prompts, responses, texts, strict=True)]
        if isinstance(self.model, Policy):
            assert self.beta is not None
            with_rows = [(*key, row) for key, row in zip(requests, rows, strict=True)]
            return implicit_rewards(self.model, self.encoder, self.beta, with_rows, self.max_tokens, user_model)
        unique, index = self._unique(requests)
        encoded = [self.encoder.encode(p, y, 0, t) for p, y, t in unique]
        sequences = [self.encoder.for_user(encoded[i], row) for i, row in zip(index.tolist(), rows, strict=True)]
        return self.model.soft_reward_of(self._read(sequences, user_model))

    def text(self, prompt: Prompt, response: str, user_text: str) -> Encoded:
        """The sequence of a text for a linear head, without the user id that the model would remove."""
        return self.encoder.without_user(
            self.encoder.encode(prompt, response, 0, user_text if self._user_text_in_prompt else "")
        )

    def alone(self, texts: Iterable[str]) -> Tensor:
        """Hidden states [n, d] of users' texts; linear heads only."""
        return self._states([self.encoder.encode_user_text(text) for text in texts])

    def hold(self, texts: Sequence[Encoded], pooled: Tensor) -> None:
        """Keep the hidden states [t, d] of these texts in memory, instead of those of the previous call."""
        self._cached_states = {text_key(text): state for text, state in zip(texts, pooled.to(self.device), strict=True)}

    def _states(self, texts: Sequence[Encoded]) -> Tensor:
        """Hidden states of each text, [t, d], from memory or computed."""
        cached = self._cached_states  # another thread may replace it meanwhile
        keys = [text_key(text) for text in texts] if cached else []
        if not any(key in cached for key in keys):
            return self._read(texts)
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in cached}
        known = cached | (dict(zip(missing, self._read(list(missing.values())), strict=True)) if missing else {})
        return torch.stack([known[key] for key in keys])

    def _unique(self, requests: Sequence[Any]) -> tuple[Iterable[Any], Tensor]:
        """(the distinct requests, with a progress bar; indices [b] into them), since logs repeat texts."""
        position = {key: i for i, key in enumerate(dict.fromkeys(requests))}
        index = torch.tensor([position[key] for key in requests], device=self.device)
        return progress(position, desc="tokenising", unit="text"), index

    def _read(self, sequences: Sequence[Encoded], user_model: UserModel | None = None) -> Tensor:
        """The features of each sequence, [n, d]; `user_model` as of `read_pooled`."""
        model = self.model
        assert isinstance(model, RewardModel)
        if self.cache and model.is_linear:
            return read_features(model, sequences, [model.reading], self.max_tokens)[model.reading].to(self.device)
        with progress(total=len(sequences), desc="scoring", unit="text") as bar:
            pooled = read_pooled(model, sequences, model.reading, self.max_tokens, bar, user_model)
        return torch.cat([pooled[setting] for setting in model.reading], dim=-1)

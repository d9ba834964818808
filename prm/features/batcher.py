"""What a caller asks for, prompts and answers of any mix, as numbers that heads can use."""

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
from prm.users.models import UserModel


class Batcher:
    """Tokenises and reads what is asked for: each text once, in one plan, whoever asks.

    Args:
        model: a reward model, or a policy that scores by its implicit reward.
        encoder: the model's.
        beta: of the implicit reward; unused elsewhere.
        max_tokens: that go through the backbone at once.
        cache: keep hidden states of linear-head models without adapters on disk.
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
        # a store is known by the backbone's weights, which an adapter changes behind their back
        self.cache = cache and not isinstance(model.backbone, PeftModel)
        self.device = next(model.parameters()).device
        self._user_text_in_prompt = user_text_in_prompt
        self._held: dict[bytes, Tensor] = {}

    def check(self, prompt: Any, response: Any, empty: bool = False) -> tuple[Prompt, str]:
        """A prompt and a response as the encoder takes them. Raises `PrmError` for what is empty or no text.

        Args:
            empty: take an empty response as well.
        """
        if not (empty and response == ""):
            require_text("response", response)
        return parse_prompt(prompt), str(response)

    def pooled(
        self, prompts: Sequence[Any], responses: Sequence[str], texts: Sequence[str], empty: bool = False
    ) -> tuple[Tensor, Tensor]:
        """(hidden states [t, d] of each text once, not standardised, positions [b] among them); linear heads only.

        Args:
            texts: what the people say of themselves.
            empty: read empty responses as well, whose state at their end is then what is asked for.
        """
        read = texts if self._user_text_in_prompt else [""] * len(texts)
        asked = [(*self.check(p, y, empty), t) for p, y, t in zip(prompts, responses, read, strict=True)]
        keys, index = self._once(asked)
        return self._states([self.text(p, y, t) for p, y, t in keys]), index

    def rewards(
        self,
        prompts: Sequence[Any],
        responses: Sequence[str],
        rows: Sequence[int],
        texts: Sequence[str],
        people: UserModel,
        empty: bool = False,
    ) -> Tensor:
        """float32 [b]: of soft prompts, or implicit ones, for those who have these rows among `people`."""
        asked = [(*self.check(p, y, empty), t) for p, y, t in zip(prompts, responses, texts, strict=True)]
        if isinstance(self.model, Policy):
            assert self.beta is not None
            several = [(*key, row) for key, row in zip(asked, rows, strict=True)]
            return implicit_rewards(self.model, self.encoder, self.beta, several, self.max_tokens, people)
        keys, index = self._once(asked)
        encoded = [self.encoder.encode(p, y, 0, t) for p, y, t in keys]
        sequences = [self.encoder.for_user(encoded[i], row) for i, row in zip(index.tolist(), rows, strict=True)]
        return self.model.soft_reward_of(self._read(sequences, people))

    def text(self, prompt: Prompt, response: str, user_text: str) -> Encoded:
        """A linear head's sequence without the user id that it takes off anyway."""
        return self.encoder.without_user(
            self.encoder.encode(prompt, response, 0, user_text if self._user_text_in_prompt else "")
        )

    def alone(self, texts: Iterable[str]) -> Tensor:
        """Hidden states [n, d] of what people say of themselves; linear heads only."""
        return self._states([self.encoder.encode_alone(text) for text in texts])

    def hold(self, texts: Sequence[Encoded], pooled: Tensor) -> None:
        """Know the hidden states [t, d] of these texts, and of no others."""
        self._held = {text_key(text): state for text, state in zip(texts, pooled.to(self.device), strict=True)}

    def _states(self, texts: Sequence[Encoded]) -> Tensor:
        """Hidden states of each text, [t, d]: those that are held, or read."""
        held = self._held  # another thread may hold others meanwhile
        keys = [text_key(text) for text in texts] if held else []
        if not any(key in held for key in keys):
            return self._read(texts)
        unread = {key: text for key, text in zip(keys, texts, strict=True) if key not in held}
        known = held | (dict(zip(unread, self._read(list(unread.values())), strict=True)) if unread else {})
        return torch.stack([known[key] for key in keys])

    def _once(self, asked: Sequence[Any]) -> tuple[Iterable[Any], Tensor]:
        """(what is asked for, each once, with progress; positions [b] among it): logs ask for the same many times."""
        place = {key: i for i, key in enumerate(dict.fromkeys(asked))}
        index = torch.tensor([place[key] for key in asked], device=self.device)
        return progress(place, desc="tokenising", unit="text"), index

    def _read(self, sequences: Sequence[Encoded], people: UserModel | None = None) -> Tensor:
        """What the head reads of each, [n, d]; `people` as of `read_pooled`."""
        model = self.model
        assert isinstance(model, RewardModel)
        if self.cache and model.is_linear:
            return read_features(model, sequences, [model.reading], self.max_tokens)[model.reading].to(self.device)
        with progress(total=len(sequences), desc="scoring", unit="text") as bar:
            found = read_pooled(model, sequences, model.reading, self.max_tokens, bar, people)
        return torch.cat([found[setting] for setting in model.reading], dim=-1)

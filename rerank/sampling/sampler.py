"""The sampler: responses of a policy or language model to prompts."""

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.checkpoint.hub import local_if_run
from prm.config import Dtype
from prm.data.arguments import Prompts, Texts, Users, require_columns, require_list, require_prompt
from prm.data.comparison import PromptLike, parse_prompt
from prm.errors import DataError, PrmError
from prm.features.extract import read_logps
from prm.features.reference_logps import completion
from prm.io.folders import is_run
from prm.io.progress import progress
from prm.models.backbone_state import switched
from prm.models.backbones import choose_device, choose_dtype
from prm.models.length_limits import window
from prm.models.policy_model import Policy
from prm.models.shared_backbone import share_weights
from rerank.sampling.cache_check import shares_prompts
from rerank.sampling.config import Sampling
from rerank.sampling.decoding import Reader, decode
from rerank.sampling.hidden_states import ResponseStates

logger = logging.getLogger(__name__)

_MAX_TOKENS = 4096  # per forward pass, with padding


class Sampler:
    """Samples responses from a policy or any causal language model.

    A prompt with n responses is prefilled once. An unknown user, or `None`, gets the generic user's responses; a model
    without user parameters treats all users alike.

    Args:
        policy: the checkpoint; `Sampler.from_pretrained` loads it from a run folder or a language model's name.

    Raises `PrmError` for an architecture that cannot decode with a cache.
    """

    def __init__(self, policy: Checkpoint[Policy]):
        self.policy, self.users, self.tokenizer = policy.model, policy.users, policy.tokenizer
        self.model, self.device = cast(Any, self.policy.backbone), self.policy.device
        self.encoder, self._shares = policy.encoder(), shares_prompts(self.model)
        self.day = policy.settings.backbone.day
        # other models were not trained with a user text before the conversation
        objective = policy.settings.objective
        self._reads_user_text = objective is not None and objective.method != "sft"
        self.window = window(self.model)
        self.end_ids = self.encoder.stop_ids
        if not self.end_ids:
            name = policy.folder or policy.settings.backbone.name
            logger.warning("warning: %s has no token that ends a response: all run to max_new_tokens", name)

    @classmethod
    def from_model(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, day: str = "") -> "Sampler":
        """A sampler of a language model in memory, which stays as it is.

        Args:
            day: as of `from_pretrained`.
        """
        name = model.name_or_path or type(model).__name__
        return cls(checkpoints.without_users(share_weights(model), tokenizer, name, day))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: torch.device | None = None,
        dtype: Dtype | torch.dtype = "auto",
        day: str = "",
    ) -> "Sampler":
        """Load a policy by its run folder or hub id, or a language model: `smollm2-135m`, a folder, or a hub id.

        Args:
            dtype: of the weights. `auto` is a run's training dtype; for a language model, bfloat16 if the device
                supports it, otherwise float32. In bfloat16 responses depend on what else is in the batch.
            day: ISO date that a language model's chat template uses as today's; empty: today. A run stores its own.

        Raises `PrmError` for a reward model, or if the model cannot be loaded.
        """
        name, target = local_if_run(name), device or choose_device()
        as_trained = dtype == "auto" and is_run(name)
        chosen = choose_dtype(dtype, target) if isinstance(dtype, str) else dtype
        return cls(checkpoints.load_policy(name, target, None if as_trained else chosen, day))

    def sample(
        self, prompt: PromptLike, n: int, sampling: Sampling, user: str | None = None, user_text: str = ""
    ) -> list[str]:
        """Sample n responses for one user; some may be empty, some equal.

        Raises `PrmError` if n is below 1 or prompt and response do not fit the model's window.
        """
        prompt = require_prompt(prompt, "sample_batch")
        return self.decode(self.generate([self.encode_prompt(prompt, user, user_text)], n, sampling))

    def sample_batch(
        self, prompts: Prompts, users: Users, sampling: Sampling, user_texts: Texts | None = None
    ) -> list[str]:
        """Sample one response to each prompt for its user, in one batch. Raises as `sample` does."""
        columns = require_columns(prompts=prompts, users=users, user_texts=user_texts)
        encoded = [self.encode_prompt(*row) for row in zip(*columns, strict=True)]
        return self.decode(self.generate(encoded, 1, sampling)) if encoded else []

    def encode_prompt(self, prompt: PromptLike, user: str | None = None, user_text: str = "") -> list[int]:
        """Encode a prompt with its user, up to the start of the response."""
        return self.encoder.encode_prompt(
            parse_prompt(prompt), self.users.row(user), user_text if self._reads_user_text else ""
        )

    def check(
        self, origin: str, prompt: PromptLike, sampling: Sampling, user: str | None = None, user_text: str = ""
    ) -> None:
        """Raise `DataError`, starting with `origin` (file and line), if the prompt leaves no room for a response."""
        try:
            self._check_room(len(self.encode_prompt(prompt, user, user_text)), sampling)
        except PrmError as error:
            raise DataError(f"{origin}: {error}") from None

    @torch.no_grad()
    def logps(self, prompt: PromptLike, texts: Sequence[str], user: str | None = None, user_text: str = "") -> Tensor:
        """log P(text, end | prompt, user) of each text, nats, float32 [n], at temperature 1.

        Raises `DataError` if one does not fit.
        """
        row, prefix, prompt = self.users.row(user), user_text if self._reads_user_text else "", parse_prompt(prompt)
        encoded = [completion(self.encoder.encode(prompt, text, row, prefix)) for text in require_list("texts", texts)]
        with progress(total=len(encoded), desc="reading responses", unit="response") as bar:
            return read_logps(self.policy, encoded, _MAX_TOKENS, bar).cpu()

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[list[int]], n: int, sampling: Sampling, states: ResponseStates | None = None
    ) -> list[list[int]]:
        """Sample n responses to each sequence of ids, those of one sequence together, including their end tokens.

        The sequences may contain user ids; equal ones are merged into one with more responses. Response k to a sequence
        has its own random stream: apart from rounding it depends neither on n nor on the rest of the batch. Raises as
        `sample` does.

        Args:
            states: collects the responses' hidden states; for one sequence only.
        """
        if n < 1:
            raise PrmError(f"the number of responses must be at least 1, got {n}")
        counts = Counter(map(tuple, prompts))
        self._check_room(max(map(len, counts)), sampling)
        streams = [(prompt, k) for prompt, times in counts.items() for k in range(n * times)]
        uniforms = torch.tensor(np.stack([self._uniforms(*stream, sampling) for stream in streams]))
        prompt_tokens = [[token for token in prompt if token < self.policy.vocab_size] for prompt, _ in streams]
        owners = torch.tensor([i for i, times in enumerate(counts.values()) for _ in range(n * times)])
        bar = progress(total=sampling.max_new_tokens, desc=f"sampling {len(streams)} responses", unit="token")
        room = sampling.max_new_tokens + (states.extra if states is not None else 0)
        depths = states.depths if states is not None else ()
        with bar, switched(self.model, evaluating=True, depths=depths) as inner:
            if states is not None:
                states.inner = inner
            reader = Reader(self.model, list(counts), owners, room, self._shares)
            responses = decode(
                reader, uniforms.to(self.device), sampling, self.end_ids, prompt_tokens, bar.update, states
            )
        remaining = iter(responses)
        drawn = {prompt: iter(list(islice(remaining, n * times))) for prompt, times in counts.items()}
        return [next(drawn[tuple(ids)]) for ids in prompts for _ in range(n)]

    def _check_room(self, num_tokens: int, sampling: Sampling) -> None:
        if num_tokens + sampling.max_new_tokens > self.window:
            raise PrmError(
                f"a prompt of {num_tokens} tokens and a response of {sampling.max_new_tokens} do not fit the model's "
                f"window of {self.window}"
            )

    def _uniforms(self, prompt: tuple[int, ...], k: int, sampling: Sampling) -> NDArray[np.float64]:
        """Random numbers of response k to a prompt."""
        return np.random.default_rng([sampling.seed, k, *prompt]).random(sampling.max_new_tokens)

    def has_ended(self, response: Sequence[int]) -> bool:
        """Whether a response ends with an end token; otherwise it was cut at `max_new_tokens`."""
        return bool(response) and response[-1] in self.end_ids

    def decode(self, responses: list[list[int]]) -> list[str]:
        """Decode responses, without end tokens and surrounding white space."""
        content = [ids[:-1] if ids and ids[-1] in self.end_ids else ids for ids in responses]
        return [str(text).strip() for text in self.tokenizer.batch_decode(content, skip_special_tokens=True)]

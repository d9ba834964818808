"""Sampling answers to prompts: the one sampler of the project."""

import logging
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prm.checkpoint import checkpoint as checkpoints
from prm.checkpoint.checkpoint import Checkpoint
from prm.config import Dtype
from prm.data.comparison import Prompt, parse_prompt, require_list
from prm.errors import DataError, PrmError
from prm.features.extract import read_logps
from prm.features.reference_logps import completion
from prm.io.progress import progress
from prm.models.backbone_state import switched
from prm.models.backbones import choose_device, choose_dtype, is_run
from prm.models.max_length import window
from prm.models.policy_model import Policy
from rerank.sampling.cache_trial import shares_prompts
from rerank.sampling.config import Sampling
from rerank.sampling.decoding import Reader, decode
from rerank.sampling.hidden_states import ResponseStates

logger = logging.getLogger(__name__)

_MAX_TOKENS = 4096  # padded, of a pass


class Sampler:
    """A policy, or any causal language model, that answers prompts.

    A prompt that is answered n times is read once. An unknown user, or `None`, gets the generic user's answers; a
    model that knows nobody answers everyone alike.

    Args:
        policy: `Sampler.from_pretrained` makes it of a run folder or a language model's name.

    Raises `PrmError` for an architecture that cannot go on from what it has read.
    """

    def __init__(self, policy: Checkpoint[Policy]):
        self.policy, self.users, self.tokenizer = policy.model.eval(), policy.users, policy.tokenizer
        self.model, self.device = cast(Any, self.policy.backbone), self.policy.device
        self.encoder, self._shares = policy.encoder(), shares_prompts(self.model)
        self.day = policy.settings["backbone"]["day"]
        # other models have never read what people say of themselves before a conversation
        self._reads_user_text = policy.settings["objective"].get("method") not in (None, "sft")
        self.window = window(self.model)
        self.end_ids = self.encoder.stop_ids
        if not self.end_ids:
            name = policy.folder or policy.settings["backbone"]["name"]
            logger.warning("warning: %s has no token that ends an answer: all answers run to max_new_tokens", name)

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        device: torch.device | None = None,
        dtype: Dtype | torch.dtype = "auto",
        day: str = "",
    ) -> "Sampler":
        """Load a policy's run folder, or a language model: `smollm2-135m`, a local folder, or a hub id.

        Args:
            dtype: of the weights. `auto` is the dtype that a run was trained in; for a language model, bfloat16 where
                the device computes in it, else float32. In bfloat16 answers depend on what else is drawn.
            day: ISO date that a language model's chat template takes for today's; today where empty. A run has its own.

        Raises `PrmError` for a reward model, and for what cannot be loaded.
        """
        where = device or choose_device()
        as_trained = dtype == "auto" and is_run(name)
        chosen = choose_dtype(dtype, where) if isinstance(dtype, str) else dtype
        return cls(checkpoints.load_policy(name, where, None if as_trained else chosen, day))

    def sample(
        self, prompt: Prompt, n: int, sampling: Sampling, user: str | None = None, user_text: str = ""
    ) -> list[str]:
        """n answers for one person, in the order drawn; an answer may be empty, and answers may repeat.

        Raises `PrmError` where the settings make no sense or the prompt leaves no room for an answer.
        """
        return self.texts(self.draw([self.ask(prompt, user, user_text)], n, sampling))

    def sample_batch(
        self,
        prompts: Sequence[Prompt],
        users: Sequence[str | None],
        sampling: Sampling,
        user_texts: Sequence[str] | None = None,
    ) -> list[str]:
        """One answer to each prompt for its person, all drawn together. Raises as `sample` does."""
        prompts, users = require_list("prompts", prompts), require_list("users", users)
        texts = [""] * len(prompts) if user_texts is None else require_list("user_texts", user_texts)
        if not len(prompts) == len(users) == len(texts):
            lengths = f"{len(prompts)}, {len(users)}, {len(texts)}"
            raise PrmError(f"prompts, users and user_texts differ in length: {lengths}")
        asked = [self.ask(*row) for row in zip(prompts, users, texts, strict=True)]
        return self.texts(self.draw(asked, 1, sampling)) if asked else []

    def ask(self, prompt: Prompt, user: str | None = None, user_text: str = "") -> list[int]:
        """Ids of a prompt as its person asks it, up to where the answer begins."""
        return self.encoder.encode_question(
            parse_prompt(prompt), self.users.row(user), user_text if self._reads_user_text else ""
        )

    def check(
        self, place: str, prompt: Prompt, sampling: Sampling, user: str | None = None, user_text: str = ""
    ) -> None:
        """Raise `DataError`, which begins with the place of a question in a file, where it cannot be answered."""
        try:
            self._check_room(len(self.ask(prompt, user, user_text)), sampling)
        except PrmError as error:
            raise DataError(f"{place}: {error}") from None

    @torch.no_grad()
    def logps(self, prompt: Prompt, texts: Sequence[str], user: str | None = None, user_text: str = "") -> Tensor:
        """log P(text, end | prompt, person) of each, nats, float32 [n], at temperature 1.

        Raises `DataError` where one does not fit.
        """
        row, own_text, asked = self.users.row(user), user_text if self._reads_user_text else "", parse_prompt(prompt)
        read = [completion(self.encoder.encode(asked, text, row, own_text)) for text in require_list("texts", texts)]
        with progress(total=len(read), desc="reading answers", unit="answer") as bar:
            return read_logps(self.policy, read, _MAX_TOKENS, bar).cpu()

    @torch.no_grad()
    def draw(
        self, asked: Sequence[list[int]], n: int, sampling: Sampling, states: ResponseStates | None = None
    ) -> list[list[int]]:
        """n answers to each sequence of ids, those of one sequence together; the end token is part of an answer.

        The sequences may carry users; equal ones count as one that is asked for more answers. Answer k to a sequence
        has random numbers of its own: it depends neither on n nor on what else is drawn, but for rounding. Nothing is
        dropped. Raises as `sample` does.

        Args:
            states: takes the answers' hidden states; for one sequence.
        """
        if n < 1:
            raise PrmError(f"the number of answers must be at least 1, got {n}")
        wanted = Counter(map(tuple, asked))
        self._check_room(max(map(len, wanted)), sampling)
        streams = [(prompt, k) for prompt, times in wanted.items() for k in range(n * times)]
        uniforms = torch.tensor(np.stack([self._uniforms(*stream, sampling) for stream in streams]))
        said = [[token for token in prompt if token < self.policy.vocab_size] for prompt, _ in streams]
        owners = torch.tensor([i for i, times in enumerate(wanted.values()) for _ in range(n * times)])
        bar = progress(total=sampling.max_new_tokens, desc=f"sampling {len(streams)} answers", unit="token")
        room = sampling.max_new_tokens + (states.extra if states is not None else 0)
        depths = states.depths if states is not None else ()
        with bar, switched(self.model, evaluating=True, depths=depths) as inner:
            if states is not None:
                states.inner = inner
            reader = Reader(self.model, list(wanted), owners, room, self._shares)
            answers = decode(reader, uniforms.to(self.device), sampling, self.end_ids, said, bar.update, states)
        rest = iter(answers)
        drawn = {prompt: iter(list(islice(rest, n * times))) for prompt, times in wanted.items()}
        return [next(drawn[tuple(ids)]) for ids in asked for _ in range(n)]

    def _check_room(self, asked: int, sampling: Sampling) -> None:
        if asked + sampling.max_new_tokens > self.window:
            raise PrmError(
                f"a prompt of {asked} tokens and an answer of {sampling.max_new_tokens} do not fit the model's window "
                f"of {self.window}"
            )

    def _uniforms(self, prompt: tuple[int, ...], k: int, sampling: Sampling) -> NDArray[np.float64]:
        """The random numbers of answer k to a prompt."""
        return np.random.default_rng([sampling.seed, k, *prompt]).random(sampling.max_new_tokens)

    def texts(self, answers: list[list[int]]) -> list[str]:
        """Answers as text, without their end and white space around them."""
        own = [ids[:-1] if ids and ids[-1] in self.end_ids else ids for ids in answers]
        return [str(text).strip() for text in self.tokenizer.batch_decode(own, skip_special_tokens=True)]

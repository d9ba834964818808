"""Sampling N answers to a prompt: the one sampler of the project."""

from typing import Any, cast

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from prm.backbones import choose_device, load_causal_lm, load_tokenizer
from prm.comparison import Prompt, as_messages
from prm.errors import PrmError
from prm.progress import progress
from prm.tokens import TextEncoder
from rerank.sampling import Sampling


class Sampler:
    """A causal language model that answers prompts N times. The prompt is read once for all N.

    Args:
        name: `smollm2-135m`, a local folder, or a hub id.
        dtype: float32 decodes as fast as bfloat16 on a CPU, and exactly.
    """

    def __init__(self, name: str, device: torch.device | None = None, dtype: torch.dtype = torch.float32):
        self.device = device or choose_device()
        self.tokenizer = load_tokenizer(name)
        self.model = cast(Any, load_causal_lm(name, dtype)).to(self.device)
        window = self.model.config.get_text_config().max_position_embeddings
        vocab_size = self.model.get_input_embeddings().num_embeddings
        self._encoder = TextEncoder(self.tokenizer, vocab_size, user_tokens=0, place="front", max_length=window)

    @torch.no_grad()
    def sample(self, prompt: Prompt, n: int, sampling: Sampling) -> list[str]:
        """n answers, in the order drawn; an answer may be empty, and answers may repeat.

        Raises `PrmError` where the settings make no sense or the prompt leaves no room for an answer.
        """
        sampling.check()
        if n < 1:
            raise PrmError(f"the number of answers must be at least 1, got {n}")
        ids = torch.tensor([self._encoder.template_ids(as_messages(prompt))], device=self.device)
        if ids.shape[1] + sampling.max_new_tokens > self._encoder.max_length:
            raise PrmError(
                f"a prompt of {ids.shape[1]} tokens and an answer of {sampling.max_new_tokens} do not fit the "
                f"model's window of {self._encoder.max_length}"
            )
        cache = DynamicCache(config=self.model.config)
        if ids.shape[1] > 1:
            self.model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)  # all but the last token, once
            cache.batch_repeat_interleave(n)
        end = self._encoder.end_ids[:1] or [self.tokenizer.eos_token_id]
        config = GenerationConfig(
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
            eos_token_id=sorted({*end, self.tokenizer.eos_token_id} - {None}),
            pad_token_id=self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else end[0],
        )
        bar = progress(total=sampling.max_new_tokens, desc=f"sampling {n} answers", unit="token")
        with torch.random.fork_rng(devices=[]), bar:
            torch.manual_seed(sampling.seed)
            out = self.model.generate(
                ids.expand(n, -1),
                attention_mask=torch.ones_like(ids).expand(n, -1),
                generation_config=config,
                past_key_values=cache,
                stopping_criteria=StoppingCriteriaList([_Progress(bar)]),
            )
        return [str(t).strip() for t in self.tokenizer.batch_decode(out[:, ids.shape[1] :], skip_special_tokens=True)]


class _Progress(StoppingCriteria):
    """Stops nothing; moves the bar by a token per step."""

    def __init__(self, bar: Any):
        self.bar = bar

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        self.bar.update()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

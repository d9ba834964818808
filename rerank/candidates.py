"""Sampling answers to prompts: the one sampler of the project."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
)

from prm import checkpoint as checkpoints
from prm.backbones import choose_device
from prm.causal import Policy
from prm.checkpoint import Checkpoint
from prm.comparison import Prompt
from prm.errors import PrmError
from prm.progress import progress
from rerank.sampling import Sampling


class Sampler:
    """A policy, or any causal language model, that answers prompts.

    A prompt that is answered n times is read once. An unknown user, or `None`, gets the generic user's answers; a
    model that knows nobody answers everyone alike.

    Args:
        policy: `Sampler.from_pretrained` makes it of a run folder or a language model's name.
    """

    def __init__(self, policy: Checkpoint[Policy]):
        self.policy, self.users, self.tokenizer = policy.model.eval(), policy.users, policy.tokenizer
        self.model, self.device = cast(Any, self.policy.backbone), self.policy.device
        self.encoder = policy.encoder()
        # other models have never read what people say of themselves before a conversation
        self._told = policy.settings["objective"].get("method") not in (None, "sft")
        self.window = self.model.config.get_text_config().max_position_embeddings
        self.end_ids = sorted({*self.encoder.end_ids[:1], self.tokenizer.eos_token_id} - {None})

    @classmethod
    def from_pretrained(
        cls, name: str, device: torch.device | None = None, dtype: torch.dtype = torch.float32
    ) -> "Sampler":
        """Load a policy's run folder, or a language model: `smollm2-135m`, a local folder, or a hub id.

        Args:
            dtype: float32 decodes as fast as bfloat16 on a CPU, and exactly.

        Raises `PrmError` for a reward model, and for what cannot be loaded.
        """
        return cls(checkpoints.load_policy(name, device or choose_device(), dtype))

    def sample(
        self, prompt: Prompt, n: int, sampling: Sampling, user: str | None = None, user_text: str = ""
    ) -> list[str]:
        """n answers for one person, in the order drawn; an answer may be empty, and answers may repeat.

        Raises `PrmError` where the settings make no sense or the prompt leaves no room for an answer.
        """
        if n < 1:
            raise PrmError(f"the number of answers must be at least 1, got {n}")
        return self.texts(self.draw([self.ask(prompt, user, user_text)], n, sampling))

    def sample_batch(
        self,
        prompts: Sequence[Prompt],
        users: Sequence[str | None],
        sampling: Sampling,
        user_texts: Sequence[str] | None = None,
    ) -> list[str]:
        """One answer to each prompt for its person, all drawn together. Raises as `sample` does."""
        texts = user_texts if user_texts is not None else [""] * len(prompts)
        if not len(prompts) == len(users) == len(texts):
            lengths = f"{len(prompts)}, {len(users)}, {len(texts)}"
            raise PrmError(f"prompts, users and user_texts differ in length: {lengths}")
        asked = [self.ask(*row) for row in zip(prompts, users, texts, strict=True)]
        return self.texts(self.draw(asked, 1, sampling)) if asked else []

    def ask(self, prompt: Prompt, user: str | None = None, user_text: str = "") -> list[int]:
        """Ids of a prompt as its person asks it, up to where the answer begins."""
        return self.encoder.encode_question(prompt, self.users.row(user), user_text if self._told else "")

    @torch.no_grad()
    def draw(self, asked: Sequence[list[int]], n: int, sampling: Sampling) -> list[list[int]]:
        """n answers to each sequence of ids, those of one sequence together; the end token is part of an answer.

        The sequences may carry users. The policy is put into evaluation mode. Raises as `sample` does.
        """
        sampling.check()
        self.policy.eval()
        longest = max(map(len, asked))
        if longest + sampling.max_new_tokens > self.window:
            raise PrmError(
                f"a prompt of {longest} tokens and an answer of {sampling.max_new_tokens} do not fit the "
                f"model's window of {self.window}"
            )
        ids, mask = self._left_padded(asked)
        cache = DynamicCache(config=self.model.config)
        if longest > 1:  # all but the last token, once
            positions = (mask[:, :-1].long().cumsum(-1) - 1).clamp_min(0)
            self.model(
                input_ids=ids[:, :-1],
                attention_mask=mask[:, :-1],
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache.batch_repeat_interleave(n)
        ids, mask = ids.repeat_interleave(n, 0), mask.repeat_interleave(n, 0)
        bar = progress(total=sampling.max_new_tokens, desc=f"sampling {len(ids)} answers", unit="token", leave=False)
        with torch.random.fork_rng(devices=[]), bar:
            torch.manual_seed(sampling.seed)
            out = self.model.generate(
                ids,
                attention_mask=mask,
                generation_config=self._generation(sampling),
                past_key_values=cache,
                logits_processor=penalties(sampling, mask, self.policy.vocab_size),
                stopping_criteria=StoppingCriteriaList([_Progress(bar)]),
            )
        return [self._answer(row) for row in out[:, ids.shape[1] :].tolist()]

    def _generation(self, sampling: Sampling) -> GenerationConfig:
        pad = self.tokenizer.pad_token_id
        return GenerationConfig(
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=0,
            max_new_tokens=sampling.max_new_tokens,
            min_new_tokens=sampling.min_new_tokens or None,
            eos_token_id=self.end_ids,
            pad_token_id=pad if pad is not None else self.end_ids[0],
        )

    def _left_padded(self, asked: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """(ids, mask) [b, longest]: a cache goes on at the right end, so that padding stands on the left."""
        width = max(map(len, asked))
        ids, mask = torch.zeros(len(asked), width, dtype=torch.long), torch.zeros(len(asked), width, dtype=torch.long)
        for i, sequence in enumerate(asked):
            ids[i, width - len(sequence) :] = torch.tensor(sequence)
            mask[i, width - len(sequence) :] = 1
        return ids.to(self.device), mask.to(self.device)

    def _answer(self, ids: list[int]) -> list[int]:
        """Up to its end token; what stands behind is padding."""
        ends = [i for i, token in enumerate(ids) if token in self.end_ids]
        return ids[: ends[0] + 1] if ends else ids

    def texts(self, answers: list[list[int]]) -> list[str]:
        """Answers as `draw` gives them, as text without control tokens, stripped."""
        return [str(text).strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]


def penalties(sampling: Sampling, mask: Tensor, vocab_size: int) -> LogitsProcessorList:
    """What keeps answers from repeating themselves, as transformers has it, on words alone."""
    found: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1.0:
        found.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram:
        found.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram))
    return LogitsProcessorList([WordsOnly(processor, mask, vocab_size) for processor in found])


class WordsOnly(LogitsProcessor):
    """Shows a processor each row's own words: a user id has no score to change, and padding was not said.

    Args:
        mask: of the prompts, [b, l], 0 on padding.
        vocab_size: V; ids from there on are users.
    """

    def __init__(self, processor: LogitsProcessor, mask: Tensor, vocab_size: int):
        self.processor, self.mask, self.vocab_size = processor, mask.bool(), vocab_size

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        words = input_ids < self.vocab_size
        words[:, : self.mask.shape[1]] &= self.mask
        rows = [self.processor(i[w][None], s[None]) for i, w, s in zip(input_ids, words, scores, strict=True)]
        return torch.cat(rows)


class _Progress(StoppingCriteria):
    """Stops nothing; moves the bar by a token per step."""

    def __init__(self, bar: Any):
        self.bar = bar

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: object) -> torch.Tensor:
        self.bar.update()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

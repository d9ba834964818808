"""Batched decoding: prompts are prefilled once, finished responses leave the batch."""

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.cache_utils import DynamicLayer

from prm.models.backbone_state import switched
from rerank.sampling.config import Sampling
from rerank.sampling.hidden_states import ResponseStates
from rerank.sampling.shared_prefix_cache import ATTENTION, SharedPrompts

_TOP = 256  # tokens that usually hold `top_p`; sorting the whole vocabulary takes half as long as a decoding step


class Reader:
    """A language model with cached prompts that reads one token of each response at a time.

    `logits` [b, V] predict the next token.

    Args:
        model: the language model.
        prompts: ids of each prompt; ids past the vocabulary are users.
        owners: the index of each response's prompt, int64 [b], ascending.
        room: maximum number of tokens read of a response.
        shared: keep one copy of a prompt for all its responses (see `rerank.sampling.cache_check`), not one each.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], owners: Tensor, room: int, shared: bool):
        self.model, self._shared = model, shared
        base_model = model.get_base_model() if isinstance(model, PeftModel) else model
        recurrent = "cache_params" in inspect.signature(base_model.forward).parameters
        self._cache_name = "cache_params" if recurrent else "past_key_values"
        ids, mask = (x.to(model.device) for x in left_padded(prompts))
        owners = owners.to(model.device)
        cache = DynamicCache(config=model.config)
        positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
        self.logits = self._run(ids, positions, cache, attention_mask=mask.long())[owners]
        self._next = mask.sum(-1)[owners]
        if self._shared:
            self._cache: Any = SharedPrompts(cache, mask, owners, room)
        else:
            cache.reorder_cache(owners)  # type: ignore[arg-type]  # the only method that reorders recurrent states too
            self._cache, self._mask = cache, mask[owners]
            # recurrent states already ignore the prompts' padding, and take a mask as one of the new token only
            self._has_attention = any(isinstance(layer, DynamicLayer) for layer in cache.layers)

    def read(self, tokens: Tensor) -> None:
        """Read one token of each response, [b]."""
        positions = self._next[:, None]
        if self._shared:
            with switched(self.model, attention=ATTENTION):
                self.logits = self._run(tokens[:, None], positions, self._cache, prompts=self._cache)
        else:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
            attention_mask = self._mask.long() if self._has_attention else None
            self.logits = self._run(tokens[:, None], positions, self._cache, attention_mask=attention_mask)
        self._next = self._next + 1

    def keep(self, rows: Tensor) -> None:
        """Drop all other responses."""
        self._next, self.logits = self._next[rows], self.logits[rows]
        if self._shared:
            self._cache.keep(rows)
        else:
            self._cache.reorder_cache(rows)
            self._mask = self._mask[rows]

    def _run(self, ids: Tensor, positions: Tensor, cache: Any, **kwargs: Any) -> Tensor:
        # an index, not a count: the output head is slow on a slice's view
        last = torch.tensor([ids.shape[1] - 1], device=ids.device)
        kwargs[self._cache_name] = cache
        out = self.model(input_ids=ids, position_ids=positions, use_cache=True, logits_to_keep=last, **kwargs)
        return out.logits[:, -1].float()


def decode(
    reader: Reader,
    uniforms: Tensor,
    sampling: Sampling,
    ends: Sequence[int],
    prompt_tokens: Sequence[Sequence[int]],
    step: Callable[[], object],
    states: ResponseStates | None = None,
) -> list[list[int]]:
    """Decode a response for each row of `uniforms`, float64 [b, max_new_tokens], including its end token if any.

    A finished response leaves the batch at once, or with `states` when all of it has been read.

    Args:
        ends: tokens that end a response.
        prompt_tokens: token ids of each response's prompt, for the penalties.
        step: called after each token.
        states: collects the hidden states of the responses.
    """
    responses: list[list[int]] = [[] for _ in uniforms]
    rows, unread = list(range(len(responses))), dict[int, list[int]]()
    for t in itertools.count():
        scores = reader.logits
        if sampling.penalises:
            scores = penalised(scores, sampling, [[*prompt_tokens[row], *responses[row]] for row in rows])
        if t < sampling.min_new_tokens and ends:
            scores = scores.index_fill(1, torch.tensor(ends, device=scores.device), -torch.inf)
        drawn = choose(scores, uniforms[rows, min(t, sampling.max_new_tokens - 1)], sampling)
        for row, token in zip(rows, drawn.tolist(), strict=True):
            if row not in unread:
                responses[row].append(token)
                if token in ends or len(responses[row]) == sampling.max_new_tokens:
                    unread[row] = states.rest(responses[row]) if states is not None else []
        remaining = [i for i, row in enumerate(rows) if row not in unread or unread[row]]
        if not remaining:
            return responses
        if len(remaining) < len(rows):
            reader.keep(torch.tensor(remaining, device=drawn.device))
            rows = [rows[i] for i in remaining]
        tokens = [unread[row].pop(0) if row in unread else responses[row][-1] for row in rows]
        reader.read(torch.tensor(tokens, device=drawn.device))
        if states is not None:
            states.add(rows, responses)
        step()
    raise AssertionError("unreachable")


def choose(scores: Tensor, u: Tensor, sampling: Sampling) -> Tensor:
    """Draw tokens [b] from logits [b, V] by inverting the cumulative distribution at u in [0, 1).

    The distribution covers the tokens that `top_p` keeps, most likely first; if it keeps all, in order of their ids.
    Equal logits and equal u give equal tokens, whatever else is in the batch.
    """
    p = (scores / sampling.temperature).softmax(-1)
    if sampling.top_p == 1.0:
        mass = p.double().cumsum(-1)
        return torch.searchsorted(mass, (u * mass[:, -1])[:, None], right=True)[:, 0].clamp_max(p.shape[1] - 1)
    values, tokens = p.topk(min(_TOP, p.shape[1]))
    if bool((values.double().sum(-1) < sampling.top_p).any()):
        values, tokens = p.sort(-1, descending=True)
    mass = values.double().cumsum(-1)
    before = mass - values
    kept = mass.where(before < sampling.top_p, 0.0).amax(-1)  # the token that reaches top_p is kept, as usual
    index = torch.searchsorted(mass, (u * kept)[:, None], right=True)
    return tokens.gather(1, index.clamp_max(tokens.shape[1] - 1))[:, 0]


def penalised(scores: Tensor, sampling: Sampling, earlier: Sequence[list[int]]) -> Tensor:
    """Penalise repetitions in logits [b, V] with transformers' processors.

    Args:
        earlier: each row's earlier tokens, without user ids (they have no logit) and padding.
    """
    processors: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram:
        processors.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram))
    rows = []
    for previous, row in zip(earlier, scores.split(1), strict=True):
        for processor in processors:
            row = processor(torch.tensor([previous], device=scores.device), row)
        rows.append(row)
    return torch.cat(rows)


def left_padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, mask) [b, longest], int64 and bool, padded on the left because a cache grows on the right."""
    width = max(map(len, sequences))
    ids, mask = (
        torch.zeros(len(sequences), width, dtype=torch.long),
        torch.zeros(len(sequences), width, dtype=torch.bool),
    )
    for i, sequence in enumerate(sequences):
        ids[i, width - len(sequence) :] = torch.tensor(sequence)
        mask[i, width - len(sequence) :] = True
    return ids, mask

"""Token by token: prompts are read once, answers that are finished leave."""

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

_WIDTH = 256  # likeliest tokens that mostly hold the probability asked for; to sort all of them costs half a step


class Reader:
    """A language model that has read prompts and now reads an answer to each of `owners`, a token at a time.

    `logits` [b, V] are those of the next token.

    Args:
        model: the language model.
        prompts: ids of each, some perhaps past the vocabulary.
        owners: the prompt of each answer, int64 [b], ascending.
        room: most tokens of an answer that are read.
        shared: keep one copy of a prompt for all its answers (`rerank.sampling.cache_trial`), not one for each.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], owners: Tensor, room: int, shared: bool):
        self.model, self._shared = model, shared
        plain = model.get_base_model() if isinstance(model, PeftModel) else model
        recurrent = "cache_params" in inspect.signature(plain.forward).parameters
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
            cache.reorder_cache(owners)  # type: ignore[arg-type]  # unlike other ways, it takes recurrent states along
            self._cache, self._mask = cache, mask[owners]
            # padding of prompts has left no trace in recurrent states, which take a mask for the new token's alone
            self._attends = any(isinstance(layer, DynamicLayer) for layer in cache.layers)

    def read(self, tokens: Tensor) -> None:
        """One token [b] of each answer."""
        positions = self._next[:, None]
        if self._shared:
            with switched(self.model, attention=ATTENTION):
                self.logits = self._run(tokens[:, None], positions, self._cache, prompts=self._cache)
        else:
            self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], dim=1)
            seen = self._mask.long() if self._attends else None
            self.logits = self._run(tokens[:, None], positions, self._cache, attention_mask=seen)
        self._next = self._next + 1

    def keep(self, rows: Tensor) -> None:
        """Let all other answers go."""
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
    said: Sequence[Sequence[int]],
    step: Callable[[], object],
    states: ResponseStates | None = None,
) -> list[list[int]]:
    """An answer for each row of `uniforms`, float64 [b, max_new_tokens], with its end token if it came to one.

    A finished answer leaves the batch: at once, or with `states` when all of it has been read.

    Args:
        ends: tokens that end an answer.
        said: words of each answer's prompt, which penalties count.
        step: called after each token.
        states: takes the hidden states of the answers.
    """
    answers: list[list[int]] = [[] for _ in uniforms]
    rows, unread = list(range(len(answers))), dict[int, list[int]]()
    for t in itertools.count():
        scores = reader.logits
        if sampling.penalises:
            scores = penalised(scores, sampling, [[*said[row], *answers[row]] for row in rows])
        if t < sampling.min_new_tokens and ends:
            scores = scores.index_fill(1, torch.tensor(ends, device=scores.device), -torch.inf)
        drawn = choose(scores, uniforms[rows, min(t, sampling.max_new_tokens - 1)], sampling)
        for row, token in zip(rows, drawn.tolist(), strict=True):
            if row not in unread:
                answers[row].append(token)
                if token in ends or len(answers[row]) == sampling.max_new_tokens:
                    unread[row] = states.rest(answers[row]) if states is not None else []
        stay = [i for i, row in enumerate(rows) if row not in unread or unread[row]]
        if not stay:
            return answers
        if len(stay) < len(rows):
            reader.keep(torch.tensor(stay, device=drawn.device))
            rows = [rows[i] for i in stay]
        tokens = [unread[row].pop(0) if row in unread else answers[row][-1] for row in rows]
        reader.read(torch.tensor(tokens, device=drawn.device))
        if states is not None:
            states.add(rows, answers)
        step()
    raise AssertionError("unreachable")


def choose(scores: Tensor, u: Tensor, sampling: Sampling) -> Tensor:
    """Tokens [b] for logits [b, V]: each the one at which the distribution function passes u in [0, 1).

    The function runs over the tokens that `top_p` keeps, likeliest first; over all of them as they are numbered where
    it keeps all. Equal logits and equal u give equal tokens, whatever else is in the batch.
    """
    p = (scores / sampling.temperature).softmax(-1)
    if sampling.top_p == 1.0:
        mass = p.double().cumsum(-1)
        return torch.searchsorted(mass, (u * mass[:, -1])[:, None], right=True)[:, 0].clamp_max(p.shape[1] - 1)
    values, tokens = p.topk(min(_WIDTH, p.shape[1]))
    if bool((values.double().sum(-1) < sampling.top_p).any()):
        values, tokens = p.sort(-1, descending=True)
    mass = values.double().cumsum(-1)
    before = mass - values
    kept = mass.where(before < sampling.top_p, 0.0).amax(-1)  # the first that reaches top_p is kept, as usual
    place = torch.searchsorted(mass, (u * kept)[:, None], right=True)
    return tokens.gather(1, place.clamp_max(tokens.shape[1] - 1))[:, 0]


def penalised(scores: Tensor, sampling: Sampling, said: Sequence[list[int]]) -> Tensor:
    """Logits [b, V] that keep answers from repeating themselves, as transformers has it.

    Args:
        said: each row's own words: a user id has no score to change, and padding was not said.
    """
    processors: list[LogitsProcessor] = []
    if sampling.repetition_penalty != 1.0:
        processors.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.no_repeat_ngram:
        processors.append(NoRepeatNGramLogitsProcessor(sampling.no_repeat_ngram))
    rows = []
    for words, row in zip(said, scores.split(1), strict=True):
        for processor in processors:
            row = processor(torch.tensor([words], device=scores.device), row)
        rows.append(row)
    return torch.cat(rows)


def left_padded(sequences: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """(ids, mask) [b, longest], int64 and bool: a cache goes on at the right end, so padding stands on the left."""
    width = max(map(len, sequences))
    ids, mask = (
        torch.zeros(len(sequences), width, dtype=torch.long),
        torch.zeros(len(sequences), width, dtype=torch.bool),
    )
    for i, sequence in enumerate(sequences):
        ids[i, width - len(sequence) :] = torch.tensor(sequence)
        mask[i, width - len(sequence) :] = True
    return ids, mask

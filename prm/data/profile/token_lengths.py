"""Lengths of prompts and responses in a backbone's tokens, and what its limit would cut."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from prm.data.comparison import Comparison, Prompt, as_messages
from prm.errors import DataError

if TYPE_CHECKING:  # it imports torch
    from prm.data.encoding import TextEncoder

_POINTS = (0, 50, 90, 99, 100)


@dataclass(frozen=True)
class Lengths:
    """Token lengths of distinct texts: number of texts, minimum, median, 90%, 99% and maximum."""

    texts: int
    minimum: int
    median: int
    p90: int
    p99: int
    maximum: int


@dataclass(frozen=True)
class TokenLengths:
    """Token lengths for a backbone.

    Args:
        max_length: maximum tokens per sequence.
        sequences: distinct sequences measured (prompt, response, user text), out of `of_sequences`.
        prompts: with the chat template and the user's text, if any.
        cut, tokens_lost: number of sequences that would lose prompt text, and tokens lost in total.
        unfit: sequences that cannot be encoded, most often because the response leaves no space for the prompt;
            training stops at such a row, or leaves it out.
        first_unfit: origin and fault of the first of them.
    """

    max_length: int
    sequences: int
    of_sequences: int
    prompts: Lengths
    answers: Lengths
    cut: int
    tokens_lost: int
    unfit: int
    first_unfit: str


def measure_tokens(
    comparisons: Sequence[Comparison], encoder: "TextEncoder", most: int = 2000, seed: int = 0
) -> TokenLengths:
    """Token lengths of at most `most` distinct (prompt, response, user text), drawn at random."""
    origins: dict[tuple[Prompt, str, str], str] = {}
    for c in comparisons:
        for response in (c.chosen, c.rejected):
            origins.setdefault((c.prompt, response, c.user_text), c.origin)
    drawn = list(origins)
    if len(drawn) > most:
        # sorted by content, so that the log's order does not matter
        ranked = sorted(drawn, key=lambda key: (isinstance(key[0], str), *key))
        picked = set(np.random.default_rng(seed).choice(len(ranked), most, replace=False).tolist())
        kept_keys = {ranked[i] for i in picked}
        drawn = [key for key in origins if key in kept_keys]
    encoder_copy = copy.copy(encoder)
    encoder_copy.cuts = replace(encoder.cuts)  # do not change the caller's counts
    prompt_lengths = {prompt: prompt_length(encoder_copy, prompt) for prompt in dict.fromkeys(key[0] for key in drawn)}
    response_lengths = text_lengths(encoder_copy, [response for _, response, _ in drawn])
    user_text_lengths = text_lengths(encoder_copy, [text + "\n\n" for _, _, text in drawn if text])
    prefix_lengths = {
        (p, text): prompt_lengths[p] + (user_text_lengths[text + "\n\n"] if text else 0)
        for p, _, text in drawn
        if prompt_lengths[p]
    }
    cut = lost = unfit = 0
    first = ""
    for key in drawn:
        prompt, response, text = key
        length = (
            prefix_lengths.get((prompt, text), 0)
            + response_lengths[response]
            + len(encoder_copy.end_ids)
            + encoder_copy.user_tokens
        )
        if prompt_lengths[prompt] and response_lengths[response] and length <= encoder_copy.max_length:
            continue
        try:
            kept_length = len(encoder_copy.encode(prompt, response, 0, text).ids)
        except DataError as error:
            unfit += 1
            first = first or ": ".join(part for part in (origins[key], str(error)) if part)
        else:
            cut += 1
            lost += length - kept_length
    lengths = (_lengths(prefix_lengths.values()), _lengths(response_lengths.values()))
    return TokenLengths(encoder_copy.max_length, len(drawn), len(origins), *lengths, cut, lost, unfit, first)


def prompt_length(encoder: "TextEncoder", prompt: Prompt) -> int:
    """Tokens of a prompt; 0 if the chat template refuses it."""
    try:
        return len(encoder.template_ids(as_messages(prompt)))
    except DataError:
        return 0


def text_lengths(encoder: "TextEncoder", texts: Sequence[str]) -> dict[str, int]:
    """Tokens of each distinct text."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    ids = encoder.tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"]
    return {text: len(text_ids) for text, text_ids in zip(distinct, ids, strict=True)}


def _lengths(values: object) -> Lengths:
    lengths = np.array(list(values) or [0], np.int64)  # type: ignore[call-overload]
    points = np.percentile(lengths, _POINTS, method="inverted_cdf")  # lengths that occur
    return Lengths(len(lengths), *(int(point) for point in points))

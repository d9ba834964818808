"""How long prompts and answers are in a backbone's tokens, and what its limit would cut."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from prm.data.comparison import Comparison, Prompt, as_messages
from prm.errors import DataError

if TYPE_CHECKING:  # it brings torch in
    from prm.data.encoding import TextEncoder

_POINTS = (0, 50, 90, 99, 100)


@dataclass(frozen=True)
class Lengths:
    """Token lengths of distinct texts: how many texts, and the shortest, the median, 90%, 99% and the longest."""

    texts: int
    minimum: int
    median: int
    p90: int
    p99: int
    maximum: int


@dataclass(frozen=True)
class TokenLengths:
    """What a backbone reads.

    Args:
        max_length: most tokens of a sequence.
        sequences: distinct prompts with an answer that were looked at, out of `of_sequences`.
        prompts: with the chat template around them; with what the person says of themselves, where they do.
        cut, tokens_lost: sequences that would lose prompt text, and how much of it in all.
        unfit: sequences that cannot be read, most often as the answer leaves no room for the prompt; training stops at
            such a row, or leaves it out.
        first_unfit: where the first of them stands, and the fault.
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
    """Token lengths of at most `most` distinct (prompt, answer, user text), drawn at random."""
    found: dict[tuple[Prompt, str, str], str] = {}
    for c in comparisons:
        for answer in (c.chosen, c.rejected):
            found.setdefault((c.prompt, answer, c.user_text), c.origin)
    drawn = list(found)
    if len(drawn) > most:
        # by what they hold, so that the log's order does not matter
        ranked = sorted(drawn, key=lambda key: (isinstance(key[0], str), *key))
        picked = set(np.random.default_rng(seed).choice(len(ranked), most, replace=False).tolist())
        chosen = {ranked[i] for i in picked}
        drawn = [key for key in found if key in chosen]
    own = copy.copy(encoder)
    own.cuts = replace(encoder.cuts)  # the caller's count is not ours to change
    asked = {prompt: _prompt_length(own, prompt) for prompt in dict.fromkeys(key[0] for key in drawn)}
    said = _text_lengths(own, [answer for _, answer, _ in drawn])
    about = _text_lengths(own, [text + "\n\n" for _, _, text in drawn if text])
    before = {(p, text): asked[p] + (about[text + "\n\n"] if text else 0) for p, _, text in drawn if asked[p]}
    cut = lost = unfit = 0
    first = ""
    for key in drawn:
        prompt, answer, text = key
        whole = before.get((prompt, text), 0) + said[answer] + len(own.end_ids) + own.user_tokens
        if asked[prompt] and said[answer] and whole <= own.max_length:
            continue
        try:
            left = len(own.encode(prompt, answer, 0, text).ids)
        except DataError as error:
            unfit += 1
            first = first or ": ".join(part for part in (found[key], str(error)) if part)
        else:
            cut += 1
            lost += whole - left
    lengths = (_lengths(before.values()), _lengths(said.values()))
    return TokenLengths(own.max_length, len(drawn), len(found), *lengths, cut, lost, unfit, first)


def _prompt_length(encoder: "TextEncoder", prompt: Prompt) -> int:
    """0 for one that cannot be read."""
    try:
        return len(encoder.template_ids(as_messages(prompt)))
    except DataError:
        return 0


def _text_lengths(encoder: "TextEncoder", texts: Sequence[str]) -> dict[str, int]:
    """Tokens of each distinct text."""
    distinct = list(dict.fromkeys(texts))
    if not distinct:
        return {}
    ids = encoder.tokenizer(distinct, add_special_tokens=False, verbose=False)["input_ids"]
    return {text: len(found) for text, found in zip(distinct, ids, strict=True)}


def _lengths(values: object) -> Lengths:
    lengths = np.array(list(values) or [0], np.int64)  # type: ignore[call-overload]
    points = np.percentile(lengths, _POINTS, method="inverted_cdf")  # lengths that occur
    return Lengths(len(lengths), *(int(point) for point in points))

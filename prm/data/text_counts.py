"""Plain counts of a text that people are known to go by. Imports no torch."""

import re
from collections.abc import Iterable

import numpy as np

from prm.metrics import Array

COLUMNS = ("words", "word length", "sentence length", "lines", "list items", "questions", "numbers", "reading ease")
WORDS = {  # of each column: (more of it, less of it)
    "words": ("longer", "shorter"),
    "word length": ("long words", "short words"),
    "sentence length": ("long sentences", "short sentences"),
    "lines": ("more lines", "fewer lines"),
    "list items": ("a list", "no list"),
    "questions": ("questions", "no questions"),
    "numbers": ("numbers", "no numbers"),
    "reading ease": ("easy to read", "hard to read"),
}

_WORD = re.compile(r"\w+(?:['\u2019-]\w+)*")
_SENTENCE_END = re.compile(r"[.!?\u3002]+(?=\s|$)")
_ITEM = re.compile(r"^[ \t]*(?:[-*+\u2022]|\d{1,3}[.)])[ \t]+", re.MULTILINE)
_QUESTION = re.compile(r"\?+")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_SYLLABLE = re.compile(r"[aeiouy\u00e0-\u00ff]+", re.IGNORECASE)


def text_counts(texts: Iterable[str]) -> Array:
    """The columns of `COLUMNS` for each text, [n, 8].

    Words, lines, list items, questions and numbers are log(1 + count). Lengths are means: characters per word, words
    per sentence (its logarithm). Reading ease is that of Flesch (1948), with syllables counted as groups of vowels.
    """
    return np.array([_counts(text) for text in texts], np.float64).reshape(-1, len(COLUMNS))


def _counts(text: str) -> list[float]:
    words = _WORD.findall(text)
    n_words, sentences = max(1, len(words)), max(1, len(_SENTENCE_END.findall(text)))
    syllables = sum(max(1, len(_SYLLABLE.findall(word))) for word in words)
    lines = sum(1 for line in text.splitlines() if line.strip())
    counts = [len(words), lines, *(len(p.findall(text)) for p in (_ITEM, _QUESTION, _NUMBER))]
    logs = np.log1p(counts).tolist()
    ease = 206.835 - 1.015 * n_words / sentences - 84.6 * syllables / n_words
    length = sum(map(len, words)) / n_words
    return [logs[0], length, float(np.log(n_words / sentences)), *logs[1:], max(-100.0, ease)]

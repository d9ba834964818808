"""Finds formatting that predicts the label: artefacts of how the log was made.

A model learns such an artefact before it learns preferences, and then scores other responses by it. Length is reported
separately.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prm.data.comparison import Comparison
from prm.data.profile.arrays import Bools, Ints

LEAST_PAIRS, LEAST_SHARE, SURE = 20, 0.02, 0.95
_SAME_LENGTH, _CUT_FROM = (
    10,
    80,
)  # minimum number of texts of exactly the longest length, and of characters, to look cut

Rule = Callable[[str], bool]


def _finds(pattern: str, flags: int = 0) -> Rule:
    search = re.compile(pattern, flags).search
    return lambda text: search(text) is not None


_ROLES = r"(assistant|human|user|system|ai|bot|model|response|answer|output|question|prompt|instruction)"
_CONTROL = (
    r"<\|[^|<>\s]{1,40}\|>|</?s>|\[/?INST\]|<<?/?SYS>>?|<(bos|eos|pad|unk|start_of_turn|end_of_turn)>"
    r"|\[(PAD|UNK|CLS|SEP|EOS|BOS)\]|[\u0120\u2581]\w"  # the last: how tokenizers mark a space
)
_HTML = r"</?(p|br|b|i|u|em|strong|a|div|span|li|ul|ol|h[1-6]|code|pre|table|tr|td|blockquote|img)\b[^<>]*>"
_EMOJI = r"[\U0001F300-\U0001FAFF\u2600-\u27BF\U0001F1E6-\U0001F1FF]"

FORMATS: dict[str, Rule] = {
    "begins with white space": lambda text: text[0].isspace(),
    "begins with a lower-case letter": lambda text: text.lstrip()[0].islower(),
    "ends without punctuation": lambda text: text.rstrip()[-1].isalnum(),
    "ends with white space": lambda text: text[-1].isspace(),
    "has no capital letter": lambda text: text == text.lower() and text != text.upper(),
    "has fewer than three words": lambda text: len(text.split(None, 3)) < 3,
    "has a line break": lambda text: "\n" in text.strip(),
    "has a list": _finds(r"^[ \t]*([-*\u2022]|\d{1,3}[.)])[ \t]+\S", re.MULTILINE),
    "has a code fence": lambda text: "```" in text,
    "has bold markdown": _finds(r"\*\*(?=\S)[^*\n]+(?<=\S)\*\*|__(?=\S)[^_\n]+(?<=\S)__"),
    "has a markdown heading": _finds(r"^#{1,6}[ \t]+\S", re.MULTILINE),
    "is a Python list or dict": _finds(r"""\A\s*(\[\s*(['"]|\{\s*['"])|\{\s*['"]).*[\]}]\s*\Z""", re.DOTALL),
    "has quotes round the whole": _finds(
        r"""\A\s*("[^"]*"|'[^']*'|\u201c[^\u201c\u201d]*\u201d|\u00ab[^\u00ab\u00bb]*\u00bb)\s*\Z"""
    ),
    "has a role word before a colon": _finds(rf"^[ \t*#\[(<]*{_ROLES}[*\])>]*[ \t]*:", re.MULTILINE | re.IGNORECASE),
    "has control tokens": _finds(_CONTROL),
    "has HTML tags": _finds(_HTML, re.IGNORECASE),
    "has HTML entities": _finds(r"&(#\d{1,6}|#x[0-9a-fA-F]{1,5}|amp|lt|gt|quot|apos|nbsp);"),
    "has written-out escapes": _finds(r"\\[nrt]|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}"),
    "has broken characters": _finds("\ufffd|\u00c3[\u0080-\u00bf]|\u00e2\u20ac"),
    "has letters beyond ASCII": lambda text: not text.isascii() and any(c.isalpha() and c > "\x7f" for c in text),
    "has emoji": _finds(_EMOJI),
    "has a space before punctuation": _finds(r"\w [.,;!?](\s|\Z)"),
    "has two spaces in a row": _finds(r"\S[ ]{2,}\S"),
}
CUT = "has exactly the longest length"


@dataclass(frozen=True)
class Format:
    """How well one format predicts the label.

    Args:
        name: a statement about responses with this format.
        pairs: decided pairs (no ties) in which exactly one response has it.
        share_of_pairs: their share of all decided pairs checked, in [0, 1].
        chosen: share of `pairs` in [0, 1] in which the response with the format was chosen; NaN without any.
        texts: distinct responses that have it.
        flagged: true if it decides so many pairs, nearly all in one direction, that it looks like an artefact.
    """

    name: str
    pairs: int
    share_of_pairs: float
    chosen: float
    texts: int
    flagged: bool

    @property
    def words(self) -> str:
        """The finding as a sentence."""
        side = "chosen" if self.chosen >= 0.5 else "rejected"
        share = max(self.chosen, 1.0 - self.chosen)
        texts = f"{self.texts:,} distinct responses" if self.texts != 1 else "one response only"
        return (
            f"in {self.pairs:,} pairs ({100 * self.share_of_pairs:.1f}%) exactly one response {self.name}: "
            f"it is the {side} one in {100 * share:.1f}% of them ({texts})"
        )


@dataclass(frozen=True)
class Artefacts:
    """Formats, and what the flagged ones predict together.

    Args:
        pairs: decided pairs checked, out of `of_pairs` (a seeded sample of large logs).
        formats: all that distinguish the responses of some pair, flagged ones first.
        decided: share of pairs in [0, 1] in which the majority of the flagged formats predicts one response.
        decided_rightly: share of those in which it is the chosen one; NaN without any.
    """

    pairs: int
    of_pairs: int
    formats: tuple[Format, ...]
    decided: float
    decided_rightly: float

    @property
    def flagged(self) -> tuple[Format, ...]:
        """The formats that look like artefacts."""
        return tuple(f for f in self.formats if f.flagged)


def find_artefacts(texts: Sequence[str], chosen: Ints, rejected: Ints, most: int = 20_000, seed: int = 0) -> Artefacts:
    """Formats of the responses of decided pairs; `chosen` and `rejected` are positions in `texts`, [n].

    Checks at most `most` pairs, drawn at random.
    """
    of_pairs = len(chosen)
    if of_pairs > most:
        drawn = np.random.default_rng(seed).choice(of_pairs, most, replace=False)
        chosen, rejected = chosen[drawn], rejected[drawn]
    used, positions = np.unique(np.concatenate([chosen, rejected]), return_inverse=True)
    chosen, rejected = positions[: len(chosen)], positions[len(chosen) :]
    used_texts = [texts[i] for i in used]
    columns = {name: np.array([rule(text) for text in used_texts], np.bool_) for name, rule in FORMATS.items()}
    columns[CUT] = _cut(used_texts, chosen, rejected)
    formats, votes = [], np.zeros(len(chosen))
    for name, has in columns.items():
        result = _format(name, has, chosen, rejected)
        if result.pairs:
            formats.append(result)
        if result.flagged:
            votes += (has[chosen].astype(float) - has[rejected]) * (1.0 if result.chosen >= 0.5 else -1.0)
    decided = votes != 0
    return Artefacts(
        pairs=len(chosen),
        of_pairs=of_pairs,
        formats=tuple(sorted(formats, key=lambda f: (not f.flagged, -f.pairs, f.name))),
        decided=float(decided.mean()) if len(decided) else 0.0,
        decided_rightly=float((votes[decided] > 0).mean()) if decided.any() else float("nan"),
    )


def artefacts_of(comparisons: Sequence[Comparison]) -> Artefacts:
    """Formats of the responses of the decided comparisons."""
    decided = [c for c in comparisons if not c.is_tie]
    position: dict[str, int] = {}
    chosen = np.array([position.setdefault(c.chosen, len(position)) for c in decided], np.int64)
    rejected = np.array([position.setdefault(c.rejected, len(position)) for c in decided], np.int64)
    return find_artefacts(list(position), chosen, rejected)


def _format(name: str, has: Bools, chosen: Ints, rejected: Ints) -> Format:
    exactly_one = has[chosen] != has[rejected]
    n = int(exactly_one.sum())
    share_of_pairs = n / max(len(chosen), 1)
    share = float(has[chosen][exactly_one].mean()) if n else float("nan")
    sure = n > 0 and max(share, 1.0 - share) >= SURE
    flagged = n >= LEAST_PAIRS and share_of_pairs >= LEAST_SHARE and sure
    return Format(name, n, share_of_pairs, share, int(has.sum()), flagged)


def _cut(texts: Sequence[str], chosen: Ints, rejected: Ints) -> Bools:
    """Responses of exactly the maximum length (characters) of either side, if many are: they were probably cut."""
    length = np.array([len(text) for text in texts], np.int64)
    counts = Counter(length.tolist())
    longest = {int(length[side].max()) for side in (chosen, rejected) if len(side)}
    return np.isin(length, [n for n in longest if n >= _CUT_FROM and counts[n] >= _SAME_LENGTH])

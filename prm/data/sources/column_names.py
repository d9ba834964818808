"""What columns hold, by the names that logs give them."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

_USER = re.compile(
    r"(judge|annotator|user|rater|worker|labell?er|reviewer|evaluator|assessor|participant|person|voter|respondent)"
    r"(id|name|hash|uuid)?|completedby"
)
_PROMPTS = {"question", "instruction", "query", "context", "input", "history", "userprompt", "userquery", "prompttext"}
_PICKS = {
    *("winner", "winningresponse", "winningmodel", "choice", "chosen", "chosenresponse", "chosenanswer", "vote"),
    *("preferred", "preferredresponse", "preferredanswer", "preference", "overallpreference", "preferencestrength"),
    *("pick", "picked", "selected", "selection", "selectedresponse", "better", "betterresponse", "betterresponseid"),
    *("betteranswer", "best", "bestresponse", "bestanswer", "verdict", "judgement", "judgment", "decision", "label"),
    *("labels", "comparison", "pairwise", "saferresponseid"),
}
_RESPONSES = {
    *("response", "answer", "completion", "output", "reply", "generation", "candidate", "summary", "option", "text"),
    *("ref", "message"),
}
_BESIDE_CHOSEN = ({"chosen"}, *({"chosen", word} for word in ("response", "answer", "text", "completion", "output")))
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+")
_AROUND = re.compile(r"""[\s_()\[\]{}.,:;'"`*#/-]*""")
_LONGEST_ID, _MOST_WORDS_OF_ID = 100, 3
# endings that number columns
_FAMILIES: dict[str, Sequence[str]] = {
    "a": "abcdefgh",
    "1": "123456789",
    "0": "0123456789",
    "left": ("left", "right"),
    "first": ("first", "second"),
}


def words_of(name: str) -> list[str]:
    """The words of a name, in lower case: `prompt_id` or `promptId` has two."""
    return [word.lower() for word in _WORD.findall(name)]


def is_words(text: str) -> bool:
    """Whether a text is words of ASCII letters and digits, with nothing but spaces, brackets and the like around."""
    return _AROUND.fullmatch(_WORD.sub("", text)) is not None


def user_columns(rows: Iterable[Mapping[str, object]], names: Iterable[str]) -> list[str]:
    """Columns that may say who judged: called so, and with values that are no prose."""
    named = [name for name in names if _USER.fullmatch("".join(words_of(name)))]
    values = {name: [row[name] for row in rows if row.get(name) is not None] for name in named}
    return [name for name in named if values[name] and all(map(_may_be_id, values[name]))]


def _may_be_id(value: object) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_ID and len(value.split()) <= _MOST_WORDS_OF_ID
    return isinstance(value, int) and not isinstance(value, bool)


def prompt_columns(names: Iterable[str]) -> list[str]:
    """Columns that may be the prompt, if none is called so."""
    return [name for name in names if "".join(words_of(name)) in _PROMPTS]


def pick_columns(names: Iterable[str]) -> list[str]:
    """Columns that may say which response was chosen."""
    return [name for name in names if "".join(words_of(name)) in _PICKS]


def chosen_columns(names: Collection[str]) -> list[tuple[str, str]]:
    """Pairs of columns that may be chosen and rejected: `chosen_response` and `rejected_response`."""
    by_words = {" ".join(words_of(name)): name for name in names}
    found = []
    for words, name in by_words.items():
        other = by_words.get(words.replace("chosen", "rejected"))
        if set(words.split()) in _BESIDE_CHOSEN and other is not None:
            found.append((name, other))
    return found


def response_columns(names: Iterable[str]) -> list[list[str]]:
    """Groups of columns that hold the responses to one prompt: `[["answer_a", "answer_b"]]`."""
    return _numbered(names, _RESPONSES)


def model_columns(names: Iterable[str]) -> list[list[str]]:
    """Groups of columns that name the models that wrote the responses: `[["model_a", "model_b"]]`."""
    return _numbered(names, {"model"})


def _numbered(names: Iterable[str], nouns: Collection[str]) -> list[list[str]]:
    """Groups of columns that are called alike, with one of the nouns, but for how they are numbered."""
    stems: dict[str, dict[str, str]] = {}
    for name in names:
        *stem, last = words_of(name) or [""]
        if stem and stem[-1] in nouns:
            stems.setdefault(" ".join(stem), {})[last] = name
    groups = []
    for columns in stems.values():
        for endings in _FAMILIES.values():
            run = [columns[ending] for ending in endings if ending in columns]
            if len(run) == len(columns) > 1 and all(ending in columns for ending in endings[: len(run)]):
                groups.append(run)
                break
    return groups


def family(columns: Sequence[str]) -> str:
    """How the names of columns are numbered: "a", "1", "0", "left" or "first"; "" if they are not."""
    last = [(words_of(name) or [""])[-1] for name in columns]
    return next((first for first, endings in _FAMILIES.items() if last == list(endings[: len(last)])), "")

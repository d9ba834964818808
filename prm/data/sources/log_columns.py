"""Finds out which kind of feedback a log holds, and which of its columns hold which field."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

from prm.config import Cell, FeedbackConfig
from prm.data.sources.column_names import (
    chosen_columns,
    model_columns,
    pick_columns,
    prompt_columns,
    response_columns,
    user_columns,
)
from prm.data.sources.formats.judgement import Judgement
from prm.data.sources.kinds.pairs import could_begin_with_prompt
from prm.data.sources.pick_words import PickWords, common_words, words_given
from prm.errors import DataError, meant, shown

ColumnsByField = dict[str, str | list[str]]
# the fields by which a log with our own names is recognised
_OWN: dict[str, tuple[tuple[str, ...], ...]] = {
    "picks": (("responses", "chosen"),),
    "rankings": (("responses", "ranks"),),
    "ratings": (("response", "rating"), ("completion", "rating")),
    "thumbs": (("response", "label"), ("completion", "label")),
}
_STRENGTH: dict[str, Cell | list[Cell]] = {"a": [-3, -2, -1], "b": [1, 2, 3], "tie": 0}


class _Published(NamedTuple):
    """A data set whose numbers say in a way of their own which response was chosen (`values` as in the settings)."""

    title: str
    prompt: str
    responses: list[str]
    chosen: str
    values: dict[str, Cell | list[Cell]]


_PUBLISHED = (
    _Published("Stanford Human Preferences", "history", ["human_ref_A", "human_ref_B"], "labels", {"a": 1, "b": 0}),
    _Published("HelpSteer2 preferences", "prompt", ["response_1", "response_2"], "preference_strength", _STRENGTH),
    _Published("HelpSteer3 preferences", "context", ["response1", "response2"], "overall_preference", _STRENGTH),
)


class Found(NamedTuple):
    """What a log holds.

    Args:
        kind: the kind of feedback.
        columns: the columns of fields that are called otherwise in the log.
        words: what the values of `chosen` mean, for `picks` that do not have our own fields.
        remark: whose format it is, or what may be read otherwise.
    """

    kind: str
    columns: Mapping[str, str | list[str]] = MappingProxyType({})
    words: PickWords | None = None
    remark: str = ""


@dataclass(frozen=True)
class LogColumns:
    """The columns of a log's first judgements.

    Args:
        answers: columns that hold what people said, where the format tells.
        made: columns that the format made, and the file lacks.
    """

    config: FeedbackConfig
    rows: Sequence[Mapping[str, object]]
    names: list[str]
    answers: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, config: FeedbackConfig, judgements: Iterable[Judgement]) -> "LogColumns":
        """Bad judgements and those that are left out do not count."""
        good = [j for j in judgements if j.row.values is not None and not j.row.fault and not j.left_out]
        rows = [j.row.values for j in good if j.row.values is not None]
        names = list(dict.fromkeys(name for row in rows for name in row))
        answers, made = set[str]().union(*(j.answers for j in good)), set[str]().union(*(j.row.made for j in good))
        return cls(config, rows, names, answers, made)

    def has(self, name: str) -> bool:
        """Whether the log has a column for a field, under our name or one that the settings give."""
        column = self.config.columns.get(name, name)
        return any(one in self.names for one in ([column] if isinstance(column, str) else column))

    def values(self, column: str) -> list[object]:
        """The column's values, without missing ones."""
        return [row[column] for row in self.rows if row.get(column) is not None]

    def kinds(self) -> list[str]:
        """Kinds of feedback, all of whose fields the log has."""
        return [kind for kind, ways in _OWN.items() if any(all(map(self.has, fields)) for fields in ways)]

    @property
    def is_pairs(self) -> bool:
        """Whether the log has chosen and rejected."""
        return self.has("chosen") and self.has("rejected")

    @property
    def is_pick(self) -> bool:
        """Whether the log has a group of responses, and a column that says which was chosen."""
        return bool(self._groups()) and bool(self._picks())

    def found(self) -> Found:
        """The kind of feedback, and where its fields are; pairs if nothing is recognised.

        Raises `DataError` if there are two possible readings.
        """
        if self.is_pairs:
            return self._pairs()
        kinds = self.kinds()
        if len(kinds) > 1:
            raise self.ambiguous("its columns", kinds, "data.source")
        if kinds == ["picks"] and isinstance(columns := self.config.columns.get("responses"), list):
            return Found("picks", self._prompt(), self._words(columns, self._column_of("chosen")))
        if kinds:
            return Found(kinds[0], self._prompt())
        return self._published() or self._ranking() or self._longer_names() or self._pick() or Found("pairs")

    def of_kind(self, kind: str) -> Found:
        """Where the fields are of a log whose kind of feedback is known. Raises `DataError` as `found` does."""
        if kind == "pairs":
            return Found(kind) if self.is_pairs else self._longer_names() or Found(kind)
        if kind == "picks" and not (self.has("responses") and self.has("chosen")):
            return self._pick() or Found(kind)
        return Found(kind, self._prompt())

    def user(self) -> str | None:
        """The column that says who judged, if it is called otherwise than `user_id`. Raises `DataError` for two."""
        if self.has("user_id") or "user_id" in self.config.columns or self.config.anonymous:
            return None
        return self._one("the user who judged", user_columns(self.rows, self.names), "data.columns.user_id")

    def ambiguous(self, what: str, readings: Iterable[object], key: str) -> DataError:
        """The error for two readings, with the setting that chooses."""
        named = " or ".join(map(shown, readings))
        return DataError(f"{self.config.path}: {what} may be {named}: say which with '{key}'")

    def _one(self, what: str, columns: Sequence[str], key: str) -> str | None:
        if len(columns) > 1:
            raise self.ambiguous(what, columns, key)
        return columns[0] if columns else None

    def _column_of(self, name: str) -> str:
        column = self.config.columns.get(name, name)
        return column if isinstance(column, str) else column[0]

    def _prompt(self) -> ColumnsByField:
        """The prompt's column, if it is called otherwise."""
        columns = [name for name in self._prompts() if name not in self.answers]
        if len(columns) > 1:
            raise self.ambiguous("the prompt", [*columns, columns], "data.columns.prompt")
        return {"prompt": columns[0]} if columns else {}

    def _prompts(self) -> list[str]:
        known = self.has("prompt") or "prompt" in self.config.columns
        return [] if known else prompt_columns(self.names)

    def _pairs(self) -> Found:
        """Chosen and rejected; without a prompt, both may begin with it."""
        chosen, rejected = self._column_of("chosen"), self._column_of("rejected")
        pairs = [(row[chosen], row[rejected]) for row in self.rows if row.get(chosen) and row.get(rejected)]
        if self.has("prompt") or not pairs:
            return Found("pairs")
        if "conversations" in self.names and all(isinstance(side, dict) for pair in pairs for side in pair):
            return Found("pairs", {"prompt": "conversations"}, remark="ShareGPT")
        alike = [could_begin_with_prompt(*pair) for pair in pairs] if self._prompts() else []
        if not any(alike):
            return Found("pairs", self._prompt())
        if not all(isinstance(side, str) for pair in pairs for side in pair):
            return Found("pairs")  # conversations hold their prompt
        named, beginning = " or ".join(map(repr, self._prompts())), f"what {chosen!r} and {rejected!r} begin with"
        if all(alike):
            return Found("pairs", remark=f"the prompt is {beginning}; if it is {named}, say so: 'data.columns.prompt'")
        raise DataError(
            f"{self.config.path}: the prompt may be {named}, or {beginning}: name it with 'data.columns.prompt', or "
            "set 'data.source: pairs' for the latter"
        )

    def _published(self) -> Found | None:
        for one in _PUBLISHED:
            if {one.prompt, *one.responses, one.chosen} <= set(self.names):
                words = words_given(replace(self.config, source="picks", values=one.values))
                prompt: ColumnsByField = {} if one.prompt == "prompt" else {"prompt": one.prompt}
                return Found("picks", prompt | {"responses": one.responses, "chosen": one.chosen}, words, one.title)
        return None

    def _ranking(self) -> Found | None:
        """Responses in a list, and their ranks in a column of people's answers."""
        if not self.answers or not self.has("responses"):
            return None
        named = self.config.columns.get("ranks")
        ranks = [named] if isinstance(named, str) else [name for name in self.names if self._is_ranks(name)]
        column = self._one("the ranking", ranks, "data.columns.ranks")
        return Found("rankings", self._prompt() | {"ranks": column}) if column else None

    def _is_ranks(self, name: str) -> bool:
        values = self.values(name)
        return name in self.answers and bool(values) and all(isinstance(value, list) for value in values)

    def _longer_names(self) -> Found | None:
        """Chosen and rejected under longer names, such as `chosen_response`."""
        if {"chosen", "rejected"} & self.config.columns.keys():
            return None
        pairs = chosen_columns(self.names)
        if len(pairs) > 1:
            raise self.ambiguous("chosen and rejected", pairs, "data.columns.chosen' and 'data.columns.rejected")
        return Found("pairs", self._prompt() | dict(zip(("chosen", "rejected"), pairs[0]))) if pairs else None

    def _groups(self) -> list[list[str]]:
        columns = self.config.columns.get("responses")
        if columns is not None:
            return [columns] if isinstance(columns, list) else []
        return response_columns(name for name in self.names if name not in self.answers)

    def _picks(self) -> list[str]:
        if "chosen" in self.config.columns:
            return [self._column_of("chosen")] if self.has("chosen") else []
        among = [name for name in self.names if name in self.answers] or pick_columns(self.names)
        return [name for name in among if any(isinstance(value, str | int | float) for value in self.values(name))]

    def _pick(self) -> Found | None:
        groups, picks = self._groups(), self._picks()
        if not groups:
            return None
        if not picks:
            raise self._no_pick(groups[0])
        if len(groups) > 1:
            raise self.ambiguous("the responses", groups, "data.columns.responses")
        if self.answers and len(picks) > 1:  # people also answer other questions
            picks = [name for name in picks if self._is_read(groups[0], name)] or picks
        column = self._one("which response was chosen", picks, "data.columns.chosen")
        assert column is not None
        columns: ColumnsByField = {"responses": groups[0], "chosen": column}
        return Found("picks", self._prompt() | columns, self._words(groups[0], column))

    def _no_pick(self, responses: list[str]) -> DataError:
        """The error for responses without a choice; columns that the format made are not listed."""
        columns = [name for name in self.names if name not in self.made]
        what = "two responses" if self.made & {*responses} else f"responses in {shown(responses)}"
        named = self.config.columns.get("chosen")
        return DataError(
            f"{self.config.path}: has {what}, but no column that says which was chosen, such as 'winner': name it with "
            f"'data.columns.chosen'; the columns are {', '.join(map(shown, columns[:20]))}"
            + (meant(named, columns) if isinstance(named, str) else "")
        )

    def _words(self, responses: list[str], column: str) -> PickWords:
        """Common words, and the names of the models that wrote the responses, where the log has both."""
        models = next((group for group in model_columns(self.names) if len(group) == len(responses)), [])
        return common_words(responses, self.values(column), models)

    def _is_read(self, responses: list[str], column: str) -> bool:
        words = self._words(responses, column)
        return any(words.knows(value) for value in self.values(column))

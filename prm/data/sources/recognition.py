"""Recognises the format of a log by its columns, and says how it is read."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import cast, get_args

from prm.config import FeedbackConfig, Kind
from prm.data.sources.formats import FORMATS, WITH_PLAIN_ROWS
from prm.data.sources.formats.judgement import Judgement
from prm.data.sources.log_columns import ColumnsByField, Found, LogColumns
from prm.data.sources.pick_words import PickWords, words_given
from prm.errors import DataError, shown
from prm.io.csv_rows import DELIMITERS, delimiter_of
from prm.io.lines import unpacked_suffix
from prm.io.rows import Row

_LOOKED_AT = 1000  # rows by which a log is recognised
_SHOWN_VALUES = 6


@dataclass(frozen=True)
class Reading:
    """How a log is read.

    Args:
        config: its settings, with a kind of feedback as `source`, and the columns that were recognised.
        judgements: its rows, one judgement each.
        words: what the values of `chosen` mean, if not what `picks` documents.
        reads: columns that the format reads.
        read_as: all this in words; "" for pairs with our own names, and where the settings name the kind.
    """

    config: FeedbackConfig
    judgements: Iterator[Judgement]
    words: PickWords | None = None
    reads: Set[str] = frozenset()
    read_as: str = ""


def recognise(config: FeedbackConfig, rows: Iterable[Row]) -> Reading:
    """How the rows of a log are read.

    A log of pairs with our own names is what it is, whatever else it holds. Raises `DataError` if there are two other
    readings, naming both and the setting that chooses.
    """
    rows = iter(rows)
    first = list(islice(rows, _LOOKED_AT))
    if config.source in get_args(Kind):
        return _of_a_kind(config, first, rows)
    name = _format_of(config, first)
    unfold = _unfold(name)
    looked_at = [judgement for row in first for judgement in unfold(row)]
    log = LogColumns.of(config, looked_at)
    found = log.found()
    if config.values and found.kind != "picks":
        raise DataError(f"{config.path}: is read as '{found.kind}', but 'data.values' is for picks")
    for key in ("min_rating_difference", "standardise"):
        if getattr(config, key) and found.kind != "ratings":
            raise DataError(f"{config.path}: is read as '{found.kind}', but 'data.{key}' is for ratings")
    columns = {**found.columns, **_common_columns(log, name)}
    words = words_given(config) or found.words
    judgements = chain(looked_at, (judgement for row in rows for judgement in unfold(row)))
    resolved = replace(config, source=cast(Kind, found.kind), columns=columns | config.columns, values={})
    reads = FORMATS[name].READS if name else set()
    return Reading(resolved, judgements, words, reads, _in_words(log, name, found, columns, words))


def _of_a_kind(config: FeedbackConfig, first: Sequence[Row], rows: Iterator[Row]) -> Reading:
    """How the rows are read if the settings name the kind: columns are known by the same names as without it."""
    log = LogColumns.of(config, map(Judgement, first))
    found = log.of_kind(config.source)
    columns = {**found.columns, **_common_columns(log, "")}
    words = words_given(config) or found.words
    read_as = _in_words(log, "", found, columns, words) if columns else ""
    resolved = replace(config, columns=columns | config.columns)
    return Reading(resolved, map(Judgement, chain(first, rows)), words, read_as=read_as)


def _common_columns(log: LogColumns, name: str) -> ColumnsByField:
    """The columns of the person, and of other fields that a format has."""
    columns: ColumnsByField = {}
    for field, candidates in (FORMATS[name].COLUMNS if name else {}).items():
        present = [column for column in candidates if column in log.names]
        if present and not log.has(field):
            columns[field] = present[0]
    user = log.user()
    return columns | ({"user_id": user} if user else {})


def _format_of(config: FeedbackConfig, rows: Sequence[Row]) -> str:
    """The format that the settings name or that the columns show; "" if each row is a judgement as it stands."""
    if config.source != "auto":
        return config.source
    log = LogColumns.of(config, map(Judgement, rows))
    if log.is_pairs:
        return ""
    formats = [name for name, one in FORMATS.items() if one.is_like(log.names)]
    plain = log.kinds() or (["picks"] if log.is_pick else [])
    if len(formats) > 1 or (plain and set(formats) - {*WITH_PLAIN_ROWS}):
        raise log.ambiguous("its columns", [*formats, *plain], "data.source")
    return formats[0] if formats else ""


def _unfold(name: str) -> Callable[[Row], list[Judgement]]:
    """A row as judgements; a row that the format cannot read is one with a fault."""

    def judgements_of(row: Row) -> list[Judgement]:
        if row.values is None or not name:
            return [Judgement(row)]
        try:
            return list(FORMATS[name].unfold(row))
        except DataError as error:
            return [Judgement(replace(row, fault=str(error)))]

    return judgements_of


def _in_words(log: LogColumns, name: str, found: Found, columns: ColumnsByField, words: PickWords | None) -> str:
    separated = _separated(Path(log.config.path).expanduser())
    if found.kind == "pairs" and not (name or columns or separated or found.remark):
        return ""
    given = columns | log.config.columns
    title = FORMATS[name].TITLE if name else found.remark if columns else ""
    parts = [f"read as '{name or found.kind}'" + (f", {title}" if title else "")]
    parts += [FORMATS[name].SAYS] if name and log.rows else []
    for field, column in given.items():
        part = f"{field} from {column if isinstance(column, str) else ' and '.join(column)}"
        says = field == "chosen" and found.kind == "picks" and words is not None
        parts.append(part + (f" ({_meanings(log, given, cast(PickWords, words))})" if says else ""))
    parts += [found.remark] if found.remark and not columns else []
    return "; ".join([*parts, *separated])


def _separated(path: Path) -> list[str]:
    """What separates the columns of a CSV, if not what its ending says."""
    if not path.is_file() or (usual := DELIMITERS.get(unpacked_suffix(path))) is None:
        return []
    delimiter, _ = delimiter_of(path)
    return [f"columns are separated by {delimiter!r}"] if delimiter != usual else []


def _meanings(log: LogColumns, columns: Mapping[str, str | list[str]], words: PickWords) -> str:
    """What the first different values of `chosen` mean."""
    responses, chosen = columns.get("responses"), columns["chosen"]
    said: dict[str, str] = {}
    for value in log.values(chosen if isinstance(chosen, str) else chosen[0]):
        if len(said) == _SHOWN_VALUES:
            break
        position = words.position(value) if words.knows(value) else None
        named = isinstance(responses, list) and position is not None and position < len(responses)
        which = responses[position] if named else f"response {position}"  # type: ignore[index]
        unknown = "no known word" + (f", but may be a name in {' or '.join(words.models)}" if words.models else "")
        said[shown(value)] = which if position is not None else "a tie" if words.knows(value) else unknown
    return ", ".join(f"{value} is {meaning}" for value, meaning in said.items()) or "empty"

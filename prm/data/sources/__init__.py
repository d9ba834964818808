"""Feedback as people have it: kinds of feedback and public data sets, each in its file, to comparisons."""

from collections.abc import Callable, Iterator, Sequence, Set
from typing import Any

from prm.config import FeedbackConfig
from prm.data.comparison import Prompt
from prm.data.sources import pairs, picks, rankings, ratings, thumbs
from prm.data.sources.feedback import Collector, Feedback
from prm.data.sources.fields import Columns, Fields
from prm.data.sources.pairing import OVER, RatedPrompt, RatedResponse, collect, group, standardise
from prm.data.sources.public import alpacaeval_styles, jester, prism, psoups, tldr_length, tldr_workers, ukpconvarg1
from prm.errors import DataError
from prm.io.tables import read_table

__all__ = ["Feedback", "read_feedback"]

_SINGLE: dict[str, Any] = {"ratings": ratings, "thumbs": thumbs}  # a row judges one answer
_SEVERAL: dict[str, Any] = {"picks": picks, "rankings": rankings}  # a row judges several
_PUBLIC: dict[str, Callable[[FeedbackConfig], Feedback]] = {
    "ukpconvarg1": ukpconvarg1.read,
    "jester": jester.read,
    "tldr_length": tldr_length.read,
    "tldr_workers": tldr_workers.read,
    "psoups": psoups.read,
    "prism": prism.read,
    "alpacaeval_styles": alpacaeval_styles.read,
}


def read_feedback(config: FeedbackConfig, optional: Set[str] = frozenset()) -> Feedback:
    """The comparisons of a log, in its order, with an account of every row.

    Args:
        optional: columns that the settings name for another log, and that this one may lack; the account then says so.

    Raises `DataError` at the first row that makes no sense, naming file, line, field and fault (with
    `on_bad_row: skip` it is listed instead), and where no comparison comes of the log.
    """
    config.check()
    if config.source in _PUBLIC:
        return _PUBLIC[config.source](config)
    if config.source == "pairs":
        found = Collector(config, pairs.RULE, optional=optional)
        for number, (comparisons, over) in _parsed(found, pairs, lambda fields, _: pairs.parse(fields, config)):
            found.pairs[OVER] += over
            for comparison in comparisons:
                found.add(comparison, number)
        return found.finish()
    kind = (_SINGLE | _SEVERAL)[config.source]
    found = Collector(config, kind.RULE, optional=optional)
    rows = _parsed(found, kind, lambda fields, number: kind.parse(fields, config, number))
    if config.source in _SINGLE:
        return _from_singles(found, [single for _, single in rows])
    collect(found, [judgement for _, judgement in rows])
    return found.finish()


def _from_singles(found: Collector, singles: Sequence[tuple[str, Prompt, RatedResponse]]) -> Feedback:
    judgements: list[RatedPrompt] = group(found, singles)
    collect(found, standardise(judgements) if found.config.standardise else judgements)
    return found.finish()


def _parsed(found: Collector, kind: Any, parse: Callable[[Fields, int], Any]) -> Iterator[tuple[int, Any]]:
    """(number, what `parse` makes of it) of each good row; bad ones are handed to the collector."""
    config = found.config
    columns = Columns(config, kind.FIELDS, kind.NEEDED)
    id_types: dict[type, str] = {}
    remarks: dict[str, list[str]] = {}
    number = 0
    for number, row in enumerate(read_table(config.path, config.dataset_split), start=1):
        who = None
        try:
            if row.values is None:
                raise DataError(row.fault)
            fields = Fields(row, columns)
            who = fields.shown_id()
            unread = columns.unread(tuple(row.values))
            value = parse(fields, number)
            _same_type_of_id(fields, id_types)
        except DataError as error:
            found.bad(number, row, str(error), who)
        else:
            found.unread.update(unread)
            for remark in fields.remarks:
                remarks.setdefault(remark, []).append(row.origin)
            yield number, value
    found.stop_if_all_are_bad(number)
    found.notes += [f"{remark}; {len(where):,} rows, first {where[0]}" for remark, where in remarks.items()]
    absent = columns.absent()
    if lacking := [name for name in absent if name in found.optional]:
        found.notes.append(f"columns of the run's own log that are not in this one: {', '.join(lacking)}")
    if absent := [name for name in absent if name not in found.optional]:
        there = ", ".join(map(repr, columns.present()))
        raise DataError(
            f"{config.path}: no row has the column {absent[0]!r} that the settings under 'data' name, only {there}"
        )


def _same_type_of_id(fields: Fields, known: dict[type, str]) -> None:
    """Raise `DataError` where ids are numbers in some rows and text in others: 7 and "7" would become one person."""
    if not fields.has("user_id"):
        return
    kind = type(fields.get("user_id"))
    if not known:
        known[kind] = fields.row.origin
    if kind not in known:
        shown, place = "text" if kind is str else "a number", next(iter(known.values()))
        raise DataError(f"'user_id' is {shown} here but not so in {place}: make the column one type")

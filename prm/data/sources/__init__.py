"""Reads feedback logs and public data sets as comparisons; one module per kind of feedback, format or data set."""

from collections.abc import Callable, Iterator, Sequence, Set
from functools import partial
from typing import Protocol, TypeVar

from prm.config import SHIPPED, FeedbackConfig
from prm.data.comparison import Prompt
from prm.data.sources.collector import Collector, Feedback
from prm.data.sources.fields import Columns, Fields, WholeFloats
from prm.data.sources.kinds import pairs, picks, rankings, ratings, thumbs
from prm.data.sources.pairing import OVER, RatedPrompt, RatedResponse, collect, group, standardise
from prm.data.sources.public import (
    alpacaeval_styles,
    jester,
    prism,
    psoups,
    tldr_length,
    tldr_workers,
    ukp_sample,
    ukpconvarg1,
)
from prm.data.sources.recognition import Reading, recognise
from prm.errors import DataError, meant
from prm.io.rows import Row
from prm.io.tables import is_store, read_table

__all__ = ["Feedback", "read_feedback"]

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class _Kind(Protocol[T_co]):
    """What the module of a kind of feedback has."""

    @property
    def FIELDS(self) -> Sequence[str]:  # noqa: N802
        """The fields that its rows may have."""

    @property
    def NEEDED(self) -> Sequence[str]:  # noqa: N802
        """Those that they must have, besides `user_id`."""

    @property
    def RULE(self) -> str:  # noqa: N802
        """How rows become comparisons, in words."""

    def parse(self, fields: Fields, config: FeedbackConfig, number: int) -> T_co:
        """What the row of this number says. Raises `DataError`."""


_SINGLE: dict[str, _Kind[tuple[str, Prompt, RatedResponse]]] = {"ratings": ratings, "thumbs": thumbs}  # one response
_SEVERAL: dict[str, _Kind[RatedPrompt]] = {"picks": picks, "rankings": rankings}  # several responses per row
_KINDS: dict[str, _Kind[object]] = {"pairs": pairs, **_SINGLE, **_SEVERAL}
_PUBLIC: dict[str, Callable[[FeedbackConfig], Feedback]] = {
    "ukpconvarg1": ukpconvarg1.read,
    "jester": jester.read,
    "tldr_length": tldr_length.read,
    "tldr_workers": tldr_workers.read,
    "psoups": psoups.read,
    "prism": prism.read,
    "alpacaeval_styles": alpacaeval_styles.read,
}


def read_feedback(
    config: FeedbackConfig, optional: Set[str] = frozenset(), rows: Sequence[Row] | None = None
) -> Feedback:
    """The comparisons of a log, in order, with an account of every row.

    Args:
        optional: columns that the settings name for another log; if this log lacks them, the account says so.
        rows: of a log in memory, instead of those of the file `path`.

    Raises `DataError` naming file, line, field and fault at the first bad row (`on_bad_row: skip` lists it instead),
    and if the log yields no comparison.
    """
    config.check()
    if config.source in _PUBLIC:
        return _PUBLIC[config.source](config)
    card = None
    if config.path == SHIPPED and rows is None:
        rows, card = ukp_sample.rows(), ukp_sample.CARD
    elif is_store(config.path) and rows is None:
        from prm.data.sources.store.reader import read_store  # an extra

        rows = list(read_store(config.path))
        # its columns are its own, whatever the log had that a run was trained on before
        config = FeedbackConfig(
            config.path, "pairs", ties=config.ties, on_bad_row=config.on_bad_row, max_pairs=config.max_pairs
        )
    reading = recognise(config, iter(rows) if rows is not None else read_table(config.path, config.dataset_split))
    config = reading.config
    collector = Collector(config, _KINDS[config.source].RULE, card, optional, read_as=reading.read_as)
    if config.source == "pairs":
        lists = False
        for number, (comparisons, over) in _parsed(collector, reading, pairs):
            collector.pairs[OVER] += over
            lists |= len(comparisons) + over > 1
            for comparison in comparisons:
                collector.add(comparison, number)
        if lists:
            collector.rule += pairs.RULE_OF_LISTS.format(max_pairs=config.max_pairs)
    elif config.source in _SINGLE:
        rated_prompts = group(collector, [single for _, single in _parsed(collector, reading, _SINGLE[config.source])])
        collect(collector, standardise(rated_prompts) if config.standardise else rated_prompts)
    else:
        kind = _SEVERAL[config.source]
        parse = partial(picks.parse, words=reading.words) if config.source == "picks" else kind.parse
        collect(collector, [rated_prompt for _, rated_prompt in _parsed(collector, reading, kind, parse)])
    return collector.finish()


def _parsed(
    collector: Collector,
    reading: Reading,
    kind: _Kind[T],
    parse: Callable[[Fields, FeedbackConfig, int], T] | None = None,
) -> Iterator[tuple[int, T]]:
    """(number, parsed value) of each good row; bad rows and those that are left out go to the collector.

    Args:
        parse: instead of the kind's own.
    """
    config, parse = collector.config, parse or kind.parse
    columns = Columns(config, kind.FIELDS, kind.NEEDED, reading.reads)
    id_types, floats = dict[type, str](), WholeFloats()
    remarks: dict[str, list[str]] = {}
    number, made = 0, set[str]()
    for number, judgement in enumerate(reading.judgements, start=1):
        row, user_id = judgement.row, None
        if judgement.left_out:
            collector.left_out(number, judgement.left_out)
            continue
        try:
            if row.values is None or row.fault:
                raise DataError(row.fault)
            fields = Fields(row, columns)
            if (user_id := fields.shown_id()) is not None:
                collector.users[user_id] = None
            unread = columns.unread(tuple(row.values))
            value = parse(fields, config, number)
            _same_type_of_id(fields, id_types)
            if row.is_text:
                floats.add(user_id, row.origin)
        except DataError as error:
            collector.bad(number, row, str(error), user_id)
        else:
            collector.unread.update(unread)
            made |= row.made
            for remark in [*fields.remarks, *filter(None, [judgement.remark])]:
                remarks.setdefault(remark, []).append(row.origin)
            yield number, value
    collector.stop_if_all_are_bad(number)
    floats.refuse()
    collector.notes += [f"{remark}; {len(origins):,} rows, first {origins[0]}" for remark, origins in remarks.items()]
    absent = columns.absent()
    if lacking := [name for name in absent if name in collector.optional]:
        collector.notes.append(f"columns of the run's training log that this log lacks: {', '.join(lacking)}")
    if absent := [name for name in absent if name not in collector.optional]:
        present = [name for name in columns.present() if name not in made]
        raise DataError(
            f"{config.path}: no row has the column {absent[0]!r} that the settings under 'data' name, only "
            + ", ".join(map(repr, present))
            + meant(absent[0], present)
        )


def _same_type_of_id(fields: Fields, known: dict[type, str]) -> None:
    """Raise `DataError` if ids are numbers in some rows and text in others: 7 and "7" would become one user."""
    if not fields.has("user_id"):
        return
    kind = type(fields.get("user_id"))
    if not known:
        known[kind] = fields.row.origin
    if kind not in known:
        shown, other_row = "text" if kind is str else "a number", next(iter(known.values()))
        raise DataError(f"'user_id' is {shown} here but not in {other_row}: give all ids the same type")

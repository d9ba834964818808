"""One judgement of a log, as a row that our kinds of feedback read."""

from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace

from prm.io.rows import Row


@dataclass(frozen=True)
class Judgement:
    """A row with one judgement.

    Args:
        row: its values by column; a row with a `fault` is a bad row.
        left_out: why it is no comparison, if it is none for a good reason; "" otherwise.
        remark: how it was read, for the account.
        answers: the columns that hold what the person said, where the format tells.
    """

    row: Row
    left_out: str = ""
    remark: str = ""
    answers: Set[str] = field(default=frozenset())


def judged(
    row: Row,
    values: Mapping[str, object],
    which: str = "",
    left_out: str = "",
    remark: str = "",
    answers: Set[str] = frozenset(),
    made: bool = False,
) -> Judgement:
    """A judgement in a row, with the given values.

    Args:
        which: of several judgements.
        made: whether the format made the values that the row lacks, so that nobody can name their columns.
    """
    assert row.values is not None
    columns = row.made | (values.keys() - row.values.keys() if made else set())
    origin = row.origin + (f", {which}" if which else "")
    return Judgement(replace(row, values=values, origin=origin, made=columns), left_out, remark, answers)

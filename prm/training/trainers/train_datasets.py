"""Data sets of trainers that are used from Python, in TRL's forms and with a column of users, as comparisons."""

from dataclasses import dataclass, replace

from prm.config import FeedbackConfig, UserConfig
from prm.data.comparison import Comparison
from prm.data.sources import Feedback, read_feedback
from prm.data.sources.in_memory import rows_of
from prm.errors import DataError, PrmError
from prm.io.rows import Row
from prm.io.run_files import LogRecord

_TOKENISED = {"chosen_ids", "rejected_ids", "chosen_input_ids", "rejected_input_ids", "prompt_ids", "input_ids"}


@dataclass(frozen=True)
class TrainerData:
    """A data set: where it is, and its comparisons with an account of its rows."""

    path: str
    feedback: Feedback

    @property
    def comparisons(self) -> list[Comparison]:
        """The comparisons, in order."""
        return self.feedback.comparisons

    @property
    def account(self) -> LogRecord:
        """Counts of the rows by use, for `run.json`."""
        return self.feedback.summary()


def read_dataset(
    dataset: object, data: FeedbackConfig, users: UserConfig, argument: str = "train_dataset"
) -> TrainerData:
    """Read a data set: a `datasets.Dataset`, a list of dicts or of `Comparison`, a pandas frame, or a path.

    Rows have TRL's columns of preference data (standard or conversational, the prompt explicit or implicit), and
    `user_id`; a uniform model needs no users.

    Args:
        argument: the trainer's argument that it is.

    Raises `PrmError` if it is missing, and `DataError` for a bad row, for rows that are tokenised, and for a column
    `margin`, which TRL's loss has.
    """
    if dataset is None:
        raise PrmError(f"'{argument}' is missing")
    path, rows = rows_of(dataset, argument)
    columns = {name for row in rows or () for name in row.values or ()}
    if columns & _TOKENISED and not columns & {"chosen", "rejected"}:
        raise DataError(f"the {path} is tokenised, so users cannot be put into it: give the texts")
    if "margin" in columns:
        raise DataError(
            f"the {path} has a column 'margin', which this loss does not have: remove it, or say how sure a comparison "
            "is by 'p_chosen'"
        )
    if users.kind == "uniform" and not _has_users(rows, data):
        data = replace(data, anonymous=True)
    return TrainerData(path, read_feedback(replace(data, path=path), rows=rows))


def _has_users(rows: list[Row] | None, data: FeedbackConfig) -> bool:
    named = "user_id" in data.columns
    return rows is None or named or any("user_id" in (row.values or ()) for row in rows)

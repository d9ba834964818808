"""UKPConvArg1: crowd workers on which of two arguments convinces more (Habernal and Gurevych, ACL 2016; CC BY 4.0)."""

from pathlib import Path

from prm.comparison import Comparison
from prm.config import FeedbackConfig
from prm.errors import DataError
from prm.files import read_table
from prm.sources.feedback import Collector, Feedback
from prm.sources.judgements import SAME

RULE = "each row is one: the argument called more convincing for the debate's title and stance; 'equal' is a tie"

_CHOICES = {"a1": 1.0, "a2": 0.0, "equal": 0.5}


def read(config: FeedbackConfig) -> Feedback:
    """The folder with `comparisons.jsonl.gz` and `arguments.jsonl`. Metadata: debate. Raises `DataError`."""
    folder = Path(config.path)
    texts = {}
    for row in read_table(str(folder / "arguments.jsonl")):
        if row.values is None or not {"arg_id", "text"} <= row.values.keys():
            raise DataError(f"{row.origin}: {row.fault or 'expected an argument with arg_id and text'}")
        texts[row.values["arg_id"]] = row.values["text"]
    found = Collector(config, RULE)
    for number, row in enumerate(read_table(str(folder / "comparisons.jsonl.gz")), start=1):
        values = row.values or {}
        try:
            if row.values is None:
                raise DataError(row.fault)
            sides = [texts[values[name]] for name in ("arg1_id", "arg2_id")]
            if sides[0] == sides[1]:
                found.left_out(number, SAME)
                continue
            comparison = Comparison(
                values["user_id"],
                f"{values['title']}\n{values['stance']}",
                sides[0],
                sides[1],
                p_chosen=_CHOICES[values["choice"]],
                chosen_first=True,
                metadata={"debate": values["debate"]},
                origin=row.origin,
            )
        except KeyError as error:
            found.bad(number, row, f"no such field, argument or choice: {error}", values.get("user_id"))
        except DataError as error:
            found.bad(number, row, str(error), values.get("user_id"))
        else:
            found.add(comparison, number)
    return found.finish()

"""UKPConvArg1: which of two arguments convinces crowd workers more (Habernal and Gurevych, ACL 2016; CC BY 4.0)."""

from pathlib import Path

from prm.config import FeedbackConfig
from prm.data.comparison import Comparison, require_text
from prm.data.sources.collector import Collector, Feedback
from prm.data.sources.dataset_cards import Card
from prm.data.sources.fields import text_by_id
from prm.data.sources.pairing import SAME
from prm.errors import DataError
from prm.io.tables import read_table

RULE = "each row is one: the argument called more convincing for the debate's title and stance; 'equal' is a tie"

CARD = Card(
    name="UKPConvArg1",
    licence="CC BY 4.0",
    citation="Habernal and Gurevych, Which argument is more convincing?, ACL 2016",
    about="crowd workers on which of two arguments convinces more",
    counts={"judgements": 51_052, "workers": 3_728},
)

_FIELDS = ("user_id", "debate", "title", "stance", "arg1_id", "arg2_id", "choice")
_CHOICES = {"a1": 1.0, "a2": 0.0, "equal": 0.5}


def read(config: FeedbackConfig) -> Feedback:
    """Read a folder with `comparisons.jsonl.gz` and `arguments.jsonl`. Metadata: debate. Raises `DataError`."""
    folder = Path(config.path)
    texts: dict[str, str] = {}
    for row in read_table(str(folder / "arguments.jsonl")):
        texts |= text_by_id(row, "arg_id")
    collector = Collector(config, RULE, CARD)
    for number, row in enumerate(read_table(str(folder / "comparisons.jsonl.gz")), start=1):
        values = row.values or {}
        try:
            if row.values is None:
                raise DataError(row.fault)
            fields: dict[str, str] = {name: values.get(name, "") for name in _FIELDS}
            for name, value in fields.items():
                require_text(name, value)
            sides = [texts[fields[name]] for name in ("arg1_id", "arg2_id")]
            if sides[0] == sides[1]:
                collector.left_out(number, SAME)
                continue
            comparison = Comparison(
                fields["user_id"],
                f"{fields['title']}\n{fields['stance']}",
                sides[0],
                sides[1],
                p_chosen=_CHOICES[fields["choice"]],
                chosen_first=True,
                metadata={"debate": fields["debate"]},
                origin=row.origin,
            )
        except KeyError as error:
            collector.bad(number, row, f"no such argument or choice: {error}", values.get("user_id"))
        except DataError as error:
            collector.bad(number, row, str(error), values.get("user_id"))
        else:
            collector.add(comparison, number)
    return collector.finish()

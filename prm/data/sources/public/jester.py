"""Jester: ratings of jokes from -10 to 10 (Goldberg et al., Information Retrieval 2001; research use)."""

from pathlib import Path

from prm.config import FeedbackConfig
from prm.data.comparison import require_number, require_text
from prm.data.sources.collector import Collector, Feedback
from prm.data.sources.dataset_cards import Card
from prm.data.sources.fields import text_by_id
from prm.data.sources.kinds import ratings
from prm.data.sources.pairing import RatedResponse, collect, group, standardise
from prm.errors import DataError
from prm.io.tables import read_table

CARD = Card(
    name="Jester",
    licence="research use, cite",
    citation="Goldberg, Roeder, Gupta and Perkins, Eigentaste, Information Retrieval 2001",
    about="people's ratings of 100 jokes",
    counts={"ratings": 290_720, "jokes": 100, "people": 4_000},
)
PROMPT = "Tell me a joke."  # the prompt of all jokes


def read(config: FeedbackConfig) -> Feedback:
    """Read a folder with `ratings.csv.gz` and `jokes.jsonl`. Raises `DataError`."""
    folder = Path(config.path)
    jokes: dict[str, str] = {}
    for row in read_table(str(folder / "jokes.jsonl")):
        jokes |= text_by_id(row, "joke_id")
    collector = Collector(config, ratings.RULE, CARD)
    singles = []
    for number, row in enumerate(read_table(str(folder / "ratings.csv.gz")), start=1):
        values = row.values or {}
        try:
            if row.values is None:
                raise DataError(row.fault)
            user, joke, text = (require_text(name, values.get(name)) for name in ("user_id", "joke_id", "rating"))
            rating = require_number("rating", float(text))
            singles.append((user, PROMPT, RatedResponse(jokes[joke], rating, number, row.origin)))
        except KeyError as error:
            collector.bad(number, row, f"no such joke: {error}", values.get("user_id"))
        except ValueError as error:  # also a DataError
            collector.bad(number, row, str(error), values.get("user_id"))
    rated_prompts = group(collector, singles)
    collect(collector, standardise(rated_prompts) if config.standardise else rated_prompts)
    return collector.finish()

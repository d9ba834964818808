"""Jester: people's ratings of jokes, from -10 to 10 (Goldberg et al., Information Retrieval 2001; research use)."""

from pathlib import Path

from prm.config import FeedbackConfig
from prm.errors import DataError
from prm.files import read_table
from prm.sources import ratings
from prm.sources.feedback import Collector, Feedback
from prm.sources.judgements import Judged, collect, group, standardise

PROMPT = "Tell me a joke."  # all jokes answer the same prompt


def read(config: FeedbackConfig) -> Feedback:
    """The folder with `ratings.csv.gz` and `jokes.jsonl`. Raises `DataError`."""
    folder = Path(config.path)
    jokes = {}
    for row in read_table(str(folder / "jokes.jsonl")):
        if row.values is None or not {"joke_id", "text"} <= row.values.keys():
            raise DataError(f"{row.origin}: {row.fault or 'expected a joke with joke_id and text'}")
        jokes[row.values["joke_id"]] = row.values["text"]
    found = Collector(config, ratings.RULE)
    singles = []
    for number, row in enumerate(read_table(str(folder / "ratings.csv.gz")), start=1):
        values = row.values or {}
        try:
            if row.values is None:
                raise DataError(row.fault)
            joke = Judged(jokes[values["joke_id"]], float(values["rating"]), number, row.origin)
            singles.append((values["user_id"], PROMPT, joke))
        except KeyError as error:
            found.bad(number, row, f"no such field or joke: {error}", values.get("user_id"))
        except (DataError, ValueError) as error:
            found.bad(number, row, str(error), values.get("user_id"))
    judgements = group(found, singles)
    collect(found, standardise(judgements) if config.standardise else judgements)
    return found.finish()

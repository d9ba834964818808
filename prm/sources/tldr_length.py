"""Reddit TL;DR summaries judged by ten simulated people who go by length (paper, section 5.1)."""

from pathlib import Path
from typing import Any

from prm.comparison import Comparison, require_text
from prm.config import FeedbackConfig
from prm.controls import words
from prm.errors import DataError
from prm.files import read_table
from prm.sources.feedback import Collector, Feedback

RULE = "ten simulated people on every post: 4, 5 and 6 prefer the summary with fewer words, the others that with more"

PEOPLE, SHORTER = 10, (4, 5, 6)
EQUAL = "as many words in both"


def read(config: FeedbackConfig) -> Feedback:
    """The folder with `pairs.jsonl`: prompt, response_model and response_reference of each post.

    Metadata: the `longer` summary's source (`model` or `reference`), the `word_difference`, and what the person
    `prefers` (`longer` or `shorter`). People are `length_0` to `length_9`. Raises `DataError`.
    """
    found = Collector(config, RULE)
    for number, row in enumerate(read_table(str(Path(config.path) / "pairs.jsonl")), start=1):
        try:
            if row.values is None:
                raise DataError(row.fault)
            judged = _judge(row.values, row.origin)
        except DataError as error:
            found.bad(number, row, str(error))
        else:
            if not judged:
                found.left_out(number, EQUAL)
            for comparison in judged:
                found.add(comparison, number)
    return found.finish()


def _judge(values: dict[str, Any], origin: str) -> list[Comparison]:
    """Everyone's view of one post; of none where both summaries have as many words."""
    for name in ("prompt", "response_model", "response_reference"):
        require_text(name, values.get(name))
    sides = {"model": values["response_model"], "reference": values["response_reference"]}
    short, long = sorted(sides, key=lambda name: words(sides[name]))
    difference = words(sides[long]) - words(sides[short])
    if difference == 0:
        return []
    metadata = {"longer": long, "word_difference": difference}
    return [
        Comparison(
            f"length_{i}",
            values["prompt"],
            *((sides[short], sides[long]) if i in SHORTER else (sides[long], sides[short])),
            metadata=metadata | {"prefers": "shorter" if i in SHORTER else "longer"},
            origin=origin,
        )
        for i in range(PEOPLE)
    ]

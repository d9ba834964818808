"""Rankings: several responses in order."""

from prm.config import FeedbackConfig
from prm.data.comparison import parse_prompt, require_number
from prm.data.sources.fields import Fields
from prm.data.sources.pairing import RatedPrompt, RatedResponse
from prm.errors import DataError
from prm.io.tables import kind

FIELDS = ("prompt", "responses", "ranks")
NEEDED = ("prompt", "responses")
RULE = "every two responses of a ranking, of which a response enters at most {max_pairs}; equal ranks are ties"


def parse(fields: Fields, config: FeedbackConfig, number: int) -> RatedPrompt:
    """The rated responses of one row. Raises `DataError`.

    `responses` are ordered best first; with `ranks`, they are in the order shown, and rank 1 is the best.
    """
    responses = fields.texts("responses")
    if len(responses) < 2:
        raise DataError(f"'responses' holds {len(responses)} response; a ranking needs two or more")
    ranked = fields.has("ranks")
    ranks = _ranks(fields, len(responses)) if ranked else [float(i) for i in range(len(responses))]
    common = fields.common()
    rated = [
        RatedResponse(text, -rank, number, fields.row.origin, common, position=i if ranked else None)
        for i, (text, rank) in enumerate(zip(responses, ranks, strict=True))
    ]
    return RatedPrompt(fields.user_id(), parse_prompt(fields.conversation("prompt")), tuple(rated), ties=True)


def _ranks(fields: Fields, n: int) -> list[float]:
    values = fields.items("ranks")
    if not isinstance(values, list | tuple):
        raise DataError(f"'ranks' must be a list of numbers, got {kind(values)}")
    if len(values) != n:
        raise DataError(f"'ranks' holds {len(values)} numbers for {n} responses")
    filled = [[bool(c) for c in fields.gathered(name) or []] for name in ("responses", "ranks")]
    if all(filled) and filled[0] != filled[1]:
        raise DataError("the columns of 'responses' and of 'ranks' are not empty in the same places")
    named = {f"ranks[{i}]": value for i, value in enumerate(values)}
    return [require_number(name, fields.from_text(name, value)) for name, value in named.items()]

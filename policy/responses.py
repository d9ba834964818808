"""Files of prompts with responses to learn from, as `policy sft --responses` reads them. Does not import torch."""

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING

from prm.data.comparison import Prompt, parse_prompt, require_text
from prm.data.sources.collector import SkippedRow
from prm.errors import DataError
from prm.io.rows import Json
from prm.io.tables import read_rows

if TYPE_CHECKING:
    from prm.data.encoding import TextEncoder

Response = tuple[Prompt, str]

_LOOKED_AT = 1000  # rows that are checked before torch is imported


def read_responses(
    path: str, encoder: "TextEncoder | None" = None, skip: bool = False
) -> tuple[list[Response], list[SkippedRow]]:
    """Read (distinct rows of `prompt` and `response`, skipped rows: invalid, or not encodable by `encoder`).

    Raises `DataError` naming file, line and fault, unless `skip` is set and a valid row is left.
    """
    responses, skipped = list[Response](), list[SkippedRow]()
    for location, row in _rows(path):
        try:
            response = _parsed(row)
            if encoder is not None:
                encoder.encode(*response)
        except DataError as error:
            if not skip:
                raise DataError(f"{location}: {error}") from None
            skipped.append({"row_of": location, "fault": str(error), "row": row})
        else:
            responses.append(response)
    if not responses:
        raise DataError(f"{skipped[0]['row_of']}: {skipped[0]['fault']}; no row is valid")
    return list(dict.fromkeys(responses)), skipped


def refuse_bad_responses(path: str) -> None:
    """Raise `DataError` naming file, line and fault for an invalid one among the first rows."""
    for location, row in islice(_rows(path), _LOOKED_AT):
        try:
            _parsed(row)
        except DataError as error:
            raise DataError(f"{location}: {error}") from None


def _rows(path: str) -> Iterator[tuple[str, dict[str, Json]]]:
    return ((f"{path}, line {number}", row) for number, row in read_rows(path))


def _parsed(row: dict[str, Json]) -> Response:
    response = require_text("response", row.get("response"))
    return parse_prompt(row.get("prompt")), response

"""What the JSON of a request may hold, whatever the endpoint."""

import json
import math
import re
from collections.abc import Iterable
from typing import NoReturn

from prm.errors import DataError, shown

MOST_DEPTH = 32
MOST_VALUES = 100_000
_MOST_WHOLE = 2**63
_ODD = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")  # escapes of NUL and of surrogates


def check_json(body: bytes) -> None:
    """Raise `DataError` for what is no JSON in UTF-8, or what is read in more than one way.

    Those are keys that an object has twice, NaN and infinities, numbers beyond 64 bits, NUL and lone surrogates.
    Too deep and too many values are refused, too.
    """
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise DataError(f"the body is not UTF-8: byte {error.start}") from None
    try:
        value: object = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise DataError(f"the body has more than {MOST_DEPTH} levels") from None
    except json.JSONDecodeError as error:
        raise DataError(f"the body is no JSON: {error.msg}, at character {error.pos}") from None
    except DataError:
        raise
    except ValueError:  # more digits than Python reads
        raise DataError("the body has a number beyond 64 bits") from None
    _check(value, odd=_ODD.search(body) is not None)


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise DataError(f"the body has the key {shown(next(n for n in names if names.count(n) > 1))} twice")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise DataError(f"the body has {name}, which is no JSON")


def _check(value: object, odd: bool) -> None:
    """Check values level by level; texts only where the body holds an odd escape."""
    level, count = [value], 0
    for _ in range(MOST_DEPTH):
        inner: list[object] = []
        for one in level:
            if isinstance(one, str):
                if odd:
                    _check_texts([one])
            elif isinstance(one, list):
                inner += one
            elif isinstance(one, dict):
                inner += one.values()
                if odd:
                    _check_texts(one)
            elif (isinstance(one, int) and abs(one) >= _MOST_WHOLE) or (isinstance(one, float) and math.isinf(one)):
                raise DataError("the body has a number beyond 64 bits")
        count += len(inner)
        if count > MOST_VALUES:
            raise DataError(f"the body has more than {MOST_VALUES:,} values")
        if not inner:
            return
        level = inner
    raise DataError(f"the body has more than {MOST_DEPTH} levels")


def _check_texts(texts: Iterable[str]) -> None:
    for text in texts:
        if "\x00" in text:
            raise DataError("the body has a NUL character (\\u0000), which a database cannot keep")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError("the body has a lone surrogate (\\ud800 to \\udfff), which is no text") from None

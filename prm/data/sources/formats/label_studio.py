"""Exports of Label Studio: tasks with annotations (JSON), or one annotation a row (JSON-MIN, CSV)."""

from collections.abc import Collection, Mapping

from prm.data.sources.fields import yes_or_no
from prm.data.sources.formats.judgement import Judgement, judged
from prm.data.sources.formats.label_studio_ranker import parsed, rankings
from prm.errors import DataError
from prm.io.rows import Row
from prm.io.tables import kind

TITLE = "a Label Studio export"
SAYS = "annotator from who completed an annotation; a ranking of items becomes responses and ranks"
READS: set[str] = set()
COLUMNS = {"time": ("created_at",)}

_FLAT = {"annotation_id", "annotator", "lead_time"}
_ABOUT = {*_FLAT, "id", "created_at", "updated_at", "was_cancelled", "agreement"}
CANCELLED, NOT_ANNOTATED = "annotation cancelled", "task without annotation"


def is_like(names: Collection[str]) -> bool:
    """Whether the columns are those of this format."""
    return {"data", "annotations"} <= set(names) or set(names) >= _FLAT


def unfold(row: Row) -> list[Judgement]:
    """One judgement per annotation; its results stand in columns of the names that the labelling interface has.

    Raises `DataError`.
    """
    assert row.values is not None
    values = row.values
    if "annotations" not in values:
        return [_flat(row, values)]
    data, annotations = values.get("data"), values["annotations"]
    if not isinstance(data, dict) or not isinstance(annotations, list | tuple):
        raise DataError(f"'data' must be an object and 'annotations' a list, got {kind(data)} and {kind(annotations)}")
    if not annotations:
        return [judged(row, dict(data), left_out=NOT_ANNOTATED)]
    return [_annotation(row, data, annotation, i) for i, annotation in enumerate(annotations, start=1)]


def _annotation(row: Row, data: dict[str, object], annotation: object, number: int) -> Judgement:
    if not isinstance(annotation, dict) or not isinstance(annotation.get("result", []), list | tuple):
        raise DataError(f"annotation {number} must be an object with a list 'result'")
    said: dict[str, object] = {}
    for result in annotation.get("result", []):
        if isinstance(result, dict) and isinstance(name := result.get("from_name"), str):
            said[name] = _picked(result.get("value"))
    if same := said.keys() & data.keys():
        raise DataError(f"annotation {number}: {min(same)!r} is the name of a field of the task, too")
    about = {"annotator": _person(annotation.get("completed_by")), "created_at": annotation.get("created_at")}
    left_out = CANCELLED if annotation.get("was_cancelled") else ""
    values = data | about | said | rankings(said, data)
    return judged(row, values, f"annotation {number}", left_out=left_out, answers=frozenset(said))


def _flat(row: Row, values: Mapping[str, object]) -> Judgement:
    cells = {name: parsed(value) for name, value in values.items() if name not in _ABOUT}
    said = {name: picked for name, value in cells.items() if (picked := _picked(value)) is not value}
    ranked = rankings(cells, cells)
    flat = {**values, **said, **ranked, "annotator": _person(values.get("annotator"))}
    cancelled = values.get("was_cancelled") is not None and yes_or_no("was_cancelled", values["was_cancelled"])
    answers = frozenset(said.keys() | ranked.keys() - {"responses"})
    return judged(row, flat, left_out=CANCELLED if cancelled else "", answers=answers)


def _person(value: object) -> object:
    """The annotator's id; where an export has the account, its e-mail or number."""
    return value.get("email") or value.get("id") if isinstance(value, dict) else value


def _picked(value: object) -> object:
    """What a result of one choice says: "left" of `{"selected": "left"}`; other values stay as they are."""
    inner = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    if isinstance(inner, dict):
        if isinstance(inner.get("selected"), str):
            return inner["selected"]
        choices = inner.get("choices")
        if isinstance(choices, list | tuple) and len(choices) == 1:
            return choices[0]
    return value

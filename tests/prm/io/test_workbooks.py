"""Excel workbooks are read as Excel shows them."""

import bz2
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from prm.errors import DataError
from prm.io.tables import read_table
from tests.prm.io.workbooks import write_workbook

NAMES = ["user_id", "prompt", "chosen"]


def rows_of(path: Path, sheet: str = "train") -> list[tuple[str, Mapping[str, object] | None]]:
    return [(row.origin.removeprefix(f"{path}, "), row.values) for row in read_table(str(path), sheet)]


def test_cells_are_what_excel_shows(tmp_path: Path) -> None:
    """Serial numbers by hand: 45413 is 2024-05-01, .75 of a day is 18:00; day 60 of 1900 was never there."""
    values: list[Any] = ["a & b\n c", 7, 0.25, True, False, (45413, 1), (45413.75, 2), (1.5, 3), (59, 1), (61, 1)]
    values += ["<c t='inlineStr'><is><r><t>in </t></r><r><t>line</t></r><rPh sb='0' eb='1'><t>no</t></rPh></is></c>"]
    values += ["<c t='str'><f>A1</f><v>sum</v></c>"]
    names = [f"c{i}" for i in range(len(values))]
    path = write_workbook(tmp_path / "a.xlsx", {"Sheet1": [names, values]})
    expected = ["a & b\n c", "7", "0.25", "TRUE", "FALSE", "2024-05-01", "2024-05-01T18:00:00", "1.5", "1900-02-28"]
    assert rows_of(path) == [("row 2", dict(zip(names, [*expected, "1900-03-01", "in line", "sum"], strict=True)))]
    assert next(read_table(str(path))).is_text


def test_a_workbook_of_the_mac_counts_from_1904(tmp_path: Path) -> None:
    book = '<workbookPr date1904="1"/>'
    path = write_workbook(tmp_path / "a.xlsx", {"s": [["t"], [(1, 1)], [(43951, 1)]]}, book)
    assert [values for _, values in rows_of(path)] == [{"t": "1904-01-02"}, {"t": "2024-05-01"}]


def test_empty_rows_and_cells_are_empty_and_rows_keep_their_numbers(tmp_path: Path) -> None:
    sheet: list[list[Any]] = [
        [],
        [*NAMES, None],
        [],
        ["u", None, "y"],
        [None, "q"],
        [None, None, None],
        ["v", "p", "z", "more"],
    ]
    path = write_workbook(tmp_path / "a.xlsx", {"s": sheet})
    assert rows_of(path) == [
        ("row 4", {"user_id": "u", "prompt": None, "chosen": "y"}),
        ("row 5", {"user_id": None, "prompt": "q", "chosen": None}),
        ("row 7", None),
    ]
    assert [row.fault for row in read_table(str(path))][2] == "4 fields, but the header names 3"


def test_an_error_in_a_cell_makes_a_bad_row(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "a.xlsx", {"s": [["a", "b"], ["x", "<c t='e'><v>#N/A</v></c>"], ["x", "y"]]})
    assert rows_of(path) == [("row 2", None), ("row 3", {"a": "x", "b": "y"})]
    assert next(read_table(str(path))).fault == "cell B2 holds the error #N/A"


def test_a_formula_without_its_value_makes_a_bad_row(tmp_path: Path) -> None:
    """As programs write them that compute nothing."""
    sheet = [["a", "b"], ["x", "<c><f>A2</f></c>"], ["y", "<c t='str'><f>A3</f><v>saved</v></c>"]]
    path = write_workbook(tmp_path / "a.xlsx", {"s": sheet})
    assert rows_of(path) == [("row 2", None), ("row 3", {"a": "y", "b": "saved"})]
    assert next(read_table(str(path))).fault.startswith("cell B2 holds a formula without its value")


@pytest.mark.parametrize("reference", ["A1:A1", "A1:XFD1048576"])
def test_what_a_sheet_says_of_its_size_is_not_believed(tmp_path: Path, reference: str) -> None:
    before = f'<dimension ref="{reference}"/>'
    path = write_workbook(tmp_path / "a.xlsx", {"s": [["a", "b"], [], ["x", "y"]]}, before_data=before)
    assert rows_of(path) == [("row 3", {"a": "x", "b": "y"})]


def test_a_row_number_beyond_excels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prm.io.workbooks._MOST_ROWS", 1000)
    path = write_workbook(tmp_path / "a.xlsx", {"s": [["a"], *[[]] * 1500, ["x"]]})
    with pytest.raises(DataError, match="more rows than Excel"):
        rows_of(path)


def test_one_of_several_sheets_is_named(tmp_path: Path) -> None:
    sheets = {"notes": [["n"], ["1"]], "log": [["a"], ["2"]]}
    path = write_workbook(tmp_path / "a.xlsx", sheets)
    assert rows_of(path, "log") == [("row 2", {"a": "2"})]
    with pytest.raises(DataError, match=r"'notes', 'log'.*data\.dataset_split"):
        rows_of(path)


def test_a_packed_workbook_is_read(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "a.xlsx", {"s": [["a"], ["2"]]})
    packed = tmp_path / "a.xlsx.bz2"
    packed.write_bytes(bz2.compress(path.read_bytes()))
    assert rows_of(packed) == [("row 2", {"a": "2"})]


def test_what_is_no_workbook_is_refused(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "good.xlsx", {"s": [["a"], ["2"]]})
    content = path.read_bytes()
    bad = tmp_path / "bad.xlsx"
    for damaged in (b"", b"a,b\n1,2\n", content[:200], content[:-30], content.replace(b"xl/workbook", b"xl/wurkbook")):
        bad.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            rows_of(bad)
        assert str(caught.value).startswith(f"{bad}: not an Excel workbook that can be read: ")
    for start in range(30, len(content), 7):
        bad.write_bytes(content[:start] + bytes([content[start] ^ 0xFF]) + content[start + 1 :])
        try:
            rows_of(bad)
        except DataError as error:
            assert str(error).startswith(str(bad))  # noqa: PT017


def test_a_workbook_that_unpacks_to_a_gigabyte_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prm.io.workbooks.LARGEST_WHOLE", 10_000)
    path = write_workbook(tmp_path / "a.xlsx", {"s": [["a"], ["x" * 20_000]]})
    assert path.stat().st_size < 10_000
    with pytest.raises(DataError, match="unpacks to more than"):
        rows_of(path)


def test_entities_that_multiply_are_refused(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "a.xlsx", {"s": [["a"], ["2"]]})
    bomb = '<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + i)} "{("&" + chr(97 + i) + ";") * 10}">' for i in range(9)
    )
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {"xl/styles.xml": (bomb + "]><b>&j;</b>").encode()}).items():
            archive.writestr(name, content)
    with pytest.raises(DataError, match="not an Excel workbook"):
        rows_of(path)


def test_a_number_that_a_workbook_cannot_hold_makes_a_bad_row(tmp_path: Path) -> None:
    path = write_workbook(tmp_path / "a.xlsx", {"s": [["a", "b"], [2**53 - 1, "x"], [1150000000000000123, "x"]]})
    assert [values for _, values in rows_of(path)] == [{"a": str(2**53 - 1), "b": "x"}, None]
    assert "A3 holds the number" in [row.fault for row in read_table(str(path))][1]

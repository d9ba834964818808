"""Excel workbooks for tests, in the layout of ECMA-376: shared strings, styles, one XML a sheet."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

MAIN = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
PACKAGE = "http://schemas.openxmlformats.org/package/2006/relationships"
CONTENT = "http://schemas.openxmlformats.org/package/2006/content-types"
TYPE = "application/vnd.openxmlformats-officedocument.spreadsheetml"
# cell styles: 0 general, 1 a built-in date, 2 a date of one's own, 3 a number with "days" behind it
PLAIN = 'fontId="0" fillId="0" borderId="0" xfId="0"'
STYLES = f"""<styleSheet xmlns="{MAIN}"><numFmts count="2"><numFmt numFmtId="164" formatCode="yyyy\\-mm\\-dd hh:mm"/>
<numFmt numFmtId="165" formatCode='0.0 "days"'/></numFmts><fonts><font/></fonts>
<fills><fill><patternFill/></fill></fills><borders><border/></borders>
<cellStyleXfs><xf numFmtId="14" {PLAIN}/></cellStyleXfs><cellXfs><xf numFmtId="0" {PLAIN}/>
<xf numFmtId="14" {PLAIN}/><xf numFmtId="164" {PLAIN}/><xf numFmtId="165" {PLAIN}/></cellXfs></styleSheet>"""


def column(place: int) -> str:
    """The name of the column at a position from 0."""
    return (column(place // 26 - 1) if place >= 26 else "") + chr(ord("A") + place % 26)


def cell(name: str, value: Any, strings: list[str]) -> str:
    """One cell: text is shared; (value, style) is a number with a style; text that begins with "<" is as it stands."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return f'<c r="{name}" t="b"><v>{int(value)}</v></c>'
    if isinstance(value, tuple):
        return f'<c r="{name}" s="{value[1]}"><v>{value[0]}</v></c>'
    if isinstance(value, int | float):
        return f'<c r="{name}"><v>{value}</v></c>'
    if value.startswith("<"):
        return value.replace("<c ", f'<c r="{name}" ', 1)
    strings.append(value)
    return f'<c r="{name}" t="s"><v>{len(strings) - 1}</v></c>'


def write_workbook(
    path: Path, sheets: Mapping[str, Sequence[Sequence[Any]]], book: str = "", before_data: str = ""
) -> Path:
    """Save sheets of rows; rows without a cell are left out, as Excel does.

    Args:
        book, before_data: XML in the workbook, and in each sheet before its data.
    """
    strings: list[str] = []
    files = {}
    for i, rows in enumerate(sheets.values(), start=1):
        lines = []
        for number, row in enumerate(rows, start=1):
            cells = "".join(cell(f"{column(j)}{number}", value, strings) for j, value in enumerate(row))
            lines.append(f'<row r="{number}">{cells}</row>' if cells else "")
        files[f"xl/worksheets/sheet{i}.xml"] = (
            f'<worksheet xmlns="{MAIN}">{before_data}<sheetData>{"".join(lines)}</sheetData></worksheet>'
        )
    named = "".join(f'<sheet name="{n}" sheetId="{i}" r:id="rId{i}"/>' for i, n in enumerate(sheets, start=1))
    files["xl/workbook.xml"] = f'<workbook xmlns="{MAIN}" xmlns:r="{OFFICE}">{book}<sheets>{named}</sheets></workbook>'
    targets = "".join(
        f'<Relationship Id="rId{i}" Type="{OFFICE}/worksheet" Target="worksheets/sheet{i}.xml"/>'
        for i in range(1, len(sheets) + 1)
    )
    files["xl/_rels/workbook.xml.rels"] = f'<Relationships xmlns="{PACKAGE}">{targets}</Relationships>'
    shared = "".join(f'<si><t xml:space="preserve">{escape(text)}</t></si>' for text in strings)
    parts = {f"xl/worksheets/sheet{i}.xml": "worksheet" for i in range(1, len(sheets) + 1)}
    parts |= {"xl/workbook.xml": "sheet.main", "xl/sharedStrings.xml": "sharedStrings", "xl/styles.xml": "styles"}
    kinds = "".join(f'<Override PartName="/{p}" ContentType="{TYPE}.{kind}+xml"/>' for p, kind in parts.items())
    files["[Content_Types].xml"] = f'<Types xmlns="{CONTENT}">{kinds}</Types>'
    files["xl/sharedStrings.xml"] = f'<sst xmlns="{MAIN}">{shared}</sst>'
    files["xl/styles.xml"] = STYLES
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path

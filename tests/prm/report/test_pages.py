"""Every kind of page: what it holds, that it stands alone, that no text breaks out of its place; and in a browser."""

import base64
import hashlib
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from matplotlib.figure import Figure

from prm.report.drawing import drawn, svg
from prm.report.page import write_page
from prm.report.section import Section
from tests.browser import open_browser, opened, widths_that_do_not_fit
from tests.prm.report.pages import NASTY, PAGES, SCRIPT, SEEN

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

VOID = {"meta", "img", "br", "use", "path", "image", "link"}


class Page(HTMLParser):
    """A page's elements: what it loads, its headings with what follows each, its anchors, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.after_heading: list[int] = []
        self.scripts: list[str] = []
        self.text: list[str] = []
        self.policy = ""
        self._open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.tags.append(tag)
        self.handlers += [name for name in values if name.startswith("on")]
        self.loads += [value for name, value in values.items() if name in ("src", "srcset", "data", "action")]
        self.ids += [values["id"]] if "id" in values and tag == "h2" else []
        href = values.get("href", "")
        self.links += [href] if tag == "a" else []
        self.loads += [href] if href and not href.startswith("#") else []
        self.policy = values.get("content", "") if "http-equiv" in values else self.policy
        if tag == "h2":
            self.after_heading.append(0)
        if tag == "script":
            self.scripts.append("")
        self._open = [*self._open, tag] if tag not in VOID else self._open

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if "script" in self._open:
            self.scripts[-1] += data
            return
        if data.strip() and self.after_heading and "h2" not in self._open and "style" not in self._open:
            self.after_heading[-1] += 1
        self.text.append(data)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every page, written once."""
    return {name: write(tmp_path_factory.mktemp(name.replace(" ", "-"))) for name, write in PAGES.items()}


@pytest.fixture(scope="module")
def written(files: dict[str, Path]) -> dict[str, str]:
    """The HTML of every page."""
    return {name: path.read_text(encoding="utf-8") for name, path in files.items()}


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with open_browser() as found:
        yield found


@pytest.mark.parametrize("name", PAGES)
def test_a_page_stands_alone_and_runs_no_script_but_its_own(name: str, written: dict[str, str]) -> None:
    html = written[name]
    page = Page(html)
    assert page.handlers == []
    assert [load for load in page.loads if not load.startswith("data:image/png;base64,")] == []
    assert "http" not in html.replace("http-equiv", "")
    assert len(page.scripts) == 1
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page.policy
    assert SCRIPT in " ".join("".join(page.text).split()) or name == "experiment"  # as text
    assert len(html.encode()) < 250_000


@pytest.mark.parametrize("name", PAGES)
def test_the_contents_name_every_section_and_none_is_empty(name: str, written: dict[str, str]) -> None:
    page = Page(written[name])
    assert page.links == ([f"#{anchor}" for anchor in page.ids] if len(page.ids) > 2 else [])
    assert page.ids
    assert min(page.after_heading) > 0
    assert not re.search(r"(?i)\b(?:nan|inf)\b", re.sub(r"<path[^>]*>", "", " ".join(page.text)))


def test_pictures_are_text_in_the_colours_of_the_page() -> None:
    @drawn
    def picture() -> Figure:
        figure = Figure(figsize=(3, 2))
        axes = figure.subplots()
        axes.set_title('<b>"$a_1$" & 0.123456 #2563a8')
        axes.plot([0, 1], [0, 1], color="#2563a8")
        return figure

    text = str(svg(picture()))
    assert text == str(svg(picture()))  # nothing of the day or of chance
    assert '&lt;b&gt;"$a_1$" &amp; 0.123456 #2563a8</text>' in text
    assert "stroke: var(--personal)" in text
    assert "http" not in text
    assert text.startswith('<svg viewBox="0 0 216 144" width="288">')


def test_columns_and_order_by_hand() -> None:
    header = ("person", "share", "words", "dash")
    rows = (("b", "12.0 [1, 2]", "1 of it, or", "-"), ("a", "< 0.001", "x", "+3*"), ("c", "~4 ", "-", ""))
    table = Section("t", header, rows)
    assert table.text_columns == {0, 2}
    assert table.is_sortable
    assert not Section("t", header, rows[:2]).is_sortable
    assert not Section("t", ("", "", "", ""), rows).is_sortable
    assert not Section("t", header, (*rows, ("", "1", "2", "3"))).is_sortable  # it belongs to the row above
    assert not Section("t", header, (*rows, rows[0])).is_sortable


def test_what_is_absent_is_listed_and_has_no_section(written: dict[str, str]) -> None:
    html = written["audit"]
    assert "<li>User texts: no comparison has a user_text</li>" in html
    assert ">User texts</h2>" not in html


def test_a_page_begins_with_how_much_was_trained_on(written: dict[str, str]) -> None:
    html = written["evaluation"]
    assert str(SEEN) in html.partition('<p class="lead">')[2].partition("</p>")[0]
    assert f"{SEEN:,}" in "".join(Page(html).text)


def test_ids_stay_whole_in_tables(written: dict[str, str]) -> None:
    text = "".join(Page(written["evaluation"]).text)
    assert NASTY[3] in text


@pytest.mark.browser
@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [420, 1280])
def test_a_page_fits_and_runs_without_errors(name: str, width: int, browser: "Browser", files: dict[str, Path]) -> None:
    with opened(browser, files[name], width) as (page, messages):
        assert widths_that_do_not_fit(page) == []
        page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert widths_that_do_not_fit(page) == []
        assert messages == []
        assert page.title() != "hacked"
        assert page.locator("main h2").count() > 0
        too_small = "(e) => e.getBoundingClientRect().height > 0 && e.getBoundingClientRect().height < 7"
        assert page.locator(".picture text").evaluate_all(f"(all) => all.filter({too_small}).length") == 0


def column(page: "Tab", table: int, index: int) -> list[str]:
    """The texts of a column, from top to bottom."""
    rows = page.locator("table").nth(table).locator("tbody tr")
    return rows.evaluate_all(f"(all) => all.map((row) => row.cells[{index}].textContent)")  # type: ignore[no-any-return]


@pytest.mark.browser
def test_a_table_sorts_up_down_and_back(browser: "Browser", tmp_path: Path) -> None:
    figures = ("10.5 [9, 12]", "-", "-2.0", "1,200", "< 0.001")
    names = ("p10", "p9", "b", "a", "c")
    header, rows = ("person", "gain"), tuple(zip(names, figures, strict=True))
    content = {"title": "t", "pictures": {}, "sections": [Section("t", header, rows)]}
    write_page(tmp_path / "t.html", "prm.report", "curves.html", **content)
    with opened(browser, tmp_path / "t.html") as (page, messages):
        gain = page.get_by_role("button", name="gain")
        gain.click()
        assert column(page, 0, 1) == ["-2.0", "< 0.001", "10.5 [9, 12]", "1,200", "-"]
        assert page.locator("th[aria-sort=ascending]").inner_text().startswith("gain")
        gain.press("Enter")  # by keyboard
        assert column(page, 0, 1) == ["1,200", "10.5 [9, 12]", "< 0.001", "-2.0", "-"]
        gain.press("Enter")
        assert column(page, 0, 1) == list(figures)
        page.get_by_role("button", name="person").click()
        assert column(page, 0, 0) == ["a", "b", "c", "p9", "p10"]
        assert messages == []
    with opened(browser, tmp_path / "t.html", scripts=False) as (page, _):
        assert column(page, 0, 0) == list(names)
        assert page.get_by_role("button").count() == 0


@pytest.mark.browser
def test_a_script_that_got_in_does_not_run(browser: "Browser", files: dict[str, Path], tmp_path: Path) -> None:
    """The page names its own script by its digest: another one is refused, wherever it came from."""
    path, html = tmp_path / "broken.html", files["cold start"].read_text(encoding="utf-8")
    path.write_text(html.replace("<main>", "<main><script>document.title = 'hacked'</script>"), encoding="utf-8")
    with opened(browser, path) as (page, messages):
        assert page.title() != "hacked"
        assert "Content Security Policy" in messages[0]

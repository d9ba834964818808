"""Every kind of page in a browser: it runs without errors, fits a telephone, and its tables sort."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import open_browser, opened, widths_that_do_not_fit
from tests.prm.report.pages import PAGES

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write(tmp_path_factory.mktemp(name.replace(" ", "-"))) for name, write in PAGES.items()}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [420, 1280])
def test_a_page_fits_and_runs_without_errors(
    name: str, width: int, browser: "Browser", written: dict[str, Path]
) -> None:
    with opened(browser, written[name], width) as (page, messages):
        assert widths_that_do_not_fit(page) == []
        page.evaluate("document.querySelectorAll('details').forEach((details) => { details.open = true; })")
        assert widths_that_do_not_fit(page) == []
        assert messages == []
        assert page.title() != "hacked"
        assert page.locator("main h2").count() > 0
        too_small = "(e) => e.getBoundingClientRect().height > 0 && e.getBoundingClientRect().height < 7"
        assert page.locator(".picture text").evaluate_all(f"(all) => all.filter({too_small}).length") == 0


def column(page: "Page", table: int, index: int) -> list[str]:
    """The texts of a column, from top to bottom."""
    rows = page.locator("table").nth(table).locator("tbody tr")
    return rows.evaluate_all(f"(all) => all.map((row) => row.cells[{index}].textContent)")  # type: ignore[no-any-return]


def test_a_table_sorts_up_down_and_back(browser: "Browser", tmp_path: Path) -> None:
    from prm.report.page import write_page
    from prm.report.section import Section

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


def test_a_script_that_got_in_does_not_run(browser: "Browser", tmp_path: Path) -> None:
    """The page names its own script by its digest: another one is refused, wherever it came from."""
    path = PAGES["cold start"](tmp_path)
    html = path.read_text(encoding="utf-8")
    path.write_text(html.replace("<main>", "<main><script>document.title = 'hacked'</script>"), encoding="utf-8")
    with opened(browser, path) as (page, messages):
        assert page.title() != "hacked"
        assert "Content Security Policy" in messages[0]

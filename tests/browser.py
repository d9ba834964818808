"""A browser without a window, for tests marked `browser`; they skip where there is none."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@contextmanager
def open_browser() -> "Iterator[Browser]":
    """Start the system's Chromium; skips the test, and says why, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@contextmanager
def opened(
    browser: "Browser", path: Path, width: int = 1280, scripts: bool = True
) -> "Iterator[tuple[Page, list[str]]]":
    """(the page at this width, messages on its console); nothing outside the file is reachable."""
    context = browser.new_context(viewport={"width": width, "height": 900}, java_script_enabled=scripts, offline=True)
    page, messages = context.new_page(), list[str]()
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.goto(path.resolve().as_uri())
    yield page, messages
    context.close()


def widths_that_do_not_fit(page: "Page") -> list[str]:
    """What is wider than the window, if the page scrolls sideways."""
    found: list[str] = page.evaluate(
        """() => {
        const width = document.documentElement.clientWidth;
        if (document.documentElement.scrollWidth <= width) return [];
        return [...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > width + 1)
            .map((e) => e.tagName + " " + e.textContent.trim().slice(0, 40)).slice(0, 5);
    }"""
    )
    return found

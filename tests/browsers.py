"""A page in a real browser, and everything that it says or asks for."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page, sync_playwright

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome", "chrome")
_MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"


@contextmanager
def chromium() -> Iterator[Browser]:
    """The system's chromium or Chrome.

    Raises:
        LookupError: None is installed.
    """
    program = next(filter(None, map(shutil.which, (*_PROGRAMS, _MAC))), None)
    if program is None:
        raise LookupError("no chromium and no Chrome is on the PATH: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program)
        yield browser
        browser.close()


@dataclass
class Opened:
    """A page that is open.

    Attributes:
        page: The page.
        requests: Addresses that were asked for.
        complaints: What the console, a failing script or a dialog said.
    """

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def count(self, selector: str) -> int:
        """Elements that a selector finds."""
        return self.page.locator(selector).count()

    def texts(self, selector: str) -> list[str]:
        """The text of each element that a selector finds."""
        return self.page.locator(selector).all_inner_texts()

    @property
    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        width: int = self.page.evaluate("document.documentElement.scrollWidth - innerWidth")
        return width


def saved(document: str, folder: Path) -> str:
    """The address of a file that holds the document."""
    file = folder / "report.html"
    file.write_text(document, encoding="utf-8", newline="\n")
    return file.as_uri()


@contextmanager
def opened(
    browser: Browser, address: str, width: int = 1280, scheme: Literal["light", "dark"] = "light"
) -> Iterator[Opened]:
    """A page in a window of its own; nothing may have been complained of when it closes.

    Args:
        browser: Where to open it.
        address: Where it is.
        width: Width of the window in pixels.
        scheme: The colours that the reader prefers.
    """
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, reduced_motion="reduce"
    )
    seen = Opened(context.new_page())
    seen.page.on("request", lambda request: seen.requests.append(request.url))
    seen.page.on("console", lambda message: seen.complaints.append(message.text))
    seen.page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    seen.page.on("dialog", lambda dialog: seen.complaints.append(dialog.message))
    seen.page.goto(address)
    yield seen
    context.close()
    assert seen.complaints == []

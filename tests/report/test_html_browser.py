"""The report page in a browser: sorting, widths, errors, accessibility.

Needs Chromium with its driver, selenium and axe-core.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, full

from onnxprune.report import html
from onnxprune.report.data import Report

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
WIDTHS = (1280, 400)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER),
        reason="needs Chromium and chromedriver (Debian: chromium chromium-driver)",
    ),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(120)  # seconds; axe takes most of a minute on a busy machine
    yield driver
    driver.quit()


def opened(browser: Any, report: Report, folder: Path, width: int = WIDTHS[0]) -> None:
    """Load the page of a report in a window of that width."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(html.write(report, folder).as_uri())


def column(browser: Any, index: int) -> list[str]:
    """Texts of a column of the table of groups."""
    found: list[str] = browser.execute_script(
        "return [...document.querySelectorAll('#groups tbody tr')]"
        f".map((r) => r.cells[{index}].textContent.trim())"
    )
    return found


def test_click_sorts_the_table_and_second_click_reverses_it(browser: Any, tmp_path: Path) -> None:
    opened(browser, full(120), tmp_path)
    heads = browser.find_elements("css selector", "#groups thead button")
    after = [int(v) for v in column(browser, 3)]
    heads[3].click()
    assert [int(v) for v in column(browser, 3)] == sorted(after)
    heads[3].click()
    assert [int(v) for v in column(browser, 3)] == sorted(after, reverse=True)
    heads[1].click()
    names = column(browser, 1)
    assert [int(n.rpartition(".")[2]) for n in names] == list(range(120))
    assert browser.execute_script(
        "return [...document.querySelectorAll('#groups th[aria-sort]')].map((h) => h.cellIndex)"
    ) == [1]
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize(
    "name",
    ["/a/" + "very_long_name_without_a_break" * 8, HOSTILE, "/block/conv"],
    ids=["long", "hostile", "plain"],
)
def test_page_has_no_overflow_and_no_console_errors(
    browser: Any, tmp_path: Path, width: int, name: str
) -> None:
    opened(browser, full(30, name), tmp_path, width)
    browser.execute_script(
        "document.querySelectorAll('details').forEach((d) => { d.open = true; })"
    )
    assert (
        browser.execute_script(
            "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
        )
        == 0
    )
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_violation(browser: Any, tmp_path: Path, width: int) -> None:
    found = importlib.util.find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("needs axe-core-python")
    opened(browser, full(30), tmp_path, width)
    browser.execute_script(
        "document.querySelectorAll('details').forEach((d) => { d.open = true; })"
    )
    browser.execute_script((Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8"))
    result = browser.execute_async_script(
        "const done = arguments[0]; axe.run().then("
        "done, (problem) => done({ violations: [String(problem)], passes: [] }))"
    )
    assert not result["violations"] and len(result["passes"]) > 20


def test_page_is_readable_without_scripts(browser: Any, tmp_path: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        opened(browser, full(), tmp_path)
        text = browser.find_element("css selector", "main").text
        assert "Pruned groups" in text and not browser.find_elements("css selector", "th button")
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})

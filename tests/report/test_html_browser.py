"""The report page in a browser: sorting, widths, errors, accessibility.

Needs Chromium with its driver, selenium and axe-core.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pages import HOSTILE, full

from onnxprune.report import html
from onnxprune.report.data import Report
from onnxprune.report.runs import Run

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


def opened(
    browser: Any, report: Report, folder: Path, width: int = WIDTHS[0], runs: Sequence[Run] = ()
) -> None:
    """Load the page of a report in a window of that width."""
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(html.write(report, folder, runs).as_uri())


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


@pytest.fixture
def dark(browser: Any) -> Iterator[None]:
    theme = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", theme)
    yield
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


@pytest.mark.parametrize("width", WIDTHS)
def test_axe_finds_no_violation(browser: Any, tmp_path: Path, width: int) -> None:
    check_with_axe(browser, tmp_path, width)


def test_axe_finds_no_violation_in_the_dark_theme(browser: Any, tmp_path: Path, dark: None) -> None:
    check_with_axe(browser, tmp_path, WIDTHS[0])


def check_with_axe(browser: Any, tmp_path: Path, width: int) -> None:
    """Open a page with everything on it, runs included, and let axe look for violations."""
    found = importlib.util.find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("needs axe-core-python")
    runs = [Run("other", full(3)), Run("third", full(3))]
    opened(browser, full(30), tmp_path, width, runs)
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


@pytest.mark.parametrize("name", ["=1+1|cmd", HOSTILE], ids=["formula", "hostile"])
def test_tables_are_downloaded_as_csv_without_formulas(
    browser: Any, tmp_path: Path, name: str
) -> None:
    folder = tmp_path / "downloads"
    browser.execute_cdp_cmd(
        "Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(folder)}
    )
    opened(browser, full(3, name), tmp_path)
    browser.execute_script(
        "document.querySelector('#groups').closest('.scroll').previousElementSibling"
        ".querySelector('button').click()"
    )
    for _ in range(100):
        if list(folder.glob("*.csv")):
            break
        time.sleep(0.1)
    text = (folder / "Groups.csv").read_text(encoding="utf-8-sig")
    rows = list(csv.reader(io.StringIO(text)))
    assert [len(row) for row in rows] == [8] * 4
    # a formula begins with one of these
    assert not [cell for row in rows for cell in row if cell[:1] in "=+@" and cell]
    first = full(3, name).groups[0]
    assert rows[1][1].removeprefix("'").startswith(name[:20])
    assert [float(rows[1][2]), float(rows[1][3])] == [first.before, first.after]


def test_search_and_only_changed_hide_rows_and_mark_boxes(browser: Any, tmp_path: Path) -> None:
    opened(browser, full(60), tmp_path)
    shown = (
        "return [...document.querySelectorAll('#groups tbody tr')].filter(r => !r.hidden).length"
    )
    browser.find_element("css selector", "input[aria-label='Search groups']").send_keys("conv.1")
    # conv.1 and conv.10 to conv.19
    assert browser.execute_script(shown) == 11
    boxes = browser.find_elements("css selector", ".tools input[type=checkbox]")
    boxes[0].click()
    unchanged = [g.name for g in full(60).groups if g.before == g.after and "conv.1" in g.name]
    assert browser.execute_script(shown) == 11 - len(unchanged)
    browser.find_element("css selector", "input[aria-label='Search nodes']").send_keys("conv.59")
    assert len(browser.find_elements("css selector", ".picture .found")) == 1
    picture = browser.find_element("css selector", "svg.picture")
    width = float(picture.get_attribute("width"))
    browser.find_element("css selector", "button[aria-label='Zoom in']").click()
    assert float(picture.get_attribute("width")) == pytest.approx(1.25 * width)
    assert browser.get_log("browser") == []


def test_theme_button_switches_the_theme(browser: Any, tmp_path: Path) -> None:
    opened(browser, full(3), tmp_path)
    background = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(background)
    button = browser.find_element("css selector", "#brand button")
    button.click()
    assert browser.execute_script(background) != light
    button.click()
    assert browser.execute_script(background) == light

"""The page in a real browser: drawn, quiet, readable on a laptop and a phone, by day and night."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from chromium import Tab, binary, tab

from autoparallel.reporting.report import read_report, write_report

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(binary() is None, reason="no chromium on PATH and CHROMIUM is not set"),
]
READY = "document.documentElement.dataset.ready"
DRAWN = "[...document.querySelectorAll('.chart')].filter((box) => box.querySelector('.main-svg'))"
MARKS = ".cartesianlayer .trace path, .cartesianlayer .points path, .cartesianlayer image"
SCREENS = [(1280, 800, False), (1280, 800, True), (390, 844, False), (390, 844, True)]


@pytest.fixture(scope="module")
def page(report, tmp_path_factory):
    """A report with a baseline, so that every kind of figure is on it."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report(report, path)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Tab]:
    with tab(tmp_path_factory.mktemp("profile")) as found:
        yield found


CONTRAST = """(() => {
  const level = (c) => { c /= 255; return c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4; };
  const light = (text) => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number);
    return .2126 * level(r) + .7152 * level(g) + .0722 * level(b);
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const ratio = (box, key) => {
    const ink = light(getComputedStyle(box)[key]);
    return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
  };
  const words = [...document.querySelectorAll('h1, h2, h3, p, a, td, dt, figcaption, summary')];
  const ticks = [...document.querySelectorAll('.xtick text, .ytick text, .legendtext')];
  return Math.min(...words.map((w) => ratio(w, 'color')), ...ticks.map((t) => ratio(t, 'fill')));
})()"""


@pytest.mark.parametrize(("width", "height", "dark"), SCREENS)
def test_it_is_drawn_and_readable_without_a_word_on_the_console(browser, page, width, height, dark):
    browser.errors.clear()
    browser.requests.clear()
    browser.emulate(width, height, dark=dark, touch=width < 600)
    browser.open(page, READY)
    assert browser.errors == []
    assert set(browser.requests) == {page.as_uri()}
    count = browser.value(f"{DRAWN}.length")
    assert count == browser.value("document.querySelectorAll('.chart').length") >= 16
    assert (
        browser.value(f"{DRAWN}.filter((b) => !b.querySelector('{MARKS}')).map((b) => b.id)") == []
    )
    assert browser.value("document.getElementById('decision').textContent").startswith("Take tp")
    assert browser.value("document.documentElement.scrollWidth") <= width
    outside = (
        "[...document.querySelectorAll('.chart')].filter((b) => b.scrollWidth > b.clientWidth + 1)"
    )
    assert browser.value(f"{outside}.map((b) => b.id)") == []
    assert browser.value(CONTRAST) >= 4.5


def test_colours_follow_the_reader_and_the_keyboard_goes_everywhere(browser, page):
    browser.emulate(1280, 800, dark=False)
    browser.open(page, READY)
    ink = "getComputedStyle(document.querySelector('.xtick text')).fill"
    day = browser.value(ink)
    browser.emulate(1280, 800, dark=True)
    browser.value(
        f"new Promise((d) => {{const t = setInterval(() => {{if ({ink} !== '{day}')"
        " {clearInterval(t); d(1)}}, 20)})"
    )
    browser.press("Tab")
    assert browser.value("document.activeElement.className") == "skip"
    browser.press("Enter")
    assert browser.value("location.hash") == "#report"
    reached = set()
    for _ in range(12):
        browser.press("Tab")
        reached.add(
            browser.value("document.activeElement.classList[0] || document.activeElement.tagName")
        )
    assert {"scroll", "chart", "SUMMARY"} <= reached


def test_several_runs_on_one_page(browser, run_folder, other_folder, tmp_path):
    path = tmp_path / "both.html"
    write_report(read_report([run_folder, other_folder]), path)
    browser.errors.clear()
    browser.emulate(390, 844, touch=True)
    browser.open(path, READY)
    assert browser.errors == []
    assert browser.value(f"{DRAWN}.length") >= 8
    assert browser.value("document.documentElement.scrollWidth") <= 390

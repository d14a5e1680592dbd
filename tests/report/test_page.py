"""The page in a real browser: it speaks to nobody, has no errors, fits a phone, and is dark where that is preferred."""

from pathlib import Path

import pytest

from tests.report.browser import Browser

SIZES = {"phone": (360, 740), "narrow": (320, 600), "desk": (1280, 900)}


@pytest.fixture(params=["page", "bare"])
def shown(request: pytest.FixtureRequest, browser: Browser) -> Browser:
    """The page of a whole run, and of one with hardly anything, opened."""
    path: Path = request.getfixturevalue(request.param)
    browser.console()
    browser.requests()
    browser.open(path.as_uri())
    return browser


def test_the_browser_would_see_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    """Or the other tests could not fail."""
    wrong = tmp_path / "wrong.html"
    wrong.write_text(
        '<body style="width: 2000px"><img src="http://elsewhere.invalid/a.png">'
        "<script>console.error('an error'); document.title = 'broken'</script>"
    )
    browser.look_like(360, 740, dark=False)
    browser.open(wrong.as_uri())
    assert any("an error" in line for line in browser.console())
    assert "http://elsewhere.invalid/a.png" in browser.requests()
    assert browser.run("return document.documentElement.scrollWidth > innerWidth")
    assert browser.run("return [...document.images].some(image => !image.naturalWidth)")
    assert browser.run("return document.title") == "broken"


def test_the_page_asks_nobody_and_no_name_does_harm(shown: Browser) -> None:
    asked = shown.requests()
    assert [url for url in asked if url.startswith("file:")] == [shown.run("return location.href")]
    assert all(url.startswith(("file:", "data:")) for url in asked)
    assert shown.console() == []
    assert shown.run("return document.scripts.length") == 0
    assert shown.run("return document.title").endswith(": report of a run")
    assert shown.run("return performance.getEntriesByType('resource').filter(e => !e.name.startsWith('data:'))") == []


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_window(shown: Browser, size: str) -> None:
    shown.look_like(*SIZES[size], dark=False)
    assert shown.run("return [document.documentElement.scrollWidth <= innerWidth, innerWidth]") == [
        True,
        SIZES[size][0],
    ]
    sticking_out = """
        const inside = element => element.closest('.wide') || element.closest('svg');
        return [...document.body.querySelectorAll('*')].filter(element => !inside(element)
            && element.getBoundingClientRect().right > innerWidth + 1).map(element => element.outerHTML.slice(0, 200))
    """
    assert shown.run(sticking_out) == []
    assert shown.run("return [...document.images].filter(i => !(i.naturalWidth > 0 && i.clientWidth > 0)).length") == 0
    smallest = "return Math.min(...[...document.querySelectorAll('p, dd, dt, td, th, span, figcaption')].map("
    assert shown.run(f"{smallest}one => parseFloat(getComputedStyle(one).fontSize)))") >= 12


def test_dark_where_that_is_preferred(shown: Browser, tmp_path: Path) -> None:
    def brightness(what: str, of: str) -> float:
        colour = shown.run(f"return getComputedStyle(document.querySelector('{of}')).{what}")
        return sum(float(part) for part in colour.partition("(")[2].rstrip(")").split(",")[:3]) / 3

    for dark in (False, True):
        shown.look_like(1280, 900, dark)
        for what, of in (("color", "body"), ("color", "section .missing, section .about")):
            paper = brightness("backgroundColor", "section")
            assert (paper < 60) == dark
            assert abs(brightness(what, of) - paper) > 90  # it can be read
        shown.screenshot(tmp_path / f"{dark}.png")
        assert (tmp_path / f"{dark}.png").stat().st_size > 10_000


def test_a_whole_run_shows_everything(browser: Browser, page: Path) -> None:
    browser.open(page.as_uri())
    assert browser.run("return [...document.querySelectorAll('h2')].map(one => one.textContent)") == [
        "The run",
        "Curves",
        "Filters of the first layer",
        "A batch as the network sees it",
        "Predictions",
        "Nearest neighbours",
        "What is taken for what",
        "Classes",
        "Starts",
        "Pictures that did not decode",
        "Where to look",
    ]
    assert browser.run("return document.querySelectorAll('.tiles img').length") == 12  # at an eighth of 96
    assert browser.run("return document.querySelectorAll('.batch img').length") == 20
    assert browser.run("return document.querySelectorAll('.neighbours img').length") == 5 * 7
    assert browser.run("return document.querySelectorAll('section svg').length") >= 6
    ink = "return getComputedStyle(document.querySelector('svg text')).fill"
    browser.look_like(1280, 900, dark=False)
    light = browser.run(ink)
    browser.look_like(1280, 900, dark=True)
    assert browser.run(ink) != light

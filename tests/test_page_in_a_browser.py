"""The page in Chromium, from a file: no request, no error in the console, and what a reader can do with it."""

import shutil
from pathlib import Path

import pytest
import torch
from test_page import FEW, Page, vae, write

from pyro_vae import data, page

playwright = pytest.importorskip("playwright.sync_api", reason="The test opens a browser by playwright: install [dev].")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(CHROMIUM is None, reason="The test opens a page in Chromium: install the package chromium."),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """A page of two runs."""
    digits, folder = data.load("digits"), tmp_path_factory.mktemp("page")
    history = {"train": [9.0, 4.0, 3.0], "valid": [8.0, 5.0, 2.0], "seconds": [1.0, 1.0, 1.0]}
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_vae.report.answers.SIMULATED", 20)
        runs = [write(folder / name, vae(digits), digits, history) for name in ("a & b", "<c>")]
        (folder / "page.html").write_text(page.html(runs, **FEW))
    return folder / "page.html"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def sheet(browser, file):
    """The page, opened; at the end the test fails if the page wrote to the console or sent a request."""
    sheet = browser.new_page(viewport={"width": 1400, "height": 900})
    events = []
    sheet.on("console", lambda message: events.append(message.text))
    sheet.on("pageerror", lambda error: events.append(str(error)))
    sheet.on("request", lambda request: events.append(request.url))
    sheet.goto(file.as_uri())
    yield sheet
    sheet.close()
    assert [event for event in events if not event.startswith("data:")] == [file.as_uri()]


def test_a_slider_and_a_start_change_the_picture(sheet):
    box = sheet.locator(".dimension").first
    tile, slider = box.locator(".tile"), box.locator("input")
    pictures = [tile.screenshot()]
    slider.focus()
    sheet.keyboard.press("End")
    assert box.locator("output").inner_text() == "3.0 sd"
    assert slider.get_attribute("aria-valuetext") == "3.0 sd"
    pictures.append(tile.screenshot())
    sheet.keyboard.press("ArrowLeft")
    assert box.locator("output").inner_text() == "2.5 sd"
    sheet.locator("#walk input[type=radio]").nth(1).check(force=True)
    pictures.append(tile.screenshot())
    assert len({*pictures}) == 3


def test_a_table_sorts_by_numbers_and_by_names(sheet):
    table = sheet.locator("#evaluation table.sortable").first
    for column, name in ((5, "-log p(x)"), (0, "split")):
        for order in ("ascending", "descending"):
            head = table.locator("th[scope=col]").nth(column)
            assert head.inner_text().strip("↕↑↓ ") == name
            head.locator("button").click()
            assert head.get_attribute("aria-sort") == order
            cells = [row.locator("th, td").nth(column).inner_text() for row in table.locator("tbody tr").all()]
            keys = [float(cell.split()[0].replace(",", "")) if column else cell for cell in cells]
            assert keys == sorted(keys, reverse=order == "descending")


def test_the_pointer_and_the_keys_read_a_curve(sheet):
    chart, tip = sheet.locator("[data-chart] > svg").first, sheet.locator("#tip")
    box = chart.bounding_box()
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    sheet.mouse.move(box["x"] + 0.55 * box["width"], box["y"] + 0.5 * box["height"])
    assert "epoch 2" in tip.inner_text()
    assert "a & b: train, the objective: 4.0000" in tip.inner_text()
    sheet.mouse.move(2, 2)
    assert tip.is_hidden()
    chart.focus()
    sheet.keyboard.press("Home")
    assert "epoch 1" in tip.inner_text()
    assert "<c>: valid, -ELBO: 8.0000" in tip.inner_text()
    sheet.keyboard.press("Escape")
    assert tip.is_hidden()


def test_a_point_shows_its_label_and_its_image(sheet):
    chart, tip = sheet.locator(".points > svg").first, sheet.locator("#tip")
    chart.focus()
    sheet.keyboard.press("Home")
    sheet.keyboard.press("ArrowRight")
    assert tip.inner_text() == f"label {data.load('digits').test.labels[1]}, test datum 1"
    assert tip.locator("svg use").count() == 1
    button = sheet.locator(".points button").first
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    labels = data.load("digits").test.labels
    assert sheet.locator(".points").first.locator("circle.chosen").count() == int((labels == labels.min()).sum())


def test_a_chosen_image_shows_its_draws(sheet):
    article = sheet.locator("#predictive article").first
    before = article.locator(".draws").screenshot()
    article.locator("input").nth(3).check(force=True)
    assert article.locator(".draws").screenshot() != before
    assert {tile.get_attribute("data-row") for tile in article.locator(".draws .tile").all()} == {"3"}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_has_contrast(sheet, scheme):
    sheet.set_viewport_size({"width": 400, "height": 800})
    sheet.emulate_media(color_scheme=scheme)
    assert sheet.evaluate("document.documentElement.scrollWidth") <= 400
    colours = sheet.evaluate("['color', 'backgroundColor'].map((name) => getComputedStyle(document.body)[name])")
    levels = [sum(map(int, colour.strip("rgb()").split(","))) / 765 for colour in colours]
    assert levels[0] < 0.2 < 0.9 < levels[1] if scheme == "light" else levels[1] < 0.2 < 0.9 < levels[0]


def test_paper_has_all_details_and_all_frames(sheet):
    frames = "document.querySelector('.dimension .tile').getAttribute('viewBox')"
    before = sheet.evaluate(frames)
    sheet.evaluate(
        "window.printed = []; addEventListener('beforeprint', () => printed.push("
        f"document.querySelectorAll('details:not([open])').length, {frames}))"
    )
    content = sheet.pdf(format="A4")
    assert content.startswith(b"%PDF")
    assert sheet.evaluate("printed") == [0, "0 0 104 8"]
    assert sheet.evaluate(frames) == before
    assert sheet.evaluate("document.querySelectorAll('details:not([open])').length") > 0


def test_without_scripts_the_content_is_there(browser, file):
    sheet = browser.new_context(java_script_enabled=False).new_page()
    sheet.goto(file.as_uri())
    assert sheet.locator("[data-chart] path.line").first.is_visible()
    assert sheet.locator("h1").inner_text() == "Report of 2 runs"
    sheet.close()
    assert Page(Path(file).read_text()).sections >= {"comparison", "curves", "walk"}

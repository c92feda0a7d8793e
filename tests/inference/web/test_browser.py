"""The page in a real browser: what a person does with it, and what hostile files and words do to it."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mg_llava.inference import Predictor
from mg_llava.inference.web.server import PageServer
from tests.inference.serving_toys import a_picture
from tests.inference.web.page_toys import FOUND, finding_predictor, page_of

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCRIPT = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"


@pytest.fixture(scope="module")
def predictor(toy_paths: dict[str, str]) -> Predictor:
    return finding_predictor(toy_paths, max_new_tokens=12)


@pytest.fixture(scope="module")
def server(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PageServer]:
    example = tmp_path_factory.mktemp("examples") / "one.png"
    a_picture(1).save(example)
    with page_of(predictor, [example]) as server:
        yield server


@pytest.fixture
def page(server: PageServer) -> Iterator[Any]:
    """The page, which may ask nobody but its server."""
    if CHROMIUM is None:
        pytest.skip("no chromium is installed")
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=30_000)  # which the page's own limit does not change
    home, strangers, faults = f"http://localhost:{server.port}", list[str](), list[str]()
    with sync_playwright() as driver:
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        page = browser.new_page(viewport={"width": 1180, "height": 760})
        page.set_default_timeout(30_000)
        page.on("request", lambda one: None if one.url.startswith((home, "data:")) else strangers.append(one.url))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto(home)
        yield page
        browser.close()
    assert strangers == [] and faults == []


def shows(locator: Any) -> Any:
    """What a locator is waited for to show."""
    from playwright.sync_api import expect

    return expect(locator)


def upload(page: Any, file: Path) -> None:
    page.set_input_files("#file", file)


def texts(page: Any, selector: str) -> list[str]:
    return page.locator(selector).all_text_contents()


def answer(page: Any, question: str) -> dict[str, str]:
    page.fill("#question", question)
    page.click("#send")
    page.wait_for_selector("#send:not([disabled])")
    return {side: texts(page, f"#turns-{side} p")[-1] for side in ("with", "without")}


def drag(page: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Between two points in pixels of the picture, 64 x 48."""
    corner = "([x, y]) => { const m = stage.getScreenCTM(); return [m.a * x + m.e, m.d * y + m.f] }"
    (x1, y1), (x2, y2) = page.evaluate(corner, start), page.evaluate(corner, end)
    page.mouse.move(x1, y1)
    page.mouse.down()
    page.mouse.move((x1 + x2) / 2, (y1 + y2) / 2)
    with saving(page):
        page.mouse.move(x2, y2)
        page.mouse.up()


@contextlib.contextmanager
def saving(page: Any) -> Iterator[None]:
    """Until the server has the boxes that the block changes, and the page has drawn up the table of its answer."""
    page.locator("#boxes tbody tr").evaluate_all("rows => { for (const row of rows) row.dataset.old = true }")
    with page.expect_response(lambda one: one.url.endswith("/boxes")):
        yield
    page.wait_for_selector("#boxes tr[data-old]", state="detached")


def boxes(server: PageServer) -> list[Any]:
    """Of the newest board."""
    return list(next(reversed(server.app.boards._boards.values())).boxes)


@pytest.mark.slow
def test_a_person_uploads_draws_switches_asks_and_reads(
    page: Any, server: PageServer, predictor: Predictor, tmp_path: Path
) -> None:
    picture = a_picture()
    picture.save(tmp_path / "picture.png")
    upload(page, tmp_path / "picture.png")
    page.wait_for_selector("#stage rect.box")
    assert page.locator("#boxes tbody tr").count() == 2 and texts(page, "#stage .tag") == ["a 0.90", "b 0.40"]
    drag(page, (26, 30), (10, 45))
    assert boxes(server)[2].box == pytest.approx((10, 30, 26, 45), abs=0.5)
    drag(page, (18, 38), (20, 36))
    assert boxes(server)[2].box == pytest.approx((12, 28, 28, 43), abs=0.5)
    drag(page, (28, 43), (30, 40))
    assert boxes(server)[2].box == pytest.approx((12, 28, 30, 40), abs=0.7)
    page.fill("#boxes tbody tr:nth-child(3) input:not([type=checkbox])", "mine")
    with saving(page):
        page.press("#boxes tbody tr:nth-child(3) input:not([type=checkbox])", "Enter")
    shows(page.locator("#boxes tbody tr:nth-child(3) input:not([type=checkbox])")).to_be_focused()
    with saving(page):  # the picture shows the change at once, before the server has it
        page.uncheck("#boxes tbody tr:nth-child(1) input[type=checkbox]")
    page.wait_for_selector("#stage rect.off")
    mine = boxes(server)[2]
    assert (mine.label, [one.on for one in boxes(server)]) == ("mine", [False, True, True])
    given = {"boxes": [FOUND["boxes"][1], mine.box], "labels": ["b", "mine"], "scores": [0.4, 1.0]}
    found = answer(page, "what is there?")
    assert found["with"] == predictor.predict(picture, "what is there?", given).text
    assert found["without"] == predictor.predict(picture, "what is there?", []).text
    page.click("#why-with")
    page.wait_for_selector("#stage .heat")
    assert page.locator("#stage .heat").count() == 4 and "Leave one out" in page.text_content("#method")
    assert [name for name in texts(page, "#share-rows td:first-child") if "mine" in name]
    page.click("#tab-input")
    page.wait_for_selector("#fates tr")
    assert "2 of boxes" in page.text_content("#tokens") and "<image>" in page.text_content("#prompt")
    page.click("#tab-ask")
    page.locator("#stage rect.chosen, #stage rect.box").last.click()
    with saving(page):
        page.keyboard.press("Delete")
    assert [one.label for one in boxes(server)] == ["a", "b"]
    with saving(page):
        page.click("#boxes tbody tr:nth-child(1) button")
    assert [one.label for one in boxes(server)] == ["b"]
    page.click("#examples button")
    shows(page.locator("#boxes tbody tr")).to_have_count(2)
    assert texts(page, "#turns-with p") == []


@pytest.mark.slow
def test_files_that_are_no_pictures_get_a_message(page: Any, server: PageServer, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture at all")
    Image.new("1", (20_000, 10_000)).save(tmp_path / "large.png")
    for name, said in (("text.jpg", "it is no picture"), ("large.png", "200000000 pixels")):
        upload(page, tmp_path / name)
        shows(page.locator("#message")).to_contain_text(said)
        assert page.is_visible("#message") and "Traceback" not in page.content()
    a_picture().save(tmp_path / "good.png")
    upload(page, tmp_path / "good.png")
    page.wait_for_selector("#stage rect.box")
    assert page.is_hidden("#message")
    page.click("#send")
    assert page.text_content("#message") == "type a question first"


@pytest.mark.slow
def test_markup_in_titles_names_questions_and_answers_stays_text(
    page: Any, server: PageServer, predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    stops = type(predictor.front_end.stops)
    monkeypatch.setattr(stops, "read", lambda self, ids: SCRIPT)
    page.click("#examples button")
    page.wait_for_selector("#stage rect.box")
    name = "#boxes tbody tr:nth-child(1) input:not([type=checkbox])"
    page.fill(name, SCRIPT)
    with saving(page):
        page.press(name, "Enter")
    shows(page.locator("#stage .tag").first).to_contain_text(SCRIPT)
    assert answer(page, SCRIPT) == {"with": SCRIPT, "without": SCRIPT}
    page.click("#why-with")
    page.wait_for_selector("#shares:not([hidden])")
    assert any(SCRIPT in text for text in texts(page, "#share-rows td"))
    page.click("#tab-input")
    page.wait_for_selector("#fates tr")
    assert SCRIPT in texts(page, "#fates td") and SCRIPT in page.text_content("#prompt")
    assert page.title() == "<b>toy</b>" == page.text_content("#title")
    assert page.evaluate("document.querySelectorAll('body script, img[src=x], h1 b').length") == 0

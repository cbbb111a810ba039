"""A report has the numbers of its evaluation, is well formed, and asks for nothing from outside."""

import asyncio
import functools
import html
import http.server
import io
import re
import threading
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import CHROMIUM, chromium, open_tab
from evaluated import CATEGORIES, evaluation, overlaps, segmentations
from PIL import Image

from detr_jax.data.categories import coco_panoptic
from detr_jax.evaluation.evaluated_image import EvaluatedImage
from detr_jax.evaluation.panoptic_quality import PanopticQuality
from detr_jax.evaluation.report import Picture, images_to_draw, write_report
from detr_jax.evaluation.segment_matches import match_segments
from detr_jax.visualize import side_by_side

PRECISION = {"AP": 0.578, "AP50": 0.8, "AP75": None, "per_class": {7: {"AP": 0.512}, "3": 0.431}}


def png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def picture(number):
    noise = np.random.default_rng(number).integers(90, 160, (64, 64, 3), np.uint8)
    return png(side_by_side(noise, *segmentations(number)))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The file of a report with everything in it, and the result that it reports."""
    images, result = evaluation(40)
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    write_report(
        path,
        result={"panoptic": result, "boxes": PRECISION, "masks": {"AP": None}},
        images=images,
        categories=CATEGORIES,
        title="Model <one> & $two",
        curves=png(np.full((40, 80, 3), 255, np.uint8)),
        pictures=[
            Picture(group, images[position].image_id, picture(position))
            for group, position in images_to_draw(images, CATEGORIES, 2)
        ],
        facts={"Checkpoint": "runs/<x>", "Images per second": 12.5},
    )
    return path, result


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects text, attributes and ids."""

    VOID = {"meta", "link", "img", "br", "circle", "line", "rect", "polyline"}

    def __init__(self, text):
        super().__init__()
        self.open, self.attributes, self.text, self.tags = [], [], [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def page_of(path):
    page = Page(path.read_text())
    return page, " ".join("".join(page.text).split())


def test_numbers_are_those_of_the_evaluation(report):
    path, result = report
    page, text = page_of(path)
    assert f"PQ is {100 * result['All']['pq']:.1f} on 40 images" in text
    for group in ("All", "Things", "Stuff"):
        assert all(f"{100 * result[group][key]:.1f}" in text for key in ("pq", "sq", "rq"))
    assert "57.8" in text and "51.2" in text and "43.1" in text  # box AP: whole, and of two classes
    assert "nan" not in text.lower() and "None" not in text
    assert "43.4" in text and "COCO val2017" in text and "no yardstick" in text


def test_names_are_text_not_markup(report):
    page, text = page_of(report[0])
    assert (
        "star <b>" in text and "square & co" in text and "Model <one> & $two" in text and "runs/<x>" in text
    )
    assert not {"b", "one", "i>"} & set(page.tags)
    assert "never seen" not in text and "1 class without segments" in text


def test_the_page_is_accessible(report):
    page, _ = page_of(report[0])
    tags = dict.fromkeys(page.tags)
    assert all(tag in tags for tag in ("header", "nav", "main", "footer", "h1", "h2", "title"))
    assert dict(page.attributes)["html"] == {"lang": "en"}
    ids = [attributes["id"] for _, attributes in page.attributes if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.attributes if tag == "a"]
    assert links and all(link.removeprefix("#") in ids for link in links)
    for tag, attributes in page.attributes:
        assert tag != "img" or attributes["alt"]
        assert tag != "svg" or attributes["aria-label"]
        assert attributes.get("class") != "scroll" or attributes["tabindex"] == "0"


def test_nothing_comes_from_outside(report):
    text = report[0].read_text()
    page = Page(text)
    sources = [a[key] for _, a in page.attributes for key in ("src", "href") if key in a]
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert not re.search(r"url\(|@import|https?://|fetch\(|XMLHttp", text)


def test_images_are_shown_with_their_quality(report):
    page, text = page_of(report[0])
    assert [word for word in ("Best", "Median", "Worst") if word in text] == ["Best", "Median", "Worst"]
    alts = [attributes["alt"] for tag, attributes in page.attributes if tag == "img"]
    assert len(alts) == 7 and re.search(r"folder/\d+ & <i>.jpg: .* PQ \d+\.\d", alts[1])


def test_coco_is_compared_in_the_same_table(tmp_path):
    images, result = evaluation(0)
    categories = coco_panoptic()
    empty = {key: {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 0} for key in ("All", "Things", "Stuff")}
    write_report(
        tmp_path / "a.html", result={"panoptic": empty}, images=images, categories=categories, title="COCO"
    )
    page, text = page_of(tmp_path / "a.html")
    assert "details" not in page.tags and "UPSNet" in text and "compare with care" in text
    assert "This evaluation0 images" in text.replace("> ", ">") and "nan" not in text.lower()


def test_an_evaluation_of_boxes_alone_has_a_report(tmp_path):
    write_report(
        tmp_path / "a.html", result={"boxes": PRECISION}, images=[], categories=CATEGORIES, title="Boxes"
    )
    _, text = page_of(tmp_path / "a.html")
    assert "57.8" in text and "Detection evaluation" in text and "Where PQ is lost" not in text


def test_images_without_segments_have_a_report(tmp_path):
    images, result = evaluation(3)
    nothing = [image._replace(matches=evaluation_without_segments()) for image in images]
    empty = {key: {"pq": 0.0, "sq": 0.0, "rq": 0.0, "n": 0} for key in ("All", "Things", "Stuff")}
    write_report(
        tmp_path / "a.html", result={"panoptic": empty}, images=nothing, categories=CATEGORIES, title="Empty"
    )
    _, text = page_of(tmp_path / "a.html")
    assert "without any segment" in text and "nan" not in text.lower()


def test_a_perfect_evaluation_has_nothing_to_explain(tmp_path):
    quality = PanopticQuality(CATEGORIES)
    truth, _ = segmentations(1)
    matches = quality.add(overlaps(truth, truth), truth.segments_info, truth.segments_info, 1)
    images = [EvaluatedImage(1, "not unicode \udcff.jpg", (64, 64), matches)]
    write_report(
        tmp_path / "a.html",
        result={"panoptic": quality.result()},
        images=images,
        categories=CATEGORIES,
        title="Perfect",
        pictures=[Picture("Best", 1, picture(1))],
    )
    _, text = page_of(tmp_path / "a.html")
    assert "PQ is 100.0 on 1 image." in text and "missing points" not in text and "weakest" not in text
    assert "No segment was found as another class." in text and "not unicode ?.jpg" in text


def evaluation_without_segments():
    return match_segments(np.array([[100]]), [], [])


class Server(http.server.SimpleHTTPRequestHandler):
    requests: list = []

    def do_GET(self):
        self.requests.append(self.path)
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def address(report):
    """The report, served on this machine; `Server.requests` lists what was asked for."""
    Server.requests = []
    handler = functools.partial(Server, directory=str(report[0].parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/report.html"
        server.shutdown()


CONTRAST = """[...document.querySelectorAll('main *, header *, nav *, footer *')].filter(one =>
  [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()) && one.checkVisibility()
  && !one.closest('svg, .sr')).map(one => {
    const channels = color => color.startsWith('color(')
      ? color.match(/[\\d.e-]+/g).map(Number) : color.match(/[\\d.]+/g).map((v, i) => i < 3 ? v / 255 : +v);
    let parts = [], at = one;
    for (; at; at = at.parentElement) parts.push(channels(getComputedStyle(at).backgroundColor));
    let back = [1, 1, 1];
    for (const [r, g, b, a = 1] of parts.reverse()) back = [r, g, b].map((v, i) => a * v + (1 - a) * back[i]);
    const light = color => color.slice(0, 3).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
      .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
    const [x, y] = [light(channels(getComputedStyle(one).color)), light(back)];
    return [(Math.max(x, y) + .05) / (Math.min(x, y) + .05), one.outerHTML.slice(0, 120)];
  }).filter(([ratio]) => ratio < 4.5)"""


async def look(port, address, width, dark, folder):
    """Opens the report, and returns what is wrong with it."""
    tab = await open_tab(port)
    await tab.show(address, width, dark)
    await tab.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    wide = await tab.evaluate("document.documentElement.scrollWidth")
    broken = await tab.evaluate("[...document.images].filter(one => !one.naturalWidth).length")
    pale = await tab.evaluate(CONTRAST)
    background = await tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(15, 19, 27)") == dark
    await tab.screenshot(folder / f"{width}_{'dark' if dark else 'light'}.png")
    found = {"wider than the window": wide > width, "broken images": broken, "low contrast": pale}
    found |= {"logged": tab.problems(), "requested": set(tab.requests()) - {address}}
    return {name: value for name, value in found.items() if value}


async def sort_by_keyboard(port, address):
    """Opens the table of classes and sorts it by PQ, with keys alone; returns the order of PQ."""
    tab = await open_tab(port)
    await tab.show(address, 900, False)
    await tab.call("Page.bringToFront")
    focused = "document.activeElement.textContent"
    orders = []
    for _ in range(60):
        await tab.press("Tab", 9)
        name = await tab.evaluate(focused)
        if name == "All numbers by class":
            await tab.press("Enter", 13, "\r")
        if name == "PQ":
            for _ in range(2):
                await tab.press("Enter", 13, "\r")
                orders.append(
                    await tab.evaluate(
                        "[...document.activeElement.closest('table').tBodies[0].rows]"
                        ".map(row => +row.cells[2].dataset.value)"
                    )
                )
            break
    return orders


@pytest.mark.slow
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"{CHROMIUM} is not installed")
def test_a_browser_shows_it_without_error_or_request(address, tmp_path):
    async def opened(port):
        for width in (360, 900, 1600):
            for dark in (False, True):
                found = await look(port, address, width, dark, tmp_path)
                assert not found, (width, dark, found)
        falling, rising = await sort_by_keyboard(port, address)
        assert falling == sorted(falling, reverse=True) and rising == sorted(rising)

    with chromium(tmp_path / "profile") as port:
        asyncio.run(opened(port))
    assert set(Server.requests) == {"/report.html"}
    colors = np.asarray(Image.open(tmp_path / "900_light.png").convert("RGB")).reshape(-1, 3)
    assert len(np.unique(colors, axis=0)) > 200  # a picture, not an empty page


def test_a_picture_that_is_large_is_stored_smaller(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (900, 2400, 3), np.uint8)
    images, result = evaluation(1)
    large = png(noise)
    write_report(
        tmp_path / "a.html",
        result={"panoptic": result},
        images=images,
        categories=CATEGORIES,
        title="Large",
        pictures=[Picture("Best", 0, large)],
    )
    text = (tmp_path / "a.html").read_text()
    assert "data:image/webp" in text and len(text) < len(large)
    assert html.unescape(text).count("<figure>") == 1

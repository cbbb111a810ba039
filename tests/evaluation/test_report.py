"""A report has the numbers of its evaluation, is well formed, and asks for nothing from outside."""

import html
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from evaluated import CATEGORIES, evaluation, overlaps, segmentations
from reports import PRECISION, full_report, picture, png

from detr_jax.data.categories import coco_panoptic
from detr_jax.data.segment_matches import match_segments
from detr_jax.evaluation.evaluated_image import EvaluatedImage
from detr_jax.evaluation.panoptic_quality import PanopticQuality
from detr_jax.evaluation.report.charts import confusion_matrix
from detr_jax.evaluation.report.page import Picture, write_report


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The file of a report with everything in it, and the result that it reports."""
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    return path, full_report(path)


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
    assert "UPSNet" not in text and "val2017" not in text  # whose scores are no yardstick for other data


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
        tmp_path / "a.html",
        result={"boxes": PRECISION},
        images=[],
        categories=CATEGORIES,
        title="Boxes",
        count=5000,
    )
    _, text = page_of(tmp_path / "a.html")
    assert "5,000 images." in text and "This evaluation5,000 images" in text and " 0 images" not in text
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


def test_an_image_in_which_everything_was_invented_has_a_report(tmp_path):
    crowd = [{"category_id": 7, "iscrowd": 1}]
    matches = match_segments(np.array([[0, 0], [50, 50]]), crowd, [{"category_id": 90, "score": 0.5}])
    images = [EvaluatedImage(1, "1.jpg", (10, 10), matches)]
    quality = PanopticQuality(CATEGORIES)
    quality.add_matches([matches])
    write_report(
        tmp_path / "a.html",
        result={"panoptic": quality.result()},
        images=images,
        categories=CATEGORIES,
        title="Invented",
    )
    _, text = page_of(tmp_path / "a.html")
    assert "Of the 100.0 missing points, 100.0 are due to invented segments." in text
    assert "By the limits" not in text and "nan" not in text.lower()


def test_the_matrix_of_many_classes_has_only_those_that_were_confused():
    categories = coco_panoptic()[:30]
    table = np.diag(np.full(31, 5))
    table[-1, -1] = 0
    assert confusion_matrix(table, categories) == ""
    table[20, 25] = 2
    heads = re.findall(r'<th scope="col" title="([^"]*)"', confusion_matrix(table, categories))
    assert heads == [categories[20].name, categories[25].name, "nothing"]


def evaluation_without_segments():
    return match_segments(np.array([[100]]), [], [])


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

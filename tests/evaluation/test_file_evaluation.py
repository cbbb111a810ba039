import json
import subprocess
import sys

import numpy as np
import pytest
from panoptic_files import write_files
from PIL import Image
from pngs import save_16_bit
from random_maps import CATEGORIES, halves, measure, random_pairs, segmentation

from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import MissingFileError, UserError
from detr_jax.evaluation.evaluated_image import read_images
from detr_jax.evaluation.file_evaluation import evaluate_files
from detr_jax.evaluation.panoptic_quality import format_table
from detr_jax.evaluation.results import file_sha256, panoptic_result

# Ids above 255; category ids with gaps; the first segment is a thing, the second stuff.
TRUTH = segmentation(halves(300, 70_000), {300: 1, 70_000: 100}, iscrowd=lambda position: 0)
SHIFTED = halves(1, 2)
SHIFTED[:, 4] = 2
PREDICTION = segmentation(SHIFTED, {1: 1, 2: 100}, score=lambda position: 0.5)
PQ = (0.8 + 5 / 6) / 2


def with_extra(result, **info):
    return PanopticSegmentation(result.segment_map, [*result.segments_info, info], CATEGORIES)


def evaluate(folder, prediction=PREDICTION, truth=TRUTH, edit_truth=None, **options):
    options.setdefault("edit", None)
    true_json = write_files(folder, "truth", [truth], edit=edit_truth)
    return evaluate_files(write_files(folder, "predictions", [prediction], **options), true_json)


def pq(result):
    return result["panoptic"]["All"]["pq"]


def test_gives_the_numbers_of_a_calculation_by_hand(tmp_path):
    assert pq(evaluate(tmp_path)) == pytest.approx(PQ, abs=1e-12)


def test_equals_the_evaluation_in_memory_on_random_maps(tmp_path, capsys):
    pairs = random_pairs(0, 40, np.arange(1, 40)) + random_pairs(4, 20, 2**24 - np.arange(1, 60))
    truth = write_files(tmp_path, "truth", [truth for truth, _ in pairs])
    predictions = write_files(tmp_path, "predictions", [prediction for _, prediction in pairs])
    result = evaluate_files(predictions, truth, output=tmp_path / "new" / "output")
    expected = measure(pairs).result()
    assert result == {"panoptic": panoptic_result(expected)}
    output = capsys.readouterr().out
    assert "warning" not in output
    assert format_table(expected, CATEGORIES) in output
    images = read_images(tmp_path / "new" / "output" / "evaluation" / "images.jsonl")
    assert [image.image_id for image in images] == list(range(1, 61))
    assert (images[0].file_name, images[0].size) == ("1.jpg", (40, 50))
    ids = np.array([category.id for category in CATEGORIES])
    np.testing.assert_allclose(sum(image.matches.counts(ids) for image in images), measure(pairs).counts)
    written = json.loads((tmp_path / "new" / "output" / "results.json").read_text())
    assert written["result"]["panoptic"]["All"] == result["panoptic"]["All"]
    assert written["images"] == 60
    assert written["config"] is written["checkpoint"] is written["devices"] is None
    assert written["files"]["predictions"] == {"path": str(predictions), "sha256": file_sha256(predictions)}


@pytest.mark.parametrize("kind", ["files", "panopticapi", "hotcoco"])
def test_agrees_with_other_tools_on_unusual_ground_truth(tmp_path, kind):
    """Listed segments without pixels are missed; pixels of unlisted segments are not void."""
    pairs = random_pairs(2, 20, np.arange(1, 40))
    edited = []
    for number, (truth, _) in enumerate(pairs):
        infos = truth.segments_info[: None if number % 2 else -1]
        extra = {"id": 77, "category_id": 7, "isthing": True, "area": 5, "iscrowd": number % 3 == 0}
        edited.append(PanopticSegmentation(truth.segment_map, [*infos, extra], CATEGORIES))
    truth = write_files(tmp_path, "truth", edited, edit=as_panopticapi_reads)
    predictions = write_files(tmp_path, "predictions", [prediction for _, prediction in pairs])
    if kind == "files":
        expected = measure([(truth, pair[1]) for truth, pair in zip(edited, pairs, strict=True)]).result()
    else:
        pytest.importorskip(kind)
        module = {"panopticapi": "panopticapi.evaluation", "hotcoco": "hotcoco.panoptic"}[kind]
        script = (
            f"import json; from {module} import pq_compute;"
            "json.dump(pq_compute('truth.json', 'predictions.json'), open('numbers.json', 'w'))"
        )
        subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True, capture_output=True)
        expected = json.loads((tmp_path / "numbers.json").read_text())
    result = evaluate_files(predictions, truth)["panoptic"]
    for group in ("All", "Things", "Stuff"):
        assert result[group] == pytest.approx(expected[group], abs=1e-9)


def as_panopticapi_reads(content):
    for entry in content["annotations"]:
        for info in entry["segments_info"]:
            info["iscrowd"] = int(info["iscrowd"])


@pytest.mark.parametrize(
    "convert", [lambda png: png.quantize(8), lambda png: png.convert("RGBA")], ids=["palette", "RGBA"]
)
def test_pngs_may_have_a_palette_or_an_alpha_channel(tmp_path, convert):
    assert pq(evaluate(tmp_path, convert=convert)) == pytest.approx(PQ, abs=1e-12)
    hotcoco = pytest.importorskip("hotcoco.panoptic")
    same = hotcoco.pq_compute(tmp_path / "truth.json", tmp_path / "predictions.json")
    assert same["All"]["pq"] == pytest.approx(PQ, abs=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"save": lambda ids, path: Image.fromarray(ids.astype(np.uint8)).save(path)},
        {"convert": lambda png: png.crop((0, 0, 10, 8))},
        {"edit": lambda content: content["annotations"].clear()},
        {"edit": lambda content: content["annotations"][0]["segments_info"].pop()},
        {"edit": lambda content: content["annotations"][0]["segments_info"][0].update(category_id=55)},
        {
            "edit": lambda content: content["annotations"][0]["segments_info"].append(
                {"id": 9, "category_id": 7, "area": 1}
            )
        },
    ],
    ids=["grey", "size", "no prediction", "unlisted", "unknown category", "no pixel"],
)
def test_refuses_what_hotcoco_refuses(tmp_path, change):
    pq_compute = pytest.importorskip("hotcoco.panoptic").pq_compute
    with pytest.raises(UserError):
        evaluate(tmp_path, **change)
    with pytest.raises(ValueError):
        pq_compute(tmp_path / "truth.json", tmp_path / "predictions.json")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"save": save_16_bit}, "1.png: it has 16 bits per channel, not ids as colours"),
        (
            {"save": lambda ids, path: Image.fromarray(ids.astype(np.uint8)).save(path)},
            "image 1: .*1.png has pixels of segment 65793, .* does not list: it holds grey levels",
        ),
        (
            {"save": lambda ids, path: Image.fromarray(ids.astype(np.uint16)).save(path)},
            "1.png: it holds 16-bit, 32-bit or other values",
        ),
        (
            {"convert": lambda png: png.crop((0, 0, 10, 8))},
            r"image 1: .*predictions/1.png is 10 x 8 \(width x height\), but the ground truth .* is 10 x 10",
        ),
        ({"save": lambda ids, path: path.write_bytes(b"PNG")}, "1.png cannot be read as an image"),
        ({"save": lambda ids, path: None}, "lacks 1 of the 1 files that .*predictions.json lists"),
    ],
    ids=["16-bit colours", "grey", "16-bit grey", "other size", "damaged", "missing"],
)
def test_pngs_that_hold_no_ids_are_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path, **options)


@pytest.mark.parametrize("listed", [5, 0, 10**9])
def test_areas_that_are_not_those_of_the_png_are_counted(tmp_path, listed, capsys):
    def edit(content):
        for entry in content["annotations"]:
            for info in entry["segments_info"]:
                info["area"] = listed

    assert pq(evaluate(tmp_path, edit=edit, edit_truth=edit)) == pytest.approx(PQ, abs=1e-12)
    warnings = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert warnings == [
        "warning: the listed areas of 2 true and 2 predicted segments are not their numbers of pixels: "
        "pixels are counted"
    ]


def test_areas_need_not_be_listed(tmp_path, capsys):
    def edit(content):
        for info in content["annotations"][0]["segments_info"]:
            del info["area"]

    assert pq(evaluate(tmp_path, edit=edit, edit_truth=edit)) == pytest.approx(PQ, abs=1e-12)
    assert "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "prediction, message",
    [
        (
            with_extra(PREDICTION, id=9, category_id=7),
            "image 1: .*predictions/1.png has no pixel of segment 9, which segments_info lists",
        ),
        (
            with_extra(PREDICTION, id=2, category_id=7),
            r"predictions.json: annotations\[0\], image 1: segment 2 is listed twice",
        ),
        (
            with_extra(PREDICTION, id=0, category_id=7),
            r"annotations\[0\], image 1: a segment has missing or invalid id",
        ),
        (with_extra(PREDICTION, id="9", category_id=7), "invalid id"),
        (with_extra(PREDICTION, id=9, category_id=7, score="high"), "invalid score"),
        (
            segmentation(SHIFTED, {1: 1, 2: 55}),
            "image 1: segment 2 has category 55, which .*truth.json does not list",
        ),
        (
            segmentation(SHIFTED, {1: 1}),
            "image 1: .*predictions/1.png has pixels of segment 2, which segments_info does not list",
        ),
    ],
)
def test_names_the_image_and_the_segment_that_cannot_be_evaluated(tmp_path, prediction, message):
    with pytest.raises(UserError, match=message):
        evaluate(tmp_path, prediction)


def test_images_need_predictions_but_predictions_need_no_ground_truth(tmp_path, capsys):
    two = write_files(tmp_path, "two", [TRUTH, TRUTH])
    one = write_files(tmp_path, "one", [TRUTH])
    with pytest.raises(UserError, match=r"one.json lacks 1 of the 2 images of .*two.json, .* 2 \(2.jpg\)"):
        evaluate_files(one, two)
    assert pq(evaluate_files(two, one)) == 1
    assert "warning: 1 predictions are ignored" in capsys.readouterr().out


def test_images_in_which_nothing_was_predicted_count_as_missed(tmp_path):
    nothing = segmentation(halves(0, 0), {})
    assert pq(evaluate(tmp_path, nothing)) == 0


def test_the_kinds_of_categories_are_those_of_the_ground_truth(tmp_path, capsys):
    def swap(content):
        for category in content["categories"]:
            category["isthing"] = 1 - category["isthing"]

    result = evaluate(tmp_path, edit=swap)
    assert result["panoptic"]["Things"]["pq"] == pytest.approx(0.8)
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert "1 is the stuff 'person', not the thing 'person'" in warning
    assert warning.endswith("and 3 more")


def test_predictions_need_no_list_of_categories_or_images(tmp_path):
    def remove(content):
        del content["categories"], content["images"]

    assert pq(evaluate(tmp_path, edit=remove)) == pytest.approx(PQ)


def test_ground_truth_needs_categories(tmp_path):
    with pytest.raises(UserError, match="truth.json lists no categories"):
        evaluate(tmp_path, edit_truth=lambda content: content.pop("categories"))


def test_image_ids_that_count_files_are_matched_by_name(tmp_path):
    flipped = segmentation(halves(2, 1), {1: 1, 2: 100}, iscrowd=lambda position: 0)

    def name(*names):
        def edit(content):
            for image, file_name in zip(content["images"], names, strict=True):
                image["file_name"] = file_name

        return edit

    truth = write_files(tmp_path, "truth", [TRUTH, flipped], edit=name("cat.jpg", "dog.jpg"))
    swapped = write_files(tmp_path, "swapped", [flipped, TRUTH], edit=name("dog.jpg", "cat.jpg"))
    assert pq(evaluate_files(swapped, truth)) == 1
    others = write_files(tmp_path, "others", [flipped, TRUTH], edit=name("dog.jpg", "cow.jpg"))
    with pytest.raises(UserError, match=r"lacks 1 of the 2 images of .*, such as image 1 \(cat.jpg\)"):
        evaluate_files(others, truth)


def test_names_of_one_image_may_differ_in_a_prefix(tmp_path):
    def rename(content):
        content["images"][0]["file_name"] = "COCO_val2014_000000000001.jpg"

    assert pq(evaluate(tmp_path, edit=rename)) == pytest.approx(PQ)


def test_finds_the_files_in_the_layouts_of_coco_and_of_predict(tmp_path):
    coco, predicted = tmp_path / "coco", tmp_path / "predicted"
    (coco / "annotations").mkdir(parents=True)
    predicted.mkdir()
    write_files(coco, "panoptic_val2017", [TRUTH])
    (coco / "panoptic_val2017.json").rename(coco / "annotations" / "panoptic_val2017.json")
    write_files(predicted, "panoptic", [PREDICTION])
    assert pq(evaluate_files(predicted, coco)) == pytest.approx(PQ)
    assert pq(evaluate_files(predicted, coco / "annotations" / "panoptic_val2017.json")) == pytest.approx(PQ)
    (predicted / "panoptic").rename(tmp_path / "pngs")
    with pytest.raises(MissingFileError, match="neither .*predicted/panoptic nor .*name the folder"):
        evaluate_files(predicted, coco)
    assert pq(evaluate_files(predicted, coco, png_folder=tmp_path / "pngs")) == pytest.approx(PQ)


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "damaged"),
        ("[]", 'has no list "annotations"'),
        ('{"annotations": [{"image_id": 1}]}', r"annotations\[0\]: missing or invalid file_name"),
        (
            '{"annotations": [{"image_id": 1, "file_name": "../x.png", "segments_info": []}]}',
            "leads out of its folder",
        ),
    ],
)
def test_damaged_files_are_refused(tmp_path, content, message):
    truth = write_files(tmp_path, "truth", [TRUTH])
    (tmp_path / "predictions.json").write_text(content)
    (tmp_path / "predictions").mkdir()
    with pytest.raises(UserError, match=message):
        evaluate_files(tmp_path / "predictions.json", truth)


def test_missing_files_are_named(tmp_path):
    truth = write_files(tmp_path, "truth", [TRUTH])
    with pytest.raises(MissingFileError, match="nothing.json does not exist"):
        evaluate_files(tmp_path / "nothing.json", truth)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty has no COCO panoptic JSON files"):
        evaluate_files(tmp_path / "empty", truth)


def test_writes_a_report_with_pictures_of_the_images(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (10, 10), (200, 30, 30)).save(tmp_path / "images" / "1.jpg")
    truth, predictions = write_files(tmp_path, "truth", [TRUTH]), write_files(tmp_path, "pred", [PREDICTION])
    sizes = []
    for images in (None, tmp_path / "images"):
        evaluate_files(predictions, truth, output=tmp_path / "output", images=images)
        page = (tmp_path / "output" / "report.html").read_text()
        assert "pred on truth" in page and "1.jpg" in page and "81.7" in page
        sizes.append(page.count("data:image/"))
    assert sizes[0] == sizes[1] > 0
    (tmp_path / "images" / "1.jpg").unlink()
    with pytest.raises(MissingFileError, match="images lacks 1 of the 1 files"):
        evaluate_files(predictions, truth, images=tmp_path / "images")

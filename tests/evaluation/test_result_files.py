"""Result files are found, read and matched with the ground truth, or refused with the reason."""

import shutil

import numpy as np
import pytest
from panoptic_files import PQ, PREDICTION, SHIFTED, TRUTH, evaluate, pq, write_files
from PIL import Image
from pngs import save_16_bit
from random_maps import CATEGORIES, halves, segmentation

from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import MissingFileError, UserError
from detr_jax.evaluation.file_evaluation import evaluate_files


def with_extra(result, **info):
    return PanopticSegmentation(result.segment_map, [*result.segments_info, info], CATEGORIES)


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
        (with_extra(PREDICTION, id=9, category_id=7, score=10**400), "invalid score"),
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


def test_predictions_need_no_list_of_categories_or_images(tmp_path):
    def remove(content):
        del content["categories"], content["images"]

    assert pq(evaluate(tmp_path, edit=remove)) == pytest.approx(PQ)


def test_ground_truth_needs_annotations(tmp_path, capsys):
    predictions = write_files(tmp_path, "predictions", [TRUTH])
    none = write_files(tmp_path, "none", [TRUTH], edit=lambda content: content["annotations"].clear())
    with pytest.raises(UserError, match="none.json has an empty list of annotations"):
        evaluate_files(predictions, none)
    one = write_files(tmp_path, "one", [TRUTH, TRUTH], edit=lambda content: content["annotations"].pop())
    assert pq(evaluate_files(predictions, one)) == 1
    assert "warning: 1 images of" in capsys.readouterr().out


def test_ground_truth_needs_categories(tmp_path):
    with pytest.raises(UserError, match="truth.json lists no categories"):
        evaluate(tmp_path, edit_truth=lambda content: content.pop("categories"))


def named(*names):
    """Renames the images of a file."""

    def edit(content):
        for image, file_name in zip(content["images"], names, strict=True):
            image["file_name"] = file_name

    return edit


FLIPPED = segmentation(halves(2, 1), {1: 1, 2: 100}, iscrowd=lambda position: 0)


@pytest.mark.parametrize(
    "names, true_names",
    [
        (("dog.jpg", "cat.jpg"), ("cat.jpg", "dog.jpg")),
        (("b/1.jpg", "a/1.jpg"), ("a/1.jpg", "b/1.jpg")),
        (("right_1.jpg", "left_1.jpg"), ("left_1.jpg", "right_1.jpg")),
        (("/data/dog_1.jpg", "/data/cat_1.jpg"), ("cat_1.jpg", "dog_1.jpg")),
        ((r"C:\data\dog.jpg", r"C:\data\cat.jpg"), ("cat.jpg", "dog.jpg")),
    ],
)
def test_image_ids_that_count_files_are_matched_by_name(tmp_path, names, true_names):
    truth = write_files(tmp_path, "truth", [TRUTH, FLIPPED], edit=named(*true_names))
    swapped = write_files(tmp_path, "swapped", [FLIPPED, TRUTH], edit=named(*names))
    assert pq(evaluate_files(swapped, truth)) == 1


@pytest.mark.parametrize("names", [("1.jpg", "1.jpg"), ("x/a/1.jpg", "x/b/1.jpg")])
def test_equal_ids_are_one_image_although_folders_differ(tmp_path, names):
    truth = write_files(tmp_path, "truth", [TRUTH, FLIPPED], edit=named("a/1.jpg", "b/1.jpg"))
    predictions = write_files(tmp_path, "predictions", [TRUTH, FLIPPED], edit=named(*names))
    assert pq(evaluate_files(predictions, truth)) == 1


def test_an_image_without_prediction_gets_no_other_one(tmp_path):
    truth = write_files(tmp_path, "truth", [TRUTH, FLIPPED], edit=named("cat.jpg", "dog.jpg"))
    others = write_files(tmp_path, "others", [FLIPPED, TRUTH], edit=named("dog.jpg", "cow.jpg"))
    with pytest.raises(UserError, match=r"lacks 1 of the 2 images of .*, such as image 1 \(cat.jpg\)"):
        evaluate_files(others, truth)
    folders = write_files(tmp_path, "folders", [TRUTH, TRUTH], edit=named("a/1.jpg", "b/1.jpg"))
    one = write_files(tmp_path, "one", [TRUTH], edit=named("a/1.jpg"))
    with pytest.raises(UserError, match=r"lacks 1 of the 2 images of .*, such as image 2 \(b/1.jpg\)"):
        evaluate_files(one, folders)


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


def test_zip_files_are_to_be_unpacked(tmp_path):
    truth = write_files(tmp_path, "truth", [TRUTH])
    (tmp_path / "upload").mkdir()
    archive = shutil.make_archive(str(tmp_path / "upload" / "results"), "zip", tmp_path, "truth")
    with pytest.raises(UserError, match="results.zip is a zip file: unpack it"):
        evaluate_files(archive, truth)
    with pytest.raises(UserError, match="upload has no COCO panoptic JSON files: unpack .*results.zip"):
        evaluate_files(tmp_path / "upload", truth)


def test_detections_are_no_segmentations(tmp_path):
    (tmp_path / "detections.json").write_text('[{"image_id": 1, "bbox": [0, 0, 1, 1]}]')
    with pytest.raises(UserError, match='has no list "annotations"'):
        evaluate_files(tmp_path / "detections.json", write_files(tmp_path, "truth", [TRUTH]))

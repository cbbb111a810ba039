import json

import jax
import make
import numpy as np
import pytest
from PIL import Image

from detr_jax import Predictor
from detr_jax.data.categories import coco_panoptic
from detr_jax.data.example import Category
from detr_jax.data.images import image_files, read_image
from detr_jax.data.panoptic import ids_from_rgb
from detr_jax.weights import tensor_files

TOLERANCES = {50: (6e-3, 6e-5, 3e-3), 101: (3e-2, 3e-4, 1.5e-2)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function that writes a published checkpoint with made-up weights."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def write(depth):
        file = folder / f"detr-r{depth}-panoptic.safetensors"
        if not file.exists():
            tensor_files.write_state_dict(make.state_dict(depth), file)
        return file

    return write


@pytest.fixture(scope="module")
def tiny_predictor(tiny_model, tiny_params):
    return Predictor(tiny_model, jax.device_get(tiny_params), coco_panoptic())


def test_padding_and_batching_change_nothing(tiny_predictor, pictures):
    image, larger = pictures[0, :41, :53], pictures[1]
    alone = tiny_predictor.raw(image, resize=False)
    assert alone.pred_masks.shape == (12, 11, 14)
    padded = tiny_predictor.raw(image, resize=False, pad_to=(64, 96))
    _, batched = tiny_predictor.raw_batch([larger, image], resize=False)
    for other in (padded, batched):
        for single, both in zip(alone, other, strict=True):
            np.testing.assert_allclose(both, single, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="45x60 do not fit pad_to"):
        tiny_predictor.raw_batch([larger, image], resize=False, pad_to=(41, 60))


def test_published_weights_from_file_to_panoptic_map(checkpoint):
    """Every step of the original on one image: raw outputs, boxes, panoptic PNG, segments."""
    reference = np.load(make.REFERENCE / "made_r50.npz")
    # The original takes ids up to 90 for things, and this made-up model predicts ids that COCO does not have.
    categories = tuple(Category(k, str(k), k <= 90, (0, 0, k)) for k in range(1, 201))
    predictor = Predictor.from_pretrained(checkpoint(50), categories=categories)
    predictor.config.data.eval_scale = 157
    image = make.image(157, 211, 5)
    raw = predictor.raw(image, resize=False)
    for name, tolerance in zip(("pred_logits", "pred_boxes"), TOLERANCES[50][:2], strict=True):
        np.testing.assert_allclose(getattr(raw, name), reference[name], rtol=0, atol=tolerance)
    chosen = raw.pred_masks[reference["mask_queries"]]
    np.testing.assert_allclose(chosen, reference["pred_masks"], rtol=0, atol=TOLERANCES[50][2])

    size, orig_size = reference["size"][None], reference["orig_size"][None]
    (segmentation,), _ = predictor._inference.segment(image[None], size, orig_size)
    # Where two masks are equal up to rounding, either may win.
    differs = segmentation.fetch().segment_map != ids_from_rgb(reference["panoptic_png"]) + 1
    assert differs.mean() < 1e-3
    expected = json.loads(str(reference["segments_info"]))
    for info, wanted in zip(segmentation.segments_info, expected, strict=True):
        assert (info["category_id"], info["isthing"]) == (wanted["category_id"], wanted["isthing"])
        assert abs(info["area"] - wanted["area"]) <= differs.sum()


@pytest.mark.parametrize(
    ("name", "depth", "dilation"),
    [
        ("forward_r50_small", 50, False),
        ("forward_r50_dc5_small", 50, True),
        ("forward_r101_small", 101, False),
        ("forward_r50_full", 50, False),
    ],
)
def test_equals_the_original_on_real_images(name, depth, dilation, reference_folder, coco_sample, checkpoint):
    reference = np.load(reference_folder / f"{name}.npz")
    predictor = Predictor.from_pretrained(checkpoint(depth), dilation=dilation)
    image = reference.get("resized_uint8", coco_sample / "val2017" / f"{reference['image_id'][0]:012d}.jpg")
    raw = predictor.raw(image, resize="resized_uint8" not in reference)
    logits, boxes, masks = TOLERANCES[depth]
    np.testing.assert_allclose(raw.pred_logits, reference["pred_logits"], rtol=0, atol=logits)
    np.testing.assert_allclose(raw.pred_boxes, reference["pred_boxes"], rtol=0, atol=boxes)
    chosen = raw.pred_masks[reference["mask_queries"]]
    np.testing.assert_allclose(chosen, reference["pred_masks"], rtol=0, atol=masks)


def test_box_only_checkpoints_detect(tiny_model, tiny_params, tmp_path):
    detector = {name: part for name, part in jax.device_get(tiny_params).items() if name != "mask_head"}
    predictor = Predictor(tiny_model, detector, coco_panoptic())
    image = make.image(60, 80, 0)
    found = predictor.detect(image, threshold=0.0)
    assert len(found) == tiny_model.num_queries
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert predictor.raw(image, resize=False).pred_masks is None
    with pytest.raises(ValueError, match="has no mask head: use detect"):
        predictor(image)


def test_images_as_people_have_them(tmp_path):
    pixels = make.image(20, 30, 1)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    for image in (pixels, Image.fromarray(pixels), tmp_path / "image.png", str(tmp_path / "image.png")):
        np.testing.assert_array_equal(read_image(image), pixels)
    with pytest.raises(ValueError, match=r"must be uint8 \(height, width, 3\), not float64"):
        read_image(pixels / 255.0)
    with pytest.raises(FileNotFoundError, match="no such image"):
        read_image(tmp_path / "missing.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png cannot be read as an image"):
        read_image(tmp_path / "text.png")


def test_image_files_says_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="--images"):
        list(image_files([]))
    with pytest.raises(FileNotFoundError, match="no images .* in"):
        list(image_files([str(tmp_path)]))
    with pytest.raises(FileNotFoundError, match="no such image or folder"):
        list(image_files([str(tmp_path / "missing")]))

import gc
import json
import os
import subprocess
import sys
import weakref

import jax
import make
import numpy as np
import pytest
from compiled_programs import compilations
from PIL import Image
from tiny import tiny_config

from detr_jax import Predictor
from detr_jax.data.categories import coco_panoptic, to_json
from detr_jax.data.example import Category
from detr_jax.data.segment_maps import ids_from_png
from detr_jax.errors import MissingFileError, UserError
from detr_jax.weights import layouts, tensor_files

TOLERANCES = {50: (6e-3, 6e-5, 3e-3), 101: (3e-2, 3e-4, 1.5e-2)}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function that writes made-up weights as a published checkpoint of a ResNet depth."""
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


def test_padding_and_batching_do_not_affect_the_outputs(tiny_predictor, pictures):
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


def test_equals_the_original_from_checkpoint_to_segments(checkpoint):
    """Compares each step with the original on one image: raw outputs, boxes, panoptic PNG, segments."""
    reference = np.load(make.REFERENCE / "made_r50.npz")
    # In the original, ids up to 90 are things. The made-up model predicts ids that COCO lacks.
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
    (segmentation,), _ = predictor._segmenter.segment(image[None], size, orig_size)
    # Where two mask logits differ by rounding alone, either may win.
    original = ids_from_png(Image.fromarray(reference["panoptic_png"]))
    differs = segmentation.fetch().segment_map != original + 1
    assert differs.mean() < 1e-3
    expected = json.loads(str(reference["segments_info"]))
    for info, wanted in zip(segmentation.segments_info, expected, strict=True):
        assert (info["category_id"], info["isthing"]) == (wanted["category_id"], wanted["isthing"])
        assert abs(info["area"] - wanted["area"]) <= differs.sum()


@pytest.mark.slow
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


def test_a_model_without_mask_head_only_detects(tiny_model, tiny_params, tmp_path):
    detector = {name: part for name, part in jax.device_get(tiny_params).items() if name != "mask_head"}
    predictor = Predictor(tiny_model, detector, coco_panoptic())
    image = make.image(60, 80, 0)
    found = predictor.detect(image, threshold=0.0)
    assert len(found) == tiny_model.num_queries
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    assert predictor.raw(image, resize=False).pred_masks is None
    with pytest.raises(ValueError, match="has no mask head: use detect"):
        predictor(image)


def test_accepts_paths_pil_images_and_arrays(tiny_predictor, pictures, tmp_path):
    Image.fromarray(pictures[0]).save(tmp_path / "image.png")
    as_array = tiny_predictor.detect(pictures[0], threshold=0.0)
    for image in (Image.fromarray(pictures[0]), tmp_path / "image.png", str(tmp_path / "image.png")):
        assert tiny_predictor.detect(image, threshold=0.0) == as_array
    with pytest.raises(MissingFileError, match=r"missing\.png"):
        tiny_predictor(tmp_path / "missing.png")


def small_predictor(model, params):
    """A predictor for which every query becomes a segment, and whose images have one of two shapes."""
    config = tiny_config()
    config.eval.threshold = 0.0
    config.data.update({"eval_scale": 64, "eval_shapes": ((64, 96), (96, 64))})
    return Predictor(model, jax.device_get(params), coco_panoptic(), config)


@pytest.fixture(scope="module")
def predictor(tiny_model, tiny_params):
    """One for several tests: each compiles its own programs."""
    return small_predictor(tiny_model, tiny_params)


def test_a_list_runs_in_batches_and_returns_a_list_in_order(predictor):
    sizes = [(50, 70), (70, 50), (40, 60), (50, 70)]
    images = [make.image(*size, seed) for seed, size in enumerate(sizes)]
    results = predictor(images, batch_size=2)
    assert [result.segment_map.shape for result in results] == sizes
    for image, result in zip(images, results, strict=True):
        alone = predictor(image)
        assert np.mean(alone.segment_map != result.segment_map) < 0.01  # rounding may decide a pixel
        assert len(alone.segments_info) == len(result.segments_info)
    boxes = predictor.detect(tuple(images[2:]), 0.0, batch_size=1)
    assert boxes == [predictor.detect(image, 0.0) for image in images[2:]]
    assert predictor([]) == []


def test_streams_any_iterable_and_reports_the_images_that_fail(predictor, tmp_path):
    image = make.image(50, 70, 1)
    results = predictor.stream(
        (item for item in (image, tmp_path / "missing.png", image)), return_errors=True
    )
    first, error, last = results
    assert isinstance(error, MissingFileError)
    np.testing.assert_array_equal(first.segment_map, last.segment_map)
    with pytest.raises(MissingFileError, match=r"missing\.png"):
        list(predictor.stream([image, tmp_path / "missing.png"]))
    for call in (
        predictor,
        predictor.detect,
        predictor.raw_batch,
        lambda images: [*predictor.stream(images)],
    ):
        with pytest.raises(UserError, match=r"^images\[1\]: an image array must be uint8, not int64"):
            call([image, image.astype(np.int64)])
    with pytest.raises(UserError, match="^an image array must be uint8"):
        predictor(image.astype(np.int64))


def test_the_threshold_of_a_call_compiles_nothing_and_leaves_the_next_call_alone(predictor):
    image = make.image(50, 70, 1)
    assert predictor(image).segments_info
    with compilations() as compiled:
        assert not predictor(image, threshold=1.0).segments_info
        assert predictor(image).segments_info
    assert not compiled
    assert not predictor.detect(image, threshold=1.0)
    for call in (predictor, predictor.stream, predictor.detect):
        with pytest.raises(UserError, match=r"threshold=85\.0 must be a probability, from 0 to 1"):
            call([image], threshold=85.0)


def test_no_images_have_no_outputs(tiny_predictor):
    assert tiny_predictor([]) == tiny_predictor.detect([]) == tiny_predictor.raw_batch([]) == []


def test_after_a_warmup_the_first_image_of_a_size_compiles_nothing(tiny_model, tiny_params):
    predictor = small_predictor(tiny_model, tiny_params)
    predictor.warmup([(50, 70), (40, 60)])
    with compilations() as compiled:
        predictor(make.image(50, 70, 1))
        predictor(make.image(40, 60, 2))
    assert not compiled
    with pytest.raises(UserError, match=r"\(0, 4\) is not the height and width of an image"):
        predictor.warmup([(0, 4)])


def test_returns_a_map_at_the_original_size(predictor):
    result = predictor(make.image(50, 70, 1))
    assert result.segment_map.shape == (50, 70)
    assert {info["id"] for info in result.segments_info} == set(np.unique(result.segment_map)) - {0}


def test_detections_are_in_coco_format(tiny_predictor, pictures):
    found = tiny_predictor.detect(pictures[0], threshold=0.0)
    raw = tiny_predictor.raw(pictures[0])
    cx, cy, width, height = raw.pred_boxes.T
    boxes = np.stack([(cx - width / 2) * 60, (cy - height / 2) * 45, width * 60, height * 45], -1)
    assert found
    for detection in found:
        assert set(detection) == {"category_id", "score", "bbox"}
        assert np.isclose(boxes, detection["bbox"], atol=1e-3).all(-1).any()


def test_settings_override_those_of_the_checkpoint():
    stored = Predictor.from_pretrained("shapes-panoptic").config
    changed = {"threshold": 0.25, "merge_stuff": "always", "duplicate_iou": 0.5}
    config = Predictor.from_pretrained("shapes-panoptic", dtype="bfloat16", **changed).config
    assert {name: config.eval[name] for name in changed} == changed
    assert config.model.dtype == "bfloat16"
    assert config.data == stored.data


@pytest.mark.parametrize("setting", [{"merge_stuff": "last"}, {"threshold": 1.5}, {"dtype": "int8"}])
def test_rejects_settings_out_of_range(setting):
    (name,) = setting
    with pytest.raises(UserError, match=name):
        Predictor.from_pretrained("shapes-panoptic", **setting)


def test_parameters_that_are_not_finite_give_warnings_and_no_results(tiny_model, tiny_params, pictures):
    broken = jax.tree.map(lambda x: np.full_like(x, np.nan), jax.device_get(tiny_params))
    predictor = Predictor(tiny_model, broken, coco_panoptic())
    with pytest.warns(RuntimeWarning, match="dropped 12 queries of 1 image with outputs that are not finite"):
        result = predictor(pictures[0])
    assert not result.segment_map.any() and not result.segments_info
    with pytest.warns(RuntimeWarning, match="not finite"):
        assert predictor.detect(pictures[0], threshold=0.0) == []


def test_a_deleted_predictor_frees_its_parameters(tiny_model, tiny_params, pictures):
    params = jax.device_get(tiny_params)
    gc.collect()
    before = len(jax.live_arrays())
    predictor = Predictor(tiny_model, params, coco_panoptic())
    predictor(pictures[0])
    assert len(jax.live_arrays()) > before
    alive = weakref.ref(predictor._segmenter)
    del predictor
    gc.collect()
    assert alive() is None
    assert len(jax.live_arrays()) == before


def test_classes_that_are_not_known_are_numbered_or_given(tiny_params, tmp_path):
    file = tmp_path / "tiny.safetensors"
    tensor_files.write_state_dict(layouts.to_state_dict(jax.device_get(tiny_params)), file)
    with pytest.warns(RuntimeWarning, match="does not name its 14 classes.*categories="):
        predictor = Predictor.from_pretrained(file)
    assert [category.name for category in predictor.categories] == [f"class {k}" for k in range(14)]
    named = tuple(Category(k, f"class {k}", True, (0, 0, k)) for k in range(1, 14))
    assert Predictor.from_pretrained(file, categories=named).categories == named
    (tmp_path / "categories.json").write_text(json.dumps(to_json(named)))
    assert Predictor.from_pretrained(file, categories=tmp_path / "categories.json").categories == named


def test_images_of_similar_sizes_share_programs(tiny_predictor, pictures):
    tiny_predictor.raw(pictures[0], resize=False)
    with compilations() as compiled:
        tiny_predictor.raw(pictures[0, :39, :47], resize=False)
    assert not compiled


PREDICTS = """
import jax
jax.jit(lambda x: x + 1.0)(jax.numpy.ones(3))  # something was compiled before
from detr_jax import Predictor
predictor = Predictor.from_pretrained("shapes-panoptic")
jax.jit(lambda x: x @ x)(jax.numpy.ones((3, 3)))
"""


@pytest.mark.parametrize("variables", [{}, {"JAX_COMPILATION_CACHE_DIR": "chosen"}])
def test_compiled_programs_are_kept_on_disk(tmp_path, variables):
    inherited = {name: value for name, value in os.environ.items() if "COMPILATION_CACHE" not in name}
    variables = {name: str(tmp_path / value) for name, value in variables.items()}
    every_program = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    env = inherited | {"XDG_CACHE_HOME": str(tmp_path / "cache")} | every_program | variables
    subprocess.run([sys.executable, "-c", PREDICTS], env=env, check=True)
    (folder,) = tmp_path.iterdir()
    assert folder.name == ("chosen" if variables else "cache")
    assert any("lambda" in file.name for file in folder.rglob("*-cache"))

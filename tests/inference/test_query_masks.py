import jax
import jax.numpy as jnp
import numpy as np
import pytest
from pycocotools import mask as run_length
from tiny import tiny_config

from detr_jax.data.categories import coco_panoptic
from detr_jax.inference.fusion import list_pairs
from detr_jax.inference.query_masks import QueryMasks, nearest_indices, pack_masks
from detr_jax.inference.segmenter import Segmenter
from detr_jax.runtime import parallel

CANVAS = (92, 130)
SIZES = np.array([[92, 130], [61, 90], [92, 87]])
ORIGINAL = ((184, 260), (200, 333), (47, 44))
QUERIES = 5


@pytest.fixture(scope="module")
def logits():
    """Mask logits (image, query, height, width), smooth, and largest outside the images."""
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, QUERIES, 6, 8)).repeat(4, 2).repeat(5, 3)[:, :, :23, :33]
    values = (values + 0.3 * rng.normal(size=values.shape)).astype(np.float32)
    for image, size in enumerate(-(-SIZES // 4)):
        values[image, :, size[0] :] = values[image, :, :, size[1] :] = 9
    values[0, 4] = -1  # an empty mask
    return values


def original_masks(logits, size, orig_size):
    """What the original PostProcessSegm computes for an image that is not padded."""
    torch = pytest.importorskip("torch")
    height, width = -(-size // 4)
    masks = torch.tensor(logits[None, :, :height, :width])
    masks = torch.nn.functional.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False)
    masks = (masks.sigmoid() > 0.5).float()
    return torch.nn.functional.interpolate(masks, size=orig_size, mode="nearest")[0].numpy() > 0


@pytest.mark.parametrize("per_round", [4, 16])
def test_masks_equal_those_of_the_original_at_the_original_size(logits, per_round):
    survives = np.random.default_rng(1).random((3, QUERIES)) < 0.5
    pairs = list_pairs(jnp.asarray(survives))
    listed = logits[np.asarray(pairs.image), np.asarray(pairs.query)]
    padded = np.concatenate([listed, np.full((1, *listed.shape[1:]), 9, np.float32)])
    packed = np.asarray(pack_masks(jnp.asarray(padded), pairs, jnp.asarray(SIZES), CANVAS, per_round))
    assert packed.shape == (3, QUERIES, 12, 130)
    for image, orig_size in enumerate(ORIGINAL):
        masks = QueryMasks(packed[image], tuple(SIZES[image].tolist()))
        encoded = masks.encode(range(QUERIES), orig_size)
        found = run_length.decode(encoded).astype(bool).transpose(2, 0, 1)
        expected = original_masks(logits[image], SIZES[image], orig_size)
        assert found.shape == expected.shape
        assert (found != expected).mean() < 1e-4  # logits that round to zero
        assert 0.2 < found.mean() < 0.8
        assert masks.encode([3, 1], orig_size) == [encoded[3], encoded[1]]


@pytest.mark.parametrize(
    "from_length, to_length", [(5, 5), (7, 14), (480, 640), (800, 427), (1333, 640), (3, 1)]
)
def test_nearest_neighbours_are_those_of_pytorch(from_length, to_length):
    torch = pytest.importorskip("torch")
    ramp = torch.arange(from_length, dtype=torch.float32)[None, None]
    expected = torch.nn.functional.interpolate(ramp, size=to_length, mode="nearest")[0, 0]
    assert nearest_indices(from_length, to_length).tolist() == expected.tolist()


@pytest.fixture
def segmenter(tiny_model, tiny_params):
    config = tiny_config()
    config.eval.threshold = 0.15
    params = parallel.replicate(jax.device_get(tiny_params))
    return Segmenter.from_config(config, tiny_model, params, coco_panoptic())


def test_one_program_gives_the_maps_and_the_masks_of_all_queries(segmenter, pictures):
    size = np.array([[45, 60], [40, 52]])
    maps = [np.ones((33, 44), np.uint8)] * 2
    plain = segmenter.compare(pictures, size, maps)
    found = segmenter.compare(pictures, size, maps, all_masks=True)
    assert plain.masks == []
    for with_masks, without in zip(found.segmentations, plain.segmentations, strict=True):
        np.testing.assert_array_equal(with_masks.fetch().segment_map, without.fetch().segment_map)
    np.testing.assert_array_equal(found.overlaps, plain.overlaps)
    _, features = segmenter.detect(pictures, size)
    (logits,) = segmenter.predict_masks(features, size, [np.arange(12)] * 2)
    logits = logits[:24].reshape(2, 12, *logits.shape[1:])
    for image, masks in enumerate(found.masks):
        decoded = run_length.decode(masks.encode(range(12), (33, 44))).astype(bool).transpose(2, 0, 1)
        expected = original_masks(logits[image], size[image], (33, 44))
        assert (decoded != expected).mean() < 1e-3
        assert 0 < decoded.mean() < 1


def test_queries_without_finite_masks_are_empty(segmenter, pictures):
    broken = jax.tree.map(lambda x: x * np.nan, segmenter.params)
    segmenter = Segmenter(segmenter.model, broken, segmenter.categories, segmenter.rules)
    found = segmenter.compare(pictures, np.array([[45, 60]] * 2), [np.ones((45, 60), np.uint8)] * 2, True)
    encoded = found.masks[0].encode([0, 11], (45, 60))
    assert run_length.area(encoded).tolist() == [0, 0]

import numpy as np
import pytest
from random_batches import FOUR, fuse_random_images

from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.evaluation.panoptic_quality import PanopticQuality
from detr_jax.inference.device_segmentation import DeviceSegmentation


def test_fetch_gathers_rows_and_columns_of_the_canvas():
    canvas = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    infos = [{"id": 1}]
    on_device = DeviceSegmentation(canvas, 1, np.array([0, 0, 2]), np.array([3, 1]), infos, FOUR)
    fetched = on_device.fetch()
    np.testing.assert_array_equal(fetched.segment_map, [[15, 13], [15, 13], [23, 21]])
    assert fetched.segment_map.dtype == np.int32
    assert (fetched.segments_info, fetched.categories) == (infos, FOUR)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [3, 70])
def test_overlaps_give_the_panoptic_quality_of_fetched_maps(count, seed):
    rng = np.random.default_rng([4, seed])
    on_host, on_device = PanopticQuality(FOUR), PanopticQuality(FOUR)
    for image_id, prediction in enumerate(fuse_random_images(seed)[1]):
        fetched = prediction.fetch()
        # A modified prediction serves as ground truth, so some segments match; the last segments are empty.
        segment_map = (fetched.segment_map % (count - 1)).astype(np.uint8)
        segment_map[:2] = rng.integers(count - 1)
        infos = [
            {"id": i, "category_id": int(rng.integers(1, 5)), "iscrowd": int(i % 5 == 4)}
            | {"area": int((segment_map == i).sum())}
            for i in range(1, count + 1)
        ]
        for info in fetched.segments_info[: count - 2]:
            infos[info["id"] - 1]["category_id"] = info["category_id"]
        truth = PanopticSegmentation(segment_map.astype(np.int32), infos, FOUR)
        on_host.update(truth, fetched, image_id)
        table = np.asarray(prediction.overlaps(segment_map, count))
        on_device.add(table, infos, prediction.segments_info, image_id)
    np.testing.assert_array_equal(on_device.counts, on_host.counts)
    assert on_host.counts[:, 1].sum() > 0


def test_overlaps_reject_a_map_of_another_size():
    with pytest.raises(ValueError, match=r"differ in size: got \(3, 3\)"):
        fuse_random_images(0)[1][0].overlaps(np.zeros((3, 3), np.uint8), 1)

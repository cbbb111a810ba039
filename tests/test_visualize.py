import matplotlib
import numpy as np
import pytest
from PIL import Image

from detr_jax import visualize
from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation

CATEGORIES = (Category(1, "cat", True, (200, 30, 60)), Category(5, "sky-other-merged", False, (70, 130, 180)))


def scene(size=(120, 160)):
    """Void on top, stuff at the bottom, two cats beside each other."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    segment_map = np.zeros(size, np.int32)
    segment_map[60:] = 3
    segment_map[30:90, 20:80], segment_map[30:90, 80:140] = 9, 4
    infos = [
        {"id": number, "category_id": category, "isthing": category == 1, "area": 1}
        for number, category in ((3, 5), (9, 1), (4, 1))
    ]
    return image, PanopticSegmentation(segment_map, infos, CATEGORIES)


def test_overlay_colours_segments_and_leaves_void_alone():
    image, segmentation = scene()
    before = image.copy()
    picture = visualize.overlay(image, segmentation, opacity=1.0, labels=False)
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(picture[:29], image[:29])
    assert picture[100, 10].tolist() == [70, 130, 180]
    first, second = picture[40, 50].tolist(), picture[40, 110].tolist()
    assert first == [200, 30, 60]
    assert np.abs(np.subtract(first, second)).max() > 30
    border = picture[40, 79]
    assert border.min() >= 191


def test_overlay_blends_with_the_image():
    image, segmentation = scene()
    faint = visualize.overlay(image, segmentation, opacity=0.1, labels=False)[95:, :].astype(int)
    strong = visualize.overlay(image, segmentation, opacity=0.9, labels=False)[95:, :].astype(int)
    color = np.array([70, 130, 180])
    assert np.abs(strong - color).mean() < 0.3 * np.abs(faint - color).mean()


def test_names_are_written_where_there_is_room():
    image, segmentation = scene()
    named = visualize.overlay(image, segmentation)
    plain = visualize.overlay(image, segmentation, labels=False)
    changed = (named != plain).any(-1)
    for number in (3, 9, 4):
        assert changed[segmentation.segment_map == number].any()
    assert not changed[:29].any()
    tiny = np.zeros((120, 160), np.int32)
    tiny[5:8, 5:8] = 9
    small = PanopticSegmentation(tiny, segmentation.segments_info[1:2], CATEGORIES)
    np.testing.assert_array_equal(
        visualize.overlay(image, small), visualize.overlay(image, small, labels=False)
    )


def test_a_map_without_segments_is_the_image():
    image, _ = scene()
    empty = PanopticSegmentation(np.zeros((120, 160), np.int32), [], CATEGORIES)
    np.testing.assert_array_equal(empty.overlay(image), image)


def test_the_method_of_the_segmentation_draws_the_same():
    image, segmentation = scene()
    np.testing.assert_array_equal(segmentation.overlay(image), visualize.overlay(image, segmentation))


def test_twenty_instances_of_a_class_have_twenty_colours_and_stuff_keeps_its_own():
    colors = visualize.instance_colors([CATEGORIES[0]] * 20 + [CATEGORIES[1]])
    assert colors[0] == CATEGORIES[0].color
    assert colors[-1] == CATEGORIES[1].color
    assert len(set(colors)) == 21
    for one, two in zip(colors[:19], colors[1:20], strict=True):
        assert np.abs(np.subtract(one, two)).max() > 25


@pytest.mark.parametrize("size", [(120, 160), (64, 48), (20, 150)])
def test_pictures_side_by_side(size):
    image = np.full((*size, 3), 50, np.uint8)
    empty = PanopticSegmentation(np.zeros(size, np.int32), [], CATEGORIES)
    picture = visualize.side_by_side(image, empty, empty)
    caption = picture.shape[0] - size[0]
    assert (picture[:caption] < 128).any()  # the captions
    panels = (picture[caption:] == 50).all(-1).all(0)
    assert panels.sum() == 3 * size[1]
    assert not panels.all()


def colour_fraction(path, color, tolerance=40):
    with Image.open(path) as file:
        picture = np.asarray(file.convert("RGB")).astype(int)
    return picture.shape, (np.abs(picture - color).max(-1) < tolerance).mean()


def test_curves(tmp_path):
    records = [{"step": step, "loss": 5 / step, "loss_ce": 2 / step, "lr": 1e-4} for step in range(1, 200)]
    backend = matplotlib.get_backend()
    visualize.plot_curves(records, tmp_path / "new" / "curves.png")
    with_losses, black = colour_fraction(tmp_path / "new" / "curves.png", (17, 17, 17))
    assert black > 0.002
    records += [{"step": step, "val_pq": step / 400, "val_pq_stuff": step / 500} for step in (50, 100)]
    visualize.plot_curves(records, tmp_path / "both.png")
    both, blue = colour_fraction(tmp_path / "both.png", (31, 119, 180))
    assert both[1] == 2 * with_losses[1]
    assert both[0] == with_losses[0]
    assert blue > 0.001
    assert matplotlib.get_backend() == backend


def test_inner_layers_are_left_out_and_of_a_repeated_step_the_later_is_drawn(tmp_path):
    plain = [{"step": step, "loss_ce": 1 / step} for step in range(1, 9)]
    visualize.plot_curves(plain, tmp_path / "plain.png")
    stale = [{"step": step, "loss_ce": 77.0} for step in range(3, 9)]
    layered = [{**record, "loss_ce_0": 5.0, "lr": 1.0} for record in plain]
    visualize.plot_curves(plain[:2] + stale + layered, tmp_path / "more.png")
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "more.png").read_bytes()


def test_curves_of_nothing_and_of_one_step(tmp_path):
    visualize.plot_curves([], tmp_path / "nothing.png")
    one = [{"step": 1, "loss": 0.0, "loss_ce": 0.0, "val_pq_all": 0.0, "val_AP": -1.0}]
    visualize.plot_curves(one, tmp_path / "one.png")
    assert (tmp_path / "nothing.png").stat().st_size > 0
    assert (tmp_path / "one.png").stat().st_size > 0

"""What evaluations while training leave for TensorBoard, and that they copy no model."""

import dataclasses
import io
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import initial_params, small_run

sys.path.insert(0, str(Path(__file__).parents[1] / "runtime"))
from test_tensorboard import read_values

from detr_jax.data.part import Part
from detr_jax.data.pipeline import load_source
from detr_jax.evaluation.evaluate import evaluate_model
from detr_jax.evaluation.watching import draw_first
from detr_jax.inference.device_segmentation import DeviceSegmentation
from detr_jax.models.detr import build_model
from detr_jax.runtime.reporting import Reporter
from detr_jax.training.averaging import averaged_params
from detr_jax.training.optim import make_optimizer
from detr_jax.training.step import TrainStep


@pytest.fixture(scope="module")
def config():
    config = small_run()
    config.optim.ema, config.eval.metrics = 0.9, ("pq",)
    return config


@pytest.fixture(scope="module")
def training(config):
    """A model and its state at the start of a run."""
    model = build_model(config.model)
    step = TrainStep(model, config, make_optimizer(config.optim, 4))
    return model, step.init(initial_params(model))


def live_bytes():
    return sum(array.nbytes for array in jax.live_arrays())


class Counter(Reporter):
    """Counts the bytes of all arrays on the devices at each image of an evaluation."""

    def wants_picture(self, step, name):
        self.counts = [*getattr(self, "counts", []), live_bytes()]
        return super().wants_picture(step, name)


def test_images_of_one_name_in_two_folders_have_two_pictures(config, tmp_path):
    example = load_source(config.data, "eval")[0]
    map_shape = example.segment_map.shape
    nothing = DeviceSegmentation(np.zeros(map_shape, np.int32), 0, *map(np.arange, map_shape), [], ())
    categories = load_source(config.data, "eval").categories
    draw = draw_first(3, tmp_path / "pictures", categories, Reporter(tmp_path))
    for name in ("a/1.jpg", "b/1.jpg", "/../1.jpg", "c/1.jpg"):
        draw(dataclasses.replace(example, file_name=name), nothing)
    pictures = (tmp_path / "pictures").rglob("*.png")
    assert sorted(str(path.relative_to(tmp_path)) for path in pictures) == [
        "pictures/1.png",
        "pictures/a/1.png",
        "pictures/b/1.png",
    ]


def test_evaluations_show_the_same_images_and_copy_no_model(config, training, tmp_path):
    model, state = training
    source = load_source(config.data, "eval")
    reporter = Counter(tmp_path)
    before = live_bytes()
    params = averaged_params(state.params, state.opt_state)
    with reporter.scores_as("val_part_"):
        for step in (2, 4):
            evaluate_model(config, model, params, Part.evenly_spaced(source, 2), reporter, step, last=False)
    evaluate_model(config, model, params, source, reporter, 4, last=False)
    reporter.close()

    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
    assert len(reporter.counts) == 2 + 2 + 5
    assert max(reporter.counts) - before < size / 4

    values = read_values(tmp_path)
    images = {key: value.image for key, value in values.items() if value.HasField("image")}
    both = {tag for tag, step in images if step == 2}
    assert len(both) == 2 and both == {
        f"pictures/{Path(Part.evenly_spaced(source, 2)[i].file_name).stem}" for i in (0, 1)
    }
    assert both <= {tag for tag, step in images if step == 4}
    picture = np.asarray(Image.open(io.BytesIO(images[min(both), 4].encoded_image_string)))
    assert picture.shape[1] > 2 * 64 and picture.std() > 10  # image, ground truth and prediction side by side
    classes = {tag for tag, _ in values if tag.startswith("val_part_pq_by_class/")}
    assert classes and classes <= {f"val_part_pq_by_class/{category.name}" for category in source.categories}

import json
import subprocess
import sys
import threading

import numpy as np
import pytest
from tiny import small_run

from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.pipeline import check_eval_data, eval_data, load_source, train_data
from detr_jax.data.shapes import Shapes
from detr_jax.errors import MissingFileError, MissingPackageError, UserError


def _data_config(**options):
    config = small_run().data
    config.update(options)
    return config


def test_loads_generated_images_of_the_split_and_count_of_each_part():
    config = _data_config(source="shapes", train_count=7, eval_count=3)
    train, evaluation = load_source(config, "train"), load_source(config, "eval")
    assert isinstance(train, Shapes) and (len(train), len(evaluation)) == (7, 3)
    assert (train[0].file_name, evaluation[0].file_name) == (
        "shapes_train_000000.png",
        "shapes_validation_000000.png",
    )


def test_loads_a_coco_folder(coco_folder):
    source = load_source(_data_config(source="coco", root=str(coco_folder), eval_split="val2017"), "eval")
    assert isinstance(source, CocoPanoptic) and len(source) == 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"source": "voc"}, UserError, "data.source is 'voc': must be coco, tfds or shapes"),
        ({"source": "coco"}, UserError, "set --config.data.root=FOLDER"),
        ({"source": "tfds"}, UserError, "set --config.data.root=FOLDER"),
        ({"source": "coco", "root": "/nowhere"}, MissingFileError, "no folder /nowhere"),
        ({"source": "shapes", "train_split": "val"}, UserError, "Splits: train, validation, test"),
    ],
)
def test_rejects_data_that_does_not_exist(options, error, message):
    with pytest.raises(error, match=message):
        load_source(_data_config(**options), "train")


def test_tfds_without_its_package_names_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(MissingPackageError, match=r"data\.source=tfds.* pip install 'detr_jax\[tfds\]'"):
        load_source(_data_config(source="tfds", root=str(tmp_path)), "train")


def test_importing_the_data_modules_loads_neither_jax_nor_tfds():
    """The pipeline itself needs JAX, for the number of processes, and Grain."""
    program = (
        "import sys\n"
        "import detr_jax.data.coco, detr_jax.data.coco_check, detr_jax.data.shapes, detr_jax.data.tfds\n"
        "print([name for name in ('jax', 'grain', 'tensorflow_datasets') if name in sys.modules])\n"
        "import detr_jax.data.pipeline\n"
        "print('tensorflow_datasets' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout == "[]\nFalse\n", result.stderr


def test_training_batches_follow_the_config():
    config = small_run()
    config.data.update(max_targets=5, train_shapes=((96, 96), (64, 72)), train_scales=(64, 96), max_size=96)
    batches = train_data(load_source(config.data, "train"), config)
    shapes = set()
    for _ in range(8):
        batch = next(batches)
        shapes.add(batch.image.shape)
        assert batch.labels.shape == (4, 5)
        assert set(batch.size.ravel().tolist()) <= {64, 96}
    assert shapes == {(4, 96, 96, 3), (4, 64, 72, 3)}


def test_training_order_depends_on_the_seed():
    def first_ids(seed):
        config = small_run()
        config.seed = seed
        return next(train_data(load_source(config.data, "train"), config)).image_id.tolist()

    assert first_ids(0) == first_ids(0) != first_ids(1)


def test_evaluation_resizes_and_visits_each_image_once():
    config = small_run()
    config.data.update(eval_scale=72, max_size=80, eval_shapes=((80, 80),))
    source = load_source(config.data, "eval")
    image_ids = []
    for batch, examples in eval_data(source, config):
        assert batch.image.shape == (2, 80, 80, 3) and (batch.size == 72).all()
        for example in examples:
            np.testing.assert_array_equal(example.image, source[example.image_id].image)
            image_ids.append(example.image_id)
    assert image_ids == [0, 1, 2, 3, 4]


def _open(folder, **options):
    config = small_run()
    config.data.update(
        source="coco", root=str(folder), train_split="val2017", eval_split="val2017", **options
    )
    return load_source(config.data, "eval"), config


def test_evaluation_data_without_problems_pass(coco_folder):
    source, config = _open(coco_folder)
    before = threading.active_count()
    check_eval_data(source, config)
    check_eval_data(source, config, training=source)
    assert threading.active_count() == before


def test_names_an_image_that_no_evaluation_shape_holds(coco_folder):
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["images"][3]["width"] = 999
    path.write_text(json.dumps(content))
    source, config = _open(coco_folder, max_size=400)
    with pytest.raises(
        UserError, match=r"No static shape holds .*shapes_train_000003\.png.*data.eval_shapes"
    ):
        check_eval_data(source, config)


def test_names_an_image_with_more_pixels_than_allowed(coco_folder):
    source, config = _open(coco_folder, max_pixels=4000)  # the images are 64 x 64
    message = r"shapes_train_00000\d\.png \(image 0\) is 64 x 64 .*, more than the limit of 4000 pixels"
    with pytest.raises(UserError, match=message):
        check_eval_data(source, config)
    with pytest.raises(UserError, match=message):
        train_data(source, config)


def test_names_an_image_with_too_many_segments(coco_folder):
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    segments = content["annotations"][2]["segments_info"]
    segments += [{**segments[0], "id": 1000 + number} for number in range(256 - len(segments))]
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="image 98: 256 segments; at most 255 per image are supported"):
        _open(coco_folder)


def test_names_an_empty_evaluation_set(coco_folder):
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "images": [], "annotations": []}))
    with pytest.raises(UserError, match="data.eval_split='val2017' has no images"):
        check_eval_data(*_open(coco_folder))


def test_names_the_categories_in_which_the_splits_differ(coco_folder):
    training, _ = _open(coco_folder)
    path = coco_folder / "annotations" / "panoptic_val2017.json"
    content = json.loads(path.read_text())
    content["categories"].reverse()
    path.write_text(json.dumps(content))
    source, config = _open(coco_folder)
    check_eval_data(source, config, training)

    first, second, *_ = content["categories"]
    first["name"], second["isthing"] = "renamed", 1 - second["isthing"]
    content["categories"].append({"id": 77, "name": "new"})
    path.write_text(json.dumps(content))
    source, config = _open(coco_folder)
    with pytest.raises(
        UserError, match="train_split='val2017' and data.eval_split='val2017' differ"
    ) as raised:
        check_eval_data(source, config, training)
    for part in ("renamed", "77 new (thing)", str(second["name"])):
        assert part in str(raised.value).split("only in")[2]

import io
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from tiny import train_transform

from detr_jax.data.batches import train_batches
from detr_jax.data.categories import coco_panoptic, to_json
from detr_jax.data.coco import CocoPanoptic
from detr_jax.data.images import ImageRules
from detr_jax.data.segment_maps import find_boxes
from detr_jax.data.shapes import Shapes
from detr_jax.data.tfds import TfdsPanoptic, prepare, write_sizes
from detr_jax.errors import MissingFileError, MissingPackageError, UserError

# An optional package; test_pipeline.py covers what happens without it.
tfds = pytest.importorskip("tensorflow_datasets")
CATEGORIES = coco_panoptic()


class Coco(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Generated images with the features of coco/2017_panoptic, whose own builder needs TensorFlow."""

    name = "coco"
    VERSION = tfds.core.Version("1.1.0")
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="2017_panoptic")]
    names = tuple(category.name for category in CATEGORIES)
    folder = None

    def _info(self):
        objects = {
            "id": np.int64,
            "area": np.int64,
            "bbox": tfds.features.BBoxFeature(),
            "label": tfds.features.ClassLabel(names=self.names),
            "is_crowd": np.bool_,
        }
        features = {
            "image": tfds.features.Image(encoding_format="png"),
            "image/filename": tfds.features.Text(),
            "image/id": np.int64,
            "panoptic_image": tfds.features.Image(encoding_format="png"),
            "panoptic_image/filename": tfds.features.Text(),
            "panoptic_objects": tfds.features.Sequence(objects),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {
            "train": self._generate_examples("train", 3),
            "validation": self._generate_examples("test", 2),
        }

    def _generate_examples(self, split, count):
        for example in Shapes(split, count, image_size=64):
            image, png = self.folder / "image.png", self.folder / "map.png"
            Image.fromarray(example.image[: 60 + example.image_id]).save(image)
            ids = example.segment_map[: 60 + example.image_id]
            Image.fromarray(np.stack([ids, ids, ids * 0], -1)).save(png)
            objects = [
                {
                    "id": k * 257,
                    "area": int(example.areas[k - 1]),
                    "bbox": tfds.features.BBox(0.0, 0.0, 1.0, 1.0),
                    "label": int(example.labels[k - 1]) * 10,
                    "is_crowd": k == 1,
                }
                for k in range(1, len(example.labels) + 1)
            ]
            yield (
                example.file_name,
                {
                    "image": str(image),
                    "image/filename": example.file_name,
                    "image/id": example.image_id + 1000,
                    "panoptic_image": str(png),
                    "panoptic_image/filename": "map.png",
                    "panoptic_objects": objects,
                },
            )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    Coco.folder = tmp_path_factory.mktemp("files")
    Coco(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


def test_reads_examples_of_a_prepared_dataset(prepared):
    source = TfdsPanoptic(split="train", data_dir=prepared)
    assert len(source) == 3 and source.categories == CATEGORIES
    drawn = {example.file_name: example for example in Shapes("train", 3, image_size=64)}
    for index, example in enumerate(source):
        expected = drawn.pop(example.file_name)
        rows = 60 + expected.image_id
        assert source.sizes[index].tolist() == [rows, 64]
        assert (example.image_id, example.orig_size) == (1000 + expected.image_id, (rows, 64))
        np.testing.assert_array_equal(example.image, expected.image[:rows])
        # Segments below the last row have no pixel, so the example omits them.
        boxes, present = find_boxes(expected.segment_map[:rows], len(expected.labels))
        np.testing.assert_array_equal(example.boxes, boxes[present])
        ids = [CATEGORIES[label * 10].id for label in expected.labels[present]]
        assert example.labels.tolist() == ids and example.labels.dtype == np.int32
        pixels = np.bincount(expected.segment_map[:rows].ravel(), minlength=len(present) + 1)[1:]
        np.testing.assert_array_equal(example.areas, pixels[present])
        assert example.iscrowd.sum() == 1
    assert not drawn


def write_folder(root):
    """Writes the images of the train split as a COCO panoptic folder."""
    content = {"categories": to_json(CATEGORIES), "images": [], "annotations": []}
    for folder in ("train", "panoptic_train", "annotations"):
        (root / folder).mkdir()
    for example in Shapes("train", 3, image_size=64):
        rows, name = 60 + example.image_id, example.file_name
        ids = example.segment_map[:rows]
        Image.fromarray(example.image[:rows]).save(root / "train" / name)
        Image.fromarray(np.stack([ids, ids, ids * 0], -1)).save(root / "panoptic_train" / name)
        segments = [
            {
                "id": (k + 1) * 257,
                "category_id": CATEGORIES[label * 10].id,
                "area": int(area),
                "iscrowd": k == 0,
            }
            for k, (label, area) in enumerate(zip(example.labels, example.areas, strict=True))
        ]
        image_id = example.image_id + 1000
        content["images"].append({"id": image_id, "file_name": name, "height": rows, "width": 64})
        annotation = {"image_id": image_id, "file_name": name, "segments_info": segments}
        content["annotations"].append(annotation)
    (root / "annotations" / "panoptic_train.json").write_text(json.dumps(content))


class Reordered:
    """A source reordered by the image ids of another."""

    def __init__(self, source, other):
        self.positions = [source.annotations.image_ids.tolist().index(example.image_id) for example in other]
        self.source, self.categories = source, source.categories
        self.sizes = source.sizes[self.positions]

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        return self.source[self.positions[index]]


def test_yields_the_same_batches_as_a_coco_folder_of_the_same_images(prepared, tmp_path):
    write_folder(tmp_path)
    records = TfdsPanoptic(split="train", data_dir=prepared)
    folder = Reordered(CocoPanoptic(tmp_path, "train"), records)
    options = {
        "batch_size": 2,
        "shapes": ((80, 80),),
        "settings": train_transform(scales=(48, 64), max_size=80, crop_scales=(64,), crop_range=(32, 60)),
        "max_targets": 12,
        "crowd": "keep",
        "seed": 0,
        "threads": 0,
        "epochs": 3,
    }
    for batch, expected in zip(
        train_batches(records, **options), train_batches(folder, **options), strict=True
    ):
        for name in batch._fields:
            np.testing.assert_array_equal(getattr(batch, name), getattr(expected, name), err_msg=name)


def test_reads_splits_and_parts_of_splits(prepared):
    assert len(TfdsPanoptic(split="validation", data_dir=prepared)) == 2
    assert len(TfdsPanoptic(split="train[:2]", data_dir=prepared)) == 2
    with pytest.raises(UserError, match="no split 'val'. Splits: train, validation"):
        TfdsPanoptic(split="val", data_dir=prepared)


def test_write_sizes_stores_what_sizes_reads(prepared):
    expected = TfdsPanoptic(split="train", data_dir=prepared).sizes
    write_sizes(data_dir=prepared)
    (path,) = prepared.rglob("detr_jax_sizes-train.npy")
    np.testing.assert_array_equal(np.load(path), expected)
    np.testing.assert_array_equal(TfdsPanoptic(split="train", data_dir=prepared).sizes, expected)


def test_an_unprepared_dataset_names_the_command_to_prepare_it(tmp_path):
    with pytest.raises(MissingFileError, match="detr-jax tfds --data_dir="):
        TfdsPanoptic(data_dir=tmp_path)


def test_rejects_other_classes(prepared, tmp_path, monkeypatch):
    monkeypatch.setattr(Coco, "names", tuple(str(k) for k in range(133)))
    Coco(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    with pytest.raises(UserError, match="the classes are not the 133 of COCO panoptic"):
        TfdsPanoptic(data_dir=tmp_path)


def test_rejects_file_formats_without_random_access(prepared, tmp_path):
    (source,) = prepared.glob("coco/2017_panoptic/1.1.0")
    folder = tmp_path / "coco" / "2017_panoptic" / "1.1.0"
    folder.mkdir(parents=True)
    for path in source.glob("*.*"):
        (folder / path.name).write_bytes(path.read_bytes())
    info = json.loads((folder / "dataset_info.json").read_text()) | {"fileFormat": "tfrecord"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(UserError, match="tfrecord files, which have no random access"):
        TfdsPanoptic(data_dir=tmp_path)


def test_reading_does_not_import_tensorflow(prepared):
    program = (
        "import sys\n"
        "from detr_jax.data.tfds import TfdsPanoptic\n"
        f"source = TfdsPanoptic(split='train', data_dir={str(prepared)!r})\n"
        "print(len(source), source.sizes.shape, source[0].image.shape[2], 'tensorflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "3 (3, 2) 3 False\n", done.stderr


def test_preparing_without_tensorflow_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(MissingPackageError, match="pip install 'detr_jax.tfds.'"):
        prepare()


def _with_image(source, index, content):
    """Replaces the image of a record."""
    records = [source._records[k] for k in range(len(source))]
    records[index] = dict(records[index]) | {"image": content}
    source._records = records
    return source


def _turned(example):
    """A file whose upright picture is that of the example."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(np.rot90(example.image))).save(file, "PNG", exif=exif)
    return file.getvalue()


def test_images_are_turned_upright_or_kept_as_stored(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.rglob("detr_jax_sizes-*.npy"):
        path.unlink()
    example = TfdsPanoptic(split="train", data_dir=tmp_path)[0]
    upright = _with_image(TfdsPanoptic(split="train", data_dir=tmp_path), 0, _turned(example))
    assert tuple(upright.sizes[0].tolist()) == example.orig_size
    np.testing.assert_array_equal(upright[0].image, example.image)
    rules = ImageRules(orientation="stored")
    stored = _with_image(TfdsPanoptic(split="train", data_dir=tmp_path, rules=rules), 0, _turned(example))
    assert tuple(stored.sizes[0].tolist()) == example.orig_size[::-1]
    with pytest.raises(UserError, match=r"record 0 .* but its image is"):
        stored[0]


def test_the_limit_of_the_size_names_the_record(prepared):
    source = TfdsPanoptic(split="train[:2]", data_dir=prepared, rules=ImageRules(max_pixels=3000))
    with pytest.raises(UserError, match=r"record 0 .*its image is 64 x \d+ .*data\.max_pixels"):
        source[0]
    with pytest.raises(UserError, match=r"record \d .*its image is 64 x \d+ .*data\.max_pixels"):
        source.sizes  # noqa: B018


def test_damaged_and_outdated_sizes_are_named(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    write_sizes(data_dir=tmp_path)
    (path,) = tmp_path.rglob("detr_jax_sizes-train.npy")
    np.save(path, np.load(path)[:, ::-1] + 1)
    source = TfdsPanoptic(split="train", data_dir=tmp_path)
    assert len(source.sizes) == 3
    with pytest.raises(UserError, match=r"as stored: delete .*detr_jax_sizes-train\.npy"):
        source[0]
    np.save(path, np.load(path)[:2])
    with pytest.raises(UserError, match=r"npy does not contain the sizes of 3 images\. Delete"):
        TfdsPanoptic(split="train", data_dir=tmp_path).sizes  # noqa: B018
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"npy is damaged\. Delete"):
        TfdsPanoptic(split="train", data_dir=tmp_path).sizes  # noqa: B018


def test_names_the_record_of_a_damaged_image(prepared):
    source = TfdsPanoptic(split="validation", data_dir=prepared)
    record = dict(source._records[1])
    record["panoptic_image"] = record["panoptic_image"][:200]
    source._records = [source._records[0], record]
    with pytest.raises(
        UserError, match=r"record 1 \(shapes_test_\d+\.png\) .*its panoptic PNG cannot be read"
    ):
        source[1]

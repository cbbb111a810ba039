"""COCO panoptic from TensorFlow Datasets, read with random access and without TensorFlow.

Preparing the dataset, once, needs TensorFlow:

    pip install 'detr_jax[tfds]'
    detr-jax tfds --data_dir=DIR
"""

import functools
import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int32, Int64, UInt8

from detr_jax.data.categories import coco_panoptic
from detr_jax.data.coco import make_example
from detr_jax.data.example import Example, Size
from detr_jax.data.images import ImageRules, decode_image, display_size, to_rgb
from detr_jax.errors import MissingFileError, MissingPackageError, UserError

NAME = "coco/2017_panoptic"
_READER_THREADS = 16
_DEFAULT_RULES = ImageRules()


class TfdsPanoptic:
    """A split of a prepared TFDS dataset with the features of coco/2017_panoptic, in the order of its files.

    TFDS numbers the classes 0 to 132 in the order of the COCO category ids; labels are converted back to
    category ids. Segments and boxes are treated as in `CocoPanoptic`.

    Attributes:
      categories: Categories of COCO panoptic.
    """

    def __init__(
        self,
        name: str = NAME,
        split: str = "validation",
        data_dir: str | os.PathLike[str] | None = None,
        *,
        rules: ImageRules = _DEFAULT_RULES,
    ) -> None:
        """Opens a prepared dataset.

        Args:
          name: Dataset and configuration.
          split: "train", "validation", or a part of them such as "train[:10%]".
          data_dir: TFDS data folder; by default the value of the environment variable TFDS_DATA_DIR, or
            else ~/tensorflow_datasets.
          rules: Orientation and limit of the size of images.

        Raises:
          MissingPackageError: TensorFlow Datasets is not installed.
          MissingFileError: The dataset is not prepared in `data_dir`.
          UserError: The split is unknown, the file format is not array_record, or the classes are not those
            of COCO panoptic.
        """
        tfds = _import_tfds()
        self.categories = coco_panoptic()
        folder = _find_prepared(name, data_dir)
        builder = tfds.builder_from_directory(folder)
        _check_format_and_classes(builder, folder, [category.name for category in self.categories])
        self._rules = rules
        self._sizes_file = _sizes_file(folder, split)
        skip = tfds.decode.SkipDecoding()
        try:
            self._records = builder.as_data_source(split, decoders={"image": skip, "panoptic_image": skip})
        except (KeyError, ValueError) as error:
            splits = ", ".join(sorted(builder.info.splits))
            raise UserError(f"{folder} has no split {split!r}. Splits: {splits}.") from error
        self._category_ids = np.array([category.id for category in self.categories], np.int32)

    def __len__(self) -> int:
        return len(self._records)

    @functools.cached_property
    def sizes(self) -> Int32[np.ndarray, "images 2"]:
        """Height and width of every image.

        `detr-jax tfds` stores those of whole splits. Others are read from the image headers at first use,
        which reads every record once.
        """
        # The stored sizes are those of upright images.
        if self._rules.orientation == "upright" and self._sizes_file.exists():
            return _load_sizes(self._sizes_file, len(self))
        with ThreadPoolExecutor(_READER_THREADS) as readers:
            return np.array(list(readers.map(self._read_size, range(len(self)))), np.int32).reshape(-1, 2)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        record = self._records[index]
        objects = record["panoptic_objects"]
        try:
            example = make_example(
                self._decode(record["image"], "its image"),
                decode_image(io.BytesIO(record["panoptic_image"]), "its panoptic PNG", self._rules),
                ids=np.array(objects["id"], np.int64),
                labels=self._to_category_ids(np.array(objects["label"], np.int64)),
                iscrowd=np.array(objects["is_crowd"], bool),
                image_id=int(record["image/id"]),
                file_name=record["image/filename"].decode(errors="replace"),
            )
            self._check_planned_size(index, example.orig_size)
        except UserError as error:
            raise UserError(
                f"Cannot use {self._name(index)}: {str(error).rstrip('.')}. If the record is damaged, delete "
                "that folder and prepare the dataset again."
            ) from error
        return example

    def _name(self, index: int) -> str:
        name = self._records[index]["image/filename"].decode(errors="replace")
        return f"record {index} ({name}) of {self._sizes_file.parent}"

    def _decode(self, content: bytes, name: str) -> UInt8[np.ndarray, "height width 3"]:
        return to_rgb(decode_image(io.BytesIO(content), name, self._rules), name, self._rules)

    def _to_category_ids(self, classes: Int64[np.ndarray, " segments"]) -> Int32[np.ndarray, " segments"]:
        if len(classes) and not 0 <= classes.min() <= classes.max() < len(self._category_ids):
            raise UserError(f"its segments have classes outside 0 to {len(self._category_ids) - 1}")
        labels: Int32[np.ndarray, " segments"] = self._category_ids[classes]
        return labels

    def _check_planned_size(self, index: int, size: Size) -> None:
        """Compares the size of an image with the one that batches are planned by, if they are."""
        planned = self.__dict__.get("sizes")
        if planned is not None and tuple(planned[index].tolist()) != size:
            raise UserError(
                f"its image is {size[1]} x {size[0]}, not {planned[index, 1]} x {planned[index, 0]} as "
                f"stored: delete {self._sizes_file}, so that the sizes are read again"
            )

    def _read_size(self, index: int) -> Size:
        content = io.BytesIO(self._records[index]["image"])
        try:
            return display_size(content, self._rules, "its image")
        except UserError as error:
            raise UserError(f"Cannot use {self._name(index)}: {error}") from error


def prepare(name: str = NAME, data_dir: str | os.PathLike[str] | None = None) -> None:
    """Downloads a dataset, writes it in a format with random access, and stores the sizes of its images.

    COCO panoptic is a download of 20 GB and takes as much again on disk.

    Args:
      name: Dataset and configuration.
      data_dir: TFDS data folder; see `TfdsPanoptic`.

    Raises:
      MissingPackageError: TensorFlow or TensorFlow Datasets is not installed.
    """
    tfds = _import_tfds()
    try:
        import tensorflow  # noqa: F401
    except ImportError as error:
        raise MissingPackageError(
            "TFDS needs TensorFlow to prepare this dataset, though not to read it: "
            "pip install 'detr_jax[tfds]'."
        ) from error
    tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()
    write_sizes(name, data_dir)


def write_sizes(name: str = NAME, data_dir: str | os.PathLike[str] | None = None) -> None:
    """Stores the image sizes of every split beside the data, so that runs need not read the images for them.

    Args:
      name: Dataset and configuration.
      data_dir: TFDS data folder; see `TfdsPanoptic`.

    Raises:
      MissingPackageError: TensorFlow Datasets is not installed.
      MissingFileError: The dataset is not prepared in `data_dir`.
    """
    folder = _find_prepared(name, data_dir)
    for split in _import_tfds().builder_from_directory(folder).info.splits:
        sizes = TfdsPanoptic(name, split, data_dir).sizes
        with _sizes_file(folder, split).open("wb") as file:
            np.save(file, sizes)


def _import_tfds() -> ModuleType:
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise MissingPackageError(
            "Reading TFDS data (data.source=tfds) needs TensorFlow Datasets: pip install 'detr_jax[tfds]'."
        ) from error
    module: ModuleType = tensorflow_datasets
    return module


def _find_prepared(name: str, data_dir: str | os.PathLike[str] | None) -> epath.Path:
    """Folder of the newest prepared version of a dataset."""
    root = epath.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    # `tfds.builder` would load the code of the dataset, which needs TensorFlow.
    folders = [path.parent for path in root.glob(f"{name}/*/dataset_info.json")]
    if not folders:
        raise MissingFileError(
            f"{root} does not contain a prepared {name}. Prepare it once: pip install 'detr_jax[tfds]' and "
            f"detr-jax tfds --data_dir={root}, or set data.root to the folder that contains it."
        )
    return max(folders, key=lambda folder: [int(part) for part in folder.name.split(".") if part.isdigit()])


def _sizes_file(folder: epath.Path, split: str) -> epath.Path:
    return folder / f"detr_jax_sizes-{split}.npy"


def _load_sizes(file: epath.Path, count: int) -> Int32[np.ndarray, "images 2"]:
    """Reads stored sizes of `count` images."""
    remedy = f"Delete {file}, so that the sizes are read from the images."
    try:
        with file.open("rb") as stream:
            sizes: Int32[np.ndarray, "images 2"] = np.load(stream, allow_pickle=False)
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise UserError(f"{file} is damaged. {remedy}") from error
    if getattr(sizes, "shape", None) != (count, 2) or sizes.dtype != np.int32 or (sizes < 1).any():
        raise UserError(f"{file} does not contain the sizes of {count} images. {remedy}")
    return sizes


def _check_format_and_classes(builder: Any, folder: epath.Path, names: Sequence[str]) -> None:
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise UserError(
            f"{folder} contains {file_format} files, which have no random access. Prepare the dataset in "
            "another folder: detr-jax tfds --data_dir=OTHER_FOLDER"
        )
    found = builder.info.features["panoptic_objects"]["label"].names
    if list(found) != list(names):
        raise UserError(f"{folder}: the classes are not the {len(names)} of COCO panoptic, but {found}.")

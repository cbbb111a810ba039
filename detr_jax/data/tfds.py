"""COCO panoptic from TensorFlow Datasets, read with random access and without TensorFlow.

TFDS needs TensorFlow to prepare this data set, once:

    pip install 'detr_jax[tfds]'
    python -m detr_jax.data.tfds --data_dir=DIR
"""

import argparse
import functools
import io
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import Int32
from PIL import Image

from detr_jax.data.categories import coco_panoptic
from detr_jax.data.coco import make_example
from detr_jax.data.example import Example

NAME = "coco/2017_panoptic"
_READERS = 16


class TfdsPanoptic:
    """A split of a prepared TFDS data set with the features of coco/2017_panoptic, in the order of its files.

    Labels become COCO category ids: TFDS counts the classes 0..132 in the order of the ids. What is said of
    segments and boxes in `CocoPanoptic` holds here, too.

    Attributes:
      categories: COCO panoptic's.
      sizes: height and width of every image. Written by `python -m detr_jax.data.tfds` for whole splits, else
        taken from the image headers at first use, which reads every record once (20 GB for COCO's train
        split).
    """

    def __init__(
        self, name: str = NAME, split: str = "validation", data_dir: str | os.PathLike[str] | None = None
    ) -> None:
        """Opens a prepared data set.

        Args:
          name: data set and configuration.
          split: "train" or "validation", or a part such as "train[:10%]".
          data_dir: where TFDS keeps its data; $TFDS_DATA_DIR or ~/tensorflow_datasets by default.

        Raises:
          FileNotFoundError: it is not prepared there.
          ValueError: unknown split, another file format than array_record, or other classes than COCO's.
        """
        self.categories = coco_panoptic()
        folder = _find(name, data_dir)
        builder = tfds.builder_from_directory(folder)
        _check(builder, folder, [category.name for category in self.categories])
        self._sizes_file = _sizes_file(folder, split)
        skip = tfds.decode.SkipDecoding()
        try:
            self._records = builder.as_data_source(split, decoders={"image": skip, "panoptic_image": skip})
        except (KeyError, ValueError) as error:
            splits = ", ".join(sorted(builder.info.splits))
            raise ValueError(f"{folder} has no split {split!r}. Splits: {splits}.") from error
        self._category_ids = np.array([category.id for category in self.categories], np.int32)

    def __len__(self) -> int:
        return len(self._records)

    @functools.cached_property
    def sizes(self) -> Int32[np.ndarray, "images 2"]:
        """Height and width of every image."""
        if self._sizes_file.exists():
            with self._sizes_file.open("rb") as file:
                return np.load(file)
        with ThreadPoolExecutor(_READERS) as readers:
            return np.array(list(readers.map(self._read_size, range(len(self)))), np.int32).reshape(-1, 2)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        record = self._records[index]
        objects = record["panoptic_objects"]
        name = record["image/filename"].decode()
        try:
            return make_example(
                _open(record["image"]),
                _open(record["panoptic_image"]),
                ids=np.array(objects["id"], np.int64),
                labels=self._category_ids[np.array(objects["label"], np.intp)],
                areas=np.array(objects["area"], np.int64),
                iscrowd=np.array(objects["is_crowd"], bool),
                image_id=int(record["image/id"]),
                file_name=name,
            )
        except (OSError, ValueError) as error:
            message = f"Cannot use record {index} ({name}) of {self._sizes_file.parent}: {error}. "
            raise ValueError(message + "Delete that folder and prepare it anew.") from error

    def _read_size(self, index: int) -> tuple[int, int]:
        # Opening reads the header alone.
        width, height = Image.open(io.BytesIO(self._records[index]["image"])).size
        return height, width


def prepare(name: str = NAME, data_dir: str | None = None) -> None:
    """Downloads a data set (COCO: 20 GB, and as much again on disk) and writes it for random access.

    Raises:
      ModuleNotFoundError: TensorFlow is not installed.
    """
    try:
        import tensorflow  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "TFDS prepares this data set with TensorFlow: pip install 'detr_jax[tfds]' (reading needs none)."
        ) from error
    tfds.builder(name, data_dir=data_dir, file_format="array_record").download_and_prepare()
    write_sizes(name, data_dir)


def write_sizes(name: str = NAME, data_dir: str | os.PathLike[str] | None = None) -> None:
    """Stores the image sizes of every split beside the data, so that a run need not read all of it first."""
    folder = _find(name, data_dir)
    for split in tfds.builder_from_directory(folder).info.splits:
        sizes = TfdsPanoptic(name, split, data_dir).sizes
        with _sizes_file(folder, split).open("wb") as file:
            np.save(file, sizes)


def main() -> None:
    """Prepares the data set named on the command line."""
    parser = argparse.ArgumentParser(prog="python -m detr_jax.data.tfds", description=prepare.__doc__)
    parser.add_argument("--name", default=NAME, help="data set and configuration (%(default)s)")
    parser.add_argument("--data_dir", help="where TFDS keeps its data (~/tensorflow_datasets)")
    prepare(**vars(parser.parse_args()))


def _find(name: str, data_dir: str | os.PathLike[str] | None) -> epath.Path:
    """Folder of the newest prepared version."""
    root = epath.Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    # Not `tfds.builder`, which asks the data set's own code, and that needs TensorFlow.
    folders = [path.parent for path in root.glob(f"{name}/*/dataset_info.json")]
    if not folders:
        raise FileNotFoundError(
            f"{root} holds no prepared {name}. Prepare it once: pip install 'detr_jax[tfds]' and "
            f"python -m detr_jax.data.tfds --data_dir={root} (or give the right data_dir)."
        )
    return max(folders, key=lambda folder: [int(part) for part in folder.name.split(".") if part.isdigit()])


def _sizes_file(folder: epath.Path, split: str) -> epath.Path:
    return folder / f"detr_jax_sizes-{split}.npy"


def _check(builder: Any, folder: epath.Path, names: list[str]) -> None:
    file_format = builder.info.file_format.value
    if file_format != "array_record":
        raise ValueError(
            f"{folder} holds {file_format} files, which have no random access. Prepare it in another folder: "
            "python -m detr_jax.data.tfds --data_dir=ANOTHER"
        )
    found = builder.info.features["panoptic_objects"]["label"].names
    if found != names:
        raise ValueError(f"{folder}: its classes are not COCO panoptic's {len(names)}, but {found}.")


def _open(encoded: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(encoded))
    image.load()
    return image


if __name__ == "__main__":
    main()

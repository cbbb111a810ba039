"""What a run writes for TensorBoard: metrics in groups, scores of categories, pictures of the same images."""

import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

PICTURES = 4  # images that are shown, the first ones that are evaluated
_HEIGHT = 320  # of pictures, in pixels

# Names of metrics, and their tags: TensorBoard groups tags by what precedes the slash.
_TAGS = [
    (r"loss", r"loss/total"),
    (r"loss_([a-z]+)_(\d+)", r"loss_\1_by_layer/\2"),
    (r"loss_([a-z]+)", r"loss/\1"),
    (r"(class|cardinality)_error_(\d+)", r"\1_error_by_layer/\2"),
    (r"(class|cardinality)_error", r"error/\1"),
    (r"(gradient_norm|weight_norm|learning_rate|seconds)_([a-z_]+)", r"\1/\2"),
    (r"(gradient_norm|weight_norm)", r"\1/all"),
    (r"images_per_second", r"speed/images_per_second"),
    (r"(val_part|val_raw|val)_(\w+)", r"\1/\2"),
]


class TensorBoard:
    """Writes the events of a run to its working directory, from the first metric on."""

    def __init__(self, workdir: Path):
        """Creates no file yet.

        Args:
          workdir: Directory of the run.
        """
        self._workdir = workdir
        self._purge_step: int | None = None
        self._shown: dict[str, int] = {}  # the step that each picture was last written at

    @functools.cached_property
    def _writer(self) -> Any:
        """Created on the first write: a writer without events fails to close when an error ends the run."""
        from tensorboardX import SummaryWriter  # takes seconds to import

        # The name of a file has the second of its creation, which may be that of another file.
        suffix = f".from_step_{self._purge_step or 0}"
        return SummaryWriter(str(self._workdir), purge_step=self._purge_step, filename_suffix=suffix)

    def drop_events_after(self, step: int) -> None:
        """Makes TensorBoard ignore earlier events of later steps, which a resumed run writes again.

        Must be called before the first event is written.

        Args:
          step: Step that the run resumes from.
        """
        self._purge_step = step + 1 if step else None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Writes metrics.

        Args:
          step: Number of updates so far.
          metrics: Metrics by name, see `tags`.
        """
        for name, value in metrics.items():
            for tag in tags(name, metrics):
                self._writer.add_scalar(tag, value, step)

    def wants_picture(self, step: int, name: str) -> bool:
        """Whether the picture of an image is to be written: of the first `PICTURES`, once per step."""
        if name not in self._shown and len(self._shown) >= PICTURES:
            return False
        return self._shown.get(name) != step

    def write_picture(self, step: int, name: str, picture: UInt8[np.ndarray, "height width 3"]) -> None:
        """Writes the picture of an image.

        Args:
          step: Number of updates so far.
          name: Name of the image.
          picture: Picture, which is shown with a height of at most 320 pixels.
        """
        self._shown[name] = step
        self._writer.add_image(f"pictures/{name}", _reduced(picture), step, dataformats="HWC")

    def close(self) -> None:
        """Writes the remaining events and closes their file."""
        if "_writer" in self.__dict__:
            self._writer.close()


def tags(name: str, names: Iterable[str]) -> Iterator[str]:
    """Yields the tags of a metric.

    Losses are "loss/ce", and those of decoder layers "loss_ce_by_layer/0", ..., with the last layer as
    "loss_ce_by_layer/last".

    Args:
      name: Name of the metric. One with a slash is its own tag.
      names: Names of all metrics.
    """
    yield next((re.sub(pattern, tag, name) for pattern, tag in _TAGS if re.fullmatch(pattern, name)), name)
    if f"{name}_0" in names and "/" not in name:
        yield f"{name}_by_layer/last"


def _reduced(picture: UInt8[np.ndarray, "height width 3"]) -> UInt8[np.ndarray, "_ _ 3"]:
    height, width = picture.shape[:2]
    if height <= _HEIGHT:
        return picture
    size = max(round(width * _HEIGHT / height), 1), _HEIGHT
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))

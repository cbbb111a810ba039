"""Segments image files and writes the results to a folder."""

import os
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from jaxtyping import UInt8
from ml_collections import ConfigDict

from detr_jax.config import validate
from detr_jax.data.example import Size
from detr_jax.data.images import ImageRules, ListedImage, list_images, read_image, static_shape
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.data.transforms import EvalTransform, plan_eval
from detr_jax.errors import UserError
from detr_jax.inference.prediction_folder import PredictionFolder, result_folders
from detr_jax.inference.predictor import Predictor
from detr_jax.runtime.interruption import Interruption
from detr_jax.runtime.progress import Advance, progress
from detr_jax.runtime.reporting import log
from detr_jax.runtime.workdir import claim
from detr_jax.weights.class_agreement import GivenCategories, categories_of
from detr_jax.weights.initialize import trained_model

Pixels = UInt8[np.ndarray, "height width 3"]
_Image = tuple[int, Pixels]  # index of an image, and its content

_LISTED_FAILURES = 20
_LISTED_FILES = 50  # more files than these get no line each
_THREADS = min(8, os.cpu_count() or 1)  # that read, and as many that write
_BATCH_SIZE_ON_ACCELERATORS = 4


def predict(
    config: ConfigDict, workdir: str | Path, images: Sequence[str], categories: GivenCategories | None = None
) -> None:
    """Segments images with a run's newest checkpoint, or else with `config.init_from` (`--mode=predict`).

    Args:
      config: Whole config, see `default_config`.
      workdir: Directory of the run. Results are written to its `predictions/`, see `predict_files`.
      images: Paths of image files, or of folders of images.
      categories: Categories of the checkpoint's classes, see `categories_of`.

    Raises:
      MissingFileError: There are no images, or there is no checkpoint.
      UserError: A config field is invalid, the categories cannot be used, the model has no mask head, or
        images failed.
    """
    validate(config)
    predictions = Path(workdir) / "predictions"
    listed = list(list_images(images, skip=result_folders(predictions)))
    with claim(workdir):
        model, params, source = trained_model(config, workdir)
        named = categories_of(source, model.num_classes, categories)
        predictor = Predictor(model, params, named, config)
        predict_files(predictor, listed, predictions)


def predict_files(
    predictor: Predictor,
    images: Iterable[ListedImage],
    folder: str | Path,
    *,
    batch_size: int | None = None,
    overlays: bool = True,
) -> None:
    """Segments image files and writes the results in COCO's panoptic format.

    An image that fails does not stop the others. The results replace those of an earlier run as a whole at
    the end, also after an interruption, which then keeps the images done so far. Images that an earlier run
    segmented, even one that was killed, are not segmented again if neither they nor the settings changed.

    Args:
      predictor: Model with a mask head.
      images: Images. A repeated path counts once.
      folder: Directory of the results: `panoptic/*.png`, `panoptic.json`, and pictures in `overlays/*.png`.
        Sub-folders of the images are kept.
      batch_size: Number of images of one static shape that run together; by default 1 on CPUs, otherwise 4.
      overlays: Whether to write the pictures in `overlays/`.

    Raises:
      UserError: The model has no mask head, the folder cannot be written to, or images failed. The message
        lists these images with the reasons.
    """
    if not predictor.has_masks:
        raise UserError(
            "these weights have no mask head, so they cannot predict panoptic segmentations; "
            "in Python, Predictor.detect returns boxes"
        )
    distinct: dict[str, ListedImage] = {}
    for image in images:
        distinct.setdefault(os.path.abspath(image.path), image)
    listed = list(distinct.values())
    output = PredictionFolder(folder, listed, predictor.categories, predictor.identity(), overlays)
    if len(output.pending) < len(listed):
        finished = len(listed) - len(output.pending)
        log(f"{finished} of {len(listed)} images were finished by an earlier run with the same settings")
    job = _FolderJob(predictor, listed, output, batch_size or _default_batch_size())
    with Interruption() as interruption:
        try:
            with interruption.immediate():
                job.run()
        finally:
            count = output.publish()
            log(f"wrote {count} predictions to {_printable(folder)}")
    failures = [reason for _, reason in sorted(job.failures.items())]
    if failures:
        raise UserError(
            "\n  ".join([f"{len(failures)} of {len(listed)} images failed:", *_shortened(failures)])
        )


class _FolderJob:
    """Reads images ahead, segments them in batches, and writes the results while the next batch runs.

    Attributes:
      failures: Which file failed and why, by the index of the image.
    """

    def __init__(
        self, predictor: Predictor, images: Sequence[ListedImage], output: PredictionFolder, batch_size: int
    ):
        self.failures: dict[int, str] = {}
        self._predictor, self._images, self._output = predictor, images, output
        self._batch_size = batch_size
        self._rules = ImageRules.from_config(predictor.config.data)
        self._lists_files = len(output.pending) <= _LISTED_FILES

    def run(self) -> None:
        """Segments the pending images. An interruption waits for results that are being written."""
        unwritten: deque[tuple[int, Future[int]]] = deque()
        readers, writers = ThreadPoolExecutor(_THREADS), ThreadPoolExecutor(_THREADS)
        with progress("images", len(self._output.pending)) as advance:
            try:
                for batch in self._batches(readers, advance):
                    for index, pixels, result in self._segment(batch, advance):
                        unwritten.append((index, writers.submit(self._write, index, pixels, result)))
                    while len(unwritten) > 2 * _THREADS:
                        self._finish(*unwritten.popleft(), advance)
                while unwritten:
                    self._finish(*unwritten.popleft(), advance)
            finally:
                readers.shutdown(cancel_futures=True)
                writers.shutdown()

    def _batches(self, readers: Executor, advance: Advance) -> Iterator[list[_Image]]:
        """Batches of images that have one static shape, in order of their last image."""
        data = self._predictor.config.data
        transform = EvalTransform.from_config(data)
        waiting: dict[Size, list[_Image]] = {}
        for index, reading in self._read_ahead(readers):
            try:
                pixels = reading.result()
            except Exception as error:
                self._fail(index, error, advance)
                continue
            size = plan_eval((pixels.shape[0], pixels.shape[1]), transform).size
            shape = static_shape(size, data.eval_shapes)
            batch = waiting.setdefault(shape, [])
            batch.append((index, pixels))
            if len(batch) == self._batch_size:
                yield waiting.pop(shape)
        yield from waiting.values()

    def _read_ahead(self, readers: Executor) -> Iterator[tuple[int, Future[Pixels]]]:
        reading: deque[tuple[int, Future[Pixels]]] = deque()
        for index in self._output.pending:
            future = readers.submit(read_image, self._images[index].path, self._rules)
            reading.append((index, future))
            if len(reading) > self._batch_size + _THREADS:
                yield reading.popleft()
        yield from reading

    def _segment(
        self, batch: list[_Image], advance: Advance
    ) -> Iterator[tuple[int, Pixels, PanopticSegmentation]]:
        """Segments a batch; if that fails, each image alone, so that those at fault are found."""
        try:
            results = [self._predictor(pixels) for _, pixels in batch]
        except (
            Exception
        ) as error:  # whatever one image causes, such as too little memory, the others are done
            if len(batch) == 1:
                self._fail(batch[0][0], error, advance)
            else:
                for image in batch:
                    yield from self._segment([image], advance)
            return
        for (index, pixels), result in zip(batch, results, strict=True):
            yield index, pixels, result

    def _write(self, index: int, pixels: Pixels, result: PanopticSegmentation) -> int:
        self._output.add(index, pixels, result)
        return len(result.segments_info)

    def _finish(self, index: int, writing: Future[int], advance: Advance) -> None:
        try:
            count = writing.result()
        except Exception as error:
            self._fail(index, error, advance)
            return
        if self._lists_files:
            log(f"{_printable(self._images[index].path)}: {count} segments")
        advance()

    def _fail(self, index: int, error: Exception, advance: Advance) -> None:
        """Logs why an image failed, with the traceback of what is not known to be the user's error."""
        path, reason = _printable(self._images[index].path), _one_line(error)
        if not isinstance(error, UserError):
            log(_printable("".join(traceback.format_exception(error))))
            reason = f"{type(error).__name__}: {reason}"
        self.failures[index] = reason if path in reason else f"{path}: {reason}"
        log(f"skipped: {self.failures[index]}")
        advance()


def _default_batch_size() -> int:
    return 1 if jax.default_backend() == "cpu" else _BATCH_SIZE_ON_ACCELERATORS


def _one_line(error: Exception) -> str:
    return _printable(str(error).partition("\n")[0])


def _printable(text: str | Path) -> str:
    """The text, with escapes for bytes of a file name that are no UTF-8, which a terminal refuses."""
    return str(text).encode(errors="backslashreplace").decode()


def _shortened(lines: list[str]) -> list[str]:
    more = len(lines) - _LISTED_FAILURES
    return [*lines[:_LISTED_FAILURES], f"... and {more} more"] if more > 0 else lines

"""Segments image files and writes the results to a folder."""

import os
import traceback
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import jax
from ml_collections import ConfigDict

from detr_jax.config import validate
from detr_jax.data.images import ListedImage, read_image
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import UserError
from detr_jax.inference.earlier_predictions import images_to_segment
from detr_jax.inference.prediction_folder import OUTPUT_FOLDER, PredictionFolder
from detr_jax.inference.predictor import Predictor
from detr_jax.inference.tiles import Tiling, stream_tiled
from detr_jax.runtime.interruption import Interruption
from detr_jax.runtime.progress import Advance, progress
from detr_jax.runtime.reporting import counted, log, printable
from detr_jax.runtime.workdir import claim
from detr_jax.weights.class_agreement import GivenCategories, categories_of
from detr_jax.weights.initialize import trained_model

_LISTED_FILES = 50  # more files than these get no line each
_THREADS = min(4, os.cpu_count() or 1)  # that write results
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
    listed = images_to_segment(images, predictions)
    with claim(workdir):
        model, params, source, remark = trained_model(config, workdir)
        if remark:
            log(remark)
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
    tiling: Tiling | None = None,
) -> None:
    """Segments image files and writes the results in COCO's panoptic format.

    An image that fails does not stop the others. The results replace those of an earlier run as a whole at
    the end. After an interruption they do so only if no prediction of other images or settings gets lost.
    Images that an earlier run segmented, even one that was killed, are not segmented again if neither they
    nor the settings changed.

    Args:
      predictor: Model with a mask head.
      images: Images. A repeated path counts once.
      folder: Directory of the results: `panoptic/*.png`, `panoptic.json`, and pictures in `overlays/*.png`.
        Sub-folders of the images are kept.
      batch_size: Number of images of one static shape that run together; by default 1 on CPUs, otherwise 4.
      overlays: Whether to write the pictures in `overlays/`.
      tiling: Tiles that images are cut into, see `segment_tiles`; None segments them as a whole.

    Raises:
      UserError: The model has no mask head, the folder cannot be written to, another process writes to it,
        or images failed. A line with its reason was logged for each.
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
    with claim(folder, OUTPUT_FOLDER):
        settings = predictor.identity() + (f" {tiling}" if tiling else "")
        output = PredictionFolder(folder, listed, predictor.categories, settings, overlays)
        if len(output.pending) < len(listed):
            finished = len(listed) - len(output.pending)
            log(f"{finished} of {len(listed)} images were finished by an earlier run with the same settings")
        if output.replaced:
            replaced = counted(output.replaced, "earlier prediction")
            log(f"{replaced}, of other images or settings, will be replaced")
        job = _FolderJob(predictor, listed, output, tiling)
        _run_and_publish(job, output, folder, batch_size or _default_batch_size())
    if job.failed:
        raise UserError(
            f"{job.failed} of {len(listed)} images failed: the lines that begin with 'skipped' say why"
        )


def _run_and_publish(
    job: "_FolderJob", output: PredictionFolder, folder: str | Path, batch_size: int
) -> None:
    """Segments the pending images. If interrupted, it still publishes what is finished.

    But only a run that ends, with at least one prediction, replaces those of other images or settings.
    """
    ended = False
    with Interruption() as interruption:
        try:
            with interruption.immediate(), progress("images", len(output.pending)) as advance:
                job.run(batch_size, advance)
            ended = True
        finally:
            if output.replaced and not (ended and output.finished):
                kept = f"{counted(output.replaced, 'earlier prediction')} in {printable(folder)}"
                log(f"keeps {kept}: the same command finishes the new ones, then replaces them")
            else:
                log(_written(output.publish(), Path(folder), output.overlays))


def _written(count: int, folder: Path, overlays: bool) -> str:
    """What was written, and what to open."""
    pictures = f"; pictures in {printable(folder / 'overlays')}" if overlays and count else ""
    return f"wrote {counted(count, 'prediction')} to {printable(folder)}{pictures}"


class _FolderJob:
    """Segments images while the next ones are read, and writes the results in threads.

    Attributes:
      failed: Number of images that failed.
    """

    def __init__(
        self,
        predictor: Predictor,
        images: Sequence[ListedImage],
        output: PredictionFolder,
        tiling: Tiling | None,
    ):
        self.failed = 0
        self._tiling = tiling
        self._predictor, self._images, self._output = predictor, images, output
        self._lists_files = len(output.pending) <= _LISTED_FILES

    def run(self, batch_size: int, advance: Advance) -> None:
        """Segments the pending images. An interruption waits for the results that are being written."""
        pending = self._output.pending
        unwritten: deque[tuple[int, Future[int]]] = deque()
        paths = [self._images[index].path for index in pending]
        if self._tiling:
            results = stream_tiled(self._predictor, paths, self._tiling, batch_size)
        else:
            results = self._predictor.stream(paths, batch_size=batch_size, return_errors=True)
        with ThreadPoolExecutor(_THREADS, "detr_jax_write") as writers:
            for index, result in zip(pending, results, strict=True):
                if isinstance(result, Exception):
                    self._fail(index, result, advance)
                    continue
                unwritten.append((index, writers.submit(self._write, index, result)))
                while len(unwritten) > 2 * _THREADS or (unwritten and unwritten[0][1].done()):
                    self._finish(*unwritten.popleft(), advance)
            for index, writing in unwritten:
                self._finish(index, writing, advance)

    def _write(self, index: int, result: PanopticSegmentation) -> int:
        """Writes a result. Returns its number of segments."""
        path, rules = self._images[index].path, self._predictor.image_rules
        pixels = read_image(path, rules) if self._output.overlays else None
        self._output.add(index, result, pixels)
        return len(result.segments_info)

    def _finish(self, index: int, writing: Future[int], advance: Advance) -> None:
        try:
            count = writing.result()
        except Exception as error:
            self._fail(index, error, advance)
            return
        if self._lists_files:
            log(f"{printable(self._images[index].path)}: {counted(count, 'segment')}")
        advance()

    def _fail(self, index: int, error: Exception, advance: Advance) -> None:
        """Logs why an image failed, with the traceback of what is not known to be the user's error."""
        path, reason = printable(self._images[index].path), _one_line(error)
        if not isinstance(error, UserError):
            log(printable("".join(traceback.format_exception(error))))
            reason = f"{type(error).__name__}: {reason}"
        self.failed += 1
        log(f"skipped: {reason if path in reason else f'{path}: {reason}'}")
        advance()


def _default_batch_size() -> int:
    return 1 if jax.default_backend() == "cpu" else _BATCH_SIZE_ON_ACCELERATORS


def _one_line(error: Exception) -> str:
    return printable(str(error).partition("\n")[0])

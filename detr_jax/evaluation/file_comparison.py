"""Compares panoptic PNGs, image by image, in threads."""

import collections
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt32

from detr_jax.data.images import decode_image
from detr_jax.data.segment_maps import ids_from_png, reason_for_grey
from detr_jax.data.segment_matches import count_overlaps
from detr_jax.errors import UserError
from detr_jax.evaluation.result_files import ResultFiles

_THREADS = min(8, os.cpu_count() or 1)
_AHEAD = 4  # images per thread that are compared before their turn

Entry = dict[str, Any]


class Compared(NamedTuple):
    """The two maps of an image, compared.

    Attributes:
      image_id: Id of the image in the ground truth.
      size: Height and width in pixels.
      overlaps: Number of pixels that the segments share, see `count_overlaps`.
      truth: Entry of the image in the ground truth.
      prediction: Entry of the image in the predictions.
    """

    image_id: int
    size: tuple[int, int]
    overlaps: Int64[np.ndarray, "rows columns"]
    truth: Entry
    prediction: Entry

    def wrong_areas(self) -> tuple[int, int]:
        """Numbers of true and of predicted segments whose listed area is not their number of pixels."""
        true_areas, areas = self.overlaps.sum(1).tolist(), self.overlaps.sum(0).tolist()
        return _wrong(self.truth, true_areas[1:]), _wrong(self.prediction, areas[1:])

    def improbable_scores(self) -> int:
        """Number of predicted segments whose score is not from 0 to 1. NaN is an unknown score."""
        scores = [info.get("score") for info in self.prediction["segments_info"]]
        return sum(score is not None and (score < 0 or score > 1) for score in scores)

    def lost(self) -> int:
        """Number of true segments without a pixel."""
        return int((self.overlaps[1:-1].sum(1) == 0).sum())

    def has_unlisted(self) -> bool:
        """Whether the ground truth has pixels of segments that it does not list."""
        return bool(self.overlaps[-1].any())


def compare_all(
    predictions: ResultFiles, ground_truth: ResultFiles, ids: Mapping[int, int]
) -> Iterator[Compared]:
    """Yields the comparison of each image, in order. Few images are in memory, whatever their number.

    Args:
      predictions: Predictions.
      ground_truth: Ground truth.
      ids: Image id in the predictions, by image id in the ground truth.

    Raises:
      UserError: The maps of an image cannot be compared, see `compare_image`.
    """
    waiting = iter(ids.items())
    pending: collections.deque[Future[Compared]] = collections.deque()
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="compare") as threads:
        try:
            while True:
                for true_id, image_id in waiting:
                    entries = ground_truth.annotations[true_id], predictions.annotations[image_id]
                    files = ground_truth.pngs, predictions.pngs
                    pending.append(threads.submit(compare_image, *entries, *files))
                    if len(pending) == _AHEAD * _THREADS:
                        break
                if not pending:
                    return
                yield pending.popleft().result()
        finally:
            threads.shutdown(cancel_futures=True)


def compare_image(truth: Entry, prediction: Entry, true_pngs: Path, pngs: Path) -> Compared:
    """Counts the pixels that the segments of two PNGs share.

    As in panopticapi, a true segment without pixels is one that no prediction matches, and true pixels of
    unlisted segments are not void; predictions must list exactly the segments of their PNG.

    Args:
      truth: `annotations` entry of the image in the ground truth.
      prediction: `annotations` entry of the image in the predictions.
      true_pngs: Folder of the PNGs of the ground truth.
      pngs: Folder of the PNGs of the predictions.

    Raises:
      UserError: A PNG is damaged or is no map of ids, the sizes differ, or the prediction does not list
        exactly the segments of its PNG. The message names the image and the segment.
    """
    true_path, path = true_pngs / truth["file_name"], pngs / prediction["file_name"]
    (true_map, _), (segment_map, grey) = _read_ids(true_path), _read_ids(path)
    where = f"image {truth['image_id']}: {path}"
    if segment_map.shape != true_map.shape:
        sides = [f"{shape[1]} x {shape[0]}" for shape in (segment_map.shape, true_map.shape)]
        raise UserError(
            f"{where} is {sides[0]} (width x height), but the ground truth {true_path} is {sides[1]}: resize "
            "predictions to the original size, by nearest neighbour"
        )
    true_ids, ids = ([info["id"] for info in entry["segments_info"]] for entry in (truth, prediction))
    overlaps = count_overlaps(true_map, true_ids, segment_map, ids)
    if overlaps[:, -1].any():
        unlisted = np.setdiff1d(segment_map, [0, *ids])[0]
        raise UserError(f"{where} has pixels of segment {unlisted}, which segments_info does not list{grey}")
    absent = [number for number, area in zip(ids, overlaps.sum(0)[1:], strict=False) if area == 0]
    if absent:
        raise UserError(f"{where} has no pixel of segment {absent[0]}, which segments_info lists{grey}")
    height, width = true_map.shape
    return Compared(truth["image_id"], (height, width), overlaps, truth, prediction)


def read_map(path: Path) -> UInt32[np.ndarray, "height width"]:
    """Segment id of each pixel of a PNG.

    Raises:
      UserError: The PNG is damaged, or is no map of ids.
    """
    return _read_ids(path)[0]


def _read_ids(path: Path) -> tuple[UInt32[np.ndarray, "height width"], str]:
    """The ids of a PNG, and what to add to an error about them if the PNG holds grey levels."""
    png = decode_image(path, path)
    try:
        return ids_from_png(png), reason_for_grey(png)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _wrong(entry: Entry, areas: list[int]) -> int:
    pairs = zip(entry["segments_info"], areas, strict=False)
    return sum(info.get("area") is not None and info["area"] != area for info, area in pairs)

r"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", https://arxiv.org/abs/1801.00868).

.. math::
  PQ = \frac{\sum_{(p, g) \in TP} IoU(p, g)}{|TP| + \frac{1}{2} |FP| + \frac{1}{2} |FN|} = SQ \cdot RQ, \qquad
  SQ = \frac{\sum_{(p, g) \in TP} IoU(p, g)}{|TP|}

per category, where a predicted and a true segment of the category match (TP) if their IoU exceeds 0.5; FP and
FN are the predicted and true segments without a match.

`PanopticQuality` counts in memory, image by image. `OfficialPanopticQuality` also has `update`, `result` and
`table`, but writes the maps to a temporary directory and runs the official code on them, with equal results.
Both count areas in the maps, so that areas that are listed wrongly cannot give an IoU above 1.
"""

import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int, Int64

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import MissingPackageError, UserError
from detr_jax.evaluation.segment_matches import SegmentMatches, match_segments

GROUPS = {"All": (True, False), "Things": (True,), "Stuff": (False,)}


class PanopticQuality:
    """Panoptic quality of predictions that are added image by image.

    Attributes:
      categories: Categories in the order of the table.
      counts: Summed IoU of the matches, and numbers of true positives, false positives and false negatives
        of each category. The counts of a dataset are the sum of those of its parts.
    """

    categories: tuple[Category, ...]
    counts: Float64[np.ndarray, "categories 4"]

    def __init__(self, categories: Sequence[Category]):
        self.categories = tuple(categories)
        self.counts = np.zeros((len(self.categories), 4))
        self._ids = np.array([category.id for category in self.categories], np.int64)
        self._order = np.argsort(self._ids)

    def update(
        self, ground_truth: PanopticSegmentation, prediction: PanopticSegmentation, image_id: int
    ) -> None:
        """Adds an image.

        Args:
          ground_truth: Annotated segmentation. Its segments_info has `iscrowd`.
          prediction: Predicted segmentation of the same size.
          image_id: Id of the image, for error messages.

        Raises:
          ValueError: The sizes differ, a class is not among the categories, or the predicted map and its
            segments_info do not list the same segments.
        """
        if ground_truth.segment_map.shape != prediction.segment_map.shape:
            raise ValueError(
                f"image {image_id}: the prediction is {prediction.segment_map.shape}, "
                f"but the ground truth is {ground_truth.segment_map.shape}"
            )
        overlaps = _overlaps(ground_truth, prediction)
        if overlaps[:, -1].any():
            listed = [0] + [info["id"] for info in prediction.segments_info]
            unlisted = np.setdiff1d(prediction.segment_map, listed)
            raise ValueError(f"image {image_id}: segment {unlisted[0]} has pixels but is not listed")
        self.add(overlaps, ground_truth.segments_info, prediction.segments_info, image_id)

    def add(
        self,
        overlaps: Int[np.ndarray, "rows columns"],
        true_segments: list[dict[str, Any]],
        predicted_segments: list[dict[str, Any]],
        image_id: int,
    ) -> SegmentMatches:
        """Adds an image whose maps were compared elsewhere, for example by `DeviceSegmentation.overlaps`.

        Args:
          overlaps: Number of pixels that the segments share, see `match_segments`.
          true_segments: segments_info of the ground truth.
          predicted_segments: segments_info of the prediction.
          image_id: Id of the image, for error messages.

        Returns:
          The matches of the image.

        Raises:
          ValueError: A class is not among the categories, or a predicted segment has no pixels.
        """
        for info in (*true_segments, *predicted_segments):
            if info["category_id"] not in self._ids:
                raise ValueError(
                    f"image {image_id}: segment {info['id']} has class {info['category_id']}, "
                    "which is not among the categories"
                )
        matches = match_segments(overlaps, true_segments, predicted_segments)
        for info, area in zip(predicted_segments, matches.area, strict=True):
            if area == 0:
                raise ValueError(f"image {image_id}: segment {info['id']} is listed but has no pixels")
        self.counts[self._order] += matches.counts(self._ids[self._order])
        return matches

    def result(self) -> dict[str, Any]:
        """Panoptic quality of all images so far.

        Returns:
          "All", "Things" and "Stuff": `pq`, `sq` and `rq` in [0, 1], averaged over the `n` categories that
          occur in the ground truth or the predictions (0 if there are none); and "per_class": `pq`, `sq`,
          `rq`, `iou`, `tp`, `fp` and `fn` by category id.
        """
        per_class = {
            category.id: _class_result(*counts)
            for category, counts in zip(self.categories, self.counts.tolist(), strict=True)
        }
        result: dict[str, Any] = {}
        for name, kinds in GROUPS.items():
            members = [per_class[category.id] for category in self.categories if category.isthing in kinds]
            found = [member for member in members if member["tp"] + member["fp"] + member["fn"] > 0]
            result[name] = {
                key: sum(member[key] for member in found) / max(len(found), 1) for key in ("pq", "sq", "rq")
            }
            result[name]["n"] = len(found)
        return {**result, "per_class": per_class}

    def table(self) -> str:
        """The result as text, see `format_table`."""
        return format_table(self.result(), self.categories)


class OfficialPanopticQuality:
    """Panoptic quality by `panopticapi.evaluation.pq_compute`, on files in a temporary directory."""

    def __init__(self, categories: Sequence[Category]):
        """Creates the directory.

        Raises:
          MissingPackageError: `panopticapi` is not installed.
        """
        if importlib.util.find_spec("panopticapi") is None:
            raise MissingPackageError(
                "eval.backend 'panopticapi' needs panopticapi: run `pip install --no-deps panopticapi-lite` "
                "(without --no-deps, it downgrades NumPy) or "
                "`pip install git+https://github.com/cocodataset/panopticapi.git`"
            )
        self.categories = tuple(categories)
        self._folder = tempfile.TemporaryDirectory(prefix="panoptic_quality_")
        self._annotations: dict[str, list[dict[str, Any]]] = {"ground_truth": [], "prediction": []}

    def update(
        self, ground_truth: PanopticSegmentation, prediction: PanopticSegmentation, image_id: int
    ) -> None:
        """Writes an image, with counted areas. Segment ids must be below 2**24."""
        for kind, segmentation in (("ground_truth", ground_truth), ("prediction", prediction)):
            name = f"{image_id:012d}.png"
            segmentation.save(Path(self._folder.name, kind, name))
            ids, counts = np.unique(segmentation.segment_map, return_counts=True)
            areas = {info["id"]: int(counts[ids == info["id"]].sum()) for info in segmentation.segments_info}
            infos = [{"iscrowd": 0, **info, "area": areas[info["id"]]} for info in segmentation.segments_info]
            annotation = {**segmentation.annotation(image_id, name), "segments_info": infos}
            self._annotations[kind].append(annotation)

    def result(self) -> dict[str, Any]:
        """The result of the official code, like `PanopticQuality.result` without the counts per class.

        Raises:
          UserError: The official code failed, as it does if no things or no stuff occur.
        """
        folder = Path(self._folder.name)
        categories = [{**entry._asdict(), "isthing": int(entry.isthing)} for entry in self.categories]
        for kind, annotations in self._annotations.items():
            document = {"categories": categories, "annotations": annotations}
            (folder / f"{kind}.json").write_text(json.dumps(document))
            (folder / kind).mkdir(exist_ok=True)
        # pq_compute forks a pool of workers. A fork of this process may deadlock, since it copies the locks
        # of JAX's threads but not the threads; a new interpreter has neither.
        script = (
            "import json, sys; from panopticapi.evaluation import pq_compute; "
            "json.dump(pq_compute('ground_truth.json', 'prediction.json'), open('result.json', 'w'))"
        )
        command = [sys.executable, "-c", script]
        run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if run.returncode:
            raise UserError(
                "panopticapi failed, as it does if no things or no stuff occur: set eval.backend='stream'\n"
                f"{run.stderr.strip()}"
            )
        result = json.loads((folder / "result.json").read_text())
        result["per_class"] = {int(key): value for key, value in result["per_class"].items()}
        return result

    def table(self) -> str:
        """The result as text, see `format_table`."""
        return format_table(self.result(), self.categories)


def format_table(result: dict[str, Any], categories: Sequence[Category]) -> str:
    """A table of PQ, SQ and RQ in percent: of all categories, things, stuff, and each category.

    Args:
      result: Result of `PanopticQuality`, where categories without segments get "-", or of
        `OfficialPanopticQuality`, which does not tell them apart from those with PQ 0.
      categories: Categories in the order of the table.
    """
    width = max([len(category.name) for category in categories] + [8])
    rows = [(group, result[group], f"{result[group]['n']:5d}") for group in GROUPS]
    rows += [(category.name, result["per_class"][category.id], "") for category in categories]
    lines = [f"{'':{width}}     PQ     SQ     RQ     n"]
    for position, (name, row, count) in enumerate(rows):
        if position in (0, len(GROUPS)):
            lines.append("-" * len(lines[0]))
        occurs = row.get("n", 1) and any(row.get(key, 1) for key in ("tp", "fp", "fn"))
        numbers = " ".join(f"{100 * row[key]:6.1f}" if occurs else "     -" for key in ("pq", "sq", "rq"))
        lines.append(f"{name:{width}} {numbers} {count}".rstrip())
    return "\n".join(lines)


def _class_result(iou: float, tp: float, fp: float, fn: float) -> dict[str, Any]:
    weight = tp + 0.5 * fp + 0.5 * fn
    quality = {"pq": iou / weight, "rq": tp / weight} if weight else {"pq": 0.0, "rq": 0.0}
    quality["sq"] = iou / tp if tp else 0.0
    return {**quality, "iou": iou, "tp": int(tp), "fp": int(fp), "fn": int(fn)}


def _overlaps(
    ground_truth: PanopticSegmentation, prediction: PanopticSegmentation
) -> Int64[np.ndarray, "true_segments_and_2 predicted_segments_and_2"]:
    """Number of pixels shared by each pair of segments. Index 0 is void, the last one all unlisted ids.

    Counts runs of equal pixels, of which there are far fewer than pixels.
    """
    truth, guess = ground_truth.segment_map.ravel(), prediction.segment_map.ravel()
    ends = np.flatnonzero((truth[1:] != truth[:-1]) | (guess[1:] != guess[:-1]))
    ends = np.append(ends, truth.size - 1)
    rows = _positions(truth[ends], ground_truth.segments_info)
    columns = _positions(guess[ends], prediction.segments_info)
    height, width = len(ground_truth.segments_info) + 2, len(prediction.segments_info) + 2
    counts = np.bincount(rows * width + columns, np.diff(ends, prepend=-1), height * width)
    return counts.astype(np.int64).reshape(height, width)


def _positions(ids: Int[np.ndarray, " runs"], infos: list[dict[str, Any]]) -> Int64[np.ndarray, " runs"]:
    """Replaces ids by positions: 0 is void, 1 the first listed segment, and the last one all unlisted ids."""
    listed = np.array([0] + [info["id"] for info in infos])
    order = np.argsort(listed)
    nearest = order[np.searchsorted(listed, ids, sorter=order).clip(max=len(listed) - 1)]
    return np.where(listed[nearest] == ids, nearest, len(listed))

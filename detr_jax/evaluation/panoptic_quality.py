"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", CVPR 2019), image by image.

`PanopticQuality` counts in memory and keeps nothing else. `OfficialPanopticQuality` has the same methods,
writes the maps to a temporary folder and lets `panopticapi` count: the numbers are the same, it only takes
longer.
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
from jaxtyping import Bool, Float64, Int, Int64

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation

GROUPS = {"All": (True, False), "Things": (True,), "Stuff": (False,)}


class PanopticQuality:
    """Counts matches segment by segment.

    Attributes:
      categories: in the order of the report.
      counts: for every category the summed IoU of its matches, then the numbers of true positives, false
        positives and false negatives. Counts of parts of a data set add up; in float64, which JAX does not
        keep by default.
    """

    categories: tuple[Category, ...]
    counts: Float64[np.ndarray, "categories 4"]

    def __init__(self, categories: Sequence[Category]):
        self.categories = tuple(categories)
        self.counts = np.zeros((len(self.categories), 4))
        self._index = {category.id: index for index, category in enumerate(self.categories)}

    def update(
        self, ground_truth: PanopticSegmentation, prediction: PanopticSegmentation, image_id: int
    ) -> None:
        """Adds one image.

        Args:
          ground_truth: areas are taken from its segments_info, crowd regions from `iscrowd`.
          prediction: of the same size; areas are counted.
          image_id: named in errors.

        Raises:
          ValueError: the sizes differ, a class is not in the categories, or the predicted map and its
            segments_info do not list the same segments.
        """
        if ground_truth.segment_map.shape != prediction.segment_map.shape:
            raise ValueError(
                f"Image {image_id}: the prediction is {prediction.segment_map.shape}, "
                f"the ground truth {ground_truth.segment_map.shape}."
            )
        overlaps = _overlaps(ground_truth, prediction)
        if overlaps[:, -1].any():  # a map and a list that disagree are a bug that no number should hide
            listed = [0] + [info["id"] for info in prediction.segments_info]
            unlisted = np.setdiff1d(prediction.segment_map, listed)
            raise ValueError(f"Image {image_id}: segment {unlisted[0]} has pixels, but is not listed.")
        self.add(overlaps, ground_truth.segments_info, prediction.segments_info, image_id)

    def add(
        self,
        overlaps: Int[np.ndarray, "rows columns"],
        true_segments: list[dict[str, Any]],
        predicted_segments: list[dict[str, Any]],
        image_id: int,
    ) -> None:
        """Adds one image whose maps were compared elsewhere, as by `DeviceSegmentation.overlaps`.

        Args:
          overlaps: pixels that two segments share: row 0 void, then the true segments in their order, then
            whatever else the ground truth has; columns likewise of the prediction.
          true_segments: segments_info of the ground truth.
          predicted_segments: segments_info of the prediction.
          image_id: named in errors.

        Raises:
          ValueError: a class is not in the categories, or a predicted segment has no pixels.
        """
        overlaps = overlaps[:, : len(predicted_segments) + 1].astype(np.int64)
        for info, area in zip(predicted_segments, overlaps.sum(0)[1:], strict=True):
            if area == 0:
                raise ValueError(f"Image {image_id}: segment {info['id']} is listed, but has no pixels.")
        self._count(
            overlaps,
            true_class=self._classes(true_segments, image_id),
            predicted_class=self._classes(predicted_segments, image_id),
            true_areas=np.array([info["area"] for info in true_segments], np.int64),
            iscrowd=np.array([info.get("iscrowd", 0) for info in true_segments], bool),
        )

    def merge(self, other: "PanopticQuality") -> None:
        """Adds what another process or thread counted."""
        self.counts = self.counts + other.counts

    def result(self) -> dict[str, Any]:
        """The summary of all images so far.

        Returns:
          "All", "Things" and "Stuff", each with `pq`, `sq` and `rq` averaged over its `n` categories that
          were seen (zeros if there were none), and "per_class" with `pq`, `sq`, `rq`, `iou`, `tp`, `fp` and
          `fn` by category id.
        """
        per_class = {
            category.id: _class_result(*counts)
            for category, counts in zip(self.categories, self.counts.tolist(), strict=True)
        }
        result: dict[str, Any] = {}
        for name, kinds in GROUPS.items():
            members = [per_class[category.id] for category in self.categories if category.isthing in kinds]
            seen = [member for member in members if member["tp"] + member["fp"] + member["fn"] > 0]
            result[name] = {
                key: sum(member[key] for member in seen) / max(len(seen), 1) for key in ("pq", "sq", "rq")
            }
            result[name]["n"] = len(seen)
        return {**result, "per_class": per_class}

    def table(self) -> str:
        """The result to print."""
        return format_table(self.result(), self.categories)

    def _classes(self, segments: list[dict[str, Any]], image_id: int) -> Int64[np.ndarray, " segments"]:
        """The position of each segment's class among the categories."""
        for info in segments:
            if info["category_id"] not in self._index:
                raise ValueError(
                    f"Image {image_id}: segment {info['id']} is of class {info['category_id']}, "
                    "which is no category."
                )
        return np.array([self._index[info["category_id"]] for info in segments], np.int64)

    def _count(
        self,
        overlaps: Int64[np.ndarray, "rows predictions_and_1"],
        true_class: Int64[np.ndarray, " truths"],
        predicted_class: Int64[np.ndarray, " predictions"],
        true_areas: Int64[np.ndarray, " truths"],
        iscrowd: Bool[np.ndarray, " truths"],
    ) -> None:
        """Adds to the counts; see `add`."""
        shared = overlaps[1 : len(true_class) + 1, 1:]
        predicted_areas = overlaps[:, 1:].sum(0)
        void = overlaps[0, 1:]
        comparable = (true_class[:, None] == predicted_class[None]) & ~iscrowd[:, None] & (shared > 0)
        # Void pixels of a prediction do not count against it. Segments of one map do not overlap, so an IoU
        # above one half is unique and needs no assignment.
        union = predicted_areas[None] + true_areas[:, None] - shared - void[None]
        iou = np.where(comparable, shared / np.where(comparable, union, 1), 0.0)
        matched = iou > 0.5

        truth, _ = np.nonzero(matched)
        missed = ~iscrowd & ~matched.any(1)
        # Nor do pixels of a crowd of its class: like the official code, of the last such crowd.
        last_crowd = {int(true_class[row]): row + 1 for row in np.flatnonzero(iscrowd)}
        crowd = np.array(
            [
                overlaps[last_crowd[kind], column] if kind in last_crowd else 0
                for column, kind in enumerate(predicted_class.tolist(), 1)
            ],
            np.int64,
        )
        wrong = ~matched.any(0) & ~((void + crowd) / np.maximum(predicted_areas, 1) > 0.5)

        classes = len(self.categories)
        self.counts[:, 0] += np.bincount(true_class[truth], iou[matched], minlength=classes)
        self.counts[:, 1] += np.bincount(true_class[truth], minlength=classes)
        self.counts[:, 2] += np.bincount(predicted_class[wrong], minlength=classes)
        self.counts[:, 3] += np.bincount(true_class[missed], minlength=classes)


class OfficialPanopticQuality:
    """The same by `panopticapi.evaluation.pq_compute`, on files.

    Raises:
      ImportError: `panopticapi` is not installed.
    """

    def __init__(self, categories: Sequence[Category]):
        if importlib.util.find_spec("panopticapi") is None:
            raise ImportError(
                "The official panoptic quality needs panopticapi: `pip install --no-deps panopticapi-lite` "
                "(the same code on the registry; without --no-deps it downgrades NumPy) or "
                "`pip install git+https://github.com/cocodataset/panopticapi.git`."
            )
        self.categories = tuple(categories)
        self._folder = tempfile.TemporaryDirectory(prefix="panoptic_quality_")
        self._annotations: dict[str, list[dict[str, Any]]] = {"ground_truth": [], "prediction": []}

    def update(
        self, ground_truth: PanopticSegmentation, prediction: PanopticSegmentation, image_id: int
    ) -> None:
        """Writes one image. Ids must be below 2**24."""
        for kind, segmentation in (("ground_truth", ground_truth), ("prediction", prediction)):
            name = f"{image_id:012d}.png"
            segmentation.save(Path(self._folder.name, kind, name))
            annotation = segmentation.annotation(image_id, name)
            infos = [{"iscrowd": 0, **info} for info in annotation["segments_info"]]
            self._annotations[kind].append({**annotation, "segments_info": infos})

    def result(self) -> dict[str, Any]:
        """The official summary: as of `PanopticQuality`, without the counts of a class.

        Raises:
          RuntimeError: the official code failed, as it does when no thing or no stuff was seen.
        """
        folder = Path(self._folder.name)
        categories = [
            {**category._asdict(), "isthing": int(category.isthing)} for category in self.categories
        ]
        for kind, annotations in self._annotations.items():
            document = {"categories": categories, "annotations": annotations}
            (folder / f"{kind}.json").write_text(json.dumps(document))
            (folder / kind).mkdir(exist_ok=True)
        # pq_compute forks a pool of workers. Forking this process would copy the locks that the threads of
        # JAX hold, without the threads that release them, and may hang; a fresh interpreter has neither.
        script = (
            "import json, sys; from panopticapi.evaluation import pq_compute; "
            "json.dump(pq_compute('ground_truth.json', 'prediction.json'), open('result.json', 'w'))"
        )
        run = subprocess.run(
            [sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False
        )
        if run.returncode:
            raise RuntimeError(f"panopticapi failed. {run.stderr.strip()}")
        result = json.loads((folder / "result.json").read_text())
        result["per_class"] = {int(key): value for key, value in result["per_class"].items()}
        return result

    def table(self) -> str:
        """The result to print."""
        return format_table(self.result(), self.categories)


def format_table(result: dict[str, Any], categories: Sequence[Category]) -> str:
    """PQ, SQ and RQ in percent: of all, things, stuff, then of each category, "-" if it was never seen.

    Args:
      result: of `PanopticQuality` or `OfficialPanopticQuality`, which does not count, so all is seen.
      categories: give the names and the order.
    """
    width = max([len(category.name) for category in categories] + [8])
    rows = [(name, result[name], f"{result[name]['n']:5d}") for name in GROUPS]
    rows += [(category.name, result["per_class"][category.id], "") for category in categories]
    lines = [f"{'':{width}}     PQ     SQ     RQ     n"]
    for position, (name, row, count) in enumerate(rows):
        if position in (0, len(GROUPS)):
            lines.append("-" * len(lines[0]))
        seen = row.get("n", 1) and any(row.get(key, 1) for key in ("tp", "fp", "fn"))
        numbers = " ".join(f"{100 * row[key]:6.1f}" if seen else "     -" for key in ("pq", "sq", "rq"))
        lines.append(f"{name:{width}} {numbers} {count}".rstrip())
    return "\n".join(lines)


def _class_result(iou: float, tp: float, fp: float, fn: float) -> dict[str, Any]:
    weight = tp + 0.5 * fp + 0.5 * fn
    return {
        "pq": iou / weight if weight else 0.0,
        "sq": iou / tp if tp else 0.0,
        "rq": tp / weight if weight else 0.0,
        "iou": iou,
        "tp": int(tp),
        "fp": int(fp),
        "fn": int(fn),
    }


def _overlaps(
    ground_truth: PanopticSegmentation, prediction: PanopticSegmentation
) -> Int64[np.ndarray, "true_segments_and_2 predicted_segments_and_2"]:
    """Pixels shared by every pair of segments; first void, last all ids that are not listed.

    Counts runs of equal pixels rather than pixels, because segments are wide: there are some fifty times
    fewer.
    """
    truth, guess = ground_truth.segment_map.ravel(), prediction.segment_map.ravel()
    ends = np.flatnonzero((truth[1:] != truth[:-1]) | (guess[1:] != guess[:-1]))
    ends = np.append(ends, truth.size - 1)
    rows = _positions(truth[ends], ground_truth.segments_info)
    columns = _positions(guess[ends], prediction.segments_info)
    height, width = len(ground_truth.segments_info) + 2, len(prediction.segments_info) + 2
    lengths = np.diff(ends, prepend=-1)
    counts = np.bincount(rows * width + columns, weights=lengths, minlength=height * width)
    return counts.astype(np.int64).reshape(height, width)


def _positions(ids: Int[np.ndarray, " runs"], infos: list[dict[str, Any]]) -> Int64[np.ndarray, " runs"]:
    """Replaces ids: 0 is void, 1 the first listed segment and so on, the last number all unlisted ids."""
    listed = np.array([0] + [info["id"] for info in infos])
    order = np.argsort(listed)
    nearest = order[np.searchsorted(listed, ids, sorter=order).clip(max=len(listed) - 1)]
    return np.where(listed[nearest] == ids, nearest, len(listed))

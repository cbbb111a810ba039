r"""Panoptic quality (Kirillov et al., "Panoptic Segmentation", https://arxiv.org/abs/1801.00868).

.. math::
  PQ = \frac{\sum_{(p, g) \in TP} IoU(p, g)}{|TP| + \frac{1}{2} |FP| + \frac{1}{2} |FN|} = SQ \cdot RQ, \qquad
  SQ = \frac{\sum_{(p, g) \in TP} IoU(p, g)}{|TP|}

per category, where a predicted and a true segment of the category match (TP) if their IoU exceeds 0.5; FP and
FN are the predicted and true segments without a match.

`PanopticQuality` counts in memory, image by image; `quality_backends` has other implementations with equal
results. Areas are counted in the maps, so that areas that are listed wrongly cannot give an IoU above 1.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, Int

from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.data.segment_matches import SegmentMatches, count_overlaps, match_segments

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
        ids = [[info["id"] for info in result.segments_info] for result in (ground_truth, prediction)]
        overlaps = count_overlaps(ground_truth.segment_map, ids[0], prediction.segment_map, ids[1])
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
        self.add_matches([matches])
        return matches

    def add_matches(self, matches: Iterable[SegmentMatches]) -> None:
        """Adds images whose matches are known, such as those of another process.

        Sums of IoUs depend on the order of the images, in the last digits.

        Args:
          matches: Matches of the images.
        """
        ids = self._ids[self._order]
        for of_image in matches:
            self.counts[self._order] += of_image.counts(ids)

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


def format_table(result: dict[str, Any], categories: Sequence[Category]) -> str:
    """A table of PQ, SQ and RQ in percent: of all categories, things, stuff, and each category.

    Args:
      result: Result of `PanopticQuality` or of another backend. Missing values are 0 or None. Categories
        without segments get "-", except in the result of panopticapi, which does not tell them apart from
        those with PQ 0.
      categories: Categories in the order of the table.
    """
    width = max([len(category.name) for category in categories] + [8])
    rows = [(group, result[group], f"{result[group]['n']:7d}") for group in GROUPS]
    rows += [(category.name, result["per_class"][category.id], "") for category in categories]
    lines = [f"{'':{width}}     PQ     SQ     RQ classes"]
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

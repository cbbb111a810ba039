"""Average precision (AP) and recall (AR) of boxes or masks by pycocotools, in memory that hardly grows.

AP (https://cocodataset.org/#detection-eval) is the area under the precision-recall curve, averaged over
categories and IoU thresholds from 0.50 to 0.95. AR is the recall averaged in the same way, for at most so
many detections per image and category.

pycocotools matches each image alone, at once, and accumulates at the end. In between, a detection takes 24
bytes, whatever the size of its mask. The result is exactly that of `COCOeval` on all images together.
"""

import contextlib
import copy
import io
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Int64, UInt16
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from detr_jax.data.example import Category, Size, coco_bbox

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


class _MatchedImage(NamedTuple):
    """Matches of the detections of an image, category by category, by descending score.

    Bit t of a flag belongs to IoU threshold t.

    Attributes:
      category: Category ids that occur in the image.
      detections: Number of detections of each category.
      truths: Number of annotations of each category.
      score: Score of each detection.
      matched: Flags of each detection for each range of areas: it matches an annotation.
      ignored: Flags of each detection for each range of areas: it is not counted.
      true_ignored: Whether each annotation is not counted, for each range of areas; crowds are last.
    """

    category: Int64[np.ndarray, " categories"]
    detections: Int64[np.ndarray, " categories"]
    truths: Int64[np.ndarray, " categories"]
    score: Float64[np.ndarray, " detections"]
    matched: UInt16[np.ndarray, "areas detections"]
    ignored: UInt16[np.ndarray, "areas detections"]
    true_ignored: Bool[np.ndarray, "areas truths"]


class CocoDetection:
    """Average precision of detections that are added image by image.

    Attributes:
      categories: Categories to evaluate.
      kind: Whether IoU is that of boxes ("bbox") or masks ("segm").
    """

    categories: tuple[Category, ...]
    kind: Literal["bbox", "segm"]

    def __init__(
        self,
        categories: Sequence[Category],
        kind: Literal["bbox", "segm"] = "bbox",
        things_only: bool = True,
    ):
        """Starts without images.

        Args:
          categories: Categories of the dataset.
          kind: Whether IoU is that of boxes ("bbox") or masks ("segm").
          things_only: Whether only things are evaluated, as in COCO's detection task.
        """
        self.categories = tuple(c for c in categories if c.isthing or not things_only)
        self.kind = kind
        self._images: dict[int, _MatchedImage] = {}

    def add(
        self,
        image_id: int,
        size: Size,
        annotations: Sequence[dict[str, Any]],
        boxes: Float[np.ndarray, "detections 4"],
        scores: Float[np.ndarray, " detections"],
        labels: Int[np.ndarray, " detections"],
        masks: Sequence[dict[str, Any] | None] | None = None,
    ) -> None:
        """Adds an image.

        Args:
          image_id: Id of the image.
          size: Height and width of the image in pixels.
          annotations: Its objects as in COCO's instances files: `category_id`, `bbox`, `area`, `iscrowd` and,
            for kind "segm", `segmentation`. Those of other categories are ignored.
          boxes: Corners x0, y0, x1, y1 of the detections in pixels.
          scores: Scores by which the detections are ranked.
          labels: Category ids of the detections. Those not evaluated are ignored.
          masks: Masks of the detections in COCO's run-length encoding, for kind "segm"; None for those of
            ignored labels.

        Raises:
          ValueError: The image was added before, or kind is "segm" and there are no masks.
        """
        if image_id in self._images:
            raise ValueError(f"image {image_id} was added twice")
        if self.kind == "segm" and masks is None:
            raise ValueError('evaluating masks (kind="segm") needs the masks of the detections')
        ids = {category.id for category in self.categories}
        found: list[dict[str, Any]] = []
        shapes: Sequence[Any] = [None] * len(scores) if masks is None else masks
        for box, score, label, mask in zip(
            coco_bbox(boxes.astype(np.float64)).tolist(),
            scores.tolist(),
            labels.tolist(),
            shapes,
            strict=True,
        ):
            if label in ids:
                shape = {"bbox": box} if self.kind == "bbox" else {"segmentation": mask}
                found.append({"image_id": image_id, "category_id": label, "score": score, **shape})
        true = [{"image_id": image_id, **entry} for entry in annotations if entry["category_id"] in ids]
        self._images[image_id] = _match(image_id, size, true, found, self.kind)

    def merge(self, other: "CocoDetection") -> None:
        """Adds the images of another instance, such as that of another process."""
        self._images |= other._images

    def result(self) -> dict[str, Any]:
        """Average precision and recall of all images so far.

        Returns:
          Values in [0, 1]: AP; AP50 and AP75 at IoU 0.5 and 0.75; APs, APm and APl of small, medium and
          large objects; AR1, AR10 and AR100 for at most 1, 10 and 100 detections per image; ARs, ARm and ARl.
          And "per_class": the same values by category id. Values are None where there are no annotations.
        """
        whole = COCOeval(iouType=self.kind)
        whole.params.catIds = [category.id for category in self.categories]
        per_class: dict[int, Any] = {}
        parts = []
        for category_id, entries in self._entries_by_category():
            part = _accumulated(self.kind, entries)
            parts.append(part.eval)
            per_class[category_id] = _summary(part)
        if not parts:
            return {**dict.fromkeys(METRICS), "per_class": {}}
        whole.eval = {
            name: np.concatenate([part[name] for part in parts], axis)
            for name, axis in (("precision", 2), ("recall", 1))
        }
        return {**_summary(whole), "per_class": per_class}

    def _entries_by_category(self) -> Iterator[tuple[int, list[dict[str, Any]]]]:
        """Per category, what `evaluateImg` returned: for each range of areas, images in the order of ids."""
        places: dict[int, list[tuple[_MatchedImage, int]]] = {entry.id: [] for entry in self.categories}
        for image_id in sorted(self._images):
            image = self._images[image_id]
            for position, category_id in enumerate(image.category.tolist()):
                places[category_id].append((image, position))
        for category_id in sorted(places):
            areas = range(len(_areas(self.kind)))
            yield category_id, [_entry(*place, area) for area in areas for place in places[category_id]]


def _areas(kind: str) -> Sequence[Any]:
    return list(COCOeval(iouType=kind).params.areaRng)


def _match(
    image_id: int, size: Size, true: list[dict[str, Any]], found: list[dict[str, Any]], kind: str
) -> _MatchedImage:
    """Matches the detections of an image by pycocotools."""
    category = np.unique([entry["category_id"] for entry in (*true, *found)]).astype(np.int64)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truths = _coco(image_id, size, category, true)
        if found:
            evaluation = COCOeval(truths, truths.loadRes(found), kind)
        else:
            evaluation = COCOeval(truths, _coco(image_id, size, category, []), kind)
        evaluation.evaluate()
    areas = len(evaluation.params.areaRng)
    # One entry per category and range of areas, categories first; none is None, since each category occurs.
    rows = [evaluation.evalImgs[start : start + areas] for start in range(0, len(evaluation.evalImgs), areas)]

    def joined(name: str, dtype: Any) -> Any:
        parts = [np.stack([_flags(entry[name]) for entry in row]) for row in rows]
        return np.concatenate(parts, 1).astype(dtype) if parts else np.zeros((areas, 0), dtype)

    return _MatchedImage(
        category,
        np.array([len(row[0]["dtIds"]) for row in rows], np.int64),
        np.array([len(row[0]["gtIds"]) for row in rows], np.int64),
        np.array([score for row in rows for score in row[0]["dtScores"]], np.float64),
        joined("dtMatches", np.uint16),
        joined("dtIgnore", np.uint16),
        joined("gtIgnore", bool),
    )


def _coco(
    image_id: int, size: Size, category: Int64[np.ndarray, " categories"], entries: list[dict[str, Any]]
) -> COCO:
    """An image with annotations. Ids start at 1, because COCOeval treats annotation id 0 as unmatched."""
    coco = COCO()
    coco.dataset = {
        "info": {},
        "images": [{"id": image_id, "height": size[0], "width": size[1]}],
        "categories": [{"id": number} for number in category.tolist()],
        "annotations": [{**entry, "id": number} for number, entry in enumerate(entries, 1)],
    }
    coco.createIndex()
    return coco


def _flags(values: np.ndarray) -> np.ndarray:
    """Packs values per threshold (rows) into bits; values without thresholds stay as they are."""
    if values.ndim == 1:
        return values
    bits = (values != 0).astype(np.uint16) << np.arange(len(values), dtype=np.uint16)[:, None]
    return np.bitwise_or.reduce(bits, 0)


def _entry(image: _MatchedImage, position: int, area: int) -> dict[str, Any]:
    """What COCOeval.accumulate reads of an image, for a category and a range of areas."""
    first = int(image.detections[:position].sum())
    detections = slice(first, first + int(image.detections[position]))
    first = int(image.truths[:position].sum())
    truths = slice(first, first + int(image.truths[position]))
    return {
        "dtScores": image.score[detections],
        "dtMatches": image.matched[area, detections],
        "dtIgnore": image.ignored[area, detections],
        "gtIgnore": image.true_ignored[area, truths],
    }


def _accumulated(kind: str, entries: list[dict[str, Any]]) -> COCOeval:
    """An evaluation of one category, accumulated by pycocotools."""
    evaluation = COCOeval(iouType=kind)
    params = evaluation.params
    params.catIds, params.imgIds = [0], list(range(len(entries) // len(params.areaRng)))
    bits = np.arange(len(params.iouThrs), dtype=np.uint16)[:, None]
    evaluation.evalImgs = [
        {**entry, **{name: (entry[name] >> bits & 1).astype(bool) for name in ("dtMatches", "dtIgnore")}}
        for entry in entries
    ]
    evaluation._paramsEval = copy.deepcopy(params)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return evaluation


def _summary(evaluation: COCOeval) -> dict[str, float | None]:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    values = evaluation.stats.tolist()
    return {name: None if value < 0 else value for name, value in zip(METRICS, values, strict=True)}

"""Implementations of panoptic quality by other projects, and the choice among all of them.

They have `update`, `result` and `table` like `PanopticQuality`. The maps are written to a temporary directory
as COCO panoptic PNGs, with counted areas, and the other project's code reads them. The results are equal.
"""

import abc
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from detr_jax.data.categories import to_json
from detr_jax.data.example import Category
from detr_jax.data.panoptic import PanopticSegmentation
from detr_jax.errors import MissingPackageError, UserError
from detr_jax.evaluation.panoptic_quality import GROUPS, PanopticQuality, format_table


class FileBackend(abc.ABC):
    """Panoptic quality of segmentations that are written to a temporary directory.

    Attributes:
      categories: Categories in the order of the table.
    """

    categories: tuple[Category, ...]

    def __init__(self, categories: Sequence[Category]):
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

    @abc.abstractmethod
    def result(self) -> dict[str, Any]:
        """Panoptic quality of all images so far, see `PanopticQuality.result`."""

    def table(self) -> str:
        """The result as text, see `format_table`."""
        return format_table(self.result(), self.categories)

    def _write_lists(self) -> Path:
        """Writes ground_truth.json and prediction.json beside the PNGs, and returns their folder."""
        folder = Path(self._folder.name)
        for kind, annotations in self._annotations.items():
            document = {"images": [], "categories": to_json(self.categories), "annotations": annotations}
            (folder / f"{kind}.json").write_text(json.dumps(document))
            (folder / kind).mkdir(exist_ok=True)
        return folder


class OfficialPanopticQuality(FileBackend):
    """Panoptic quality by `panopticapi.evaluation.pq_compute`."""

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
        super().__init__(categories)

    def result(self) -> dict[str, Any]:
        """The result of the official code, like `PanopticQuality.result` without the counts per class.

        Raises:
          UserError: The official code failed, as it does if no things or no stuff occur.
        """
        folder = self._write_lists()
        # pq_compute forks a pool of workers. A fork of this process may deadlock, since it copies the locks
        # of JAX's threads but not the threads; a new interpreter has neither.
        script = (
            "import json; from panopticapi.evaluation import pq_compute;"
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


class HotcocoPanopticQuality(FileBackend):
    """Panoptic quality by `hotcoco.panoptic`, written in Rust."""

    def __init__(self, categories: Sequence[Category]):
        """Creates the directory.

        Raises:
          MissingPackageError: `hotcoco` is not installed.
        """
        if importlib.util.find_spec("hotcoco") is None:
            raise MissingPackageError("eval.backend 'hotcoco' needs hotcoco: run `pip install hotcoco`")
        super().__init__(categories)

    def result(self) -> dict[str, Any]:
        """The result of hotcoco like that of `PanopticQuality`, where missing values are 0, not -1."""
        from hotcoco.panoptic import PanopticEval

        folder = self._write_lists()
        evaluation = PanopticEval(folder / "ground_truth.json", folder / "prediction.json")
        evaluation.evaluate()
        found = evaluation.results()
        result = {group: _without_negatives(found[group]) for group in GROUPS}
        classes = {int(key): _without_negatives(value) for key, value in found["per_class"].items()}
        return {**result, "per_class": classes}


def make_quality(categories: tuple[Category, ...], backend: str) -> PanopticQuality | FileBackend:
    """An implementation of panoptic quality.

    Args:
      categories: Categories to evaluate.
      backend: "stream" for this project's code, "hotcoco" for that of hotcoco, "panopticapi" for the
        official one; their results are equal.

    Raises:
      UserError: The backend is unknown, or there are several processes, which only "stream" supports.
      MissingPackageError: The package of the backend is not installed.
    """
    if backend == "stream":
        return PanopticQuality(categories)
    backends = {"hotcoco": HotcocoPanopticQuality, "panopticapi": OfficialPanopticQuality}
    if backend not in backends:
        raise UserError(f"eval.backend is {backend!r}: must be 'stream', 'hotcoco' or 'panopticapi'")
    if jax.process_count() > 1:
        raise UserError(
            f"eval.backend {backend!r} supports only a single process: set eval.backend='stream', "
            "which gives the same results"
        )
    return backends[backend](categories)


def _without_negatives(values: dict[str, Any]) -> dict[str, Any]:
    return {key: max(value, type(value)(0)) for key, value in values.items()}

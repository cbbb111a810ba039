"""Result files that the COCO evaluation server takes.

Names follow https://cocodataset.org/#upload, contents https://cocodataset.org/#format-results:

    panoptic_[split]_[name]_results.zip           panoptic_[split]_[name]_results.json and a folder of PNGs
    boxes/detections_[split]_[name]_results.zip   detections_[split]_[name]_results.json with boxes
    masks/detections_[split]_[name]_results.zip   detections_[split]_[name]_results.json with masks

The server has one name for boxes and masks, so that these are in two folders.
"""

import collections
import contextlib
import json
import os
import re
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import jax
import numpy as np
from jaxtyping import Float, Int

from detr_jax.data.categories import to_json
from detr_jax.data.example import Category, Example
from detr_jax.errors import UserError
from detr_jax.inference.device_segmentation import DeviceSegmentation
from detr_jax.runtime import parallel

_PARTIAL = ".submission.partial"
_PENDING = 16  # maps that wait to be written as PNGs


class Submission:
    """Writes result files image by image; none of the predictions is kept in memory.

    The predictions are collected in a hidden folder. At the end of the `with` block, they replace the files
    of an earlier evaluation; if the block raises, they are removed and the earlier files stay. Processes
    need a folder that they share.
    """

    def __init__(self, folder: str | Path, split: str, name: str, categories: Sequence[Category]):
        """Creates the folder.

        Args:
          folder: Folder to write to.
          split: Name of the images, such as "val2017" or "test-dev2017".
          name: Name of the algorithm.
          categories: Categories of the predictions. Detections of stuff are omitted, as in COCO.

        Raises:
          UserError: The folder cannot be written.
        """
        self._folder, self._partial = Path(folder), Path(folder) / _PARTIAL
        self._stem = f"{_plain(split)}_{_plain(name)}_results"
        self._categories = tuple(categories)
        self._things = np.array([category.id for category in categories if category.isthing], np.int64)
        self._lines: dict[str, IO[str]] = {}
        self._counts: collections.Counter[str] = collections.Counter()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix="submission")
        self._pending: collections.deque[Future[None]] = collections.deque()
        with _writing(self._folder):
            if jax.process_index() == 0:
                shutil.rmtree(self._partial, ignore_errors=True)
                self._partial.mkdir(parents=True)
        parallel.gather(None)  # no process writes before the rest of an earlier evaluation is removed

    def __enter__(self) -> "Submission":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.publish()
        finally:
            self._discard()

    def on_image(self, example: Example, prediction: DeviceSegmentation) -> None:
        """Adds the panoptic segmentation of an image."""
        height, width = example.orig_size
        png = f"{example.image_id:012d}.png"
        result = prediction.fetch()
        entry = {
            "image": {
                "id": example.image_id,
                "file_name": example.file_name,
                "height": height,
                "width": width,
            },
            "annotation": result.annotation(example.image_id, png),
        }
        self._add("panoptic", [entry])
        self._pending.append(self._threads.submit(self._write, result.save, self._partial / "panoptic" / png))
        while len(self._pending) > _PENDING:
            self._pending.popleft().result()

    def on_detections(
        self,
        image_id: int,
        boxes: Float[np.ndarray, "detections 4"],
        scores: Float[np.ndarray, " detections"],
        labels: Int[np.ndarray, " detections"],
        rles: Sequence[dict[str, Any] | None] | None = None,
    ) -> None:
        """Adds the detections of an image.

        Args:
          image_id: Id of the image.
          boxes: x, y, width, height in pixels of the original image.
          scores: Scores by which the detections are ranked.
          labels: Category ids.
          rles: Masks at the original size in COCO's compressed run-length encoding, or None where labels are
            of stuff; None if there are no masks.
        """
        chosen = np.flatnonzero(np.isin(labels, self._things)).tolist()
        common = [
            {"image_id": image_id, "category_id": int(labels[index]), "score": float(scores[index])}
            for index in chosen
        ]
        sides = boxes.astype(np.float64).tolist()
        self._add(
            "boxes", [entry | {"bbox": sides[index]} for entry, index in zip(common, chosen, strict=True)]
        )
        if rles is not None:
            pairs = ((entry, rles[index]) for entry, index in zip(common, chosen, strict=True))
            self._add("masks", [entry | {"segmentation": _as_text(mask)} for entry, mask in pairs if mask])

    def publish(self) -> list[Path]:
        """Writes the zip files from the predictions of all processes; process 0 does.

        Returns:
          The files.

        Raises:
          UserError: A file cannot be written, or process 0 does not see the files of another process.
        """
        while self._pending:
            self._pending.popleft().result()
        with _writing(self._folder):
            for file in self._lines.values():
                file.close()
        counts: collections.Counter[str] = collections.Counter()
        kinds: set[str] = set()
        for part, names in parallel.gather((self._counts, set(self._lines))):
            counts.update(part)
            kinds |= names
        written = [self._target(kind) for kind in ("panoptic", "boxes", "masks") if kind in kinds]
        if jax.process_index() == 0:
            with _writing(self._folder):
                for kind in ("panoptic", "boxes", "masks"):
                    if kind in kinds:
                        self._zip(kind, counts[kind])
                    else:  # of an earlier evaluation
                        self._target(kind).unlink(missing_ok=True)
        parallel.gather(None)
        return written

    def _discard(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        for file in self._lines.values():
            with contextlib.suppress(OSError):  # a full disk
                file.close()
        if jax.process_index() == 0:
            shutil.rmtree(self._partial, ignore_errors=True)

    def _add(self, kind: str, entries: list[dict[str, Any]]) -> None:
        """Appends entries to this process's file of a kind, one line each."""
        with _writing(self._folder):
            if kind not in self._lines:
                path = self._partial / f"{kind}_{jax.process_index()}.jsonl"
                self._lines[kind] = path.open("w", encoding="utf-8")
            self._lines[kind].writelines(f"{json.dumps(entry)}\n" for entry in entries)
        self._counts[kind] += len(entries)

    def _write(self, save: Callable[[Path], None], path: Path) -> None:
        with _writing(path):
            save(path)

    def _target(self, kind: str) -> Path:
        if kind == "panoptic":
            return self._folder / f"panoptic_{self._stem}.zip"
        return self._folder / kind / f"detections_{self._stem}.zip"

    def _zip(self, kind: str, count: int) -> None:
        """Writes the zip file of a kind: a JSON file, and for panoptic results a folder of PNGs."""
        target, partial = self._target(kind), self._partial / f"{kind}.zip"
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            with archive.open(f"{target.stem}.json", "w", force_zip64=True) as file:
                found = 0
                if kind == "panoptic":
                    found = _write_list(file.write, b'{"annotations": [\n', self._entries(kind, "annotation"))
                    _write_list(file.write, b', "images": [\n', self._entries(kind, "image"))
                    categories = json.dumps(to_json(self._categories))
                    file.write(f', "categories": {categories}}}\n'.encode())
                else:
                    found = _write_list(file.write, b"[\n", self._entries(kind))
            if found != count:
                raise UserError(
                    f"{self._partial} has {found} of {count} {kind} results: the processes of an evaluation "
                    "must share the folder that they write to; choose a --workdir on a shared disk"
                )
            if kind == "panoptic":
                for path in sorted((self._partial / kind).iterdir()):
                    archive.write(path, f"{target.stem}/{path.name}", zipfile.ZIP_STORED)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(partial, target)

    def _entries(self, kind: str, key: str | None = None) -> Iterator[str]:
        """The JSON of the entries of all processes, or of one of their values."""
        for path in sorted(self._partial.glob(f"{kind}_*.jsonl")):
            with path.open(encoding="utf-8") as lines:
                for line in lines:
                    yield line.rstrip("\n") if key is None else json.dumps(json.loads(line)[key])


def _write_list(write: Callable[[bytes], int], start: bytes, entries: Iterator[str]) -> int:
    """Writes a JSON list, entry by entry, and returns their number."""
    write(start)
    count = 0
    for entry in entries:
        write(f"{',' if count else ''}{entry}\n".encode())
        count += 1
    write(b"]")
    return count


def _as_text(rle: dict[str, Any]) -> dict[str, Any]:
    """A mask that JSON can hold: `pycocotools` encodes `counts` as bytes."""
    counts = rle["counts"]
    return {
        "size": [int(side) for side in rle["size"]],
        "counts": counts if isinstance(counts, str) else counts.decode(),
    }


def _plain(text: str) -> str:
    """A text as a part of a file name. "_" separates the parts, and "/" would be a folder."""
    return re.sub(r"[^A-Za-z0-9.-]+", "-", text).strip("-.") or "unnamed"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Reports what the system refuses, such as a full disk, as a `UserError`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error

"""Deterministic weights, images and targets, from which the outputs in `tests/reference/` were computed.

Every tensor is a function of its published name and shape, so the 165 MB of weights need not be stored.
"""

import functools
import zlib
from pathlib import Path

import numpy as np

REFERENCE = Path(__file__).parent / "reference"
CATEGORY_IDS = (1, 2, 3, 17, 18, 44, 62, 90, 92, 118, 149, 184, 193, 199, 200)


def published_shapes(file_name: str) -> dict[str, tuple[int, ...]]:
    """Tensor names and shapes of a published checkpoint, from a table in `tests/reference/`."""
    rows = (line.split("\t") for line in (REFERENCE / file_name).read_text().splitlines())
    return {name: tuple(map(int, filter(None, dims.split(",")))) for name, dims in rows}


@functools.cache
def state_dict(depth: int = 50) -> dict[str, np.ndarray]:
    """All weights of a panoptic ResNet-50 or ResNet-101 model, in the layout of the original."""
    shapes = published_shapes(f"detr_r{depth}_panoptic.tsv")
    calibration = np.load(REFERENCE / f"calibration_r{depth}.npz")
    return {name: tensor(name, shape) for name, shape in shapes.items()} | dict(calibration)


def tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The float32 tensor of a name, scaled so that untrained attention, classes and masks have contrast."""
    rng = np.random.default_rng([zlib.crc32(name.encode()), 0])
    noise = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("class_embed.bias"):
        noise[201:-1], noise[-1] = (
            -600.0,
            200.0,
        )  # ids beyond COCO's are never predicted, "no object" often is
    if name.endswith("bias"):
        return 0.05 * noise
    if len(shape) == 1:
        return (1.0 + 0.1 * noise).astype(np.float32)
    if "query_embed" in name:
        return 2.0 * noise
    if name.endswith("in_proj_weight"):
        noise[: 2 * shape[1]] *= 1.5
    if ".lay1." in name:
        noise[:, :-8] *= 0.1
        noise[:, -8:] *= 100.0
    gain = (1.0 / int(np.prod(shape[1:]))) ** 0.5
    for marks, factor in [
        (("encoder", "out_proj"), 0.5),
        (("decoder", "multihead_attn.out_proj"), 3.0),
        (("adapter",), 0.2),
        (("class_embed",), 8.0),
        (("out_lay",), 4.0),
    ]:
        if all(mark in name for mark in marks):
            gain *= factor
    return (gain * noise).astype(np.float32)


def image(height: int, width: int, seed: int) -> np.ndarray:
    """An image of smooth coloured waves and rectangles with sharp edges, uint8 (height, width, 3)."""
    rng = np.random.default_rng([1, seed])
    y, x = np.mgrid[0:height, 0:width] / 64.0
    canvas = np.zeros((height, width, 3))
    for _ in range(12):
        frequency_y, frequency_x = rng.uniform(-3, 3, 2)
        wave = np.cos(frequency_y * y + frequency_x * x + rng.uniform(0, 7))
        canvas += wave[..., None] * rng.uniform(-30, 30, 3)
    for _ in range(8):
        top, left = rng.integers(0, height), rng.integers(0, width)
        canvas[top : top + height // 3, left : left + width // 3] += rng.uniform(-60, 60, 3)
    return np.clip(canvas + 120, 0, 255).astype(np.uint8)


def targets(height: int, width: int, count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Targets of overlapping ellipses, later ones in front; at most `count` are visible.

    Returns:
      Segment map, uint8 (height, width); labels, int32 (n,); boxes as (cx, cy, w, h), float32 (n, 4).
    """
    rng = np.random.default_rng([2, seed])
    y, x = np.mgrid[0:height, 0:width]
    painted = np.zeros((height, width), np.int64)
    for number in range(1, count + 1):
        center_y, center_x = rng.uniform(0, height), rng.uniform(0, width)
        radius_y, radius_x = rng.uniform(0.1, 0.4) * height, rng.uniform(0.1, 0.4) * width
        painted[((y - center_y) / radius_y) ** 2 + ((x - center_x) / radius_x) ** 2 < 1] = number
    visible = np.unique(painted[painted > 0])
    segment_map = np.searchsorted(np.concatenate([[0], visible]), painted).astype(np.uint8)
    boxes, labels = [], []
    for number in range(1, len(visible) + 1):
        rows, columns = np.nonzero(segment_map == number)
        y0, y1, x0, x1 = rows.min(), rows.max(), columns.min(), columns.max()
        boxes.append([(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height])
        labels.append(CATEGORY_IDS[rng.integers(len(CATEGORY_IDS))])
    return segment_map, np.array(labels, np.int32), np.array(boxes, np.float32)

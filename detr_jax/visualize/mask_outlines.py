"""Outlines of segments as the data of SVG paths."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float, Integer


def segment_paths(numbers: Integer[np.ndarray, "height width"], count: int) -> list[str]:
    """The `d` attribute of a path around each of the segments 1 to `count`; empty for those without pixels.

    Outlines run between pixels and cut corners by half a pixel. Inside and outside alternate (the fill rule
    "evenodd"), which leaves holes open. The unit is a pixel of the map.

    Args:
      numbers: Number of the segment of each pixel; 0 is void.
      count: Number of segments.
    """
    from scipy import ndimage  # takes a quarter of a second to import

    paths = []
    for number, window in enumerate(ndimage.find_objects(numbers.astype(np.int32), count), 1):
        if window is None:
            paths.append("")
            continue
        corner = np.array([window[1].start, window[0].start])
        paths.append("".join(_path(line + corner) for line in mask_outlines(numbers[window] == number)))
    return paths


def mask_outlines(mask: Bool[np.ndarray, "height width"]) -> Iterator[Float[np.ndarray, "points 2"]]:
    """The closed outlines of a mask and of its holes, as x and y of their corners in pixels.

    Args:
      mask: Mask of a segment.
    """
    from contourpy import LineType, contour_generator

    padded = np.pad(mask, 1).astype(np.float32)
    generator = contour_generator(z=padded, line_type=LineType.Separate)
    for line in generator.lines(0.5):
        points = (
            np.asarray(line)[:-1] - 0.5
        )  # the last point is the first again; pixel 0 has its centre at 0.5
        yield points[_is_corner(points)]


def _is_corner(points: Float[np.ndarray, "points 2"]) -> Bool[np.ndarray, " points"]:
    """Points at which a closed line changes its direction."""
    before, after = points - np.roll(points, 1, 0), np.roll(points, -1, 0) - points
    return np.asarray(np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9)


def _path(points: Float[np.ndarray, "points 2"]) -> str:
    """A closed line as path data with relative steps, which are shorter."""
    steps = [_step(x, y) for x, y in np.diff(points, axis=0).tolist()]
    return f"M{points[0, 0]:g} {points[0, 1]:g}{''.join(steps)}z"


def _step(x: float, y: float) -> str:
    if y == 0:
        return f"h{x:g}"
    return f"v{y:g}" if x == 0 else f"l{x:g} {y:g}"

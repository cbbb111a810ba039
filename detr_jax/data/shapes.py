"""A panoptic data set that is drawn, not stored: shapes over textured ground.

Made for tests and for trying things out without a download. A thing is known by its outline and stuff by its
pattern: every class takes its colours from the same palettes, and things are filled with every pattern there
is, those of the stuff classes among them.

`python -m detr_jax.data.shapes export DIR --count=N` writes them as a COCO panoptic folder.
"""

import argparse
import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, UInt8
from PIL import Image

from detr_jax.data.categories import to_json
from detr_jax.data.example import Category, Example
from detr_jax.data.panoptic import from_example
from detr_jax.data.patterns import PATTERNS, Plane
from detr_jax.data.segment_maps import find_boxes

SPLITS = ("train", "validation", "test")
MIN_IMAGE_SIZE = 64  # below, the smallest shapes are a few pixels
_MIN_PIXELS = 16  # nobody could name a thing of which less is visible,
_MIN_VISIBLE = 0.3  # or of which a smaller part is,
_MIN_GROUND = 1 / 32  # or ground whose pattern covers less of the image than this
_MAX_THINGS = 8
_RADIUS = (0.08, 0.48)  # of a shape, relative to the image
_TURN = 0.2  # radians, one standard deviation: things stand more or less upright
_THING_CONTRAST = 0.35  # of a pattern inside an outline, so that the outline is what stands out

_Outline = Callable[[Plane, Plane], Plane]


def _bar(u: Plane, v: Plane, half_width: float, half_height: float) -> Plane:
    return np.minimum(half_width - np.abs(u), half_height - np.abs(v))


def _triangle(u: Plane, v: Plane) -> Plane:
    slanted = np.float32(np.sqrt(0.75)) * np.abs(u) + 0.5 * v
    return 0.5 - np.maximum(slanted, -v)


def _star(u: Plane, v: Plane) -> Plane:
    """Five points at radius 1, five notches at 0.42: one edge, folded ten times about the centre."""
    tenth = np.float32(np.pi / 5)
    radius, angle = np.hypot(u, v), np.arctan2(v, u)
    angle = np.abs(np.mod(angle + tenth, 2 * tenth) - tenth)
    notch_x, notch_y = 0.42 * np.cos(tenth), 0.42 * np.sin(tenth)
    edge = np.hypot(1 - notch_x, notch_y)
    across = (1 - radius * np.cos(angle)) * notch_y - radius * np.sin(angle) * (1 - notch_x)
    return across / edge


def _heart(u: Plane, v: Plane) -> Plane:
    """A square and a disc on each of two neighbouring sides."""
    u, v = u + 0.2, v + 0.2
    return np.maximum.reduce([_bar(u, v, 0.5, 0.5), 0.5 - np.hypot(u - 0.5, v), 0.5 - np.hypot(u, v - 0.5)])


# How far inside the outline a point of the unit disc lies, negative outside.
_THINGS: dict[str, _Outline] = {
    "disc": lambda u, v: 0.9 - np.hypot(u, v),
    "ring": lambda u, v: 0.23 - np.abs(np.hypot(u, v) - 0.75),
    "crescent": lambda u, v: np.minimum(0.95 - np.hypot(u, v), np.hypot(u - 0.5, v) - 0.72),
    "square": lambda u, v: _bar(u, v, 0.75, 0.75),
    "triangle": _triangle,
    "star": _star,
    "cross": lambda u, v: np.maximum(_bar(u, v, 0.95, 0.3), _bar(u, v, 0.3, 0.95)),
    "heart": _heart,
}
_STUFF = ("sky", "grass", "water", "sand", "brick")  # each is the name of its pattern
_DISPLAY_COLORS = (
    (230, 57, 70), (244, 140, 6), (255, 214, 10), (155, 93, 229), (241, 91, 181), (114, 9, 183), (0, 95, 115),
    (255, 133, 161), (142, 202, 230), (82, 183, 136), (33, 80, 200), (221, 184, 146), (153, 88, 42),
)  # fmt: skip

# Dark and light end of each palette.
_PALETTES = np.array([
    [(24, 66, 110), (150, 205, 240)],
    [(28, 84, 50), (160, 214, 120)],
    [(134, 84, 30), (246, 214, 150)],
    [(120, 30, 34), (240, 130, 104)],
    [(70, 38, 112), (206, 164, 240)],
    [(14, 92, 96), (140, 230, 214)],
    [(120, 30, 90), (252, 170, 206)],
    [(52, 54, 64), (214, 214, 208)],
], np.float32)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Thing:
    kind: int
    depth: Float32[np.ndarray, "rows columns"]  # pixels inside the outline
    window: tuple[slice, slice]


def shapes_categories() -> tuple[Category, ...]:
    """Eight things, the outlines, and five kinds of stuff, the patterns; ids count from 1."""
    names = [*_THINGS, *_STUFF]
    return tuple(Category(k + 1, name, k < len(_THINGS), _DISPLAY_COLORS[k]) for k, name in enumerate(names))


class Shapes:
    """Images of one to eight shapes on one to three kinds of ground.

    Shapes vary sixfold in size, tilt, overlap and leave the image; later ones lie in front. An image depends
    on the seed, the split and its index, not on how many there are. Every pixel belongs to a segment. A thing
    shows at least 16 pixels and 30% of what the image could show of it, ground a 32nd of the image: what
    would show less is not painted.

    Attributes:
      categories: of things, then of stuff.
      sizes: height and width of every image.
    """

    def __init__(self, split: str, count: int, image_size: int = 128, seed: int = 0) -> None:
        """Chooses the images; each is drawn when it is asked for.

        Args:
          split: "train", "validation" or "test", which share no image.
          count: number of images.
          image_size: height and width in pixels.
          seed: another seed is another data set.

        Raises:
          ValueError: unknown split, negative count, or too small an image.
        """
        if split not in SPLITS:
            raise ValueError(f"There is no split {split!r}. Splits: {', '.join(SPLITS)}.")
        if count < 0:
            raise ValueError(f"count is {count}, but must not be negative.")
        if image_size < MIN_IMAGE_SIZE:
            raise ValueError(f"image_size is {image_size}, but must be at least {MIN_IMAGE_SIZE}.")
        self.categories = shapes_categories()
        self.sizes = np.full((count, 2), image_size, np.int32)
        self._split, self._image_size, self._seed = split, image_size, seed

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> Example:
        index = range(len(self))[index]
        rng = np.random.default_rng([self._seed, SPLITS.index(self._split), index])
        image, segment_map, labels = draw(self._image_size, rng)
        return Example(
            image=image,
            segment_map=segment_map,
            labels=labels,
            boxes=find_boxes(segment_map, len(labels))[0],
            areas=np.bincount(segment_map.ravel(), minlength=len(labels) + 1)[1:],
            iscrowd=np.zeros(len(labels), bool),
            image_id=index,
            orig_size=(self._image_size, self._image_size),
            file_name=f"shapes_{self._split}_{index:06d}.png",
        )


def draw(
    size: int, rng: np.random.Generator
) -> tuple[
    UInt8[np.ndarray, "{size} {size} 3"], UInt8[np.ndarray, "{size} {size}"], Int[np.ndarray, " segments"]
]:
    """One square image, its segment map (things from back to front, then stuff) and their category ids."""
    number = rng.integers(1, _MAX_THINGS + 1, 2).min()  # few more often than many
    things = [_draw_thing(size, rng, inside=k == 0) for k in range(number)][::-1]
    grounds = rng.permutation(len(_STUFF))[: rng.integers(1, 4)]
    owners = _arrange(things, _split_ground(size, len(grounds), rng))

    palettes = rng.permutation(_PALETTES)
    image = np.zeros((size, size, 3), np.float32)
    for k, (ground, palette) in enumerate(zip(grounds, palettes, strict=False)):
        everywhere = (slice(0, size), slice(0, size))
        _paint(image, everywhere, owners == len(things) + k, _STUFF[ground], palette, rng)
    for k, thing in enumerate(things):
        pattern = list(PATTERNS)[rng.integers(len(PATTERNS))]
        palette = palettes[rng.integers(len(grounds), len(palettes))]
        visible = owners[thing.window] == k
        _paint(image, thing.window, visible, pattern, palette, rng, _THING_CONTRAST)
        # A dark rim, so that a thing stands out from one of its own colours.
        image[thing.window][visible & (thing.depth < size / 50)] *= 0.3
    image *= rng.uniform(0.85, 1.1)
    image += rng.standard_normal((size, size, 1), np.float32) * 4

    present = np.bincount(owners.ravel(), minlength=len(things) + len(grounds)) > 0
    numbers = np.cumsum(present).astype(np.uint8)
    kinds = np.array(
        [thing.kind for thing in things] + [len(_THINGS) + ground for ground in grounds], np.int32
    )
    return np.clip(image, 0, 255).astype(np.uint8), numbers[owners], kinds[present] + 1


def _draw_thing(size: int, rng: np.random.Generator, inside: bool) -> _Thing:
    """A shape of random kind, place, size and turn; wholly within the image if `inside`."""
    kind = int(rng.integers(len(_THINGS)))
    radius = size * rng.uniform(*_RADIUS)
    margin = radius + 1 if inside else 0.08 * size
    center = rng.uniform(margin, size - margin, 2)
    low = np.maximum(0, np.floor(center - radius).astype(int))
    high = np.minimum(size, np.ceil(center + radius).astype(int) + 1)
    window = (slice(low[0], high[0]), slice(low[1], high[1]))
    u, v = _turned(window, center, rng.normal(0, _TURN))
    outline = list(_THINGS.values())[kind]
    scale = np.float32(radius)
    return _Thing(kind, outline(u / scale, v / scale) * scale, window)


def _turned(
    window: tuple[slice, slice], center: Float[np.ndarray, " 2"], angle: float
) -> tuple[Float32[np.ndarray, "rows columns"], Float32[np.ndarray, "rows columns"]]:
    """Coordinates in pixels of a window of the image, about a centre (y, x) and turned."""
    y, x = (
        np.arange(side.start, side.stop, dtype=np.float32) - np.float32(middle)
        for side, middle in zip(window, center, strict=True)
    )
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cos * x + sin * y[:, None], cos * y[:, None] - sin * x


def _split_ground(size: int, parts: int, rng: np.random.Generator) -> Int[np.ndarray, "{size} {size}"]:
    """Cuts the image by wavy lines into `parts` regions, numbered from 0."""
    regions = np.zeros((size, size), np.intp)
    everywhere = (slice(0, size), slice(0, size))
    for part in range(1, parts):
        u, v = _turned(everywhere, rng.uniform(0.25, 0.75, 2) * size, rng.uniform(0, 2 * np.pi))
        wave = np.sin(u * np.float32(rng.uniform(3, 12) / size) + np.float32(rng.uniform(0, 7)))
        regions[v > wave * np.float32(rng.uniform(0.02, 0.08) * size)] = part
    return regions


def _arrange(things: Sequence[_Thing], regions: Int[np.ndarray, "size size"]) -> Int[np.ndarray, "size size"]:
    """Which thing, or which ground counted on from the things, each pixel shows.

    What shows too little is taken away, the least first, which uncovers what lies behind it: a thing is left
    out, and a region of ground goes to the largest one. If hardly any ground is left, a thing goes.
    """
    regions, left = regions.copy(), np.ones(len(things), bool)
    whole = np.array([np.count_nonzero(thing.depth > 0) for thing in things])
    needed = np.maximum(_MIN_PIXELS, _MIN_VISIBLE * whole)
    while True:
        owners = regions + len(things)
        for k, thing in enumerate(things):
            if left[k]:
                owners[thing.window][thing.depth > 0] = k
        pixels = np.bincount(owners.ravel(), minlength=len(things) + regions.max() + 1)
        shown, ground = pixels[: len(things)], pixels[len(things) :] / regions.size
        small = (ground > 0) & (ground < _MIN_GROUND)
        if (hidden := left & (shown < needed)).any():
            left[np.argmin(np.where(hidden, shown / needed, np.inf))] = False
        elif ground.max() < _MIN_GROUND:
            left[np.argmin(np.where(left, shown, np.inf))] = False
        elif small.any():
            regions[regions == np.argmin(np.where(small, ground, np.inf))] = np.argmax(ground)
        else:
            return owners


def _paint(
    image: Float32[np.ndarray, "size size 3"],
    window: tuple[slice, slice],
    visible: Bool[np.ndarray, "rows columns"],
    pattern: str,
    palette: Float32[np.ndarray, "2 3"],
    rng: np.random.Generator,
    contrast: float = 1.0,
) -> None:
    """Paints the visible pixels of a window of the image, in place; less contrast is about a random level."""
    size = len(image)
    u, v = _turned(window, rng.uniform(0, size, 2), rng.normal(0, 0.25))
    lightness = PATTERNS[pattern](u, v, rng)[visible][:, None]
    if contrast < 1:
        lightness = contrast * lightness + (1 - contrast) * rng.uniform()
    dark, light = np.clip(palette + rng.normal(0, 10, (2, 3)), 0, 255).astype(np.float32)
    image[window][visible] = dark + (light - dark) * lightness


def export(
    folder: str | Path, count: int, split: str = "train", image_size: int = 128, seed: int = 0
) -> None:
    """Writes images as PNG files, panoptic PNGs and the JSON, as `CocoPanoptic` and others read them.

    Args:
      folder: gets `{split}/`, `panoptic_{split}/` and `annotations/panoptic_{split}.json`; another split may
        already be in it.
      count: number of images.
      split: see `Shapes`.
      image_size: see `Shapes`.
      seed: see `Shapes`.

    Raises:
      ValueError: see `Shapes`.
    """
    source = Shapes(split, count, image_size, seed)
    folder = Path(folder)
    for name in (split, f"panoptic_{split}", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for example in (source[index] for index in range(count)):
        height, width = example.orig_size
        Image.fromarray(example.image).save(folder / split / example.file_name)
        segmentation = from_example(example, source.categories)
        segmentation.save(folder / f"panoptic_{split}" / example.file_name)
        entry = {"id": example.image_id, "file_name": example.file_name, "height": height, "width": width}
        images.append(entry)
        annotations.append(segmentation.annotation(example.image_id, example.file_name))
    content = {"images": images, "annotations": annotations, "categories": to_json(source.categories)}
    (folder / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))


def main() -> None:
    """Does what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m detr_jax.data.shapes", description=__doc__)
    command = parser.add_subparsers(required=True).add_parser("export", help="write a COCO panoptic folder")
    command.add_argument("folder", help="to write to")
    command.add_argument("--count", type=int, required=True, help="number of images")
    command.add_argument("--split", choices=SPLITS, default="train")
    command.add_argument("--image_size", type=int, default=128, help="height and width (%(default)s)")
    command.add_argument("--seed", type=int, default=0, help="another seed is another data set")
    try:
        export(**vars(parser.parse_args()))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

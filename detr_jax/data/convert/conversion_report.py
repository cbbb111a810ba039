"""What a conversion wrote and dropped."""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from detr_jax.data.convert.source_images import DARK, TURNED, Drop
from detr_jax.data.example import Category

RECORD = "conversion.json"
_EXAMPLES = 3  # drops of a reason that the summary names
_ADVICE = {
    TURNED: "if the masks were drawn on the pixels as stored, convert with --orientation=stored",
    DARK: "16-bit levels are divided by 257; if yours use fewer bits, scale the images to 8 bits first",
}


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion wrote and dropped.

    Attributes:
      folder: Folder that was written.
      images: Number of images of each split.
      segments: Number of segments of each split.
      categories: Categories of the folder.
      dropped: Everything of the source that the folder lacks.
      remarks: What may be wrong with images that it has.
    """

    folder: Path
    images: dict[str, int]
    segments: dict[str, int]
    categories: Sequence[Category]
    dropped: Sequence[Drop]
    remarks: Sequence[Drop]

    @property
    def record(self) -> Path:
        """The JSON file with the options and everything that was dropped."""
        return self.folder / RECORD

    def lines(self) -> list[str]:
        """The report as text: categories, a line per split, and one per reason with the first examples."""
        things = sum(category.isthing for category in self.categories)
        lines = [f"categories: {things} of things, {len(self.categories) - things} of stuff"]
        lines += [
            f"{split}: {self.images[split]} images, {self.segments[split]} segments" for split in self.images
        ]
        lines += [f"dropped, {line}" for line in _by_reason(self.dropped)]
        for remark, line in zip(_reasons(self.remarks), _by_reason(self.remarks), strict=True):
            lines.append(f"{line}: {_ADVICE[remark]}")
        return lines


def _reasons(drops: Sequence[Drop]) -> list[str]:
    return [reason for reason, _ in Counter(drop.reason for drop in drops).most_common()]


def _by_reason(drops: Sequence[Drop]) -> Iterator[str]:
    for reason in _reasons(drops):
        named = [drop for drop in drops if drop.reason == reason]
        examples = "; ".join(map(_describe, named[:_EXAMPLES])) + ("; ..." if len(named) > _EXAMPLES else "")
        yield f"{reason}: {len(named)} ({examples})"


def _describe(drop: Drop) -> str:
    item = f", object {drop.item}" if drop.item else ""
    text = f"{drop.image}{item}" + (f": {drop.detail}" if drop.detail else "")
    # Names of files can hold anything, and some of it a terminal obeys or refuses.
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )

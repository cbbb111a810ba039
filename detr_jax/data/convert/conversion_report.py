"""What a conversion wrote and dropped."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from detr_jax.data.convert.source_images import Drop

RECORD = "conversion.json"
_EXAMPLES = 3  # drops of a reason that the summary names


@dataclasses.dataclass(frozen=True)
class Report:
    """What a conversion wrote and dropped.

    Attributes:
      folder: Folder that was written.
      images: Number of images of each split.
      segments: Number of segments of each split.
      dropped: Everything of the source that the folder lacks.
    """

    folder: Path
    images: dict[str, int]
    segments: dict[str, int]
    dropped: Sequence[Drop]

    @property
    def record(self) -> Path:
        """The JSON file with the options and everything that was dropped."""
        return self.folder / RECORD

    def lines(self) -> list[str]:
        """The report as text: a line per split, and a line per reason with the first examples."""
        lines = [
            f"{split}: {self.images[split]} images, {self.segments[split]} segments" for split in self.images
        ]
        for reason, count in Counter(drop.reason for drop in self.dropped).most_common():
            named = [drop for drop in self.dropped if drop.reason == reason][:_EXAMPLES]
            examples = "; ".join(map(_describe, named)) + ("; ..." if count > len(named) else "")
            lines.append(f"dropped, {reason}: {count} ({examples})")
        return lines


def _describe(drop: Drop) -> str:
    item = f", object {drop.item}" if drop.item else ""
    text = f"{drop.image}{item}" + (f": {drop.detail}" if drop.detail else "")
    # Names of files can hold anything, and some of it a terminal obeys or refuses.
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )

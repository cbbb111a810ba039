"""Code blocks of Markdown pages, and what those that no test can run need."""

import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDS = {"COCO", "network", "accelerator", "several hosts", "data of your own"}

_FENCE = re.compile(r"( *)(`{3,})(\w*)$")
_MARKER = re.compile(r"<!-- needs: (.*) -->$")
_COMMAND = re.compile(
    r"(\w+=\S+ )*(python|pip|pytest|detr-jax|mkdocs|tensorboard|git|docker|curl|wget|cd|export) "
)


class Block(NamedTuple):
    """A code block.

    Attributes:
      page: Path of the page below the root of the repository.
      line: Number of its first line.
      language: "bash", "python", another name of a fence, or "" for text that is no command.
      code: Its text, without indentation.
      needs: What it needs according to the comment before it; "" if there is none.
    """

    page: str
    line: int
    language: str
    code: str
    needs: str


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, fenced and indented ones.

    Raises:
      ValueError: A comment that states what a block needs is not followed by a block.
    """
    return list(_blocks(page.relative_to(ROOT).as_posix(), page.read_text().splitlines()))


def _blocks(page: str, lines: list[str]) -> Iterator[Block]:
    needs, number = "", 0
    while number < len(lines):
        start, line = number, lines[number]
        number += 1
        if marker := _MARKER.match(line):
            needs = marker[1]
            continue
        if not line.strip():
            continue
        if fence := _FENCE.match(line):
            while lines[number].strip() != fence[2]:
                number += 1
            yield _block(page, start, fence[3], lines[start + 1 : number], needs)
            number += 1
        elif line.startswith("    ") and not lines[start - 1].strip():
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            yield _block(page, start, "", lines[start:number], needs)
        elif needs:
            raise ValueError(f"{page}:{start + 1}: no block follows the comment `needs: {needs}`")
        needs = ""


def _block(page: str, start: int, language: str, lines: list[str], needs: str) -> Block:
    code = textwrap.dedent("\n".join(lines)).strip()
    if language in ("", "sh", "shell", "console") and _COMMAND.match(code + " "):
        language = "bash"
    return Block(page, start + 1, language, code, needs)


def commands(block: Block) -> list[str]:
    """The commands of a block, each on one line."""
    lines = re.sub(r" *\\\n *", " ", block.code).splitlines()
    return [command for line in lines for command in line.split(" && ") if command.strip()]

"""Links between Markdown pages lead to files and headings that exist."""

import re
import subprocess

import pytest
from code_blocks import PAGES, ROOT

TRACKED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True).stdout.split()
ALL = sorted({*PAGES, ROOT / "CHANGELOG.md", *(ROOT / name for name in TRACKED)})
LINK = re.compile(r"\]\(([^)\s]+)\)")


def text_of(page):
    """A page without code, in which brackets are no links."""
    return re.sub(r"(?ms)^```.*?^```|`+[^`\n]+`+(?!\])", "", page.read_text())


def anchors(page):
    """Fragments that headings of a page have."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", ALL, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_relative_link_resolves(page):
    generated = {"command_line.md", "configuration.md"}
    for link in LINK.findall(text_of(page)):
        path, _, fragment = link.partition("#")
        if ":" in path or path in generated:
            continue
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        if fragment and target.suffix == ".md":
            assert fragment in anchors(target), link


def test_links_are_found():
    assert sum(len(LINK.findall(text_of(page))) for page in PAGES) > 50

"""Formulas as MathML, which browsers render without a script or a font from elsewhere."""

import re
from typing import Any

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

_TAG = re.compile(r"\\tag\{(.*?)\}")
_ABOVE_CODE_SPANS = 195  # priority; that of code spans is 190


def format_fence(source: str, language: str, css_class: str, options: Any, md: Markdown, **_: Any) -> str:
    r"""A fenced block of LaTeX as a displayed formula with its \tag, for pymdownx.superfences."""
    number = _TAG.search(source)
    formula = convert(_TAG.sub("", source).strip(), display="block")
    label = f"<span>({number[1]})</span>" if number else ""
    return f'<div class="{css_class}"><div>{formula}</div>{label}</div>'


class InlineFormulas(Extension):
    """Code spans between dollar signs as formulas within the text."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802
        """Registers the pattern."""
        md.inlinePatterns.register(_InlineFormula(r"\$`([^`]+)`\$", md), "formula", _ABOVE_CODE_SPANS)


class _InlineFormula(InlineProcessor):
    def handleMatch(self, m: re.Match[str], data: str) -> tuple[str, int, int]:  # noqa: N802
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)

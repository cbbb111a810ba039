"""Hooks of MkDocs: pages generated from the code, links to files outside docs/, formulas, and listings.

In the sources, a formula is a fenced block `math`, or inline dollar signs around a code span, as on GitHub. A
comment `<!-- code: FILE NAME -->` becomes the source of a function, `<!-- members: MODULE -->` the reference
of all public names of a module. Links are those of the repository.
"""

import logging
import posixpath
import re
from pathlib import Path

import formulas
import listings
import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/detr-jax/detr_jax"
# Generated pages, and pages whose source is a file at the top level.
PAGES = {"configuration.md": reference.configuration_page, "command_line.md": reference.command_line_page}
COPIES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}

_LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
_CODE = re.compile(r"^<!-- code: (\S+) (\S+) -->$", re.MULTILINE)
_MEMBERS = re.compile(r"^<!-- members: (\S+) -->$", re.MULTILINE)
_log = logging.getLogger("mkdocs.plugins.detr_jax")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the extension for formulas, which is not installed and so cannot be named in mkdocs.yml."""
    config.markdown_extensions.append(formulas.InlineFormulas())
    fence = {"name": "math", "class": "math", "format": formulas.format_fence}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages."""
    for name, make_page in PAGES.items():
        files.append(File.generated(config, name, content=make_page(ROOT)))
    for name, source in COPIES.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replaces listings, members, and links that leave docs/ by addresses in the repository."""
    source = COPIES.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def replace_link(match: re.Match[str]) -> str:
        return _address(match[1], source)

    markdown = _CODE.sub(lambda match: listings.listing(ROOT / match[1], match[2]), markdown)
    markdown = _MEMBERS.sub(lambda match: reference.members(match[1]), markdown)
    return _LINK.sub(replace_link, markdown)


def _address(link: str, source: str) -> str:
    """Where a link of a file leads on the site: itself, a page, or an address in the repository."""
    if ":" in link or link.startswith("#"):
        return link
    target = posixpath.normpath(posixpath.join(posixpath.dirname(source), link))
    page = {file: name for name, file in COPIES.items()}.get(target)
    if page or target.startswith("docs/"):
        return page or posixpath.relpath(target, "docs")
    if not (ROOT / target).exists():
        _log.warning("%s links to %s, which does not exist", source, link)
    return f"{REPOSITORY}/{'tree' if (ROOT / target).is_dir() else 'blob'}/main/{target}"

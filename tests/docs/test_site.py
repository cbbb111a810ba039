"""The site builds without warnings, loads nothing from elsewhere, and fits narrow and wide screens."""

import asyncio
import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from html.parser import HTMLParser

import pytest
from browser import CHROMIUM, chromium, open_tab
from code_blocks import ROOT

from detr_jax.__main__ import parser
from detr_jax.config import FIELDS

pytest.importorskip("mkdocs", reason="mkdocs is not installed (the docs extra)")
pytest.importorskip("mkdocstrings", reason="mkdocstrings is not installed (the docs extra)")
pytest.importorskip("latex2mathml", reason="latex2mathml is not installed (the docs extra)")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("site")]

LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data", "link": "href"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    variables = os.environ | {"NO_MKDOCS_2_WARNING": "1", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture
def address(site):
    """The site, served on this machine."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Handler, directory=str(site))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class Loaded(HTMLParser):
    """Collects the addresses that a page loads."""

    def __init__(self, text):
        super().__init__()
        self.addresses = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        if tag == "link" and given.get("rel") in ("canonical", "next", "prev"):
            return
        if tag in LOADING and given.get(LOADING[tag]):
            self.addresses.append(given[LOADING[tag]])
        self.addresses += re.findall(r"url\(([^)]+)\)", given.get("style") or "")


def test_pages_and_styles_load_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 12
    loaded = [address for page in pages for address in Loaded(page.read_text()).addresses]
    assert len(loaded) > len(pages)
    for style in site.rglob("*.css"):
        loaded += re.findall(r"url\(['\"]?([^)'\"]+)", style.read_text())
        loaded += re.findall(r"@import\s+['\"]([^'\"]+)", style.read_text())
    outside = [address for address in loaded if re.match(r"(\w+:)?//", address)]
    assert outside == []


def test_references_list_every_field_and_command(site):
    configuration, command_line = (
        (site / name).read_text() for name in ("configuration.html", "command_line.html")
    )
    for path in FIELDS:
        assert f'id="{path}"' in configuration
    commands = re.findall(r'<h2 id="detr-jax-(\w+)">', command_line)
    (choices,) = (action.choices for action in parser()._actions if action.choices)
    assert commands == list(choices)


def test_public_names_have_an_entry(site):
    import detr_jax

    page = (site / "api.html").read_text()
    for name in set(detr_jax.__all__) - {"visualize"}:
        assert re.search(rf'id="detr_jax\.[\w.]*\b{name}"', page), name
    for name in detr_jax.visualize.__all__:
        assert f'id="detr_jax.visualize.{name}"' in page, name


def test_every_equation_of_the_paper_is_shown_with_code(site):
    page = (site / "how_it_works.html").read_text()
    assert {int(number) for number in re.findall(r"<span>\((\d+)\)</span>", page)} == set(range(1, 16))
    assert page.count("<details") >= 15
    assert "\\" not in "".join(re.findall(r"<math.*?</math>", page, re.DOTALL))


@pytest.mark.skipif(not CHROMIUM.exists(), reason="Chromium is not installed")
def test_pages_fit_the_window_and_request_nothing_from_elsewhere(site, address, tmp_path):
    async def check(port):
        for width, dark in ((360, False), (1280, True)):
            tab = await open_tab(port)
            for page in sorted(site.glob("*.html")):
                await tab.show(f"{address}/{page.name}", width, dark)
                assert await tab.evaluate("document.documentElement.scrollWidth") <= width, page.name
                scheme = await tab.evaluate("document.body.dataset.mdColorScheme")
                assert scheme == ("slate" if dark else "default")
                assert not [one for one in tab.requests() if not one.startswith(address)], page.name
                assert not tab.problems(), page.name

    with chromium(tmp_path / "profile") as port:
        asyncio.run(check(port))
